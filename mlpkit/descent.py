"""What our own optimisers share: points that have been evaluated, when to stop, and the loop around a step.

All of them are one loop: from a record of where the search stands, a step makes the next record, which is reported,
until there is a reason to stop. Records are never changed once made. So a record is also all that it takes to go on
later: `Snapshot` turns it into plain arrays, integers and strings (see `mlpkit.optimizer_state`), and a run that is
started from those takes the same steps to the bit, since a step depends on nothing but the record and J.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.checks import check_vector
from mlpkit.errors import InvalidArgumentError

__all__ = [
    "LINE_SEARCH_FAILED",
    "Evaluate",
    "Point",
    "Report",
    "Save",
    "Snapshot",
    "State",
    "Vector",
    "converged",
    "descend",
    "evaluate_at",
    "norm",
    "starting_point",
    "what_is_not_finite",
]

LINE_SEARCH_FAILED = "line search failed: no step along the search direction decreases J enough"

Vector: TypeAlias = NDArray[np.float64]

#: theta -> (J, gradient). Each call returns a gradient of its own, which the optimiser may keep.
Evaluate: TypeAlias = Callable[[Vector], tuple[float, Vector]]

#: Called as report(theta, J, gradient) after each accepted iteration; it must not change them.
Report: TypeAlias = Callable[[Vector, float, Vector], None]

#: All that an optimiser needs to go on: float64 arrays (a number is one of shape ()), integers of 64 bits and strings.
State: TypeAlias = Mapping[str, NDArray[np.float64] | int | str]

#: Returns the state after the iteration that it was made for, whenever it is called: then, later, or never.
Snapshot: TypeAlias = Callable[[], State]

#: Called as save(snapshot) after each accepted iteration, just before its report.
Save: TypeAlias = Callable[[Snapshot], None]


class Point(NamedTuple):
    """A theta that has been evaluated."""

    theta: Vector
    cost: float
    gradient: Vector

    @property
    def finite(self) -> bool:
        """Whether J and every element of its gradient are finite."""
        return bool(np.isfinite(self.cost) and np.isfinite(self.gradient).all())


def starting_point(evaluate: Evaluate, theta: ArrayLike) -> Point:
    """Evaluate where to start, which must be finite.

    Raises
    ------
    InvalidArgumentError
        If `theta` is not a finite vector, or J or its gradient is not finite there.

    Examples
    --------
    >>> starting_point(lambda theta: (float(theta @ theta), 2 * theta), [3.0, 4.0]).cost
    25.0
    """
    point = evaluate_at(evaluate, check_vector(theta, "theta").copy())
    if not point.finite:
        raise InvalidArgumentError(
            f"theta must be a point where J and its gradient are finite; found "
            f"{what_is_not_finite(point)} at the starting point"
        )
    return point


def evaluate_at(evaluate: Evaluate, theta: Vector) -> Point:
    """Evaluate J, which a theta that is itself not finite never reaches.

    Examples
    --------
    >>> evaluate_at(lambda theta: (float(theta @ theta), 2 * theta), np.array([np.inf])).cost
    nan
    """
    if not np.isfinite(theta).all():
        return Point(theta, np.nan, np.full_like(theta, np.nan))
    cost, gradient = evaluate(theta)
    return Point(theta, float(cost), gradient)


def what_is_not_finite(point: Point) -> str:
    """Name the first of theta, J and gradient that is not finite, and its value.

    Examples
    --------
    >>> what_is_not_finite(Point(np.zeros(2), 1.0, np.array([0.0, np.inf])))
    'gradient[1] = inf'
    """
    if not np.isfinite(point.theta).all():
        index = int(np.flatnonzero(~np.isfinite(point.theta))[0])
        return f"theta[{index}] = {point.theta[index]}"
    if not np.isfinite(point.cost):
        return f"J = {point.cost}"
    index = int(np.flatnonzero(~np.isfinite(point.gradient))[0])
    return f"gradient[{index}] = {point.gradient[index]}"


def norm(vector: Vector) -> float:
    """Return the Euclidean norm, which does not overflow or vanish where a square would.

    Examples
    --------
    >>> norm(np.array([3e-300, -4e-300]))
    5e-300
    """
    with np.errstate(over="ignore", under="ignore"):
        square = float(np.dot(vector, vector))
    if 1e-280 < square < np.inf:
        return float(np.sqrt(square))
    largest = float(np.abs(vector).max(initial=0.0))
    if not 0.0 < largest < np.inf:
        return largest
    scaled = vector / largest
    return largest * float(np.sqrt(np.dot(scaled, scaled)))


def converged(point: Point, previous_cost: float, ftol: float, gtol: float) -> str | None:
    """Return why a search may stop at `point`, in words, or None; the tests are those of SciPy's L-BFGS-B.

    Parameters
    ----------
    point : Point
        The last accepted one.
    previous_cost : float
        J at the one before; infinity where there is none.
    ftol, gtol : float
        See `mlpkit.LBFGS`.

    Examples
    --------
    >>> converged(Point(np.zeros(1), 1.0, np.array([1e-6])), 2.0, ftol=1e-9, gtol=1e-5)
    'converged: gradient below gtol'
    """
    if np.abs(point.gradient).max(initial=0.0) <= gtol:
        return f"converged: gradient {'below gtol' if gtol > 0 else 'is zero'}"
    scale = max(abs(previous_cost), abs(point.cost), 1.0)
    if previous_cost < np.inf and previous_cost - point.cost <= ftol * scale:
        return f"converged: {'relative reduction of J below ftol' if ftol > 0 else 'J does not decrease any further'}"
    return None


class Record(Protocol):
    """Where a search stands."""

    @property
    def point(self) -> Point:
        """The last accepted point."""
        ...

    @property
    def iteration(self) -> int:
        """How many iterations led to it."""
        ...


R = TypeVar("R", bound=Record)


def descend(
    start: R,
    stop: Callable[[R], str | None],
    step: Callable[[R], R | str],
    pack: Callable[[R], State],
    max_iter: int,
    report: Report,
    save: Save | None,
) -> tuple[Vector, str]:
    """Take steps until there is a reason to stop; return the last theta and the reason.

    Parameters
    ----------
    start : Record
        Where the search stands.
    stop : callable
        Record -> why to stop there, in words, or None.
    step : callable
        Record -> the next one, or why there is none.
    pack : callable
        Record -> `State`.
    max_iter : int
        Iterations at which to stop, counting those that `start` has behind it.
    report, save : callable
        See `mlpkit.optimizers.Resumable`.
    """
    at = start
    while True:
        reason = stop(at)
        if reason is not None:
            return at.point.theta, reason
        if at.iteration >= max_iter:
            return at.point.theta, "max_iter reached"
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # gradients of 1e300 are gradients
            following: Any = step(at)
        if isinstance(following, str):
            return at.point.theta, following
        at = following
        if save is not None:
            save(partial(pack, at))
        report(*at.point)
