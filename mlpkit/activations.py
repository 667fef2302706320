"""Activation functions: what a layer does to its weighted sums, as records that users can add to.

An activation is a scalar function f(z) and its derivative f'(z, a), both plain Python; the engine compiles them into
loops over whole tiles. Where f' can be written in the activation a = f(z) alone, as for sigmoid and tanh, z need not be
kept.
"""

from __future__ import annotations

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
from mlpkit.registry import Registry, check_plain_functions

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
        f(z) of one number, in plain Python and `mlpkit.vmath`.
    derivative : callable
        f'(z, a) with a = f(z). If it never reads z, the engine does not keep z.
    range : tuple of float
        The interval that the outputs lie in; finite on both sides for an activation that can be sparse.
    default_init : str
        How weights below start where a layer does not say; see `mlpkit.Dense`.
    tile_forward, tile_pullback : callable, optional
        For functions that couple the units of a layer, such as softmax: bodies over (panels, rows, lanes) in place of
        `function` and `derivative`.
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
        scalar = self.function is not None and self.derivative is not None
        tile = self.tile_forward is not None and self.tile_pullback is not None
        if not self.name or not isinstance(self.name, str):
            raise InvalidArgumentError(f"name must be a non-empty string; found {self.name!r}")
        if scalar == tile:
            raise InvalidArgumentError(
                f"activation {self.name!r} needs either function and derivative, or tile_forward and tile_pullback"
            )
        check_plain_functions(
            self.name,
            function=self.function,
            derivative=self.derivative,
            tile_forward=self.tile_forward,
            tile_pullback=self.tile_pullback,
        )
        if not (isinstance(self.range, tuple) and len(self.range) == 2 and self.range[0] < self.range[1]):
            raise InvalidArgumentError(f"range must be (low, high) with low < high; found {self.range}")
        check_choice(self.default_init, "default_init", INITIALIZERS)

    @property
    def coupled(self) -> bool:
        """Whether a unit's output depends on other units of its layer."""
        return self.tile_forward is not None

    @property
    def reads_z(self) -> bool:
        """Whether the derivative needs z beside a."""
        return self.derivative is not None and plugins.reads_argument(self.derivative, 0)

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


def register(activation: Activation) -> Activation:
    """Make an activation known by its name, so that layer lists and model files can refer to it.

    Raises
    ------
    InvalidArgumentError
        If its name is taken by another activation.
    """
    return _REGISTRY.register(activation)


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
