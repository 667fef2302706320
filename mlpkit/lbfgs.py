"""Limited-memory BFGS: Newton's method with a Hessian guessed from the last few steps.

A step s that changed the gradient by y says of the Hessian that it takes s to y. From the last k such pairs the
two-loop recursion (Nocedal and Wright, *Numerical Optimization*, algorithm 7.4) makes the direction -H g, where H is
the BFGS update of a multiple of the identity, without ever forming H: 4 k n multiplications.
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
from mlpkit.errors import InvalidArgumentError
from mlpkit.line_search import Trial, line_search
from mlpkit.optimizer_state import StateReader, pack_state

__all__ = ["LBFGS"]

_STATE_VERSION = 1


class _Pair(NamedTuple):
    """A step and what it changed the gradient by."""

    step: Vector
    change: Vector
    product: float  # of the two, s y, which is positive
    scale: float  # s y / y y: H before any pair is this multiple of the identity


class _Record(NamedTuple):
    """Where the search stands."""

    point: Point
    iteration: int
    previous_cost: float
    pairs: tuple[_Pair, ...]  # the oldest first
    length: float  # of the last step


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS, with the meanings and the defaults of SciPy's L-BFGS-B without bounds.

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
    Each line search (`mlpkit.line_search`) tries the whole step first; the very first one tries a step of length 1
    against the gradient. A pair whose product s y is not clearly positive is not remembered. If a line search fails,
    all pairs are forgotten, and one more is made against the gradient.

    Its state has, beside what `mlpkit.optimizer_state` lists, ``steps`` and ``changes`` (float64 of shape (k, n), the
    oldest pair first), ``length`` (of the last step) and ``previous_cost`` (J before that).

    References
    ----------
    D. C. Liu and J. Nocedal, "On the limited memory BFGS method for large scale optimization", Mathematical
    Programming 45 (1989).

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

        The reason is one of ``"converged: gradient below gtol"``, ``"converged: relative reduction
        of J below ftol"``, ``"max_iter reached"``, ``"line search failed: ..."``; with a tolerance
        switched off, ``"converged: gradient is zero"`` and ``"converged: J does not decrease any
        further"`` take the place of the first two.
        """
        if state is None:
            start = _Record(starting_point(evaluate, theta), 0, np.inf, (), 1.0)
        else:
            start = self._unpack(state, theta)
        step = partial(self._step, evaluate)
        return descend(start, self._stop, step, self._pack, self.max_iter, report, save)

    def _stop(self, at: _Record) -> str | None:
        return converged(at.point, at.previous_cost, self.ftol, self.gtol)

    def _step(self, evaluate: Evaluate, at: _Record) -> _Record | str:
        if at.pairs:
            direction = _newton_direction(at.point.gradient, at.pairs)
            trial = line_search(evaluate, at.point, direction)
            if trial is not None:
                return self._after(at, direction, trial)
        # Against the gradient, as far as the last step went.
        direction = at.point.gradient / -norm(at.point.gradient)
        trial = line_search(evaluate, at.point, direction, at.length)
        if trial is None:
            return LINE_SEARCH_FAILED
        return self._after(at._replace(pairs=()), direction, trial)

    def _after(self, at: _Record, direction: Vector, trial: Trial) -> _Record:
        """Return the record after an accepted step."""
        step = trial.step * direction
        pair = _pair(step, trial.point.gradient - at.point.gradient)
        pairs = at.pairs
        # As SciPy does: a pair that says of J that it is not curved upwards is left out.
        if pair is not None and pair.product > -np.finfo(np.float64).eps * float(np.dot(at.point.gradient, step)):
            pairs = (*pairs, pair)[-self.max_corrections :]
        return _Record(trial.point, at.iteration + 1, at.point.cost, pairs, norm(step))

    def _pack(self, at: _Record) -> State:
        shape = (len(at.pairs), at.point.theta.size)
        return pack_state(
            "LBFGS",
            _STATE_VERSION,
            at.iteration,
            at.point,
            previous_cost=at.previous_cost,
            steps=np.reshape([pair.step for pair in at.pairs], shape),
            changes=np.reshape([pair.change for pair in at.pairs], shape),
            length=at.length,
        )

    def _unpack(self, state: State, theta: ArrayLike) -> _Record:
        reader = StateReader(state, "LBFGS", _STATE_VERSION, theta)
        steps = reader.array("steps", (None, reader.point.theta.size))
        changes = reader.array("changes", steps.shape)
        # A copy of each row, so that they lie in memory as they did when they were made.
        pairs = [_pair(step.copy(), change.copy()) for step, change in zip(steps, changes, strict=True)]
        if len(pairs) > self.max_corrections or None in pairs:
            raise InvalidArgumentError(
                f"state['steps'] and state['changes'] must be at most {self.max_corrections} pairs, whose products are "
                f"positive"
            )
        return _Record(
            reader.point,
            reader.iteration,
            reader.number("previous_cost", infinite=True),
            tuple(pair for pair in pairs if pair is not None),
            reader.number("length"),
        )


def _pair(step: Vector, change: Vector) -> _Pair | None:
    """Return the pair, or None if no positive definite Hessian takes one to the other, in numbers that floats hold."""
    product, square = float(np.dot(step, change)), float(np.dot(change, change))
    if not (0.0 < product < np.inf and 0.0 < square < np.inf and 0.0 < product / square < np.inf):
        return None
    return _Pair(step, change, product, product / square)


def _newton_direction(gradient: Vector, pairs: tuple[_Pair, ...]) -> Vector:
    """Return -H g by the two-loop recursion."""
    direction = -gradient
    scratch = np.empty_like(direction)
    factors = []
    with np.errstate(over="ignore", invalid="ignore"):  # the line search refuses what is not finite
        for pair in reversed(pairs):
            factor = float(np.dot(pair.step, direction)) / pair.product
            factors.append(factor)
            direction -= np.multiply(pair.change, factor, out=scratch)
        direction *= pairs[-1].scale
        for pair, factor in zip(pairs, reversed(factors), strict=True):
            factor -= float(np.dot(pair.change, direction)) / pair.product
            direction += np.multiply(pair.step, factor, out=scratch)
    return direction
