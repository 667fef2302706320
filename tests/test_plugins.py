"""Activations and losses as plugins: the engine runs users' own as it runs mlpkit's; what it cannot run is refused."""

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
from mlpkit.kernels import functions, vmath
from mlpkit.losses import Fused, Loss

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


fair = Loss("fair", lambda a, y: abs(a - y) - np.log1p(abs(a - y)), lambda a, y: (a - y) / (1 + abs(a - y)))


def data(net, seed=0, m=70):
    """Return inputs and targets, none so near to its output that a loss with a kink there has no gradient."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(m, net.sizes[0]))
    if net.loss.class_targets:
        return X, rng.integers(0, net.sizes[-1], m)
    Y, outputs = rng.uniform(0.2, 0.8, (m, net.sizes[-1])), net.predict(X)
    near = np.abs(outputs - Y) < 0.02
    return X, np.where(near, np.where(outputs > 0.5, outputs - 0.1, outputs + 0.1), Y)


USERS = [swish, make_scaled(0.5), unit_ball, neighbours]
ACTIVATIONS = [*map(activations.get, activations.names()), activations.leaky_relu(0.2), activations.top_k(2)]
LOSSES = [*map(losses.get, losses.names()), losses.huber(0.15), losses.quantile(0.9), fair]


def pairs():
    """Return each activation with squared error, and each loss on one or two activations."""
    found = [(losses.squared_error, f) for f in [*ACTIVATIONS, *USERS]]
    for loss in LOSSES:
        usual = [activations.identity, activations.softplus]
        found += [(loss, f) for f in [*loss.fused, *(usual if loss.function else [])]]
    return [pair for pair in dict.fromkeys(found) if compatible(*pair)]


def compatible(loss, activation):
    try:
        loss.check_activation(activation)
    except InvalidArgumentError:
        return False
    return True


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("loss", "activation"), pairs(), ids=lambda plugin: plugin.name)
def test_every_plugin_has_the_right_gradient(loss, activation, dtype):
    hidden = "tanh" if activation.name in ("softmax", "exp") else activation
    net = mlpkit.MLP([Input(3), Dense(5, hidden), Dense(4, activation)], loss=loss, dtype=dtype, seed=1)
    if activation.name.startswith(("relu", "leaky_relu", "selu", "elu")):  # units clearly on or off, away from the kink
        net.biases[0][:] = [30, -30, 30, 30, -30]
        net.weights[1][:] *= 0.01
        net.biases[1][:] = [5, -5, 5, 5]
    X, Y = data(net)
    report = mlpkit.check_gradient(net, X, Y)
    assert report.ok, str(report)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, swish, unit_ball, neighbours], ids=lambda f: f.name)
def test_an_activation_computes_the_same_called_on_arrays_and_in_the_engine(activation):
    net = mlpkit.MLP([Input(4), Dense(4, activation, bias=False)], seed=0)
    net.weights[0][:] = np.eye(4)
    z = np.random.default_rng(0).normal(size=(50, 4)) * 10
    # exp of the two sides may differ in the last place or two, relative to a result that is a ratio of them; the tail
    # of gelu multiplies the rounding of its argument by the square of it
    rtol = 1e-12 if activation.name == "gelu" else 1e-14
    np.testing.assert_allclose(net.predict(z), activation(z), rtol=rtol, atol=1e-300)


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


SLOPE = 0.1
COEFFICIENTS = (0.1, 0.2)


@pytest.mark.parametrize(
    "function",
    [
        lambda z: 0.1 * z,
        lambda z: 2 * z + z / 3,
        lambda z: math.pi * z,
        make_scaled(0.1).function,
        lambda z: SLOPE * z,
        lambda z: COEFFICIENTS[0] * z + COEFFICIENTS[1],
        lambda z: (0.1, 0.2)[1] * z,
        lambda z, slope=0.1: slope * z,
        lambda z: min(z, 1e300),
    ],
    ids=["literal", "integer", "constant", "captured", "global", "global tuple", "tuple", "default", "beyond float32"],
)
def test_numbers_that_a_function_reads_do_not_make_it_double(function):
    seen = []
    f = functions.inline(function)
    single = functions.Jet(functions.types.float32, 0)
    f.get_call_template((single,), {})
    seen = [compiled.signature.return_type for compiled in f.overloads.values()]
    assert seen == [single]
    assert (SLOPE, COEFFICIENTS) == (0.1, (0.1, 0.2)), "the module's own numbers stay doubles"


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
    assert functions.reads_argument(lambda z, a: (slope := 1.0 - a) * z + slope, 0)
    assert functions.reads_argument(lambda z, a: sum(z for _ in range(2)), 0)
    assert not functions.reads_argument(lambda z, a: a, 0)
    fused = SimpleNamespace(opname="STORE_FAST_LOAD_FAST", argval=("slope", "z"))
    monkeypatch.setattr(dis, "get_instructions", lambda function: [fused])
    assert functions.reads_argument(lambda z, a: a, 0)


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
        del activations.record.REGISTRY["test_cube"]
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
        (lambda: Activation("f", None), "needs either a function"),
        (lambda: Activation("f", None, lambda z, a: 1.0), "needs a function beside its derivative"),
        (
            lambda: Activation("f", lambda z: z, lambda z, a: 1.0, tile_forward=_unit_ball_forward),
            "needs either a function",
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
        (lambda: Loss("l", fused=3), "fused of 'l' must map activations, as objects, to Fused"),
        (lambda: Loss("l", fused={"softmax": Fused(lambda z, y: z)}), "fused of 'l' must map"),
        (lambda: Loss("l", fused={activations.softmax: np.sin}), "fused of 'l' must map"),
        (lambda: Fused(), "needs either function or tile_output"),
        (lambda: Loss("l", fused={activations.sigmoid: Fused(np.sin)}), r"fused\['sigmoid'\] of 'l' must be a plain"),
        (lambda: Loss("l", fused={activations.sigmoid: Fused(lambda z: z)}), r"must take .*\(z, y\)"),
        (lambda: Loss("l", lambda a, y: a, domain=(1, 0)), r"domain must be \(low, high\).*found \(1, 0\)"),
        (lambda: Loss("l", lambda a, y: a, targets=2.0), r"targets must be \(low, high\)"),
        (lambda: Activation("f", lambda z: z, lambda z, a: 1.0, range=(None, 1)), "low < high"),
        (lambda: Activation("f", lambda z: z, lambda z, a: 1.0, range=("a", "b")), "low < high"),
        (lambda: Activation("f", lambda z: z, lambda z, a: 1.0, range=(0, 10**400)), "low < high"),
        (lambda: Activation("f", lambda z: z, lambda z, a: 1.0, range=(np.nan, 1)), "low < high"),
        (lambda: Activation("f", lambda z: z, lambda z, a: 1.0, range=3), "low < high"),
        (lambda: Activation("f", lambda z: z, lambda z, a: 1.0, default_init="xavier"), "default_init must be one of"),
        (lambda: mlpkit.MLP([Input(1), Dense(2, impostor)], loss="cross_entropy"), "<activation softmax>"),
        (lambda: Activation("f", lambda z: z, lambda z, a: 1.0, range=(1.0, 0.0)), "low < high"),
        (lambda: Loss("l"), "needs a function, or a fused form"),
        (lambda: activations.leaky_relu(-1.0), "slope must be"),
        (lambda: activations.top_k(2.5), "k must be an integer"),
        (lambda: activations.elu(0.0), "alpha must be"),
        (lambda: losses.quantile(1.0), "tau must be"),
        (lambda: losses.huber(1.0, 2.0), r"huber\(.*too many positional arguments"),
        (lambda: activations.get("leaky_relu(a)"), "parameters in a plugin's name must be numbers; found 'a'"),
        (
            lambda: mlpkit.MLP([Input(2), Dense(2, "tanh")], loss="poisson"),
            r"needs outputs in \[0, inf\]; those of 'tanh'",
        ),
        (
            lambda: mlpkit.MLP([Input(2), Dense(2, "tanh")], loss="binary_cross_entropy"),
            "needs an output layer with 'sigm",
        ),
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
        (lambda z: undefined_name(z), "cannot be compiled: NameError: name 'undefined_name' is not defined"),  # noqa: F821
        (lambda z: compatible(z, z), "cannot be compiled: Untyped global name 'compatible'"),
        (lambda z: z * 1j, "cannot be compiled: No implementation of function .*mul"),
        (lambda z: "a", "must return a real number; found unicode_type"),
        (_falls_off_the_end, "must return a real number; found nothing on some path"),
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
    loss = Loss("odd", fused={activations.softmax: Fused(tile_output=_fails_for_losses)})
    net = mlpkit.MLP([Input(1), Dense(2, "softmax")], loss=loss)
    assert np.isnan(mlpkit.Objective(net, [[1.0]], [[1.0, 0.0]]).value_and_gradient(net.theta)[0])


def _fails_for_losses(z, a, y, delta, loss):
    loss[:] = z


@pytest.mark.filterwarnings("error")
def test_functions_of_math_and_numpy_become_those_of_vmath():
    Activation("fast", lambda z: math.sqrt(z) + math.exp(z), lambda z, a: np.sqrt(a))
    f = Activation("mapped", lambda z: np.tanh(math.exp(-abs(z))))
    out = mlpkit.MLP([Input(1), Dense(1, f, init=1.0)]).predict([[0.5]])
    np.testing.assert_allclose(out, np.tanh(np.exp(-0.5)), rtol=1e-15)


def test_functions_without_vector_code_draw_a_warning_that_names_them():
    with pytest.warns(UserWarning, match="'slow' calls atan, sinh, for which there is no vector code") as caught:
        Activation("slow", lambda z: math.sinh(z) + np.arctan(z))
    assert caught[0].filename == __file__
    captured = np
    with pytest.warns(UserWarning, match="calls tan,"):
        Loss("slow", lambda a, y: captured.tan(a - y))


# Dual numbers --------------------------------------------------------------------------------------------------


def _polynomial(z):
    total = 0.0
    for i in range(4):
        total = total * z + i
    return total


def _branches(z):
    if z > 1:
        return z * z
    return 2 if z < -1 else z


def _in_place(z):
    z += 1
    z *= z
    z /= 3.0
    z -= 0.5
    return z


DIFFERENTIABLE = {
    "polynomial": _polynomial,
    "branches": _branches,
    "in place": _in_place,
    "abs": lambda z: abs(z) * z + abs(-z),
    "max and min": lambda z: max(z, 0.3 * z, -1) * min(1.0, z * z) + np.maximum(z, 0.1) * np.minimum(2, z),
    "whole powers": lambda z: z**3 - 2 * z**2 + z**-2 + z**0,
    "powers": lambda z: abs(z) ** 1.5 + (1 + z * z) ** z + 2.0**z + math.pow(2.0, z),
    "quotients": lambda z: 1 / (1 + z * z) / (2 - z),
    "exponentials": lambda z: math.exp(-z * z) + np.expm1(z) + vmath.expit(z) * vmath.softplus(z) + math.tanh(z),
    "logarithms": lambda z: math.log(2.0 + z * z) + np.log1p(z * z) + math.log2(3 + abs(z)) + np.log10(z * z + 1),
    "erf": lambda z: math.erf(z) + math.erfc(z / 2) * z,
    "circle": lambda z: math.sin(z) * np.cos(2 * z) + math.tan(z / 5) + math.atan2(z, 2.0) + math.hypot(z, 1),
    "arcs": lambda z: math.asin(z / 9) + np.arccos(z / 9) + math.atan(z) + np.arctan(z),
    "hyperbolic": lambda z: math.sinh(z) / np.cosh(z) + math.asinh(z) + math.acosh(2 + z * z) + math.atanh(z / 9),
    "steps": lambda z: math.floor(z) + np.ceil(z) * z + z // 1 + z % 2 + int(z) + math.copysign(z, -1.0) + np.sign(z),
    "questions": lambda z: z if math.isfinite(z) and not np.isnan(z) and not math.isinf(z) and z else 0.0,
    "square root": lambda z: math.sqrt(1 + z * z) + np.square(z) + float(z),
}


@pytest.mark.filterwarnings("ignore:.*no vector code")
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives_by_dual_numbers_agree_with_differences(name):
    function = DIFFERENTIABLE[name]
    f = Activation("f", function)
    z = np.array([-2.3, -1.7, -0.6, 0.37, 0.8, 1.9])  # away from the steps and kinks above
    h = 1e-4
    at = [np.array([float(function(float(v))) for v in z + i * h]) for i in (-2, -1, 0, 1, 2)]
    slope = (at[0] - 8 * at[1] + 8 * at[3] - at[4]) / (12 * h)
    bend = (-at[0] + 16 * at[1] - 30 * at[2] + 16 * at[3] - at[4]) / (12 * h * h)
    np.testing.assert_allclose(f.derivative(z, at[2]), slope, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(f.second_derivative(z, at[2]), bend, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("f", [*ACTIVATIONS, swish], ids=lambda f: f.name)
def test_second_derivatives_of_activations_agree_with_differences_of_the_first(f):
    if f.coupled:
        with pytest.raises(InvalidArgumentError, match="couples the units"):
            f.second_derivative(0.0, 0.0)
        return
    z = np.array([-3.7, -2.3, -0.9, -0.4, 0.37, 0.8, 1.9, 3.3])
    h = 1e-5
    difference = (f.derivative(z + h, f(z + h)) - f.derivative(z - h, f(z - h))) / (2 * h)
    np.testing.assert_allclose(f.second_derivative(z, f(z)), difference, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss.function], ids=lambda loss: loss.name)
def test_derivatives_of_losses_agree_with_differences(loss):
    a, y = map(np.ravel, np.meshgrid([0.1, 0.47, 1.2, 2.9], [0.0, 0.3, 1.0, 2.0]))
    h = 1e-5
    values = np.vectorize(loss.function)
    difference = (values(a + h, y) - values(a - h, y)) / (2 * h)
    np.testing.assert_allclose(loss.derivative(a, y), difference, rtol=1e-7, atol=1e-7)
    difference = (loss.derivative(a + h, y) - loss.derivative(a - h, y)) / (2 * h)
    np.testing.assert_allclose(loss.second_derivative(a, y), difference, rtol=1e-6, atol=1e-6)


def test_a_derivative_that_cannot_be_derived_is_asked_for():
    f = Activation("table", lambda z: math.gamma(2.0 + abs(z)))
    net = mlpkit.MLP([Input(1), Dense(1, f)])
    with pytest.raises(InvalidArgumentError, match="gamma"):
        mlpkit.Objective(net, [[1.0]], [[1.0]])


# Decorators ----------------------------------------------------------------------------------------------------


@pytest.fixture
def clean_registries():
    """Forget afterwards what a test has registered."""
    kept = [(module.record.REGISTRY, dict(module.record.REGISTRY)) for module in (activations, losses)]
    yield
    for registry, before in kept:
        registry.clear()
        registry.update(before)


def test_an_activation_as_a_user_types_it(clean_registries):
    @mlpkit.activation(name="swish2")
    def swish2(z):
        """Swish, twice as steep."""
        return z * vmath.expit(2 * z)

    found = swish2.derivative(0.3, swish2.function(0.3))

    @swish2.derivative
    def _(z, a):
        s = vmath.expit(2 * z)
        return s + 2 * a * (1 - s)

    assert swish2.derivative(0.3, swish2.function(0.3)) == pytest.approx(found, rel=1e-14)
    assert swish2.__doc__ == "Swish, twice as steep."
    net = mlpkit.MLP([Input(3), Dense(4, "swish2"), Dense(2, swish2)], seed=0)
    assert mlpkit.check_gradient(net, *data(net)).ok
    assert pickle.loads(pickle.dumps(net)).layers[1].activation is swish2
    with pytest.raises(mlpkit.MlpkitError, match="has been given already"):
        swish2.derivative(lambda z, a: 1.0)
    with pytest.raises(mlpkit.MlpkitError, match="comes too late"):
        swish2.second_derivative(lambda z, a: 1.0)
    with pytest.raises(AttributeError, match="cannot be changed"):
        swish2.name = "other"


@pytest.mark.filterwarnings("ignore:.*no vector code")
def test_bare_decorators_lambdas_and_names(clean_registries):
    @mlpkit.activation
    def bent(z):
        return z if z > 0 else z / 2

    assert activations.get("bent") is bent
    cube = mlpkit.activation(lambda z: z**3, name="cube_of", derivative=lambda z, a: 3 * z**2)
    assert cube.derivative(2.0, 8.0) == 12.0
    with pytest.raises(InvalidArgumentError, match="name must be given"):
        mlpkit.activation(lambda z: z)
    with pytest.raises(InvalidArgumentError, match="mlpkit's own activation"):
        mlpkit.activation(lambda z: z, name="leaky_relu(0.3)")

    @mlpkit.loss
    def cosh_error(a, y):
        return math.cosh(min(max(a - y, -20), 20)) - 1

    net = mlpkit.MLP([Input(3), Dense(2, "tanh")], loss="cosh_error", seed=0)
    assert mlpkit.check_gradient(net, *data(net)).ok


def test_a_loss_in_terms_of_z_as_a_user_types_it(clean_registries):
    @mlpkit.loss(domain=(0, 1), targets=(0, 1))
    def logistic(a, y):
        return -y * vmath.log(a) - (1 - y) * vmath.log(1 - a)

    @logistic.on("sigmoid")
    def _(z, y):
        return vmath.softplus(z) - y * z

    results = []
    for loss in ("logistic", "binary_cross_entropy"):
        net = mlpkit.MLP([Input(3), Dense(2, "sigmoid", init=1.0)], loss=loss)
        results.append(mlpkit.Objective(net, *data(net)).value_and_gradient(net.theta))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-14)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-12)
    net = mlpkit.MLP([Input(3), Dense(2, "hard_sigmoid", init=0.1)], loss=logistic)
    assert mlpkit.check_gradient(net, *data(net)).ok, "on other activations it goes over a"
    with pytest.raises(InvalidArgumentError, match=r"outputs in \[0, 1\]; those of 'tanh' lie in \[-1, 1\]"):
        mlpkit.MLP([Input(3), Dense(2, "tanh")], loss=logistic)
    with pytest.raises(InvalidArgumentError, match="has a form for 'sigmoid' already"):
        logistic.on("sigmoid")


def test_registering_compiles_no_kernel_of_the_engine(clean_registries):
    from mlpkit.kernels import forward, sweeps

    net = mlpkit.MLP([Input(2), Dense(3, "sigmoid"), Dense(1, "identity")], seed=0)
    mlpkit.Objective(net, *data(net)).value_and_gradient(net.theta)
    engine = [*forward.predict_sweep, *sweeps.forward_sweep, *sweeps.gradient_by_pieces, *sweeps.gradient_by_rows]
    before = [len(kernel.signatures) for kernel in engine]
    mine = mlpkit.activation(lambda z: 1 / (1 + vmath.exp(-z)), name="mine", derivative=lambda z, a: a * (1 - a))
    net = mlpkit.MLP([Input(2), Dense(3, mine), Dense(1, "identity")], seed=0)
    mlpkit.Objective(net, *data(net)).value_and_gradient(net.theta)
    assert [len(kernel.signatures) for kernel in engine] == before


# What registering finds wrong ----------------------------------------------------------------------------------


def _square_root(z):
    if z < 0:
        raise ValueError("no negative numbers")
    return math.sqrt(z)


def _half_pullback(z, a, g):
    for i in range(g.size):
        g.reshape(-1)[i] *= 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: mlpkit.activation(lambda z: z * z, name="bad", derivative=lambda z, a: z),
            r"^derivative of 'bad' is wrong at z = -?8: it gives -?8, where differences give -?16 .*64 of 65 points\)$",
        ),
        (
            lambda: mlpkit.activation(lambda z: math.sin(z) / z, name="bad"),
            r"^function of 'bad' must give a finite number for every z from -8 to 8; found nan at z = 0$",
        ),
        (
            lambda: mlpkit.activation(_square_root, name="bad"),
            r"^function of 'bad' must not raise.*it can raise ValueError \(no negative numbers\)",
        ),
        (
            lambda: mlpkit.activation(
                lambda z: (vmath.exp(z) - vmath.exp(-z)) / (vmath.exp(z) + vmath.exp(-z)), name="bad"
            ),
            r"^function of 'bad' must not give NaN; found it at z = -1000 \(for exponentials",
        ),
        (
            lambda: mlpkit.activation(lambda z: 1.1 * vmath.expit(z), name="bad", range=(0, 1)),
            r"^range of 'bad' must hold all values of its function, \[0, 1\]; found 1\.",
        ),
        (
            lambda: mlpkit.activation(
                lambda z: z**3, name="bad", derivative=lambda z, a: 3 * z**2, second_derivative=lambda z, a: 6.0
            ),
            r"^second_derivative of 'bad' is wrong at z = -8: it gives 6, where differences give -48",
        ),
        (
            lambda: activations.register(
                Activation("bad", None, tile_forward=_neighbours_forward, tile_pullback=_half_pullback)
            ),
            r"^tile_pullback of 'bad' must be the transpose",
        ),
        (
            lambda: mlpkit.loss(lambda a, y: (a - y) ** 2, name="bad", derivative=lambda a, y: a - y),
            r"^derivative of 'bad' is wrong at a = .*, y = ",
        ),
        (
            lambda: mlpkit.loss(lambda a, y: -y * vmath.log(a), name="bad"),
            r"^function of 'bad' must give a finite number for every a from -8 to 8; found nan at a = -8, y = -8$",
        ),
        (
            lambda: losses.register(
                Loss("bad", fused={activations.sigmoid: Fused(lambda z, y: z * z - y, lambda z, a, y: z)})
            ),
            r"^derivative of 'bad' on 'sigmoid' is wrong at z = -?8, y = .*: it gives -?8, where differences give -?16 ",
        ),
    ],
)
def test_a_wrong_plugin_is_refused_as_it_is_registered(make, message, clean_registries):
    with pytest.raises(InvalidArgumentError, match=message):
        make()
    assert "bad" not in activations.names() + losses.names()


# Extreme values ------------------------------------------------------------------------------------------------

EXTREMES = [0.0, 1e-300, -1e-300, 1.0, -1.0, 50.0, -50.0, 1e4, -1e4]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("loss", "activation"),
    [pair for pair in pairs() if pair[0] in LOSSES and pair[1] not in USERS],
    ids=lambda plugin: plugin.name,
)
def test_losses_and_gradients_are_finite_wherever_they_can_be(loss, activation, dtype):
    net = mlpkit.MLP([Input(1), Dense(3, activation, init=1.0)], loss=loss, dtype=dtype)
    for z in EXTREMES:
        if activation is activations.exp and z > 20:
            continue  # its square, or exp(z) itself, is infinite, and so is the loss
        targets = [1.0, 0.0, 0.0] if loss.class_targets else [0.0, 0.5, 1.0]
        net.theta = [1.0, 0.5, 0.0, 0.0, 0.0, z / 2]
        J, gradient = mlpkit.Objective(net, [[z]], [targets]).value_and_gradient(net.theta)
        assert np.isfinite(J), (z, J)
        assert np.isfinite(gradient).all(), (z, gradient)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("z", "y"), [(np.inf, 1.0), (-np.inf, 0.0), (1e4, 1.0), (-1e4, 0.0)])
def test_binary_cross_entropy_vanishes_at_a_certain_and_right_answer(z, y, dtype):
    net = mlpkit.MLP([Input(1), Dense(1, "sigmoid", init=0.0)], loss="binary_cross_entropy", dtype=dtype)
    net.biases[0][:] = z
    J, gradient = mlpkit.Objective(net, [[0.0]], [[y]]).value_and_gradient(net.theta)
    assert J == 0
    assert not gradient.any()


def test_binary_cross_entropy_keeps_the_gradient_where_the_output_rounds_to_one():
    net = mlpkit.MLP([Input(1), Dense(1, "sigmoid", init=0.0)], loss="binary_cross_entropy", dtype="float32")
    net.biases[0][:] = 30.0
    J, gradient = mlpkit.Objective(net, [[0.0]], [[1.0]]).value_and_gradient(net.theta)
    assert net.predict([[0.0]])[0, 0] == 1.0
    assert pytest.approx(np.exp(-30.0), rel=1e-6) == J
    assert pytest.approx(-np.exp(-30.0), rel=1e-6) == gradient[1]


def test_log_cosh_keeps_its_digits_near_zero_and_far_away():
    for d in (1e-9, 1e-4, 0.3, 0.49, 0.51, 2.0, 30.0, 1e4):
        exact = 0.5 * d * d - d**4 / 12 if d < 1e-2 else d + math.log1p(math.exp(-2 * d)) - math.log(2)
        net = mlpkit.MLP([Input(1), Dense(1, "identity", init=1.0)], loss="log_cosh")
        J, _ = mlpkit.Objective(net, [[d]], [[0.0]]).value_and_gradient(net.theta)
        assert pytest.approx(exact, rel=1e-13) == J
