"""Batch gradient descent exactly as the notes write it, section 2.2, and the same with a line search."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mlpkit.checks import check_flag, check_integer, check_number
from mlpkit.descent import (
    LINE_SEARCH_FAILED,
    Evaluate,
    Point,
    Report,
    Save,
    State,
    Vector,
    descend,
    evaluate_at,
    starting_point,
    what_is_not_finite,
)
from mlpkit.line_search import line_search
from mlpkit.optimizer_state import StateReader, pack_state

__all__ = ["GradientDescent"]

_STATE_VERSION = 1


class _Record(NamedTuple):
    """Where the search stands."""

    point: Point
    iteration: int
    alpha: float  # of the last step


@dataclass(frozen=True)
class GradientDescent:
    """Batch gradient descent exactly as the notes write it, section 2.2.

    Each iteration moves all parameters at once, theta := theta - alpha * dJ/dtheta, which for each
    layer is W := W - alpha [(1/m) Delta W + lambda W] and b := b - alpha [(1/m) Delta b].

    Parameters
    ----------
    alpha : float
        The learning rate, positive.
    max_iter : int
        How many iterations to take, at least 1. With a fixed `alpha` they cost ``max_iter + 1`` evaluations of J, and
        there is no other test for stopping.
    line_search : bool
        Search for a step in each iteration (`mlpkit.line_search`), beginning at the last one's, the first time at
        `alpha`. Then a gradient of zero stops as well, and a search that finds no step.

    Raises
    ------
    InvalidArgumentError
        Naming the argument, what was expected and what was found.

    Notes
    -----
    Its state has, beside what `mlpkit.optimizer_state` lists, ``alpha`` of the last step.

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
    line_search: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", check_number(self.alpha, "alpha", low=0, low_open=True))
        object.__setattr__(self, "max_iter", check_integer(self.max_iter, "max_iter", low=1))
        object.__setattr__(self, "line_search", check_flag(self.line_search, "line_search"))

    def minimize(
        self,
        evaluate: Evaluate,
        theta: ArrayLike,
        report: Report,
        *,
        state: State | None = None,
        save: Save | None = None,
    ) -> tuple[Vector, str]:
        """Take `max_iter` steps from `theta`, or go on from `state`; see `mlpkit.optimizers.Resumable`.

        If J or its gradient is NaN or infinite after a step of fixed `alpha`, the parameters before that step are
        returned, with a reason that begins with ``"diverged"``.
        """
        if state is None:
            start = _Record(starting_point(evaluate, theta), 0, self.alpha)
        else:
            reader = StateReader(state, "GradientDescent", _STATE_VERSION, theta)
            start = _Record(reader.point, reader.iteration, reader.number("alpha"))
        step = partial(self._searched_step if self.line_search else self._fixed_step, evaluate)
        return descend(start, self._stop, step, self._pack, self.max_iter, report, save)

    def _stop(self, at: _Record) -> str | None:
        if self.line_search and not at.point.gradient.any():
            return "converged: gradient is zero"
        return None

    def _fixed_step(self, evaluate: Evaluate, at: _Record) -> _Record | str:
        with np.errstate(over="ignore", invalid="ignore"):
            theta = at.point.theta - self.alpha * at.point.gradient
        point = evaluate_at(evaluate, theta)
        if not point.finite:
            first = evaluate.first_failure(theta) if hasattr(evaluate, "first_failure") else None
            found = what_is_not_finite(point) if first is None else f"{first} became infinite or NaN first,"
            return (
                f"diverged: {found} after iteration {at.iteration + 1}; the parameters before it are kept (a smaller "
                f"alpha than {self.alpha:g} may help)"
            )
        return _Record(point, at.iteration + 1, self.alpha)

    def _searched_step(self, evaluate: Evaluate, at: _Record) -> _Record | str:
        trial = line_search(evaluate, at.point, -at.point.gradient, at.alpha)
        if trial is None:
            return LINE_SEARCH_FAILED
        return _Record(trial.point, at.iteration + 1, trial.step)

    def _pack(self, at: _Record) -> State:
        return pack_state("GradientDescent", _STATE_VERSION, at.iteration, at.point, alpha=at.alpha)
