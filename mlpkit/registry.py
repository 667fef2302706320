"""Named plugins: one table for each kind, from which names in layer lists and model files are resolved."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from mlpkit.errors import InvalidArgumentError

__all__ = ["Registry", "check_plain_functions"]

T = TypeVar("T")


class Registry(dict[str, T], Generic[T]):
    """Plugins of one kind by name.

    Parameters
    ----------
    kind : type
        The class of the plugins; its name, in lower case, is what errors call them.

    Examples
    --------
    >>> Registry(int).names()
    []
    """

    def __init__(self, kind: type[T]) -> None:
        super().__init__()
        self._kind = kind
        self._noun = kind.__name__.lower()
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        self._must_be = f"{self._noun} must be {article} {kind.__name__}"

    def names(self) -> list[str]:
        """Return the names of all registered plugins."""
        return list(self)

    def register(self, plugin: T) -> T:
        """Make a plugin known by its name, so that layers and model files can refer to it.

        Raises
        ------
        InvalidArgumentError
            If it is of the wrong kind, or its name is taken by another.
        """
        if not isinstance(plugin, self._kind):
            raise InvalidArgumentError(f"{self._must_be}; found {plugin!r}")
        name: str = plugin.name  # type: ignore[attr-defined]
        if self.get(name, plugin) is not plugin:
            raise InvalidArgumentError(f"name must be new; {self._noun} {name!r} is already registered")
        self[name] = plugin
        return plugin

    def resolve(self, plugin: str | T) -> T:
        """Return a plugin by name, or the object itself.

        Raises
        ------
        InvalidArgumentError
            For an unknown name; the message lists those known.
        """
        if isinstance(plugin, self._kind):
            return plugin
        if isinstance(plugin, str) and plugin in self:
            return self[plugin]
        known = ", ".join(map(repr, self))
        raise InvalidArgumentError(f"{self._must_be} or one of {known}; found {plugin!r}")


def check_plain_functions(plugin: str, **functions: Callable[..., Any] | None) -> None:
    """Refuse callables that are not written in plain Python, whose source the engine could not compile."""
    for name, function in functions.items():
        if function is not None and not isinstance(function, types.FunctionType):
            raise InvalidArgumentError(f"{name} of {plugin!r} must be a plain Python function; found {function!r}")
