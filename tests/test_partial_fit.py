"""`MLP.partial_fit`: calls in a row are one training, and what belongs to it is remembered."""

from __future__ import annotations

import copy
import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest

import mlpkit
from mlpkit import SGD, Adagrad, Adam, AdamW, Dense, Input, InvalidArgumentError, KLSparsity, MaskingNoise, RMSprop

RULES = {
    "sgd": SGD(0.05),
    "momentum": SGD(0.02, momentum=0.8),
    "nesterov": SGD(0.02, momentum=0.8, nesterov=True),
    "rmsprop": RMSprop(0.01),
    "adagrad": Adagrad(0.05),
    "adam": Adam(0.01),
    "adamw": AdamW(0.01),
}


def network(dtype="float64", noise=None, **options):
    layers = [Input(6, noise), Dense(8, "sigmoid", **options), Dense(3, "identity")]
    return mlpkit.MLP(layers, weight_decay=0.02, dtype=dtype, seed=0)


def examples(m=60, dtype="float64"):
    rng = np.random.default_rng(7)
    return rng.uniform(-1.0, 1.0, (m, 6)).astype(dtype), rng.uniform(-1.0, 1.0, (m, 3)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rule", RULES)
def test_calls_in_a_row_are_one_fit_over_the_same_batches(rule, dtype):
    one, two = (network(dtype, sparsity=KLSparsity(0.2, 0.5)) for _ in range(2))
    X, Y = examples(64, dtype)
    optimizer = replace(RULES[rule], batch_size=8, max_epochs=1, shuffle=False, clip_norm=1.0)
    result = one.fit(X, Y, optimizer)
    parts = [slice(0, 8), slice(8, 40), slice(40, 64)]
    terms = [two.partial_fit(X[part], Y[part], optimizer) for part in parts]
    np.testing.assert_array_equal(one.theta, two.theta)
    for name in ("data", "sparsity"):
        mean = np.average([found[name] for found in terms], weights=[8, 32, 24])
        assert result.terms[name] == pytest.approx(mean, rel=1e-12)
    assert terms[-1]["weight_decay"] == result.terms["weight_decay"]


def test_calls_with_shuffling_go_on_with_the_generator():
    # fit on all rows for three epochs, and three calls: the same orders, noise, dropout and running mean
    one, two = (network(noise=MaskingNoise(0.2), dropout=0.3) for _ in range(2))
    X, Y = examples()
    optimizer = Adam(0.01, batch_size=7, max_epochs=3)
    result = one.fit(X, Y, optimizer)
    terms = [two.partial_fit(X, Y, replace(optimizer)) for _ in range(3)]
    np.testing.assert_array_equal(one.theta, two.theta)
    assert [record.data for record in result.history] == [found["data"] for found in terms]


def test_a_running_mean_goes_on():
    one, two = (network(sparsity=KLSparsity(0.2, 1.0)) for _ in range(2))
    X, Y = examples()
    optimizer = SGD(0.1, batch_size=20, max_epochs=4, rho_hat_momentum=0.9)
    one.fit(X, Y, optimizer)
    for _ in range(4):
        two.partial_fit(X, Y, optimizer)
    np.testing.assert_array_equal(one.theta, two.theta)


def test_a_call_is_an_epoch_of_the_schedule_however_many_examples_it_has():
    seen = []

    def rate(epochs):
        seen.append(epochs)
        return 0.01

    net, (X, Y) = network(), examples()
    optimizer = SGD(rate, batch_size=10)
    for m in (40, 10, 20, 5):
        net.partial_fit(X[:m], Y[:m], optimizer)
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 2.5, 3.0]


