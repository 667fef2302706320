"""MATLAB's ``.mat`` files of version 5 to 7: a network as plain variables, and back.

`to_matlab` writes what a MATLAB or Octave program can use as it is::

    W1, b1, W2, b2, ...   W^(l) of shape (s_{l+1}, s_l); b^(l) as a column; double or single, as the network is
    sizes                 the row s_1, ..., s_{n_l}
    activations           a char matrix with a name in each row: strtrim(activations(1, :))
    loss                  char
    weight_decay          the row of each layer's lambda
    mlpkit                char, JSON: configuration, metadata and provenance, all that the others do not say

so that ``load model.mat; a = 1 ./ (1 + exp(-(W1 * x + b1)))`` goes on from there. `from_matlab` gives back the same
network, to the bit. Change W and b as you like; of the rest ``mlpkit`` is what counts, and variables that contradict it
are an error: ``clear mlpkit`` before you save, and they are taken by themselves.

Files of other programs hold W1, b1, ..., or, as the exercise of the notes, one vector in its order (see `notes_order`),
and seldom say what the activations are: the caller does.

Nothing but real arrays of numbers and of characters is accepted: no cells, structs, sparse matrices, objects or
functions, which are refused before they are read, and no variable that is not understood, unless the caller names it
as one to ignore. Files of version 7.3, which are HDF5 with conventions of MATLAB's own, are refused: ``save -v7``
writes the others.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mlpkit.activations import Activation
from mlpkit.checks import shown
from mlpkit.durable import path_text, replace_file
from mlpkit.errors import InvalidArgumentError
from mlpkit.interop.conversion import Conversion
from mlpkit.interop.dense_stack import check_exportable
from mlpkit.interop.foreign_file import read_foreign
from mlpkit.interop.mat_file import read_variables
from mlpkit.interop.matlab_foreign import SETTINGS, from_plain_variables
from mlpkit.layers import Dense
from mlpkit.losses import Loss
from mlpkit.mlp import MLP
from mlpkit.model_config import build, check_registered, config_to_save, parameter_shapes
from mlpkit.strict_hdf5 import naming, refuse
from mlpkit.strict_json import parse_json, to_json

__all__ = ["from_matlab", "to_matlab"]

_HEADER = b"MATLAB 5.0 MAT-file, written by mlpkit"  # in place of a date: the same network is the same bytes
_HEADER_BYTES = 116
_MOST_BYTES = 2**31 - 1  # of a variable
_PART = re.compile(r"[Wb][1-9][0-9]{0,5}")
_ALL = "mlpkit"  # the variable that says all that the others do not
_DOCUMENT = b'{"version": "%b", "config": %b, "metadata": %b, "provenance": %b}'
_VERSION = b"1.0"


def to_matlab(net: MLP, path: str | os.PathLike[str]) -> Conversion:
    """Write a network to a ``.mat`` file (of version 5, which MATLAB 5 to this day's reads), whole or not at all.

    Parameters
    ----------
    net : MLP
        The network; its parameters must be finite. Its activations, loss and penalties are written by name.
    path : str or path-like
        Where to write; an existing file is replaced.

    Returns
    -------
    Conversion
        The path, and a line for each variable.

    Raises
    ------
    InvalidArgumentError
        If a parameter is not finite, a matrix takes 2 GiB or more, or the metadata is nothing that JSON can hold.
    OSError
        If the file cannot be written; the old one, if any, is then still there.

    Examples
    --------
    >>> import tempfile
    >>> import mlpkit
    >>> net = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(3, "tanh"), mlpkit.Dense(1, "sigmoid")], seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path, mapped = to_matlab(net, folder + "/model.mat")
    ...     same, _ = from_matlab(path)
    >>> bool((same.theta == net.theta).all())
    True
    >>> mapped[:2]
    ('W^(1) (3, 2) -> W1', 'b^(1) (3,) -> b1, a column')
    """
    import scipy.io

    text = path_text(path)
    check_exportable(net)
    config = config_to_save(net)
    dense = [layer for layer in net.layers if isinstance(layer, Dense)]
    variables: dict[str, Any] = {}
    mapped: list[str] = []
    for number, (layer, W, b) in enumerate(zip(dense, net.weights, net.biases, strict=True), start=1):
        if W.nbytes > _MOST_BYTES:
            raise InvalidArgumentError(f"net: a variable takes at most {_MOST_BYTES} bytes, W^({number}) {W.nbytes}")
        variables[f"W{number}"] = W
        tie = f", the transpose of W^({layer.tied_to})" if layer.tied_to else ""
        mapped.append(f"W^({number}) {W.shape}{tie} -> W{number}")
        if layer.bias:
            variables[f"b{number}"] = b[:, np.newaxis]
            mapped.append(f"b^({number}) {b.shape} -> b{number}, a column")
    variables |= {
        "sizes": np.array(net.sizes, np.float64)[np.newaxis],
        "activations": np.array([layer.activation.name for layer in dense]),
        "loss": net.loss.name,
        "weight_decay": np.array(net.decays)[np.newaxis],
    }
    mapped += [f"{name} -> {name}" for name in ("sizes", "activations", "loss", "weight_decay")]
    metadata, provenance = (to_json(getattr(net, name), f"net.{name}") for name in ("metadata", "provenance"))
    variables[_ALL] = (_DOCUMENT % (_VERSION, config, metadata, provenance)).decode()
    mapped.append("all of config(), metadata and provenance -> mlpkit, JSON")
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, variables)
    content = buffer.getbuffer()
    content[:_HEADER_BYTES] = _HEADER.ljust(_HEADER_BYTES)
    replace_file(text, content)
    return Conversion(text, tuple(mapped))


def from_matlab(
    path: str | os.PathLike[str],
    *,
    activations: Sequence[str | Activation] | None = None,
    loss: str | Loss | None = None,
    weight_decay: float | None = None,
    sizes: Sequence[int] | None = None,
    vector: str = "theta",
    ignore: Iterable[str] = (),
) -> Conversion:
    """Read a network from a ``.mat`` file, our own or another program's.

    Parameters
    ----------
    path : str or path-like
        The file. Our own says everything itself, and none of the following may be given but `ignore`.
    activations : sequence of str or Activation, optional
        One for each layer after the input, where the file has no variable ``activations``.
    loss : str or Loss, optional
        Where the file has no variable ``loss``; ``"squared_error"`` if None.
    weight_decay : float, optional
        lambda, where the file has no variable ``weight_decay``; 0 if None.
    sizes : sequence of int, optional
        Units of each layer, the input first: needed for a vector in the exercise's order where the file has no variable
        ``sizes``.
    vector : str
        What that vector is called in the file; the exercise's result is ``opttheta``.
    ignore : iterable of str
        Variables that have nothing to do with the network.

    Returns
    -------
    Conversion
        The network, float64 for double and float32 for single, and a line for each thing that was mapped.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFormatError
        If the file is not one that can be read, holds a variable that is not understood or nothing that is a network,
        or contradicts itself. The message names the variable and the reason.
    InvalidArgumentError
        If an argument is missing that the file needs, or is given that the file answers itself.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np, scipy.io
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     scipy.io.savemat(folder + "/other.mat", {"W1": np.ones((1, 2)), "b1": [[0.5]], "patches": np.zeros((9, 9))})
    ...     net, mapped = from_matlab(folder + "/other.mat", activations=["sigmoid"], ignore=["patches"])
    >>> net
    MLP([Input(2), Dense(1, 'sigmoid')], loss='squared_error')
    >>> mapped[:2]
    ('W1 (1, 2) float64 -> W^(1)', 'b1 (1,) float64 -> b^(1)')
    """
    given = {"activations": activations, "loss": loss, "weight_decay": weight_decay, "sizes": sizes}
    if isinstance(ignore, str):
        raise InvalidArgumentError(f"ignore must be a list of names; found {ignore!r}")
    left_out = set(ignore)
    text = path_text(path)
    with naming(text):
        variables = read_variables(read_foreign(text), _kind_of(vector), left_out)
        for name, value in given.items():
            if value is not None and (name in variables or _ALL in variables):
                raise InvalidArgumentError(f"{name} must not be given: {text} says it itself; found {shown(value)}")
        net, mapped = _ours(variables) if _ALL in variables else from_plain_variables(variables, given, vector)
    return Conversion(net, (*mapped, *(f"{name} -> ignored, as asked" for name in sorted(left_out))))


def _kind_of(vector: str) -> Callable[[str], str | None]:
    def kind(name: str) -> str | None:
        if name == vector or _PART.fullmatch(name):
            return "parameters"
        return "text" if name == _ALL else SETTINGS.get(name)

    return kind


# ----------------------------------------------------------------------------------------- our own


def _ours(variables: dict[str, Any]) -> tuple[MLP, list[str]]:
    """Return the network that `to_matlab` wrote, with the parameters that are in the file now."""
    document = parse_json("\n".join(variables.pop(_ALL)).encode(), _ALL)
    if not isinstance(document, dict) or set(document) != {"version", "config", "metadata", "provenance"}:
        refuse(_ALL, "expected an object of version, config, metadata and provenance")
    if document["version"] != _VERSION.decode():
        refuse(_ALL, f"expected version {_VERSION.decode()}, found {shown(document['version'])}")
    for name, expected in (("metadata", dict), ("provenance", dict | None)):
        if not isinstance(document[name], expected):
            refuse(f"mlpkit: {name}", f"expected an object, found {shown(document[name])}")
    dtype, shapes = parameter_shapes(document["config"])
    wanted = {
        f"{symbol}{number}": (shape.n_out, shape.n_in) if symbol == "W" else (shape.n_out, 1)
        for number, shape in enumerate(shapes, start=1)
        for symbol in ("W", "b")
        if symbol == "W" or shape.has_b
    }
    for name in {name for name in variables if name not in SETTINGS} ^ set(wanted):
        refuse(name, "missing" if name in wanted else "the configuration in the variable mlpkit has no place for it")
    for name, shape in wanted.items():
        if variables[name].shape != shape or variables[name].dtype != dtype:
            found = f"{variables[name].dtype} {variables[name].shape}"
            refuse(name, f"the variable mlpkit says {dtype} {shape}, found {found}")
    check_registered(document["config"])
    net, _ = build(document["config"], newer=False)
    mapped = []
    for number, (layer, W, b) in enumerate(zip(net.layers[1:], net.weights, net.biases, strict=True), start=1):
        assert isinstance(layer, Dense)
        found = variables[f"W{number}"]
        if layer.tied_to is None:
            W[:] = found
        elif not np.array_equal(W, found):
            refuse(f"W{number}", f"expected the transpose of W{layer.tied_to}, which it is tied to")
        mapped.append(f"W{number} {found.shape} {dtype} -> W^({number})")
        if layer.bias:
            b[:] = variables[f"b{number}"][:, 0]
            mapped.append(f"b{number} {b.shape} {dtype} -> b^({number})")
    _check_agreement(variables, net)
    net.metadata, net.provenance = document["metadata"], document["provenance"]
    return net, [*mapped, "mlpkit -> layers, loss, weight decay, seed, metadata, provenance"]


def _check_agreement(variables: dict[str, Any], net: MLP) -> None:
    """Refuse plain variables that say otherwise than the configuration does."""
    dense = [layer for layer in net.layers if isinstance(layer, Dense)]
    expected: dict[str, list[Any]] = {
        "sizes": list(net.sizes),
        "weight_decay": net.decays,
        "activations": [layer.activation.name for layer in dense],
        "loss": [net.loss.name],
    }
    for name in expected.keys() & variables.keys():
        found = variables[name] if isinstance(variables[name], list) else variables[name].ravel().tolist()
        if found != expected[name]:
            refuse(
                name,
                f"{shown(found)} contradicts the variable mlpkit, which says {shown(expected[name])}: clear mlpkit "
                "before you save, if it is the others that count",
            )
