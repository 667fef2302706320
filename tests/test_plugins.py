"""Activations and losses as plugins: the registries, users' own functions, and what is refused."""

import copy
import dis
import math
import pickle
from types import SimpleNamespace

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


def _unit_ball_forward(z, a):
    panels, rows, lanes = z.shape
    for p in range(panels):
        for t in range(lanes):
            square = 1.0
            for j in range(rows):
                square += z[p, j, t] * z[p, j, t]
            for j in range(rows):
                a[p, j, t] = z[p, j, t] / math.sqrt(square)


def _unit_ball_pullback(z, a, g):
    panels, rows, lanes = z.shape
    for p in range(panels):
        for t in range(lanes):
            square, dot = 1.0, 0.0
            for j in range(rows):
                square += z[p, j, t] * z[p, j, t]
                dot += a[p, j, t] * g[p, j, t]
            for j in range(rows):
                g[p, j, t] = (g[p, j, t] - a[p, j, t] * dot) / math.sqrt(square)


# Couples the units of a layer, a = z / sqrt(1 + ||z||^2), and reads z on the way back.
unit_ball = Activation(
    "unit_ball", None, None, range=(-1.0, 1.0), tile_forward=_unit_ball_forward, tile_pullback=_unit_ball_pullback
)


def _neighbours_forward(z, a):
    """a_j = z_j + z_{j+1}, around the ring; a is written before all of z is read."""
    panels, rows, lanes = z.shape
    for p in range(panels):
        for j in range(rows):
            for t in range(lanes):
                a[p, j, t] = z[p, j, t] + z[p, (j + 1) % rows, t]


def _neighbours_pullback(z, a, g):
    panels, rows, lanes = g.shape
    before = np.empty((rows, lanes), g.dtype)
    for p in range(panels):
        for j in range(rows):
            for t in range(lanes):
                before[j, t] = g[p, j, t]
        for j in range(rows):
            for t in range(lanes):
                g[p, j, t] = before[j, t] + before[(j - 1) % rows, t]


