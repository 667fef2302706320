"""The examples of a mini-batch as panels, wherever their rows lie, and which units are dropped for each.

Arguments are grouped as steps.py says.
"""

from __future__ import annotations

import numpy as np

from mlpkit.kernels.batch_gradient import RIGHT
from mlpkit.kernels.jit import kernel
from mlpkit.kernels.pointers import at, pointer, shift
from mlpkit.kernels.simd import register_lanes
from mlpkit.kernels.skipping import skips
from mlpkit.kernels.strips import MASK, N_IN, N_OUT, layer_place
from mlpkit.kernels.transposes import copy_lanes, transpose, transpose_rows

__all__ = ["prepare"]


@kernel
def _gather(rows, order, begin, stop, n_columns, columns, stride, n_lanes):
    """Copy the rows of numbers order[begin:stop] to lanes of columns `stride` apart; those beyond repeat the last.

    rows: pointer to row-major rows.
    """
    side = register_lanes(columns)
    squares = n_columns // side * side
    for t in range(0, n_lanes, side):
        first = begin + t
        done = 0
        if first + side <= stop:
            for k in range(0, squares, side):
                transpose_rows(shift(rows, k), at(order, first), n_columns, shift(columns, k * stride + t), stride)
            done = squares
        for i in range(side):
            source = shift(rows, order[min(first + i, stop - 1)] * n_columns)
            for k in range(done, n_columns):
                columns[k * stride + t + i] = source[k]


@kernel(inlined=True)
def _gather_inputs(rows, order, begin, stop, n_columns, layout, example, panel, n_lanes):
    """Copy the rows of numbers order[begin:stop] into stripes for the gradient, and from there into a panel.

    example: the first one's place in the batch. Lanes beyond `stop` repeat the last.
    """
    side, lanes, examples = register_lanes(panel), layout[4], layout[3]
    stripes = at(layout[1], layout[0][0, RIGHT])
    whole = n_columns // lanes
    numbers = at(order, begin)
    for i in range(n_lanes):
        source = shift(rows, numbers[min(i, stop - 1 - begin)] * n_columns)
        target = shift(stripes, (example + i) * lanes)
        for s in range(whole):
            copy_lanes(shift(source, s * lanes), shift(target, s * examples * lanes))
        source, target = shift(source, whole * lanes), shift(target, whole * examples * lanes)
        for k in range(n_columns - whole * lanes):
            target[k] = source[k]
    squares = n_columns // side * side
    for k in range(0, n_columns, side):
        s = k // lanes
        source = shift(stripes, (s * examples + example) * lanes + k - s * lanes)
        if k < squares:
            for t in range(0, n_lanes, side):
                transpose(shift(source, t * lanes), lanes, shift(panel, k * n_lanes + t), n_lanes)
        else:
            for i in range(n_columns - squares):
                for t in range(n_lanes):
                    panel[(k + i) * n_lanes + t] = source[t * lanes + i]


@kernel(inlined=True)
def _gather_panel(network, rows, order, begin, stop, tiles, layout, skip, example, n_lanes):
    """Fill the tiles of a panel with the examples order[begin:stop]; lanes beyond get the weight 0."""
    plan, theta = network[0], network[2]
    X, Y, weights, elements = rows
    n_in, n_out = plan[0, N_IN], plan[plan.shape[0] - 1, N_OUT]
    if skips(skip):
        _gather(pointer(X, theta), order, begin, stop, n_in, at(skip[4], example), layout[2], n_lanes)
    else:
        x = at(tiles[0], example * n_in)
        _gather_inputs(pointer(X, theta), order, begin, stop, n_in, layout, example, x, n_lanes)
    if tiles[1].size > 0:
        _gather(pointer(Y, theta), order, begin, stop, n_out, at(tiles[1], example * n_out), n_lanes, n_lanes)
    w, numbers, given = at(tiles[2], example), at(order, begin), at(weights, 0)
    for i in range(n_lanes):
        w[i] = given[numbers[i]] if begin + i < stop else 0
    if elements.size > 0:
        e = at(tiles[3], example * n_out)
        _gather(at(elements, 0), order, begin, stop, n_out, e, n_lanes, n_lanes)
        for t in range(n_lanes):
            if begin + t >= stop:
                for j in range(n_out):
                    e[j * n_lanes + t] = 0


@kernel
def _mix(x):
    """Scramble 64 bits (the finaliser of splitmix64)."""
    x = np.uint64(x)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@kernel
def _draw_masks(network, order, begin, stop, dropout, seed, hashes, sections, n_lanes):
    """Fill the masks of a panel: the factor for units that stay, 0 for those that are dropped.

    Whether one stays is read off a hash of seed (which stands for the fit and the step), layer, example and unit.
    """
    plan = network[0]
    _, thresholds, factors = dropout
    for layer in range(plan.shape[0]):
        if plan[layer, MASK] < 0:
            continue
        mask = layer_place(network, layer, MASK, sections, n_lanes)
        n_out, threshold, factor = plan[layer, N_OUT], thresholds[layer], factors[layer]
        for t in range(n_lanes):
            example = order[min(begin + t, stop - 1)]
            mixed = _mix(np.uint64(seed) ^ _mix(np.uint64(example) * np.uint64(64) + np.uint64(layer)))
            hashes[t] = np.uint32(mixed >> np.uint64(32))
        for j in range(n_out):
            _draw_row(shift(mask, j * n_lanes), hashes, np.uint32(j * 0x9E3779B1), threshold, factor, n_lanes)


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


@kernel(inlined=True)
def prepare(network, rows, order, begin, stop, tiles, layout, skip, dropout, seed, sections, example, n_lanes, worker):
    """Gather a panel, and draw its masks: examples order[begin:stop], `example` of the batch and on."""
    _gather_panel(network, rows, order, begin, stop, tiles, layout, skip, example, n_lanes)
    if dropout[0].size > 0:
        _draw_masks(network, order, begin, stop, dropout, seed, tiles[4][worker], sections, n_lanes)
