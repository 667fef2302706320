"""Checkpoints: exact round trips to the bit, and what is not written since it would not come back."""

import json
import os
import tempfile
import tracemalloc
from pathlib import Path

import forging
import fuzzing
import h5py
import numpy as np
import pytest
from checkpointing import same_bits, small_checkpoint, small_net
from forging import entry, forge
from hypothesis import given, settings
from hypothesis import strategies as st

import mlpkit
from mlpkit import InvalidArgumentError, ModelFormatError, sealed_file, state_layout
from mlpkit.checkpoint import Checkpoint, describe_checkpoint, previous_path, read_checkpoint, write_checkpoint
from mlpkit.cli import main

POSIX = pytest.mark.skipif(os.name == "nt", reason="permission bits, locks and hard links of POSIX")
DATA = Path(__file__).parent / "data" / "checkpoint_v1"
DOCUMENT = Path(__file__).parents[1] / "docs" / "model-format.md"


@pytest.fixture
def run(tmp_path):
    write_checkpoint(tmp_path / "run.h5", small_checkpoint())
    return tmp_path / "run.h5"


def write_small(path):
    write_checkpoint(path, small_checkpoint())


# ------------------------------------------------------------------------------------- round trips

names = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=60).filter(
    lambda name: name != "."
)


@st.composite
def arrays(draw):
    """Any bits: NaNs of all kinds, signed zeros, subnormal numbers; any shape, also none and empty ones."""
    dtype = np.dtype(draw(st.sampled_from(["float64", "float32"])))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_bytes = int(np.prod(shape, dtype=int)) * dtype.itemsize
    array = rng.integers(0, 256, n_bytes, dtype=np.uint8).view(dtype).reshape(shape)
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 5e-324]).astype(dtype)
    array[rng.random(shape) < 0.3] = rng.choice(special)
    layout = draw(st.sampled_from(["rows", "columns", "every second"]))
    if layout == "columns":
        return np.array(array, order="F")
    return np.concatenate([array, array])[::2] if layout == "every second" and shape else array


states = st.dictionaries(names, arrays() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=50), max_size=12)


@settings(deadline=None, max_examples=60)
@given(optimizer=states, loop=states, dtype=st.sampled_from(["float64", "float32"]))
def test_round_trip_is_exact_to_the_bit(optimizer, loop, dtype):
    net = small_net(dtype)
    net.theta[::3] = -0.0
    written = Checkpoint(net.config(), net.theta, optimizer, loop)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(f"{folder}/run.h5", written)
        assert same_bits(tuple(written), tuple(read_checkpoint(f"{folder}/run.h5")))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_what_is_read_is_as_writable_and_alone_as_what_was_written(run, dtype):
    write_checkpoint(run, small_checkpoint(dtype))
    found = read_checkpoint(run)
    assert isinstance(found, Checkpoint)
    assert mlpkit.MLP.from_config(found.config).config() == small_net(dtype).config()
    kept = [found.theta, *(value for value in found.optimizer.values() if isinstance(value, np.ndarray))]
    for array in kept:
        array[...] = 7.0
    assert all(array.base is None or array.flags.writeable for array in kept)
    assert same_bits(tuple(read_checkpoint(run)), tuple(small_checkpoint(dtype)))


def test_numpy_scalars_are_taken_for_arrays_of_shape_empty(run):
    write_checkpoint(run, small_checkpoint()._replace(loop={"a": np.float64("nan"), "b": np.float32(2)}))
    found = read_checkpoint(run).loop
    assert (found["a"].dtype, found["a"].shape, found["b"].dtype) == (np.float64, (), np.float32)


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path, run):
    write_checkpoint(tmp_path / "again.h5", small_checkpoint())
    assert (tmp_path / "again.h5").read_bytes() == run.read_bytes()