neighbours = Activation("neighbours", None, None, tile_forward=_neighbours_forward, tile_pullback=_neighbours_pullback)


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
        for f in [*map(activations.get, activations.names()), swish, make_scaled(0.5), unit_ball, neighbours]
        if compatible(loss, f)
    ],
    ids=lambda plugin: plugin.name,
)
def test_every_pair_of_plugins_has_the_right_gradient(loss, activation, dtype):
    hidden = "tanh" if activation.name == "softmax" else activation
    net = mlpkit.MLP([Input(3), Dense(5, hidden), Dense(4, activation)], loss=loss, dtype=dtype, seed=1)
    if activation.name == "relu":  # every unit clearly on or off, away from the kink
        net.biases[0][:] = [30, -30, 30, 30, -30]
        net.weights[1][:] *= 0.01
        net.biases[1][:] = [5, -5, 5, 5]
    X, Y = data(net)
    report = mlpkit.check_gradient(net, X, Y)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    "activation", [*map(activations.get, activations.names()), swish, unit_ball, neighbours], ids=lambda f: f.name
)
def test_an_activation_computes_the_same_called_on_arrays_and_in_the_engine(activation):
    net = mlpkit.MLP([Input(4), Dense(4, activation, bias=False)], seed=0)
    net.weights[0][:] = np.eye(4)
    z = np.random.default_rng(0).normal(size=(50, 4)) * 10
    # exp of the two sides may differ in the last place or two, relative to a result that is a ratio of them
    np.testing.assert_allclose(net.predict(z), activation(z), rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_arguments_with_defaults_are_welcome(dtype):
    f = Activation("leaky", lambda z, slope=0.1: max(z, slope * z), lambda z, a, slope=0.1: 1.0 if a > 0.0 else slope)
    net = mlpkit.MLP([Input(2), Dense(3, f), Dense(1, f)], dtype=dtype, seed=0)
    assert mlpkit.check_gradient(net, *data(net)).ok
    net = mlpkit.MLP([Input(1), Dense(1, f, init=1.0)], dtype=dtype)
    assert net.predict([[-1.0]])[0, 0] == -net.dtype.type(0.1)


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


SLOPE = 0.1
COEFFICIENTS = (0.1, 0.2)


@pytest.mark.parametrize(
    "function",
    [
        lambda z: 0.1 * z,
        make_scaled(0.1).derivative,
        lambda z: SLOPE * z,
        lambda z: COEFFICIENTS[0] * z + COEFFICIENTS[1],
        lambda z: (0.1, 0.2)[1] * z,
        lambda z, slope=0.1: slope * z,
        lambda z: min(z, 1e300),
    ],
    ids=["literal", "captured", "global", "global tuple", "tuple", "default", "beyond float32"],
)
def test_floats_that_a_function_reads_do_not_make_it_double(function):
    f = plugins.specialise(function, np.dtype(np.float32))
    f(*[np.float32(0.5)] * (function.__code__.co_argcount - len(function.__defaults__ or ())))
    assert str(f.nopython_signatures[0].return_type) == "float32"
    assert (SLOPE, COEFFICIENTS) == (0.1, (0.1, 0.2)), "the module's own numbers stay doubles"
    assert type(SLOPE) is float


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
    assert not activations.softmax.reads_z
    assert unit_ball.reads_z


def test_reading_z_is_seen_in_whatever_instructions_it_hides(monkeypatch):
    # Python 3.13 stores slope and loads z in one instruction; older ones in two.
    assert plugins.reads_argument(lambda z, a: (slope := 1.0 - a) * z + slope, 0)
    assert plugins.reads_argument(lambda z, a: sum(z for _ in range(2)), 0)
    assert not plugins.reads_argument(lambda z, a: a, 0)
    fused = SimpleNamespace(opname="STORE_FAST_LOAD_FAST", argval=("slope", "z"))
    monkeypatch.setattr(dis, "get_instructions", lambda function: [fused])
    assert plugins.reads_argument(lambda z, a: a, 0)


def test_registering_makes_a_name_known_once():
    f = Activation("test_cube", lambda z: z * z * z, lambda z, a: 3.0 * z * z)
    try:
        assert activations.register(f) is f
        assert activations.get("test_cube") is f
        assert activations.register(f) is f, "registering the same object again is harmless"
        other = Activation("test_cube", lambda z: z, lambda z, a: 1.0)
        with pytest.raises(InvalidArgumentError, match="already registered"):
            activations.register(other)
        assert pickle.loads(pickle.dumps(f)) is f
        assert activations.register(other, replace=True) is other, "as when a notebook's cell runs again"
        assert activations.get("test_cube") is other
        with pytest.raises(InvalidArgumentError, match="replace must be True or False"):
            activations.register(f, replace=1)
    finally:
        del activations._REGISTRY["test_cube"]
    assert copy.deepcopy(swish) is swish
    assert pickle.loads(pickle.dumps(losses.squared_error)) is losses.squared_error


def test_what_mlpkit_brings_cannot_be_replaced():
    with pytest.raises(InvalidArgumentError, match="'softmax' is mlpkit's own activation"):
        activations.register(impostor, replace=True)
    with pytest.raises(InvalidArgumentError, match="'squared_error' is mlpkit's own loss"):
        losses.register(Loss("squared_error", lambda a, y: a, lambda a, y: 1.0), replace=True)
    assert activations.get("softmax") is activations.softmax


@pytest.mark.parametrize("get", [activations.get, losses.get])
def test_an_unknown_name_lists_the_known_ones(get):
    with pytest.raises(InvalidArgumentError, match=r"one of '.*'; found 'sigmod'"):
        get("sigmod")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Activation("", lambda z: z, lambda z, a: 1.0), "name must be"),
        (lambda: Activation(3, lambda z: z, lambda z, a: 1.0), "name must be"),
        (lambda: Activation("a\0b", lambda z: z, lambda z, a: 1.0), r"printable characters; found 'a\\x00b'"),
        (lambda: Loss("a\nb", lambda a, y: a, lambda a, y: 1.0), "printable characters"),
        (lambda: Activation("f", lambda z: z, None), "needs either function and derivative"),
        (
            lambda: Activation("f", lambda z: z, lambda z, a: 1.0, tile_forward=_unit_ball_forward),
            "needs either function and derivative",
        ),
        (lambda: Activation("f", np.sin, lambda z, a: 1.0), "function of 'f' must be a plain Python function"),
        (lambda: Activation("f", lambda z: z, np.cos), "derivative of 'f' must be a plain Python function"),
        (lambda: Activation("f", lambda: 1.0, lambda z, a: 1.0), r"function of 'f' must take the arguments \(z\)"),
        (lambda: Activation("f", lambda z: z, lambda a: a), r"derivative of 'f' must take .*\(z, a\); found \(a\)"),
        (lambda: Activation("f", lambda z: z, lambda *, z, a: a), "derivative of 'f' must take"),
        (
            lambda: Activation("f", None, None, tile_forward=_unit_ball_pullback, tile_pullback=_unit_ball_pullback),
            r"tile_forward of 'f' must take the arguments \(z, a\)",
        ),
        (lambda: Loss("l", lambda a, y: a, lambda a: a), r"derivative of 'l' must take the arguments \(a, y\)"),
        (lambda: Loss("l", fused=None), "fused of 'l' must map activations, as objects, to functions"),
        (lambda: Loss("l", fused={"softmax": lambda z, a, y, delta: 0.0}), "fused of 'l' must map"),
        (lambda: Loss("l", fused={activations.softmax: np.sin}), r"fused\['softmax'\] of 'l' must be a plain Python"),
        (lambda: Loss("l", fused={activations.softmax: lambda z, a: 0.0}), r"must take .*\(z, a, y, delta\)"),
        (lambda: Activation("f", lambda z: z, lambda z, a: 1.0, range=(None, 1)), "low < high"),
        (lambda: Activation("f", lambda z: z, lambda z, a: 1.0, range=("a", "b")), "low < high"),
        (lambda: Activation("f", lambda z: z, lambda z, a: 1.0, range=(0, 10**400)), "low < high"),
        (lambda: Activation("f", lambda z: z, lambda z, a: 1.0, range=(np.nan, 1)), "low < high"),
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


