"""The sweeps over the data: forward for mean activations, forward and backward for the gradient.

What the network is comes in as data, so one compile for each dtype serves every architecture: `plan` has a row for
each dense layer, with sizes, places in theta and in memory, and the addresses of its tile functions.

A *strip* of panels goes through the network, forward and backward, while it is in cache, and leaves activations and
deltas behind. A *span* is the strips whose parts of the gradient are then added up together (see tiles.py):

- Where the gradient is small, a span is one strip, its thread adds up, and each *piece* of the data has a partial
  gradient of its own, which are combined in order at the end.
- Where it is large, threads share the strips of one span, then share out the gradient's rows, each summed over the
  whole span by one thread; spans follow one another, and there is one gradient.

Threads take work from a shared counter. All sums belong to a piece, or to a row of the gradient, and are added in a
fixed order, so results do not depend on the number of threads or on who took what.

Activations, sums and deltas live in three *sections* of memory, each (address, panels it has room for, panel at which
the strip begins), with the rows of one layer after those of another:

    kept     layers up to the last sparse one; from the sweep that finds rho_hat to the sweep that goes backward, or, if
             there is no room for that, computed again by the same code on the same numbers, for a span
    span     the other hidden layers, and the deltas of all layers
    scratch  the output layer, of which only the delta is needed after the strip

Arguments travel in groups, as plain tuples (Numba recognises those quickly):

    network  (plan, n_kept, theta, constants): n_kept dense layers have their memory in the kept section; constants are
             ones, then zeros, each as long as the widest layer and one panel at least
    tiling   (n_panels, strip_panels, span_panels, n_lanes)
    memory   (keep, kept, span, scratch): arrays with a row for each owner of such a section
"""

from __future__ import annotations

import numpy as np
from numba import prange

from mlpkit.kernels.jit import REDUCTION, kernel
from mlpkit.kernels.pointers import at, call_elementwise, call_output, claim, shift
from mlpkit.kernels.simd import accumulate_outer, accumulate_sums, affine
from mlpkit.kernels.tiles import CHUNK

__all__ = ["PLAN_COLUMNS", "forward_strip", "forward_sweep", "gradient_by_pieces", "gradient_by_rows", "layer_place"]

# Columns of the plan: sizes; places of W and b (-1: none) in theta, and how far W[j, k] is from W[j - 1, k] and
# W[j, k - 1]; whether W is that of an earlier layer, transposed, and the next layer that shares it (-1: none); rows
# before a, z (the same where z is not kept) and delta in their sections, and before the units in the sparsity vector;
# whether the layer is sparse; addresses of its tile functions.
N_IN, N_OUT, W, B, ROW, COLUMN, TIED, NEXT, A, Z, D, U, SPARSE, FORWARD, PULLBACK = range(15)
PLAN_COLUMNS = 15


# One strip -----------------------------------------------------------------------------------------------------


@kernel
def _place(section, row, units, n_lanes):
    """Return the address of a layer's strip in a section: panels of `units` rows, after `row` rows of other layers."""
    memory, capacity, panel = section
    return shift(memory, (row * capacity + panel * units) * n_lanes)


@kernel
def layer_place(network, layer, column, sections, n_lanes):
    """Return the address of a dense layer's a or z (as `column` says)."""
    plan, n_kept = network[0], network[1]
    kept, span, scratch = sections
    section = kept if layer < n_kept else span if layer < plan.shape[0] - 1 else scratch
    return _place(section, plan[layer, column], plan[layer, N_OUT], n_lanes)


