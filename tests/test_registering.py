"""Plugins as users type them, and what is found wrong with them as they are registered."""

import math
import pickle

import numpy as np
import pytest
from plugin_samples import data, neighbours_forward

import mlpkit
from mlpkit import Dense, Input, activations, losses
from mlpkit.activations import Activation
from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels import vmath
from mlpkit.losses import Fused, Loss


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
                Activation("bad", None, tile_forward=neighbours_forward, tile_pullback=_half_pullback)
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
            r"^derivative of 'bad' on 'sigmoid' is wrong at z = -?8, y = .*: it gives -?8, where diff.* give -?16 ",
        ),
    ],
)
def test_a_wrong_plugin_is_refused_as_it_is_registered(make, message, clean_registries):
    with pytest.raises(InvalidArgumentError, match=message):
        make()
    assert "bad" not in activations.names() + losses.names()
