"""The line search against the conditions it is to meet, SciPy's, and functions that are not finite everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize._dcsrch import DCSRCH

from mlpkit.descent import Point
from mlpkit.line_search import line_search

# The test functions of Moré and Thuente, section 5, with the slopes at 0 that they state.


def bend(t, beta=2.0):
    return -t / (t**2 + beta), (t**2 - beta) / (t**2 + beta) ** 2


def corner(t, beta=0.004):
    return (t + beta) ** 5 - 2 * (t + beta) ** 4, 5 * (t + beta) ** 4 - 8 * (t + beta) ** 3


def waves(t, beta=0.01, bumps=39):
    slope = np.pi / 2 * bumps
    if t <= 1 - beta:
        value, derivative = 1 - t, -1.0
    elif t >= 1 + beta:
        value, derivative = t - 1, 1.0
    else:
        value, derivative = (t - 1) ** 2 / (2 * beta) + beta / 2, (t - 1) / beta
    factor = 2 * (1 - beta) / (bumps * np.pi)
    return value + factor * np.sin(slope * t), derivative + factor * slope * np.cos(slope * t)


def yanai(t, beta1, beta2):
    def gamma(beta):
        return np.sqrt(1 + beta**2) - beta

    a, b = np.hypot(1 - t, beta2), np.hypot(t, beta1)
    value = gamma(beta1) * a + gamma(beta2) * b
    return value, -gamma(beta1) * (1 - t) / a + gamma(beta2) * t / b


FUNCTIONS = {
    "bend": (bend, 1e-3, 1e-1),
    "corner": (corner, 1e-1, 1e-1),
    "waves": (waves, 1e-1, 1e-1),
    "yanai flat": (lambda t: yanai(t, 1e-3, 1e-3), 1e-3, 1e-3),
    "yanai late": (lambda t: yanai(t, 1e-2, 1e-3), 1e-3, 1e-3),
    "yanai early": (lambda t: yanai(t, 1e-3, 1e-2), 1e-3, 1e-3),
}


class Along:
    """A function of one number for the line search, which goes up from 0; it counts and remembers."""

    def __init__(self, function):
        self.function = function
        self.trials = []

    def __call__(self, theta):
        self.trials.append(float(theta[0]))
        value, slope = self.function(theta[0])
        return float(value), np.array([slope], dtype=np.float64)

    def search(self, first=1.0, **options):
        start = Point(np.zeros(1), *self(np.zeros(1)))
        self.trials.clear()
        return line_search(self, start, np.ones(1), first, **options)


def theirs(function, first, decrease, curvature, narrowest):
    """Return SciPy's step and how many evaluations it took."""
    calls = []

    def value(t):
        calls.append(t)
        return float(function(t)[0])

    search = DCSRCH(value, lambda t: float(function(t)[1]), decrease, curvature, narrowest, 0.0, 1e10)
    value0, slope0 = function(0.0)
    step, *_ = search(first, float(value0), float(slope0))
    return step, len(calls)


def wolfe(function, step, decrease, curvature):
    value0, slope0 = function(0.0)
    value, slope = function(step)
    return value <= value0 + decrease * step * slope0 and abs(slope) <= curvature * abs(slope0)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("first", [1e-3, 1e-1, 1e1, 1e3])
def test_it_is_moré_and_thuentes(name, first):
    function, decrease, curvature = FUNCTIONS[name]
    along = Along(function)
    options = {"decrease": decrease, "curvature": curvature, "narrowest": 1e-10}
    trial = along.search(first, **options)
    step, n = theirs(function, first, *options.values())
    assert wolfe(function, trial.step, decrease, curvature)
    assert trial.step == pytest.approx(step, rel=1e-6)
    assert len(along.trials) == n
    assert trial.cost == function(trial.step)[0]
    assert trial.point.theta[0] == trial.step


