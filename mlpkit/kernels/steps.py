"""Many mini-batch steps in one call: gather a batch, go forward and backward, update the parameters.

A step has phases, in each of which threads take work from a shared counter:

1. where mean activations are penalised, strips of the batch go forward as far as that needs, and rho_hat is found;
2. strips go forward and backward, and leave activations and deltas behind;
3. blocks of the gradient's rows are summed over the whole batch, and the parameters that belong to them updated while
   both are in cache; where the gradient is to be clipped by its norm, the update is a phase of its own.

No sum depends on who took what, so the bits do not depend on the number of threads.

The gradient of a batch B is sum_B w_i grad_i / (|B| mean(w)), the mean over all examples: dividing by the batch's own
sum of weights would be biased. Weight decay enters each step in full.

Arguments travel in groups, those of strips.py and:

    rows      (X, Y, weights, elements): all examples, row-major; X and Y as addresses, the same one for an autoencoder;
              elements empty where no target is masked
    batch     (size, strip, n_lanes): examples in a batch, panels in a strip
    tiles     (X, Y, weights, elements, hashes): panels for one batch, Y empty for an autoencoder; hashes (uint32) has a
              row of n_lanes for each worker
    memory    (kept, span, scratch): sections for one batch; scratch has a row for each worker
    penalties (slopes, strengths, sparse, numbers, running, steepest): as in strips.py, and for each penalty on means a
              row (first unit, units, address or 0 for KL) and a row (rho, beta, offset, slope of the map to [0, 1]);
              means so far, and last how much of them to keep at each step (below 0: nothing); the largest slope
    dropout   (seeds, thresholds, factors): a seed for each step; for each dense layer what a hash must reach to keep a
              unit, and what a kept one is multiplied by
    update    (kind, settings, rates, first, second, decay, scale): one of the rules below; its two constants, epsilon,
              and the bounds of the gradient's norm and numbers; for each step the learning rate and two corrections;
              what the rule remembers of each parameter, twice, empty where it does not; lambda of each dense layer; and
              1 / (|B| mean(w)) of a full batch. All but kind in the network's dtype
    work      (gradient, losses, sums, means, squares, counter): to work in; losses and sums have a row for each strip,
              means and squares a number for each unit, the latter also for each bias
"""

from __future__ import annotations

import numpy as np
from numba import prange

from mlpkit.kernels.batches import prepare
from mlpkit.kernels.jit import kernel
from mlpkit.kernels.pointers import at, call_penalty, claim
from mlpkit.kernels.simd import accumulate_sums
from mlpkit.kernels.strips import N_IN, N_OUT, SPARSE, TIED, A, B, U, W, add_rows, forward_strip, layer_place, through
from mlpkit.kernels.updates import ADAMW, clip, finish_gradient, update_parameters, update_share

__all__ = ["run_steps"]


# Strips --------------------------------------------------------------------------------------------------------


@kernel
def _sections(memory, n_panels, first, strip, worker):
    """Return the sections of the strip that begins at panel `first`."""
    kept, span, scratch = memory
    own = (at(scratch, worker * scratch.shape[1]), strip, 0)
    return ((at(kept, 0), n_panels, first), (at(span, 0), n_panels, first), own)


@kernel
def _mean_worker(network, rows, order, begin, stop, batch, tiles, memory, dropout, seed, sums, counter, worker):
    """Take strips of the batch order[begin:stop] forward until none is left; add up w a of each."""
    plan, n_kept = network[0], network[1]
    _, strip, n_lanes = batch
    n_panels = (stop - begin + n_lanes - 1) // n_lanes
    while True:
        number = claim(counter)
        first = number * strip
        if first >= n_panels:
            break
        panels = min(strip, n_panels - first)
        sections = _sections(memory, n_panels, first, strip, worker)
        prepare(network, rows, order, begin, stop, batch, tiles, dropout, seed, sections, first, panels, worker)
        x, w = at(tiles[0], first * plan[0, N_IN] * n_lanes), at(tiles[2], first * n_lanes)
        forward_strip(network, 0, n_kept, x, sections, panels, n_lanes)
        sums[number] = 0
        for layer in range(n_kept):
            if plan[layer, SPARSE] != 0:
                a = layer_place(network, layer, A, sections, n_lanes)
                units = at(sums, number * sums.shape[1] + plan[layer, U])
                accumulate_sums(a, plan[layer, N_OUT], w, units, panels, n_lanes)


