"""Typed addresses: arithmetic on them, calls through them, and a counter that threads share.

Panels and sections of memory have shapes that only the plan knows, so kernels work on addresses rather than arrays.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = [
    "at",
    "call_curvature",
    "call_elementwise",
    "call_losses",
    "call_output",
    "call_output_curvature",
    "call_penalty",
    "choose",
    "claim",
    "pointer",
    "shift",
]


@intrinsic
def at(typingctx, array, index):
    """Return the address of array[index] in a contiguous array, typed by its elements."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.gep(data, [arguments[1]])

    return types.CPointer(array.dtype)(array, types.intp), codegen


@intrinsic
def shift(typingctx, pointer, n):
    """Return the address n elements further on."""
    return pointer(pointer, types.intp), lambda context, builder, signature, arguments: builder.gep(
        arguments[0], [arguments[1]]
    )


@intrinsic
def pointer(typingctx, address, like):
    """Return a number as an address, typed by the elements of the array `like`.

    Arrays that Python code passes in come as numbers: Numba would compile anew for one that is read-only.
    """

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.intp, like), codegen


@intrinsic
def choose(typingctx, condition, a, b):
    """Return a if condition else b, without a branch: both are computed, and loops around it stay vectorisable."""
    return a(types.boolean, a, a), lambda context, builder, signature, arguments: builder.select(*arguments)


@intrinsic
def claim(typingctx, counter):
    """Atomically take the next number from a counter (an int64 array): threads share work by it."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), codegen


def _caller(result, n_pointers, n_sizes):
    """Make an intrinsic body that calls the C function at an address with pointers and sizes."""

    def body(address, *arguments):
        signature = result(types.intp, *arguments[:n_pointers], *([types.intp] * n_sizes))

        def codegen(context, builder, signature, values):
            function_type = ir.FunctionType(
                context.get_value_type(result) if result != types.void else ir.VoidType(),
                [value.type for value in values[1:]],
            )
            answer = builder.call(builder.inttoptr(values[0], function_type.as_pointer()), values[1:])
            return context.get_dummy_value() if result == types.void else answer

        return signature, codegen

    return body


@intrinsic
def call_elementwise(typingctx, address, z, a, g, rows, panels, lanes):
    """Call an activation's tile function: void(z, a, g, rows, panels, lanes)."""
    return _caller(types.void, 3, 3)(address, z, a, g, rows, panels, lanes)


@intrinsic
def call_output(typingctx, address, z, a, y, delta, rows, panels, lanes):
    """Call a loss's tile function: float64(z, a, y, delta, rows, panels, lanes)."""
    return _caller(types.float64, 4, 3)(address, z, a, y, delta, rows, panels, lanes)


@intrinsic
def call_losses(typingctx, address, z, a, y, delta, losses, rows, panels, lanes):
    """Call a loss's tile function for each example: void(z, a, y, delta, losses, rows, panels, lanes)."""
    return _caller(types.void, 5, 3)(address, z, a, y, delta, losses, rows, panels, lanes)


@intrinsic
def call_curvature(typingctx, address, z, a, rz, ra, g, rg, rows, panels, lanes):
    """Call an activation's tile function: void(z, a, rz, ra, g, rg, rows, panels, lanes)."""
    return _caller(types.void, 6, 3)(address, z, a, rz, ra, g, rg, rows, panels, lanes)


@intrinsic
def call_output_curvature(typingctx, address, z, a, y, rz, ra, delta, rdelta, rows, panels, lanes):
    """Call a loss's tile function: void(z, a, y, rz, ra, delta, rdelta, rows, panels, lanes)."""
    return _caller(types.void, 7, 3)(address, z, a, y, rz, ra, delta, rdelta, rows, panels, lanes)


@intrinsic
def call_penalty(typingctx, address, mean, order):
    """Call a penalty on mean activations: float64(mean, order), its value for order 0 and its derivative for 1."""

    def codegen(context, builder, signature, values):
        function_type = ir.FunctionType(ir.DoubleType(), [ir.DoubleType(), ir.IntType(64)])
        return builder.call(builder.inttoptr(values[0], function_type.as_pointer()), values[1:])

    return types.float64(types.intp, types.float64, types.int64), codegen
