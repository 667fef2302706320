"""Stacked autoencoders: networks made of networks.

To train a deep network layer by layer (Bengio et al., 2007), an autoencoder learns features of the data, the next one
features of those features, and so on: `pretrain`. What is kept of each is its `encoder`, the part that computes
features. `stack` puts encoders on top of one another and a classifier on top of them; training the result as a whole is
called fine-tuning. Each of them is a plain `MLP`, to be looked at, saved, and trained
otherwise at every step.

The same three functions make self-taught learning (Raina et al., 2007): features learnt from examples without labels,
a classifier learnt from the features of those with labels.

References
----------
Y. Bengio, P. Lamblin, D. Popovici and H. Larochelle, "Greedy layer-wise training of deep networks", NIPS 19 (2007).
R. Raina, A. Battle, H. Lee, B. Packer and A. Y. Ng, "Self-taught learning: transfer learning from unlabeled data",
ICML (2007).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from mlpkit.checks import check_integer
from mlpkit.errors import InvalidArgumentError
from mlpkit.layers import Dense, Input, parameter_blocks
from mlpkit.losses import Loss
from mlpkit.mlp import MLP, check_network

if TYPE_CHECKING:
    from mlpkit.history import FitResult

__all__ = ["encoder", "pretrain", "stack"]


def pretrain(
    autoencoders: Sequence[MLP],
    X: ArrayLike,
    optimizer: Any = None,
    *,
    sample_weight: ArrayLike | None = None,
    keep_activations: bool | None = None,
    progress: bool = False,
) -> list[FitResult]:
    """Train autoencoders one after another, each on the features that the one before it has learnt.

    The first learns from `X`, the second from what the first's `encoder` makes of `X`, and so on. It is the loop ::

        for net in autoencoders:
            net.fit(X, X, optimizer)
            X = encoder(net).predict(X)

    which can be written out where one of them is to be trained otherwise.

    Parameters
    ----------
    autoencoders : sequence of MLP
        Each reads as many numbers as the one before it has features, and may be of any kind: sparse, tied, denoising,
        with several hidden layers. They are trained in place, from the parameters that they have.
    X : array-like, shape (m, s_1)
        Examples in rows. Labels play no part.
    optimizer : optimizer, optional
        For all of them; ``LBFGS()`` by default.
    sample_weight, keep_activations, progress
        As for `MLP.fit`.

    Returns
    -------
    list of FitResult
        One for each autoencoder that was trained: Ctrl-C ends the training of one and leaves out those after it.

    Raises
    ------
    InvalidArgumentError
        Naming the argument, what was expected and what was found; before anything is trained.

    Examples
    --------
    >>> import mlpkit
    >>> X = np.random.default_rng(0).random((50, 6))
    >>> autoencoders = [mlpkit.sparse_autoencoder(6, 4, rho=0.3), mlpkit.sparse_autoencoder(4, 2, rho=0.3)]
    >>> results = pretrain(autoencoders, X, mlpkit.LBFGS(max_iter=20))
    >>> [result.n_iterations for result in results]
    [20, 20]
    """
    nets = _check_parts(autoencoders, "autoencoders")
    encoders = []
    for i, net in enumerate(nets):
        if not isinstance(net, MLP):
            raise InvalidArgumentError(f"autoencoders[{i}] must be an MLP; found {net!r}")
        if net.sizes[0] != net.sizes[-1]:
            raise InvalidArgumentError(
                f"autoencoders[{i}] must have as many outputs as inputs, which are its targets; found sizes {net.sizes}"
            )
        if any(net is other for other in nets[:i]):
            raise InvalidArgumentError(
                f"autoencoders[{i}] must be another network than those before it; it is the same"
            )
        encoders.append(_encoder(net, f"autoencoders[{i}]"))
    for i, (below, above) in enumerate(pairwise(encoders)):
        if above.sizes[0] != below.sizes[-1]:
            raise InvalidArgumentError(
                f"autoencoders[{i + 1}] must have as many inputs as autoencoders[{i}] has features, "
                f"{below.sizes[-1]}; found {above.sizes[0]}"
            )
    features = X
    results = []
    for i, net in enumerate(nets):
        if i:
            features = encoder(nets[i - 1]).predict(features)
        result = net.fit(
            features,
            features,
            optimizer,
            sample_weight=sample_weight,
            keep_activations=keep_activations,
            progress=progress,
        )
        results.append(result)
        if result.reason.startswith("interrupted"):
            break
    return results


def encoder(net: MLP, layer: int | None = None, *, weight_decay: float = 0.0) -> MLP:
    """Return the part of a network up to one of its layers, as a network of its own: what computes features.

    It is a copy, plain layers without what trained them: no sparsity or other penalties, no dropout, no noise of the
    inputs, and no weight decay unless given here. So fine-tuning a `stack` of encoders changes them for the sake of
    what is on top only.

    Parameters
    ----------
    net : MLP
        An autoencoder, or any network.
    layer : int, optional
        Which layer's activations are the features: 2 for the first hidden layer, as the notes count. By default the
        middle one of an autoencoder.
    weight_decay : float
        lambda of all the encoder's layers, for trainings to come.

    Returns
    -------
    MLP
        Its ``predict(X)`` is ``net.activations(X)[layer - 2]``, to the bit.

    Raises
    ------
    InvalidArgumentError
        If the network has no such layer, or no `layer` is given and none is the middle of an autoencoder.

    Examples
    --------
    >>> import mlpkit
    >>> net = mlpkit.sparse_autoencoder(64, 25)
    >>> encoder(net)
    MLP([Input(64), Dense(25, 'sigmoid')], loss='squared_error')
    """
    return _encoder(check_network(net), "net", layer, weight_decay)


def stack(
    parts: Sequence[MLP | Dense],
    loss: str | Loss | None = None,
    *,
    seed: int | np.random.Generator | None = None,
) -> MLP:
    """Put networks and layers on top of one another: the outputs of each are the inputs of the next.

    What a part brings along, the stack keeps: parameters (as copies), weight decay, sparsity, dropout. A deep
    classifier with pre-trained layers, only the topmost of which has weight decay, is ::

        parts = [mlpkit.encoder(net) for net in autoencoders]
        parts.append(mlpkit.Dense(10, "softmax", weight_decay=1e-4))
        net = mlpkit.stack(parts, "cross_entropy")

    In the place of the layer there may be a network with one, trained before on the features.

    Parameters
    ----------
    parts : sequence of MLP and Dense
        The lowest first, which must be a network. A layer starts with parameters drawn from `seed` by its own rule;
        its ``tied_to`` counts the weights of the whole stack.
    loss : str or Loss, optional
        By default that of the last part, and ``"squared_error"`` if that is a layer.
    seed : int, Generator or None
        Where the parameters of single layers come from; None draws them from the system's entropy.

    Returns
    -------
    MLP
        A network of the parts' dtype. Its outputs are those of the parts one after another, to the bit.

    Raises
    ------
    InvalidArgumentError
        If parts do not fit: in size, in dtype, or noise at what would be the inputs of an inner layer.

    Examples
    --------
    >>> import mlpkit
    >>> lower = mlpkit.encoder(mlpkit.sparse_autoencoder(64, 25))
    >>> stack([lower, mlpkit.Dense(10, "softmax", weight_decay=1e-4)], "cross_entropy", seed=0)
    MLP([Input(64), Dense(25, 'sigmoid'), Dense(10, 'softmax', weight_decay=0.0001)], loss='cross_entropy', seed=0)
    """
    checked = _check_parts(parts, "parts")
    first = checked[0]
    if not isinstance(first, MLP):
        raise InvalidArgumentError(f"parts[0] must be an MLP, which says what the inputs are; found {first!r}")
    layers: list[Input | Dense] = [first.layers[0]]
    places: list[tuple[int, MLP]] = []  # of a network: how many layers are below its own, and it
    for i, part in enumerate(checked):
        if isinstance(part, MLP):
            _check_fit(part, i, layers[-1].units, first.dtype)
            places.append((len(layers) - 1, part))
            layers.extend(_inner_layers(part, below=len(layers) - 1))
        elif isinstance(part, Dense):
            layers.append(part)
        else:
            raise InvalidArgumentError(f"parts[{i}] must be an MLP or a Dense; found {part!r}")
    if loss is None:
        last = checked[-1]
        loss = last.loss if isinstance(last, MLP) else "squared_error"
    net = MLP(layers, loss, dtype=first.dtype, seed=seed)
    blocks = parameter_blocks(net.layers)
    for below, part in places:
        begin = blocks[below - 1].end if below else 0
        net.theta[begin : begin + part.n_parameters] = part.theta
    return net


def _check_parts(parts: Any, name: str) -> list[Any]:
    """Return the parts as a list, or say why they are none."""
    if isinstance(parts, str) or not isinstance(parts, Iterable):
        raise InvalidArgumentError(f"{name} must be a list; found {type(parts).__name__}")
    found = list(parts)
    if not found:
        raise InvalidArgumentError(f"{name} must not be empty")
    return found


def _check_fit(part: MLP, i: int, units: int, dtype: np.dtype[Any]) -> None:
    """Refuse a network that cannot be on top of `units` units of that dtype."""
    if part.sizes[0] != units:
        raise InvalidArgumentError(
            f"parts[{i}] must have {units} inputs, as many as parts[{i - 1}] has outputs; found {part.sizes[0]} (sizes "
            f"{part.sizes}; of an autoencoder, mlpkit.encoder returns the part to be stacked)"
        )
    if part.dtype != dtype:
        raise InvalidArgumentError(f"parts[{i}] must be of dtype {dtype}, as parts[0] is; found {part.dtype}")
    noise = part.layers[0].noise  # type: ignore[union-attr]
    if i and noise is not None:
        raise InvalidArgumentError(
            f"parts[{i}] must have no noise at its inputs, which in a stack are activations of an inner layer; found "
            f"{noise!r}"
        )


def _inner_layers(part: MLP, below: int) -> list[Dense]:
    """Return a network's dense layers as they are on top of others: with their own decay, ties counted anew."""
    found = []
    for layer, decay in zip(part.layers[1:], part.decays, strict=True):
        assert isinstance(layer, Dense)
        if layer.tied_to is None:
            found.append(replace(layer, weight_decay=decay or None))
        else:
            found.append(replace(layer, tied_to=layer.tied_to + below))
    return found


def _encoder(net: MLP, name: str, layer: int | None = None, weight_decay: float = 0.0) -> MLP:
    """Return the network up to a layer; see `encoder`."""
    if layer is None:
        if net.n_layers % 2 == 0 or net.sizes != net.sizes[::-1]:
            raise InvalidArgumentError(
                f"{name} must be an autoencoder, of which the middle layer has the features, or layer= must name that "
                f"layer; found sizes {net.sizes}"
            )
        layer = (net.n_layers + 1) // 2
    else:
        layer = check_integer(layer, "layer", low=2, high=net.n_layers)
    layers: list[Input | Dense] = [Input(net.sizes[0])]
    for kept in net.layers[1:layer]:
        assert isinstance(kept, Dense)
        layers.append(replace(kept, sparsity=None, weight_decay=None, dropout=0.0))
    found = MLP(layers, weight_decay=weight_decay, dtype=net.dtype)
    found.theta = net.theta[: found.n_parameters]
    return found
