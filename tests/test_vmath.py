"""exp, expit, tanh and log1p of mlpkit.vmath: at most 2 units in the last place from the truth, everywhere.

float64 is compared with NumPy's long double on points dense enough to meet every stretch of the polynomials; float32,
in compiled code, with the C library's float64 functions: a sample of all bit patterns here, every one of them under
``make soak``.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest

from mlpkit import vmath
from mlpkit.kernels.jit import REDUCTION

DTYPES = (np.float64, np.float32)
NAMES = ("exp", "expit", "log1p", "tanh")

# Long double has 64 or 113 bits where processors or compilers provide for it, and is then as good as exact. Elsewhere
# (Windows, Apple's ARM) it is float64, whose functions in the C library are themselves off by up to 1 ulp.
LONG_DOUBLE_IS_LONGER = np.finfo(np.longdouble).nmant >= 63
LIMIT64 = 2.0 if LONG_DOUBLE_IS_LONGER else 3.0
LIMIT32 = 2.0
LIMIT_NUMPY = 4.0  # what NumPy promises of its own vector functions

# Where random search has found each function at its worst, and the worst number in float64.
WORST = {
    "exp": (-4.6, -4.4, -4.487895706056088),
    "expit": (-1.15, -1.09, -1.1456855958200427),
    "log1p": (-0.31, -0.28, -0.29945896038611897),
    "tanh": (0.5185, 0.5215, 0.519827798525622),
}


def exact(name, x):
    """Return the function of x in long double."""
    with np.errstate(all="ignore"):  # to convert a signalling NaN is an invalid operation too
        x = x.astype(np.longdouble)
        if name == "expit":
            e = np.exp(-np.abs(x))
            return np.where(np.signbit(x), e, 1) / (1 + e)
        return getattr(np, name)(x)


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


def test_errors_are_counted_in_units_in_the_last_place():
    for dtype in DTYPES:
        eps, nan, inf = np.longdouble(np.finfo(dtype).eps), np.nan, np.inf
        # Numbers are eps apart from 1 on, 2 eps apart from 2 on, and 4 eps apart from 4 on.
        found = np.array([1.5, 2, 4, -4, nan, 1, inf, -inf, np.finfo(dtype).max, 0], dtype)
        truth = np.array([1.5 + eps, 2 - eps, 4 + 8 * eps, 4 * eps - 4, nan, nan, inf, inf, inf, 0], np.longdouble)
        np.testing.assert_array_equal(errors_in_ulp(found, truth), [1, 1, 2, 2, 0, inf, 0, inf, inf, 0])


@numba.njit(error_model="numpy")
def expit_by_libm(x):
    e = math.exp(-abs(x))
    return (1.0 if x >= 0.0 else e) / (1.0 + e)


@numba.njit(error_model="numpy")
def log1p_by_libm(x):
    return np.log1p(x)  # math.log1p raises at -1 and below


BY_LIBM = {
    "exp": numba.njit(error_model="numpy")(lambda x: math.exp(x)),
    "expit": expit_by_libm,
    "log1p": log1p_by_libm,
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


@pytest.mark.parametrize("over", [COMPILED, REORDERED], ids=["plain", "reordered"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_compiled_functions_are_within_two_ulp(name, dtype, over):
    x = points(dtype, 80_000 if over is COMPILED else 4_000)
    errors = errors_in_ulp(over[name](x), exact(name, x))
    worst = errors.argmax()
    assert errors[worst] <= (LIMIT64 if dtype == np.float64 else LIMIT32), x[worst].hex()


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_within_two_ulp_on_a_sample_of_all_bit_patterns(name):
    worst, where = worst_of(name, 1009)
    assert worst <= LIMIT32, where


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_float32_is_within_two_ulp_on_every_bit_pattern(name, capsys):
    worst, where = worst_of(name, 1)
    with capsys.disabled():
        print(f"\n{name}, float32: {worst:.4f} ulp at {where!r}")
    assert worst <= LIMIT32, where


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_within_two_ulp_where_it_is_worst(name):
    x = np.nextafter(WORST[name][2], [-np.inf, np.inf])
    x = np.concatenate([x, [WORST[name][2]]])
    assert errors_in_ulp(COMPILED[name](x), exact(name, x)).max() <= LIMIT64


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_float64_is_within_two_ulp_on_many_points(name, capsys):
    worst, where = 0.0, 0.0
    low, high, _ = WORST[name]
    for seed in range(100):
        close = np.random.default_rng(seed).uniform(low, high, 1_000_000)
        x = np.concatenate([points(np.float64, 80_000, seed), close])
        errors = errors_in_ulp(COMPILED[name](x), exact(name, x))
        i = errors.argmax()
        worst, where = max((worst, where), (errors[i], x[i]))
    with capsys.disabled():
        print(f"\n{name}, float64: {worst:.4f} ulp at {where!r}")
    assert worst <= LIMIT64, where


@pytest.mark.parametrize("over", [COMPILED, REORDERED], ids=["plain", "reordered"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_zeros_infinities_nans_and_the_smallest_numbers(name, dtype, over):
    x = special(dtype)
    y = over[name](x)
    assert y.dtype == dtype
    assert errors_in_ulp(y, exact(name, x)).max() <= (LIMIT64 if dtype == np.float64 else LIMIT32)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x) | ((x < -1) if name == "log1p" else False))


@pytest.mark.parametrize("dtype", DTYPES)
def test_limits_are_met_exactly(dtype):
    inf, nan = np.inf, np.nan
    x = np.array([-inf, -1e4, -1, 0, -0.0, 1e4, inf, nan], dtype)
    big = np.log1p(dtype(1e4))
    for name, expected in {
        "exp": [0, 0, None, 1, 1, inf, inf, nan],
        "expit": [0, 0, None, 0.5, 0.5, 1, 1, nan],
        "log1p": [nan, nan, -inf, 0, 0, big, inf, nan],
        "tanh": [-1, -1, None, 0, 0, 1, 1, nan],
    }.items():
        given = [i for i, value in enumerate(expected) if value is not None]
        limits = np.array([expected[i] for i in given], dtype)
        np.testing.assert_array_equal(COMPILED[name](x)[given], limits)
        np.testing.assert_array_equal(getattr(vmath, name)(x)[given], limits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_a_result_does_not_depend_on_its_place_in_the_loop(name, dtype):
    """Vector code and the scalar code for what is left over give the same bits."""
    x = points(dtype, 40)
    together = COMPILED[name](x)
    alone = np.concatenate([COMPILED[name](x[i : i + 1]) for i in range(x.size)])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_plain_python_computes_the_same_functions(name, dtype):
    function = getattr(vmath, name)
    x = np.concatenate([points(dtype, 4_000), special(dtype)])
    with np.errstate(invalid="ignore"):  # which NumPy reports of signalling NaNs
        y = function(x)
    assert y.dtype == dtype
    assert errors_in_ulp(y, exact(name, x)).max() <= LIMIT_NUMPY
    scalar = function(dtype(0.3))
    assert (scalar.dtype, scalar.shape) == (dtype, ())
    assert float(function(0.3)) == pytest.approx(float(exact(name, np.array(0.3))), rel=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_whole_numbers_are_taken_as_float64(name):
    x = np.arange(0, 30)
    function = getattr(vmath, name)

    @numba.njit(error_model="numpy")
    def of(n):
        return function(n)

    found = np.array([of(n) for n in x])
    np.testing.assert_array_equal(found, COMPILED[name](x.astype(np.float64)))
    np.testing.assert_allclose(function(x), found, rtol=2e-15)
