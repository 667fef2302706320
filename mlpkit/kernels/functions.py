"""A user's plain Python functions on their way to machine code: precision, compiling, and what is refused.

Inside the engine nobody could catch an exception: the tile would stay half written, and the numbers in it would go on
as if they were results. So a scalar function whose compiled form can still raise is refused. What it can raise is read
off its optimised code: exceptions that cannot happen are gone by then.
"""

from __future__ import annotations

import dis
import math
import pickle
import re
import types as python_types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types

from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels import vmath
from mlpkit.kernels.jit import ELEMENTWISE, inline, kernel

__all__ = ["compile_body", "compile_scalar", "reads_argument", "slow_calls", "specialise"]

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
    """Return the names of functions that are taken from math or numpy although vmath has faster ones.

    Examples
    --------
    >>> slow_calls(lambda z: z * math.exp(z) + vmath.tanh(z))
    ['exp']
    """
    slow = [(getattr(module, name), name) for module in (math, np) for name in vmath.__all__ if hasattr(module, name)]
    known = {**function.__globals__, **_captured(function)}
    found = []
    module: Any = None  # what the instruction before has loaded, if that was math or numpy
    for instruction in dis.get_instructions(function):
        value = None
        if "LOAD" in instruction.opname and isinstance(instruction.argval, str):
            name = instruction.argval
            value = known.get(name) if module is None else getattr(module, name, None)
        found += [name for candidate, name in slow if value is candidate]
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


# Precision -----------------------------------------------------------------------------------------------------


def specialise(function: Callable[..., Any], dtype: np.dtype[Any]) -> Any:
    """Prepare a scalar function for `dtype`: the Python floats that it reads take that dtype.

    A Python float is a double; beside a float32 it would make the whole expression double, at half the speed. They come
    as literals, captured variables, globals and defaults of arguments, alone or in tuples.
    """
    if dtype == np.float32:
        code = _in_float32(function.__code__)
        names = {"__builtins__", "__name__", *_global_names(function.__code__)}
        known = {name: _in_float32(value) for name, value in function.__globals__.items() if name in names}
        cells = function.__closure__
        if cells is not None:
            cells = tuple(python_types.CellType(_in_float32(cell.cell_contents)) for cell in cells)
        defaults = _in_float32(function.__defaults__)
        function = python_types.FunctionType(code, known, function.__name__, defaults, cells)
    return inline(function, boundscheck=True)


def _in_float32(value: Any) -> Any:
    """Return a Python float as a float32, also inside tuples and in the constants of code; all else as it is."""
    if type(value) is float:
        with np.errstate(over="ignore", under="ignore"):
            return np.float32(value)
    if type(value) is tuple:
        return tuple(map(_in_float32, value))
    if isinstance(value, python_types.CodeType):
        return value.replace(co_consts=_in_float32(value.co_consts))
    return value


def _global_names(code: python_types.CodeType) -> set[str]:
    """Return the names that code, and functions defined inside it, may look up globally."""
    inner = (_global_names(constant) for constant in code.co_consts if isinstance(constant, python_types.CodeType))
    return set(code.co_names).union(*inner)


# Compiling and refusing ----------------------------------------------------------------------------------------


def compile_scalar(plugin: Any, role: str, arity: int, dtype: np.dtype[Any]) -> Any:
    """Return the plugin's scalar function called `role`, compiled for `arity` numbers of `dtype`.

    Raises
    ------
    InvalidArgumentError
        Naming plugin and function, if it cannot be compiled, does not return a number, or can raise. mlpkit's own are
        taken as they are, and compiled only where they are needed.
    """
    where = f"{role} of {plugin.name!r}"
    function = getattr(plugin, role)
    if plugin.builtin:
        return specialise(function, dtype)
    compiled, result, raised = _compile(where, lambda: specialise(function, dtype), [_element(dtype)] * arity)
    _require_number(where, result)
    for exception, _ in raised:
        _refuse(where, exception)
    return compiled


def compile_body(
    plugin: Any, function: Callable[..., Any], role: str, arity: int, dtype: np.dtype[Any], *, returns: bool = False
) -> Any:
    """Return a function over `arity` arrays (panels, rows, lanes), compiled; what it writes is the last of them.

    Its own ``raise`` and ``assert`` are refused. Whole-array operations of NumPy can raise in many ways that never
    happen, so those are let pass: where one does raise, all its results become NaN.
    """
    body = kernel(fastmath=ELEMENTWISE)
    if plugin.builtin:
        return body(function)
    where = f"{role} of {plugin.name!r}"
    compiled, result, raised = _compile(where, lambda: body(function), [types.Array(_element(dtype), 3, "C")] * arity)
    if returns:
        _require_number(where, result)
    for exception, file in raised:
        if file is not None and not file.startswith(_NUMBA):
            _refuse(where, exception)

    def guarded(*arrays):
        failed = False
        try:
            result = compiled(*arrays)
        except Exception:
            failed = True
        if failed:
            arrays[-1][:] = np.nan
            result = np.nan
        return result

    return body(guarded)


def _require_number(where: str, found: Any) -> None:
    if not isinstance(found, (types.Float, types.Integer, types.Boolean)):
        raise InvalidArgumentError(f"{where} must return a real number; found {found}")


def _element(dtype: np.dtype[Any]) -> Any:
    return types.float64 if dtype == np.float64 else types.float32


def _refuse(where: str, exception: str) -> None:
    raise InvalidArgumentError(
        f"{where} must not raise, since nothing in the engine could catch it: it can raise {exception}. "
        "Return NaN for arguments that it is not defined on"
    )


def _compile(
    where: str, prepare: Callable[[], Any], arguments: Sequence[Any]
) -> tuple[Any, Any, list[tuple[str, str | None]]]:
    """Compile; return the dispatcher, the type of its result, and what it can raise with the raising file."""
    try:
        dispatcher = prepare()
        dispatcher.get_call_template(tuple(arguments), {})  # as a call would: arguments may have defaults
    except Exception as error:  # Numba raises its own for what it cannot compile, and anything for what it never met
        raise InvalidArgumentError(f"{where} cannot be compiled: {_cause(error)}") from error
    (result,) = dispatcher.overloads.values()
    return dispatcher, types.unliteral(result.signature.return_type), _exceptions(result.library.get_llvm_str())


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
