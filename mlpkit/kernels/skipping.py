"""The first layer of a mini-batch whose inputs are mostly 0: pixels of digits, counts of words, one-hot columns.

There a product with W is a sum of rows, each times a number, and rows times 0 are left out. W lies turned over, so that
its row k holds the weights of input k to all units, which ride in lanes:

    z(example)       = b + sum over k with x_k != 0 of x_k W[k]
    gradient of W[k] = sum over the batch's examples with x_k != 0 of x_k delta(example)

Each number is the same chain of fused multiply-adds as without, but for those that add 0: parameters keep their bits.

    skip      (W, gradient, first, second, inputs, deltas, sums): W, its gradient, and what the rule remembers of each
              number, (inputs, width); the batch's inputs (inputs, stride), one row for each; deltas of its examples
              (examples, width); and for each worker z of a panel's examples (LANES, width). Numbers beyond the layer's
              units are 0. All empty where nothing is skipped
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mlpkit.kernels.emitter import I64, Emitter, repeat
from mlpkit.kernels.jit import kernel
from mlpkit.kernels.pointers import at, pointer, shift
from mlpkit.kernels.simd import BATCH_VECTORS, register_lanes
from mlpkit.kernels.strips import N_IN, N_OUT, B, Z, activate, delta_place, layer_place
from mlpkit.kernels.transposes import prefetch_lanes, transpose

__all__ = ["GROUP", "find_skipping_gradient", "first_layer", "lay_out_deltas", "padded_width", "skips"]

GROUP = 16  # inputs whose rows of the gradient are found together, while the deltas they share are in cache
_WORD = 64  # numbers looked at together: as many rows of 8 registers fill a first-level cache
_MOST_VECTORS = 8  # accumulators, of 16 registers on AVX2


def padded_width(units: int, lanes: int) -> int:
    """Return how far rows of units are apart: an odd number of registers, lest rows crowd into a few lines of a cache.

    Examples
    --------
    >>> padded_width(100, lanes=16), padded_width(128, lanes=16)
    (112, 144)
    """
    return lanes * (-(-units // lanes) | 1)


# Sums of rows --------------------------------------------------------------------------------------------------


def _emit_set_bits(builder, v, x, count):
    """Emit a word with a bit for each of x[0], ..., x[count - 1], at most _WORD, that is not 0."""
    zeros = ir.Constant(v.type, [0.0] * v.width)

    def bits(values, i):
        set_lanes = builder.fcmp_unordered("!=", values, zeros)  # NaN counts as not 0
        return builder.shl(builder.zext(builder.bitcast(set_lanes, ir.IntType(v.width)), I64), i)

    whole, part, done = (builder.append_basic_block(name) for name in ("whole", "part", "done"))
    builder.cbranch(builder.icmp_signed("==", count, ir.Constant(I64, _WORD)), whole, part)
    builder.position_at_end(whole)
    of_whole = ir.Constant(I64, 0)
    for i in range(0, _WORD, v.width):
        of_whole = builder.or_(of_whole, bits(v.load(v.offset(x, i)), ir.Constant(I64, i)))
    builder.branch(done)

    def add_part(i, word):
        start = builder.mul(i, ir.Constant(I64, v.width))
        return [builder.or_(word[0], bits(v.load_first(v.offset(x, start), builder.sub(count, start)), start))]

    builder.position_at_end(part)
    vectors = builder.udiv(builder.add(count, ir.Constant(I64, v.width - 1)), ir.Constant(I64, v.width))
    (of_part,) = repeat(builder, vectors, [ir.Constant(I64, 0)], add_part)
    ended = builder.block
    builder.branch(done)
    builder.position_at_end(done)
    word = builder.phi(I64)
    word.add_incoming(of_whole, whole)
    word.add_incoming(of_part, ended)
    return word


def _emit_add_rows(builder, v, vectors, x, count, rows, stride, z):
    """Emit z += sum over i with x[i] != 0 of x[i] rows[i], over `vectors` registers."""
    places = [v.offset(z, i * v.width) for i in range(vectors)]
    initial = [v.load(place) for place in places]
    word = _emit_set_bits(builder, v, x, count)
    before = builder.block
    head, body, done = (builder.append_basic_block(name) for name in ("head", "body", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    left, sums = builder.phi(I64), [builder.phi(v.type) for _ in range(vectors)]
    for phi, value in zip([left, *sums], [word, *initial], strict=True):
        phi.add_incoming(value, before)
    builder.cbranch(builder.icmp_unsigned("!=", left, ir.Constant(I64, 0)), body, done)
    builder.position_at_end(body)
    i = builder.cttz(left, ir.Constant(ir.IntType(1), 1))
    factor, row = v.splat(builder.load(v.offset(x, i))), v.offset(rows, builder.mul(i, stride))
    added = [v.fma(factor, v.load(v.offset(row, n * v.width)), sums[n]) for n in range(vectors)]
    without_lowest = builder.and_(left, builder.sub(left, ir.Constant(I64, 1)))
    for phi, value in zip([left, *sums], [without_lowest, *added], strict=True):
        phi.add_incoming(value, body)
    builder.branch(head)
    builder.position_at_end(done)
    for value, place in zip(sums, places, strict=True):
        v.store(value, place)


@intrinsic
def _add_rows(typingctx, vectors, x, count, rows, stride, z):
    """z[n] += sum over i < count with x[i] != 0 of x[i] rows[i stride + n], for n in as many registers; count <= _WORD.

    No number of x beyond count is read.
    """
    signature = types.void(types.intp, x, types.intp, rows, types.intp, z)

    def codegen(context, builder, signature, arguments):
        vectors, *others = arguments
        v = Emitter(builder, context.get_value_type(signature.args[1].dtype))
        done = builder.append_basic_block("done")
        switch = builder.switch(vectors, done)
        for n in range(1, _MOST_VECTORS + 1):
            case = builder.append_basic_block(f"vectors{n}")
            switch.add_case(ir.Constant(I64, n), case)
            builder.position_at_end(case)
            _emit_add_rows(builder, v, n, *others)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, codegen


@kernel(inlined=True)
def _n_parts(vectors):
    """Return how many times rows are gone through, a part of their registers at a time."""
    return (vectors + _MOST_VECTORS - 1) // _MOST_VECTORS


# A panel forward, and its deltas -------------------------------------------------------------------------------


@kernel(inlined=True)
def skips(skip):
    """Return whether this is how the first layer is computed."""
    return skip[0].size > 0


@kernel(inlined=True)
def _width(network, skip):
    return skip[0].size // network[0][0, N_IN]


@kernel
def _find_sums(rows, numbers, count, n_in, W, width, vectors, bias, n_out, sums):
    """Set sums[i] to W x + b, where x is row numbers[i] of `rows`."""
    side = register_lanes(sums)
    for i in range(count):
        for j in range(n_out):
            sums[i * width + j] = bias[j]
    parts = _n_parts(vectors)
    for part in range(parts):
        begin, end = part * vectors // parts, (part + 1) * vectors // parts
        for k in range(0, n_in, _WORD):
            W_k = shift(W, k * width + begin * side)
            for i in range(count):
                x, z = shift(rows, numbers[i] * n_in + k), shift(sums, i * width + begin * side)
                _add_rows(end - begin, x, min(_WORD, n_in - k), W_k, width, z)


@kernel
def first_layer(network, skip, address, order, begin, stop, sections, n_lanes, worker):
    """Find z and a of the first layer for a panel: examples order[begin:stop] of the rows at an address.

    Lanes beyond `stop` repeat the last.
    """
    plan, theta, constants = network[0], network[2], network[3]
    n_in, n_out, width = plan[0, N_IN], plan[0, N_OUT], _width(network, skip)
    z = layer_place(network, 0, Z, sections, n_lanes)
    side = register_lanes(z)
    vectors, count = (n_out + side - 1) // side, min(stop - begin, n_lanes)
    bias = at(theta, plan[0, B]) if plan[0, B] >= 0 else at(constants, constants.size // 2)
    sums = at(skip[6], worker * (skip[6].size // skip[6].shape[0]))
    _find_sums(
        pointer(address, theta), at(order, begin), count, n_in, at(skip[0], 0), width, vectors, bias, n_out, sums
    )
    for i in range(count, n_lanes):
        for j in range(n_out):
            sums[i * width + j] = sums[(count - 1) * width + j]
    squares = n_out // side * side
    for j in range(0, squares, side):
        for t in range(0, n_lanes, side):
            transpose(shift(sums, t * width + j), width, shift(z, j * n_lanes + t), n_lanes)
    for j in range(squares, n_out):
        for t in range(n_lanes):
            z[j * n_lanes + t] = sums[t * width + j]
    activate(network, 0, sections, 1, n_lanes)


@kernel
def lay_out_deltas(network, skip, sections, example, n_lanes):
    """Copy the first layer's deltas of a panel to rows of the batch, from an example on."""
    n_out, width = network[0][0, N_OUT], _width(network, skip)
    delta, rows = delta_place(network, 0, sections, n_lanes), at(skip[5], example * width)
    side = register_lanes(delta)
    whole = n_out // side * side
    for j in range(0, whole, side):
        for t in range(0, n_lanes, side):
            transpose(shift(delta, j * n_lanes + t), n_lanes, shift(rows, t * width + j), width)
    for t in range(n_lanes):
        for j in range(whole, n_out):
            rows[t * width + j] = delta[j * n_lanes + t]


