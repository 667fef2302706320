"""How far the functions of mlpkit.vmath are from the truth, in units in the last place, and where to look.

The truth is long double for float64; for float32, in compiled code, the C library's float64 functions.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

from mlpkit import vmath
from mlpkit.kernels.jit import REDUCTION

DTYPES = (np.float64, np.float32)
NAMES = tuple(vmath.__all__)
TRIGONOMETRIC = ("sin", "cos")
GAUSSIAN = ("erf", "erfc", "ndtr")

# Long double has 64 or 113 bits where processors or compilers provide for it, and is then as good as exact. Elsewhere
# (Windows, Apple's ARM) it is float64, whose functions in the C library are themselves off by up to 1 ulp.
LONG_DOUBLE_IS_LONGER = np.finfo(np.longdouble).nmant >= 63
LIMIT_NUMPY = 4.0  # what NumPy promises of its own vector functions
LIMIT_SCIPY = 12.0  # of erfc and ndtr, measured: 9.2
LARGEST = {np.float64: 2.0**20, np.float32: 2.0**25}  # argument of sine and cosine with which they are so accurate

# Where random search has found each function at its worst, and the worst number in float64.
WORST = {
    "cos": (14.75, 15.0, 14.933168492268717),
    "erf": (0.956, 0.975, 0.9665318321887898),
    "erfc": (13.2, 13.4, 13.307375721725249),
    "exp": (-4.6, -4.4, -4.487895706056088),
    "expit": (-1.15, -1.09, -1.1456855958200427),
    "expm1": (0.335, 0.35, 0.3465902580832476),
    "log": (0.705, 0.715, 0.7068745639786512),
    "log1p": (0.405, 0.415, 0.41253602011903945),
    "ndtr": (-18.5, -18.2, -18.37249751627163),
    "sin": (-0.81, -0.78, -0.7896297400236463),
    "softplus": (0.025, 0.055, 0.028800475964304635),
    "tanh": (-0.17, -0.16, -0.16661002250849788),
}


def limit(name, dtype):
    """Return how many units in the last place the compiled function may be off."""
    reference = 0.0
    if dtype == np.float64 and not LONG_DOUBLE_IS_LONGER:
        reference = 6.0 if name in GAUSSIAN else 1.0
    return reference + (4.0 if name in ("erfc", "ndtr") else 2.0)


def exact(name, x):
    """Return the function of x in long double."""
    with np.errstate(all="ignore"):  # to convert a signalling NaN is an invalid operation too
        x = x.astype(np.longdouble)
        if name == "expit":
            e = np.exp(-np.abs(x))
            return np.where(np.signbit(x), e, 1) / (1 + e)
        if name == "softplus":
            return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
        if name == "erf":
            return np.copysign(erf_and_erfc(np.abs(x), 1)[0], x)
        if name == "erfc":
            small, large = erf_and_erfc(np.abs(x), 1)
            return np.where(x < 0, 1 + small, large)
        if name == "ndtr":
            small, large = erf_and_erfc(np.abs(x), 2)
            return np.where(x > 0, 1 + small, large) / 2
        return getattr(np, name)(x)


def erf_and_erfc(x, half):
    """Return erf and erfc of x / sqrt(half), x >= 0 in long double: by a series or a continued fraction."""
    x = np.minimum(x, 40)
    head = x.astype(np.float32).astype(x.dtype)  # its square is exact
    gaussian = np.exp(-head * head / half) * np.exp(-(x - head) * (x + head) / half)
    gaussian /= np.sqrt(np.arccos(np.longdouble(-1)))  # pi
    x = x / np.sqrt(np.longdouble(half))
    near = np.minimum(x, 2)
    term = total = 2 * near
    for n in range(1, 70):
        term = term * (2 * near * near) / (2 * n + 1)
        total = total + term
    far = fraction = np.maximum(x, 2)
    for n in range(200, 0, -1):
        fraction = far + np.longdouble(n) / 2 / fraction
    total, fraction = gaussian * total, gaussian / fraction
    return np.where(x < 2, total, 1 - fraction), np.where(x < 2, 1 - total, fraction)


def errors_in_ulp(found, truth):
    """Return |found - truth| in units in the last place that numbers of found's dtype have at the truth.

    0 where both are NaN or the same infinity, or where the truth is too large for the dtype and found is infinite;
    infinity where one is NaN and the other not, or a limit is missed.
    """
    info = np.finfo(found.dtype)
    _, exponent = np.frexp(np.where(np.isfinite(truth), truth, 1))
    ulp = np.ldexp(np.longdouble(1), np.maximum(exponent - 1, info.minexp) - info.nmant)
    beyond = np.ldexp(np.longdouble(1), info.maxexp)  # what an infinity was rounded from, at least
    with np.errstate(invalid="ignore"):
        near = np.where(np.isinf(found), np.copysign(beyond, found), found.astype(np.longdouble))
        error = np.abs(near - truth) / ulp
        overflows = np.isinf(found) & (np.copysign(1, found) * truth >= beyond)
        met = (found == truth) | (np.isnan(found) & np.isnan(truth)) | overflows
    return np.where(met, 0, np.where(np.isnan(error), np.inf, error))


def compiled(name, **options):
    """Compile the function over an array, as a tile function's loop runs it."""
    function = getattr(vmath, name)

    @numba.njit(error_model="numpy", **options)
    def over(x):
        y = np.empty_like(x)
        for i in range(x.size):
            y[i] = function(x[i])
        return y

    return over


