"""ONNX export: the models predict as the networks do, in onnx's reference implementation and in onnxruntime.

Both run every model in both precisions: nothing is left out for want of a kernel.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
import reference_functions as functions

import mlpkit
from mlpkit import Dense, Input
from mlpkit.errors import InvalidArgumentError, MissingExtraError
from mlpkit.interop.onnx import to_onnx
from mlpkit.interop.onnx_activations import ACTIVATIONS

DTYPES = ("float64", "float32")
NAMES = [*(name for name in functions.FACTORIES if name != "top_k"), "leaky_relu(0.2)", "elu(0.5)"]


def by_reference(model, X):
    return onnx.reference.ReferenceEvaluator(model).run(None, {"X": X})[0]


def by_onnxruntime(model, X):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"X": X})[0]


RUNTIMES = [by_reference, by_onnxruntime]


def exported(net):
    """Return a network's model, checked in full: types and shapes are inferred too."""
    model, _ = to_onnx(net)
    onnx.checker.check_model(model, full_check=True)
    return model


def distance(a, b):
    """||a - b|| / (||a|| + ||b||), in float64; 0 where both are 0."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    scale = np.linalg.norm(a) + np.linalg.norm(b)
    return np.linalg.norm(a - b) / scale if scale else 0.0


# Random networks ----------------------------------------------------------------------------------


def random_network(rng, dtype):
    """Draw 1 to 4 layers with data; sums stay within a few units of 0, so that no layer blows up others' rounding."""
    layers = [Input(int(rng.integers(1, 13)))]
    for _ in range(rng.integers(1, 5)):
        number, units, tied_to = len(layers), int(rng.integers(1, 13)), None
        if number > 1 and layers[-1].tied_to is None and rng.random() < 0.3:
            units, tied_to = layers[-2].units, number - 1
        name = str(rng.choice([*NAMES, "top_k(2)"]))
        layers.append(Dense(units, name, bias=bool(rng.random() < 0.7), tied_to=tied_to))
    net = mlpkit.MLP(layers, dtype=dtype, seed=0)
    X = rng.uniform(-1.5, 1.5, (20, net.sizes[0])).astype(dtype)
    a = X.astype(np.float64)
    for W, b, layer in zip(net.weights, net.biases, net.layers[1:], strict=True):
        if layer.tied_to is None:
            W[:] = rng.normal(size=W.shape)
            W *= rng.uniform(0.5, 3.0) / max(np.abs(a @ W.T).max(), 1e-3)
        b[:] = rng.uniform(-0.5, 0.5, b.shape)
        z = a @ W.T.astype(np.float64) + (b if layer.bias else 0.0)
        a = functions.activation(layer.activation.name).f(z)
    return net, X


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("part", range(4))
def test_random_networks_predict_the_same(dtype, part):
    """25 networks each, 200 in all.

    A sum of n products is off by eps sqrt(n) or so in the norm; the layers before and after it hardly count, since
    these networks do not blow up what comes in.
    """
    rng = np.random.default_rng([part, DTYPES.index(dtype)])
    for _ in range(25):
        net, X = random_network(rng, dtype)
        model, expected = exported(net), net.predict(X)
        bound = 2 * np.finfo(dtype).eps * np.sqrt(max(net.sizes[:-1]))
        for run in RUNTIMES:
            found = run(model, X)
            assert found.dtype == dtype
            assert found.shape == expected.shape
            assert distance(found, expected) <= bound, f"{run.__name__}: {net}"


# Each activation by itself ------------------------------------------------------------------------


def test_every_activation_of_mlpkit_is_there():
    own = {name for name in mlpkit.activations.names() if mlpkit.activations.get(name).builtin}
    assert {functions.parse(name)[0] for name in own} | {"top_k"} == set(ACTIVATIONS) == set(functions.FACTORIES)


def unit(name, dtype, n=1):
    """Return a network whose output is f(x): weights 1, no biases."""
    net = mlpkit.MLP([Input(n), Dense(n, name, bias=False)], dtype=dtype)
    net.weights[0][:] = np.eye(n)
    return net


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "softmax"])
def test_activations_keep_their_digits_over_the_whole_range(name, dtype):
    """Relative error, element by element, beside what a rounding of z itself amounts to: eps |z f'(z)|."""
    magnitudes = np.concatenate(
        [[0.0], np.geomspace(1e-12, 1.0, 60), np.linspace(1.0, 150.0, 300), [700.0, 745.0, 1e4]]
    )
    X = np.concatenate([-magnitudes, magnitudes]).astype(dtype)[:, np.newaxis]
    net, f = unit(name, dtype), functions.activation(name)
    model, expected = exported(net), net.predict(X).astype(np.float64)
    z, eps, tiny = X.astype(np.float64), np.finfo(dtype).eps, np.finfo(dtype).tiny
    with np.errstate(over="ignore", invalid="ignore"):
        condition = np.nan_to_num(np.abs(z * f.first(z)), posinf=0.0)
        for run in RUNTIMES:
            found = run(model, X).astype(np.float64)
            finite = np.isfinite(expected)
            assert name == "exp" or finite.all()
            np.testing.assert_array_equal(found[~finite], expected[~finite])
            error = np.abs(found - expected)[finite]
            bound = (8 * eps * np.abs(expected) + 4 * eps * condition + 2 * tiny)[finite]
            worst = np.argmax(error / bound)
            assert error[worst] <= bound[worst], (run.__name__, z[finite][worst], found[finite][worst])


