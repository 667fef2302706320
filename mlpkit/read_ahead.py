"""An iterator that a thread goes through ahead of whoever wants what it gives."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

__all__ = ["Ahead"]

_T = TypeVar("_T")
_SECONDS_BETWEEN_LOOKS = 0.02
_SECONDS_TO_END = 0.1  # a read that takes longer is left alone: what it brings is thrown away


class Ahead(Generic[_T]):
    """Goes through an iterator in a thread of its own.

    Parameters
    ----------
    items : iterator
        Used by that thread only.
    n_ahead : int
        How many items may be taken before the first is done with.
    stop : threading.Event
        Set when nobody wants more: what the iterator does at length should look at it.

    Examples
    --------
    >>> with Ahead(iter("abc"), 2, threading.Event()) as letters:
    ...     while (letter := letters.take()) is not None:
    ...         print(letter)
    ...         letters.release()
    a
    b
    c
    """

    def __init__(self, items: Iterator[_T], n_ahead: int, stop: threading.Event) -> None:
        self._stop = stop
        self._found: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._room = threading.Semaphore(n_ahead)
        # A daemon, so that one that waits for a dead file server does not keep the program from ending.
        self._thread = threading.Thread(target=self._go_through, args=(items,), name="mlpkit-reader", daemon=True)
        self._thread.start()

    def __enter__(self) -> Ahead[_T]:
        return self

    def __exit__(self, *error: object) -> None:
        """Let the thread end; wait for it only if that is soon."""
        self._stop.set()
        self._room.release()
        self._thread.join(_SECONDS_TO_END)

    def _go_through(self, items: Iterator[_T]) -> None:
        try:
            while True:
                self._room.acquire()
                if self._stop.is_set():
                    return
                try:
                    item = next(items)
                except StopIteration:
                    self._found.put(("end", None))
                    return
                self._found.put(("item", item))
        except BaseException as error:  # raised again where the item is taken
            self._found.put(("error", error))

    def take(self, look: Callable[[], None] = lambda: None) -> _T | None:
        """Return the next item, or None after the last; `look` is called while there is none yet, and may raise."""
        while True:
            look()
            try:
                kind, value = self._found.get(timeout=_SECONDS_BETWEEN_LOOKS)
            except queue.Empty:
                continue
            if kind == "error":
                raise value
            return None if kind == "end" else value

    def release(self) -> None:
        """Allow one item more: the oldest of those that were taken is done with."""
        self._room.release()
