"""Work that runs ahead in the background, and that whoever waits for it helps to finish."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["Job", "Readers"]


class Job:
    """Some tasks, each to be done once, by any thread."""

    def __init__(self, tasks: Sequence[Callable[[], None]]) -> None:
        self._tasks = deque(tasks)
        self._helpers: list[Future[None]] = []

    def work(self) -> None:
        """Do tasks until none is left; after an error, leave the others undone."""
        try:
            while True:
                try:
                    task = self._tasks.popleft()
                except IndexError:
                    return
                task()
        except BaseException:
            self._tasks.clear()
            raise

    def finish(self) -> None:
        """Help until all is done, and raise the first error that there was."""
        try:
            self.work()
        finally:
            for helper in self._helpers:
                helper.result()

    def start(self, pool: ThreadPoolExecutor, n_threads: int) -> None:
        """Have threads of a pool begin."""
        self._helpers = [pool.submit(self.work) for _ in range(n_threads)]


class Readers:
    """Threads that end with the ``with`` block.

    Parameters
    ----------
    n_threads : int
        0 for none: all is then done by whoever waits for it.

    Examples
    --------
    >>> done = []
    >>> with Readers(1) as readers:
    ...     job = readers.start([lambda: done.append(1), lambda: done.append(2)])
    ...     job.finish()
    >>> sorted(done)
    [1, 2]
    """

    def __init__(self, n_threads: int) -> None:
        self._n = n_threads
        self._pool = ThreadPoolExecutor(max(1, n_threads), "mlpkit-reader")

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def start(self, tasks: Sequence[Callable[[], None]]) -> Job:
        """Begin with some tasks."""
        job = Job(tasks)
        job.start(self._pool, self._n)
        return job
