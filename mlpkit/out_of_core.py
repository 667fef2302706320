"""Where an objective's data are: packed in memory, or packed chunk by chunk on every pass while kernels compute.

The second is the notes' second way taken to data that memory does not hold: one scan for rho_hat (only if a layer has a
penalty on it), one for the loss and the gradient. The system is asked to read the next chunk of a .npy file while
kernels compute, and the engine's threads pack it when its turn comes (others would wait for a core, on which one of the
engine's looks out for its next work); what other files, datasets and objects hold is read and packed ahead by a thread
of its own, which must decompress or call the owner's code. What memory is left goes to activations that are kept from
the first scan to the second, then to chunks that stay packed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from mlpkit.budget import shown_bytes
from mlpkit.chunks import Chunk, cut_into_chunks, empty_chunk, filling, smallest_chunk
from mlpkit.data import Data
from mlpkit.engine import Engine, Part, whole
from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels.jit import get_num_threads
from mlpkit.kernels.tiles import aligned_empty
from mlpkit.plan import Plan
from mlpkit.readers import Job, Readers
from mlpkit.weights import Packed

__all__ = ["InMemory", "OutOfCore", "Reading", "Store"]

_LARGEST_CHUNK = 8 << 20  # so that what is packed is still in the cache that cores share when kernels come to it
_LARGE_CHUNK = 4 << 20  # beyond it a chunk gains little, and memory is better used for what is kept
_CHUNKS_AHEAD = 3  # that the system is asked to read: so many that its disk always has something to do
_RUN_BYTES = 1 << 20  # read in one go, where a chunk is large enough


class Store(Protocol):
    """What gives the packed data of an objective, part by part."""

    @property
    def memory(self) -> int:
        """Bytes of it and of the engine."""
        ...

    def parts(self) -> Iterator[Part]:
        """Go through the data once."""
        ...


class InMemory:
    """A data set that is packed once.

    Parameters
    ----------
    data : Data
    engine : Engine
    keep : bool
        Whether activations are kept between the two sweeps.
    """

    def __init__(self, data: Data, engine: Engine, keep: bool) -> None:
        self._plan, self._engine, self._keep = engine.plan, engine, keep
        self._kept: NDArray[Any] | None = None
        self._n_numbers = engine.plan.cut.n_panels * engine.plan.lanes
        self._packed_bytes = self._n_numbers * data.numbers_an_example * engine.plan.dtype.itemsize
        try:
            self.packed: Packed = data.pack(self._n_numbers)
        except MemoryError as error:
            raise MemoryError(f"the objective needs {shown_bytes(self.memory)} for these data") from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}

    @staticmethod
    def bytes_needed(data: Data, engine: Engine, keep: bool) -> int:
        """Return what `memory` would be."""
        plan = engine.plan
        numbers = plan.cut.n_panels * plan.lanes * (data.numbers_an_example + (plan.kept_rows if keep else 0))
        return numbers * plan.dtype.itemsize + engine.memory(plan.cut.n_panels, not keep)

    @property
    def memory(self) -> int:
        """Bytes of packed data, kept activations, and the engine."""
        kept = self._n_numbers * self._plan.kept_rows * self._plan.dtype.itemsize if self._keep else 0
        return self._packed_bytes + kept + self._engine.memory(self._plan.cut.n_panels, not self._keep)

    def parts(self) -> Iterator[Part]:
        """Give the data as one part."""
        if self._keep and self._kept is None:
            self._kept = _empty_kept(self._plan, self._plan.cut.n_panels)
        yield whole(self._plan, self.packed, self._kept)


def _empty_kept(plan: Plan, panels: int) -> NDArray[Any]:
    return aligned_empty(panels * plan.lanes * plan.kept_rows, plan.dtype).reshape(1, -1)


@dataclass(frozen=True)
class Reading:
    """How an objective goes through data that it does not hold; `Objective.reading` before the first evaluation.

    Attributes
    ----------
    sources : tuple of str
        What is read.
    n_chunks, chunk_examples : int
        In how many chunks, and of how many examples at most.
    passes : int
        Over the data, for each evaluation.
    bytes_a_pass : int
        Read and packed on each, as they are packed.
    chunks_kept : int
        Whose hidden activations are kept from the first pass to the second.
    chunks_held : int
        That stay packed in memory and are read once.
    memory, memory_limit : int
        Bytes that it takes, and that it may take.
    """

    sources: tuple[str, ...]
    n_chunks: int
    chunk_examples: int
    passes: int
    bytes_a_pass: int
    chunks_kept: int
    chunks_held: int
    memory: int
    memory_limit: int

    def __str__(self) -> str:
        where = f" from {', '.join(self.sources)}" if self.sources else ""
        passes = "one pass" if self.passes == 1 else "two passes"
        return (
            f"reads {shown_bytes(self.bytes_a_pass)}{where} in {passes} an evaluation, {self.n_chunks} chunks of "
            f"{self.chunk_examples} examples ({self.chunks_kept} with kept activations, {self.chunks_held} held), in "
            f"{shown_bytes(self.memory)} of the {shown_bytes(self.memory_limit)} allowed"
        )


class OutOfCore:
    """A data set that is read, checked for changes and packed on every pass.

    Parameters
    ----------
    data : Data
        Already checked.
    engine : Engine
    limit : int
        Bytes that all of the objective may take.
    keep : bool
        Whether activations may be kept where memory is left.
    """

    def __init__(self, data: Data, engine: Engine, limit: int, keep: bool) -> None:
        self._data, self._engine, self._limit = data, engine, limit
        plan = self._plan = engine.plan
        number = plan.lanes * plan.dtype.itemsize
        self._panel_bytes = data.numbers_an_example * number
        self._kept_panel_bytes = plan.kept_rows * number
        # Files that the system can be asked to read ahead need no chunk beside the one that kernels work on.
        self._system_reads = all(source.read_ahead(0, 1) for source in data.sources)
        self._n_buffers = n = 1 if self._system_reads else 2
        least = smallest_chunk(plan.cut)
        room = limit - data.held_bytes - engine.memory(least, True)
        if room < n * least * self._panel_bytes:
            needed = limit - room + n * least * self._panel_bytes
            raise InvalidArgumentError(
                f"memory_limit must be at least {shown_bytes(needed)} for this network and these data, with "
                f"{plan.dtype.name} and so many threads; found {shown_bytes(limit)}"
            )
        chunk_bytes = min(_LARGEST_CHUNK, room // n, max(room // 8, _LARGE_CHUNK))
        run = -(-_RUN_BYTES // self._panel_bytes)
        self._chunks = cut_into_chunks(plan.cut, max(least, chunk_bytes // self._panel_bytes), run)
        self._panels = max(chunk.n_panels for chunk in self._chunks)
        room = limit - data.held_bytes - engine.memory(self._panels, True) - n * self._panels * self._panel_bytes
        self._n_kept = self._n_held = 0
        if keep and plan.n_kept:
            self._n_kept = min(len(self._chunks), max(0, room // (self._panels * self._kept_panel_bytes)))
            room -= self._n_kept * self._panels * self._kept_panel_bytes
        self._n_held = min(len(self._chunks), max(0, room // (self._panels * self._panel_bytes)))
        self._make_ready()

    def _make_ready(self) -> None:
        self._kept: dict[int, NDArray[Any]] = {}
        self._held: dict[int, Packed] = {}
        self._buffers: list[Packed] = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}, "_held": {}, "_buffers": []}

    @property
    def memory(self) -> int:
        """Bytes of the chunks that are packed, kept activations, weights, what is being read, and the engine."""
        panels = (self._n_buffers + self._n_held) * self._panel_bytes + self._n_kept * self._kept_panel_bytes
        return panels * self._panels + self._data.held_bytes + self._engine.memory(self._panels, True)

    @property
    def reading(self) -> Reading:
        """How the data are gone through."""
        m, plan = self._data.n_examples, self._plan
        return Reading(
            sources=tuple(source.text for source in self._data.sources),
            n_chunks=len(self._chunks),
            chunk_examples=min(m, self._panels * plan.lanes),
            passes=2 if plan.n_kept else 1,
            bytes_a_pass=plan.cut.n_panels * self._panel_bytes,
            chunks_kept=self._n_kept,
            chunks_held=self._n_held,
            memory=self.memory,
            memory_limit=self._limit,
        )

    def parts(self) -> Iterator[Part]:
        """Go through the data once; what is given is valid until the next is asked for."""
        self._check_unchanged()
        if not self._buffers:
            self._buffers = [self._empty() for _ in range(self._n_buffers)]
        threads = get_num_threads()
        with Readers(0 if self._system_reads else max(1, threads // 4)) as readers:
            coming = self._begin(0, readers)
            for i, chunk in enumerate(self._chunks):
                packed = self._end(i, *coming)
                if self._system_reads:
                    for j in range(1 if i == 0 else i + _CHUNKS_AHEAD, i + 1 + _CHUNKS_AHEAD):
                        self._read_ahead(j)
                elif not chunk.last:
                    coming = self._begin(i + 1, readers)
                yield self._part(i, chunk, packed)
                if not chunk.last and self._system_reads:
                    coming = self._begin(i + 1, readers)
        self._check_unchanged()

    def _read_ahead(self, i: int) -> None:
        """Ask the system to read the rows of a chunk, if there is such a one, and it is not held."""
        if i in self._held or i >= len(self._chunks):
            return
        lanes, used = self._plan.lanes, self._data.used
        for first, stop in self._chunks[i].runs:
            begin, end = first * lanes, min(stop * lanes, self._data.n_examples)
            if used is not None:
                begin, end = int(used[begin]), int(used[end - 1]) + 1
            for source in self._data.sources:
                source.read_ahead(begin, end)

    def _empty(self) -> Packed:
        return empty_chunk(self._data, self._panels, self._plan.lanes, self._plan.dtype)

    def _begin(self, i: int, readers: Readers) -> tuple[Packed, Job | None]:
        """Begin to read and pack a chunk, in the place of one that is done with."""
        if i in self._held:
            return self._held[i], None
        into = self._empty() if i < self._n_held else self._buffers[i % self._n_buffers]
        tasks = filling(self._data, self._chunks[i], into, self._plan.lanes, alone=not self._system_reads)
        return into, readers.start(tasks)

    def _end(self, i: int, packed: Packed, job: Job | None) -> Packed:
        if job is not None:
            job.finish()
            if i < self._n_held:
                self._held[i] = packed
        return packed

    def _part(self, i: int, chunk: Chunk, packed: Packed) -> Part:
        kept = None
        if i < self._n_kept:
            if i not in self._kept:
                self._kept[i] = _empty_kept(self._plan, chunk.n_panels)
            kept = self._kept[i]
        place = chunk.first_piece, len(chunk.runs), chunk.piece_strips, chunk.fresh, chunk.last
        return Part(packed, chunk.n_panels, *place, kept)

    def _check_unchanged(self) -> None:
        for source in self._data.sources:
            source.check_unchanged()
