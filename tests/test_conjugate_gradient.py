"""The conjugate gradient method: conjugate on quadratics, no more evaluations than SciPy's elsewhere."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import minimize
from test_optimizers import Function, Points, barrier, bowl, quadratic, rosenbrock

from mlpkit import conjugate_gradient
from mlpkit.errors import InvalidArgumentError
from mlpkit.optimizers import ConjugateGradient


@pytest.mark.parametrize(
    ("make", "start"),
    [
        (rosenbrock, np.linspace(-1.5, 2.0, 8)),
        (rosenbrock, np.array([-1.2, 1.0])),
        (rosenbrock, np.tile([-1.2, 1.0], 25)),
        (lambda: quadratic(np.logspace(-2, 2, 30)), np.zeros(30)),
        (lambda: quadratic(np.linspace(1, 1e3, 100)), np.zeros(100)),
        (lambda: Function(lambda t: (t**4).sum(), lambda t: 4 * t**3), np.array([1.0, 2.0, 3.0])),
    ],
)
def test_it_takes_no_more_evaluations_than_scipys(make, start):
    ours, theirs = make(), make()
    theta, reason = ConjugateGradient().minimize(ours, start, Points().report)
    expected = minimize(theirs, start, jac=True, method="CG")
    assert reason == "converged: gradient below gtol"
    assert np.abs(ours.gradient(theta)).max() <= 1e-5
    assert expected.success
    assert ours.calls <= 1.05 * theirs.calls


@pytest.fixture
def exact(monkeypatch):
    """Make line searches nearly exact."""
    monkeypatch.setattr(conjugate_gradient, "_CURVATURE", 1e-7)
    monkeypatch.setattr(conjugate_gradient, "_NARROWEST", 1e-12)


def test_directions_are_conjugate(exact):
    eigenvalues = np.array([1.0, 2.0, 5.0, 9.0, 20.0])
    function, points = quadratic(eigenvalues), Points()
    theta, _ = ConjugateGradient(gtol=1e-10).minimize(function, np.zeros(5), points.report)
    np.testing.assert_allclose(theta, 1, rtol=1e-9)
    assert len(points) <= 6  # five, but for rounding
    thetas = [np.zeros(5)] + [theta for theta, *_ in points[:4]]
    steps = np.diff(thetas, axis=0)
    H = np.array([function.gradient(1 + e) for e in np.eye(5)])
    for a, b in combinations(steps, 2):
        assert abs(a @ H @ b) < 1e-4 * np.sqrt((a @ H @ a) * (b @ H @ b))


def test_as_many_iterations_as_there_are_different_eigenvalues(exact):
    points = Points()
    ConjugateGradient(gtol=1e-6).minimize(quadratic(np.repeat([1.0, 10.0, 100.0], 20)), np.zeros(60), points.report)
    assert len(points) <= 4


def test_gradients_that_are_not_orthogonal_begin_anew():
    old, direction = np.array([1.0, 0.0]), np.array([-1.0, 0.3])
    following = conjugate_gradient._conjugate_direction(old, np.array([0.0, 0.5]), direction)
    np.testing.assert_allclose(following, 0.25 * direction - [0.0, 0.5])
    new = np.array([0.15, 0.5])
    np.testing.assert_array_equal(conjugate_gradient._conjugate_direction(old, new, direction), -new)


def test_a_direction_that_hardly_goes_down_is_not_taken():
    new = np.array([0.0, 0.5])
    np.testing.assert_array_equal(
        conjugate_gradient._conjugate_direction(np.array([1.0, 0.0]), new, np.array([0.0, 1e3])), -new
    )


def test_it_says_why_it_stopped():
    def reason(optimizer, function=None, start=(-1.0, 1.5)):
        return optimizer.minimize(function or rosenbrock(), np.array(start), Points().report)[1]

    assert reason(ConjugateGradient()) == "converged: gradient below gtol"
    assert reason(ConjugateGradient(gtol=0, ftol=1e-9)) == "converged: relative reduction of J below ftol"
    assert reason(ConjugateGradient(max_iter=2)) == "max_iter reached"
    assert reason(ConjugateGradient(gtol=0), bowl(), (3.0, 3.0)) == "converged: gradient is zero"
    flat = Function(lambda t: 1e6, lambda t: 1e-9 * t)  # lost to rounding
    assert reason(ConjugateGradient(gtol=0), flat).startswith(("converged: J does not", "line search failed"))
    uphill = Function(lambda t: t @ t, lambda t: -2 * t)
    assert reason(ConjugateGradient(), uphill).startswith("line search failed")


def test_it_converges_behind_walls():
    c, function = barrier()
    theta, reason = ConjugateGradient().minimize(function, np.array([1.0, 5.0, 0.2]), Points().report)
    assert reason == "converged: gradient below gtol"
    np.testing.assert_allclose(theta, 1 / c, rtol=1e-5)
    assert function.rejected > 0
    assert function.calls < 200


def test_a_search_that_failed_is_not_made_twice():
    """The first direction is the one against the gradient already."""
    function = Function(lambda t: t @ t, lambda t: -2 * t)
    _, reason = ConjugateGradient().minimize(function, np.ones(2), Points().report)
    assert reason.startswith("line search failed")
    assert function.calls <= 21


@pytest.mark.parametrize("name", ["direction", "first", "length", "previous_cost"])
def test_a_state_without_an_element_is_refused(name):
    snapshots = []
    ConjugateGradient().minimize(rosenbrock(), np.zeros(2), Points().report, save=snapshots.append)
    state = dict(snapshots[2]())
    del state[name]
    with pytest.raises(InvalidArgumentError, match=rf"state\['{name}'\] must be .*; found nothing"):
        ConjugateGradient().minimize(rosenbrock(), np.zeros(2), Points().report, state=state)
