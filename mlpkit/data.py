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
from mlpkit.sources import Labels, Rows, pack_rows, same_rows
from mlpkit.weights import ClassWeight, Packed, check_mask, check_sample_weight, count_classes, pack_elements

__all__ = ["Data", "RowMajor", "fingerprint"]


def fingerprint(*arrays: ArrayLike) -> str:
    """Return a SHA-256 of arrays of numbers, of their shapes and dtypes: the same data give the same text anywhere.

    Examples
    --------
    >>> fingerprint([1.0, 2.0]) == fingerprint(np.array([1.0, 2.0])) != fingerprint([1, 2])
    True
    """
    known: dict[int, bytes] = {}  # an autoencoder's data come twice
    for values in arrays:
        if id(values) not in known:
            known[id(values)] = _digest(real_array(values, "data"))
    return hashlib.sha256(b"".join(known[id(values)] for values in arrays)).hexdigest()


def _digest(values: NDArray[Any]) -> bytes:
    array = np.atleast_1d(values)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    digest = hashlib.sha256(f"{array.shape} {array.dtype.str}\n".encode())
    step = max(1, (1 << 22) * len(array) // max(1, array.nbytes))  # rows: some megabytes
    for begin in range(0, len(array), step):
        digest.update(np.ascontiguousarray(array[begin : begin + step]).data)
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
        inputs = Rows(X, "X", net.sizes[0], net.dtype)
        m = self.n_rows = inputs.shape[0]
        self._same = Y is X and net.sizes[-1] == net.sizes[0] and not net.loss.class_targets
        counted = check_mask(mask, (m, net.sizes[-1]))
        targets = _targets(net, Y, counted, m)
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
        self.n_examples = m if self.used is None else self.used.size
        self.total_weight = float(m if weights is None else weights.sum())
        self.largest_weight = 1.0 if weights is None else float(weights.max())
        n_in, n_out = inputs.shape[1], targets.shape[1]
        self.numbers_an_example = n_in + (0 if self._same else n_out) + (0 if counted is None else n_out) + 1

    def pack(self, n_numbers: int) -> Packed:
        """Return the examples that count as panels; `n_numbers` is how long the vector of weights must be."""
        dtype, weights = self._inputs.dtype, self._weights
        X = pack_rows(self._inputs, self.used)
        Y = X if self._same else pack_rows(self._targets, self.used)
        elements = np.zeros(0, dtype)
        if self._mask is not None:
            elements = pack_elements(self._mask, weights, self.used, dtype)
        w = np.zeros(n_numbers, dtype)
        w[: self.n_examples] = 1 if weights is None else weights if self.used is None else weights[self.used]
        return Packed(X, Y, w, elements)

    def rows(self) -> RowMajor:
        """Return all examples one a row, without a copy where they are in the network's dtype and order."""
        dtype, weights = self._inputs.dtype, self._weights
        X = self._inputs.take(slice(None))
        w = np.ones(self.n_rows, dtype) if weights is None else weights.astype(dtype)
        elements = np.zeros((0, 0), dtype)
        if self._mask is not None:
            elements = self._mask * w[:, np.newaxis]
        used = np.arange(self.n_rows) if self.used is None else self.used
        return RowMajor(X, X if self._same else self._targets.take(slice(None)), w, elements, used.astype(np.int64))


class RowMajor(NamedTuple):
    """Examples one a row, as mini-batches are gathered from them."""

    X: NDArray[Any]
    Y: NDArray[Any]  # X itself where they are equal
    weights: NDArray[Any]
    elements: NDArray[Any]  # the weight of each target where some are masked, otherwise empty
    used: NDArray[np.int64]  # the numbers of the rows whose weight is not 0


def _used(weights: NDArray[np.float64] | None) -> NDArray[np.intp] | None:
    return None if weights is None or weights.all() else np.flatnonzero(weights)


def _targets(net: MLP, Y: ArrayLike, mask: NDArray[np.bool_] | None, m: int) -> Rows:
    """Return m targets: a matrix, or class labels where the loss takes them."""
    n_out = net.sizes[-1]
    array = real_array(Y, "Y")
    labels = net.loss.class_targets and (array.ndim == 1 or array.shape[1:] == (1,) != (n_out,))
    if array.size and array.ndim and array.shape[0] != m:
        raise InvalidArgumentError(f"Y must have as many rows as X, {m}; found {array.shape[0]} (shape {array.shape})")
    return (Labels if labels else Rows)(array, "Y", n_out, net.dtype, mask)


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
        if not isinstance(targets, Labels):
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
