"""mlpkit's own activations, written as a user would write one.

Each has its formula, source, range and derivative in its docstring: ``mlpkit.activations.gelu.__doc__``. Where PyTorch
has the function, its formula and defaults are meant, and its choice of derivative at a kink.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mlpkit.activations.record import REGISTRY, Activation
from mlpkit.checks import check_integer, check_number
from mlpkit.kernels import vmath
from mlpkit.kernels.softmax import softmax_curvature, softmax_forward, softmax_pullback
from mlpkit.kernels.top_k import top_k_bodies
from mlpkit.registry import Family

__all__ = [
    "elu",
    "exp",
    "gaussian",
    "gelu",
    "hard_sigmoid",
    "hard_tanh",
    "identity",
    "leaky_relu",
    "relu",
    "selu",
    "sigmoid",
    "silu",
    "sin",
    "softmax",
    "softplus",
    "softsign",
    "tanh",
    "top_k",
]

_INFINITY = float("inf")


def _builtin(**options: Any) -> Callable[[Callable[..., Any]], Activation]:
    def decorate(function: Callable[..., Any]) -> Activation:
        return REGISTRY.register(Activation(function.__name__, function, builtin=True, **options))

    return decorate


def _family(make: Callable[..., dict[str, Any]]) -> Family[Activation]:
    return REGISTRY.add_family(Family(make, Activation))


@_builtin(range=(0.0, 1.0), default_init="uniform")
def sigmoid(z):
    """f(z) = 1 / (1 + exp(-z)), section 2 of the notes; range (0, 1); f' = a (1 - a)."""
    return vmath.expit(z)


@sigmoid.derivative
def _(z, a):
    return a * (1.0 - a)


@_builtin(range=(-1.0, 1.0))
def tanh(z):
    """f(z) = (e^z - e^-z) / (e^z + e^-z), section 2 of the notes; range (-1, 1); f' = 1 - a^2."""
    return vmath.tanh(z)


@tanh.derivative
def _(z, a):
    return 1.0 - a * a


@_builtin()
def identity(z):
    """f(z) = z, a linear unit; range all numbers; f' = 1."""
    return z


@identity.derivative
def _(z, a):
    return 1.0


@_builtin(range=(0.0, _INFINITY), default_init="he_uniform")
def relu(z):
    """f(z) = max(0, z), Nair and Hinton (2010); range [0, inf); f' = 1 where z > 0, otherwise 0 as in PyTorch."""
    return 0.0 if z < 0.0 else z  # NaN must pass through


@relu.derivative
def _(z, a):
    return 1.0 if a > 0.0 else 0.0  # a > 0 exactly where z > 0


@_family
def leaky_relu(slope: float = 0.01) -> dict[str, Any]:
    """f(z) = z where z > 0, otherwise slope z, Maas et al. (2013); range all numbers; f' = 1 or slope (at 0 too)."""
    check_number(slope, "slope", low=0)

    def function(z):
        return z if z > 0.0 else slope * z

    def derivative(z, a):
        return 1.0 if a > 0.0 else slope

    low = -_INFINITY if slope else 0.0
    return {
        "function": function,
        "derivative": derivative,
        "range": (low, _INFINITY),
        "default_init": "he_uniform",
    }


@_family
def elu(alpha: float = 1.0) -> dict[str, Any]:
    """f(z) = z where z > 0, else alpha (e^z - 1), Clevert et al. (2016); range (-alpha, inf); f' = 1 or a + alpha."""
    check_number(alpha, "alpha", low=0, low_open=True)

    def function(z):
        return z if z > 0.0 else alpha * vmath.expm1(z)

    def derivative(z, a):
        return 1.0 if a > 0.0 else a + alpha

    return {
        "function": function,
        "derivative": derivative,
        "range": (-alpha, _INFINITY),
        "default_init": "he_uniform",
    }


# Klambauer et al. (2017), to the last digit that a float64 holds.
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


@_builtin(range=(-_SELU_SCALE * _SELU_ALPHA, _INFINITY), default_init="glorot_normal")
def selu(z):
    """f(z) = s elu(z), alpha = 1.67326, s = 1.0507, Klambauer et al. (2017); range (-1.758, inf); f' = s elu'."""
    return _SELU_SCALE * (z if z > 0.0 else _SELU_ALPHA * vmath.expm1(z))


