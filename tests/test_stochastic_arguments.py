"""Stochastic optimisers as records, and what is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import reference

import mlpkit
from mlpkit import SGD, Adagrad, Adam, AdamW, Dense, Input, InvalidArgumentError, KLSparsity, RMSprop


def network(dtype="float64", dropout=0.0):
    return mlpkit.MLP([Input(12), Dense(9, "sigmoid", dropout=dropout), Dense(5, "sigmoid")], dtype=dtype, seed=0)


def examples(m):
    rng = np.random.default_rng(7)
    return rng.uniform(0.1, 0.9, (m, 12)), rng.uniform(0.1, 0.9, (m, 5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(0.0), r"learning_rate must be a finite number in \(0, inf\]; found 0.0"),
        (lambda: Adam(-1.0), "learning_rate must be a finite number"),
        (lambda: Adam(np.inf), "learning_rate must be a finite number"),
        (lambda: Adam("fast"), "learning_rate must be a number in .*; found 'fast' of type str"),
        (lambda: Adam(mlpkit.schedules.StepSchedule), "learning_rate must be a number"),
        (lambda: Adam(True), "learning_rate must be a number"),
        (lambda: SGD(momentum=1.0), r"momentum must be a finite number in \[0, 1\); found 1.0"),
        (lambda: SGD(momentum=-0.1), "momentum must be a finite number"),
        (lambda: SGD(nesterov=True), r"momentum \(with nesterov=True\) must be a finite number in \(0, inf\]; found 0"),
        (lambda: SGD(nesterov=1), "nesterov must be True or False; found 1"),
        (lambda: RMSprop(alpha=1.0), "alpha must be a finite number"),
        (lambda: RMSprop(epsilon=0.0), r"epsilon must be a finite number in \(0, inf\]; found 0.0"),
        (lambda: Adagrad(epsilon=-1e-8), "epsilon must be a finite number"),
        (lambda: Adam(beta1=1.0), "beta1 must be a finite number"),
        (lambda: AdamW(beta2=np.nan), "beta2 must be a finite number"),
        (lambda: Adam(batch_size=0), "batch_size must be an integer of at least 1; found 0"),
        (lambda: Adam(batch_size=32.0), "batch_size must be an integer; found 32.0 of type float"),
        (lambda: Adam(max_epochs=0), "max_epochs must be an integer of at least 1; found 0"),
        (lambda: Adam(shuffle=None), "shuffle must be True, False, 'blocks' or a BlockShuffle; found None"),
        (lambda: Adam(clip_norm=0.0), r"clip_norm must be a finite number in \(0, inf\]; found 0.0"),
        (lambda: Adam(clip_value=-1), "clip_value must be a finite number"),
        (lambda: Adam(rho_hat_momentum=1.0), r"rho_hat_momentum must be a finite number in \[0, 1\); found 1.0"),
        (lambda: Adam(seed=-1), "seed must be an integer of at least 0; found -1"),
        (lambda: Adam(seed=1.5), "seed must be an integer; found 1.5"),
        (lambda: Dense(3, "tanh", dropout=1.0), r"dropout must be a finite number in \[0, 1\); found 1.0"),
        (lambda: Dense(3, "tanh", dropout=-0.1), "dropout must be a finite number"),
        (
            lambda: Dense(3, "sigmoid", dropout=0.5, sparsity=KLSparsity(0.1, 1.0)),
            "dropout must be 0 in a layer whose activations are penalised; found 0.5",
        ),
        (
            lambda: Dense(3, "relu", dropout=0.5, sparsity=mlpkit.L1Sparsity(0.1)),
            "dropout must be 0 in a layer whose activations are penalised; found 0.5",
        ),
        (
            lambda: mlpkit.MLP([Input(2), Dense(3, "tanh", dropout=0.5), Dense(1, "identity", dropout=0.25)]),
            "dropout must be 0 in the output layer; found 0.25",
        ),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    "optimizer",
    [
        None,
        mlpkit.LBFGS(),
        mlpkit.ConjugateGradient(),
        mlpkit.GradientDescent(0.1, 5),
        mlpkit.NewtonCG(),
        mlpkit.TrustNCG(),
    ],
)
def test_dropout_needs_a_stochastic_optimiser(optimizer):
    net, (X, Y) = network(dropout=0.5), examples(10)
    before = net.theta.copy()
    message = r"optimizer must be a stochastic one, such as Adam\(\), for a network with dropout \(layer 2\)"
    with pytest.raises(InvalidArgumentError, match=message):
        net.fit(X, Y, optimizer)
    np.testing.assert_array_equal(net.theta, before)


def test_options_that_do_not_apply_are_refused():
    net, (X, Y) = network(), examples(10)
    with pytest.raises(InvalidArgumentError, match="keep_activations must be None for a stochastic"):
        net.fit(X, Y, Adam(), keep_activations=True)
    for wrong in (Adam, mlpkit.schedules.WarmUp(0.1), 0.1):
        with pytest.raises(InvalidArgumentError, match="optimizer must be one such as LBFGS"):
            net.fit(X, Y, wrong)
    X[3, 2] = np.nan
    with pytest.raises(InvalidArgumentError, match="X must be finite in float64; found nan at row 3 column 2"):
        net.fit(X, Y, Adam())


def test_optimisers_are_records():
    assert repr(SGD(0.1, momentum=0.9)) == "SGD(learning_rate=0.1, momentum=0.9)"
    assert repr(Adam(batch_size=32, beta2=0.99, seed=3)) == "Adam(beta2=0.99, batch_size=32, seed=3)"
    full = AdamW(1, 0.5, 0.25, 1e-4, batch_size=2, max_epochs=3, shuffle=False, clip_norm=1, clip_value=2, seed=0,
                 rho_hat_momentum=0.5)  # fmt: skip
    others = SGD(0.1, momentum=0.9, nesterov=True), RMSprop(), Adagrad(epsilon=1.0)
    for optimizer in (*others, full, Adam(mlpkit.schedules.WarmUp(0.1))):
        names = {**vars(mlpkit), **vars(mlpkit.schedules)}
        assert eval(repr(optimizer), names) == optimizer
        assert copy.deepcopy(optimizer) == optimizer
    assert isinstance(full.learning_rate, float)
    assert Adam() != AdamW()
    with pytest.raises(AttributeError):
        full.beta1 = 0.3
    with pytest.raises(TypeError):
        SGD(0.1, 0.9, True, 32)  # the options of all are given by name


def test_a_step_that_fails_where_every_target_is_masked_is_a_divergence():
    X, Y = examples(6)
    mask = np.zeros((6, 5), bool)
    mask[5] = True
    net = mlpkit.MLP([Input(12), Dense(5, "identity")], weight_decay=1e200, seed=0)
    result = net.fit(X, Y, SGD(1e200, batch_size=1, shuffle=False), mask=mask)
    assert result.reason.startswith("diverged: W^(1) became infinite or NaN first, at step 1 of epoch 1")
    assert np.isfinite(net.theta).all()


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (SGD(1e-50), "learning_rate must not be rounded to 0 by float32; found 1e-50"),
        (SGD(momentum=1 - 1e-9), "momentum must not be rounded to 1 by float32; found 0.999999999"),
        (RMSprop(alpha=1 - 1e-9), "alpha must not be rounded to 1 by float32"),
        (Adam(beta1=1 - 1e-9), "beta1 must not be rounded to 1 by float32"),
        (AdamW(beta2=1 - 1e-9), "beta2 must not be rounded to 1 by float32"),
        (Adagrad(epsilon=1e-50), "epsilon must not be rounded to 0 by float32"),
        (Adam(clip_norm=1e-50), "clip_norm must not be rounded to 0 by float32"),
        (Adam(clip_value=1e-50), "clip_value must not be rounded to 0 by float32"),
    ],
)
def test_what_float32_cannot_tell_from_0_or_1_is_refused(optimizer, message):
    X, Y = examples(10)
    for train in ("fit", "partial_fit"):
        with pytest.raises(InvalidArgumentError, match=message):
            getattr(network("float32"), train)(X, Y, optimizer)
        getattr(network("float64"), train)(X, Y, optimizer)


def test_bounds_beyond_float32_do_not_clip():
    X, Y = examples(10)
    one, two = network("float32"), network("float32")
    one.fit(X, Y, Adam(clip_norm=1e300, clip_value=1e300))
    two.fit(X, Y, Adam())
    assert reference.relative_error(one.theta, two.theta) < 1e-6
