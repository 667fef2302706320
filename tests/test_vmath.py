"""The functions of mlpkit.vmath: at most 2 units in the last place from the truth (erfc and ndtr 4), everywhere.

float64 is compared with long double on points dense enough to meet every stretch of the polynomials; float32, in
compiled code, with the C library's float64 functions: a sample of all bit patterns here, every one of them under
``make soak``. Sine and cosine are held to it up to 2**20 (float32: 2**25), and to less beyond.
"""

import math

import numba
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ulp import (
    COMPILED,
    DTYPES,
    GAUSSIAN,
    LIMIT_NUMPY,
    LIMIT_SCIPY,
    NAMES,
    REORDERED,
    TRIGONOMETRIC,
    WORST,
    accurate,
    errors_in_ulp,
    exact,
    limit,
    points,
    special,
    worst_of,
)

from mlpkit import vmath


def test_errors_are_counted_in_units_in_the_last_place():
    for dtype in DTYPES:
        eps, nan, inf = np.longdouble(np.finfo(dtype).eps), np.nan, np.inf
        # Numbers are eps apart from 1 on, 2 eps apart from 2 on, and 4 eps apart from 4 on.
        found = np.array([1.5, 2, 4, -4, nan, 1, inf, -inf, np.finfo(dtype).max, 0], dtype)
        truth = np.array([1.5 + eps, 2 - eps, 4 + 8 * eps, 4 * eps - 4, nan, nan, inf, inf, inf, 0], np.longdouble)
        np.testing.assert_array_equal(errors_in_ulp(found, truth), [1, 1, 2, 2, 0, inf, 0, inf, inf, 0])


