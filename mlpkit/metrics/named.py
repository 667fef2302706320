"""The metrics that have names, as plain functions of targets, outputs, weights and a mask.

All are computed in float64. Where a mask says that a target does not count, neither it nor its output is looked at.
Outputs that are not finite make a metric NaN, not an error: a training that diverges has them to show.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit import activations
from mlpkit.errors import InvalidArgumentError
from mlpkit.metrics.counted import check_counted, finite_or_nan, is_partial

if TYPE_CHECKING:
    from mlpkit.activations import Activation

__all__ = ["accuracy", "check_names_classes", "mean_absolute_error", "mean_squared_error", "r2"]

# By how much the sum of a row of probabilities may miss 1: float32 or percents with one digit.
_ROUNDING = 1e-3


def accuracy(
    targets: ArrayLike,
    outputs: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    mask: ArrayLike | None = None,
    activation: str | Activation | None = None,
) -> float:
    """Return the fraction of classes that are right, as `MLP.predict_labels` names them.

    Softmax outputs name one class an example, that of the largest output. An output of any other bounded activation
    names one of two: the upper where it lies in the upper half of the range (0.5 and above for sigmoid, 0 and above for
    tanh). So does its target; several such outputs count one by one.

    Parameters
    ----------
    targets : array-like, shape (m,) or (m, n)
        For softmax, class labels from 0 to n - 1 or a probability of each class; otherwise the ends of the range.
    outputs : array-like, shape (m, n) or, for n = 1, (m,)
        What the network predicts.
    weights : array-like, shape (m,), optional
        Of the examples; all 1 if not given.
    mask : array-like of bool, shape (m, n), optional
        True where a target counts; where it does not, it may be NaN. Of one class an example, all or nothing counts.
    activation : str or Activation, optional
        That of the output layer; `MLP.fit` says which it is. Where it is not given, several outputs are taken for
        softmax if the targets are labels or rows that sum to 1, of which no mask hides a part, and targets below 0 for
        a sign of tanh.

    Returns
    -------
    float

    Raises
    ------
    InvalidArgumentError
        If shapes do not fit, targets are not finite or no labels, or outputs of the activation name no classes; if
        each example has one class, and a mask hides a part of its target.

    Examples
    --------
    >>> accuracy([2, 0], [[0.1, 0.2, 0.7], [0.3, 0.4, 0.3]])
    0.5
    >>> accuracy([1.0, -1.0, 1.0], [0.9, -0.2, 0.1], weights=[1, 1, 2], activation="tanh")
    1.0
    """
    coupled = None if activation is None else check_names_classes(activation).coupled
    case = check_counted(targets, outputs, weights, mask, labels=coupled is not False)
    y, h, partial = case.targets, case.outputs, is_partial(case.mask)
    one_class = coupled or y.ndim == 1
    if coupled is None and h.shape[1] > 1 and not partial:
        one_class = y.ndim == 1 or _are_distributions(y if case.mask is None else y[case.mask[:, 0]])
    if one_class and partial:
        raise InvalidArgumentError(
            "mask must leave out all of an example's targets or none where outputs name one class an example (softmax)"
        )
    if one_class:
        best = _labels(y, h.shape[1]) if y.ndim == 1 else y.argmax(axis=1)
        right = (h.argmax(axis=1) == best)[:, np.newaxis]
    else:
        middle = _middle(activation, y)
        right = (h >= middle) == (y >= middle)
    return case.mean(right) if np.isfinite(h).all() else math.nan


def mean_squared_error(
    targets: ArrayLike, outputs: ArrayLike, weights: ArrayLike | None = None, *, mask: ArrayLike | None = None
) -> float:
    """Return the mean of squared errors over examples and outputs.

    The loss ``"squared_error"`` is half their sum over outputs: n / 2 times this.

    Parameters
    ----------
    targets, outputs : array-like, shape (m, n) or, for n = 1, (m,)
    weights : array-like, shape (m,), optional
        Of the examples; all 1 if not given.
    mask : array-like of bool, shape (m, n), optional
        True where a target counts; where it does not, it may be NaN.

    Returns
    -------
    float

    Raises
    ------
    InvalidArgumentError
        If shapes do not fit, or targets that count are not finite.

    Examples
    --------
    >>> mean_squared_error([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 2.0]])
    1.0
    """
    case = check_counted(targets, outputs, weights, mask)
    with np.errstate(over="ignore", invalid="ignore"):
        return case.mean((case.targets - case.outputs) ** 2)


def mean_absolute_error(
    targets: ArrayLike, outputs: ArrayLike, weights: ArrayLike | None = None, *, mask: ArrayLike | None = None
) -> float:
    """Return the mean of absolute errors over examples and outputs.

    Parameters
    ----------
    targets, outputs : array-like, shape (m, n) or, for n = 1, (m,)
    weights : array-like, shape (m,), optional
        Of the examples; all 1 if not given.
    mask : array-like of bool, shape (m, n), optional
        True where a target counts; where it does not, it may be NaN.

    Returns
    -------
    float

    Raises
    ------
    InvalidArgumentError
        If shapes do not fit, or targets that count are not finite.

    Examples
    --------
    >>> mean_absolute_error([1.0, 2.0], [1.5, 2.0])
    0.25
    >>> mean_absolute_error([1.0, np.nan], [1.5, 2.0], mask=[True, False])
    0.5
    """
    case = check_counted(targets, outputs, weights, mask)
    with np.errstate(over="ignore", invalid="ignore"):
        return case.mean(np.abs(case.targets - case.outputs))


def r2(
    targets: ArrayLike, outputs: ArrayLike, weights: ArrayLike | None = None, *, mask: ArrayLike | None = None
) -> float:
    """Return the coefficient of determination R**2, the mean over outputs as scikit-learn's ``r2_score`` takes it.

    For each output 1 - sum_i w_i (y_i - h_i)**2 / sum_i w_i (y_i - mean(y))**2; where its targets do not vary, 1 if
    there is no error and 0 if there is. Outputs of which fewer than two targets count are left out of the mean; NaN
    where there are no others.

    Parameters
    ----------
    targets, outputs : array-like, shape (m, n) or, for n = 1, (m,)
    weights : array-like, shape (m,), optional
        Of the examples; all 1 if not given.
    mask : array-like of bool, shape (m, n), optional
        True where a target counts; where it does not, it may be NaN.

    Returns
    -------
    float

    Raises
    ------
    InvalidArgumentError
        If shapes do not fit, or targets that count are not finite.

    Examples
    --------
    >>> r2([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    0.5
    """
    case = check_counted(targets, outputs, weights, mask)
    y, h, w = case.targets, case.outputs, case.elements()
    counts = w > 0
    # The spread of a constant may be no 0, for rounding.
    varies = np.where(counts, y, -np.inf).max(axis=0) > np.where(counts, y, np.inf).min(axis=0)
    enough = counts.sum(axis=0) >= 2
    if not enough.any():
        return math.nan
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        errors = (w * (y - h) ** 2).sum(axis=0)
        spread = (w * (y - (w * y).sum(axis=0) / w.sum(axis=0)) ** 2).sum(axis=0)
        constant = np.where(errors == 0, 1.0, 0.0 * errors)  # NaN stays NaN
        found = np.where(varies & (spread != 0), 1.0 - errors / spread, constant)
        return finite_or_nan(found[enough].mean())


def check_names_classes(activation: str | Activation) -> Activation:
    """Return the activation of an output layer whose outputs name classes.

    Raises
    ------
    InvalidArgumentError
        If its range is not bounded.

    Examples
    --------
    >>> check_names_classes("sigmoid")
    <activation sigmoid>
    """
    record = activations.get(activation)
    if not np.isfinite(record.range).all():
        raise InvalidArgumentError(
            "accuracy needs an output layer of bounded activation (softmax, sigmoid, tanh); found "
            f"{record.name!r} with range {record.range}"
        )
    return record


def _middle(activation: str | Activation | None, targets: NDArray[np.float64]) -> float:
    """Return where the upper of two classes begins."""
    if activation is None:
        return 0.0 if np.any(targets < 0) else 0.5
    low, high = activations.get(activation).range
    return 0.5 * (low + high)


def _labels(targets: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    bad = np.flatnonzero((targets < 0) | (targets >= n) | (targets != np.floor(targets)))
    if bad.size:
        raise InvalidArgumentError(
            f"targets must be class labels from 0 to {n - 1}; found {targets[bad[0]]:g} at row {bad[0]}"
        )
    return targets


def _are_distributions(targets: NDArray[np.float64]) -> bool:
    return bool(np.all(targets >= 0) and np.all(np.abs(targets.sum(axis=1) - 1.0) < _ROUNDING))
