"""What compiled code runs for mlpkit.vmath in float32: as vmath64.py, whose comments hold here too."""

from __future__ import annotations

import numpy as np

from mlpkit.kernels.jit import inline

_ZERO, _HALF, _ONE, _TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_INF, _NAN = np.float32(np.inf), np.float32(np.nan)

# As in float64, with 1.5 * 2**23, 127 and 2**-32.
_MAGIC = np.float32(12582912.0)
_ROUND = np.float32(_MAGIC + 127)
_LIFTED = np.float32(_ROUND + 32)
_LOWER = np.float32(2.3283064365386963e-10)

_LOG2E = np.float32(1.44269504)
_LOG2_HIGH, _LOG2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_SQRT_HALF = 0x3F3504F3

# pi / 2 in float64, its first 28 bits and the rest.
_MAGIC64 = 6755399441055744.0
_TURN1, _TURN2 = 1.570796325802803, 9.920935796805404e-10
_EDGE = np.float32(0.8)


@inline
def _power(shifted):
    return np.int32(np.float32(shifted).view(np.int32) << np.int32(23)).view(np.float32)


@inline
def _exp_polynomial(r):
    p = np.float32(1.3926213466332444e-03)
    p = p * r + np.float32(8.363202971575855e-03)
    p = p * r + np.float32(4.166655443768594e-02)
    p = p * r + np.float32(1.6666576845993977e-01)
    return p * r + _HALF


@inline
def _exp_parts(x, magic):
    shifted = x * _LOG2E + magic
    n = shifted - magic
    r = x - n * _LOG2_HIGH
    r = r - n * _LOG2_LOW
    return shifted, _exp_polynomial(r) * (r * r) + r


@inline
def _exp(x):
    x = np.float32(-104.0) if x < np.float32(-104.0) else x
    x = np.float32(89.0) if x > np.float32(89.0) else x
    shifted, q = _exp_parts(x, _MAGIC)
    k = np.float32(shifted).view(np.int32) - np.int32(0x4B400000)
    half = np.int32(k >> np.int32(1))
    s = np.int32((half + np.int32(127)) << np.int32(23)).view(np.float32)
    return (s * q + s) * np.int32((k - half + np.int32(127)) << np.int32(23)).view(np.float32)


@inline
def _expm1(x):
    y = np.float32(-20.0) if x < np.float32(-20.0) else x
    y = np.float32(89.0) if y > np.float32(89.0) else y
    shifted = y * _LOG2E + (_ROUND - _ONE)
    n = shifted - (_ROUND - _ONE)
    high = y - n * _LOG2_HIGH
    r = high - n * _LOG2_LOW
    lost = (high - r) - n * _LOG2_LOW
    s = _power(shifted)
    base = s - _HALF
    top = base + s * r
    low = (base - top) + s * r
    result = top + (s * (_exp_polynomial(r) * (r * r) + lost) + low)
    return x if abs(x) < np.float32(1e-15) else result + result


@inline
def _expit(x):
    y = -abs(x)
    y = np.float32(-104.0) if y < np.float32(-104.0) else y
    shifted, q = _exp_parts(y, _LIFTED)
    s = _power(shifted)
    e = (s * q + s) * _LOWER
    h = e / (_ONE + e)
    a = _ONE if x >= _ZERO else e
    return a - a * h


@inline
def _tanh(x):
    y = -_TWO * abs(x)
    y = np.float32(-20.0) if y < np.float32(-20.0) else y
    shifted, q = _exp_parts(y, _ROUND)
    s = _power(shifted)
    s = _HALF * s
    c = (_HALF - s) - s * q
    low = ((_HALF - s) - c) - s * q
    h = c / ((_HALF + s) + s * q)
    t = c + (c * h + (low * (h + h) + low))
    return -t if x < _ZERO else t


@inline
def _logarithm_parts(u):
    bits = np.float32(u).view(np.int32) - np.int32(_SQRT_HALF)
    k = np.float32(np.int32(bits >> np.int32(23)))
    return k, np.int32((bits & np.int32(0x7FFFFF)) + np.int32(_SQRT_HALF)).view(np.float32) - _ONE


@inline
def _logarithm(k, f, low):
    s = f / (_TWO + f)
    z = s * s
    p = np.float32(0.23330468349114958975)
    p = p * z + np.float32(0.28550820757656321793)
    p = p * z + np.float32(0.40000121840663126938)
    p = p * z + np.float32(0.66666666554493945164)
    h = _HALF * f * f
    return k * _LOG2_HIGH - ((h - (s * (h + z * p) + (k * _LOG2_LOW + low))) - f)


@inline
def _log(x):
    subnormal = x < np.float32(1.17549435e-38)
    k, f = _logarithm_parts(x * np.float32(33554432.0) if subnormal else x)  # 2**25
    result = _logarithm(k - np.float32(25.0) if subnormal else k, f, _ZERO)
    result = result if x < _INF else x
    result = -_INF if x == _ZERO else result
    return _NAN if x < _ZERO else result


@inline
def _log1p(x):
    u = _ONE + x
    k, f = _logarithm_parts(u)
    b = u - _ONE
    lost = (x - b) + (_ONE - (u - b))
    c = lost * (_HALF * _power(np.float32(_MAGIC + 128) - k)) * (_ONE - f + f * f)
    result = _logarithm(k, f, c)
    result = result if x < _INF else x
    result = -_INF if x == -_ONE else result
    return _NAN if x < -_ONE else result


