"""What all optimisers have in common: starts, reports, walls of NaN, and going on from a state to the bit."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
from scipy.optimize import rosen, rosen_der

import mlpkit
from mlpkit import optimizers
from mlpkit.errors import InvalidArgumentError
from mlpkit.optimizers import LBFGS, ConjugateGradient, GradientDescent, Optimizer, is_resumable


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


def rosenbrock(**options):
    return Function(rosen, rosen_der, **options)


def bowl(**options):
    """Half the squared distance from 3 in each coordinate."""
    return Function(lambda t: 0.5 * (t - 3) @ (t - 3), lambda t: t - 3, **options)


def quadratic(eigenvalues, **options):
    """0.5 (t - 1) H (t - 1) with these eigenvalues, whose axes are not the coordinates'."""
    eigenvalues = np.asarray(eigenvalues, dtype=np.float64)
    n = eigenvalues.size
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))[0]
    H = axes @ np.diag(eigenvalues) @ axes.T
    return Function(lambda t: 0.5 * (t - 1) @ H @ (t - 1), lambda t: H @ (t - 1), **options)


def barrier(bad=(np.nan, np.nan)):
    """Return sum(c t) - sum(log t), infinite where t <= 0, with its minimum at t = 1 / c."""
    c = np.array([100.0, 1.0, 7.0])
    return c, Function(lambda t: c @ t - np.log(t).sum(), lambda t: c - 1 / t, lambda t: bool((t <= 0).any()), bad)


SEARCHING = [LBFGS(max_iter=40), ConjugateGradient(max_iter=40), GradientDescent(1.0, 40, line_search=True)]
EVERY = [*SEARCHING, GradientDescent(1e-3, 40)]
by_name = pytest.mark.parametrize("optimizer", EVERY, ids=repr)
searching = pytest.mark.parametrize("optimizer", SEARCHING, ids=repr)


@by_name
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

    def test_what_is_returned_was_reported_last_and_every_report_is_true(self, optimizer):
        points, function = Points(), rosenbrock()
        theta, _ = optimizer.minimize(function, np.array([-1.0, 1.5, 0.5]), points.report)
        np.testing.assert_array_equal(points[-1][0], theta)
        for at, cost, gradient in points:
            assert cost == rosen(at)
            np.testing.assert_array_equal(gradient, rosen_der(at))
        assert (np.diff(points.costs) <= 0).all()

    def test_an_optimal_start_stays(self, optimizer):
        theta, reason = optimizer.minimize(bowl(), np.full(2, 3.0), Points().report)
        np.testing.assert_array_equal(theta, [3, 3])
        assert reason.startswith("converged: gradient") or optimizer == GradientDescent(1e-3, 40)

    def test_one_parameter_is_enough(self, optimizer):
        points = Points()
        theta, _ = optimizer.minimize(bowl(), np.zeros(1), points.report)
        assert (theta.shape, points[0][0].shape) == ((1,), (1,))
        assert abs(theta[0] - 3) < 3
        assert abs(theta[0] - 3) < 1e-5 or not getattr(optimizer, "line_search", True)

    def test_it_is_deterministic(self, optimizer):
        runs = [Points(), Points()]
        for points in runs:
            optimizer.minimize(rosenbrock(), np.linspace(-1.5, 2.0, 8), points.report)
        assert_same_points(*runs)

    def test_protocol(self, optimizer):
        assert isinstance(optimizer, Optimizer)
        assert is_resumable(optimizer)
        assert eval(repr(optimizer)) == optimizer
        assert getattr(mlpkit, type(optimizer).__name__) is getattr(optimizers, type(optimizer).__name__)