TABLE = (1.0, 2.0, 3.0)
ARRAY = np.arange(4.0)


def _hundredfold(z):
    if z < 0:
        raise ValueError("no negative numbers")
    return 100.0 * z


# pytest rewrites the assertions that it can see.
exec("def _asserts(z):\n    assert z >= 0\n    return z")


def _falls_off_the_end(z):
    if z > 0:
        return z


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_hundredfold, r"must not raise.*it can raise ValueError \(no negative numbers\)"),
        (globals()["_asserts"], "must not raise.*it can raise AssertionError"),
        (lambda z: TABLE[int(z)], "must not raise.*it can raise IndexError"),
        (lambda z: ARRAY[int(z)], "must not raise.*it can raise IndexError"),
        (lambda z: z**-2, "must not raise.*it can raise ZeroDivisionError"),
        (lambda z: undefined_name(z), "cannot be compiled: NameError: name 'undefined_name' is not defined"),  # noqa: F821
        (lambda z: compatible(z, z), "cannot be compiled: Untyped global name 'compatible'"),
        (lambda z: z * 1j, "must return a real number; found complex128"),
        (lambda z: "a", "must return a real number; found unicode_type"),
        (_falls_off_the_end, r"must return a real number; found OptionalType\(float64\)"),
    ],
)
def test_a_scalar_function_that_the_engine_cannot_run_is_named_with_the_reason(function, message):
    X = [[1.0], [-1.0], [2.0], [3.0]]
    f = Activation("odd", function, lambda z, a: 1.0)
    with pytest.raises(InvalidArgumentError, match="^function of 'odd' " + message):
        mlpkit.MLP([Input(1), Dense(1, f, init=1.0)]).predict(X)


