"""What each example contributes: its loss, its gradient and the gradient's length; and Jacobians of the outputs.

The strips of `mlpkit.kernels.strips`, with the same code forward and backward and every example at weight 1. Deltas and
activations of one example are all that its gradient needs, delta^(l+1) (a^(l))^T for W^(l), so

- a gradient is an outer product of two vectors, written straight to its row of the result, for which a panel is turned
  around, so that each example's numbers lie together;
- its length comes from lengths, ||delta||^2 ||a||^2, in the lanes as they are. A W that later layers use transposed has
  a sum of such products p q^T, whose squared length is sum over pairs of (p . p') (q . q').

Nothing is added up over examples, and every lane computes the same whatever the others hold: so no number depends on
which examples are asked for, nor on the threads. Examples that are asked for are gathered from the packed ones into
panels of their own, a strip for each thread.

Arguments travel in groups, those of strips.py and:

    packed  (X, Y, weights, elements): all examples
    data    the same, for a strip a thread and with weights 1, or 0 where targets are masked
    tiling  (numbers an example in each of the three sections, strip_panels, n_lanes)
    work    an array with a row for each thread: the three sections of one strip, then room for a panel turned around
"""

from __future__ import annotations

import numpy as np
from numba import prange

from mlpkit.kernels.jit import ELEMENTWISE, kernel
from mlpkit.kernels.pointers import at, call_elementwise, call_losses, claim, pointer, shift
from mlpkit.kernels.simd import VECTORS, affine
from mlpkit.kernels.strips import (
    COLUMN,
    N_IN,
    N_OUT,
    NEXT,
    PULLBACK,
    ROW,
    TIED,
    A,
    B,
    U,
    W,
    Z,
    delta_place,
    forward_strip,
    layer_place,
    set_weights,
    through,
)
from mlpkit.kernels.tiles import pack_panels, unpack_panels

__all__ = ["gradient_sweep", "jacobian_sweep", "loss_sweep", "norm_sweep"]


@kernel
def _sections(tiling, memory, strip):
    """Return the three sections for one strip, and the address behind them."""
    kept, span, scratch, _, n_lanes = tiling
    column = strip * n_lanes
    more = shift(memory, kept * column)
    most = shift(more, span * column)
    return ((memory, strip, 0), (more, strip, 0), (most, strip, 0)), shift(most, scratch * column)


