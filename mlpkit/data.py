"""A data set as an objective takes it: inputs, targets, weights and mask, checked together, then packed.

What is wrong is said before anything of the data's size is allocated.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.checks import real_array
from mlpkit.errors import InvalidArgumentError, TargetRangeWarning, frames_to_the_caller
from mlpkit.mlp import MLP
from mlpkit.row_files import RowSource, open_rows
from mlpkit.scanned import ScannedLabels, ScannedRows
from mlpkit.sources import Labels, Rows, pack_rows, same_rows
from mlpkit.weights import ClassWeight, Elements, Packed, check_mask, check_sample_weight, count_classes, pack_elements

__all__ = ["Data", "RowMajor", "fingerprint"]


def fingerprint(*arrays: Any) -> str:
    """Return a SHA-256 of arrays of numbers, of their shapes and dtypes: the same data give the same text anywhere.

    Data that are in a file are read once more.

    Examples
    --------
    >>> fingerprint([1.0, 2.0]) == fingerprint(np.array([1.0, 2.0])) != fingerprint([1, 2])
    True
    """
    known: dict[Any, bytes] = {}  # an autoencoder's data come twice
    for values in arrays:
        key = values if isinstance(values, str) else id(values)
        if key not in known:
            known[key] = _digest(values)
    keys = (values if isinstance(values, str) else id(values) for values in arrays)
    return hashlib.sha256(b"".join(known[key] for key in keys)).hexdigest()


def _digest(values: Any) -> bytes:
    known = getattr(values, "fingerprint", None)  # of an objective whose data are elsewhere
    if isinstance(known, str):
        return bytes.fromhex(known)
    source = open_rows(values, "data")
    array: Any = np.atleast_1d(real_array(values, "data")) if source is None else source
    dtype = array.dtype.newbyteorder("<")
    digest = hashlib.sha256(f"{array.shape} {dtype.str}\n".encode())
    step = max(1, (1 << 20) // max(1, math.prod(array.shape[1:]) * dtype.itemsize))  # rows: a megabyte
    for begin in range(0, array.shape[0], step):
        end = min(begin + step, array.shape[0])
        block = array[begin:end] if source is None else source.rows(begin, end)
        digest.update(np.ascontiguousarray(block, dtype).data)
    return digest.digest()


class Data:
    """A checked data set for a network.

    Parameters
    ----------
    net : MLP
        Whose layers and loss say what the data must be.
    X, Y, sample_weight, class_weight, mask
        As `mlpkit.Objective` takes them.

    Attributes
    ----------
    n_rows, n_examples : int
        Rows as given, and those of a weight that is not 0.
    used : ndarray or None
        The numbers of the latter; None where they are all.
    total_weight, largest_weight : float
        Of the weights as they are used.
    numbers_an_example : int
        What packing takes.
    sources : list of RowSource
        What is read from files, or by slicing, where it is wanted; empty where all is in memory.
    """

    def __init__(
        self,
        net: MLP,
        X: ArrayLike,
        Y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        class_weight: ClassWeight | None = None,
        mask: ArrayLike | None = None,
    ) -> None:
        x_source = open_rows(X, "X")
        y_source = x_source if Y is X else open_rows(Y, "Y")
        known = Y is X or (x_source is not None and y_source is not None and x_source.key == y_source.key)
        self._same = known and net.sizes[-1] == net.sizes[0] and not net.loss.class_targets
        shape = (net.sizes[0], net.dtype)
        inputs = Rows(X, "X", *shape) if x_source is None else ScannedRows(x_source, "X", *shape)
        m = self.n_rows = inputs.shape[0]
        counted = check_mask(mask, (m, net.sizes[-1]))
        alike = self._same and counted is None
        targets = inputs if alike else _targets(net, Y, y_source, counted, m)
        weights = check_sample_weight(sample_weight, m)
        inputs.check()
        if not self._same:
            _check_finite(targets)
        _check_range(net, targets, _used(weights))
        if class_weight is not None:
            weights = count_classes(class_weight, net.loss, targets, weights)
        self.used = _used(weights)
        _warn_of_unreachable(net, targets, self.used)
        self._same = self._same or same_rows(inputs, targets)

        self._inputs, self._targets, self._mask, self._weights = inputs, targets, counted, weights
        self.sources = list({id(s): s for s in (x_source, y_source) if s is not None}.values())
        self.n_examples = m if self.used is None else self.used.size
        self.total_weight = float(m if weights is None else weights.sum())
        self.largest_weight = 1.0 if weights is None else float(weights.max())
        n_in, n_out = inputs.shape[1], targets.shape[1]
        self.widths = (n_in, 0 if self._same else n_out, 0 if counted is None else n_out)
        self.numbers_an_example = sum(self.widths) + 1

    @property
    def held_bytes(self) -> int:
        """Bytes that are in memory while the rows are read from files: weights, numbers, a mask, what is being read."""
        held = sum(0 if array is None else array.nbytes for array in (self._weights, self.used, self._mask))
        return held + sum(source.window_bytes for source in self.sources)

    def columns(self) -> tuple[Rows, Rows | None, Rows | None]:
        """Return inputs, targets where they are not the same, and the weights of targets where some are masked."""
        dtype = self._inputs.dtype
        elements = None if self._mask is None else Elements(self._mask, self._weights, dtype)
        return self._inputs, None if self._same else self._targets, elements

    def weights(self, begin: int, end: int) -> NDArray[np.float64] | float:
        """Return the weights of some of the examples that count."""
        if self._weights is None:
            return 1.0
        return self._weights[begin:end] if self.used is None else self._weights[self.used[begin:end]]

    def pack(self, n_numbers: int) -> Packed:
        """Return the examples that count as panels; `n_numbers` is how long the vector of weights must be."""
        dtype = self._inputs.dtype
        X = pack_rows(self._inputs, self.used)
        Y = X if self._same else pack_rows(self._targets, self.used)
        elements = np.zeros(0, dtype)
        if self._mask is not None:
            elements = pack_elements(self._mask, self._weights, self.used, dtype)
        w = np.zeros(n_numbers, dtype)
        w[: self.n_examples] = self.weights(0, self.n_examples)
        return Packed(X, Y, w, elements)

    def rows(self) -> RowMajor:
        """Return all examples one a row, without a copy where they are in the network's dtype and order."""
        dtype, weights = self._inputs.dtype, self._weights
        X = _whole(self._inputs)
        w = np.ones(self.n_rows, dtype) if weights is None else weights.astype(dtype)
        elements = np.zeros((0, 0), dtype)
        if self._mask is not None:
            elements = self._mask * w[:, np.newaxis]
        used = np.arange(self.n_rows) if self.used is None else self.used
        return RowMajor(X, X if self._same else _whole(self._targets), w, elements, used.astype(np.int64))

    @property
    def rows_bytes(self) -> int:
        """What `rows` allocates."""
        itemsize, columns = self._inputs.dtype.itemsize, [self._inputs] if self._same else [self._inputs, self._targets]
        copied = sum(0 if rows.ready else rows.shape[1] for rows in columns) + self.widths[2] + 1
        return self.n_rows * copied * itemsize + self.n_examples * 8

    def fill(self, which: slice | NDArray[np.intp], into: RowMajor) -> None:
        """Copy some rows, by their numbers as they were given, to where there is room for just so many."""
        into.X[:] = self._inputs.take(which)
        if not np.may_share_memory(into.X, into.Y):
            into.Y[:] = into.X if self._same else self._targets.take(which)
        into.weights[:] = 1.0 if self._weights is None else self._weights[which]
        if self._mask is not None:
            into.elements[:] = self._mask[which] * into.weights[:, np.newaxis]


