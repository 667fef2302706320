"""The sweeps for a product of the Hessian of J and a vector v, by Pearlmutter's R-operator.

R{q} is the rate at which q changes as theta moves along v. Everything that a gradient needs is computed beside its
rate, in the same tiles (Pearlmutter, 1994):

    R{z} = R{W} a + W R{a} + R{b},                       R{a} = f'(z) R{z}
    q = W^T delta+ + w (beta s' p'(rho_hat) + strength sign(a)),
                                                         delta = f'(z) q
    R{q} = R{W}^T delta+ + W^T R{delta+} + w beta s' p''(rho_hat) R{rho_hat},
                                                         R{delta} = f'(z) R{q} + f''(z) R{z} q
    R{grad W} = R{delta} a^T + delta R{a}^T + lambda R{W},   R{grad b} = R{delta}

R{W} and R{b} are the parts of v. R{rho_hat} is a mean over all examples, so where a layer is sparse a sweep forward
over everything comes first, and the second sweep does its forward part again.

The two ways to sum a gradient, and the groups of arguments, are those of `mlpkit.kernels.strips` and
`mlpkit.kernels.sweeps`, but for

    network  (plan, functions, theta, v, constants): functions has the addresses of each dense layer's tile functions
    memory   an array with a row for each owner of a span's memory: all *fields* of all layers, and the spare rows

A section of that memory is (address, panels it has room for, panel at which the strip begins), as there.
"""

from __future__ import annotations

from numba import prange

from mlpkit.kernels.jit import kernel
from mlpkit.kernels.pointers import at, call_curvature, call_elementwise, call_output_curvature, claim, shift
from mlpkit.kernels.simd import accumulate_outer, accumulate_sums, affine, affine_onto
from mlpkit.kernels.strips import (
    COLUMN,
    N_IN,
    N_OUT,
    NEXT,
    ROW,
    SPARSE,
    TIED,
    B,
    U,
    W,
    add_products,
    add_signs,
    set_weights,
)

__all__ = [
    "CURVATURE",
    "FIELDS",
    "FORWARD",
    "FUNCTION_COLUMNS",
    "TANGENT",
    "mean_rates_sweep",
    "product_by_pieces",
    "product_by_rows",
]

# What is held of each layer, in this order, each field in as many rows as the layer has units. The spare rows come
# after the fields of the last layer: two for each of its units.
Z, A, RZ, RA, DELTA, RDELTA = range(6)
FIELDS = 6

# Columns of `functions`.
FORWARD, TANGENT, CURVATURE = range(3)
FUNCTION_COLUMNS = 3


# One strip -----------------------------------------------------------------------------------------------------


@kernel
def _field(network, layer, field, section, n_lanes):
    """Return the address of a field of a layer's strip."""
    plan = network[0]
    memory, capacity, panel = section
    units = plan[layer, N_OUT]
    row = FIELDS * plan[layer, U] + field * units
    return shift(memory, (row * capacity + panel * units) * n_lanes)


