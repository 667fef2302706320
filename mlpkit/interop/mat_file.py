"""The variables of a ``.mat`` file of MATLAB 5 to 7 that may be damaged or forged: real numbers and text, nothing else.

SciPy writes such files for us, but it crashes on damaged ones, so they are read here. The format (MathWorks, "MAT-File
Format") is a header of 128 bytes, then one *element* after another: a type and a length, 8 bytes, then so many bytes.
An element is a variable or a compressed variable, and a variable a sequence of elements itself::

    flags       two uint32: class of the array, whether it is complex
    dimensions  int32
    name        characters
    values      any numeric type that holds them: MATLAB stores a double array of small whole numbers as uint8

An element of up to 4 bytes may be packed into 8, its length beside its type. Cells, structs, objects and functions are
refused by their class, before anything inside them is looked at. Memory stays within a few times that of the arrays in
the file, and these have at most about a thousand times the file's bytes, which is what compression can do.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit.strict_hdf5 import refuse

__all__ = ["read_variables"]

_HEADER_BYTES = 128
_TAG_BYTES = 8
_MAX_NAME = 63  # of MATLAB's names
_MAX_DIMENSIONS = 32
_COMPLEX = 0x0800

# Types of elements.
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MATRIX, _COMPRESSED, _INT32, _UINT32 = 14, 15, 5, 6
# Classes of arrays.
_CLASSES = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 6: "double", 7: "single"}
_CLASSES |= {number: f"{'u' * (number % 2)}int{2 ** (number // 2 - 1)}" for number in range(8, 16)}
_CLASSES |= {16: "function", 17: "opaque"}
_PARAMETERS = ("double", "single")
_EXPECTED = {"parameters": _PARAMETERS, "numbers": (*_PARAMETERS, *map(_CLASSES.get, range(8, 16))), "text": ("char",)}


def read_variables(
    raw: bytes, kind_of: Callable[[str], str | None], ignore: Collection[str]
) -> dict[str, NDArray[Any] | list[str]]:
    """Return the variables of a file.

    Parameters
    ----------
    raw : bytes
        The whole file.
    kind_of : callable
        Says of a name whether it is one of ``"parameters"`` (double or single), ``"numbers"`` (of any class, returned
        as float64), ``"text"``, or None for one that is not understood.
    ignore : collection of str
        Names to pass over.

    Returns
    -------
    dict
        Two-dimensional arrays of finite numbers; text as a list of its lines, without the blanks that pad them.

    Raises
    ------
    ModelFormatError
        Naming the variable and what is wrong with it.

    Examples
    --------
    >>> import io, scipy.io
    >>> file = io.BytesIO()
    >>> scipy.io.savemat(file, {"loss": "huber", "W1": np.eye(2)})
    >>> read_variables(file.getvalue(), {"loss": "text", "W1": "parameters"}.get, ())["loss"]
    ['huber']
    """
    order = _byte_order(raw)
    found: dict[str, NDArray[Any] | list[str]] = {}
    for source in _elements(raw, order):
        _read_variable(source, kind_of, ignore, found)
    if not found:
        refuse("file", "no variables")
    return found


def _byte_order(raw: bytes) -> str:
    """Return ``"<"`` or ``">"``, after a check that it is a file of this format."""
    if raw.startswith(b"MATLAB 7.3") or b"\x89HDF\r\n\x1a\n" in (raw[:8], raw[512:520]):
        refuse("file", "version 7.3 (which is HDF5) is not read: save it with -v7, as plain arrays")
    if len(raw) < _HEADER_BYTES or raw[124:128] not in (b"\x00\x01IM", b"\x01\x00MI"):
        refuse("file", "not a .mat file of version 5, 6 or 7")
    return "<" if raw[126:128] == b"IM" else ">"


class _Source:
    """The bytes of one variable in order, as they are or decompressed, no more at a time than are asked for."""

    def __init__(self, data: memoryview, order: str, compressed: bool) -> None:
        self.data, self.order = data, order
        self.inflate = zlib.decompressobj() if compressed else None
        self.left = _TAG_BYTES if compressed else len(data)  # a compressed variable's own tag comes first
        self.name = "file"

    def take(self, n: int) -> bytes:
        if n > self.left:
            refuse(self.name, "an element is longer than what holds it")
        self.left -= n
        if self.inflate is None:
            found, self.data = bytes(self.data[:n]), self.data[n:]
            return found
        found = self._inflated(n)
        if len(found) < n:
            refuse(self.name, "compressed data end too soon")
        return found

    def _inflated(self, n: int) -> bytes:
        assert self.inflate is not None
        try:
            # An amount of 0 would mean no limit.
            found = self.inflate.decompress(self.data, n) if n else b""
        except zlib.error as error:
            refuse(self.name, f"compressed data are damaged ({error})")
        self.data = memoryview(self.inflate.unconsumed_tail) if n else self.data
        return found

    def numbers(self, n: int, dtype: str) -> NDArray[Any]:
        return np.frombuffer(self.take(n), self.order + dtype)

    def element(self) -> tuple[int, bytes]:
        """Return an element's type and bytes."""
        tag = self.take(_TAG_BYTES)
        first, second = np.frombuffer(tag, f"{self.order}u4").tolist()
        if first >> 16:  # packed into the tag
            kind, n = first & 0xFFFF, first >> 16
            if n > 4:
                refuse(self.name, "a packed element of more than 4 bytes")
            return kind, tag[4 : 4 + n]
        content = self.take(second)
        self.take(min(-second % 8, self.left))
        return first, content

    def end(self) -> None:
        """Check that nothing is left over, and a compressed variable's checksum."""
        if self.left:
            refuse(self.name, f"{self.left} bytes too many")
        if self.inflate is not None and (self._inflated(1) or not self.inflate.eof or self.inflate.unused_data):
            refuse(self.name, "compressed data go on beyond their end")


