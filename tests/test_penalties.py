"""Penalties on activations: KL in plain NumPy, L1 in the engine, and several on one layer."""

from __future__ import annotations

import itertools
import json
import pickle

import numba
import numpy as np
import pytest

import mlpkit
from mlpkit import Dense, Input, InvalidArgumentError, KLSparsity, L1Sparsity, MeanPenalty
from mlpkit.kernels import tiles

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
THREADS = [n for n in (1, 2, 4) if n <= numba.config.NUMBA_NUM_THREADS]
DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])
QUADRATIC = mlpkit.penalty(lambda rho_hat: (rho_hat - 0.3) * (rho_hat - 0.3), name="mean_quadratic")
LINEAR = mlpkit.penalty(lambda rho_hat: rho_hat, name="mean_linear")
OUTPUTS = [("squared_error", "tanh"), ("squared_error", "softmax"), ("cross_entropy", "softmax")]


@pytest.fixture(params=[False, True], ids=["by pieces", "by rows"])
def way(request, monkeypatch):
    """Sum gradients of any size in one of the two ways."""
    monkeypatch.setattr(tiles, "_SMALL_GRADIENT", 0 if request.param else 1 << 40)


def network(hidden, output=None, activations=("tanh", "tanh"), loss="squared_error", dtype="float64", sizes=(6, 5, 4)):
    """Return a network with the given penalties on its two layers."""
    layers = [
        Input(sizes[0]),
        *(
            Dense(units, f, sparsity=penalty)
            for units, f, penalty in zip(sizes[1:], activations, (hidden, output), strict=True)
        ),
    ]
    net = mlpkit.MLP(layers, loss=loss, dtype=dtype, seed=0)
    net.theta = np.random.default_rng(0).normal(0.0, 0.5, net.n_parameters)
    return net


def data(net, m, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1, 1, (m, net.sizes[0])).astype(net.dtype)
    Y = rng.dirichlet(np.ones(net.sizes[-1]), m).astype(net.dtype)
    w = rng.integers(0, 5, m) / 4
    w[0] = 1
    return X, Y, w


def evaluate(net, X, Y, w=None, **options):
    return mlpkit.Objective(net, X, Y, w, **options).terms_and_gradient(net.theta)


# KL ---------------------------------------------------------------------------------------------


def test_the_derivatives_of_kl_are_those_of_its_value():
    penalty, r, h = KLSparsity(0.1, 2.5), np.linspace(0.02, 0.98, 25), 1e-5
    slope = [(penalty.value([v + h]) - penalty.value([v - h])) / (2 * h) for v in r]
    np.testing.assert_allclose(penalty.derivative(r), slope, rtol=1e-4, atol=1e-6)
    bend = (penalty.derivative(r + h) - penalty.derivative(r - h)) / (2 * h)
    np.testing.assert_allclose(penalty.second_derivative(r), bend, rtol=1e-4)
    assert not penalty.second_derivative([0.0, 1.0]).any(), "the slope is held where KL would be infinite"
    assert (penalty.second_derivative([1e-300, 1.0 - 1e-15]) > 1e28).all()


# L1 ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("way")
@DTYPES
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "identity", "softmax", "relu"])
@pytest.mark.parametrize("m", [1, 9, 700])
def test_the_l1_term_is_the_mean_of_magnitudes(dtype, activation, m):
    net = network(L1Sparsity(0.7), L1Sparsity(0.3), ("tanh", activation), dtype=dtype)
    X, Y, w = data(net, m)
    terms, _ = evaluate(net, X, Y, w)
    hidden, output = (np.abs(a).sum(axis=1, dtype=np.float64) for a in net.activations(X))
    assert terms["sparsity"] == pytest.approx(w @ (0.7 * hidden + 0.3 * output) / w.sum(), rel=TOLERANCE[dtype])
    assert terms["data"] == evaluate(network(None, None, ("tanh", activation), dtype=dtype), X, Y, w)[0]["data"]


PENALTIES = pytest.mark.parametrize(
    "penalties",
    [
        (L1Sparsity(0.5), None),
        (None, L1Sparsity(0.5)),
        (L1Sparsity(2.0), KLSparsity(0.3, 1.0)),
        (KLSparsity(0.3, 1.0), L1Sparsity(0.5)),
        ((L1Sparsity(0.5), KLSparsity(0.2, 1.0)), (KLSparsity(0.3, 1.0), L1Sparsity(0.5))),
        (MeanPenalty(QUADRATIC, 3.0), (MeanPenalty(QUADRATIC), L1Sparsity(0.5))),
    ],
)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("loss", "activation"), OUTPUTS)
@PENALTIES
@pytest.mark.parametrize("keep", [True, False])
def test_the_gradient_agrees_with_differences(loss, activation, penalties, keep):
    net = network(*penalties, ("sigmoid", activation), loss)
    X, Y, w = data(net, 60)
    objective = mlpkit.Objective(net, X, Y, w, keep)
    gradient = objective.value_and_gradient(net.theta)[1]
    numerical = mlpkit.numerical_gradient(lambda theta: objective.value_and_gradient(theta)[0], net.theta)
    assert np.linalg.norm(gradient - numerical) < 1e-7 * np.linalg.norm(gradient)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("loss", "activation"), OUTPUTS)
