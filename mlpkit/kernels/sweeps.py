"""The sweeps over the data: forward for mean activations, forward and backward for the gradient.

A *strip* of panels goes through the network, forward and backward, while it is in cache, and leaves activations and
deltas behind. A *span* is the strips whose parts of the gradient are then added up together (see tiles.py):

- Where the gradient is small, a span is one strip, its thread adds up, and each *piece* of the data has a partial
  gradient of its own, which are combined in order at the end.
- Where it is large, threads share the strips of one span, then share out the gradient's rows, each summed over the
  whole span by one thread; spans follow one another, and there is one gradient.

Threads take work from a shared counter, counter[0]. Where another thread of Python makes counter[1] other than 0, they
stop within milliseconds, and what a sweep returns is to be thrown away. All sums belong to a piece, or to a row of the
gradient, and are added in a fixed order, so results do not depend on the number of threads or on who took what.

Arguments travel in groups, those of strips.py and:

    tiling   (n_panels, strip_panels, span_panels, n_lanes)
    memory   (keep, kept, span, scratch): arrays with a row for each owner of such a section
    part     which part of the data the panels are, where they are not all there is: a sweep over all of them is then
             several launches, one a part, in the same order of the same sums. `fresh` says that sums start with this
             part, rather than go on; `last`, that they are complete after it.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from mlpkit.kernels.jit import REDUCTION, kernel
from mlpkit.kernels.pointers import at, claim
from mlpkit.kernels.simd import accumulate_sums
from mlpkit.kernels.strips import N_IN, N_OUT, SPARSE, TIED, A, U, W, add_rows, forward_strip, layer_place, through

__all__ = ["forward_sweep", "gradient_by_pieces", "gradient_by_rows"]

# Mean activations ----------------------------------------------------------------------------------------------


@kernel
def _forward_worker(network, tiling, part, memory, X, weights, sums, counter, worker):
    """Take pieces from the counter until none is left; add up w a for each unit whose mean is penalised."""
    plan, n_kept = network[0], network[1]
    n_panels, strip, capacity, n_lanes = tiling
    begin, end, piece_strips, fresh = part
    keep, kept = memory
    while True:
        piece = claim(counter)
        if piece >= sums.shape[0] or counter[1] != 0:
            break
        if fresh:
            sums[piece] = 0
        start = begin + piece * piece_strips * strip
        for first in range(start, min(start + piece_strips * strip, end), strip):
            panels = min(strip, end - first)
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


def _forward_sweep(network, tiling, part, memory, X, weights, sums, counter, n_workers):
    """Fill sums (pieces, units) with sum_i w_i a_ij where means are penalised, and `kept` if asked to.

    part: (begin, end, piece_strips, fresh): panels begin to end - 1, and how many strips make a piece.
    """
    counter[0] = 0
    for worker in prange(n_workers):
        _forward_worker(network, tiling, part, memory, X, weights, sums, counter, worker)


# The gradient --------------------------------------------------------------------------------------------------


@kernel
def _piece_worker(network, tiling, part, memory, data, output, penalties, gradients, losses, counter, worker):
    """Take pieces from the counter until none is left; fill each one's partial gradient, loss and L1 term."""
    plan = network[0]
    n_panels, strip, _, n_lanes = tiling
    first_piece, n_pieces, piece_strips, fresh, _ = part
    keep, kept, span, scratch = memory
    while True:
        place = claim(counter)
        if place >= n_pieces or counter[1] != 0:
            break
        piece = first_piece + place
        if fresh:
            gradients[piece] = 0
            losses[piece] = 0
        gradient = at(gradients, piece * gradients.shape[1])
        loss, l1 = losses[piece, 0], losses[piece, 1]
        start = place * piece_strips * strip
        for first in range(start, min(start + piece_strips * strip, n_panels), strip):
            panels = min(strip, n_panels - first)
            own = at(kept, 0 if keep else worker * kept.shape[1])
            kept_section = (own, n_panels if keep else strip, first if keep else 0)
            span_section = (at(span, worker * span.shape[1]), strip, 0)
            scratch_section = (at(scratch, worker * scratch.shape[1]), strip, 0)
            sections = (kept_section, span_section, scratch_section)
            more = through(
                network, network[1] if keep else 0, output, penalties, data, first, sections, panels, n_lanes
            )
            loss, l1 = loss + more[0], l1 + more[1]
            x = at(data[0], first * plan[0, N_IN] * n_lanes)
            for layer in range(plan.shape[0]):
                add_rows(network, layer, 0, plan[layer, N_OUT], x, sections, gradient, panels, n_lanes)
        losses[piece, 0], losses[piece, 1] = loss, l1


