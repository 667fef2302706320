"""The network: its layers and parameters, prediction, labels, copies, and what is refused."""

import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest

import mlpkit
from mlpkit import Dense, Input
from mlpkit.errors import InvalidArgumentError
from mlpkit.layers import draw_parameters


def make(**options):
    return mlpkit.MLP([Input(3), Dense(4, "tanh", bias=False), Dense(2, "sigmoid")], seed=0, **options)


def test_weights_and_biases_are_live_views_of_theta_in_the_notes_order():
    net = make()
    assert (net.n_layers, net.sizes, net.n_parameters) == (3, (3, 4, 2), 12 + 8 + 2)
    assert [W.shape for W in net.weights] == [(4, 3), (2, 4)]
    assert [b.shape for b in net.biases] == [(0,), (2,)]
    net.theta = np.arange(22.0)
    np.testing.assert_array_equal(net.weights[0], np.arange(12.0).reshape(4, 3))
    np.testing.assert_array_equal(net.weights[1], np.arange(12.0, 20.0).reshape(2, 4))
    np.testing.assert_array_equal(net.biases[1], [20.0, 21.0])
    net.weights[1][1, 2] = -7.0
    assert net.theta[12 + 4 + 2] == -7.0
    before = net.theta
    net.theta = np.zeros(22)
    assert net.theta is before, "assigning copies in"


class Unconvertible:
    def __array__(self, *arguments, **options):
        raise RuntimeError("no array today")


@pytest.mark.parametrize(
    "theta",
    [
        np.zeros(21),
        np.zeros((22, 1)),
        [0.0] * 23,
        [np.nan] * 22,
        ["a"] * 22,
        None,
        [10**400] * 22,
        np.array(["1"] * 22, object),
        np.array([1.0] * 21 + [b"1"], object),
        Unconvertible(),
    ],
    ids=[
        "short",
        "matrix",
        "long",
        "nan",
        "text",
        "none",
        "huge",
        "text objects",
        "bytes object",
        "unconvertible",
    ],
)
def test_a_wrong_theta_is_refused_and_nothing_changes(theta):
    net = make()
    before = net.theta.copy()
    with pytest.raises(InvalidArgumentError, match="theta must"):
        net.theta = theta
    np.testing.assert_array_equal(net.theta, before)


