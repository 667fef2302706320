"""Where mini-batches find their examples: all in memory, or a window at a time, read from files while kernels compute.

Both give the same rows in the same order. But dropout is drawn from the number of a row, so with it blocks are always
copied into windows, from arrays as well, and data in their own order must be in memory.

Of two windows' room, one is in use while a thread fills the other; what the batches have left of the first is copied to
a place kept free at the head of the second. The generator that orders and noise are drawn from is the thread's own
copy, and is handed back at the end of the epoch: an epoch that is cut short draws nothing.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mlpkit.block_shuffle import BlockShuffle, check_shuffle
from mlpkit.budget import available_memory, shown_bytes
from mlpkit.data import Data, RowMajor
from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels.tiles import aligned_empty
from mlpkit.mlp import MLP
from mlpkit.read_ahead import Ahead
from mlpkit.stochastic import Stochastic

__all__ = ["HeldRows", "StreamedRows", "Window", "Windows", "choose_windows"]

_ROWS = 4096  # that are made noisy, or go forward, at once
_PIECE_BYTES = 1 << 18  # read at once, between two looks at whether anybody still waits
_PIECES = 8  # that reading may take: as they are stored, converted, and what noise draws
_LARGEST_WINDOW = 1 << 26  # bytes, where its size changes nothing
_SMALLEST_WINDOW = 1 << 16
_PLACE_BYTES = 32  # of an example's places in orders
_NO_NUMBERS = np.zeros(0, np.int64)


class Window(NamedTuple):
    """Rows in memory, and the next examples of an epoch among them: those of whole batches, and of the epoch's last."""

    X: NDArray[Any]  # with noise where there is any
    Y: NDArray[Any]  # X itself where they are equal
    weights: NDArray[Any]
    elements: NDArray[Any]  # the weight of each target where some are masked, otherwise empty
    order: NDArray[np.int64]  # numbers of rows