def test_the_file_is_laid_out_as_specified(run):
    image = run.read_bytes()
    assert image == forging.seal(image, magic=forging.CHECKPOINT_MAGIC)
    with h5py.File(run) as file:
        encodings = {"/": file.attrs["encoding-type"].decode()}
        file.visititems(lambda path, element: encodings.__setitem__(path, element.attrs["encoding-type"].decode()))
        assert file["theta"].shape == (small_net().n_parameters,)
        assert file["loop/arrays/métrique"].dtype == "<f4"
        assert file["optimizer/arrays/step"].shape == ()
        assert not file["theta"].id.get_create_plist().get_obj_track_times()  # the same checkpoint, the same bytes
        values = json.loads(file["optimizer/values"][()].tobytes())
        assert values["pairs"] == {"dtype": "float64", "shape": [2, 3, 4]}
        assert values["iteration"] == 2**53 + 1
    text = DOCUMENT.read_text()
    for path, encoding in encodings.items():
        assert f"`{encoding}` 1.0" in text, path
    assert set(encodings) >= {"/", "config", "theta", "loop", "loop/values", "loop/arrays", "loop/arrays/history.cost"}


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.glob("*.h5")))
def test_files_of_version_1_are_read(name):
    found = read_checkpoint(DATA / name)
    net = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(1, "sigmoid")], seed=0)
    expected = {"adam.h5": small_checkpoint("float32"), "bare.h5": Checkpoint(net.config(), net.theta, {}, {})}
    assert same_bits(found.optimizer, expected[name].optimizer)
    assert same_bits(found.loop, expected[name].loop)
    assert found.theta.dtype == expected[name].theta.dtype
    assert found.theta.size == expected[name].theta.size


@pytest.mark.parametrize("page", [64, 1024, 2**20])
def test_any_hdf5_writer_that_follows_the_specification_is_read(run, monkeypatch, page):
    """Its elements may lie in any order, here by name, while pages are given back from the first on."""
    image = next(image for image in fuzzing.bases("checkpoint") if b"m\xc3\xa9trique" in image and image[520] == 0)
    run.write_bytes(image)
    monkeypatch.setattr(sealed_file, "_PAGE", page)
    monkeypatch.setattr(sealed_file, "_BLOCK", 64)
    found, expected = read_checkpoint(run), read_checkpoint(DATA / "adam.h5")
    assert same_bits(tuple(found), tuple(expected))


def test_memory_stays_within_twice_the_file(tmp_path):
    net = mlpkit.MLP([mlpkit.Input(1000), mlpkit.Dense(1000, "relu")], seed=0)
    path = tmp_path / "run.h5"
    tracemalloc.start()
    write_checkpoint(path, Checkpoint(net.config(), net.theta, {"m": net.theta, "v": net.theta}, {}))
    writing = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    read_checkpoint(path)
    reading = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert writing < 10e6  # a block and little more, but no array
    assert reading < 2.05 * path.stat().st_size


# ------------------------------------------------------------------------------ what is not written


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": 0.5}, r"\['a'\]: expected a float64 or float32 array, an int or a str; found 0.5"),
        ({"a": True}, "found True"),
        ({"a": None}, "found None"),
        ({"a": np.int64(3)}, "found np.int64"),
        ({"a": [1.0]}, r"found \[1.0\]"),
        ({"a": {"b": 1}}, "found {"),
        ({"a": b"bytes"}, "found b'bytes'"),
        ({"a": np.arange(3)}, r"found int64 of shape \(3,\)"),
        ({"a": np.array([1j])}, "found complex128"),
        ({"a": np.array([print])}, "found object"),
        ({"a": np.array(["x"])}, "found <U1"),
        ({"a": np.arange(3, dtype=">f8")}, "found >f8"),
        ({"a": np.ones(3, np.float16)}, "found float16"),
        ({"a": np.ma.masked_array([1.0], [True])}, r"found float64 of shape \(1,\)"),
        ({"a": np.zeros((1,) * 33)}, "expected at most 32 dimensions; found 33"),
        ({"a": 2**64}, "expected an integer of 64 bits; found 18446744073709551616"),
        ({"a": -(2**63) - 1}, "expected an integer of 64 bits"),
        ({"a": 10**5000}, "expected an integer of 64 bits"),
        ({"a": "x" * 2**20}, "expected at most 1048576 bytes as JSON"),
        ({"": 1}, 'expected names of 1 to 255 bytes as UTF-8, without "/"'),
        ({"a/b": 1}, "expected names"),
        ({".": 1}, "expected names"),
        ({"a\0": 1}, "expected names"),
        ({"a\n": 1}, "expected names"),
        ({"\x85": 1}, "expected names"),
        ({"\ud800": 1}, "expected names"),
        ({"é" * 128: 1}, "expected names"),
        ({3: 1}, "expected names .* found 3"),
    ],
)
@pytest.mark.parametrize("which", ["optimizer", "loop"])
def test_states_that_would_not_come_back_are_not_written(tmp_path, which, state, message):
    with pytest.raises(InvalidArgumentError, match=f"checkpoint.{which}.*{message}"):
        write_checkpoint(tmp_path / "run.h5", small_checkpoint()._replace(**{which: state}))
    assert os.listdir(tmp_path) == []


