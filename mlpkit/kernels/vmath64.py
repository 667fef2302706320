"""What compiled code runs for mlpkit.vmath in float64: branch-free, so that a loop of it becomes vector code.

vmath.py has the methods; the tricks with bits are these. Adding 1.5 * 2**52 to a number rounds it to an integer and
leaves that integer in the low bits. 1023 more make it a biased exponent, which a shift puts in its place, so that the
bits are 2**k. Where k can lie below the smallest exponent, 64 more keep it in range, and a multiplication by 2**-64
afterwards rounds once, correctly.

Comparisons are written so that NaN stays what it is. Parenthesised sums keep what their first addition loses; the
flag "reassoc", which would cancel them, must never reach this file.
"""

from __future__ import annotations

import numpy as np

from mlpkit.kernels.jit import inline

_MAGIC = 6755399441055744.0
_ROUND = _MAGIC + 1023.0
_LIFTED = _ROUND + 64.0
_LOWER = 5.421010862427522e-20  # 2**-64

_LOG2_HIGH, _LOG2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_SQRT_HALF = 0x3FE6A09E667F3BCD  # bits

# pi / 2, its first 99 bits in three parts whose products with up to 20 bits are exact.
_TURN1, _TURN2, _TURN3, _TURN4 = 1.5707963267341256, 6.077100506303966e-11, 2.0222662487111665e-21, 8.4784276603689e-32


@inline
def _power(shifted):
    """Return the number whose exponent's bits are the low bits of `shifted`."""
    return np.int64(np.float64(shifted).view(np.int64) << np.int64(52)).view(np.float64)


@inline
def _exp_polynomial(r):
    """Return (exp(r) - 1 - r) / r**2."""
    p = 2.5100424157005067e-08
    p = p * r + 2.7620138719733994e-07
    p = p * r + 2.7557268378684192e-06
    p = p * r + 2.480152119021773e-05
    p = p * r + 1.9841269863105968e-04
    p = p * r + 1.3888888917281794e-03
    p = p * r + 8.333333333330051e-03
    p = p * r + 4.166666666662399e-02
    p = p * r + 1.6666666666666669e-01
    return p * r + 5.000000000000001e-01


@inline
def _exp_parts(x, magic):
    """Write x = k log 2 + r; return k in the low bits of a float64 (as `magic` says) and exp(r) - 1."""
    shifted = x * 1.4426950408889634 + magic
    n = shifted - magic
    r = x - n * _LOG2_HIGH
    r = r - n * _LOG2_LOW
    return shifted, _exp_polynomial(r) * (r * r) + r


@inline
def _exp(x):
    x = -746.0 if x < -746.0 else x
    x = 710.0 if x > 710.0 else x
    shifted, q = _exp_parts(x, _MAGIC)
    k = np.float64(shifted).view(np.int64) - np.int64(0x4338000000000000)
    half = k >> np.int64(1)  # two factors, so that 2**1024 and 2**-1074 are reached without overflow
    s = np.int64((half + np.int64(1023)) << np.int64(52)).view(np.float64)
    return (s * q + s) * np.int64((k - half + np.int64(1023)) << np.int64(52)).view(np.float64)


@inline
def _expm1(x):
    y = -40.0 if x < -40.0 else x  # below, expm1 rounds to -1
    y = 710.0 if y > 710.0 else y
    shifted = y * 1.4426950408889634 + (_ROUND - 1.0)
    n = shifted - (_ROUND - 1.0)
    high = y - n * _LOG2_HIGH
    r = high - n * _LOG2_LOW
    lost = (high - r) - n * _LOG2_LOW
    # Half of 2**k (1 + r + ...) - 1, so that 2**1024 is reached: s r is exact, and what its sum loses is kept.
    s = _power(shifted)
    base = s - 0.5
    top = base + s * r
    low = (base - top) + s * r
    result = top + (s * (_exp_polynomial(r) * (r * r) + lost) + low)
    return x if abs(x) < 1e-30 else result + result


