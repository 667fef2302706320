"""The IDX files in which MNIST and its kin (Fashion-MNIST, EMNIST, KMNIST) are handed round, gzipped or not.

A file is, in big-endian order,

    0, 0, type, d         one byte each: what a number is (see `TYPES`), and how many dimensions there are
    size_1, ..., size_d   four bytes each, unsigned
    the numbers           the last index running fastest

and nothing else. What a header says is believed only once the file can hold it: an array is allocated when its size is
within a limit and agrees with the file's own, or, in a gzipped file, is no more than so many bytes can ever unpack to.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mlpkit.checks import check_choice, check_integer
from mlpkit.errors import InvalidArgumentError

__all__ = ["load_mnist", "read_idx"]

# The third byte of a file, and the type of its numbers.
TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

_MAX_DIMENSIONS = 32
_GZIP = b"\x1f\x8b"
_MOST_EXPANSION = 1032  # bytes from one byte of deflate: 258 for each 2 bits
_CHUNK = 1 << 20

# The four parts of a data set, each with the names that it goes by; ".gz" may follow.
_PARTS = {
    "training images": ("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
    "training labels": ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte"),
    "test images": ("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte", "test-images-idx3-ubyte"),
    "test labels": ("t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte", "test-labels-idx1-ubyte"),
}


def read_idx(path: str | os.PathLike[str], *, max_bytes: int = 2**32) -> NDArray[Any]:
    """Read an IDX file, gzipped or not: which of the two it is, its first bytes say and not its name.

    Parameters
    ----------
    path : path
        The file.
    max_bytes : int
        The largest array to allocate, in bytes; 4 GiB unless you say otherwise.

    Returns
    -------
    ndarray
        Of the shape that the file says and uint8, int8, int16, int32, float32 or float64, in the machine's own byte
        order.

    Raises
    ------
    InvalidArgumentError
        For a file that is missing, of another kind, damaged, cut short or too long, and for one that says it holds
        more than `max_bytes`; the message names the file and what is wrong. Memory is not taken before that is known.

    Examples
    --------
    >>> import gzip, pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "labels"
    ...     _ = path.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1])))
    ...     read_idx(path)
    array([7, 2, 1], dtype=uint8)
    """
    max_bytes = check_integer(max_bytes, "max_bytes", low=1)
    file_path = _check_path(path, "path")
    if not file_path.is_file():
        raise InvalidArgumentError(f"path must name an existing file; found no file {str(file_path)!r}")
    try:
        with file_path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            gzipped = file.read(2) == _GZIP
            file.seek(0)
            if not gzipped:
                return _read(file, length, False, max_bytes)
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read(unpacked, length, True, max_bytes)
    except _WrongError as error:
        raise InvalidArgumentError(f"{str(file_path)!r} cannot be read as IDX: {error}") from None
    except (OSError, EOFError, zlib.error) as error:  # how files that cannot be read and damaged gzip come to light
        reason = str(error) or type(error).__name__
        raise InvalidArgumentError(f"{str(file_path)!r} cannot be read as IDX: {reason}") from error


def load_mnist(
    folder: str | os.PathLike[str], *, dtype: DTypeLike = "float64"
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[Any], NDArray[np.int64]]:
    """Load MNIST, or a data set that comes in the same files, from a folder: images ready to be learnt from.

    Parameters
    ----------
    folder : path
        Where the four files are, by the names that they are handed round with: ``train-images-idx3-ubyte``,
        ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, or with a dot before
        ``idx``, or ``test`` in the place of ``t10k``; each with or without ``.gz``. Nothing is downloaded.
    dtype : {"float64", "float32"}
        The type of the pixels.

    Returns
    -------
    X : ndarray, shape (m, height * width)
        Training images, one a row, row by row from the top, black 0 and white 1.
    y : ndarray of int64, shape (m,)
        Their labels.
    X_test : ndarray, shape (m_test, height * width)
        Test images.
    y_test : ndarray of int64, shape (m_test,)
        Their labels.

    Raises
    ------
    InvalidArgumentError
        If files are missing, all of which are listed, cannot be read (see `read_idx`), or do not fit together.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> def idx(*sizes):
    ...     header = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
    ...     return header + bytes(range(math.prod(sizes)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for part in ("train", "t10k"):
    ...         _ = (pathlib.Path(folder) / f"{part}-images-idx3-ubyte").write_bytes(idx(5, 3, 2))
    ...         _ = (pathlib.Path(folder) / f"{part}-labels-idx1-ubyte").write_bytes(idx(5))
    ...     X, y, X_test, y_test = load_mnist(folder)
    >>> X.shape, y
    ((5, 6), array([0, 1, 2, 3, 4]))
    """
    place = _check_path(folder, "folder")
    try:
        kind = np.dtype(dtype).name
    except TypeError:
        kind = str(dtype)
    check_choice(kind, "dtype", ("float64", "float32"))
    if not place.is_dir():
        raise InvalidArgumentError(f"folder must name an existing folder; found no folder {str(place)!r}")
    found = {part: _find(place, names) for part, names in _PARTS.items()}
    missing = [f"{part} ({_PARTS[part][0]}[.gz])" for part, path in found.items() if path is None]
    if missing:
        raise InvalidArgumentError(
            f"folder must hold MNIST's four files; {str(place)!r} lacks the {', the '.join(missing)}"
        )
    files = [path for path in found.values() if path is not None]
    arrays = [read_idx(path) for path in files]
    for path, array, dimensions in zip(files, arrays, (3, 1, 3, 1), strict=True):
        if array.ndim != dimensions or array.dtype != np.uint8:
            wanted = "images, (m, height, width)" if dimensions == 3 else "labels, (m,)"
            raise InvalidArgumentError(
                f"{str(path)!r} must hold {wanted} of dtype uint8; found shape {array.shape} of dtype {array.dtype}"
            )
    images, labels, test_images, test_labels = arrays
    for given, counted, path in ((images, labels, files[1]), (test_images, test_labels, files[3])):
        if len(given) != len(counted):
            raise InvalidArgumentError(
                f"{str(path)!r} must hold a label for each of {len(given)} images; found {len(counted)}"
            )
    if images.shape[1:] != test_images.shape[1:]:
        raise InvalidArgumentError(
            f"{str(files[2])!r} must hold images of the training images' size {images.shape[1:]}; found "
            f"{test_images.shape[1:]}"
        )
    return _rows(images, kind), labels.astype(np.int64), _rows(test_images, kind), test_labels.astype(np.int64)


class _WrongError(Exception):
    """What is wrong with a file, in words that follow its name."""


def _read(file: BufferedIOBase, length: int, gzipped: bool, max_bytes: int) -> NDArray[Any]:
    """Read an array from a file of `length` bytes, packed or not."""
    shape, dtype = _read_header(file)
    size = math.prod(shape) * dtype.itemsize
    begin = 4 + 4 * len(shape)
    says = f"its header says {' x '.join(map(str, shape))} numbers of {dtype.itemsize} bytes, {size} bytes in all"
    if size > max_bytes:
        raise _WrongError(f"{says}; max_bytes allows {max_bytes}")
    if gzipped and begin + size > _MOST_EXPANSION * length:
        raise _WrongError(f"{says}, to which no gzipped file of {length} bytes can unpack")
    if not gzipped and begin + size != length:
        raise _WrongError(f"{says}; {length - begin} follow it")
    raw = np.empty(size, np.uint8)
    filled = 0
    while filled < size:
        count = file.readinto(raw.data[filled : filled + _CHUNK])
        if not count:
            raise _WrongError(f"{says}; {filled} follow it")
        filled += count
    # Reading on to the end also has the checksum of a gzipped file looked at.
    if file.read(1):
        raise _WrongError(f"{says}; more follow it")
    array = raw.view(dtype).reshape(shape)
    if not dtype.isnative:
        array = array.byteswap(inplace=True).view(dtype.newbyteorder())
    return array


def _read_header(file: BufferedIOBase) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and the type that a file says."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES:
        kinds = ", ".join(f"{kind:#04x}" for kind in TYPES)
        raise _WrongError(f"it must begin with bytes 0, 0 and one of {kinds}; found {magic[:3].hex(' ') or 'nothing'}")
    n_dimensions = magic[3]
    if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
        raise _WrongError(f"it must have 1 to {_MAX_DIMENSIONS} dimensions; found {n_dimensions}")
    sizes = file.read(4 * n_dimensions)
    if len(sizes) < 4 * n_dimensions:
        raise _WrongError(f"it ends within its header, after {4 + len(sizes)} bytes")
    shape = struct.unpack(f">{n_dimensions}I", sizes)
    if 0 in shape:
        raise _WrongError(f"its header says {' x '.join(map(str, shape))} numbers: none")
    return shape, np.dtype(TYPES[magic[2]])


def _check_path(path: Any, name: str) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise InvalidArgumentError(f"{name} must be a path; found {path!r} of type {type(path).__name__}")
    return Path(path)


def _find(folder: Path, names: tuple[str, ...]) -> Path | None:
    """Return the first file of these names, unpacked ones first."""
    candidates = [folder / f"{name}{ending}" for ending in ("", ".gz") for name in names]
    return next((path for path in candidates if path.is_file()), None)


def _rows(images: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    return np.divide(images.reshape(len(images), -1), 255, dtype=dtype)
