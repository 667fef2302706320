"""The first layer of mini-batches on inputs that are mostly 0, which its products skip; see `mlpkit.kernels.skipping`.

While steps run, the layer's W and what the optimiser remembers of it lie turned over here; they are copied here when
steps begin, and back when somebody looks. Whether that is done follows from the network and the data alone, and changes
no parameter's bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit.data import Data
from mlpkit.kernels.simd import BATCH_VECTORS, batch_lanes
from mlpkit.kernels.skipping import GROUP, padded_width
from mlpkit.kernels.tiles import aligned_zeros
from mlpkit.plan import Plan

__all__ = ["TurnedLayer", "no_layer", "zeros_pay"]

_PIECES, _PIECE_ROWS = 16, 16  # of the data, looked at to see how many inputs are 0
# In the time that a product takes for a register of units and one input, if none is skipped: to see whether an input is
# 0, and a register for one that is not. From 784 inputs and 10 to 1000 units, of which 5 to 50 % were not 0.
_LOOK, _PRODUCT = 1.5, 2.0
_FEWEST_STEPS = 16  # in which copying the layer here and back, once an epoch at least, is made up for


def zeros_pay(data: Data, plan: Plan, steps: int) -> bool:
    """Return whether to skip inputs that are 0, with so many steps an epoch.

    Examples
    --------
    >>> from mlpkit import MLP, Dense, Input
    >>> net = MLP([Input(50), Dense(40, "relu"), Dense(2, "identity")])
    >>> plan = Plan(net.layers, net.dtype, 100, net.loss)
    >>> X = np.eye(50)
    >>> zeros_pay(Data(net, X, X[:, :2]), plan, 100), zeros_pay(Data(net, X + 1, X[:, :2]), plan, 100)
    (True, False)
    """
    first = plan.blocks[0]
    if first.owner is not None or any(block.owner == 0 for block in plan.blocks):
        return False
    vectors = -(-first.n_out // _register_lanes(plan.dtype))
    if vectors <= _LOOK or steps < _FEWEST_STEPS:
        return False
    inputs, n = data.columns()[0], data.n_rows
    starts = np.unique(np.linspace(0, max(0, n - _PIECE_ROWS), _PIECES, dtype=int))
    pieces = [inputs.take(slice(start, min(start + _PIECE_ROWS, n))) for start in starts.tolist()]
    share = sum(np.count_nonzero(piece) for piece in pieces) / sum(piece.size for piece in pieces)
    return bool(_LOOK + _PRODUCT * vectors * share < vectors)


class TurnedLayer:
    """The first layer turned over, and what steps need beside it.

    Parameters
    ----------
    plan : Plan
    moments : sequence of ndarray
        What the optimiser remembers of each parameter, twice, empty where it does not.
    stride : int
        How far apart the rows of a batch's inputs are.
    examples, lanes, workers : int
        Those that a batch and a panel have room for, and threads.

    Attributes
    ----------
    arrays : tuple of ndarray
        As the kernels take them.
    n_groups : int
        Into how many parts the gradient's norm is added up.
    """

    def __init__(
        self, plan: Plan, moments: Sequence[NDArray[Any]], stride: int, examples: int, lanes: int, workers: int
    ) -> None:
        first, dtype = plan.blocks[0], plan.dtype
        width = padded_width(first.n_out, _register_lanes(dtype))

        def rows(n: int) -> NDArray[Any]:
            return aligned_zeros(n * width, dtype)

        kept = [rows(first.n_in if moment.size else 0) for moment in moments]
        inputs = aligned_zeros(first.n_in * stride, dtype)
        sums = rows(workers * lanes).reshape(workers, -1)
        self.arrays = (rows(first.n_in), rows(first.n_in), *kept, inputs, rows(examples), sums)
        self.n_groups = -(-first.n_in // GROUP)
        self._place, self._shape = slice(first.W, first.W + first.n_in * first.n_out), (first.n_out, first.n_in)
        self._width = width
        self._here = self._ahead = False  # whether it is here, and newer than what it was copied from

    def take(self, theta: NDArray[Any], moments: Sequence[NDArray[Any]]) -> None:
        """Copy the layer here, unless it is here; steps will be taken."""
        if not self._here:
            for turned, given in self._pairs(theta, moments):
                turned[:] = given
        self._here = self._ahead = True

    def give_back(self, theta: NDArray[Any], moments: Sequence[NDArray[Any]]) -> None:
        """Copy the layer back, if steps have been taken."""
        if self._ahead:
            for turned, given in self._pairs(theta, moments):
                given[:] = turned
        self._ahead = False

    def forget(self) -> None:
        """Take note that what has been copied here is no longer current."""
        self._here = self._ahead = False

    def _pairs(
        self, theta: NDArray[Any], moments: Sequence[NDArray[Any]]
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Give what is here beside what it is a copy of, both as W is."""
        W, _, first, second = self.arrays[:4]
        n_out, n_in = self._shape
        for turned, given in zip((W, first, second), (theta, *moments), strict=True):
            if given.size:
                yield turned.reshape(n_in, self._width)[:, :n_out].T, given[self._place].reshape(n_out, n_in)


def no_layer(dtype: np.dtype[Any]) -> tuple[NDArray[Any], ...]:
    """Return what the kernels take where nothing is skipped."""
    empty = np.zeros(0, dtype)
    return (*[empty] * 6, np.zeros((1, 0), dtype))


def _register_lanes(dtype: np.dtype[Any]) -> int:
    return batch_lanes(dtype) // BATCH_VECTORS