@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_over_the_whole_range(dtype, run):
    rows = [[1e4, -1e4, 0.0, 1.0], [-1e4, -1e4, -1e4, -1e4], [0.0, -30.0, -60.0, -80.0], [1e4, 1e4, 9990.0, 1e4]]
    X = np.array(rows, dtype)
    net = unit("softmax", dtype, 4)
    found = run(exported(net), X)
    np.testing.assert_allclose(found, net.predict(X), rtol=8 * np.finfo(dtype).eps, atol=np.finfo(dtype).tiny)


@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_top_k_lets_the_first_of_equal_ones_pass(dtype, run):
    rows = [[1, 1, 1, 1], [0, 2, 1, 2], [-3, -1, -1, -1], [1e4, -1e4, 1e4, 1e4], [0, 0, -1, 0], [5, 4, 3, 2]]
    X = np.array(rows, dtype)
    for k in (2, 9):
        net = unit(f"top_k({k})", dtype, 4)
        found = run(exported(net), X)
        np.testing.assert_array_equal(found, net.predict(X))
        assert found[0].tolist() == ([1, 1, 0, 0] if k == 2 else [1, 1, 1, 1])


# Layers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tied_layers_share_one_initializer(dtype, run):
    layers = [Input(5), Dense(3, "sigmoid"), Dense(2, "tanh"), Dense(3, "tanh", tied_to=2), Dense(5, "tanh", tied_to=1)]
    net = mlpkit.MLP(layers, dtype=dtype, seed=1)
    net.biases[3][:] = [0.1, 0.2, 0.3, 0.4, 0.5]
    model, mapped = to_onnx(net)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer if tensor.name[0] in "Wb"}
    assert shapes == {"W1": (3, 5), "b1": (3,), "W2": (2, 3), "b2": (2,), "b3": (3,), "b4": (5,)}
    assert "layer 5: W^(4) (5, 3) = transpose of W^(1), b^(4) -> Gemm with W1, b4" in mapped
    X = np.linspace(-1, 1, 35).reshape(7, 5).astype(dtype)
    assert distance(run(model, X), net.predict(X)) < 4 * np.finfo(dtype).eps


@pytest.mark.parametrize("run", RUNTIMES)
def test_layers_without_bias_and_any_number_of_rows(run):
    net = mlpkit.MLP([Input(4), Dense(3, "tanh", bias=False), Dense(2, "identity", bias=False)], seed=2)
    model = exported(net)
    assert [len(node.input) for node in model.graph.node if node.op_type == "Gemm"] == [2, 2]
    for m in (0, 1, 33):
        X = np.linspace(-1, 1, 4 * m).reshape(m, 4)
        found = run(model, X)
        assert found.shape == (m, 2)
        assert distance(found, net.predict(X) if m else found) < 4 * np.finfo(np.float64).eps


def test_the_shape_of_the_model():
    net = mlpkit.MLP([Input(4), Dense(3, "identity"), Dense(2, "gelu"), Dense(2, "softmax")], "cross_entropy", seed=0)
    model = exported(net)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 13)]
    assert (model.ir_version, model.producer_name, model.producer_version) == (7, "mlpkit", mlpkit.__version__)
    for ends, name, units in ((model.graph.input, "X", 4), (model.graph.output, "h", 2)):
        (end,) = ends
        assert end.name == name
        assert end.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE
        assert [d.dim_param or d.dim_value for d in end.type.tensor_type.shape.dim] == ["batch", units]
    names = [name for node in model.graph.node for name in node.output]
    assert len(set(names)) == len(names)
    assert {"a2", "a3", "h"} <= set(names)


# What is kept, what is refused ----------------------------------------------------------------------


