"""The rules of calculus for jets, emitted as LLVM instructions.

A jet of order n is a value and its first n derivatives along some parameter t: (u, u', u'', ...). All rules are written
once, on the order: with u' the jet of derivatives (one order less) and u cut off at that order,

    (u v)' = u' v + u v'        (u / v)' = (u' - (u / v) v') / v        g(u)' = g'(u) u'
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from mlpkit.kernels import vmath

__all__ = [
    "FUNCTIONS",
    "Emitter",
    "Value",
    "apply",
    "atan2",
    "copysign",
    "floor_divide",
    "largest",
    "or_nan",
    "raise_to",
    "remainder",
    "sign",
    "smallest",
    "to_integer",
]


class Emitter:
    """Where instructions go, and the precision they work in."""

    def __init__(self, context: Any, builder: Any, base: Any) -> None:
        self.context = context
        self.builder = builder
        self.base = base

    def constant(self, value: float) -> Any:
        """Return a number of the base as an LLVM constant."""
        return ir.Constant(self.context.get_value_type(self.base), float(value))

    def call(self, function: Any, *values: Any) -> Any:
        """Call a function that Numba knows on numbers of the base."""
        typing = self.context.typing_context
        kind = typing.resolve_value_type(function)
        found = kind.get_call_type(typing, (self.base,) * len(values), {})
        code = self.context.get_function(kind, found)
        self.context.add_linking_libs(getattr(code, "libs", ()))
        values = tuple(
            self.context.cast(self.builder, value, self.base, wanted)
            for value, wanted in zip(values, found.args, strict=True)
        )
        return self.context.cast(self.builder, code(self.builder, values), found.return_type, self.base)


class Value:
    """A jet as LLVM values, with Python's operators to write the rules in."""

    def __init__(self, emit: Emitter, parts: Any) -> None:
        self.emit = emit
        self.parts = tuple(parts)

    @classmethod
    def load(cls, emit: Emitter, struct: Any, order: int) -> Value:
        """Take apart what `store` made."""
        return cls(emit, (emit.builder.extract_value(struct, i) for i in range(order + 1)))

    def store(self) -> Any:
        """Return the LLVM structure that Numba passes around."""
        emit = self.emit
        struct = ir.Constant(ir.LiteralStructType([part.type for part in self.parts]), ir.Undefined)
        for i, part in enumerate(self.parts):
            struct = emit.builder.insert_value(struct, part, i)
        return struct

    @property
    def cut(self) -> Value:
        """The same, without the highest derivative."""
        return Value(self.emit, self.parts[:-1])

    @property
    def rate(self) -> Value:
        """The derivative along t."""
        return Value(self.emit, self.parts[1:])

    def _each(self, instruction: str, *others: Value) -> Value:
        emit = getattr(self.emit.builder, instruction)
        return Value(self.emit, (emit(*parts) for parts in zip(self.parts, *(o.parts for o in others), strict=True)))

    def constant(self, value: float) -> Value:
        """Return a number that does not depend on t."""
        parts = [self.emit.constant(value)] + [self.emit.constant(0.0)] * (len(self.parts) - 1)
        return Value(self.emit, parts)

    def _coerce(self, other: Any) -> Value:
        return other if isinstance(other, Value) else self.constant(other)

    def __neg__(self) -> Value:
        return self._each("fneg")

    def __add__(self, other: Any) -> Value:
        return self._each("fadd", self._coerce(other))

    def __sub__(self, other: Any) -> Value:
        return self._each("fsub", self._coerce(other))

    def __rsub__(self, other: Any) -> Value:
        return self.constant(other) - self

    def __mul__(self, other: Any) -> Value:
        other = self._coerce(other)
        head = self.emit.builder.fmul(self.parts[0], other.parts[0])
        if len(self.parts) == 1:
            return Value(self.emit, (head,))
        rate = self.rate * other.cut + self.cut * other.rate
        return Value(self.emit, (head, *rate.parts))

    def __truediv__(self, other: Any) -> Value:
        other = self._coerce(other)
        if len(self.parts) == 1:
            return Value(self.emit, (self.emit.builder.fdiv(self.parts[0], other.parts[0]),))
        quotient = self.cut / other.cut
        rate = (self.rate - quotient * other.rate) / other.cut
        return Value(self.emit, (quotient.parts[0], *rate.parts))

    def __rtruediv__(self, other: Any) -> Value:
        return self.constant(other) / self

    def compare(self, sign: str, other: Any) -> Any:
        """Compare values; derivatives have no say."""
        compare = self.emit.builder.fcmp_unordered if sign == "!=" else self.emit.builder.fcmp_ordered
        return compare(sign, self.parts[0], self._coerce(other).parts[0])

    def choose(self, condition: Any, other: Any) -> Value:
        """Return self where a condition holds, else `other`: both are computed, and loops stay vectorisable."""
        pairs = zip(self.parts, self._coerce(other).parts, strict=True)
        return Value(self.emit, (self.emit.builder.select(condition, a, b) for a, b in pairs))


