"""From a user's scalar functions to tile functions with an address, which the engine calls without being recompiled.

Numba cannot cache a kernel that takes a Python-defined function. So scalar functions are inlined into loops over a
whole tile, compiled to C functions, and the engine, compiled once a dtype, gets their addresses: one call a layer and
tile.
Three kinds of tile function exist, over `panels` panels of `rows` x LANES numbers:

    forward(z, a, a, rows, panels)            a = f(z); z and a may be the same memory
    pullback(z, a, g, rows, panels)           g <- J_f^T g in place, for elementwise f: g f'(z)
    output(z, a, y, delta, rows, panels)      delta <- weight dloss/dz; returns the weighted loss

On entry to `output`, delta holds each element's weight: one tile that carries sample weights, and zeros for lanes
without an example. Elements of weight 0 are deselected, not multiplied, so nothing they hold can spread.
"""

from __future__ import annotations

import dis
import types as python_types
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, types
from numba.core.ccallback import CFunc

from mlpkit.kernels import simd
from mlpkit.kernels.jit import ELEMENTWISE, REDUCTION, inline, kernel, tile_function
from mlpkit.kernels.simd import choose

__all__ = ["forward_tile", "output_tile", "pullback_tile", "reads_argument", "specialise"]


def reads_argument(function: Callable[..., Any], position: int) -> bool:
    """Say whether a Python function ever reads its argument at `position`.

    Examples
    --------
    >>> reads_argument(lambda z, a: a * (1.0 - a), 0)
    False
    """
    name = function.__code__.co_varnames[position]
    for instruction in dis.get_instructions(function):
        names = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
        if instruction.opname.startswith("LOAD") and name in names:
            return True
    return name in function.__code__.co_cellvars


def specialise(function: Callable[..., Any], dtype: np.dtype[Any]) -> Any:
    """Compile a scalar function for `dtype`: its float literals and captured floats take that dtype.

    A Python literal is a double; beside a float32 it would make the whole expression double, at half the speed.
    """
    if dtype == np.float32:
        code = function.__code__
        constants = tuple(np.float32(c) if type(c) is float else c for c in code.co_consts)
        cells = function.__closure__
        if cells is not None:
            values = (cell.cell_contents for cell in cells)
            cells = tuple(python_types.CellType(np.float32(v) if type(v) is float else v) for v in values)
        function = python_types.FunctionType(
            code.replace(co_consts=constants), function.__globals__, function.__name__, function.__defaults__, cells
        )
    return inline(function)


def forward_tile(plugin: Any, dtype: np.dtype[Any], *, in_place: bool) -> CFunc:
    """Compile a = f(z) over a tile; `in_place` when z and a are the same memory."""
    lanes = simd.lanes(dtype)
    if plugin.coupled:
        body = kernel(fastmath=ELEMENTWISE)(plugin.tile_forward)

        def forward(z, a, unused, rows, panels):
            shape = (panels, rows, lanes)
            body(carray(z, shape), carray(a, shape))

    else:
        f = specialise(plugin.function, dtype)
        if in_place:  # through one pointer, as a compiler that sees two must assume that they overlap

            def forward(z, a, unused, rows, panels):
                n = panels * rows * lanes
                tile = carray(a, (n,))
                for i in range(n):
                    tile[i] = f(tile[i])

        else:

            def forward(z, a, unused, rows, panels):
                n = panels * rows * lanes
                below, above = carray(z, (n,)), carray(a, (n,))
                for i in range(n):
                    above[i] = f(below[i])

    place = "in_place" if in_place and not plugin.coupled else "kept"
    return _compile(forward, "forward", (plugin,), dtype, 3, types.void, ELEMENTWISE, place)


def pullback_tile(plugin: Any, dtype: np.dtype[Any]) -> CFunc:
    """Compile g <- J_f^T g over a tile."""
    lanes = simd.lanes(dtype)
    if plugin.coupled:
        body = kernel(fastmath=ELEMENTWISE)(plugin.tile_pullback)

        def pullback(z, a, g, rows, panels):
            shape = (panels, rows, lanes)
            body(carray(z, shape), carray(a, shape), carray(g, shape))

    else:
        df = specialise(plugin.derivative, dtype)

        def pullback(z, a, g, rows, panels):
            n = panels * rows * lanes
            zs, activations, gradients = carray(z, (n,)), carray(a, (n,)), carray(g, (n,))
            for i in range(n):
                gradients[i] *= df(zs[i], activations[i])

    return _compile(pullback, "pullback", (plugin,), dtype, 3, types.void, ELEMENTWISE)


def output_tile(loss: Any, plugin: Any, dtype: np.dtype[Any]) -> CFunc:
    """Compile the weighted loss and its derivative in z, for this loss on this output activation."""
    lanes = simd.lanes(dtype)
    fused = loss.fused.get(plugin)
    if fused is not None:
        body = kernel(fastmath=ELEMENTWISE)(fused)

        def output(z, a, y, delta, rows, panels):
            shape = (panels, rows, lanes)
            return body(carray(z, shape), carray(a, shape), carray(y, shape), carray(delta, shape))

    else:
        value = specialise(loss.function, dtype)
        slope = specialise(loss.derivative, dtype)
        if plugin.coupled:  # the whole Jacobian follows below, in place of a factor f'(z)
            couple = kernel(fastmath=ELEMENTWISE)(plugin.tile_pullback)
            df = specialise(lambda z, a: 1.0, dtype)
        else:
            couple = kernel(_nothing)
            df = specialise(plugin.derivative, dtype)
        zero = dtype.type(0)

        def output(z, a, y, delta, rows, panels):
            n = panels * rows * lanes
            zs, activations, targets, deltas = carray(z, (n,)), carray(a, (n,)), carray(y, (n,)), carray(delta, (n,))
            total = 0.0
            for i in range(n):
                w = deltas[i]
                used = w != zero
                loss = w * value(activations[i], targets[i])
                gradient = w * (slope(activations[i], targets[i]) * df(zs[i], activations[i]))
                total += np.float64(choose(used, loss, zero))
                deltas[i] = choose(used, gradient, zero)
            shape = (panels, rows, lanes)
            couple(carray(z, shape), carray(a, shape), carray(delta, shape))
            return total

    return _compile(output, "output", (loss, plugin), dtype, 4, types.float64, REDUCTION)


def _nothing(z, a, g):
    """Stand in for the pullback of a coupled activation where f'(z) has been applied already."""


def _compile(
    function: Callable[..., Any],
    kind: str,
    plugins: tuple[Any, ...],
    dtype: np.dtype[Any],
    n_pointers: int,
    result: Any,
    fastmath: frozenset[str],
    variant: str = "",
) -> CFunc:
    """Compile one tile function under a name of its own; only built-ins are kept on disk."""
    element = types.float64 if dtype == np.float64 else types.float32
    signature = result(*([types.CPointer(element)] * n_pointers), types.intp, types.intp)
    builtin = all(plugin.builtin for plugin in plugins)
    names = [plugin.name if plugin.builtin else f"{plugin.name}_{id(plugin):x}" for plugin in plugins]
    name = "_".join(["tile", kind, *names, dtype.name, variant]).rstrip("_")
    return tile_function(function, signature, name, fastmath=fastmath, cached=builtin)
