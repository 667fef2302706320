"""The order in which the CS294A exercise unrolls its parameters, and mlpkit's.

The notes only say that W and b are "unrolled" into one long vector theta; the exercise's starter code fixes the order::

    theta = [W1(:) ; W2(:) ; b1(:) ; b2(:)];

All weights first, then all biases, each matrix column by column, since that is what MATLAB's ``(:)`` does and what its
``reshape`` undoes; W^(l) has shape (s_{l+1}, s_l) there as here. For more layers this goes on as one would expect: W1,
W2, ..., then b1, b2, .... mlpkit's theta holds W^(1) row by row, b^(1), W^(2) row by row, b^(2), .... The two are
permutations of each other, so gradients convert as parameters do.

What theta does not hold appears in neither: no W for a layer that is tied to another, no b for one without biases.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.checks import check_vector
from mlpkit.layers import parameter_blocks
from mlpkit.mlp import MLP, check_network

__all__ = ["from_notes_order", "to_notes_order"]


def to_notes_order(net: MLP, vector: ArrayLike | None = None) -> NDArray[Any]:
    """Return parameters, or a gradient, in the exercise's order.

    Parameters
    ----------
    net : MLP
        The network, whose layers say what lies where.
    vector : array-like, shape (n_parameters,), optional
        In mlpkit's order: a gradient, for instance. The network's parameters if None.

    Returns
    -------
    ndarray, shape (n_parameters,), the network's dtype
        [W1(:); W2(:); ...; b1; b2; ...], each W column by column.

    Raises
    ------
    InvalidArgumentError
        If `vector` has another length or is not finite.

    Examples
    --------
    >>> import mlpkit
    >>> net = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(2, "sigmoid"), mlpkit.Dense(1, "sigmoid")])
    >>> net.theta = range(1, 10)  # W1 = [1 2; 3 4], b1 = [5 6], W2 = [7 8], b2 = 9
    >>> to_notes_order(net)
    array([1., 3., 2., 4., 7., 8., 5., 6., 9.])
    """
    check_network(net)
    theta = net.theta if vector is None else check_vector(vector, "vector", length=net.n_parameters, dtype=net.dtype)
    return theta[_places(net)]


def from_notes_order(net: MLP, vector: ArrayLike) -> NDArray[Any]:
    """Return parameters, or a gradient, in mlpkit's order; to use them, assign them to ``net.theta``.

    Parameters
    ----------
    net : MLP
        The network, whose layers say what lies where. It is left as it is.
    vector : array-like, shape (n_parameters,) or (n_parameters, 1)
        In the exercise's order; a column, as MATLAB has it, will do.

    Returns
    -------
    ndarray, shape (n_parameters,), the network's dtype

    Raises
    ------
    InvalidArgumentError
        If `vector` has another length or is not finite.

    Examples
    --------
    >>> import mlpkit
    >>> net = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(2, "sigmoid"), mlpkit.Dense(1, "sigmoid")])
    >>> net.theta = from_notes_order(net, [1, 3, 2, 4, 7, 8, 5, 6, 9])
    >>> net.weights[0]
    array([[1., 2.],
           [3., 4.]])
    """
    check_network(net)
    if getattr(vector, "ndim", 1) == 2 and vector.shape[1] == 1:  # type: ignore[union-attr]
        vector = np.asarray(vector)[:, 0]
    unrolled = check_vector(vector, "vector", length=net.n_parameters, dtype=net.dtype)
    theta = np.empty_like(unrolled)
    theta[_places(net)] = unrolled
    return theta


def _places(net: MLP) -> NDArray[np.intp]:
    """Return where in theta each number of the exercise's vector lies."""
    blocks = parameter_blocks(net.layers)
    weights = [
        np.arange(block.W, block.b).reshape(block.n_out, block.n_in).ravel(order="F")
        for block in blocks
        if block.owner is None
    ]
    return np.concatenate([*weights, *(np.arange(block.b, block.end) for block in blocks)])
