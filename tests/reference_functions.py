"""Activations, losses and penalties of the twin, in plain NumPy, with first and second derivatives.

Each activation is written in z alone, straight from its definition; where PyTorch has the function, the formula, the
defaults and the derivative at a kink are PyTorch's. Comparisons look at real parts only and no absolute value is taken
of a complex number, so that the complex step passes through everything here, away from kinks.

A name carries its parameters as the registry prints them: ``"leaky_relu(0.2)"``; ``"leaky_relu"`` has the default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import scipy.special

TINY = np.finfo(np.float64).tiny
EPS = np.finfo(np.float64).eps
INFINITY = float("inf")


def parse(name):
    """Split a name into its base and its parameters: "huber(2)" is ("huber", (2.0,))."""
    base, bracket, rest = name.partition("(")
    if not bracket:
        return base, ()
    assert rest.endswith(")"), f"the bracket of {name!r} does not close"
    return base, tuple(float(number) for number in rest[:-1].split(","))


def branch(condition, yes, no, z):
    """Return `yes` where the condition holds, else `no`, in the dtype of z."""
    return np.where(condition, yes, no).astype(z.dtype)


def magnitude(z):
    """|z| for a real z; a complex z keeps its imaginary part, so that the complex step sees the slope."""
    return branch(z.real < 0, -z, z, z)


def sign(z):
    """Return the sign of z, 0 at 0."""
    return np.sign(z.real).astype(z.dtype)


# Activations ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Activation:
    """f, f' and f'' of one number; the interval f lies in; where f' or f'' jumps; where f crosses 0.

    A coupled activation, whose outputs depend on other units of the layer, has f over the last axis of an array, its
    Jacobian J(z) for one example, and R{J}(z, rz), the Jacobian's derivative along rz, in the place of f' and f''.
    """

    f: Callable
    first: Callable
    second: Callable
    range: tuple[float, float] = (-INFINITY, INFINITY)
    kinks: tuple[float, ...] = ()
    zeros: tuple[float, ...] = ()
    coupled: bool = False


def sigmoid(z):
    """1 / (1 + exp(-z)), by the branch whose exponential cannot overflow."""
    small = np.exp(np.where(z.real >= 0, -z, z))
    return branch(z.real >= 0, 1.0 / (1.0 + small), small / (1.0 + small), z)


def sigmoid_first(z):
    a = sigmoid(z)
    return a * (1 - a)


def sigmoid_second(z):
    a = sigmoid(z)
    return a * (1 - a) * (1 - 2 * a)


def tanh_first(z):
    return 1 - np.tanh(z) ** 2


def tanh_second(z):
    return -2 * np.tanh(z) * tanh_first(z)


def softplus(z):
    """log(1 + exp(z)), by the branch whose exponential cannot overflow."""
    return branch(z.real >= 0, z, 0, z) + np.log1p(np.exp(-magnitude(z)))


def normal_density(z):
    return np.exp(-z * z / 2) / np.sqrt(2 * np.pi).astype(z.real.dtype)


def normal_probability(z):
    """Return the probability that a standard normal variable lies below z."""
    return (0.5 * (1 + scipy.special.erf(z / np.sqrt(2).astype(z.real.dtype)))).astype(z.dtype)


def softmax(z):
    """exp(z_j) / sum_k exp(z_k) over the last axis."""
    e = np.exp(z - z.real.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_jacobian(z):
    a = softmax(z)
    return np.diag(a) - np.outer(a, a)


def softmax_jacobian_along(z, rz):
    a, ra = softmax(z), softmax_jacobian(z) @ rz
    return np.diag(ra) - np.outer(ra, a) - np.outer(a, ra)


def _zero(z):
    return np.zeros_like(z)


def _leaky_relu(slope=0.01):
    return Activation(
        lambda z: branch(z.real > 0, z, slope * z, z),
        lambda z: branch(z.real > 0, 1, slope, z),
        _zero,
        kinks=(0.0,),
        zeros=(0.0,),
    )


def _scaled_elu(scale, alpha):
    """scale (z for z > 0, else alpha (exp(z) - 1)); at 0 the lower branch's derivatives."""

    def lower(z):
        return np.exp(branch(z.real > 0, 0, z, z))

    return Activation(
        lambda z: scale * branch(z.real > 0, z, alpha * np.expm1(branch(z.real > 0, 0, z, z)), z),
        lambda z: scale * branch(z.real > 0, 1, alpha * lower(z), z),
        lambda z: scale * branch(z.real > 0, 0, alpha * lower(z), z),
        range=(-scale * alpha, INFINITY),
        kinks=(0.0,),
        zeros=(0.0,),
    )


def _hard(low, high, bottom, top, line):
    """Return a straight line held between `low` at `bottom` and `high` at `top`; its f' is 0 at both corners."""

    def inside(z):
        return (z.real > bottom) & (z.real < top)

    return Activation(
        lambda z: branch(inside(z), line(z), np.where(z.real <= bottom, low, high), z),
        lambda z: branch(inside(z), (high - low) / (top - bottom), 0, z),
        _zero,
        range=(low, high),
        kinks=(bottom, top),
        zeros=(0.0,) if low < 0 else (),
    )


