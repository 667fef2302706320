"""Losses and penalties of the twin, in plain NumPy, with first and second derivatives.

Written as activations are in `reference_functions`: the complex step passes through, away from kinks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from reference_functions import activation, branch, curvature, magnitude, parse, pullback, sign, tangent

TINY = np.finfo(np.float64).tiny
EPS = np.finfo(np.float64).eps
INFINITY = float("inf")


# Losses -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """A loss of one output a and its target y, with two derivatives in a, and what it is defined for.

    `domain` is where outputs must lie, `targets` where targets must; `kinks` are the a - y at which a derivative jumps.
    `canonical` is the activation on which the loss is computed from z, by `value(z, a, y)`; a loss with `first` None is
    defined on that activation only.
    """

    value: Callable | None
    first: Callable | None = None
    second: Callable | None = None
    domain: tuple[float, float] = (-INFINITY, INFINITY)
    targets: tuple[float, float] = (-INFINITY, INFINITY)
    kinks: tuple[float, ...] = ()
    canonical: str | None = None
    from_z: Callable | None = None


def _log_cosh(a, y):
    d = magnitude(a - y)
    near = branch(d.real < 1, d, 0, d)
    # cosh d = 1 + 2 sinh(d / 2)**2, which keeps its digits near 0
    return branch(d.real < 1, np.log1p(2 * np.sinh(near / 2) ** 2), d + np.log1p(np.exp(-2 * d)) - np.log(2), d)


def _huber(delta=1.0):
    def quadratic(a, y):
        return np.abs((a - y).real) < delta

    return Loss(
        lambda a, y: branch(quadratic(a, y), (a - y) ** 2 / 2, delta * (magnitude(a - y) - delta / 2), a),
        lambda a, y: branch(quadratic(a, y), a - y, delta * sign(a - y), a),
        lambda a, y: branch(quadratic(a, y), 1, 0, a),
        kinks=(-delta, delta),
    )


def _quantile(tau=0.5):
    return Loss(
        lambda a, y: branch((a - y).real < 0, tau * (y - a), (tau - 1) * (y - a), a),
        lambda a, y: branch((a - y).real < 0, -tau, branch((a - y).real > 0, 1 - tau, 0, a), a),
        lambda a, y: np.zeros_like(a),
        kinks=(0.0,),
    )


def _poisson():
    def shifted(a):
        return a + a.real.dtype.type(1e-8)

    return Loss(
        lambda a, y: a - y * np.log(shifted(a)),
        lambda a, y: 1 - y / shifted(a),
        lambda a, y: y / shifted(a) ** 2,
        domain=(0.0, INFINITY),
        targets=(0.0, INFINITY),
        canonical="exp",
        from_z=lambda z, a, y: a - y * z,
    )


def _binary_cross_entropy(z, a, y):
    """-y log a - (1 - y) log(1 - a) with a = sigmoid(z), in the form that keeps its digits at both ends."""
    return branch(z.real >= 0, (1 - y) * z, -y * z, z) + np.log1p(np.exp(-magnitude(z)))


def _cross_entropy(z, a, y):
    """-y log a with a = softmax(z), by the logarithm of a sum of exponentials."""
    top = z.real.max(axis=-1, keepdims=True)
    return -y * (z - top - np.log(np.exp(z - top).sum(axis=-1, keepdims=True)))


LOSS_FACTORIES = {
    "squared_error": lambda: Loss(lambda a, y: (a - y) ** 2 / 2, lambda a, y: a - y, lambda a, y: np.ones_like(a - y)),
    "absolute_error": lambda: Loss(
        lambda a, y: magnitude(a - y), lambda a, y: sign(a - y), lambda a, y: np.zeros_like(a), kinks=(0.0,)
    ),
    "huber": _huber,
    "log_cosh": lambda: Loss(_log_cosh, lambda a, y: np.tanh(a - y), lambda a, y: 1 - np.tanh(a - y) ** 2),
    "quantile": _quantile,
    "poisson": _poisson,
    "binary_cross_entropy": lambda: Loss(
        None, domain=(0.0, 1.0), targets=(0.0, 1.0), canonical="sigmoid", from_z=_binary_cross_entropy
    ),
    "cross_entropy": lambda: Loss(
        None, domain=(0.0, 1.0), targets=(0.0, 1.0), canonical="softmax", from_z=_cross_entropy
    ),
}


@cache
def loss(name):
    """Return the twin of a registered loss."""
    base, parameters = parse(name)
    return LOSS_FACTORIES[base](*parameters)


def allowed(loss_name, activation_name):
    """Whether a loss is defined on an output activation."""
    found = loss(loss_name)
    if found.first is None:
        return activation_name == found.canonical
    (low, high), (least, most) = found.domain, activation(activation_name).range
    return least >= low and most <= high


def example_loss(loss_name, activation_name, z, a, y):
    """Return the loss summed over the last axis, of the outputs whose target is known (not NaN)."""
    found, known = loss(loss_name), ~np.isnan(y)
    y = np.where(known, y, 0)
    of_z = found.canonical == activation_name
    elements = found.from_z(z, a, y) if of_z else found.value(a, y)
    return np.where(known, elements, 0).sum(axis=-1)


def output_delta(loss_name, activation_name, z, a, y):
    """Return the derivative of one example's loss in z."""
    found, known = loss(loss_name), ~np.isnan(y)
    y = np.where(known, y, 0)
    if found.canonical != activation_name:
        return pullback(activation_name, z, a, np.where(known, found.first(a, y), 0))
    if activation_name == "softmax":
        return a * y.sum() - y  # every z_k moves every log a_j, also where y_k is unknown
    return np.where(known, a - y, 0)


