"""What stands between the training loop and an optimiser that sees all examples at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.descent import Snapshot, State, norm
from mlpkit.divergence import first_failure
from mlpkit.errors import InvalidArgumentError
from mlpkit.history import Iteration
from mlpkit.loop import Loop, Stop
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
    objective : Objective or DaskObjective
        What is minimised, and the network whose parameters are where to start.
    inputs : callable
        Returns the inputs that the objective was given; called where a training diverges.
    """

    def __init__(self, optimizer: Optimizer, objective: Any, inputs: Callable[[], ArrayLike]) -> None:
        self._optimizer, self._objective, self._inputs = optimizer, objective, inputs
        self._dtype = objective.net.dtype
        self.n_examples = objective.n_examples
        self._start = np.array(objective.net.theta, dtype=np.float64)
        self._state: State | None = None
        self._offered: Snapshot | None = None
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

    def check_resumable(self) -> None:
        """Refuse an optimiser whose state cannot be had."""
        if not is_resumable(self._optimizer):
            raise InvalidArgumentError(
                f"checkpoint and resume need an optimiser of mlpkit's own, or one whose minimize takes state and save; "
                f"{type(self._optimizer).__name__} keeps its state to itself (those of SciPy do)"
            )

    def restore(self, state: State, theta: NDArray[Any], record: Iteration) -> None:
        """Go on from an optimiser's state; the network's parameters and the record are of the same iteration."""
        self._state = state
        exact = state.get("theta")  # where the optimiser tells: in float64 it will ask for these very numbers
        if isinstance(exact, np.ndarray) and np.array_equal(exact.astype(self._dtype), theta):
            theta = exact
        terms = {name: float(record[name]) for name in ("data", "weight_decay", "sparsity")}
        self._good = _Evaluated(np.array(theta, dtype=np.float64), record.cost, terms)

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
            product = self._objective.hessian_vector_product(*rounded)
        if self._loop.cancelled:
            self._loop.look()
        return np.asarray(product, dtype=np.float64)

    def first_failure(self, theta: NDArray[np.float64]) -> str | None:
        """Say what is infinite or NaN first at theta, in the order of computation; None where nothing is."""
        with np.errstate(over="ignore"):
            rounded = np.asarray(theta, dtype=self._dtype)
        return first_failure(self._objective.net, rounded, self._inputs(), self._objective.terms_and_gradient)

    def _save(self, snapshot: Snapshot) -> None:
        self._offered = snapshot

    def _report(self, theta: NDArray[np.float64], cost: float, gradient: NDArray[np.float64]) -> None:
        """Put an accepted iteration on record."""
        loop = self._loop
        if not (np.isfinite(cost) and np.isfinite(theta).all() and np.isfinite(gradient).all()):
            what = self.first_failure(theta)
            found = f"J = {cost}" if what is None else f"{what} became infinite or NaN first,"
            raise Stop(f"diverged: {found} after iteration {loop.iteration + 1}; the parameters before it are kept")
        there = self._at(theta)
        rounded = there.theta.astype(self._dtype)
        metrics = loop.measure(rounded)
        self._good = there
        offered, self._offered = self._offered, None
        whole = None if offered is None else lambda: (rounded, offered())
        if whole is None and loop.saves:
            raise InvalidArgumentError(f"the minimize of {self._optimizer!r} must call save before each report")
        loop.accept(there.terms, norm(gradient), metrics, whole)

    def _at(self, theta: NDArray[np.float64]) -> _Evaluated:
        for known in (self._latest, self._good):
            if known is not None and np.array_equal(known.theta, theta):
                return known
        self(theta)
        assert self._latest is not None
        return self._latest
