"""Preparing data once: tables, arrays and images into HDF5 files that objectives read row by row.

Nothing here holds more than a few megabytes at a time, whatever the size of the data; see `mlpkit.row_writer` for how
the files are written, and `mlpkit.datasets.write_patches` for patches of images.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import math
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mlpkit.datasets import load_images
from mlpkit.errors import InvalidArgumentError
from mlpkit.row_files import open_rows
from mlpkit.row_writer import Progress, write_rows

__all__ = ["to_hdf5"]

_BLOCK_BYTES = 4 << 20
_PICTURES = (".png", ".jpg", ".jpeg")
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def to_hdf5(
    source: Any,
    path: str | os.PathLike[str],
    *,
    name: str = "X",
    dtype: str | None = None,
    progress: Progress | None = None,
) -> str:
    r"""Convert a data set to HDF5, a few megabytes at a time.

    Parameters
    ----------
    source : path or array-like
        A ``.csv`` file with commas between the columns (a first line that is no numbers is taken for titles); a
        ``.npy``, HDF5 or Zarr file, or whatever else `mlpkit.Objective` reads by rows; an IDX file such as
        ``train-images-idx3-ubyte``, gzipped or not, whose images become rows of pixels; or a folder of ``.png`` and
        ``.jpg`` images of one size, which become rows of grey pixels in [0, 1] in the order of their names.
    path : path
        The file to write.
    dtype : str, optional
        Of the numbers in the file; by default what they are in the source, float64 for text and images.
    name, progress
        As `mlpkit.row_writer.write_rows` takes them.

    Returns
    -------
    str
        ``"path:/name"``, as `mlpkit.Objective` takes it.

    Raises
    ------
    InvalidArgumentError
        If the source is not what its name says, naming the line where there are lines.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "t.csv").write_text("a,b\n1,2\n3,4\n")
    ...     where = to_hdf5(folder + "/t.csv", folder + "/t.h5")
    ...     open_rows(where, "X").rows(0, 2)
    array([[1., 2.],
           [3., 4.]])
    """
    with contextlib.ExitStack() as stack:
        attributes: dict[str, Any] = {}
        n_rows: int | None = None
        local = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
        if local and os.path.isdir(local) and not local.lower().endswith(".zarr"):
            files = sorted(p for p in Path(local).iterdir() if p.suffix.lower() in _PICTURES)
            if not files:
                raise InvalidArgumentError(f"source must hold {', '.join(_PICTURES)} files; found none in {local!r}")
            n_rows, attributes["image_shape"] = len(files), load_images(files[0])[0].shape
            blocks = _pictures(files, attributes["image_shape"])
        elif local.lower().endswith(".csv"):
            blocks = _lines(stack.enter_context(open(local, newline="", encoding="utf-8-sig")), local)
        elif local and ("-ubyte" in local or "idx" in os.path.basename(local).lower()):
            blocks, n_rows, shape = _idx(stack.enter_context(_unpacked(local)), local)
            if len(shape) > 1:
                attributes["image_shape"] = shape
        else:
            rows = open_rows(source, "source")
            if rows is None:
                raise InvalidArgumentError(
                    f"source must be the path of a .csv, .npy, .h5, .zarr or IDX file or of a folder of images; found "
                    f"{type(source).__name__}"
                )
            n_rows = rows.shape[0]
            step = max(1, _BLOCK_BYTES // max(1, rows.row_bytes))
            blocks = (rows.rows(i, min(i + step, rows.shape[0])) for i in range(0, rows.shape[0], step))
        return write_rows(
            path, iter(blocks), name=name, dtype=dtype, n_rows=n_rows, progress=progress, attributes=attributes
        )


def _pictures(files: Sequence[Path], shape: tuple[int, ...]) -> Iterator[NDArray[np.float64]]:
    for file in files:
        (image,) = load_images(file)
        if image.shape != shape:
            raise InvalidArgumentError(f"images must all have shape {shape}; found {image.shape} in {str(file)!r}")
        yield image.reshape(1, -1)


def _lines(file: IO[str], path: str) -> Iterator[NDArray[np.float64]]:
    """Give blocks of the rows of a table in text."""
    rows: list[list[float]] = []
    width = held = 0
    for number, fields in enumerate(csv.reader(file), 1):
        if not fields:
            continue
        try:
            row = [float(field) for field in fields]
        except ValueError as error:
            if number == 1:
                continue  # titles
            raise InvalidArgumentError(f"{path!r} must hold numbers; line {number}: {error}") from error
        width = width or len(row)
        if len(row) != width:
            raise InvalidArgumentError(f"{path!r} must have {width} columns; found {len(row)} in line {number}")
        rows.append(row)
        held += width
        if held * 32 >= _BLOCK_BYTES:  # as Python holds them
            yield np.array(rows)
            rows, held = [], 0
    if rows:
        yield np.array(rows)


def _unpacked(path: str) -> IO[bytes]:
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else open(path, "rb")  # type: ignore[return-value]


def _idx(file: IO[bytes], path: str) -> tuple[Iterator[NDArray[Any]], int, tuple[int, ...]]:
    """Return blocks of rows of an IDX file, how many there are, and the shape of what each is."""
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_TYPES or not head[3]:
        raise InvalidArgumentError(f"{path!r} must be an IDX file; found the first bytes {head!r}")
    sizes = file.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise InvalidArgumentError(f"{path!r} ends inside its header")
    m, *shape = struct.unpack(f">{head[3]}I", sizes)
    dtype, n = np.dtype(_IDX_TYPES[head[2]]), math.prod(shape)
    if not m or not n:
        raise InvalidArgumentError(f"{path!r} must hold something; found sizes {(m, *shape)}")

    def blocks() -> Iterator[NDArray[Any]]:
        step = max(1, _BLOCK_BYTES // (n * dtype.itemsize))
        for begin in range(0, m, step):
            count = min(step, m - begin) * n
            data = file.read(count * dtype.itemsize)
            if len(data) < count * dtype.itemsize:
                raise InvalidArgumentError(f"{path!r} must have {m} rows, as its header says; it ends before")
            block = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
            yield block.reshape(-1, n) if shape else block
        if file.read(1):
            raise InvalidArgumentError(f"{path!r} must end after {m} rows, as its header says; it goes on")

    return blocks(), m, tuple(shape)
