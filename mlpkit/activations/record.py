"""What an activation is: a record of a function and its derivatives, and the table of names.

An activation is a scalar function f(z) in plain Python; the engine compiles it into loops over whole tiles. Its
derivative f'(z, a), with a = f(z), can be written down or is found by dual numbers. Where f' can be written in the
activation a alone, as for sigmoid and tanh, z need not be kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba.core.ccallback import CFunc
from numpy.typing import ArrayLike, NDArray

from mlpkit.checks import check_choice, check_interval
from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels import plugins
from mlpkit.kernels.functions import reads_argument
from mlpkit.plugin_checks import check_bodies, check_scalar, grid
from mlpkit.registry import Family, Plugin, Registry, check_functions, name_of, typed_into_a_session

__all__ = [
    "INITIALIZERS",
    "REGISTRY",
    "Activation",
    "activation",
    "curvature_tile",
    "forward_tile",
    "get",
    "names",
    "pullback_tile",
    "register",
    "tangent_tile",
]

_INFINITY = float("inf")

# How weights can start; `mlpkit.layers` draws them.
INITIALIZERS = ("notes", "uniform", "glorot_uniform", "glorot_normal", "he_uniform", "he_normal")


class Activation(Plugin):
    """An activation function f and its derivatives.

    Parameters
    ----------
    name : str
        What users and model files call it.
    function : callable
        f(z) of one number, in plain Python and `mlpkit.vmath`. It must not raise: NaN says that f is not defined.
    derivative : callable, optional
        f'(z, a) with a = f(z). If it never reads z, the engine does not keep z. Found by dual numbers if not given.
    second_derivative : callable, optional
        f''(z, a), for Hessian products.
    range : tuple of float
        The interval that the outputs lie in; finite on both sides for an activation that can be sparse.
    default_init : str
        How weights below start where a layer does not say; see `mlpkit.Dense`.
    tile_forward, tile_pullback : callable, optional
        For functions that couple the units of a layer, such as softmax: bodies over arrays of shape (panels, rows,
        lanes), a row for each unit and a lane for each example, in place of `function` and `derivative`.
        ``tile_forward(z, a)`` writes a; ``tile_pullback(z, a, g)`` turns g, the derivative of the loss in a, into that
        in z, in place. Indices are not checked.
    tile_tangent, tile_curvature : callable, optional
        What Hessian products need beside them. ``tile_tangent(z, a, d)`` turns a direction d in z into that in a, in
        place; ``tile_curvature(z, a, rz, ra, g, rg)``, where the network moves along a direction in which z and a
        change at the rates rz and ra, turns g as ``tile_pullback`` does, and its rate rg into that of the result.
    builtin : bool
        mlpkit's own only: compiled code is kept on disk, under a fingerprint of mlpkit's sources.
    doc : str, optional
        What it is; the function's docstring by default.

    Examples
    --------
    >>> square = Activation("square", lambda z: z * z, lambda z, a: 2 * z)
    >>> square([0.0, 3.0])
    array([0., 9.])
    >>> square.derivative(3.0, 9.0)
    6.0
    """

    noun = "activation"
    arguments = ("z", "z, a")
    takes = ("t", "tv")

    range: tuple[float, float]
    default_init: str
    tile_forward: Callable[..., Any] | None
    tile_pullback: Callable[..., Any] | None
    tile_tangent: Callable[..., Any] | None
    tile_curvature: Callable[..., Any] | None

    def __init__(
        self,
        name: str,
        function: Callable[..., Any] | None,
        derivative: Callable[..., Any] | None = None,
        second_derivative: Callable[..., Any] | None = None,
        *,
        range: tuple[float, float] = (-_INFINITY, _INFINITY),
        default_init: str = "glorot_uniform",
        tile_forward: Callable[..., Any] | None = None,
        tile_pullback: Callable[..., Any] | None = None,
        tile_tangent: Callable[..., Any] | None = None,
        tile_curvature: Callable[..., Any] | None = None,
        builtin: bool = False,
        doc: str | None = None,
    ) -> None:
        super().__init__(name, function, derivative, second_derivative, builtin=builtin, doc=doc)
        bodies = {
            "tile_forward": tile_forward,
            "tile_pullback": tile_pullback,
            "tile_tangent": tile_tangent,
            "tile_curvature": tile_curvature,
        }
        if (tile_forward is None) != (tile_pullback is None) or (function is None) == (tile_forward is None):
            raise InvalidArgumentError(
                f"activation {name!r} needs either a function (and its derivative), or tile_forward and tile_pullback"
            )
        arguments = ("z, a", "z, a, g", "z, a, d", "z, a, rz, ra, g, rg")
        check_functions(self, **{role: (body, a) for (role, body), a in zip(bodies.items(), arguments, strict=True)})
        check_choice(default_init, "default_init", INITIALIZERS)
        vars(self).update(bodies, range=check_interval(range, "range"), default_init=default_init)

    @property
    def coupled(self) -> bool:
        """Whether a unit's output depends on other units of its layer."""
        return self.tile_forward is not None

    @property
    def reads_z(self) -> bool:
        """Whether the derivative needs z beside a."""
        if self.tile_pullback is not None:
            return reads_argument(self.tile_pullback, 0)
        assert self.scalar is not None
        return self.scalar.reads_variable

    def to_unit(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map mean activations from a bounded range to [0, 1]: the identity for sigmoid, (a + 1) / 2 for tanh."""
        low, high = self.range
        return (mean - low) / (high - low)

    @property
    def unit_slope(self) -> float:
        """The derivative of that map: 1 for sigmoid, 1/2 for tanh."""
        return 1.0 / (self.range[1] - self.range[0])

    def check(self) -> None:
        """Try the functions out: finite, inside the range, and derivatives that are slopes."""
        if self.coupled:
            check_bodies(self)
            return
        scalar = self._scalar()
        assert scalar is not None
        given = [derivative is not None for derivative in self._derivatives]
        far = np.array([-1000.0, -100.0, -30.0, 30.0, 100.0, 1000.0])
        points = grid(-_INFINITY, _INFINITY, 65)
        check_scalar(repr(self.name), scalar, ("z", points), given=given, far=far, bounds=self.range)

    def __call__(self, z: ArrayLike) -> NDArray[Any]:
        """Apply f to each number of an array, in plain Python, for plots; softmax runs along the last axis."""
        values = np.asarray(z)
        if values.dtype.kind != "f":
            values = values.astype(np.float64)
        if self.tile_forward is not None:
            shape = values.shape
            columns = np.ascontiguousarray(values.reshape(-1, shape[-1]).T[np.newaxis])
            out = np.empty_like(columns)
            self.tile_forward(columns, out)
            return out[0].T.reshape(shape)
        assert self.function is not None
        flat = [self.function(float(value)) for value in values.ravel()]
        return np.array(flat, dtype=values.dtype).reshape(values.shape)

    def __reduce__(self) -> Any:
        # What is registered is its own pickle: compiled functions tell plugins apart by identity.
        return (get, (self.name,)) if REGISTRY.knows(self) else super().__reduce__()


# Tile functions, compiled at the first request -----------------------------------------------------------------


@cache
def forward_tile(activation: Activation, dtype: np.dtype[Any], in_place: bool) -> CFunc:
    """Return the compiled forward tile function."""
    return plugins.forward_tile(activation, dtype, in_place=in_place)


@cache
def pullback_tile(activation: Activation, dtype: np.dtype[Any]) -> CFunc:
    """Return the compiled pullback tile function."""
    return plugins.pullback_tile(activation, dtype)


@cache
def tangent_tile(activation: Activation, dtype: np.dtype[Any]) -> CFunc:
    """Return the compiled tile function that takes directions forward."""
    if not activation.coupled or activation.tile_tangent is activation.tile_pullback:  # a symmetric Jacobian
        return pullback_tile(activation, dtype)
    return plugins.tangent_tile(activation, dtype)


@cache
def curvature_tile(activation: Activation, dtype: np.dtype[Any]) -> CFunc:
    """Return the compiled tile function that takes gradients and their rates backward."""
    return plugins.curvature_tile(activation, dtype)


# Names ---------------------------------------------------------------------------------------------------------

REGISTRY = Registry(Activation)


def names() -> list[str]:
    """Return the names of all registered activations.

    Examples
    --------
    >>> names()[:2]
    ['sigmoid', 'tanh']
    """
    return REGISTRY.names()


def register(activation: Activation, *, replace: bool = False) -> Activation:
    """Try an activation out and make it known by its name, so that layer lists and model files can refer to it.

    Parameters
    ----------
    activation : Activation
        What to register.
    replace : bool
        Whether it may take the place of another of its name, as when a notebook's cell runs again. Networks that were
        made with the other keep it. mlpkit's own activations cannot be replaced.

    Raises
    ------
    InvalidArgumentError
        If its name is taken by another activation, or one of its functions does not compile, can raise, gives NaN, or
        is no derivative of the other; the message says where.

    Examples
    --------
    >>> register(Activation("cube", lambda z: z * z * z, lambda z, a: 3.0 * z * z))
    <activation cube>
    """
    return REGISTRY.register(activation, replace=replace)


def get(activation: str | Activation | Family[Activation]) -> Activation:
    """Return an activation by name, or the object itself.

    Raises
    ------
    InvalidArgumentError
        For an unknown name; the message lists those known.

    Examples
    --------
    >>> get("tanh"), get("leaky_relu(0.2)")
    (<activation tanh>, <activation leaky_relu(0.2)>)
    """
    return REGISTRY.resolve(activation)


def activation(
    function: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    derivative: Callable[..., Any] | None = None,
    second_derivative: Callable[..., Any] | None = None,
    range: tuple[float, float] = (-_INFINITY, _INFINITY),
    default_init: str = "glorot_uniform",
    replace: bool | None = None,
) -> Any:
    """Make an activation of a plain Python function and register it; a decorator, also with arguments.

    Parameters
    ----------
    function : callable
        f(z) of one number. Functions of math and NumPy become the faster ones of `mlpkit.vmath` where it has them.
    name : str, optional
        The function's own by default; a lambda has none.
    derivative, second_derivative : callable, optional
        f'(z, a) and f''(z, a), a = f(z); also given later by ``@f.derivative``. Found by dual numbers otherwise.
    range, default_init
        See `Activation`.
    replace : bool, optional
        Whether it may take the place of another of its name; by default if it was typed into a notebook or a shell.

    Raises
    ------
    InvalidArgumentError
        If the functions are not what they should be; see `register`.

    Examples
    --------
    >>> from mlpkit import vmath
    >>> @activation(name="swish2")
    ... def swish2(z):
    ...     return z * vmath.expit(2 * z)
    >>> swish2.derivative(0.0, 0.0)
    0.5
    >>> @swish2.derivative  # in place of the one found by dual numbers
    ... def _(z, a):
    ...     s = vmath.expit(2 * z)
    ...     return s + 2 * a * (1 - s)
    >>> activation(lambda z: z * z * z, name="cube3")
    <activation cube3>
    """

    def decorate(function: Callable[..., Any]) -> Activation:
        plugin = Activation(
            name_of(function, name), function, derivative, second_derivative, range=range, default_init=default_init
        )
        return register(plugin, replace=typed_into_a_session(function) if replace is None else replace)

    return decorate if function is None else decorate(function)
