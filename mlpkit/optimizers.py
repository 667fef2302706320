"""What minimises J: each optimiser is a small immutable record with one method, `minimize`.

An optimiser knows nothing of networks. It is given a function that returns J and its gradient, a
starting theta, and a function to call after each accepted iteration; it returns the final theta
and, in words, why it stopped. Whatever has such a `minimize` can be handed to `MLP.fit`; see
`Optimizer`.

NaN or infinity is treated alike by all of them. At the start it is an error. On a *trial* of a line
search it is a rejected step: the search goes on with a shorter one. At an *accepted* point it ends
the minimisation, and the last finite theta is kept.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.checks import check_integer, check_number, check_vector
from mlpkit.errors import InvalidArgumentError

__all__ = ["LBFGS", "Evaluate", "GradientDescent", "Optimizer", "Report"]

Vector: TypeAlias = NDArray[np.float64]

#: theta -> (J, gradient). Each call returns a gradient of its own, which the optimiser may keep.
Evaluate: TypeAlias = Callable[[Vector], tuple[float, Vector]]

#: Called as report(theta, J, gradient) after each accepted iteration; it must not change them.
Report: TypeAlias = Callable[[Vector, float, Vector], None]


@runtime_checkable
class Optimizer(Protocol):
    """What `MLP.fit` asks of an optimiser.

    Examples
    --------
    >>> isinstance(LBFGS(), Optimizer)
    True
    """

    def minimize(self, evaluate: Evaluate, theta: Vector, report: Report) -> tuple[Vector, str]:
        """Minimise J from `theta` and return the final theta and the reason for stopping, in words.

        Parameters
        ----------
        evaluate : callable
            theta -> (J, gradient), a float and a fresh float64 array.
        theta : ndarray of float64, shape (n,)
            Where to start; it is not changed.
        report : callable
            To be called as ``report(theta, J, gradient)`` after each accepted iteration, and for no
            other point. An exception that it raises ends the minimisation and must be let through.
        """
        ...


class _Point(NamedTuple):
    """A theta that has been evaluated."""

    theta: Vector
    cost: float
    gradient: Vector

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.cost) and np.isfinite(self.gradient).all())


@dataclass(frozen=True)
class GradientDescent:
    """Batch gradient descent exactly as the notes write it, section 2.2.

    Each iteration moves all parameters at once, theta := theta - alpha * dJ/dtheta, which for each
    layer is W := W - alpha [(1/m) Delta W + lambda W] and b := b - alpha [(1/m) Delta b]. There is
    no other test for stopping than the number of iterations.

    Parameters
    ----------
    alpha : float
        The learning rate, positive.
    max_iter : int
        How many iterations to take, at least 1. They cost ``max_iter + 1`` evaluations of J.

    Raises
    ------
    InvalidArgumentError
        Naming the argument, what was expected and what was found.

    Examples
    --------
    >>> import numpy as np
    >>> evaluate = lambda theta: (0.5 * float(theta @ theta), theta.copy())
    >>> theta, reason = GradientDescent(alpha=0.5, max_iter=3).minimize(
    ...     evaluate, np.array([8.0, -8.0]), lambda *point: None
    ... )
    >>> theta
    array([ 1., -1.])
    >>> reason
    'max_iter reached'
    """

    alpha: float
    max_iter: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", check_number(self.alpha, "alpha", low=0, low_open=True))
        object.__setattr__(self, "max_iter", check_integer(self.max_iter, "max_iter", low=1))

    def minimize(self, evaluate: Evaluate, theta: ArrayLike, report: Report) -> tuple[Vector, str]:
        """Take `max_iter` steps from `theta`; see `Optimizer.minimize`.

        If J or its gradient is NaN or infinite after a step, the parameters before that step are
        returned, with a reason that begins with ``"diverged"``.
        """
        point = _start(evaluate, theta)
        for iteration in range(1, self.max_iter + 1):
            with np.errstate(over="ignore", invalid="ignore"):
                new = _evaluate(evaluate, point.theta - self.alpha * point.gradient)
            if not new.finite:
                return point.theta, (
                    f"diverged: {_what_is_not_finite(new)} after iteration {iteration}; the "
                    f"parameters before it are kept (a smaller alpha than {self.alpha:g} may help)"
                )
            point = new
            report(*point)
        return point.theta, "max_iter reached"


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS: SciPy's L-BFGS-B without bounds, with its meanings and its defaults.

    Parameters
    ----------
    max_iter : int
        The most iterations to take, at least 1. (The number of evaluations is not bounded.)
    ftol : float
        Stop when (J_k - J_{k+1}) / max(abs(J_k), abs(J_{k+1}), 1) <= ftol. 0 switches the test off:
        then only a step that leaves J exactly as it was stops here.
    gtol : float
        Stop when the largest absolute value in the gradient is <= gtol. 0 switches the test off:
        then only a gradient of exactly zero stops here.
    max_corrections : int
        How many pairs of steps and gradient changes to remember, at least 1.

    Raises
    ------
    InvalidArgumentError
        Naming the argument, what was expected and what was found.

    Notes
    -----
    A trial of the line search at which J or its gradient is NaN or infinite is a rejected step.
    SciPy's line search interpolates between values, so it is given those of a parabola through the
    last accepted point whose minimum lies a quarter of the way to the trial; the next trial is
    about there.

    Examples
    --------
    >>> import numpy as np
    >>> evaluate = lambda theta: (0.5 * float(theta @ theta), theta.copy())
    >>> theta, reason = LBFGS().minimize(evaluate, np.array([8.0, -8.0]), lambda *point: None)
    >>> bool(abs(theta).max() < 1e-5), reason
    (True, 'converged: gradient below gtol')
    """

    max_iter: int = 15000
    ftol: float = 2.220446049250313e-09
    gtol: float = 1e-5
    max_corrections: int = 10

    def __post_init__(self) -> None:
        corrections = check_integer(self.max_corrections, "max_corrections", low=1)
        object.__setattr__(self, "max_iter", check_integer(self.max_iter, "max_iter", low=1))
        object.__setattr__(self, "ftol", check_number(self.ftol, "ftol", low=0))
        object.__setattr__(self, "gtol", check_number(self.gtol, "gtol", low=0))
        object.__setattr__(self, "max_corrections", corrections)

    def minimize(self, evaluate: Evaluate, theta: ArrayLike, report: Report) -> tuple[Vector, str]:
        """Minimise J from `theta`; see `Optimizer.minimize`.

        The reason is one of ``"converged: gradient below gtol"``, ``"converged: relative reduction
        of J below ftol"``, ``"max_iter reached"``, ``"line search failed: ..."``; with a tolerance
        switched off, ``"converged: gradient is zero"`` and ``"converged: J does not decrease any
        further"`` take the place of the first two.
        """
        from scipy.optimize import minimize  # 0.2 s, which only those who train should pay

        search = _GuardedSearch(evaluate, _start(evaluate, theta), report)
        result = minimize(
            search.value_and_gradient,
            search.accepted.theta,
            jac=True,
            method="L-BFGS-B",
            callback=search.accept,
            options={
                "maxiter": self.max_iter,
                "maxfun": sys.maxsize,
                "ftol": self.ftol,
                "gtol": self.gtol,
                "maxcor": self.max_corrections,
            },
        )
        # The last accepted point is SciPy's answer too, also after a failed line search.
        return search.accepted.theta, self._reason(result)

    def _reason(self, result: Any) -> str:
        """Say in words what SciPy's message means; its spelling has changed between versions."""
        message = str(result.message).upper().replace("_", " ")
        if "PROJECTED GRADIENT" in message:
            return f"converged: gradient {'below gtol' if self.gtol > 0 else 'is zero'}"
        if "REDUCTION OF F" in message:
            if self.ftol > 0:
                return "converged: relative reduction of J below ftol"
            return "converged: J does not decrease any further"
        if result.nit >= self.max_iter:
            return "max_iter reached"
        if "ABNORMAL" in message or "CALLBACK" in message:
            return "line search failed: no step along the search direction decreases J enough"
        return f"stopped by SciPy: {result.message}"


