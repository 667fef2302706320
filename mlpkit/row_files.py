"""Data that stay where they are: .npy, HDF5 and Zarr files, memory maps, and whatever else gives rows when sliced.

What users may hand in for X and Y beside arrays:

- the path of a ``.npy`` file;
- the path of an HDF5 file (``.h5``, ``.hdf5``), with the dataset's name after a colon, ``"data.h5:/train/X"``, or as a
  pair ``("data.h5", "/train/X")``; a file with a single dataset needs no name;
- the path of a Zarr array (``.zarr``; of an array in a group as with HDF5), with the extra ``mlpkit[zarr]``;
- an open ``h5py.Dataset`` or Zarr array, a ``numpy.memmap``, and any object with ``shape``, ``dtype`` and slices of
  rows.

Files are looked at before and after each pass: one that has changed, or is gone, is a `DataFileError`.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from io import FileIO
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mlpkit.checks import shown
from mlpkit.errors import DataFileError, InvalidArgumentError, import_extra

__all__ = ["RowSource", "open_rows", "refuse_files"]

_HDF5 = (".h5", ".hdf5")
_WINDOW_BYTES = 1 << 20


class RowSource:
    """Rows that are read when they are wanted.

    Parameters
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    text : str
        What it is called in messages.
    path : str, optional
        A file whose identity, size and time of change must stay what they are now.
    granule : int
        Rows that can only be read together, as those of a compressed chunk.

    Attributes
    ----------
    key : object
        Equal for two sources of the same data.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], text: str, path: str | None = None, granule: int = 1
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.text = text
        self.key: object = (text,) if path is not None else id(self)
        self._path = path
        self._stamp = None if path is None else _stamp(path)
        self._granule = granule
        self._window: tuple[int, NDArray[Any]] | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return self.text

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_window", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _window=None, _lock=threading.Lock())

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as it is stored."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def window_bytes(self) -> int:
        """Bytes held while rows are read."""
        return self._granule * self.row_bytes + (_WINDOW_BYTES if self._granule > 1 else 0)

    def rows(self, begin: int, end: int) -> NDArray[Any]:
        """Return rows begin to end - 1, for any thread."""
        if self._granule == 1:
            return self._checked(begin, end)
        with self._lock:
            return self._rows_of_window(begin, end)

    def _rows_of_window(self, begin: int, end: int) -> NDArray[Any]:
        if self._window is not None:
            start, held = self._window
            if start <= begin and end <= start + len(held):
                return held[begin - start : end - start]
        self._window = None  # not two at once
        g, least = self._granule, _WINDOW_BYTES // max(1, self.row_bytes)
        start = begin // g * g
        stop = min(-(-max(end, start + least) // g) * g, self.shape[0])
        held = self._checked(start, stop)
        self._window = start, held
        return held[begin - start : end - start]

    def _checked(self, begin: int, end: int) -> NDArray[Any]:
        try:
            block = self._read(begin, end)
        except (MemoryError, DataFileError):
            raise
        except Exception as error:  # whatever the reader of this kind of file raises
            self.check_unchanged()
            raise DataFileError(f"rows {begin} to {end - 1} of {self.text} cannot be read: {error}") from error
        if block.shape != (end - begin, *self.shape[1:]):
            raise DataFileError(
                f"rows {begin} to {end - 1} of {self.text} must have shape {(end - begin, *self.shape[1:])}; found "
                f"{block.shape}"
            )
        return block

    def _read(self, begin: int, end: int) -> NDArray[Any]:
        raise NotImplementedError

    def read_ahead(self, begin: int, end: int) -> bool:
        """Have the system read rows soon, if it can be asked to; False if not."""
        return False

    def place(self) -> tuple[int, int] | None:
        """Return an open file's descriptor and where in it the rows begin, one after another; None if they do not."""
        return None

    def check_unchanged(self) -> None:
        """Raise an error if the file is not the one that was opened, or has been written to."""
        if self._path is None:
            return
        try:
            now = _stamp(self._path)
        except OSError as error:
            raise DataFileError(f"{self.text} was there when the objective was made and is gone: {error}") from error
        if now != self._stamp:
            raise DataFileError(f"{self.text} has changed since the objective was made: make a new one")


def _stamp(path: str) -> tuple[int, ...]:
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class _NpyRows(RowSource):
    """Rows of a C-ordered .npy file, read and not mapped: a map of it would count against limits of address space."""

    def __init__(self, path: str) -> None:
        shape, _, dtype, self._offset = _npy_header(path)
        super().__init__(shape, dtype, repr(path), path)
        size = os.path.getsize(path)
        needed = self._offset + shape[0] * self.row_bytes if shape else 0
        if size < needed:
            raise InvalidArgumentError(f"{path!r} must have {needed} bytes, as its header says; found {size}")
        self.key = os.path.realpath(path)
        self._file: FileIO | None = None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_file": None}

    def _read(self, begin: int, end: int) -> NDArray[Any]:
        block = np.empty((end - begin, *self.shape[1:]), self.dtype)
        rest = block.reshape(-1).view(np.uint8).data
        place = self._offset + begin * self.row_bytes
        while rest.nbytes:
            n = self._read_into(rest, place)
            if not n:
                raise EOFError("the file ends before them")
            rest, place = rest[n:], place + n
        return block

    def read_ahead(self, begin: int, end: int) -> bool:
        """Have the system read rows soon, if it can be asked to; False if not."""
        if not hasattr(os, "posix_fadvise"):
            return False
        place, size = self._offset + begin * self.row_bytes, (end - begin) * self.row_bytes
        os.posix_fadvise(self._opened().fileno(), place, size, os.POSIX_FADV_WILLNEED)
        return True

    def place(self) -> tuple[int, int] | None:
        """Return an open file's descriptor and where in it the rows begin, one after another."""
        return self._opened().fileno(), self._offset

    def _read_into(self, buffer: memoryview, place: int) -> int:
        file = self._opened()
        if hasattr(os, "preadv"):
            return os.preadv(file.fileno(), [buffer], place)
        with self._lock:
            file.seek(place)
            return file.readinto(buffer)

    def _opened(self) -> FileIO:
        with self._lock:
            if self._file is None:
                self.check_unchanged()
                file = FileIO(str(self._path))
                weakref.finalize(self, file.close)
                self._file = file
            return self._file


def _npy_header(path: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, order, dtype = read(file)
        except (ValueError, KeyError) as error:
            raise InvalidArgumentError(f"{path!r} cannot be read as .npy: {error}") from error
        return shape, order and len(shape) > 1, dtype, file.tell()


class _H5Rows(RowSource):
    """Rows of an HDF5 dataset: by the names of file and dataset, or of one that its owner has open."""

    def __init__(self, path: str, name: str | None, dataset: h5py.Dataset | None = None) -> None:
        self._dataset = dataset
        self._name = name
        if dataset is None:
            dataset = self._open(path)
        # A file that its owner may write to changes its size and time of itself.
        watched = path if os.path.isfile(path) and dataset.file.mode == "r" else None
        text = f"{path}:{dataset.name}"
        super().__init__(dataset.shape or (), dataset.dtype, repr(text), watched, (dataset.chunks or (1,))[0])
        self.key = os.path.realpath(path), dataset.name
        self._reopen = path, dataset.name

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_dataset": None}

    def _open(self, path: str) -> h5py.Dataset:
        try:
            file = h5py.File(path, "r")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise InvalidArgumentError(f"{path!r} cannot be read as HDF5: {error}") from error
        found: dict[str, h5py.Dataset] = {}

        def collect(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = item

        file.visititems(collect)
        name = next(iter(found)) if self._name is None and len(found) == 1 else (self._name or "").strip("/")
        if name not in found:
            raise InvalidArgumentError(
                f"{path!r} must be given with the name of a dataset, as '{path}:/name'; its datasets are "
                f"{', '.join(sorted(found)) or 'none'}; found {self._name!r}"
            )
        self._dataset = found[name]
        return self._dataset

    def _read(self, begin: int, end: int) -> NDArray[Any]:
        if self._dataset is None:
            path, self._name = self._reopen
            self.check_unchanged()
            self._open(path)
        assert self._dataset is not None
        return self._dataset[begin:end]


class _ObjectRows(RowSource):
    """Rows of any object that gives them when it is sliced."""

    def __init__(self, values: Any, text: str, path: str | None = None) -> None:
        chunks = getattr(values, "chunks", None)
        granule = chunks[0] if isinstance(chunks, tuple) and chunks and isinstance(chunks[0], int) else 1
        super().__init__(tuple(values.shape), np.dtype(values.dtype), text, path, granule)
        self.key = id(values) if path is None or isinstance(values, np.ndarray) else (os.path.realpath(path), text)
        self._values = values

    def _read(self, begin: int, end: int) -> NDArray[Any]:
        return np.asarray(self._values[begin:end])


def open_rows(values: Any, name: str) -> RowSource | None:
    """Return a source for what is not an array in memory; None for arrays, lists, data frames and the like.

    Examples
    --------
    >>> open_rows([[1.0]], "X") is None
    True
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "X.npy")
    ...     np.save(path, np.eye(3))
    ...     source = open_rows(path, "X")
    ...     source.shape, source.rows(1, 2)
    ((3, 3), array([[0., 1., 0.]]))
    """
    source = _open(values, name)
    if source is not None and source.dtype.kind not in "biuf":
        raise InvalidArgumentError(f"{name} must be an array of real numbers; found dtype {source.dtype}")
    return source


def refuse_files(values: Any, name: str, why: str) -> None:
    """Raise an error for what `open_rows` would open.

    Examples
    --------
    >>> refuse_files([[1.0]], "X", "where there are metrics")
    """
    if open_rows(values, name) is not None:
        raise InvalidArgumentError(f"{name} must be an array in memory {why}; found {type(values).__name__}")


def _open(values: Any, name: str) -> RowSource | None:
    if isinstance(values, tuple) and len(values) == 2 and all(isinstance(v, str | os.PathLike) for v in values):
        return _open_path(os.fspath(values[0]), str(values[1]), name)
    if isinstance(values, str | os.PathLike):
        path, inside = os.fspath(values), None
        for ending in (*_HDF5, ".zarr"):
            if f"{ending}:" in path.lower() and not os.path.exists(path):
                at = path.lower().rindex(f"{ending}:") + len(ending)
                path, inside = path[:at], path[at + 1 :]
        return _open_path(path, inside, name)
    if isinstance(values, h5py.Dataset):
        return _H5Rows(str(values.file.filename), values.name, values)
    if isinstance(values, np.memmap):
        # What is open for writing may be written to through the map at any moment.
        path = str(values.filename) if values.filename is not None and values.mode in ("r", "c") else None
        text = "a numpy.memmap" if values.filename is None else f"the numpy.memmap of {str(values.filename)!r}"
        return _ObjectRows(values, text, path)
    if isinstance(values, np.ndarray | np.generic) or hasattr(values, "iloc"):
        return None
    shape, dtype = getattr(values, "shape", None), getattr(values, "dtype", None)
    if not (isinstance(shape, tuple) and shape and dtype is not None and hasattr(values, "__getitem__")):
        return None
    try:
        np.dtype(dtype)
    except TypeError:  # a tensor of a library with dtypes of its own, which NumPy converts as a whole
        return None
    return _ObjectRows(values, f"{name}, a {type(values).__name__}")


def _open_path(path: str, inside: str | None, name: str) -> RowSource:
    ending = os.path.splitext(path)[1].lower()
    if ending not in (".npy", ".zarr", *_HDF5):
        raise InvalidArgumentError(
            f"{name} must be an array, or the path of a .npy, .h5, .hdf5 or .zarr file; found {shown(path)}"
        )
    try:
        if ending in _HDF5:
            return _H5Rows(path, inside)
        if ending == ".zarr":
            return _open_zarr(path, inside, name)
        if _npy_header(path)[1]:  # columns one after the other
            return _ObjectRows(np.load(path, mmap_mode="r"), repr(path), path)
        return _NpyRows(path)
    except OSError as error:
        raise InvalidArgumentError(f"{name} must name a file that can be read; found {path!r}: {error}") from error


def _open_zarr(path: str, inside: str | None, name: str) -> RowSource:
    zarr = import_extra("zarr", extra="zarr")
    place = os.path.join(path, inside.strip("/")) if inside else path
    try:
        array = zarr.open_array(place, mode="r")
    except Exception as error:  # which exceptions these are depends on zarr's version
        raise InvalidArgumentError(f"{name} must name a Zarr array; found {place!r}: {error}") from error
    watched = next((p for p in (os.path.join(place, m) for m in ("zarr.json", ".zarray")) if os.path.exists(p)), None)
    return _ObjectRows(array, repr(place), watched)
