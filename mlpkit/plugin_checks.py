"""Trying out a user's plugin before anything is built on it.

Its functions are compiled, evaluated on a grid, and derivatives that were written down are held against differences of
the function. What fails is refused with the place where it fails, so that a slip in a formula is found as it is typed
and not in a training that goes nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels import simd
from mlpkit.kernels.functions import Scalar, compile_body
from mlpkit.kernels.jit import kernel

__all__ = ["check_bodies", "check_scalar", "grid"]

_DOUBLE = np.dtype(np.float64)
_STEP = 1e-6
_TOLERANCE = 1e-4


def grid(low: float, high: float, n: int = 33) -> NDArray[np.float64]:
    """Return points strictly inside an interval, at most 8 from 0 or from its one end; 0 is among them where it can be.

    Examples
    --------
    >>> grid(0.0, 1.0, 3)
    array([0.001, 0.5  , 0.999])
    >>> grid(-np.inf, np.inf, 3)
    array([-8.,  0.,  8.])
    """
    if np.isinf(low) and np.isinf(high):
        return np.linspace(-8.0, 8.0, n)
    if np.isinf(high):
        return low + np.geomspace(1e-3, 8.0, n)
    if np.isinf(low):
        return high - np.geomspace(1e-3, 8.0, n)
    return low + (high - low) * np.linspace(1e-3, 1.0 - 1e-3, n)


def check_scalar(
    owner: str,
    scalar: Scalar,
    variable: tuple[str, NDArray[np.float64]],
    constants: tuple[str, NDArray[np.float64]] | None = None,
    *,
    given: Sequence[bool] = (False, False),
    companion: Scalar | None = None,
    far: NDArray[np.float64] | None = None,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> None:
    """Refuse a scalar function that gives NaN or infinity, or whose derivative is not its slope.

    Parameters
    ----------
    owner : str
        Whose it is, for errors.
    scalar : Scalar
        The function and its derivatives.
    variable, constants : tuple of str and ndarray
        The name and the grid of the variable, and of the constant argument if there is one.
    given : sequence of bool
        Whether first and second derivative were written down, and so are to be checked.
    companion : Scalar, optional
        The function of the variable that derivatives are written in beside it; the function itself if not given.
    far : ndarray, optional
        Points at which the function may be infinite, but not NaN.
    bounds : tuple of float
        The interval that values must lie in.

    Raises
    ------
    InvalidArgumentError
        Saying where and what.
    """
    name, points = variable
    mesh = np.meshgrid(points, [0.0] if constants is None else constants[1], indexing="ij")
    t, y = (side.ravel() for side in mesh)

    def place(i: int) -> str:
        return f"{name} = {t[i]:g}" + ("" if constants is None else f", {constants[0]} = {y[i]:g}")

    value = _along(scalar.value(_DOUBLE))
    values = value(t, t, y)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise InvalidArgumentError(
            f"function of {owner} must give a finite number for every {name} from {points[0]:g} to {points[-1]:g}; "
            f"found {values[bad[0]]} at {place(bad[0])}"
        )
    if far is not None and np.isnan(far_values := value(far, far, far)).any():
        first = far[np.isnan(far_values)][0]
        raise InvalidArgumentError(
            f"function of {owner} must not give NaN; found it at {name} = {first:g} (for exponentials that do not "
            "overflow there see mlpkit.vmath: expit, tanh, softplus)"
        )
    outside = np.flatnonzero((values < bounds[0]) | (values > bounds[1]))
    if outside.size:
        raise InvalidArgumentError(
            f"range of {owner} must hold all values of its function, [{bounds[0]:g}, {bounds[1]:g}]; found "
            f"{values[outside[0]]:g} at {place(outside[0])}"
        )
    other = value if companion is None else _along(companion.value(_DOUBLE))
    functions = (
        value,
        _along(scalar.slope(_DOUBLE)) if any(given) else None,
        _along(scalar.curvature(_DOUBLE)) if given[1] else None,
    )
    for order, role in ((0, "derivative"), (1, "second_derivative")):
        if given[order]:
            _compare(owner, role, functions[order : order + 2], other, (t, y), place)


def _compare(owner: str, role: str, functions: Any, other: Any, point: Any, place: Any) -> None:
    """Refuse a derivative that lies outside what the one-sided differences on its two sides leave room for."""
    function, slope = functions
    t, y = point
    step = _STEP * np.maximum(1.0, np.abs(t))
    there, right, left = (function(s, other(s, s, y), y) for s in (t, t + step, t - step))
    sides = np.array([(right - there) / step, (there - left) / step])
    found = slope(t, other(t, t, y), y)
    room = _TOLERANCE * (1.0 + np.abs(sides).max(axis=0))
    # At a kink the two sides differ, and anything between them will do.
    wrong = np.flatnonzero(~((found >= sides.min(axis=0) - room) & (found <= sides.max(axis=0) + room)))
    if wrong.size:
        i = wrong[np.argmax(np.abs(found - sides.mean(axis=0))[wrong])] if np.isfinite(found).all() else wrong[0]
        raise InvalidArgumentError(
            f"{role} of {owner} is wrong at {place(i)}: it gives {found[i]:.6g}, where differences give "
            f"{sides[:, i].mean():.6g} (wrong at {wrong.size} of {t.size} points)"
        )


def _along(function: Any) -> Any:
    """Return a compiled scalar function as one of arrays."""

    @kernel(allocates=True)
    def along(t, v, y):
        out = np.empty(t.size)
        for i in range(t.size):
            out[i] = function(t[i], v[i], y[i])
        return out

    return along


def check_bodies(plugin: Any) -> None:
    """Refuse tile bodies that give NaN, or whose pullback is not the transpose of what forward does.

    Raises
    ------
    InvalidArgumentError
        Saying what was expected and what was found.
    """
    forward = compile_body(plugin, plugin.tile_forward, "tile_forward", "tt", _DOUBLE)
    pullback = compile_body(plugin, plugin.tile_pullback, "tile_pullback", "ttt", _DOUBLE)
    rng = np.random.default_rng(0)
    z, direction, g = rng.normal(size=(3, 2, 5, simd.lanes(_DOUBLE)))

    def run(at: NDArray[np.float64]) -> NDArray[np.float64]:
        a = np.empty_like(at)
        forward(at.copy(), a)
        return a

    a = run(z)
    if not np.isfinite(a).all():
        raise InvalidArgumentError(f"tile_forward of {plugin.name!r} must fill its tile with finite numbers; found {a}")
    expected = ((run(z + _STEP * direction) - run(z - _STEP * direction)) / (2 * _STEP) * g).sum()
    pullback(z, a, g)
    found = (g * direction).sum()
    if not abs(found - expected) <= _TOLERANCE * (1.0 + abs(expected)):
        raise InvalidArgumentError(
            f"tile_pullback of {plugin.name!r} must be the transpose of the derivative of tile_forward; along a random "
            f"direction it gives {found:.6g}, where differences give {expected:.6g}"
        )
