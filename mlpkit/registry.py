"""Plugins: what activations, losses and penalties have in common, and the tables that names are looked up in.

A plugin is a name and a scalar function in plain Python with its derivatives. It never changes once it is in use, for
compiled code refers to it by identity.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from mlpkit.checks import check_flag, check_integer, check_number
from mlpkit.errors import InvalidArgumentError, MlpkitError, frames_to_the_caller
from mlpkit.kernels.functions import Scalar, slow_calls

__all__ = ["Family", "Plugin", "Registry", "check_functions", "name_of"]

ScalarFunction = Callable[..., Any]


class Plugin:
    """A name, and a scalar function with its first and second derivative.

    Parameters
    ----------
    name : str
        What users and model files call it.
    function : callable or None
        A function of one or two numbers, in plain Python.
    derivative, second_derivative : callable or None
        Its derivatives; found by dual numbers where they are not given.
    builtin : bool
        mlpkit's own: trusted, and compiled code is kept on disk.
    doc : str, optional
        What the plugin is; the function's docstring by default.
    """

    #: What a plugin of this class is called; the arguments of its function and of its derivatives, and what those are
    #: to `mlpkit.kernels.functions.Scalar`.
    noun: ClassVar[str]
    arguments: ClassVar[tuple[str, str]]
    takes: ClassVar[tuple[str, str]]

    name: str
    function: ScalarFunction | None
    builtin: bool
    _derivatives: list[ScalarFunction | None]

    def __init__(
        self,
        name: str,
        function: ScalarFunction | None,
        derivative: ScalarFunction | None = None,
        second_derivative: ScalarFunction | None = None,
        *,
        builtin: bool = False,
        doc: str | None = None,
    ) -> None:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise InvalidArgumentError(f"name must be a non-empty string of printable characters; found {name!r}")
        vars(self).update(name=name, function=function, builtin=builtin, _derivatives=[None, None])
        if function is None and (derivative is not None or second_derivative is not None):
            raise InvalidArgumentError(f"{self.noun} {name!r} needs a function beside its derivative")
        check_functions(self, function=(function, self.arguments[0]))
        for order, given in ((1, derivative), (2, second_derivative)):
            if given is not None:
                self._give(order, given)
        doc = doc or getattr(function, "__doc__", None)
        if doc is not None:
            vars(self)["__doc__"] = doc

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{self!r} cannot be changed, since networks may use it; make another")

    @cached_property
    def scalar(self) -> Scalar | None:
        """The function and its derivatives as they are compiled; once asked for, they stay as they are."""
        return self._scalar()

    def _scalar(self) -> Scalar | None:
        if self.function is None:
            return None
        first, second = self._derivatives
        return Scalar(repr(self.name), (self.function, first, second), *self.takes, trusted=self.builtin)

    def derivative(self, *arguments: Any) -> Any:
        """Compute the derivative of numbers or arrays; or, as a decorator, take the function that does.

        Examples
        --------
        >>> from mlpkit import activations
        >>> activations.sigmoid.derivative(0.0, 0.5)
        0.25
        """
        return self._define_or_evaluate(1, arguments)

    def second_derivative(self, *arguments: Any) -> Any:
        """Compute the second derivative; or, as a decorator, take the function that does.

        Examples
        --------
        >>> from mlpkit import losses
        >>> losses.squared_error.second_derivative(0.3, 0.5)
        1.0
        """
        return self._define_or_evaluate(2, arguments)

    def _define_or_evaluate(self, order: int, arguments: tuple[Any, ...]) -> Any:
        if len(arguments) == 1 and callable(arguments[0]):
            self._give(order, arguments[0])
            if not self.builtin:
                self.check()
            return arguments[0]
        names = self.arguments[1].split(", ")
        if len(arguments) != len(names):
            raise InvalidArgumentError(
                f"the derivative of {self.name!r} takes ({self.arguments[1]}), or as a decorator a function; found "
                f"{len(arguments)} argument(s)"
            )
        function = self._derivatives[order - 1]
        if function is None:
            scalar, double = self._scalar(), np.dtype(np.float64)
            if scalar is None:
                raise InvalidArgumentError(f"{self!r} couples the units of a layer; it has no scalar derivative")
            compiled = scalar.slope(double) if order == 1 else scalar.curvature(double)
            places = [self.takes[1].find(letter) for letter in "tvy"]

            def function(*values: Any) -> Any:
                return compiled(*(values[max(place, 0)] for place in places))

        def evaluate(*values: Any) -> float:
            return float(function(*map(float, values)))

        if all(np.ndim(argument) == 0 for argument in arguments):
            return evaluate(*arguments)
        return np.vectorize(evaluate, otypes=[np.float64])(*arguments)

    def _give(self, order: int, function: ScalarFunction) -> None:
        """Take a derivative, which then stays."""
        role = ("derivative", "second_derivative")[order - 1]
        if self.function is None:
            raise InvalidArgumentError(f"{self!r} has no scalar function; {role} would have no meaning")
        if self._derivatives[order - 1] is not None:
            raise InvalidArgumentError(f"{role} of {self.name!r} has been given already")
        if "scalar" in vars(self):
            raise MlpkitError(f"{role} of {self.name!r} comes too late: networks use it as it is")
        check_functions(self, **{role: (function, self.arguments[1])})
        self._derivatives[order - 1] = function

    def check(self) -> None:
        """Compile the functions and try them out; see `mlpkit.plugin_checks`."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self

    def __copy__(self) -> Any:
        return self

    def __repr__(self) -> str:
        return f"<{self.noun} {self.name}>"


