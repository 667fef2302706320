"""Squares of numbers turned over, from rows of examples to panels and back.

A square is as wide as a register, so its rows are loaded, zipped with one another in registers, and stored as columns.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from mlpkit.kernels.emitter import Emitter, mask_of_zip, vector_mask
from mlpkit.kernels.simd import BATCH_VECTORS

__all__ = ["copy_lanes", "prefetch_lanes", "transpose", "transpose_rows"]

_LINE_BYTES = 64  # of a cache


def _transpose(context, builder, element, rows, target, target_stride):
    """Emit a square of WIDTH x WIDTH numbers, from the addresses of its rows to columns, rows target_stride apart."""
    v = Emitter(builder, context.get_value_type(element))
    vectors = [v.load(row) for row in rows(v)]
    # Each pass zips row i with row i + width / 2: as many passes as bits in an index turn (row, column) around.
    for _ in range(v.width.bit_length() - 1):
        pairs = zip(vectors[: v.width // 2], vectors[v.width // 2 :], strict=True)
        vectors = [builder.shuffle_vector(a, b, vector_mask(mask_of_zip(v.width, h))) for a, b in pairs for h in (0, 1)]
    for i, vector in enumerate(vectors):
        v.store(vector, v.offset(target, builder.mul(target_stride, ir.Constant(ir.IntType(64), i))))
    return context.get_dummy_value()


@intrinsic
def transpose(typingctx, source, source_stride, target, target_stride):
    """Copy a square of WIDTH x WIDTH numbers from rows source_stride apart to columns, rows target_stride apart."""
    signature = types.void(source, types.intp, target, types.intp)

    def codegen(context, builder, signature, arguments):
        source, stride, target, target_stride = arguments

        def rows(v):
            return [v.offset(source, builder.mul(stride, ir.Constant(ir.IntType(64), i))) for i in range(v.width)]

        return _transpose(context, builder, signature.args[0].dtype, rows, target, target_stride)

    return signature, codegen


@intrinsic
def transpose_rows(typingctx, source, numbers, source_stride, target, target_stride):
    """Do the same with rows that lie anywhere: the i-th begins at source + numbers[i] source_stride."""
    signature = types.void(source, numbers, types.intp, target, types.intp)

    def codegen(context, builder, signature, arguments):
        source, numbers, stride, target, target_stride = arguments

        def rows(v):
            each = [builder.load(v.offset(numbers, i)) for i in range(v.width)]
            return [v.offset(source, builder.mul(number, stride)) for number in each]

        return _transpose(context, builder, signature.args[0].dtype, rows, target, target_stride)

    return signature, codegen


@intrinsic
def copy_lanes(typingctx, source, target):
    """Copy as many numbers as a mini-batch's panel has lanes."""

    def codegen(context, builder, signature, arguments):
        source, target = arguments
        v = Emitter(builder, context.get_value_type(signature.args[0].dtype))
        places = [i * v.width for i in range(BATCH_VECTORS)]
        for value, i in zip([v.load(v.offset(source, i)) for i in places], places, strict=True):
            v.store(value, v.offset(target, i))
        return context.get_dummy_value()

    return types.void(source, target), codegen


@intrinsic
def prefetch_lanes(typingctx, source):
    """Ask for as many numbers as a mini-batch's panel has lanes, to be read before long."""

    def codegen(context, builder, signature, arguments):
        v = Emitter(builder, context.get_value_type(signature.args[0].dtype))
        for i in range(0, BATCH_VECTORS * v.width, _LINE_BYTES // v.bytes):
            v.prefetch(v.offset(arguments[0], i))
        return context.get_dummy_value()

    return types.void(source), codegen
