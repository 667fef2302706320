"""Networks in other programs' ``.mat`` files: W1, b1, W2, ..., or one vector, and what the caller says beside them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from numpy.typing import NDArray

from mlpkit import activations, losses
from mlpkit.checks import check_integer, check_number, shown
from mlpkit.errors import InvalidArgumentError
from mlpkit.interop.dense_stack import Linear, assemble, given_activations
from mlpkit.interop.notes_order import from_notes_order
from mlpkit.layers import Dense, Input
from mlpkit.mlp import MLP
from mlpkit.strict_hdf5 import refuse

__all__ = ["SETTINGS", "from_plain_variables"]

# What a file may say beside the parameters, and as what kind of variable.
SETTINGS = {"sizes": "numbers", "weight_decay": "numbers", "activations": "text", "loss": "text"}


def from_plain_variables(variables: dict[str, Any], given: Mapping[str, Any], vector: str) -> tuple[MLP, list[str]]:
    """Return the network of plain variables, and a line for each thing that was mapped.

    Parameters
    ----------
    variables : dict
        Of the names that `from_matlab` understands, as `read_variables` returns them.
    given : mapping
        The settings that the caller gave, None where he did not; never those that the file has.
    vector : str
        What a vector of all parameters is called.

    Raises
    ------
    ModelFormatError
        Naming a variable and what is wrong with it.
    InvalidArgumentError
        Naming an argument that is missing or wrong.

    Examples
    --------
    >>> import numpy as np
    >>> given = {"activations": ["tanh"], "sizes": (2, 1), "loss": None, "weight_decay": 0.1}
    >>> net, _ = from_plain_variables({"theta": np.array([[1.0, 2.0, 3.0]])}, given, "theta")
    >>> net.weights[0], net.biases[0], net.weight_decay
    (array([[1., 2.]]), array([3.]), 0.1)
    """
    parts = {name: value for name, value in variables.items() if name not in SETTINGS}
    sizes, lines = _sizes(variables, given["sizes"])
    stack = []
    if vector not in parts:
        stack = _stack(parts)
        if not stack:
            refuse("file", f"expected W1 or {vector}, found {', '.join(sorted(variables)):.200}")
        n_layers = len(stack)
    elif sizes is not None:
        n_layers = len(sizes) - 1
    else:
        raise InvalidArgumentError(f"sizes must be given: {vector} does not say how many units each layer has")
    functions = _activations(variables, given["activations"], n_layers)
    loss = given["loss"] or "squared_error"
    if "loss" in variables:
        (loss,) = _known(losses, "loss", variables["loss"], 1)
    if vector in parts:
        net, found = _unrolled(parts, vector, sizes, functions, loss)
    else:
        net, found = assemble(stack, functions, loss=loss, weight_decay=0.0, fail=refuse)
        if sizes is not None and sizes != net.sizes:
            if given["sizes"] is None:
                refuse("sizes", f"{sizes} contradicts the shapes of W1, W2, ...: {net.sizes}")
            raise InvalidArgumentError(f"sizes must be those of W1, W2, ..., {net.sizes}; found {sizes}")
    net = _decayed(net, _decays(variables, given["weight_decay"], n_layers))
    for name in ("activations", "loss", "weight_decay"):
        origin = name if name in variables else f"{name} as given" if given[name] is not None else "not in the file"
        lines.append(f"{origin} -> {name} {_setting(net, name)}")
    return net, found + lines


def _setting(net: MLP, name: str) -> str:
    dense = [layer for layer in net.layers if isinstance(layer, Dense)]
    if name == "activations":
        return ", ".join(layer.activation.name for layer in dense)
    return net.loss.name if name == "loss" else ", ".join(f"{decay:g}" for decay in sorted(set(net.decays)))


def _sizes(variables: dict[str, Any], given: Any) -> tuple[tuple[int, ...] | None, list[str]]:
    if "sizes" in variables:
        found = variables["sizes"].ravel().tolist()
        if len(found) < 2 or any(size < 1 or size != int(size) for size in found):
            refuse("sizes", f"expected two or more whole numbers of units, found {shown(found)}")
        return tuple(map(int, found)), ["sizes -> units of each layer"]
    if given is None:
        return None, []
    try:
        entries = list(given)
    except TypeError:
        entries = []
    if len(entries) < 2:
        raise InvalidArgumentError(f"sizes must be a list of two or more numbers of units; found {shown(given)}")
    return tuple(check_integer(size, "sizes", low=1) for size in entries), ["sizes as given -> units of each layer"]


def _activations(variables: dict[str, Any], given: Any, n_layers: int) -> list[activations.Activation]:
    if "activations" in variables:
        return _known(activations, "activations", variables["activations"], n_layers)
    return given_activations(given, n_layers)


def _known(registry: Any, name: str, lines: list[str], n: int) -> list[Any]:
    """Return the functions that a file names, a name in each line."""
    if len(lines) != n:
        refuse(name, f"expected {n} line{'s' if n > 1 else ''} of text, found {len(lines)}")
    try:
        return [registry.get(line) for line in lines]
    except InvalidArgumentError as error:
        refuse(name, str(error))


def _decays(variables: dict[str, Any], given: Any, n_layers: int) -> list[float]:
    if "weight_decay" not in variables:
        return [0.0 if given is None else check_number(given, "weight_decay", low=0)] * n_layers
    found = variables["weight_decay"].ravel().tolist()
    if len(found) not in (1, n_layers) or min(found) < 0:
        refuse("weight_decay", f"expected one number or {n_layers}, all of them at least 0, found {shown(found)}")
    return found * (n_layers // len(found))


def _decayed(net: MLP, decays: list[float]) -> MLP:
    """Return the network with these lambdas: its own where they are all the same, the layers' where not."""
    config = {**net.config(), "loss": net.loss}
    shared = len(set(decays)) == 1
    config["weight_decay"] = decays[0] if shared else 0.0
    for entry, layer, decay in zip(config["layers"][1:], net.layers[1:], decays, strict=True):
        assert isinstance(layer, Dense)
        # The function itself, which need not be registered.
        entry |= {"activation": layer.activation, "weight_decay": None if shared else decay}
    decayed = MLP.from_config(config)
    decayed.theta = net.theta
    return decayed