def output_curvature(loss_name, activation_name, z, a, y, rz):
    """Return R{delta}, the derivative of `output_delta` along rz."""
    found, known = loss(loss_name), ~np.isnan(y)
    y = np.where(known, y, 0)
    ra = tangent(activation_name, z, rz)
    if found.canonical != activation_name:
        g, rg = np.where(known, found.first(a, y), 0), np.where(known, found.second(a, y) * ra, 0)
        return pullback(activation_name, z, a, rg) + curvature(activation_name, z, rz, g)
    if activation_name == "softmax":
        return ra * y.sum()
    return np.where(known, ra, 0)


# Penalties --------------------------------------------------------------------------------------


def clamp(rho_hat):
    """Hold rho_hat in [tiny, 1 - eps], so that KL stays finite at a dead or saturated unit."""
    rho_hat = np.where(rho_hat.real < TINY, TINY, rho_hat)
    return np.where(rho_hat.real > 1 - EPS, 1 - EPS, rho_hat)


def kl(rho, rho_hat):
    """KL(rho || rho_hat) of two Bernoulli variables, per unit."""
    r = clamp(np.asarray(rho_hat))
    return rho * np.log(rho / r) + (1 - rho) * np.log((1 - rho) / (1 - r))


def kl_derivative(rho, rho_hat):
    """Return -rho / rho_hat + (1 - rho) / (1 - rho_hat)."""
    r = clamp(np.asarray(rho_hat))
    return -rho / r + (1 - rho) / (1 - r)


def kl_curvature(rho, rho_hat):
    """Return rho / rho_hat**2 + (1 - rho) / (1 - rho_hat)**2."""
    r = clamp(np.asarray(rho_hat))
    return rho / r**2 + (1 - rho) / (1 - r) ** 2


@dataclass(frozen=True)
class Mean:
    """beta sum_j p(rho_hat_j), with p and its two derivatives as functions of the means of a layer."""

    value: Callable
    first: Callable
    second: Callable
    beta: float = 1.0


def kl_penalty(rho, beta):
    """Return the sparsity penalty of the notes as a `Mean`."""
    return Mean(
        lambda mean: kl(rho, mean), lambda mean: kl_derivative(rho, mean), lambda mean: kl_curvature(rho, mean), beta
    )


@dataclass(frozen=True)
class L1:
    """strength sum_j sum_i w_i |a_ij| / sum w."""

    strength: float


# Penalties that a user might write, by the names under which the tests register them.
PENALTIES = {
    "twin_quadratic": (lambda r: (r - 0.3) ** 2, lambda r: 2 * (r - 0.3), lambda r: 2 * np.ones_like(r)),
    "twin_exponential": (lambda r: np.exp(r / 2), lambda r: np.exp(r / 2) / 2, lambda r: np.exp(r / 2) / 4),
}