def _top_k(k):
    """Keep the k largest of an example, ties to the lowest index, and put 0 for the others."""

    def kept(z):
        order = np.argsort(-z.real, axis=-1, kind="stable")[..., : int(k)]
        result = np.zeros(z.shape, bool)
        np.put_along_axis(result, order, True, axis=-1)
        return result

    return Activation(
        lambda z: branch(kept(z), z, 0, z),
        lambda z: np.diag(kept(z)).astype(z.dtype),
        lambda z, rz: np.zeros((z.size, z.size), z.dtype),
        zeros=(0.0,),
        coupled=True,
    )


FACTORIES = {
    "identity": lambda: Activation(lambda z: z + 0, np.ones_like, _zero, zeros=(0.0,)),
    "sigmoid": lambda: Activation(sigmoid, sigmoid_first, sigmoid_second, (0.0, 1.0)),
    "tanh": lambda: Activation(np.tanh, tanh_first, tanh_second, (-1.0, 1.0), zeros=(0.0,)),
    "relu": lambda: Activation(
        lambda z: branch(z.real > 0, z, 0, z),
        lambda z: branch(z.real > 0, 1, 0, z),
        _zero,
        range=(0.0, INFINITY),
        kinks=(0.0,),
    ),
    "leaky_relu": _leaky_relu,
    "elu": lambda alpha=1.0: _scaled_elu(1.0, alpha),
    # Klambauer et al. (2017), equation (14)
    "selu": lambda: _scaled_elu(1.0507009873554804934193349852946, 1.6732632423543772848170429916717),
    "softplus": lambda: Activation(softplus, sigmoid, sigmoid_first, (0.0, INFINITY)),
    "softsign": lambda: Activation(
        lambda z: z / (1 + magnitude(z)),
        lambda z: 1 / (1 + magnitude(z)) ** 2,
        lambda z: -2 * sign(z) / (1 + magnitude(z)) ** 3,
        range=(-1.0, 1.0),
        kinks=(0.0,),
        zeros=(0.0,),
    ),
    "silu": lambda: Activation(
        lambda z: z * sigmoid(z),
        lambda z: sigmoid(z) + z * sigmoid_first(z),
        lambda z: 2 * sigmoid_first(z) + z * sigmoid_second(z),
        range=(-0.27846454276107380, INFINITY),
        zeros=(0.0,),
    ),
    "gelu": lambda: Activation(
        lambda z: z * normal_probability(z),
        lambda z: normal_probability(z) + z * normal_density(z),
        lambda z: (2 - z * z) * normal_density(z),
        range=(-0.16997120747990369, INFINITY),
        zeros=(0.0,),
    ),
    "hard_sigmoid": lambda: _hard(0.0, 1.0, -3.0, 3.0, lambda z: z / 6 + 0.5),
    "hard_tanh": lambda: _hard(-1.0, 1.0, -1.0, 1.0, lambda z: z),
    "sin": lambda: Activation(np.sin, np.cos, lambda z: -np.sin(z), (-1.0, 1.0), zeros=(-np.pi, 0.0, np.pi)),
    "gaussian": lambda: Activation(
        lambda z: np.exp(-z * z),
        lambda z: -2 * z * np.exp(-z * z),
        lambda z: (4 * z * z - 2) * np.exp(-z * z),
        range=(0.0, 1.0),
    ),
    "exp": lambda: Activation(np.exp, np.exp, np.exp, (0.0, INFINITY)),
    "softmax": lambda: Activation(softmax, softmax_jacobian, softmax_jacobian_along, (0.0, 1.0), coupled=True),
    "top_k": _top_k,
}
# Those without a kink: J is analytic in theta where every layer has one of these and the loss is smooth.
ANALYTIC = ("identity", "sigmoid", "tanh", "softplus", "silu", "gelu", "sin", "gaussian", "exp", "softmax")


@cache
def activation(name):
    """Return the twin of a registered activation."""
    base, parameters = parse(name)
    return FACTORIES[base](*parameters)


def pullback(name, z, a, g):
    """Return J_f(z)^T g for one example: f'(z) g, or the full Jacobian's product where units are coupled."""
    f = activation(name)
    return f.first(z).T @ g if f.coupled else f.first(z) * g


def tangent(name, z, rz):
    """Return R{a} = J_f(z) R{z} for one example."""
    f = activation(name)
    return f.first(z) @ rz if f.coupled else f.first(z) * rz


def curvature(name, z, rz, g):
    """Return R{J_f(z)}^T g for one example: f''(z) R{z} g where units are not coupled."""
    f = activation(name)
    return f.second(z, rz).T @ g if f.coupled else f.second(z) * rz * g


def bounded(name):
    """Whether a layer's mean activation can be mapped to [0, 1]."""
    return bool(np.all(np.isfinite(activation(name).range)))


def firing(name, a):
    """Map an activation's range onto [0, 1]: how active a unit is. Returns (s(a), s').

    The range of an unbounded activation is left as it is.
    """
    low, high = activation(name).range if bounded(name) else (0.0, 1.0)
    slope = 1.0 / (high - low)
    return (a - low) * slope, slope


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
