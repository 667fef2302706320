"""The order in which mini-batches see examples that are too many to be shuffled as a whole: by blocks.

The examples are cut into blocks of consecutive ones. For each epoch a seeded generator draws an order of the blocks;
the next few of them are a window, whose examples are shuffled together by the same generator, and batches are taken
from what comes out. What is left of a window when no batch is full any more begins the next, so that every batch but an
epoch's last is full, and every example is seen exactly once in an epoch.

That order follows from the number of examples, the settings and the seed. Whether the examples are in memory or in a
file, how much memory there is, and when what was read, changes nothing. Noise on inputs is drawn by the same generator
as a window comes together, before its order is; dropout depends on an example's place in its window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlpkit.checks import check_integer, shown
from mlpkit.errors import InvalidArgumentError

__all__ = ["BlockShuffle", "check_shuffle"]

_BLOCK_BYTES = 1 << 20  # a disk that must seek for each block still spends most of its time reading


@dataclass(frozen=True)
class BlockShuffle:
    """Shuffle by blocks of consecutive examples, as ``Adam(shuffle="blocks")`` does; see `mlpkit.block_shuffle`.

    Examples that lie in one block are seen at about the same time, so data that are sorted, by class for instance, are
    mixed as well as a window mixes them: with 64 blocks to a window, a batch has examples from 64 places of the file.
    Data of a single window are shuffled as a whole.

    Parameters
    ----------
    block : int, optional
        Examples in a block, which are read in one go; for a compressed file, best a multiple of what its chunks hold.
        None takes as many as make 1 MiB, one at least, where an example is s_1 inputs and s_nl targets in the network's
        dtype.
    window : int
        Blocks to a window. When data are read as training goes, two windows are in memory: one in use, one being read.

    Examples
    --------
    >>> from mlpkit import Adam
    >>> Adam(shuffle=BlockShuffle(window=16)).shuffle
    BlockShuffle(block=None, window=16)
    >>> [blocks for blocks in BlockShuffle(block=2, window=2).windows(7, 8, np.random.default_rng(0))]
    [[(4, 6), (0, 2)], [(2, 4), (6, 7)]]
    """

    block: int | None = None
    window: int = 64

    def __post_init__(self) -> None:
        if self.block is not None:
            object.__setattr__(self, "block", check_integer(self.block, "block", low=1))
        object.__setattr__(self, "window", check_integer(self.window, "window", low=1))

    def block_examples(self, example_bytes: int) -> int:
        """Return how many examples make a block, of so many bytes each in the network's dtype.

        Examples
        --------
        >>> BlockShuffle().block_examples(2048), BlockShuffle(block=100).block_examples(2048)
        (512, 100)
        """
        return max(1, _BLOCK_BYTES // example_bytes) if self.block is None else self.block

    def window_examples(self, n: int, example_bytes: int) -> int:
        """Return how many of n examples the largest window has.

        Examples
        --------
        >>> BlockShuffle(block=100, window=8).window_examples(10_000, 2048)
        800
        """
        return min(n, self.window * self.block_examples(example_bytes))

    def windows(self, n: int, example_bytes: int, generator: np.random.Generator) -> Iterator[list[tuple[int, int]]]:
        """Draw an epoch's order of blocks, and go through its windows: lists of blocks, [begin, end) each."""
        block = self.block_examples(example_bytes)
        order = generator.permutation(-(-n // block))
        for k in range(0, order.size, self.window):
            yield [(int(i) * block, min((int(i) + 1) * block, n)) for i in order[k : k + self.window]]


def check_shuffle(shuffle: Any) -> bool | BlockShuffle:
    """Return how to shuffle, or say what it must be.

    Examples
    --------
    >>> check_shuffle("blocks")
    BlockShuffle(block=None, window=64)
    """
    if isinstance(shuffle, (bool, np.bool_)):
        return bool(shuffle)
    if isinstance(shuffle, BlockShuffle):
        return shuffle
    if isinstance(shuffle, str) and shuffle == "blocks":
        return BlockShuffle()
    raise InvalidArgumentError(f"shuffle must be True, False, 'blocks' or a BlockShuffle; found {shown(shuffle)}")