@searching
class TestThoseThatSearch:
    @pytest.mark.parametrize("bad", [(np.nan, np.nan), (np.inf, np.nan), (-np.inf, 1.0), (0.0, np.inf)])
    def test_a_trial_that_is_not_finite_is_a_rejected_step(self, optimizer, bad):
        """Even a tempting J of 0 or -inf beyond the wall is not taken."""
        c, function = barrier(bad)
        points = Points()
        theta, _ = optimizer.minimize(function, np.array([1.0, 5.0, 0.2]), points.report)
        if not isinstance(optimizer, GradientDescent):  # which is not there yet
            np.testing.assert_allclose(theta, 1 / c, rtol=1e-4)
        assert function.rejected > 0
        assert function.calls < 250
        assert np.isfinite(points.costs).all()
        assert (np.diff(points.costs) <= 0).all()
        assert all(np.isfinite(theta).all() and np.isfinite(g).all() for theta, _, g in points)

    def test_a_wall_before_the_minimum_is_approached(self, optimizer):
        function = bowl(outside=lambda t: bool(t[0] >= 1.5))
        points = Points()
        theta, reason = optimizer.minimize(function, np.zeros(1), points.report)
        assert 1.3 < theta[0] < 1.5
        assert reason.startswith(("line search failed", "converged: ", "max_iter"))
        np.testing.assert_array_equal(points[-1][0], theta)

    def test_numbers_whose_squares_vanish(self, optimizer):
        """The square of the gradient's norm is 0 in float64."""
        function = Function(lambda t: -1e-300 * t.sum(), lambda t: np.full_like(t, -1e-300), lambda t: abs(t[0]) > 5)
        if hasattr(optimizer, "gtol"):
            optimizer = replace(optimizer, gtol=0.0)
        theta, _ = optimizer.minimize(function, np.zeros(2), Points().report)
        assert 0 <= theta[0] <= 5
        assert theta[0] > 4 or not isinstance(optimizer, LBFGS)  # whose first direction has length 1
        assert function.calls < 1000

    def test_a_direction_that_does_not_go_down_ends_it(self, optimizer):
        uphill = Function(lambda t: t @ t, lambda t: -2 * t)
        theta, reason = optimizer.minimize(uphill, np.array([-1.0, 1.5]), Points().report)
        assert reason.startswith("line search failed")
        np.testing.assert_array_equal(theta, [-1.0, 1.5])

    def test_a_flat_function_is_done_at_once(self, optimizer):
        flat = Function(lambda t: 7.0, np.zeros_like)
        theta, reason = optimizer.minimize(flat, np.ones(3), Points().report)
        assert reason.startswith("converged: gradient")
        assert flat.calls == 1
        np.testing.assert_array_equal(theta, 1)

    def test_a_function_without_a_minimum_ends_finite(self, optimizer):
        slope = Function(lambda t: -t.sum(), lambda t: np.full_like(t, -1.0))
        with np.errstate(over="ignore"):
            theta, _ = optimizer.minimize(slope, np.zeros(2), Points().report)
        assert np.isfinite(theta).all()
        assert (theta > 1e6).all()


def through_a_file(state, path):
    """Write a state to an HDF5 file as a checkpoint would, and read it back."""
    with h5py.File(path, "w") as file:
        for name, value in state.items():
            if isinstance(value, np.ndarray):
                file[name] = value
            else:
                file.attrs[name] = value
    with h5py.File(path) as file:
        return dict(file.attrs) | {name: dataset[()] for name, dataset in file.items()}


def assert_same_points(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a[1] == b[1]
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[2], b[2])


FUNCTIONS = {
    "rosenbrock": (rosenbrock, np.linspace(-1.5, 2.0, 9)),
    "walls": (lambda: barrier()[1], np.array([1.0, 5.0, 0.2])),
    "scaled": (lambda: quadratic(np.logspace(-3, 2, 7)), np.zeros(7)),
    "one": (lambda: Function(lambda t: np.cosh(t[0]), np.sinh), np.array([2.0])),
}


