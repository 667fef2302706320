"""Networks as ONNX models: what other systems run for inference.

The model is a chain of ``Gemm`` nodes and the activations of `mlpkit.interop.onnx_activations`, of opset 13 and IR
version 7 (2020): nothing newer is needed, and whatever reads ONNX reads that. It has one input ``X`` of shape
(batch, s_1) and one output ``h`` of shape (batch, s_{n_l}), both of the network's dtype, where batch is any number.
``W1``, ``b1``, ... are W^(1), b^(1), ... of the notes, W^(l) of shape (s_{l+1}, s_l); a layer that is tied to another
uses the other's W. The hidden activations a^(2), ... go by the names ``a2``, ....
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit import activations
from mlpkit.activations import Activation
from mlpkit.durable import path_text, replace_file
from mlpkit.errors import InvalidArgumentError, import_extra
from mlpkit.interop.conversion import Conversion
from mlpkit.interop.onnx_activations import ACTIVATIONS
from mlpkit.layers import Dense, Input, ParameterBlock, parameter_blocks
from mlpkit.mlp import MLP, check_network
from mlpkit.model_config import to_json
from mlpkit.system import package_version

__all__ = ["to_onnx"]

_OPSET, _IR = 13, 7
# Protocol buffers, in which ONNX files are written, hold less than 2 GiB; all but the parameters takes less than this.
_MAX_PARAMETER_BYTES = 2**31 - 2**24


def to_onnx(net: MLP, path: str | os.PathLike[str] | None = None) -> Conversion:
    """Make an ONNX model that predicts as a network does.

    What training alone needs (loss, weight decay, penalties, noise, initialisers, seed) is no part of inference. It is
    kept in the model's ``metadata_props``: the network's ``config()`` as JSON under the key ``mlpkit.config``, and the
    user's metadata and the provenance, where there are any, under ``mlpkit.metadata`` and ``mlpkit.provenance``.

    Parameters
    ----------
    net : MLP
        The network.
    path : str or path-like, optional
        Where to write the model. The file appears there whole or not at all, as with `MLP.save`.

    Returns
    -------
    Conversion
        ``result``, the ``onnx.ModelProto``, and ``mapped``.

    Raises
    ------
    InvalidArgumentError
        If an activation is not mlpkit's own (ONNX has no place for a function of yours), the parameters take 2 GiB,
        which is more than ONNX holds, or the network's metadata is nothing that JSON can hold.
    OSError
        If the file cannot be written.
    MissingExtraError
        If onnx is not installed.

    Examples
    --------
    >>> import mlpkit
    >>> net = mlpkit.MLP([mlpkit.Input(3), mlpkit.Dense(2, "tanh"), mlpkit.Dense(1, "identity")], seed=0)
    >>> model, mapped = to_onnx(net)
    >>> [node.op_type for node in model.graph.node]
    ['Gemm', 'Tanh', 'Gemm']
    >>> for line in mapped:
    ...     print(line)
    Input(3) -> input X (batch, 3), float64
    layer 2: W^(1) (2, 3), b^(1) -> Gemm with W1, b1
    layer 2: tanh -> Tanh
    layer 3: W^(2) (1, 2), b^(2) -> Gemm with W2, b2
    layer 3: identity -> nothing
    output -> output h (batch, 1), float64
    loss squared_error -> mlpkit.config in metadata_props
    seed 0 -> mlpkit.config in metadata_props
    """
    check_network(net)
    target = None if path is None else path_text(path)
    if net.theta.nbytes > _MAX_PARAMETER_BYTES:
        raise InvalidArgumentError(
            f"net: expected less than 2 GiB of parameters, which is what an ONNX file holds; found {net.theta.nbytes} "
            "bytes"
        )
    graph = _Graph(import_extra("onnx", extra="onnx"), net.dtype)
    mapped = [f"Input({net.sizes[0]}) -> input X (batch, {net.sizes[0]}), {net.dtype.name}"]
    name = "X"
    for number, (block, layer) in enumerate(zip(parameter_blocks(net.layers), net.layers[1:], strict=True), start=2):
        assert isinstance(layer, Dense)
        graph.scope = f"layer{number}"
        z, line = _weighted_sum(graph, net, number, block, name)
        n_before = len(graph.nodes)
        function, parameters = _find(layer, number)
        function(graph, z, *parameters)
        kinds = dict.fromkeys(node.op_type for node in graph.nodes[n_before:])
        name = "h" if number == net.n_layers else f"a{number}"
        graph.name_last_output(name)
        mapped += [line, f"layer {number}: {layer.activation.name} -> {', '.join(kinds) or 'nothing'}"]
    mapped.append(f"output -> output h (batch, {net.sizes[-1]}), {net.dtype.name}")
    mapped += [f"{what} -> mlpkit.{name} in metadata_props" for name, what in _kept(net)]
    properties = {"mlpkit.config": to_json(net.config(), "net").decode()}
    for name, value in (("metadata", net.metadata), ("provenance", net.provenance)):
        if value:
            properties[f"mlpkit.{name}"] = to_json(value, f"net.{name}").decode()
    model = graph.model(net, properties)
    if target is not None:
        replace_file(target, model.SerializeToString(deterministic=True))
    return Conversion(model, tuple(mapped))


def _weighted_sum(graph: _Graph, net: MLP, number: int, block: ParameterBlock, below: str) -> tuple[str, str]:
    """Add z = W a + b of a layer; return its name and the line that says so."""
    below_number, owner = number - 1, number - 1 if block.owner is None else block.owner + 1
    W, b = f"W{owner}", f"b{below_number}"
    what = f"W^({below_number}) ({block.n_out}, {block.n_in})"
    inputs = [W]
    if block.owner is None:
        graph.initializer(W, net.weights[below_number - 1])
    else:
        what += f" = transpose of W^({owner})"
    if block.end > block.b:
        graph.initializer(b, net.biases[below_number - 1])
        what += f", b^({below_number})"
        inputs.append(b)
    z = graph("Gemm", below, *inputs, transB=int(block.owner is None))
    return z, f"layer {number}: {what} -> Gemm with {', '.join(inputs)}"


def _find(layer: Dense, number: int) -> tuple[Any, list[float]]:
    """Return what makes a layer's activation, and its parameters."""
    activation: Activation = layer.activation
    base, _, rest = activation.name.partition("(")
    function = ACTIVATIONS.get(base) if activation.builtin else None
    if function is None:
        raise InvalidArgumentError(
            f"net: expected activations of mlpkit's own, for which ONNX has operators; found {activation.name!r} at "
            f"layer {number}"
        )
    family = getattr(activations, base)
    if isinstance(family, Activation):
        return function, []
    if not rest:
        return function, [parameter.default for parameter in family.__signature__.parameters.values()]
    parameters = [float(text) for text in rest.removesuffix(")").split(", ")]
    return function, [min(int(parameters[0]), layer.units)] if base == "top_k" else parameters


