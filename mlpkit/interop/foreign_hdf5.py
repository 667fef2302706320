"""HDF5 files of other programs, read as strictly as mlpkit's own: only who may be in them is not known beforehand.

They are laid out as the oldest HDF5 libraries do it, and there the present one (2.0) can be led around in a circle: the
list of free blocks in a group's heap may come back to where it was, and opening the group never ends. So those lists
are followed here before the library sees the file.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mlpkit.direct_hdf5 import DTYPES
from mlpkit.strict_hdf5 import StrictReader, refuse

__all__ = ["ForeignReader", "check_heaps"]

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Where the superblock of each version has the sizes of addresses and of lengths, and the base of all addresses.
_SUPERBLOCKS = {0: (13, 24), 1: (13, 28), 2: (9, 12), 3: (9, 12)}
_FREE_NULL = 1  # the end of a list of free blocks
_MAX_MEMBERS = 10_000  # of all groups together: each takes memory of its own, many times its bytes in the file


def check_heaps(data: bytes) -> None:
    """Refuse a file in which the free blocks of a heap are linked in a circle, and addresses of unusual size or base.

    Raises
    ------
    ModelFormatError
        If it is not an HDF5 file, or one in which the library could be caught for ever.

    Examples
    --------
    >>> import io
    >>> file = io.BytesIO()
    >>> with h5py.File(file, "w") as made:
    ...     group = made.create_group("layers")
    >>> check_heaps(file.getvalue())
    """
    if not data.startswith(_SIGNATURE) or len(data) < 48:
        refuse("file", "not an HDF5 file")
    sizes, base = _SUPERBLOCKS.get(data[8], (0, 0))
    if not sizes or data[sizes : sizes + 2] != b"\x08\x08" or any(data[base : base + 8]):
        refuse("superblock", "expected version 0 to 3, addresses and lengths of 8 bytes, and base 0")
    seen: set[int] = set()  # addresses of free blocks, of which no two lists share one
    place = data.find(b"HEAP")
    while place >= 0:
        length, head, segment = (_integer(data, place + at) for at in (8, 16, 24))
        while head != _FREE_NULL and head < length and segment + head + 16 <= len(data):
            if segment + head in seen:
                refuse("heap", f"its list of free blocks, at byte {place}, runs in a circle or into another's")
            seen.add(segment + head)
            head = _integer(data, segment + head)
        place = data.find(b"HEAP", place + 1)


def _integer(data: bytes, place: int) -> int:
    return int.from_bytes(data[place : place + 8], "little")


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
