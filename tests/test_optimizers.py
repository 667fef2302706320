"""Optimisers on plain functions: SciPy's own answers, the notes' own steps, and walls of NaN."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize, rosen, rosen_der

from mlpkit.errors import InvalidArgumentError
from mlpkit.optimizers import LBFGS, GradientDescent, Optimizer


class Function:
    """A function with its gradient that counts calls, and is not finite where `outside` says so."""

    def __init__(self, value, gradient, outside=lambda theta: False, bad=(np.nan, np.nan)):
        self.value, self.gradient, self.outside, self.bad = value, gradient, outside, bad
        self.calls = self.rejected = 0

    def __call__(self, theta):
        self.calls += 1
        if self.outside(theta):
            self.rejected += 1
            return self.bad[0], np.full_like(theta, self.bad[1])
        return float(self.value(theta)), self.gradient(theta)


class Points(list):
    """Collects what an optimiser reports."""

    def report(self, theta, cost, gradient):
        self.append((theta.copy(), cost, gradient.copy()))

    @property
    def costs(self):
        return [cost for _, cost, _ in self]


def rosenbrock():
    return Function(rosen, rosen_der)


def bowl(**options):
    """Half the squared distance from 3 in each coordinate."""
    return Function(lambda t: 0.5 * (t - 3) @ (t - 3), lambda t: t - 3, **options)


def barrier(bad):
    """Return sum(c t) - sum(log t), infinite where t <= 0, with its minimum at t = 1 / c."""
    c = np.array([100.0, 1.0, 7.0])
    return c, Function(lambda t: c @ t - np.log(t).sum(), lambda t: c - 1 / t, lambda t: bool((t <= 0).any()), bad)


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
def test_lbfgs_is_scipys(optimizer, options):
    start = np.linspace(-1.5, 2.0, 8)
    ours, theirs, points = rosenbrock(), rosenbrock(), Points()
    theta, _ = optimizer.minimize(ours, start, points.report)
    expected = minimize(theirs, start, jac=True, method="L-BFGS-B", options=options)
    np.testing.assert_array_equal(theta, expected.x)
    assert len(points) == expected.nit
    assert ours.calls == theirs.calls  # the starting point is not evaluated twice
    assert points[-1][1] == expected.fun


def test_lbfgs_defaults_are_scipys():
    assert LBFGS() == LBFGS(max_iter=15000, ftol=2.220446049250313e-09, gtol=1e-5)
    assert LBFGS().max_corrections == 10


def test_lbfgs_says_why_it_stopped():
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


def test_lbfgs_evaluations_are_not_bounded(monkeypatch):
    """SciPy's default stops after 15 000 evaluations, however many iterations were asked for."""
    bounds = []

    def spy(*args, options, **others):
        bounds.append(options["maxfun"])
        return minimize(*args, options=options, **others)

    monkeypatch.setattr("scipy.optimize.minimize", spy)
    LBFGS().minimize(bowl(), np.zeros(1), Points().report)
    assert bounds[0] >= 10**9


@pytest.mark.parametrize("bad", [(np.nan, np.nan), (np.inf, np.nan), (-np.inf, 1.0), (0.0, np.inf)])
def test_lbfgs_takes_a_trial_that_is_not_finite_as_a_rejected_step(bad):
    """Even a tempting J of 0 or -inf beyond the wall is not taken."""
    c, function = barrier(bad)
    points = Points()
    theta, reason = LBFGS(ftol=0).minimize(function, np.array([1.0, 5.0, 0.2]), points.report)
    assert reason == "converged: gradient below gtol"
    np.testing.assert_allclose(theta, 1 / c, rtol=1e-5)
    assert function.rejected > 0
    assert function.calls < 100
    assert np.isfinite(points.costs).all()
    assert (np.diff(points.costs) <= 0).all()
    assert all(np.isfinite(theta).all() and np.isfinite(g).all() for theta, _, g in points)


