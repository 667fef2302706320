"""L-BFGS against SciPy's, its reasons for stopping, and what its direction is."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize
from test_optimizers import Function, Points, barrier, bowl, quadratic, rosenbrock

from mlpkit import lbfgs
from mlpkit.errors import InvalidArgumentError
from mlpkit.optimizers import LBFGS

EIGHT = np.linspace(-1.5, 2.0, 8)


@pytest.mark.parametrize(
    ("make", "start"),
    [
        (rosenbrock, EIGHT),
        (rosenbrock, np.array([-1.2, 1.0])),
        (lambda: quadratic(np.linspace(1, 1e3, 30)), np.zeros(30)),
        (lambda: Function(lambda t: np.cosh(t).sum(), np.sinh), np.array([20.0, 1.0])),
        (lambda: Function(lambda t: (t**4).sum(), lambda t: 4 * t**3), np.array([1.0, 2.0, 3.0])),
    ],
)
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (LBFGS(), {}),
        (LBFGS(max_iter=7), {"maxiter": 7}),
        (LBFGS(ftol=0), {"ftol": 0}),
        (LBFGS(ftol=0, gtol=1e-2), {"ftol": 0, "gtol": 1e-2}),
        (LBFGS(max_corrections=3), {"maxcor": 3}),
    ],
)
def test_lbfgs_is_scipys_but_for_rounding(make, start, optimizer, options):
    ours, theirs, points = make(), make(), Points()
    theta, _ = optimizer.minimize(ours, start, points.report)
    expected = minimize(theirs, start, jac=True, method="L-BFGS-B", options=options)
    np.testing.assert_allclose(theta, expected.x, rtol=1e-4, atol=1e-5)
    assert len(points) == pytest.approx(expected.nit, abs=2)
    assert ours.calls == pytest.approx(theirs.calls, abs=3)  # the starting point is not evaluated twice
    assert points[-1][1] == pytest.approx(expected.fun, rel=1e-6, abs=1e-10)


def test_a_badly_scaled_quadratic_is_no_harder_than_for_scipy():
    for eigenvalues in (np.logspace(-2, 2, 30), np.logspace(-6, 6, 8)):
        ours, theirs = quadratic(eigenvalues), quadratic(eigenvalues)
        points = Points()
        LBFGS().minimize(ours, np.zeros(eigenvalues.size), points.report)
        expected = minimize(theirs, np.zeros(eigenvalues.size), jac=True, method="L-BFGS-B")
        assert points[-1][1] == pytest.approx(expected.fun, rel=0.1, abs=1e-6)
        assert ours.calls < 1.25 * theirs.calls


def test_defaults_are_scipys():
    assert LBFGS() == LBFGS(max_iter=15000, ftol=2.220446049250313e-09, gtol=1e-5)
    assert LBFGS().max_corrections == 10


def test_it_says_why_it_stopped():
    def reason(optimizer, function=None, start=(-1.0, 1.5)):
        return optimizer.minimize(function or rosenbrock(), np.array(start), Points().report)[1]

    assert reason(LBFGS(ftol=0)) == "converged: gradient below gtol"
    assert reason(LBFGS(gtol=0)) == "converged: relative reduction of J below ftol"
    assert reason(LBFGS(max_iter=2)) == "max_iter reached"
    assert reason(LBFGS(gtol=0, ftol=0), bowl(), (3.0, 3.0)) == "converged: gradient is zero"
    flat = Function(lambda t: 1e6, lambda t: 1e-9 * t)  # lost to rounding
    assert "not decrease" in reason(LBFGS(gtol=0, ftol=0), flat)
    uphill = Function(lambda t: t @ t, lambda t: -2 * t)
    assert reason(LBFGS(), uphill).startswith("line search failed")


def test_a_last_iteration_that_converges_has_converged():
    _, reason = LBFGS(max_iter=2).minimize(bowl(), np.zeros(1), Points().report)
    assert reason == "converged: gradient below gtol"


def test_the_first_step_has_length_one():
    trials = []
    function = quadratic([3.0, 40.0, 500.0])

    def evaluate(theta):
        trials.append(theta)
        return function(theta)

    LBFGS(max_iter=1).minimize(evaluate, np.zeros(3), Points().report)
    assert np.linalg.norm(trials[1]) == pytest.approx(1.0)


def test_it_converges_behind_walls():
    c, function = barrier()
    theta, reason = LBFGS(ftol=0).minimize(function, np.array([1.0, 5.0, 0.2]), Points().report)
    assert reason == "converged: gradient below gtol"
    np.testing.assert_allclose(theta, 1 / c, rtol=1e-5)
    assert function.calls < 100


def test_it_creeps_up_to_a_wall_with_the_minimum_behind_it():
    function = bowl(outside=lambda t: bool(t[0] >= 1.5))
    points = Points()
    theta, reason = LBFGS().minimize(function, np.zeros(1), points.report)
    assert 1.4 < theta[0] < 1.5
    assert reason.startswith(("line search failed", "converged: relative reduction"))
    np.testing.assert_array_equal(points[-1][0], theta)


def test_the_direction_is_that_of_the_bfgs_matrix():
    """H from the identity's multiple by one rank-two update after the other, Nocedal and Wright's (7.16)."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(6, 6))
    A = A @ A.T + np.eye(6)
    pairs = tuple(lbfgs._pair(s, A @ s) for s in rng.normal(size=(4, 6)))
    s, y = pairs[-1].step, pairs[-1].change
    H = (s @ y) / (y @ y) * np.eye(6)
    for s, y, *_ in pairs:
        V = np.eye(6) - np.outer(y, s) / (s @ y)
        H = V.T @ H @ V + np.outer(s, s) / (s @ y)
    g = rng.normal(size=6)
    np.testing.assert_allclose(lbfgs._newton_direction(g, pairs), -H @ g, rtol=1e-12)


