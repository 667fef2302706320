"""Activations and losses as plugins: the registries, users' own functions, and what is refused."""

import copy
import pickle

import numpy as np
import pytest

import mlpkit
from mlpkit import Dense, Input, activations, losses
from mlpkit.activations import Activation
from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels import plugins, vmath
from mlpkit.losses import Loss

# Reads z as well as a, so the engine has to keep both.
swish = Activation(
    "swish",
    lambda z: z * vmath.expit(z),
    lambda z, a: vmath.expit(z) * (1.0 + z * (1.0 - vmath.expit(z))),
)


# Has the name of another, and must not be taken for it.
impostor = Activation("softmax", lambda z: z, lambda z, a: 1.0, range=(0.0, 1.0))


def make_scaled(factor):
    """Make an activation that captures a number from outside."""
    return Activation(
        "scaled", lambda z: vmath.tanh(factor * z), lambda z, a: factor * (1.0 - a * a), range=(-1.0, 1.0)
    )


log_cosh = Loss(
    "log_cosh",
    lambda a, y: abs(a - y) + np.log((1.0 + vmath.exp(-2.0 * abs(a - y))) / 2.0),
    lambda a, y: vmath.tanh(a - y),
)


def data(net, seed=0, m=70):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(m, net.sizes[0]))
    if net.loss.class_targets:
        return X, rng.integers(0, net.sizes[-1], m)
    return X, rng.uniform(0.2, 0.8, (m, net.sizes[-1]))


def compatible(loss, activation):
    try:
        loss.check_activation(activation)
    except InvalidArgumentError:
        return False
    return True


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("loss", "activation"),
    [
        (loss, f)
        for loss in [*map(losses.get, losses.names()), log_cosh]
        for f in [*map(activations.get, activations.names()), swish, make_scaled(0.5)]
        if compatible(loss, f)
    ],
    ids=lambda plugin: plugin.name,
)
def test_every_pair_of_plugins_has_the_right_gradient(loss, activation, dtype):
    hidden = "tanh" if activation.coupled else activation
    net = mlpkit.MLP([Input(3), Dense(5, hidden), Dense(4, activation)], loss=loss, dtype=dtype, seed=1)
    if activation.name == "relu":  # every unit clearly on or off, away from the kink
        net.biases[0][:] = [30, -30, 30, 30, -30]
        net.weights[1][:] *= 0.01
        net.biases[1][:] = [5, -5, 5, 5]
    X, Y = data(net)
    report = mlpkit.check_gradient(net, X, Y)
    assert report.ok, str(report)


@pytest.mark.parametrize("activation", [*map(activations.get, activations.names()), swish], ids=lambda f: f.name)
def test_an_activation_computes_the_same_called_on_arrays_and_in_the_engine(activation):
    net = mlpkit.MLP([Input(4), Dense(4, activation, bias=False)], seed=0)
    net.weights[0][:] = np.eye(4)
    z = np.random.default_rng(0).normal(size=(50, 4)) * 10
    # exp of the two sides may differ in the last place or two, relative to a result that is a ratio of them
    np.testing.assert_allclose(net.predict(z), activation(z), rtol=1e-14, atol=1e-300)


def test_sparsity_works_on_a_users_bounded_activation():
    sparsity = mlpkit.KLSparsity(0.4, 0.7)
    net = mlpkit.MLP([Input(3), Dense(4, make_scaled(2.0), sparsity=sparsity), Dense(2, "sigmoid")], seed=0)
    assert mlpkit.check_gradient(net, *data(net)).ok


def test_what_a_user_captures_and_writes_takes_the_networks_precision():
    f = plugins.specialise(lambda z: 0.1 * z, np.dtype(np.float32))
    assert f(np.float32(1)) == np.float32(0.1)
    f(np.float32(1))
    assert [str(signature[0]) for signature in f.signatures] == ["float32"]
    assert str(f.nopython_signatures[0].return_type) == "float32"
    captured = make_scaled(0.3).derivative
    assert str(type(plugins.specialise(captured, np.dtype(np.float32))(np.float32(0), np.float32(0)))) != ""
    g = plugins.specialise(captured, np.dtype(np.float32))
    g(np.float32(0), np.float32(0))
    assert str(g.nopython_signatures[0].return_type) == "float32"


