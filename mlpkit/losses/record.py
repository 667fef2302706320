"""What a loss is: a record of a function, its derivatives and where they are defined, and the table of names.

A loss is a scalar function of one output a and its target y, summed over outputs. Where a pair of loss and output
activation has a stable form in z, as cross-entropy on softmax, that form is given for the pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import Any

import numpy as np
from numba.core.ccallback import CFunc

from mlpkit import activations
from mlpkit.activations import Activation
from mlpkit.checks import check_interval
from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels import plugins
from mlpkit.kernels.functions import Scalar
from mlpkit.plugin_checks import check_scalar, grid
from mlpkit.registry import Family, Plugin, Registry, check_functions, name_of, typed_into_a_session

__all__ = [
    "REGISTRY",
    "Fused",
    "Loss",
    "example_losses_tile",
    "get",
    "loss",
    "names",
    "output_curvature_tile",
    "output_tile",
    "register",
]

_INFINITY = float("inf")
_EVERYWHERE = (-_INFINITY, _INFINITY)


class Fused:
    """A loss written in z for one output activation, where the way over a would lose digits or overflow.

    Parameters
    ----------
    function : callable, optional
        loss(z, y) of one output's weighted sum and its target.
    derivative, second_derivative : callable, optional
        Its derivatives in z, as functions of (z, a, y), a = f(z). Found by dual numbers if not given.
    tile_output : callable, optional
        In place of `function`, for activations that couple units: a body ``(z, a, y, delta, loss)`` over arrays of
        shape (panels, rows, lanes), a row for each unit and a lane for each example; loss is (panels, lanes). On entry
        delta holds each element's weight w, 0 where it does not count. delta becomes the derivative in z of sum w
        loss_j, and loss that sum for each lane. Indices are not checked.
    tile_curvature : callable, optional
        What Hessian products need beside it: a body ``(z, a, y, rz, ra, delta, rdelta)``. delta holds the weights and
        stays; where z and a change at the rates rz and ra, rdelta becomes the rate of what ``tile_output`` makes of it.

    Examples
    --------
    >>> Fused(lambda z, y: z * z - z * y).scalar is not None
    True
    """

    def __init__(
        self,
        function: Callable[..., Any] | None = None,
        derivative: Callable[..., Any] | None = None,
        second_derivative: Callable[..., Any] | None = None,
        *,
        tile_output: Callable[..., Any] | None = None,
        tile_curvature: Callable[..., Any] | None = None,
    ) -> None:
        if (function is None) == (tile_output is None):
            raise InvalidArgumentError("a fused loss needs either function or tile_output")
        self.function = function
        self.derivatives = (derivative, second_derivative)
        self.tile_output = tile_output
        self.tile_curvature = tile_curvature
        self.owner, self.builtin = "fused loss", False

    def attach(self, loss: Loss, activation: Activation) -> None:
        """Make it the form of a loss on an activation, after a check of its functions."""
        self.owner, self.builtin = f"{loss.name!r} on {activation.name!r}", loss.builtin
        check_functions(
            loss,
            **{
                f"fused[{activation.name!r}]": (self.function, "z, y"),
                f"derivative fused[{activation.name!r}]": (self.derivatives[0], "z, a, y"),
                f"second_derivative fused[{activation.name!r}]": (self.derivatives[1], "z, a, y"),
                f"tile_output fused[{activation.name!r}]": (self.tile_output, "z, a, y, delta, loss"),
                f"tile_curvature fused[{activation.name!r}]": (self.tile_curvature, "z, a, y, rz, ra, delta, rdelta"),
            },
        )

    @cached_property
    def scalar(self) -> Scalar | None:
        """The function and its derivatives as they are compiled; None for bodies over tiles."""
        return self.compilable()

    def compilable(self) -> Scalar | None:
        """Return them ready to be compiled anew."""
        if self.function is None:
            return None
        return Scalar(self.owner, (self.function, *self.derivatives), "ty", "tvy", trusted=self.builtin)


class Loss(Plugin):
    """A loss, per output unit, and its derivatives in the output.

    Parameters
    ----------
    name : str
        What users and model files call it.
    function : callable, optional
        loss(a, y) of one output and its target. It must not raise: NaN says that the loss is not defined. A loss
        without it is defined on the activations in `fused` alone.
    derivative, second_derivative : callable, optional
        Its derivatives in a, as functions of (a, y). Found by dual numbers if not given.
    domain : tuple of float
        The interval that outputs must lie in: an output activation whose range goes beyond is refused.
    targets : tuple of float
        The interval, ends included, that targets must lie in.
    fused : mapping from Activation to Fused
        Forms in z for some output activations; see also `on`.
    class_targets : bool
        Whether integer class labels are targets (as one-hot rows), and rows of targets must be probabilities.
    builtin : bool
        mlpkit's own only: compiled code is kept on disk, under a fingerprint of mlpkit's sources.
    doc : str, optional
        What it is; the function's docstring by default.

    Examples
    --------
    >>> squared = Loss("squared", lambda a, y: 0.5 * (a - y) * (a - y))
    >>> squared.derivative(3.0, 1.0)
    2.0
    """

    noun = "loss"
    arguments = ("a, y", "a, y")
    takes = ("ty", "ty")

    domain: tuple[float, float]
    targets: tuple[float, float]
    fused: Mapping[Activation, Fused]
    class_targets: bool

    def __init__(
        self,
        name: str,
        function: Callable[..., Any] | None = None,
        derivative: Callable[..., Any] | None = None,
        second_derivative: Callable[..., Any] | None = None,
        *,
        domain: tuple[float, float] = _EVERYWHERE,
        targets: tuple[float, float] = _EVERYWHERE,
        fused: Mapping[Activation, Fused] | None = None,
        class_targets: bool = False,
        builtin: bool = False,
        doc: str | None = None,
    ) -> None:
        super().__init__(name, function, derivative, second_derivative, builtin=builtin, doc=doc)
        fused = {} if fused is None else fused
        if not isinstance(fused, Mapping) or not all(
            isinstance(f, Activation) and isinstance(form, Fused) for f, form in fused.items()
        ):
            raise InvalidArgumentError(
                f"fused of {name!r} must map activations, as objects, to Fused records; found {fused!r}"
            )
        if function is None and not fused:
            raise InvalidArgumentError(f"loss {name!r} needs a function, or a fused form for some output activation")
        vars(self).update(
            domain=check_interval(domain, "domain"),
            targets=check_interval(targets, "targets"),
            fused=dict(fused),
            class_targets=class_targets,
        )
        for activation, form in self.fused.items():
            form.attach(self, activation)

    def on(
        self, activation: str | Activation, *, derivative: Callable[..., Any] | None = None
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Give the loss a form in z for one output activation: a decorator for a function of (z, y).

        Parameters
        ----------
        activation : str or Activation
            Which output activation.
        derivative : callable, optional
            The derivative in z, as a function of (z, a, y). Found by dual numbers if not given.

        Examples
        --------
        >>> from mlpkit import vmath
        >>> logistic = Loss("logistic", lambda a, y: -y * vmath.log(a) - (1 - y) * vmath.log(1 - a), domain=(0, 1))
        >>> @logistic.on("sigmoid", derivative=lambda z, a, y: a - y)
        ... def _(z, y):
        ...     return vmath.softplus(z) - y * z
        """
        f = activations.get(activation)
        if f in self.fused:
            raise InvalidArgumentError(f"loss {self.name!r} has a form for {f.name!r} already")

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            form = Fused(function, derivative)
            form.attach(self, f)
            if not self.builtin:
                self._check_fused(f, form)
            self.fused[f] = form  # type: ignore[index]
            return function

        return decorate

    def check_activation(self, activation: Activation) -> None:
        """Refuse an output activation on which this loss is not defined, with the reason."""
        if activation in self.fused:
            return
        if self.function is None:
            wanted = " or ".join(repr(f.name) for f in self.fused)
            raise InvalidArgumentError(
                f"loss {self.name!r} needs an output layer with {wanted}, from whose z it is computed; found "
                f"{activation.name!r} ({activation!r})"
            )
        (low, high), (least, most) = self.domain, activation.range
        if least < low or most > high:
            raise InvalidArgumentError(
                f"loss {self.name!r} needs outputs in [{low:g}, {high:g}]; those of {activation.name!r} lie in "
                f"[{least:g}, {most:g}]"
            )

    def reads_z(self, activation: Activation) -> bool:
        """Whether the output layer's z must be kept beside a."""
        return activation in self.fused

    def check(self) -> None:
        """Try the functions out: finite, and derivatives that are slopes."""
        scalar = self._scalar()
        if scalar is not None:
            given = [derivative is not None for derivative in self._derivatives]
            check_scalar(repr(self.name), scalar, ("a", grid(*self.domain)), self._target_grid(), given=given)
        for activation, form in self.fused.items():
            self._check_fused(activation, form)

    def _target_grid(self) -> tuple[str, Any]:
        points = grid(*self.targets, 9)
        ends = [end for end in self.targets if np.isfinite(end)]
        return "y", np.array([*ends[:1], *points, *ends[1:]])

    def _check_fused(self, activation: Activation, form: Fused) -> None:
        """Try a form in z out, with derivatives that may read a where a is that of z."""
        scalar = form.compilable()
        if scalar is not None:
            given = [derivative is not None for derivative in form.derivatives]
            companion, points = activation.scalar, grid(-_INFINITY, _INFINITY)
            check_scalar(form.owner, scalar, ("z", points), self._target_grid(), given=given, companion=companion)

    def __reduce__(self) -> Any:
        return (get, (self.name,)) if REGISTRY.knows(self) else super().__reduce__()


