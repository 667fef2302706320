r"""safetensors files: a network's parameters under the names that PyTorch gives them, and back.

The tensors are called as in the state dict of an ``nn.Sequential`` of linear modules and activations, ``0.weight``,
``0.bias``, ``2.weight``, ..., so that a user of PyTorch loads them into such a module, for instance that of
`mlpkit.interop.to_torch`, with ``module.load_state_dict(safetensors.torch.load_file(path))``. The file's own metadata
has one entry beside them, ``mlpkit``, JSON of the form ::

    {"version": "1.0", "config": net.config(), "metadata": net.metadata, "provenance": net.provenance}

from which `from_safetensors` makes the whole network again. Other programs' files have no activations; the caller
gives them. Pickles (``.pt``, ``.pth``, ``.bin``, ...) are refused: they can run code.

**What a file cannot do.** It is read once into memory, at most 64 GiB of it and 8 MiB of header; the header is checked
before anything is made of it: JSON without repeated keys, float64 or float32 throughout, no tensor that is not the
weight or bias of a linear module. The ``safetensors`` package then checks that the tensors lie in the file one behind
another without gaps. Shapes must chain and numbers be finite. Nothing is executed and no other file opened.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit.activations import Activation
from mlpkit.checks import shown
from mlpkit.durable import path_text, replace_file
from mlpkit.errors import InvalidArgumentError, ModelFormatError, import_extra
from mlpkit.interop.conversion import Conversion
from mlpkit.interop.dense_stack import (
    Linear,
    assemble,
    check_exportable,
    given_activations,
    parameters_of,
    sequential_keys,
)
from mlpkit.interop.foreign_file import read_foreign, refuse_pickle
from mlpkit.losses import Loss
from mlpkit.mlp import MLP
from mlpkit.model_config import build, check_registered, config_to_save, parameter_shapes
from mlpkit.strict_hdf5 import naming, refuse
from mlpkit.strict_json import parse_json, to_json

__all__ = ["from_safetensors", "to_safetensors"]

_VERSION = "1.0"
_MAX_HEADER_BYTES = 8 * 1024**2
_DTYPES = {"F64": "float64", "F32": "float32"}
_KEYS = ("version", "config", "metadata", "provenance")
_OURS = "__metadata__: mlpkit"


def to_safetensors(net: MLP, path: str | os.PathLike[str]) -> Conversion:
    """Write a network to a safetensors file, whole or not at all.

    Parameters
    ----------
    net : MLP
        The network. Its parameters must be finite. Of a tied layer the file has a copy of the transpose, and its
        configuration says what it is tied to.
    path : str or path-like
        Where to write. The folder must exist; an existing file is replaced as `MLP.save` replaces it.

    Returns
    -------
    Conversion
        The path, and a line for each tensor.

    Raises
    ------
    InvalidArgumentError
        If a parameter is not finite, or the configuration and metadata are nothing that can be read again.
    OSError
        If the file cannot be written; the old file, if any, is then still there.
    MissingExtraError
        If safetensors is not installed.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import mlpkit
    >>> net = mlpkit.MLP([mlpkit.Input(3), mlpkit.Dense(2, "tanh"), mlpkit.Dense(1, "identity")], seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "model.safetensors")
    ...     mapped = to_safetensors(net, path).mapped
    ...     same = from_safetensors(path).result
    >>> mapped[2]
    'W^(2) (1, 2) -> 2.weight'
    >>> bool((same.theta == net.theta).all())
    True
    """
    text = path_text(path)
    check_exportable(net)
    _refuse_name(text)
    package = import_extra("safetensors.numpy", extra="safetensors")
    config = json.loads(config_to_save(net))
    document = {"version": _VERSION, "config": config, "metadata": net.metadata, "provenance": net.provenance}
    arrays, mapped = parameters_of(net, _names(net))
    metadata = {"mlpkit": to_json(document, "net").decode()}
    # One key of metadata: the package writes several in an order of its own, and the same network would give other
    # bytes each time.
    replace_file(text, package.save(arrays, metadata=metadata))
    return Conversion(text, (*mapped, "configuration, metadata, provenance -> __metadata__: mlpkit"))


def from_safetensors(
    path: str | os.PathLike[str],
    *,
    activations: Sequence[str | Activation] | None = None,
    loss: str | Loss | None = None,
    weight_decay: float | None = None,
    order: Sequence[str] | None = None,
) -> Conversion:
    """Read a network from a safetensors file: one that `to_safetensors` wrote, or the state dict of linear modules.

    Parameters
    ----------
    path : str or path-like
        The file. It is taken to be hostile; see the module's heading.
    activations : sequence of str or Activation, optional
        For a file of another program, one for each linear module, in order; a file of mlpkit's has its own.
    loss : str or Loss, optional
        For a file of another program; ``"squared_error"`` if None.
    weight_decay : float, optional
        lambda, for a file of another program; 0 if None.
    order : sequence of str, optional
        For a file of another program, what its linear modules are called, in the order in which they are applied: of
        ``fc1.weight`` that is ``fc1``. Not needed where the names are those that `nn.Sequential` gives, numbers below
        one common name.

    Returns
    -------
    Conversion
        The network, and a line for each tensor.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFormatError
        If the file is not understood; the message names the element and the reason.
    InvalidArgumentError
        If something is given that the file says otherwise, or is not given that it does not say.
    MissingExtraError
        If safetensors is not installed.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from safetensors.numpy import save_file
    >>> tensors = {"fc.weight": np.ones((2, 3)), "fc.bias": np.zeros(2), "out.weight": np.ones((1, 2))}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "other.safetensors")
    ...     save_file(tensors, path)
    ...     net, mapped = from_safetensors(path, activations=["relu", "identity"], order=["fc", "out"])
    >>> net.layers
    (Input(3), Dense(2, 'relu'), Dense(1, 'identity', bias=False))
    >>> mapped[0]
    'fc.weight (2, 3) float64 -> W^(1)'
    """
    text = path_text(path)
    with naming(text):
        refuse_pickle(text)
        tensors, metadata = _read(read_foreign(text), text)
        if "mlpkit" in metadata:
            net, mapped = _own(tensors, metadata["mlpkit"])
            others = {"activations": activations, "loss": loss, "weight_decay": weight_decay}
            _check_agreement(net, order, others)
        else:
            stack = _stack(tensors, order)
            net, mapped = assemble(
                stack,
                given_activations(activations, len(stack)),
                loss="squared_error" if loss is None else loss,
                weight_decay=0.0 if weight_decay is None else weight_decay,
                fail=refuse,
            )
    mapped += [f"__metadata__: {key!r:.80} -> not taken" for key in metadata if key != "mlpkit"]
    return Conversion(net, tuple(mapped))


def _refuse_name(path: str) -> None:
    """Refuse to write under a name that says pickle, under which neither we nor others would read it."""
    try:
        refuse_pickle(path)
    except ModelFormatError:
        raise InvalidArgumentError(
            f"path: expected a name that ends in .safetensors, found that of a pickle: {shown(path)}"
        ) from None


def _names(net: MLP) -> list[tuple[str, str]]:
    return [(f"{key}.weight", f"{key}.bias") for key in sequential_keys(net)]


# ----------------------------------------------------------------------------------------- the file


def _read(data: bytes, path: str) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Check a file and return its tensors and its metadata."""
    package = import_extra("safetensors", extra="safetensors")
    tensors = import_extra("safetensors.numpy", extra="safetensors")
    length = int.from_bytes(data[:8], "little")
    if data[8:9] != b"{" or length > len(data) - 8:
        refuse_pickle(path, data[:8])
        refuse("header", "not a safetensors file (it does not begin with the length of a header in JSON)")
    if length > _MAX_HEADER_BYTES:
        refuse("header", f"expected at most {_MAX_HEADER_BYTES} bytes, found {length}")
    header = parse_json(data[8 : 8 + length], "header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        refuse("__metadata__", "expected an object of texts")
    for name, entry in header.items():
        found = entry.get("dtype") if isinstance(entry, dict) else None
        if found not in _DTYPES:
            refuse(f"{name:.80}", f"expected dtype F64 or F32, found {found!r:.80}")
    try:
        return tensors.load(data), metadata
    except package.SafetensorError as error:
        raise ModelFormatError(f"header: {error!s:.400}") from error


# ----------------------------------------------------------------------------------------- files of mlpkit's


def _own(tensors: dict[str, NDArray[Any]], raw: str) -> tuple[MLP, list[str]]:
    """Return the network that a file describes in its metadata."""
    document = parse_json(raw.encode(), _OURS)
    if not isinstance(document, dict):
        refuse(_OURS, f"expected an object, found {type(document).__name__}")
    if document.get("version") != _VERSION:
        refuse(f"{_OURS}: version", f"this mlpkit reads {_VERSION}, found {document.get('version')!r:.80}")
    for key in {*_KEYS, *document}:
        if key not in document or key not in _KEYS:
            refuse(f"{_OURS}: {key:.80}", "missing" if key in _KEYS else "not part of the format")
    config, metadata, provenance = (document[key] for key in _KEYS[1:])
    if not isinstance(metadata, dict) or not isinstance(provenance, dict | None):
        refuse(_OURS, "expected metadata to be an object, and provenance an object or null")
    dtype, shapes = parameter_shapes(config)
    check_registered(config)
    # Nothing of the size that the configuration states is made before the tensors are seen to have it.
    found = sum(math.prod(array.shape) for array in tensors.values())
    if found < sum(shape.n_out * shape.n_in for shape in shapes):
        refuse(f"{_OURS}: config", "stands for more parameters than the file has")
    net, _ = build(config, newer=False)
    expected, _ = parameters_of(net, _names(net))
    for name in sorted({*expected, *tensors}):
        if name not in tensors or name not in expected:
            refuse(f"{name:.80}", "missing" if name in expected else "not part of the network that the file describes")
        array, wanted = tensors[name], expected[name]
        if (array.shape, array.dtype.name) != (wanted.shape, dtype):
            refuse(name, f"expected {dtype} of shape {wanted.shape}, found {array.dtype} of shape {array.shape!s:.80}")
        if not np.isfinite(array).all():
            refuse(name, "expected finite numbers")
    mapped = []
    parts = list(zip(_names(net), shapes, net.weights, net.biases, strict=True))
    for number, ((W_name, b_name), shape, W, b) in enumerate(parts, start=1):
        if shape.has_W:
            W[:] = tensors[W_name]
            mapped.append(f"{W_name} {W.shape} {dtype} -> W^({number})")
        if shape.has_b:
            b[:] = tensors[b_name]
            mapped.append(f"{b_name} {b.shape} {dtype} -> b^({number})")
    for number, ((W_name, _), shape, W, _) in enumerate(parts, start=1):
        if not shape.has_W:
            if not np.array_equal(W, tensors[W_name]):
                refuse(W_name, f"must be the transpose of the W that W^({number}) is tied to, and is not")
            mapped.append(f"{W_name} {W.shape} {dtype} -> W^({number}), tied")
    net.metadata, net.provenance = metadata, provenance
    return net, [*mapped, f"{_OURS} -> configuration, metadata, provenance"]


def _check_agreement(net: MLP, order: Any, given: dict[str, Any]) -> None:
    """Refuse what is given beside a file that says it all, unless it says the same."""
    if order is not None:
        raise InvalidArgumentError(f"order must be None for a file of mlpkit's, which has its own; found {order!r}")
    if given["activations"] is not None:
        found = given_activations(given["activations"], net.n_layers - 1)
        given["activations"] = [activation.name for activation in found]
    if isinstance(given["loss"], Loss):
        given["loss"] = given["loss"].name
    own = {
        "activations": [layer.activation.name for layer in net.layers[1:]],  # type: ignore[union-attr]
        "loss": net.loss.name,
        "weight_decay": net.weight_decay,
    }
    for name, value in given.items():
        if value is not None and value != own[name]:
            raise InvalidArgumentError(
                f"{name} must be None for a file of mlpkit's, which has its own ({own[name]!r}); found {shown(value)}"
            )


# ----------------------------------------------------------------------------------------- files of others'


def _stack(tensors: dict[str, NDArray[Any]], order: Sequence[str] | None) -> list[Linear]:
    """Return the linear modules of a state dict in the order in which they are applied."""
    modules: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in tensors.items():
        module, _, part = name.rpartition(".")
        if part not in ("weight", "bias"):
            refuse(f"{name:.80}", "not understood: expected the weight or bias of a linear module")
        modules.setdefault(module, {})[part] = array
    if not modules:
        refuse("header", "there is no tensor in the file")
    stack = []
    for module in _ordered(list(modules), order):
        prefix = f"{module}." if module else ""
        parts = modules[module]
        if "weight" not in parts:
            refuse(f"{prefix:.80}weight", "missing")
        W, b = parts["weight"], parts.get("bias")
        stack.append(Linear(f"{prefix:.80}weight", f"{prefix:.80}bias", W, b))
    return stack


def _ordered(modules: list[str], order: Sequence[str] | None) -> list[str]:
    """Return the modules in the order given, or in that of the numbers in their names, if it is clear what it is."""
    if order is not None:
        if isinstance(order, str) or sorted(order) != sorted(modules):
            raise InvalidArgumentError(
                f"order must be a list of the file's modules, each once: {shown(sorted(modules))}; found {shown(order)}"
            )
        return list(order)
    if len(modules) == 1:
        return modules
    parts = [module.split(".") for module in modules]
    common = 0
    while all(len(names) > common and names[common] == parts[0][common] for names in parts):
        common += 1
    if not all(
        re.fullmatch(r"(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8}))*", ".".join(names[common:])) for names in parts
    ):
        raise InvalidArgumentError(
            "order must be given: the names in the file do not say in which order the modules are applied, "
            f"as those of an nn.Sequential would; found {shown(sorted(modules))}"
        )
    return sorted(modules, key=lambda module: [int(number) for number in module.split(".")[common:]])