@kernel
def _strip_worker(
    network, rows, order, begin, stop, batch, tiles, memory, output, penalties, dropout, seed, losses, counter, worker
):
    """Take strips of the batch forward and backward until none is left."""
    n_kept = network[1]
    _, strip, n_lanes = batch
    n_panels = (stop - begin + n_lanes - 1) // n_lanes
    data = (tiles[0], tiles[1] if tiles[1].size > 0 else tiles[0], tiles[2], tiles[3])
    while True:
        number = claim(counter)
        first = number * strip
        if first >= n_panels:
            break
        panels = min(strip, n_panels - first)
        sections = _sections(memory, n_panels, first, strip, worker)
        if n_kept == 0:
            prepare(network, rows, order, begin, stop, batch, tiles, dropout, seed, sections, first, panels, worker)
        slopes = (penalties[0], penalties[1])
        losses[number, 0], losses[number, 1] = through(
            network, n_kept > 0, output, slopes, data, first, sections, panels, n_lanes
        )


@kernel
def _set_slopes(penalties, sums, n_strips, weights, first_weight, n_weights, full, means):
    """From sums over strips find rho_hat, and from that the slopes; return what the penalties add to J.

    A slope is multiplied by |B| mean(w) (`full`) over the batch's own sum of weights, since the whole gradient will be
    divided by the former.
    """
    slopes, _, sparse, numbers, running, steepest = penalties
    total = 0.0
    for i in range(first_weight, first_weight + n_weights):
        total += np.float64(weights[i])
    keep = running[running.size - 1]
    slopes[:] = 0
    if not total > 0:  # a batch in which every weight has vanished in float32
        return 0.0
    for u in range(means.size):
        mean = 0.0
        for strip in range(n_strips):
            mean += sums[strip, u]
        means[u] = mean / total
        if keep >= 0:
            running[u] = keep * running[u] + (1.0 - keep) * means[u]
            means[u] = running[u]
    term = 0.0
    for i in range(sparse.shape[0]):
        begin, units, address = sparse[i, 0], sparse[i, 1], sparse[i, 2]
        rho, beta, offset, unit_slope = numbers[i, 0], numbers[i, 1], numbers[i, 2], numbers[i, 3]
        for u in range(begin, begin + units):
            mean = (means[u] - offset) * unit_slope
            if address != 0:
                value, slope = call_penalty(address, mean, 0), call_penalty(address, mean, 1)
            else:
                r = min(max(mean, 2.2250738585072014e-308), 1.0 - 2.220446049250313e-16)
                value = rho * np.log(rho / r) + (1.0 - rho) * np.log((1.0 - rho) / (1.0 - r))
                slope = -rho / r + (1.0 - rho) / (1.0 - r)
            term += beta * value
            slope = np.float64(slopes[u]) + beta * slope * unit_slope * full / total
            slopes[u] = min(max(slope, -steepest), steepest)
    return term


# The gradient and the update -----------------------------------------------------------------------------------


