"""The matrix micro-kernels, emitted as LLVM vectors.

A *panel* holds LANES examples of one layer, feature-major: unit j of example t lies at ``panel[j * LANES + t]``,
so an example keeps its lane through the whole network and no layer size wastes one. Two matrix products are all that
a network needs:

- `affine`, the broadcast product: ``z[j, t] = bias[j] u[t] + sum_k W[j, k] x[k, t]``. It serves the forward pass
  (u = 1), the propagation of deltas (W transposed by swapping strides, bias = the sparsity term, u = the weights), and,
  with no columns at all, filling a tile with bias[j] u[t]. `affine_onto` adds a second product to the first.
- `accumulate_outer`, the dot product: ``g[j, k] += sum_t d[j, t] x[k, t]``, the gradient of the weights.

Both are register-blocked: a block of MR rows by some columns of accumulators that fits the host's vector registers.
Every lane of `affine` is one chain of fused multiply-adds in the order of k, so an example's result does not depend on
its lane, its panel or the block that its row falls in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mlpkit.kernels.emitter import BITS, I64, Emitter, repeat
from mlpkit.kernels.jit import kernel
from mlpkit.kernels.pointers import shift

__all__ = [
    "BATCH_VECTORS",
    "VECTORS",
    "accumulate_outer",
    "accumulate_sums",
    "affine",
    "affine_onto",
    "batch_lanes",
    "lanes",
    "register_lanes",
]


class _Shape(NamedTuple):
    """Register blocking: a panel is `vectors` registers wide."""

    vectors: int
    outer_rows: int
    outer_columns: int


# With 32 registers (AVX-512, and NEON at 128 bits) 24 accumulators; with the 16 of AVX2, 12. NEON's loads of pairs want
# more registers for the dot product, which gets 16. x86 without AVX2 spills, and is right all the same.
_SHAPE = _Shape(2, 3, 4) if BITS == 256 else _Shape(4, 2 if BITS == 128 else 3, 8)
VECTORS = _SHAPE.vectors
# A few dozen examples would leave half of such wide panels empty; more rows make up for fewer registers.
BATCH_VECTORS = 2 if BITS == 512 else VECTORS
_MOST_ROWS = {1: 6, VECTORS: 6} | ({BATCH_VECTORS: 8} if BATCH_VECTORS < VECTORS else {})  # of `affine`, by registers
_OUTER_ROWS, _OUTER_COLUMNS = _SHAPE.outer_rows, _SHAPE.outer_columns
_DEPTH = 128  # columns of W a pass: DEPTH x LANES numbers of x stay in the first-level cache


def lanes(dtype: Any) -> int:
    """Return how many examples of `dtype` ride in one panel."""
    return VECTORS * BITS // (8 * np.dtype(dtype).itemsize)


def batch_lanes(dtype: Any) -> int:
    """Return how many examples of `dtype` ride in one panel of a mini-batch."""
    return BATCH_VECTORS * BITS // (8 * np.dtype(dtype).itemsize)


@intrinsic
def register_lanes(typingctx, x):
    """Return how many numbers of the type that x points to a register holds."""

    def codegen(context, builder, signature, arguments):
        return ir.Constant(I64, Emitter(builder, context.get_value_type(signature.args[0].dtype)).width)

    return types.intp(x), codegen


# The broadcast product -----------------------------------------------------------------------------------------


def _make_affine_block(n_vectors):
    """Emit some rows of `affine` over one panel of `n_vectors` registers and one stretch of columns."""

    def emit(builder, v, rows, depth, resume, W, row_stride, column_stride, bias, u, x, z):
        panel = n_vectors * v.width
        cells = [(j, i) for j in range(rows) for i in range(n_vectors)]
        places = [v.offset(z, j * panel + i * v.width) for j, i in cells]

        # The accumulators start at bias[j] u[t], or, for a later stretch of columns, where they stopped.
        fresh, stored, start = (builder.append_basic_block(name) for name in ("fresh", "stored", "start"))
        builder.cbranch(builder.icmp_signed("!=", resume, ir.Constant(I64, 0)), stored, fresh)
        builder.position_at_end(fresh)
        lanes_u = [v.load(v.offset(u, i * v.width)) for i in range(n_vectors)]
        biases = [v.splat(builder.load(v.offset(bias, j))) for j in range(rows)]
        from_bias = [builder.fmul(biases[j], lanes_u[i]) for j, i in cells]
        builder.branch(start)
        builder.position_at_end(stored)
        from_z = [v.load(place) for place in places]
        builder.branch(start)
        builder.position_at_end(start)
        initial = []
        for a, b in zip(from_bias, from_z, strict=True):
            phi = builder.phi(v.type)
            phi.add_incoming(a, fresh)
            phi.add_incoming(b, stored)
            initial.append(phi)

        row_starts = [v.offset(W, builder.mul(row_stride, ir.Constant(I64, j))) for j in range(rows)]

        def step(k, accumulators):
            x_k = v.offset(x, builder.mul(k, ir.Constant(I64, panel)))
            xs = [v.load(v.offset(x_k, i * v.width)) for i in range(n_vectors)]
            column = builder.mul(k, column_stride)
            ws = [v.splat(builder.load(v.offset(start, column))) for start in row_starts]
            return [v.fma(ws[j], xs[i], c) for (j, i), c in zip(cells, accumulators, strict=True)]

        for value, place in zip(repeat(builder, depth, initial, step), places, strict=True):
            v.store(value, place)

    @intrinsic
    def block(typingctx, rows, depth, resume, W, row_stride, column_stride, bias, u, x, z):
        sizes = (types.intp, types.intp, types.intp)
        signature = types.void(*sizes, W, types.intp, types.intp, bias, u, x, z)

        def codegen(context, builder, signature, arguments):
            rows, *others = arguments
            v = Emitter(builder, context.get_value_type(signature.args[3].dtype))
            done = builder.append_basic_block("done")
            switch = builder.switch(rows, done)
            for n in range(1, _MOST_ROWS[n_vectors] + 1):
                case = builder.append_basic_block(f"rows{n}")
                switch.add_case(ir.Constant(I64, n), case)
                builder.position_at_end(case)
                emit(builder, v, n, *others)
                builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return signature, codegen

    return block


def _make_affine(n_vectors, onto=0):
    """Make `affine` for panels of `n_vectors` registers; `onto`: add to what z holds, bias and u are not read."""
    block, most_rows = _make_affine_block(n_vectors), _MOST_ROWS[n_vectors]

    def affine(W, row_stride, column_stride, rows, columns, bias, u, u_panel, x, z, panels, n_lanes):
        """z[p, j, t] = bias[j] u[p, t] + sum_k W[j, k] x[p, k, t], W[j, k] at W[j row_stride + k column_stride].

        W: pointer; bias: (rows,); u: panels u_panel apart (0 repeats one); x: (panels, columns, LANES);
        z: (panels, rows, LANES). Rows are shared out evenly over blocks, so that none is left thin.
        """
        blocks = (rows + most_rows - 1) // most_rows
        for p in range(panels):
            u_p = shift(u, p * u_panel)
            k = 0
            while True:
                depth = min(_DEPTH, columns - k)
                x_k = shift(x, (p * columns + k) * n_lanes)
                j = 0
                for i in range(blocks):
                    end = (i + 1) * rows // blocks
                    W_jk = shift(W, j * row_stride + k * column_stride)
                    z_j = shift(z, (p * rows + j) * n_lanes)
                    block(end - j, depth, k + onto, W_jk, row_stride, column_stride, shift(bias, j), u_p, x_k, z_j)
                    j = end
                k += depth
                if k >= columns:
                    break

    # Symbols are made of names and of a number that counts up anew in each process. Variants under one name, kept on
    # disk by different processes, would be taken for one another.
    affine.__name__ = affine.__qualname__ = f"affine_{n_vectors}_{onto}"
    return kernel(affine)


@intrinsic
def _panel_lanes(typingctx, x):
    """Return how many numbers of x's type make a panel."""

    def codegen(context, builder, signature, arguments):
        v = Emitter(builder, context.get_value_type(signature.args[0].dtype))
        return ir.Constant(I64, VECTORS * v.width)

    return types.intp(x), codegen


