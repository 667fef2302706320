"""Rows read from an open file and packed at once, on all threads.

A thread reads some rows into a buffer that stays in its core's cache and packs them from there. Python takes no part:
for a chunk of a few megabytes, that are in the system's cache, its share would be longer than the reading.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from mlpkit.kernels.jit import get_num_threads, kernel, launch
from mlpkit.kernels.pointers import at, claim, shift
from mlpkit.kernels.simd import VECTORS, lanes
from mlpkit.kernels.tiles import aligned_empty, pack_panels

__all__ = ["can_read", "read_and_pack"]

_BUFFER_BYTES = 256 << 10  # of rows, read by one call


def _find_pread() -> int:
    """Return the address of the system's `pread`, whose offsets have 64 bits on 64-bit systems; 0 if there is none."""
    if sys.maxsize < 2**62:
        return 0
    try:
        return ctypes.cast(ctypes.CDLL(None).pread, ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library without a name
        return 0


_PREAD = _find_pread()


@intrinsic
def _call_pread(typingctx, address, file, buffer, size, offset):
    """Call `pread` at its address: read up to `size` bytes into a buffer; return how many, -1 after an error."""

    def codegen(context, builder, signature, arguments):
        address, file, buffer, size, offset = arguments
        i32, i64 = ir.IntType(32), ir.IntType(64)
        byte = ir.IntType(8).as_pointer()
        function = builder.inttoptr(address, ir.FunctionType(i64, [i32, byte, i64, i64]).as_pointer())
        file, buffer = builder.trunc(file, i32), builder.bitcast(buffer, byte)
        return builder.call(function, [file, buffer, size, offset])

    return types.int64(types.intp, types.intp, buffer, types.intp, types.intp), codegen


@kernel
def _read(pread, file, buffer, itemsize, size, offset):
    """Fill a buffer with `size` bytes from `offset` on; return False if they cannot be had."""
    done = 0
    while done < size:
        n = _call_pread(pread, file, shift(buffer, done // itemsize), size - done, offset + done)
        # What ends within a number is read again from that number's start.
        if n < itemsize and n < size - done:
            return False
        done += n // itemsize * itemsize
    return True


def _read_and_pack(pread, file, blocks, n_columns, panels, buffers, side, counter, n_workers):
    """Take blocks (offset in the file, rows, first panel) until none is left, or until one cannot be read.

    counter: the second number becomes 1 if one cannot.
    """
    n_lanes = side * VECTORS
    for worker in prange(n_workers):
        buffer = at(buffers, worker * buffers.shape[1])
        while counter[1] == 0:
            i = claim(counter)
            if i >= blocks.shape[0]:
                break
            offset, rows, first = blocks[i, 0], blocks[i, 1], blocks[i, 2]
            if not _read(pread, file, buffer, panels.itemsize, rows * n_columns * panels.itemsize, offset):
                counter[1] = 1
                break
            target = at(panels, first * n_columns * n_lanes)
            pack_panels(buffer, 0, rows, n_columns, target, (rows + n_lanes - 1) // n_lanes, n_lanes, side)


_sweep = (kernel(_read_and_pack, parallel=True, cached=True), kernel(_read_and_pack, cached=True))


def can_read() -> bool:
    """Say whether this system has what `read_and_pack` needs.

    Examples
    --------
    >>> isinstance(can_read(), bool)
    True
    """
    return _PREAD != 0


def read_and_pack(file: int, runs: list[tuple[int, int, int]], n_columns: int, panels: NDArray[Any]) -> bool:
    """Read runs of rows, in the dtype of `panels`, and pack them; return False if some could not be read.

    Parameters
    ----------
    file : int
        Descriptor of an open file.
    runs : list of (offset, rows, panel)
        Where in the file a run begins, in bytes; how many rows it has; and the first panel that it goes to. The last
        panel of a run is filled up with its last row.
    n_columns : int
        Numbers a row.
    panels : ndarray
        Flat, as `mlpkit.kernels.tiles.empty_panels` returns it.
    """
    n_lanes, row_bytes = lanes(panels.dtype), n_columns * panels.itemsize
    step = max(1, _BUFFER_BYTES // (row_bytes * n_lanes)) * n_lanes
    blocks = np.array(
        [
            (offset + begin * row_bytes, min(step, rows - begin), panel + begin // n_lanes)
            for offset, rows, panel in runs
            for begin in range(0, rows, step)
        ],
        np.int64,
    ).reshape(-1, 3)
    workers = max(1, min(get_num_threads(), len(blocks)))
    buffers = aligned_empty(workers * step * n_columns, panels.dtype).reshape(workers, -1)
    counter = np.zeros(2, np.int64)
    launch(_sweep, _PREAD, file, blocks, n_columns, panels, buffers, n_lanes // VECTORS, counter, workers=workers)
    return counter[1] == 0
