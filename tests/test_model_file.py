"""The model file: exact round trips, what else a file carries, and newer versions."""

import copy
import io
import os
import pickle
import re
import shutil
import tempfile
import tracemalloc
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from forging import attribute, config_of, configured, describe, document, forge, put_json, seal, without_attribute
from hypothesis import given, settings
from hypothesis import strategies as st
from models import same_bits, saved, small_net

import mlpkit
from mlpkit import MLP, Dense, Input, model_file
from mlpkit.errors import InvalidArgumentError, MlpkitError, ModelFormatError


@pytest.fixture
def model(tmp_path):
    return saved(small_net(), tmp_path)


# ------------------------------------------------------------------------------------- round trips


@st.composite
def networks(draw):
    """Any depth and sizes; theta any finite bits, subnormal numbers and -0.0 among them."""
    dtype = draw(st.sampled_from(["float64", "float32"]))
    name = st.sampled_from(["sigmoid", "tanh", "identity", "relu"])
    sizes = draw(st.lists(st.integers(1, 7), min_size=2, max_size=6))
    layers = [
        Dense(
            units,
            draw(name),
            bias=draw(st.booleans()),
            weight_decay=draw(st.none() | st.floats(0, 1e6)),
            init=draw(st.sampled_from([None, "notes", "he_normal", 0.25])),
        )
        for units in sizes[1:]
    ]
    net = MLP(
        [Input(sizes[0]), *layers],
        weight_decay=draw(st.floats(0, 1e6)),
        dtype=dtype,
        seed=draw(st.none() | st.integers(0, 2**70)),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bits = rng.integers(0, 256, net.theta.nbytes, dtype=np.uint8).view(dtype).copy()
    bits[~np.isfinite(bits)] = -0.0
    net.theta = bits
    return net


@settings(deadline=None, max_examples=40)
@given(net=networks())
def test_round_trip_is_exact_to_the_bit(net):
    with tempfile.TemporaryDirectory() as folder:
        back = mlpkit.load(saved(net, folder))
    assert same_bits(back.theta, net.theta)
    assert back.config() == net.config()
    for one, other in zip(back.weights + back.biases, net.weights + net.biases, strict=True):
        assert same_bits(one, other)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_predictions_are_equal_to_the_bit(tmp_path, dtype):
    net = small_net(dtype)
    X = np.random.default_rng(3).normal(size=(150, 4))
    back = mlpkit.load(saved(net, tmp_path))
    assert same_bits(back.predict(X), net.predict(X))
    assert isinstance(back, MLP)


def test_loaded_parameters_are_live_and_writable(model):
    net = mlpkit.load(model)
    net.weights[0][0, 0] = 7.0
    assert net.theta[0] == 7.0


@pytest.mark.parametrize("kind", [str, Path, os.fsencode])
def test_paths_of_every_kind(tmp_path, kind):
    net = small_net()
    path = tmp_path / "é.h5"
    net.save(kind(path))
    assert same_bits(mlpkit.load(kind(path)).theta, net.theta)


@pytest.mark.parametrize("path", [3, None, "", "a\0b", True])
def test_what_is_no_path_is_an_argument_error(path):
    with pytest.raises(InvalidArgumentError, match="path: expected"):
        mlpkit.load(path)
    with pytest.raises(InvalidArgumentError, match="path: expected"):
        small_net().save(path)


def test_the_file_is_laid_out_as_specified(model):
    image = model.read_bytes()
    assert image == seal(image)
    with h5py.File(model) as file:
        assert file.userblock_size == 512
        assert set(file) == {"config", "metadata", "provenance", "parameters"}
        assert config_of(file) == small_net().config()
        assert {name: list(group) for name, group in file["parameters"].items()} == {
            "1": ["W", "b"],
            "2": ["W"],
            "3": ["W", "b"],
        }
        assert file["parameters/1/W"].shape == (3, 4)
        assert file["parameters/1/W"].dtype == np.dtype("<f8")
        np.testing.assert_array_equal(file["parameters/1/W"], small_net().weights[0])
        assert file.attrs["objective"] == model_file.OBJECTIVE.encode()
        assert f"h5py {h5py.__version__}".encode() in file.attrs["writer"]
        assert {path: dict(element.attrs) for path, element in elements(file)} == {
            path: {"encoding-type": kind, "encoding-version": b"1.0"}
            for kind, paths in {
                b"mlpkit.json": ["config", "metadata", "provenance"],
                b"mlpkit.parameters": ["parameters"],
                b"mlpkit.dense": ["parameters/1", "parameters/2", "parameters/3"],
                b"mlpkit.array": [f"parameters/{name}" for name in ("1/W", "1/b", "2/W", "3/W", "3/b")],
            }.items()
            for path in paths
        }


def elements(file):
    found = []
    file.visititems(lambda path, element: found.append((path, element)))
    return found


def test_the_same_network_gives_the_same_bytes(tmp_path):
    one, other = (saved(small_net(), tmp_path).read_bytes() for _ in range(2))
    assert one == other


def test_any_hdf5_writer_that_follows_the_specification_is_read(model):
    """A file laid out by another program, here with HDF5's oldest format, is as good as ours."""
    buffer = io.BytesIO()
    with h5py.File(model) as ours, h5py.File(buffer, "w", userblock_size=512, libver="earliest") as theirs:
        for name in ours:
            ours.copy(name, theirs)
        for name, value in ours.attrs.items():
            theirs.attrs[name] = value
    model.write_bytes(seal(buffer.getvalue()))
    assert same_bits(mlpkit.load(model).theta, small_net().theta)


def test_an_untouched_forgery_loads(model):
    """The forging of the tests is sound: only what it changes is refused."""
    forge(model, lambda file: put_json(file, "config", config_of(file)))
    assert same_bits(mlpkit.load(model).theta, small_net().theta)


def test_whole_numbers_may_be_written_as_such(model):
    forge(model, configured("weight_decay", 1))
    assert mlpkit.load(model).weight_decay == 1.0


@pytest.mark.parametrize("bias", [True, False])
def test_a_tied_layer_has_no_W_in_the_file(tmp_path, bias):
    net = MLP([Input(5), Dense(3, "tanh"), Dense(5, "identity", tied_to=1, bias=bias)], seed=0)
    path = saved(net, tmp_path)
    with h5py.File(path) as file:
        assert list(file["parameters/2"]) == (["b"] if bias else [])
    back = mlpkit.load(path)
    assert same_bits(back.theta, net.theta)
    assert back.layers[2].tied_to == 1
    X = np.random.default_rng(0).normal(size=(6, 5))
    assert same_bits(back.predict(X), net.predict(X))


# ---------------------------------------------------------------------- what else a file carries


def test_metadata_and_provenance_come_back(tmp_path):
    net = small_net()
    net.metadata = {"unit": "eV", "list": [1, 2.5, None, True], "ü": {"nested": "\ud800 and \0"}}
    net.provenance = {"optimizer": "LBFGS()", "seed": 2**80}
    back = mlpkit.load(saved(net, tmp_path))
    assert back.metadata == net.metadata
    assert back.provenance == net.provenance
    again = mlpkit.load(saved(back, tmp_path))
    assert (again.metadata, again.provenance) == (net.metadata, net.provenance)


def test_a_network_without_them_has_none(model):
    back = mlpkit.load(model)
    assert back.metadata == {}
    assert back.provenance is None


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"a": np.float64("nan")}, "expected values that JSON can hold"),
        ({"a": float("inf")}, "expected values that JSON can hold"),
        ({"a": np.arange(3)}, "expected values that JSON can hold"),
        ({"a": {1, 2}}, "expected values that JSON can hold"),
        ({1: "a"}, "expected values that JSON gives back unchanged"),
        ({"a": (1, 2)}, "expected values that JSON gives back unchanged"),
        ({"a": "b" * 2**20}, "expected at most 1048576 bytes"),
        ([1], "expected a dict, found list"),
    ],
)
def test_metadata_that_would_not_come_back_is_not_saved(tmp_path, metadata, message):
    net = small_net()
    net.metadata = metadata
    with pytest.raises(InvalidArgumentError, match=f"net.metadata: {message}"):
        net.save(tmp_path / "model.h5")
    assert os.listdir(tmp_path) == []


