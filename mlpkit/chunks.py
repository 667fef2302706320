"""Chunks: parts of a data set of a size that memory holds, cut so that no sum notices, and packed one at a time.

The cut of the whole data set (`mlpkit.kernels.tiles.cut`) says which strips belong to which piece, and which panels to
which span. Where there are pieces, a chunk is the next few strips of *each of several* pieces: all threads then have
work, and each piece's sum goes on where it was. Where there are spans, it is the next few of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlpkit.data import Data
from mlpkit.kernels.file_rows import can_read, read_and_pack
from mlpkit.kernels.tiles import Cut, aligned_empty, pack
from mlpkit.sources import Rows
from mlpkit.weights import Packed

__all__ = ["Chunk", "cut_into_chunks", "empty_chunk", "filling", "smallest_chunk"]

_LEAST_PIECES = 8  # in a chunk, so that many threads have work, before its runs of rows are made longer
_BLOCK_BYTES = 1 << 20  # read and packed at once: they stay in the second-level cache in between


class Chunk(NamedTuple):
    """Runs of panels of the whole data set, [begin, end) each, and where in the sweep they come."""

    runs: tuple[tuple[int, int], ...]
    first_piece: int
    piece_strips: int
    fresh: bool
    last: bool

    @property
    def n_panels(self) -> int:
        """How many panels it has."""
        return sum(end - begin for begin, end in self.runs)


def smallest_chunk(cut: Cut) -> int:
    """Return how many panels a chunk must have room for.

    Examples
    --------
    >>> smallest_chunk(Cut(False, 100, 6, 6, 2, 9))
    6
    """
    return cut.span_panels if cut.by_rows else cut.strip_panels


def cut_into_chunks(cut: Cut, most_panels: int, least_run: int = 1) -> list[Chunk]:
    """Cut a data set into chunks of at most so many panels, and of runs of at least so many where that is possible.

    Examples
    --------
    >>> [chunk.runs for chunk in cut_into_chunks(Cut(True, 10, 1, 4, 3, 4), 4)]
    [((0, 4),), ((4, 8),), ((8, 10),)]
    >>> [chunk.runs for chunk in cut_into_chunks(Cut(False, 11, 2, 2, 2, 3), 6)]
    [((0, 2), (4, 6), (8, 10)), ((2, 4), (6, 8), (10, 11))]
    """
    room = max(1, most_panels // smallest_chunk(cut))
    n = cut.n_panels
    if cut.by_rows:
        step = room * cut.span_panels
        return [
            Chunk(((begin, min(begin + step, n)),), 0, 0, begin == 0, begin + step >= n) for begin in range(0, n, step)
        ]
    strip, piece_strips = cut.strip_panels, cut.piece_strips
    together = min(cut.n_pieces, room, max(_LEAST_PIECES, room * strip // max(1, least_run)))
    q = min(room // together, piece_strips)
    chunks = []
    for group in range(0, cut.n_pieces, together):
        pieces = range(group, min(group + together, cut.n_pieces))
        for s in range(0, piece_strips, q):
            starts = [(piece * piece_strips + s) * strip for piece in pieces]
            more = min(q, piece_strips - s) * strip
            runs = tuple((start, min(start + more, n)) for start in starts if start < n)
            if runs:  # the last piece may have fewer strips than the others
                chunks.append(Chunk(runs, group, min(q, piece_strips - s), s == 0, False))
    return [*chunks[:-1], chunks[-1]._replace(last=True)]


def empty_chunk(data: Data, panels: int, n_lanes: int, dtype: Any) -> Packed:
    """Return room for so many panels of a data set."""
    n_in, n_out, n_elements = data.widths
    X, Y, w, elements = (aligned_empty(panels * n_lanes * n, dtype) for n in (n_in, n_out, 1, n_elements))
    return Packed(X, Y if n_out else X, w, elements)


def filling(data: Data, chunk: Chunk, into: Packed, n_lanes: int, *, alone: bool) -> list[Callable[[], None]]:
    """Return what must be done to read and pack a chunk: functions that may run in any order.

    Lanes without an example repeat the last one, with weight 0. `alone`: each on a thread of its own, beside kernels;
    otherwise one after another, and each on all of the engine's threads.
    """
    m, tasks = data.n_examples, list[Callable[[], None]]()
    inputs, targets, elements = data.columns()
    for rows, panels in ((inputs, into.X), (targets, into.Y)):
        if rows is not None:
            each = _packing(data, rows, panels, chunk, n_lanes, alone)
            whole = None if alone or data.used is not None else rows.place()
            tasks += each if whole is None else [partial(_read, rows, *whole, chunk, panels, n_lanes, each)]
    if elements is not None:
        tasks += _packing(data, elements, into.elements, chunk, n_lanes, alone, clear=True)
    place = 0
    for first, stop in chunk.runs:
        begin, end = first * n_lanes, min(stop * n_lanes, m)
        start, n = place * n_lanes, end - begin
        place += stop - first
        into.weights[start : start + n] = data.weights(begin, end)
        into.weights[start + n : place * n_lanes] = 0
    return tasks


def _packing(
    data: Data, rows: Rows, panels: NDArray[Any], chunk: Chunk, n_lanes: int, alone: bool, clear: bool = False
) -> list[Callable[[], None]]:
    """Return how a chunk's part of some rows is packed, by blocks; `clear`: lanes without an example become 0."""
    tasks, place, width = list[Callable[[], None]](), 0, rows.shape[1]
    step = max(1, _BLOCK_BYTES // (width * rows.dtype.itemsize * n_lanes)) * n_lanes
    for first, stop in chunk.runs:
        begin, end = first * n_lanes, min(stop * n_lanes, data.n_examples)
        for at in range(begin, end, step):
            target = panels[(place * n_lanes + at - begin) * width :]
            empty = stop * n_lanes - end if clear and at + step >= end else 0
            tasks.append(partial(_pack, rows, data.used, at, min(at + step, end), target, n_lanes, empty, alone))
        place += stop - first
    return tasks


def _pack(
    rows: Rows, used: NDArray[np.intp] | None, begin: int, end: int, panels: NDArray[Any], n_lanes: int, empty: int,
    alone: bool,
) -> None:  # fmt: skip
    """Pack examples begin to end - 1; begin is the first of a panel. The last `empty` lanes become 0."""
    block = rows.take(slice(begin, end) if used is None else used[begin:end])
    pack(block, panels, serial=alone)
    if empty:
        width = rows.shape[1]
        size = -(-(end - begin) // n_lanes) * n_lanes * width
        panels[size - n_lanes * width : size].reshape(width, n_lanes)[:, n_lanes - empty :] = 0


def _read(
    rows: Rows, file: int, offset: int, chunk: Chunk, panels: NDArray[Any], n_lanes: int,
    otherwise: Sequence[Callable[[], None]],
) -> None:  # fmt: skip
    """Read and pack a chunk's part of a file's rows in one go, or as usual where that fails: errors are told there."""
    m, width = rows.shape
    runs, place = [], 0
    for first, stop in chunk.runs:
        begin = first * n_lanes
        runs.append((offset + begin * width * rows.dtype.itemsize, min(stop * n_lanes, m) - begin, place))
        place += stop - first
    if not (can_read() and read_and_pack(file, runs, width, panels)):
        for task in otherwise:
            task()