# Tile functions, compiled at the first request -----------------------------------------------------------------


@cache
def output_tile(loss: Loss, activation: Activation, dtype: np.dtype[Any]) -> CFunc:
    """Return the compiled output tile function of a pair."""
    return plugins.output_tile(loss, activation, dtype)


@cache
def example_losses_tile(loss: Loss, activation: Activation, dtype: np.dtype[Any]) -> CFunc:
    """Return the compiled output tile function of a pair that gives each example's loss."""
    return plugins.example_losses_tile(loss, activation, dtype)


@cache
def output_curvature_tile(loss: Loss, activation: Activation, dtype: np.dtype[Any]) -> CFunc:
    """Return the compiled output tile function of a pair for Hessian products."""
    return plugins.output_curvature_tile(loss, activation, dtype)


# Names ---------------------------------------------------------------------------------------------------------

REGISTRY = Registry(Loss)


def names() -> list[str]:
    """Return the names of all registered losses.

    Examples
    --------
    >>> names()[:2]
    ['squared_error', 'absolute_error']
    """
    return REGISTRY.names()


def register(loss: Loss, *, replace: bool = False) -> Loss:
    """Try a loss out and make it known by its name, so that networks and model files can refer to it.

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
        If its name is taken by another loss, or one of its functions does not compile, can raise, gives NaN inside
        its domain, or is no derivative of the other; the message says where.

    Examples
    --------
    >>> register(Loss("cubic", lambda a, y: abs(a - y) ** 3, lambda a, y: 3 * (a - y) * abs(a - y)))
    <loss cubic>
    """
    return REGISTRY.register(loss, replace=replace)


