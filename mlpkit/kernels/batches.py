"""The examples of a mini-batch as panels, wherever their rows lie, and which units are dropped for each.

Arguments are grouped as steps.py says.
"""

from __future__ import annotations

import numpy as np

from mlpkit.kernels.jit import kernel
from mlpkit.kernels.pointers import at, pointer, shift
from mlpkit.kernels.simd import VECTORS
from mlpkit.kernels.strips import MASK, N_IN, N_OUT, layer_place
from mlpkit.kernels.transposes import transpose_rows

__all__ = ["prepare"]


@kernel
def _gather(rows, order, begin, stop, n_columns, panels, n_panels, n_lanes, side):
    """Copy the rows of numbers order[begin:stop] into panels; lanes beyond `stop` repeat the last.

    rows: pointer to row-major rows; panels: (n_panels, n_columns, LANES); side: lanes of a register.
    """
    squares = n_columns // side * side
    for p in range(n_panels):
        panel = shift(panels, p * n_columns * n_lanes)
        for t in range(0, n_lanes, side):
            first = begin + p * n_lanes + t
            done = 0
            if first + side <= stop:
                for k in range(0, squares, side):
                    transpose_rows(shift(rows, k), at(order, first), n_columns, shift(panel, k * n_lanes + t), n_lanes)
                done = squares
            for i in range(side):
                source = shift(rows, order[min(first + i, stop - 1)] * n_columns)
                for k in range(done, n_columns):
                    panel[k * n_lanes + t + i] = source[k]


@kernel
def _gather_strip(network, rows, order, begin, stop, tiles, first, panels, n_lanes):
    """Fill the tiles of a strip with the examples order[begin:stop]; lanes beyond get the weight 0."""
    plan, theta = network[0], network[2]
    X, Y, weights, elements = rows
    n_in, n_out = plan[0, N_IN], plan[plan.shape[0] - 1, N_OUT]
    side = n_lanes // VECTORS
    _gather(pointer(X, theta), order, begin, stop, n_in, at(tiles[0], first * n_in * n_lanes), panels, n_lanes, side)
    if tiles[1].size > 0:
        y = at(tiles[1], first * n_out * n_lanes)
        _gather(pointer(Y, theta), order, begin, stop, n_out, y, panels, n_lanes, side)
    w = at(tiles[2], first * n_lanes)
    for i in range(panels * n_lanes):
        w[i] = weights[order[begin + i]] if begin + i < stop else 0
    if elements.size > 0:
        e = at(tiles[3], first * n_out * n_lanes)
        _gather(at(elements, 0), order, begin, stop, n_out, e, panels, n_lanes, side)
        for p in range(panels):
            for t in range(n_lanes):
                if begin + p * n_lanes + t >= stop:
                    for j in range(n_out):
                        e[(p * n_out + j) * n_lanes + t] = 0


@kernel
def _mix(x):
    """Scramble 64 bits (the finaliser of splitmix64)."""
    x = np.uint64(x)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@kernel
def _draw_masks(network, order, begin, stop, dropout, seed, hashes, sections, panels, n_lanes):
    """Fill the masks of a strip: the factor for units that stay, 0 for those that are dropped.

    Whether one stays is read off a hash of seed (which stands for the fit and the step), layer, example and unit.
    """
    plan = network[0]
    _, thresholds, factors = dropout
    for layer in range(plan.shape[0]):
        if plan[layer, MASK] < 0:
            continue
        mask = layer_place(network, layer, MASK, sections, n_lanes)
        n_out, threshold, factor = plan[layer, N_OUT], thresholds[layer], factors[layer]
        for p in range(panels):
            for t in range(n_lanes):
                example = order[min(begin + p * n_lanes + t, stop - 1)]
                mixed = _mix(np.uint64(seed) ^ _mix(np.uint64(example) * np.uint64(64) + np.uint64(layer)))
                hashes[t] = np.uint32(mixed >> np.uint64(32))
            for j in range(n_out):
                row = shift(mask, (p * n_out + j) * n_lanes)
                _draw_row(row, hashes, np.uint32(j * 0x9E3779B1), threshold, factor, n_lanes)


@kernel
def _draw_row(row, hashes, unit, threshold, factor, n_lanes):
    """Fill one row of a mask (the finaliser of MurmurHash3 on 32 bits, which vectorises)."""
    zero = factor - factor
    for t in range(n_lanes):
        h = np.uint32(hashes[t] ^ unit)
        h = np.uint32(np.uint32(h ^ np.uint32(h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
        h = np.uint32(np.uint32(h ^ np.uint32(h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
        h = np.uint32(h ^ np.uint32(h >> np.uint32(16)))
        row[t] = factor if h >= threshold else zero


@kernel
def prepare(network, rows, order, begin, stop, batch, tiles, dropout, seed, sections, first, panels, worker):
    """Gather a strip and draw its masks."""
    n_lanes = batch[2]
    start = begin + first * n_lanes
    _gather_strip(network, rows, order, start, stop, tiles, first, panels, n_lanes)
    if dropout[0].size > 0:
        _draw_masks(network, order, start, stop, dropout, seed, tiles[4][worker], sections, panels, n_lanes)