@pytest.mark.parametrize("over", [COMPILED, REORDERED], ids=["plain", "reordered"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_compiled_functions_are_accurate(name, dtype, over):
    n = 80_000 if over is COMPILED and name not in GAUSSIAN else 4_000
    x = accurate(name, points(dtype, n))
    errors = errors_in_ulp(over[name](x), exact(name, x))
    worst = errors.argmax()
    assert errors[worst] <= limit(name, dtype), x[worst].hex()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_compiled_functions_are_accurate_whatever_the_number(name, dtype):
    @given(st.floats(width=8 * dtype().nbytes))
    def compare(x):
        x = accurate(name, np.array([x], dtype))
        assert not (errors_in_ulp(COMPILED[name](x), exact(name, x)) > limit(name, dtype)).any()

    compare()


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_accurate_on_a_sample_of_all_bit_patterns(name):
    worst, where = worst_of(name, 1009)
    assert worst <= limit(name, np.float32), where


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_float32_is_accurate_on_every_bit_pattern(name, capsys):
    worst, where = worst_of(name, 1)
    with capsys.disabled():
        print(f"\n{name}, float32: {worst:.4f} ulp at {where!r}")
    assert worst <= limit(name, np.float32), where


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_accurate_where_it_is_worst(name):
    x = np.nextafter(WORST[name][2], [-np.inf, np.inf])
    x = np.concatenate([x, [WORST[name][2]]])
    assert errors_in_ulp(COMPILED[name](x), exact(name, x)).max() <= limit(name, np.float64)


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_float64_is_accurate_on_many_points(name, capsys):
    worst, where = 0.0, 0.0
    low, high, _ = WORST[name]
    n = 8_000 if name in GAUSSIAN else 80_000  # of which the reference is slow
    for seed in range(100):
        close = np.random.default_rng(seed).uniform(low, high, 12 * n)
        x = accurate(name, np.concatenate([points(np.float64, n, seed), close]))
        errors = errors_in_ulp(COMPILED[name](x), exact(name, x))
        i = errors.argmax()
        worst, where = max((worst, where), (errors[i], x[i]))
    with capsys.disabled():
        print(f"\n{name}, float64: {worst:.4f} ulp at {where!r}")
    assert worst <= limit(name, np.float64), where


@pytest.mark.parametrize("over", [COMPILED, REORDERED], ids=["plain", "reordered"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_zeros_infinities_nans_and_the_smallest_numbers(name, dtype, over):
    x = accurate(name, special(dtype))
    y = over[name](x)
    assert y.dtype == dtype
    assert errors_in_ulp(y, exact(name, x)).max() <= limit(name, dtype)
    undefined = {"log": x < 0, "log1p": x < -1, "sin": np.isinf(x), "cos": np.isinf(x)}
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x) | undefined.get(name, False))


@pytest.mark.parametrize("dtype", DTYPES)
def test_limits_are_met_exactly(dtype):
    inf, nan = np.inf, np.nan
    x = np.array([-inf, -1e4, -1, 0, -0.0, 1e4, inf, nan], dtype)
    expectations = {
        "cos": [nan, None, None, 1, 1, None, nan, nan],
        "erf": [-1, -1, None, 0, 0, 1, 1, nan],
        "erfc": [2, 2, None, 1, 1, 0, 0, nan],
        "exp": [0, 0, None, 1, 1, inf, inf, nan],
        "expit": [0, 0, None, 0.5, 0.5, 1, 1, nan],
        "expm1": [-1, -1, None, 0, 0, inf, inf, nan],
        "log": [nan, nan, nan, -inf, -inf, None, inf, nan],
        "log1p": [nan, nan, -inf, 0, 0, np.log1p(dtype(1e4)), inf, nan],
        "ndtr": [0, 0, None, 0.5, 0.5, 1, 1, nan],
        "sin": [nan, None, None, 0, 0, None, nan, nan],
        "softplus": [0, 0, None, None, None, 1e4, inf, nan],
        "tanh": [-1, -1, None, 0, 0, 1, 1, nan],
    }
    assert set(expectations) == set(NAMES)
    for name, expected in expectations.items():
        given = [i for i, value in enumerate(expected) if value is not None]
        limits = np.array([expected[i] for i in given], dtype)
        np.testing.assert_array_equal(COMPILED[name](x)[given], limits)
        np.testing.assert_array_equal(getattr(vmath, name)(x)[given], limits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TRIGONOMETRIC)
def test_sine_and_cosine_of_large_numbers_lose_digits_as_if_the_argument_were_rounded(name, dtype):
    rng = np.random.default_rng(0)
    powers = np.repeat(np.arange(20, 51), 2_000)
    x = (rng.choice([-1, 1], powers.size) * 2.0**powers * rng.uniform(1, 2, powers.size)).astype(dtype)
    error = np.abs(COMPILED[name](x) - exact(name, x))
    assert np.all(error <= 2 * np.finfo(dtype).eps + np.abs(x.astype(np.float64)) * 2.0**-53)
    # Beyond 2**51 every number is taken for a multiple of 2 pi.
    x = np.array([2.0**51 * (1 + 2 * np.finfo(dtype).eps), 1e30, np.finfo(dtype).max], dtype)
    np.testing.assert_array_equal(COMPILED[name](np.concatenate([x, -x])), 1 if name == "cos" else 0)


@pytest.mark.parametrize("name", TRIGONOMETRIC)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sine_and_cosine_stay_between_minus_one_and_one(name, dtype):
    @given(st.floats(allow_nan=False, allow_infinity=False, width=8 * dtype().nbytes))
    @example(2.0**51)
    @example(-(2.0**51))
    def look(x):
        assert abs(COMPILED[name](np.array([x], dtype))[0]) <= 1

    look()


def test_ndtr_keeps_its_digits_where_erfc_of_a_rounded_argument_loses_them():
    x = np.random.default_rng(0).uniform(-37, -20, 10_000)
    truth = exact("ndtr", x)
    assert errors_in_ulp(COMPILED["ndtr"](x), truth).max() <= limit("ndtr", np.float64)
    by_erfc = COMPILED["erfc"](x * -math.sqrt(0.5)) / 2
    assert errors_in_ulp(by_erfc, truth).max() > 100


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
    y = function(x)
    assert y.dtype == dtype
    assert errors_in_ulp(y, exact(name, x)).max() <= (LIMIT_SCIPY if name in ("erfc", "ndtr") else LIMIT_NUMPY)
    scalar = function(dtype(0.3))
    assert (scalar.dtype, scalar.shape) == (dtype, ())
    assert float(function(0.3)) == pytest.approx(float(exact(name, np.array(0.3))), rel=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_plain_python_raises_no_floating_point_errors(name, dtype):
    x = np.concatenate([special(dtype), points(dtype, 40)])
    function = getattr(vmath, name)
    with np.errstate(all="raise"):
        function(x)
        for number in (0.0, -0.0, -1.0, -np.inf, np.inf, np.nan, *x[:20]):
            function(number)
    assert np.geterr() == {**np.geterr(), "under": "ignore"}  # given back as it was


@pytest.mark.parametrize("name", NAMES)
def test_whole_numbers_are_taken_as_float64(name):
    x = np.arange(0, 30)
    function = getattr(vmath, name)

    @numba.njit(error_model="numpy")
    def of(n):
        return function(n)

    found = np.array([of(n) for n in x])
    np.testing.assert_array_equal(found, COMPILED[name](x.astype(np.float64)))
    np.testing.assert_allclose(function(x), found, rtol=4e-15)
    np.testing.assert_array_equal(function(x.astype(np.int8)), function(x))