_affine_wide, _onto_wide = _make_affine(VECTORS), _make_affine(VECTORS, onto=1)
_affine_batch, _onto_batch = _affine_wide, _onto_wide
if BATCH_VECTORS < VECTORS:
    _affine_batch, _onto_batch = _make_affine(BATCH_VECTORS), _make_affine(BATCH_VECTORS, onto=1)
_affine_narrow = _make_affine(1)


@kernel(inlined=True)
def affine(W, row_stride, column_stride, rows, columns, bias, u, u_panel, x, z, panels, n_lanes):
    """z[p, j, t] = bias[j] u[p, t] + sum_k W[j, k] x[p, k, t], see `_make_affine`.

    n_lanes: those of a panel, of a mini-batch's panel, or of one register, for the last few examples.
    """
    vectors = n_lanes // register_lanes(x)
    if vectors == VECTORS:
        _affine_wide(W, row_stride, column_stride, rows, columns, bias, u, u_panel, x, z, panels, n_lanes)
    elif vectors == BATCH_VECTORS:
        _affine_batch(W, row_stride, column_stride, rows, columns, bias, u, u_panel, x, z, panels, n_lanes)
    else:
        _affine_narrow(W, row_stride, column_stride, rows, columns, bias, u, u_panel, x, z, panels, n_lanes)


