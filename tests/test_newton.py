"""Newton's method by products with the Hessian: SciPy's own answers, walls of NaN, and training."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize, rosen, rosen_der, rosen_hess_prod
from test_optimizers import Function, Points

import mlpkit
from mlpkit import LBFGS, NewtonCG, TrustNCG
from mlpkit.errors import InvalidArgumentError
from mlpkit.optimizers import Optimizer

BOTH = pytest.mark.parametrize("optimizer", [NewtonCG(), TrustNCG()])
METHODS = {NewtonCG: "Newton-CG", TrustNCG: "trust-ncg"}


class Curved(Function):
    """A function with its gradient and products of its Hessian, which are counted."""

    def __init__(self, value, gradient, product, **options):
        super().__init__(value, gradient, **options)
        self.product = product
        self.products = 0

    def hessian_vector_product(self, theta, v):
        self.products += 1
        return self.product(theta, v)


def rosenbrock():
    return Curved(rosen, rosen_der, rosen_hess_prod)


def bowl(**options):
    return Curved(lambda t: 0.5 * (t - 3) @ (t - 3), lambda t: t - 3, lambda t, v: v.copy(), **options)


def barrier(bad):
    """Return sum(c t) - sum(log t), infinite where t <= 0, with its minimum at t = 1 / c."""
    c = np.array([100.0, 1.0, 7.0])
    return c, Curved(
        lambda t: c @ t - np.log(t).sum(),
        lambda t: c - 1 / t,
        lambda t, v: v / t**2,
        outside=lambda t: bool((t <= 0).any()),
        bad=bad,
    )


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (NewtonCG(), {}),
        (NewtonCG(max_iter=4), {"maxiter": 4}),
        (NewtonCG(xtol=1e-12), {"xtol": 1e-12}),
        (TrustNCG(), {}),
        (TrustNCG(max_iter=5), {"maxiter": 5}),
        (TrustNCG(gtol=1e-9), {"gtol": 1e-9}),
        (
            TrustNCG(initial_trust_radius=0.1, max_trust_radius=0.5, eta=0.01),
            {"initial_trust_radius": 0.1, "max_trust_radius": 0.5, "eta": 0.01},
        ),
    ],
)
def test_answers_are_scipys(optimizer, options):
    start = np.linspace(-1.5, 2.0, 8)
    ours, theirs, points = rosenbrock(), rosenbrock(), Points()
    theta, _ = optimizer.minimize(ours, start, points.report)
    expected = minimize(
        theirs, start, jac=True, hessp=theirs.hessian_vector_product, method=METHODS[type(optimizer)], options=options
    )
    np.testing.assert_array_equal(theta, expected.x)
    assert points[-1][1] == expected.fun
    np.testing.assert_array_equal(points[-1][0], theta)
    assert ours.products == theirs.products
    assert ours.calls <= theirs.calls + 1  # an accepted point that the line search did not evaluate last
    assert (np.diff(points.costs) < 0).all()  # no rejected step is reported
    assert len(points) <= expected.nit


def test_defaults_are_scipys():
    assert NewtonCG() == NewtonCG(max_iter=15000, xtol=1e-5)
    assert TrustNCG() == TrustNCG(
        max_iter=15000, gtol=1e-4, initial_trust_radius=1.0, max_trust_radius=1000.0, eta=0.15
    )


def test_a_quadratic_takes_one_step():
    for optimizer in (NewtonCG(), TrustNCG(initial_trust_radius=100.0)):
        points = Points()
        optimizer.minimize(bowl(), np.zeros(2), points.report)
        np.testing.assert_allclose(points[0][0], [3.0, 3.0])


def test_they_say_why_they_stopped():
    def reason(optimizer, function=None, start=(-1.0, 1.5)):
        return optimizer.minimize(function or rosenbrock(), np.array(start), Points().report)[1]

    assert reason(NewtonCG()) == "converged: mean step below xtol"
    assert reason(NewtonCG(max_iter=2)) == "max_iter reached"
    assert reason(TrustNCG()) == "converged: gradient below gtol"
    assert reason(TrustNCG(max_iter=2)) == "max_iter reached"
    for optimizer in (NewtonCG(), TrustNCG(gtol=0)):
        assert reason(optimizer, bowl(), (3.0, 3.0)) == "converged: gradient is zero"
    assert reason(TrustNCG(gtol=0), bowl(), (0.0, 9.0)) == "converged: gradient is zero"
    flat = Curved(lambda t: 1e6, lambda t: 1e-9 * t, lambda t, v: 1e-9 * v)  # lost to rounding
    assert reason(TrustNCG(gtol=0), flat) == "converged: J does not decrease any further"
    uphill = Curved(lambda t: t @ t, lambda t: -2 * t, lambda t, v: 2 * v)
    assert reason(NewtonCG(), uphill).startswith("line search failed")
    assert reason(TrustNCG(), uphill) == "converged: J does not decrease any further"


@pytest.mark.parametrize("bad", [(np.nan, np.nan), (np.inf, np.nan), (-np.inf, 1.0), (0.0, np.inf)])
@pytest.mark.parametrize("optimizer", [NewtonCG(xtol=1e-9), TrustNCG(gtol=1e-7)])
def test_a_trial_that_is_not_finite_is_a_rejected_step(optimizer, bad):
    c, function = barrier(bad)
    points = Points()
    theta, reason = optimizer.minimize(function, np.array([1.0, 5.0, 0.2]), points.report)
    assert reason.startswith(("converged", "line search failed"))
    np.testing.assert_allclose(theta, 1 / c, rtol=1e-5)
    assert function.rejected > 0
    assert function.calls < 150
    assert (np.diff(points.costs) <= 0).all()
    assert all(np.isfinite(theta).all() and np.isfinite(g).all() for theta, _, g in points)


@BOTH
def test_a_minimum_behind_a_wall_is_crept_up_to(optimizer):
    function = bowl(outside=lambda t: bool(t[0] >= 1.5))
    points = Points()
    theta, reason = optimizer.minimize(function, np.zeros(1), points.report)
    assert 1.0 < theta[0] < 1.5
    assert reason.startswith(("line search failed", "converged"))
    np.testing.assert_array_equal(points[-1][0], theta)
    assert function.calls < 500


@BOTH
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_product_that_is_not_finite_stops_at_the_last_parameters(optimizer, bad):
    wall = Curved(rosen, rosen_der, lambda t, v: rosen_hess_prod(t, v) if t[0] < 0 else np.full_like(v, bad))
    points = Points()
    theta, reason = optimizer.minimize(wall, np.array([-1.0, 1.5]), points.report)
    assert reason == "stopped: a product with the Hessian is not finite at the last parameters accepted"
    np.testing.assert_array_equal(points[-1][0], theta)
    assert np.isfinite(theta).all()


@BOTH
class TestEvery:
    @pytest.mark.parametrize("bad", [(np.nan, 0.0), (np.inf, 0.0), (1.0, np.nan)])
    def test_a_start_that_is_not_finite_is_an_error(self, optimizer, bad):
        function = bowl(outside=lambda t: True, bad=bad)
        with pytest.raises(InvalidArgumentError, match=r"theta .*(nan|inf).* starting point"):
            optimizer.minimize(function, np.zeros(2), Points().report)

    def test_products_are_needed(self, optimizer):
        with pytest.raises(InvalidArgumentError, match=r"^evaluate must have a method hessian_vector_product"):
            optimizer.minimize(lambda theta: (0.0, theta), np.zeros(2), Points().report)

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

    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    def test_it_trains(self, optimizer, dtype):
        X = np.random.default_rng(0).uniform(0.1, 0.9, (200, 8))
        net = mlpkit.sparse_autoencoder(8, 4, dtype=dtype, seed=1)
        start = net.evaluate(X, X)["data"]
        result = net.fit(X, X, optimizer=optimizer)
        assert result.reason.startswith(("converged", "line search failed"))
        assert result.cost < 0.8 * start
        assert result.n_hessian_products > result.n_iterations > 3
        products = [record.n_hessian_products for record in result.history]
        assert products[0] > 0
        assert (np.diff(products) > 0).all()
        assert result.history.to_dict()["n_hessian_products"] == products
        assert f"{result.n_hessian_products} Hessian products" in str(result)


def test_they_reach_the_minimum_that_lbfgs_reaches():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 5))
    y = (X @ rng.normal(size=5) + 0.3 * rng.normal(size=300) > 0).astype(float)
    costs = []
    for optimizer in (LBFGS(ftol=0, gtol=1e-9), NewtonCG(xtol=1e-10), TrustNCG(gtol=1e-9)):
        net = mlpkit.MLP([mlpkit.Input(5), mlpkit.Dense(1, "sigmoid")], loss="binary_cross_entropy", weight_decay=1e-3)
        costs.append(net.fit(X, y, optimizer=optimizer).cost)
    assert max(costs) - min(costs) < 1e-11


def test_lbfgs_counts_no_products():
    net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "identity")])
    result = net.fit([[0.0], [1.0]], [0.0, 1.0])
    assert result.n_hessian_products == 0
    assert "Hessian" not in str(result)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: NewtonCG(max_iter=0), "max_iter"),
        (lambda: NewtonCG(xtol=-1.0), "xtol"),
        (lambda: TrustNCG(max_iter=2.5), "max_iter"),
        (lambda: TrustNCG(gtol=np.nan), "gtol"),
        (lambda: TrustNCG(initial_trust_radius=0.0), "initial_trust_radius"),
        (lambda: TrustNCG(initial_trust_radius=2.0, max_trust_radius=1.0), "initial_trust_radius"),
        (lambda: TrustNCG(max_trust_radius=-1.0), "max_trust_radius"),
        (lambda: TrustNCG(eta=0.25), "eta"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(InvalidArgumentError, match=f"^{name} must be"):
        make()
