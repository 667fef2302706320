"""HDF5 files whose numbers do not pass through the HDF5 library: what models and checkpoints are laid out with.

On writing the library gives every array its place in the file, in a skeleton of which no number is written, and the
numbers go there straight from memory, without a second copy. On reading it says where they lie, once `StrictReader` has
found nothing wrong, and they are taken from there. Documents in JSON are small, and are written by the library.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mlpkit.errors import ModelFormatError
from mlpkit.paged_file import PagedFile
from mlpkit.sealed_file import SEAL_BYTES
from mlpkit.strict_hdf5 import Encoding, Extent, StrictReader, refuse
from mlpkit.strict_json import MAX_JSON_BYTES, parse_json

__all__ = ["ARRAY", "DTYPES", "Layout", "first_non_finite", "move_numbers", "opened", "read_document"]

DTYPES = {"float64": h5py.h5t.IEEE_F64LE, "float32": h5py.h5t.IEEE_F32LE}
ARRAY = Encoding("mlpkit.array", 1, 0)
_JSON = Encoding("mlpkit.json", 1, 0)

_SKELETON_PAGE = 4096
_BLOCK = 2**17  # numbers looked at in one go: what fits the cache


# ----------------------------------------------------------------------------------------- writing


class Layout:
    r"""A file to be: its elements are made one by one, groups before their members, then its bytes can be had.

    Parameters
    ----------
    root : Encoding
        Of the root group.
    texts : dict of str
        Attributes of the root group.

    Examples
    --------
    >>> with Layout(Encoding("example", 1, 0), {}) as layout:
    ...     layout.array("/x", np.arange(3.0), (3,))
    >>> b"".join(layout.pieces())[:4]
    b'\x89HDF'
    """

    def __init__(self, root: Encoding, texts: dict[str, str]) -> None:
        self._skeleton = PagedFile(_SKELETON_PAGE)
        self._arrays: list[tuple[int, NDArray[Any]]] = []  # place in the file, numbers
        self._file = h5py.File(self._skeleton, "w", userblock_size=SEAL_BYTES, libver=("v108", "v108"))
        _describe(self._file, root)
        for name, text in texts.items():
            self._file.attrs[name] = np.bytes_(text.encode("ascii", "replace"))

    def __enter__(self) -> Layout:
        return self

    def __exit__(self, *details: object) -> None:
        self._file.close()

    def group(self, element: str, encoding: Encoding) -> None:
        """Make a group."""
        _describe(self._file.create_group(element), encoding)

    def document(self, element: str, raw: bytes) -> None:
        """Make a dataset of bytes, which are JSON."""
        _describe(self._file.create_dataset(element, data=np.frombuffer(raw, np.uint8)), _JSON)

    def array(self, element: str, numbers: NDArray[Any], shape: tuple[int, ...]) -> None:
        """Make a dataset of a shape for these numbers, a contiguous vector, of which HDF5 writes none."""
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.CONTIGUOUS)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        properties.set_obj_track_times(False)  # the same content, the same bytes
        space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
        name = element.encode("utf-8")
        h5py.h5d.create(self._file.id, name, DTYPES[numbers.dtype.name], space, properties)
        dataset = self._file[element]
        _describe(dataset, ARRAY)
        if numbers.size:
            stored = numbers.astype(numbers.dtype.newbyteorder("<"), copy=False)
            self._arrays.append((int(dataset.id.get_offset()), stored))

    def pieces(self) -> Iterator[memoryview]:
        """Yield the bytes of the file, from where the seal ends; the arrays' straight from where they are."""
        position = SEAL_BYTES
        for start, numbers in sorted(self._arrays, key=lambda array: array[0]):
            yield from self._skeleton.pieces(position, start)
            yield numbers.data
            position = start + numbers.nbytes
        yield from self._skeleton.pieces(position, self._skeleton.size)


def _describe(element: Any, encoding: Encoding) -> None:
    element.attrs["encoding-type"] = np.bytes_(encoding.name)
    element.attrs["encoding-version"] = np.bytes_(encoding.version)


# ----------------------------------------------------------------------------------------- reading


@contextmanager
def opened(image: PagedFile) -> Iterator[h5py.File]:
    """Open a file of which only the seal is known to be right; whatever HDF5 complains of is a `ModelFormatError`."""
    try:
        with h5py.File(image, "r") as file:
            yield file
    except (ModelFormatError, MemoryError):
        raise
    except Exception as error:
        # h5py turns the HDF5 library's complaints into half a dozen kinds of exception.
        raise ModelFormatError(f"content: the HDF5 library cannot read it ({error!s:.400})") from error


def read_document(reader: StrictReader, image: PagedFile, element: str) -> Any:
    """Check and read a member that must be a document in JSON."""
    extent, shape = reader.dataset(element, _JSON, h5py.h5t.STD_U8LE)
    if len(shape) != 1 or not 1 <= shape[0] <= MAX_JSON_BYTES:
        refuse(element, f"expected 1 to {MAX_JSON_BYTES} bytes, found shape {shape!s:.80}")
    return parse_json(b"".join(image.pieces(extent.start, extent.stop)), element)


def move_numbers(image: PagedFile, moves: Iterable[tuple[Extent, NDArray[Any]]]) -> None:
    """Move numbers from where they lie in the file to arrays, contiguous vectors of as many bytes.

    The file's pages are given back on the way, so that file and arrays together never take twice the memory.
    """
    released = 0
    for extent, numbers in sorted(moves, key=lambda move: move[0]):
        target, first, position = numbers.view(np.uint8), 0, extent.start
        for piece in image.pieces(extent.start, extent.stop):
            target[first : first + len(piece)] = piece
            first, position = first + len(piece), position + len(piece)
            for number in range(released, position // image.page_bytes):
                image.release(number)
            released = max(released, position // image.page_bytes)
        if sys.byteorder == "big":
            numbers.byteswap(inplace=True)


def first_non_finite(numbers: NDArray[Any]) -> int | None:
    """Return the index of the first NaN or infinity in a vector.

    Examples
    --------
    >>> first_non_finite(np.array([1.0, np.inf]))
    1
    """
    for start in range(0, numbers.size, _BLOCK):
        finite = np.isfinite(numbers[start : start + _BLOCK])
        if not finite.all():
            return start + int(np.argmin(finite))
    return None
