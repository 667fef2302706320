"""Branch-free exp, expit, tanh and log1p that compilers turn into vector code; public, for authors of plugins.

Numba's ``math.exp`` stays a call for each element. These are a few multiplications and additions instead, work in the
dtype of their argument (float64 or float32), are within 2 units in the last place of the true value over their whole
range, pass NaN through and reach the right limits at +-infinity. Called from plain Python they compute the same
functions with NumPy, on scalars or arrays.

The methods are the classical ones.

- exp: with k = round(x / log 2) and r = x - k log 2, exp(x) = 2**k exp(r), where log 2 is split in two so that r is
  exact, and exp(r) = 1 + r + r**2 P(r) with P interpolated at Chebyshev nodes of |r| <= log(2) / 2 (error 1.3e-17 for
  float64, 7.9e-9 for float32). expit and tanh are quotients of it.
- log1p: with 1 + x = 2**k (1 + f), 1 + f between sqrt(1/2) and sqrt(2), and s = f / (2 + f), log(1 + f) =
  2 artanh(s) = 2 s + s**3 P(s**2), P interpolated likewise (relative error 4.3e-18 and 1.6e-11).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import ArrayLike

from mlpkit.kernels.jit import ELEMENTWISE, inline

__all__ = ["exp", "expit", "log1p", "tanh"]


def exp(x: ArrayLike) -> Any:
    """Return e**x.

    Examples
    --------
    >>> float(exp(0.0))
    1.0
    """
    with np.errstate(over="ignore", under="ignore"):
        return np.exp(x)


def expit(x: ArrayLike) -> Any:
    """Return the sigmoid 1 / (1 + exp(-x)), computed without overflow on either side.

    Examples
    --------
    >>> float(expit(0.0))
    0.5
    """
    x = np.asarray(x)
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, x.dtype.type(1) if x.dtype.kind == "f" else 1.0, e) / (1 + e)


def tanh(x: ArrayLike) -> Any:
    """Return the hyperbolic tangent, equation (1) of the notes, accurate near 0 and without overflow.

    Examples
    --------
    >>> float(tanh(0.0))
    0.0
    """
    return np.tanh(x)


def log1p(x: ArrayLike) -> Any:
    """Return log(1 + x), accurate near 0; -infinity at -1 and NaN below.

    Examples
    --------
    >>> float(log1p(0.0))
    0.0
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log1p(x)


# Adding 1.5 * 2**52 (2**23) rounds a number to an integer and leaves that integer in the low bits; 1023 (127) more make
# it a biased exponent, which a shift puts in its place, so that the bits are 2**k. Where k can lie below the smallest
# exponent, 64 (32) more keep it in range, and a multiplication by 2**-64 (2**-32) afterwards rounds once, correctly.
_MAGIC64, _MAGIC32 = 6755399441055744.0, np.float32(12582912.0)
_ROUND64, _ROUND32 = _MAGIC64 + 1023.0, np.float32(_MAGIC32 + 127)
_LIFTED64, _LIFTED32 = _ROUND64 + 64.0, np.float32(_ROUND32 + 32)


@inline
def _exp_parts64(x, magic):
    """Write x = k log 2 + r; return k in the low bits of a float64 (as `magic` says) and exp(r) - 1."""
    shifted = x * 1.4426950408889634 + magic
    n = shifted - magic
    r = x - n * 6.93147180369123816490e-01
    r = r - n * 1.90821492927058770002e-10
    p = 2.5100424157005067e-08
    p = p * r + 2.7620138719733994e-07
    p = p * r + 2.7557268378684192e-06
    p = p * r + 2.480152119021773e-05
    p = p * r + 1.9841269863105968e-04
    p = p * r + 1.3888888917281794e-03
    p = p * r + 8.333333333330051e-03
    p = p * r + 4.166666666662399e-02
    p = p * r + 1.6666666666666669e-01
    p = p * r + 5.000000000000001e-01
    return shifted, p * (r * r) + r


@inline
def _power64(shifted):
    """Return the number whose exponent's bits are the low bits of `shifted`."""
    return np.int64(np.float64(shifted).view(np.int64) << np.int64(52)).view(np.float64)


@inline
def _exp64(x):
    x = -746.0 if x < -746.0 else x  # NaN compares false and stays
    x = 710.0 if x > 710.0 else x
    shifted, q = _exp_parts64(x, _MAGIC64)
    k = np.float64(shifted).view(np.int64) - np.int64(0x4338000000000000)
    half = k >> np.int64(1)  # two factors, so that 2**1024 and 2**-1074 are reached without overflow
    s = np.int64((half + np.int64(1023)) << np.int64(52)).view(np.float64)
    return (s * q + s) * np.int64((k - half + np.int64(1023)) << np.int64(52)).view(np.float64)


@inline
def _expit64(x):
    y = -abs(x)
    y = -746.0 if y < -746.0 else y
    shifted, q = _exp_parts64(y, _LIFTED64)
    s = _power64(shifted)
    e = (s * q + s) * 5.421010862427522e-20  # 2**-64
    # e / (1 + e) = e - e h and 1 / (1 + e) = 1 - h, in which the rounding errors of the quotient h weigh less.
    h = e / (1.0 + e)
    a = 1.0 if x >= 0.0 else e
    return a - a * h