def test_only_the_last_pairs_are_kept():
    snapshots = []
    LBFGS(max_corrections=2).minimize(rosenbrock(), EIGHT, Points().report, save=snapshots.append)
    states = [snapshot() for snapshot in snapshots]
    assert [len(state["steps"]) for state in states[:4]] == [1, 2, 2, 2]
    for before, after in pairwise(states):
        np.testing.assert_allclose(after["steps"][-1], after["theta"] - before["theta"], atol=1e-12)
        np.testing.assert_array_equal(after["changes"][-1], after["gradient"] - before["gradient"])
        np.testing.assert_array_equal(after["steps"][:-1], before["steps"][-1:])
        assert after["length"] == pytest.approx(np.linalg.norm(after["steps"][-1]))


def test_of_steps_along_which_j_is_curved_downwards_nothing_is_learned():
    """A step to such a place is accepted only where a wall is behind it."""
    hill = Function(lambda t: np.cos(t[0]), lambda t: -np.sin(t), lambda t: bool(t[0] > 1.5))
    snapshots, points = [], Points()
    LBFGS(max_iter=3).minimize(hill, np.array([0.05]), points.report, save=snapshots.append)
    assert len(points) == 3
    assert (np.diff(points.costs) < 0).all()
    assert all(snapshot()["steps"].shape == (0, 1) for snapshot in snapshots)


def test_after_a_search_that_fails_it_goes_on_against_the_gradient():
    """NaN wherever it looks from the fifth iterate, until it turns to where the gradient points."""
    function, points, snapshots, lost = rosenbrock(), Points(), [], []

    def evaluate(theta):
        cost, gradient = function(theta)
        if len(points) == 5 and len(lost) < 100:
            lost.append(theta)
            cost = np.nan
        return cost, gradient

    theta, reason = LBFGS().minimize(evaluate, np.array([-1.2, 1.0]), points.report, save=snapshots.append)
    assert len(lost) == 100
    assert reason.startswith("converged")
    np.testing.assert_allclose(theta, 1, atol=1e-3)
    assert [len(snapshot()["steps"]) for snapshot in snapshots[4:7]] == [5, 1, 2]
    step, gradient = points[5][0] - points[4][0], points[4][2]
    assert -step @ gradient == pytest.approx(np.linalg.norm(step) * np.linalg.norm(gradient))


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda s: s.update(steps=s["steps"][:, :1]), r"state\['steps'\] must be .*\(any, 2\)"),
        (lambda s: s.update(changes=s["changes"][:2]), r"state\['changes'\] must be .*\(3, 2\)"),
        (lambda s: s.update(changes=-s["changes"]), r"products are positive"),
        (lambda s: s.update(length=np.array(np.nan)), r"state\['length'\] must be finite"),
        (lambda s: s.pop("previous_cost"), r"state\['previous_cost'\] must be"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(spoil, match):
    snapshots = []
    LBFGS().minimize(rosenbrock(), np.zeros(2), Points().report, save=snapshots.append)
    state = dict(snapshots[2]())
    assert state["steps"].shape == (3, 2)
    spoil(state)
    with pytest.raises(InvalidArgumentError, match=match):
        LBFGS().minimize(rosenbrock(), np.zeros(2), Points().report, state=state)


def test_more_pairs_than_are_remembered_are_refused():
    snapshots = []
    LBFGS().minimize(rosenbrock(), np.zeros(2), Points().report, save=snapshots.append)
    with pytest.raises(InvalidArgumentError, match="at most 5 pairs"):
        LBFGS(max_corrections=5).minimize(rosenbrock(), np.zeros(2), Points().report, state=snapshots[9]())
