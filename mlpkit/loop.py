"""The training loop around any optimiser: what is put on record, who is told, and when to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit.checks import check_integer, check_number
from mlpkit.descent import State
from mlpkit.errors import InvalidArgumentError
from mlpkit.history import History, Iteration
from mlpkit.interrupts import Interrupt
from mlpkit.run import Callback, Run

__all__ = ["INTERRUPTED", "Loop", "Stop"]

INTERRUPTED = "interrupted"


class Stop(Exception):
    """Ends training; the message is the reason, in words."""


class Loop:
    """Counts, times and records iterations, tells callbacks, and stops training where it should.

    Parameters
    ----------
    run : Run
        What callbacks see; its network receives the parameters of each iteration.
    callbacks : list of Callback
        In the order in which they are told.
    monitor : callable
        Returns the metrics of ``run.net``.
    max_seconds, max_evaluations : optional
        Budgets, checked before each evaluation.

    Attributes
    ----------
    n_evaluations, n_hessian_products : int
        So far.
    """

    def __init__(
        self,
        run: Run,
        callbacks: list[Callback],
        monitor: Callable[[], dict[str, float]],
        max_seconds: float | None = None,
        max_evaluations: int | None = None,
    ) -> None:
        if max_seconds is not None:
            max_seconds = check_number(max_seconds, "max_seconds", low=0, low_open=True)
        if max_evaluations is not None:
            max_evaluations = check_integer(max_evaluations, "max_evaluations", low=1)
        self.run = run
        self.n_evaluations = self.n_hessian_products = 0
        self.interrupt = Interrupt()
        self.cancelled = False
        self._callbacks, self._monitor = callbacks, monitor
        self._max_seconds, self._max_evaluations = max_seconds, max_evaluations
        self._start = time.perf_counter()
        self._before = 0.0  # seconds of the runs that this one goes on from
        self._saver: tuple[Callable[[Loop], None], int] | None = None
        self._saved = 0

    @property
    def seconds(self) -> float:
        """Time since the start of training, interruptions between runs left out."""
        return self._before + time.perf_counter() - self._start

    @property
    def iteration(self) -> int:
        """How many iterations are on record."""
        return self.run.history[-1].iteration if self.run.history else 0

    def save_every(self, every: int, save: Callable[[Loop], None]) -> None:
        """Call `save` after every so many iterations, and at the end."""
        self._saver = (save, every)

    def begin(self) -> None:
        """Tell callbacks that training begins."""
        self._start = time.perf_counter() - (self.seconds - self._before)
        self._saved = self.iteration
        for callback in self._callbacks:
            self._tell(callback, "on_start")

    def look(self) -> None:
        """Stop training if somebody pressed Ctrl-C, or if time or evaluations are used up."""
        if self.interrupt.pending or self.cancelled:
            raise Stop(INTERRUPTED)
        if self._max_seconds is not None and self.seconds >= self._max_seconds:
            raise Stop("max_seconds reached")
        if self._max_evaluations is not None and self.n_evaluations >= self._max_evaluations:
            raise Stop("max_evaluations reached")

    def accept(self, theta: NDArray[Any], terms: Mapping[str, float], gradient_norm: float) -> None:
        """Put an iteration on record, tell callbacks, save a checkpoint if it is time for one."""
        run = self.run
        run.net.theta = theta
        before = run.history[-1].seconds if run.history else 0.0
        metrics = self._monitor()
        seconds = self.seconds
        record = Iteration(
            iteration=self.iteration + 1,
            cost=float(sum(terms.values())),
            **terms,
            gradient_norm=gradient_norm,
            n_evaluations=self.n_evaluations,
            seconds=seconds,
            iteration_seconds=seconds - before,
            n_hessian_products=self.n_hessian_products,
            metrics=metrics,
        )
        run.history.append(record)
        run.final = record
        reasons = [self._tell(callback, "on_iteration") for callback in self._callbacks]
        if self._saver is not None and self.iteration % self._saver[1] == 0:
            self._save()
        for reason in reasons:
            if reason is not None:
                raise Stop(reason)

    def end(self, *, whole: bool) -> None:
        """Save the last iteration if the optimiser still stands there (`whole`); tell callbacks that it is over."""
        if self._saver is not None and whole and self.iteration > self._saved:
            self._save()
        first: Exception | None = None
        for callback in self._callbacks:
            try:
                self._tell(callback, "on_end")
            except Exception as error:  # the others are told all the same
                first = first or error
        if first is not None:
            raise first

    def _save(self) -> None:
        assert self._saver is not None
        self._saver[0](self)
        self._saved = self.iteration

    def _tell(self, callback: Callback, method: str) -> str | None:
        try:
            answer = getattr(callback, method)(self.run)
            if answer is not None and (method != "on_iteration" or not isinstance(answer, str)):
                raise InvalidArgumentError(f"{method} must return {_MAY_RETURN[method]}; found {answer!r:.80}")
        except Exception as error:
            error.add_note(f"raised by {method} of the callback {callback!r}, at iteration {self.iteration}")
            raise
        return answer

    # Checkpoints -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep of the loop: counters, history, and the callbacks' own."""
        state: dict[str, Any] = {
            "n_evaluations": self.n_evaluations,
            "n_hessian_products": self.n_hessian_products,
            "seconds": np.array(self.seconds),
            "n_callbacks": len(self._callbacks),
        }
        state.update({f"history.{name}": column for name, column in self.run.history.to_columns().items()})
        for i, callback in enumerate(self._callbacks):
            state.update({f"callback{i}.{name}": value for name, value in callback.state().items()})
        return state

    def restore(self, state: State) -> None:
        """Go on from what `state` returned."""
        if state.get("n_callbacks") != len(self._callbacks):
            raise InvalidArgumentError(
                f"resume needs as many callbacks as the run had, {state.get('n_callbacks')}; found "
                f"{len(self._callbacks)}"
            )
        self.n_evaluations, self.n_hessian_products = (
            check_integer(state.get(name), name, low=0) for name in ("n_evaluations", "n_hessian_products")
        )
        self._before = check_number(float(np.asarray(state.get("seconds", np.nan))), "seconds", low=0)
        self.run.history = History.from_columns(_under("history.", state))
        self.run.final = self.run.history[-1] if self.run.history else None
        for i, callback in enumerate(self._callbacks):
            own = _under(f"callback{i}.", state)
            if own:
                callback.restore_state(own)


_MAY_RETURN = {
    "on_start": "None",
    "on_iteration": "None or a reason to stop, in words",
    "on_end": "None",
}


def _under(prefix: str, state: State) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