@given(
    wave=st.floats(0.0, 3.0),
    frequency=st.floats(0.1, 5.0),
    steep=st.floats(0.01, 10.0),
    first=st.floats(1e-3, 1e3),
    curvature=st.sampled_from([0.05, 0.1, 0.5, 0.9]),
    wall=st.floats(1e-3, 1e3),
)
def test_what_it_returns_is_good(wave, frequency, steep, first, curvature, wall):
    """On hills that go up in the end: both conditions; behind a wall at least a lower J, and never NaN."""

    def hills(t):
        value = 0.1 * t**2 - steep * t + wave * (np.cos(frequency * t) - 1)
        return value, 0.2 * t - steep - wave * frequency * np.sin(frequency * t)

    trial = Along(hills).search(first, curvature=curvature, narrowest=1e-9)
    assert wolfe(hills, trial.step, 1e-3, curvature)

    def walled(t):
        return hills(t) if t < wall else (np.nan, np.nan)

    along = Along(walled)
    trial = along.search(first, curvature=curvature, narrowest=1e-9)
    assert 0 < trial.step < wall
    assert trial.cost < 0
    assert wolfe(hills, trial.step, 1e-3, curvature) or max(along.trials) >= wall


def test_a_good_first_step_costs_one_evaluation():
    along = Along(lambda t: (0.5 * (t - 3) ** 2, t - 3))
    assert along.search(3.5).step == 3.5
    assert along.trials == [3.5]


def test_a_parabola_takes_two():
    along = Along(lambda t: (0.5 * (t - 3) ** 2, t - 3))
    assert along.search(1.0, curvature=0.01).step == pytest.approx(3.0)
    assert len(along.trials) == 2


def test_a_rejected_step_is_followed_by_one_of_a_quarter():
    along = Along(lambda t: (0.5 * (t - 3) ** 2, t - 3) if t < 1e-3 else (np.nan, 0.0))
    trial = along.search()
    np.testing.assert_array_equal(along.trials[:6], 0.25 ** np.arange(6))
    assert 0 < trial.step < 1e-3


@pytest.mark.parametrize("bad", [(np.nan, np.nan), (np.inf, 0.0), (-np.inf, -1.0), (-100.0, np.nan)])
def test_between_two_finite_steps_a_gap_is_left_alone(bad):
    """The parabola's minimum is in the gap."""
    along = Along(lambda t: (0.5 * (t - 3) ** 2, t - 3) if not 2.5 < t < 3.5 else bad)
    trial = along.search(10.0, curvature=0.01)
    assert 0 < trial.step <= 2.5
    assert len(along.trials) < 20


def test_steps_that_never_get_finite_end_it():
    along = Along(lambda t: (-t, -1.0) if t == 0 else (np.nan, np.nan))
    assert along.search() is None
    assert len(along.trials) <= 100


def test_a_theta_that_overflows_is_not_evaluated():
    along = Along(lambda t: (-t, -1.0))
    start = Point(np.full(1, 1e308), -1e308, np.full(1, -1.0))
    trial = line_search(along, start, np.full(1, 1e308), 10.0)
    assert np.isfinite(along.trials).all()
    assert trial is None or np.isfinite(trial.point.theta).all()


def test_without_an_end_the_longest_step_will_do():
    trial = Along(lambda t: (-t, -1.0)).search()
    assert 1e3 < trial.step < np.inf


@pytest.mark.parametrize("slope", [0.0, 1.0, -np.inf, np.nan])
def test_a_direction_that_does_not_go_down_has_none(slope):
    assert Along(lambda t: (t, slope)).search() is None


def test_j_that_only_rises_has_none():
    along = Along(lambda t: (t, -1.0))
    assert along.search() is None
    assert len(along.trials) <= 20


def test_rounding_ends_it_early():
    """The slope says that the first trial is good, and J cannot."""
    along = Along(lambda t: (1.0 + (t > 0) * np.finfo(float).eps, 1e-20 * (t - 1)))
    assert along.search() is None
    assert len(along.trials) == 1


def test_numbers_near_the_end_of_floats():
    along = Along(lambda t: (1e300 * (0.5 * (t - 3) ** 2), 1e300 * (t - 3)))
    assert along.search(1.0, curvature=0.1).step == pytest.approx(3.0)
    along = Along(lambda t: (1e-300 * (0.5 * (t - 3) ** 2), 1e-300 * (t - 3)))
    assert along.search(1.0, curvature=0.1).step == pytest.approx(3.0)