def test_metadata_in_a_circle_is_not_saved(tmp_path):
    net = small_net()
    net.metadata = {}
    net.metadata["self"] = net.metadata
    with pytest.raises(InvalidArgumentError, match=r"net\.metadata: expected values that JSON can hold"):
        net.save(tmp_path / "model.h5")


def test_a_document_over_its_cap_is_refused(model):
    forge(model, document("metadata", b'"' + b"a" * 2**20 + b'"'))
    with pytest.raises(ModelFormatError, match="/metadata: expected 1 to 1048576 bytes"):
        mlpkit.load(model)


def test_a_small_file_cannot_ask_for_much_memory(model):
    forge(model, configured("layers", 0, "units", 4 * 10**8))
    tracemalloc.start()
    with pytest.raises(ModelFormatError, match="asks for"):
        mlpkit.load(model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_describe_needs_nobody_to_register_anything(model):
    forge(model, configured("layers", 1, "activation", "swoosh"))
    info = model_file.describe(model)
    assert info.config["layers"][1]["activation"] == "swoosh"
    assert (info.format_version, info.n_parameters, info.file_bytes) == ("1.0", 33, model.stat().st_size)
    assert f"mlpkit {mlpkit.__version__}" in info.writer
    forge(model, lambda file: file["parameters/3/b"].__setitem__(1, np.inf))
    with pytest.raises(ModelFormatError, match=r"/3/b\[1\]: expected finite"):
        model_file.describe(model)


# ------------------------------------------------------------------------------------ newer versions


def everything_new(file):
    """What a later minor version might add."""
    configured("layers", 1, "batch_norm", 0.5)(file)
    file["optimizer"] = h5py.ExternalLink("other.h5", "/")
    describe(file.create_group("parameters/5"))
    file["parameters/1/momentum"] = np.ones(3)
    file["parameters/1/W"].attrs["unit"] = "m"
    file.attrs["licence"] = np.bytes_("free")
    file["parameters/1/b"].attrs["encoding-version"] = np.bytes_("1.7")


def test_additions_of_a_newer_minor_version_are_ignored_with_a_note(model):
    forge(model, everything_new, version="1.3")
    with pytest.warns(UserWarning, match=r"format version 1\.3 is newer than this mlpkit.*ignores: ") as caught:
        back = mlpkit.load(model)
    assert same_bits(back.theta, small_net().theta)
    for name in (
        "/optimizer",
        "/parameters/5",
        "/parameters/1/momentum",
        "/parameters/1/W: attribute unit",
        "/: attribute licence",
        "/config: layers 2: batch_norm",
    ):
        assert name in str(caught[0].message)
    assert caught[0].filename == __file__
    forge(model, lambda file: None, version="1.0")
    with pytest.raises(ModelFormatError, match="not part of the format"):
        mlpkit.load(model)


def test_a_newer_minor_version_without_additions_is_read_without_a_note(model):
    forge(model, lambda file: None, version="1.999")
    with warnings.catch_warnings(action="error"):
        mlpkit.load(model)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda file: file.__delitem__("metadata"), "/metadata: missing"),
        (without_attribute("objective"), "objective: missing"),
        (attribute("encoding-version", np.bytes_("2.0"), "parameters/1"), r"/1: .*2\.0 is newer than this mlpkit"),
        (configured("weight_decay", -1), "/config: "),
        (lambda file: file.move("parameters/1/W", "parameters/1/V"), "/1/W: missing"),
    ],
)
def test_a_newer_minor_version_must_still_have_what_is_known(model, edit, message):
    forge(model, edit, version="1.1")
    with pytest.raises(ModelFormatError, match=message):
        mlpkit.load(model)


