"""Keras weight files that are not what they should be: each refused with the reason, and no other file touched."""

from __future__ import annotations

import io
import re

import h5py
import numpy as np
import pytest

from mlpkit import InvalidArgumentError, ModelFormatError
from mlpkit.interop import from_keras


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.weights.h5"


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


@pytest.mark.parametrize("number", range(4))
def test_a_heap_that_would_catch_the_library_for_ever(path, number):
    with h5py.File(path, "w") as file:
        chain(file, (2, 3))
    data = bytearray(path.read_bytes())
    heap = [found.start() for found in re.finditer(b"HEAP", data)][number]
    head, segment = (int.from_bytes(data[heap + at : heap + at + 8], "little") for at in (16, 24))
    data[segment + head : segment + head + 8] = head.to_bytes(8, "little")  # the first free block follows itself
    path.write_bytes(data)
    with pytest.raises(ModelFormatError, match=rf"heap: its list of free blocks, at byte {heap}, runs in a circle"):
        from_keras(path, activations=["tanh"])


@pytest.mark.parametrize("side", [8, 16])
@pytest.mark.parametrize("step", [0, 1])
def test_nodes_of_a_tree_that_are_neighbours_in_a_circle(path, side, step):
    with h5py.File(path, "w") as file:
        chain(file, (2, 3))
    data = bytearray(path.read_bytes())
    nodes = [found.start() for found in re.finditer(b"TREE", data)]
    for node, other in zip(nodes, nodes[step:] + nodes[:step], strict=True):
        data[node + side : node + side + 8] = other.to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(ModelFormatError, match=rf"B-tree: its nodes, from byte {nodes[0]}, are neighbours in a circle"):
        from_keras(path, activations=["tanh"])


def test_nodes_of_a_tree_below_themselves_or_below_two(path):
    with h5py.File(path, "w") as file:
        chain(file, (2, 3))
        for number in range(400):  # more than one node can hold
            file.create_group(f"layers/dropout_{number}")
    data = path.read_bytes()
    assert len(from_keras(path, activations=["tanh"]).mapped) == 403
    (parent,) = (found.start() for found in re.finditer(b"TREE", data) if data[found.start() + 5] == 1)
    first = data[parent + 32 : parent + 40]
    for child in (parent.to_bytes(8, "little"), first):
        path.write_bytes(data[: parent + 48] + child + data[parent + 56 :])
        where = int.from_bytes(child, "little")
        with pytest.raises(
            ModelFormatError, match=rf"B-tree: its node at byte {where} is not below one other, and only"
        ):
            from_keras(path, activations=["tanh"])


def test_numbers_that_look_like_nodes_and_heaps_do_no_harm(path):
    looks = np.frombuffer(b"TREE\0\1\2\0HEAP" + bytes(range(36)), "<f4")
    assert np.isfinite(looks).all()
    with h5py.File(path, "w") as file:
        chain(file, (2, 6))
        file["layers/dense/vars/0"][...] = looks.reshape(2, 6)
    np.testing.assert_array_equal(from_keras(path, activations=["tanh"]).result.weights[0].T.ravel(), looks)


def test_odd_superblocks(path):
    with h5py.File(path, "w") as file:
        chain(file, (2, 3))
    data = path.read_bytes()
    for place in (8, 13, 14, 24):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(ModelFormatError, match="superblock: expected version 0 to 3"):
            from_keras(path, activations=["tanh"])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.weights.h5", b"", "expected 1 to"),
        ("a.weights.h5", b"nothing", "not an HDF5 file"),
        ("a.weights.h5", b"PK\x03\x04", "a pickle, or an archive with one"),
        ("a.pkl", b"\x80\x04", "a pickle"),
        ("a.weights.json", b"{}", "expected one file of weights"),
        ("a.weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(2000), "superblock: expected|the HDF5 library cannot read it"),
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
