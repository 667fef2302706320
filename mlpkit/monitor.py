"""Validation data, and metrics after each iteration."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.checks import check_number, real_array
from mlpkit.errors import InvalidArgumentError
from mlpkit.metrics import resolve
from mlpkit.metrics.counted import is_partial
from mlpkit.mlp import MLP
from mlpkit.objective import Objective
from mlpkit.row_files import refuse_files
from mlpkit.weights import check_mask

__all__ = ["Examples", "Monitor", "hold_out"]


_VALIDATION = "(X, Y), (X, Y, sample_weight), (X, Y, sample_weight, mask) or a fraction"


class Examples(NamedTuple):
    """Data as `MLP.fit` takes them."""

    X: ArrayLike
    Y: ArrayLike
    sample_weight: ArrayLike | None = None
    mask: ArrayLike | None = None

    def take(self, rows: NDArray[np.intp]) -> Examples:
        """Return some rows; Y stays X where it is."""
        X = real_array(self.X, "X")[rows]
        Y = X if self.Y is self.X else real_array(self.Y, "Y")[rows]
        weights, mask = (
            None if values is None else real_array(values, name)[rows]
            for name, values in (("sample_weight", self.sample_weight), ("mask", self.mask))
        )
        return Examples(X, Y, weights, mask)


def hold_out(train: Examples, validation: Any, generator: np.random.Generator) -> tuple[Examples, Examples | None]:
    """Return the examples to train on, and those to validate on, if any.

    Parameters
    ----------
    train : Examples
        All there are.
    validation : None, tuple or float
        None; (X, Y), (X, Y, sample_weight) or (X, Y, sample_weight, mask); or the fraction of rows, drawn at random,
        that training shall not see.
    generator : numpy.random.Generator
        What they are drawn from.

    Examples
    --------
    >>> some, others = hold_out(Examples(np.eye(4), np.eye(4)), 0.25, np.random.default_rng(0))
    >>> len(some.X), len(others.X)
    (3, 1)
    """
    if validation is None:
        return train, None
    if isinstance(validation, (tuple, list)):
        if len(validation) not in (2, 3, 4):
            raise InvalidArgumentError(f"validation must be {_VALIDATION}; found {len(validation)} things")
        X, Y, *rest = validation
        return train, Examples(X, Y, *rest)
    if isinstance(validation, (bool, np.bool_)) or not np.isscalar(validation):
        raise InvalidArgumentError(f"validation must be {_VALIDATION}; found {type(validation).__name__}")
    fraction = check_number(validation, "validation", low=0, high=1, low_open=True, high_open=True)
    refuse_files(train.X, "X", "where a fraction of it is held out")
    refuse_files(train.Y, "Y", "where a fraction of it is held out")
    m = len(real_array(train.X, "X"))
    held = round(fraction * m)
    if not 0 < held < m:
        raise InvalidArgumentError(f"validation must leave rows on both sides; found {fraction:g} of {m} rows")
    order = generator.permutation(m)
    return train.take(np.sort(order[held:])), train.take(np.sort(order[:held]))


_WORK = 1 << 29  # multiplications between two looks: some 20 ms


class Monitor:
    """Evaluates a network after each iteration, some rows at a time, so that Ctrl-C need not wait for all of them.

    Parameters
    ----------
    net : MLP
        As it is when it is evaluated.
    train : Examples
        What metrics are of where there are no validation data.
    validation : Examples, optional
        What ``validation_loss``, the data term of J, and the metrics are of, whose names then begin with
        ``validation_``.
    metrics : list, optional
        Names or functions; see `mlpkit.metrics`. They see no example without a target that counts.
    """

    def __init__(self, net: MLP, train: Examples, validation: Examples | None, metrics: Any) -> None:
        self._net = net
        self._objective: Objective | None = None
        self._prefix = ""
        of = train
        if validation is not None:
            of, self._prefix = validation, "validation_"
            try:
                self._objective = Objective(net, of.X, of.Y, of.sample_weight, False, mask=of.mask)
            except InvalidArgumentError as error:
                raise InvalidArgumentError(f"validation: {error}") from None
            m = self._objective.n_rows
            weights = np.ones(m) if of.sample_weight is None else np.asarray(of.sample_weight, np.float64)
            self._weights = weights / weights.sum()
        mask = None
        if metrics is not None and of.mask is not None:
            refuse_files(of.X, "X", "where there are metrics")
            mask = check_mask(of.mask, (len(real_array(of.X, "X")), net.sizes[-1]))
        activation = net.layers[-1].activation  # type: ignore[union-attr]
        self._metrics: list[tuple[str, Callable[..., float]]] = resolve(metrics, activation, is_partial(mask))
        if self._metrics:
            self._gather(of, mask)

    def _gather(self, of: Examples, mask: NDArray[np.bool_] | None) -> None:
        """Hold what metrics are of: the examples that have a target that counts."""
        refuse_files(of.X, "X", "where there are metrics")
        refuse_files(of.Y, "Y", "where there are metrics")
        self._X, self._Y = real_array(of.X, "X"), real_array(of.Y, "Y")
        self._sample_weight = None if of.sample_weight is None else np.asarray(of.sample_weight, np.float64)
        self._mask = None
        if mask is not None:
            some = mask.any(axis=1)
            self._X, self._Y = self._X[some], self._Y[some]
            self._mask = mask[some] if is_partial(mask) else None
            self._sample_weight = None if self._sample_weight is None else self._sample_weight[some]
        if self._sample_weight is not None and not self._sample_weight.any():
            raise InvalidArgumentError(
                "sample_weight must not be zero wherever mask is True: there are metrics; found no target that counts"
            )

    def __call__(self, look: Callable[[], None]) -> dict[str, float]:
        """Return what there is to put on record; `look` is called some times a second, and may raise."""
        found: dict[str, float] = {}
        if self._objective is not None:
            losses = self._objective.per_example_loss(self._net.theta, look)
            found["validation_loss"] = float(self._weights @ losses)
        if self._metrics:
            outputs = self._predict(look)
            for name, metric in self._metrics:
                look()
                found[self._prefix + name] = metric(self._Y, outputs, self._sample_weight, self._mask)
        return found

    def _predict(self, look: Callable[[], None]) -> NDArray[Any]:
        net = self._net
        some = max(1024, _WORK // sum(n_in * n_out for n_in, n_out in pairwise(net.sizes)))
        outputs = np.empty((len(self._X), net.sizes[-1]), net.dtype)
        for begin in range(0, len(outputs), some):
            look()
            rows = slice(begin, begin + some)
            net.predict(self._X[rows], out=outputs[rows])
        return outputs
