"""Phases that threads go through together, without a meeting point that all of them must reach.

A phase is a number of items of work, shared out evenly beforehand. A thread takes its own items first, so that what it
worked on in the last round is still in its core's cache, and then what others have not come to. When none is left it
waits until all items are *done*, not until all threads are there: one that comes late, or never, holds up nobody, and
finds its work done. Whoever finishes the last item may do what must be done once, before it lets the others go on.

    while True:
        item = take(tickets, phase, n_items, worker, n_workers)
        if item < 0:
            break
        ...
        if finish(tickets, phase, n_items, n_workers):
            ...                                     # once, after all items
            release(tickets, phase, n_workers)
    wait(tickets, phase, n_items, n_workers, yielding)

tickets: int64, zeros at first; for each phase, how many items of each worker have been taken, and how many of all are
done. yielding: the address of a function that lets other threads have the processor, 0 for none.
"""

from __future__ import annotations

import ctypes

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mlpkit.kernels.jit import kernel

__all__ = ["finish", "release", "take", "wait", "yield_address"]

_SPINS = 200  # looks before others get the processor; some microseconds


def yield_address() -> int:
    """Return the address of the system's function by which a thread lets others run, 0 if there is none.

    Examples
    --------
    >>> isinstance(yield_address(), int)
    True
    """
    try:
        return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library without a name
        return 0


def _add_one(ordering):
    @intrinsic
    def add_one(typingctx, numbers, i):
        """Atomically add one to numbers[i]; return what was there."""

        def codegen(context, builder, signature, arguments):
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            place = builder.gep(data, [arguments[1]])
            return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), ordering)

        return types.int64(numbers, types.intp), codegen

    return add_one


_take_one, _finish_one = _add_one("monotonic"), _add_one("acq_rel")


@intrinsic
def _look(typingctx, numbers, i):
    """Return numbers[i], after which all is seen that was written before it was."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(builder.gep(data, [arguments[1]]), "acquire", 8)

    return types.int64(numbers, types.intp), codegen


@intrinsic
def _call(typingctx, address):
    """Call a C function without arguments."""

    def codegen(context, builder, signature, arguments):
        function = ir.FunctionType(ir.IntType(32), []).as_pointer()
        builder.call(builder.inttoptr(arguments[0], function), [])
        return context.get_dummy_value()

    return types.void(types.intp), codegen


@kernel(inlined=True)
def take(tickets, phase, n_items, worker, n_workers):
    """Return the number of an item that nobody has taken, -1 if there is none."""
    for turn in range(n_workers):
        owner = (worker + turn) % n_workers
        begin, end = owner * n_items // n_workers, (owner + 1) * n_items // n_workers
        place = phase * (n_workers + 1) + owner
        if begin + _look(tickets, place) < end:
            item = begin + _take_one(tickets, place)
            if item < end:
                return item
    return -1


@kernel(inlined=True)
def finish(tickets, phase, n_items, n_workers):
    """Say that an item is done; return whether it was the last of all, after which `release` must follow."""
    return _finish_one(tickets, phase * (n_workers + 1) + n_workers) == n_items - 1


@kernel(inlined=True)
def release(tickets, phase, n_workers):
    """Let all threads go on."""
    _finish_one(tickets, phase * (n_workers + 1) + n_workers)


@kernel(inlined=True)
def wait(tickets, phase, n_items, n_workers, yielding):
    """Wait for `release`."""
    spins = 0
    while _look(tickets, phase * (n_workers + 1) + n_workers) <= n_items:
        spins += 1
        if spins > _SPINS and yielding != 0:
            _call(yielding)
