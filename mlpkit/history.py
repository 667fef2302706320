"""What is put on record in training: one `Iteration` after another, a `History`, and at the end a `FitResult`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit.errors import InvalidArgumentError, import_extra

__all__ = ["FitResult", "History", "Iteration"]


@dataclass(frozen=True)
class Iteration:
    """What is recorded after one accepted iteration, or one epoch of a stochastic optimiser.

    ``record["cost"]`` and ``record["validation_loss"]`` look up attributes and metrics alike.

    Attributes
    ----------
    iteration : int
        Counts from 1.
    cost : float
        J at the accepted theta: the sum of the three terms that follow. For an epoch, the mean over its mini-batches
        of each one's J before its step.
    data, weight_decay, sparsity : float
        The terms of J.
    gradient_norm : float
        The Euclidean norm of the gradient of J; for an epoch, that of its last mini-batch.
    n_evaluations : int
        Evaluations of J and its gradient, or mini-batches, since the start of the fit.
    seconds : float
        Time since the start of the fit.
    iteration_seconds : float
        Time since the previous iteration, or the start of the fit for the first.
    n_hessian_products : int
        Products of the Hessian and a vector since the start of the fit.
    metrics : dict of str to float
        ``"validation_loss"`` where there are validation data, and the metrics that were asked for.

    Examples
    --------
    >>> record = Iteration(1, 0.5, 0.4, 0.1, 0.0, 0.02, 2, 0.003, 0.003, metrics={"validation_loss": 0.6})
    >>> record["cost"], record["validation_loss"]
    (0.5, 0.6)
    """

    iteration: int
    cost: float
    data: float
    weight_decay: float
    sparsity: float
    gradient_norm: float
    n_evaluations: int
    seconds: float
    iteration_seconds: float
    n_hessian_products: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Return the names of all quantities on record, those of metrics last."""
        return [*_NUMBERS, *self.metrics]

    def __getitem__(self, name: str) -> Any:
        if name in _NUMBERS:
            return getattr(self, name)
        return self.metrics[name]


_NUMBERS = tuple(f.name for f in fields(Iteration) if f.name != "metrics")
_COUNTS = ("iteration", "n_evaluations", "n_hessian_products")


class History(list[Iteration]):
    """The accepted iterations in order: a list of `Iteration` records.

    Examples
    --------
    >>> record = Iteration(1, 0.5, 0.4, 0.1, 0.0, 0.02, 2, 0.003, 0.003)
    >>> History([record]).to_dict()["cost"]
    [0.5]
    """

    def to_dict(self) -> dict[str, list[Any]]:
        """Return one list for each quantity, ready for JSON; None where one is not on record."""
        names = dict.fromkeys(name for record in self for name in record.names())
        return {
            name: [record[name] if name in record.names() else None for record in self] for name in names or _NUMBERS
        }

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with a row for each iteration, numbered by it.

        Raises
        ------
        MissingExtraError
            If pandas is not installed.
        """
        frame = import_extra("pandas", extra="pandas").DataFrame(self.to_dict())
        return frame.set_index("iteration")

    def to_columns(self) -> dict[str, NDArray[np.float64]]:
        """Return one float64 array for each quantity, as a checkpoint keeps them; NaN where one is not on record.

        Examples
        --------
        >>> History([Iteration(1, 0.5, 0.4, 0.1, 0.0, 0.02, 2, 0.003, 0.003)]).to_columns()["cost"]
        array([0.5])
        """
        return {
            name: np.array([np.nan if value is None else value for value in values], np.float64)
            for name, values in self.to_dict().items()
        }

    @classmethod
    def from_columns(cls, columns: dict[str, NDArray[np.float64]]) -> History:
        """Return the history that `to_columns` took apart.

        Raises
        ------
        InvalidArgumentError
            If columns are missing or differ in length.

        Examples
        --------
        >>> history = History([Iteration(1, 0.5, 0.4, 0.1, 0.0, 0.02, 2, 0.003, 0.003)])
        >>> History.from_columns(history.to_columns()) == history
        True
        """
        missing = [name for name in _NUMBERS if name not in columns]
        lengths = {np.shape(values) for values in columns.values()}
        if missing or len(lengths) != 1 or len(lengths.pop()) != 1:
            raise InvalidArgumentError(
                f"history must have columns of one length named {', '.join(_NUMBERS)}; found {', '.join(columns)}"
            )
        more = [name for name in columns if name not in _NUMBERS]
        return cls(
            Iteration(
                **{name: _number(name, columns[name][i]) for name in _NUMBERS},
                metrics={name: float(columns[name][i]) for name in more},
            )
            for i in range(len(columns["cost"]))
        )


def _number(name: str, value: Any) -> Any:
    return int(value) if name in _COUNTS else float(value)


@dataclass(frozen=True)
class FitResult:
    """What `MLP.fit` returns.

    Attributes
    ----------
    cost : float
        J at the final parameters. After a stochastic optimiser, the mean over the last epoch's mini-batches; the exact
        one takes `MLP.evaluate`. NaN if training ended before there was one.
    terms : dict of str to float
        Its terms: ``"data"``, ``"weight_decay"`` and ``"sparsity"``.
    n_iterations, n_evaluations : int
        Accepted iterations, or epochs; evaluations of J and its gradient, or mini-batches.
    reason : str
        Why training stopped, in words.
    seconds : float
        How long it took.
    history : History
        One record for each accepted iteration.
    n_hessian_products : int
        Products of the Hessian and a vector.
    iteration : int
        The iteration that the final parameters are of: the last, unless an earlier one's were restored.
    """

    cost: float
    terms: dict[str, float]
    n_iterations: int
    n_evaluations: int
    reason: str
    seconds: float
    history: History = field(repr=False)
    n_hessian_products: int = 0
    iteration: int = 0

    def __str__(self) -> str:
        products = f"{self.n_hessian_products} Hessian products, " if self.n_hessian_products else ""
        restored = f", of which {self.iteration} was the best" if 0 < self.iteration < self.n_iterations else ""
        return (
            f"{self.reason}\n"
            f"J = {self.cost:.6g} ({in_words(self.terms)})\n"
            f"{self.n_iterations} iterations{restored}, {self.n_evaluations} evaluations, {products}"
            f"{self.seconds:.2f} s"
        )

    def __repr__(self) -> str:
        return (
            f"FitResult(cost={self.cost:.6g}, n_iterations={self.n_iterations}, "
            f"n_evaluations={self.n_evaluations}, seconds={self.seconds:.3g}, "
            f"reason={self.reason!r})"
        )


def in_words(terms: Any) -> str:
    """Return named numbers as a sum in words.

    Examples
    --------
    >>> in_words({"data": 0.5, "weight_decay": 0.25})
    'data 0.5 + weight decay 0.25'
    """
    items: Iterable[tuple[str, float]] = terms.items()
    return " + ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in items)
