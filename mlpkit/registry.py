"""Named plugins: one table for each kind, from which names in layer lists and model files are resolved."""

from __future__ import annotations

import inspect
import types
import warnings
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from mlpkit.checks import check_flag
from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels.functions import slow_calls

__all__ = ["Registry", "check_functions", "check_name"]

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

    def register(self, plugin: T, *, replace: bool = False) -> T:
        """Make a plugin known by its name, so that layers and model files can refer to it.

        Parameters
        ----------
        plugin : Activation or Loss
            What to register.
        replace : bool
            Whether it may take the place of another of its name; mlpkit's own stay.

        Raises
        ------
        InvalidArgumentError
            If it is of the wrong kind, or its name is taken by another.
        """
        if not isinstance(plugin, self._kind):
            raise InvalidArgumentError(f"{self._must_be}; found {plugin!r}")
        replace = check_flag(replace, "replace")
        name: str = plugin.name  # type: ignore[attr-defined]
        present = self.get(name, plugin)
        if present is not plugin:
            if present.builtin:  # type: ignore[attr-defined]
                raise InvalidArgumentError(f"name must be new; {name!r} is mlpkit's own {self._noun}")
            if not replace:
                raise InvalidArgumentError(
                    f"name must be new; {self._noun} {name!r} is already registered (replace=True replaces it)"
                )
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


def check_name(name: Any) -> None:
    """Refuse a plugin's name that is no text, or that holds characters that nobody can see."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise InvalidArgumentError(f"name must be a non-empty string of printable characters; found {name!r}")


def check_functions(plugin: Any, **functions: tuple[Callable[..., Any] | None, str]) -> None:
    """Check a plugin's functions, each given with its arguments, as in ``derivative=(f, "z, a")``.

    Callables that are not written in plain Python, whose source the engine could not compile, are refused, and those
    that take another number of arguments. A user's calls of math and numpy draw a warning where vmath has faster ones.
    """
    slow: set[str] = set()
    for role, (function, arguments) in functions.items():
        if function is None:
            continue
        where = f"{role} of {plugin.name!r}"
        if not isinstance(function, types.FunctionType):
            raise InvalidArgumentError(f"{where} must be a plain Python function; found {function!r}")
        signature = inspect.signature(function, follow_wrapped=False)
        try:
            signature.bind(*arguments.split(", "))
        except TypeError:
            raise InvalidArgumentError(f"{where} must take the arguments ({arguments}); found {signature}") from None
        slow.update(slow_calls(function))
    if slow and not plugin.builtin:
        faster = ", ".join(f"mlpkit.vmath.{name}" for name in sorted(slow))
        warnings.warn(
            f"{plugin.name!r} calls functions of math or numpy that the engine runs one number at a time; "
            f"several times faster: {faster}",
            stacklevel=4,
        )
