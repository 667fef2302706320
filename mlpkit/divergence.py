"""What went first when a training diverged: in which layer, and which term of J."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.layers import parameter_blocks
from mlpkit.mlp import MLP
from mlpkit.row_files import open_rows

__all__ = ["first_failure"]

_ROWS = 4096


def first_failure(
    net: MLP,
    theta: NDArray[Any],
    X: ArrayLike,
    evaluate: Callable[[NDArray[Any]], tuple[Mapping[str, float], NDArray[Any]]],
) -> str | None:
    """Say what is not finite at theta first, in the order of computation; None where everything is finite.

    Parameters
    ----------
    net : MLP
        The network; its parameters do not matter.
    theta : ndarray, shape (n,)
        Where.
    X : array-like, shape (m, s_1)
        The inputs.
    evaluate : callable
        theta -> the terms of J by name, and its gradient.

    Examples
    --------
    >>> from mlpkit import Dense, Input, Objective
    >>> net = MLP([Input(1), Dense(2, "exp"), Dense(1, "identity")], seed=0)
    >>> evaluate = Objective(net, [[1.0]], [[1.0]]).terms_and_gradient
    >>> first_failure(net, np.full(7, 1000.0), [[1.0]], evaluate)
    'the activations of layer 2'
    >>> first_failure(net, np.array([0, 0, 0, 0, np.nan, 0, 0]), [[1.0]], evaluate)
    'W^(2)'
    >>> first_failure(net, np.zeros(7), [[1.0]], evaluate)
    """
    found = _first_block(net, theta)
    if found is not None:
        return found
    there = net.__copy__()
    there.theta = theta
    source = open_rows(X, "X")
    rows = np.asarray(X) if source is None else None
    m = len(rows) if source is None else source.shape[0]  # type: ignore[arg-type]
    with np.errstate(all="ignore"):
        finite = np.ones(net.n_layers - 1, bool)
        for begin in range(0, m, _ROWS):
            end = min(begin + _ROWS, m)
            some = source.rows(begin, end) if rows is None else rows[begin:end]  # type: ignore[union-attr]
            finite &= [bool(np.isfinite(a).all()) for a in there.activations(some)]
        if not finite.all():
            return f"the activations of layer {2 + int(finite.argmin())}"
        terms, gradient = evaluate(theta)
    for name, value in terms.items():
        if not np.isfinite(value):
            return f"the {name.replace('_', ' ')} term of J"
    found = _first_block(net, gradient, last_first=True)
    return None if found is None else f"the gradient of {found}"


def _first_block(net: MLP, values: NDArray[Any], *, last_first: bool = False) -> str | None:
    """Name the first W or b, the last layer's where `last_first`, in which a vector like theta is not finite."""
    blocks = list(enumerate(parameter_blocks(net.layers), start=1))
    for number, block in reversed(blocks) if last_first else blocks:
        for name, part in (("W", block.own_weights), ("b", slice(block.b, block.end))):
            if not np.isfinite(values[part]).all():
                return f"{name}^({number})"
    return None