P = TypeVar("P", bound=Plugin)


class Family(Generic[P]):
    """Plugins of mlpkit's own that differ in a parameter, such as leaky_relu(0.2): called, it gives the member.

    Parameters
    ----------
    make : callable
        From the parameters, annotated as float or int, to the keyword arguments of the plugin. Its name, docstring and
        defaults are the family's; the member with the defaults is known by the name alone.
    kind : type
        The class of the plugins.

    Examples
    --------
    >>> from mlpkit import activations
    >>> activations.leaky_relu(slope=0.2), activations.leaky_relu()
    (<activation leaky_relu(0.2)>, <activation leaky_relu>)
    """

    def __init__(self, make: Callable[..., dict[str, Any]], kind: type[P]) -> None:
        self.name = make.__name__
        self.__doc__ = make.__doc__
        self.__signature__ = inspect.signature(make, eval_str=True)
        self._make = make
        self._kind = kind
        self._members: dict[str, P] = {}

    def __call__(self, *arguments: Any, **keywords: Any) -> P:
        """Return the member with these parameters, always the same object."""
        try:
            bound = self.__signature__.bind(*arguments, **keywords)
        except TypeError as error:
            raise InvalidArgumentError(f"{self.name}{self.__signature__}: {error}") from None
        bound.apply_defaults()
        values, defaults = [], []
        for name, parameter in self.__signature__.parameters.items():
            check = check_integer if parameter.annotation is int else check_number
            values.append(check(bound.arguments[name], name))
            defaults.append(parameter.default)
        name = self.name if values == defaults else f"{self.name}({', '.join(map(repr, values))})"
        if name not in self._members:
            self._members[name] = self._kind(name, builtin=True, doc=self.__doc__, **self._make(*values))
        return self._members[name]

    def __repr__(self) -> str:
        return (
            f"<{self._kind.noun}s {self.name}{self.__signature__.replace(return_annotation=inspect.Signature.empty)}>"
        )


