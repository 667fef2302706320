"""Loss functions: how far an output a lies from its target y, as records that users can add to.

A loss is a scalar function of one output and its target, summed over outputs, and its derivative in a. Where a pair of
loss and output activation has a stable form in z, as cross-entropy on softmax, that form is given for the pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numba.core.ccallback import CFunc

from mlpkit.activations import Activation, softmax
from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels import plugins
from mlpkit.kernels.softmax import cross_entropy_output
from mlpkit.registry import Registry, check_plain_functions

__all__ = ["Loss", "cross_entropy", "get", "names", "register", "squared_error"]


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss, per output unit, and its derivative.

    Parameters
    ----------
    name : str
        What users and model files call it.
    function : callable or None
        loss(a, y) of one output and its target.
    derivative : callable or None
        Its derivative in a.
    fused : mapping from Activation to callable
        Bodies over (panels, rows, lanes) that give loss and its derivative in z at once.
    class_targets : bool
        Whether integer class labels are targets (as one-hot rows), and rows of targets must be probabilities.
    builtin : bool
        mlpkit's own only: compiled code is kept on disk, under a fingerprint of mlpkit's sources.

    Examples
    --------
    >>> squared_error.function(1.0, 0.0)
    0.5
    """

    name: str
    function: Callable[..., Any] | None = None
    derivative: Callable[..., Any] | None = None
    fused: Mapping[Activation, Callable[..., Any]] = field(default_factory=dict)
    class_targets: bool = False
    builtin: bool = False

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise InvalidArgumentError(f"name must be a non-empty string; found {self.name!r}")
        if (self.function is None) != (self.derivative is None):
            raise InvalidArgumentError(f"loss {self.name!r} needs function and derivative, or neither")
        if self.function is None and not self.fused:
            raise InvalidArgumentError(f"loss {self.name!r} needs function and derivative, or a fused pair")
        check_plain_functions(self.name, function=self.function, derivative=self.derivative)

    def check_activation(self, activation: Activation) -> None:
        """Refuse an output activation on which this loss is not defined."""
        if self.function is None and activation not in self.fused:
            wanted = " or ".join(map(repr, self.fused))
            raise InvalidArgumentError(f"loss {self.name!r} needs an output layer with {wanted}; found {activation!r}")

    def reads_z(self, activation: Activation) -> bool:
        """Whether the output layer's z must be kept beside a."""
        return activation in self.fused

    def __reduce__(self) -> Any:
        if _REGISTRY.get(self.name) is self:
            return get, (self.name,)
        return super().__reduce__()

    def __deepcopy__(self, memo: dict[int, Any]) -> Loss:
        return self

    def __repr__(self) -> str:
        return f"<loss {self.name}>"


@cache
def output_tile(loss: Loss, activation: Activation, dtype: np.dtype[Any]) -> CFunc:
    """Return the compiled output tile function of a pair, compiling at the first request."""
    return plugins.output_tile(loss, activation, dtype)


# 1/2 ||h - y||^2, section 2.2 of the notes.
squared_error = Loss("squared_error", lambda a, y: 0.5 * (a - y) * (a - y), lambda a, y: a - y, builtin=True)
cross_entropy = Loss("cross_entropy", fused={softmax: cross_entropy_output}, class_targets=True, builtin=True)

_REGISTRY = Registry(Loss)
for _loss in (squared_error, cross_entropy):
    _REGISTRY.register(_loss)


def names() -> list[str]:
    """Return the names of all registered losses.

    Examples
    --------
    >>> names()[:2]
    ['squared_error', 'cross_entropy']
    """
    return _REGISTRY.names()


def register(loss: Loss) -> Loss:
    """Make a loss known by its name, so that layer lists and model files can refer to it.

    Raises
    ------
    InvalidArgumentError
        If its name is taken by another loss.
    """
    return _REGISTRY.register(loss)


def get(loss: str | Loss) -> Loss:
    """Return a loss by name, or the object itself.

    Raises
    ------
    InvalidArgumentError
        For an unknown name; the message lists those known.

    Examples
    --------
    >>> get("squared_error")
    <loss squared_error>
    """
    return _REGISTRY.resolve(loss)
