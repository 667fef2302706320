"""Rows of examples to lane-major panels and back, and how a data set is cut up.

- A *panel* is LANES examples of one layer, feature-major (see simd.py).
- A *strip* is a run of panels that one thread takes through the network while they stay in cache.
- A *span* is a run of strips whose deltas are held until their parts of the gradient are added up.
- A *piece* is a run of strips whose sums (mean activations, and a small gradient) one thread adds up in order.

The cut depends on the data's size, the network and the machine's vector width and caches, never on the number of
threads.
Padding lanes of the last panel repeat the last example, with weight 0: they compute what a real example computes, so
they bring in no infinity or NaN that the data does not have.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlpkit.kernels import simd
from mlpkit.kernels.jit import get_num_threads, kernel, launch
from mlpkit.kernels.pointers import at, pointer, shift
from mlpkit.kernels.simd import VECTORS
from mlpkit.kernels.transposes import transpose

__all__ = [
    "CHUNK",
    "Cut",
    "aligned_empty",
    "aligned_zeros",
    "cut",
    "empty_panels",
    "pack",
    "pack_panels",
    "unpack_panels",
]

# More panels at once than a first-level cache has ways (8 is usual) push one another out where their stride is a power
# of two.
CHUNK = 6
_SMALL_GRADIENT = 256 << 10  # bytes; up to here every piece has a gradient of its own
_SPAN_BYTES = 16 << 20
_PIECES_BYTES = 4 << 20
_MOST_PIECES = 64


@kernel
def pack_panels(rows, first, stop, n_columns, panels, n_panels, n_lanes, side):
    """Copy rows[first:stop] into panels; lanes beyond `stop` repeat its last row.

    rows: pointer to row-major rows; panels: (n_panels, n_columns, LANES); side: lanes of a register.
    """
    squares = n_columns // side * side
    for p in range(n_panels):
        panel = shift(panels, p * n_columns * n_lanes)
        for t in range(0, n_lanes, side):  # as many rows as a register has lanes: few enough to be read in parallel
            row = first + p * n_lanes + t
            if row >= stop - 1:
                source = shift(rows, (stop - 1) * n_columns)
                for k in range(n_columns):
                    for i in range(side):
                        panel[k * n_lanes + t + i] = source[k]
                continue
            done = 0
            if row + side <= stop:
                for k in range(0, squares, side):
                    transpose(shift(rows, row * n_columns + k), n_columns, shift(panel, k * n_lanes + t), n_lanes)
                done = squares
            for i in range(side):
                source = shift(rows, min(row + i, stop - 1) * n_columns)
                for k in range(done, n_columns):
                    panel[k * n_lanes + t + i] = source[k]


@kernel
def unpack_panels(panels, n_panels, n_columns, rows, first, stop, n_lanes, side):
    """Copy panels (n_panels, n_columns, LANES) into row-major rows[first:stop]; side: lanes of a register."""
    squares = n_columns // side * side
    for p in range(n_panels):
        panel = shift(panels, p * n_columns * n_lanes)
        for t in range(0, n_lanes, side):
            row = first + p * n_lanes + t
            done = 0
            if row + side <= stop:
                for k in range(0, squares, side):
                    transpose(shift(panel, k * n_lanes + t), n_lanes, shift(rows, row * n_columns + k), n_columns)
                done = squares
            for i in range(min(side, stop - row)):
                target = shift(rows, (row + i) * n_columns)
                for k in range(done, n_columns):
                    target[k] = panel[k * n_lanes + t + i]


def _pack_all(address, n_rows, n_columns, panels, n_panels, n_lanes, n_workers):
    rows = pointer(address, panels)
    for w in prange(n_workers):
        begin, end = w * n_panels // n_workers, (w + 1) * n_panels // n_workers
        target = at(panels, begin * n_columns * n_lanes)
        pack_panels(rows, begin * n_lanes, n_rows, n_columns, target, end - begin, n_lanes, n_lanes // VECTORS)


_pack_sweep = (kernel(_pack_all, parallel=True, cached=True), kernel(_pack_all, cached=True))


def empty_panels(m: int, n: int, dtype: Any) -> NDArray[Any]:
    """Return one flat array with room for panels of m rows of n columns."""
    n_lanes = simd.lanes(dtype)
    return aligned_empty(-(-m // n_lanes) * n * n_lanes, dtype)


def pack(rows: NDArray[Any], panels: NDArray[Any], *, serial: bool = False) -> None:
    """Write a row-major matrix into panels from the first on; the last is filled up with the last row.

    `serial` packs on the calling thread alone, also while another one's kernels run.
    """
    m, n = rows.shape
    n_lanes = simd.lanes(rows.dtype)
    n_panels = -(-m // n_lanes)
    workers = min(get_num_threads(), n_panels)
    launch(_pack_sweep, rows.ctypes.data, m, n, panels, n_panels, n_lanes, workers=workers, serial=serial)


def aligned_empty(size: int, dtype: Any) -> NDArray[Any]:
    """Return an uninitialised vector that starts on a 64-byte boundary, where no vector load crosses a cache line."""
    dtype = np.dtype(dtype)
    raw = np.empty(size * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size * dtype.itemsize].view(dtype)


def aligned_zeros(size: int, dtype: Any, room: int = 0) -> NDArray[Any]:
    """Return a vector of zeros that starts on a 64-byte boundary, with room behind it that may be read."""
    values = aligned_empty(size + room, dtype)
    values[:] = 0
    return values[:size]


class Cut(NamedTuple):
    """How a number of examples is cut up, and whether the gradient is summed by rows or by pieces."""

    by_rows: bool
    n_panels: int
    strip_panels: int  # taken through the network at once
    span_panels: int  # held until their gradients are added up
    piece_strips: int  # whose sums are added up by one thread, in order
    n_pieces: int

    @property
    def n_strips(self) -> int:
        """Strips in all."""
        return -(-self.n_panels // self.strip_panels)


def cut(n_examples: int, dtype: Any, live_rows: int, span_rows: int, n_parameters: int) -> Cut:
    """Choose strips that stay in the second-level cache, and spans and pieces that keep many threads busy.

    Parameters
    ----------
    n_examples : int
        Rows of data.
    dtype : dtype
        float32 or float64.
    live_rows : int
        Numbers an example that a strip touches: inputs, targets, activations, deltas.
    span_rows : int
        Numbers an example held in a span.
    n_parameters : int
        Length of theta.
    """
    itemsize = np.dtype(dtype).itemsize
    n_lanes = simd.lanes(dtype)
    n_panels = -(-n_examples // n_lanes)
    by_rows = n_parameters * itemsize > _SMALL_GRADIENT
    if by_rows:
        strip = 1
        fitting = _SPAN_BYTES // (span_rows * n_lanes * itemsize) // CHUNK * CHUNK
        span = max(2 * CHUNK, min(8 * CHUNK, fitting))
        most = _MOST_PIECES
    else:
        # Short strips pay for the sums at the end of each dot product, long ones fall out of the cache, and too few
        # leave threads without work.
        fitting = min(_second_level_cache() // (live_rows * n_lanes * itemsize), n_panels // 96)
        strip = span = max(3, min(CHUNK, fitting))
        # Copies of the gradient cost time to clear and to add up, little where each has seen a lot of data.
        most = _MOST_PIECES if n_panels >= 4 * strip * _MOST_PIECES else _MOST_PIECES // 2
        most = max(_MOST_PIECES // 4, min(most, _PIECES_BYTES // (n_parameters * itemsize)))
    strip, span = min(strip, n_panels), min(span, n_panels)
    n_strips = -(-n_panels // strip)
    piece_strips = -(-n_strips // most)
    return Cut(by_rows, n_panels, strip, span, piece_strips, -(-n_strips // piece_strips))


@cache
def _second_level_cache() -> int:
    """Return the bytes of one core's second-level cache, 1 MiB where the system does not say."""
    try:
        size = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    except (AttributeError, ValueError, OSError):
        size = 0
    return size if size > 0 else 1 << 20
