"""A network from what other systems' models come down to: matrices, biases, names, numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit.activations import Activation
from mlpkit.losses import Loss
from mlpkit.mlp import MLP

__all__ = ["assemble"]


def assemble(
    weights: Sequence[NDArray[Any]],
    biases: Sequence[NDArray[Any] | None],
    activations: Sequence[str | Activation],
    loss: str | Loss,
    weight_decay: float | Sequence[float] = 0.0,
) -> MLP:
    """Return the network that has these parameters, to the bit, in the precision of the first matrix.

    Parameters
    ----------
    weights : sequence of ndarray
        W^(l) of shape (s_{l+1}, s_l), all float64 or all float32; shapes that chain are the caller's business.
    biases : sequence of ndarray or None
        b^(l) of shape (s_{l+1},); None for a layer without.
    activations : sequence of str or Activation
        One for each W.
    loss : str or Loss
    weight_decay : float or sequence of float
        One lambda, or one for each W. Where they are all the same it is the network's, otherwise the layers' own.

    Raises
    ------
    InvalidArgumentError
        If a name is not registered, the loss is not defined on the last activation, or a number is not finite.

    Examples
    --------
    >>> assemble([np.ones((1, 2))], [np.zeros(1)], ["sigmoid"], "squared_error", 1e-4)
    MLP([Input(2), Dense(1, 'sigmoid')], loss='squared_error', weight_decay=0.0001)
    """
    decays = [weight_decay] * len(weights) if isinstance(weight_decay, int | float) else list(weight_decay)
    shared = decays[0] if len(set(decays)) == 1 else None
    # Through a configuration, which draws no starting parameters.
    layers: list[dict[str, Any]] = [{"type": "Input", "units": weights[0].shape[1]}]
    for W, b, activation, decay in zip(weights, biases, activations, decays, strict=True):
        layers.append(
            {
                "type": "Dense",
                "units": W.shape[0],
                "activation": activation,
                "sparsity": None,
                "weight_decay": decay if shared is None else None,
                "init": None,
                "bias": b is not None,
            }
        )
    settings = {"loss": loss, "weight_decay": shared or 0.0, "dtype": weights[0].dtype.name, "seed": None}
    net = MLP.from_config({"layers": layers, **settings})
    parts = [part.ravel() for pair in zip(weights, biases, strict=True) for part in pair if part is not None]
    net.theta = np.concatenate(parts)
    return net
