"""The gradient of a mini-batch, with the numbers of a row of W in lanes.

Summed over lanes of examples, as the sweeps do it, a gradient number costs a horizontal sum at the end, which takes
longer than the sum itself where a batch has a few dozen examples. So for mini-batches the product is turned round: the
gradient of W^(l) is delta^(l+1) (a^(l))^T, and `affine` computes it with units of layer l in the lanes and examples for
columns, once its operands lie as it wants them, all in one array, `flat`:

- *rows*: for each unit the numbers of all examples, one after another;
- *stripes*: panels whose lanes are units and whose columns are examples.

Each number of the gradient is then one chain of fused multiply-adds over the examples of the batch, whatever block it
is computed in, and no lanes without an example take part.

    layout    (places, flat, stride, examples, lanes): places has a row for each dense layer, see below; stride: how far
              one unit's row is from the next's; examples: those that a stripe has room for; lanes: its width
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit.kernels.jit import REDUCTION, kernel
from mlpkit.kernels.pointers import at, shift
from mlpkit.kernels.simd import affine, affine_onto, register_lanes
from mlpkit.kernels.skipping import lay_out_deltas, skips
from mlpkit.kernels.strips import N_IN, N_OUT, NEXT, SEEN, TIED, B, W, delta_place, layer_place
from mlpkit.kernels.transposes import copy_lanes, prefetch_lanes, transpose

__all__ = ["LEFT", "RIGHT", "find_gradient_biases", "find_gradient_rows", "lay_out", "layout_places"]

# Columns of `places`, in numbers from the start of `flat`: rows and stripes of the two factors of the gradient, delta
# and what the layer sees or, where W is an earlier layer's transposed, the other way round; and rows of delta.
LEFT, RIGHT, DELTA = range(3)


def layout_places(
    plan: NDArray[np.int64], examples: int, stride: int, n_lanes: int, *, skipping: bool
) -> tuple[NDArray[Any], int]:
    """Return the `places` of a network's layers, and how many numbers `flat` needs.

    skipping: the network's inputs are kept elsewhere, see skipping.py.
    """
    places = np.zeros((len(plan), 3), np.int64)
    total = 0
    for i, (row, layer) in enumerate(zip(places, plan, strict=True)):
        tied = layer[TIED] != 0
        for column, units in ((LEFT, layer[N_IN if tied else N_OUT]), (DELTA, layer[N_OUT] if tied else 0)):
            row[column] = total
            total += units * stride
        if not tied:
            row[DELTA] = row[LEFT]
        total = -(-total // n_lanes) * n_lanes
        row[RIGHT] = total
        if i > 0 or not skipping:
            total += -(-layer[N_OUT if tied else N_IN] // n_lanes) * n_lanes * examples
    return places, int(total)


@kernel(inlined=True)
def _to_rows(panel, units, rows, stride, example, n_lanes):
    """Copy a panel of one layer to its rows, from an example on. Those beyond the panel's lanes get what is behind."""
    for j in range(units):
        copy_lanes(shift(panel, j * n_lanes), shift(rows, j * stride + example))


@kernel(inlined=True)
def _to_stripes(panel, units, stripes, examples, lanes, example, n_lanes):
    """Turn a panel of one layer to stripes. The lanes beyond the last unit get what lies behind the panel."""
    side = register_lanes(panel)
    for k in range(0, units, side):
        stripe = k // lanes
        target = shift(stripes, (stripe * examples + example) * lanes + k - stripe * lanes)
        for t in range(0, n_lanes, side):
            transpose(shift(panel, k * n_lanes + t), n_lanes, shift(target, t * lanes), lanes)


@kernel(inlined=True)
def lay_out(network, layout, skip, sections, example, n_lanes):
    """Copy what a panel brings to the gradient's factors; the network's inputs are laid out as they are gathered."""
    if skips(skip):
        lay_out_deltas(network, skip, sections, example, n_lanes)
    plan = network[0]
    places, flats, stride, examples, lanes = layout
    flat = at(flats, 0)
    for layer in range(plan.shape[0]):
        n_in, n_out = plan[layer, N_IN], plan[layer, N_OUT]
        delta = delta_place(network, layer, sections, n_lanes)
        _to_rows(delta, n_out, shift(flat, places[layer, DELTA]), stride, example, n_lanes)
        if layer == 0:
            continue
        below = layer_place(network, layer - 1, SEEN, sections, n_lanes)
        right = shift(flat, places[layer, RIGHT])
        if plan[layer, TIED] == 0:
            _to_stripes(below, n_in, right, examples, lanes, example, n_lanes)
        else:
            _to_rows(below, n_in, shift(flat, places[layer, LEFT]), stride, example, n_lanes)
            _to_stripes(delta, n_out, right, examples, lanes, example, n_lanes)


@kernel(fastmath=REDUCTION)
def _sum(values, n, zero):
    total = zero
    for i in range(n):
        total += values[i]
    return total


@kernel(inlined=True)
def _ask_for(ahead, n_columns, column):
    """Ask for a stripe's width of the rows of some examples: a little at a time, as memory brings only so much."""
    X, numbers, count = ahead
    for i in range(count):
        prefetch_lanes(shift(X, numbers[i] * n_columns + column))


@kernel(inlined=True)
def find_gradient_rows(network, layer, begin, end, layout, count, ahead, block, gradient):
    """Set rows begin to end - 1 of grad W^(l), unless W is an earlier layer's, to the sums over `count` examples.

    block: room for these rows as stripes.
    ahead: (X, pointer to numbers of examples, how many): rows to ask the memory for meanwhile.
    """
    plan, constants = network[0], network[3]
    places, flats, stride, examples, n_lanes = layout
    flat, zeros = at(flats, 0), at(constants, constants.size // 2)
    if plan[layer, TIED] == 0:
        n_in, rows = plan[layer, N_IN], end - begin
        whole, more = n_in // n_lanes, n_in % n_lanes
        stripes = whole + (more > 0)
        left, right = shift(flat, places[layer, LEFT] + begin * stride), shift(flat, places[layer, RIGHT])
        for s in range(stripes):
            x, z = shift(right, s * examples * n_lanes), shift(block, s * rows * n_lanes)
            _ask_for(ahead, n_in, s * n_lanes)
            affine(left, stride, 1, rows, count, zeros, zeros, 0, x, z, 1, n_lanes)
        other = plan[layer, NEXT]
        while other >= 0:
            left, right = shift(flat, places[other, LEFT] + begin * stride), shift(flat, places[other, RIGHT])
            for s in range(stripes):
                x, z = shift(right, s * examples * n_lanes), shift(block, s * rows * n_lanes)
                affine_onto(left, stride, 1, rows, count, x, z, 1, n_lanes)
            other = plan[other, NEXT]
        for j in range(rows):
            g = shift(gradient, plan[layer, W] + (begin + j) * n_in)
            for s in range(whole):
                copy_lanes(shift(block, (s * rows + j) * n_lanes), shift(g, s * n_lanes))
            last = shift(block, (whole * rows + j) * n_lanes)
            for k in range(more):
                g[whole * n_lanes + k] = last[k]


@kernel(inlined=True)
def find_gradient_biases(network, layer, begin, end, layout, count, gradient):
    """Set numbers begin to end - 1 of grad b^(l), if there is one, to the sums over a batch of `count` examples."""
    plan, constants = network[0], network[3]
    places, flats, stride, _, _ = layout
    if plan[layer, B] >= 0:
        zero = constants[constants.size // 2]
        for j in range(begin, end):
            delta = at(flats, places[layer, DELTA] + j * stride)
            gradient[plan[layer, B] + j] = _sum(delta, count, zero)
