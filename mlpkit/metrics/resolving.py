"""From what users hand in as metrics to named functions whose results are looked at."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlpkit import activations
from mlpkit.checks import shown
from mlpkit.errors import InvalidArgumentError
from mlpkit.history import Iteration
from mlpkit.metrics.named import accuracy, check_names_classes, mean_absolute_error, mean_squared_error, r2

if TYPE_CHECKING:
    from mlpkit.activations import Activation

__all__ = ["Metric", "resolve"]

Metric = Callable[..., float]

_NAMED: dict[str, Metric] = {
    "accuracy": accuracy,
    "mean_squared_error": mean_squared_error,
    "mean_absolute_error": mean_absolute_error,
    "r2": r2,
}
# Names that a record of the history has in any case; on validation data a metric gets a prefix, as the loss does.
_TAKEN = (*Iteration(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, 0.0).names(), "metrics", "loss")
_PREFIX = "validation_"


def resolve(
    metrics: Any, activation: str | Activation | None = None, partial: bool = False
) -> list[tuple[str, Metric]]:
    """Return metrics as pairs of a name and a function of targets, outputs, weights and a mask.

    Parameters
    ----------
    metrics : list or dict, optional
        A list of names, of functions, which go by their own name, and of pairs ``("name", function)``; or a dict from
        names to functions. A function is called with targets and outputs, and with the examples' weights (or None) if
        it asks for them: by a third argument without a default, or by one called ``weights`` or ``sample_weight``. If
        it has an argument called ``mask``, it gets an array of the outputs' shape there, True where a target counts.
    activation : str or Activation, optional
        That of the output layer, for ``"accuracy"``.
    partial : bool
        Whether they will be given a mask that hides some of an example's targets and not all.

    Returns
    -------
    list of (str, callable)
        ``function(targets, outputs, weights=None, mask=None) -> float``. What the user's function sees of targets has
        as many dimensions as the outputs, only class labels are a vector; and it cannot write to what it is given.

    Raises
    ------
    InvalidArgumentError
        For unknown names, names given twice or used by the history, and functions without one, lambdas among them;
        for ``"accuracy"`` if the activation's outputs name no classes. If `partial`, for functions that do not take a
        mask, and for ``"accuracy"`` where an example has one class. From a function that is returned, naming the
        metric, if its value is infinite or no number.

    Examples
    --------
    >>> (name, function), (other, _) = resolve(["accuracy", ("spread", lambda targets, outputs: outputs.std())])
    >>> name, other
    ('accuracy', 'spread')
    >>> function([0, 1], [[0.9, 0.1], [0.8, 0.2]])
    0.5
    """
    if metrics is None:
        return []
    if isinstance(metrics, Mapping):
        pairs = list(metrics.items())
    elif isinstance(metrics, list):
        pairs = [_pair(metric, i) for i, metric in enumerate(metrics)]
    else:
        raise InvalidArgumentError(
            f"metrics must be a list of names and functions, or a dict of functions by name; found {shown(metrics)}"
        )
    for name, function in pairs:
        _check(name, function)
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise InvalidArgumentError(f"metrics must not repeat; found {name!r} {names.count(name)} times")
    return [(name, _watched(name, _bound(name, function, activation, partial), partial)) for name, function in pairs]


def _pair(metric: Any, i: int) -> tuple[Any, Any]:
    """Return the name and the function that an element of a list stands for."""
    if isinstance(metric, str):
        if metric not in _NAMED:
            known = ", ".join(repr(name) for name in _NAMED)
            raise InvalidArgumentError(f"metrics[{i}] must be a function or one of {known}; found {metric!r}")
        return metric, _NAMED[metric]
    if isinstance(metric, tuple) and len(metric) == 2:
        return metric
    if not callable(metric) or isinstance(metric, type):
        raise InvalidArgumentError(
            f'metrics[{i}] must be a name, a function or a pair ("name", function); found {shown(metric)}'
        )
    name = getattr(metric, "__name__", "")
    if not str(name).isidentifier():  # a lambda, an object that can be called
        raise InvalidArgumentError(
            f'metrics[{i}] must come with a name, as the pair ("name", function); found {shown(metric)}'
        )
    return name, metric


def _check(name: Any, function: Any) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise InvalidArgumentError(
            f"the name of a metric must be one word of letters, digits and underscores; found {shown(name)}"
        )
    if name in _TAKEN or name.startswith(_PREFIX):
        raise InvalidArgumentError(
            f"the name of a metric must be none of {', '.join(_TAKEN)} and {_PREFIX}..., which the history uses; "
            f"found {name!r}"
        )
    if not callable(function) or isinstance(function, type):
        raise InvalidArgumentError(f"the metric {name!r} must be a function; found {shown(function)}")


def _bound(name: str, function: Metric, activation: str | Activation | None, partial: bool) -> Metric:
    """Return `accuracy` with the activation that it is for, anything else as it is."""
    if function is not accuracy or activation is None:
        return function
    if check_names_classes(activation).coupled and partial:
        raise InvalidArgumentError(
            f"metrics must be without the accuracy {name!r} where mask hides some of an example's targets and not all: "
            f"outputs of {activations.get(activation).name} name one class an example, which is then not known"
        )
    return functools.partial(accuracy, activation=activation)


def _watched(name: str, function: Callable[..., Any], partial: bool) -> Metric:
    """Return a function that hands `function` what it asks for, and looks at what comes back."""
    call, takes_mask = _caller(function)
    if partial and not takes_mask:
        raise InvalidArgumentError(
            f"metrics must take an argument called mask where mask hides some of an example's targets and not all, to "
            f"know which count; found none in the metric {name!r}"
        )

    def metric(targets: Any, outputs: Any, weights: Any = None, mask: Any = None) -> float:
        y, h = _read_only(targets), _read_only(outputs)
        if h.ndim == 2 and y.shape in ((len(h),), (len(h), 1)):
            # Else targets - outputs would be a matrix of m columns.
            y = y.reshape(-1, 1) if h.shape[1] == 1 else y.reshape(-1)
        counts = np.broadcast_to(True, h.shape) if mask is None else _read_only(mask)
        try:
            value = call(y, h, None if weights is None else _read_only(weights), counts)
        except Exception as error:
            error.add_note(f"raised by the metric {name!r}")
            raise
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value[()]
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isinf(value):
            raise InvalidArgumentError(f"the metric {name!r} must return a finite number or NaN; found {shown(value)}")
        return float(value)

    return metric


def _caller(function: Callable[..., Any]) -> tuple[Callable[[Any, Any, Any, Any], Any], bool]:
    """Return a function of targets, outputs, weights and mask that passes on what is taken, and if that is a mask."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some compiled functions do not tell
        parameters = {}  # type: ignore[assignment]
    named = [name for name, p in parameters.items() if p.kind is not inspect.Parameter.POSITIONAL_ONLY]
    weights_name = next((name for name in ("weights", "sample_weight") if name in named), None)
    takes_mask = "mask" in named
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters.values() if p.kind in positional and p.default is inspect.Parameter.empty]
    third = weights_name is None and len(required) - (takes_mask and parameters["mask"] in required) == 3

    def call(y: Any, h: Any, w: Any, mask: Any) -> Any:
        more: dict[str, Any] = {} if weights_name is None else {weights_name: w}
        if takes_mask:
            more["mask"] = mask
        return function(y, h, w, **more) if third else function(y, h, **more)

    return call, takes_mask


def _read_only(values: Any) -> NDArray[Any]:
    array = np.asarray(values).view()
    array.flags.writeable = False
    return array
