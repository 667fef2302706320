"""mlpkit's own losses, written as a user would write one.

Each has its formula, source and derivative in its docstring: ``mlpkit.losses.huber.__doc__``. Where PyTorch has the
function, its formula and defaults are meant, summed over outputs; d = a - y.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mlpkit.activations import exp, sigmoid, softmax
from mlpkit.checks import check_number
from mlpkit.kernels import vmath
from mlpkit.kernels.softmax import cross_entropy_curvature, cross_entropy_output
from mlpkit.losses.record import REGISTRY, Fused, Loss
from mlpkit.registry import Family

__all__ = [
    "absolute_error",
    "binary_cross_entropy",
    "cross_entropy",
    "huber",
    "log_cosh",
    "poisson",
    "quantile",
    "squared_error",
]

_INFINITY = float("inf")


def _builtin(**options: Any) -> Callable[[Callable[..., Any]], Loss]:
    def decorate(function: Callable[..., Any]) -> Loss:
        return REGISTRY.register(Loss(function.__name__, function, builtin=True, **options))

    return decorate


def _family(make: Callable[..., dict[str, Any]]) -> Family[Loss]:
    return REGISTRY.add_family(Family(make, Loss))


@_builtin()
def squared_error(a, y):
    """1/2 d^2, so that with the sum over outputs it is 1/2 ||h - y||^2, section 2.2 of the notes; derivative d."""
    return 0.5 * (a - y) * (a - y)


@squared_error.derivative
def _(a, y):
    return a - y


@_builtin()
def absolute_error(a, y):
    """|d|; derivative -1, 0 or 1, the sign of d."""
    return abs(a - y)


@absolute_error.derivative
def _(a, y):
    return 1.0 if a > y else -1.0 if a < y else 0.0


@_family
def huber(delta: float = 1.0) -> dict[str, Any]:
    """1/2 d^2 up to |d| = delta, then delta (|d| - delta / 2), Huber (1964); derivative d held in [-delta, delta]."""
    check_number(delta, "delta", low=0, low_open=True)

    def function(a, y):
        d = abs(a - y)
        return 0.5 * d * d if d <= delta else delta * (d - 0.5 * delta)

    def derivative(a, y):
        return min(max(a - y, -delta), delta)

    return {"function": function, "derivative": derivative}


_LOG_2 = math.log(2.0)


@_builtin()
def log_cosh(a, y):
    """Log cosh d, like 1/2 d^2 near 0 and |d| - log 2 far away; derivative tanh d."""
    d = abs(a - y)
    t = vmath.tanh(d)
    # log cosh d = -1/2 log(1 - tanh^2 d), which keeps its digits near 0, or d - log 2 + log(1 + e^-2d), which does far
    # away.
    near = -0.5 * vmath.log1p(-t * t)
    far = d - _LOG_2 + vmath.log1p(vmath.exp(-2.0 * d))
    return near if d < 0.5 else far


@log_cosh.derivative
def _(a, y):
    return vmath.tanh(a - y)


@_family
def quantile(tau: float = 0.5) -> dict[str, Any]:
    """max(-tau d, (1 - tau) d), Koenker and Bassett (1978), least at the quantile tau; derivative -tau or 1 - tau."""
    check_number(tau, "tau", low=0, high=1, low_open=True, high_open=True)

    def function(a, y):
        return max(tau * (y - a), (tau - 1.0) * (y - a))

    def derivative(a, y):
        return 1.0 - tau if a > y else -tau if a < y else 0.0

    return {"function": function, "derivative": derivative}


def _logistic(z, y):
    # A term whose factor is 0 is left out, so that an infinite z is right where it is on the side of its target.
    one, zero = y * vmath.softplus(-z), (1.0 - y) * vmath.softplus(z)
    return (one if y != 0.0 else 0.0) + (zero if y != 1.0 else 0.0)


def _logistic_slope(z, a, y):
    # a - y, in which 1 - a is not lost where a rounds to 1.
    return (1.0 - y) * a - y * vmath.expit(-z)


binary_cross_entropy = REGISTRY.register(
    Loss(
        "binary_cross_entropy",
        targets=(0.0, 1.0),
        fused={sigmoid: Fused(_logistic, _logistic_slope, lambda z, a, y: a * vmath.expit(-z))},
        builtin=True,
        doc="-y log a - (1 - y) log(1 - a) on sigmoid outputs, computed from z; derivative in z: a - y.",
    )
)

cross_entropy = REGISTRY.register(
    Loss(
        "cross_entropy",
        targets=(0.0, 1.0),
        fused={softmax: Fused(tile_output=cross_entropy_output, tile_curvature=cross_entropy_curvature)},
        class_targets=True,
        builtin=True,
        doc="-sum_j y_j log a_j on a softmax, computed from z; y a class or probabilities; derivative in z: a - y.",
    )
)

_FLOOR = 1e-8  # PyTorch's eps


@_builtin(
    domain=(0.0, _INFINITY),
    targets=(0.0, _INFINITY),
    fused={exp: Fused(lambda z, y: vmath.exp(z) - y * z, lambda z, a, y: a - y, lambda z, a, y: a)},
)
def poisson(a, y):
    """Poisson deviance but for a constant, a - y log(a + 1e-8); on an exp output e^z - y z.

    The derivative is 1 - y / (a + 1e-8); in z, on an exp output, a - y.
    """
    return a - y * vmath.log(a + _FLOOR)


@poisson.derivative
def _(a, y):
    return 1.0 - y / (a + _FLOOR)
