"""Noise on inputs, for denoising autoencoders: the network learns to undo it.

`Input` takes one of these, and only `MLP.fit` applies it, to the inputs and not to the targets: ``net.fit(X, X)`` then
asks for the clean X from a noisy one (Vincent et al., 2008). A stochastic optimiser draws it anew for each epoch. Those
that look at all examples at once need an objective that stays the same: for them it is drawn once for a fit, from the
network's seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit.checks import check_choice, check_number
from mlpkit.errors import InvalidArgumentError

__all__ = [
    "GaussianNoise",
    "MaskingNoise",
    "Noise",
    "SaltAndPepperNoise",
    "check_noise",
    "noise_config",
    "noise_from_config",
]


def _check_fields(noise: Any, **bounds: dict[str, Any]) -> None:
    for name, limits in bounds.items():
        object.__setattr__(noise, name, check_number(getattr(noise, name), name, **limits))


@dataclass(frozen=True)
class MaskingNoise:
    """Set each input to 0 with probability `fraction`.

    Parameters
    ----------
    fraction : float
        From 0 to 1.

    Examples
    --------
    >>> MaskingNoise(1.0).apply(np.ones((1, 3)), np.random.default_rng(0))
    array([[0., 0., 0.]])
    """

    fraction: float

    def __post_init__(self) -> None:
        _check_fields(self, fraction={"low": 0, "high": 1})

    def apply(self, X: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
        """Return a noisy copy of X."""
        return _copy_by_rows(X, lambda rows: np.where(generator.random(rows.shape) < self.fraction, 0, rows))


@dataclass(frozen=True)
class GaussianNoise:
    """Add a number from N(0, scale**2) to each input.

    Parameters
    ----------
    scale : float
        The standard deviation, at least 0.

    Examples
    --------
    >>> GaussianNoise(0.0).apply(np.ones((1, 2)), np.random.default_rng(0))
    array([[1., 1.]])
    """

    scale: float

    def __post_init__(self) -> None:
        _check_fields(self, scale={"low": 0})

    def apply(self, X: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
        """Return a noisy copy of X."""
        return _copy_by_rows(X, lambda rows: rows + generator.normal(0.0, self.scale, rows.shape))


@dataclass(frozen=True)
class SaltAndPepperNoise:
    """Replace each input with probability `fraction` by `low` or `high`, each as likely.

    Parameters
    ----------
    fraction : float
        From 0 to 1.
    low, high : float
        The two ends of the inputs' range, low < high.

    Examples
    --------
    >>> SaltAndPepperNoise(0.0).apply(np.full((1, 2), 0.5), np.random.default_rng(0))
    array([[0.5, 0.5]])
    """

    fraction: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check_fields(self, fraction={"low": 0, "high": 1}, low={}, high={})
        if self.low >= self.high:
            raise InvalidArgumentError(f"low must be less than high; found low={self.low!r}, high={self.high!r}")

    def apply(self, X: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
        """Return a noisy copy of X."""

        def spoil(rows: NDArray[Any]) -> NDArray[Any]:
            draw = generator.random(rows.shape)
            return np.where(draw < self.fraction / 2, self.low, np.where(draw < self.fraction, self.high, rows))

        return _copy_by_rows(X, spoil)


def _copy_by_rows(X: NDArray[Any], spoil: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[Any]:
    """Return what `spoil` makes of X, a thousand rows at a time: what it draws takes as much memory as the rows."""
    noisy = np.empty_like(X)
    for begin in range(0, len(X), 1024):
        rows = slice(begin, begin + 1024)
        noisy[rows] = spoil(X[rows])
    return noisy


Noise = MaskingNoise | GaussianNoise | SaltAndPepperNoise
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (MaskingNoise, GaussianNoise, SaltAndPepperNoise)}


def check_noise(noise: Any) -> Noise | None:
    """Return `noise` if it is such a record or None, or say what it must be.

    Examples
    --------
    >>> check_noise(MaskingNoise(0.3))
    MaskingNoise(fraction=0.3)
    """
    if noise is not None and type(noise) not in _KINDS.values():
        raise InvalidArgumentError(f"noise must be a {', '.join(_KINDS)} or None; found {noise!r}")
    return noise


def noise_config(noise: Noise) -> dict[str, Any]:
    """Return noise as plain values that JSON can hold.

    Examples
    --------
    >>> noise_config(GaussianNoise(0.1))
    {'type': 'GaussianNoise', 'scale': 0.1}
    """
    return {"type": type(noise).__name__, **asdict(noise)}


def noise_from_config(entry: dict[str, Any]) -> Noise:
    """Return the noise that `noise_config` described."""
    if not isinstance(entry, dict):
        raise InvalidArgumentError(f"noise must be described by its type and numbers; found {entry!r}")
    values = dict(entry)
    kind = _KINDS[check_choice(values.pop("type", None), "noise type", tuple(_KINDS))]
    try:
        return kind(**values)
    except TypeError:
        raise InvalidArgumentError(f"a {kind.__name__} cannot have the entries {sorted(values)}") from None
