"""Keras weight files: those that Keras wrote, those that it can read, and those that nobody should."""

from __future__ import annotations

import io
import json
import re
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


# ------------------------------------------------------------------------------------------- what the caller gives


def chain(file, *shapes, dtype="f4"):
    """Fill a file with a chain of Dense layers."""
    for number, shape in enumerate(shapes):
        name = f"layers/dense_{number}" if number else "layers/dense"
        file[f"{name}/vars/0"] = np.ones(shape, dtype)
        file[f"{name}/vars/1"] = np.zeros(shape[1], dtype)


def test_activations_are_counted(path):
    with h5py.File(path, "w") as file:
        chain(file, (2, 3), (3, 4))
    for given in (None, "tanh", ["tanh"], ["tanh"] * 3):
        with pytest.raises(InvalidArgumentError, match="activations must"):
            from_keras(path, activations=given)


def test_a_missing_number_is_no_chain(path):
    with h5py.File(path, "w") as file:
        chain(file, (2, 2), (2, 2), (2, 2))
        del file["layers/dense_1"]
    with pytest.raises(InvalidArgumentError, match="order must be given"):
        from_keras(path, activations=["tanh"] * 2)
    assert from_keras(path, activations=["tanh"] * 2, order=["layers/dense", "layers/dense_2"]).result.n_layers == 3


# ------------------------------------------------------------------------------------------- hostile files

HOSTILE = {}


def hostile(reason):
    """Note a function that spoils a file of two layers, and why the result is refused."""

    def decorate(spoil):
        HOSTILE[spoil.__name__] = (spoil, reason)
        return spoil

    return decorate


def replaced(file, element, **options):
    """Make a dataset again, otherwise."""
    data = options.pop("data", None)
    data = file[element][...] if data is None else data
    del file[element]
    return file.create_dataset(element, data=data, **options)


@hostile("/layers/dense/vars/0: filters and compression")
def compressed(file):
    replaced(file, "layers/dense/vars/0", compression="gzip")


@hostile("/layers/dense/vars/0: expected contiguous storage")
def chunked(file):
    replaced(file, "layers/dense/vars/0", chunks=(1, 3))


@hostile("/layers/dense/vars/0: expected little-endian float64 or float32")
def half(file):
    replaced(file, "layers/dense/vars/0", data=np.ones((2, 3), "f2"))


@hostile("/layers/dense/vars/0: expected little-endian float64 or float32")
def integers(file):
    replaced(file, "layers/dense/vars/0", data=np.ones((2, 3), "i4"))


@hostile("/layers/dense/vars/0: expected little-endian float64 or float32")
def big_endian(file):
    replaced(file, "layers/dense/vars/0", data=np.ones((2, 3), ">f4"))


@hostile("/layers/dense/vars/0: expected little-endian float64 or float32")
def texts(file):
    replaced(file, "layers/dense/vars/0", data="x" * 100)


@hostile("layers/dense/vars/1: expected float32 as in layers/dense/vars/0, found float64")
def two_dtypes(file):
    replaced(file, "layers/dense/vars/1", data=np.zeros(3))


@hostile("/layers/dense/vars/0: expected an array, found a scalar")
def scalar(file):
    replaced(file, "layers/dense/vars/0", data=np.float32(1))


@hostile("/layers/dense/vars/0: expected the kernel of a Dense layer, a matrix")
def vector(file):
    replaced(file, "layers/dense/vars/0", data=np.ones(3, "f4"))


@hostile("/layers/dense/vars/0: expected numbers, found an empty array")
def empty(file):
    replaced(file, "layers/dense/vars/0", data=np.ones((0, 3), "f4"))


@hostile("layers/dense_1/vars/0: takes 4 inputs, but layers/dense/vars/0 before it gives 3")
def unchained(file):
    replaced(file, "layers/dense_1/vars/0", data=np.ones((4, 4), "f4"))


@hostile(r"layers/dense/vars/1: expected shape \(3,\), found \(2,\)")
def short_bias(file):
    replaced(file, "layers/dense/vars/1", data=np.ones(2, "f4"))


@hostile(r"layers/dense/vars/0\[1, 2\]: expected finite numbers, found nan")
def nan(file):
    file["layers/dense/vars/0"][1, 2] = np.nan


@hostile("/layers/dense/vars/0: its numbers are missing from the file")
def unwritten(file):
    del file["layers/dense/vars/0"]
    file.create_dataset("layers/dense/vars/0", shape=(2, 3), dtype="<f4")


@hostile("/layers/dense/vars/0: its numbers are missing from the file")
def huge(file):
    del file["layers/dense/vars/0"]
    file.create_dataset("layers/dense/vars/0", shape=(2**31, 2**28), dtype="<f4")


@hostile("/layers/dense/vars/0: external storage")
def external_storage(file):
    del file["layers/dense/vars/0"]
    file.create_dataset("layers/dense/vars/0", shape=(2, 3), dtype="<f4", external=[("secret", 0, 24)])


@hostile("/layers/dense/vars/0: a virtual dataset")
def virtual(file):
    del file["layers/dense/vars/0"]
    layout = h5py.VirtualLayout(shape=(2, 3), dtype="<f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", shape=(2, 3))
    file.create_virtual_dataset("layers/dense/vars/0", layout)