def apply(name: str, x: Value) -> Value:
    """Return g(x) for a function of one number by its name."""
    function, slope = FUNCTIONS[name]
    if len(x.parts) == 1:
        return Value(x.emit, (x.emit.call(function, x.parts[0]),))
    y = apply(name, x.cut)
    rate = slope(x.cut, y) * x.rate
    return Value(x.emit, (y.parts[0], *rate.parts))


def sign(x: Value) -> Value:
    """Return -1, 0 or 1; NaN for NaN."""
    one = x.constant(1.0)
    sign = one.choose(x.compare(">", 0.0), (-one).choose(x.compare("<", 0.0), x.constant(0.0)))
    return sign.choose(x.compare("==", x), x.constant(np.nan))


def _step(x: Value, _: Value) -> Value:
    return x.constant(0.0)


def _power(x: Value, y: Value, *, constant: bool) -> Value:
    """Return x**y; `constant` where y does not depend on t, so that no logarithm of x is taken."""
    if len(x.parts) == 1:
        return Value(x.emit, (x.emit.call(operator.pow, x.parts[0], y.parts[0]),))
    result = _power(x.cut, y.cut, constant=constant)
    rate = y.cut * _power(x.cut, y.cut - 1.0, constant=constant) * x.rate
    if not constant:
        rate = rate + result * apply("log", x.cut) * y.rate
    return Value(x.emit, (result.parts[0], *rate.parts))