@selu.derivative
def _(z, a):
    return _SELU_SCALE if a > 0.0 else a + _SELU_SCALE * _SELU_ALPHA


@_builtin(range=(0.0, _INFINITY))
def softplus(z):
    """f(z) = log(1 + e^z), Dugas et al. (2001); range (0, inf); f' = sigmoid(z) = 1 - e^-a."""
    return vmath.softplus(z)


@softplus.derivative
def _(z, a):
    return -vmath.expm1(-a)


@_builtin(range=(-1.0, 1.0))
def softsign(z):
    """f(z) = z / (1 + |z|), Turian et al. (2009); range (-1, 1); f' = (1 - |a|)^2."""
    return z / (1.0 + abs(z))


@softsign.derivative
def _(z, a):
    return (1.0 - abs(a)) * (1.0 - abs(a))


@_builtin(range=(-0.2784645427610738, _INFINITY), default_init="he_uniform")
def silu(z):
    """f(z) = z sigmoid(z), also called swish, Elfwing et al. (2017); range [-0.2785, inf); f' = s + a (1 - s)."""
    return z * vmath.expit(z)


@silu.derivative
def _(z, a):
    s = vmath.expit(z)
    return s + a * (1.0 - s)


_NORMAL = 1.0 / math.sqrt(2.0 * math.pi)


@_builtin(range=(-0.16997120747990369, _INFINITY), default_init="he_uniform")
def gelu(z):
    """f(z) = z Phi(z), Phi the normal distribution's, exact; Hendrycks and Gimpel (2016); f' = Phi(z) + z Phi'(z).

    The range is [-0.17, inf).
    """
    return z * vmath.ndtr(z)


@gelu.derivative
def _(z, a):
    return vmath.ndtr(z) + _NORMAL * z * vmath.exp(-0.5 * z * z)


@_builtin(range=(0.0, 1.0))
def hard_sigmoid(z):
    """f(z) = z / 6 + 1/2 held in [0, 1], Howard et al. (2019); range [0, 1]; f' = 1/6 inside, 0 at the ends."""
    return min(max(z / 6.0 + 0.5, 0.0), 1.0)


@hard_sigmoid.derivative
def _(z, a):
    return 1.0 / 6.0 if 0.0 < a < 1.0 else 0.0


@_builtin(range=(-1.0, 1.0))
def hard_tanh(z):
    """f(z) = z held in [-1, 1], Collobert (2004); range [-1, 1]; f' = 1 inside, 0 at the ends."""
    return min(max(z, -1.0), 1.0)


@hard_tanh.derivative
def _(z, a):
    return 1.0 if -1.0 < a < 1.0 else 0.0


@_builtin(range=(-1.0, 1.0))
def sin(z):
    """f(z) = sin z, Sitzmann et al. (2020); range [-1, 1]; f' = cos z."""
    return vmath.sin(z)


@sin.derivative
def _(z, a):
    return vmath.cos(z)


@_builtin(range=(0.0, 1.0))
def gaussian(z):
    """f(z) = e^(-z^2), a radial unit, Broomhead and Lowe (1988); range (0, 1]; f' = -2 z a."""
    return vmath.exp(-z * z)


@gaussian.derivative
def _(z, a):
    return -2.0 * z * a


@_builtin(range=(0.0, _INFINITY))
def exp(z):
    """f(z) = e^z, the mean of a Poisson variable by its canonical parameter; range (0, inf); f' = a."""
    return vmath.exp(z)


@exp.derivative
def _(z, a):
    return a


softmax = REGISTRY.register(
    Activation(
        "softmax",
        None,
        doc="a_j = e^(z_j) / sum_k e^(z_k), Bridle (1990); range (0, 1), summing to 1; J = diag(a) - a a^T.",
        range=(0.0, 1.0),
        tile_forward=softmax_forward,
        tile_pullback=softmax_pullback,
        tile_tangent=softmax_pullback,
        tile_curvature=softmax_curvature,
        builtin=True,
    )
)


@_family
def top_k(k: int) -> dict[str, Any]:
    """a_j = z_j for the k largest z_j of an example, otherwise 0; Makhzani and Frey (2013); J passes the same units."""
    check_integer(k, "k", low=1)
    forward, pullback, curvature = top_k_bodies(k)
    return {
        "function": None,
        "tile_forward": forward,
        "tile_pullback": pullback,
        "tile_tangent": pullback,
        "tile_curvature": curvature,
    }