def test_the_longest_names_and_largest_integers_are_written(run):
    state = {"é" * 127: 2**64 - 1, "..": -(2**63), "x" * 255: np.ones(1), "a b.c\\": np.ones((1,) * 32)}
    write_checkpoint(run, small_checkpoint()._replace(optimizer=state))
    assert same_bits(read_checkpoint(run).optimizer, state)


@pytest.mark.parametrize(
    ("theta", "message"),
    [
        (np.zeros(3), r"expected float64 of shape \(24,\), as checkpoint.config says; found float64 of shape \(3,\)"),
        (np.zeros(24, np.float32), "found float32 of shape"),
        (np.zeros((24, 1)), "found float64 of shape"),
        ([0.0] * 24, "found list"),
        (np.r_[np.zeros(23), np.nan], r"expected finite parameters; found theta\[23\] = nan"),
        (np.r_[-np.inf, np.zeros(23)], r"found theta\[0\] = -inf"),
    ],
)
def test_parameters_that_are_not_the_network_s_are_not_written(tmp_path, theta, message):
    with pytest.raises(InvalidArgumentError, match=f"checkpoint.theta: .*{message}"):
        write_checkpoint(tmp_path / "run.h5", small_checkpoint()._replace(theta=theta))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "checkpoint.config: cannot be saved: /config: expected an object"),
        ({"layers": []}, "checkpoint.config: cannot be saved: /config: dtype"),
        ({"layers": (1, 2)}, "checkpoint.config: expected values that JSON gives back unchanged"),
        ({**small_net().config(), "seed": 2**1024}, "checkpoint.config: expected a seed of at most 1024 bits"),
    ],
)
def test_a_configuration_of_no_network_is_not_written(tmp_path, config, message):
    with pytest.raises(InvalidArgumentError, match=message):
        write_checkpoint(tmp_path / "run.h5", small_checkpoint()._replace(config=config))


def test_the_size_cap_is_kept_by_writing_and_reading(tmp_path, run, monkeypatch):
    monkeypatch.setattr(sealed_file, "MAX_FILE_BYTES", 1000)
    with pytest.raises(ModelFormatError, match="file: expected at most 1000 bytes"):
        read_checkpoint(run)
    monkeypatch.setattr("mlpkit.checkpoint.MAX_FILE_BYTES", 2**26 + 100)
    with pytest.raises(InvalidArgumentError, match="checkpoint: expected at most"):
        write_checkpoint(tmp_path / "big.h5", small_checkpoint())
    assert os.listdir(tmp_path) == ["run.h5"]


@pytest.mark.parametrize("path", [3, None, "", "a\0b"])
def test_what_is_no_path_is_an_argument_error(path):
    for call in (read_checkpoint, describe_checkpoint, previous_path, write_small):
        with pytest.raises(InvalidArgumentError, match="path: expected"):
            call(path)


# --------------------------------------------------------------------------------- the command line


def test_info_and_verify_take_checkpoints(run, capsys):
    assert main(["info", str(run)]) == 0
    out = capsys.readouterr().out
    for text in (
        f"{run}, {run.stat().st_size} bytes, checkpoint format version 1.0, digest right",
        "layer 2       3 units, tanh",
        "parameters    24 of float64",
        "optimizer     optimizer: Adam",
        "iteration: 9007199254740993",
        "pairs: float64 (2, 3, 4)",
        "history.cost: float64 (6,)",
    ):
        assert text in out
    assert main(["info", "--json", str(run)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loop"]["rng"] == '{"state": 123}'
    assert found["config"] == small_net().config()
    assert main(["verify", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}: right (24 parameters, checkpoint format version 1.0)\n"
    forge(run, entry("theta", 3, np.nan))
    assert main(["verify", str(run)]) == 3
    assert "/theta[3]: expected finite" in capsys.readouterr().out
    assert main(["predict", str(run), "x.npy", "-o", "out.npy"]) == 3
    assert "an mlpkit checkpoint, not an mlpkit model" in capsys.readouterr().err


def test_long_strings_are_shortened_by_info(run, capsys):
    write_checkpoint(run, small_checkpoint()._replace(loop={"rng": "x" * 500}))
    assert main(["info", str(run)]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) < 600
    assert state_layout.plan_state({"rng": "x" * 500}, "state").arrays == {}
