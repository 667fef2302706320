"""mlpkit's own activations out of ONNX operators.

ONNX has an operator for most of them, and three things speak against it. onnxruntime's CPU build has no float64 kernel
for Elu, Selu, Softplus, Softsign, HardSigmoid, Erf and Gelu. Attributes, such as the slope of LeakyRelu, are float32
always. And tails get lost: its Sigmoid is 0 from z = -18 on in float32 and from -37 in float64, and z times that is no
silu. So all but a few are formulas here, out of operators that exist in both precisions, which is also why both have
the same graph. None overflows on the way to a finite result, and none takes a small number for the difference of two
large ones: what is left is the operators' own rounding, and what the rounding of z amounts to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

__all__ = ["ACTIVATIONS", "Operator"]


class Operator(Protocol):
    """What adds nodes to a graph whose numbers are of one dtype, float64 if `double` and otherwise float32."""

    double: bool

    def __call__(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node and return the name of its output, or of several; inputs are names, numbers or whole arrays."""


def _sigmoid(op: Operator, z: str) -> str:
    """1 / (1 + e^-z) = e^z / (1 + e^z), by the one whose exponential is at most 1."""
    e = op("Exp", op("Neg", op("Abs", z)))
    return op("Div", op("Where", op("Less", z, 0.0), e, 1.0), op("Add", e, 1.0))


def _tanh(op: Operator, z: str) -> str:
    return op("Tanh", z)


def _identity(op: Operator, z: str) -> str:
    return z


def _relu(op: Operator, z: str) -> str:
    return op("Relu", z)


def _leaky_relu(op: Operator, z: str, slope: float) -> str:
    return op("Where", op("Greater", z, 0.0), z, op("Mul", z, slope))


def _elu(op: Operator, z: str, alpha: float) -> str:
    return op("Add", op("Relu", z), op("Mul", _expm1_below_0(op, z), alpha))


def _selu(op: Operator, z: str) -> str:
    """Klambauer et al. (2017), with the numbers of `mlpkit.activations.selu`."""
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    return op("Mul", _elu(op, z, alpha), scale)


def _expm1_below_0(op: Operator, z: str) -> str:
    """e^z - 1 where z < 0, otherwise 0: 2 t / (1 - t) with t = tanh(z / 2), which is accurate near 0 too."""
    t = op("Tanh", op("Mul", op("Min", z, 0.0), 0.5))
    return op("Div", op("Add", t, t), op("Sub", 1.0, t))


def _softplus(op: Operator, z: str) -> str:
    """max(z, 0) + log(1 + e) with e = e^-|z|.

    u = 1 + e is rounded, and log(u) + (e - (u - 1)) / u makes up for it: to first order, and e itself where u is 1.
    """
    e = op("Exp", op("Neg", op("Abs", z)))
    u = op("Add", e, 1.0)
    lost = op("Sub", e, op("Sub", u, 1.0))
    return op("Add", op("Relu", z), op("Add", op("Log", u), op("Div", lost, u)))


def _softsign(op: Operator, z: str) -> str:
    return op("Div", z, op("Add", op("Abs", z), 1.0))


def _silu(op: Operator, z: str) -> str:
    return op("Mul", z, _sigmoid(op, z))


# Phi(-t) = e^(-t^2 / 2) P(s) / (t + 4) with s = 1 - 8 / (t + 4). These are the coefficients of P from the constant on,
# interpolated at Chebyshev nodes in 50 digits for t up to 38.6 and up to 14.4, beyond which Phi(-t) rounds to 0. P's
# relative error is 3.6e-17 and 1.3e-8.
_TAIL64 = (
    0.7552851304157515,
    -0.6078966419718917,
    0.3871374007422187,
    -0.1865218579596944,
    0.06039657489070879,
    -0.007540188965582072,
    -0.003479692362423222,
    0.0016308184416757216,
    0.0001333442557794809,
    -0.0002310948161145127,
    -1.9078762382182562e-06,
    3.514416799822778e-05,
    7.15037346304297e-07,
    -5.91884478718702e-06,
    -6.25193110588506e-07,
    1.019696831151206e-06,
    2.637443650566312e-07,
    -1.5411646334002175e-07,
    -7.63984192563988e-08,
    1.4468530167047007e-08,
    1.390350496575988e-08,
    1.0768241006920988e-10,
    -9.512991024047347e-10,
)
_TAIL32 = (
    0.755285144,
    -0.607896626,
    0.387136668,
    -0.186522946,
    0.060406521,
    -0.00752760144,
    -0.00352409668,
    0.00156986539,
    0.000196038774,
    -0.000122442027,
)


def _gelu(op: Operator, z: str) -> str:
    """Z Phi(z) = max(z, 0) - t Phi(-t) with t = |z|, Phi the normal distribution's; see `_TAIL64`."""
    coefficients, end = (_TAIL64, 40.0) if op.double else (_TAIL32, 16.0)
    t = op("Min", op("Abs", z), end)
    d = op("Reciprocal", op("Add", t, 4.0))
    s = op("Sub", 1.0, op("Mul", d, 8.0))
    p: Any = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        p = op("Add", op("Mul", s, p), coefficient)
    bell = op("Exp", op("Mul", op("Mul", t, t), -0.5))
    return op("Sub", op("Relu", z), op("Mul", op("Mul", op("Mul", t, d), p), bell))


def _hard_sigmoid(op: Operator, z: str) -> str:
    return op("Clip", op("Add", op("Div", z, 6.0), 0.5), 0.0, 1.0)


def _hard_tanh(op: Operator, z: str) -> str:
    return op("Clip", z, -1.0, 1.0)


def _sin(op: Operator, z: str) -> str:
    return op("Sin", z)


def _gaussian(op: Operator, z: str) -> str:
    return op("Exp", op("Neg", op("Mul", z, z)))


def _exp(op: Operator, z: str) -> str:
    return op("Exp", z)


def _softmax(op: Operator, z: str) -> str:
    return op("Softmax", z, axis=-1)


def _top_k(op: Operator, z: str, k: int) -> str:
    """Put the k largest, of equal ones those of the lowest units, into zeros; k is at most the number of units."""
    values, units = op("TopK", z, np.array([k]), outputs=2, axis=-1)
    return op("ScatterElements", op("Expand", 0.0, op("Shape", z)), units, values, axis=-1)


#: By name, without parameters: from the operator, the name of z and the parameters, to the name of a.
ACTIVATIONS: dict[str, Callable[..., str]] = {
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "identity": _identity,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "selu": _selu,
    "softplus": _softplus,
    "softsign": _softsign,
    "silu": _silu,
    "gelu": _gelu,
    "hard_sigmoid": _hard_sigmoid,
    "hard_tanh": _hard_tanh,
    "sin": _sin,
    "gaussian": _gaussian,
    "exp": _exp,
    "softmax": _softmax,
    "top_k": _top_k,
}