class Windows(Protocol):
    """What gives mini-batches their examples."""

    def draw_noise(self, generator: np.random.Generator, look: Callable[[], None]) -> None:
        """Make an epoch's noisy inputs, where that is done before its order is drawn."""
        ...

    def windows(self, generator: np.random.Generator, look: Callable[[], None]) -> Generator[Window]:
        """Go through the examples once; a window is valid until the next is asked for."""
        ...

    def slabs(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Go through clean inputs and weights of the examples, as they are stored, some thousand at a time."""
        ...


def choose_windows(data: Data, net: MLP, optimizer: Stochastic, limit: int | None, engine_bytes: int) -> Windows:
    """Return all examples in memory where they fit, and windows of them where they do not.

    Parameters
    ----------
    data : Data
    net : MLP
    optimizer : Stochastic
        Its ``shuffle`` and ``batch_size``.
    limit : int or None
        Bytes that a training may hold. None is half of the free memory where there are files, otherwise none.
    engine_bytes : int
        What steps need beside the examples.
    """
    shuffle = check_shuffle(optimizer.shuffle)
    blocked, drops = isinstance(shuffle, BlockShuffle), any(layer.dropout for layer in net.layers[1:])  # type: ignore[union-attr]
    named = "half of the free memory" if limit is None else "memory_limit"
    if limit is None:
        limit = available_memory() // 2 if data.sources else sys.maxsize
    # A unit is dropped by the number of its example's row: for the same bits that must be the one in a window.
    if not (blocked and drops):
        held = HeldRows(data, net, shuffle)
        if held.bytes_needed + engine_bytes <= limit:
            return held.load()
    if not blocked and (shuffle or drops):
        why = "draws an order of all of them" if shuffle else "with dropout takes their numbers among all of them"
        raise InvalidArgumentError(
            f"shuffle must be 'blocks'{'' if drops else ' or False'} for examples that take more memory than there is, "
            f"which would be {shown_bytes(held.bytes_needed + engine_bytes)} with {named} at {shown_bytes(limit)}; "
            f"found {shuffle}, which {why}"
        )
    return StreamedRows(data, net, optimizer, limit, engine_bytes)


class HeldRows:
    """All examples in memory, once they are loaded.

    Parameters
    ----------
    data : Data
    net : MLP
        Its input layer's noise.
    shuffle : bool or BlockShuffle
        How an epoch's order is drawn.
    """

    def __init__(self, data: Data, net: MLP, shuffle: bool | BlockShuffle) -> None:
        self._data, self._shuffle = data, shuffle
        self._rows: RowMajor
        self._example_bytes = example_bytes(net)
        self._noise: Any = net.layers[0].noise  # type: ignore[union-attr]
        self._noisy: NDArray[Any] | None = None

    @property
    def bytes_needed(self) -> int:
        """How much all takes, what is being read and the order of an epoch included."""
        data = self._data
        noisy = 0 if self._noise is None else data.n_rows * data.widths[0] * data.columns()[0].dtype.itemsize
        return data.rows_bytes + data.n_examples * 8 + noisy + data.held_bytes

    def load(self) -> HeldRows:
        """Read or convert all of them where that is needed; return this object."""
        self._rows = self._data.rows()
        return self

    def draw_noise(self, generator: np.random.Generator, look: Callable[[], None]) -> None:
        """Make an epoch's noisy inputs; where blocks are shuffled, that is done as they come."""
        if self._noise is not None and not isinstance(self._shuffle, BlockShuffle):
            self._spoil(slice(0, len(self._rows.X)), generator, look)

    def _spoil(
        self, which: slice | NDArray[np.int64], generator: np.random.Generator, look: Callable[[], None]
    ) -> None:
        """Add noise to some rows."""
        clean = self._rows.X
        if self._noisy is None:
            self._noisy = np.empty_like(clean)
        n = which.stop if isinstance(which, slice) else which.size
        for begin in range(0, n, _ROWS):
            look()
            stop = min(begin + _ROWS, n)
            some = slice(begin, stop) if isinstance(which, slice) else which[begin:stop]
            self._noisy[some] = self._noise.apply(clean[some], generator)

    def windows(self, generator: np.random.Generator, look: Callable[[], None]) -> Generator[Window]:
        """Go through the examples once: in one window."""
        rows, shuffle = self._rows, self._shuffle
        if isinstance(shuffle, BlockShuffle):
            order = self._order_of_blocks(shuffle, generator, look)
        else:
            order = generator.permutation(rows.used) if shuffle else rows.used
        yield Window(rows.X if self._noisy is None else self._noisy, rows.Y, rows.weights, rows.elements, order)

    def _order_of_blocks(
        self, shuffle: BlockShuffle, generator: np.random.Generator, look: Callable[[], None]
    ) -> NDArray[np.int64]:
        used = self._rows.used
        orders = []
        for blocks in shuffle.windows(used.size, self._example_bytes, generator):
            look()
            numbers = np.concatenate([used[begin:end] for begin, end in blocks])
            if self._noise is not None:
                self._spoil(numbers, generator, look)
            orders.append(numbers[generator.permutation(numbers.size)])
        return np.concatenate(orders)

    def slabs(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Go through clean inputs and weights of the examples."""
        rows = self._rows
        for begin in range(0, rows.used.size, _ROWS):
            some = rows.used[begin : begin + _ROWS]
            yield rows.X[some], rows.weights[some]


class StreamedRows:
    """Windows of examples that are read anew in every epoch.

    Parameters
    ----------
    data : Data
    net : MLP
    optimizer : Stochastic
        Whose ``shuffle`` is not True.
    limit, engine_bytes : int
        As `choose_windows` has them.
    """

    def __init__(self, data: Data, net: MLP, optimizer: Stochastic, limit: int, engine_bytes: int) -> None:
        self._data, self._dtype = data, net.dtype
        self._shuffle = shuffle = check_shuffle(optimizer.shuffle)
        self._noise: Any = net.layers[0].noise  # type: ignore[union-attr]
        self._batch = batch = min(optimizer.batch_size, data.n_examples)
        n_in, n_out, n_elements = data.widths
        self._same = not n_out and self._noise is None
        self._widths = (n_in, n_out or (0 if self._same else n_in), n_elements)
        self._example_bytes = example_bytes(net)
        example = (sum(self._widths) + 1) * net.dtype.itemsize + _PLACE_BYTES
        stored = max([n * net.dtype.itemsize for n in self._widths] + [source.row_bytes for source in data.sources])
        self._piece = piece = max(1, _PIECE_BYTES // stored)
        first = _ROWS * sum(net.sizes) * net.dtype.itemsize if optimizer.rho_hat_momentum is not None else 0
        scattered = 0 if data.used is None else 4 << 20  # examples that are far apart are picked from what lies between
        fixed = engine_bytes + data.held_bytes + _PIECES * piece * stored + scattered

        def needed(rows: int) -> int:
            return fixed + max(first, 2 * (batch - 1 + rows) * example)

        if isinstance(shuffle, BlockShuffle):
            self._rows = shuffle.window_examples(data.n_examples, self._example_bytes)
            if needed(self._rows) > limit:
                raise InvalidArgumentError(
                    f"memory_limit must be at least {shown_bytes(needed(self._rows))} for shuffle={shuffle}, whose "
                    f"windows are of {self._rows} examples, with batches of {batch}; found {shown_bytes(limit)} (fewer "
                    f"blocks to a window need less)"
                )
        else:
            least = min(data.n_rows, -(-_SMALLEST_WINDOW // example))
            if needed(least) > limit:
                raise InvalidArgumentError(
                    f"memory_limit must be at least {shown_bytes(needed(least))} for this network, batch_size and "
                    f"these data; found {shown_bytes(limit)}"
                )
            room = (limit - fixed) // 3 // example - (batch - 1)
            self._rows = max(least, min(data.n_rows, room, _LARGEST_WINDOW // example))
        self._buffers: list[RowMajor] = []

    def draw_noise(self, generator: np.random.Generator, look: Callable[[], None]) -> None:
        """Do nothing: noise is added to what has been read."""

    def windows(self, generator: np.random.Generator, look: Callable[[], None]) -> Generator[Window]:
        """Go through the examples once, reading ahead."""
        head, draws, stop = self._batch - 1, copy.deepcopy(generator), threading.Event()
        buffers = self._buffers = self._buffers or [self._empty(head + self._rows) for _ in range(2)]
        before: RowMajor | None = None
        left = _NO_NUMBERS
        with Ahead(self._filled(buffers, draws, stop), 2, stop) as ahead:
            while (found := ahead.take(look)) is not None:
                rows, last = found
                begin = head - left.size
                if before is not None:
                    for target, source in zip(rows[:4], before[:4], strict=True):
                        if len(target):  # not without masked targets
                            target[begin:head] = source[left]
                    ahead.release()
                order = np.concatenate([np.arange(begin, head), rows.used])
                whole = order.size if last else order.size // self._batch * self._batch
                before, left = rows, order[whole:]
                if whole:
                    yield Window(*rows[:4], order[:whole])
        generator.bit_generator.state = draws.bit_generator.state

    def _empty(self, n: int) -> RowMajor:
        """Return room for n rows."""
        X, Y, elements = (aligned_empty(n * width, self._dtype).reshape(n, width) for width in self._widths)
        if not self._widths[2]:
            elements = np.zeros((0, 0), self._dtype)
        return RowMajor(X, X if self._same else Y, aligned_empty(n, self._dtype), elements, _NO_NUMBERS)

    def _filled(
        self, buffers: list[RowMajor], draws: np.random.Generator, stop: threading.Event
    ) -> Iterator[tuple[RowMajor, bool]]:
        """Fill one buffer after the other; `used` are the numbers of the examples, in order, behind the head."""
        data, head = self._data, self._batch - 1
        blocked = isinstance(self._shuffle, BlockShuffle)
        n = data.n_examples if blocked else data.n_rows
        done = 0
        for turn, blocks in enumerate(self._windows_of_blocks(draws)):
            self._check_unchanged()
            for begin, end in blocks:
                self._read_ahead(begin, end, blocked)
            rows, at = buffers[turn % 2], head
            for begin, end in blocks:
                for some in range(begin, end, self._piece):
                    if stop.is_set():
                        return
                    to = min(some + self._piece, end)
                    which = slice(some, to) if data.used is None or not blocked else data.used[some:to]
                    self._read(rows, which, at, draws)
                    at += to - some
            self._check_unchanged()
            done += at - head
            order = draws.permutation(at - head) if blocked else self._examples_of(done - (at - head), done)
            yield rows._replace(used=head + order), done == n

    def _examples_of(self, begin: int, end: int) -> NDArray[np.int64]:
        """Return which of some rows are examples, counted from the first of them."""
        used = self._data.used
        if used is None:
            return np.arange(end - begin)
        first, stop = np.searchsorted(used, (begin, end))
        return used[first:stop] - begin

    def _windows_of_blocks(self, draws: np.random.Generator) -> Iterator[list[tuple[int, int]]]:
        data, shuffle = self._data, self._shuffle
        if isinstance(shuffle, BlockShuffle):
            return shuffle.windows(data.n_examples, self._example_bytes, draws)
        m = data.n_rows
        return ([(begin, min(begin + self._rows, m))] for begin in range(0, m, self._rows))

    def _read(self, rows: RowMajor, which: slice | NDArray[np.intp], at: int, draws: np.random.Generator) -> None:
        n = which.stop - which.start if isinstance(which, slice) else which.size
        part = RowMajor(*(array[at : at + n] for array in rows))
        self._data.fill(which, part)
        if self._noise is not None:
            part.X[:] = self._noise.apply(part.X, draws)

    def _read_ahead(self, begin: int, end: int, blocked: bool) -> None:
        """Ask the system to read what will be wanted."""
        used = self._data.used
        if used is not None and blocked:
            begin, end = int(used[begin]), int(used[end - 1]) + 1
        for source in self._data.sources:
            source.read_ahead(begin, end)

    def _check_unchanged(self) -> None:
        for source in self._data.sources:
            source.check_unchanged()

    def slabs(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Go through clean inputs and weights of the examples."""
        data = self._data
        inputs = data.columns()[0]
        for begin in range(0, data.n_examples, _ROWS):
            end = min(begin + _ROWS, data.n_examples)
            X = inputs.take(slice(begin, end) if data.used is None else data.used[begin:end])
            yield X, np.full(end - begin, data.weights(begin, end)).astype(self._dtype)


def example_bytes(net: MLP) -> int:
    """Return what an example takes in the network's dtype, inputs and targets, whatever it is stored as.

    Examples
    --------
    >>> from mlpkit import Dense, Input
    >>> example_bytes(MLP([Input(6), Dense(2, "tanh")], dtype="float32"))
    32
    """
    return (net.sizes[0] + net.sizes[-1]) * net.dtype.itemsize
