"""From a user's scalar functions to tile functions with an address, which the engine calls without being recompiled.

Numba cannot cache a kernel that takes a Python-defined function. So scalar functions are inlined into loops over a
whole tile, compiled to C functions, and the engine, compiled once a dtype, gets their addresses: one call a layer and
tile. Over `panels` panels of `rows` x LANES numbers there are

    forward(z, a, a, rows, panels, lanes)     a = f(z); z and a may be the same memory
    pullback(z, a, g, rows, panels, lanes)           g <- J^T g in place, for elementwise f: g f'(z)
    output(z, a, y, delta, rows, panels, lanes)      delta <- weight dloss/dz; returns the weighted loss
    example_losses(z, a, y, delta, loss, rows, panels, lanes)
                                              the same, with the loss of each lane (panels, LANES) in place of their sum

and, for the derivative R{} along a direction in parameter space (Pearlmutter, 1994),

    tangent(z, a, d, rows, panels, lanes)            d <- J d in place: R{a} from R{z}
    curvature(z, a, rz, ra, g, rg, rows, panels, lanes)
                                              g <- J^T g and rg <- R{J^T g}, elementwise f' rg + f'' rz g
    output_curvature(z, a, y, rz, ra, delta, rdelta, rows, panels, lanes)
                                              delta as from `output`, and R{delta}

On entry to the output functions, delta holds each element's weight: one tile that carries sample weights and masks,
and zeros for lanes without an example. Elements of weight 0 are deselected, not multiplied, so nothing they hold can
spread.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, types
from numba.core.ccallback import CFunc

from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels.functions import compile_body
from mlpkit.kernels.jit import ELEMENTWISE, REDUCTION, inline, kernel, tile_function
from mlpkit.kernels.pointers import choose

__all__ = [
    "curvature_tile",
    "example_losses_tile",
    "forward_tile",
    "output_curvature_tile",
    "output_tile",
    "pullback_tile",
    "tangent_tile",
]


# Activations ---------------------------------------------------------------------------------------------------


def forward_tile(plugin: Any, dtype: np.dtype[Any], *, in_place: bool) -> CFunc:
    """Compile a = f(z) over a tile; `in_place` when z and a are the same memory."""
    if plugin.coupled:
        body = compile_body(plugin, plugin.tile_forward, "tile_forward", "tt", dtype)
        if in_place and not plugin.builtin:  # a user's body may read z after it has written a

            def forward(z, a, unused, rows, panels, lanes):
                shape = (panels, rows, lanes)
                body(carray(z, shape).copy(), carray(a, shape))

        else:

            def forward(z, a, unused, rows, panels, lanes):
                shape = (panels, rows, lanes)
                body(carray(z, shape), carray(a, shape))

    else:
        f = plugin.scalar.value(dtype)
        if in_place:  # through one pointer, as a compiler that sees two must assume that they overlap

            def forward(z, a, unused, rows, panels, lanes):
                n = panels * rows * lanes
                tile = carray(a, (n,))
                for i in range(n):
                    tile[i] = f(tile[i], tile[i], tile[i])

        else:

            def forward(z, a, unused, rows, panels, lanes):
                n = panels * rows * lanes
                below, above = carray(z, (n,)), carray(a, (n,))
                for i in range(n):
                    above[i] = f(below[i], below[i], below[i])

    place = "in_place" if in_place and not (plugin.coupled and plugin.builtin) else "kept"
    return _compile(forward, "forward", (plugin,), dtype, 3, variant=place)


def pullback_tile(plugin: Any, dtype: np.dtype[Any]) -> CFunc:
    """Compile g <- J^T g over a tile."""
    if plugin.coupled:
        return _in_place(plugin, "tile_pullback", "pullback", dtype)
    df = plugin.scalar.slope(dtype)

    def pullback(z, a, g, rows, panels, lanes):
        n = panels * rows * lanes
        zs, activations, gradients = carray(z, (n,)), carray(a, (n,)), carray(g, (n,))
        for i in range(n):
            gradients[i] *= df(zs[i], activations[i], zs[i])

    return _compile(pullback, "pullback", (plugin,), dtype, 3)


def tangent_tile(plugin: Any, dtype: np.dtype[Any]) -> CFunc:
    """Compile d <- J d over a tile of an activation that couples units; for others it is the pullback."""
    _require(plugin, "tile_tangent")
    return _in_place(plugin, "tile_tangent", "tangent", dtype)


def _in_place(plugin: Any, role: str, kind: str, dtype: np.dtype[Any]) -> CFunc:
    """Compile a body that turns its third tile."""
    body = compile_body(plugin, getattr(plugin, role), role, "ttt", dtype)

    def turn(z, a, d, rows, panels, lanes):
        shape = (panels, rows, lanes)
        body(carray(z, shape), carray(a, shape), carray(d, shape))

    return _compile(turn, kind, (plugin,), dtype, 3)


def curvature_tile(plugin: Any, dtype: np.dtype[Any]) -> CFunc:
    """Compile g <- J^T g and rg <- R{J^T g} over a tile."""
    if plugin.coupled:
        _require(plugin, "tile_curvature")
        body = compile_body(plugin, plugin.tile_curvature, "tile_curvature", "tttttt", dtype)

        def curvature(z, a, rz, ra, g, rg, rows, panels, lanes):
            shape = (panels, rows, lanes)
            body(
                carray(z, shape), carray(a, shape), carray(rz, shape), carray(ra, shape), carray(g, shape),
                carray(rg, shape),
            )  # fmt: skip

    else:
        df, d2f = plugin.scalar.slope(dtype), plugin.scalar.curvature(dtype)

        def curvature(z, a, rz, ra, g, rg, rows, panels, lanes):
            n = panels * rows * lanes
            zs, activations, rates = carray(z, (n,)), carray(a, (n,)), carray(rz, (n,))
            gradients, gradient_rates = carray(g, (n,)), carray(rg, (n,))
            for i in range(n):
                slope, gradient = df(zs[i], activations[i], zs[i]), gradients[i]
                bend = d2f(zs[i], activations[i], zs[i]) * rates[i] * gradient
                gradient_rates[i] = slope * gradient_rates[i] + bend
                gradients[i] = slope * gradient

    return _compile(curvature, "curvature", (plugin,), dtype, 6)


def _require(plugin: Any, role: str) -> None:
    if getattr(plugin, role) is None:
        raise InvalidArgumentError(
            f"second derivatives need tile_tangent and tile_curvature of {plugin.name!r}, which couples the units of a "
            f"layer; {role} is missing"
        )


# Losses --------------------------------------------------------------------------------------------------------


def _scalar_pair(loss: Any, plugin: Any, dtype: np.dtype[Any]) -> tuple[Any, Any] | None:
    """Return the loss and its derivative in z as functions of (z, a, y), if this pair is computed number by number.

    With an activation that couples units the derivative is that in a, and the pullback follows.
    """
    fused = loss.fused.get(plugin)
    if fused is not None:
        if fused.scalar is None:
            return None
        value, slope = fused.scalar.value(dtype), fused.scalar.slope(dtype)
        return inline(lambda z, a, y: value(z, a, y)), inline(lambda z, a, y: slope(z, a, y))
    value, slope = loss.scalar.value(dtype), loss.scalar.slope(dtype)
    if plugin.coupled:
        return inline(lambda z, a, y: value(a, a, y)), inline(lambda z, a, y: slope(a, a, y))
    df = plugin.scalar.slope(dtype)
    return inline(lambda z, a, y: value(a, a, y)), inline(lambda z, a, y: slope(a, a, y) * df(z, a, z))


def _couple(plugin: Any, dtype: np.dtype[Any]) -> Any:
    """Return the pullback to apply to a whole tile after derivatives in a: of activations that couple units."""
    if plugin.coupled:
        return compile_body(plugin, plugin.tile_pullback, "tile_pullback", "ttt", dtype)
    return kernel(_nothing)


def _nothing(z, a, g):
    """Stand in for the pullback of a coupled activation where f'(z) has been applied already."""


