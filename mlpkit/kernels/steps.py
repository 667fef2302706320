"""Many mini-batch steps in one call: gather a batch, go forward and backward, update the parameters.

A step has phases (see phases.py), and all steps run in one parallel region:

1. where mean activations are penalised, panels of the batch go forward as far as that needs, and rho_hat is found;
2. panels go forward and backward, and lay out the factors of the gradient;
3. blocks of the gradient's rows are summed over the whole batch, and the parameters that belong to them updated while
   both are in cache;
4. where the gradient is to be clipped by its norm, the update is a phase of its own.

No sum depends on who took what, so the bits do not depend on the number of threads.

The gradient of a batch B is sum_B w_i grad_i / (|B| mean(w)), the mean over all examples: dividing by the batch's own
sum of weights would be biased. Weight decay enters each step in full.

Arguments travel in groups, those of strips.py and:

    rows      (X, Y, weights, elements): all examples, row-major; X and Y as addresses, the same one for an autoencoder;
              elements empty where no target is masked
    batch     (size, n_lanes): examples in a batch, and in a panel
    tiles     (X, Y, weights, elements, hashes): panels for one batch, Y empty for an autoencoder; hashes (uint32) has a
              row of n_lanes for each worker
    memory    (kept, span, scratch, blocks): sections for one batch; scratch, and blocks of the gradient as stripes,
              have a row for each worker
    layout    the factors of the gradient, see batch_gradient.py
    penalties (slopes, strengths, sparse, numbers, running, steepest): as in strips.py, and for each penalty on means a
              row (first unit, units, address or 0 for KL) and a row (rho, beta, offset, slope of the map to [0, 1]);
              means so far, and last how much of them to keep at each step (below 0: nothing); the largest slope
    dropout   (seeds, thresholds, factors): a seed for each step; for each dense layer what a hash must reach to keep a
              unit, and what a kept one is multiplied by
    update    (kind, settings, rates, first, second, decay, scale): one of the rules below; its two constants, epsilon,
              and the bounds of the gradient's norm and numbers; for each step the learning rate and two corrections;
              what the rule remembers of each parameter, twice, empty where it does not; lambda of each dense layer; and
              1 / (|B| mean(w)) of a full batch. All but kind in the network's dtype
    work      (gradient, losses, sums, means, squares): to work in; losses and sums have a row for each panel, means and
              squares a number for each unit, the latter also for each bias
    skip      where most inputs are 0: the first layer turned over, see skipping.py; otherwise empty arrays
    threads   (tickets, yielding, n_workers): see phases.py; tickets for PHASES phases a step

and all of them, in the order of the arguments of `run_steps`, as `job`.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from mlpkit.kernels.batch_gradient import find_gradient_biases, find_gradient_rows, lay_out
from mlpkit.kernels.batches import prepare
from mlpkit.kernels.jit import kernel
from mlpkit.kernels.phases import finish, release, take, wait
from mlpkit.kernels.pointers import at, call_penalty, pointer
from mlpkit.kernels.simd import accumulate_sums, register_lanes
from mlpkit.kernels.skipping import GROUP, find_skipping_gradient, first_layer, skips
from mlpkit.kernels.strips import N_IN, N_OUT, SPARSE, TIED, A, B, U, W, forward_strip, layer_place, through
from mlpkit.kernels.updates import ADAMW, clipping, finish_gradient, squared_norm, update_parameters, update_share

__all__ = ["BLOCK_ROWS", "PHASES", "run_steps"]

PHASES = 4  # in a step
BLOCK_ROWS = 12  # of the gradient, found and used at once


# Panels --------------------------------------------------------------------------------------------------------


@kernel(inlined=True)
def _panel(job, begin, stop, number, n_panels, worker):
    """Return a panel's first example in the batch, its lanes, and its sections.

    The last panel has a register's lanes where its examples fit into one: half the work where registers are two.
    """
    kept, span, scratch, _ = job[5]
    n_lanes, side = job[3][1], register_lanes(at(kept, 0))
    example, share = number * n_lanes, 1
    if stop - begin - example <= side:  # places are counted in panels of its own width
        share, n_lanes = n_lanes // side, side
    first, room = number * share, n_panels * share
    own = (at(scratch, worker * scratch.shape[1]), 1, 0)
    return example, first, n_lanes, ((at(kept, 0), room, first), (at(span, 0), room, first), own)


@kernel(inlined=True)
def _prepare(job, step, begin, stop, example, n_lanes, sections, worker):
    """Gather a panel, and draw its masks; return the first layer that it has not been through."""
    network, rows, order, tiles, layout, dropout, skip = job[0], job[1], job[2], job[4], job[6], job[9], job[12]
    seed = dropout[0][step] if dropout[0].size > 0 else 0
    start = begin + example
    prepare(network, rows, order, start, stop, tiles, layout, skip, dropout, seed, sections, example, n_lanes, worker)
    if not skips(skip):
        return 0
    first_layer(network, skip, rows[0], order, start, stop, sections, n_lanes, worker)
    return 1


@kernel(inlined=True)
def _take_forward(job, step, begin, stop, number, n_panels, worker):
    """Take a panel of the batch order[begin:stop] forward; add up w a."""
    network, tiles, sums = job[0], job[4], job[11][2]
    plan, n_kept = network[0], network[1]
    example, _, n_lanes, sections = _panel(job, begin, stop, number, n_panels, worker)
    start = _prepare(job, step, begin, stop, example, n_lanes, sections, worker)
    x, w = at(tiles[0], example * plan[0, N_IN]), at(tiles[2], example)
    forward_strip(network, start, n_kept, x, sections, 1, n_lanes)
    sums[number] = 0
    for layer in range(n_kept):
        if plan[layer, SPARSE] != 0:
            a = layer_place(network, layer, A, sections, n_lanes)
            units = at(sums, number * sums.shape[1] + plan[layer, U])
            accumulate_sums(a, plan[layer, N_OUT], w, units, 1, n_lanes)


@kernel(inlined=True)
def _take_through(job, step, begin, stop, number, n_panels, worker):
    """Take a panel of the batch forward and backward, and lay out what it brings to the gradient."""
    network, tiles, layout, output, penalties, losses = job[0], job[4], job[6], job[7], job[8], job[11][1]
    start, skip = network[1], job[12]
    data = (tiles[0], tiles[1] if tiles[1].size > 0 else tiles[0], tiles[2], tiles[3])
    example, first, n_lanes, sections = _panel(job, begin, stop, number, n_panels, worker)
    if start == 0:
        start = _prepare(job, step, begin, stop, example, n_lanes, sections, worker)
    slopes = (penalties[0], penalties[1])
    losses[number, 0], losses[number, 1] = through(network, start, output, slopes, data, first, sections, 1, n_lanes)
    lay_out(network, layout, skip, sections, example, n_lanes)


@kernel
def _set_slopes(penalties, sums, n_panels, weights, first_weight, n_weights, full, means):
    """From sums over panels find rho_hat, and from that the slopes; return what the penalties add to J.

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
        for panel in range(n_panels):
            mean += sums[panel, u]
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