@kernel(inlined=True)
def affine_onto(W, row_stride, column_stride, rows, columns, x, z, panels, n_lanes):
    """z[p, j, t] += sum_k W[j, k] x[p, k, t], otherwise as `affine`, but for one register."""
    if n_lanes // register_lanes(x) == VECTORS:
        _onto_wide(W, row_stride, column_stride, rows, columns, W, W, 0, x, z, panels, n_lanes)
    else:
        _onto_batch(W, row_stride, column_stride, rows, columns, W, W, 0, x, z, panels, n_lanes)


# The dot product -----------------------------------------------------------------------------------------------


def _make_outer_block(rows, columns, *, wide=False, n_vectors=VECTORS):
    """Emit rows x columns sums over all panels; `wide` sums in float64 whatever the operands are."""

    @intrinsic
    def block(typingctx, panels, d, d_panel, x, x_panel, g, g_stride):
        signature = types.void(types.intp, d, types.intp, x, types.intp, g, types.intp)

        def codegen(context, builder, signature, arguments):
            panels, d, d_panel, x, x_panel, g, g_stride = arguments
            v = Emitter(builder, context.get_value_type(signature.args[1].dtype))
            panel = n_vectors * v.width
            total = ir.VectorType(ir.DoubleType(), v.width) if wide else v.type

            def load(pointer):
                vector = v.load(pointer)
                return builder.fpext(vector, total) if total != v.type else vector

            def step(p, accumulators):
                d_p = v.offset(d, builder.mul(p, d_panel))
                x_p = v.offset(x, builder.mul(p, x_panel))
                sums = list(accumulators)
                for i in range(n_vectors):
                    ds = [load(v.offset(d_p, j * panel + i * v.width)) for j in range(rows)]
                    for k in range(columns):  # one x at a time: 3 x 8 sums, 3 d and 1 x fit 32 registers
                        x_k = load(v.offset(x_p, k * panel + i * v.width))
                        for j in range(rows):
                            sums[j * columns + k] = v.fma(ds[j], x_k, sums[j * columns + k])
                return sums

            # The sums are wanted only after the loop, so that memory has its time to fetch them; consecutive rows lie
            # pages apart, which no hardware foresees.
            places = [v.offset(g, builder.mul(g_stride, ir.Constant(I64, j))) for j in range(rows)]
            for place in places:
                v.prefetch(place, write=True)
            zero = ir.Constant(total, [0.0] * v.width)
            sums = repeat(builder, panels, [zero] * (rows * columns), step)
            for j, place in enumerate(places):
                for vector in v.fold(sums[j * columns : (j + 1) * columns]):
                    old = v.load(place, vector.type)
                    v.store(builder.fadd(old, vector), place)
                    place = v.offset(place, vector.type.count)
            return context.get_dummy_value()

        return signature, codegen

    return block


