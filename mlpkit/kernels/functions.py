"""A user's plain Python functions on their way to machine code: derivatives, compiling, and what is refused.

Inside the engine nobody could catch an exception: the tile would stay half written, and the numbers in it would go on
as if they were results. So a scalar function whose compiled form can still raise is refused. What it can raise is read
off its optimised code: exceptions that cannot happen are gone by then.
"""

from __future__ import annotations

import dis
import math
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types

from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels.jets import SLOW, Jet, constant, jet, jet2, part
from mlpkit.kernels.jit import ELEMENTWISE, inline, kernel

__all__ = ["Scalar", "compile_body", "reads_argument", "slow_calls"]

_NUMBA = str(Path(numba.__file__).parent)


# Read off the bytecode -----------------------------------------------------------------------------------------


def reads_argument(function: Callable[..., Any], position: int) -> bool:
    """Say whether a Python function may read its argument at `position`.

    Examples
    --------
    >>> reads_argument(lambda z, a: a * (1.0 - a), 0)
    False
    """
    name = function.__code__.co_varnames[position]
    for instruction in dis.get_instructions(function):
        names = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
        # Anywhere in the instruction's name: Python 3.13 fuses pairs, such as STORE_FAST_LOAD_FAST.
        if "LOAD" in instruction.opname and name in names:
            return True
    return name in function.__code__.co_cellvars


def slow_calls(function: Callable[..., Any]) -> list[str]:
    """Return the names of functions of math or numpy that run one number at a time.

    Examples
    --------
    >>> slow_calls(lambda z: z * math.exp(z) + math.atan(z))
    ['atan']
    """
    known = {**function.__globals__, **_captured(function)}
    found = []
    module: Any = None  # what the instruction before has loaded, if that was math or numpy
    for instruction in dis.get_instructions(function):
        value = None
        if "LOAD" in instruction.opname and isinstance(instruction.argval, str):
            name = instruction.argval
            value = known.get(name) if module is None else getattr(module, name, None)
        found += [name for candidate, name in SLOW if value is candidate]
        module = value if value is math or value is np else None
    return sorted(set(found))


