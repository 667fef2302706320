"""What all ways in and out share: a chain of matrices and biases, made into a network or taken from one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from mlpkit import activations as known
from mlpkit.activations import Activation
from mlpkit.checks import shown
from mlpkit.direct_hdf5 import first_non_finite
from mlpkit.errors import InvalidArgumentError
from mlpkit.layers import Dense, Input
from mlpkit.losses import Loss
from mlpkit.mlp import MLP, check_network

__all__ = [
    "Linear",
    "assemble",
    "check_exportable",
    "given_activations",
    "left_out",
    "name_and_parameters",
    "parameters_of",
    "sequential_keys",
]


class Linear(NamedTuple):
    """One linear map of another system, its matrix the way round that mlpkit has it.

    Attributes
    ----------
    W_name, b_name : str
        What the other system calls its parts, for errors and the account of the conversion.
    W : ndarray, shape (n_out, n_in)
        The matrix.
    b : ndarray, shape (n_out,), or None
        The biases, if it has any.
    transposed : bool
        Whether the other system has the matrix the other way round.
    """

    W_name: str
    b_name: str
    W: NDArray[Any]
    b: NDArray[Any] | None
    transposed: bool = False


def given_activations(found: Any, n_layers: int) -> list[Activation]:
    """Return the activations that the caller gave for a file that has none, one for each layer.

    Examples
    --------
    >>> given_activations(["tanh", "identity"], 2)
    [<activation tanh>, <activation identity>]
    """
    if found is None or isinstance(found, (str, Activation)) or not isinstance(found, Sequence):
        raise InvalidArgumentError(
            f"activations must be a list of {n_layers} names or activations, one for each linear layer: the file has "
            f"none; found {shown(found)}"
        )
    if len(found) != n_layers:
        raise InvalidArgumentError(
            f"activations must have one entry for each of the {n_layers} linear layers; found {len(found)}"
        )
    return [known.get(entry) for entry in found]


def assemble(
    stack: Sequence[Linear],
    activations: Sequence[Activation],
    *,
    loss: str | Loss,
    weight_decay: float,
    fail: Callable[[str, str], NoReturn],
) -> tuple[MLP, list[str]]:
    """Return the network that a chain of linear maps and activations makes, and a line for each array mapped.

    Parameters
    ----------
    stack : sequence of Linear
        The maps, in the order in which they are applied.
    activations : sequence of Activation
        One for each.
    loss, weight_decay
        As `mlpkit.MLP` takes them.
    fail : callable
        Called with the name of a part and the reason why it cannot be; raises.
    """
    dtype = stack[0].W.dtype
    if dtype not in (np.float64, np.float32):
        fail(stack[0].W_name, f"expected float64 or float32, found {dtype}")
    above = None
    for part in stack:
        W, b = part.W, part.b
        if W.ndim != 2 or 0 in W.shape:
            fail(part.W_name, f"expected a matrix, found shape {W.shape!s:.80}")
        if above is not None and W.shape[1] != above.W.shape[0]:
            fail(part.W_name, f"takes {W.shape[1]} inputs, but {above.W_name} before it gives {above.W.shape[0]}")
        if b is not None and b.shape != W.shape[:1]:
            fail(part.b_name, f"expected shape ({W.shape[0]},), found {b.shape!s:.80}")
        for name, array in ((part.W_name, W), (part.b_name, b)):
            if array is not None and array.dtype != dtype:
                fail(name, f"expected {dtype} as in {stack[0].W_name}, found {array.dtype}")
        above = part
    layers: list[Input | Dense] = [Input(stack[0].W.shape[1])]
    for part, f in zip(stack, activations, strict=True):
        layers.append(Dense(part.W.shape[0], f, bias=part.b is not None))
    net = MLP(layers, loss=loss, weight_decay=weight_decay, dtype=dtype)
    lines = []
    for number, (part, W, b) in enumerate(zip(stack, net.weights, net.biases, strict=True), start=1):
        theirs, turned = (part.W.T, ", transposed") if part.transposed else (part.W, "")
        _check_finite(theirs, part.W_name, fail)
        W[:] = part.W
        lines.append(f"{part.W_name} {theirs.shape} {dtype} -> W^({number}){turned}")
        if part.b is not None:
            _check_finite(part.b, part.b_name, fail)
            b[:] = part.b
            lines.append(f"{part.b_name} {part.b.shape} {dtype} -> b^({number})")
    return net, lines


def _check_finite(array: NDArray[Any], name: str, fail: Callable[[str, str], NoReturn]) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        fail(f"{name}{list(index)}", f"expected finite numbers, found {array[index]}")


def check_exportable(net: Any) -> MLP:
    """Return a network all of whose parameters are finite, or say what is wrong with it."""
    check_network(net)
    bad = first_non_finite(net.theta)
    if bad is not None:
        raise InvalidArgumentError(f"net: expected finite parameters, found theta[{bad}] = {net.theta[bad]}")
    return net  # type: ignore[no-any-return]


def sequential_keys(net: MLP) -> list[int]:
    """Return the place of each layer's linear module in an ``nn.Sequential`` of linear modules and activations.

    An identity takes no place.

    Examples
    --------
    >>> sequential_keys(MLP([Input(3), Dense(2, "tanh"), Dense(2, "identity"), Dense(1, "sigmoid")]))
    [0, 2, 3]
    """
    places, place = [], 0
    for layer in net.layers[1:]:
        places.append(place)
        place += 1 if layer.activation is known.identity else 2  # type: ignore[union-attr]
    return places


def parameters_of(net: MLP, names: Sequence[tuple[str, str]]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return a network's weights and biases under other names, and a line for each.

    Parameters
    ----------
    net : MLP
        The network.
    names : sequence of (str, str)
        What W and b of each layer are to be called.
    """
    arrays, lines = {}, []
    parts = zip(net.layers[1:], net.weights, net.biases, names, strict=True)
    for number, (layer, W, b, (W_name, b_name)) in enumerate(parts, start=1):
        assert isinstance(layer, Dense)
        arrays[W_name] = np.ascontiguousarray(W)
        tie = "" if layer.tied_to is None else f", a copy of the transpose of W^({layer.tied_to}), no longer tied to it"
        lines.append(f"W^({number}) {W.shape} -> {W_name}{tie}")
        if layer.bias:
            arrays[b_name] = b
            lines.append(f"b^({number}) {b.shape} -> {b_name}")
    return arrays, lines


