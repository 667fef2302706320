"""The training loop around any optimiser: what is put on record, who is told, and when to stop."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlpkit.checks import check_integer, check_number
from mlpkit.descent import State
from mlpkit.errors import InvalidArgumentError
from mlpkit.history import History, Iteration
from mlpkit.interrupts import Interrupt
from mlpkit.run import Callback, Run, settings_of

__all__ = ["INTERRUPTED", "Loop", "Stop", "Whole"]

INTERRUPTED = "interrupted"

#: Returns the parameters, in the network's dtype, and the optimiser's state after the iteration it was made for.
Whole: TypeAlias = Callable[[], tuple[NDArray[Any], State]]


class Stop(Exception):
    """Ends training; the message is the reason, in words."""


class _Kept(NamedTuple):
    """An iteration, and what a checkpoint needs of it."""

    iteration: int
    whole: Whole


class Loop:
    """Counts, times and records iterations, tells callbacks, and stops training where it should.

    Parameters
    ----------
    run : Run
        What callbacks see; its network receives the parameters of each iteration.
    callbacks : list of Callback
        In the order in which they are told.
    monitor : callable
        Returns the metrics of ``run.net``; it is given a function to call every now and then, which may end training.
    max_seconds, max_evaluations : optional
        Budgets, checked before each evaluation.
    display : Callback, optional
        Told like the callbacks, after them, but no part of what a checkpoint keeps.

    Attributes
    ----------
    n_evaluations, n_hessian_products : int
        So far.
    """

    def __init__(
        self,
        run: Run,
        callbacks: list[Callback],
        monitor: Callable[[Callable[[], None]], dict[str, float]],
        max_seconds: float | None = None,
        max_evaluations: int | None = None,
        display: Callback | None = None,
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
        self._told = callbacks if display is None else [*callbacks, display]
        self._max_seconds, self._max_evaluations = max_seconds, max_evaluations
        self._start = time.perf_counter()
        self._before = 0.0  # seconds of the runs that this one goes on from
        self._saver: tuple[Callable[[Loop], None], int] | None = None
        self._saved = 0
        self._kept: _Kept | None = None
        self._stopped = ("", "")  # a callback's reason to stop, and which

    @property
    def seconds(self) -> float:
        """Time since the start of training, interruptions between runs left out."""
        return self._before + time.perf_counter() - self._start

    @property
    def iteration(self) -> int:
        """How many iterations are on record."""
        return self.run.history[-1].iteration if self.run.history else 0

    @property
    def evaluations_left(self) -> int:
        """How many the budget allows."""
        return sys.maxsize if self._max_evaluations is None else self._max_evaluations - self.n_evaluations

    @property
    def saves(self) -> bool:
        """Whether checkpoints are written."""
        return self._saver is not None

    def save_every(self, every: int, save: Callable[[Loop], None]) -> None:
        """Call `save` after every so many iterations, and at the end."""
        self._saver = (save, every)

    def begin(self) -> None:
        """Tell callbacks that training begins; stop if it has been ended by one of them before."""
        self._saved = self.iteration
        for callback in self._told:
            self._tell(callback, "on_start")
        reason, told_by = self._stopped
        if reason and told_by in map(settings_of, self._callbacks):
            raise Stop(reason)
        self._stopped = ("", "")

    def heed(self) -> None:
        """Stop training if somebody pressed Ctrl-C."""
        if self.interrupt.pending or self.cancelled:
            raise Stop(INTERRUPTED)

    def look(self) -> None:
        """Stop training after Ctrl-C, and if time or evaluations are used up."""
        self.heed()
        if self._max_seconds is not None and self.seconds >= self._max_seconds:
            raise Stop("max_seconds reached")
        if self.evaluations_left <= 0:
            raise Stop("max_evaluations reached")

    def measure(self, theta: NDArray[Any]) -> dict[str, float]:
        """Return the metrics at the parameters of a new iteration, which is not on record yet."""
        self.run.net.theta = theta
        return self._monitor(self.heed)

    def accept(
        self, terms: Mapping[str, float], gradient_norm: float, metrics: dict[str, float], whole: Whole | None
    ) -> None:
        """Put an iteration on record, tell callbacks, save a checkpoint if it is time for one.

        Parameters
        ----------
        terms : mapping
            Of J, by name.
        gradient_norm : float
        metrics : dict
            What `measure` returned.
        whole : callable, optional
            For a checkpoint; needed where they are written.
        """
        run = self.run
        before = run.history[-1].seconds if run.history else 0.0
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
        error = self._tell_all()
        if whole is not None:  # all callbacks have seen the iteration: a checkpoint may be made of it
            self._kept = _Kept(record.iteration, whole)
        if error is not None:
            raise error
        if self._saver is not None and self.iteration % self._saver[1] == 0:
            self._save()
        if self._stopped[0]:
            raise Stop(self._stopped[0])

    def _tell_all(self) -> Exception | None:
        """Tell callbacks of an iteration, all of them even where one raises; return the first error."""
        first: Exception | None = None
        for callback in self._told:
            try:
                reason = self._tell(callback, "on_iteration")
            except Exception as error:
                first = first or error
            else:
                if reason is not None and not self._stopped[0]:
                    self._stopped = (reason, settings_of(callback))
        return first

    def end(self) -> None:
        """Save the last iteration if all is known of it; tell callbacks that it is over."""
        first: Exception | None = None
        kept = self._kept
        if self._saver is not None and kept is not None and self._saved < kept.iteration == self.iteration:
            try:
                self._save()
            except Exception as error:  # callbacks are told all the same
                first = error
        for callback in self._told:
            try:
                self._tell(callback, "on_end")
            except Exception as error:
                first = first or error
        if first is not None:
            raise first

    def _save(self) -> None:
        assert self._saver is not None
        try:
            self._saver[0](self)
        except Exception as error:
            error.add_note(f"raised while a checkpoint was made, at iteration {self.iteration}")
            raise
        self._saved = self.iteration

    def _tell(self, callback: Callback, method: str) -> str | None:
        try:
            answer = getattr(callback, method)(self.run)
            if answer is not None and (method != "on_iteration" or not isinstance(answer, str) or not answer):
                raise InvalidArgumentError(f"{method} must return {_MAY_RETURN[method]}; found {answer!r:.80}")
        except Exception as error:
            error.add_note(f"raised by {method} of the callback {callback!r}, at iteration {self.iteration}")
            raise
        return answer

    # Checkpoints -----------------------------------------------------------------------------------------------

    @property
    def whole(self) -> tuple[NDArray[Any], State]:
        """The parameters and the optimiser's state after the last iteration on record."""
        assert self._kept is not None
        return self._kept.whole()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep of the loop: counters, history, and the callbacks' own.

        Counters are those of the last iteration on record: what was begun after it will be done again.
        """
        record = self.run.history[-1]
        state: dict[str, Any] = {
            "n_evaluations": record.n_evaluations,
            "n_hessian_products": record.n_hessian_products,
            "seconds": np.array(self.seconds),
            "n_callbacks": len(self._callbacks),
            "stopped": self._stopped[0],
            "stopped_by": self._stopped[1],
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
        self._stopped = (str(state.get("stopped", "")), str(state.get("stopped_by", "")))
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
