"""What the engine needs to know about a network: sizes, places and addresses, as rows of integers.

A `Plan` also decides what lies where in memory, and so how much of it a sweep takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit.activations.record import forward_tile, pullback_tile
from mlpkit.kernels import simd, strips
from mlpkit.kernels.tiles import Cut, aligned_empty, cut
from mlpkit.layers import Dense, Input, parameter_blocks
from mlpkit.losses import Loss
from mlpkit.losses.record import output_tile

__all__ = ["Plan"]


class Plan:
    """The layout of a network and its memory, for a given number of examples.

    Parameters
    ----------
    layers : sequence of layers
        `Input` first, then `Dense`.
    dtype : numpy.dtype
        float32 or float64.
    n_examples : int
        Rows of data.
    loss : Loss, optional
        Given for sweeps that go backward; without it nothing is kept, and penalties are ignored.
    dropout : bool
        Make room for the masks of layers that have dropout, and for what they leave.

    Attributes
    ----------
    cut : Cut
        Panels, strips, spans and pieces.
    n_kept : int
        Dense layers up to the last whose mean activations are penalised, which may be kept between two sweeps.
    kept_rows, span_rows, scratch_rows : int
        Numbers an example in each section of memory; see `mlpkit.kernels.strips`.
    n_units : int
        Units of all dense layers together: the length of the vector of slopes.
    """

    def __init__(
        self,
        layers: Sequence[Input | Dense],
        dtype: np.dtype[Any],
        n_examples: int,
        loss: Loss | None = None,
        dropout: bool = False,
    ) -> None:
        self.dtype = dtype
        self.loss = loss
        self.dense = [layer for layer in layers if isinstance(layer, Dense)]
        self.blocks = parameter_blocks(layers)
        self.n_parameters = self.blocks[-1].end
        self.lanes = simd.lanes(dtype)
        sparse = [i for i, layer in enumerate(self.dense) if layer.mean_penalties]
        self.sparse = sparse if loss is not None else []
        self.n_kept = self.sparse[-1] + 1 if self.sparse else 0

        top = len(self.dense) - 1
        self.keeps_z = [
            loss is not None and (layer.activation.reads_z or (i == top and loss.reads_z(layer.activation)))
            for i, layer in enumerate(self.dense)
        ]
        self.drops = [dropout and layer.dropout > 0 for layer in self.dense]
        each = zip(self.dense, self.keeps_z, self.drops, strict=True)
        rows = [layer.units * (1 + z + 2 * drops) for layer, z, drops in each]
        self.n_units = sum(layer.units for layer in self.dense)
        self.kept_rows = sum(rows[: self.n_kept])
        self._hidden_rows = sum(rows[self.n_kept : top])
        self.span_rows = self._hidden_rows + (self.n_units if loss else 0)
        # Penalties on the output layer need scratch for the second part of its delta; the layer itself may be kept.
        self._output_rows = rows[top] if self.n_kept <= top else 0
        penalized = loss is not None and bool(self.dense[top].penalties)
        self.scratch_rows = self._output_rows + (self.dense[top].units if penalized else 0)
        live = layers[0].units + self.kept_rows + self.span_rows + self.scratch_rows
        if loss:
            live += self.dense[top].units  # targets
        self.cut: Cut = cut(n_examples, dtype, live, max(1, self.span_rows), self.n_parameters)
        self._widest = max(*(layer.units for layer in layers), self.lanes)

    @property
    def tiling(self) -> tuple[int, int, int, int]:
        """The cut as the sweeps take it: panels, panels a strip, panels a span, lanes."""
        return self.cut.n_panels, self.cut.strip_panels, self.cut.span_panels, self.lanes

    @property
    def worker_limit(self) -> int:
        """The most threads that find work and memory."""
        cut = self.cut
        return min(cut.n_pieces, cut.span_panels // cut.strip_panels if cut.by_rows else cut.n_pieces)

    @property
    def n_losses(self) -> int:
        """How many partial losses there are."""
        return self.cut.n_strips if self.cut.by_rows else self.cut.n_pieces

    @property
    def n_gradients(self) -> int:
        """How many partial gradients there are beside the gradient itself."""
        return 0 if self.cut.by_rows else self.cut.n_pieces

    @property
    def prediction_rows(self) -> int:
        """Numbers an example that a prediction works on: inputs and activations."""
        return self.blocks[0].n_in + self.n_units

    def sections(self, workers: int, keep: bool) -> dict[str, tuple[int, int]]:
        """Return the shapes of the arrays that hold the sections of memory, a row for each owner."""
        column = self.lanes * self.cut.span_panels
        owners = 1 if self.cut.by_rows else workers
        kept = self.lanes * self.kept_rows
        return {
            "kept": (1, kept * self.cut.n_panels) if keep else (owners, kept * self.cut.span_panels),
            "span": (owners, self.span_rows * column),
            "scratch": (workers, self.scratch_rows * self.lanes * self.cut.strip_panels),
        }

    def units(self, layer: int) -> slice:
        """Return the places of a dense layer's units among all units."""
        start = sum(below.units for below in self.dense[:layer])
        return slice(start, start + self.dense[layer].units)

    def _owner(self, layer: int) -> int:
        """Return the index of the dense layer whose place in theta holds this one's W."""
        owner = self.blocks[layer].owner
        return layer if owner is None else owner

    def constants(self) -> NDArray[Any]:
        """Return ones, then zeros, each as long as the widest layer and one panel at least."""
        values = aligned_empty(2 * self._widest, self.dtype)
        values[: self._widest] = 1
        values[self._widest :] = 0
        return values

    def rows(self) -> NDArray[np.int64]:
        """Return one row of integers a dense layer, for the sweeps; this compiles the tile functions."""
        table = np.zeros((len(self.dense), strips.PLAN_COLUMNS), np.int64)
        top = len(self.dense) - 1
        place = 0  # rows before, in the layer's section
        for i, (layer, block, z) in enumerate(zip(self.dense, self.blocks, self.keeps_z, strict=True)):
            if i in (self.n_kept, top) and i >= self.n_kept:
                place = 0
            row = table[i]
            row[strips.N_IN], row[strips.N_OUT] = block.n_in, block.n_out
            row[strips.W] = block.W
            row[strips.ROW], row[strips.COLUMN] = block.strides
            row[strips.TIED] = block.owner is not None
            row[strips.NEXT] = next((j for j in range(i + 1, len(self.blocks)) if self._owner(j) == self._owner(i)), -1)
            row[strips.B] = block.b if layer.bias else -1
            row[strips.A] = row[strips.Z] = row[strips.SEEN] = place
            row[strips.MASK] = -1
            place += layer.units
            if z:
                row[strips.Z] = place
                place += layer.units
            if self.drops[i]:
                row[strips.SEEN], row[strips.MASK] = place, place + layer.units
                place += 2 * layer.units
            row[strips.D] = self._hidden_rows + self.units(i).start
            row[strips.U] = self.units(i).start
            row[strips.MORE] = self._output_rows
            row[strips.SPARSE] = i in self.sparse
            row[strips.FORWARD] = forward_tile(layer.activation, self.dtype, not z).address
            if self.loss is not None:
                row[strips.PULLBACK] = pullback_tile(layer.activation, self.dtype).address
        return table

    def output_address(self) -> int:
        """Return the address of the output layer's tile function; this compiles it."""
        assert self.loss is not None
        address = output_tile(self.loss, self.dense[-1].activation, self.dtype).address
        assert address is not None
        return address
