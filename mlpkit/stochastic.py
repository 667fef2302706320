"""Stochastic optimisers: what moves the parameters after each mini-batch.

Each is a small immutable record; the steps themselves are compiled (`mlpkit.kernels.steps`). A step sees a batch B,
examples in an order that is drawn anew for each epoch, and its gradient

    g = sum_{i in B} w_i grad loss_i / (|B| mean(w))  +  lambda W  +  the gradient of penalties on activations

where mean(w) is that of all examples: divided by the batch's own sum of weights it would be biased. Weight decay enters
each step in full, biases are not decayed.

A penalty on mean activations (`KLSparsity`, `MeanPenalty`) is no sum over examples, so a batch can only estimate it:

- ``rho_hat_momentum=None`` takes rho_hat of the batch. g is then the exact gradient of the batch's own objective, whose
  expectation is not that of all examples: rho_hat of few examples scatters, and the penalty bends.
- ``rho_hat_momentum=k`` takes a running mean, r <- k r + (1 - k) rho_hat of the batch, which starts from a pass over
  all examples. The penalty's derivative is taken at r and sent to the batch's examples as though r were their mean
  (straight through). That is the gradient of no scalar objective, and has less scatter.

Names and formulas are PyTorch's. With g_t clipped as asked, theta_t follows from theta_{t-1} at learning rate eta_t:
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mlpkit.block_shuffle import BlockShuffle, check_shuffle
from mlpkit.checks import check_flag, check_integer, check_number
from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels import updates
from mlpkit.schedules import Schedule, check_learning_rate

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "RMSprop", "Stochastic"]

_OPEN: dict[str, Any] = {"low": 0, "low_open": True}
_BELOW_ONE: dict[str, Any] = {"low": 0, "high": 1, "high_open": True}


@dataclass(frozen=True, kw_only=True)
class Stochastic:
    """What all stochastic optimisers have; use one of those derived from it.

    Parameters
    ----------
    batch_size : int
        Examples a step, at least 1; the last batch of an epoch has what is left. More than there are means all.
    max_epochs : int
        How many times to go through all examples, at least 1.
    shuffle : bool, "blocks" or BlockShuffle
        Draw a new order for each epoch; False keeps the order of the data. True draws an order of all examples, which
        takes all of them in memory. ``"blocks"`` is for those that are read from files as training goes: they are cut
        into blocks of consecutive ones, the generator draws an order of the blocks, shuffles the examples of the next
        64 together (a window), and so on; batches are taken one after the other from what comes out, across the ends
        of windows. See `BlockShuffle`, which also sets how large blocks and windows are. Neither where the examples
        are, nor ``memory_limit``, nor the number of threads changes a bit.
    clip_norm : float, optional
        The most that the norm of g may be: g is scaled down to it.
    clip_value : float, optional
        The most that each number of g may be in size; it is clipped, before the norm is taken.
    rho_hat_momentum : float, optional
        How mean activations are estimated: see `mlpkit.stochastic`. None, or from 0 to below 1. Refused by `fit` where
        no layer has a penalty on them, since there is nothing to estimate.
    seed : int, optional
        Where orders and dropout are drawn from; None takes the network's seed.
    """

    batch_size: int = 128
    max_epochs: int = 20
    shuffle: bool | str | BlockShuffle = True
    clip_norm: float | None = None
    clip_value: float | None = None
    rho_hat_momentum: float | None = None
    seed: int | None = None

    _kind: ClassVar[int]
    _bounds: ClassVar[dict[str, dict[str, Any]]] = {}

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "learning_rate": check_learning_rate(self.learning_rate),  # type: ignore[attr-defined]
            "batch_size": check_integer(self.batch_size, "batch_size", low=1),
            "max_epochs": check_integer(self.max_epochs, "max_epochs", low=1),
            "shuffle": check_shuffle(self.shuffle),
        }
        for name, bounds in {"clip_norm": _OPEN, "clip_value": _OPEN, "rho_hat_momentum": _BELOW_ONE}.items():
            value = getattr(self, name)
            checked[name] = None if value is None else check_number(value, name, **bounds)
        if self.seed is not None:
            checked["seed"] = check_integer(self.seed, "seed", low=0)
        for name, bounds in self._bounds.items():
            checked[name] = check_number(getattr(self, name), name, **bounds)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        given = [f for f in sorted(fields(self), key=lambda f: bool(f.kw_only)) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in given)})"

    @property
    def moments(self) -> tuple[bool, bool]:
        """Whether the rule remembers a first and a second number for each parameter."""
        return _MOMENTS[self.rule]

    @property
    def rule(self) -> int:
        """Which of `mlpkit.kernels.updates`."""
        return self._kind

    @property
    def constants(self) -> tuple[float, float, float]:
        """The rule's two constants and its epsilon."""
        return 0.0, 0.0, 0.0

    def corrections(
        self, steps: NDArray[np.int64], dtype: np.dtype[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what the two moments are multiplied by at steps counted from 1."""
        return np.ones(steps.size), np.ones(steps.size)

    def check_fits(self, dtype: np.dtype[Any]) -> None:
        """Refuse numbers that `dtype` rounds to 0 or to 1, where they may not be.

        Examples
        --------
        >>> Adam(beta2=1 - 1e-9).check_fits(np.dtype("float64"))
        >>> Adam(beta2=1 - 1e-9).check_fits(np.dtype("float32"))
        Traceback (most recent call last):
            ...
        mlpkit.errors.InvalidArgumentError: beta2 must not be rounded to 1 by float32; found 0.999999999
        """
        for name in ("learning_rate", "clip_norm", "clip_value", *self._bounds):
            value = getattr(self, name)
            if value is None or callable(value):
                continue
            with np.errstate(over="ignore"):
                there = float(dtype.type(value))
            if value > there == 0 or ("high" in self._bounds.get(name, {}) and there == 1):
                raise InvalidArgumentError(f"{name} must not be rounded to {there:g} by {dtype}; found {value!r}")


@dataclass(frozen=True, repr=False)
class SGD(Stochastic):
    """Stochastic gradient descent, with momentum or Nesterov's.

        v_t = momentum v_{t-1} + g_t;   theta_t = theta_{t-1} - eta_t v_t

    and with Nesterov's momentum theta_t = theta_{t-1} - eta_t (g_t + momentum v_t).

    Parameters
    ----------
    learning_rate : float or schedule
        eta: a number above 0, or a function of the epochs since the start; see `mlpkit.schedules`.
    momentum : float
        From 0 (none) to below 1.
    nesterov : bool
        Look ahead; needs momentum.
    **options
        As for `Stochastic`.

    Examples
    --------
    >>> SGD(0.1, momentum=0.9, nesterov=True, batch_size=32)
    SGD(learning_rate=0.1, momentum=0.9, nesterov=True, batch_size=32)
    """

    learning_rate: float | Schedule = 0.01
    momentum: float = 0.0
    nesterov: bool = False

    _kind: ClassVar[int] = updates.SGD
    _bounds: ClassVar[dict[str, dict[str, Any]]] = {"momentum": _BELOW_ONE}

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "nesterov", check_flag(self.nesterov, "nesterov"))
        if self.nesterov and not self.momentum:
            check_number(self.momentum, "momentum (with nesterov=True)", **_OPEN)

    @property
    def rule(self) -> int:
        """Which of `mlpkit.kernels.updates`."""
        return updates.NESTEROV if self.nesterov else updates.MOMENTUM if self.momentum else updates.SGD

    @property
    def constants(self) -> tuple[float, float, float]:
        """Momentum."""
        return self.momentum, 0.0, 0.0


@dataclass(frozen=True, repr=False)
class RMSprop(Stochastic):
    """RMSprop (Tieleman and Hinton, 2012).

        s_t = alpha s_{t-1} + (1 - alpha) g_t^2;   theta_t = theta_{t-1} - eta_t g_t / (sqrt(s_t) + epsilon)

    Parameters
    ----------
    learning_rate : float or schedule
        eta; see `SGD`.
    alpha : float
        From 0 to below 1.
    epsilon : float
        Above 0.
    **options
        As for `Stochastic`.

    Examples
    --------
    >>> RMSprop(1e-3, max_epochs=5)
    RMSprop(learning_rate=0.001, max_epochs=5)
    """

    learning_rate: float | Schedule = 0.01
    alpha: float = 0.99
    epsilon: float = 1e-8

    _kind: ClassVar[int] = updates.RMSPROP
    _bounds: ClassVar[dict[str, dict[str, Any]]] = {"alpha": _BELOW_ONE, "epsilon": _OPEN}

    @property
    def constants(self) -> tuple[float, float, float]:
        """Alpha and epsilon."""
        return self.alpha, 0.0, self.epsilon


@dataclass(frozen=True, repr=False)
class Adagrad(Stochastic):
    """Adagrad (Duchi, Hazan and Singer, 2011).

        s_t = s_{t-1} + g_t^2;   theta_t = theta_{t-1} - eta_t g_t / (sqrt(s_t) + epsilon)

    Parameters
    ----------
    learning_rate : float or schedule
        eta; see `SGD`.
    epsilon : float
        Above 0.
    **options
        As for `Stochastic`.

    Examples
    --------
    >>> Adagrad()
    Adagrad()
    """

    learning_rate: float | Schedule = 0.01
    epsilon: float = 1e-10

    _kind: ClassVar[int] = updates.ADAGRAD
    _bounds: ClassVar[dict[str, dict[str, Any]]] = {"epsilon": _OPEN}

    @property
    def constants(self) -> tuple[float, float, float]:
        """Epsilon."""
        return 0.0, 0.0, self.epsilon


@dataclass(frozen=True, repr=False)
class Adam(Stochastic):
    """Adam (Kingma and Ba, 2015).

        m_t = beta1 m_{t-1} + (1 - beta1) g_t;   s_t = beta2 s_{t-1} + (1 - beta2) g_t^2
        theta_t = theta_{t-1} - eta_t (m_t / (1 - beta1^t)) / (sqrt(s_t / (1 - beta2^t)) + epsilon)

    Parameters
    ----------
    learning_rate : float or schedule
        eta; see `SGD`.
    beta1, beta2 : float
        From 0 to below 1.
    epsilon : float
        Above 0.
    **options
        As for `Stochastic`.

    Examples
    --------
    >>> Adam(batch_size=200, max_epochs=10)
    Adam(batch_size=200, max_epochs=10)
    """

    learning_rate: float | Schedule = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    _kind: ClassVar[int] = updates.ADAM
    _bounds: ClassVar[dict[str, dict[str, Any]]] = {"beta1": _BELOW_ONE, "beta2": _BELOW_ONE, "epsilon": _OPEN}

    @property
    def constants(self) -> tuple[float, float, float]:
        """Both betas and epsilon."""
        return self.beta1, self.beta2, self.epsilon

    def corrections(
        self, steps: NDArray[np.int64], dtype: np.dtype[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return 1 / (1 - beta^t) for both betas: moments start at 0, and are too small at first.

        They are the betas that the moments know: 1 - beta2 is a hundred-thousandth off in float32.
        """
        betas = (float(dtype.type(beta)) for beta in (self.beta1, self.beta2))
        first, second = (1.0 / (1.0 - np.power(beta, steps, dtype=np.float64)) for beta in betas)
        return first, second


@dataclass(frozen=True, repr=False)
class AdamW(Adam):
    """Adam with weight decay apart from the gradient (Loshchilov and Hutter, 2019), on W only.

    g leaves lambda W out, and each step multiplies W by 1 - eta_t lambda, lambda being each layer's weight decay.

    Parameters
    ----------
    learning_rate, beta1, beta2, epsilon
        As for `Adam`.
    **options
        As for `Stochastic`.

    Examples
    --------
    >>> AdamW(3e-4).learning_rate
    0.0003
    """

    _kind: ClassVar[int] = updates.ADAMW


_MOMENTS = {
    updates.SGD: (False, False),
    updates.MOMENTUM: (True, False),
    updates.NESTEROV: (True, False),
    updates.RMSPROP: (False, True),
    updates.ADAGRAD: (False, True),
    updates.ADAM: (True, True),
    updates.ADAMW: (True, True),
}
