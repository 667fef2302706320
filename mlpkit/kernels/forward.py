"""The sweep forward that predicts: in parallel strips, or for a few rows with one register of lanes.

Arguments are those of `mlpkit.kernels.strips` and `mlpkit.kernels.sweeps`.
"""

from __future__ import annotations

from numba import prange

from mlpkit.kernels.jit import kernel
from mlpkit.kernels.pointers import at, call_elementwise, claim, pointer, shift
from mlpkit.kernels.simd import VECTORS, affine
from mlpkit.kernels.strips import COLUMN, FORWARD, N_IN, N_OUT, ROW, A, B, W, forward_strip, layer_place
from mlpkit.kernels.tiles import pack_panels, unpack_panels

__all__ = ["predict_few", "predict_sweep"]


@kernel
def _predict_worker(network, tiling, address, m, outputs, places, work, counter, worker):
    """Take strips from the counter until none is left: pack, go forward, unpack the layers asked for."""
    plan = network[0]
    n_panels, strip, _, n_lanes = tiling
    n, side = plan[0, N_IN], n_lanes // VECTORS
    rows = pointer(address, network[2])
    x = at(work, worker * work.shape[1])
    sections = _predict_sections(network, x, strip, n_lanes)
    while True:
        first = claim(counter) * strip
        if first >= n_panels:
            break
        panels = min(strip, n_panels - first)
        begin = first * n_lanes
        end = min(begin + panels * n_lanes, m)
        pack_panels(rows, begin, end, n, x, panels, n_lanes, side)
        forward_strip(network, 0, plan.shape[0], x, sections, panels, n_lanes)
        for layer in range(plan.shape[0]):
            if places[layer] >= 0:
                a, target = layer_place(network, layer, A, sections, n_lanes), at(outputs, places[layer])
                unpack_panels(a, panels, plan[layer, N_OUT], target, begin, end, n_lanes, side)


def _predict_sweep(network, tiling, address, m, outputs, places, work, counter, n_workers):
    """Write activations of the layers with places[layer] >= 0, row-major, into `outputs` from there on.

    address: of m finite rows.
    """
    counter[0] = 0
    for worker in prange(n_workers):
        _predict_worker(network, tiling, address, m, outputs, places, work, counter, worker)


@kernel
def _predict_sections(network, x, strip, n_lanes):
    """Return sections for hidden and output layers in working memory that begins with a strip's inputs."""
    plan = network[0]
    hidden = 0
    for layer in range(plan.shape[0] - 1):
        hidden += plan[layer, N_OUT]
    span = (shift(x, strip * plan[0, N_IN] * n_lanes), strip, 0)
    return span, span, (shift(x, strip * (plan[0, N_IN] + hidden) * n_lanes), strip, 0)


def _predict_few(network, n_lanes, address, m, outputs, work):
    """Write the outputs of no more rows than a register has lanes; or return False, if a number is not finite.

    One register's lanes in place of a panel's, with the same operations on each, so with the same bits. Activations
    run over flat memory and only need to be told as many numbers; those that couple units need whole panels.
    """
    plan, theta, constants = network[0], network[2], network[3]
    ones, zeros = at(constants, 0), at(constants, constants.size // 2)
    n, side = plan[0, N_IN], n_lanes // VECTORS
    x = at(work, 0)
    pack_panels(pointer(address, theta), 0, m, n, x, 1, side, side)
    total = x[0] * 0
    for i in range(n * side):
        total += x[i] * 0  # stays 0, or becomes NaN at infinity and NaN
    if total != 0:
        return False
    sections = _predict_sections(network, x, 1, side)
    below = x
    for layer in range(plan.shape[0]):
        n_in, n_out = plan[layer, N_IN], plan[layer, N_OUT]
        a = layer_place(network, layer, A, sections, side)
        bias = at(theta, plan[layer, B]) if plan[layer, B] >= 0 else zeros
        row, column = plan[layer, ROW], plan[layer, COLUMN]
        affine(at(theta, plan[layer, W]), row, column, n_out, n_in, bias, ones, 0, below, a, 1, side)
        call_elementwise(plan[layer, FORWARD], a, a, a, (n_out + VECTORS - 1) // VECTORS, 1, n_lanes)
        below = a
    unpack_panels(below, 1, plan[plan.shape[0] - 1, N_OUT], at(outputs, 0), 0, m, side, side)
    return True


predict_few = kernel(_predict_few, cached=True)
predict_sweep = (kernel(_predict_sweep, parallel=True, cached=True), kernel(_predict_sweep, cached=True))
