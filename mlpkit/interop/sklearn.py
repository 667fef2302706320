"""From and to scikit-learn's ``MLPClassifier`` and ``MLPRegressor``.

What scikit-learn minimises, as its versions 1.6 to 1.9 compute it, and what that is here:

- The penalty is alpha / 2 sum W**2 divided by the number of rows that the loss is averaged over (with sample weights,
  by their sum): all n of them for lbfgs, the B of a mini-batch for sgd and adam. So lambda is alpha / n or alpha / B.
  The last mini-batch of an epoch may be shorter; it decays a little more.
- Weights have shape (in, out): W^(l) is ``coefs_[l - 1].T``.
- Binary classification has one logistic output, trained by binary cross-entropy; multilabel has one for each label;
  several classes have a softmax, trained by cross-entropy. All of these and ``poisson`` sum over outputs, as here.
- ``squared_error`` with K > 1 outputs is inconsistent (scikit-learn issue 8349): the loss that scikit-learn reports,
  and its line search sees, has 1/K of the data term, the mean over outputs; its gradient is that of the sum over
  outputs, 1/2 ||h - y||^2, which is mlpkit's. What is followed is what is converted: gradients agree, and the reported
  value plus (1 - 1/K) of the data term is J.
- On outputs of ``poisson`` the reported value has the further term y log y - y, which no parameter changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit import activations
from mlpkit.checks import check_number, shown
from mlpkit.errors import InvalidArgumentError, import_extra
from mlpkit.interop.conversion import Conversion
from mlpkit.interop.dense_stack import Linear, assemble
from mlpkit.interop.sklearn_estimator import fitted
from mlpkit.layers import Dense, Input
from mlpkit.mlp import MLP, check_network

if TYPE_CHECKING:
    from sklearn.neural_network import MLPClassifier, MLPRegressor

__all__ = ["from_sklearn", "to_sklearn"]

# scikit-learn's names and ours.
_ACTIVATIONS = {"identity": "identity", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}
_OUTPUTS = {"softmax": "softmax", "logistic": "sigmoid", "identity": "identity", "exp": "exp"}
# The estimator and its loss for each loss and output activation of ours.
_HEADS = {
    ("cross_entropy", "softmax"): ("MLPClassifier", "log_loss"),
    ("binary_cross_entropy", "sigmoid"): ("MLPClassifier", "log_loss"),
    ("squared_error", "identity"): ("MLPRegressor", "squared_error"),
    ("poisson", "exp"): ("MLPRegressor", "poisson"),
}
# Parameters of an estimator that become something of the network's own.
_MAPPED = ("hidden_layer_sizes", "activation", "alpha", "loss")
_FULL_BATCH = "lbfgs"
_LARGEST_AUTO_BATCH = 200


def from_sklearn(estimator: MLPClassifier | MLPRegressor, *, n_samples: float | None = None) -> Conversion:
    """Return the network of a fitted MLPClassifier or MLPRegressor.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
        Fitted. An estimator of another class, a pipeline for instance, is refused.
    n_samples : float, optional
        How many rows it was fitted to (with sample weights, their sum), which turns alpha into lambda. An estimator
        that was fitted by sgd or adam knows; one fitted by lbfgs does not, and needs it unless alpha is 0.

    Returns
    -------
    Conversion
        The network, which predicts the same to rounding (for a classifier, what ``predict_proba`` gives, of the second
        class where there are two), and a line for each thing that was mapped. ``net.metadata`` keeps ``classes``, the
        labels in the order of the outputs, and under ``scikit_learn`` the estimator's other parameters.

    Raises
    ------
    InvalidArgumentError
        If `estimator` is none of the two or not fitted, or `n_samples` is needed and not given.
    MissingExtraError
        If scikit-learn is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.neural_network import MLPClassifier
    >>> X, labels = np.eye(4), ["cat", "dog", "cat", "dog"]
    >>> clf = MLPClassifier((3,), activation="tanh", solver="lbfgs", random_state=0).fit(X, labels)
    >>> net, mapped = from_sklearn(clf, n_samples=4)
    >>> net
    MLP([Input(4), Dense(3, 'tanh'), Dense(1, 'sigmoid')], loss='binary_cross_entropy', weight_decay=2.5e-05)
    >>> bool(np.allclose(net.predict(X)[:, 0], clf.predict_proba(X)[:, 1]))
    True
    >>> np.array(net.metadata["classes"])[net.predict_labels(X)]
    array(['cat', 'dog', 'cat', 'dog'], dtype='<U3')
    """
    kind = _check_fitted(estimator)
    loss, out = getattr(estimator, "loss", None), estimator.out_activation_
    head = next((h for h, found in _HEADS.items() if found == (kind, loss) and h[1] == _OUTPUTS.get(out)), None)
    if head is None or estimator.activation not in _ACTIVATIONS:
        raise InvalidArgumentError(
            f"estimator must have an activation among {', '.join(_ACTIVATIONS)} and a loss that goes with its output "
            f"activation; found activation {shown(estimator.activation)}, loss {shown(loss)}, output {shown(out)}"
        )
    stack = [
        Linear(f"coefs_[{i}].T", f"intercepts_[{i}]", W.T, b)
        for i, (W, b) in enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True))
    ]
    functions = [activations.get(name) for name in (*[_ACTIVATIONS[estimator.activation]] * (len(stack) - 1), head[1])]
    rows = _rows(estimator) if n_samples is None else check_number(n_samples, "n_samples", low=0, low_open=True)
    alpha = float(estimator.alpha)
    divisor = _divisor(estimator.solver, estimator.batch_size, rows)
    if alpha and divisor is None:
        raise InvalidArgumentError(
            f"n_samples must be given: {kind} with solver {estimator.solver!r} and batch_size "
            f"{estimator.batch_size!r} does not say how many rows alpha = {alpha:g} was divided by"
        )
    decay = alpha / divisor if alpha and divisor else 0.0
    net, arrays = assemble(stack, functions, loss=head[0], weight_decay=decay, fail=_refuse)
    mapped = [
        *arrays,
        f"activation {estimator.activation!r} -> {functions[0].name!r}" if len(stack) > 1 else "",
        f"out_activation_ {out!r} -> {head[1]!r}",
        f"loss {loss!r} -> {head[0]!r}",
        f"alpha {alpha:g} -> weight_decay {decay:g}" + (f", alpha / {divisor:g}" if alpha else ""),
    ]
    if head[0] == "squared_error" and net.sizes[-1] > 1:
        mapped[-2] += f" (gradients agree; the loss that scikit-learn reports has 1/{net.sizes[-1]} of the data term)"
    mapped += _keep(estimator, kind, rows, net.metadata)
    return Conversion(net, tuple(filter(None, mapped)))


def _refuse(part: str, reason: str) -> NoReturn:
    raise InvalidArgumentError(f"estimator: {part}: {reason}")


def _check_fitted(estimator: Any) -> str:
    """Return the name of the estimator's class, after a check that it is one of the two and fitted."""
    neural_network = import_extra("sklearn.neural_network", extra="sklearn")
    kind = type(estimator).__name__
    # Not of a derived class, which may predict otherwise.
    if type(estimator) not in (neural_network.MLPClassifier, neural_network.MLPRegressor):
        raise InvalidArgumentError(f"estimator must be an MLPClassifier or MLPRegressor itself; found {kind}")
    if not hasattr(estimator, "coefs_"):
        raise InvalidArgumentError(f"estimator must be fitted; found {kind} without coefs_")
    return kind