class Registry(dict[str, P], Generic[P]):
    """Plugins of one kind by name.

    Parameters
    ----------
    kind : type
        The class of the plugins.

    Examples
    --------
    >>> Registry(Plugin).names()
    []
    """

    def __init__(self, kind: type[P]) -> None:
        super().__init__()
        self._kind = kind
        self._families: dict[str, Family[P]] = {}

    @property
    def _must_be(self) -> str:
        article = "an" if self._kind.noun[0] in "aeiou" else "a"
        return f"{self._kind.noun} must be {article} {self._kind.__name__}"

    def names(self) -> list[str]:
        """Return the names of all registered plugins."""
        return list(self)

    def add_family(self, family: Family[P]) -> Family[P]:
        """Make a family known, and its member with the defaults if it has them."""
        self._families[family.name] = family
        if all(p.default is not inspect.Parameter.empty for p in family.__signature__.parameters.values()):
            self[family.name] = family()
        return family

    def register(self, plugin: P, *, replace: bool = False) -> P:
        """Try a plugin out and make it known by its name, so that layers and model files can refer to it.

        Parameters
        ----------
        plugin : Plugin
            What to register.
        replace : bool
            Whether it may take the place of another of its name; mlpkit's own stay.

        Raises
        ------
        InvalidArgumentError
            If it is of the wrong kind, its name is taken by another, or its functions are wrong.
        """
        if not isinstance(plugin, self._kind):
            raise InvalidArgumentError(f"{self._must_be}; found {plugin!r}")
        replace = check_flag(replace, "replace")
        present = self._find(plugin.name)
        if present is not None and present is not plugin:
            if present.builtin:
                raise InvalidArgumentError(f"name must be new; {plugin.name!r} is mlpkit's own {plugin.noun}")
            if not replace:
                raise InvalidArgumentError(
                    f"name must be new; {plugin.noun} {plugin.name!r} is already registered (replace=True replaces it)"
                )
        if not plugin.builtin:
            plugin.check()
        self[plugin.name] = plugin
        return plugin

    def knows(self, plugin: P) -> bool:
        """Say whether this very plugin is found by its name."""
        return self._find(plugin.name) is plugin

    def _find(self, name: str) -> P | None:
        """Return the plugin of a name, also of a family's member that nobody has asked for yet."""
        if name in self:
            return self[name]
        match = re.fullmatch(r"(\w+)\(([^()]*)\)", name)
        if match and match[1] in self._families:
            return self._families[match[1]](*map(_number, match[2].split(",")))
        return None

    def resolve(self, plugin: str | P | Family[P]) -> P:
        """Return a plugin by name, or the object itself.

        Raises
        ------
        InvalidArgumentError
            For an unknown name; the message lists those known.
        """
        if isinstance(plugin, self._kind):
            return plugin
        if isinstance(plugin, Family) and plugin._kind is self._kind:
            return plugin()
        found = self._find(plugin) if isinstance(plugin, str) else None
        if found is not None:
            return found
        families = (repr(f"{family.name}{family.__signature__}") for family in self._families.values())
        known = ", ".join((*map(repr, self), *families))
        raise InvalidArgumentError(f"{self._must_be} or one of {known}; found {plugin!r}")


def _number(text: str) -> int | float:
    """Read a family's parameter from a name."""
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            raise InvalidArgumentError(f"parameters in a plugin's name must be numbers; found {text!r}") from None


def name_of(function: Any, name: str | None) -> str:
    """Return the name that a decorated function is registered by."""
    if name is not None:
        return name
    found = getattr(function, "__name__", "")
    if not found.isidentifier() or found == "_":  # a lambda
        raise InvalidArgumentError(f"name must be given for {function!r}, which has none of its own")
    return found


def typed_into_a_session(function: Any) -> bool:
    """Say whether a function was typed into a notebook or a shell, where the same cell may well run again."""
    main = sys.modules.get("__main__")
    return getattr(function, "__module__", None) == "__main__" and not hasattr(main, "__file__")


def check_functions(plugin: Any, **functions: tuple[Callable[..., Any] | None, str]) -> None:
    """Check a plugin's functions, each given with its arguments, as in ``derivative=(f, "z, a")``.

    Callables that are not written in plain Python, whose source the engine could not compile, are refused, and those
    that take another number of arguments. Functions of math and numpy for which there is no vector code draw a warning.
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
        warnings.warn(
            f"{plugin.name!r} calls {', '.join(sorted(slow))}, for which there is no vector code: the engine runs it "
            "one number at a time, several times slower than what mlpkit.vmath has",
            stacklevel=frames_to_the_caller(),
        )
