"""States in a file: named arrays, integers and strings, with an index in JSON that says what there must be.

A state is a group of two members. ``values`` is the index, a JSON object with an entry for each name: the integer or
string itself, or for an array ``{"dtype": "float64", "shape": [30, 4]}``. ``arrays`` is a group of exactly these
arrays, each a dataset of its name. So what is in the group is known, and its size, before anything is opened or
allocated. Arrays come back to the bit, NaNs with what they carry, and in their order.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlpkit.checks import shown
from mlpkit.descent import State
from mlpkit.direct_hdf5 import ARRAY, DTYPES, Layout, read_document
from mlpkit.errors import InvalidArgumentError
from mlpkit.paged_file import PagedFile
from mlpkit.sealed_file import MAX_FILE_BYTES
from mlpkit.strict_hdf5 import Encoding, Extent, StrictReader, refuse
from mlpkit.strict_json import to_json

__all__ = ["ArraySpec", "StatePlan", "lay_out_state", "plan_state", "read_index"]

_STATE = Encoding("mlpkit.state", 1, 0)
_ARRAYS = Encoding("mlpkit.arrays", 1, 0)

_LOWEST, _HIGHEST = -(2**63), 2**64 - 1
_MAX_NAME_BYTES = 255
_MAX_NDIM = 32  # of HDF5
_NAMES = f'names of 1 to {_MAX_NAME_BYTES} bytes as UTF-8, without "/" and control characters, and none of "."'


class ArraySpec(NamedTuple):
    """What an array of a state is like."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of numbers, as a Python integer that cannot overflow."""
        return math.prod(self.shape)


class StatePlan(NamedTuple):
    """A state that has been checked and can be written: its index as JSON, and its arrays."""

    values: bytes
    arrays: dict[str, NDArray[Any]]

    @property
    def n_bytes(self) -> int:
        """The arrays' bytes in all."""
        return sum(array.nbytes for array in self.arrays.values())


#: Name -> the integer or string, or what the array is like.
Index: TypeAlias = dict[str, int | str | ArraySpec]


# ----------------------------------------------------------------------------------------- writing


def plan_state(state: State, what: str) -> StatePlan:
    """Check that a state can be written, and read again as it is.

    Raises
    ------
    InvalidArgumentError
        Naming the element of `what`, what was expected and what was found.

    Examples
    --------
    >>> plan_state({"iteration": 7, "step": np.array(0.5)}, "state").arrays
    {'step': array(0.5)}
    >>> plan_state({"step": 0.5}, "state")
    Traceback (most recent call last):
        ...
    mlpkit.errors.InvalidArgumentError: state['step']: expected a float64 or float32 array, an int or a str; found 0.5
    """
    index: dict[str, Any] = {}
    arrays = {}
    value: Any
    for name, value in state.items():
        if not isinstance(name, str) or not _is_name(name):
            raise InvalidArgumentError(f"{what}: expected {_NAMES}; found {shown(name)}")
        where = f"{what}[{shown(name)}]"
        # Not their subclasses: what a bool or a masked array has beyond them would be lost.
        if type(value) in (np.ndarray, np.float64, np.float32) and str(value.dtype) in DTYPES:
            arrays[name] = array = np.asarray(value)
            if array.ndim > _MAX_NDIM:
                raise InvalidArgumentError(f"{where}: expected at most {_MAX_NDIM} dimensions; found {array.ndim}")
            index[name] = {"dtype": array.dtype.name, "shape": list(array.shape)}
        elif type(value) is int:
            if not _LOWEST <= value <= _HIGHEST:
                raise InvalidArgumentError(f"{where}: expected an integer of 64 bits; found {shown(value)}")
            index[name] = value
        elif type(value) is str:
            index[name] = value
        else:
            found = f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else shown(value)
            raise InvalidArgumentError(f"{where}: expected a float64 or float32 array, an int or a str; found {found}")
    return StatePlan(to_json(index, what), arrays)


def lay_out_state(layout: Layout, element: str, plan: StatePlan) -> None:
    """Make a state's group in a file."""
    layout.group(element, _STATE)
    layout.document(f"{element}/values", plan.values)
    layout.group(f"{element}/arrays", _ARRAYS)
    for name, array in plan.arrays.items():
        layout.array(f"{element}/arrays/{name}", np.ravel(array), array.shape)


def _is_name(name: str) -> bool:
    try:
        n_bytes = len(name.encode("utf-8"))
    except UnicodeEncodeError:  # half surrogates
        return False
    controls = any(character < " " or "\x7f" <= character < "\xa0" for character in name)
    return 1 <= n_bytes <= _MAX_NAME_BYTES and "/" not in name and not controls and name != "."


# ----------------------------------------------------------------------------------------- reading


def read_index(reader: StrictReader, image: PagedFile, element: str) -> tuple[Index, dict[str, Extent]]:
    """Check a state's group and return its index, in order, and where the numbers of its arrays lie."""
    reader.group(element, _STATE, ["values", "arrays"])
    where = f"{element}/values"
    raw = read_document(reader, image, where)
    if not isinstance(raw, dict):
        refuse(where, f"expected an object, found {type(raw).__name__}")
    index = {name: _read_entry(name, value, where) for name, value in raw.items()}
    specs = {name: entry for name, entry in index.items() if isinstance(entry, ArraySpec)}
    reader.group(f"{element}/arrays", _ARRAYS, list(specs))
    extents = {}
    for name, spec in specs.items():
        extents[name], _ = reader.dataset(f"{element}/arrays/{name}", ARRAY, DTYPES[spec.dtype], spec.shape)
    return index, extents


def _read_entry(name: str, value: Any, where: str) -> int | str | ArraySpec:
    if not _is_name(name):
        refuse(where, f"expected {_NAMES}; found {name!r:.80}")
    where = f"{where}: {name}"
    if isinstance(value, str):
        return value
    if type(value) is int:
        if not _LOWEST <= value <= _HIGHEST:
            refuse(where, f"expected an integer of 64 bits, found one of {value.bit_length()}")
        return value
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape"}:
        refuse(where, f"expected an integer, a string or an array's dtype and shape, found {value!r:.80}")
    dtype, shape = value["dtype"], value["shape"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        refuse(f"{where}: dtype", f"expected float64 or float32, found {dtype!r:.80}")
    if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
        refuse(f"{where}: shape", f"expected a list of lengths, found {shape!r:.80}")
    # Lengths beside a 0 count too, for NumPy does not make arrays of any.
    n_bytes = math.prod(max(length, 1) for length in shape) * DTYPES[dtype].get_size()
    if len(shape) > _MAX_NDIM or n_bytes > MAX_FILE_BYTES:
        refuse(f"{where}: shape", f"more than {_MAX_NDIM} dimensions or {MAX_FILE_BYTES} bytes: {shape!r:.80}")
    return ArraySpec(dtype, tuple(shape))
