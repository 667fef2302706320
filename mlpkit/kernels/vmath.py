"""Branch-free elementary functions that compilers turn into vector code; public, for authors of plugins.

Numba's ``math.exp`` stays a call for each element. These are a few multiplications and additions instead, work in the
dtype of their argument (float64 or float32), pass NaN through and reach the right limits at +-infinity. In compiled
code they are within 2 units in the last place of the true value (erfc and ndtr: 4). Called from plain Python they
compute the same functions with NumPy and SciPy, on scalars or arrays.

The methods are the classical ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import ArrayLike

from mlpkit.kernels import vmath32, vmath64
from mlpkit.kernels.jit import ELEMENTWISE

__all__ = ["cos", "erf", "erfc", "exp", "expit", "expm1", "log", "log1p", "ndtr", "sin", "softplus", "tanh"]


def _floats(x: ArrayLike) -> Any:
    """Return x as an array of floating-point numbers; whole numbers become float64, as in compiled code."""
    x = np.asarray(x)
    return x if x.dtype.kind == "f" else x.astype(np.float64)


@np.errstate(all="ignore")
def exp(x: ArrayLike) -> Any:
    """Return e**x.

    Examples
    --------
    >>> float(exp(0.0))
    1.0
    """
    return np.exp(_floats(x))


@np.errstate(all="ignore")
def expm1(x: ArrayLike) -> Any:
    """Return e**x - 1, accurate near 0.

    Examples
    --------
    >>> float(expm1(1e-20))
    1e-20
    """
    return np.expm1(_floats(x))


@np.errstate(all="ignore")
def expit(x: ArrayLike) -> Any:
    """Return the sigmoid 1 / (1 + exp(-x)), computed without overflow on either side.

    Examples
    --------
    >>> float(expit(0.0))
    0.5
    """
    x = _floats(x)
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, x.dtype.type(1), e) / (1 + e)


@np.errstate(all="ignore")
def tanh(x: ArrayLike) -> Any:
    """Return the hyperbolic tangent, equation (1) of the notes, accurate near 0 and without overflow.

    Examples
    --------
    >>> float(tanh(0.0))
    0.0
    """
    return np.tanh(_floats(x))


@np.errstate(all="ignore")
def log(x: ArrayLike) -> Any:
    """Return the natural logarithm; -infinity at 0 and NaN below.

    Examples
    --------
    >>> float(log(1.0))
    0.0
    """
    return np.log(_floats(x))


@np.errstate(all="ignore")
def log1p(x: ArrayLike) -> Any:
    """Return log(1 + x), accurate near 0; -infinity at -1 and NaN below.

    Examples
    --------
    >>> float(log1p(0.0))
    0.0
    """
    return np.log1p(_floats(x))


@np.errstate(all="ignore")
def softplus(x: ArrayLike) -> Any:
    """Return log(1 + e**x), without overflow and accurate for negative x; its derivative is `expit`.

    Examples
    --------
    >>> float(softplus(-800.0)), float(softplus(800.0))
    (0.0, 800.0)
    """
    x = _floats(x)
    return np.maximum(x, x.dtype.type(0)) + np.log1p(np.exp(-np.abs(x)))


@np.errstate(all="ignore")
def erf(x: ArrayLike) -> Any:
    """Return the error function, 2 / sqrt(pi) times the integral of exp(-t**2) from 0 to x.

    Examples
    --------
    >>> float(erf(0.0))
    0.0
    """
    from scipy import special

    return special.erf(_floats(x))


@np.errstate(all="ignore")
def erfc(x: ArrayLike) -> Any:
    """Return 1 - erf(x), accurate where that is small.

    Examples
    --------
    >>> float(erfc(0.0))
    1.0
    """
    from scipy import special

    return special.erfc(_floats(x))


@np.errstate(all="ignore")
def ndtr(x: ArrayLike) -> Any:
    """Return the probability that a standard normal variable is at most x, erfc(-x / sqrt(2)) / 2.

    With its own rounding, so that it is accurate where it is small: gelu is x * ndtr(x).

    Examples
    --------
    >>> float(ndtr(0.0))
    0.5
    """
    from scipy import special

    return special.ndtr(_floats(x))


@np.errstate(all="ignore")
def sin(x: ArrayLike) -> Any:
    """Return the sine of x radians; NaN at +-infinity.

    Examples
    --------
    >>> float(sin(0.0))
    0.0
    """
    return np.sin(_floats(x))


@np.errstate(all="ignore")
def cos(x: ArrayLike) -> Any:
    """Return the cosine of x radians; NaN at +-infinity.

    Examples
    --------
    >>> float(cos(0.0))
    1.0
    """
    return np.cos(_floats(x))


def _register(function: Any, in_float64: Any, in_float32: Any) -> None:
    """Let compiled code call `function`, in the precision of its argument."""

    def choose(x: Any) -> Any:
        if x == types.float32:
            return lambda x: in_float32(x)
        if isinstance(x, (types.Float, types.Integer)):
            return lambda x: in_float64(x)
        return None

    overload(
        function,
        jit_options={"error_model": "numpy", "fastmath": set(ELEMENTWISE), "forceinline": True},
        strict=False,
    )(choose)


for _name in __all__:
    _register(globals()[_name], getattr(vmath64, f"_{_name}"), getattr(vmath32, f"_{_name}"))
