"""How much each example, and each number of its target, counts: sample weights, class weights and masks.

An example's weight w_i is its sample weight times what its class brings. A mask leaves out single targets: their terms
are missing from loss and delta, and the sum of weights that J is divided by stays what it is.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.checks import check_number, check_vector, real_array, shown
from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels.simd import lanes
from mlpkit.losses import Loss
from mlpkit.sources import Rows, pack_rows

__all__ = [
    "ClassWeight",
    "Elements",
    "OfPart",
    "Packed",
    "check_mask",
    "check_sample_weight",
    "count_classes",
    "pack_elements",
    "scaled",
]

ClassWeight = str | Mapping[int, float] | ArrayLike


class Packed(NamedTuple):
    """Panels of a data set, as the sweeps take them."""

    X: NDArray[Any]
    Y: NDArray[Any]  # X itself where they are equal
    weights: NDArray[Any]
    elements: NDArray[Any]  # the weight of each target where some are masked, otherwise empty


class OfPart(np.ndarray):
    """Weights or a mask of a part of a data set: they may be all zero, or all False, where those of others are not."""


def check_sample_weight(sample_weight: ArrayLike | None, m: int) -> NDArray[np.float64] | None:
    """Return the weights of m examples, scaled as `scaled` does, or None where all are 1.

    Examples
    --------
    >>> check_sample_weight([1, 3], 2)
    array([0.25, 0.75])
    """
    if sample_weight is None:
        return None
    weights = check_vector(sample_weight, "sample_weight", length=m)
    bad = np.flatnonzero(weights < 0)
    if bad.size:
        raise InvalidArgumentError(f"sample_weight must not be negative; found {weights[bad[0]]} at row {bad[0]}")
    if not weights.any() and not isinstance(sample_weight, OfPart):
        raise InvalidArgumentError("sample_weight must not be all zero")
    return scaled(weights)


def scaled(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return weights of which only the ratios matter, the largest of them in [1/2, 1).

    They are scaled by a power of two, which rounds nothing; then neither they nor their sum can overflow in any dtype.

    Examples
    --------
    >>> scaled(np.array([2e300, 1e300, 0.0])).round(2)
    array([0.75, 0.37, 0.  ])
    """
    return np.ldexp(weights, -np.frexp(weights.max())[1])