def test_lbfgs_interpolates_back_behind_a_wall():
    """The first step is a quarter as long each time until it fits."""
    trials = []
    function = bowl(outside=lambda t: bool(t[0] >= 1e-3))

    def evaluate(theta):
        trials.append(theta[0])
        return function(theta)

    LBFGS(max_iter=1).minimize(evaluate, np.zeros(1), Points().report)
    assert trials[1] == pytest.approx(1.0)
    np.testing.assert_allclose(np.divide(trials[2:6], trials[1:5]), 0.25)
    assert 0 < trials[-1] < 1e-3


def test_lbfgs_creeps_up_to_a_wall_with_the_minimum_behind_it():
    function = bowl(outside=lambda t: bool(t[0] >= 1.5))
    points = Points()
    theta, reason = LBFGS().minimize(function, np.zeros(1), points.report)
    assert 1.4 < theta[0] < 1.5
    assert reason.startswith(("line search failed", "converged: relative reduction"))
    np.testing.assert_array_equal(points[-1][0], theta)


def test_lbfgs_survives_trials_that_overflow():
    """The square of the gradient's norm is 0, so that SciPy's first step is infinitely long."""
    function = Function(lambda t: -1e-300 * t.sum(), lambda t: np.full_like(t, -1e-300), lambda t: abs(t[0]) > 5)
    points = Points()
    theta, reason = LBFGS(gtol=0).minimize(function, np.zeros(2), points.report)
    np.testing.assert_array_equal(theta, [0, 0])
    assert reason.startswith("line search failed")
    assert not points


def test_gradient_descent_is_the_notes_step():
    start = np.array([0.3, -0.7, 1.1])
    points, expected = Points(), start.copy()
    theta, reason = GradientDescent(alpha=1e-3, max_iter=5).minimize(rosenbrock(), start, points.report)
    for k in range(5):
        expected = expected - 1e-3 * rosen_der(expected)
        np.testing.assert_array_equal(points[k][0], expected)
        assert points[k][1] == rosen(expected)
    np.testing.assert_array_equal(theta, expected)
    assert reason == "max_iter reached"


def test_gradient_descent_moves_all_parameters_together():
    """If the second coordinate saw the first one's new value, it would move by 0.1 (1 - 0.1)."""
    function = Function(lambda t: t[0] * t[1], lambda t: t[::-1].copy())
    theta, _ = GradientDescent(0.1, 1).minimize(function, np.array([1.0, 1.0]), Points().report)
    np.testing.assert_allclose(theta, [0.9, 0.9])


def test_gradient_descent_that_diverges_keeps_the_last_finite_parameters():
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


@pytest.mark.parametrize("optimizer", [LBFGS(), GradientDescent(0.1, 3)])
class TestEvery:
    @pytest.mark.parametrize("bad", [(np.nan, 0.0), (np.inf, 0.0), (1.0, np.nan)])
    def test_a_start_that_is_not_finite_is_an_error(self, optimizer, bad):
        function = bowl(outside=lambda t: True, bad=bad)
        points = Points()
        with pytest.raises(InvalidArgumentError, match=r"theta .*(nan|inf).* starting point"):
            optimizer.minimize(function, np.zeros(2), points.report)
        assert not points

    def test_the_start_is_not_changed(self, optimizer):
        start = np.zeros(3)
        start.flags.writeable = False
        theta, _ = optimizer.minimize(bowl(), start, Points().report)
        assert theta.dtype == np.float64
        assert not np.shares_memory(theta, start)

    def test_an_exception_in_report_comes_through(self, optimizer):
        def report(*point):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            optimizer.minimize(bowl(), np.zeros(2), report)

    def test_protocol(self, optimizer):
        assert isinstance(optimizer, Optimizer)
        assert eval(repr(optimizer)) == optimizer


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: LBFGS(max_iter=0), "max_iter"),
        (lambda: LBFGS(max_iter=2.5), "max_iter"),
        (lambda: LBFGS(ftol=-1e-9), "ftol"),
        (lambda: LBFGS(gtol=np.nan), "gtol"),
        (lambda: LBFGS(max_corrections=0), "max_corrections"),
        (lambda: GradientDescent(0.0, 10), "alpha"),
        (lambda: GradientDescent("fast", 10), "alpha"),
        (lambda: GradientDescent(0.1, 0), "max_iter"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(InvalidArgumentError, match=f"^{name} must be"):
        make()