def output_tile(loss: Any, plugin: Any, dtype: np.dtype[Any]) -> CFunc:
    """Compile the weighted loss and its derivative in z, for this loss on this output activation."""
    pair = _scalar_pair(loss, plugin, dtype)
    if pair is None:
        body = compile_body(loss, loss.fused[plugin].tile_output, f"fused[{plugin.name}]", "ttttl", dtype)

        def output(z, a, y, delta, rows, panels, lanes):
            shape = (panels, rows, lanes)
            losses = np.empty((panels, lanes), np.float64)
            body(carray(z, shape), carray(a, shape), carray(y, shape), carray(delta, shape), losses)
            total = 0.0
            for p in range(panels):
                for t in range(lanes):
                    total += losses[p, t]
            return total

    else:
        value, slope = pair
        couple = _couple(plugin, dtype)
        zero = dtype.type(0)

        def output(z, a, y, delta, rows, panels, lanes):
            n = panels * rows * lanes
            zs, activations, targets, deltas = carray(z, (n,)), carray(a, (n,)), carray(y, (n,)), carray(delta, (n,))
            total = 0.0
            for i in range(n):
                w = deltas[i]
                used = w != zero
                loss = w * value(zs[i], activations[i], targets[i])
                gradient = w * slope(zs[i], activations[i], targets[i])
                total += np.float64(choose(used, loss, zero))
                deltas[i] = choose(used, gradient, zero)
            shape = (panels, rows, lanes)
            couple(carray(z, shape), carray(a, shape), carray(delta, shape))
            return total

    return _compile(output, "output", (loss, plugin), dtype, 4, types.float64, REDUCTION)