@inline
def _expit(x):
    y = -abs(x)
    y = -746.0 if y < -746.0 else y
    shifted, q = _exp_parts(y, _LIFTED)
    s = _power(shifted)
    e = (s * q + s) * _LOWER
    # e / (1 + e) = e - e h and 1 / (1 + e) = 1 - h, in which the rounding errors of the quotient h weigh less.
    h = e / (1.0 + e)
    a = 1.0 if x >= 0.0 else e
    return a - a * h


@inline
def _tanh(x):
    y = -2.0 * abs(x)
    y = -40.0 if y < -40.0 else y  # beyond, tanh rounds to 1
    shifted, q = _exp_parts(y, _ROUND)
    s = _power(shifted)
    # c = (1 - exp(y)) / 2 without cancellation, and what its sum lost; then tanh |x| = c / (1 - c) = c + c h, as above.
    s = 0.5 * s
    c = (0.5 - s) - s * q
    low = ((0.5 - s) - c) - s * q
    h = c / ((0.5 + s) + s * q)
    t = c + (c * h + (low * (h + h) + low))
    return -t if x < 0.0 else t


@inline
def _logarithm_parts(u):
    """Write u = 2**k (1 + f), 1 + f in [sqrt(1/2), sqrt(2)); return k and f."""
    bits = np.float64(u).view(np.int64) - np.int64(_SQRT_HALF)
    k = np.int64((bits >> np.int64(52)) + np.int64(0x4338000000000000)).view(np.float64) - _MAGIC
    return k, np.int64((bits & np.int64(0xFFFFFFFFFFFFF)) + np.int64(_SQRT_HALF)).view(np.float64) - 1.0


@inline
def _logarithm(k, f, low):
    """Return k log 2 + log(1 + f) + low."""
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
    return k * _LOG2_HIGH - ((h - (s * (h + z * p) + (k * _LOG2_LOW + low))) - f)


@inline
def _log(x):
    subnormal = x < 2.2250738585072014e-308
    k, f = _logarithm_parts(x * 18014398509481984.0 if subnormal else x)  # 2**54
    result = _logarithm(k - 54.0 if subnormal else k, f, 0.0)
    result = result if x < np.inf else x
    result = -np.inf if x == 0.0 else result
    return np.nan if x < 0.0 else result


@inline
def _log1p(x):
    u = 1.0 + x
    k, f = _logarithm_parts(u)
    # What the sum 1 + x lost, relative to u = 2**k (1 + f), is added to the logarithm. 2**(1 - k) never overflows, and
    # 1 - f + f**2 is near enough to 1 / (1 + f).
    b = u - 1.0
    lost = (x - b) + (1.0 - (u - b))
    c = lost * (0.5 * _power((_MAGIC + 1024.0) - k)) * (1.0 - f + f * f)
    result = _logarithm(k, f, c)
    result = result if x < np.inf else x
    result = -np.inf if x == -1.0 else result
    return np.nan if x < -1.0 else result


@inline
def _softplus(x):
    y = -abs(x)
    y = -746.0 if y < -746.0 else y
    shifted, q = _exp_parts(y, _LIFTED)
    s = _power(shifted)
    e = s * q + s
    low = ((s - e) + s * q) * _LOWER
    e = e * _LOWER
    # log(1 + e) for e up to 1 as in `_logarithm`, without a power of 2; 1 - e + e**2 / 2 is near enough to 1 / (1 + e).
    s = e / (2.0 + e)
    z = s * s
    p = 0.17018618900381843
    p = p * z + 0.08340079223330452
    p = p * z + 0.12106090960675175
    p = p * z + 0.13300973061784124
    p = p * z + 0.15386559955234783
    p = p * z + 0.18181743923949134
    p = p * z + 0.22222223969736565
    p = p * z + 0.2857142854785432
    p = p * z + 0.4000000000015723
    p = p * z + 0.6666666666666631
    h = 0.5 * e * e
    result = e - (h - (s * (h + z * p) + low * (1.0 - e + h)))
    return (x if x > 0.0 else 0.0) + result


