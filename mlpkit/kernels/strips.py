"""One strip of panels through the network: forward, backward, and its part of the gradient.

What the network is comes in as data, so one compile for each dtype serves every architecture: `plan` has a row for
each dense layer, with sizes, places in theta and in memory, and the addresses of its tile functions.

Activations, sums and deltas live in three *sections* of memory, each (address, panels it has room for, panel at which
the strip begins), with the rows of one layer after those of another:

    kept     layers up to the last whose mean activations are penalised; from the sweep that finds rho_hat to the sweep
             that goes backward, or, if there is no room for that, computed again by the same code on the same numbers,
             for a span
    span     the other hidden layers, and the deltas of all layers
    scratch  the output layer, of which only the delta is needed after the strip, and a second part of that

Arguments travel in groups, as plain tuples (Numba recognises those quickly):

    network    (plan, n_kept, theta, constants): n_kept dense layers have their memory in the kept section; constants
               are ones, then zeros, each as long as the widest layer and one panel at least
    data       (X, Y, weights, elements) as panels: elements, one number for each of Y's, holds the weights where
               targets are masked, and is empty where none is
    penalties  (slopes, strengths): of each unit, the derivative of the penalties on its mean activation, 0 where there
               are none; of each dense layer, the strength of its L1 penalty
"""

from __future__ import annotations

import numpy as np

from mlpkit.kernels.jit import REDUCTION, kernel
from mlpkit.kernels.pointers import at, call_elementwise, call_output, choose, shift
from mlpkit.kernels.simd import accumulate_outer, affine
from mlpkit.kernels.tiles import CHUNK

__all__ = [
    "PLAN_COLUMNS",
    "activate",
    "add_products",
    "add_rows",
    "add_signs",
    "delta_place",
    "forward_strip",
    "layer_place",
    "propagate",
    "set_weights",
    "through",
]

# Columns of the plan: sizes; places of W and b (-1: none) in theta, and how far W[j, k] is from W[j - 1, k] and
# W[j, k - 1]; whether W is that of an earlier layer, transposed, and the next layer that shares it (-1: none); rows
# before a, z (the same where z is not kept) and delta in their sections, before the units in the vector of slopes,
# and, of the output layer, before the second part of its delta in scratch; whether its mean activations are penalised;
# addresses of its tile functions; rows before what the layer above sees (a itself where nothing is dropped) and, where
# it is a times a mask, before the mask (-1: none).
N_IN, N_OUT, W, B, ROW, COLUMN, TIED, NEXT, A, Z, D, U, MORE, SPARSE, FORWARD, PULLBACK, SEEN, MASK = range(18)
PLAN_COLUMNS = 18


@kernel(inlined=True)
def _place(section, row, units, n_lanes):
    """Return the address of a layer's strip in a section: panels of `units` rows, after `row` rows of other layers."""
    memory, capacity, panel = section
    return shift(memory, (row * capacity + panel * units) * n_lanes)


@kernel(inlined=True)
def layer_place(network, layer, column, sections, n_lanes):
    """Return the address of a dense layer's a, z, mask or what is seen of it (as `column` says)."""
    plan, n_kept = network[0], network[1]
    kept, span, scratch = sections
    section = kept if layer < n_kept else span if layer < plan.shape[0] - 1 else scratch
    return _place(section, plan[layer, column], plan[layer, N_OUT], n_lanes)


@kernel(inlined=True)
def delta_place(network, layer, sections, n_lanes):
    """Return the address of a dense layer's delta."""
    plan = network[0]
    return _place(sections[1], plan[layer, D], plan[layer, N_OUT], n_lanes)


@kernel(inlined=True)
def activate(network, layer, sections, panels, n_lanes):
    """Find a dense layer's a from its z, for one strip, and what the layer above sees of it."""
    plan = network[0]
    n_out = plan[layer, N_OUT]
    z = layer_place(network, layer, Z, sections, n_lanes)
    a = layer_place(network, layer, A, sections, n_lanes)
    call_elementwise(plan[layer, FORWARD], z, a, a, n_out, panels, n_lanes)
    if plan[layer, MASK] >= 0:
        mask = layer_place(network, layer, MASK, sections, n_lanes)
        seen = layer_place(network, layer, SEEN, sections, n_lanes)
        for i in range(panels * n_out * n_lanes):
            seen[i] = a[i] * mask[i]


