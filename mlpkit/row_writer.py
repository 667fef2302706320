"""Rows and patches into HDF5 files that objectives read row by row, a few megabytes at a time.

A file has chunks of whole rows with Fletcher-32 checksums, so that a damaged disk is an error and not a wrong gradient.
It is put in its place when it is finished (`mlpkit.durable`): a crash leaves the old file or the new one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.checks import check_choice, check_flag, check_integer
from mlpkit.durable import path_text, replacing
from mlpkit.errors import InvalidArgumentError
from mlpkit.preprocessing import remove_dc, sample_patches

__all__ = ["Progress", "write_patches", "write_rows"]

Progress = Callable[[int, int | None], None]

_CHUNK_BYTES = 1 << 20
_PATCHES_AT_ONCE = 1 << 13


def write_rows(
    path: str | os.PathLike[str],
    blocks: Iterator[NDArray[Any]],
    *,
    name: str = "X",
    dtype: Any = None,
    n_rows: int | None = None,
    progress: Progress | None = None,
    attributes: dict[str, Any] | None = None,
) -> str:
    """Write blocks of rows, of any number and size, as one dataset of a new HDF5 file.

    Parameters
    ----------
    path : path
        Where the file is to be; one that is there is replaced when the new one is whole.
    blocks : iterator of ndarray
        Rows of equal shape.
    name : str
        Of the dataset.
    dtype : dtype, optional
        Of the numbers in the file; the first block's if None.
    n_rows : int, optional
        How many there will be, for `progress`.
    progress : callable, optional
        Called as ``progress(rows done, rows in all or None)`` after each block.
    attributes : dict, optional
        Of the dataset.

    Returns
    -------
    str
        ``"path:/name"``, as `mlpkit.Objective` takes it.

    Examples
    --------
    >>> import tempfile
    >>> from mlpkit.row_files import open_rows
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     where = write_rows(folder + "/X.h5", iter([np.eye(2), np.ones((1, 2))]))
    ...     open_rows(where, "X").rows(1, 3)
    array([[0., 1.],
           [1., 1.]])
    """
    target = path_text(path)
    first = next(blocks, None)
    if first is None or 0 in first.shape:
        raise InvalidArgumentError(f"there must be rows to write to {target!r}; found none")
    kept = np.dtype(first.dtype if dtype is None else dtype)
    row_bytes = math.prod(first.shape[1:]) * kept.itemsize
    chunk = max(1, min(_CHUNK_BYTES // max(1, row_bytes), n_rows or _CHUNK_BYTES))
    done = 0
    with replacing(target) as raw, h5py.File(raw, "w") as file:
        dataset = file.create_dataset(
            name, (0, *first.shape[1:]), kept, maxshape=(None, *first.shape[1:]), chunks=(chunk, *first.shape[1:]),
            fletcher32=True,
        )  # fmt: skip
        dataset.attrs.update(attributes or {})
        for block in _in_chunks(_chained(first, blocks), chunk):
            if block.shape[1:] != first.shape[1:]:
                raise InvalidArgumentError(
                    f"rows must all have shape {first.shape[1:]}; found {block.shape[1:]} after row {done}"
                )
            dataset.resize(done + len(block), axis=0)
            dataset[done:] = block
            done += len(block)
            if progress is not None:
                progress(done, n_rows)
    return f"{target}:/{name}"


def _chained(first: NDArray[Any], rest: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    yield first
    yield from rest


def _in_chunks(blocks: Iterator[NDArray[Any]], chunk: int) -> Iterator[NDArray[Any]]:
    """Give the same rows in blocks of whole chunks, each of which is then written once."""
    waiting: list[NDArray[Any]] = []
    n = 0
    for block in blocks:
        if waiting and block.shape[1:] != waiting[0].shape[1:]:
            yield block  # whose error is the writer's to raise
        waiting.append(block)
        n += len(block)
        if n >= chunk:
            rows = np.concatenate(waiting) if len(waiting) > 1 else block
            whole = n // chunk * chunk
            yield rows[:whole]
            waiting, n = ([rows[whole:]] if whole < n else []), n - whole
    if n:
        yield np.concatenate(waiting)


def write_patches(
    images: Sequence[ArrayLike] | NDArray[np.generic],
    path: str | os.PathLike[str],
    n_patches: int = 1_000_000,
    size: int = 8,
    seed: int | None = 0,
    *,
    normalise: bool = True,
    dtype: str = "float32",
    name: str = "X",
    progress: Progress | None = None,
) -> str:
    """Cut patches out of images, bring them into [0.1, 0.9] and write them to an HDF5 file, a few at a time.

    They are what ``squash(remove_dc(sample_patches(images, n_patches, size)))`` would be, up to rounding and to the
    draws: these come from one generator, 8 192 patches at a time, so that up to so many are the same patches.

    Parameters
    ----------
    images : sequence of array-like, each of shape (height, width)
        Grey images of any sizes, already whitened where that is wanted.
    path : path
        The file to write.
    n_patches, size : int
        How many patches, and how many pixels wide and high each is.
    seed : int or None
        The same seed cuts the same patches; None draws a fresh one.
    normalise : bool
        Subtract each patch's mean and squash all of them to [0.1, 0.9] at three standard deviations; they are then
        drawn twice. False writes the pixels as they are.
    dtype : str
        ``"float32"`` or ``"float64"``.
    name, progress
        As `write_rows` takes them.

    Returns
    -------
    str
        ``"path:/name"``, as `mlpkit.Objective` takes it.

    Examples
    --------
    >>> import tempfile
    >>> from mlpkit.row_files import open_rows
    >>> image = np.random.default_rng(0).normal(size=(32, 32))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     where = write_patches([image], folder + "/patches.h5", n_patches=100)
    ...     open_rows(where, "X").shape
    (100, 64)
    """
    n_patches = check_integer(n_patches, "n_patches", low=1)
    size = check_integer(size, "size", low=1)
    normalise = check_flag(normalise, "normalise")
    kept = np.dtype(check_choice(dtype, "dtype", ("float32", "float64")))
    start = np.random.SeedSequence(None if seed is None else check_integer(seed, "seed", low=0))

    def draw() -> Iterator[NDArray[np.float64]]:
        rng = np.random.default_rng(start)
        for done in range(0, n_patches, _PATCHES_AT_ONCE):
            patches = sample_patches(images, min(_PATCHES_AT_ONCE, n_patches - done), size, rng)
            yield remove_dc(patches) if normalise else patches

    def squashed(limit: float) -> Iterator[NDArray[np.float64]]:
        for patches in draw():
            yield 0.5 + 0.4 * (np.clip(patches, -limit, limit) / limit if limit > 0 else patches)

    blocks = squashed(3.0 * _deviation(draw())) if normalise else draw()
    return write_rows(path, blocks, name=name, dtype=kept, n_rows=n_patches, progress=progress)


def _deviation(blocks: Iterator[NDArray[np.float64]]) -> float:
    """Return the standard deviation of all numbers, with n - 1."""
    n, mean, squares = 0, 0.0, 0.0
    for block in blocks:
        shift = float(block.mean()) - mean
        more = float(np.square(block - block.mean()).sum())
        squares += more + shift * shift * n * block.size / (n + block.size)
        n += block.size
        mean += shift * block.size / n
    return math.sqrt(squares / (n - 1)) if n > 1 else 0.0