def check_mask(mask: ArrayLike | None, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Return a mask of the targets' shape, True where they count, or None where all do.

    Examples
    --------
    >>> check_mask([[True, False]], (1, 2))
    array([[ True, False]])
    """
    if mask is None:
        return None
    array = real_array(mask, "mask")
    if array.dtype != np.bool_:
        raise InvalidArgumentError(
            f"mask must hold True where a target counts and False where it does not; found dtype {array.dtype}"
        )
    if array.ndim == 1 and shape[1] == 1:
        array = array[:, np.newaxis]
    if array.shape != shape:
        raise InvalidArgumentError(f"mask must have the shape of the targets, {shape}; found {array.shape}")
    if not array.any() and not isinstance(mask, OfPart):
        raise InvalidArgumentError("mask must be True somewhere; found no target that counts")
    return None if array.all() else array


def count_classes(
    class_weight: ClassWeight, loss: Loss, targets: Rows, weights: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """Return the weight of each example, its sample weight times that of its class.

    For cross-entropy sum_j y_ij c_j, for binary cross-entropy (1 - y_i) c_0 + y_i c_1. Masked targets are read as 0.

    Parameters
    ----------
    class_weight : "balanced", mapping or array-like
        As `mlpkit.Objective` takes it.
    loss : Loss
        One of the two.
    targets : Rows
        Checked targets.
    weights : ndarray or None
        Checked sample weights.
    """
    binary = loss.name == "binary_cross_entropy" and targets.shape[1] == 1
    if not (binary or loss.class_targets):
        raise InvalidArgumentError(
            "class_weight needs targets that are classes: cross_entropy, or binary_cross_entropy with one output; "
            f"found {loss.name} with {targets.shape[1]} output{'s' if targets.shape[1] > 1 else ''}"
        )
    n_classes = 2 if binary else targets.shape[1]
    if isinstance(class_weight, str) and class_weight == "balanced":
        each = _balanced(targets, weights, binary)
    else:
        each = scaled(_check_class_weight(class_weight, n_classes))
    found = np.ones(targets.shape[0]) if weights is None else weights.copy()
    for begin, block in targets.blocks():
        factors = _shares(block, binary) @ each
        some = found[begin : begin + len(block)]
        # A target outside [0, 1], which only an example of weight 0 may have, would bring a factor below 0.
        some *= np.where(some > 0, factors, 0.0)
    if not found.any():
        raise InvalidArgumentError("class_weight must leave an example whose weight is not 0; found none")
    return scaled(found)


def _shares(block: NDArray[Any], binary: bool) -> NDArray[np.float64]:
    """Return how far each example belongs to each class."""
    shares = np.asarray(block, np.float64)
    return np.hstack([1.0 - shares, shares]) if binary else shares


def _balanced(targets: Rows, weights: NDArray[np.float64] | None, binary: bool) -> NDArray[np.float64]:
    """Return weights under which all classes together weigh the same: m / (n_classes * number of the class).

    Examples count as often as their sample weight says, so that a weight of 2 is still a repetition.
    """
    total: Any = 0.0
    for begin, block in targets.blocks():
        w = np.ones(len(block)) if weights is None else weights[begin : begin + len(block)]
        shares = _shares(block, binary)
        shares[w == 0] = 0.0
        total = total + w @ shares
    # A class that has no example weighs nothing, whatever its weight.
    inverse = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    return scaled(inverse) if inverse.any() else inverse


def _check_class_weight(class_weight: ClassWeight, n_classes: int) -> NDArray[np.float64]:
    """Return a weight for each class; 1 for those that a mapping does not name."""
    if isinstance(class_weight, Mapping):
        each = np.ones(n_classes)
        for label, value in class_weight.items():
            if not isinstance(label, numbers.Integral) or not 0 <= label < n_classes:
                raise InvalidArgumentError(
                    f"class_weight must have class labels from 0 to {n_classes - 1} as keys; found {shown(label)}"
                )
            each[int(label)] = check_number(value, f"class_weight of class {label}", low=0)
        if not each.any():
            raise InvalidArgumentError("class_weight must not be all zero")
        return each
    if isinstance(class_weight, (str, bytes)):
        raise InvalidArgumentError(
            f"class_weight must be 'balanced', a mapping from class labels to weights, or an array of {n_classes} "
            f"weights; found {shown(class_weight)}"
        )
    each = check_vector(class_weight, "class_weight", length=n_classes)
    if (each < 0).any():
        raise InvalidArgumentError(f"class_weight must not be negative; found {each.min()} for class {each.argmin()}")
    if not each.any():
        raise InvalidArgumentError("class_weight must not be all zero")
    return each


class Elements(Rows):
    """The weight of each number of the targets, read as blocks: w_i where it counts, 0 where it is masked."""

    def __init__(self, mask: NDArray[np.bool_], weights: NDArray[np.float64] | None, dtype: np.dtype[Any]) -> None:
        super().__init__(mask, "mask", mask.shape[1], dtype)
        self._weights = weights

    def take(self, which: slice | NDArray[np.intp]) -> NDArray[Any]:
        """Return the weights of some rows."""
        block = super().take(which)
        return block if self._weights is None else block * self._weights[which].astype(self.dtype)[:, np.newaxis]


def pack_elements(
    mask: NDArray[np.bool_], weights: NDArray[np.float64] | None, used: NDArray[np.intp] | None, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Return the weight of each number of the targets as panels; lanes without an example have weight 0."""
    panels = pack_rows(Elements(mask, weights, dtype), used)
    m, n = mask.shape[0] if used is None else used.size, mask.shape[1]
    n_lanes = lanes(dtype)
    last = panels[-n * n_lanes :].reshape(n, n_lanes)
    last[:, (m - 1) % n_lanes + 1 :] = 0
    return panels