def example_losses_tile(loss: Any, plugin: Any, dtype: np.dtype[Any]) -> CFunc:
    """Compile the weighted loss of each example, and its derivative in z."""
    pair = _scalar_pair(loss, plugin, dtype)
    if pair is None:
        body = compile_body(loss, loss.fused[plugin].tile_output, f"fused[{plugin.name}]", "ttttl", dtype)

        def example_losses(z, a, y, delta, loss, rows, panels, lanes):
            shape = (panels, rows, lanes)
            losses = carray(loss, (panels, lanes))
            body(carray(z, shape), carray(a, shape), carray(y, shape), carray(delta, shape), losses)

    else:
        value, slope = pair
        couple = _couple(plugin, dtype)
        zero = dtype.type(0)

        def example_losses(z, a, y, delta, loss, rows, panels, lanes):
            shape = (panels, rows, lanes)
            zs, activations, targets, deltas = (
                carray(z, shape),
                carray(a, shape),
                carray(y, shape),
                carray(delta, shape),
            )
            losses = carray(loss, (panels, lanes))
            for p in range(panels):
                for t in range(lanes):
                    losses[p, t] = 0
                for j in range(rows):
                    for t in range(lanes):
                        w = deltas[p, j, t]
                        used = w != zero
                        found = w * value(zs[p, j, t], activations[p, j, t], targets[p, j, t])
                        gradient = w * slope(zs[p, j, t], activations[p, j, t], targets[p, j, t])
                        losses[p, t] += np.float64(choose(used, found, zero))
                        deltas[p, j, t] = choose(used, gradient, zero)
            couple(zs, activations, deltas)

    return _compile(example_losses, "losses", (loss, plugin), dtype, 4, wide=1)


