"""Branch-free elementary functions that compilers turn into vector code; public, for authors of plugins.

Numba's ``math.exp`` stays a call for each element. These are some multiplications and additions instead, work in the
dtype of their argument (float64 or float32; whole numbers are taken as float64), pass NaN through and reach the right
limits at +-infinity. In compiled code they are within 2 units in the last place of the true value, erfc and ndtr within
4, down to the smallest subnormal number; with or without fused multiply-adds. Exceptions:

- sin and cos are so accurate up to |x| = 2**20 (float32: 2**25). Beyond, the absolute error may reach that of a
  rounded argument, |x| 2**-53, though the fused multiply-adds of today's processors keep it far below; and from
  2**51 on every x is taken for a multiple of 2 pi. The result always lies in [-1, 1].

Called from plain Python they compute the same functions with NumPy and SciPy, on scalars or arrays, without warnings:
within 4 units in the last place, which NumPy promises of its vector functions, and erfc and ndtr within 10 (measured).

The methods are the classical ones. All polynomials are interpolated at Chebyshev nodes or minimax, our own fits.

- exp: with k = round(x / log 2) and r = x - k log 2, exp(x) = 2**k exp(r), where log 2 is split in two so that r is
  exact, and exp(r) = 1 + r + r**2 P(r) for |r| <= log(2) / 2 (error 1.3e-17 for float64, 7.9e-9 for float32). expit
  and tanh are quotients of it; expm1 adds the terms of 2**k - 1 + 2**k (r + ...) from the largest on, without loss.
- log and log1p: with x = 2**k (1 + f), 1 + f between sqrt(1/2) and sqrt(2), and s = f / (2 + f), log(1 + f) =
  2 artanh(s) = 2 s + s**3 P(s**2) (relative error 4.3e-18 and 1.6e-11). softplus is max(x, 0) + log(1 + e) with e =
  exp(-|x|), where the same series for s up to 1/3 needs no k (1.3e-18 and 4.6e-9).
- erf: x + x P(x**2) up to 1 (7.3e-18 and 1.2e-9), and 1 - exp(P(|x| - 1)) beyond, P near log(erfc) (absolute error of
  the exponential 6.6e-18 and 1.0e-9).
- erfc: exp(-x**2) P(t) / (x + 2) with t = (x - 2) / (x + 2), after Shepherd and Laframboise (relative error 1.5e-17
  and 3.5e-9), x**2 in two parts so that its rounding does not count. ndtr is the same for x / sqrt(2).
- sin and cos: x minus the nearest multiple of pi / 2, which is subtracted in four parts (float32: two parts, in
  float64), and polynomials for |r| <= pi / 4 (3.4e-18 and 3.6e-9).
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
    array: Any = np.asarray(x)
    return array if array.dtype.kind == "f" else array.astype(np.float64)


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
    z = _floats(x)
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, z.dtype.type(1), e) / (1 + e)


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
    z = _floats(x)
    return np.maximum(z, z.dtype.type(0)) + np.log1p(np.exp(-np.abs(z)))


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
    return _erfc(_floats(x), 1.0)


def _erfc(x: Any, half: float) -> Any:
    """Return erfc(x * sqrt(half)), with its relative accuracy kept to the smallest numbers, which SciPy's loses."""
    from scipy import special

    a = np.clip(x, 0, 40).astype(np.float64)
    head = a.astype(np.float32).astype(np.float64)
    gaussian = np.exp(-half * head * head) * np.exp(-half * (a - head) * (a + head))
    tail = special.erfcx(a * np.sqrt(half)) * gaussian
    return np.where(x > 0, tail, special.erfc(x * np.sqrt(half))).astype(x.dtype)[()]


@np.errstate(all="ignore")
def ndtr(x: ArrayLike) -> Any:
    """Return the probability that a standard normal variable is at most x, erfc(-x / sqrt(2)) / 2.

    With its own rounding, so that it is accurate where it is small: gelu is x * ndtr(x).

    Examples
    --------
    >>> float(ndtr(0.0))
    0.5
    """
    return 0.5 * _erfc(-_floats(x), 0.5)


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