@hostile("/layers/dense/vars: expected a hard link")
def external_link(file):
    del file["layers/dense/vars"]
    file["layers/dense/vars"] = h5py.ExternalLink("other.h5", "/")


@hostile("/layers/dense/vars/0: expected a hard link")
def soft_link(file):
    del file["layers/dense/vars/0"]
    file["layers/dense/vars/0"] = h5py.SoftLink("/layers/dense_1/vars/0")


@hostile("/optimizer: expected a hard link")
def optimizer_elsewhere(file):
    file["optimizer"] = h5py.ExternalLink("/dev/zero", "/")


@hostile("expected an object of its own, found one with several links")
def loop(file):
    file["layers/again"] = file["/"]


@hostile("expected an object of its own, found one with several links")
def shared(file):
    del file["layers/dense_1/vars/0"]
    file["layers/dense_1/vars/0"] = file["layers/dense/vars/0"]


@hostile("models within models, more than 10 deep")
def deep(file):
    file.create_group("/".join(["layers", "sequential"] * 11))


@hostile("more than 10000 members in the file")
def many(file):
    for number in range(10_001):
        file[f"layers/dropout_{number}"] = np.float32(0)


@hostile(r"/layers/\\xc3\\xa9: expected a name in ASCII")
def other_alphabet(file):
    file.create_group("layers/é")


@hostile("/layers/dense/vars/0: expected a dataset, found a group")
def group_for_kernel(file):
    del file["layers/dense/vars/0"]
    file.create_group("layers/dense/vars/0")


@hostile("/layers: expected a group, found a dataset")
def dataset_for_layers(file):
    del file["layers"]
    file["layers"] = np.ones(3)


@hostile("/layers/dense/vars: expected a kernel, 0, and a bias, 1.* found 1 variables, 1")
def bias_alone(file):
    del file["layers/dense/vars/0"]


@hostile("/layers/dense/lora: not part of a Dense layer")
def more_in_a_layer(file):
    file.create_group("layers/dense/lora")


@hostile("/layers/flatten: a layer that is not understood")
def flatten(file):
    file.create_group("layers/flatten/vars")


@hostile("/layers/add_3: a layer that is not understood")
def add(file):
    file.create_group("layers/add_3")


@hostile("/vars: variables of the model itself")
def variables_of_the_model(file):
    file["vars/0"] = np.ones(3, "f4")


@hostile("/_layer_checkpoint_dependencies: a whole model or a file of Keras 2")
def keras_2(file):
    file.move("layers", "_layer_checkpoint_dependencies")


@hostile("there is no layer with variables in it")
def no_layers(file):
    del file["layers"]


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_with_the_reason(case, path):
    spoil, reason = HOSTILE[case]
    with h5py.File(path, "w") as file:
        chain(file, (2, 3), (3, 4))
        spoil(file)
    with pytest.raises(ModelFormatError, match=rf"net\.weights\.h5: .*{reason}"):
        from_keras(path, activations=["tanh"] * 2)


def test_states_of_random_generators_are_left_where_they_are(path):
    with h5py.File(path, "w") as file:
        chain(file, (2, 3))
        file["layers/dropout/seed_generator/vars/0"] = np.array([1, 2], "u4")
    mapped = from_keras(path, activations=["tanh"]).mapped
    assert mapped[-2:] == (
        "layers/dropout -> nothing, as at inference",
        "layers/dropout/seed_generator: its state -> not taken",
    )


def test_attributes_are_not_looked_at(path):
    with h5py.File(path, "w") as file:
        chain(file, (2, 3))
        file["layers/dense/vars"].attrs["name"] = "x" * 60_000
        file["layers/dense/vars/0"].attrs.create("dtype", ["bfloat16"] * 100, dtype=h5py.string_dtype())
    assert from_keras(path, activations=["tanh"]).result.sizes == (2, 3)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.weights.h5", b"", "expected 1 to"),
        ("a.weights.h5", b"nothing", "not an HDF5 file"),
        ("a.weights.h5", b"PK\x03\x04", "a pickle, or an archive with one"),
        ("a.pkl", b"\x80\x04", "a pickle"),
        ("a.weights.json", b"{}", "expected one file of weights"),
        ("a.weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(2000), "the HDF5 library cannot read it"),
    ],
)
def test_files_of_other_kinds(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelFormatError, match=f"{re.escape(name)}: .*{reason}"):
        from_keras(tmp_path / name, activations=["tanh"])


def test_flipped_bytes_and_truncations_load_or_are_refused(path, rng):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        chain(file, (2, 3), (3, 4))
    data = buffer.getvalue()
    outcomes = {"refused": 0, "read": 0}
    for _ in range(800):
        changed = bytearray(data)
        for place in rng.integers(len(data), size=rng.integers(1, 9)):
            changed[place] = rng.integers(256)
        path.write_bytes(changed[: rng.integers(len(data))] if rng.random() < 0.1 else changed)
        try:
            assert np.isfinite(from_keras(path, activations=["tanh"] * 2).result.theta).all()
        except ModelFormatError:
            outcomes["refused"] += 1
        except InvalidArgumentError as error:  # of layers renamed
            assert str(error).startswith(("order must be given", "activations must"))  # noqa: PT017
        else:
            outcomes["read"] += 1
    assert min(outcomes.values()) > 100, outcomes