class RowMajor(NamedTuple):
    """Examples one a row, as mini-batches are gathered from them."""

    X: NDArray[Any]
    Y: NDArray[Any]  # X itself where they are equal
    weights: NDArray[Any]
    elements: NDArray[Any]  # the weight of each target where some are masked, otherwise empty
    used: NDArray[np.int64]  # the numbers of the rows whose weight is not 0


def _whole(rows: Rows) -> NDArray[Any]:
    """Return all rows as one matrix; those of a file are never in memory twice."""
    if not isinstance(rows, ScannedRows):
        return rows.take(slice(None))
    whole = np.empty(rows.shape, rows.dtype)
    for begin, block in rows.blocks():
        whole[begin : begin + len(block)] = block
    return whole


def _used(weights: NDArray[np.float64] | None) -> NDArray[np.intp] | None:
    return None if weights is None or weights.all() else np.flatnonzero(weights)


def _targets(net: MLP, Y: Any, source: RowSource | None, mask: NDArray[np.bool_] | None, m: int) -> Rows:
    """Return m targets: a matrix, or class labels where the loss takes them."""
    n_out = net.sizes[-1]
    array: Any = real_array(Y, "Y") if source is None else source
    shape = array.shape
    labels = net.loss.class_targets and (len(shape) == 1 or shape[1:] == (1,) != (n_out,))
    if shape and 0 not in shape and shape[0] != m:
        raise InvalidArgumentError(f"Y must have as many rows as X, {m}; found {shape[0]} (shape {shape})")
    if source is None:
        return (Labels if labels else Rows)(array, "Y", n_out, net.dtype, mask)
    return (ScannedLabels if labels else ScannedRows)(source, "Y", n_out, net.dtype, mask)


def _check_finite(targets: Rows) -> None:
    """Refuse NaN and infinity, and say what NaN may have meant."""
    try:
        targets.check()
    except InvalidArgumentError as error:
        if targets.mask is None and "found nan" in str(error):
            raise InvalidArgumentError(
                f"{error}; where targets are missing, a mask says which count: mask=~np.isnan(Y)"
            ) from None
        raise


def _check_range(net: MLP, targets: Rows, used: NDArray[np.intp] | None) -> None:
    """Refuse targets for which the loss is not defined."""
    if net.loss.class_targets:
        if not isinstance(targets, Labels | ScannedLabels):
            targets.check_probabilities()
        return
    low, high = getattr(net.loss, "targets", (-math.inf, math.inf))
    if math.isinf(low) and math.isinf(high):
        return
    found = targets.find_outside(low, high, used)
    if found is not None:
        row, column, value = found
        raise InvalidArgumentError(
            f"Y must lie in [{low:g}, {high:g}] for the loss {net.loss.name!r}; found {value:g} at row {row} column "
            f"{column}"
        )


def _warn_of_unreachable(net: MLP, targets: Rows, used: NDArray[np.intp] | None) -> None:
    """Warn where targets lie outside a bounded output's range: the loss then has no minimum to reach."""
    activation = net.layers[-1].activation  # type: ignore[union-attr]
    low, high = activation.range
    if net.loss.class_targets or not np.isfinite(activation.range).all():
        return
    smallest, largest = targets.limits(used)
    if smallest < low or largest > high:
        warnings.warn(
            f"Y lies in [{smallest:g}, {largest:g}], outside the range [{low:g}, {high:g}] of the output activation "
            f"{activation.name!r}; mlpkit.preprocessing.scale_to_range maps it there",
            TargetRangeWarning,
            stacklevel=frames_to_the_caller(),
        )
