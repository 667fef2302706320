"""Newton's method without the Hessian: optimisers that ask J for products of its Hessian and vectors.

Both are SciPy's. Each iteration solves Newton's equation H p = -g roughly, by conjugate gradients, which need a product
H v a step; NewtonCG then searches along p, TrustNCG stays within a radius in which the quadratic model has been found
good. Points that are not finite are treated as `mlpkit.optimizers` says.

A product costs about two evaluations of J. On the exercise of the notes `LBFGS` gets to any J above its minimum sooner
than either (`benchmarks/newton.py`); these two get to gradients of 1e-7 and less in few iterations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mlpkit.checks import check_integer, check_number
from mlpkit.descent import Evaluate, Report, Vector, evaluate_at, starting_point
from mlpkit.errors import InvalidArgumentError

__all__ = ["NewtonCG", "TrustNCG"]


@dataclass(frozen=True)
class NewtonCG:
    """Newton's method with conjugate gradients and a line search: SciPy's Newton-CG, with its meanings.

    An iteration costs one or a few evaluations of J, and as many products with the Hessian as conjugate gradients take:
    until the residual of Newton's equation is below min(1/2, sqrt(|g|)) |g|, |g| the sum of absolute values in the
    gradient, or the curvature is not positive.

    Parameters
    ----------
    max_iter : int
        The most iterations to take, at least 1.
    xtol : float
        Stop when the mean absolute change of a parameter in an iteration is <= xtol. 0 switches the test off: then only
        a step that leaves theta exactly as it was stops here.

    Raises
    ------
    InvalidArgumentError
        Naming the argument, what was expected and what was found.

    Examples
    --------
    >>> import mlpkit
    >>> net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "identity")])
    >>> result = net.fit([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0], optimizer=NewtonCG())
    >>> net.theta.round(6)
    array([2., 1.])
    """

    max_iter: int = 15000
    xtol: float = 1e-5

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_iter", check_integer(self.max_iter, "max_iter", low=1))
        object.__setattr__(self, "xtol", check_number(self.xtol, "xtol", low=0))

    def minimize(self, evaluate: Evaluate, theta: ArrayLike, report: Report) -> tuple[Vector, str]:
        """Minimise J from `theta`; see `mlpkit.optimizers.Optimizer.minimize`.

        `evaluate` needs a method ``hessian_vector_product(theta, v)``. The reason is one of ``"converged: mean step
        below xtol"``, ``"converged: J does not decrease any further"``, ``"converged: gradient is zero"``, ``"max_iter
        reached"``, ``"line search failed: ..."``, ``"stopped: ..."``.
        """
        search = _Search(evaluate, theta, report)
        return search.run("Newton-CG", {"maxiter": self.max_iter, "xtol": self.xtol}, self._reason)

    def _reason(self, result: Any) -> str:
        if result.status == 0:
            return f"converged: {'mean step below xtol' if self.xtol > 0 else 'J does not decrease any further'}"
        if result.nit >= self.max_iter:
            return "max_iter reached"
        if result.status == 2:
            return "line search failed: no step along the search direction decreases J enough"
        return "stopped: conjugate gradients found no step; the Hessian is too near to singular"


@dataclass(frozen=True)
class TrustNCG:
    """Newton's method with conjugate gradients in a trust region: SciPy's trust-ncg, with its meanings and defaults.

    Parameters
    ----------
    max_iter : int
        The most iterations to take, at least 1; those whose step is rejected count, but are not reported.
    gtol : float
        Stop when the Euclidean norm of the gradient is < gtol. 0 switches the test off: then only a gradient of exactly
        zero stops here.
    initial_trust_radius, max_trust_radius : float
        How long steps may be, in the Euclidean norm, at first and at most.
    eta : float
        A step is accepted if J decreases by more than this part of what the quadratic model says; from 0 to below 1/4.

    Raises
    ------
    InvalidArgumentError
        Naming the argument, what was expected and what was found.

    Examples
    --------
    >>> import mlpkit
    >>> net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "identity")])
    >>> result = net.fit([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0], optimizer=TrustNCG(gtol=1e-8))
    >>> net.theta.round(6)
    array([2., 1.])
    """

    max_iter: int = 15000
    gtol: float = 1e-4
    initial_trust_radius: float = 1.0
    max_trust_radius: float = 1000.0
    eta: float = 0.15

    def __post_init__(self) -> None:
        radius = check_number(self.max_trust_radius, "max_trust_radius", low=0, low_open=True)
        initial = check_number(
            self.initial_trust_radius, "initial_trust_radius", low=0, high=radius, low_open=True, high_open=True
        )
        object.__setattr__(self, "max_iter", check_integer(self.max_iter, "max_iter", low=1))
        object.__setattr__(self, "gtol", check_number(self.gtol, "gtol", low=0))
        object.__setattr__(self, "initial_trust_radius", initial)
        object.__setattr__(self, "max_trust_radius", radius)
        object.__setattr__(self, "eta", check_number(self.eta, "eta", low=0, high=0.25, high_open=True))

    def minimize(self, evaluate: Evaluate, theta: ArrayLike, report: Report) -> tuple[Vector, str]:
        """Minimise J from `theta`; see `mlpkit.optimizers.Optimizer.minimize`.

        `evaluate` needs a method ``hessian_vector_product(theta, v)``. The reason is one of ``"converged: gradient
        below gtol"``, ``"converged: gradient is zero"``, ``"converged: J does not decrease any further"``, ``"max_iter
        reached"``, ``"stopped: ..."``.
        """
        options = {
            "maxiter": self.max_iter,
            "gtol": self.gtol,
            "initial_trust_radius": self.initial_trust_radius,
            "max_trust_radius": self.max_trust_radius,
            "eta": self.eta,
        }
        return _Search(evaluate, theta, report).run("trust-ncg", options, self._reason)

    def _reason(self, result: Any) -> str:
        if result.status == 0:
            return "converged: gradient below gtol"
        if result.status == 2:
            return "converged: J does not decrease any further"
        return "max_iter reached"


class _StoppedError(Exception):
    """There is no going on from an accepted point; the message is the reason."""


class _Search:
    """Stands between SciPy and J: hides what is not finite, hands out products, knows which points were accepted."""

    def __init__(self, evaluate: Evaluate, theta: ArrayLike, report: Report) -> None:
        product = getattr(evaluate, "hessian_vector_product", None)
        if not callable(product):
            raise InvalidArgumentError(
                f"evaluate must have a method hessian_vector_product(theta, v), as that of MLP.fit has; found "
                f"{evaluate!r}"
            )
        self.accepted = self._latest = starting_point(evaluate, theta)
        self._evaluate = evaluate
        self._product = product
        self._report = report

    def run(self, method: str, options: dict[str, Any], reason: Callable[[Any], str]) -> tuple[Vector, str]:
        """Run one of SciPy's methods; `reason` says in words what its result means."""
        from scipy.optimize import minimize  # 0.2 s, which only those who train should pay

        try:
            self._stop_at_zero_gradient()
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # of trials that go too far
                result = minimize(
                    self.value_and_gradient,
                    self.accepted.theta,
                    jac=True,
                    hessp=self.hessian_vector_product,
                    method=method,
                    callback=self.accept,
                    options=options,
                )
        except _StoppedError as error:
            return self.accepted.theta, str(error)
        return self.accepted.theta, reason(result)

    def value_and_gradient(self, theta: Vector) -> tuple[float, Vector]:
        """Return J and its gradient, or what stands in for them."""
        # SciPy first asks for the starting point again, which has just been evaluated.
        if not np.array_equal(theta, self._latest.theta):
            self._latest = evaluate_at(self._evaluate, theta.copy())
        if self._latest.finite:
            return self._latest.cost, self._latest.gradient
        return self._surrogate(theta)

    def hessian_vector_product(self, theta: Vector, v: Vector) -> Vector:
        """Return a product with the Hessian at an accepted point, which must be finite."""
        product = self._product(theta, v)
        if not np.isfinite(product).all():
            raise _StoppedError("stopped: a product with the Hessian is not finite at the last parameters accepted")
        return product

    def accept(self, intermediate_result: Any) -> None:
        """Report a new iterate: SciPy's callback, whose argument's name SciPy insists on.

        A trust region calls it also after a step that it rejects, and stays where it was.
        """
        theta = intermediate_result.x
        if np.array_equal(theta, self.accepted.theta):
            if np.array_equal(self._latest.theta, theta):  # too short a step to change theta
                raise _StoppedError("converged: J does not decrease any further")
            return
        if not np.array_equal(theta, self._latest.theta):
            self._latest = evaluate_at(self._evaluate, theta.copy())
        if not self._latest.finite:
            # Only where every number is so small that slopes underflow to 0 does SciPy get here.
            raise _StoppedError("stopped: J or its gradient is not finite at the next parameters")
        self.accepted = self._latest
        self._report(*self.accepted)
        self._stop_at_zero_gradient()

    def _stop_at_zero_gradient(self) -> None:
        if not self.accepted.gradient.any():
            raise _StoppedError("converged: gradient is zero")

    def _surrogate(self, theta: Vector) -> tuple[float, Vector]:
        """Return a finite value and gradient that make SciPy take a shorter step.

        Let m < 0 be the slope at the accepted point per step s = theta - accepted. The parabola J +
        m t + 2 |m| t**2 has its minimum at t = 1/4; at t = 1 its value is J + |m| and its slope 3
        |m|, which is that of the gradient -3 g, since m = g s. So Moré and Thuente's first case
        applies (a value above, a slope uphill), whose cubic and quadratic interpolants are both
        this parabola. The value is above that of every point that the search can have seen as its
        best, and is never accepted; a trust region finds that J has grown, and shrinks.
        """
        cost, gradient = self.accepted.cost, self.accepted.gradient
        with np.errstate(over="ignore", invalid="ignore"):
            slope = abs(float(gradient @ (theta - self.accepted.theta)))
        room = np.finfo(np.float64).max / 4
        slope = min(slope, room) if np.isfinite(slope) else room
        above = max(cost + slope, float(np.nextafter(cost, np.inf)))
        return min(above, 2 * room), -3.0 * gradient
