"""Penalties on a layer's activations: the sparsity term of the notes, section 3, in plain NumPy, and its relatives.

Most see only rho_hat, the mean activation of each unit of the layer over all examples, mapped to [0, 1] where the
activation's range is bounded. They give a value, which is added to J, a derivative for each unit, which enters the
layer's delta, and a second derivative, for products with the Hessian. `L1Sparsity` sees each activation, and is
computed by the engine beside the loss.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit import user_penalties
from mlpkit.checks import check_choice, check_number
from mlpkit.errors import InvalidArgumentError
from mlpkit.user_penalties import Penalty

__all__ = [
    "KLSparsity",
    "L1Sparsity",
    "LayerPenalty",
    "MeanPenalty",
    "check_penalties",
    "kl_divergence",
    "penalty_config",
    "penalty_from_config",
]

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
        means = np.asarray(rho_hat, np.float64)
        r = _clamp(means)
        with np.errstate(over="ignore"):
            bend = self.beta * (self.rho / r / r + (1.0 - self.rho) / (1.0 - r) / (1.0 - r))
        return np.where((means < r) | (means > r), 0.0, bend)


@dataclass(frozen=True)
class L1Sparsity:
    """The penalty strength * sum_j sum_i w_i |a_ij| / sum_i w_i on activations themselves, of any range.

    It draws single activations to 0, where KL asks for a mean. Its derivative in a is strength * sign(a), 0 at 0.

    Parameters
    ----------
    strength : float
        The weight of the penalty, at least 0.

    Raises
    ------
    InvalidArgumentError
        If `strength` is negative.

    Examples
    --------
    >>> L1Sparsity(0.01)
    L1Sparsity(strength=0.01)
    """

    strength: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", check_number(self.strength, "strength", low=0))


@dataclass(frozen=True, repr=False)
class MeanPenalty:
    """A penalty beta * sum_j p(rho_hat_j) of a user's own.

    rho_hat_j is the unit's mean activation, mapped to [0, 1] where the activation's range is bounded, and as it is
    otherwise.

    Parameters
    ----------
    penalty : str or Penalty
        p, which `mlpkit.penalty` made, by name or as an object.
    beta : float
        The weight of the penalty, at least 0.

    Raises
    ------
    InvalidArgumentError
        If no such penalty is registered, or `beta` is negative.

    Examples
    --------
    >>> import mlpkit
    >>> few = mlpkit.penalty(lambda rho_hat: rho_hat * rho_hat, name="few")
    >>> MeanPenalty("few", beta=0.5).value([0.2, 0.4]).__round__(3)
    0.1
    """

    penalty: Penalty
    beta: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "penalty", user_penalties.get(self.penalty))
        object.__setattr__(self, "beta", check_number(self.beta, "beta", low=0))

    def value(self, rho_hat: ArrayLike) -> float:
        """Return beta * sum_j p(rho_hat_j)."""
        return self.beta * float(self.penalty.values(rho_hat).sum())

    def derivative(self, rho_hat: ArrayLike) -> NDArray[np.float64]:
        """Return beta * p'(rho_hat_j) for each unit."""
        return self.beta * self.penalty.derivatives(rho_hat)

    def second_derivative(self, rho_hat: ArrayLike) -> NDArray[np.float64]:
        """Return beta * p''(rho_hat_j) for each unit."""
        return self.beta * self.penalty.second_derivatives(rho_hat)

    def __repr__(self) -> str:
        return f"MeanPenalty({self.penalty.name!r}, beta={self.beta!r})"


LayerPenalty = KLSparsity | L1Sparsity | MeanPenalty
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (KLSparsity, L1Sparsity, MeanPenalty)}


def check_penalties(sparsity: Any) -> Any:
    """Return None, one penalty, or a tuple of several, as a layer keeps them.

    Examples
    --------
    >>> check_penalties([KLSparsity(0.1, 1.0), L1Sparsity(0.5)])
    (KLSparsity(rho=0.1, beta=1.0), L1Sparsity(strength=0.5))
    """
    if isinstance(sparsity, (tuple, list)) and sparsity and all(type(p) in _KINDS.values() for p in sparsity):
        return tuple(sparsity)
    if sparsity is not None and type(sparsity) not in _KINDS.values():
        raise InvalidArgumentError(
            f"sparsity must be a {', '.join(_KINDS)}, a list of such, or None; found {sparsity!r}"
        )
    return sparsity


def penalty_config(penalty: LayerPenalty) -> dict[str, Any]:
    """Return a penalty as plain values that JSON can hold.

    Examples
    --------
    >>> penalty_config(L1Sparsity(0.5))
    {'type': 'L1Sparsity', 'strength': 0.5}
    """
    entry = {"type": type(penalty).__name__, **asdict(penalty)}
    if isinstance(penalty, MeanPenalty):
        entry["penalty"] = penalty.penalty.name
    return entry


def penalty_from_config(entry: dict[str, Any]) -> LayerPenalty:
    """Return the penalty that `penalty_config` described."""
    if not isinstance(entry, dict):
        raise InvalidArgumentError(f"sparsity must be described by its type and numbers; found {entry!r}")
    values = dict(entry)
    kind = _KINDS[check_choice(values.pop("type", None), "sparsity type", tuple(_KINDS))]
    try:
        return kind(**values)
    except TypeError:
        raise InvalidArgumentError(
            f"sparsity of type {kind.__name__} cannot have the entries {sorted(values)}"
        ) from None


def _clamp(rho_hat: ArrayLike) -> NDArray[np.float64]:
    """Keep means away from 0 and 1, where the divergence is infinite; NaN stays."""
    return np.minimum(np.maximum(np.asarray(rho_hat, dtype=np.float64), _LOWEST), _HIGHEST)