def _unrolled(
    parts: dict[str, NDArray[Any]], vector: str, sizes: Any, functions: list[activations.Activation], loss: Any
) -> tuple[MLP, list[str]]:
    """Return the network of a vector in the exercise's order."""
    for name in parts:
        if name != vector:
            refuse(name, f"of no use beside {vector}, which holds all parameters")
    found = parts[vector]
    layers: list[Input | Dense] = [Input(sizes[0]), *map(Dense, sizes[1:], functions)]
    n_parameters = sum(n * (below + 1) for below, n in pairwise(sizes))
    if 1 not in found.shape or found.size != n_parameters:
        refuse(vector, f"expected a vector of {n_parameters} numbers for sizes {sizes}, found shape {found.shape}")
    net = MLP(layers, loss=loss, dtype=found.dtype)
    net.theta = from_notes_order(net, found.ravel())
    return net, [f"{vector} {found.shape} {found.dtype} in the notes' order -> W^(1), ..., b^(1), ..."]


def _stack(parts: dict[str, NDArray[Any]]) -> list[Linear]:
    """Return the matrices and biases in order; b as a vector, whichever way it lies."""
    stack, n_layers = [], sum(name.startswith("W") for name in parts)
    for number in range(1, n_layers + 1):
        W, b = parts.pop(f"W{number}", None), parts.pop(f"b{number}", None)
        if W is None:
            refuse(f"W{number}", "missing")
        if b is not None and 1 not in b.shape:
            refuse(f"b{number}", f"expected a vector, found shape {b.shape}")
        stack.append(Linear(f"W{number}", f"b{number}", W, None if b is None else b.ravel()))
    for name in parts:
        refuse(name, f"expected W1 to W{n_layers} and at most one b for each")
    return stack