def left_out(net: MLP, where: str, *, activations: bool = False) -> list[str]:
    """Return a line for each thing beside the parameters that a network has and what it is converted to cannot hold.

    Examples
    --------
    >>> left_out(MLP([Input(3), Dense(2, "tanh")], weight_decay=0.1), "a torch module")
    ["loss 'squared_error' -> not part of a torch module", 'weight_decay 0.1 -> not part of a torch module']
    """
    parts = []
    for number, layer in enumerate(net.layers, start=1):
        if isinstance(layer, Input):
            parts += [] if layer.noise is None else [f"layer 1: {layer.noise}"]
            continue
        if activations:
            parts.append(f"layer {number}: activation {layer.activation.name!r}")
        if layer.weight_decay is not None:
            parts.append(f"layer {number}: weight_decay {layer.weight_decay:g}")
        parts += [f"layer {number}: {penalty}" for penalty in layer.penalties]
    parts.append(f"loss {net.loss.name!r}")
    if net.weight_decay:
        parts.append(f"weight_decay {net.weight_decay:g}")
    parts += ["metadata"] if net.metadata else []
    parts += ["provenance"] if net.provenance else []
    return [f"{part} -> not part of {where}" for part in parts]


def name_and_parameters(activation: Activation) -> tuple[str, list[float]]:
    """Return a built-in activation's name and the parameters in it.

    Examples
    --------
    >>> name_and_parameters(known.get("elu(0.5)"))
    ('elu', [0.5])
    """
    found = re.fullmatch(r"(\w+)\((.*)\)", activation.name)
    return (found[1], [float(number) for number in found[2].split(",")]) if found else (activation.name, [])