def test_losses_and_derivatives_that_raise_are_named():
    def steep(z, a):
        if a > 1e6:
            raise OverflowError
        return 1.0

    net = mlpkit.MLP([Input(1), Dense(1, Activation("steep", lambda z: z, steep))])
    assert net.predict([[2.0]]).shape == (1, 1), "predicting needs no derivative"
    with pytest.raises(InvalidArgumentError, match=r"^derivative of 'steep' must not raise.*OverflowError"):
        mlpkit.Objective(net, [[1.0]], [[1.0]])
    loss = Loss("picky", lambda a, y: a, lambda a, y: steep(a, y))
    with pytest.raises(InvalidArgumentError, match=r"^derivative of 'picky' cannot be compiled"):
        mlpkit.Objective(mlpkit.MLP([Input(1), Dense(1, "tanh")], loss=loss), [[1.0]], [[1.0]])


def test_what_cannot_raise_is_not_refused():
    clipped = Activation(
        "clipped", lambda z: ARRAY[min(max(int(z), 0), 3)] + z // 1.0 + z % 2.0 + 1.0 / z, lambda z, a: z**-2.0
    )
    out = mlpkit.MLP([Input(1), Dense(1, clipped, init=1.0)]).predict([[2.5], [-3.0], [0.0]])
    assert out[:2, 0].tolist() == [2 + 2 + 0.5 + 0.4, 0 - 3 + 1 - 1 / 3]
    assert np.isinf(out[2, 0])


def _refuses_negatives(z, a):
    if z[0, 0, 0] < 0:
        raise ValueError("no negative numbers")
    a[:] = z


def _wrong_shapes(z, a):
    for p in range(z.shape[0]):
        a[p] = z[p] / z[p].sum(axis=1)


def _leave(z, a, g):
    pass


def test_a_tile_body_that_raises_is_refused_and_a_failing_array_operation_leaves_nan():
    f = Activation("odd", None, None, tile_forward=_refuses_negatives, tile_pullback=_leave)
    with pytest.raises(InvalidArgumentError, match=r"^tile_forward of 'odd' must not raise.*no negative numbers"):
        mlpkit.MLP([Input(2), Dense(2, f)]).predict([[1.0, 2.0]])
    f = Activation("odd", None, None, tile_forward=_wrong_shapes, tile_pullback=_leave)
    assert np.isnan(mlpkit.MLP([Input(3), Dense(3, f)]).predict([[1.0, 2.0, 3.0]])).all()
    loss = Loss("odd", fused={activations.softmax: lambda z, a, y, delta: None})
    with pytest.raises(InvalidArgumentError, match=r"^fused\[softmax\] of 'odd' must return a real number; found none"):
        mlpkit.Objective(mlpkit.MLP([Input(1), Dense(2, "softmax")], loss=loss), [[1.0]], [[1.0, 0.0]])


def test_slow_functions_of_math_and_numpy_draw_a_warning_that_names_the_fast_ones():
    with pytest.warns(UserWarning, match=r"'slow' calls .*: mlpkit\.vmath\.exp, mlpkit\.vmath\.tanh$") as caught:
        Activation("slow", lambda z: math.tanh(z), lambda z, a: np.exp(z))
    assert caught[0].filename == __file__
    captured = np
    with pytest.warns(UserWarning, match=r"mlpkit\.vmath\.tanh"):
        Loss("slow", lambda a, y: captured.tanh(a), lambda a, y: 1.0)
    # math.sqrt is one instruction, and vmath.exp is what the warning asks for
    Activation("fast", lambda z: math.sqrt(z) + vmath.exp(z), lambda z, a: np.sqrt(a))
