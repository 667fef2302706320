"""Gradient descent: the notes' own steps, divergence, and the variant with a line search."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import rosen, rosen_der
from test_optimizers import Function, Points, bowl, quadratic, rosenbrock

from mlpkit.optimizers import GradientDescent


def test_it_is_the_notes_step():
    start = np.array([0.3, -0.7, 1.1])
    points, expected = Points(), start.copy()
    theta, reason = GradientDescent(alpha=1e-3, max_iter=5).minimize(rosenbrock(), start, points.report)
    for k in range(5):
        expected = expected - 1e-3 * rosen_der(expected)
        np.testing.assert_array_equal(points[k][0], expected)
        assert points[k][1] == rosen(expected)
    np.testing.assert_array_equal(theta, expected)
    assert reason == "max_iter reached"


def test_it_moves_all_parameters_together():
    """If the second coordinate saw the first one's new value, it would move by 0.1 (1 - 0.1)."""
    function = Function(lambda t: t[0] * t[1], lambda t: t[::-1].copy())
    theta, _ = GradientDescent(0.1, 1).minimize(function, np.array([1.0, 1.0]), Points().report)
    np.testing.assert_allclose(theta, [0.9, 0.9])


def test_divergence_keeps_the_last_finite_parameters():
    points = Points()
    function = Function(lambda t: t @ t, lambda t: 2 * t)
    with np.errstate(over="ignore"):
        theta, reason = GradientDescent(1e20, 100).minimize(function, np.ones(2), points.report)
    assert reason.startswith("diverged: J = inf after iteration")
    assert np.isfinite(theta).all()
    assert 0 < len(points) < 100
    np.testing.assert_array_equal(points[-1][0], theta)
    assert np.isfinite(points.costs).all()


def test_a_theta_that_overflows_is_not_evaluated():
    function = Function(lambda t: t.sum(), lambda t: np.full_like(t, 1e300))
    theta, reason = GradientDescent(1e300, 9).minimize(function, np.ones(2), Points().report)
    np.testing.assert_array_equal(theta, [1, 1])
    assert "theta[0] = -inf" in reason
    assert function.calls == 1


def test_a_fixed_alpha_takes_every_step():
    function = bowl()
    _, reason = GradientDescent(0.5, 30).minimize(function, np.full(2, 3.0), Points().report)
    assert (function.calls, reason) == (31, "max_iter reached")


@pytest.mark.parametrize("alpha", [1e-6, 1e6])
def test_with_a_line_search_any_alpha_will_do(alpha):
    function, points = quadratic([1.0, 2.0, 5.0]), Points()
    optimizer = GradientDescent(alpha, 100, line_search=True)
    theta, _ = optimizer.minimize(function, np.zeros(3), points.report)
    np.testing.assert_allclose(theta, 1, rtol=1e-4)
    assert (np.diff(points.costs) <= 0).all()
    for before, after in pairwise(points):  # each step against the gradient
        step = after[0] - before[0]
        cosine = -step @ before[2] / np.linalg.norm(step) / np.linalg.norm(before[2])
        assert cosine == pytest.approx(1.0, abs=1e-6) or np.linalg.norm(step) < 1e-7


def test_alpha_is_the_first_trial_and_then_the_last_step():
    function, trials, points = quadratic([1.0, 2.0, 5.0]), [], Points()
    after = []

    def evaluate(theta):
        trials.append(theta)
        return function(theta)

    def report(*point):
        points.report(*point)
        after.append(len(trials))

    GradientDescent(0.125, 5, line_search=True).minimize(evaluate, np.zeros(3), report)
    gradient = function(np.zeros(3))[1]
    np.testing.assert_array_equal(trials[1], -0.125 * gradient)
    step = points[0][0] / -gradient
    np.testing.assert_allclose(trials[after[0]], points[0][0] - step * points[0][2])