@inline
def _erf(x):
    a = abs(x)
    z = a * a
    p = -7.779462971761597e-10
    p = p * z + 1.3710988704190523e-08
    p = p * z - 1.6206318752969208e-07
    p = p * z + 1.6447132699786621e-06
    p = p * z - 1.4924712439534814e-05
    p = p * z + 1.205529358693695e-04
    p = p * z - 8.548325929766244e-04
    p = p * z + 5.223977606130842e-03
    p = p * z - 2.6866170643113415e-02
    p = p * z + 1.12837916709442e-01
    p = p * z - 3.761263890318352e-01
    p = p * z + 1.2837916709551256e-01
    near = x + x * p
    t = a - 1.0
    t = 4.95 if t > 4.95 else t  # beyond, erf rounds to 1
    p = -4.865036240618232e-12
    p = p * t + 1.1932656533723923e-10
    p = p * t - 1.3191123124885007e-09
    p = p * t + 8.518838382207717e-09
    p = p * t - 3.3391541625623585e-08
    p = p * t + 5.80123807290899e-08
    p = p * t + 2.048104781493809e-07
    p = p * t - 2.131938078655331e-06
    p = p * t + 9.671375759863211e-06
    p = p * t - 2.7198972496872493e-05
    p = p * t + 2.629632740521901e-05
    p = p * t + 2.3731643431393248e-04
    p = p * t - 1.9779012156143313e-03
    p = p * t + 1.0033825179083179e-02
    p = p * t - 4.15610980250766e-02
    p = p * t - 8.431072563594127e-01
    p = p * t - 2.6389675142347757e00
    p = p * t - 1.8496055099332482e00
    shifted, q = _exp_parts(p, _ROUND)
    s = _power(shifted)
    far = (1.0 - s) - s * q
    far = -far if x < 0.0 else far
    return near if a < 1.0 else far


@inline
def _head(a):
    """Return the first 26 bits of a number, whose square is exact."""
    return np.int64(np.float64(a).view(np.int64) & np.int64(-0x8000000)).view(np.float64)


@inline
def _gaussian_tail(square, rest, u, low, scale):
    """Return scale exp(-(square + rest)) exp(v**2) erfc(v), v = u + low from 0 to 27.3; scale is 2**-64 or less."""
    shifted = (square + rest) * -1.4426950408889634 + _LIFTED
    n = shifted - _LIFTED
    high = -square - n * _LOG2_HIGH
    c = n * _LOG2_LOW + rest
    r = high - c
    q = _exp_polynomial(r) * (r * r) + r
    s = _power(shifted)
    v = u + 2.0
    d = 1.0 / v
    t = 1.0 - 4.0 * d
    p = -5.994347303262311e-09
    p = p * t - 1.4979747831197512e-08
    p = p * t + 2.4716560620892105e-08
    p = p * t + 1.1223350867474443e-07
    p = p * t + 4.464902733958911e-08
    p = p * t - 3.2049068350971597e-07
    p = p * t - 6.157910461737302e-07
    p = p * t - 4.4190712465347064e-09
    p = p * t + 2.0299840842079486e-06
    p = p * t + 3.6484623677712073e-06
    p = p * t - 1.1378491789702752e-06
    p = p * t - 1.6122891342636828e-05
    p = p * t - 2.1692468841162855e-05
    p = p * t + 3.4149415258488716e-05
    p = p * t + 1.444699683530941e-04
    p = p * t + 3.437135145833634e-05
    p = p * t - 6.630734001622893e-04
    p = p * t - 8.372960542523786e-04
    p = p * t + 3.0906120507371458e-03
    p = p * t + 6.479185067308755e-03
    p = p * t - 2.151066188913396e-02
    p = p * t - 3.644223150686919e-02
    p = p * t + 2.79472092556049e-01
    p = p * t - 6.871606844138106e-01
    top = p * t + 1.021582705242023e00
    g = top * d
    # What d, r and g lack; the first two relative to the result: top * d goes about as d to the power of 1 + 2.5 d.
    error = ((high - r) - c) + ((1.0 - d * v) - d * ((u - (v - 2.0)) + low)) * (1.0 + 2.5 * d)
    lost = (((1.021582705242023e00 - top) + p * t) + ((1.0 - t) - 4.0 * d) * p) * d
    return (s * (g + (g * (q + (error + error * q)) + (lost + lost * q)))) * scale


