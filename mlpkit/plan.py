"""What the engine needs to know about a network: sizes, places and addresses, as rows of integers.

A `Plan` also decides what lies where in a tile's memory, and so how much memory a sweep takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit import activations, losses
from mlpkit.kernels import simd, sweeps
from mlpkit.kernels.tiles import Cut, aligned_empty, cut
from mlpkit.layers import Dense, Input, parameter_blocks
from mlpkit.losses import Loss

__all__ = ["Plan"]


class Plan:
    """The layout of a network and its tiles, for a given number of examples.

    Parameters
    ----------
    layers : sequence of layers
        `Input` first, then `Dense`.
    dtype : numpy.dtype
        float32 or float64.
    n_examples : int
        Rows of data.
    loss : Loss, optional
        Given for sweeps that go backward; without it nothing is kept, and no layer counts as sparse.

    Attributes
    ----------
    cut : Cut
        Panels, tiles and slabs.
    n_kept : int
        Dense layers up to the last sparse one, whose tile memory may be kept between two sweeps.
    kept_size, work_size, delta_size : int
        Numbers in one tile's kept part, in its scratch part, and in one buffer of deltas.
    n_units : int
        Units of all dense layers together: the length of the vector of sparsity terms.
    """

    def __init__(
        self,
        layers: Sequence[Input | Dense],
        dtype: np.dtype[Any],
        n_examples: int,
        loss: Loss | None = None,
    ) -> None:
        self.dtype = dtype
        self.loss = loss
        self.dense = [layer for layer in layers if isinstance(layer, Dense)]
        self.blocks = parameter_blocks(layers)
        self.n_parameters = self.blocks[-1].end
        self.lanes = simd.lanes(dtype)
        sparse = [i for i, layer in enumerate(self.dense) if layer.sparsity is not None]
        self.sparse = sparse if loss is not None else []
        self.n_kept = self.sparse[-1] + 1 if self.sparse else 0

        top = len(self.dense) - 1
        self.keeps_z = [
            loss is not None and (layer.activation.reads_z or (i == top and loss.reads_z(layer.activation)))
            for i, layer in enumerate(self.dense)
        ]
        rows = [layer.units * (2 if z else 1) for layer, z in zip(self.dense, self.keeps_z, strict=True)]
        widest = max(layer.units for layer in self.dense)
        live = layers[0].units + sum(rows) + (2 * widest + self.dense[-1].units if loss else 0)
        self.cut: Cut = cut(n_examples, dtype, live, self.n_parameters)

        column = self.cut.tile_panels * self.lanes
        self.kept_size = sum(rows[: self.n_kept]) * column
        self.work_size = sum(rows[self.n_kept :]) * column
        self.delta_size = widest * column
        self.n_units = sum(layer.units for layer in self.dense)
        self._column = column
        self._widest = max(widest, self.lanes)

    @property
    def scratch_size(self) -> int:
        """Numbers of scratch that each thread needs beside a tile's kept part."""
        return self.work_size + 2 * self.delta_size

    @property
    def tiling(self) -> tuple[int, int, int, int]:
        """The cut as the sweeps take it: panels, panels a tile, tiles a slab, lanes."""
        return self.cut.n_panels, self.cut.tile_panels, self.cut.slab_tiles, self.lanes

    @property
    def worker_limit(self) -> int:
        """The most threads that find work."""
        return self.cut.n_slabs

    def units(self, layer: int) -> slice:
        """Return the places of a dense layer's units among all units."""
        start = sum(below.units for below in self.dense[:layer])
        return slice(start, start + self.dense[layer].units)

    def constants(self) -> NDArray[Any]:
        """Return ones, then zeros, each as long as the widest layer and one panel at least."""
        values = aligned_empty(2 * self._widest, self.dtype)
        values[: self._widest] = 1
        values[self._widest :] = 0
        return values

    def rows(self) -> NDArray[np.int64]:
        """Return one row of integers a dense layer, for the sweeps; this compiles the tile functions."""
        table = np.zeros((len(self.dense), sweeps.PLAN_COLUMNS), np.int64)
        place = 0
        for i, (layer, block, z) in enumerate(zip(self.dense, self.blocks, self.keeps_z, strict=True)):
            if i == self.n_kept:
                place = 0
            row = table[i]
            row[sweeps.N_IN], row[sweeps.N_OUT] = block.n_in, block.n_out
            row[sweeps.W] = block.W
            row[sweeps.B] = block.b if layer.bias else -1
            row[sweeps.A] = row[sweeps.Z] = place
            place += layer.units * self._column
            if z:
                row[sweeps.Z] = place
                place += layer.units * self._column
            row[sweeps.U] = self.units(i).start
            row[sweeps.SPARSE] = i in self.sparse
            row[sweeps.FORWARD] = activations.forward_tile(layer.activation, self.dtype, not z).address
            if self.loss is not None:
                row[sweeps.PULLBACK] = activations.pullback_tile(layer.activation, self.dtype).address
        return table

    def output_address(self) -> int:
        """Return the address of the output layer's tile function; this compiles it."""
        assert self.loss is not None
        address = losses.output_tile(self.loss, self.dense[-1].activation, self.dtype).address
        assert address is not None
        return address
