"""Validation of what users hand in: every error names the argument, what was expected and what was found."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mlpkit.errors import InvalidArgumentError

__all__ = [
    "can_hold",
    "check_choice",
    "check_finite",
    "check_fits",
    "check_flag",
    "check_integer",
    "check_interval",
    "check_matrix",
    "check_number",
    "check_out",
    "check_vector",
    "real_array",
    "shown",
]


def shown(value: Any) -> str:
    """Return `value` as an error can show it: shortened, and whatever its own code does.

    Examples
    --------
    >>> len(shown(10**100))
    80
    """
    try:
        text = repr(value)
    except Exception:  # for instance an integer of more digits than Python agrees to print
        return f"a value of type {type(value).__name__} that cannot be shown"
    return text if len(text) <= 80 else f"{text[:50]}...{text[-27:]}"


def check_number(
    value: Any,
    name: str,
    *,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
    high_open: bool = False,
) -> float:
    """Return `value` as a finite float within the bounds, or say what is wrong with it.

    Examples
    --------
    >>> check_number(1, "beta", low=0)
    1.0
    """
    opening, closing = ("(" if low_open else "["), (")" if high_open else "]")
    interval = f"{opening}{-math.inf if low is None else low:g}, {math.inf if high is None else high:g}{closing}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidArgumentError(
            f"{name} must be a number in {interval}; found {shown(value)} of type {type(value).__name__}"
        )
    try:
        number = float(value)
    except Exception as error:  # integers beyond all floats, and number types of other packages
        raise InvalidArgumentError(
            f"{name} must be a finite number in {interval}; found {shown(value)}, which is no float: {error}"
        ) from error
    too_low = low is not None and (number < low or (low_open and number == low))
    too_high = high is not None and (number > high or (high_open and number == high))
    if not math.isfinite(number) or too_low or too_high:
        raise InvalidArgumentError(f"{name} must be a finite number in {interval}; found {number!r}")
    return number


def check_fits(value: float, name: str, dtype: np.dtype[Any]) -> None:
    """Refuse a finite number that would be infinite in `dtype`.

    Examples
    --------
    >>> check_fits(1e38, "init", np.dtype("float32"))
    """
    with np.errstate(over="ignore"):
        if not np.isfinite(dtype.type(value)):
            raise InvalidArgumentError(f"{name} must be finite in {dtype}; found {value!r}")


def check_integer(value: Any, name: str, *, low: int | None = None, high: int | None = None) -> int:
    """Return `value` as an int within the (closed) bounds, or say what is wrong with it.

    Examples
    --------
    >>> check_integer(25, "units", low=1)
    25
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidArgumentError(f"{name} must be an integer; found {shown(value)} of type {type(value).__name__}")
    number = int(value)
    if low is not None and number < low:
        raise InvalidArgumentError(f"{name} must be an integer of at least {low}; found {shown(number)}")
    if high is not None and number > high:
        raise InvalidArgumentError(f"{name} must be an integer of at most {high}; found {shown(number)}")
    return number