_outer = {(r, c): _make_outer_block(r, c) for r in (1, 2, 3) for c in (1, 2, 4, 8)}
_outer11, _outer12, _outer14, _outer18 = (_outer[1, c] for c in (1, 2, 4, 8))
_outer21, _outer22, _outer24, _outer28 = (_outer[2, c] for c in (1, 2, 4, 8))
_outer31, _outer32, _outer34, _outer38 = (_outer[3, c] for c in (1, 2, 4, 8))
_sums1, _sums4 = _make_outer_block(1, 1, wide=True), _make_outer_block(4, 1, wide=True)
_batch_sums, _narrow_sums = (_make_outer_block(1, 1, wide=True, n_vectors=n) for n in (BATCH_VECTORS, 1))


@kernel
def accumulate_outer(d, rows, d_panel, x, columns, x_panel, g, g_stride, panels, n_lanes):
    """g[j g_stride + k] += sum over p, t of d[p, j, t] x[p, k, t].

    d, x: rows and columns rows of LANES a panel, panels d_panel and x_panel apart (0 repeats one).
    """
    k = 0
    while k < columns:
        left = columns - k
        width = _OUTER_COLUMNS if left >= _OUTER_COLUMNS else 4 if left >= 4 else 2 if left >= 2 else 1
        x_k = shift(x, k * n_lanes)
        j = 0
        while j < rows:
            height = min(_OUTER_ROWS, rows - j)
            d_j = shift(d, j * n_lanes)
            g_jk = shift(g, j * g_stride + k)
            if height == 3:
                if width == 8:
                    _outer38(panels, d_j, d_panel, x_k, x_panel, g_jk, g_stride)
                elif width == 4:
                    _outer34(panels, d_j, d_panel, x_k, x_panel, g_jk, g_stride)
                elif width == 2:
                    _outer32(panels, d_j, d_panel, x_k, x_panel, g_jk, g_stride)
                else:
                    _outer31(panels, d_j, d_panel, x_k, x_panel, g_jk, g_stride)
            elif height == 2:
                if width == 8:
                    _outer28(panels, d_j, d_panel, x_k, x_panel, g_jk, g_stride)
                elif width == 4:
                    _outer24(panels, d_j, d_panel, x_k, x_panel, g_jk, g_stride)
                elif width == 2:
                    _outer22(panels, d_j, d_panel, x_k, x_panel, g_jk, g_stride)
                else:
                    _outer21(panels, d_j, d_panel, x_k, x_panel, g_jk, g_stride)
            elif width == 8:
                _outer18(panels, d_j, d_panel, x_k, x_panel, g_jk, g_stride)
            elif width == 4:
                _outer14(panels, d_j, d_panel, x_k, x_panel, g_jk, g_stride)
            elif width == 2:
                _outer12(panels, d_j, d_panel, x_k, x_panel, g_jk, g_stride)
            else:
                _outer11(panels, d_j, d_panel, x_k, x_panel, g_jk, g_stride)
            j += height
        k += width


@kernel
def accumulate_sums(a, rows, u, sums, panels, n_lanes):
    """sums[j] += sum over p, t of u[p, t] a[p, j, t], in float64 whatever the dtype of a and u."""
    j, vectors = 0, n_lanes // register_lanes(a)
    while j < rows:
        a_j = shift(a, j * n_lanes)
        if vectors == 1:
            _narrow_sums(panels, a_j, rows * n_lanes, u, n_lanes, shift(sums, j), 1)
            j += 1
        elif vectors < VECTORS:
            _batch_sums(panels, a_j, rows * n_lanes, u, n_lanes, shift(sums, j), 1)
            j += 1
        elif rows - j >= 4:
            _sums4(panels, a_j, rows * n_lanes, u, n_lanes, shift(sums, j), 1)
            j += 4
        else:
            _sums1(panels, a_j, rows * n_lanes, u, n_lanes, shift(sums, j), 1)
            j += 1