# The gradient --------------------------------------------------------------------------------------------------


@kernel(inlined=True)
def _ask_for(ahead, n_columns, part, parts):
    """Ask for one of so many parts of the rows of examples: a little at a time, as memory brings only so much."""
    X, numbers, count = ahead
    lanes = BATCH_VECTORS * register_lanes(X)
    pieces = (n_columns + lanes - 1) // lanes
    for i in range(part * count * pieces // parts, (part + 1) * count * pieces // parts):
        prefetch_lanes(shift(X, numbers[i // pieces] * n_columns + i % pieces * lanes))


@kernel
def find_skipping_gradient(network, skip, stride, begin, end, count, ahead):
    """Set rows begin to end - 1 of the gradient to the sums over a batch of `count` examples.

    stride: how far apart rows of inputs are; ahead: as in `find_gradient_rows`.
    """
    plan = network[0]
    n_in, n_out, width = plan[0, N_IN], plan[0, N_OUT], _width(network, skip)
    gradient, inputs, deltas = at(skip[1], 0), at(skip[4], 0), at(skip[5], 0)
    side, zero = register_lanes(gradient), skip[1].dtype.type(0)
    vectors = (n_out + side - 1) // side
    rows = shift(gradient, begin * width)
    for i in range((end - begin) * width):
        rows[i] = zero
    parts, words, asked = _n_parts(vectors), (count + _WORD - 1) // _WORD, 0
    for part in range(parts):
        first, last = part * vectors // parts, (part + 1) * vectors // parts
        for t in range(0, count, _WORD):
            some, delta = min(_WORD, count - t), shift(deltas, t * width + first * side)
            for k in range(begin, end):
                _ask_for(ahead, n_in, asked, parts * words * (end - begin))
                asked += 1
                x, g = shift(inputs, k * stride + t), shift(gradient, k * width + first * side)
                _add_rows(last - first, x, some, delta, width, g)