class _GuardedSearch:
    """Stands between SciPy and J: hides what is not finite, knows which points were accepted."""

    def __init__(self, evaluate: Evaluate, start: _Point, report: Report) -> None:
        self.accepted = start
        self._latest = start
        self._evaluate = evaluate
        self._report = report

    def value_and_gradient(self, theta: Vector) -> tuple[float, Vector]:
        # SciPy first asks for the starting point again, which has just been evaluated.
        if not np.array_equal(theta, self._latest.theta):
            self._latest = _evaluate(self._evaluate, theta.copy())
        if self._latest.finite:
            return self._latest.cost, self._latest.gradient
        return self._surrogate(theta)

    def accept(self, intermediate_result: Any) -> None:
        """Report a new iterate: SciPy's callback, whose argument's name SciPy insists on."""
        if not np.array_equal(intermediate_result.x, self._latest.theta):
            self._latest = _evaluate(self._evaluate, intermediate_result.x.copy())
        if not self._latest.finite:
            # Only where every number is so small that slopes underflow to 0 does SciPy get here.
            raise StopIteration
        self.accepted = self._latest
        self._report(*self.accepted)

    def _surrogate(self, theta: Vector) -> tuple[float, Vector]:
        """Return a finite value and gradient that make SciPy's line search take a shorter step.

        Let m < 0 be the slope at the accepted point per step s = theta - accepted. The parabola J +
        m t + 2 |m| t**2 has its minimum at t = 1/4; at t = 1 its value is J + |m| and its slope 3
        |m|, which is that of the gradient -3 g, since m = g s. So Moré and Thuente's first case
        applies (a value above, a slope uphill), whose cubic and quadratic interpolants are both
        this parabola. The value is above that of every point that the search can have seen as its
        best, and is never accepted.
        """
        cost, gradient = self.accepted.cost, self.accepted.gradient
        with np.errstate(over="ignore", invalid="ignore"):
            slope = abs(float(gradient @ (theta - self.accepted.theta)))
        room = np.finfo(np.float64).max / 4
        slope = min(slope, room) if np.isfinite(slope) else room
        above = max(cost + slope, float(np.nextafter(cost, np.inf)))
        return min(above, 2 * room), -3.0 * gradient


def _start(evaluate: Evaluate, theta: ArrayLike) -> _Point:
    """Evaluate the starting point, which must be finite."""
    start = check_vector(theta, "theta").copy()
    point = _evaluate(evaluate, start)
    if not point.finite:
        raise InvalidArgumentError(
            f"theta must be a point where J and its gradient are finite; found "
            f"{_what_is_not_finite(point)} at the starting point"
        )
    return point


def _evaluate(evaluate: Evaluate, theta: Vector) -> _Point:
    """Evaluate J, which a theta that is itself not finite never reaches."""
    if not np.isfinite(theta).all():
        return _Point(theta, np.nan, np.full_like(theta, np.nan))
    cost, gradient = evaluate(theta)
    return _Point(theta, float(cost), gradient)


def _what_is_not_finite(point: _Point) -> str:
    if not np.isfinite(point.theta).all():
        index = int(np.flatnonzero(~np.isfinite(point.theta))[0])
        return f"theta[{index}] = {point.theta[index]}"
    if not np.isfinite(point.cost):
        return f"J = {point.cost}"
    index = int(np.flatnonzero(~np.isfinite(point.gradient))[0])
    return f"gradient[{index}] = {point.gradient[index]}"