@PENALTIES
def test_hessian_products_agree_with_differences(loss, activation, penalties):
    net = network(*penalties, ("sigmoid", activation), loss)
    objective = mlpkit.Objective(net, *data(net, 60))
    v, h = np.random.default_rng(1).normal(size=net.n_parameters), 1e-5
    above, below = (objective.value_and_gradient(net.theta + step * v)[1] for step in (h, -h))
    expected = (above - below) / (2 * h)
    found = objective.hessian_vector_product(net.theta, v)
    assert np.linalg.norm(found - expected) < 1e-7 * np.linalg.norm(expected)


@pytest.mark.usefixtures("way")
@DTYPES
def test_penalties_on_one_layer_add_up(dtype):
    several = (KLSparsity(0.2, 1.5), L1Sparsity(0.25), KLSparsity(0.4, 0.5), L1Sparsity(0.5))
    net = network(several, several[:2], dtype=dtype)
    assert net.layers[1].penalties == several
    X, Y, w = data(net, 400)
    terms, gradient = evaluate(net, X, Y, w)
    plain, sum_of_gradients = evaluate(network(None, dtype=dtype), X, Y, w)
    total, base = 0.0, sum_of_gradients.copy()
    for hidden, output in [*((p, None) for p in several), *((None, p) for p in several[:2])]:
        part, g = evaluate(network(hidden, output, dtype=dtype), X, Y, w)
        total += part["sparsity"]
        sum_of_gradients += g - base
    assert terms["data"] == plain["data"]
    assert terms["sparsity"] == pytest.approx(total, rel=TOLERANCE[dtype])
    assert np.linalg.norm(gradient - sum_of_gradients) < 2 * TOLERANCE[dtype] * np.linalg.norm(gradient)


@pytest.mark.usefixtures("way")
@DTYPES
@pytest.mark.parametrize("output", [None, L1Sparsity(0.4), (L1Sparsity(0.4), KLSparsity(0.3, 1.0))])
def test_threads_and_memory_modes_give_the_same_bits(dtype, output):
    net = network((KLSparsity(0.2, 1.0), L1Sparsity(0.5)), output, dtype=dtype, sizes=(40, 30, 20))
    X, Y, w = data(net, 3001)
    before, results = mlpkit.get_num_threads(), set()
    try:
        for n, keep in itertools.product(THREADS, (True, False)):
            mlpkit.set_num_threads(n)
            terms, g = evaluate(net, X, Y, w, keep_activations=keep)
            results.add((*terms.values(), g.tobytes()))
    finally:
        mlpkit.set_num_threads(before)
    assert len(results) == 1


@DTYPES
def test_padding_and_scale_leave_l1_alone(dtype):
    # 1e200 in a lane without an example, times its weight 0, must add nothing
    net = network(L1Sparsity(1.0), None, ("identity", "identity"), dtype=dtype)
    huge = np.finfo(dtype).max ** 0.45
    X = np.full((3, 6), huge)
    terms, g = evaluate(net, X, np.zeros((3, 4)))
    assert terms["sparsity"] == pytest.approx(np.abs(net.activations(X)[0][0]).sum(dtype=np.float64), rel=1e-5)
    assert np.isfinite(g).all()


def test_a_silent_unit_has_no_l1_slope():
    net = network(L1Sparsity(1.0), None, ("relu", "identity"))
    net.biases[0][:] = -100.0
    X, Y, _ = data(net, 20)
    terms, g = evaluate(net, X, Y)
    assert terms["sparsity"] == 0.0
    assert not g[:35].any()
    net = mlpkit.MLP([Input(2), Dense(2, "identity", sparsity=L1Sparsity(1.0), init=0.0)])
    assert not evaluate(net, np.ones((3, 2)), np.zeros((3, 2)))[1].any(), "sign(0) is 0"


def test_l1_without_kl_needs_no_sweep_for_means():
    net = network(L1Sparsity(0.5), L1Sparsity(0.5))
    objective = mlpkit.Objective(net, *data(net, 10)[:2])
    assert objective.rho_hat(net.theta) == []
    assert objective._plan.n_kept == 0


def test_training_with_l1_leaves_little_activity():
    X, _, _ = data(network(None), 200)
    activity = []
    for strength in (0.0, 0.1):
        net = mlpkit.MLP([Input(6), Dense(5, "relu", sparsity=L1Sparsity(strength)), Dense(6, "identity")], seed=0)
        net.fit(X, X, mlpkit.LBFGS(max_iter=100))
        activity.append(np.abs(net.activations(X)[0]).mean())
    assert activity[1] < 0.5 * activity[0]