def _elements(raw: bytes, order: str) -> Iterator[_Source]:
    """Yield the contents of each variable."""
    view = memoryview(raw)[_HEADER_BYTES:]
    while view:
        if len(view) < _TAG_BYTES:
            refuse("file", "ends inside an element")
        kind, n = np.frombuffer(view[:_TAG_BYTES], f"{order}u4").tolist()
        if kind not in (_MATRIX, _COMPRESSED):
            refuse("file", f"expected a variable, found an element of type {kind}")
        content = view[_TAG_BYTES : _TAG_BYTES + n]
        if len(content) < n:
            refuse("file", "ends inside a variable")
        view = view[_TAG_BYTES + n :]
        source = _Source(content, order, compressed=kind == _COMPRESSED)
        if kind == _COMPRESSED:
            inner, n = source.numbers(_TAG_BYTES, "u4").tolist()
            if inner != _MATRIX:
                refuse("file", f"expected a compressed variable, found an element of type {inner}")
            source.left = n
        yield source


def _read_variable(
    source: _Source, kind_of: Callable[[str], str | None], ignore: Collection[str], found: dict[str, Any]
) -> None:
    """Read one variable into `found`."""
    flags = _of_type(source, "flags", _UINT32, 8)
    dimensions = tuple(_of_type(source, "dimensions", _INT32, 4 * _MAX_DIMENSIONS).tolist())
    kind_of_name, raw_name = source.element()
    if kind_of_name not in _TEXT or len(raw_name) > _MAX_NAME:
        refuse("file", f"expected a variable's name of at most {_MAX_NAME} bytes")
    name = raw_name.decode("latin-1")
    if name in ignore:
        return
    source.name = name or "file"
    kind, array_class = kind_of(name), _CLASSES.get(int(flags[0]) & 0xFF, "unknown")
    if not name:
        refuse("file", "has data of functions or objects")
    if name in found:
        refuse(name, "occurs twice")
    if kind is None:
        refuse(name, "not understood; name it as one to ignore if it has nothing to do with the network")
    if array_class not in _EXPECTED[kind]:
        refuse(name, f"expected an array of class {' or '.join(map(str, _EXPECTED[kind][:2]))}, found {array_class}")
    if flags[0] & _COMPLEX:
        refuse(name, "expected real numbers, found complex ones")
    if len(dimensions) != 2 or min(dimensions) < 0:
        refuse(name, f"expected a matrix, found dimensions {dimensions}")
    stored, content = source.element()
    source.end()
    found[name] = (
        _lines(name, stored, content, dimensions, source.order)
        if kind == "text"
        else _matrix(name, stored, content, dimensions, source.order, "f4" if array_class == "single" else "f8")
    )


def _of_type(source: _Source, what: str, kind: int, most: int) -> NDArray[Any]:
    found, content = source.element()
    if found != kind or not 8 <= len(content) <= most or len(content) % 4:
        refuse("file", f"a variable's {what} are not as they must be")
    return np.frombuffer(content, source.order + _NUMBERS[kind])


def _matrix(name: str, stored: int, content: bytes, dimensions: Any, order: str, dtype: str) -> NDArray[Any]:
    """Return numbers as a matrix; MATLAB stores it column by column."""
    if stored not in _NUMBERS:
        refuse(name, f"expected numbers, found an element of type {stored}")
    size = np.dtype(_NUMBERS[stored]).itemsize
    if len(content) != math.prod(dimensions) * size:
        refuse(name, f"expected {math.prod(dimensions) * size} bytes for dimensions {dimensions}, found {len(content)}")
    values = np.frombuffer(content, order + _NUMBERS[stored]).reshape(dimensions, order="F")
    with np.errstate(over="ignore"):
        matrix = np.ascontiguousarray(values, dtype)
    finite = np.isfinite(matrix)
    if not finite.all():
        row, column = (int(i) for i in np.argwhere(~finite)[0])
        refuse(f"{name}({row + 1}, {column + 1})", f"expected finite numbers, found {matrix[row, column]}")
    return matrix


def _lines(name: str, stored: int, content: bytes, dimensions: Any, order: str) -> list[str]:
    """Return a char matrix as a line for each row; its columns count characters, or units of UTF-16."""
    if stored not in _TEXT:
        refuse(name, f"expected text, found an element of type {stored}")
    ends = "le" if order == "<" else "be"
    codec = f"{_TEXT[stored]}-{ends}" if _TEXT[stored] in ("utf-16", "utf-32") else _TEXT[stored]
    try:
        text = content.decode(codec)
        for unit, encoding in (("u4", "utf-32-le"), ("u2", "utf-16-le")):
            units = np.frombuffer(text.encode(encoding), f"<{unit}")
            if units.size == math.prod(dimensions):
                rows = units.reshape(dimensions, order="F")
                return [row.tobytes().decode(encoding).rstrip(" ") for row in rows]
    except UnicodeError as error:
        refuse(name, f"not text: {error}")
    refuse(name, f"expected {math.prod(dimensions)} characters for dimensions {dimensions}, found {len(text)}")
