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

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, types
from numba.core.ccallback import CFunc

from mlpkit.kernels import simd
from mlpkit.kernels.functions import compile_body, compile_scalar, reads_argument, slow_calls, specialise
from mlpkit.kernels.jit import ELEMENTWISE, REDUCTION, kernel, tile_function
from mlpkit.kernels.pointers import choose

__all__ = ["forward_tile", "output_tile", "pullback_tile", "reads_argument", "slow_calls", "specialise"]


def forward_tile(plugin: Any, dtype: np.dtype[Any], *, in_place: bool) -> CFunc:
    """Compile a = f(z) over a tile; `in_place` when z and a are the same memory."""
    lanes = simd.lanes(dtype)
    if plugin.coupled:
        body = compile_body(plugin, plugin.tile_forward, "tile_forward", 2, dtype)
        if in_place and not plugin.builtin:  # a user's body may read z after it has written a

            def forward(z, a, unused, rows, panels):
                shape = (panels, rows, lanes)
                body(carray(z, shape).copy(), carray(a, shape))

        else:

            def forward(z, a, unused, rows, panels):
                shape = (panels, rows, lanes)
                body(carray(z, shape), carray(a, shape))

    else:
        f = compile_scalar(plugin, "function", 1, dtype)
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

    place = "in_place" if in_place and not (plugin.coupled and plugin.builtin) else "kept"
    return _compile(forward, "forward", (plugin,), dtype, 3, types.void, ELEMENTWISE, place)


def pullback_tile(plugin: Any, dtype: np.dtype[Any]) -> CFunc:
    """Compile g <- J_f^T g over a tile."""
    lanes = simd.lanes(dtype)
    if plugin.coupled:
        body = compile_body(plugin, plugin.tile_pullback, "tile_pullback", 3, dtype)

        def pullback(z, a, g, rows, panels):
            shape = (panels, rows, lanes)
            body(carray(z, shape), carray(a, shape), carray(g, shape))

    else:
        df = compile_scalar(plugin, "derivative", 2, dtype)

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
        body = compile_body(loss, fused, f"fused[{plugin.name}]", 4, dtype, returns=True)

        def output(z, a, y, delta, rows, panels):
            shape = (panels, rows, lanes)
            return body(carray(z, shape), carray(a, shape), carray(y, shape), carray(delta, shape))

    else:
        value = compile_scalar(loss, "function", 2, dtype)
        slope = compile_scalar(loss, "derivative", 2, dtype)
        if plugin.coupled:  # the whole Jacobian follows below, in place of a factor f'(z)
            couple = compile_body(plugin, plugin.tile_pullback, "tile_pullback", 3, dtype)
            df = specialise(lambda z, a: 1.0, dtype)
        else:
            couple = kernel(_nothing)
            df = compile_scalar(plugin, "derivative", 2, dtype)
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
    name = re.sub(r"\W", "_", name, flags=re.ASCII)  # symbols end at a NUL, and linkers read some signs
    return tile_function(function, signature, name, fastmath=fastmath, cached=builtin)
