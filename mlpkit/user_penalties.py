"""Penalties of a user's own on mean activations: a scalar function of rho_hat, with derivatives as of any plugin."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
from numba import types
from numpy.typing import ArrayLike, NDArray

from mlpkit.kernels.jit import ELEMENTWISE, kernel, tile_function
from mlpkit.plugin_checks import check_scalar, grid
from mlpkit.registry import Plugin, Registry, name_of, typed_into_a_session

__all__ = ["Penalty", "get", "names", "penalty", "register"]

_DOUBLE = np.dtype(np.float64)
_NUMBERS = count()


class Penalty(Plugin):
    """A penalty p(rho_hat) on a unit's mean activation.

    Parameters
    ----------
    name : str
        What users and model files call it.
    function : callable
        p(rho_hat) of one number in plain Python: the mean activation over all examples, mapped to [0, 1] where the
        activation's range is bounded, as it is otherwise.
    derivative, second_derivative : callable, optional
        p' and p'' of the same number. Found by dual numbers if not given.
    builtin, doc
        See `mlpkit.activations.Activation`.

    Examples
    --------
    >>> Penalty("off_target", lambda rho_hat: (rho_hat - 0.1) ** 2).derivatives([0.1, 0.2])
    array([0. , 0.2])
    """

    noun = "penalty"
    arguments = ("rho_hat", "rho_hat")
    takes = ("t", "t")

    def values(self, rho_hat: ArrayLike) -> NDArray[np.float64]:
        """Return p of each number."""
        return self._along(0, rho_hat)

    def derivatives(self, rho_hat: ArrayLike) -> NDArray[np.float64]:
        """Return p' of each number."""
        return self._along(1, rho_hat)

    def second_derivatives(self, rho_hat: ArrayLike) -> NDArray[np.float64]:
        """Return p'' of each number."""
        return self._along(2, rho_hat)

    def check(self) -> None:
        """Try the functions out inside [0, 1]: finite, and derivatives that are slopes."""
        scalar = self._scalar()
        assert scalar is not None
        given = [derivative is not None for derivative in self._derivatives]
        check_scalar(repr(self.name), scalar, ("rho_hat", grid(0.0, 1.0)), given=given)

    def _along(self, order: int, rho_hat: ArrayLike) -> NDArray[np.float64]:
        values = np.asarray(rho_hat, np.float64)
        flat = np.ascontiguousarray(values).reshape(-1)
        return self._loops[order](flat).reshape(values.shape)

    @cached_property
    def _loops(self) -> list[Any]:
        scalar = self.scalar
        assert scalar is not None
        return [_loop(function(_DOUBLE)) for function in (scalar.value, scalar.slope, scalar.curvature)]

    @cached_property
    def compiled(self) -> Any:
        """One C function, float64(mean, order), of p and its derivative; good for as long as this object is."""
        scalar = self.scalar
        assert scalar is not None
        value, slope = (function(_DOUBLE) for function in (scalar.value, scalar.slope))

        def both(mean, order):  # type: ignore[no-untyped-def]
            return value(mean, mean, mean) if order == 0 else slope(mean, mean, mean)

        signature = types.float64(types.float64, types.int64)
        return tile_function(both, signature, f"penalty_{next(_NUMBERS)}", fastmath=ELEMENTWISE, cached=False)

    def __reduce__(self) -> Any:
        return (get, (self.name,)) if REGISTRY.knows(self) else super().__reduce__()


def _loop(function: Any) -> Any:
    """Compile a scalar function as one of vectors."""

    @kernel(allocates=True)
    def loop(values):
        out = np.empty_like(values)
        for i in range(values.size):
            out[i] = function(values[i], values[i], values[i])
        return out

    return loop


REGISTRY = Registry(Penalty)


def names() -> list[str]:
    """Return the names of all registered penalties.

    Examples
    --------
    >>> "none such" in names()
    False
    """
    return REGISTRY.names()


def register(penalty: Penalty, *, replace: bool = False) -> Penalty:
    """Try a penalty out and make it known by its name; see `mlpkit.activations.register`.

    Examples
    --------
    >>> register(Penalty("near_half", lambda rho_hat: (rho_hat - 0.5) ** 4))
    <penalty near_half>
    """
    return REGISTRY.register(penalty, replace=replace)


def get(penalty: str | Penalty) -> Penalty:
    """Return a penalty by name, or the object itself.

    Raises
    ------
    InvalidArgumentError
        For an unknown name; the message lists those known.

    Examples
    --------
    >>> get(Penalty("square_of_mean", lambda rho_hat: rho_hat**2))
    <penalty square_of_mean>
    """
    return REGISTRY.resolve(penalty)


def penalty(
    function: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    derivative: Callable[..., Any] | None = None,
    second_derivative: Callable[..., Any] | None = None,
    replace: bool | None = None,
) -> Any:
    """Make a penalty of a plain Python function of rho_hat and register it; a decorator, also with arguments.

    Parameters
    ----------
    function : callable
        p(rho_hat); see `Penalty`.
    name : str, optional
        The function's own by default; a lambda has none.
    derivative, second_derivative : callable, optional
        p' and p''; also given later by ``@p.derivative``. Found by dual numbers otherwise.
    replace : bool, optional
        Whether it may take the place of another of its name; by default if it was typed into a notebook or a shell.

    Raises
    ------
    InvalidArgumentError
        If the functions are not what they should be; see `mlpkit.activations.register`.

    Examples
    --------
    >>> @penalty
    ... def quadratic(rho_hat):
    ...     return (rho_hat - 0.05) ** 2
    >>> quadratic.values([0.05, 0.15]).round(3)
    array([0.  , 0.01])
    """

    def decorate(function: Callable[..., Any]) -> Penalty:
        plugin = Penalty(name_of(function, name), function, derivative, second_derivative)
        return register(plugin, replace=typed_into_a_session(function) if replace is None else replace)

    return decorate if function is None else decorate(function)