def check_choice(value: Any, name: str, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`, or list them in the error.

    Examples
    --------
    >>> check_choice("float32", "dtype", ("float32", "float64"))
    'float32'
    """
    if not isinstance(value, str) or value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise InvalidArgumentError(f"{name} must be one of {known}; found {shown(value)}")
    return value


def check_flag(value: Any, name: str) -> bool:
    """Return `value` as a bool if it is True or False; anything else that is merely truthy is an error.

    Examples
    --------
    >>> check_flag(True, "bias")
    True
    """
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidArgumentError(f"{name} must be True or False; found {shown(value)}")
    return bool(value)


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a fresh array where `out` is None, or `out` if results of this shape and dtype can be written to it.

    Examples
    --------
    >>> check_out(None, (2, 3), np.dtype("float32")).shape
    (2, 3)
    """
    if out is None:
        return np.empty(shape, dtype)
    if not can_hold(out, shape, dtype):
        found = f"shape {out.shape}, dtype {out.dtype}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InvalidArgumentError(
            f"out must be a writable C-contiguous array of shape {shape} and dtype {dtype}; found {found}"
        )
    return out


def can_hold(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Say whether `out` is an array to which results of this shape and dtype can be written as they are.

    Examples
    --------
    >>> can_hold(np.empty((2, 3)).T, (3, 2), np.dtype("float64"))
    False
    """
    return isinstance(out, np.ndarray) and out.shape == shape and out.dtype == dtype and out.flags.carray


def check_interval(found: Any, name: str) -> tuple[float, float]:
    """Return a tuple (low, high) with low < high as two floats, which may be infinite.

    Examples
    --------
    >>> check_interval((0, math.inf), "range")
    (0.0, inf)
    """
    if isinstance(found, tuple) and len(found) == 2 and all(isinstance(end, numbers.Real) for end in found):
        try:
            low, high = float(found[0]), float(found[1])
        except OverflowError:
            low = high = math.nan
        if low < high:
            return low, high
    raise InvalidArgumentError(f"{name} must be (low, high), two numbers with low < high; found {found!r}")


def check_matrix(
    values: Any, name: str, *, n_columns: int | None = None, dtype: DTypeLike = np.float64
) -> NDArray[Any]:
    """Return `values` as a finite, C-contiguous matrix of `dtype`, one example a row.

    Lists, data frames, Fortran-ordered and read-only arrays are welcome. A one-dimensional array is a
    column when one column is asked for, and an error otherwise: guessing between a row and a column
    would hide mistakes. The array is copied only where its dtype or order asks for it.

    Parameters
    ----------
    values : array-like, shape (m, n)
        Real numbers or booleans.
    name : str
        The argument's name, for the errors.
    n_columns : int, optional
        The number of columns to insist on.
    dtype : dtype
        float32 or float64.

    Raises
    ------
    InvalidArgumentError
        For ragged, empty, complex or non-numeric data, a wrong number of columns or dimensions, and NaN or
        infinity (before or after conversion to `dtype`), whose first row and column are named.

    Examples
    --------
    >>> check_matrix([[1, 2], [3, 4]], "X", n_columns=2).dtype
    dtype('float64')
    """
    array = real_array(values, name)
    if array.ndim == 1 and n_columns == 1:
        array = array[:, np.newaxis]
    if array.ndim != 2:
        raise InvalidArgumentError(f"{name} must have two dimensions, examples in rows; found shape {array.shape}")
    if n_columns is not None and array.shape[1] != n_columns:
        raise InvalidArgumentError(
            f"{name} must have {n_columns} columns; found {array.shape[1]} (shape {array.shape})"
        )
    if array.size == 0:
        raise InvalidArgumentError(f"{name} must not be empty; found shape {array.shape}")
    with np.errstate(over="ignore"):
        matrix = np.ascontiguousarray(array, dtype=dtype)
    check_finite(matrix, name)
    return matrix


def check_vector(values: Any, name: str, *, length: int | None = None, dtype: DTypeLike = np.float64) -> NDArray[Any]:
    """Return `values` as a finite, contiguous vector of `dtype`, of the given length if one is given.

    Examples
    --------
    >>> check_vector([1, 2, 3], "sample_weight", length=3)
    array([1., 2., 3.])
    """
    array = real_array(values, name)
    if array.ndim != 1 or (length is not None and array.shape[0] != length):
        wanted = "one dimension" if length is None else f"shape ({length},)"
        raise InvalidArgumentError(f"{name} must have {wanted}; found shape {array.shape}")
    with np.errstate(over="ignore"):
        vector = np.ascontiguousarray(array, dtype=dtype)
    check_finite(vector, name)
    return vector


def real_array(values: Any, name: str) -> NDArray[Any]:
    """Return `values` as an array of real numbers of any shape, finite or not."""
    if isinstance(values, np.ma.MaskedArray):
        raise InvalidArgumentError(f"{name} must not be a masked array, whose mask would be lost")
    try:
        array = np.asarray(values)
        if array.dtype == object:
            _refuse_text(array, name)
            array = array.astype(np.float64)
    except InvalidArgumentError:
        raise
    except Exception as error:  # integers beyond all floats; and converting runs code of other packages
        raise InvalidArgumentError(
            f"{name} must be an array of numbers; found {type(values).__name__}: {error}"
        ) from error
    if array.dtype.kind not in "biuf":
        raise InvalidArgumentError(f"{name} must be an array of real numbers; found dtype {array.dtype}")
    return array


def _refuse_text(array: NDArray[Any], name: str) -> None:
    """Refuse text among objects, which NumPy would parse: a column of text is a mistake, also where it looks right."""
    for index, value in np.ndenumerate(array):
        if isinstance(value, (str, bytes, bytearray)):
            where = f" at row {' column '.join(map(str, index))}" if index else ""
            raise InvalidArgumentError(f"{name} must be an array of numbers; found the text {shown(value)}{where}")


def check_finite(array: NDArray[Any], name: str, *, first_row: int = 0) -> None:
    """Refuse NaN and infinity, naming the first row (counted from `first_row`) and column that holds one.

    Examples
    --------
    >>> check_finite(np.zeros((2, 3)), "X")
    """
    # A finite sum proves every element finite without a temporary of the array's size; only where the
    # sum is not finite (which overflow alone can also cause) are the elements looked at one by one.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum(dtype=np.float64)):
            return
    bad = np.argwhere(~np.isfinite(array))
    if bad.size:
        index = tuple(int(i) for i in bad[0])
        where = " column ".join(str(i) for i in (index[0] + first_row, *index[1:]))
        raise InvalidArgumentError(
            f"{name} must be finite in {array.dtype}; found {array[index]} at row {where} "
            f"({len(bad)} such value{'s' if len(bad) > 1 else ''})"
        )
