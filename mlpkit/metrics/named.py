"""The metrics that have names, as plain functions of targets, outputs and weights.

All are computed in float64. Outputs that are not finite make a metric NaN, not an error: a training that diverges has
them to show.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit import activations
from mlpkit.checks import check_finite, check_vector, real_array
from mlpkit.errors import InvalidArgumentError
from mlpkit.weights import scaled

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
    activation : str or Activation, optional
        That of the output layer; `MLP.fit` says which it is. Where it is not given, several outputs are taken for
        softmax if the targets are labels or rows that sum to 1, and targets below 0 for a sign of tanh.

    Returns
    -------
    float

    Raises
    ------
    InvalidArgumentError
        If shapes do not fit, targets are not finite or no labels, or outputs of the activation name no classes.

    Examples
    --------
    >>> accuracy([2, 0], [[0.1, 0.2, 0.7], [0.3, 0.4, 0.3]])
    0.5
    >>> accuracy([1.0, -1.0, 1.0], [0.9, -0.2, 0.1], weights=[1, 1, 2], activation="tanh")
    1.0
    """
    y, h = _targets(targets), _outputs(outputs)
    m, n = h.shape
    coupled = None if activation is None else check_names_classes(activation).coupled
    if coupled is not False and n > 1 and y.shape in ((m,), (m, 1)):
        right = h.argmax(axis=1) == _labels(y.reshape(m), n)
    else:
        y = _like(h, y)
        if coupled or (coupled is None and n > 1 and _are_distributions(y)):
            right = h.argmax(axis=1) == y.argmax(axis=1)
        else:
            middle = _middle(activation, y)
            right = ((h >= middle) == (y >= middle)).mean(axis=1)
    return _mean(right, weights) if np.isfinite(h).all() else math.nan


def mean_squared_error(targets: ArrayLike, outputs: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the mean of squared errors over examples and outputs.

    The loss ``"squared_error"`` is half their sum over outputs: n / 2 times this.

    Parameters
    ----------
    targets, outputs : array-like, shape (m, n) or, for n = 1, (m,)
    weights : array-like, shape (m,), optional
        Of the examples; all 1 if not given.

    Returns
    -------
    float

    Raises
    ------
    InvalidArgumentError
        If shapes do not fit or targets are not finite.

    Examples
    --------
    >>> mean_squared_error([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 2.0]])
    1.0
    """
    y, h = _pair(targets, outputs)
    with np.errstate(over="ignore", invalid="ignore"):
        return _mean(((y - h) ** 2).mean(axis=1), weights)


def mean_absolute_error(targets: ArrayLike, outputs: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the mean of absolute errors over examples and outputs.

    Parameters
    ----------
    targets, outputs : array-like, shape (m, n) or, for n = 1, (m,)
    weights : array-like, shape (m,), optional
        Of the examples; all 1 if not given.

    Returns
    -------
    float

    Raises
    ------
    InvalidArgumentError
        If shapes do not fit or targets are not finite.

    Examples
    --------
    >>> mean_absolute_error([1.0, 2.0], [1.5, 2.0])
    0.25
    """
    y, h = _pair(targets, outputs)
    with np.errstate(over="ignore", invalid="ignore"):
        return _mean(np.abs(y - h).mean(axis=1), weights)


def r2(targets: ArrayLike, outputs: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the coefficient of determination R**2, the mean over outputs as scikit-learn's ``r2_score`` takes it.

    For each output 1 - sum_i w_i (y_i - h_i)**2 / sum_i w_i (y_i - mean(y))**2; where its targets do not vary, 1 if
    there is no error and 0 if there is. NaN for a single example.

    Parameters
    ----------
    targets, outputs : array-like, shape (m, n) or, for n = 1, (m,)
    weights : array-like, shape (m,), optional
        Of the examples; all 1 if not given.

    Returns
    -------
    float

    Raises
    ------
    InvalidArgumentError
        If shapes do not fit or targets are not finite.

    Examples
    --------
    >>> r2([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    0.5
    """
    y, h = _pair(targets, outputs)
    w = np.ones(len(y)) if weights is None else _weights(weights, len(y))
    if len(y) < 2:
        return math.nan
    counted = y[w > 0]
    varies = counted.max(axis=0) > counted.min(axis=0)  # the spread of a constant may be no 0, for rounding
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        errors = w @ (y - h) ** 2
        spread = w @ (y - np.average(y, axis=0, weights=w)) ** 2
        constant = np.where(errors == 0, 1.0, 0.0 * errors)  # NaN stays NaN
        return _finite_or_nan(np.where(varies & (spread != 0), 1.0 - errors / spread, constant).mean())


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


def _targets(values: ArrayLike) -> NDArray[np.float64]:
    array = real_array(values, "targets")
    check_finite(array, "targets")
    return array.astype(np.float64, copy=False)


def _outputs(values: ArrayLike) -> NDArray[np.float64]:
    array = real_array(values, "outputs")
    if array.ndim == 1:
        array = array[:, np.newaxis]
    if array.ndim != 2 or array.size == 0:
        raise InvalidArgumentError(f"outputs must be a matrix, examples in rows, not empty; found shape {array.shape}")
    return array.astype(np.float64, copy=False)


def _pair(targets: ArrayLike, outputs: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, h = _targets(targets), _outputs(outputs)
    return _like(h, y), h


def _like(outputs: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return targets in the outputs' shape, without guessing."""
    m, n = outputs.shape
    if targets.shape != (m, n) and not (n == 1 and targets.shape == (m,)):
        raise InvalidArgumentError(f"targets must have the outputs' shape, {(m, n)}; found {targets.shape}")
    return targets.reshape(m, n)


def _labels(targets: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    bad = np.flatnonzero((targets < 0) | (targets >= n) | (targets != np.floor(targets)))
    if bad.size:
        raise InvalidArgumentError(
            f"targets must be class labels from 0 to {n - 1}; found {targets[bad[0]]:g} at row {bad[0]}"
        )
    return targets


def _are_distributions(targets: NDArray[np.float64]) -> bool:
    return bool(np.all(targets >= 0) and np.all(np.abs(targets.sum(axis=1) - 1.0) < _ROUNDING))


def _weights(weights: ArrayLike, m: int) -> NDArray[np.float64]:
    """Return m weights, of which only the ratios matter."""
    w = check_vector(weights, "weights", length=m)
    if np.any(w < 0) or not np.any(w):
        raise InvalidArgumentError(f"weights must not be negative, nor all zero; found a least of {w.min():g}")
    return scaled(w)


def _mean(values: NDArray[Any], weights: ArrayLike | None) -> float:
    return _finite_or_nan(np.average(values, weights=None if weights is None else _weights(weights, len(values))))


def _finite_or_nan(value: Any) -> float:
    number = float(value)
    return number if math.isfinite(number) else math.nan
