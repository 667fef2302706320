"""HDF5 files of other programs, read as strictly as mlpkit's own: only who may be in them is not known beforehand."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mlpkit.direct_hdf5 import DTYPES
from mlpkit.strict_hdf5 import StrictReader, refuse

__all__ = ["ForeignReader"]

_MAX_MEMBERS = 10_000  # of all groups together: each takes memory of its own, many times its bytes in the file


class ForeignReader(StrictReader):
    """Opens the groups and arrays of one file, each once; links, filters and storage elsewhere are refused.

    Attributes are not opened at all, for some kinds of them can stand for memory without end.

    Parameters
    ----------
    file : h5py.File
        Open for reading, from `data`.
    data : bytes
        The whole file.
    """

    def __init__(self, file: h5py.File, data: bytes) -> None:
        super().__init__(file, len(data), newer=False)
        self._data = data
        self._n_members = 0

    def members(self, element: str) -> list[str]:
        """Open a member that must be a group, or the root, ``""``, and return the names of its own members."""
        if element:
            self._groups[element] = self._open(element, h5py.Group)
        group = self._groups[element].id
        names: set[str] = set()
        for raw in group:  # bytes, for a forged name need not be text
            where = f"{element}/{repr(raw)[2:-1]:.80}"
            if group.links.get_info(raw).type != h5py.h5l.TYPE_HARD:
                refuse(where, "expected a hard link, found a soft, an external or a user-defined link")
            try:
                name = raw.decode("ascii")
            except UnicodeDecodeError:
                refuse(where, "expected a name in ASCII")
            self._n_members += 1
            if name in names or self._n_members > _MAX_MEMBERS:
                refuse(where, "occurs twice" if name in names else f"more than {_MAX_MEMBERS} members in the file")
            names.add(name)
        return sorted(names)

    def array(self, element: str) -> NDArray[Any]:
        """Open a member that must be an array of float64 or float32, little-endian, and return it, read-only."""
        found = self._open(element, h5py.Dataset).id.get_type()
        name = next((name for name, hdf5_type in DTYPES.items() if found == hdf5_type), None)
        if name is None:
            refuse(element, "expected little-endian float64 or float32, found another type")
        extent, shape = self.dataset(element, None, DTYPES[name])  # type: ignore[arg-type]
        if extent.start == extent.stop:
            refuse(element, f"expected numbers, found an empty array of shape {shape!s:.80}")
        dtype = np.dtype(name)
        numbers = np.frombuffer(memoryview(self._data)[extent.start : extent.stop], dtype.newbyteorder("<"))
        return numbers.astype(dtype, copy=False).reshape(shape)

    def _check_attributes(self, *_: Any) -> dict[str, str]:
        return {}
