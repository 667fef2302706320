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

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mlpkit.kernels.jit import kernel
from mlpkit.kernels.pointers import shift

__all__ = [
    "BITS",
    "VECTORS",
    "Emitter",
    "accumulate_outer",
    "accumulate_sums",
    "affine",
    "affine_narrow",
    "affine_onto",
    "lanes",
    "mask_of_zip",
    "vector_mask",
]

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _vector_bits() -> int:
    """Return the width of the vector registers that Numba compiles for: it takes features, not a name, as given."""
    listed = numba.config.CPU_FEATURES
    if listed is not None:
        names = {name.strip() for name in listed.split(",")}
        wide, middle = "+avx512f" in names, "+avx2" in names
    else:
        try:
            features = llvm.get_host_cpu_features() if numba.config.ENABLE_AVX else {}
        except RuntimeError:  # llvmlite cannot tell; Numba then compiles for what every such processor has
            features = {}
        wide, middle = features.get("avx512f", False), features.get("avx2", False)
    return 512 if wide else 256 if middle else 128


class _Shape(NamedTuple):
    """Register blocking: a panel is `vectors` registers wide."""

    vectors: int
    affine_rows: int
    outer_rows: int
    outer_columns: int


# With 32 registers (AVX-512, and NEON at 128 bits) 24 accumulators; with the 16 of AVX2, 12. NEON's loads of pairs want
# more registers for the dot product, which gets 16. x86 without AVX2 spills, and is right all the same.
BITS = _vector_bits()
_SHAPE = _Shape(2, 6, 3, 4) if BITS == 256 else _Shape(4, 6, 2 if BITS == 128 else 3, 8)
VECTORS = _SHAPE.vectors
_AFFINE_ROWS, _OUTER_ROWS, _OUTER_COLUMNS = _SHAPE.affine_rows, _SHAPE.outer_rows, _SHAPE.outer_columns
_DEPTH = 128  # columns of W a pass: DEPTH x LANES numbers of x stay in the first-level cache


def lanes(dtype: Any) -> int:
    """Return how many examples of `dtype` ride in one panel."""
    return _SHAPE.vectors * BITS // (8 * np.dtype(dtype).itemsize)


# Emitting vectors ----------------------------------------------------------------------------------------------


