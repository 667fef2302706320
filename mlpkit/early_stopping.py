"""Early stopping: training ends when a quantity on record has stopped to improve, with the parameters of its best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit.checks import check_choice, check_flag, check_integer, check_number, check_vector, shown
from mlpkit.errors import InvalidArgumentError
from mlpkit.run import Callback, Run

__all__ = ["EarlyStopping"]

# Quantities of which more is better, by themselves or as the last part of a name: "validation_accuracy".
_GROWING = ("accuracy", "r2")


class EarlyStopping(Callback):
    """Stops training when a quantity on record has not improved for a number of iterations.

    Handed to `MLP.fit` as ``early_stopping``, or among the callbacks. An iteration improves the quantity if it is
    below the lowest value so far by more than `min_delta` (above the highest where more is better). NaN is never an
    improvement.

    Parameters
    ----------
    monitor : str
        What to watch: any name of a record, such as ``"validation_loss"``, ``"validation_accuracy"`` or ``"cost"``.
    patience : int
        How many iterations in a row (epochs of a stochastic optimiser) may pass without an improvement: after the
        last of them training stops. At least 1.
    min_delta : float
        An improvement of no more than this is none. At least 0.
    mode : {"auto", "min", "max"}
        Whether less or more of it is better; ``"auto"`` is ``"max"`` for accuracy and r2, on validation data or not,
        and ``"min"`` for all else.
    restore_best : bool
        Whether the network is given the parameters of the best iteration, however training ends: also at `max_iter`,
        after Ctrl-C or a divergence. They are kept in float64, which takes as much memory again as the parameters.

    Attributes
    ----------
    best : float
        The best value so far: infinity (minus infinity for ``"max"``) before the first.
    best_iteration : int
        The number of the iteration that had it, 0 before the first.
    waited : int
        How many iterations have passed since.

    Raises
    ------
    InvalidArgumentError
        Naming the argument. After the first iteration, if nothing of the name `monitor` is on record; the error lists
        what there is.

    Notes
    -----
    A training that goes on from a checkpoint stops at the same iteration, and restores the same bits, as one that was
    never interrupted.

    Examples
    --------
    >>> import mlpkit
    >>> net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "identity")], seed=0)
    >>> stop = EarlyStopping("cost", patience=2, min_delta=0.1)
    >>> result = net.fit([[0.0], [1.0]], [1.0, 3.0], early_stopping=stop)
    >>> result.reason
    'cost has not improved by more than 0.1 for 2 iterations'
    >>> result.iteration == stop.best_iteration == result.n_iterations - 2
    True
    """

    def __init__(
        self,
        monitor: str = "validation_loss",
        patience: int = 10,
        *,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best: bool = True,
    ) -> None:
        if not isinstance(monitor, str) or not monitor:
            raise InvalidArgumentError(
                f'monitor must be the name of a quantity on record, such as "validation_loss"; found {shown(monitor)}'
            )
        self.monitor = monitor
        self.patience = check_integer(patience, "patience", low=1)
        self.min_delta = check_number(min_delta, "min_delta", low=0)
        self.mode = check_choice(mode, "mode", ("auto", "min", "max"))
        self.restore_best = check_flag(restore_best, "restore_best")
        growing = any(monitor == name or monitor.endswith(f"_{name}") for name in _GROWING)
        self._sign = -1.0 if self.mode == "max" or (self.mode == "auto" and growing) else 1.0
        self._continues = False
        self._reset()

    def __repr__(self) -> str:
        return (
            f"EarlyStopping({self.monitor!r}, patience={self.patience}, min_delta={self.min_delta!r}, "
            f"mode={self.mode!r}, restore_best={self.restore_best})"
        )

    def _reset(self) -> None:
        self.best = self._sign * math.inf
        self.best_iteration = 0
        self.waited = 0
        self._theta: NDArray[np.float64] | None = None

    def on_start(self, run: Run) -> None:
        """Forget what an earlier training left, unless this one goes on from there."""
        if not self._continues:
            self._reset()

    def on_iteration(self, run: Run) -> str | None:
        """Look at the quantity, and say if that has been without an improvement for too long."""
        self._continues = False
        record = run.history[-1]
        try:
            value = float(record[self.monitor])
        except KeyError:
            raise InvalidArgumentError(
                f"monitor must be a quantity on record: {', '.join(record.names())}; found {self.monitor!r}"
            ) from None
        if self._sign * value < self._sign * self.best - self.min_delta:  # never true of NaN
            self.best, self.best_iteration, self.waited = value, record.iteration, 0
            if self.restore_best:
                self._theta = np.array(run.net.theta, dtype=np.float64)
            return None
        self.waited += 1
        if self.waited < self.patience:
            return None
        margin = f" by more than {self.min_delta:g}" if self.min_delta else ""
        plural = "" if self.patience == 1 else "s"
        return f"{self.monitor} has not improved{margin} for {self.patience} iteration{plural}"

    def on_end(self, run: Run) -> None:
        """Give the network its best parameters, if they are not those it has."""
        self._continues = False
        if self._theta is None or np.array_equal(run.net.theta, self._theta):
            return
        best = [record for record in run.history if record.iteration == self.best_iteration]
        if not best:
            raise InvalidArgumentError(f"the history must have the best iteration, {self.best_iteration}; it does not")
        run.restore(self._theta, best[0])

    def state(self) -> dict[str, Any]:
        """Return the best so far, for a checkpoint."""
        state: dict[str, Any] = {
            "monitor": self.monitor,
            "best": np.array(self.best, dtype=np.float64),
            "best_iteration": self.best_iteration,
            "waited": self.waited,
        }
        if self._theta is not None:
            state["theta"] = self._theta.copy()
        return state

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned.

        Raises
        ------
        InvalidArgumentError
            If it is no such thing, or of another quantity.
        """
        missing = [name for name in ("monitor", "best", "best_iteration", "waited") if name not in state]
        if missing:
            raise InvalidArgumentError(f"the state of EarlyStopping must have {missing[0]!r}; found {', '.join(state)}")
        if state["monitor"] != self.monitor:
            raise InvalidArgumentError(
                f"the state of EarlyStopping must be of its monitor, {self.monitor!r}; found {shown(state['monitor'])}"
            )
        best = np.asarray(state["best"], dtype=np.float64)
        if best.shape != () or np.isnan(best):
            raise InvalidArgumentError(f"best must be one number, not NaN; found {shown(best)}")
        best_iteration = check_integer(state["best_iteration"], "best_iteration", low=0)
        waited = check_integer(state["waited"], "waited", low=0)
        wanted = self.restore_best and best_iteration > 0
        if wanted and "theta" not in state:
            raise InvalidArgumentError(
                "restore_best must be False where the training that goes on did not keep its best parameters; "
                f"found {self.restore_best}"
            )
        theta = check_vector(state["theta"], "theta").copy() if wanted else None
        self.best, self.best_iteration, self.waited, self._theta = float(best), best_iteration, waited, theta
        self._continues = True
