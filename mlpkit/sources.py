"""Rows of data as an objective takes them: checked, converted and packed a block at a time.

A data set may be in another dtype or order than the engine's, or in part of weight 0. Nothing here makes a second copy
of it: what is converted at once is a block of some megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.checks import check_finite, real_array
from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels import simd
from mlpkit.kernels.tiles import empty_panels, pack

__all__ = ["Labels", "Rows", "check_shape", "pack_rows", "same_rows"]

_BLOCK_BYTES = 1 << 20


class Rows:
    """A matrix of examples in rows, read as blocks of a dtype.

    Parameters
    ----------
    values : array-like, shape (m, n)
        Real numbers in any dtype and order; (m,) where one column is asked for.
    name : str
        The argument's name, for the errors.
    n_columns : int
        The number of columns to insist on.
    dtype : numpy.dtype
        What blocks are converted to.
    mask : ndarray of bool, shape (m, n), optional
        Where it is False, the number given does not count, and 0 is read in its place.

    Raises
    ------
    InvalidArgumentError
        For wrong shapes and for data that is not of real numbers.

    Examples
    --------
    >>> rows = Rows([[1, 2], [3, 4]], "X", 2, np.dtype("float32"))
    >>> rows.shape, rows.take(slice(1, 2))
    ((2, 2), array([[3., 4.]], dtype=float32))
    """

    def __init__(
        self,
        values: ArrayLike,
        name: str,
        n_columns: int,
        dtype: np.dtype[Any],
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        array = real_array(values, name)
        self.name = name
        self.dtype = dtype
        self.shape = check_shape(array.shape, name, n_columns)
        self.mask = mask
        self._array = array.reshape(self.shape) if array.ndim == 1 else array

    @property
    def ready(self) -> bool:
        """Whether all rows can be taken without a copy."""
        values = self._array if type(self) is Rows and self.mask is None else None
        return values is not None and values.dtype == self.dtype and values.flags.c_contiguous

    def place(self) -> tuple[int, int] | None:
        """Return an open file's descriptor and where in it rows of the dtype begin; None if they are not there."""
        return None

    def take(self, which: slice | NDArray[np.intp]) -> NDArray[Any]:
        """Return some rows as a C-contiguous matrix of the dtype, without a copy where the data is just that."""
        with np.errstate(over="ignore"):
            block = np.ascontiguousarray(self._array[which], dtype=self.dtype)
        return block if self.mask is None else np.where(self.mask[which], block, self.dtype.type(0))

    def blocks(self, used: NDArray[np.intp] | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """Go through all rows, or those `used`, as (number of the block's first row, block)."""
        n_lanes = simd.lanes(self.dtype)
        step = max(1, _BLOCK_BYTES // (self.shape[1] * self.dtype.itemsize * n_lanes)) * n_lanes  # whole panels
        m = self.shape[0] if used is None else used.size
        for begin in range(0, m, step):
            end = min(begin + step, m)
            yield begin, self.take(slice(begin, end) if used is None else used[begin:end])

    def check(self) -> None:
        """Look at every row, used or not; NaN and infinity are an error that names the first row and column."""
        for begin, block in self.blocks():
            check_finite(block, self.name, first_row=begin)

    def check_probabilities(self) -> None:
        """Require rows that are not negative and sum to 1, to the accuracy that float32 data can have.

        Of a row with masked numbers, the others must not sum to more.
        """
        for begin, block in self.blocks():
            sums = block.sum(axis=1)
            bad = np.flatnonzero((block.min(axis=1) < 0) | (np.abs(sums - 1) > 1e-4))
            if self.mask is not None:
                whole = self.mask[begin + bad].all(axis=1)
                bad = bad[whole | (block[bad].min(axis=1) < 0) | (sums[bad] > 1)]
            if bad.size:
                raise InvalidArgumentError(
                    f"{self.name} must hold rows of probabilities, which are not negative and sum to 1; found "
                    f"{block[bad[0]]} at row {begin + bad[0]}"
                )

    def limits(self, used: NDArray[np.intp] | None = None) -> tuple[float, float]:
        """Return the smallest and the largest number that counts, infinity and -infinity where none does."""
        low, high = np.inf, -np.inf
        for begin, block in self.blocks(used):
            some: NDArray[Any] = block
            if self.mask is not None:
                rows = slice(begin, begin + len(block)) if used is None else used[begin : begin + len(block)]
                some = block[self.mask[rows]]
            if some.size:
                low, high = min(low, float(some.min())), max(high, float(some.max()))
        return low, high

    def find_outside(
        self, low: float, high: float, used: NDArray[np.intp] | None = None
    ) -> tuple[int, int, float] | None:
        """Return row, column and value of the first number that counts and lies outside [low, high]."""
        for begin, block in self.blocks(used):
            rows = np.arange(begin, begin + len(block)) if used is None else used[begin : begin + len(block)]
            bad = (block < low) | (block > high)
            if self.mask is not None:
                bad &= self.mask[rows]
            if bad.any():
                i, j = np.argwhere(bad)[0]
                return int(rows[i]), int(j), float(block[i, j])
        return None


def check_shape(shape: tuple[int, ...], name: str, n_columns: int) -> tuple[int, int]:
    """Return a shape as that of a matrix of `n_columns`, or say what is wrong with it.

    Examples
    --------
    >>> check_shape((5,), "Y", 1)
    (5, 1)
    """
    if len(shape) == 1 and n_columns == 1:
        shape = (shape[0], 1)
    if len(shape) != 2:
        raise InvalidArgumentError(f"{name} must have two dimensions, examples in rows; found shape {shape}")
    if shape[1] != n_columns:
        raise InvalidArgumentError(f"{name} must have {n_columns} columns; found {shape[1]} (shape {shape})")
    if 0 in shape:
        raise InvalidArgumentError(f"{name} must not be empty; found shape {shape}")
    return shape


class Labels(Rows):
    """Class labels 0 to n_classes - 1, read as blocks of one-hot rows.

    Raises
    ------
    InvalidArgumentError
        For labels that are not integers or name no class.

    Examples
    --------
    >>> Labels([2, 0], "Y", 3, np.dtype("float64")).take(slice(0, 2))
    array([[0., 0., 1.],
           [1., 0., 0.]])
    """

    def __init__(
        self,
        values: ArrayLike,
        name: str,
        n_classes: int,
        dtype: np.dtype[Any],
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        labels = real_array(values, name).ravel()
        if labels.dtype.kind not in "iub":
            raise InvalidArgumentError(
                f"{name} must hold integer class labels or rows of {n_classes} probabilities; found dtype "
                f"{labels.dtype}"
            )
        outside = (labels < 0) | (labels >= n_classes)
        bad = np.flatnonzero(outside if mask is None else outside & mask.any(axis=1))
        if bad.size:
            raise InvalidArgumentError(
                f"{name} must hold class labels from 0 to {n_classes - 1}; found {labels[bad[0]]} at row {bad[0]}"
            )
        self.name = name
        self.dtype = dtype
        self.shape = (labels.size, n_classes)
        self.mask = mask
        self._array = np.where(outside, 0, labels).astype(np.intp)

    def take(self, which: slice | NDArray[np.intp]) -> NDArray[Any]:
        """Return some labels as one-hot rows."""
        labels = self._array[which]
        rows = np.zeros((labels.size, self.shape[1]), self.dtype)
        rows[np.arange(labels.size), labels] = 1
        return rows if self.mask is None else rows * self.mask[which]


def same_rows(a: Rows, b: Rows) -> bool:
    """Say whether two data sets hold the same numbers.

    Examples
    --------
    >>> double = np.dtype("float64")
    >>> same_rows(Rows([1.0, 2.0], "X", 1, double), Rows([[1], [2]], "Y", 1, double))
    True
    """
    if a.shape != b.shape:
        return False
    return all(np.array_equal(x, y) for (_, x), (_, y) in zip(a.blocks(), b.blocks(), strict=True))


def pack_rows(rows: Rows, used: NDArray[np.intp] | None = None) -> NDArray[Any]:
    """Return all rows, or those `used`, as panels; see `mlpkit.kernels.tiles`."""
    m = rows.shape[0] if used is None else used.size
    panels = empty_panels(m, rows.shape[1], rows.dtype)
    for begin, block in rows.blocks(used):
        pack(block, panels[begin * rows.shape[1] :])
    return panels