def test_two_plugins_of_one_name_do_not_share_code():
    X = np.array([[0.5, -0.25]])
    outputs = []
    for factor in (1.0, 3.0):
        net = mlpkit.MLP([Input(2), Dense(1, make_scaled(factor), init=1.0)])
        outputs.append(net.predict(X)[0, 0])
    np.testing.assert_allclose(outputs, np.tanh([0.25, 0.75]), rtol=1e-15)


def test_whether_a_derivative_reads_z_is_found_out():
    assert not activations.sigmoid.reads_z
    assert not activations.relu.reads_z
    assert swish.reads_z


def test_registering_makes_a_name_known_once():
    f = Activation("test_cube", lambda z: z * z * z, lambda z, a: 3.0 * z * z)
    try:
        assert activations.register(f) is f
        assert activations.get("test_cube") is f
        assert activations.register(f) is f, "registering the same object again is harmless"
        with pytest.raises(InvalidArgumentError, match="already registered"):
            activations.register(Activation("test_cube", lambda z: z, lambda z, a: 1.0))
        assert pickle.loads(pickle.dumps(f)) is f
    finally:
        del activations._REGISTRY["test_cube"]
    assert copy.deepcopy(swish) is swish
    assert pickle.loads(pickle.dumps(losses.squared_error)) is losses.squared_error


@pytest.mark.parametrize("get", [activations.get, losses.get])
def test_an_unknown_name_lists_the_known_ones(get):
    with pytest.raises(InvalidArgumentError, match=r"one of '.*'; found 'sigmod'"):
        get("sigmod")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Activation("", lambda z: z, lambda z, a: 1.0), "name must be"),
        (lambda: Activation("f", lambda z: z, None), "needs either function and derivative"),
        (lambda: Activation("f", np.sin, lambda z, a: 1.0), "function of 'f' must be a plain Python function"),
        (lambda: Activation("f", lambda z: z, np.cos), "derivative of 'f' must be a plain Python function"),
        (lambda: Activation("f", lambda z: z, lambda z, a: 1.0, range=3), "low < high"),
        (lambda: Activation("f", lambda z: z, lambda z, a: 1.0, default_init="xavier"), "default_init must be one of"),
        (lambda: mlpkit.MLP([Input(1), Dense(2, impostor)], loss="cross_entropy"), "<activation softmax>"),
        (lambda: Activation("f", lambda z: z, lambda z, a: 1.0, range=(1.0, 0.0)), "low < high"),
        (lambda: Loss("l"), "needs function and derivative"),
        (lambda: Loss("l", lambda a, y: a), "needs function and derivative"),
        (lambda: Dense(3, "relu", sparsity=mlpkit.KLSparsity()), "bounded range"),
        (lambda: mlpkit.MLP([Input(2), Dense(2, "sigmoid")], loss="cross_entropy"), "softmax"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


def test_cross_entropy_stays_right_where_a_softmax_output_underflows():
    net = mlpkit.MLP([Input(1), Dense(2, "softmax", bias=False)], loss="cross_entropy")
    net.theta = [1.0, -1.0]
    J, gradient = mlpkit.Objective(net, [[5e3]], [1]).value_and_gradient(net.theta)
    assert J == 1e4
    np.testing.assert_allclose(gradient, [5e3, -5e3])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("gap", "offset"), [(8, 0), (14, 0), (30, 0), (3, 1e3), (0, 1e6)])
def test_cross_entropy_is_accurate_for_confident_outputs_and_large_logits(dtype, gap, offset):
    net = mlpkit.MLP([Input(1), Dense(3, "softmax", init=0.0)], loss="cross_entropy", dtype=dtype)
    net.biases[0][:] = [offset + gap, offset, offset]
    J = mlpkit.Objective(net, [[1.0]], [0]).value_and_gradient(net.theta)[0]
    # a_j carries the rounding of one exp and one division; the logarithm adds none of its own
    assert pytest.approx(np.log1p(2 * np.exp(-float(gap))), rel=8 * float(np.finfo(dtype).eps)) == J
