"""What stands between the training loop and an optimiser that sees all examples at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mlpkit.descent import Save, Snapshot, State, norm
from mlpkit.errors import InvalidArgumentError
from mlpkit.loop import Loop, Stop
from mlpkit.objective import Objective
from mlpkit.optimizers import Optimizer, Resumable, is_resumable

__all__ = ["FullBatch"]


@dataclass(frozen=True)
class _Evaluated:
    """A theta and what the objective said of it."""

    theta: NDArray[np.float64]
    cost: float
    terms: dict[str, float]


class FullBatch:
    """An optimiser on an objective; it counts evaluations and keeps the last good parameters.

    Parameters
    ----------
    optimizer : Optimizer
        What minimises.
    objective : Objective
        What is minimised, and the network whose parameters are where to start.

    Attributes
    ----------
    whole : bool
        Whether the optimiser's state can be had: always, after an iteration.
    """

    whole = True

    def __init__(self, optimizer: Optimizer, objective: Objective) -> None:
        self._optimizer, self._objective = optimizer, objective
        self._dtype = objective.net.dtype
        self.n_examples = objective.n_examples
        self._start = np.array(objective.net.theta, dtype=np.float64)
        self._state: State | None = None
        self._snapshot: Snapshot | None = None
        self._good: _Evaluated | None = None
        self._latest: _Evaluated | None = None
        self._loop: Loop

    @property
    def theta(self) -> NDArray[Any]:
        """The last good parameters, in the network's dtype."""
        return (self._start if self._good is None else self._good.theta).astype(self._dtype)

    @property
    def terms(self) -> dict[str, float]:
        """The terms of J there."""
        nothing = dict.fromkeys(("data", "weight_decay", "sparsity"), np.nan)
        return nothing if self._good is None else self._good.terms

    def cancel(self) -> None:
        """Let the evaluation under way end at once, from another thread; no result is of use from here on."""
        self._objective.cancel()

    def train(self, loop: Loop) -> str:
        """Run the optimiser; return its reason for stopping."""
        self._loop = loop
        if is_resumable(self._optimizer):
            minimize = cast(Resumable, self._optimizer).minimize
            final, reason = minimize(self, self._start, self._report, state=self._state, save=self._save)
        else:
            final, reason = self._optimizer.minimize(self, self._start, self._report)
        there = self._at(np.asarray(final, dtype=np.float64))  # a user's own may return what it has not reported
        if np.isfinite(there.cost):
            self._good = there
        return reason

    def snapshot(self) -> State:
        """Return the optimiser's state after the last iteration."""
        assert self._snapshot is not None
        return self._snapshot()

    def check_resumable(self) -> None:
        """Refuse an optimiser whose state cannot be had."""
        if not is_resumable(self._optimizer):
            raise InvalidArgumentError(
                f"checkpoint and resume need an optimiser of mlpkit's own, or one whose minimize takes state and save; "
                f"{type(self._optimizer).__name__} keeps its state to itself (those of SciPy do)"
            )

    def restore(self, state: State) -> None:
        """Go on from what `snapshot` returned."""
        self._state = state

    # What the optimiser is given -------------------------------------------------------------------------------

    def __call__(self, theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return J and its gradient in float64, remembering the terms."""
        loop = self._loop
        loop.look()
        with np.errstate(over="ignore"):
            rounded = np.asarray(theta, dtype=self._dtype)
        loop.n_evaluations += 1
        if not np.isfinite(rounded).all():  # finite in float64, but not in float32
            self._latest = _Evaluated(theta.copy(), np.nan, {})
            return np.nan, np.full(theta.shape, np.nan)
        terms, gradient = self._objective.terms_and_gradient(rounded)
        if loop.cancelled:
            loop.look()
        cost = sum(terms.values())
        self._latest = _Evaluated(theta.copy(), cost, terms)
        gradient64 = np.asarray(gradient, dtype=np.float64)
        if self._good is None and np.isfinite(cost) and np.isfinite(gradient64).all():
            self._good = self._latest  # the starting point
        return cost, gradient64

    def hessian_vector_product(self, theta: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the product of the Hessian of J and v in float64."""
        self._loop.look()
        self._loop.n_hessian_products += 1
        with np.errstate(over="ignore"):
            rounded = (np.asarray(array, dtype=self._dtype) for array in (theta, v))
            return np.asarray(self._objective.hessian_vector_product(*rounded), dtype=np.float64)

    @property
    def _save(self) -> Save:
        def keep(snapshot: Snapshot) -> None:
            self._snapshot = snapshot

        return keep

    def _report(self, theta: NDArray[np.float64], cost: float, gradient: NDArray[np.float64]) -> None:
        """Put an accepted iteration on record."""
        if not (np.isfinite(cost) and np.isfinite(theta).all() and np.isfinite(gradient).all()):
            number = self._loop.iteration + 1
            raise Stop(f"diverged: J = {cost} after iteration {number}; the parameters before it are kept")
        self._good = self._at(theta)
        self._loop.accept(self.theta, self._good.terms, norm(gradient))

    def _at(self, theta: NDArray[np.float64]) -> _Evaluated:
        for known in (self._latest, self._good):
            if known is not None and np.array_equal(known.theta, theta):
                return known
        self(theta)
        assert self._latest is not None
        return self._latest