def test_what_training_needs_is_kept_and_listed():
    sparsity = mlpkit.KLSparsity(rho=0.05, beta=3.0)
    layers = [
        Input(3, noise=mlpkit.MaskingNoise(0.3)),
        Dense(2, "leaky_relu(0.2)", weight_decay=0.5, init="he_normal"),
        Dense(2, "sigmoid", sparsity=sparsity),
        Dense(1, "sigmoid"),
    ]
    net = mlpkit.MLP(layers, loss="binary_cross_entropy", weight_decay=1e-4, seed=7)
    net.metadata["note"] = "grün"
    net.provenance = {"optimizer": "LBFGS()"}
    model, mapped = to_onnx(net)
    kept = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert set(kept) == {"mlpkit.config", "mlpkit.metadata", "mlpkit.provenance"}
    assert kept["mlpkit.metadata"] == {"note": "grün"}
    assert kept["mlpkit.provenance"] == net.provenance
    again = mlpkit.MLP.from_config(kept["mlpkit.config"])
    assert again.config() == net.config()
    assert list(mapped) == [
        "Input(3) -> input X (batch, 3), float64",
        "layer 2: W^(1) (2, 3), b^(1) -> Gemm with W1, b1",
        "layer 2: leaky_relu(0.2) -> Greater, Mul, Where",
        "layer 3: W^(2) (2, 2), b^(2) -> Gemm with W2, b2",
        "layer 3: sigmoid -> Abs, Neg, Exp, Less, Where, Add, Div",
        "layer 4: W^(3) (1, 2), b^(3) -> Gemm with W3, b3",
        "layer 4: sigmoid -> Abs, Neg, Exp, Less, Where, Add, Div",
        "output -> output h (batch, 1), float64",
        "loss binary_cross_entropy -> mlpkit.config in metadata_props",
        "weight decay 0.0001 -> mlpkit.config in metadata_props",
        "layer 1: MaskingNoise(fraction=0.3) -> mlpkit.config in metadata_props",
        "layer 2: weight decay 0.5 -> mlpkit.config in metadata_props",
        "layer 2: init 'he_normal' -> mlpkit.config in metadata_props",
        "layer 3: KLSparsity(rho=0.05, beta=3.0) -> mlpkit.config in metadata_props",
        "seed 7 -> mlpkit.config in metadata_props",
        "net.metadata -> mlpkit.metadata in metadata_props",
        "net.provenance -> mlpkit.provenance in metadata_props",
    ]


def test_noise_is_no_part_of_the_model():
    net = mlpkit.MLP([Input(3, noise=mlpkit.MaskingNoise(0.5)), Dense(2, "tanh")], seed=0)
    X = np.ones((4, 3))
    assert distance(by_onnxruntime(exported(net), X), net.predict(X)) < 4 * np.finfo(np.float64).eps


def test_activations_of_the_users_own_are_refused(tmp_path):
    swish = mlpkit.activations.Activation("swish_of_mine", lambda z: z * z)
    impostor = mlpkit.activations.Activation("sigmoid", lambda z: z)  # never registered: a name alone proves nothing
    for plugin in (swish, impostor):
        for layers in ([Dense(2, plugin)], [Dense(2, "tanh"), Dense(1, plugin), Dense(1, "tanh")]):
            net = mlpkit.MLP([Input(2), *layers])
            number = 2 if len(layers) == 1 else 3
            with pytest.raises(InvalidArgumentError, match=f"found '{plugin.name}' at layer {number}"):
                to_onnx(net, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == []


def test_other_arguments_that_are_refused(tmp_path):
    net = mlpkit.MLP([Input(2), Dense(1, "tanh")])
    with pytest.raises(InvalidArgumentError, match="net must be an MLP; found str"):
        to_onnx("model.h5")
    with pytest.raises(InvalidArgumentError, match="path: expected a str or path-like, found int"):
        to_onnx(net, 3)
    with pytest.raises(InvalidArgumentError, match="folder"):
        to_onnx(net, tmp_path)
    net.metadata["a"] = {1, 2}
    with pytest.raises(InvalidArgumentError, match=r"net\.metadata: expected values that JSON can hold"):
        to_onnx(net)


def test_more_than_a_file_holds_is_refused():
    config = mlpkit.MLP([Input(1), Dense(1, "tanh")]).config()
    config["layers"][0]["units"] = config["layers"][1]["units"] = 2**14
    net = mlpkit.MLP.from_config(config)  # of zeros, which take no memory until they are read
    with pytest.raises(InvalidArgumentError, match=r"less than 2 GiB of parameters.*found 2147614720 bytes"):
        to_onnx(net)


def test_without_onnx_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"mlpkit\[onnx\]"):
        to_onnx(mlpkit.MLP([Input(2), Dense(1, "tanh")]))


# The file -----------------------------------------------------------------------------------------


def test_the_file_is_the_model_and_the_same_each_time(tmp_path):
    net = mlpkit.MLP([Input(3), Dense(2, "silu"), Dense(1, "identity")], dtype="float32", seed=0)
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    model, _ = to_onnx(net, first)
    to_onnx(net, str(second))
    assert first.read_bytes() == second.read_bytes()
    assert onnx.load(first) == model
    X = np.linspace(-1, 1, 6).reshape(2, 3).astype(np.float32)
    session = onnxruntime.InferenceSession(first, providers=["CPUExecutionProvider"])
    assert distance(session.run(["h"], {"X": X})[0], net.predict(X)) < 4 * np.finfo(np.float32).eps


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    net = mlpkit.MLP([Input(3), Dense(1, "tanh")], seed=0)
    path = tmp_path / "model.onnx"
    to_onnx(net, path)
    old = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    net.theta = np.ones(4)
    with pytest.raises(OSError, match=r"cannot save \(No space left on device\); the file there is as it was"):
        to_onnx(net, path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["model.onnx"]