def test_a_flood_of_additions_is_refused(model):
    forge(model, lambda file: [file.create_group(f"g{i}") for i in range(1001)], version="1.1")
    with pytest.raises(ModelFormatError, match="more than 1000 elements are not known"):
        mlpkit.load(model)


# ------------------------------------------------------------------------------- what is not saved


def test_a_seed_that_json_could_not_hold_is_not_saved(tmp_path):
    with pytest.raises(InvalidArgumentError, match="seed of at most 1024 bits, found one of 16610"):
        small_net(seed=10**5000).save(tmp_path / "model.h5")
    assert os.listdir(tmp_path) == []
    largest = 2**1024 - 1
    assert mlpkit.load(saved(small_net(seed=largest), tmp_path)).seed == largest


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("symbol", "layer", "index"), [("b", 3, (3,)), ("W", 1, (2, 3)), ("W", 2, (0, 0))])
def test_non_finite_parameters_are_not_saved(tmp_path, symbol, layer, index, value):
    net = small_net()
    (net.weights if symbol == "W" else net.biases)[layer - 1][index] = value
    where = re.escape(f"{symbol}^({layer}){list(index)}")
    with pytest.raises(InvalidArgumentError, match=f"found {where} = {value}"):
        net.save(tmp_path / "model.h5")
    assert os.listdir(tmp_path) == []


def test_saving_does_not_change_the_network(tmp_path):
    net = small_net()
    before, config = net.theta.copy(), net.config()
    net.save(tmp_path / "model.h5")
    assert same_bits(net.theta, before)
    assert net.config() == config


# ------------------------------------------------------------------------------------------ copies


def test_copied_and_pickled_networks_are_saved_alike(tmp_path, model):
    for twin in (copy.deepcopy(small_net()), pickle.loads(pickle.dumps(small_net()))):
        assert saved(twin, tmp_path).read_bytes() == model.read_bytes()


def test_errors_are_of_the_package(model):
    model.write_bytes(b"")
    with pytest.raises(MlpkitError):
        mlpkit.load(model)
    with pytest.raises(ValueError, match=re.escape(str(model))):
        mlpkit.load(model)


def test_copying_a_file_copies_the_model(tmp_path, model):
    shutil.copy(model, tmp_path / "copy.h5")
    assert same_bits(mlpkit.load(tmp_path / "copy.h5").theta, small_net().theta)