def test_another_optimiser_starts_anew():
    X, Y = examples()
    first, second = Adam(0.01, batch_size=10), Adam(0.02, batch_size=10)
    net = network()
    net.partial_fit(X, Y, first)
    fresh = network()
    fresh.theta = net.theta
    for n in (net, fresh):
        n.partial_fit(X, Y, second)
    np.testing.assert_array_equal(net.theta, fresh.theta)
    # and so does the first one, if it comes again
    fresh = network()
    fresh.theta = net.theta
    for n in (net, fresh):
        n.partial_fit(X, Y, first)
    np.testing.assert_array_equal(net.theta, fresh.theta)
    net.partial_fit(X, Y, first)
    other = network()
    other.theta = fresh.theta
    other.partial_fit(X, Y, first)
    assert (net.theta != other.theta).any(), "a second call remembers the first"


def test_parameters_may_be_set_between_calls():
    one, two = network(), network()
    X, Y = examples()
    optimizer = SGD(0.1, batch_size=10, shuffle=False)
    one.partial_fit(X, Y, optimizer)
    two.theta = one.theta
    two.partial_fit(X, Y, optimizer)
    one.partial_fit(X, Y, optimizer)
    np.testing.assert_array_equal(one.theta, two.theta)


def test_adam_is_the_default():
    one, two = network(), network()
    X, Y = examples()
    assert one.partial_fit(X, Y) == two.partial_fit(X, Y, Adam())
    np.testing.assert_array_equal(one.theta, two.theta)


def test_terms_are_those_before_each_step():
    net, (X, Y) = network(), examples()
    before = net.evaluate(X, Y)
    terms = net.partial_fit(X, Y, SGD(0.1, batch_size=60))
    assert terms["data"] == pytest.approx(before["data"], rel=1e-13)
    assert set(terms) == {"data", "weight_decay", "sparsity"}
    assert net.evaluate(X, Y)["data"] < terms["data"]


def test_weights_masks_and_labels_are_taken():
    X, Y = examples()
    rng = np.random.default_rng(0)
    weights, mask = rng.integers(0, 3, 60) / 2, rng.random((60, 3)) < 0.6
    hidden = np.where(mask, Y, np.nan)
    one, two = network(), network()
    optimizer = Adam(0.01, batch_size=7, max_epochs=1)
    result = one.fit(X, hidden, optimizer, sample_weight=weights, mask=mask)
    assert two.partial_fit(X, hidden, optimizer, sample_weight=weights, mask=mask) == result.terms
    np.testing.assert_array_equal(one.theta, two.theta)

    nets = [mlpkit.MLP([Input(6), Dense(3, "softmax")], loss="cross_entropy", seed=0) for _ in range(2)]
    labels = np.arange(60) % 3
    nets[0].fit(X, labels, optimizer, class_weight={0: 2.0})
    nets[1].partial_fit(X, labels, optimizer, class_weight={0: 2.0})
    np.testing.assert_array_equal(nets[0].theta, nets[1].theta)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_go_on_by_themselves(duplicate):
    net, (X, Y) = network(), examples()
    optimizer = Adam(0.01, batch_size=10)
    net.partial_fit(X, Y, optimizer)
    twin = duplicate(net)
    for n in (net, twin):
        n.partial_fit(X, Y, optimizer)
    np.testing.assert_array_equal(net.theta, twin.theta)
    twin.partial_fit(X, Y, optimizer)
    assert (net.theta != twin.theta).any()


class Locked:
    """A schedule that can be neither copied nor pickled, and is equal to itself only."""

    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, epochs):
        return 0.01


@pytest.mark.parametrize("schedule", [lambda epochs: 0.01, Locked()], ids=["lambda", "locked"])
def test_a_schedule_that_cannot_be_pickled_is_left_out_of_pickles_alone(schedule):
    net, (X, Y) = network(), examples()
    optimizer = Adam(schedule, batch_size=10)
    net.partial_fit(X, Y, optimizer)
    net.partial_fit(X, Y, optimizer)
    fresh = network()
    fresh.theta = net.theta
    twins = [copy.copy(net), copy.deepcopy(net), copy.deepcopy([net, net])[1]]
    loaded = pickle.loads(pickle.dumps(net))
    assert loaded.partial_state == (None, {})
    assert net.partial_state[0] is optimizer
    for n in (net, *twins, loaded, fresh):
        n.partial_fit(X, Y, optimizer)
    for twin in twins:
        np.testing.assert_array_equal(twin.theta, net.theta)
    np.testing.assert_array_equal(loaded.theta, fresh.theta)
    assert (loaded.theta != net.theta).any(), "nothing was remembered"


