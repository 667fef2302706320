"""Layers whose W is the transpose of an earlier layer's: where it lies, what it computes, its gradient."""

from __future__ import annotations

import copy
import pickle

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlpkit
from mlpkit import Dense, Input, InvalidArgumentError, KLSparsity
from mlpkit.kernels import tiles

THREADS = [n for n in (1, 2, 4) if n <= numba.config.NUMBA_NUM_THREADS]
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
SPARSE = KLSparsity(0.2, 0.5)

# Each with the sizes drawn, as (units, tied_to, bias) of the dense layers after an input of n units.
SHAPES = {
    "autoencoder": lambda n, h, k: [(h, None, True), (n, 1, True)],
    "without biases": lambda n, h, k: [(h, None, False), (n, 1, False)],
    "deep": lambda n, h, k: [(h, None, True), (k, None, True), (h, 2, True), (n, 1, True)],
    "twice the same": lambda n, h, k: [(h, None, True), (n, 1, True), (k, None, True), (h, None, True), (n, 1, False)],
    "further off": lambda n, h, k: [(n, None, True), (h, None, True), (n, 2, True), (n, 1, True)],
}


def networks(shape, n, h, k, dtype="float64", seed=0):
    """Return a tied network with a sparse first layer, and the untied one that computes the same."""
    layers, free = [Input(n)], [Input(n)]
    for i, (units, tied_to, bias) in enumerate(SHAPES[shape](n, h, k)):
        options = {"bias": bias, "sparsity": SPARSE if i == 0 else None}
        layers.append(Dense(units, "sigmoid" if i % 2 == 0 else "tanh", tied_to=tied_to, **options))
        free.append(Dense(units, layers[-1].activation, weight_decay=0.0 if tied_to else None, **options))
    net, twin = (mlpkit.MLP(parts, weight_decay=0.01, dtype=dtype, seed=seed) for parts in (layers, free))
    net.theta = np.random.default_rng(seed).normal(0.0, 0.6, net.n_parameters)
    for ours, theirs in zip(net.weights + net.biases, twin.weights + twin.biases, strict=True):
        theirs[:] = ours
    return net, twin


def data(net, m, seed=0):
    rng = np.random.default_rng(seed)
    X, Y = rng.uniform(-1, 1, (m, net.sizes[0])), rng.uniform(0, 1, (m, net.sizes[-1]))
    return X.astype(net.dtype), Y.astype(net.dtype)


def summed_up(net, twin, gradient):
    """Return the gradient of the tied network that follows from its untied twin's."""
    parts = copy.deepcopy(twin)
    parts.theta = gradient
    total = copy.deepcopy(net)
    for W, b, part, bias, layer in zip(
        total.weights, total.biases, parts.weights, parts.biases, net.layers[1:], strict=True
    ):
        b[:] = bias
        if layer.tied_to is None:
            W[:] = part
    for part, layer in zip(parts.weights, net.layers[1:], strict=True):
        if layer.tied_to is not None:
            total.weights[layer.tied_to - 1][:] += part.T
    return total.theta


@pytest.fixture(params=[False, True], ids=["by pieces", "by rows"])
def way(request, monkeypatch):
    """Sum gradients of any size in one of the two ways."""
    monkeypatch.setattr(tiles, "_SMALL_GRADIENT", 0 if request.param else 1 << 40)