@inline
def _softplus(x):
    y = -abs(x)
    y = np.float32(-104.0) if y < np.float32(-104.0) else y
    shifted, q = _exp_parts(y, _LIFTED)
    s = _power(shifted)
    e = s * q + s
    low = ((s - e) + s * q) * _LOWER
    e = e * _LOWER
    s = e / (_TWO + e)
    z = s * s
    p = np.float32(2.8024346e-01)
    p = p * z + np.float32(2.7999198e-01)
    p = p * z + np.float32(4.0021694e-01)
    p = p * z + np.float32(6.666641e-01)
    h = _HALF * e * e
    result = e - (h - (s * (h + z * p) + low * (_ONE - e + h)))
    return (x if x > _ZERO else _ZERO) + result


@inline
def _erf(x):
    a = abs(x)
    z = a * a
    p = np.float32(7.85385e-05)
    p = p * z + np.float32(-8.0102024e-04)
    p = p * z + np.float32(5.1883305e-03)
    p = p * z + np.float32(-2.6853815e-02)
    p = p * z + np.float32(1.12835854e-01)
    p = p * z + np.float32(-3.7612626e-01)
    p = p * z + np.float32(1.2837917e-01)
    near = x + x * p
    t = a - _ONE
    t = np.float32(2.95) if t > np.float32(2.95) else t
    p = np.float32(1.8557213e-04)
    p = p * t + np.float32(-1.8261571e-03)
    p = p * t + np.float32(9.890885e-03)
    p = p * t + np.float32(-4.1500688e-02)
    p = p * t + np.float32(-8.431183e-01)
    p = p * t + np.float32(-2.6389668e00)
    p = p * t + np.float32(-1.8496056e00)
    shifted, q = _exp_parts(p, _ROUND)
    s = _power(shifted)
    far = (_ONE - s) - s * q
    far = -far if x < _ZERO else far
    return near if a < _ONE else far


@inline
def _head(a):
    """Return the first 12 bits of a number, whose square is exact."""
    return np.int32(np.float32(a).view(np.int32) & np.int32(-0x1000)).view(np.float32)


@inline
def _gaussian_tail(square, rest, u, low, scale):
    """Return scale exp(-(square + rest)) exp(v**2) erfc(v), v = u + low from 0 to 10.1; scale is 2**-32 or less."""
    shifted = (square + rest) * -_LOG2E + _LIFTED
    n = shifted - _LIFTED
    high = -square - n * _LOG2_HIGH
    c = n * _LOG2_LOW + rest
    r = high - c
    q = _exp_polynomial(r) * (r * r) + r
    s = _power(shifted)
    v = u + _TWO
    d = _ONE / v
    t = _ONE - np.float32(4.0) * d
    p = np.float32(6.948072e-05)
    p = p * t + np.float32(4.694051e-05)
    p = p * t + np.float32(-5.925607e-04)
    p = p * t + np.float32(-8.3206303e-04)
    p = p * t + np.float32(3.0626047e-03)
    p = p * t + np.float32(6.4758784e-03)
    p = p * t + np.float32(-2.1505723e-02)
    p = p * t + np.float32(-3.6441784e-02)
    p = p * t + np.float32(2.7947178e-01)
    p = p * t + np.float32(-6.871607e-01)
    top = p * t + np.float32(1.0215827e00)
    g = top * d
    error = ((high - r) - c) + ((_ONE - d * v) - d * ((u - (v - _TWO)) + low)) * (_ONE + np.float32(2.5) * d)
    lost = (((np.float32(1.0215827e00) - top) + p * t) + ((_ONE - t) - np.float32(4.0) * d) * p) * d
    return (s * (g + (g * (q + (error + error * q)) + (lost + lost * q)))) * scale


@inline
def _erfc(x):
    a = abs(x)
    a = np.float32(10.1) if a > np.float32(10.1) else a
    head = _head(a)
    y = _gaussian_tail(head * head, (a - head) * (a + head), a, _ZERO, _LOWER)
    return _TWO - y if x < _ZERO else y


@inline
def _ndtr(x):
    a = abs(x)
    a = np.float32(14.28) if a > np.float32(14.28) else a
    head = _head(a)
    tail = a - head
    top = head * np.float32(0.70703125)
    low = head * np.float32(7.5531185e-05) + tail * np.float32(0.70710678)
    u = top + low
    low = (top - u) + low
    y = _gaussian_tail(_HALF * head * head, _HALF * tail * (a + head), u, low, _HALF * _LOWER)
    return _ONE - y if x > _ZERO else y


@inline
def _quarter_turns(x):
    """Write x = k pi / 2 + r, in float64, so that nothing is lost of r; return k in an integer's low bits, and r."""
    y = np.float64(x)
    y = 0.0 * y if abs(y) > 2251799813685248.0 else y
    shifted = y * 0.6366197723675814 + _MAGIC64
    n = shifted - _MAGIC64
    r = np.float32((y - n * _TURN1) - n * _TURN2)
    r = _EDGE if r > _EDGE else r
    r = -_EDGE if r < -_EDGE else r
    return np.int32(np.float64(shifted).view(np.int64)), r


@inline
def _sine_or_cosine(turns, r):
    z = r * r
    p = np.float32(-1.9517286e-04)
    p = p * z + np.float32(8.332178e-03)
    p = p * z + np.float32(-1.6666655e-01)
    sine = r + r * z * p
    p = np.float32(2.4438494e-05)
    p = p * z + np.float32(-1.3887368e-03)
    p = p * z + np.float32(4.1666646e-02)
    h = _HALF * z
    w = _ONE - h
    cosine = w + (((_ONE - w) - h) + z * z * p)
    result = sine if turns & np.int32(1) == np.int32(0) else cosine
    return result if turns & np.int32(2) == np.int32(0) else -result


@inline
def _sin(x):
    turns, r = _quarter_turns(x)
    return _sine_or_cosine(turns, r)


@inline
def _cos(x):
    turns, r = _quarter_turns(x)
    return _sine_or_cosine(np.int32(turns + np.int32(1)), r)
