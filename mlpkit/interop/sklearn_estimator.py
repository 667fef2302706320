"""A scikit-learn estimator in the state that fitting leaves it in, with parameters of our own choice."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit.errors import InvalidArgumentError, import_extra
from mlpkit.mlp import MLP

__all__ = ["fitted"]

# What an epoch on no data worth the name leaves behind.
_TRACES = ("_optimizer", "loss_curve_", "validation_scores_", "best_validation_score_", "best_loss_", "loss_")


def fitted(
    kind: str,
    parameters: dict[str, Any],
    net: MLP,
    labels: NDArray[Any] | None,
    feature_names: list[str] | None,
) -> Any:
    """Return the estimator.

    scikit-learn itself sets up what belongs to a fitted estimator (the binarizer of labels, the output's activation,
    its own bookkeeping): in one epoch on zeros, after which the parameters are put in place.

    Parameters
    ----------
    kind : str
        ``"MLPClassifier"`` or ``"MLPRegressor"``.
    parameters : dict
        What its constructor takes.
    net : MLP
        Where weights and biases come from.
    labels : ndarray or None
        A classifier's classes, sorted.
    feature_names : list of str or None
        Names of the columns.

    Raises
    ------
    InvalidArgumentError
        If scikit-learn refuses a parameter.

    Examples
    --------
    >>> import mlpkit
    >>> net = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(1, "identity", init=1.0)])
    >>> shape = {"hidden_layer_sizes": (), "solver": "lbfgs"}
    >>> fitted("MLPRegressor", shape, net, None, None).predict([[1.0, 2.0]])
    array([3.])
    """
    make = getattr(import_extra("sklearn.neural_network", extra="sklearn"), kind)
    n_outputs = net.sizes[-1]
    shape = {name: parameters[name] for name in ("hidden_layer_sizes", "activation", "loss") if name in parameters}
    try:
        estimator = make(solver="sgd", **shape)
        if labels is None:
            targets = np.zeros((2, n_outputs))
            estimator.partial_fit(np.zeros((2, net.sizes[0]), net.dtype), targets if n_outputs > 1 else targets[:, 0])
        else:
            multilabel = n_outputs > 1 and net.loss.name == "binary_cross_entropy"
            targets = np.eye(n_outputs, dtype=int) if multilabel else labels
            estimator.partial_fit(np.zeros((len(targets), net.sizes[0]), net.dtype), targets, classes=labels)
        estimator.set_params(**parameters)
        # scikit-learn checks parameters only as it fits; this is how it checks them.
        estimator._validate_params()
    except (TypeError, ValueError) as error:  # the former where its version has no such parameter
        raise InvalidArgumentError(f"scikit-learn refuses the estimator: {error}") from error
    estimator.coefs_ = [np.array(W.T, order="C") for W in net.weights]
    estimator.intercepts_ = [b.copy() for b in net.biases]
    if feature_names is not None:
        estimator.feature_names_in_ = np.array(feature_names, dtype=object)
    _forget(estimator)
    return estimator


def _forget(estimator: Any) -> None:
    """Remove the traces of that epoch, and leave what training further starts from."""
    for name in _TRACES:
        if hasattr(estimator, name):
            delattr(estimator, name)
    estimator.n_iter_ = estimator.t_ = estimator._no_improvement_count = 0
    if estimator.solver != "lbfgs":
        early = estimator.early_stopping
        estimator.loss_curve_ = []
        estimator.best_loss_ = None if early else np.inf
        estimator.validation_scores_ = [] if early else None
        estimator.best_validation_score_ = -np.inf if early else None
    estimator._best_coefs = [W.copy() for W in estimator.coefs_]
    estimator._best_intercepts = [b.copy() for b in estimator.intercepts_]