def test_theta_holds_shared_weights_once():
    net = mlpkit.MLP([Input(3), Dense(2, "sigmoid"), Dense(3, "identity", tied_to=1)], seed=0)
    assert net.n_parameters == 6 + 2 + 3
    net.theta = np.arange(11.0)
    np.testing.assert_array_equal(net.weights[0], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(net.weights[1], net.weights[0].T)
    np.testing.assert_array_equal(net.biases[1], [8, 9, 10])
    net.weights[1][2, 0] = -7
    assert net.theta[2] == -7, "the view is live"
    net.weights[0][1, 1] = 9
    assert net.weights[1][1, 1] == 9


def test_decay_counts_shared_weights_once():
    net, _ = networks("deep", 6, 5, 4)
    X, Y = data(net, 10)
    squares = sum((W**2).sum() for W in net.weights[:2])
    assert net.evaluate(X, Y)["weight_decay"] == pytest.approx(0.005 * squares, rel=1e-14)
    assert net.decays == [0.01, 0.01, 0.0, 0.0]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("m", [1, 2, 5, 33, 700])
def test_predictions_are_those_of_the_untied_network_to_the_bit(shape, dtype, m):
    net, twin = networks(shape, 9, 7, 5, dtype)
    X, _ = data(net, m)
    assert net.predict(X).tobytes() == twin.predict(X).tobytes()
    for ours, theirs in zip(net.activations(X), twin.activations(X), strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=15)
@given(
    sizes=st.tuples(*[st.integers(1, 40)] * 3),
    m=st.integers(1, 300),
    keep=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_gradient_is_the_sum_of_the_untied_network_s(shape, dtype, sizes, m, keep, seed):
    net, twin = networks(shape, *sizes, dtype=dtype, seed=seed)
    X, Y = data(net, m, seed)
    ours, theirs = (mlpkit.Objective(one, X, Y, keep_activations=keep) for one in (net, twin))
    J, g = ours.value_and_gradient(net.theta)
    J2, g2 = theirs.value_and_gradient(twin.theta)
    assert abs(J - J2) <= TOLERANCE[dtype] * abs(J2)
    expected = summed_up(net, twin, g2)
    assert np.linalg.norm(g - expected) <= TOLERANCE[dtype] * np.linalg.norm(expected)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_threads_and_memory_modes_give_the_same_bits(shape, dtype):
    net, _ = networks(shape, 70, 40, 30, dtype)
    X, Y = data(net, 3001)
    before, results = mlpkit.get_num_threads(), set()
    try:
        for n in THREADS:
            mlpkit.set_num_threads(n)
            for keep in (True, False):
                J, g = mlpkit.Objective(net, X, Y, keep_activations=keep).value_and_gradient(net.theta)
                results.add((J, g.tobytes()))
    finally:
        mlpkit.set_num_threads(before)
    assert len(results) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_check_gradient_names_the_blocks_that_theta_has(shape):
    net, _ = networks(shape, 6, 5, 4)
    report = mlpkit.check_gradient(net, *data(net, 40))
    assert report.ok, report
    assert sum(block.n_parameters for block in report.layers) == net.n_parameters
    tied = {f"W^({i})" for i, layer in enumerate(net.layers[1:], start=1) if layer.tied_to}
    assert not tied & {block.name for block in report.layers}


def test_an_untied_layer_starts_as_it_would_without_the_tie():
    tied, free = (
        mlpkit.MLP([Input(4), Dense(3, "sigmoid"), Dense(4, "tanh", tied_to=tie)], seed=5) for tie in (1, None)
    )
    np.testing.assert_array_equal(tied.weights[0], free.weights[0])


@pytest.mark.parametrize("again", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_tie_their_own_weights(again):
    net, _ = networks("autoencoder", 4, 3, 2)
    twin = again(net)
    twin.weights[1][:] = 0
    assert not twin.weights[0].any()
    assert net.weights[0].any()


def test_config_and_representation_say_what_is_tied():
    net, _ = networks("deep", 6, 5, 4)
    entries = net.config()["layers"]
    assert [entry.get("tied_to") for entry in entries] == [None, None, None, 2, 1]
    assert "tied_to" not in entries[1], "files of networks without ties stay as they were"
    assert repr(mlpkit.MLP.from_config(net.config())) == repr(net)
    assert "Dense(6, 'tanh', tied_to=1)" in repr(net)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dense(3, "tanh", tied_to=0), "tied_to must be an integer of at least 1; found 0"),
        (lambda: Dense(3, "tanh", tied_to="1"), "tied_to must be an integer"),
        (lambda: Dense(3, "tanh", tied_to=1, weight_decay=0.0), "weight_decay must be None .* W\\^\\(1\\); found 0.0"),
        (lambda: Dense(3, "tanh", tied_to=1, init="notes"), "init must be None .*; found 'notes'"),
        (
            lambda: mlpkit.MLP([Input(3), Dense(3, "tanh", tied_to=1)]),
            r"tied_to of layers\[1\] must be .* an earlier layer's W, of which there are 0; found 1",
        ),
        (
            lambda: mlpkit.MLP([Input(3), Dense(3, "tanh"), Dense(3, "tanh", tied_to=2)]),
            r"tied_to of layers\[2\] must be .* there is 1; found 2",
        ),
        (
            lambda: mlpkit.MLP([Input(3), Dense(3, "tanh"), Dense(3, "tanh", tied_to=1), Dense(3, "tanh", tied_to=2)]),
            r"tied_to of layers\[3\] must be .* not tied itself; found 2, which is tied to 1",
        ),
        (
            lambda: mlpkit.MLP([Input(3), Dense(2, "tanh"), Dense(4, "tanh", tied_to=1)]),
            r"tied_to of layers\[2\] must be .* shape of this layer's, \(4, 2\); found 1, for which it is \(3, 2\)",
        ),
        (lambda: mlpkit.sparse_autoencoder(4, 2, tied=1), "tied must be True or False"),
    ],
)
def test_what_cannot_be_tied_is_refused(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


def test_the_autoencoder_can_be_tied_and_linear():
    net = mlpkit.sparse_autoencoder(n_inputs=6, n_hidden=4, decoder="identity", tied=True)
    assert net.n_parameters == 24 + 4 + 6
    assert net.layers[2].activation is mlpkit.activations.identity
    X = np.random.default_rng(0).uniform(-2, 2, (60, 6))
    before = net.evaluate(X, X)["data"]
    net.fit(X, X, mlpkit.LBFGS(max_iter=30))
    assert net.evaluate(X, X)["data"] < before
    np.testing.assert_array_equal(net.weights[1], net.weights[0].T)