def _whole_power(x: Value, n: int) -> Value:
    """Return x**n for an n that is known, by multiplications."""
    if n < 0:
        return 1.0 / _whole_power(x, -n)
    if n == 0:
        return x.constant(1.0)
    half = _whole_power(x, n // 2)
    if n == 1:
        return x
    return half * half * x if n % 2 else half * half


_HALF_SQRT_PI = math.sqrt(math.pi) / 2
_NORMAL = 1.0 / math.sqrt(2.0 * math.pi)

# name -> (what computes the value, the derivative from x and y = g(x)).
FUNCTIONS: dict[str, tuple[Any, Callable[[Value, Value], Value]]] = {
    "exp": (vmath.exp, lambda x, y: y),
    "expm1": (vmath.expm1, lambda x, y: apply("exp", x)),
    "log": (vmath.log, lambda x, y: 1.0 / x),
    "log1p": (vmath.log1p, lambda x, y: 1.0 / (x + 1.0)),
    "expit": (vmath.expit, lambda x, y: y * apply("expit", -x)),
    "softplus": (vmath.softplus, lambda x, y: apply("expit", x)),
    "tanh": (vmath.tanh, lambda x, y: 1.0 - y * y),
    "erf": (vmath.erf, lambda x, y: apply("exp", -(x * x)) / _HALF_SQRT_PI),
    "erfc": (vmath.erfc, lambda x, y: -apply("exp", -(x * x)) / _HALF_SQRT_PI),
    "ndtr": (vmath.ndtr, lambda x, y: apply("exp", (x * x) * -0.5) * _NORMAL),
    "sin": (vmath.sin, lambda x, y: apply("cos", x)),
    "cos": (vmath.cos, lambda x, y: -apply("sin", x)),
    "sqrt": (math.sqrt, lambda x, y: 0.5 / y),
    "fabs": (math.fabs, lambda x, y: sign(x)),
    "floor": (np.floor, _step),
    "ceil": (np.ceil, _step),
    "trunc": (np.trunc, _step),
    "tan": (math.tan, lambda x, y: y * y + 1.0),
    "asin": (math.asin, lambda x, y: 1.0 / apply("sqrt", 1.0 - x * x)),
    "acos": (math.acos, lambda x, y: -1.0 / apply("sqrt", 1.0 - x * x)),
    "atan": (math.atan, lambda x, y: 1.0 / (x * x + 1.0)),
    "sinh": (math.sinh, lambda x, y: apply("cosh", x)),
    "cosh": (math.cosh, lambda x, y: apply("sinh", x)),
    "asinh": (math.asinh, lambda x, y: 1.0 / apply("sqrt", x * x + 1.0)),
    "acosh": (math.acosh, lambda x, y: 1.0 / apply("sqrt", x * x - 1.0)),
    "atanh": (math.atanh, lambda x, y: 1.0 / (1.0 - x * x)),
    "log2": (np.log2, lambda x, y: 1.0 / (x * math.log(2.0))),
    "log10": (np.log10, lambda x, y: 1.0 / (x * math.log(10.0))),
}


def largest(*values: Value) -> Value:
    """As Python's max: the first, unless a later one is greater."""
    best = values[0]
    for value in values[1:]:
        best = value.choose(value.compare(">", best), best)
    return best


def smallest(*values: Value) -> Value:
    """As Python's min: the first, unless a later one is less."""
    best = values[0]
    for value in values[1:]:
        best = value.choose(value.compare("<", best), best)
    return best


def or_nan(choose: Callable[..., Value]) -> Callable[..., Value]:
    """As NumPy's maximum and minimum: NaN if any is."""

    def emit(*values: Value) -> Value:
        best = choose(*values)
        for value in values:
            best = best.choose(value.compare("==", value), value)
        return best

    return emit


def to_integer(x: Value) -> Any:
    """Return the value, cut to a whole number, as an LLVM int64."""
    return x.emit.context.cast(x.emit.builder, x.parts[0], x.emit.base, types.int64)


def floor_divide(x: Value, y: Value) -> Value:
    """Return x // y."""
    return apply("floor", x / y)


def remainder(x: Value, y: Value) -> Value:
    """Return x % y, which has the sign of y."""
    return x - floor_divide(x, y) * y


def raise_to(x: Value, n: Any) -> Value:
    """Return x**n, n a `Value` or a Python int."""
    return _power(x, n, constant=False) if isinstance(n, Value) else _whole_power(x, n)


def atan2(y: Value, x: Value) -> Value:
    """Return the angle of the point (x, y)."""
    if len(x.parts) == 1:
        return Value(x.emit, (x.emit.call(math.atan2, y.parts[0], x.parts[0]),))
    result = atan2(y.cut, x.cut)
    rate = (x.cut * y.rate - y.cut * x.rate) / (x.cut * x.cut + y.cut * y.cut)
    return Value(x.emit, (result.parts[0], *rate.parts))


def copysign(x: Value, y: Value) -> Value:
    """Return |x| with the sign of y, also of -0."""
    size = apply("fabs", x)
    negative = x.emit.call(math.copysign, x.emit.constant(1.0), y.parts[0])
    return (-size).choose(Value(x.emit, [negative]).compare("<", 0.0), size)