@inline
def _tanh64(x):
    y = -2.0 * abs(x)
    y = -40.0 if y < -40.0 else y  # beyond, tanh rounds to 1
    shifted, q = _exp_parts64(y, _ROUND64)
    s = _power64(shifted)
    # c = (1 - exp(y)) / 2 without cancellation, and what its sum lost; then tanh |x| = c / (1 - c) = c + c h, as above.
    s = 0.5 * s
    c = (0.5 - s) - s * q
    low = ((0.5 - s) - c) - s * q
    h = c / ((0.5 + s) + s * q)
    t = c + (c * h + (low * h + low))
    return -t if x < 0.0 else t


@inline
def _log1p64(x):
    u = 1.0 + x
    bits = np.float64(u).view(np.int64) - np.int64(0x3FE6A09E667F3BCD)  # sqrt(1/2)
    k = bits >> np.int64(52)
    n = np.float64(k)
    # m = u / 2**k in [sqrt(1/2), sqrt(2)); what the sum 1 + x lost, relative to u, is added to the logarithm.
    f = np.int64((bits & np.int64(0xFFFFFFFFFFFFF)) + np.int64(0x3FE6A09E667F3BCD)).view(np.float64) - 1.0
    c = (x - (u - 1.0) if x < 1.0 else 1.0 - (u - x)) / u
    s = f / (2.0 + f)
    z = s * s
    p = 0.14616451024414694
    p = p * z + 0.15331721472482764
    p = p * z + 0.18182889129971477
    p = p * z + 0.22222211134711957
    p = p * z + 0.28571428625976198
    p = p * z + 0.399999999998995
    p = p * z + 0.666666666666667
    h = 0.5 * f * f
    result = n * 6.93147180369123816490e-01 - ((h - (s * (h + z * p) + (n * 1.90821492927058770002e-10 + c))) - f)
    result = -np.inf if x == -1.0 else result
    result = x if x == np.inf else result
    return np.nan if x < -1.0 else result


@inline
def _exp_parts32(x, magic):
    shifted = x * np.float32(1.44269504) + magic
    n = shifted - magic
    r = x - n * np.float32(0.693359375)
    r = r - n * np.float32(-2.12194440e-4)
    p = np.float32(1.3926213466332444e-03)
    p = p * r + np.float32(8.363202971575855e-03)
    p = p * r + np.float32(4.166655443768594e-02)
    p = p * r + np.float32(1.6666576845993977e-01)
    p = p * r + np.float32(0.5)
    return shifted, p * (r * r) + r


@inline
def _power32(shifted):
    return np.int32(np.float32(shifted).view(np.int32) << np.int32(23)).view(np.float32)


@inline
def _exp32(x):
    x = np.float32(-104.0) if x < np.float32(-104.0) else x
    x = np.float32(89.0) if x > np.float32(89.0) else x
    shifted, q = _exp_parts32(x, _MAGIC32)
    k = np.float32(shifted).view(np.int32) - np.int32(0x4B400000)
    half = np.int32(k >> np.int32(1))
    s = np.int32((half + np.int32(127)) << np.int32(23)).view(np.float32)
    return (s * q + s) * np.int32((k - half + np.int32(127)) << np.int32(23)).view(np.float32)


@inline
def _expit32(x):
    one = np.float32(1.0)
    y = -abs(x)
    y = np.float32(-104.0) if y < np.float32(-104.0) else y
    shifted, q = _exp_parts32(y, _LIFTED32)
    s = _power32(shifted)
    e = (s * q + s) * np.float32(2.3283064365386963e-10)  # 2**-32
    h = e / (one + e)
    a = one if x >= np.float32(0.0) else e
    return a - a * h


@inline
def _tanh32(x):
    y = np.float32(-2.0) * abs(x)
    y = np.float32(-20.0) if y < np.float32(-20.0) else y
    shifted, q = _exp_parts32(y, _ROUND32)
    s = _power32(shifted)
    half = np.float32(0.5)
    s = half * s
    c = (half - s) - s * q
    low = ((half - s) - c) - s * q
    h = c / ((half + s) + s * q)
    t = c + (c * h + low)
    return -t if x < np.float32(0.0) else t


@inline
def _log1p32(x):
    one = np.float32(1.0)
    u = one + x
    bits = np.float32(u).view(np.int32) - np.int32(0x3F3504F3)
    k = np.int32(bits >> np.int32(23))
    n = np.float32(k)
    f = np.int32((bits & np.int32(0x7FFFFF)) + np.int32(0x3F3504F3)).view(np.float32) - one
    c = (x - (u - one) if x < one else one - (u - x)) / u
    s = f / (np.float32(2.0) + f)
    z = s * s
    p = np.float32(0.23330468349114958975)
    p = p * z + np.float32(0.28550820757656321793)
    p = p * z + np.float32(0.40000121840663126938)
    p = p * z + np.float32(0.66666666554493945164)
    h = np.float32(0.5) * f * f
    low = n * np.float32(-2.12194440e-4) + c
    result = n * np.float32(0.693359375) - ((h - (s * (h + z * p) + low)) - f)
    result = np.float32(-np.inf) if x == -one else result
    result = x if x == np.float32(np.inf) else result
    return np.float32(np.nan) if x < -one else result


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


_register(exp, _exp64, _exp32)
_register(expit, _expit64, _expit32)
_register(tanh, _tanh64, _tanh32)
_register(log1p, _log1p64, _log1p32)
