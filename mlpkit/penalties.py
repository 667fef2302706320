"""Penalties on mean activations: the sparsity term of the notes, section 3, in plain NumPy.

A penalty sees only rho_hat, the mean activation of each unit of one layer over all examples, mapped to
[0, 1]. It gives a value, which is added to J, and a derivative for each unit, which enters the layer's delta.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.checks import check_number

__all__ = ["KLSparsity", "kl_divergence"]

_LOWEST = np.finfo(np.float64).tiny
_HIGHEST = 1.0 - np.finfo(np.float64).eps


def kl_divergence(rho: float, rho_hat: ArrayLike) -> NDArray[np.float64]:
    """Kullback-Leibler divergence between Bernoulli variables with means `rho` and `rho_hat`.

    KL(rho || rho_hat) = rho log(rho / rho_hat) + (1 - rho) log((1 - rho) / (1 - rho_hat)), equation
    (1.3.18) of the companion to the notes. It is 0 where they are equal and grows on either side.

    Parameters
    ----------
    rho : float
        The target, strictly between 0 and 1.
    rho_hat : array-like
        Mean activations; clamped to [tiny, 1 - eps], so that a dead or saturated unit costs much, not infinity.

    Returns
    -------
    ndarray of float64, the shape of `rho_hat`

    Examples
    --------
    >>> kl_divergence(0.2, [0.2, 0.5]).round(4)
    array([0.    , 0.1927])
    """
    r = _clamp(rho_hat)
    return rho * np.log(rho / r) + (1.0 - rho) * np.log((1.0 - rho) / (1.0 - r))


@dataclass(frozen=True)
class KLSparsity:
    """The sparsity penalty beta * sum_j KL(rho || rho_hat_j) of the notes, section 3.

    Parameters
    ----------
    rho : float
        The sparsity parameter: the mean activation that each unit is asked to have, strictly inside (0, 1).
    beta : float
        The weight of the penalty, at least 0.

    Raises
    ------
    InvalidArgumentError
        If `rho` lies outside (0, 1) or `beta` is negative.

    Examples
    --------
    >>> KLSparsity(rho=0.05, beta=3.0).value([0.05, 0.05])
    0.0
    """

    rho: float = 0.05
    beta: float = 3.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rho", check_number(self.rho, "rho", low=0, high=1, low_open=True, high_open=True))
        object.__setattr__(self, "beta", check_number(self.beta, "beta", low=0))

    def value(self, rho_hat: ArrayLike) -> float:
        """Return beta * sum_j KL(rho || rho_hat_j)."""
        return self.beta * float(kl_divergence(self.rho, rho_hat).sum())

    def derivative(self, rho_hat: ArrayLike) -> NDArray[np.float64]:
        """Return beta * (-rho / rho_hat + (1 - rho) / (1 - rho_hat)) for each unit, equation (1.3.22)."""
        r = _clamp(rho_hat)
        with np.errstate(over="ignore"):  # a dead unit's slope may pass the largest float64
            return self.beta * (-self.rho / r + (1.0 - self.rho) / (1.0 - r))

    def second_derivative(self, rho_hat: ArrayLike) -> NDArray[np.float64]:
        """Return beta * (rho / rho_hat**2 + (1 - rho) / (1 - rho_hat)**2) for each unit, 0 where it is clamped."""
        r = _clamp(rho_hat)
        with np.errstate(over="ignore"):
            bend = self.beta * (self.rho / (r * r) + (1.0 - self.rho) / ((1.0 - r) * (1.0 - r)))
        return np.where((rho_hat < r) | (rho_hat > r), 0.0, bend)


def _clamp(rho_hat: ArrayLike) -> NDArray[np.float64]:
    """Keep means away from 0 and 1, where the divergence is infinite; NaN stays."""
    return np.minimum(np.maximum(np.asarray(rho_hat, dtype=np.float64), _LOWEST), _HIGHEST)
