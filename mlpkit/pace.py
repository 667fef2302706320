"""How many mini-batch steps to take at once, on how many threads."""

from __future__ import annotations

from mlpkit.kernels.jit import get_num_threads

__all__ = ["Pace"]

_SLICE_SECONDS = 0.05
_TRIAL_SECONDS = 0.01
_SLICES_BETWEEN_TRIALS = 20
_FIRST_TRIES = 3  # one step in which code is loaded, one that says how long a step takes, and a trial


class Pace:
    """Decides how many steps to take at once, on how many threads.

    Threads meet several times a step, and where other programs keep the cores busy, each meeting waits for the last to
    get one: then one thread is faster than many, by far. So both are timed, over and over. The bits are the same.

    Parameters
    ----------
    most_workers : int
        Threads, if not fewer are set.
    """

    def __init__(self, most_workers: int) -> None:
        self._most_workers = most_workers
        self._seconds: dict[int, float] = {}
        self._tries: dict[int, int] = {}
        self._slices = 0

    def next(self) -> tuple[int, int]:
        """Return a number of threads, and of steps."""
        choices = {1, min(get_num_threads(), self._most_workers)}
        workers, seconds = min(choices, key=lambda n: (self._tries.get(n, 0), -n)), _TRIAL_SECONDS
        if self._tries.get(workers, 0) >= _FIRST_TRIES:
            workers, seconds = min(choices, key=self._seconds.__getitem__), _SLICE_SECONDS
            self._slices += 1
            if self._slices % _SLICES_BETWEEN_TRIALS == 0 and len(choices) > 1:
                workers, seconds = min(choices - {workers}), _TRIAL_SECONDS
        if self._tries.get(workers, 0) < _FIRST_TRIES - 1:
            return workers, 1
        return workers, max(1, int(min(seconds, _SLICE_SECONDS) / self._seconds[workers]))

    def took(self, workers: int, n_steps: int, seconds: float) -> None:
        """Take note of a slice."""
        self._seconds[workers] = seconds / n_steps
        self._tries[workers] = self._tries.get(workers, 0) + 1