@kernel
def forward_strip(network, first, stop, x, sections, panels, n_lanes):
    """Equations (6) and (7) for one strip: dense layers first to stop - 1."""
    plan, theta, constants = network[0], network[2], network[3]
    ones, zeros = at(constants, 0), at(constants, constants.size // 2)
    for layer in range(first, stop):
        n_in, n_out = plan[layer, N_IN], plan[layer, N_OUT]
        below = x if layer == 0 else layer_place(network, layer - 1, A, sections, n_lanes)
        z = layer_place(network, layer, Z, sections, n_lanes)
        a = layer_place(network, layer, A, sections, n_lanes)
        bias = at(theta, plan[layer, B]) if plan[layer, B] >= 0 else zeros
        row, column = plan[layer, ROW], plan[layer, COLUMN]
        affine(at(theta, plan[layer, W]), row, column, n_out, n_in, bias, ones, 0, below, z, panels, n_lanes)
        call_elementwise(plan[layer, FORWARD], z, a, a, n_out, panels)


@kernel
def _backward_strip(network, output, sparsity, y, weights, sections, panels, n_lanes):
    """Backpropagation for one strip: leave the deltas of all layers, return the weighted loss.

    delta^(l) = ((W^(l))^T delta^(l+1) + w beta s' KL') * f'(z), each lane times its example's weight w.
    """
    plan, theta, constants = network[0], network[2], network[3]
    ones = at(constants, 0)
    span, scratch = sections[1], sections[2]
    top = plan.shape[0] - 1
    n_out = plan[top, N_OUT]
    delta = _place(span, plan[top, D], n_out, n_lanes)
    z = layer_place(network, top, Z, sections, n_lanes)
    a = layer_place(network, top, A, sections, n_lanes)
    affine(ones, 0, 0, n_out, 0, ones, weights, n_lanes, y, delta, panels, n_lanes)  # delta = the weights
    loss = call_output(output, z, a, y, delta, n_out, panels)
    if plan[top, SPARSE] != 0:  # the sparsity term always meets f', also beside a fused loss delta
        term, more = at(sparsity, plan[top, U]), scratch[0]
        affine(ones, 0, 0, n_out, 0, term, weights, n_lanes, y, more, panels, n_lanes)
        call_elementwise(plan[top, PULLBACK], z, a, more, n_out, panels)
        for i in range(panels * n_out * n_lanes):
            delta[i] += more[i]
    for layer in range(top, 0, -1):
        n_in, n_out = plan[layer, N_IN], plan[layer, N_OUT]
        below = _place(span, plan[layer - 1, D], n_in, n_lanes)
        term, row, column = at(sparsity, plan[layer - 1, U]), plan[layer, ROW], plan[layer, COLUMN]
        transposed = at(theta, plan[layer, W])
        affine(transposed, column, row, n_in, n_out, term, weights, n_lanes, delta, below, panels, n_lanes)
        z = layer_place(network, layer - 1, Z, sections, n_lanes)
        a = layer_place(network, layer - 1, A, sections, n_lanes)
        call_elementwise(plan[layer - 1, PULLBACK], z, a, below, n_in, panels)
        delta = below
    return loss


@kernel
def _add_rows(network, layer, begin, end, x, sections, gradient, panels, n_lanes):
    """Add delta^(l+1) (a^(l))^T to grad W^(l) and delta^(l+1) to grad b^(l): rows begin to end - 1, all panels.

    To rows of a W that later layers use transposed, theirs are added next: a^(l) (delta^(l+1))^T. Their turn then
    brings their biases alone.
    """
    plan, constants = network[0], network[3]
    n_out = plan[layer, N_OUT]
    delta = shift(_place(sections[1], plan[layer, D], n_out, n_lanes), begin * n_lanes)
    if plan[layer, TIED] == 0:
        below = x if layer == 0 else layer_place(network, layer - 1, A, sections, n_lanes)
        W_rows = shift(gradient, plan[layer, W] + begin * plan[layer, N_IN])
        _add_products(delta, n_out, below, plan[layer, N_IN], end - begin, W_rows, panels, n_lanes)
        other = plan[layer, NEXT]
        while other >= 0:
            a = shift(layer_place(network, other - 1, A, sections, n_lanes), begin * n_lanes)
            d = _place(sections[1], plan[other, D], plan[other, N_OUT], n_lanes)
            _add_products(a, plan[other, N_IN], d, plan[other, N_OUT], end - begin, W_rows, panels, n_lanes)
            other = plan[other, NEXT]
    if plan[layer, B] >= 0:
        b_rows = shift(gradient, plan[layer, B] + begin)
        accumulate_outer(delta, end - begin, n_out * n_lanes, at(constants, 0), 1, 0, b_rows, 1, panels, n_lanes)


@kernel
def _add_products(d, d_units, x, columns, rows, g, panels, n_lanes):
    """g[j, k] += sum over p, t of d[p, j, t] x[p, k, t]; d points to the first of `rows` among `d_units` units."""
    d_panel, x_panel = d_units * n_lanes, columns * n_lanes
    for p in range(0, panels, CHUNK):  # a few panels at a time stay in the first-level cache
        some = min(CHUNK, panels - p)
        d_p, x_p = shift(d, p * d_panel), shift(x, p * x_panel)
        accumulate_outer(d_p, rows, d_panel, x_p, columns, x_panel, g, columns, some, n_lanes)


# Mean activations ----------------------------------------------------------------------------------------------


@kernel
def _forward_worker(network, tiling, piece_strips, memory, X, weights, sums, counter, worker):
    """Take pieces from the counter until none is left; add up w a for each unit of the sparse layers."""
    plan, n_kept = network[0], network[1]
    n_panels, strip, capacity, n_lanes = tiling
    keep, kept = memory
    while True:
        piece = claim(counter)
        if piece >= sums.shape[0]:
            break
        sums[piece] = 0
        for first in range(piece * piece_strips * strip, min((piece + 1) * piece_strips * strip, n_panels), strip):
            panels = min(strip, n_panels - first)
            x = at(X, first * plan[0, N_IN] * n_lanes)
            w = at(weights, first * n_lanes)
            if keep:
                section = (at(kept, 0), n_panels, first)
            elif kept.shape[0] > 1:
                section = (at(kept, worker * kept.shape[1]), capacity, 0)
            else:  # one span's memory, shared
                section = (at(kept, 0), capacity, worker * strip)
            sections = (section, section, section)
            forward_strip(network, 0, n_kept, x, sections, panels, n_lanes)
            for layer in range(n_kept):
                if plan[layer, SPARSE] != 0:
                    a = layer_place(network, layer, A, sections, n_lanes)
                    units = at(sums, piece * sums.shape[1] + plan[layer, U])
                    accumulate_sums(a, plan[layer, N_OUT], w, units, panels, n_lanes)


def _forward_sweep(network, tiling, piece_strips, memory, X, weights, sums, counter, n_workers):
    """Fill sums (pieces, units) with sum_i w_i a_ij of the sparse layers, and `kept` if asked to."""
    counter[0] = 0
    for worker in prange(n_workers):
        _forward_worker(network, tiling, piece_strips, memory, X, weights, sums, counter, worker)


# The gradient --------------------------------------------------------------------------------------------------


@kernel
def _through(network, keep, output, sparsity, data, first, sections, panels, n_lanes):
    """Take the strip from panel `first` on forward and backward; return its weighted loss."""
    plan, n_kept = network[0], network[1]
    X, Y, weights = data
    top = plan.shape[0] - 1
    x = at(X, first * plan[0, N_IN] * n_lanes)
    y = at(Y, first * plan[top, N_OUT] * n_lanes)
    w = at(weights, first * n_lanes)
    forward_strip(network, n_kept if keep else 0, top + 1, x, sections, panels, n_lanes)
    return _backward_strip(network, output, sparsity, y, w, sections, panels, n_lanes)


@kernel
def _piece_worker(network, tiling, piece_strips, memory, data, output, sparsity, gradients, losses, counter, worker):
    """Take pieces from the counter until none is left; fill each one's partial gradient and loss."""
    plan = network[0]
    n_panels, strip, _, n_lanes = tiling
    keep, kept, span, scratch = memory
    while True:
        piece = claim(counter)
        if piece >= losses.size:
            break
        gradients[piece] = 0
        gradient = at(gradients, piece * gradients.shape[1])
        loss = 0.0
        for first in range(piece * piece_strips * strip, min((piece + 1) * piece_strips * strip, n_panels), strip):
            panels = min(strip, n_panels - first)
            own = at(kept, 0 if keep else worker * kept.shape[1])
            kept_section = (own, n_panels if keep else strip, first if keep else 0)
            span_section = (at(span, worker * span.shape[1]), strip, 0)
            scratch_section = (at(scratch, worker * scratch.shape[1]), strip, 0)
            sections = (kept_section, span_section, scratch_section)
            loss += _through(network, keep, output, sparsity, data, first, sections, panels, n_lanes)
            x = at(data[0], first * plan[0, N_IN] * n_lanes)
            for layer in range(plan.shape[0]):
                _add_rows(network, layer, 0, plan[layer, N_OUT], x, sections, gradient, panels, n_lanes)
        losses[piece] = loss


def _gradient_by_pieces(
    network, tiling, piece_strips, memory, data, output, sparsity, gradients, losses, counter, scale, decay, gradient,
    n_workers
):  # fmt: skip
    """Fill `gradient`; return the weighted sum of losses and the weight decay term.

    sparsity: beta s' KL' of each unit, 0 where not sparse; scale: 1 / sum of weights; decay: lambda of each dense
    layer; all in the network's dtype. gradients, losses: one for each piece.
    """
    counter[0] = 0
    for worker in prange(n_workers):
        _piece_worker(network, tiling, piece_strips, memory, data, output, sparsity, gradients, losses, counter, worker)
    n = gradient.size
    for worker in prange(n_workers):
        begin, end = worker * n // n_workers, (worker + 1) * n // n_workers
        total = gradient[begin:end]
        total[:] = gradients[0, begin:end]
        for piece in range(1, gradients.shape[0]):
            part = gradients[piece, begin:end]
            for i in range(total.size):
                total[i] += part[i]
        _finish(network, scale, decay, gradient, begin, end)
    return _total(losses), _decay_term(network, decay)


@kernel
def _strip_worker(network, tiling, begin, memory, data, output, sparsity, losses, counter, worker):
    """Take strips of the span from panel `begin` on, until none is left."""
    n_panels, strip, capacity, n_lanes = tiling
    keep, kept, span, scratch = memory
    end = min(begin + capacity, n_panels)
    while True:
        first = begin + claim(counter) * strip
        if first >= end:
            break
        place = first - begin
        kept_section = (at(kept, 0), n_panels if keep else capacity, first if keep else place)
        scratch_section = (at(scratch, worker * scratch.shape[1]), strip, 0)
        sections = (kept_section, (at(span, 0), capacity, place), scratch_section)
        losses[first // strip] = _through(
            network, keep, output, sparsity, data, first, sections, min(strip, end - first), n_lanes
        )


@kernel
def _row_worker(network, tiling, begin, memory, X, gradient, counter, n_workers):
    """Take blocks of the gradient's rows until none is left; add up over the span from panel `begin` on."""
    plan = network[0]
    n_panels, _, capacity, n_lanes = tiling
    keep, kept, span, scratch = memory
    panels = min(capacity, n_panels - begin)
    kept_section = (at(kept, 0), n_panels if keep else capacity, begin if keep else 0)
    sections = (kept_section, (at(span, 0), capacity, 0), (at(scratch, 0), 0, 0))
    x = at(X, begin * plan[0, N_IN] * n_lanes)
    # Blocks of equal work, a few for each worker; how rows are shared out changes no sum.
    work = 0
    for layer in range(plan.shape[0]):
        work += plan[layer, N_IN] * plan[layer, N_OUT]
    mine, block = claim(counter), 0
    for layer in range(plan.shape[0]):
        cost = 1 if plan[layer, TIED] != 0 else plan[layer, N_IN]
        rows = max(1, work // (6 * n_workers * cost))
        rows = min((rows + 5) // 6 * 6, 96)
        for j in range(0, plan[layer, N_OUT], rows):
            if block == mine:
                end = min(j + rows, plan[layer, N_OUT])
                _add_rows(network, layer, j, end, x, sections, at(gradient, 0), panels, n_lanes)
                mine = claim(counter)
            block += 1


def _gradient_by_rows(
    network, tiling, memory, data, output, sparsity, losses, counter, scale, decay, gradient, n_workers
):
    """Do the same as `_gradient_by_pieces`, for a gradient too large for copies; losses: one for each strip."""
    n = gradient.size
    for worker in prange(n_workers):
        gradient[worker * n // n_workers : (worker + 1) * n // n_workers] = 0
    n_panels, _, capacity, _ = tiling
    for begin in range(0, n_panels, capacity):
        counter[0] = 0
        for worker in prange(n_workers):
            _strip_worker(network, tiling, begin, memory, data, output, sparsity, losses, counter, worker)
        counter[0] = 0
        for _worker in prange(n_workers):
            _row_worker(network, tiling, begin, memory, data[0], gradient, counter, n_workers)
    for worker in prange(n_workers):
        _finish(network, scale, decay, gradient, worker * n // n_workers, (worker + 1) * n // n_workers)
    return _total(losses), _decay_term(network, decay)


@kernel
def _finish(network, scale, decay, gradient, begin, end):
    """gradient[begin:end] = scale * gradient[begin:end] + lambda W."""
    plan, theta = network[0], network[2]
    for i in range(begin, end):
        gradient[i] *= scale
    for layer in range(plan.shape[0]):
        if decay[layer] != 0:
            start = plan[layer, W]
            stop = start + plan[layer, N_IN] * plan[layer, N_OUT]
            for i in range(max(start, begin), min(stop, end)):
                gradient[i] += decay[layer] * theta[i]


@kernel
def _total(losses):
    """Sum in order."""
    total = 0.0
    for i in range(losses.size):
        total += losses[i]
    return total


@kernel(fastmath=REDUCTION)
def _sum_squares(values):
    """Sum of squares in float64."""
    total = 0.0
    for i in range(values.size):
        total += np.float64(values[i]) * np.float64(values[i])
    return total


@kernel
def _decay_term(network, decay):
    """Return sum_l lambda_l / 2 sum (W^(l))^2."""
    plan, theta = network[0], network[2]
    term = 0.0
    for layer in range(plan.shape[0]):
        if decay[layer] != 0:
            start = plan[layer, W]
            stop = start + plan[layer, N_IN] * plan[layer, N_OUT]
            term += 0.5 * decay[layer] * _sum_squares(theta[start:stop])
    return term


# Each sweep as (on several threads, on one).
forward_sweep = (kernel(_forward_sweep, parallel=True, cached=True), kernel(_forward_sweep, cached=True))
gradient_by_pieces = (
    kernel(_gradient_by_pieces, parallel=True, cached=True),
    kernel(_gradient_by_pieces, cached=True),
)
gradient_by_rows = (kernel(_gradient_by_rows, parallel=True, cached=True), kernel(_gradient_by_rows, cached=True))