def _rows(estimator: Any) -> float | None:
    """Return how many rows a stochastic fit went through in each epoch, where the estimator can tell."""
    epochs = len(getattr(estimator, "loss_curve_", ()))
    if estimator.solver == _FULL_BATCH or epochs == 0 or epochs != estimator.n_iter_ or estimator.t_ % epochs:
        return None  # several calls of fit or partial_fit have been counted together
    return float(estimator.t_ // epochs)


def _divisor(solver: str, batch_size: Any, rows: float | None) -> float | None:
    """Return what scikit-learn divides alpha by, None where that hangs on a number of rows that is not known."""
    if solver == _FULL_BATCH:
        return rows
    if rows is None:
        return None if batch_size == "auto" else float(batch_size)
    return min(_LARGEST_AUTO_BATCH if batch_size == "auto" else float(batch_size), rows)


def _keep(estimator: Any, kind: str, rows: float | None, metadata: dict[str, Any]) -> list[str]:
    """Put into the metadata what a network has no place for; return the lines that say so."""
    parameters = {name: _plain(value) for name, value in estimator.get_params().items() if name not in _MAPPED}
    lines = [f"{', '.join(parameters)} -> metadata['scikit_learn']['parameters']"]
    if not isinstance(parameters["random_state"], int | None):
        parameters["random_state"] = None
        lines.append(f"random_state {shown(estimator.random_state)} -> None: the parameters have been drawn already")
    kept: dict[str, Any] = {"estimator": kind, "parameters": parameters}
    if rows is not None:
        kept["n_samples"] = rows
        lines.append(f"rows of the data {rows:g} -> metadata['scikit_learn']['n_samples']")
    if hasattr(estimator, "feature_names_in_"):
        kept["feature_names"] = estimator.feature_names_in_.tolist()
        lines.append("feature_names_in_ -> metadata['scikit_learn']['feature_names']")
    if kind == "MLPClassifier":
        kept["classes_dtype"] = estimator.classes_.dtype.str
        metadata["classes"] = estimator.classes_.tolist()
        lines.append(f"classes_ {shown(metadata['classes'])} -> metadata['classes']")
    metadata["scikit_learn"] = kept
    return [*lines, "record of the training (loss_curve_, n_iter_, state of the solver): left with the estimator"]


def _plain(value: Any) -> Any:
    """Return NumPy's scalars and arrays as Python's own."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def to_sklearn(
    net: MLP,
    *,
    classes: ArrayLike | None = None,
    solver: str | None = None,
    batch_size: int | str | None = None,
    n_samples: float | None = None,
) -> Conversion:
    """Return a fitted MLPClassifier or MLPRegressor that predicts as the network does.

    Parameters
    ----------
    net : MLP
        With biases everywhere, one hidden activation (identity, sigmoid, tanh or relu) and one weight decay, and as
        output and loss: softmax of 3 or more units and cross_entropy; sigmoid and binary_cross_entropy (one unit:
        two classes; several: multilabel); identity and squared_error; exp and poisson (scikit-learn 1.7).
        No penalties on activations, no noise, no tied weights: an estimator has none.
    classes : array-like, optional
        The labels, sorted, in the order of the outputs. From ``net.metadata["classes"]`` if None, or else 0, 1, ....
    solver, batch_size : optional
        How the estimator is to train further, and so how lambda becomes alpha. As the estimator had it that the
        network comes from, or else ``"lbfgs"`` and ``"auto"``.
    n_samples : float, optional
        How many rows it is going to train on, without which alpha is not known unless lambda is 0. As in the metadata
        if None.

    Returns
    -------
    Conversion
        The estimator, and a line for each thing that was mapped.

    Raises
    ------
    InvalidArgumentError
        Listing all that no estimator can express; or if `n_samples` is needed and not given.
    MissingExtraError
        If scikit-learn is not installed.

    Examples
    --------
    >>> import mlpkit
    >>> net = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(3, "tanh"), mlpkit.Dense(1, "identity")], weight_decay=1e-3)
    >>> estimator, mapped = to_sklearn(net, n_samples=100)
    >>> estimator
    MLPRegressor(activation='tanh', alpha=0.1, hidden_layer_sizes=(3,), solver='lbfgs')
    >>> bool(abs(estimator.predict([[0.5, -0.5]]) - net.predict([[0.5, -0.5]])) < 1e-12)
    True
    """
    import_extra("sklearn.neural_network", extra="sklearn")
    check_network(net)
    kind, loss, hidden = _expressible(net)
    kept = net.metadata.get("scikit_learn", {})
    if not isinstance(kept, dict) or not isinstance(kept.get("parameters", {}), dict):
        raise InvalidArgumentError("net.metadata['scikit_learn'] must be what from_sklearn made of it")
    parameters = {
        "solver": _FULL_BATCH,
        "batch_size": "auto",
        **kept.get("parameters", {}),
        **{name: value for name, value in (("solver", solver), ("batch_size", batch_size)) if value is not None},
    }
    rows = kept.get("n_samples") if n_samples is None else n_samples
    if rows is not None:
        rows = check_number(rows, "n_samples", low=0, low_open=True)
    decay = net.decays[0]
    divisor = _divisor(parameters["solver"], parameters["batch_size"], rows)
    if decay and divisor is None:
        raise InvalidArgumentError(
            f"n_samples must be given: scikit-learn's alpha is weight_decay {decay:g} times the rows of data"
        )
    parameters |= {
        "hidden_layer_sizes": net.sizes[1:-1],
        "activation": next(name for name, ours in _ACTIVATIONS.items() if ours == hidden),
        "alpha": decay * divisor if decay and divisor else 0.0,
    }
    if loss != "log_loss" and loss != "squared_error":  # which no estimator before 1.7 can be told
        parameters["loss"] = loss
    labels = _labels(net, classes, kept) if kind == "MLPClassifier" else None
    estimator = fitted(kind, parameters, net, labels, kept.get("feature_names"))
    mapped = [
        *(
            f"W^({i}) {W.shape}, b^({i}) -> coefs_[{i - 1}] {W.T.shape}, intercepts_[{i - 1}]"
            for i, W in enumerate(net.weights, start=1)
        ),
        f"{hidden!r} -> activation {parameters['activation']!r}" if net.n_layers > 2 else "",
        f"{net.layers[-1].activation.name!r}, {net.loss.name!r} -> {kind}, loss {loss!r}",  # type: ignore[union-attr]
        f"weight_decay {decay:g} -> alpha {parameters['alpha']:g}" + (f", {divisor:g} times" if decay else ""),
        f"labels {shown(labels.tolist())} -> classes_" if labels is not None else "",
        "metadata['scikit_learn'] -> parameters, feature_names_in_" if kept else "",
        *_left_out(net, {"scikit_learn"} if labels is None else {"scikit_learn", "classes"}),
    ]
    return Conversion(estimator, tuple(filter(None, mapped)))


def _expressible(net: MLP) -> tuple[str, str, str]:
    """Return the kind of estimator, its loss and the hidden activation, or list all that stands against it."""
    dense = [layer for layer in net.layers if isinstance(layer, Dense)]
    output, hidden = dense[-1].activation.name, sorted({layer.activation.name for layer in dense[:-1]})
    against: list[str] = []
    if (head := _HEADS.get((net.loss.name, output))) is None:
        known = ", ".join(f"{loss} on {activation}" for loss, activation in _HEADS)
        against.append(f"loss {net.loss.name!r} on {output!r} outputs (expected one of: {known})")
    elif output == "softmax" and dense[-1].units < 3:
        against.append(f"softmax of {dense[-1].units} units (of two classes scikit-learn makes one logistic output)")
    if len(hidden) > 1:
        against.append(f"hidden activations that differ: {', '.join(hidden)}")
    against += [f"hidden activation {name!r}" for name in hidden if name not in _ACTIVATIONS.values()]
    if len(set(net.decays)) > 1 and not any(layer.tied_to for layer in dense):
        against.append(f"weight decay that differs: {', '.join(f'{decay:g}' for decay in net.decays)}")
    for number, layer in enumerate(dense, start=2):
        against += [f"{type(penalty).__name__} on layer {number}" for penalty in layer.penalties]
        against += [f"layer {number} without biases"] if not layer.bias else []
        against += [f"layer {number} tied to W^({layer.tied_to})"] if layer.tied_to else []
    if isinstance(net.layers[0], Input) and net.layers[0].noise is not None:
        against.append(f"noise on the inputs, {net.layers[0].noise!r}")
    if against or head is None:
        raise InvalidArgumentError(f"net must be one that scikit-learn can express; found {'; '.join(against)}")
    return *head, hidden[0] if hidden else "relu"


def _left_out(net: MLP, taken: set[str]) -> list[str]:
    """Return a line for each thing that plays no part in predictions and that an estimator has no place for."""
    parts = [f"seed {net.seed}"] if net.seed is not None else []
    for number, layer in enumerate(net.layers, start=1):
        if isinstance(layer, Dense) and layer.init is not None:
            parts.append(f"layer {number}: init {layer.init!r}")
    parts += ["provenance"] if net.provenance is not None else []
    parts += [f"metadata[{name!r}]" for name in net.metadata if name not in taken]
    return [f"{part} -> not part of an estimator" for part in parts]


def _labels(net: MLP, classes: ArrayLike | None, kept: dict[str, Any]) -> NDArray[Any]:
    """Return the labels of a classifier's outputs, which scikit-learn keeps sorted."""
    n_classes = max(net.sizes[-1], 2)
    name, found = "classes", classes
    if found is None:
        name, found = "net.metadata['classes']", net.metadata.get("classes")
    labels = np.arange(n_classes) if found is None else np.asarray(found)
    if classes is None and found is not None and isinstance(kept.get("classes_dtype"), str):
        labels = labels.astype(kept["classes_dtype"])
    if labels.shape != (n_classes,) or not np.array_equal(np.unique(labels), labels):
        raise InvalidArgumentError(
            f"{name} must be {n_classes} different labels in sorted order, one for each output (two for a single "
            f"output); found {shown(labels.tolist())}"
        )
    return labels
