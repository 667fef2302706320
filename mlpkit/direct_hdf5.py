"""HDF5 files whose numbers do not pass through the HDF5 library: what models and checkpoints are laid out with.

On writing the library gives every array its place in the file, in a skeleton of which no number is written, and the
numbers go there straight from memory, without a second copy. On reading it says where they lie, once `StrictReader` has
found nothing wrong, and there they stay: the arrays are views of the memory that the file was read into. Documents in
JSON are small, and are written by the library.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mlpkit.errors import ModelFormatError
from mlpkit.hdf5_circles import refuse_circles
from mlpkit.paged_file import PagedFile
from mlpkit.sealed_file import SEAL_BYTES
from mlpkit.strict_hdf5 import Encoding, Extent, StrictReader, refuse
from mlpkit.strict_json import MAX_JSON_BYTES, parse_json

__all__ = ["ARRAY", "DTYPES", "Layout", "first_non_finite", "joined_numbers", "numbers_at", "opened", "read_document"]

DTYPES = {"float64": h5py.h5t.IEEE_F64LE, "float32": h5py.h5t.IEEE_F32LE}
ARRAY = Encoding("mlpkit.array", 1, 0)
_JSON = Encoding("mlpkit.json", 1, 0)

_SKELETON_PAGE = 4096
_ALIGNED = 64  # bytes of the file: what a reader finds at such places in memory is aligned there too
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
        self._file = h5py.File(
            self._skeleton,
            "w",
            userblock_size=SEAL_BYTES,
            libver=("v108", "v108"),
            alignment_threshold=1,
            alignment_interval=_ALIGNED,
        )
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


# How a local heap, a B-tree of the first version and a table of symbols begin: parts of groups as the oldest HDF5
# libraries lay them out. Files of ours have none.
_OLD_GROUPS = re.compile(rb"HEAP\x00|TREE[\x00\x01]|SNOD\x01")


class _Watched(io.RawIOBase):
    """Lets the HDF5 library read a file; before the first part of an old-style group, looks whether it has an end.

    Only what describes elements passes here; numbers and documents are read past the library.
    """

    def __init__(self, image: PagedFile) -> None:
        super().__init__()
        self._image = image
        self._looked = False
        self.reason: ModelFormatError | None = None
        self.seek, self.tell, self.readable, self.seekable = image.seek, image.tell, image.readable, image.seekable  # type: ignore[method-assign]

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as the file goes and return the number of bytes."""
        begin = self._image.tell()
        n_bytes = self._image.readinto(buffer)
        if not self._looked:
            # What begins before may have been read in part before.
            last = min(self._image.size, begin + n_bytes + 4)
            if _OLD_GROUPS.search(b"".join(self._image.pieces(max(0, begin - 4), last))):
                self._looked = True
                self._look()
        if self.reason is not None:
            raise OSError(str(self.reason))
        return n_bytes

    def _look(self) -> None:
        try:
            refuse_circles(b"".join(self._image.pieces(SEAL_BYTES, self._image.size)), base=SEAL_BYTES)
        except ModelFormatError as error:
            self.reason = error


@contextmanager
def opened(image: PagedFile | io.BytesIO) -> Iterator[h5py.File]:
    """Open a file of which only the seal is known to be right; whatever HDF5 complains of is a `ModelFormatError`.

    One in a `BytesIO` is taken to have been looked through by `refuse_circles`.
    """
    watched = _Watched(image) if isinstance(image, PagedFile) else None
    try:
        with h5py.File(image if watched is None else watched, "r") as file:
            yield file
    except (ModelFormatError, MemoryError):
        if watched is not None and watched.reason is not None:
            raise watched.reason from None
        raise
    except Exception as error:
        if watched is not None and watched.reason is not None:
            raise watched.reason from None
        # h5py turns the HDF5 library's complaints into half a dozen kinds of exception.
        raise ModelFormatError(f"content: the HDF5 library cannot read it ({error!s:.400})") from error


def read_document(reader: StrictReader, image: PagedFile, element: str) -> Any:
    """Check and read a member that must be a document in JSON."""
    extent, shape = reader.dataset(element, _JSON, h5py.h5t.STD_U8LE)
    if len(shape) != 1 or not 1 <= shape[0] <= MAX_JSON_BYTES:
        refuse(element, f"expected 1 to {MAX_JSON_BYTES} bytes, found shape {shape!s:.80}")
    return parse_json(b"".join(image.pieces(extent.start, extent.stop)), element)


def numbers_at(image: PagedFile, extent: Extent, dtype: str) -> NDArray[Any]:
    """Return the numbers that lie somewhere in a file of one page, a vector: where they are, if they are aligned there.

    Such arrays keep the memory of the whole file.
    """
    stored = image.page(0)[extent.start : extent.stop].view(np.dtype(dtype).newbyteorder("<"))
    return np.require(stored, dtype, "A")


def joined_numbers(image: PagedFile, extents: Sequence[Extent], dtype: str) -> NDArray[Any]:
    """Return the numbers of several datasets as one vector, for which the file, of one page, is given up.

    Where they follow one another in the file, as in one written here, they are moved together over what little lies
    between them. Only others need memory of their own.
    """
    page, n_bytes = image.page(0), sum(stop - start for start, stop, _ in extents)
    if list(extents) == sorted(extents):
        first = extents[0].start // _ALIGNED * _ALIGNED
        target, origin = page[first : first + n_bytes], first
    else:
        target, origin = np.empty(n_bytes, np.uint8), None
    place = 0
    for start, stop, _ in extents:
        if origin is None or origin + place != start:
            target[place : place + stop - start] = page[start:stop]
        place += stop - start
    return target.view(np.dtype(dtype).newbyteorder("<")).astype(dtype, copy=False)


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