def test_a_copy_of_the_network_within_another_copy_is_one():
    net = network()
    net.metadata["me"] = net
    twin = copy.deepcopy(net)
    assert twin.metadata["me"] is twin is not net


def test_model_files_do_not_hold_it(tmp_path):
    net, (X, Y) = network(), examples()
    optimizer = Adam(0.01, batch_size=10)
    net.partial_fit(X, Y, optimizer)
    net.save(tmp_path / "model.h5")
    loaded, fresh = mlpkit.load(tmp_path / "model.h5"), network()
    fresh.theta = net.theta
    for n in (loaded, fresh):
        n.partial_fit(X, Y, optimizer)
    np.testing.assert_array_equal(loaded.theta, fresh.theta)


# Mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [mlpkit.LBFGS(), Adam, "adam", 0.1])
def test_only_stochastic_optimisers_will_do(wrong):
    net, (X, Y) = network(), examples()
    with pytest.raises(InvalidArgumentError, match=r"optimizer must be a stochastic one, such as Adam\(\); found"):
        net.partial_fit(X, Y, wrong)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_running_mean_of_nothing_is_refused(momentum):
    X, Y = examples()
    optimizer = Adam(rho_hat_momentum=momentum, max_epochs=1)
    message = f"rho_hat_momentum must be None for a network without a penalty on mean activations.*; found {momentum}"
    for net in (network(), network(sparsity=mlpkit.L1Sparsity(0.1))):
        before = net.theta.copy()
        for train in (net.fit, net.partial_fit):
            with pytest.raises(InvalidArgumentError, match=message):
                train(X, Y, optimizer)
        np.testing.assert_array_equal(net.theta, before)
    for penalty in (KLSparsity(0.1, 1.0), (mlpkit.L1Sparsity(0.1), KLSparsity(0.1, 1.0))):
        network(sparsity=penalty).fit(X, Y, optimizer)


def test_bad_data_are_named_and_change_nothing():
    net, (X, Y) = network(), examples()
    optimizer = Adam(0.01)
    net.partial_fit(X, Y, optimizer)
    unspoilt = copy.copy(net)
    bad = X.copy()
    bad[2, 1] = np.inf
    for arguments, message in [
        ((X[:, :5], Y), r"X must have 6 columns; found 5 \(shape \(60, 5\)\)"),
        ((X, Y[:50]), "Y must have as many rows as X, 60; found 50"),
        ((bad, Y), "X must be finite in float64; found inf at row 2 column 1"),
        ((X[:0], Y[:0]), "X must not be empty"),
    ]:
        with pytest.raises(InvalidArgumentError, match=message):
            net.partial_fit(*arguments, optimizer)
    with pytest.raises(InvalidArgumentError, match="sample_weight must not be all zero"):
        net.partial_fit(X, Y, optimizer, sample_weight=np.zeros(60))
    for n in (net, unspoilt):
        n.partial_fit(X, Y, optimizer)
    np.testing.assert_array_equal(net.theta, unspoilt.theta)


def test_a_divergence_is_an_error_and_leaves_finite_parameters():
    net, (X, Y) = network(), examples()
    wild = SGD(1e150, batch_size=10)
    with pytest.raises(
        InvalidArgumentError, match=r"optimizer SGD\(learning_rate=1e\+150.*: diverged: .* at step [23] of"
    ):
        net.partial_fit(X, Y, wild)
    assert np.isfinite(net.theta).all()
    assert (net.theta != network().theta).any(), "the first step was taken"