@inline
def _erfc(x):
    a = abs(x)
    a = 27.3 if a > 27.3 else a  # beyond, erfc(a) rounds to 0
    head = _head(a)
    y = _gaussian_tail(head * head, (a - head) * (a + head), a, 0.0, _LOWER)
    return 2.0 - y if x < 0.0 else y


@inline
def _ndtr(x):
    a = abs(x)
    a = 38.6 if a > 38.6 else a
    head = _head(a)
    tail = a - head
    # a / sqrt(2) = u + low: sqrt(1/2) is split so that the first product is exact.
    top = head * 0.7071067690849304
    low = head * 1.210161710447897e-08 + tail * 0.7071067811865476
    u = top + low
    low = (top - u) + low
    y = _gaussian_tail(0.5 * head * head, 0.5 * tail * (a + head), u, low, 0.5 * _LOWER)
    return 1.0 - y if x > 0.0 else y


@inline
def _quarter_turns(x):
    """Write x = k pi / 2 + r + lost; return k in the low bits of an integer, r, and what r lost in rounding."""
    x = 0.0 * x if abs(x) > 2251799813685248.0 else x  # 2**51; infinity gives NaN
    shifted = x * 0.6366197723675814 + _MAGIC
    n = shifted - _MAGIC
    a = x - n * _TURN1
    b = a - n * _TURN2
    low = (a - b) - n * _TURN2
    c = b - n * _TURN3
    low = low + (((b - c) - n * _TURN3) - n * _TURN4)
    r = c + low
    lost = (c - r) + low
    # Where n pi / 2 was not exact, r may lie far outside: it stays where the polynomials are sines and cosines.
    r = 0.8 if r > 0.8 else r
    r = -0.8 if r < -0.8 else r
    return np.float64(shifted).view(np.int64), r, lost


@inline
def _sine_or_cosine(turns, r, lost):
    """Return the sine of (turns mod 4) pi / 2 + r + lost."""
    z = r * r
    p = 1.5896824782669668e-10
    p = p * z - 2.5050758601868405e-08
    p = p * z + 2.7557313694918656e-06
    p = p * z - 1.9841269829816134e-04
    p = p * z + 8.333333333322424e-03
    p = p * z - 1.6666666666666632e-01
    h = 0.5 * z
    sine = r + (r * z * p + (lost - h * lost))
    p = -1.135966774003231e-11
    p = p * z + 2.0875723654368462e-09
    p = p * z - 2.7557314355133596e-07
    p = p * z + 2.4801587289492013e-05
    p = p * z - 1.388888888887414e-03
    p = p * z + 4.16666666666666e-02
    w = 1.0 - h
    cosine = w + (((1.0 - w) - h) + (z * z * p - r * lost))
    result = sine if turns & np.int64(1) == np.int64(0) else cosine
    return result if turns & np.int64(2) == np.int64(0) else -result


@inline
def _sin(x):
    turns, r, lost = _quarter_turns(x)
    return _sine_or_cosine(turns, r, lost)


@inline
def _cos(x):
    turns, r, lost = _quarter_turns(x)
    return _sine_or_cosine(turns + np.int64(1), r, lost)