@kernel
def _forward_strip(network, stop, x, section, panels, n_lanes):
    """Values and rates of dense layers 0 to stop - 1 for one strip."""
    plan, functions, theta, v, constants = network
    ones, zeros = at(constants, 0), at(constants, constants.size // 2)
    for layer in range(stop):
        n_in, n_out, row, column = plan[layer, N_IN], plan[layer, N_OUT], plan[layer, ROW], plan[layer, COLUMN]
        weights, directions = at(theta, plan[layer, W]), at(v, plan[layer, W])
        bias = at(theta, plan[layer, B]) if plan[layer, B] >= 0 else zeros
        direction = at(v, plan[layer, B]) if plan[layer, B] >= 0 else zeros
        below = x if layer == 0 else _field(network, layer - 1, A, section, n_lanes)
        z, a = _field(network, layer, Z, section, n_lanes), _field(network, layer, A, section, n_lanes)
        rz, ra = _field(network, layer, RZ, section, n_lanes), _field(network, layer, RA, section, n_lanes)
        affine(weights, row, column, n_out, n_in, bias, ones, 0, below, z, panels, n_lanes)
        call_elementwise(functions[layer, FORWARD], z, a, a, n_out, panels, n_lanes)
        affine(directions, row, column, n_out, n_in, direction, ones, 0, below, rz, panels, n_lanes)
        if layer > 0:  # the rate of x is 0
            rate_below = _field(network, layer - 1, RA, section, n_lanes)
            affine_onto(weights, row, column, n_out, n_in, rate_below, rz, panels, n_lanes)
        for i in range(panels * n_out * n_lanes):
            ra[i] = rz[i]
        call_elementwise(functions[layer, TANGENT], z, a, ra, n_out, panels, n_lanes)


@kernel
def _curve(network, layer, g, rg, section, panels, n_lanes):
    """Turn g into J^T g and rg into R{J^T g} for a layer's activation."""
    plan, functions = network[0], network[1]
    z, a = _field(network, layer, Z, section, n_lanes), _field(network, layer, A, section, n_lanes)
    rz, ra = _field(network, layer, RZ, section, n_lanes), _field(network, layer, RA, section, n_lanes)
    call_curvature(functions[layer, CURVATURE], z, a, rz, ra, g, rg, plan[layer, N_OUT], panels, n_lanes)


@kernel
def _backward_strip(network, output, terms, data, first, section, panels, n_lanes):
    """Leave delta and R{delta} of all layers for one strip, each lane times its example's weight."""
    plan, _, theta, v, constants = network
    ones, zero = at(constants, 0), constants[constants.size // 2]
    slopes, rates, strengths = terms
    top = plan.shape[0] - 1
    n_out = plan[top, N_OUT]
    y, weights = at(data[1], first * n_out * n_lanes), at(data[2], first * n_lanes)
    delta = _field(network, top, DELTA, section, n_lanes)
    rdelta = _field(network, top, RDELTA, section, n_lanes)
    z, a = _field(network, top, Z, section, n_lanes), _field(network, top, A, section, n_lanes)
    rz, ra = _field(network, top, RZ, section, n_lanes), _field(network, top, RA, section, n_lanes)
    set_weights(data, ones, n_out, first, delta, panels, n_lanes)
    call_output_curvature(output, z, a, y, rz, ra, delta, rdelta, n_out, panels, n_lanes)
    if plan[top, SPARSE] != 0 or strengths[top] != 0:
        more = _field(network, top, FIELDS, section, n_lanes)
        rmore = _field(network, top, FIELDS + 1, section, n_lanes)
        affine(ones, 0, 0, n_out, 0, at(slopes, plan[top, U]), weights, n_lanes, y, more, panels, n_lanes)
        affine(ones, 0, 0, n_out, 0, at(rates, plan[top, U]), weights, n_lanes, y, rmore, panels, n_lanes)
        if strengths[top] != 0:
            add_signs(a, strengths[top], zero, weights, more, n_out, panels, n_lanes)
        _curve(network, top, more, rmore, section, panels, n_lanes)
        for i in range(panels * n_out * n_lanes):
            delta[i] += more[i]
            rdelta[i] += rmore[i]
    for layer in range(top, 0, -1):
        n_in, n_out, row, column = plan[layer, N_IN], plan[layer, N_OUT], plan[layer, ROW], plan[layer, COLUMN]
        units, place = plan[layer - 1, U], plan[layer, W]
        below = _field(network, layer - 1, DELTA, section, n_lanes)
        rbelow = _field(network, layer - 1, RDELTA, section, n_lanes)
        slope, rate = at(slopes, units), at(rates, units)
        affine(at(theta, place), column, row, n_in, n_out, slope, weights, n_lanes, delta, below, panels, n_lanes)
        affine(at(v, place), column, row, n_in, n_out, rate, weights, n_lanes, delta, rbelow, panels, n_lanes)
        affine_onto(at(theta, place), column, row, n_in, n_out, rdelta, rbelow, panels, n_lanes)
        if strengths[layer - 1] != 0:  # sign(a) has the rate 0
            a = _field(network, layer - 1, A, section, n_lanes)
            add_signs(a, strengths[layer - 1], zero, weights, below, n_in, panels, n_lanes)
        _curve(network, layer - 1, below, rbelow, section, panels, n_lanes)
        delta, rdelta = below, rbelow


@kernel
def _through(network, output, terms, data, first, section, panels, n_lanes):
    """Take the strip from panel `first` on forward and backward."""
    plan = network[0]
    x = at(data[0], first * plan[0, N_IN] * n_lanes)
    _forward_strip(network, plan.shape[0], x, section, panels, n_lanes)
    _backward_strip(network, output, terms, data, first, section, panels, n_lanes)


@kernel
def _add_rows(network, layer, begin, end, x, section, product, panels, n_lanes):
    """Add rows begin to end - 1 of R{grad W} and R{grad b} of a layer, over all panels; see `strips` for tied W."""
    plan, constants = network[0], network[4]
    n_in, n_out = plan[layer, N_IN], plan[layer, N_OUT]
    place = begin * n_lanes
    delta = shift(_field(network, layer, DELTA, section, n_lanes), place)
    rdelta = shift(_field(network, layer, RDELTA, section, n_lanes), place)
    if plan[layer, TIED] == 0:
        rows = end - begin
        target = shift(product, plan[layer, W] + begin * n_in)
        if layer == 0:
            add_products(rdelta, n_out, x, n_in, rows, target, panels, n_lanes)
        else:
            below, rate = (
                _field(network, layer - 1, A, section, n_lanes),
                _field(network, layer - 1, RA, section, n_lanes),
            )
            add_products(rdelta, n_out, below, n_in, rows, target, panels, n_lanes)
            add_products(delta, n_out, rate, n_in, rows, target, panels, n_lanes)
        other = plan[layer, NEXT]
        while other >= 0:
            inner, outer = plan[other, N_IN], plan[other, N_OUT]
            a = shift(_field(network, other - 1, A, section, n_lanes), place)
            ra = shift(_field(network, other - 1, RA, section, n_lanes), place)
            d = _field(network, other, DELTA, section, n_lanes)
            rd = _field(network, other, RDELTA, section, n_lanes)
            add_products(a, inner, rd, outer, rows, target, panels, n_lanes)
            add_products(ra, inner, d, outer, rows, target, panels, n_lanes)
            other = plan[other, NEXT]
    if plan[layer, B] >= 0:
        target = shift(product, plan[layer, B] + begin)
        accumulate_outer(rdelta, end - begin, n_out * n_lanes, at(constants, 0), 1, 0, target, 1, panels, n_lanes)


# Mean activations and their rates ------------------------------------------------------------------------------


@kernel
def _mean_worker(network, n_forward, tiling, piece_strips, memory, X, weights, sums, rates, counter, worker):
    """Take pieces from the counter until none is left; add up w a and w R{a} for each unit of the sparse layers."""
    plan = network[0]
    n_panels, strip, capacity, n_lanes = tiling
    while True:
        piece = claim(counter)
        if piece >= sums.shape[0] or counter[1] != 0:
            break
        sums[piece] = 0
        rates[piece] = 0
        for first in range(piece * piece_strips * strip, min((piece + 1) * piece_strips * strip, n_panels), strip):
            panels = min(strip, n_panels - first)
            x = at(X, first * plan[0, N_IN] * n_lanes)
            w = at(weights, first * n_lanes)
            if memory.shape[0] > 1:
                section = (at(memory, worker * memory.shape[1]), capacity, 0)
            else:  # one span's memory, shared
                section = (at(memory, 0), capacity, worker * strip)
            _forward_strip(network, n_forward, x, section, panels, n_lanes)
            for layer in range(n_forward):
                if plan[layer, SPARSE] != 0:
                    units, place = plan[layer, N_OUT], piece * sums.shape[1] + plan[layer, U]
                    a, ra = _field(network, layer, A, section, n_lanes), _field(network, layer, RA, section, n_lanes)
                    accumulate_sums(a, units, w, at(sums, place), panels, n_lanes)
                    accumulate_sums(ra, units, w, at(rates, place), panels, n_lanes)


def _mean_rates_sweep(network, n_forward, tiling, piece_strips, memory, X, weights, sums, rates, counter, n_workers):
    """Fill sums and rates (pieces, units) with sum_i w_i a_ij and sum_i w_i R{a_ij} of the sparse layers.

    n_forward: dense layers up to the last sparse one.
    """
    counter[0] = 0
    for worker in prange(n_workers):
        _mean_worker(network, n_forward, tiling, piece_strips, memory, X, weights, sums, rates, counter, worker)


# The product ---------------------------------------------------------------------------------------------------


@kernel
def _piece_worker(network, tiling, piece_strips, memory, data, output, terms, products, counter, worker):
    """Take pieces from the counter until none is left; fill each one's part of the product."""
    plan = network[0]
    n_panels, strip, _, n_lanes = tiling
    section = (at(memory, worker * memory.shape[1]), strip, 0)
    while True:
        piece = claim(counter)
        if piece >= products.shape[0] or counter[1] != 0:
            break
        products[piece] = 0
        product = at(products, piece * products.shape[1])
        for first in range(piece * piece_strips * strip, min((piece + 1) * piece_strips * strip, n_panels), strip):
            panels = min(strip, n_panels - first)
            _through(network, output, terms, data, first, section, panels, n_lanes)
            x = at(data[0], first * plan[0, N_IN] * n_lanes)
            for layer in range(plan.shape[0]):
                _add_rows(network, layer, 0, plan[layer, N_OUT], x, section, product, panels, n_lanes)


def _product_by_pieces(
    network, tiling, piece_strips, memory, data, output, terms, products, counter, scale, decay, product, n_workers
):
    """Fill `product`.

    terms: (beta s' p', beta s' p'' R{rho_hat}, strength): of each unit, 0 where its mean is not penalised, and of each
    dense layer, that of its L1 penalty; scale: 1 / sum of weights; decay:
    lambda of each dense layer; all in the network's dtype. products: one for each piece.
    """
    counter[0] = 0
    for worker in prange(n_workers):
        _piece_worker(network, tiling, piece_strips, memory, data, output, terms, products, counter, worker)
    n = product.size
    for worker in prange(n_workers):
        begin, end = worker * n // n_workers, (worker + 1) * n // n_workers
        total = product[begin:end]
        total[:] = products[0, begin:end]
        for piece in range(1, products.shape[0]):
            part = products[piece, begin:end]
            for i in range(total.size):
                total[i] += part[i]
        _finish(network, scale, decay, product, begin, end)


@kernel
def _strip_worker(network, tiling, begin, memory, data, output, terms, counter):
    """Take strips of the span from panel `begin` on, until none is left."""
    n_panels, strip, capacity, n_lanes = tiling
    end = min(begin + capacity, n_panels)
    while True:
        first = begin + claim(counter) * strip
        if first >= end or counter[1] != 0:
            break
        section = (at(memory, 0), capacity, first - begin)
        _through(network, output, terms, data, first, section, min(strip, end - first), n_lanes)


@kernel
def _row_worker(network, tiling, begin, memory, X, product, counter, n_workers):
    """Take blocks of the product's rows until none is left; add up over the span from panel `begin` on."""
    plan = network[0]
    n_panels, _, capacity, n_lanes = tiling
    panels = min(capacity, n_panels - begin)
    section = (at(memory, 0), capacity, 0)
    x = at(X, begin * plan[0, N_IN] * n_lanes)
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
                _add_rows(network, layer, j, end, x, section, at(product, 0), panels, n_lanes)
                mine = claim(counter)
            block += 1


def _product_by_rows(network, tiling, memory, data, output, terms, counter, scale, decay, product, n_workers):
    """Do the same as `_product_by_pieces`, for a product too large for copies."""
    n = product.size
    for worker in prange(n_workers):
        product[worker * n // n_workers : (worker + 1) * n // n_workers] = 0
    n_panels, _, capacity, _ = tiling
    for begin in range(0, n_panels, capacity):
        if counter[1] != 0:
            break
        counter[0] = 0
        for _worker in prange(n_workers):
            _strip_worker(network, tiling, begin, memory, data, output, terms, counter)
        counter[0] = 0
        for _worker in prange(n_workers):
            _row_worker(network, tiling, begin, memory, data[0], product, counter, n_workers)
    for worker in prange(n_workers):
        _finish(network, scale, decay, product, worker * n // n_workers, (worker + 1) * n // n_workers)


@kernel
def _finish(network, scale, decay, product, begin, end):
    """product[begin:end] = scale * product[begin:end] + lambda R{W}."""
    plan, v = network[0], network[3]
    for i in range(begin, end):
        product[i] *= scale
    for layer in range(plan.shape[0]):
        if decay[layer] != 0:
            start = plan[layer, W]
            stop = start + plan[layer, N_IN] * plan[layer, N_OUT]
            for i in range(max(start, begin), min(stop, end)):
                product[i] += decay[layer] * v[i]


# Each sweep as (on several threads, on one).
mean_rates_sweep = (kernel(_mean_rates_sweep, parallel=True, cached=True), kernel(_mean_rates_sweep, cached=True))
product_by_pieces = (kernel(_product_by_pieces, parallel=True, cached=True), kernel(_product_by_pieces, cached=True))
product_by_rows = (kernel(_product_by_rows, parallel=True, cached=True), kernel(_product_by_rows, cached=True))
