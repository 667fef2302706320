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
from mlpkit.registry import Registry, check_functions, check_name

__all__ = ["Loss", "cross_entropy", "get", "names", "register", "squared_error"]


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss, per output unit, and its derivative.

    Parameters
    ----------
    name : str
        What users and model files call it.
    function : callable or None
        loss(a, y) of one output and its target. It must not raise: NaN says that the loss is not defined.
    derivative : callable or None
        Its derivative in a.
    fused : mapping from Activation to callable
        Bodies ``(z, a, y, delta)`` over arrays of shape (panels, rows, lanes), a row for each unit and a lane for each
        example. On entry delta holds each element's weight w; it is turned into w times the derivative of the loss in
        z, and the sum of w times the loss is returned. Indices are not checked.
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
        check_name(self.name)
        if not isinstance(self.fused, Mapping) or not all(isinstance(f, Activation) for f in self.fused):
            raise InvalidArgumentError(
                f"fused of {self.name!r} must map activations, as objects, to functions; found {self.fused!r}"
            )
        object.__setattr__(self, "fused", dict(self.fused))  # what has been checked stays as it is
        if (self.function is None) != (self.derivative is None):
            raise InvalidArgumentError(f"loss {self.name!r} needs function and derivative, or neither")
        if self.function is None and not self.fused:
            raise InvalidArgumentError(f"loss {self.name!r} needs function and derivative, or a fused pair")
        check_functions(
            self,
            function=(self.function, "a, y"),
            derivative=(self.derivative, "a, y"),
            **{f"fused[{f.name!r}]": (pair, "z, a, y, delta") for f, pair in self.fused.items()},
        )

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


def register(loss: Loss, *, replace: bool = False) -> Loss:
    """Make a loss known by its name, so that networks and model files can refer to it.

    Parameters
    ----------
    loss : Loss
        What to register.
    replace : bool
        Whether it may take the place of another of its name, as when a notebook's cell runs again. Networks that were
        made with the other keep it. mlpkit's own losses cannot be replaced.

    Raises
    ------
    InvalidArgumentError
        If its name is taken by another loss.

    Examples
    --------
    >>> register(Loss("cubic", lambda a, y: abs(a - y) ** 3.0, lambda a, y: 3.0 * (a - y) * abs(a - y)))
    <loss cubic>
    """
    return _REGISTRY.register(loss, replace=replace)


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
