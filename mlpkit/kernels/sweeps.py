"""The sweeps over tiles: forward for mean activations, forward and backward for the gradient, forward to predict.

What the network is comes in as data, so one compile for each dtype serves every architecture: `plan` has a row for
each dense layer, with sizes, places in theta and in a tile's memory, and the addresses of its tile functions.

A tile's memory is cut in two. The first part holds the layers up to the last sparse one; it is kept from the sweep
that finds rho_hat to the sweep that goes backward, or computed again by the same code on the same numbers. The second
part, always a thread's own scratch, holds the layers above and two buffers for deltas.

Threads take slabs from a shared counter. All sums belong to a slab and are added in a fixed order, so results do not
depend on the number of threads or on who took what.

Arguments travel in groups, as plain tuples (Numba recognises those quickly):

    network  (plan, n_kept, theta, constants): n_kept dense layers have their memory in the kept part; constants are
             ones, then zeros, each as long as the widest layer and one panel at least
    tiling   (n_panels, tile_panels, slab_tiles, n_lanes)
    memory   (keep, kept, work, work_size, delta_size): a row of `kept` for each tile if keep, else for each worker; a
             row of `work` for each worker: work_size numbers, then two buffers of delta_size
"""

from __future__ import annotations

import numpy as np
from numba import prange

from mlpkit.kernels.jit import REDUCTION, kernel
from mlpkit.kernels.simd import (
    accumulate_outer,
    accumulate_sums,
    affine,
    at,
    call_elementwise,
    call_output,
    claim,
    shift,
)
from mlpkit.kernels.tiles import pack_panels, unpack_panels

__all__ = ["PLAN_COLUMNS", "backward_sweep", "forward_sweep", "predict_sweep"]

# Columns of the plan: sizes; places of W and b (-1: none) in theta, of a and z in a tile's memory (equal where z is not
# kept), of the units in the sparsity vector; whether the layer is sparse; addresses of its tile functions.
N_IN, N_OUT, W, B, A, Z, U, SPARSE, FORWARD, PULLBACK = range(10)
PLAN_COLUMNS = 10


@kernel
def _activations(plan, layer, n_kept, x, kept, work):
    """Return where the activations that enter dense layer `layer` lie."""
    if layer == 0:
        return x
    offset = plan[layer - 1, A]
    return shift(kept, offset) if layer <= n_kept else shift(work, offset)


