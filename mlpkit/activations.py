"""Activation functions: what a layer does to its weighted sums, as records that users can add to.

An activation is a scalar function f(z) and its derivative f'(z, a), both plain Python; the engine compiles them into
loops over whole tiles. Where f' can be written in the activation a = f(z) alone, as for sigmoid and tanh, z need not be
kept.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba.core.ccallback import CFunc
from numpy.typing import ArrayLike, NDArray

from mlpkit.checks import check_choice
from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels import plugins, vmath
from mlpkit.kernels.softmax import softmax_forward, softmax_pullback
from mlpkit.registry import Registry, check_functions, check_name

__all__ = ["INITIALIZERS", "Activation", "get", "identity", "names", "register", "relu", "sigmoid", "softmax", "tanh"]

_INFINITY = float("inf")

# How weights can start; `mlpkit.layers` draws them.
INITIALIZERS = ("notes", "uniform", "glorot_uniform", "glorot_normal", "he_uniform", "he_normal")


@dataclass(frozen=True, eq=False)
class Activation:
    """An activation function f and its derivative.

    Parameters
    ----------
    name : str
        What users and model files call it.
    function : callable
        f(z) of one number, in plain Python and `mlpkit.vmath`. It must not raise: NaN says that f is not defined.
    derivative : callable
        f'(z, a) with a = f(z). If it never reads z, the engine does not keep z.
    range : tuple of float
        The interval that the outputs lie in; finite on both sides for an activation that can be sparse.
    default_init : str
        How weights below start where a layer does not say; see `mlpkit.Dense`.
    tile_forward, tile_pullback : callable, optional
        For functions that couple the units of a layer, such as softmax: bodies over arrays of shape (panels, rows,
        lanes), a row for each unit and a lane for each example, in place of `function` and `derivative`.
        ``tile_forward(z, a)`` writes a; ``tile_pullback(z, a, g)`` turns g, the derivative of the loss in a, into that
        in z, in place. Indices are not checked.
    builtin : bool
        mlpkit's own only: compiled code is kept on disk, under a fingerprint of mlpkit's sources.

    Examples
    --------
    >>> sigmoid([0.0, 100.0])
    array([0.5, 1. ])
    >>> sigmoid.derivative(0.0, 0.5)
    0.25
    """

    name: str
    function: Callable[..., Any] | None
    derivative: Callable[..., Any] | None
    range: tuple[float, float] = (-_INFINITY, _INFINITY)
    default_init: str = "glorot_uniform"
    tile_forward: Callable[..., Any] | None = None
    tile_pullback: Callable[..., Any] | None = None
    builtin: bool = False

    def __post_init__(self) -> None:
        check_name(self.name)
        functions = (self.function, self.derivative, self.tile_forward, self.tile_pullback)
        if [f is not None for f in functions] not in ([True, True, False, False], [False, False, True, True]):
            raise InvalidArgumentError(
                f"activation {self.name!r} needs either function and derivative, or tile_forward and tile_pullback"
            )
        check_functions(
            self,
            function=(self.function, "z"),
            derivative=(self.derivative, "z, a"),
            tile_forward=(self.tile_forward, "z, a"),
            tile_pullback=(self.tile_pullback, "z, a, g"),
        )
        object.__setattr__(self, "range", _check_range(self.range))
        check_choice(self.default_init, "default_init", INITIALIZERS)

    @property
    def coupled(self) -> bool:
        """Whether a unit's output depends on other units of its layer."""
        return self.tile_forward is not None

    @property
    def reads_z(self) -> bool:
        """Whether the derivative needs z beside a."""
        slope = self.tile_pullback if self.coupled else self.derivative
        assert slope is not None
        return plugins.reads_argument(slope, 0)

    def to_unit(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map mean activations from the range to [0, 1]: the identity for sigmoid, (a + 1) / 2 for tanh."""
        low, high = self.range
        return (mean - low) / (high - low)

    @property
    def unit_slope(self) -> float:
        """The derivative of that map: 1 for sigmoid, 1/2 for tanh."""
        return 1.0 / (self.range[1] - self.range[0])

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
        # The registered object is its own pickle: compiled functions compare plugins by identity.
        if _REGISTRY.get(self.name) is self:
            return get, (self.name,)
        return super().__reduce__()

    def __deepcopy__(self, memo: dict[int, Any]) -> Activation:
        return self

    def __repr__(self) -> str:
        return f"<activation {self.name}>"


def _check_range(found: Any) -> tuple[float, float]:
    """Return a range as two floats, which may be infinite."""
    if isinstance(found, tuple) and len(found) == 2 and all(isinstance(end, numbers.Real) for end in found):
        try:
            low, high = float(found[0]), float(found[1])
        except OverflowError:
            low = high = np.nan
        if low < high:
            return low, high
    raise InvalidArgumentError(f"range must be (low, high), two numbers with low < high; found {found!r}")


@cache
def forward_tile(activation: Activation, dtype: np.dtype[Any], in_place: bool) -> CFunc:
    """Return the compiled forward tile function, compiling at the first request."""
    return plugins.forward_tile(activation, dtype, in_place=in_place)


@cache
def pullback_tile(activation: Activation, dtype: np.dtype[Any]) -> CFunc:
    """Return the compiled pullback tile function, compiling at the first request."""
    return plugins.pullback_tile(activation, dtype)


sigmoid = Activation(
    "sigmoid",
    lambda z: vmath.expit(z),
    lambda z, a: a * (1.0 - a),
    range=(0.0, 1.0),
    default_init="uniform",
    builtin=True,
)
tanh = Activation("tanh", lambda z: vmath.tanh(z), lambda z, a: 1.0 - a * a, range=(-1.0, 1.0), builtin=True)
identity = Activation("identity", lambda z: z, lambda z, a: 1.0, builtin=True)
# f' is read off a, since a > 0 exactly where z > 0; at the kink it is 0, as in PyTorch. NaN must pass through.
relu = Activation(
    "relu",
    lambda z: 0.0 if z < 0.0 else z,
    lambda z, a: 1.0 if a > 0.0 else 0.0,
    range=(0.0, _INFINITY),
    default_init="he_uniform",
    builtin=True,
)
softmax = Activation(
    "softmax",
    None,
    None,
    range=(0.0, 1.0),
    tile_forward=softmax_forward,
    tile_pullback=softmax_pullback,
    builtin=True,
)

_REGISTRY = Registry(Activation)
for _activation in (sigmoid, tanh, identity, relu, softmax):
    _REGISTRY.register(_activation)


def names() -> list[str]:
    """Return the names of all registered activations.

    Examples
    --------
    >>> names()[:2]
    ['sigmoid', 'tanh']
    """
    return _REGISTRY.names()


def register(activation: Activation, *, replace: bool = False) -> Activation:
    """Make an activation known by its name, so that layer lists and model files can refer to it.

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
        If its name is taken by another activation.

    Examples
    --------
    >>> register(Activation("cube", lambda z: z * z * z, lambda z, a: 3.0 * z * z))
    <activation cube>
    """
    return _REGISTRY.register(activation, replace=replace)


def get(activation: str | Activation) -> Activation:
    """Return an activation by name, or the object itself.

    Raises
    ------
    InvalidArgumentError
        For an unknown name; the message lists those known.

    Examples
    --------
    >>> get("tanh")
    <activation tanh>
    """
    return _REGISTRY.resolve(activation)
