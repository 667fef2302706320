"""Keras weight files: those that Keras wrote, and those that it can read."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

import mlpkit
from mlpkit import InvalidArgumentError, ModelFormatError
from mlpkit.interop import from_keras, to_keras

FOLDER = Path(__file__).parent.parent / "data" / "keras"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
# Inputs and weights of ordinary size in at most 13 layers, by two libraries' elementary functions.
TOLERANCE = {"float64": 1e-13, "float32": 5e-6}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.weights.h5"


def network(dtype="float64"):
    net = mlpkit.MLP(
        [
            mlpkit.Input(4, noise=mlpkit.MaskingNoise(0.1)),
            mlpkit.Dense(3, "sigmoid", sparsity=mlpkit.KLSparsity(rho=0.1, beta=2.0)),
            mlpkit.Dense(5, "identity", bias=False),
            mlpkit.Dense(3, "tanh"),
            mlpkit.Dense(4, "identity", tied_to=1),
        ],
        weight_decay=0.25,
        dtype=dtype,
        seed=3,
    )
    net.biases[0][:] = 0.5
    return net


# ------------------------------------------------------------------------------------------- files that Keras wrote


@pytest.mark.parametrize("name", EXPECTED)
def test_files_of_keras_predict_as_keras_did(name):
    expected = EXPECTED[name]
    path = FOLDER / f"{name}.weights.h5"
    net, _ = from_keras(path, activations=expected["activations"], order=expected.get("order"))
    assert net.dtype == expected["dtype"]
    found, wanted = net.predict(expected["X"]), np.array(expected["predictions"])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE[net.dtype.name] * max(1, np.abs(wanted).max()))


def test_what_is_mapped_of_a_sequential_model():
    expected = EXPECTED["sequential"]
    assert from_keras(FOLDER / "sequential.weights.h5", activations=expected["activations"]).mapped == (
        "layers/dense/vars/0 (4, 5) float32 -> W^(1), transposed",
        "layers/dense/vars/1 (5,) float32 -> b^(1)",
        "layers/dense_1/vars/0 (5, 3) float32 -> W^(2), transposed",
        "layers/dense_2/vars/0 (3, 2) float32 -> W^(3), transposed",
        "layers/dense_2/vars/1 (2,) float32 -> b^(3)",
        "layer 2 -> tanh, as given",
        "layer 3 -> leaky_relu(0.3), as given",
        "layer 4 -> softmax, as given",
        "layers/dropout -> nothing, as at inference",
        "layers/leaky_re_lu -> one of the activations given",
        "optimizer: its state -> not taken",
    )


def test_nested_and_subclassed_models_need_the_order():
    for name in ("nested", "subclassed"):
        path, expected = FOLDER / f"{name}.weights.h5", EXPECTED[name]
        with pytest.raises(InvalidArgumentError, match="order must be given: the layers with variables are not one"):
            from_keras(path, activations=expected["activations"])
        for wrong in (expected["order"][:-1], [*expected["order"][:-1], "other"], expected["order"][0]):
            with pytest.raises(InvalidArgumentError, match="order must be a list of the file's layers, each once"):
                from_keras(path, activations=expected["activations"], order=wrong)
    mapped = from_keras(path, activations=expected["activations"], order=expected["order"]).mapped
    assert "flat -> nothing but what order and activations say" in mapped


def test_activation_layers_must_be_among_the_activations_given():
    with pytest.raises(InvalidArgumentError, match="must include those of the file's 1 activation layers"):
        from_keras(FOLDER / "sequential.weights.h5", activations=["identity"] * 3)


def test_other_files_of_keras_are_refused_with_the_reason():
    for name, reason in {
        "normalised.weights.h5": "/layers/batch_normalization/vars: expected a kernel.* found 4 variables, 0, 1, 2, 3",
        "whole.h5": r"/model_weights: a whole model or a file of Keras 2: .*save_weights",
        "whole.keras": r"file: a whole model, whose weights are model\.weights\.h5",
    }.items():
        with pytest.raises(ModelFormatError, match=f"{name}: {reason}"):
            from_keras(FOLDER / name, activations=["tanh"])


@pytest.mark.parametrize("name", EXPECTED["objective"]["objectives"])
def test_objectives_and_gradients_agree_with_those_of_keras(name):
    case, l2, K = EXPECTED["objective"]["objectives"][name], EXPECTED["objective"]["l2"], 3
    ours, factor, decay = {
        "mse": ("squared_error", K / 2, K * l2),
        "categorical_crossentropy": ("cross_entropy", 1, 2 * l2),
        "binary_crossentropy": ("binary_cross_entropy", K, 2 * K * l2),
    }[name]
    activations = ["sigmoid", case["activation"]]
    path = FOLDER / "objective.weights.h5"
    net, _ = from_keras(path, activations=activations, loss=ours, weight_decay=decay)
    J, gradient = mlpkit.Objective(net, EXPECTED["objective"]["inputs"], case["targets"]).value_and_gradient(net.theta)
    kernels = case["gradients"]
    theirs = np.concatenate([factor * np.array(part).T.ravel() for part in kernels])
    # Keras takes means in float32, whatever their terms are, and adds 1e-7 to probabilities, or cuts them off there.
    np.testing.assert_allclose(J, factor * case["value"], rtol=1e-6)
    np.testing.assert_allclose(gradient, theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())


# ------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_network_comes_back_to_the_bit(dtype, path):
    net = network(dtype)
    assert to_keras(net, path).result == str(path)
    same, _ = from_keras(path, activations=[layer.activation for layer in net.layers[1:]], weight_decay=0.25)
    assert same.dtype == dtype
    for mine, theirs in zip((*net.weights, *net.biases), (*same.weights, *same.biases), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    X = np.random.default_rng(0).normal(size=(9, 4))
    np.testing.assert_allclose(net.predict(X), same.predict(X), rtol=0, atol=TOLERANCE[dtype])


def test_what_is_mapped_and_what_is_left_out(path):
    net = network()
    assert to_keras(net, path).mapped == (
        "W^(1) (3, 4) -> layers/dense/vars/0, transposed",
        "b^(1) (3,) -> layers/dense/vars/1",
        "W^(2) (5, 3) -> layers/dense_1/vars/0, transposed",
        "W^(3) (3, 5) -> layers/dense_2/vars/0, transposed",
        "b^(3) (3,) -> layers/dense_2/vars/1",
        "W^(4) (4, 3) -> layers/dense_3/vars/0, transposed, a copy of the transpose of W^(1), no longer tied to it",
        "b^(4) (4,) -> layers/dense_3/vars/1",
        f"layer 1: {net.layers[0].noise} -> not part of a weight file",
        "layer 2: activation 'sigmoid' -> not part of a weight file",
        "layer 2: KLSparsity(rho=0.1, beta=2.0) -> not part of a weight file",
        "layer 3: activation 'identity' -> not part of a weight file",
        "layer 4: activation 'tanh' -> not part of a weight file",
        "layer 5: activation 'identity' -> not part of a weight file",
        "loss 'squared_error' -> not part of a weight file",
        "weight_decay 0.25 -> not part of a weight file",
    )


def elements(path):
    """Return all that a file holds: for each element its attributes, and of arrays shape, dtype and layout."""
    found = {}

    def note(name, element):
        attributes = sorted(element.attrs)
        if isinstance(element, h5py.Dataset):
            attributes += [element.shape, element.dtype.str, element.id.get_create_plist().get_layout()]
        found[name] = attributes

    with h5py.File(path) as file:
        file.visititems(note)
    return found


def test_files_are_laid_out_as_keras_lays_them_out(path):
    expected = EXPECTED["objective"]
    original = FOLDER / "objective.weights.h5"
    to_keras(from_keras(original, activations=expected["activations"]).result, path)
    assert elements(path) == elements(original)


def test_the_same_network_gives_the_same_bytes(path, tmp_path):
    to_keras(network(), path)
    to_keras(network(), tmp_path / "again.weights.h5")
    assert path.read_bytes() == (tmp_path / "again.weights.h5").read_bytes()


def test_what_cannot_be_written(path):
    with pytest.raises(
        InvalidArgumentError, match=r"path: expected a name that ends in \.weights\.h5, found '.*net\.h5"
    ):
        to_keras(network(), path.with_name("net.h5"))
    net = network()
    net.theta[5] = -np.inf
    with pytest.raises(InvalidArgumentError, match=r"finite parameters, found theta\[5\] = -inf"):
        to_keras(net, path)
    assert not list(path.parent.iterdir())