def _gradient_by_pieces(
    network, tiling, part, memory, data, output, penalties, gradients, losses, counter, scale, decay, gradient,
    n_workers
):  # fmt: skip
    """Fill `gradient`; return the weighted sums of losses and of L1 penalties, and the weight decay term.

    scale: 1 / sum of weights; decay: lambda of each dense layer; both in the network's dtype. gradients: one for each
    piece; losses: loss and L1 penalties of each piece. part: (first_piece, n_pieces, piece_strips, fresh, last): the
    panels are so many strips of each of those pieces. Before the last part there is nothing to return.
    """
    counter[0] = 0
    for worker in prange(n_workers):
        _piece_worker(network, tiling, part, memory, data, output, penalties, gradients, losses, counter, worker)
    if not part[4]:
        return 0.0, 0.0, 0.0
    n = gradient.size
    for worker in prange(n_workers):
        begin, end = worker * n // n_workers, (worker + 1) * n // n_workers
        total = gradient[begin:end]
        total[:] = gradients[0, begin:end]
        for piece in range(1, gradients.shape[0]):
            more = gradients[piece, begin:end]
            for i in range(total.size):
                total[i] += more[i]
        _finish(network, scale, decay, gradient, begin, end)
    n_pieces = losses.shape[0]
    return _total(losses, 0, n_pieces, 0.0), _total(losses, 1, n_pieces, 0.0), _decay_term(network, decay)


@kernel
def _strip_worker(network, tiling, begin, memory, data, output, penalties, losses, counter, worker):
    """Take strips of the span from panel `begin` on, until none is left."""
    n_panels, strip, capacity, n_lanes = tiling
    keep, kept, span, scratch = memory
    end = min(begin + capacity, n_panels)
    while True:
        first = begin + claim(counter) * strip
        if first >= end or counter[1] != 0:
            break
        place = first - begin
        kept_section = (at(kept, 0), n_panels if keep else capacity, first if keep else place)
        scratch_section = (at(scratch, worker * scratch.shape[1]), strip, 0)
        sections = (kept_section, (at(span, 0), capacity, place), scratch_section)
        panels = min(strip, end - first)
        resumed = network[1] if keep else 0
        more = through(network, resumed, output, penalties, data, first, sections, panels, n_lanes)
        losses[first // strip, 0], losses[first // strip, 1] = more


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
            if block == mine and counter[1] == 0:
                end = min(j + rows, plan[layer, N_OUT])
                add_rows(network, layer, j, end, x, sections, at(gradient, 0), panels, n_lanes)
                mine = claim(counter)
            block += 1


def _gradient_by_rows(
    network, tiling, part, memory, data, output, penalties, losses, counter, scale, decay, gradient, n_workers
):
    """Do the same as `_gradient_by_pieces`, for a gradient too large for copies; losses: a row for each strip.

    part: (fresh, last, loss, l1): the panels are whole spans, and the parts before brought these sums of losses and L1
    penalties, which are returned with this part's added.
    """
    fresh, last, loss, l1 = part
    n = gradient.size
    if fresh:
        for worker in prange(n_workers):
            gradient[worker * n // n_workers : (worker + 1) * n // n_workers] = 0
    n_panels, _, capacity, _ = tiling
    for begin in range(0, n_panels, capacity):
        if counter[1] != 0:
            break
        counter[0] = 0
        for worker in prange(n_workers):
            _strip_worker(network, tiling, begin, memory, data, output, penalties, losses, counter, worker)
        counter[0] = 0
        for _worker in prange(n_workers):
            _row_worker(network, tiling, begin, memory, data[0], gradient, counter, n_workers)
    n_strips = -(-n_panels // tiling[1])
    loss, l1 = _total(losses, 0, n_strips, loss), _total(losses, 1, n_strips, l1)
    if not last:
        return loss, l1, 0.0
    for worker in prange(n_workers):
        _finish(network, scale, decay, gradient, worker * n // n_workers, (worker + 1) * n // n_workers)
    return loss, l1, _decay_term(network, decay)


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
def _total(losses, column, n, total):
    """Add the first n in order to `total`."""
    for i in range(n):
        total += losses[i, column]
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