@kernel(inlined=True)
def forward_strip(network, first, stop, x, sections, panels, n_lanes):
    """Equations (6) and (7) for one strip: dense layers first to stop - 1."""
    plan, theta, constants = network[0], network[2], network[3]
    ones, zeros = at(constants, 0), at(constants, constants.size // 2)
    for layer in range(first, stop):
        n_in, n_out = plan[layer, N_IN], plan[layer, N_OUT]
        below = x if layer == 0 else layer_place(network, layer - 1, SEEN, sections, n_lanes)
        z = layer_place(network, layer, Z, sections, n_lanes)
        bias = at(theta, plan[layer, B]) if plan[layer, B] >= 0 else zeros
        row, column = plan[layer, ROW], plan[layer, COLUMN]
        affine(at(theta, plan[layer, W]), row, column, n_out, n_in, bias, ones, 0, below, z, panels, n_lanes)
        activate(network, layer, sections, panels, n_lanes)


@kernel(inlined=True)
def set_weights(data, ones, n_out, first, delta, panels, n_lanes):
    """Fill the output's delta for the strip from panel `first` on with the weight of each of its numbers."""
    _, _, weights, elements = data
    if elements.size > 0:
        given = at(elements, first * n_out * n_lanes)
        for i in range(panels * n_out * n_lanes):
            delta[i] = given[i]
    else:
        w = at(weights, first * n_lanes)
        affine(ones, 0, 0, n_out, 0, ones, w, n_lanes, w, delta, panels, n_lanes)


@kernel(fastmath=REDUCTION)
def add_signs(a, strength, zero, weights, g, units, panels, n_lanes):
    """G += w strength sign(a), each lane with its example's weight w; return strength sum w |a|."""
    total = 0.0
    for p in range(panels):
        for j in range(units):
            start = (p * units + j) * n_lanes
            for t in range(n_lanes):
                w, value = weights[p * n_lanes + t], a[start + t]
                step = w * strength
                g[start + t] += choose(value > zero, step, choose(value < zero, -step, zero))
                total += np.float64(choose(w != zero, w * abs(value), zero))
    return np.float64(strength) * total


@kernel
def _add_output_penalties(network, penalties, weights, sections, panels, n_lanes):
    """Add to the output's delta what penalties on its activations bring; return the strip's part of the L1 term.

    They always meet f', also beside a loss whose own delta is formed from z.
    """
    plan, constants = network[0], network[3]
    slopes, strengths = penalties
    top = plan.shape[0] - 1
    if plan[top, SPARSE] == 0 and strengths[top] == 0:
        return 0.0
    n_out, zeros = plan[top, N_OUT], at(constants, constants.size // 2)
    more = _place(sections[2], plan[top, MORE], n_out, n_lanes)
    z = layer_place(network, top, Z, sections, n_lanes)
    a = layer_place(network, top, A, sections, n_lanes)
    term = at(slopes, plan[top, U])
    affine(zeros, 0, 0, n_out, 0, term, weights, n_lanes, weights, more, panels, n_lanes)
    l1 = 0.0
    if strengths[top] != 0:
        l1 = add_signs(a, strengths[top], zeros[0], weights, more, n_out, panels, n_lanes)
    call_elementwise(plan[top, PULLBACK], z, a, more, n_out, panels, n_lanes)
    delta = delta_place(network, top, sections, n_lanes)
    for i in range(panels * n_out * n_lanes):
        delta[i] += more[i]
    return l1


@kernel(inlined=True)
def propagate(network, penalties, weights, sections, panels, n_lanes):
    """From the output's delta find all others, for one strip; return its part of the L1 term.

    delta^(l) = ((W^(l))^T delta^(l+1) + w (slope + strength sign(a))) * f'(z), each lane times its example's weight w.
    """
    plan, theta, constants = network[0], network[2], network[3]
    slopes, strengths = penalties
    l1 = _add_output_penalties(network, penalties, weights, sections, panels, n_lanes)
    top = plan.shape[0] - 1
    delta = delta_place(network, top, sections, n_lanes)
    for layer in range(top, 0, -1):
        n_in, n_out = plan[layer, N_IN], plan[layer, N_OUT]
        below = delta_place(network, layer - 1, sections, n_lanes)
        term, row, column = at(slopes, plan[layer - 1, U]), plan[layer, ROW], plan[layer, COLUMN]
        transposed = at(theta, plan[layer, W])
        affine(transposed, column, row, n_in, n_out, term, weights, n_lanes, delta, below, panels, n_lanes)
        if plan[layer - 1, MASK] >= 0:
            mask = layer_place(network, layer - 1, MASK, sections, n_lanes)
            for i in range(panels * n_in * n_lanes):
                below[i] *= mask[i]
        z = layer_place(network, layer - 1, Z, sections, n_lanes)
        a = layer_place(network, layer - 1, A, sections, n_lanes)
        if strengths[layer - 1] != 0:
            zero = constants[constants.size // 2]
            l1 += add_signs(a, strengths[layer - 1], zero, weights, below, n_in, panels, n_lanes)
        call_elementwise(plan[layer - 1, PULLBACK], z, a, below, n_in, panels, n_lanes)
        delta = below
    return l1


@kernel(inlined=True)
def through(network, start, output, penalties, data, first, sections, panels, n_lanes):
    """Take the strip from panel `first` on forward and backward; return its part of the weighted loss and L1 term.

    start: the first dense layer whose activations are not there yet.
    """
    plan = network[0]
    top = plan.shape[0] - 1
    n_out = plan[top, N_OUT]
    x = at(data[0], first * plan[0, N_IN] * n_lanes)
    y = at(data[1], first * n_out * n_lanes)
    w = at(data[2], first * n_lanes)
    forward_strip(network, start, top + 1, x, sections, panels, n_lanes)
    delta = delta_place(network, top, sections, n_lanes)
    z = layer_place(network, top, Z, sections, n_lanes)
    a = layer_place(network, top, A, sections, n_lanes)
    set_weights(data, at(network[3], 0), n_out, first, delta, panels, n_lanes)
    loss = call_output(output, z, a, y, delta, n_out, panels, n_lanes)
    return loss, propagate(network, penalties, w, sections, panels, n_lanes)


@kernel
def add_rows(network, layer, begin, end, x, sections, gradient, panels, n_lanes):
    """Add delta^(l+1) (a^(l))^T to grad W^(l) and delta^(l+1) to grad b^(l): rows begin to end - 1, all panels.

    To rows of a W that later layers use transposed, theirs are added next: a^(l) (delta^(l+1))^T. Their turn then
    brings their biases alone.
    """
    plan, constants = network[0], network[3]
    n_out = plan[layer, N_OUT]
    delta = shift(delta_place(network, layer, sections, n_lanes), begin * n_lanes)
    if plan[layer, TIED] == 0:
        below = x if layer == 0 else layer_place(network, layer - 1, SEEN, sections, n_lanes)
        W_rows = shift(gradient, plan[layer, W] + begin * plan[layer, N_IN])
        add_products(delta, n_out, below, plan[layer, N_IN], end - begin, W_rows, panels, n_lanes)
        other = plan[layer, NEXT]
        while other >= 0:
            a = shift(layer_place(network, other - 1, SEEN, sections, n_lanes), begin * n_lanes)
            d = delta_place(network, other, sections, n_lanes)
            add_products(a, plan[other, N_IN], d, plan[other, N_OUT], end - begin, W_rows, panels, n_lanes)
            other = plan[other, NEXT]
    if plan[layer, B] >= 0:
        b_rows = shift(gradient, plan[layer, B] + begin)
        accumulate_outer(delta, end - begin, n_out * n_lanes, at(constants, 0), 1, 0, b_rows, 1, panels, n_lanes)


@kernel
def add_products(d, d_units, x, columns, rows, g, panels, n_lanes):
    """g[j, k] += sum over p, t of d[p, j, t] x[p, k, t]; d points to the first of `rows` among `d_units` units."""
    d_panel, x_panel = d_units * n_lanes, columns * n_lanes
    for p in range(0, panels, CHUNK):  # a few panels at a time stay in the first-level cache
        some = min(CHUNK, panels - p)
        d_p, x_p = shift(d, p * d_panel), shift(x, p * x_panel)
        accumulate_outer(d_p, rows, d_panel, x_p, columns, x_panel, g, columns, some, n_lanes)
