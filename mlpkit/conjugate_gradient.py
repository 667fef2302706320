"""The nonlinear conjugate gradient method: directions from the last two gradients alone, so memory for a few vectors.

Each direction is d := -g + beta d, with beta such that on a quadratic, with exact line searches, every direction is
conjugate to all before it. Of the many formulas that agree there, this is Polak and Ribière's,

    beta = g (g - g before) / (g before)**2

with Powell's restarts: gradients that follow each other are orthogonal on a quadratic, and where they are not nearly
so, the old direction is of no use, and the next one is -g.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mlpkit.checks import check_integer, check_number
from mlpkit.descent import (
    LINE_SEARCH_FAILED,
    Evaluate,
    Point,
    Report,
    Save,
    State,
    Vector,
    converged,
    descend,
    norm,
    starting_point,
)
from mlpkit.line_search import Trial, line_search
from mlpkit.optimizer_state import StateReader, pack_state

__all__ = ["ConjugateGradient"]

_STATE_VERSION = 1
_CURVATURE = 0.1  # of the line search: conjugacy asks for a nearly exact one
_NARROWEST = 1e-4
_MOST_OVERLAP = 0.2  # of a gradient with the one before, relative to its square: they should be orthogonal
_LEAST_DESCENT = 0.01  # along a direction, relative to that along minus the gradient
_MOST_GROWTH = 10.0  # of a first trial's length, relative to the step before


class _Record(NamedTuple):
    """Where the search stands."""

    point: Point
    iteration: int
    previous_cost: float
    direction: Vector  # of the next line search
    first: float  # its first trial
    length: float  # of the last step


@dataclass(frozen=True)
class ConjugateGradient:
    """The nonlinear conjugate gradient method, by Polak and Ribière's formula with Powell's restarts.

    It holds a few vectors of theta's length where `LBFGS` holds 2 `max_corrections` more, and takes more evaluations.

    Parameters
    ----------
    max_iter : int
        The most iterations to take, at least 1. (The number of evaluations is not bounded.)
    gtol : float
        Stop when the largest absolute value in the gradient is <= gtol. 0 switches the test off:
        then only a gradient of exactly zero stops here.
    ftol : float
        Stop when (J_k - J_{k+1}) / max(abs(J_k), abs(J_{k+1}), 1) <= ftol. 0 switches the test off:
        then only a step that leaves J exactly as it was stops here.

    Raises
    ------
    InvalidArgumentError
        Naming the argument, what was expected and what was found.

    Notes
    -----
    The very first line search tries a step of length 1 against the gradient; each later one the step at which J would
    fall at its initial rate by as much as it did in the last iteration, but no more than ten times as long. If a line
    search fails, one more is made against the gradient, from where directions begin anew.

    Its state has, beside what `mlpkit.optimizer_state` lists, ``direction`` (float64 of shape (n,)) and ``first``, of
    the next line search, ``length`` (of the last step) and ``previous_cost`` (J before that).

    References
    ----------
    E. Polak and G. Ribière, "Note sur la convergence de méthodes de directions conjuguées", Revue française
    d'informatique et de recherche opérationnelle 3 (1969). M. J. D. Powell, "Restart procedures for the conjugate
    gradient method", Mathematical Programming 12 (1977).

    Examples
    --------
    >>> import numpy as np
    >>> evaluate = lambda theta: (0.5 * float(theta @ theta), theta.copy())
    >>> theta, reason = ConjugateGradient().minimize(evaluate, np.array([8.0, -8.0]), lambda *point: None)
    >>> bool(abs(theta).max() < 1e-5), reason
    (True, 'converged: gradient below gtol')
    """

    max_iter: int = 15000
    gtol: float = 1e-5
    ftol: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_iter", check_integer(self.max_iter, "max_iter", low=1))
        object.__setattr__(self, "gtol", check_number(self.gtol, "gtol", low=0))
        object.__setattr__(self, "ftol", check_number(self.ftol, "ftol", low=0))

    def minimize(
        self,
        evaluate: Evaluate,
        theta: ArrayLike,
        report: Report,
        *,
        state: State | None = None,
        save: Save | None = None,
    ) -> tuple[Vector, str]:
        """Minimise J from `theta`, or go on from `state`; see `mlpkit.optimizers.Resumable`.

        The reasons are those of `LBFGS.minimize`.
        """
        if state is None:
            point = starting_point(evaluate, theta)
            start = _Record(point, 0, np.inf, *_against_gradient(point, 1.0), 1.0)
        else:
            start = self._unpack(state, theta)
        step = partial(self._step, evaluate)
        return descend(start, self._stop, step, self._pack, self.max_iter, report, save)

    def _stop(self, at: _Record) -> str | None:
        return converged(at.point, at.previous_cost, self.ftol, self.gtol)

    def _step(self, evaluate: Evaluate, at: _Record) -> _Record | str:
        trial = _search(evaluate, at.point, at.direction, at.first)
        if trial is not None:
            return _after(at, at.direction, trial)
        direction, first = _against_gradient(at.point, at.length)
        if not np.array_equal(direction, at.direction):
            trial = _search(evaluate, at.point, direction, first)
            if trial is not None:
                return _after(at, direction, trial)
        return LINE_SEARCH_FAILED

    def _pack(self, at: _Record) -> State:
        more = {name: getattr(at, name) for name in ("previous_cost", "direction", "first", "length")}
        return pack_state("ConjugateGradient", _STATE_VERSION, at.iteration, at.point, **more)

    def _unpack(self, state: State, theta: ArrayLike) -> _Record:
        reader = StateReader(state, "ConjugateGradient", _STATE_VERSION, theta)
        return _Record(
            reader.point,
            reader.iteration,
            reader.number("previous_cost", infinite=True),
            reader.array("direction", reader.point.theta.shape),
            reader.number("first"),
            reader.number("length"),
        )


def _against_gradient(point: Point, length: float) -> tuple[Vector, float]:
    """Return the direction against the gradient, and the first trial that makes a step of this length."""
    return -point.gradient, length / max(norm(point.gradient), np.finfo(np.float64).tiny)


def _search(evaluate: Evaluate, point: Point, direction: Vector, first: float) -> Trial | None:
    return line_search(evaluate, point, direction, first, curvature=_CURVATURE, narrowest=_NARROWEST)


def _after(at: _Record, direction: Vector, trial: Trial) -> _Record:
    """Return the record after an accepted step along `direction`."""
    length = trial.step * norm(direction)
    old, new = at.point.gradient, trial.point.gradient
    following = _conjugate_direction(old, new, direction)
    slope = float(np.dot(new, following))
    first = trial.step * float(np.dot(old, direction)) / slope if slope < 0.0 else np.inf
    if 0.0 < first < np.inf:
        first = min(first, _MOST_GROWTH * length / norm(following))
    else:  # what does not go down in numbers that floats hold
        following, first = _against_gradient(trial.point, length)
    return _Record(trial.point, at.iteration + 1, at.point.cost, following, first, length)


def _conjugate_direction(old: Vector, new: Vector, direction: Vector) -> Vector:
    """Return the direction by Polak and Ribière's formula, or minus the gradient where it is time to begin anew."""
    square, overlap = float(np.dot(new, new)), float(np.dot(new, old))
    before = float(np.dot(old, old))
    if not before > 0.0 or abs(overlap) >= _MOST_OVERLAP * square:
        return -new
    beta = (square - overlap) / before
    with np.errstate(over="ignore", invalid="ignore"):
        following = beta * direction - new
    return following if float(np.dot(new, following)) <= -_LEAST_DESCENT * square else -new
