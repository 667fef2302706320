"""Targets that the output layer can reach: regression targets scaled, class labels encoded.

Section 2.2 of the notes: a sigmoid's outputs lie in [0, 1] and tanh's in [-1, 1], so classes are
written as 0 and 1 (for tanh as -1 and +1), and "for regression problems, we first scale our outputs
to ensure that they lie in the [0, 1] range (or if we were using a tanh activation function, then
the [-1, 1] range)". Both functions here ask the output activation for its range, so they also serve
activations that users register themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit import activations
from mlpkit.activations import Activation
from mlpkit.checks import check_matrix, check_number
from mlpkit.errors import InvalidArgumentError

__all__ = ["Scaling", "encode_labels", "scale_to_range"]


@dataclass(frozen=True, eq=False)
class Scaling:
    """An affine map, one for each column of the targets, and its inverse.

    `scale_to_range` makes it. Column k sends [`data_low[k]`, `data_high[k]`] onto
    [`low[k]`, `high[k]`].

    Parameters
    ----------
    data_low, data_high : ndarray, shape (n,), float64
        Smallest and largest value of each column of the data.
    low, high : ndarray, shape (n,), float64
        What these become.
    shift_only : bool, default False
        Whether every column is moved without being stretched, as for ranges that are not bounded on
        both sides. Where it is False, a column with `data_low == data_high` is a constant.
    """

    data_low: NDArray[np.float64]
    data_high: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    shift_only: bool = False

    def transform(self, Y: ArrayLike) -> NDArray[np.float64]:
        """Scale further targets, for instance a test set's, by the same map.

        Values outside the range of the data that made the map land outside `low` and `high`:
        nothing is clipped.

        Parameters
        ----------
        Y : array-like, shape (m, n) or, with one column, (m,)

        Returns
        -------
        ndarray, the shape of `Y`, float64

        Raises
        ------
        InvalidArgumentError
            If `Y` has another number of columns, is not finite, or lies so far outside the data that
            the result overflows.

        Examples
        --------
        >>> _, scaling = scale_to_range([10.0, 30.0], "tanh")
        >>> scaling.transform([20.0, 30.0])
        array([0., 1.])
        """
        return self._map(Y, "Y", self.data_low, self.data_high, self.low, self.high)

    def inverse(self, scaled: ArrayLike) -> NDArray[np.float64]:
        """Return scaled targets, or a network's predictions, to the units of the data.

        The extremes of the data come back exactly, values between them to within a few roundings of
        the column's largest magnitude (times the width of the output range, where a margin made it
        narrow). A constant column comes back as its constant, whatever the network says.

        Parameters
        ----------
        scaled : array-like, shape (m, n) or, with one column, (m,)

        Returns
        -------
        ndarray, the shape of `scaled`, float64

        Raises
        ------
        InvalidArgumentError
            If `scaled` has another number of columns, is not finite, or lies so far outside `low` and
            `high` that the result overflows.

        Examples
        --------
        >>> scaled, scaling = scale_to_range([[10.0, 5.0], [20.0, 5.0], [30.0, 5.0]], "sigmoid")
        >>> scaled[:, 0]
        array([0. , 0.5, 1. ])
        >>> scaling.inverse(scaled)
        array([[10.,  5.],
               [20.,  5.],
               [30.,  5.]])
        """
        return self._map(scaled, "scaled", self.low, self.high, self.data_low, self.data_high)

    def _map(
        self,
        values: ArrayLike,
        name: str,
        low: NDArray[np.float64],
        high: NDArray[np.float64],
        new_low: NDArray[np.float64],
        new_high: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        matrix = check_matrix(values, name, n_columns=len(self.low))
        result = np.empty_like(matrix)
        with np.errstate(over="ignore"):
            for k in range(len(self.low)):
                ends = (low[k], high[k], new_low[k], new_high[k])
                result[:, k] = self._map_column(matrix[:, k], *ends)
        if not np.isfinite(result).all():
            i, k = (int(index) for index in np.argwhere(~np.isfinite(result))[0])
            raise InvalidArgumentError(
                f"{name} must lie near [{low[k]:g}, {high[k]:g}] in column {k} for the result to be a finite "
                f"float64; found {matrix[i, k]:g} at row {i}"
            )
        return result[:, 0] if np.ndim(values) == 1 else result

    def _map_column(
        self, column: NDArray[np.float64], low: float, high: float, new_low: float, new_high: float
    ) -> NDArray[np.float64] | float:
        width, new_width = high - low, new_high - new_low
        if self.shift_only or (width == new_width and width > 0.0):
            # A shift, perhaps by nothing: no division may disturb the values.
            return np.where(column == high, new_high, column + (new_low - low))
        if width == 0.0 or new_width == 0.0:
            # A constant has no scale: it becomes the constant of the other side.
            return new_low
        t = (column - low) / width
        # From the nearer end, so that both ends are exact and no value between passes them.
        return np.where(t <= 0.5, new_low + t * new_width, new_high - (1.0 - t) * new_width)


def scale_to_range(
    Y: ArrayLike, activation: str | Activation, *, margin: float = 0.0
) -> tuple[NDArray[np.float64], Scaling]:
    """Scale each column of `Y` so that the output activation can reach it.

    Each column's smallest value becomes the lower end of the activation's range and its largest the
    upper end: [0, 1] for sigmoid, [-1, 1] for tanh (the notes, section 2.2). A constant column
    becomes the middle of the range. A range bounded on one side only (relu) needs a shift, not a
    scale: a column that dips below the bound is moved up to it, another is left alone. An unbounded
    range (identity) needs nothing: the targets come back unchanged, with a `Scaling` that changes
    nothing, so that a program need not care which activation it was given.

    Parameters
    ----------
    Y : array-like, shape (m, n) or (m,)
        Targets, one example a row.
    activation : str or Activation
        The output layer's.
    margin : float, default 0.0
        Fraction, in [0, 0.5), of a bounded range to leave free at either end. A sigmoid only
        reaches 0 and 1 at infinite weights, and 0.1 (that is [0.1, 0.9]) keeps it where it is not
        flat.

    Returns
    -------
    scaled : ndarray, the shape of `Y`, float64
    scaling : Scaling
        Its `inverse` returns predictions to the units of `Y`; its `transform` scales further
        targets.

    Raises
    ------
    InvalidArgumentError
        If `Y` is not a finite array of one or two dimensions, `activation` is unknown, a column's
        spread is not a finite float64, or the activation couples its outputs: softmax's sum to one,
        which no scaling of separate columns can achieve (see `encode_labels`).

    Examples
    --------
    >>> scaled, scaling = scale_to_range([150.0, 175.0, 200.0], "tanh")
    >>> scaled
    array([-1.,  0.,  1.])
    >>> scaling.inverse([0.5])
    array([187.5])
    """
    record = activations.get(activation)
    margin = check_number(margin, "margin", low=0.0, high=0.5, high_open=True)
    if record.coupled:
        raise InvalidArgumentError(
            "activation must treat each output alone for targets to be scaled column by column; "
            f"found {record.name!r}, whose outputs depend on one another (for classes there is "
            "encode_labels)"
        )
    matrix = check_matrix(Y, "Y", n_columns=1 if _n_dimensions(Y) == 1 else None)
    data_low, data_high = matrix.min(axis=0), matrix.max(axis=0)
    with np.errstate(over="ignore"):
        spread = data_high - data_low
    if not np.isfinite(spread).all():
        k = int(np.flatnonzero(~np.isfinite(spread))[0])
        raise InvalidArgumentError(
            f"Y must have columns whose spread is a finite float64; found {data_low[k]} to {data_high[k]} in column {k}"
        )
    low, high = _target_range(record, data_low, data_high, margin)
    shift_only = not all(math.isfinite(end) for end in record.range)
    scaling = Scaling(data_low, data_high, low, high, shift_only)
    return scaling.transform(Y), scaling


def encode_labels(
    labels: ArrayLike, activation: str | Activation, *, classes: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Encode class labels as the targets of an output layer (the notes, section 2.2).

    Two classes and an activation that treats each output alone give a single column: the first
    class is the lower end of the activation's range and the second the upper, {0, 1} for sigmoid,
    {-1, +1} for tanh. More classes give one column each, with the upper end in the column of the
    label and the lower end elsewhere. Softmax always has a column for each class, so two classes
    give two columns: one-hot rows that sum to one.

    Parameters
    ----------
    labels : array-like, shape (m,) or (m, 1)
        Integers, strings, booleans or anything else that NumPy can sort.
    activation : str or Activation
        The output layer's; its range must be bounded.
    classes : array-like, shape (K,), optional
        All classes in the order of the columns. By default ``numpy.unique(labels)``: those that
        occur, sorted. Pass the training set's when encoding a test set, which may lack one of them.

    Returns
    -------
    ndarray, shape (m, 1) or (m, K), float64

    Raises
    ------
    InvalidArgumentError
        For fewer than two classes, a label that is not in `classes`, classes given twice, missing
        labels (NaN, NaT, None or masked), labels that are not a list or can be neither sorted nor
        hashed, and activations without a bounded range.

    Examples
    --------
    >>> encode_labels(["no", "yes", "no"], "tanh").ravel()
    array([-1.,  1., -1.])
    >>> encode_labels([2, 0, 1], "softmax")
    array([[0., 0., 1.],
           [1., 0., 0.],
           [0., 1., 0.]])
    """
    record = activations.get(activation)
    low, high = record.range
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InvalidArgumentError(
            "activation must have a bounded range for its ends to stand for classes, as sigmoid, "
            f"tanh and softmax have; found {record.name!r} with range ({low:g}, {high:g})"
        )
    found = _label_list(labels, "labels")
    present, index = _unique(found, "labels")
    if classes is None:
        known = present
    else:
        known = _label_list(classes, "classes")
        index = _index_in(found, present, index, known)
    if len(known) < 2:
        raise InvalidArgumentError(
            f"labels must have at least two classes; found only {known.tolist()[0]!r}"
            " (classes= names those that do not occur)"
        )
    if len(known) == 2 and not record.coupled:
        columns = np.array([[low], [high]])
    else:
        columns = np.full((len(known), len(known)), float(low))
        np.fill_diagonal(columns, high)
    return columns[index]