@by_name
class TestResuming:
    @pytest.fixture(params=FUNCTIONS)
    def function(self, request):
        """Return a way to make it, as it counts calls, and where to start."""
        return FUNCTIONS[request.param]

    def test_going_on_from_any_iteration_is_the_same_to_the_bit(self, optimizer, function, tmp_path):
        make, start = function
        whole, points, states, calls = make(), Points(), [], []

        def save(snapshot):
            assert len(points) == len(states)  # before the report
            states.append(through_a_file(snapshot(), tmp_path / "state.h5"))
            calls.append(whole.calls)

        theta, reason = optimizer.minimize(whole, start, points.report, save=save)
        assert len(states) == len(points) > 2
        for k, state in enumerate(states, 1):
            rest, after = make(), Points()
            end, why = optimizer.minimize(rest, start, after.report, state=state)
            assert_same_points(after, points[k:])
            np.testing.assert_array_equal(end, theta)
            assert why == reason
            assert rest.calls == whole.calls - calls[k - 1]
            assert state["iteration"] == k

    def test_a_snapshot_keeps_its_iteration(self, optimizer):
        then, snapshots = [], []

        def save(snapshot):
            then.append(snapshot())
            snapshots.append(snapshot)

        optimizer.minimize(rosenbrock(), np.linspace(-1.5, 2.0, 5), Points().report, save=save)
        assert len(then) > 5
        for old, snapshot in zip(then, snapshots, strict=True):
            now = snapshot()
            assert now.keys() == old.keys()
            for name, value in now.items():
                np.testing.assert_array_equal(value, old[name])

    def test_nobody_shares_memory_with_a_state(self, optimizer):
        make, start = FUNCTIONS["rosenbrock"]

        def run(spoil):
            points = Points()

            def save(snapshot):
                for value in snapshot().values():
                    if spoil and isinstance(value, np.ndarray):
                        value[...] = 7.0

            optimizer.minimize(make(), start, points.report, save=save)
            return points

        assert_same_points(run(True), run(False))

    def test_going_on_twice_and_saving_in_between(self, optimizer):
        make, start = FUNCTIONS["rosenbrock"]
        theta, _ = optimizer.minimize(make(), start, Points().report)
        state = None
        for stop in (7, 8, 20):
            snapshots = []
            part = replace(optimizer, max_iter=stop)
            part.minimize(make(), start, Points().report, state=state, save=snapshots.append)
            state = snapshots[-1]()
            assert state["iteration"] == stop
        end, _ = optimizer.minimize(make(), start, Points().report, state=state)
        np.testing.assert_array_equal(end, theta)

    def test_the_state_is_plain_data(self, optimizer):
        snapshots = []
        optimizer.minimize(rosenbrock(), np.zeros(3), Points().report, save=snapshots.append)
        for name, value in snapshots[-1]().items():
            assert isinstance(name, str)
            assert type(value) in (int, str, np.ndarray)
            assert not isinstance(value, np.ndarray) or value.dtype == np.float64

    @pytest.mark.parametrize(
        ("spoil", "match"),
        [
            (lambda s: s.update(optimizer="Adam"), r"state\['optimizer'\] must be '\w+'; found 'Adam'"),
            (lambda s: s.update(version=99), r"state\['version'\] must be 1; found 99"),
            (lambda s: s.pop("version"), r"state\['version'\] must be 1; found nothing"),
            (lambda s: s.update(iteration=-1), r"state\['iteration'\] must be an integer"),
            (lambda s: s.update(iteration=1.5), r"state\['iteration'\] must be an integer"),
            (lambda s: s.pop("gradient"), r"state\['gradient'\] must be .* \(3,\); found nothing"),
            (lambda s: s.update(theta=np.zeros(4)), r"state\['theta'\] must be .* \(3,\); found float64 .* \(4,\)"),
            (lambda s: s.update(theta=np.zeros(3, np.float32)), r"state\['theta'\] must be .*; found float32"),
            (lambda s: s.update(theta=np.full(3, np.nan)), r"state\['theta'\] must be finite"),
            (lambda s: s.update(cost=1.0), r"state\['cost'\] must be a float64 array"),
            (lambda s: s.update(cost=np.array(np.inf)), r"state\['cost'\] must be finite"),
        ],
    )
    def test_a_state_that_does_not_fit_is_refused(self, optimizer, spoil, match):
        snapshots = []
        optimizer.minimize(rosenbrock(), np.zeros(3), Points().report, save=snapshots.append)
        state = dict(snapshots[2]())
        spoil(state)
        with pytest.raises(InvalidArgumentError, match=match):
            optimizer.minimize(rosenbrock(), np.zeros(3), Points().report, state=state)


def test_an_optimizer_of_a_users_own_need_not_resume():
    class Own:
        def minimize(self, evaluate, theta, report):
            return theta, "done"

    class Wrapped(LBFGS):
        def minimize(self, evaluate, theta, report):
            return super().minimize(evaluate, theta, report)

    assert isinstance(Own(), Optimizer)
    assert not is_resumable(Own())
    assert not is_resumable(Wrapped())


def test_scipys_optimisers_do_not_resume():
    assert not is_resumable(optimizers.NewtonCG())
    assert not is_resumable(optimizers.TrustNCG())


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: LBFGS(max_iter=0), "max_iter"),
        (lambda: LBFGS(max_iter=2.5), "max_iter"),
        (lambda: LBFGS(ftol=-1e-9), "ftol"),
        (lambda: LBFGS(gtol=np.nan), "gtol"),
        (lambda: LBFGS(max_corrections=0), "max_corrections"),
        (lambda: ConjugateGradient(max_iter=0), "max_iter"),
        (lambda: ConjugateGradient(gtol=-1.0), "gtol"),
        (lambda: ConjugateGradient(ftol=np.inf), "ftol"),
        (lambda: GradientDescent(0.0, 10), "alpha"),
        (lambda: GradientDescent("fast", 10), "alpha"),
        (lambda: GradientDescent(0.1, 0), "max_iter"),
        (lambda: GradientDescent(0.1, 5, line_search=1), "line_search"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(InvalidArgumentError, match=f"^{name} must be"):
        make()