def test_float32_overflow_in_data_is_named():
    with pytest.raises(InvalidArgumentError, match="X must be finite in float32; found inf at row 1 column 2"):
        make(dtype="float32").predict([[0, 0, 0], [0, 0, 1e39]])


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([[0, 1, 10**400]], "X must be an array of numbers; found list: int too large"),
        (Unconvertible(), "X must be an array of numbers; found Unconvertible: no array today"),
        (np.array([[0.0, 1.0, 2.0], [0.0, 1.0, "2"]], object), "X must .* found the text '2' at row 1 column 2"),
        (np.array([[0.0, 1.0, bytearray(b"2")]], object), "X must .* found the text bytearray"),
    ],
)
def test_what_is_no_number_is_not_made_one(X, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make().predict(X)


def test_objects_that_are_numbers_are_welcome():
    X = np.array([[1, 2.5, Fraction(1, 2)], [True, np.float32(0.5), -1]], object)
    np.testing.assert_array_equal(make().predict(X), make().predict(X.astype(float)))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_equal_and_independent(duplicate):
    net = make(weight_decay=0.1, dtype="float32")
    net.predict(np.zeros((1, 3)))
    twin = duplicate(net)
    assert twin.config() == net.config()
    assert repr(twin) == repr(net)
    X = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_array_equal(twin.predict(X), net.predict(X))
    twin.theta[:] = 0
    assert net.theta.any()
    assert not twin.weights[0].any()


def test_a_network_from_a_read_only_buffer_can_be_trained():
    net, buffers = make(), []
    data = pickle.dumps(net, protocol=5, buffer_callback=buffers.append)
    assert buffers, "theta travels out of band"
    raw = [bytes(buffer.raw()) for buffer in buffers]
    twin = pickle.loads(data, buffers=raw)
    twin.theta = np.zeros(net.n_parameters)
    twin.weights[0][:] = 1
    again = pickle.loads(data, buffers=raw)
    np.testing.assert_array_equal(again.theta, net.theta)

    shared = [bytearray(part) for part in raw]
    first, second = pickle.loads(data, buffers=shared), pickle.loads(data, buffers=shared)
    first.theta[:] = 0
    np.testing.assert_array_equal(second.theta, net.theta)


def test_the_representation_shows_the_layers():
    net = mlpkit.MLP(
        [Input(2), Dense(3, "relu", init="notes", weight_decay=0.5, bias=False), Dense(1, "identity")],
        weight_decay=1e-4,
        dtype="float32",
        seed=7,
    )
    assert repr(net) == (
        "MLP([Input(2), Dense(3, 'relu', weight_decay=0.5, init='notes', bias=False), Dense(1, 'identity')], "
        "loss='squared_error', weight_decay=0.0001, dtype='float32', seed=7)"
    )


def test_config_and_back():
    net = mlpkit.sparse_autoencoder(n_inputs=4, n_hidden=3)
    again = mlpkit.MLP.from_config(net.config())
    assert again.config() == net.config()
    assert not again.theta.any()


def test_predict_writes_into_out():
    net = make()
    X = np.random.default_rng(0).normal(size=(300, 3))
    out = np.empty((300, 2))
    assert net.predict(X, out=out) is out
    np.testing.assert_array_equal(out, net.predict(X))
    np.testing.assert_array_equal(net.activations(X)[-1], out)
    for bad in (np.empty((300, 3)), np.empty((300, 2), np.float32), np.empty((2, 300)).T, [0.0]):
        with pytest.raises(InvalidArgumentError, match="out must be"):
            net.predict(X, out=bad)


@pytest.mark.parametrize("m", [1, 3, 100, 5000])
def test_out_may_overlap_the_rows(m):
    net = mlpkit.MLP([Input(3), Dense(3, "tanh")], seed=0)
    shift = 3 if m < 100 else 300
    memory = np.random.default_rng(0).normal(size=3 * m + shift)
    low, high = slice(0, 3 * m), slice(shift, None)
    for rows, out in [(low, high), (high, low), (low, low)]:
        shared = memory.copy()
        expected = net.predict(shared[rows].reshape(m, 3))
        out = shared[out].reshape(m, 3)
        assert net.predict(shared[rows].reshape(m, 3), out=out) is out
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("m", [1, 2, 31, 32, 33, 700])
def test_theta_changed_in_place_is_seen_by_the_next_prediction(m):
    net, X = make(), np.ones((m, 3))
    first = net.predict(X)
    net.theta[:] = 0
    assert (net.predict(X) == 0.5).all()
    assert (first != 0.5).any()


def test_labels_follow_the_output_activation():
    X = np.array([[2.0], [-3.0]])
    sigmoid = mlpkit.MLP([Input(1), Dense(1, "sigmoid", init=1.0)])
    assert sigmoid.predict_labels(X).tolist() == [1, 0]
    tanh = mlpkit.MLP([Input(1), Dense(2, "tanh", init=1.0)])
    assert tanh.predict_labels(X).tolist() == [[1, 1], [-1, -1]]
    softmax = mlpkit.MLP([Input(1), Dense(3, "softmax")], loss="cross_entropy")
    softmax.theta = [0, 1, -1, 0, 0, 0]
    assert softmax.predict_labels(X).tolist() == [1, 2]
    with pytest.raises(InvalidArgumentError, match="bounded activation"):
        mlpkit.MLP([Input(1), Dense(1, "identity")]).predict_labels(X)


def test_evaluate_gives_the_terms():
    net = make(weight_decay=0.5)
    X = np.random.default_rng(0).normal(size=(9, 3))
    Y = np.full((9, 2), 0.5)
    terms = net.evaluate(X, Y)
    assert terms["data"] == pytest.approx(0.5 * ((net.predict(X) - Y) ** 2).sum() / 9, rel=1e-14)
    assert terms["weight_decay"] == pytest.approx(0.25 * sum((W**2).sum() for W in net.weights), rel=1e-14)
    assert terms["sparsity"] == 0


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "at least one Dense"),
        ([Input(3)], "at least one Dense"),
        ("Input", "list of layers"),
        ([Dense(3, "tanh"), Dense(3, "tanh")], r"layers\[0\] must be Input"),
        ([Input(3), Input(3)], r"layers\[1\] must be Dense"),
    ],
)
def test_a_list_that_is_no_network_is_refused(layers, message):
    with pytest.raises(InvalidArgumentError, match=message):
        mlpkit.MLP(layers)


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: Input(0), "Input units must be an integer of at least 1; found 0"),
        (lambda: Input(2.0), "Input units must be an integer"),
        (lambda: Dense(-1, "tanh"), "Dense units"),
        (lambda: Dense(3, "sigmod"), "'sigmoid'.*found 'sigmod'"),
        (lambda: Dense(3, "tanh", weight_decay=-1), "weight_decay must be a finite number in"),
        (lambda: Dense(3, "tanh", init="lecun"), "init must be one of"),
        (lambda: Dense(3, "tanh", init=np.nan), "init must be a finite number"),
        (lambda: Dense(3, "tanh", sparsity=0.1), "sparsity must be a KLSparsity"),
        (lambda: Dense(3, "tanh", bias=None), "bias must be True or False"),
        (lambda: mlpkit.KLSparsity(rho=0), r"rho must be a finite number in \(0, 1\)"),
        (lambda: mlpkit.KLSparsity(rho=1), "rho must be"),
        (lambda: mlpkit.KLSparsity(beta=-1), "beta must be"),
        (lambda: make(weight_decay=-1e-9), "weight_decay must be"),
        (lambda: make(weight_decay="0"), "weight_decay must be a number"),
        (lambda: make(dtype="float16"), "dtype must be one of 'float64', 'float32'; found 'float16'"),
        (lambda: make(dtype=int), "dtype must be one of"),
        (lambda: make(dtype="f8,,"), "dtype must be one of .*; found 'f8,,'"),
        (lambda: make(weight_decay=10**400), r"weight_decay must be a finite number in .*; found 10+\.\.\.0+, which"),
        (
            lambda: make(weight_decay=10**5000),
            "weight_decay must be a finite .*; found a value of type int that cannot be shown",
        ),
        (lambda: make(weight_decay=1e39, dtype="float32"), r"weight_decay must be finite in float32; found 1e\+39"),
        (
            lambda: mlpkit.MLP([Input(1), Dense(1, "tanh", weight_decay=1e39)], dtype="float32"),
            r"weight_decay of layers\[1\] must be finite in float32",
        ),
        (
            lambda: mlpkit.MLP([Input(1), Dense(2, "tanh"), Dense(1, "tanh", init=-1e39)], dtype="float32"),
            r"init of layers\[2\] must be finite in float32; found -1e\+39",
        ),
        (lambda: Input(-(10**5000)), "Input units must be an integer of at least 1; found a value of type int"),
        (lambda: make(loss="mse"), "loss must be"),
        (lambda: mlpkit.MLP([Input(1), Dense(1, "tanh")], seed=-1), "seed must be"),
    ],
)
def test_bad_arguments_are_named(make_it, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make_it()


@pytest.mark.parametrize(
    ("rule", "deviation"),
    [
        ("notes", 0.01),
        ("uniform", np.sqrt(6 / (300 + 200 + 1)) / np.sqrt(3)),
        ("glorot_uniform", np.sqrt(2 / 500)),
        ("glorot_normal", np.sqrt(2 / 500)),
        ("he_uniform", np.sqrt(2 / 300)),
        ("he_normal", np.sqrt(2 / 300)),
        (0.25, 0.0),
    ],
)
def test_initialisers_have_the_spread_that_they_promise(rule, deviation):
    layers = [Input(300), Dense(200, "tanh", init=rule)]
    theta = draw_parameters(layers, np.random.default_rng(0))
    W, b = theta[:60000], theta[60000:]
    assert W.std() == pytest.approx(deviation, rel=0.02, abs=1e-12)
    assert W.mean() == pytest.approx(0.25 if rule == 0.25 else 0, abs=4 * deviation / np.sqrt(60000) + 1e-12)
    assert (b.std() > 0) == (rule == "notes")
    if isinstance(rule, str) and rule.endswith("uniform"):
        assert np.abs(W).max() <= deviation * np.sqrt(3)
    np.testing.assert_array_equal(theta, draw_parameters(layers, np.random.default_rng(0)))


def test_the_default_initialiser_follows_the_activation():
    def first(activation, init=None):
        return mlpkit.MLP([Input(5), Dense(5, activation, init=init)], seed=1).theta

    for activation, rule in [("sigmoid", "uniform"), ("tanh", "glorot_uniform"), ("relu", "he_uniform")]:
        np.testing.assert_array_equal(first(activation), first(activation, rule))