COMPILED = {name: compiled(name) for name in NAMES}
# The loop that sums a loss allows sums to be reordered, which must not reach the functions inside it.
REORDERED = {name: compiled(name, fastmath=set(REDUCTION)) for name in NAMES}


def points(dtype, n, seed=0):
    """Return about 25 n numbers: at every scale, and close together where the functions change their course."""
    rng, info = np.random.default_rng(seed), np.finfo(dtype)
    limit = math.log(info.max)
    scales = [1e-30, 1e-12, 1e-6, 1e-3, 0.1, 1 / 3, 1, 3, 10, 30, 100, limit]
    sets = [rng.uniform(-scale, scale, n) for scale in scales]
    sets += [rng.uniform(-0.6, 0.6, 4 * n)]  # where tanh is worst
    smallest = math.log(info.smallest_subnormal)
    for sign in (-1, 1):
        sets += [sign * np.exp(rng.uniform(smallest, limit, 2 * n))]
    # Close to odd multiples of log(2) / 2, where x / log 2 is rounded up or down; for expit and tanh too.
    odd = rng.integers(-2100, 2100, n) * 2 + 1
    sets += [odd * (math.log(2) / factor) * (1 + info.eps * rng.integers(-8, 9, n)) for factor in (2, 4)]
    # exp and expit overflow, reach the subnormal numbers and vanish; log1p changes its course at sqrt(2) 2**k - 1.
    edges = [limit, -limit, math.log(info.tiny), smallest, smallest - math.log(2)]
    sets += [edge + rng.uniform(-1, 1, n // 4) for edge in edges]
    k = rng.integers(-30, 60, n)
    sets += [2.0**k * math.sqrt(2) * (1 + info.eps * rng.integers(-8, 9, n)) - 1]
    sets += [-1 + np.exp(rng.uniform(math.log(info.eps / 2), 0, n)), -1 + info.eps / 2 * np.arange(64)]
    # Close to multiples of pi / 2; where erf changes its course, and erfc and ndtr vanish.
    sets += [rng.integers(-(2**18), 2**18, n) * (math.pi / 2) * (1 + info.eps * rng.integers(-2, 3, n))]
    edges = [1, math.sqrt(limit), math.sqrt(-smallest), math.sqrt(2 * limit), math.sqrt(-2 * smallest)]
    sets += [sign * edge * rng.uniform(0.98, 1.02, n // 4) for edge in edges for sign in (-1, 1)]
    with np.errstate(over="ignore", under="ignore"):
        return np.concatenate(sets).astype(dtype)


def special(dtype):
    """Return zeros, infinities, NaNs of several payloads, and the ends of the normal and the subnormal numbers."""
    info = np.finfo(dtype)
    tiny = info.smallest_subnormal
    few = np.array(
        [0, tiny, 2 * tiny, info.tiny - tiny, info.tiny, info.eps, info.eps / 2, 1, 2, 1e4, info.max, np.inf], dtype
    )
    few = np.concatenate([few, np.nextafter(few[1:-2], dtype(np.inf)), np.nextafter(few[2:-1], dtype(-np.inf))])
    quiet = np.array([np.nan], dtype).view(f"u{dtype().nbytes}")
    payloads = np.array([0, 1, 12345], quiet.dtype)
    signalling = np.array([np.inf], dtype).view(quiet.dtype) | np.array([1, 12345], quiet.dtype)
    nans = np.concatenate([quiet | payloads, signalling]).view(dtype)
    return np.concatenate([few, -few, nans, np.negative(nans)])


def accurate(name, x):
    """Return x without the numbers of which sine and cosine are not held to the accuracy."""
    return x[(np.abs(x) <= LARGEST[x.dtype.type]) | ~np.isfinite(x)] if name in TRIGONOMETRIC else x


@numba.njit(error_model="numpy")
def expit_by_libm(x):
    e = math.exp(-abs(x))
    return (1.0 if x >= 0.0 else e) / (1.0 + e)


@numba.njit(error_model="numpy")
def log1p_by_libm(x):
    return np.log1p(x)  # math.log1p raises at -1 and below


@numba.njit(error_model="numpy")
def softplus_by_libm(x):
    return (x if x > 0.0 else 0.0) + math.log1p(math.exp(-abs(x)))


@numba.njit(error_model="numpy")
def sin_by_libm(x):
    return math.sin(x) if abs(x) < np.inf else np.nan


@numba.njit(error_model="numpy")
def cos_by_libm(x):
    return math.cos(x) if abs(x) < np.inf else np.nan


BY_LIBM = {
    "cos": cos_by_libm,
    "erf": numba.njit(error_model="numpy")(lambda x: math.erf(x)),
    "erfc": numba.njit(error_model="numpy")(lambda x: math.erfc(x)),
    "exp": numba.njit(error_model="numpy")(lambda x: math.exp(x)),
    "expit": expit_by_libm,
    "expm1": numba.njit(error_model="numpy")(lambda x: math.expm1(x)),
    "log": numba.njit(error_model="numpy")(lambda x: np.log(x)),
    "log1p": log1p_by_libm,
    "ndtr": numba.njit(error_model="numpy")(lambda x: 0.5 * math.erfc(x * -0.7071067811865476)),
    "sin": sin_by_libm,
    "softplus": softplus_by_libm,
    "tanh": numba.njit(error_model="numpy")(lambda x: math.tanh(x)),
}
PATTERNS = 2**32
AT_ONCE = 4096


@numba.njit(error_model="numpy")
def error_in_ulp32(found, truth):
    """Return what errors_in_ulp does, for one float32 and a truth in float64."""
    if found == truth or (np.isnan(found) and np.isnan(truth)):
        return 0.0
    if np.isinf(found):
        if abs(truth) >= 2.0**128 and (found > 0.0) == (truth > 0.0):
            return 0.0
        found = math.copysign(2.0**128, found)
    exponent = (np.float64(truth).view(np.int64) >> 52 & 0x7FF) - 1023
    error = abs(found - truth) / 2.0 ** max(exponent - 23, -149)
    return np.inf if np.isnan(error) else error


def sweep_of(name):
    """Compile a walk through bit patterns of float32 that returns the largest error in ulp and where it is met."""
    function, by_libm = getattr(vmath, name), BY_LIBM[name]
    largest = LARGEST[np.float32] if name in TRIGONOMETRIC else np.inf

    @numba.njit(error_model="numpy", nogil=True)
    def sweep(first, stop, step):
        bits = np.empty(AT_ONCE, np.uint32)
        x, y = bits.view(np.float32), np.empty(AT_ONCE, np.float32)
        worst, where = -1.0, np.float32(0)
        while first < stop:
            n = min(AT_ONCE, (stop - first + step - 1) // step)
            for i in range(n):
                bits[i] = first + i * step
            for i in range(n):  # by itself, so that it is compiled to vector code
                y[i] = function(x[i])
            for i in range(n):
                if largest < abs(x[i]) < np.inf:
                    continue
                error = error_in_ulp32(np.float64(y[i]), by_libm(np.float64(x[i])))
                if error > worst:
                    worst, where = error, x[i]
            first += n * step
        return worst, where

    return sweep


def worst_of(name, step):
    """Return the largest error in ulp among every step-th float32 (NaNs and all), and where it is."""
    sweep, parts = sweep_of(name), 64
    edges = [PATTERNS * i // parts // step * step for i in range(parts)] + [PATTERNS]
    sweep(0, 1, 1)  # compiled before the threads need it
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return max(pool.map(lambda i: sweep(edges[i], edges[i + 1], step), range(parts)))