class Emitter:
    """LLVM instructions on vectors of one element type."""

    def __init__(self, builder, element):
        self.builder = builder
        self.element = element
        self.bytes = 8 if isinstance(element, ir.DoubleType) else 4
        self.width = BITS // (8 * self.bytes)
        self.type = ir.VectorType(element, self.width)

    def offset(self, pointer, n):
        """Return the address n elements further on."""
        return self.builder.gep(pointer, [n if isinstance(n, ir.Value) else ir.Constant(_I64, n)])

    def load(self, pointer, type_=None):
        """Load a register, or what the type says."""
        type_ = self.type if type_ is None else type_
        instruction = self.builder.load(self.builder.bitcast(pointer, type_.as_pointer()))
        instruction.align = self.bytes
        return instruction

    def store(self, value, pointer):
        """Store a register."""
        instruction = self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer()))
        instruction.align = self.bytes

    def splat(self, scalar):
        """Return a register with the number in each lane."""
        undefined = ir.Constant(self.type, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
        return self.builder.shuffle_vector(first, undefined, vector_mask([0] * self.width))

    def fma(self, a, b, c):
        """Emit a * b + c, fused where the host can (fmuladd never calls a slow library function)."""
        kind = "f64" if isinstance(a.type.element, ir.DoubleType) else "f32"
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(a.type, [a.type] * 3),
            f"llvm.fmuladd.v{a.type.count}{kind}",
        )
        return self.builder.call(function, [a, b, c])

    def prefetch(self, pointer):
        """Ask for the cache line at an address, to be written soon."""
        byte = ir.IntType(8).as_pointer()
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32]), "llvm.prefetch.p0"
        )
        write, keep, data = (ir.Constant(_I32, n) for n in (1, 3, 1))
        self.builder.call(function, [self.builder.bitcast(pointer, byte), write, keep, data])

    def fold(self, vectors):
        """Sum each vector's lanes; return vectors whose lanes, one after another, are those sums.

        A shuffle tree: at each level pairs of vectors become one that carries both, in groups half as long.
        """
        group = vectors[0].type.count
        while group > 1:
            pairs = len(vectors) > 1
            folded = []
            for a, b in zip(vectors[0::2], vectors[1::2], strict=True) if pairs else [(vectors[0], vectors[0])]:
                n = a.type.count * (2 if pairs else 1)
                low = [i for i in range(n) if i % group < group // 2]
                high = [i for i in range(n) if i % group >= group // 2]
                folded.append(
                    self.builder.fadd(
                        self.builder.shuffle_vector(a, b, vector_mask(low)),
                        self.builder.shuffle_vector(a, b, vector_mask(high)),
                    )
                )
            vectors, group = folded, group // 2
        return vectors


def mask_of_zip(width, half):
    """Lanes of two vectors taken in turn: the first or the second half of the result."""
    return [half * width // 2 + i // 2 + width * (i % 2) for i in range(width)]


def vector_mask(indices):
    """Return the constant that a shuffle picks lanes by."""
    return ir.Constant(ir.VectorType(_I32, len(indices)), indices)


def _loop(builder, count, initial, step):
    """Emit ``for i in range(count)`` over carried values: ``carried = step(i, carried)``; return the last."""
    before = builder.block
    head, body, done = (builder.append_basic_block(name) for name in ("head", "body", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    i = builder.phi(_I64)
    i.add_incoming(ir.Constant(_I64, 0), before)
    carried = []
    for value in initial:
        phi = builder.phi(value.type)
        phi.add_incoming(value, before)
        carried.append(phi)
    builder.cbranch(builder.icmp_signed("<", i, count), body, done)
    builder.position_at_end(body)
    updated = step(i, carried)
    i.add_incoming(builder.add(i, ir.Constant(_I64, 1)), builder.block)
    for phi, value in zip(carried, updated, strict=True):
        phi.add_incoming(value, builder.block)
    builder.branch(head)
    builder.position_at_end(done)
    return carried


# The broadcast product -----------------------------------------------------------------------------------------


def _make_affine_block(rows, n_vectors):
    """Emit `rows` rows of `affine` over one panel of `n_vectors` registers and one stretch of columns."""

    @intrinsic
    def block(typingctx, depth, resume, W, row_stride, column_stride, bias, u, x, z):
        signature = types.void(types.intp, types.intp, W, types.intp, types.intp, bias, u, x, z)

        def codegen(context, builder, signature, arguments):
            depth, resume, W, row_stride, column_stride, bias, u, x, z = arguments
            v = Emitter(builder, context.get_value_type(signature.args[2].dtype))
            panel = n_vectors * v.width
            cells = [(j, i) for j in range(rows) for i in range(n_vectors)]
            places = [v.offset(z, j * panel + i * v.width) for j, i in cells]

            # The accumulators start at bias[j] u[t], or, for a later stretch of columns, where they stopped.
            fresh, stored, start = (builder.append_basic_block(name) for name in ("fresh", "stored", "start"))
            builder.cbranch(builder.icmp_signed("!=", resume, ir.Constant(_I64, 0)), stored, fresh)
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

            row_starts = [v.offset(W, builder.mul(row_stride, ir.Constant(_I64, j))) for j in range(rows)]

            def step(k, accumulators):
                x_k = v.offset(x, builder.mul(k, ir.Constant(_I64, panel)))
                xs = [v.load(v.offset(x_k, i * v.width)) for i in range(n_vectors)]
                column = builder.mul(k, column_stride)
                ws = [v.splat(builder.load(v.offset(start, column))) for start in row_starts]
                return [v.fma(ws[j], xs[i], c) for (j, i), c in zip(cells, accumulators, strict=True)]

            for value, place in zip(_loop(builder, depth, initial, step), places, strict=True):
                v.store(value, place)
            return context.get_dummy_value()

        return signature, codegen

    return block


def _make_affine(n_vectors, onto=0):
    """Make `affine` for panels of `n_vectors` registers; `onto`: add to what z holds, bias and u are not read."""
    block1, block2, block3, block4, block5, block6 = (_make_affine_block(n, n_vectors) for n in range(1, 7))

    def affine(W, row_stride, column_stride, rows, columns, bias, u, u_panel, x, z, panels, n_lanes):
        """z[p, j, t] = bias[j] u[p, t] + sum_k W[j, k] x[p, k, t], W[j, k] at W[j row_stride + k column_stride].

        W: pointer; bias: (rows,); u: panels u_panel apart (0 repeats one); x: (panels, columns, LANES);
        z: (panels, rows, LANES). Rows are shared out evenly over blocks, so that none is left thin.
        """
        blocks = (rows + _AFFINE_ROWS - 1) // _AFFINE_ROWS
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
                    b_j = shift(bias, j)
                    z_j = shift(z, (p * rows + j) * n_lanes)
                    size = end - j
                    if size == 6:
                        block6(depth, k + onto, W_jk, row_stride, column_stride, b_j, u_p, x_k, z_j)
                    elif size == 5:
                        block5(depth, k + onto, W_jk, row_stride, column_stride, b_j, u_p, x_k, z_j)
                    elif size == 4:
                        block4(depth, k + onto, W_jk, row_stride, column_stride, b_j, u_p, x_k, z_j)
                    elif size == 3:
                        block3(depth, k + onto, W_jk, row_stride, column_stride, b_j, u_p, x_k, z_j)
                    elif size == 2:
                        block2(depth, k + onto, W_jk, row_stride, column_stride, b_j, u_p, x_k, z_j)
                    else:
                        block1(depth, k + onto, W_jk, row_stride, column_stride, b_j, u_p, x_k, z_j)
                    j = end
                k += depth
                if k >= columns:
                    break

    # Symbols are made of names and of a number that counts up anew in each process. Variants under one name, kept on
    # disk by different processes, would be taken for one another.
    affine.__name__ = affine.__qualname__ = f"affine_{n_vectors}_{onto}"
    return kernel(affine)


affine = _make_affine(VECTORS)
affine_narrow = _make_affine(1)  # for no more examples than a register has lanes; n_lanes is the register's
_affine_onto = _make_affine(VECTORS, onto=1)


@kernel
def affine_onto(W, row_stride, column_stride, rows, columns, x, z, panels, n_lanes):
    """z[p, j, t] += sum_k W[j, k] x[p, k, t], otherwise as `affine`."""
    _affine_onto(W, row_stride, column_stride, rows, columns, W, W, 0, x, z, panels, n_lanes)


# The dot product -----------------------------------------------------------------------------------------------


def _make_outer_block(rows, columns, *, wide=False):
    """Emit rows x columns sums over all panels; `wide` sums in float64 whatever the operands are."""

    @intrinsic
    def block(typingctx, panels, d, d_panel, x, x_panel, g, g_stride):
        signature = types.void(types.intp, d, types.intp, x, types.intp, g, types.intp)

        def codegen(context, builder, signature, arguments):
            panels, d, d_panel, x, x_panel, g, g_stride = arguments
            v = Emitter(builder, context.get_value_type(signature.args[1].dtype))
            panel = _SHAPE.vectors * v.width
            total = ir.VectorType(ir.DoubleType(), v.width) if wide else v.type

            def load(pointer):
                vector = v.load(pointer)
                return builder.fpext(vector, total) if total != v.type else vector

            def step(p, accumulators):
                d_p = v.offset(d, builder.mul(p, d_panel))
                x_p = v.offset(x, builder.mul(p, x_panel))
                sums = list(accumulators)
                for i in range(_SHAPE.vectors):
                    ds = [load(v.offset(d_p, j * panel + i * v.width)) for j in range(rows)]
                    for k in range(columns):  # one x at a time: 3 x 8 sums, 3 d and 1 x fit 32 registers
                        x_k = load(v.offset(x_p, k * panel + i * v.width))
                        for j in range(rows):
                            sums[j * columns + k] = v.fma(ds[j], x_k, sums[j * columns + k])
                return sums

            # The sums are wanted only after the loop, so that memory has its time to fetch them; consecutive rows lie
            # pages apart, which no hardware foresees.
            places = [v.offset(g, builder.mul(g_stride, ir.Constant(_I64, j))) for j in range(rows)]
            for place in places:
                v.prefetch(place)
            zero = ir.Constant(total, [0.0] * v.width)
            sums = _loop(builder, panels, [zero] * (rows * columns), step)
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
    j = 0
    while j < rows:
        a_j = shift(a, j * n_lanes)
        if rows - j >= 4:
            _sums4(panels, a_j, rows * n_lanes, u, n_lanes, shift(sums, j), 1)
            j += 4
        else:
            _sums1(panels, a_j, rows * n_lanes, u, n_lanes, shift(sums, j), 1)
            j += 1