@kernel(inlined=True)
def _group_rows(n_in):
    """Return how many rows' squares are added up together: a divisor of BLOCK_ROWS, to which blocks keep."""
    return 12 if n_in <= 24 else 6 if n_in <= 48 else 4 if n_in <= 96 else 2 if n_in <= 192 else 1


@kernel(inlined=True)
def _rows_and_groups(plan, layer, skip):
    """Return how many rows a layer's gradient has, and how many of them go together."""
    if layer == 0 and skips(skip):
        return plan[0, N_IN], GROUP
    return plan[layer, N_OUT], _group_rows(plan[layer, N_IN])


@kernel(inlined=True)
def _n_blocks(plan, layer, skip, n_workers):
    """Return into how many blocks of rows a layer's gradient is cut: of about equal work, three for each worker."""
    n_in, n_out = plan[layer, N_IN], plan[layer, N_OUT]
    if n_workers == 1 or plan[layer, TIED] != 0:
        return 1
    total = 0
    for other in range(plan.shape[0]):
        total += plan[other, N_IN] * plan[other, N_OUT]
    n = (3 * n_workers * n_in * n_out + total // 2) // total
    if n >= n_workers:  # as many for each
        n = (n + n_workers - 1) // n_workers * n_workers
    rows, group = _rows_and_groups(plan, layer, skip)
    return max(1, min(n, (rows + group - 1) // group))


@kernel(inlined=True)
def _total_blocks(plan, skip, n_workers):
    total = 0
    for layer in range(plan.shape[0]):
        total += _n_blocks(plan, layer, skip, n_workers)
    return total


@kernel(inlined=True)
def _update_block(job, step, begin, stop, block, worker, n_workers):
    """Find a block of the gradient's rows, and update the parameters that belong to them unless that must wait."""
    plan, skip = job[0][0], job[12]
    for layer in range(plan.shape[0]):
        n = _n_blocks(plan, layer, skip, n_workers)
        if block < n:
            rows, group = _rows_and_groups(plan, layer, skip)
            groups = (rows + group - 1) // group
            row, end = block * groups // n * group, min((block + 1) * groups // n * group, rows)
            if layer == 0 and skips(skip):
                _update_inputs(job, step, begin, stop, row, end)
                return
            while row < end:  # in parts of about equal size, so that none is thin
                parts = (end - row + BLOCK_ROWS - 1) // BLOCK_ROWS
                some = min(((end - row) // parts + group - 1) // group * group, end - row)
                _update_rows(job, step, begin, stop, layer, row, row + some, worker)
                row += some
            return
        block -= n


@kernel(inlined=True)
def _scale_of(job, count):
    """Return what the sums over a batch of `count` examples are multiplied by."""
    size, scale = job[3][0], job[10][6]
    return scale if count == size else job[11][0].dtype.type(scale * size / count)


@kernel(inlined=True)
def _following(job, stop, begin, end, rows):
    """Return the share of the next batch's rows that belongs to these rows of the first layer's gradient."""
    X, order, size = job[1][0], job[2], job[3][0]
    following = min(size, order.size - stop)
    here, there = stop + following * begin // rows, stop + following * end // rows
    return pointer(X, job[0][2]), at(order, here), there - here


@kernel(inlined=True)
def _update_rows(job, step, start, stop, layer, begin, end, worker):
    """Find rows begin to end - 1 of a layer's gradient for the batch order[start:stop]; update what they belong to."""
    network, memory, layout, update, work = job[0], job[5], job[6], job[10], job[11]
    plan, theta = network[0], network[2]
    count = stop - start
    gradient, squares, blocks = work[0], work[4], memory[3]
    kind, settings, decay = update[0], update[1], update[5]
    zero, one = gradient.dtype.type(0), gradient.dtype.type(1)
    scale, largest, n_units = _scale_of(job, count), settings[4], work[3].size
    n_in = plan[layer, N_IN] if plan[layer, TIED] == 0 else 0
    w, b = plan[layer, W], plan[layer, B]
    block = at(blocks, worker * blocks.shape[1])
    # The next batch's share of these rows, while the processor is busy with this one's.
    ahead = _following(job, stop if layer == 0 else job[2].size, begin, end, plan[layer, N_OUT])
    find_gradient_rows(network, layer, begin, end, layout, count, ahead, block, at(gradient, 0))
    find_gradient_biases(network, layer, begin, end, layout, count, at(gradient, 0))
    added = zero if kind == ADAMW else decay[layer]
    group = _group_rows(n_in)
    for j in range(begin, end, group):
        unit, last = plan[layer, U] + j, min(j + group, end)
        squares[unit] = finish_gradient(theta, gradient, w + j * n_in, w + last * n_in, scale, added, largest)
        if b >= 0:
            squares[n_units + unit] = finish_gradient(theta, gradient, b + j, b + last, scale, zero, largest)
    if not settings[3] > 0:
        update_parameters(theta, gradient, w + begin * n_in, w + end * n_in, update, step, decay[layer], one)
        if b >= 0:
            update_parameters(theta, gradient, b + begin, b + end, update, step, zero, one)


@kernel
def _update_inputs(job, step, start, stop, begin, end):
    """Do the same for the weights of inputs begin to end - 1, and, with the first, for the biases of their layer."""
    network, layout, update, work, skip = job[0], job[6], job[10], job[11], job[12]
    plan, theta = network[0], network[2]
    count = stop - start
    gradient, squares = work[0], work[4]
    W, gradients = skip[0], skip[1]
    kind, settings, decay = update[0], update[1], update[5]
    zero, one = gradient.dtype.type(0), gradient.dtype.type(1)
    scale, largest, n_units, b = _scale_of(job, count), settings[4], work[3].size, plan[0, B]
    added = zero if kind == ADAMW else decay[0]
    n_in = plan[0, N_IN]
    width = W.size // n_in
    update_of_inputs = (kind, settings, update[2], skip[2], skip[3], decay, update[6])
    for k in range(begin, end, GROUP):
        last = min(k + GROUP, end)
        ahead = _following(job, stop, k, last, n_in)
        find_skipping_gradient(network, skip, layout[2], k, last, count, ahead)
        here, there = k * width, last * width
        squares[2 * n_units + k // GROUP] = finish_gradient(W, gradients, here, there, scale, added, largest)
        if not settings[3] > 0:
            update_parameters(W, gradients, here, there, update_of_inputs, step, decay[0], one)
    if begin == 0 and b >= 0:
        n_out = plan[0, N_OUT]
        find_gradient_biases(network, 0, 0, n_out, layout, count, at(gradient, 0))
        squares[n_units] = finish_gradient(theta, gradient, b, b + n_out, scale, zero, largest)
        if not settings[3] > 0:
            update_parameters(theta, gradient, b, b + n_out, update, step, zero, one)


# Steps ---------------------------------------------------------------------------------------------------------


@kernel
def _take_steps(job, record, threads, worker):
    """Take part in all steps, as one of the threads."""
    network, order, batch, penalties, update, work = job[0], job[2], job[3], job[8], job[10], job[11]
    size, n_lanes = batch
    _, losses, sums, means, squares = work
    tickets, yielding, n_workers = threads
    n_blocks = _total_blocks(network[0], job[12], n_workers)
    for step in range(record.shape[0]):
        begin = step * size
        stop = min(begin + size, order.size)
        count = stop - begin
        n_panels = (count + n_lanes - 1) // n_lanes
        phase = step * PHASES

        if network[1] > 0:
            while True:
                number = take(tickets, phase, n_panels, worker, n_workers)
                if number < 0:
                    break
                _take_forward(job, step, begin, stop, number, n_panels, worker)
                if finish(tickets, phase, n_panels, n_workers):
                    full = count / (np.float64(update[6]) * size)
                    record[step, 2] = _set_slopes(penalties, sums, n_panels, job[4][2], 0, count, full, means)
                    release(tickets, phase, n_workers)
            wait(tickets, phase, n_panels, n_workers, yielding)

        while True:
            number = take(tickets, phase + 1, n_panels, worker, n_workers)
            if number < 0:
                break
            _take_through(job, step, begin, stop, number, n_panels, worker)
            if finish(tickets, phase + 1, n_panels, n_workers):
                for i in range(n_panels):
                    record[step, 0] += losses[i, 0]
                    record[step, 1] += losses[i, 1]
                release(tickets, phase + 1, n_workers)
        wait(tickets, phase + 1, n_panels, n_workers, yielding)

        while True:
            number = take(tickets, phase + 2, n_blocks, worker, n_workers)
            if number < 0:
                break
            _update_block(job, step, begin, stop, number, worker, n_workers)
            if finish(tickets, phase + 2, n_blocks, n_workers):
                record[step, 3] = squared_norm(squares)
                release(tickets, phase + 2, n_workers)
        wait(tickets, phase + 2, n_blocks, n_workers, yielding)

        bound = update[1][3]
        if bound > 0:
            factor = update[1].dtype.type(clipping(record[step, 3], np.float64(bound)))
            while True:
                number = take(tickets, phase + 3, n_workers, worker, n_workers)
                if number < 0:
                    break
                update_share(network, update, step, work[0], job[12], factor, number, n_workers)
                if finish(tickets, phase + 3, n_workers, n_workers):
                    release(tickets, phase + 3, n_workers)
            wait(tickets, phase + 3, n_workers, n_workers, yielding)


def _run_steps(
    network, rows, order, batch, tiles, memory, layout, output, penalties, dropout, update, work, skip, tickets,
    yielding, record, n_workers,
):  # fmt: skip
    """Take a step for each batch of `order`.

    record[step], zeros before: of each batch before its step, the weighted sums of losses and of L1 penalties, what
    penalties on mean activations add to J, and the squared norm of its gradient.
    """
    for worker in prange(n_workers):
        job = (network, rows, order, batch, tiles, memory, layout, output, penalties, dropout, update, work, skip)
        _take_steps(job, record, (tickets, yielding, n_workers), worker)


run_steps = (kernel(_run_steps, parallel=True, cached=True), kernel(_run_steps, cached=True))
