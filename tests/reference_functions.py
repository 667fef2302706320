"""Activations of the twin, in plain NumPy, with first and second derivatives.

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