def _captured(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the outer variables that a function has captured, as far as they have a value yet."""
    captured = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            captured[name] = cell.cell_contents
        except ValueError:
            continue
    return captured


# Scalar functions ----------------------------------------------------------------------------------------------

# From the arguments that a function is written with to (t, v, y): the variable t, the function's value v, which
# derivatives may be written in, and a constant y.
_ADAPTERS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "t": lambda f: lambda t, v, y: f(t),
    "tv": lambda f: lambda t, v, y: f(t, v),
    "ty": lambda f: lambda t, v, y: f(t, y),
    "tvy": lambda f: lambda t, v, y: f(t, v, y),
}


class Scalar:
    """A scalar function and its first two derivatives, each in plain Python or, if None, found by jets.

    Compiled, all three take numbers (t, v, y): the variable, the function's value there, and a constant. They are
    inlined into loops over tiles.

    Parameters
    ----------
    owner : str
        Whose function it is, for errors: ``"'swish'"``.
    functions : tuple
        The function and its derivatives.
    takes, derivatives_take : str
        Their arguments in words of the above: ``"t"``, ``"tv"``, ``"ty"`` or ``"tvy"``.
    trusted : bool
        Whether they are mlpkit's own, which are taken as they are, and compiled only where they are needed.
    roles : tuple of str
        What errors call the three.
    """

    def __init__(
        self,
        owner: str,
        functions: tuple[Callable[..., Any] | None, Callable[..., Any] | None, Callable[..., Any] | None],
        takes: str,
        derivatives_take: str,
        *,
        trusted: bool,
        roles: tuple[str, str, str] = ("function", "derivative", "second_derivative"),
    ) -> None:
        self._owner = owner
        self._functions = functions
        self._takes = (takes, derivatives_take, derivatives_take)
        self._trusted = trusted
        self._roles = roles
        self._compiled: dict[Any, Any] = {}

    @property
    def reads_variable(self) -> bool:
        """Whether the derivative needs t beside v and y."""
        derivative = self._functions[1]
        return derivative is None or reads_argument(derivative, 0)

    def value(self, dtype: np.dtype[Any]) -> Any:
        """Return the compiled function."""
        f = self._on_jets(0, 0, dtype)

        def value(t, v, y):
            return part(f(constant(t), constant(v), constant(y)), t, 0)

        return inline(value)

    def slope(self, dtype: np.dtype[Any]) -> Any:
        """Return the compiled derivative in t."""
        if self._functions[1] is not None:
            df = self._on_jets(1, 0, dtype)

            def slope(t, v, y):
                return part(df(constant(t), constant(v), constant(y)), t, 0)

        else:
            f, one, zero = self._on_jets(0, 1, dtype), dtype.type(1), dtype.type(0)

            def slope(t, v, y):
                return part(f(jet(t, one), jet(v, zero), jet(y, zero)), t, 1)

        return inline(slope)

    def curvature(self, dtype: np.dtype[Any]) -> Any:
        """Return the compiled second derivative in t."""
        one, zero = dtype.type(1), dtype.type(0)
        if self._functions[2] is not None:
            d2f = self._on_jets(2, 0, dtype)

            def curvature(t, v, y):
                return part(d2f(constant(t), constant(v), constant(y)), t, 0)

        elif self._functions[1] is not None:
            df, slope = self._on_jets(1, 1, dtype), self.slope(dtype)

            def curvature(t, v, y):
                return part(df(jet(t, one), jet(v, slope(t, v, y)), jet(y, zero)), t, 1)

        else:
            f = self._on_jets(0, 2, dtype)

            def curvature(t, v, y):
                return part(f(jet2(t, one, zero), jet2(v, zero, zero), jet2(y, zero, zero)), t, 2)

        return inline(curvature)

    def _on_jets(self, which: int, order: int, dtype: np.dtype[Any]) -> Any:
        """Return one of the three functions, compiled on jets of an order.

        Raises
        ------
        InvalidArgumentError
            Naming owner and function, if it cannot be compiled, does not return a number, or can raise.
        """
        key = (which, order, dtype)
        if key not in self._compiled:
            function = self._functions[which]
            assert function is not None
            compiled = inline(function, boundscheck=True)
            if not self._trusted:
                self._check(compiled, which, [Jet(_element(dtype), order)] * len(self._takes[which]), order)
            self._compiled[key] = inline(_ADAPTERS[self._takes[which]](compiled))
        return self._compiled[key]

    def _check(self, compiled: Any, which: int, arguments: list[Any], order: int) -> None:
        where = f"{self._roles[which]} of {self._owner}"
        try:
            result, raised = _compile(where, compiled, arguments)
        except InvalidArgumentError as error:
            if order == 0:
                raise
            missing = self._roles[1] if which == 0 and order == 1 else self._roles[2]
            raise InvalidArgumentError(
                f"{missing} of {self._owner} is not given and cannot be derived from its {self._roles[which]}: {error}"
            ) from error
        if not isinstance(result, Jet):
            _require_number(where, result)
        for exception, _ in raised:
            _refuse(where, exception)


def compile_body(plugin: Any, function: Callable[..., Any], role: str, kinds: str, dtype: np.dtype[Any]) -> Any:
    """Return a function over arrays (panels, rows, lanes), compiled.

    Its own ``raise`` and ``assert`` are refused. Whole-array operations of NumPy can raise in many ways that never
    happen, so those are let pass: where one does raise, the last array becomes NaN.

    Parameters
    ----------
    plugin : plugin
        Whose function it is.
    function, role : callable, str
        The function, and what errors call it.
    kinds : str
        A letter for each argument: "t" for a tile of `dtype`, "l" for float64 numbers, one for each lane.
    dtype : numpy.dtype
        Of the tiles.
    """
    body = kernel(fastmath=ELEMENTWISE, allocates=True)
    compiled = body(function)
    if plugin.builtin:
        return compiled
    where = f"{role} of {plugin.name!r}"
    tile, loss = types.Array(_element(dtype), 3, "C"), types.Array(types.float64, 2, "C")
    _, raised = _compile(where, compiled, [tile if kind == "t" else loss for kind in kinds])
    for exception, file in raised:
        if file is not None and not file.startswith(_NUMBA):
            _refuse(where, exception)

    def guarded(*arrays):
        failed = False
        try:
            compiled(*arrays)
        except Exception:
            failed = True
        if failed:
            arrays[-1][:] = np.nan

    return body(guarded)


# Compiling and refusing ----------------------------------------------------------------------------------------


def _require_number(where: str, found: Any) -> None:
    if isinstance(found, (types.Optional, types.NoneType)):
        found = "nothing on some path"
    if not isinstance(found, (types.Float, types.Integer, types.Boolean)):
        raise InvalidArgumentError(f"{where} must return a real number; found {found}")


def _element(dtype: np.dtype[Any]) -> Any:
    return types.float64 if dtype == np.float64 else types.float32


def _refuse(where: str, exception: str) -> None:
    raise InvalidArgumentError(
        f"{where} must not raise, since nothing in the engine could catch it: it can raise {exception}. "
        "Return NaN for arguments that it is not defined on"
    )


def _compile(where: str, dispatcher: Any, arguments: Sequence[Any]) -> tuple[Any, list[tuple[str, str | None]]]:
    """Compile for some types; return the type of the result, and what can be raised with the raising file."""
    try:
        dispatcher.get_call_template(tuple(arguments), {})  # as a call would: arguments may have defaults
    except Exception as error:  # Numba raises its own for what it cannot compile, and anything for what it never met
        raise InvalidArgumentError(f"{where} cannot be compiled: {_cause(error)}") from error
    (compiled,) = dispatcher.overloads.values()
    return types.unliteral(compiled.signature.return_type), _exceptions(compiled.library.get_llvm_str())


def _cause(error: Exception) -> str:
    """Return the one line of Numba's report that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith("Failed in nopython mode pipeline")]
    return (telling or lines or [type(error).__name__])[0]


def _exceptions(code: str) -> list[tuple[str, str | None]]:
    """Return the exceptions that optimised LLVM code can raise, in words, and the files of their ``raise``.

    Numba stores each as a pickle of (class, arguments, (function, file, line) or None).
    """
    found = []
    for text in re.findall(r'^@\.const\.pickledata\.\w+ = .* c"(.*)"', code, re.MULTILINE):
        data = re.sub(rb"\\(\\|[0-9A-F]{2})", _unescape, text.encode())
        try:
            exception, arguments, location = pickle.loads(data)
            words = exception.__name__
            if arguments and all(isinstance(argument, (str, int, float)) for argument in arguments):
                words += f" ({', '.join(map(str, arguments)):.80})"
            found.append((words, location[1] if location else None))
        except Exception:  # a way of storing it that this version of Numba does not have: it is raised all the same
            found.append(("an exception", None))
    if not found and ".const.picklebuf." in code:
        found.append(("an exception", None))
    return found


def _unescape(match: re.Match[bytes]) -> bytes:
    return b"\\" if match[1] == b"\\" else bytes([int(match[1], 16)])