def _target_range(
    record: Activation,
    data_low: NDArray[np.float64],
    data_high: NDArray[np.float64],
    margin: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends to which each column's extremes go."""
    low, high = record.range
    if math.isfinite(low) and math.isfinite(high):
        # Written so that a margin of 0 gives the ends themselves, unrounded.
        free = margin * (high - low)
        constant = data_low == data_high
        middle = low + 0.5 * (high - low)
        return np.where(constant, middle, low + free), np.where(constant, middle, high - free)
    if math.isfinite(low):
        shifted = data_low < low
        top = np.where(shifted, low + (data_high - data_low), data_high)
        return np.where(shifted, low, data_low), top
    if math.isfinite(high):
        shifted = data_high > high
        bottom = np.where(shifted, high - (data_high - data_low), data_low)
        return bottom, np.where(shifted, high, data_high)
    return data_low, data_high


def _n_dimensions(values: Any) -> int | None:
    """Return the number of dimensions, or None for what is no array (check_matrix says why)."""
    try:
        return np.ndim(values)
    except ValueError:
        return None


def _label_list(values: ArrayLike, name: str) -> NDArray[Any]:
    """Return labels as a one-dimensional array without missing values."""
    if isinstance(values, np.ma.MaskedArray):
        raise InvalidArgumentError(f"{name} must not be a masked array, whose mask would be lost")
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InvalidArgumentError(f"{name} must be a list of labels: {error}") from error
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise InvalidArgumentError(
            f"{name} must have one dimension, a label for each example; found shape {array.shape}"
        )
    if array.size == 0:
        raise InvalidArgumentError(f"{name} must not be empty")
    # NaN and NaT are what differs from itself.
    missing = [_is_missing(value) for value in array] if array.dtype == object else array != array
    if np.any(missing):
        i = int(np.argmax(missing))
        raise InvalidArgumentError(f"{name} must not be missing; found {array[i]} at index {i}")
    return array


def _is_missing(value: Any) -> bool:
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas' NA, which will not say
        return True
    except ValueError:  # an array, which is no label either: sorting says so
        return False


def _unique(values: NDArray[Any], name: str) -> tuple[NDArray[Any], NDArray[np.intp]]:
    try:
        unique, index = np.unique(values, return_inverse=True)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{name} must be of kinds that can be sorted together: {error}") from error
    return unique, index


def _index_in(
    found: NDArray[Any], present: NDArray[Any], index: NDArray[np.intp], known: NDArray[Any]
) -> NDArray[np.intp]:
    """Return the position in `known` of each label."""
    try:
        place = {label: k for k, label in enumerate(known.tolist())}
        unknown = [label for label in present.tolist() if label not in place]
    except TypeError as error:
        raise InvalidArgumentError(f"classes and labels must be of kinds that can be hashed: {error}") from error
    if len(place) < len(known):
        raise InvalidArgumentError(f"classes must not repeat; found {known.tolist()}")
    if unknown:
        i = found.tolist().index(unknown[0])
        raise InvalidArgumentError(f"labels must be among classes {known.tolist()}; found {unknown[0]!r} at index {i}")
    return np.array([place[label] for label in present.tolist()], dtype=np.intp)[index]
