"""Rows and labels that are read from a file a block at a time, and checked as they are read for the first time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit.checks import check_finite
from mlpkit.errors import InvalidArgumentError
from mlpkit.row_files import RowSource
from mlpkit.sources import Rows, check_shape

__all__ = ["ScannedLabels", "ScannedRows"]

_READ_BYTES = 4 << 20  # of rows between two that are wanted


class ScannedRows(Rows):
    """A matrix of examples in rows that stays where it is; otherwise as `mlpkit.sources.Rows`.

    Parameters
    ----------
    source : RowSource
        What gives the rows.
    name, n_columns, dtype, mask
        As `mlpkit.sources.Rows` takes them.
    """

    def __init__(
        self, source: RowSource, name: str, n_columns: int, dtype: np.dtype[Any], mask: NDArray[np.bool_] | None = None
    ) -> None:
        self.source = source
        self.name = name
        self.dtype = dtype
        self.shape = check_shape(source.shape, name, n_columns)
        self.mask = mask
        self._found: tuple[float, float] | None = None

    def place(self) -> tuple[int, int] | None:
        """Return an open file's descriptor and where in it rows of the dtype begin; None if they are not there."""
        as_they_are = type(self) is ScannedRows and self.mask is None and self.source.dtype == self.dtype
        return self.source.place() if as_they_are else None

    def take(self, which: slice | NDArray[np.intp]) -> NDArray[Any]:
        """Return some rows as a C-contiguous matrix of the dtype; numbers of rows must ascend."""
        with np.errstate(over="ignore"):
            block = np.ascontiguousarray(self._read(which).reshape(-1, self.shape[1]), dtype=self.dtype)
        return block if self.mask is None else np.where(self.mask[which], block, self.dtype.type(0))

    def _read(self, which: slice | NDArray[np.intp]) -> NDArray[Any]:
        if isinstance(which, slice):
            begin, end, _ = which.indices(self.shape[0])
            return self.source.rows(begin, end)
        rows = np.empty((which.size, *self.source.shape[1:]), self.source.dtype)
        reach, i = max(1, _READ_BYTES // max(1, self.source.row_bytes)), 0
        while i < which.size:
            stop = int(np.searchsorted(which, which[i] + reach))
            first = int(which[i])
            rows[i:stop] = self.source.rows(first, int(which[stop - 1]) + 1)[which[i:stop] - first]
            i = stop
        return rows

    def check(self) -> None:
        """Look at every row, and note the smallest and the largest number that counts."""
        low, high = np.inf, -np.inf
        for begin, block in self.blocks():
            check_finite(block, self.name, first_row=begin)
            some = block if self.mask is None else block[self.mask[begin : begin + len(block)]]
            if some.size:
                low, high = min(low, float(some.min())), max(high, float(some.max()))
        self._found = low, high
        self.source.check_unchanged()

    def limits(self, used: NDArray[np.intp] | None = None) -> tuple[float, float]:
        """Return the smallest and the largest number that counts, without another pass where `check` knows."""
        return self._found if used is None and self._found is not None else super().limits(used)

    def find_outside(
        self, low: float, high: float, used: NDArray[np.intp] | None = None
    ) -> tuple[int, int, float] | None:
        """Return row, column and value of the first number that counts and lies outside [low, high]."""
        if self._found is not None and low <= self._found[0] and self._found[1] <= high:
            return None
        return super().find_outside(low, high, used)


class ScannedLabels(ScannedRows):
    """Class labels that stay where they are, read as blocks of one-hot rows; otherwise as `mlpkit.sources.Labels`."""

    def __init__(
        self, source: RowSource, name: str, n_classes: int, dtype: np.dtype[Any], mask: NDArray[np.bool_] | None = None
    ) -> None:
        if source.dtype.kind not in "iub":
            raise InvalidArgumentError(
                f"{name} must hold integer class labels or rows of {n_classes} probabilities; found dtype "
                f"{source.dtype}"
            )
        self.source = source
        self.name = name
        self.dtype = dtype
        self.shape = (check_shape(source.shape, name, 1)[0], n_classes)
        self.mask = mask
        self._found = None

    def take(self, which: slice | NDArray[np.intp]) -> NDArray[Any]:
        """Return some labels as one-hot rows; of what is no label, which `check` lets pass where masked, zeros."""
        labels = self._read(which).reshape(-1)
        rows = np.zeros((labels.size, self.shape[1]), self.dtype)
        known = np.flatnonzero((labels >= 0) & (labels < self.shape[1]))
        rows[known, labels[known].astype(np.intp)] = 1
        return rows if self.mask is None else rows * self.mask[which]

    def check(self) -> None:
        """Look at every label that counts."""
        m, n_classes = self.shape
        step = max(1, _READ_BYTES // self.dtype.itemsize)
        for begin in range(0, m, step):
            labels = self.source.rows(begin, min(begin + step, m)).reshape(-1)
            outside = (labels < 0) | (labels >= n_classes)
            if self.mask is not None:
                outside &= self.mask[begin : begin + labels.size].any(axis=1)
            if outside.any():
                bad = int(outside.argmax())
                raise InvalidArgumentError(
                    f"{self.name} must hold class labels from 0 to {n_classes - 1}; found {labels[bad]} at row "
                    f"{begin + bad}"
                )
        self.source.check_unchanged()