def get(loss: str | Loss | Family[Loss]) -> Loss:
    """Return a loss by name, or the object itself.

    Raises
    ------
    InvalidArgumentError
        For an unknown name; the message lists those known.

    Examples
    --------
    >>> get("squared_error"), get("quantile(0.9)")
    (<loss squared_error>, <loss quantile(0.9)>)
    """
    return REGISTRY.resolve(loss)


def loss(
    function: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    derivative: Callable[..., Any] | None = None,
    second_derivative: Callable[..., Any] | None = None,
    domain: tuple[float, float] = _EVERYWHERE,
    targets: tuple[float, float] = _EVERYWHERE,
    replace: bool | None = None,
) -> Any:
    """Make a loss of a plain Python function and register it; a decorator, also with arguments.

    Parameters
    ----------
    function : callable
        loss(a, y) of one output and its target. Functions of math and NumPy become the faster ones of `mlpkit.vmath`
        where it has them.
    name : str, optional
        The function's own by default; a lambda has none.
    derivative, second_derivative : callable, optional
        In a, as functions of (a, y); also given later by ``@f.derivative``. Found by dual numbers otherwise.
    domain, targets
        See `Loss`.
    replace : bool, optional
        Whether it may take the place of another of its name; by default if it was typed into a notebook or a shell.

    Raises
    ------
    InvalidArgumentError
        If the functions are not what they should be; see `register`.

    Examples
    --------
    >>> import math
    >>> @loss
    ... def fair(a, y):
    ...     d = abs(a - y)
    ...     return d - math.log1p(d)
    >>> fair.derivative(3.0, 1.0)
    0.666...
    """

    def decorate(function: Callable[..., Any]) -> Loss:
        plugin = Loss(name_of(function, name), function, derivative, second_derivative, domain=domain, targets=targets)
        return register(plugin, replace=typed_into_a_session(function) if replace is None else replace)

    return decorate if function is None else decorate(function)