@kernel
def _row_worker(network, count, batch, tiles, memory, update, step, work, n_workers):
    """Take blocks of the gradient's rows until none is left: add up over the batch, and update the parameters."""
    plan, theta = network[0], network[2]
    size, _, n_lanes = batch
    gradient, counter, squares = work[0], work[5], work[4]
    n_panels = (count + n_lanes - 1) // n_lanes
    sections = _sections(memory, n_panels, 0, 0, 0)
    x = at(tiles[0], 0)
    kind, settings, decay, scale = update[0], update[1], update[5], update[6]
    zero = gradient.dtype.type(0)
    if count < size:
        scale = gradient.dtype.type(scale * size / count)
    at_once, largest = not settings[3] > 0, settings[4]
    total = 0
    for layer in range(plan.shape[0]):
        total += plan[layer, N_IN] * plan[layer, N_OUT]
    n_units = squares.size // 2
    mine, block = claim(counter), 0
    for layer in range(plan.shape[0]):
        n_in = plan[layer, N_IN] if plan[layer, TIED] == 0 else 0
        rows = max(1, total // (4 * n_workers * max(1, n_in)))
        rows = min((rows + 5) // 6 * 6, 96)
        added = zero if kind == ADAMW else decay[layer]
        for j in range(0, plan[layer, N_OUT], rows):
            if block == mine:
                end = min(j + rows, plan[layer, N_OUT])
                start, stop = plan[layer, W] + j * n_in, plan[layer, W] + end * n_in
                gradient[start:stop] = 0
                b = plan[layer, B]
                if b >= 0:
                    gradient[b + j : b + end] = 0
                add_rows(network, layer, j, end, x, sections, at(gradient, 0), n_panels, n_lanes)
                for row in range(j, end):
                    w = plan[layer, W] + row * n_in
                    unit = plan[layer, U] + row
                    squares[unit] = finish_gradient(theta, gradient, w, w + n_in, scale, added, largest)
                    if b >= 0:
                        last = finish_gradient(theta, gradient, b + row, b + row + 1, scale, zero, largest)
                        squares[n_units + unit] = last
                if at_once:
                    update_parameters(theta, gradient, start, stop, update, step, decay[layer], zero + 1)
                    if b >= 0:
                        update_parameters(theta, gradient, b + j, b + end, update, step, zero, zero + 1)
                mine = claim(counter)
            block += 1


def _run_steps(network, rows, order, batch, tiles, memory, output, penalties, dropout, update, work, record, n_workers):
    """Take a step for each batch of `order`.

    record[step]: of each batch before its step, the weighted sums of losses and of L1 penalties, what penalties on mean
    activations add to J, and the squared norm of its gradient.
    """
    size, strip, n_lanes = batch
    _, losses, sums, means, squares, counter = work
    factor = update[6]  # of the right dtype
    for step in range(record.shape[0]):
        begin = step * size
        stop = min(begin + size, order.size)
        n_panels = (stop - begin + n_lanes - 1) // n_lanes
        n_strips = (n_panels + strip - 1) // strip
        seed = dropout[0][step] if dropout[0].size > 0 else 0
        if network[1] > 0:
            counter[0] = 0
            for worker in prange(n_workers):
                _mean_worker(
                    network, rows, order, begin, stop, batch, tiles, memory, dropout, seed, sums, counter, worker
                )
            full = (stop - begin) / (np.float64(update[6]) * size)
            record[step, 2] = _set_slopes(penalties, sums, n_strips, tiles[2], 0, stop - begin, full, means)
        counter[0] = 0
        for worker in prange(n_workers):
            _strip_worker(
                network, rows, order, begin, stop, batch, tiles, memory, output, penalties, dropout, seed, losses,
                counter, worker,
            )  # fmt: skip
        counter[0] = 0
        for _worker in prange(n_workers):
            _row_worker(network, stop - begin, batch, tiles, memory, update, step, work, n_workers)
        record[step, 3], least = clip(squares, np.float64(update[1][3]))
        if update[1][3] > 0:
            factor = update[1].dtype.type(least)
            for worker in prange(n_workers):
                update_share(network, update, step, work[0], factor, worker, n_workers)
        for i in range(n_strips):
            record[step, 0] += losses[i, 0]
            record[step, 1] += losses[i, 1]


run_steps = (kernel(_run_steps, parallel=True, cached=True), kernel(_run_steps, cached=True))
