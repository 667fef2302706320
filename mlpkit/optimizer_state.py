"""The state of an optimiser as plain data: what a checkpoint file holds, and what is checked when it comes back.

A state is a mapping from names to float64 arrays, integers of 64 bits and strings, so that a file can hold it as
datasets and attributes. Every state names its optimiser and the version of its layout, and has the number of
iterations behind it and the last accepted point. What else there is, each optimiser says in its docstring.

==============  =============================  ===================================================================
``optimizer``   str                            name of the class
``version``     int                            of the layout, which an optimiser raises when it changes it
``iteration``   int                            accepted iterations so far
``theta``       float64, shape (n,)            the last accepted point, in float64 whatever the network's dtype
``cost``        float64, shape ()              J there
``gradient``    float64, shape (n,)            its gradient there
==============  =============================  ===================================================================
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mlpkit.checks import check_integer, check_vector, shown
from mlpkit.descent import Point, State, Vector
from mlpkit.errors import InvalidArgumentError

__all__ = ["StateReader", "pack_state"]


def pack_state(optimizer: str, version: int, iteration: int, point: Point, **more: Any) -> State:
    """Return the state that stands for these values; it shares no memory with them.

    Parameters
    ----------
    optimizer : str
        The name of the optimiser's class.
    version : int
        Of its state's layout.
    iteration : int
        Accepted iterations so far.
    point : Point
        The last accepted one.
    **more
        Whatever else the optimiser needs: numbers and arrays become float64 arrays, int and str stay.

    Examples
    --------
    >>> point = Point(np.array([1.0, 2.0]), 5.0, np.array([2.0, 4.0]))
    >>> state = pack_state("GradientDescent", 1, 7, point, step=0.5)
    >>> sorted(state)
    ['cost', 'gradient', 'iteration', 'optimizer', 'step', 'theta', 'version']
    >>> state["step"]
    array(0.5)
    """
    state: dict[str, Any] = {"optimizer": optimizer, "version": version, "iteration": iteration}
    for name, value in ({**point._asdict(), **more}).items():
        state[name] = value if isinstance(value, (int, str)) else np.array(value, dtype=np.float64)
    return state


class StateReader:
    """Takes a state apart, checking what it takes: it may come from a file.

    Parameters
    ----------
    state : mapping
        As `pack_state` makes them.
    optimizer : str
        The optimiser that it must be of.
    version : int
        The layout that it must have.
    theta : array-like, shape (n,)
        Where the caller would start, of which only the length matters: the state has its own theta.

    Attributes
    ----------
    iteration : int
    point : Point

    Raises
    ------
    InvalidArgumentError
        Naming the element, what was expected and what was found.

    Examples
    --------
    >>> point = Point(np.array([1.0, 2.0]), 5.0, np.array([2.0, 4.0]))
    >>> reader = StateReader(pack_state("LBFGS", 1, 7, point, step=0.5), "LBFGS", 1, np.zeros(2))
    >>> reader.iteration, reader.number("step")
    (7, 0.5)
    >>> reader.array("steps", (None, 2))
    Traceback (most recent call last):
        ...
    mlpkit.errors.InvalidArgumentError: state['steps'] must be a float64 array of shape (any, 2); found nothing
    """

    def __init__(self, state: State, optimizer: str, version: int, theta: ArrayLike) -> None:
        self._state = state
        self._n = check_vector(theta, "theta").size
        for name, expected in (("optimizer", optimizer), ("version", version)):
            found = state.get(name)
            if isinstance(found, np.ndarray) or found != expected:
                raise InvalidArgumentError(f"state[{name!r}] must be {expected!r}; found {_found(found)}")
        self.iteration = check_integer(state.get("iteration"), "state['iteration']", low=0)

    @cached_property
    def point(self) -> Point:
        """The last accepted point."""
        n = self._n
        return Point(self.array("theta", (n,)), self.number("cost"), self.array("gradient", (n,)))

    def array(self, name: str, shape: tuple[int | None, ...], *, infinite: bool = False) -> Vector:
        """Return a copy of a float64 array, whose elements must be finite unless `infinite`; None is any length."""
        found: Any = self._state.get(name)
        wanted = str(shape).replace("None", "any")
        fits = isinstance(found, (np.ndarray, np.float64)) and found.dtype == np.float64 and found.ndim == len(shape)
        if not fits or any(want not in (None, length) for want, length in zip(shape, found.shape, strict=True)):
            raise InvalidArgumentError(
                f"state[{name!r}] must be a float64 array of shape {wanted}; found {_found(found)}"
            )
        if np.isnan(found).any() or not (infinite or np.isfinite(found).all()):
            raise InvalidArgumentError(f"state[{name!r}] must be finite")
        return np.array(found, dtype=np.float64)

    def number(self, name: str, *, infinite: bool = False) -> float:
        """Return an array of shape () as a float."""
        return float(self.array(name, (), infinite=infinite))

    def integer(self, name: str) -> int:
        """Return an integer of at least 0."""
        return check_integer(self._state.get(name), f"state[{name!r}]", low=0)

    def text(self, name: str) -> str:
        """Return a string."""
        found = self._state.get(name)
        if not isinstance(found, str):
            raise InvalidArgumentError(f"state[{name!r}] must be a string; found {_found(found)}")
        return found


def _found(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, (np.ndarray, np.generic)):
        return f"{value.dtype} of shape {value.shape}"
    return shown(value)
