"""What metrics are computed of: targets, outputs and weights that fit each other, and which targets count."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.checks import check_finite, check_vector, real_array
from mlpkit.errors import InvalidArgumentError
from mlpkit.weights import check_mask, scaled

__all__ = ["Counted", "check_counted", "finite_or_nan", "is_partial"]


class Counted(NamedTuple):
    """Checked data of a metric; where a target does not count, it and its output are 0."""

    targets: NDArray[np.float64]  # as the outputs, or class labels (m,)
    outputs: NDArray[np.float64]
    weights: NDArray[np.float64] | None  # of examples, of which only the ratios matter
    mask: NDArray[np.bool_] | None  # None where all count

    def elements(self) -> NDArray[np.float64]:
        """Return the weight of each target."""
        w = np.ones((len(self.outputs), 1)) if self.weights is None else self.weights[:, np.newaxis]
        return np.broadcast_to(w if self.mask is None else w * self.mask, self.outputs.shape)

    def mean(self, values: NDArray[Any]) -> float:
        """Return the mean over what counts of a value for each target, or one for each example, shape (m, 1)."""
        if self.mask is None:
            return finite_or_nan(np.average(values.mean(axis=1), weights=self.weights))
        return finite_or_nan(np.average(values, weights=self.elements()[:, : values.shape[1]]))


def check_counted(
    targets: ArrayLike,
    outputs: ArrayLike,
    weights: ArrayLike | None,
    mask: ArrayLike | None,
    labels: bool = False,
) -> Counted:
    """Return what a metric is of.

    Parameters
    ----------
    targets, outputs, weights, mask
        As the metrics take them.
    labels : bool
        Whether targets of shape (m,) or (m, 1) are class labels where there are several outputs.

    Raises
    ------
    InvalidArgumentError
        If shapes do not fit, a target that counts is not finite, a weight is negative, or nothing counts.

    Examples
    --------
    >>> case = check_counted([[1.0, np.nan]], [[0.5, 0.25]], None, [[True, False]])
    >>> case.targets, case.outputs
    (array([[1., 0.]]), array([[0.5, 0. ]]))
    """
    h = real_array(outputs, "outputs")
    h = h[:, np.newaxis] if h.ndim == 1 else h
    if h.ndim != 2 or h.size == 0:
        raise InvalidArgumentError(f"outputs must be a matrix, examples in rows, not empty; found shape {h.shape}")
    m, n = h.shape
    y = real_array(targets, "targets")
    if labels and n > 1 and y.shape in ((m,), (m, 1)):
        y = y.reshape(m)
    elif y.shape == (m, n) or (n == 1 and y.shape == (m,)):
        y = y.reshape(m, n)
    else:
        raise InvalidArgumentError(f"targets must have the outputs' shape, {(m, n)}; found {y.shape}")
    w = None if weights is None else _check_weights(weights, m)
    counts = check_mask(mask, (m, n))
    if counts is not None:
        some = counts.any(axis=1)
        if w is not None and not w[some].any():
            raise InvalidArgumentError("weights must not be zero wherever mask is True; found no target that counts")
        y, h = np.where(some if y.ndim == 1 else counts, y, 0), np.where(counts, h, 0)
    check_finite(y, "targets")
    return Counted(y.astype(np.float64, copy=False), h.astype(np.float64, copy=False), w, counts)


def is_partial(mask: NDArray[np.bool_] | None) -> bool:
    """Say whether a mask leaves out some of an example's targets and not all.

    Examples
    --------
    >>> is_partial(np.array([[True, False]])), is_partial(np.array([[True, True], [False, False]]))
    (True, False)
    """
    return mask is not None and bool(np.any(mask.any(axis=1) != mask.all(axis=1)))


def finite_or_nan(value: Any) -> float:
    """Return a number as a float, NaN for what is infinite."""
    number = float(value)
    return number if math.isfinite(number) else math.nan


def _check_weights(weights: ArrayLike, m: int) -> NDArray[np.float64]:
    w = check_vector(weights, "weights", length=m)
    if np.any(w < 0) or not np.any(w):
        raise InvalidArgumentError(f"weights must not be negative, nor all zero; found a least of {w.min():g}")
    return scaled(w)
