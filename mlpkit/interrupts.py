"""Ctrl-C in training: the first one ends it in good order and at once, the second one raises `KeyboardInterrupt`.

Python runs a signal's handler on the main thread between two of its instructions, so not while that thread is inside
the engine, which may take seconds over a large data set. But the system writes a byte to a socket that another thread
waits at, and that thread can tell the engine to drop what it is doing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Interrupt", "interruptible"]


class Interrupt:
    """Whether Ctrl-C was pressed.

    Attributes
    ----------
    pending : bool
    """

    def __init__(self) -> None:
        self.pending = False


@contextlib.contextmanager
def interruptible(cancel: Callable[[], None]) -> Iterator[Interrupt]:
    """Take note of the first Ctrl-C inside the ``with`` block instead of raising; call `cancel` from another thread.

    Where Ctrl-C would not raise `KeyboardInterrupt` anyway (its handler is not Python's own, or this is not the main
    thread), nothing is changed.

    Parameters
    ----------
    cancel : callable
        To be called without arguments, soon after the signal and before what it interrupts goes on.

    Examples
    --------
    >>> import os
    >>> before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    >>> with interruptible(lambda: None) as interrupt:
    ...     os.kill(os.getpid(), signal.SIGINT)
    ...     interrupt.pending
    True
    >>> before = signal.signal(signal.SIGINT, before)
    """
    interrupt = Interrupt()
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield interrupt
        return
    changing, meanwhile = True, False  # whether handlers are being changed, which must not be cut short

    def handle(number: int, frame: Any) -> None:
        nonlocal meanwhile
        if changing:
            meanwhile = True
        elif interrupt.pending:
            raise KeyboardInterrupt
        else:
            interrupt.pending = True

    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.signal(signal.SIGINT, handle)
    # Full of bytes that nobody reads yet it may well be: what matters is the first.
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(ours, before, cancel), name="mlpkit-interrupts", daemon=True)
    watcher.start()
    interrupt.pending, changing, meanwhile = meanwhile, False, False
    try:
        yield interrupt
    finally:
        changing = True
        signal.set_wakeup_fd(-1)
        if before >= 0:
            with contextlib.suppress(OSError, ValueError):  # closed in the meantime
                signal.set_wakeup_fd(before)
        theirs.close()  # which ends the watcher's waiting
        watcher.join()
        ours.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if meanwhile:
            raise KeyboardInterrupt


def _watch(ours: socket.socket, before: int, cancel: Callable[[], None]) -> None:
    """Call `cancel` when the byte of Ctrl-C arrives; hand all bytes on to whoever asked for them before."""
    while True:
        numbers = ours.recv(64)
        if not numbers:
            return
        if signal.SIGINT in numbers:
            cancel()
        if before >= 0:
            with contextlib.suppress(OSError):  # full or closed, which the system itself would not mind either
                os.write(before, numbers)