# A user's own -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("way")
@DTYPES
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "identity", "relu"])
def test_a_user_s_penalty_sees_the_mean_activation(dtype, activation):
    net = network(MeanPenalty(QUADRATIC, 2.0), None, (activation, "tanh"), dtype=dtype)
    X, Y, w = data(net, 300)
    mean = w @ net.activations(X)[0].astype(np.float64) / w.sum()
    if activation == "tanh":
        mean = (mean + 1) / 2
    objective = mlpkit.Objective(net, X, Y, w)
    assert np.abs(objective.rho_hat(net.theta)[0] - mean).max() < TOLERANCE[dtype]
    terms = objective.terms(net.theta)
    assert terms["sparsity"] == pytest.approx(2.0 * ((mean - 0.3) ** 2).sum(), rel=TOLERANCE[dtype])
    assert mlpkit.check_gradient(net, X[:60], Y[:60], sample_weight=w[:60]).ok


@pytest.mark.usefixtures("way")
@DTYPES
def test_l1_on_positive_activations_is_their_mean(dtype):
    l1, mean = (
        network(p, dtype=dtype, activations=("sigmoid", "tanh")) for p in (L1Sparsity(0.4), MeanPenalty(LINEAR, 0.4))
    )
    X, Y, w = data(l1, 500)
    (terms, g), (terms2, g2) = (evaluate(net, X, Y, w) for net in (l1, mean))
    assert terms["sparsity"] == pytest.approx(terms2["sparsity"], rel=TOLERANCE[dtype])
    assert np.linalg.norm(g - g2) < TOLERANCE[dtype] * np.linalg.norm(g)


def test_the_derivatives_of_a_user_s_penalty_carry_beta():
    penalty, r = MeanPenalty("mean_quadratic", 4.0), np.array([0.1, 0.3, 2.0])
    assert penalty.value(r) == pytest.approx(4 * ((r - 0.3) ** 2).sum())
    np.testing.assert_allclose(penalty.derivative(r), 8 * (r - 0.3))
    np.testing.assert_allclose(penalty.second_derivative(r), 8.0)


def test_networks_with_a_user_s_penalty_travel():
    net = network(MeanPenalty(QUADRATIC, 2.0))
    again = pickle.loads(pickle.dumps(net))
    assert again.layers == net.layers
    assert "sparsity=MeanPenalty('mean_quadratic', beta=2.0)" in repr(again)


# As configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sparsity",
    [
        None,
        KLSparsity(0.1, 2.0),
        L1Sparsity(0.5),
        (L1Sparsity(0.5),),
        (KLSparsity(0.1, 2.0), L1Sparsity(0.5)),
        MeanPenalty(QUADRATIC, 0.5),
        (L1Sparsity(0.5), MeanPenalty("mean_quadratic")),
    ],
)
def test_config_and_back(sparsity):
    net = network(sparsity)
    config = json.loads(json.dumps(net.config()))
    again = mlpkit.MLP.from_config(config)
    assert again.layers[1].sparsity == sparsity
    assert again.config() == config
    assert repr(again) == repr(net)


def test_a_list_is_kept_as_a_tuple():
    assert Dense(2, "tanh", sparsity=[L1Sparsity(0.5)]).sparsity == (L1Sparsity(0.5),)
    assert Dense(2, "tanh", sparsity=L1Sparsity(0.5)).penalties == (L1Sparsity(0.5),)
    assert Dense(2, "tanh").penalties == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L1Sparsity(-1), "strength must be a finite number"),
        (lambda: L1Sparsity("1"), "strength must be a number"),
        (lambda: MeanPenalty("unheard_of"), "penalty must be a Penalty or one of .*; found 'unheard_of'"),
        (lambda: MeanPenalty(QUADRATIC, -1.0), "beta must be a finite number"),
        (lambda: Dense(2, "tanh", sparsity=[0.1]), "sparsity must be a KLSparsity, L1Sparsity"),
        (lambda: Dense(2, "tanh", sparsity=[]), "sparsity must be a KLSparsity, L1Sparsity"),
        (lambda: Dense(2, "tanh", sparsity=KLSparsity), "sparsity must be a KLSparsity, L1Sparsity"),
        (
            lambda: Dense(2, "identity", sparsity=[L1Sparsity(1.0), KLSparsity()]),
            "needs an activation of bounded range.*'identity'",
        ),
        (lambda: network(L1Sparsity(1e39), dtype="float32"), r"strength of layers\[1\] must be finite in float32"),
    ],
)
def test_bad_penalties_are_named(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "L2Sparsity", "strength": 1.0}, "sparsity type must be one of 'KLSparsity', 'L1Sparsity'"),
        ({"strength": 1.0}, "sparsity type must be one of"),
        ({"type": "L1Sparsity", "rho": 1.0}, r"sparsity of type L1Sparsity cannot have the entries \['rho'\]"),
        ({"type": "L1Sparsity", "strength": -1.0}, "strength must be a finite number"),
        ("L1Sparsity", "sparsity must be described by its type and numbers; found 'L1Sparsity'"),
        ([], "sparsity must be a KLSparsity"),
        ([[]], "sparsity must be described"),
    ],
)
def test_unknown_penalties_in_a_config_are_refused(entry, message):
    config = network(None).config()
    config["layers"][1]["sparsity"] = entry
    with pytest.raises(InvalidArgumentError, match=message):
        mlpkit.MLP.from_config(config)