@kernel
def _gather(source, columns, examples, begin, stop, target, panels, n_lanes):
    """Copy examples[begin:stop] out of all panels into a strip's; lanes beyond repeat the last."""
    for lane in range(panels * n_lanes):
        i = examples[min(begin + lane, stop - 1)]
        old = at(source, i // n_lanes * columns * n_lanes + i % n_lanes)
        new = shift(target, lane // n_lanes * columns * n_lanes + lane % n_lanes)
        for k in range(columns):
            new[k * n_lanes] = old[k * n_lanes]


@kernel
def _fetch(network, packed, data, examples, begin, stop, first, n_lanes):
    """Gather examples[begin:stop] into the strip that begins at panel `first` of `data`; return how many panels."""
    plan = network[0]
    n_in, n_out = plan[0, N_IN], plan[plan.shape[0] - 1, N_OUT]
    panels = (stop - begin + n_lanes - 1) // n_lanes
    _gather(packed[0], n_in, examples, begin, stop, at(data[0], first * n_in * n_lanes), panels, n_lanes)
    _gather(packed[1], n_out, examples, begin, stop, at(data[1], first * n_out * n_lanes), panels, n_lanes)
    if data[3].size > 0:
        elements = at(data[3], first * n_out * n_lanes)
        _gather(packed[3], n_out, examples, begin, stop, elements, panels, n_lanes)
        for i in range(panels * n_out * n_lanes):
            if elements[i] != 0:
                elements[i] = 1
    return panels


# Losses --------------------------------------------------------------------------------------------------------


@kernel
def _loss_worker(network, tiling, packed, data, output, examples, losses, work, counter, worker):
    """Take strips of examples from the counter until none is left."""
    _, _, _, strip, n_lanes = tiling
    top = network[0].shape[0] - 1
    n_in, n_out = network[0][0, N_IN], network[0][top, N_OUT]
    first = worker * strip
    x, y = at(data[0], first * n_in * n_lanes), at(data[1], first * n_out * n_lanes)
    sections, _ = _sections(tiling, at(work, worker * work.shape[1]), strip)
    z = layer_place(network, top, Z, sections, n_lanes)
    a = layer_place(network, top, A, sections, n_lanes)
    delta = delta_place(network, top, sections, n_lanes)
    while True:
        begin = claim(counter) * strip * n_lanes
        if begin >= examples.size:
            break
        stop = min(begin + strip * n_lanes, examples.size)
        panels = _fetch(network, packed, data, examples, begin, stop, first, n_lanes)
        forward_strip(network, 0, top + 1, x, sections, panels, n_lanes)
        set_weights(data, at(network[3], 0), n_out, first, delta, panels, n_lanes)
        call_losses(output, z, a, y, delta, at(losses, begin), n_out, panels, n_lanes)


def _loss_sweep(network, tiling, packed, data, output, examples, losses, work, counter, n_workers):
    """Fill `losses`: float64, one for each of `examples` and on to a full panel.

    output: address of the tile function that gives the loss of each lane; examples: their numbers among the packed.
    """
    counter[0] = 0
    for worker in prange(n_workers):
        _loss_worker(network, tiling, packed, data, output, examples, losses, work, counter, worker)


# Lengths of gradients ------------------------------------------------------------------------------------------


@kernel(fastmath=ELEMENTWISE)
def _dot(u, v, units, sums, n_lanes):
    """sums[t] = sum over j of u[j, t] v[j, t], in float64 whatever the dtype of u and v."""
    for t in range(n_lanes):
        sums[t] = 0
    for j in range(units):
        for t in range(n_lanes):
            sums[t] += np.float64(u[j * n_lanes + t]) * np.float64(v[j * n_lanes + t])


@kernel
def _factors(network, owner, layer, x, sections, panel, n_lanes):
    """Return p and q of one panel, where p q^T is the part of grad W^(owner) that belongs to `layer`."""
    plan = network[0]
    n_in, n_out = plan[layer, N_IN], plan[layer, N_OUT]
    delta = shift(delta_place(network, layer, sections, n_lanes), panel * n_out * n_lanes)
    below = x if layer == 0 else layer_place(network, layer - 1, A, sections, n_lanes)
    below = shift(below, panel * n_in * n_lanes)
    return (delta, below) if layer == owner else (below, delta)


@kernel
def _add_squares(network, x, sections, panel, products, squares, n_lanes):
    """squares[t] += ||g||^2 of each lane; products: room for two float64 a lane."""
    plan = network[0]
    left, right = products, shift(products, n_lanes)
    for layer in range(plan.shape[0]):
        n_in, n_out = plan[layer, N_IN], plan[layer, N_OUT]
        if plan[layer, B] >= 0:
            delta = _factors(network, layer, layer, x, sections, panel, n_lanes)[0]
            _dot(delta, delta, n_out, left, n_lanes)
            for t in range(n_lanes):
                squares[t] += left[t]
        if plan[layer, TIED] != 0:
            continue
        one = layer
        while one >= 0:
            p, q = _factors(network, layer, one, x, sections, panel, n_lanes)
            other, times = one, 1.0
            while other >= 0:
                p2, q2 = _factors(network, layer, other, x, sections, panel, n_lanes)
                _dot(p, p2, n_out, left, n_lanes)
                _dot(q, q2, n_in, right, n_lanes)
                for t in range(n_lanes):
                    squares[t] += times * left[t] * right[t]
                other, times = plan[other, NEXT], 2.0
            one = plan[one, NEXT]


@kernel(allocates=True)
def _norm_worker(network, tiling, packed, data, output, penalties, examples, squares, work, counter, worker):
    """Take strips of examples from the counter until none is left."""
    _, _, _, strip, n_lanes = tiling
    first = worker * strip
    x = at(data[0], first * network[0][0, N_IN] * n_lanes)
    sections, _ = _sections(tiling, at(work, worker * work.shape[1]), strip)
    products = np.empty(2 * n_lanes)
    while True:
        begin = claim(counter) * strip * n_lanes
        if begin >= examples.size:
            break
        stop = min(begin + strip * n_lanes, examples.size)
        panels = _fetch(network, packed, data, examples, begin, stop, first, n_lanes)
        through(network, 0, output, penalties, data, first, sections, panels, n_lanes)
        for p in range(panels):
            _add_squares(network, x, sections, p, at(products, 0), at(squares, begin + p * n_lanes), n_lanes)


def _norm_sweep(network, tiling, packed, data, output, penalties, examples, squares, work, counter, n_workers):
    """Add ||g||^2 to `squares`, which is as `losses` in the sweep for those."""
    counter[0] = 0
    for worker in prange(n_workers):
        _norm_worker(network, tiling, packed, data, output, penalties, examples, squares, work, counter, worker)


# Gradients -----------------------------------------------------------------------------------------------------


@kernel
def _turn(network, x, sections, panel, turned, n_lanes):
    """Write one panel's inputs, activations and deltas with the numbers of each example together."""
    plan = network[0]
    n_in, top = plan[0, N_IN], plan.shape[0] - 1
    n_units, side = plan[top, U] + plan[top, N_OUT], n_lanes // VECTORS
    unpack_panels(shift(x, panel * n_in * n_lanes), 1, n_in, turned, 0, n_lanes, n_lanes, side)
    for layer in range(top + 1):
        units, place = plan[layer, N_OUT], panel * plan[layer, N_OUT] * n_lanes
        if layer < top:
            a = shift(layer_place(network, layer, A, sections, n_lanes), place)
            unpack_panels(a, 1, units, shift(turned, (n_in + plan[layer, U]) * n_lanes), 0, n_lanes, n_lanes, side)
        delta = shift(delta_place(network, layer, sections, n_lanes), place)
        there = shift(turned, (n_in + n_units + plan[layer, U]) * n_lanes)
        unpack_panels(delta, 1, units, there, 0, n_lanes, n_lanes, side)


@kernel
def _turned_below(plan, layer, turned, lane, n_lanes):
    """Return the address of what reaches a layer, of the example in one lane."""
    place = 0 if layer == 0 else plan[0, N_IN] + plan[layer - 1, U]
    return shift(turned, place * n_lanes + lane * plan[layer, N_IN])


@kernel
def _turned_delta(plan, layer, turned, lane, n_lanes):
    """Return the address of a layer's delta, of the example in one lane."""
    top = plan.shape[0] - 1
    place = plan[0, N_IN] + plan[top, U] + plan[top, N_OUT] + plan[layer, U]
    return shift(turned, place * n_lanes + lane * plan[layer, N_OUT])


@kernel(fastmath=ELEMENTWISE)
def _write_gradient(plan, turned, lane, gradient, n_lanes):
    """Write the gradient of the example in one lane, in the order of theta."""
    for layer in range(plan.shape[0]):
        n_in, n_out = plan[layer, N_IN], plan[layer, N_OUT]
        delta = _turned_delta(plan, layer, turned, lane, n_lanes)
        if plan[layer, TIED] == 0:
            below = _turned_below(plan, layer, turned, lane, n_lanes)
            for j in range(n_out):
                row, d = shift(gradient, plan[layer, W] + j * n_in), delta[j]
                for k in range(n_in):
                    row[k] = d * below[k]
                other = plan[layer, NEXT]
                while other >= 0:
                    a = _turned_below(plan, other, turned, lane, n_lanes)[j]
                    across = _turned_delta(plan, other, turned, lane, n_lanes)
                    for k in range(n_in):
                        row[k] += a * across[k]
                    other = plan[other, NEXT]
        if plan[layer, B] >= 0:
            row = shift(gradient, plan[layer, B])
            for j in range(n_out):
                row[j] = delta[j]


@kernel
def _gradient_worker(network, tiling, packed, data, output, penalties, examples, places, out, work, counter, worker):
    """Take strips of examples from the counter until none is left."""
    plan, theta = network[0], network[2]
    _, _, _, strip, n_lanes = tiling
    first = worker * strip
    x = at(data[0], first * plan[0, N_IN] * n_lanes)
    gradients = pointer(out, theta)
    sections, turned = _sections(tiling, at(work, worker * work.shape[1]), strip)
    while True:
        begin = claim(counter) * strip * n_lanes
        if begin >= examples.size:
            break
        stop = min(begin + strip * n_lanes, examples.size)
        panels = _fetch(network, packed, data, examples, begin, stop, first, n_lanes)
        through(network, 0, output, penalties, data, first, sections, panels, n_lanes)
        for p in range(panels):
            _turn(network, x, sections, p, turned, n_lanes)
            for lane in range(min(n_lanes, stop - begin - p * n_lanes)):
                place = places[begin + p * n_lanes + lane]
                _write_gradient(plan, turned, lane, shift(gradients, place * theta.size), n_lanes)


def _gradient_sweep(network, tiling, packed, data, output, penalties, examples, places, out, work, counter, n_workers):
    """Write the gradients of `examples` to rows `places` of the matrix at `out`, an address."""
    counter[0] = 0
    for worker in prange(n_workers):
        _gradient_worker(network, tiling, packed, data, output, penalties, examples, places, out, work, counter, worker)


# Jacobians -----------------------------------------------------------------------------------------------------


@kernel
def _pull(network, layer, delta, sections, n_lanes):
    """Turn delta into J^T delta for a layer's activation, one panel."""
    z, a = layer_place(network, layer, Z, sections, n_lanes), layer_place(network, layer, A, sections, n_lanes)
    call_elementwise(network[0][layer, PULLBACK], z, a, delta, network[0][layer, N_OUT], 1, n_lanes)


@kernel
def _output_row(network, coupled, unit, sections, result, n_lanes):
    """Take the derivative of one output back to the inputs: (inputs, LANES) at `result`.

    Where the output activation couples no units, the output layer's delta holds f'(z) of them all, and one of its rows
    is the derivative; otherwise that begins as one unit's indicator.
    """
    plan, theta, constants = network[0], network[2], network[3]
    ones, zeros = at(constants, 0), at(constants, constants.size // 2)
    top = plan.shape[0] - 1
    delta = delta_place(network, top, sections, n_lanes)
    if coupled:
        n_out = plan[top, N_OUT]
        for i in range(n_out * n_lanes):
            delta[i] = 0
        for i in range(unit * n_lanes, (unit + 1) * n_lanes):
            delta[i] = 1
        _pull(network, top, delta, sections, n_lanes)
    for layer in range(top, -1, -1):
        n_in, n_out, row, column = plan[layer, N_IN], plan[layer, N_OUT], plan[layer, ROW], plan[layer, COLUMN]
        matrix = at(theta, plan[layer, W])
        if layer == top and not coupled:
            matrix, delta, n_out = shift(matrix, unit * row), shift(delta, unit * n_lanes), 1
        below = result if layer == 0 else delta_place(network, layer - 1, sections, n_lanes)
        affine(matrix, column, row, n_in, n_out, zeros, ones, 0, delta, below, 1, n_lanes)
        if layer > 0:
            _pull(network, layer - 1, below, sections, n_lanes)
        delta = below


@kernel
def _jacobian_worker(network, tiling, address, m, coupled, out, work, counter, worker):
    """Take panels from the counter until none is left."""
    plan, theta = network[0], network[2]
    n_lanes = tiling[4]
    top = plan.shape[0] - 1
    n_in, n_out, side = plan[0, N_IN], plan[top, N_OUT], n_lanes // VECTORS
    source, target = pointer(address, theta), pointer(out, theta)
    sections, x = _sections(tiling, at(work, worker * work.shape[1]), 1)
    result = shift(x, n_in * n_lanes)
    turned = shift(result, n_in * n_lanes)
    while True:
        begin = claim(counter) * n_lanes
        if begin >= m:
            break
        stop = min(begin + n_lanes, m)
        pack_panels(source, begin, stop, n_in, x, 1, n_lanes, side)
        forward_strip(network, 0, top + 1, x, sections, 1, n_lanes)
        if not coupled:
            delta = delta_place(network, top, sections, n_lanes)
            for i in range(n_out * n_lanes):
                delta[i] = 1
            _pull(network, top, delta, sections, n_lanes)
        for unit in range(n_out):
            _output_row(network, coupled, unit, sections, result, n_lanes)
            unpack_panels(result, 1, n_in, turned, 0, n_lanes, n_lanes, side)
            for i in range(stop - begin):
                row = shift(target, ((begin + i) * n_out + unit) * n_in)
                for k in range(n_in):
                    row[k] = turned[i * n_in + k]


def _jacobian_sweep(network, tiling, address, m, coupled, out, work, counter, n_workers):
    """Write (m, outputs, inputs) to `out`, for the m finite rows at `address`; both are addresses.

    coupled: whether the output activation couples units. work: sections for one panel, then three times the inputs.
    """
    counter[0] = 0
    for worker in prange(n_workers):
        _jacobian_worker(network, tiling, address, m, coupled, out, work, counter, worker)


# Each sweep as (on several threads, on one).
loss_sweep = (kernel(_loss_sweep, parallel=True, cached=True), kernel(_loss_sweep, cached=True))
norm_sweep = (kernel(_norm_sweep, parallel=True, cached=True), kernel(_norm_sweep, cached=True))
gradient_sweep = (kernel(_gradient_sweep, parallel=True, cached=True), kernel(_gradient_sweep, cached=True))
jacobian_sweep = (kernel(_jacobian_sweep, parallel=True, cached=True), kernel(_jacobian_sweep, cached=True))