def _kept(net: MLP) -> Iterator[tuple[str, str]]:
    """Yield what is no part of inference: where it is kept, and what it is."""
    config = "config"
    yield config, f"loss {net.loss.name}"
    if net.weight_decay:
        yield config, f"weight decay {net.weight_decay:g}"
    for number, layer in enumerate(net.layers, start=1):
        if isinstance(layer, Input):
            if layer.noise is not None:
                yield config, f"layer {number}: {layer.noise!r}"
            continue
        if layer.weight_decay is not None:
            yield config, f"layer {number}: weight decay {layer.weight_decay:g}"
        for penalty in layer.penalties:
            yield config, f"layer {number}: {penalty!r}"
        if layer.init is not None:
            yield config, f"layer {number}: init {layer.init!r}"
    if net.seed is not None:
        yield config, f"seed {net.seed}"
    for name in ("metadata", "provenance"):
        if getattr(net, name):
            yield name, f"net.{name}"


class _Graph:
    """The nodes and initializers of a model in the making; see `mlpkit.interop.onnx_activations.Operator`."""

    def __init__(self, onnx: Any, dtype: np.dtype[Any]) -> None:
        self._onnx = onnx
        self._dtype = dtype
        self.double = dtype == np.float64
        self._initializers: dict[str, Any] = {}
        self._constants: dict[Any, str] = {}
        self.nodes: list[Any] = []
        self.scope = ""

    def __call__(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        name = f"{self.scope}/{kind}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        found = [value if isinstance(value, str) else self._constant(value) for value in inputs]
        self.nodes.append(self._onnx.helper.make_node(kind, found, names, name=name, **attributes))
        return names[0] if outputs == 1 else tuple(names)

    def _constant(self, value: Any) -> str:
        """Return the name of an initializer that holds a number of the network's dtype, or an array as it is."""
        with np.errstate(over="ignore"):  # infinite in float32, as it is for the engine
            array = value if isinstance(value, np.ndarray) else np.asarray(value, self._dtype)
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"c{len(self._constants)}"
            self.initializer(self._constants[key], array)
        return self._constants[key]

    def initializer(self, name: str, array: NDArray[Any]) -> None:
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        raw = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        self._initializers[name] = self._onnx.helper.make_tensor(name, kind, array.shape, raw, raw=True)

    def name_last_output(self, name: str) -> None:
        """Name what the last node makes, which nothing uses yet."""
        self.nodes[-1].output[0] = name

    def model(self, net: MLP, properties: dict[str, str]) -> Any:
        """Return the finished model."""
        helper = self._onnx.helper
        kind = helper.np_dtype_to_tensor_dtype(self._dtype)
        ends = [
            helper.make_tensor_value_info(name, kind, ["batch", units])
            for name, units in (("X", net.sizes[0]), ("h", net.sizes[-1]))
        ]
        graph = helper.make_graph(self.nodes, "mlpkit", ends[:1], ends[1:], list(self._initializers.values()))
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR,
            producer_name="mlpkit",
            producer_version=package_version("mlpkit"),
        )
        helper.set_model_props(model, properties)
        return model
