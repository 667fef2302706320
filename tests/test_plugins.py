"""Activations and losses as plugins: the engine runs users' own as it runs mlpkit's; what it cannot run is refused."""

import copy
import dis
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from plugin_samples import (
    ACTIVATIONS,
    compatible,
    data,
    impostor,
    make_scaled,
    neighbours,
    pairs,
    swish,
    unit_ball,
    unit_ball_forward,
    unit_ball_pullback,
)

import mlpkit
from mlpkit import Dense, Input, activations, losses
from mlpkit.activations import Activation
from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels import functions
from mlpkit.losses import Fused, Loss


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
            lambda: Activation("f", lambda z: z, lambda z, a: 1.0, tile_forward=unit_ball_forward),
            "needs either a function",
        ),
        (lambda: Activation("f", np.sin, lambda z, a: 1.0), "function of 'f' must be a plain Python function"),
        (lambda: Activation("f", lambda z: z, np.cos), "derivative of 'f' must be a plain Python function"),
        (lambda: Activation("f", lambda: 1.0, lambda z, a: 1.0), r"function of 'f' must take the arguments \(z\)"),
        (lambda: Activation("f", lambda z: z, lambda a: a), r"derivative of 'f' must take .*\(z, a\); found \(a\)"),
        (lambda: Activation("f", lambda z: z, lambda *, z, a: a), "derivative of 'f' must take"),
        (
            lambda: Activation("f", None, None, tile_forward=unit_ball_pullback, tile_pullback=unit_ball_pullback),
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
