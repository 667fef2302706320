"""The sparse autoencoder of the notes as one configuration of `MLP`, and what its units look for.

An autoencoder is a network whose targets are its inputs, ``net.fit(X, X)``. Its hidden layer is
sparse when the objective asks each hidden unit to be active, on average over all examples, only a
fraction rho of the time (the notes, section 3). Nothing here is special to the engine: it is a list
of layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit.activations import Activation
from mlpkit.checks import check_flag, check_integer
from mlpkit.errors import InvalidArgumentError
from mlpkit.layers import Dense, Input
from mlpkit.mlp import MLP, check_network
from mlpkit.penalties import KLSparsity

__all__ = ["maximal_inputs", "sparse_autoencoder"]


def sparse_autoencoder(
    n_inputs: int = 64,
    n_hidden: int = 25,
    rho: float = 0.01,
    beta: float = 3.0,
    weight_decay: float = 1e-4,
    seed: int | np.random.Generator | None = 0,
    dtype: str = "float64",
    *,
    decoder: str | Activation = "sigmoid",
    tied: bool = False,
) -> MLP:
    """Return the sparse autoencoder of the CS294A exercise: sigmoid units, one sparse hidden layer.

    Its objective is J_sparse(W, b) = J(W, b) + beta sum_j KL(rho || rho_hat_j) of the notes,
    section 3, with J of equation (8). Inputs, which are also the targets, should lie in [0, 1].

    Parameters
    ----------
    n_inputs : int
        Number of inputs and of outputs.
    n_hidden : int
        Number of hidden units.
    rho : float
        The mean activation that each hidden unit is asked to have, strictly between 0 and 1.
    beta : float
        The weight of the sparsity penalty, at least 0.
    weight_decay : float
        lambda, at least 0.
    seed : int, numpy.random.Generator or None
        Where the starting weights are drawn from.
    dtype : {"float64", "float32"}
        The type of theta.
    decoder : str or Activation
        The output units: ``"sigmoid"``, or ``"identity"`` for a linear decoder, whose targets need not lie in [0, 1].
    tied : bool
        Whether W^(2) is the transpose of W^(1): theta is then [W^(1), b^(1), b^(2)], and weight decay counts W once.

    Returns
    -------
    MLP
        With layers ``Input(n_inputs)``, a sparse ``Dense(n_hidden, "sigmoid")`` and
        ``Dense(n_inputs, decoder)``.

    Raises
    ------
    InvalidArgumentError
        Naming the argument, what was expected and what was found.

    Examples
    --------
    >>> net = sparse_autoencoder(n_inputs=64, n_hidden=25)
    >>> net.sizes
    (64, 25, 64)
    """
    return MLP(
        [
            Input(check_integer(n_inputs, "n_inputs", low=1)),
            Dense(
                check_integer(n_hidden, "n_hidden", low=1),
                "sigmoid",
                sparsity=KLSparsity(rho=rho, beta=beta),
            ),
            Dense(n_inputs, decoder, tied_to=1 if check_flag(tied, "tied") else None),
        ],
        loss="squared_error",
        weight_decay=weight_decay,
        dtype=dtype,
        seed=seed,
    )


def maximal_inputs(net: MLP, layer: int = 2) -> NDArray[Any]:
    """Return, for each unit of the first hidden layer, the input of norm 1 that activates it most.

    For unit i it is x_j = W_ij^(1) / sqrt(sum_k (W_ik^(1))**2), section 4 of the notes: among all x
    of norm at most 1, the weighted sum of inputs is largest in the direction of the weights, and an
    increasing f keeps that order.

    Parameters
    ----------
    net : MLP
        Any network.
    layer : int
        Must be 2, the first layer after the input.

    Returns
    -------
    ndarray of the network's dtype, shape (s_2, n_inputs)
        One input a row. A unit whose weights are all zero likes no input best; its row is zeros.

    Raises
    ------
    InvalidArgumentError
        For any other layer, whose units see hidden activations instead of the input, so that the
        formula does not hold.

    Examples
    --------
    >>> net = sparse_autoencoder(n_inputs=2, n_hidden=1)
    >>> net.weights[0][:] = [[3.0, -4.0]]
    >>> maximal_inputs(net)
    array([[ 0.6, -0.8]])
    """
    check_network(net)
    if check_integer(layer, "layer") != 2:
        raise InvalidArgumentError(
            "layer must be 2: x = W / ||W|| maximises the units of the first layer after the "
            "input, and only theirs: deeper units are not functions of one weighted sum of inputs; "
            f"found {layer}"
        )
    W = net.weights[0]
    if not np.isfinite(W).all():
        raise InvalidArgumentError("net must have finite weights; found NaN or infinity in W^(1)")
    # Dividing by the largest weight first keeps the squares of tiny and huge weights in range.
    largest = np.abs(W).max(axis=1, keepdims=True)
    scaled = np.divide(W, largest, out=np.zeros_like(W), where=largest > 0)
    norm = np.sqrt(np.sum(scaled * scaled, axis=1, keepdims=True))
    return np.divide(scaled, norm, out=np.zeros_like(W), where=norm > 0)
