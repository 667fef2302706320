"""Learning rates that change as training goes on.

A schedule is a function from the time since the start of training, in epochs (those behind, and the steps of the
present one over the number it takes; 0.0 for the very first step), to the learning rate. For `MLP.partial_fit` each
call is an epoch. Any function of that kind will do for the ``learning_rate`` of a stochastic optimiser; those here are
small records, which a checkpoint can tell from one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit.checks import check_number
from mlpkit.errors import InvalidArgumentError

__all__ = [
    "CosineSchedule",
    "ExponentialSchedule",
    "InverseScalingSchedule",
    "Schedule",
    "StepSchedule",
    "WarmUp",
    "check_learning_rate",
    "rates_at",
]

#: epochs since the start -> learning rate
Schedule = Callable[[float], float]


def _check_fields(schedule: Any, **bounds: dict[str, Any]) -> None:
    for name, limits in bounds.items():
        object.__setattr__(schedule, name, check_number(getattr(schedule, name), name, **limits))


_POSITIVE = {"low": 0, "low_open": True}


@dataclass(frozen=True)
class StepSchedule:
    """initial * factor ** floor(epochs / every): a drop every so many epochs.

    Parameters
    ----------
    initial : float
        The first learning rate, above 0.
    factor : float
        What it is multiplied by, above 0.
    every : float
        How many epochs lie between drops, above 0.

    Examples
    --------
    >>> schedule = StepSchedule(0.1, factor=0.5, every=10)
    >>> schedule(9.5), schedule(10.0), schedule(25.0)
    (0.1, 0.05, 0.025)
    """

    initial: float
    factor: float = 0.1
    every: float = 10.0

    def __post_init__(self) -> None:
        _check_fields(self, initial=_POSITIVE, factor=_POSITIVE, every=_POSITIVE)

    def __call__(self, epochs: float) -> float:
        """Return the learning rate."""
        return self.initial * self.factor ** math.floor(epochs / self.every)


@dataclass(frozen=True)
class ExponentialSchedule:
    """initial * factor ** epochs, a little at every step.

    Parameters
    ----------
    initial : float
        The first learning rate, above 0.
    factor : float
        What an epoch multiplies it by, above 0.

    Examples
    --------
    >>> ExponentialSchedule(0.1, factor=0.81)(0.5).__round__(6)
    0.09
    """

    initial: float
    factor: float = 0.95

    def __post_init__(self) -> None:
        _check_fields(self, initial=_POSITIVE, factor=_POSITIVE)

    def __call__(self, epochs: float) -> float:
        """Return the learning rate."""
        return self.initial * self.factor**epochs


@dataclass(frozen=True)
class CosineSchedule:
    """Half a wave of a cosine from `initial` down to `final` (Loshchilov and Hutter, 2017), which stays.

    Parameters
    ----------
    initial : float
        The first learning rate, above 0.
    epochs : float
        How long the way takes, above 0.
    final : float
        The last learning rate, at least 0.

    Examples
    --------
    >>> schedule = CosineSchedule(0.1, epochs=10)
    >>> schedule(0.0), schedule(5.0).__round__(6), schedule(12.0)
    (0.1, 0.05, 0.0)
    """

    initial: float
    epochs: float
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_fields(self, initial=_POSITIVE, epochs=_POSITIVE, final={"low": 0})

    def __call__(self, epochs: float) -> float:
        """Return the learning rate."""
        wave = 0.5 * (1.0 + math.cos(math.pi * min(epochs / self.epochs, 1.0)))
        return self.final + (self.initial - self.final) * wave


@dataclass(frozen=True)
class InverseScalingSchedule:
    """initial / (1 + epochs) ** power.

    Parameters
    ----------
    initial : float
        The first learning rate, above 0.
    power : float
        At least 0.

    Examples
    --------
    >>> InverseScalingSchedule(0.1, power=0.5)(3.0)
    0.05
    """

    initial: float
    power: float = 0.5

    def __post_init__(self) -> None:
        _check_fields(self, initial=_POSITIVE, power={"low": 0})

    def __call__(self, epochs: float) -> float:
        """Return the learning rate."""
        return self.initial / (1.0 + epochs) ** self.power


@dataclass(frozen=True)
class WarmUp:
    """Another learning rate or schedule, multiplied by a factor that grows from 0 to 1 in the first epochs.

    Parameters
    ----------
    learning_rate : float or schedule
        What is warmed up to.
    epochs : float
        How long it takes, above 0.

    Examples
    --------
    >>> schedule = WarmUp(0.1, epochs=2)
    >>> schedule(0.5), schedule(2.0), schedule(7.0)
    (0.025, 0.1, 0.1)
    """

    learning_rate: float | Schedule
    epochs: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "learning_rate", check_learning_rate(self.learning_rate))
        _check_fields(self, epochs=_POSITIVE)

    def __call__(self, epochs: float) -> float:
        """Return the learning rate."""
        full = self.learning_rate(epochs) if callable(self.learning_rate) else self.learning_rate
        return full * min(epochs / self.epochs, 1.0)


def check_learning_rate(learning_rate: Any) -> float | Schedule:
    """Return a learning rate above 0 as a float, or a schedule as it is.

    Examples
    --------
    >>> check_learning_rate(1)
    1.0
    """
    if callable(learning_rate) and not isinstance(learning_rate, type):
        return learning_rate
    return check_number(learning_rate, "learning_rate", low=0, low_open=True)


def rates_at(learning_rate: float | Schedule, first: int, n_steps: int, steps_an_epoch: int) -> NDArray[np.float64]:
    """Return the learning rates of steps `first` to ``first + n_steps - 1``.

    Raises
    ------
    InvalidArgumentError
        If a schedule gives what is no finite number of at least 0.

    Examples
    --------
    >>> rates_at(lambda epochs: 0.1 / (1 + epochs), 2, 2, steps_an_epoch=2)
    array([0.05, 0.04])
    """
    if not callable(learning_rate):
        return np.full(n_steps, learning_rate)
    rates = np.empty(n_steps)
    for i in range(n_steps):
        epochs = (first + i) / steps_an_epoch
        try:
            rate = learning_rate(epochs)
        except Exception as error:
            error.add_note(f"raised by learning_rate({epochs:g}), a schedule")
            raise
        try:
            rates[i] = check_number(rate, "learning rate", low=0)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"learning_rate({epochs:g}), a schedule: {error}") from None
    return rates
