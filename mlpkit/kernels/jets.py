"""Jets: numbers that know their precision and their derivatives, as a Numba type.

A user's scalar function is compiled on jets in place of plain floats. A jet of order n is a value and its first n
derivatives along some parameter t, and every operation follows the chain rule (see jet_rules.py). So a function of the
jet (z, 1) returns the jet (f(z), f'(z)), exactly and whatever branches it takes: dual numbers, and of order 2 their
next step. Beside derivatives this settles precision: a jet of float32 stays one, whatever literals, captured numbers
or constants of ``math`` meet it, where a Python float beside a plain float32 would make everything double.

Functions of ``math`` and ``numpy`` become those of `mlpkit.vmath` where it has them. Nothing here can raise.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.typeconv import Conversion
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model

from mlpkit.kernels import vmath
from mlpkit.kernels.jet_rules import (
    FUNCTIONS,
    Emitter,
    Value,
    apply,
    atan2,
    copysign,
    floor_divide,
    largest,
    or_nan,
    raise_to,
    remainder,
    sign,
    smallest,
    to_integer,
)

__all__ = ["SLOW", "Jet", "constant", "jet", "jet2", "part"]


class Jet(types.Type):
    """A number of dtype `base` with derivatives up to `order`."""

    def __init__(self, base: Any, order: int) -> None:
        self.base = base
        self.order = order
        super().__init__(name=f"number({base}, order={order})")

    def unify(self, typingctx: Any, other: Any) -> Any:
        """Return what a variable is that holds now a jet, now another number: a jet."""
        return self if isinstance(other, _PLAIN) else None

    def can_convert_from(self, typingctx: Any, other: Any) -> Any:
        """Take plain numbers as constants."""
        return Conversion.safe if isinstance(other, _PLAIN) else None


_PLAIN = (types.Float, types.Integer, types.Boolean)


@register_model(Jet)
class _JetModel(models.StructModel):
    def __init__(self, manager, jet):
        super().__init__(manager, jet, [(f"d{i}", jet.base) for i in range(jet.order + 1)])


# What compiled code may do with a jet --------------------------------------------------------------------------


def _jet_among(arguments: Any) -> Jet | None:
    """Return the type of the jets among the arguments, if all others are plain numbers."""
    jets = [kind for kind in arguments if isinstance(kind, Jet)]
    plain = all(isinstance(kind, (Jet, *_PLAIN)) for kind in arguments)
    return jets[0] if jets and plain else None


def _define(
    function: Any,
    emit: Callable[..., Any],
    *arities: int,
    result: Any = None,
    choose: Callable[[Jet, Any], Any] | None = None,
) -> None:
    """Let compiled code call `function` on jets; plain numbers beside them become constants.

    emit: from `Value`s to a `Value`, or to the LLVM value of the type `result`. choose: from the jet's type and the
    types of the arguments to those to convert them to, where not all become jets.
    """

    class Template(AbstractTemplate):
        key = function
        prefer_literal = choose is not None

        def generic(self, arguments: Any, keywords: Any) -> Any:
            jet = _jet_among(arguments)
            if jet is None or keywords or len(arguments) not in arities:
                return None
            wanted = (jet,) * len(arguments) if choose is None else choose(jet, arguments)
            return signature(jet if result is None else result, *wanted)

    infer_global(function)(Template)

    def lower(context: Any, builder: Any, found: Any, values: Any) -> Any:
        pairs = zip(found.args, values, strict=True)
        jets = [
            Value.load(Emitter(context, builder, kind.base), value, kind.order)
            if isinstance(kind, Jet)
            else kind.literal_value
            for kind, value in pairs
        ]
        out = emit(*jets)
        return out.store() if isinstance(out, Value) else out

    for n in arities:
        lower_builtin(function, *[Jet] * n)(lower)
    if choose is not None:
        lower_builtin(function, Jet, types.IntegerLiteral)(lower)


@lower_cast(types.Float, Jet)
@lower_cast(types.Integer, Jet)
@lower_cast(types.Boolean, Jet)
def _from_number(context, builder, fromty, toty, value):
    emit = Emitter(context, builder, toty.base)
    number = context.cast(builder, value, fromty, toty.base)
    return Value(emit, [number] + [emit.constant(0.0)] * toty.order).store()


def _whole_exponent(jet: Jet, arguments: Any) -> Any:
    """Keep a small whole number as what it is: x**2 is a product, and no logarithm is taken."""
    exponent = arguments[1]
    whole = isinstance(exponent, types.IntegerLiteral) and abs(exponent.literal_value) <= 16
    return (jet, exponent) if whole else (jet, jet)


_TWICE: dict[Any, Callable[..., Any]] = {  # of two numbers
    **dict.fromkeys((operator.add, operator.iadd), operator.add),
    **dict.fromkeys((operator.sub, operator.isub), operator.sub),
    **dict.fromkeys((operator.mul, operator.imul), operator.mul),
    **dict.fromkeys((operator.truediv, operator.itruediv), operator.truediv),
    **dict.fromkeys((operator.floordiv, operator.ifloordiv), floor_divide),
    **dict.fromkeys((operator.mod, operator.imod), remainder),
    **dict.fromkeys((math.hypot, np.hypot), lambda x, y: apply("sqrt", x * x + y * y)),
    **dict.fromkeys((math.atan2, np.arctan2), atan2),
    **dict.fromkeys((math.copysign, np.copysign), copysign),
    np.maximum: or_nan(largest),
    np.minimum: or_nan(smallest),
}
_ONCE: dict[Any, Callable[..., Any]] = {
    operator.neg: operator.neg,
    operator.pos: lambda x: x,
    float: lambda x: x,
    abs: lambda x: apply("fabs", x),
    np.absolute: lambda x: apply("fabs", x),
    np.sign: sign,
    np.square: lambda x: x * x,
}
_QUESTIONS: dict[Any, Callable[..., Any]] = {
    bool: lambda x: x.compare("!=", 0.0),
    operator.not_: lambda x: x.compare("==", 0.0),
    **dict.fromkeys((math.isnan, np.isnan), lambda x: x.compare("!=", x)),
    **dict.fromkeys((math.isfinite, np.isfinite), lambda x: (x - x).compare("==", 0.0)),
    **dict.fromkeys((math.isinf, np.isinf), lambda x: apply("fabs", x).compare("==", math.inf)),
}
_ROUNDED: dict[Any, str] = {
    int: "trunc",
    math.floor: "floor",
    math.ceil: "ceil",
    math.trunc: "trunc",
}  # to whole numbers
_ELSEWHERE: dict[str, Any] = {  # NumPy's own names
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
}
_SCALAR = ("tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "log2", "log10")


def _homes(name: str) -> set[Any]:
    """Return the functions of vmath, math and numpy that mean this one."""
    found = {getattr(library, name, None) for library in (vmath, math, np)}
    return {*found, _ELSEWHERE.get(name)} - {None, *_ROUNDED}


#: Functions that the engine has no vector code for, so that each call works on one number, with their names.
SLOW = [(function, name) for name in _SCALAR for function in _homes(name)]


def _define_all() -> None:
    for function, emit in _TWICE.items():
        _define(function, emit, 2)
    for function, emit in _ONCE.items():
        _define(function, emit, 1)
    for function, emit in _QUESTIONS.items():
        _define(function, emit, 1, result=types.boolean)
    for name, relation in (("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="), ("eq", "=="), ("ne", "!=")):
        _define(getattr(operator, name), lambda x, y, r=relation: x.compare(r, y), 2, result=types.boolean)
    for function in (operator.pow, operator.ipow, pow, math.pow, np.power):
        _define(function, raise_to, 2, choose=_whole_exponent)
    for function, name in _ROUNDED.items():
        _define(function, lambda x, name=name: to_integer(apply(name, x)), 1, result=types.int64)
    _define(max, largest, 2, 3, 4)
    _define(min, smallest, 2, 3, 4)
    for name in FUNCTIONS:
        for function in _homes(name):
            _define(function, lambda x, name=name: apply(name, x), 1)


_define_all()


# Into jets and out ---------------------------------------------------------------------------------------------


def _store(kind, values):
    """Return a signature and the code that makes a jet of its value and derivatives."""

    def codegen(context, builder, found, parts):
        return Value(Emitter(context, builder, kind.base), parts).store()

    return kind(*values), codegen


@intrinsic
def constant(typingctx, value):
    """Return a number as a jet without derivatives."""
    return _store(Jet(value, 0), (value,))


@intrinsic
def jet(typingctx, value, first):
    """Return the jet of a number and its derivative along t."""
    return _store(Jet(value, 1), (value, first))


@intrinsic
def jet2(typingctx, value, first, second):
    """Return the jet of a number and its first and second derivative along t."""
    return _store(Jet(value, 2), (value, first, second))


@intrinsic(prefer_literal=True)
def part(typingctx, number, like, order):
    """Return a function's result, or its derivative of an order, as a plain number of the type of `like`."""
    n = order.literal_value

    def codegen(context, builder, found, values):
        if isinstance(number, Jet):
            return builder.extract_value(values[0], n)
        if n:
            return ir.Constant(context.get_value_type(found.return_type), 0.0)
        return context.cast(builder, values[0], number, found.return_type)

    return types.unliteral(like)(number, like, order), codegen
