"""Keras 3 weight files, ``.weights.h5``: the layers of networks of ``Dense`` layers, read and written without Keras.

Keras writes the kernel and bias of the k-th ``Dense`` layer of a Sequential or functional model to
``layers/dense_k/vars/0`` and ``/1`` (``layers/dense`` for k = 0), whatever the layer is called; kernels are (in, out),
the transpose of W. The numbers lie plainly in the file, contiguous and not compressed, so the file is read as strictly
as mlpkit's own, by `mlpkit.strict_hdf5`, and the HDF5 library touches no number.

A weight file does not say

- which activations there are: the caller gives them, one for each Dense layer, those of activation layers included;
- how layers are connected: they are taken to be a chain, in Keras's numbering. Of layers without variables only those
  that do nothing at inference (dropout, noise, input layers) and activation layers are known; any other, such as
  ``flatten``, ``add`` or ``concatenate``, is an error. For nested and subclassed models the caller gives the `order`,
  and answers for what lies between the layers named. Beware of subclassed models: attributes that come after the word
  ``layers`` in the alphabet look in a file like layers of a Sequential, in the order in which they were made.

The optimiser's state, where a model was compiled, is not taken. Keras 2 files and whole models (``.h5``, ``.keras``)
are refused: load them with Keras and ``model.save_weights("name.weights.h5")``.

**Names.** Keras's ``leaky_relu`` has a slope of 0.2, its ``LeakyReLU`` layer one of 0.3: give ``"leaky_relu(0.2)"``,
``"leaky_relu(0.3)"``. ``linear``, ``exponential`` and ``swish`` are ``"identity"``, ``"exp"`` and ``"silu"``. What else
both have has one name and one formula: ``elu``, ``gelu``, ``hard_sigmoid``, ``relu``, ``selu``, ``sigmoid``, ``silu``,
``softmax``, ``softplus``, ``softsign``, ``tanh``.

**Objectives.** With K outputs and L2(l) as kernel regulariser of each layer, which adds l sum W^2, J of mlpkit is::

    loss="mse"                       squared_error         J = K/2 * Keras's  with weight_decay = K * l
    loss="categorical_crossentropy"  cross_entropy         J = Keras's        with weight_decay = 2 * l
    loss="binary_crossentropy"       binary_cross_entropy  J = K * Keras's    with weight_decay = 2 * K * l

since Keras averages the first and third over outputs, which mlpkit sums.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import h5py
from numpy.typing import NDArray

from mlpkit import activations as known
from mlpkit.activations import Activation
from mlpkit.checks import shown
from mlpkit.direct_hdf5 import opened
from mlpkit.durable import path_text, replace_file
from mlpkit.errors import InvalidArgumentError
from mlpkit.interop.conversion import Conversion
from mlpkit.interop.dense_stack import Linear, assemble, check_exportable, given_activations, left_out, parameters_of
from mlpkit.interop.foreign_file import read_foreign, refuse_pickle
from mlpkit.interop.foreign_hdf5 import ForeignReader
from mlpkit.interop.hdf5_circles import refuse_circles
from mlpkit.losses import Loss
from mlpkit.mlp import MLP
from mlpkit.strict_hdf5 import naming, refuse

__all__ = ["from_keras", "to_keras"]

_SUFFIX = ".weights.h5"
_LEGACY = {"model_weights", "top_level_model_weights", "_layer_checkpoint_dependencies"}
_MAX_DEPTH = 20  # two for each model within a model
_ADVICE = 'load it with Keras and write it by model.save_weights("name.weights.h5")'

# Layers without variables, by the names that Keras derives from their classes.
_NOTHING = (
    "input_layer",
    "identity",
    "dropout",
    "alpha_dropout",
    "gaussian_dropout",
    "gaussian_noise",
    "activity_regularization",
)
_ACTIVATIONS = ("activation", "re_lu", "leaky_re_lu", "elu", "softmax")


def to_keras(net: MLP, path: str | os.PathLike[str]) -> Conversion:
    """Write a network's parameters to a Keras 3 weight file, whole or not at all.

    ``model.load_weights(path)`` takes it for a model of ``Dense`` layers with the same sizes and biases; dropout and
    activation layers may lie between them.

    Parameters
    ----------
    net : MLP
        The network. Its parameters must be finite. Of a tied layer the file has a copy of the transpose.
    path : str or path-like
        Where to write; it must end in ``.weights.h5``, or Keras would not read it. The folder must exist; an existing
        file is replaced as `MLP.save` replaces it.

    Returns
    -------
    Conversion
        The path; a line for each array, and for what the file has no place for: activations, loss, penalties.

    Raises
    ------
    InvalidArgumentError
        If a parameter is not finite or the path ends otherwise.
    OSError
        If the file cannot be written; the old file, if any, is then still there.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import mlpkit
    >>> net = mlpkit.MLP([mlpkit.Input(3), mlpkit.Dense(2, "tanh"), mlpkit.Dense(1, "identity")], seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "net.weights.h5")
    ...     mapped = to_keras(net, path).mapped
    ...     same = from_keras(path, activations=["tanh", "identity"]).result
    >>> mapped[2]
    'W^(2) (1, 2) -> layers/dense_1/vars/0, transposed'
    >>> bool((same.theta == net.theta).all())
    True
    """
    text = path_text(path)
    check_exportable(net)
    if not text.endswith(_SUFFIX):
        raise InvalidArgumentError(f"path: expected a name that ends in {_SUFFIX}, found {shown(text)}")
    layers = ["layers/dense" if number == 0 else f"layers/dense_{number}" for number in range(net.n_layers - 1)]
    arrays, mapped = parameters_of(net, [(f"{layer}/vars/0", f"{layer}/vars/1") for layer in layers])
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name in ("", *layers):
            group = file.create_group(f"{name}/vars")
            group.attrs["name"] = name.rpartition("/")[2] or "sequential"
        for name, array in arrays.items():
            file[name] = array.T.astype(array.dtype.newbyteorder("<"), copy=False)
    replace_file(text, buffer.getbuffer())
    lines = [re.sub(r"(/vars/0)", r"\1, transposed", line) for line in mapped]
    return Conversion(text, (*lines, *left_out(net, "a weight file", activations=True)))


def from_keras(
    path: str | os.PathLike[str],
    *,
    activations: Sequence[str | Activation],
    loss: str | Loss = "squared_error",
    weight_decay: float = 0.0,
    order: Sequence[str] | None = None,
) -> Conversion:
    """Read a network of ``Dense`` layers from a Keras 3 weight file.

    Parameters
    ----------
    path : str or path-like
        The file, as ``model.save_weights("name.weights.h5")`` writes it. It is taken to be hostile.
    activations : sequence of str or Activation
        One for each Dense layer, in order, by mlpkit's names; see the module's heading.
    loss : str or Loss
        What the network is to be trained with; the module's heading has what corresponds to Keras's.
    weight_decay : float
        lambda of equation (8).
    order : sequence of str, optional
        The groups of the Dense layers, in the order in which they are applied, for instance
        ``["encoder/layers/dense", "layers/dense"]``; needed where it is not that of one chain ``layers/dense``,
        ``layers/dense_1``, .... With it you say what the model computes: layers without variables are then only listed.

    Returns
    -------
    Conversion
        The network, of the file's dtype; and a line for each array, each layer without variables, and the optimiser.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFormatError
        If the file is not understood; the message names the element and the reason.
    InvalidArgumentError
        If activations or order do not fit the file, or the order is needed and not given.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "net.weights.h5")
    ...     with h5py.File(path, "w") as file:
    ...         file["layers/dense/vars/0"] = np.ones((3, 2))
    ...     net, mapped = from_keras(path, activations=["leaky_relu(0.2)"])
    >>> net.layers
    (Input(3), Dense(2, 'leaky_relu(0.2)', bias=False))
    >>> mapped
    ('layers/dense/vars/0 (3, 2) float64 -> W^(1), transposed', 'layer 2 -> leaky_relu(0.2), as given')
    """
    text = path_text(path)
    with naming(text):
        _refuse_others(text)
        data = read_foreign(text)
        found = _read(data, text)
        names = _ordered(found, order)
        functions = given_activations(activations, len(names))
        lines = _account(found, functions, complete=order is None)
        stack = [_dense(name, found.layers[name]) for name in names]
        net, mapped = assemble(stack, functions, loss=loss, weight_decay=weight_decay, fail=refuse)
    given = [f"layer {number} -> {f.name}, as given" for number, f in enumerate(functions, start=2)]
    return Conversion(net, (*mapped, *given, *lines))


# ----------------------------------------------------------------------------------------- the file


class _Found(NamedTuple):
    """What a file holds: layers with variables and without, by their groups; and what was not looked into."""

    layers: dict[str, list[NDArray[Any]]]
    bare: list[str]
    left: list[str]


def _refuse_others(path: str) -> None:
    if path.endswith(".keras"):
        refuse("file", "a whole model, whose weights are model.weights.h5 in this zip archive: unpack and convert that")
    if path.endswith(".json"):
        refuse("file", f"expected one file of weights, not a model or a list of several: {_ADVICE}")
    refuse_pickle(path)


def _read(data: bytes, path: str) -> _Found:
    """Check a file and return what it holds."""
    refuse_pickle(path, data[:8])
    refuse_circles(data)
    found = _Found({}, [], [])
    image: Any = io.BytesIO(data)
    with opened(image) as file:
        reader = ForeignReader(file, data)
        members = reader.members("")
        if legacy := _LEGACY.intersection(members):
            refuse(f"/{min(legacy)}", f"a whole model or a file of Keras 2: {_ADVICE}")
        if "vars" in members and reader.members("/vars"):
            refuse("/vars", "variables of the model itself, beside those of its layers, are not understood")
        if "optimizer" in members:
            found.left.append("optimizer: its state -> not taken")
        for name in members:
            if name not in ("vars", "optimizer"):
                _visit(reader, f"/{name}", found, depth=1)
        reader.check_extents()
    return found


def _visit(reader: ForeignReader, element: str, found: _Found, depth: int) -> None:
    """Look into a group: a layer, a list of layers, or a model within the model."""
    if depth > _MAX_DEPTH:
        refuse(element, f"models within models, more than {_MAX_DEPTH // 2} deep")
    members, name = reader.members(element), element[1:]
    variables = reader.members(f"{element}/vars") if "vars" in members else []
    if variables != [str(i) for i in range(len(variables))] or len(variables) > 2:
        shape = f"found {len(variables)} variables, {', '.join(variables)!s:.80}"
        refuse(f"{element}/vars", f"expected a kernel, 0, and a bias, 1, as a Dense layer has them; {shape}")
    if variables:
        found.layers[name] = [reader.array(f"{element}/vars/{variable}") for variable in variables]
    inside = [member for member in members if member != "vars"]
    if variables and inside:
        refuse(f"{element}/{inside[0]}", "not part of a Dense layer")
    if "seed_generator" in inside:
        inside.remove("seed_generator")
        found.left.append(f"{name}/seed_generator: its state -> not taken")
    for member in inside:
        _visit(reader, f"{element}/{member}", found, depth + 1)
    if not variables and not inside:
        found.bare.append(name)


def _dense(name: str, arrays: list[NDArray[Any]]) -> Linear:
    kernel, bias = (*arrays, None)[:2]
    if kernel is None or kernel.ndim != 2:
        refuse(f"/{name}/vars/0", "expected the kernel of a Dense layer, a matrix")
    return Linear(f"{name}/vars/0", f"{name}/vars/1", kernel.T, bias, transposed=True)


# ----------------------------------------------------------------------------------------- its meaning


def _ordered(found: _Found, order: Sequence[str] | None) -> list[str]:
    """Return the groups of the Dense layers in the order in which they are applied."""
    names = list(found.layers)
    if not names:
        refuse("file", "there is no layer with variables in it")
    if order is not None:
        if isinstance(order, str) or sorted(order) != sorted(names):
            raise InvalidArgumentError(
                f"order must be a list of the file's layers, each once: {shown(sorted(names))}; found {shown(order)}"
            )
        return list(order)
    numbered = {"layers/dense" if number == 0 else f"layers/dense_{number}": number for number in range(len(names))}
    if set(names) != set(numbered):
        raise InvalidArgumentError(
            "order must be given: the layers with variables are not one chain layers/dense, layers/dense_1, ...; "
            f"found {shown(sorted(names))}"
        )
    return list(numbered)


def _account(found: _Found, functions: Sequence[Activation], *, complete: bool) -> list[str]:
    """Return a line for each layer without variables; refuse those not known, if the file is all there is to go by."""
    lines, n_activations = [], 0
    for name in found.bare:
        kind = re.sub(r"_[0-9]+$", "", name.rpartition("/")[2])
        if kind in _NOTHING:
            lines.append(f"{name} -> nothing, as at inference")
        elif kind in _ACTIVATIONS:
            n_activations += 1
            lines.append(f"{name} -> one of the activations given")
        elif complete:
            refuse(f"/{name}", f"a layer that is not understood (known without variables: {', '.join(_NOTHING)}, and "
                   f"activation layers: {', '.join(_ACTIVATIONS)})")  # fmt: skip
        else:
            lines.append(f"{name} -> nothing but what order and activations say")
    if complete and n_activations > sum(f is not known.identity for f in functions):
        raise InvalidArgumentError(
            f"activations must include those of the file's {n_activations} activation layers; found "
            f"{shown([f.name for f in functions])}"
        )
    return [*lines, *found.left]