def output_curvature_tile(loss: Any, plugin: Any, dtype: np.dtype[Any]) -> CFunc:
    """Compile the derivative of the weighted loss in z, and its own derivative along the direction of rz."""
    pair = _scalar_pair(loss, plugin, dtype)
    zero = dtype.type(0)
    fused = loss.fused.get(plugin)
    if pair is None:
        if fused.tile_curvature is None:
            raise InvalidArgumentError(
                f"second derivatives need tile_curvature of fused[{plugin.name!r}] of {loss.name!r}, which is missing"
            )
        role = f"fused[{plugin.name}]"
        body = compile_body(loss, fused.tile_output, role, "ttttl", dtype)
        bend = compile_body(loss, fused.tile_curvature, f"{role} curvature", "ttttttt", dtype)

        def output_curvature(z, a, y, rz, ra, delta, rdelta, rows, panels, lanes):
            shape = (panels, rows, lanes)
            zs, activations, targets, deltas = (
                carray(z, shape),
                carray(a, shape),
                carray(y, shape),
                carray(delta, shape),
            )
            bend(zs, activations, targets, carray(rz, shape), carray(ra, shape), deltas, carray(rdelta, shape))
            body(zs, activations, targets, deltas, np.empty((panels, lanes), np.float64))

    elif plugin.coupled and fused is None:  # in a first, then through the activation as a whole
        _require(plugin, "tile_curvature")
        slope, second = loss.scalar.slope(dtype), loss.scalar.curvature(dtype)
        through = compile_body(plugin, plugin.tile_curvature, "tile_curvature", "tttttt", dtype)

        def output_curvature(z, a, y, rz, ra, delta, rdelta, rows, panels, lanes):
            n = panels * rows * lanes
            activations, targets, rates = carray(a, (n,)), carray(y, (n,)), carray(ra, (n,))
            deltas, delta_rates = carray(delta, (n,)), carray(rdelta, (n,))
            for i in range(n):
                w = deltas[i]
                used = w != zero
                gradient = w * slope(activations[i], activations[i], targets[i])
                rate = w * second(activations[i], activations[i], targets[i]) * rates[i]
                deltas[i] = choose(used, gradient, zero)
                delta_rates[i] = choose(used, rate, zero)
            shape = (panels, rows, lanes)
            through(
                carray(z, shape), carray(a, shape), carray(rz, shape), carray(ra, shape), carray(delta, shape),
                carray(rdelta, shape),
            )  # fmt: skip

    else:
        slope = pair[1]
        second = _second_in_z(loss, plugin, dtype)

        def output_curvature(z, a, y, rz, ra, delta, rdelta, rows, panels, lanes):
            n = panels * rows * lanes
            zs, activations, targets, rates = carray(z, (n,)), carray(a, (n,)), carray(y, (n,)), carray(rz, (n,))
            deltas, delta_rates = carray(delta, (n,)), carray(rdelta, (n,))
            for i in range(n):
                w = deltas[i]
                used = w != zero
                gradient = w * slope(zs[i], activations[i], targets[i])
                rate = w * second(zs[i], activations[i], targets[i]) * rates[i]
                deltas[i] = choose(used, gradient, zero)
                delta_rates[i] = choose(used, rate, zero)

    return _compile(output_curvature, "output_curvature", (loss, plugin), dtype, 7)


def _second_in_z(loss: Any, plugin: Any, dtype: np.dtype[Any]) -> Any:
    """Return the second derivative of an elementwise pair in z: that given for it, or l'' f'^2 + l' f''."""
    fused = loss.fused.get(plugin)
    if fused is not None:
        second = fused.scalar.curvature(dtype)
        return inline(lambda z, a, y: second(z, a, y))
    slope, second = loss.scalar.slope(dtype), loss.scalar.curvature(dtype)
    df, d2f = plugin.scalar.slope(dtype), plugin.scalar.curvature(dtype)

    def in_z(z, a, y):
        rate = df(z, a, z)
        return second(a, a, y) * rate * rate + slope(a, a, y) * d2f(z, a, z)

    return inline(in_z)


# Compiling -----------------------------------------------------------------------------------------------------


def _compile(
    function: Callable[..., Any],
    kind: str,
    plugins: tuple[Any, ...],
    dtype: np.dtype[Any],
    n_tiles: int,
    result: Any = types.void,
    fastmath: frozenset[str] = ELEMENTWISE,
    *,
    wide: int = 0,
    variant: str = "",
) -> CFunc:
    """Compile one tile function under a name of its own; only built-ins are kept on disk.

    n_tiles: pointers to numbers of `dtype`, which come first; wide: pointers to float64 after them.
    """
    element = types.float64 if dtype == np.float64 else types.float32
    pointers = [types.CPointer(element)] * n_tiles + [types.CPointer(types.float64)] * wide
    signature = result(*pointers, types.intp, types.intp, types.intp)
    builtin = all(plugin.builtin for plugin in plugins)
    names = [plugin.name if plugin.builtin else f"{plugin.name}_{id(plugin):x}" for plugin in plugins]
    name = "_".join(["tile", kind, *names, dtype.name, variant]).rstrip("_")
    # Symbols end at a NUL, and linkers read some signs; what is replaced must not make two names one.
    name = re.sub(r"\W", lambda sign: f"_{ord(sign[0]):x}_", name, flags=re.ASCII)
    return tile_function(function, signature, name, fastmath=fastmath, cached=builtin)