@kernel
def _forward_tile(network, first, stop, x, kept, work, panels, n_lanes):
    """Equations (6) and (7) for one tile: dense layers first to stop - 1."""
    plan, n_kept, theta, constants = network
    ones, zeros = at(constants, 0), at(constants, constants.size // 2)
    for layer in range(first, stop):
        n_in, n_out = plan[layer, N_IN], plan[layer, N_OUT]
        below = _activations(plan, layer, n_kept, x, kept, work)
        memory = kept if layer < n_kept else work
        z, a = shift(memory, plan[layer, Z]), shift(memory, plan[layer, A])
        bias = at(theta, plan[layer, B]) if plan[layer, B] >= 0 else zeros
        affine(at(theta, plan[layer, W]), n_in, 1, n_out, n_in, bias, ones, 0, below, z, panels, n_lanes)
        call_elementwise(plan[layer, FORWARD], z, a, a, n_out, panels)


@kernel
def _backward_tile(network, output, sparsity, x, y, weights, kept, work, deltas, delta_size, gradient, panels, n_lanes):
    """Backpropagation for one tile: add its part of the gradient to `gradient`, return its weighted loss.

    delta^(l) = ((W^(l))^T delta^(l+1) + w beta s' KL') * f'(z), each lane times its example's weight w; then
    grad W^(l) += delta^(l+1) (a^(l))^T and grad b^(l) += delta^(l+1).
    """
    plan, n_kept, theta, constants = network
    ones = at(constants, 0)
    delta, other = deltas, shift(deltas, delta_size)
    top = plan.shape[0] - 1
    n_out = plan[top, N_OUT]
    memory = kept if top < n_kept else work
    z, a = shift(memory, plan[top, Z]), shift(memory, plan[top, A])
    affine(ones, 0, 0, n_out, 0, ones, weights, n_lanes, x, delta, panels, n_lanes)  # delta = the weights
    loss = call_output(output, z, a, y, delta, n_out, panels)
    if plan[top, SPARSE] != 0:  # the sparsity term always meets f', also beside a fused loss delta
        term = at(sparsity, plan[top, U])
        affine(ones, 0, 0, n_out, 0, term, weights, n_lanes, x, other, panels, n_lanes)
        call_elementwise(plan[top, PULLBACK], z, a, other, n_out, panels)
        for i in range(panels * n_out * n_lanes):
            delta[i] += other[i]
    for layer in range(top, -1, -1):
        n_in, n_out = plan[layer, N_IN], plan[layer, N_OUT]
        below = _activations(plan, layer, n_kept, x, kept, work)
        W_gradient = shift(gradient, plan[layer, W])
        accumulate_outer(delta, n_out, below, n_in, n_in * n_lanes, W_gradient, n_in, panels, n_lanes)
        if plan[layer, B] >= 0:
            b_gradient = shift(gradient, plan[layer, B])
            accumulate_outer(delta, n_out, ones, 1, 0, b_gradient, 1, panels, n_lanes)
        if layer > 0:
            memory = kept if layer - 1 < n_kept else work
            z, a = shift(memory, plan[layer - 1, Z]), shift(memory, plan[layer - 1, A])
            transposed, term = at(theta, plan[layer, W]), at(sparsity, plan[layer - 1, U])
            affine(transposed, 1, n_in, n_in, n_out, term, weights, n_lanes, delta, other, panels, n_lanes)
            call_elementwise(plan[layer - 1, PULLBACK], z, a, other, n_in, panels)
            delta, other = other, delta
    return loss


@kernel
def _forward_worker(network, tiling, keep, kept, X, weights, sums, counter, worker):
    """Take slabs from the counter until none is left; add up w a for each unit of the sparse layers."""
    plan, n_kept = network[0], network[1]
    n_panels, tile_panels, slab_tiles, n_lanes = tiling
    n_tiles = (n_panels + tile_panels - 1) // tile_panels
    while True:
        slab = claim(counter)
        if slab >= sums.shape[0]:
            break
        sums[slab] = 0
        for tile in range(slab * slab_tiles, min((slab + 1) * slab_tiles, n_tiles)):
            first = tile * tile_panels
            panels = min(tile_panels, n_panels - first)
            x = at(X, first * plan[0, N_IN] * n_lanes)
            w = at(weights, first * n_lanes)
            memory = at(kept, (tile if keep else worker) * kept.shape[1])
            _forward_tile(network, 0, n_kept, x, memory, memory, panels, n_lanes)
            for layer in range(n_kept):
                if plan[layer, SPARSE] != 0:
                    a = shift(memory, plan[layer, A])
                    units = at(sums, slab * sums.shape[1] + plan[layer, U])
                    accumulate_sums(a, plan[layer, N_OUT], w, units, panels, n_lanes)


def _forward_sweep(network, tiling, keep, kept, X, weights, sums, counter, n_workers):
    """Fill sums (slabs, units) with sum_i w_i a_ij of the sparse layers, and `kept` if asked to."""
    counter[0] = 0
    for worker in prange(n_workers):
        _forward_worker(network, tiling, keep, kept, X, weights, sums, counter, worker)


@kernel
def _backward_worker(network, tiling, memory, data, output, sparsity, gradients, losses, counter, worker):
    """Take slabs from the counter until none is left; fill each one's partial gradient and loss."""
    plan, n_kept = network[0], network[1]
    n_panels, tile_panels, slab_tiles, n_lanes = tiling
    keep, all_kept, all_work, work_size, delta_size = memory
    X, Y, weights = data
    n_tiles = (n_panels + tile_panels - 1) // tile_panels
    top = plan.shape[0] - 1
    work = at(all_work, worker * all_work.shape[1])
    while True:
        slab = claim(counter)
        if slab >= losses.size:
            break
        gradients[slab] = 0
        gradient = at(gradients, slab * gradients.shape[1])
        loss = 0.0
        for tile in range(slab * slab_tiles, min((slab + 1) * slab_tiles, n_tiles)):
            first = tile * tile_panels
            panels = min(tile_panels, n_panels - first)
            x = at(X, first * plan[0, N_IN] * n_lanes)
            y = at(Y, first * plan[top, N_OUT] * n_lanes)
            w = at(weights, first * n_lanes)
            kept = at(all_kept, (tile if keep else worker) * all_kept.shape[1])
            deltas = shift(work, work_size)
            _forward_tile(network, n_kept if keep else 0, top + 1, x, kept, work, panels, n_lanes)
            loss += _backward_tile(
                network, output, sparsity, x, y, w, kept, work, deltas, delta_size, gradient, panels, n_lanes
            )
        losses[slab] = loss


@kernel
def _combine(network, gradients, scale, decay, gradient, begin, end):
    """gradient[begin:end] = scale * sum over slabs, in order, + lambda W."""
    plan, theta = network[0], network[2]
    total = gradient[begin:end]
    total[:] = gradients[0, begin:end]
    for slab in range(1, gradients.shape[0]):
        part = gradients[slab, begin:end]
        for i in range(total.size):
            total[i] += part[i]
    for i in range(total.size):
        total[i] *= scale
    for layer in range(plan.shape[0]):
        if decay[layer] != 0:
            start = plan[layer, W]
            stop = start + plan[layer, N_IN] * plan[layer, N_OUT]
            for i in range(max(start, begin), min(stop, end)):
                gradient[i] += decay[layer] * theta[i]


@kernel(fastmath=REDUCTION)
def _sum_squares(values):
    """Sum of squares in float64."""
    total = 0.0
    for i in range(values.size):
        total += np.float64(values[i]) * np.float64(values[i])
    return total


def _backward_sweep(
    network, tiling, memory, data, output, sparsity, gradients, losses, counter, scale, decay, gradient, n_workers
):
    """Fill `gradient`; return the weighted sum of losses and the weight decay term.

    sparsity: beta s' KL' of each unit, 0 where not sparse; scale: 1 / sum of weights; decay: lambda of each dense
    layer; all in the network's dtype.
    """
    counter[0] = 0
    for worker in prange(n_workers):
        _backward_worker(network, tiling, memory, data, output, sparsity, gradients, losses, counter, worker)
    n = gradient.size
    for worker in prange(n_workers):
        begin, end = worker * n // n_workers, (worker + 1) * n // n_workers
        _combine(network, gradients, scale, decay, gradient, begin, end)
    loss = 0.0
    for slab in range(losses.size):
        loss += losses[slab]
    penalty = 0.0
    plan, theta = network[0], network[2]
    for layer in range(plan.shape[0]):
        if decay[layer] != 0:
            start = plan[layer, W]
            stop = start + plan[layer, N_IN] * plan[layer, N_OUT]
            penalty += 0.5 * decay[layer] * _sum_squares(theta[start:stop])
    return loss, penalty


@kernel
def _predict_worker(network, tiling, rows, outputs, places, work, counter, worker):
    """Take tiles from the counter until none is left: pack, go forward, unpack the layers asked for."""
    plan = network[0]
    n_panels, tile_panels, _, n_lanes = tiling
    m, n = rows.shape
    source = at(rows, 0)
    x = at(work, worker * work.shape[1])
    scratch = shift(x, tile_panels * n * n_lanes)
    while True:
        first = claim(counter) * tile_panels
        if first >= n_panels:
            break
        panels = min(tile_panels, n_panels - first)
        begin = first * n_lanes
        end = min(begin + panels * n_lanes, m)
        pack_panels(source, begin, end, n, x, panels, n_lanes)
        _forward_tile(network, 0, plan.shape[0], x, scratch, scratch, panels, n_lanes)
        for layer in range(plan.shape[0]):
            if places[layer] >= 0:
                a, target = shift(scratch, plan[layer, A]), at(outputs, places[layer])
                unpack_panels(a, panels, plan[layer, N_OUT], target, begin, end, n_lanes)


def _predict_sweep(network, tiling, rows, outputs, places, work, counter, n_workers):
    """Write activations of the layers with places[layer] >= 0, row-major, into `outputs` from there on."""
    counter[0] = 0
    for worker in prange(n_workers):
        _predict_worker(network, tiling, rows, outputs, places, work, counter, worker)


# Each sweep as (on several threads, on one).
forward_sweep = (kernel(_forward_sweep, parallel=True, cached=True), kernel(_forward_sweep, cached=True))
backward_sweep = (kernel(_backward_sweep, parallel=True, cached=True), kernel(_backward_sweep, cached=True))
predict_sweep = (kernel(_predict_sweep, parallel=True, cached=True), kernel(_predict_sweep, cached=True))
