"""The model file: exact round trips, and a named refusal of everything else.

`seal` writes the user block anew from the specification in the docstring of `mlpkit.model_file`, so
forged files get past the digest and must be caught by what they contain.
"""

import copy
import errno
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import stat
import tempfile
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlpkit
from mlpkit import MLP, Dense, Input, KLSparsity, activations, model_file
from mlpkit.errors import InvalidArgumentError, MlpkitError, ModelFormatError

MAGIC = b"mlpkit model\r\n\x1a\n"


def small_net(dtype="float64", seed=1):
    return MLP(
        [
            Input(4),
            Dense(3, "sigmoid", sparsity=KLSparsity(rho=0.1, beta=2.0), weight_decay=0.5),
            Dense(2, "tanh", bias=False, init="glorot_uniform"),
            Dense(4, "identity"),
        ],
        weight_decay=1e-3,
        dtype=dtype,
        seed=seed,
    )


def saved(net, folder):
    path = Path(folder, "model.h5")
    net.save(path)
    return path


@pytest.fixture
def model(tmp_path):
    return saved(small_net(), tmp_path)


def seal(image, version=1):
    """An HDF5 image with a right user block, as the specification puts it."""
    head = f"format version {version}\nlength {len(image)}\nsha256 "
    head += hashlib.sha256(image[512:]).hexdigest() + "\n"
    return (MAGIC + head.encode()).ljust(512, b"\0") + image[512:]


def forge(path, edit):
    """Change a model file through HDF5 and make its digest right again."""
    buffer = io.BytesIO(path.read_bytes())
    with h5py.File(buffer, "r+") as file:
        edit(file)
    path.write_bytes(seal(buffer.getvalue()))


def config_of(file):
    return json.loads(file["config"][()].tobytes())


def put_config(file, config):
    raw = config if isinstance(config, bytes) else json.dumps(config).encode()
    del file["config"]
    file["config"] = np.frombuffer(raw, np.uint8)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


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
        assert set(file) == {"config", "parameters"}
        assert config_of(file) == small_net().config()
        assert {name: list(group) for name, group in file["parameters"].items()} == {
            "1": ["W", "b"],
            "2": ["W"],
            "3": ["W", "b"],
        }
        assert file["parameters/1/W"].shape == (3, 4)
        assert file["parameters/1/W"].dtype == np.dtype("<f8")
        assert file.attrs["format"] == b"mlpkit.MLP"
        assert file.attrs["version"] == 1
        assert file.attrs["h5py_version"] == h5py.__version__.encode()
        assert file.attrs["numpy_version"] == np.__version__.encode()


def test_any_hdf5_writer_that_follows_the_specification_is_read(model):
    """A file laid out by another program, here with HDF5's oldest format, is as good as ours."""
    buffer = io.BytesIO()
    with (
        h5py.File(model) as ours,
        h5py.File(buffer, "w", userblock_size=512, libver="earliest") as theirs,
    ):
        for name in ours:
            ours.copy(name, theirs)
        for name, value in ours.attrs.items():
            theirs.attrs[name] = value
    model.write_bytes(seal(buffer.getvalue()))
    assert same_bits(mlpkit.load(model).theta, small_net().theta)


# ------------------------------------------------------------------------------------ damaged files


@pytest.mark.skipif(os.name == "nt", reason="file names are text")
def test_errors_about_a_path_that_is_no_text_can_be_printed(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.h5"
    Path(os.fsdecode(path)).write_bytes(b"hello")
    with pytest.raises(ModelFormatError, match=r"udcff\.h5: user block") as caught:
        mlpkit.load(path)
    str(caught.value).encode()


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        mlpkit.load(tmp_path / "none.h5")


@pytest.mark.parametrize("content", [b"", b"m", MAGIC, b"hello, world\n" * 200, b"\0" * 5000])
def test_what_is_no_model(tmp_path, content):
    path = tmp_path / "model.h5"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match=r"model\.h5: (user block|file): "):
        mlpkit.load(path)


def test_errors_say_what_the_file_is_instead(tmp_path, model):
    path = tmp_path / "other.h5"
    for content, message in [
        (b"", "file: is empty"),
        (b"mlpkit", "user block: truncated after 6 bytes"),
        (b"hello", "not an mlpkit model file"),
        (model.read_bytes()[512:], "an HDF5 file, but not an mlpkit model"),
        (model.read_bytes().replace(b"\r\n", b"\n"), "transferred in text mode"),
        (model.read_bytes() + b"\n", "something follows its end"),
        (model.read_bytes()[:-1], "truncated"),
        (model.read_bytes()[:100], "user block: truncated after 100 of 512 bytes"),
        (model.read_bytes().replace(b"\nlength ", b"\nlength 0"), "length: cannot be read"),
        (model.read_bytes()[:512] + bytes(2000), "expected [0-9]+ bytes, found 2512"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ModelFormatError, match=message):
            mlpkit.load(path)


def test_every_truncation(tmp_path, model):
    image = model.read_bytes()
    path = tmp_path / "cut.h5"
    for length in [*range(0, 600, 3), *range(600, len(image), 17), len(image) - 1]:
        path.write_bytes(image[:length])
        with pytest.raises(ModelFormatError):
            mlpkit.load(path)


def test_flipped_bits(tmp_path, model):
    image = model.read_bytes()
    path = tmp_path / "flipped.h5"
    rng = np.random.default_rng(0)
    for position in [*range(512), *range(512, len(image), 5), len(image) - 1]:
        damaged = bytearray(image)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(ModelFormatError):
            mlpkit.load(path)


def test_zeroed_blocks_and_swapped_halves(tmp_path, model):
    image = model.read_bytes()
    path = tmp_path / "damaged.h5"
    middle = (512 + len(image)) // 2
    for damaged in [
        image[:512] + bytes(len(image) - 512),
        bytes(512) + image[512:],
        image[:512] + image[middle:] + image[512:middle],
    ]:
        path.write_bytes(damaged)
        with pytest.raises(ModelFormatError):
            mlpkit.load(path)


def test_newer_version_says_so_whatever_follows(tmp_path, model):
    path = tmp_path / "newer.h5"
    image = model.read_bytes()
    head = MAGIC + b"format version 2\n"
    for content in [
        seal(image, version=2),
        image.replace(b"format version 1", b"format version 2"),
        head,
        head + b"another layout",
        head.ljust(4096, b"?"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ModelFormatError, match=r"version 2, this mlpkit reads up to 1: update"):
            mlpkit.load(path)


def test_unreadable_versions(tmp_path, model):
    for version in ["0", "01", "-1", "x", "", "1.5", "9" * 100]:
        path = tmp_path / "model.h5"
        path.write_bytes(seal(model.read_bytes(), version=version))
        with pytest.raises(ModelFormatError, match=r"format version: cannot be read"):
            mlpkit.load(path)
        model.write_bytes(seal(path.read_bytes()))


def test_a_folder_and_a_pipe(tmp_path):
    with pytest.raises(ModelFormatError, match="file: expected a regular file"):
        mlpkit.load(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ModelFormatError, match="file: expected a regular file"):
            mlpkit.load(tmp_path / "pipe")
        with pytest.raises(InvalidArgumentError, match="path: expected the name of a file"):
            small_net().save(tmp_path / "pipe")


def test_size_cap_is_kept_by_save_and_load(tmp_path, model, monkeypatch):
    monkeypatch.setattr(model_file, "_MAX_FILE_BYTES", 1000)
    with pytest.raises(ModelFormatError, match="file: expected at most 1000 bytes"):
        mlpkit.load(model)
    with pytest.raises(InvalidArgumentError, match="expected at most 1000"):
        small_net().save(tmp_path / "big.h5")
    assert os.listdir(tmp_path) == ["model.h5"]


# ------------------------------------------------------------------------------------- forged files


def replaced(name, data, **options):
    def edit(file):
        del file[name]
        file.create_dataset(name, data=data, **options)

    return edit


def removed(name):
    return lambda file: file.__delitem__(name)


def added(name, value):
    return lambda file: file.__setitem__(name, value)


def entry(name, index, value):
    return lambda file: file[name].__setitem__(index, value)


def relinked(name, link):
    def edit(file):
        del file[name]
        file[name] = link

    return edit


def attribute(name, value, where="/"):
    return lambda file: file[where].attrs.__setitem__(name, value)


def without_attribute(name):
    return lambda file: file.attrs.__delitem__(name)


def configured(*keys_and_value):
    *keys, last, value = keys_and_value

    def edit(file):
        config = target = config_of(file)
        for key in keys:
            target = target[key]
        target[last] = value
        put_config(file, config)

    return edit


def raw_config(raw):
    return lambda file: put_config(file, raw)


def without_key(*keys):
    *keys, last = keys

    def edit(file):
        config = target = config_of(file)
        for key in keys:
            target = target[key]
        del target[last]
        put_config(file, config)

    return edit


def virtual(file):
    layout = h5py.VirtualLayout((3, 4), dtype="<f8")
    layout[:] = h5py.VirtualSource("other.h5", "W", shape=(3, 4))
    del file["parameters/1/W"]
    file["parameters/1"].create_virtual_dataset("W", layout)


def external(file):
    del file["parameters/1/W"]
    file.create_dataset("parameters/1/W", shape=(3, 4), dtype="<f8", external=[("/etc/passwd", 0, 96)])


def unwritten(file):
    del file["parameters/1/W"]
    file.create_dataset("parameters/1/W", shape=(3, 4), dtype="<f8")


def compact(file):
    del file["parameters/1/W"]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((3, 4))
    h5py.h5d.create(file["parameters/1"].id, b"W", h5py.h5t.IEEE_F64LE, space, properties)


def shared(file):
    del file["parameters/3/b"]
    file.create_dataset("parameters/3/b", data=np.ones(4))
    del file["parameters/3/W"]
    file["parameters/3/W"] = file["parameters/1/W"]


def loop(file):
    del file["parameters/3"]
    file["parameters/3"] = file["/"]


W1, B1 = "parameters/1/W", "parameters/1/b"
TEXT = h5py.string_dtype()
FORGERIES = {
    # numbers
    "nan": (entry(W1, (2, 1), np.nan), r"/parameters/1/W\[2, 1\]: expected finite.*nan"),
    "inf": (entry(B1, 0, -np.inf), r"/parameters/1/b\[0\]: expected finite.*-inf"),
    # shapes
    "transposed": (replaced(W1, np.ones((4, 3))), r"/1/W: expected shape \(3, 4\), found \(4, 3\)"),
    "flat": (replaced(W1, np.ones(12)), r"/1/W: expected shape"),
    "scalar": (replaced(W1, 1.0), r"/1/W: expected an array"),
    "empty": (replaced(W1, h5py.Empty("<f8")), r"/1/W: "),
    "short bias": (replaced(B1, np.ones(2)), r"/1/b: expected shape \(3,\), found \(2,\)"),
    # types
    "float32": (replaced(W1, np.ones((3, 4), "<f4")), r"/1/W: expected dtype <f8"),
    "big-endian": (replaced(W1, np.ones((3, 4), ">f8")), r"/1/W: expected dtype <f8"),
    "integers": (replaced(W1, np.ones((3, 4), "<i8")), r"/1/W: expected dtype <f8"),
    "complex": (replaced(W1, np.ones((3, 4), complex)), r"/1/W: expected dtype <f8"),
    "objects": (replaced(B1, ["a", "b", "c"], dtype=TEXT), r"/1/b: .*variable|/1/b: .*dtype"),
    "references": (
        lambda file: replaced(B1, [file.ref] * 3, dtype=h5py.ref_dtype)(file),
        r"/1/b: expected dtype",
    ),
    "config as text": (replaced("config", "{}"), r"/config: expected dtype \|u1"),
    # members
    "no W": (removed(W1), r"/parameters/1/W: missing"),
    "no b": (removed(B1), r"/parameters/1/b: missing"),
    "no layer": (removed("parameters/2"), r"/parameters/2: missing"),
    "no parameters": (removed("parameters"), r"/parameters: missing"),
    "no config": (removed("config"), r"/config: missing"),
    "extra dataset": (added("parameters/1/U", 1.0), r"/parameters/1/U: not part of the format"),
    "extra layer": (added("parameters/4/W", 1.0), r"/parameters/4: not part of the format"),
    "extra at root": (added("notes", 1.0), r"/notes: not part of the format"),
    "odd name": (lambda file: file.create_group(b"\xff"), "not part of the format"),
    "unwanted bias": (added("parameters/2/b", np.ones(2)), r"/parameters/2/b: not part"),
    "dataset for group": (replaced("parameters/1", 1.0), r"/parameters/1: expected a group"),
    "group for dataset": (
        lambda file: (removed(W1)(file), file.create_group(W1)),
        r"/1/W: expected a dataset, found a group",
    ),
    "named type": (relinked(W1, np.dtype("<f8")), r"/1/W: expected a dataset, found a datatype"),
    # links and storage
    "soft link": (relinked(W1, h5py.SoftLink("/parameters/3/W")), r"/1/W: .*found a soft link"),
    "external link": (
        relinked(W1, h5py.ExternalLink("other.h5", "W")),
        r"/1/W: .*found an external link",
    ),
    "external group": (
        relinked("parameters", h5py.ExternalLink("other.h5", "/")),
        r"/parameters: .*found an external link",
    ),
    "shared object": (shared, r"/W: expected an object of its own"),
    "loop": (loop, r"/parameters: |/parameters/3: "),
    "virtual dataset": (virtual, r"/1/W: a virtual dataset"),
    "external storage": (external, r"/1/W: external storage"),
    "chunks": (replaced(W1, np.ones((3, 4)), chunks=(3, 4)), r"/1/W: expected contiguous"),
    "growable": (replaced(W1, np.ones((3, 4)), maxshape=(None, 4)), r"/1/W: expected contiguous"),
    "compressed": (replaced(W1, np.ones((3, 4)), compression="gzip"), r"/1/W: filters"),
    "checksum filter": (replaced(W1, np.ones((3, 4)), fletcher32=True), r"/1/W: filters"),
    "compact": (compact, r"/1/W: expected contiguous"),
    "never written": (unwritten, r"/1/W: its numbers are missing"),
    # attributes
    "no format": (without_attribute("format"), "attribute format: missing"),
    "no objective": (without_attribute("objective"), "attribute objective: missing"),
    "extra attribute": (attribute("author", 1), "attribute author: not part of the format"),
    "text attribute": (attribute("format", "mlpkit.MLP"), "attribute format: wrong type"),
    "array attribute": (
        attribute("format", np.array([b"mlpkit.MLP"])),
        "attribute format: expected a scalar",
    ),
    "other format": (attribute("format", np.bytes_("torch")), "attribute format: expected b'mlp"),
    "other objective": (
        attribute("objective", np.bytes_("J = 0")),
        "attribute objective: expected",
    ),
    "other version": (attribute("version", np.uint32(2)), "attribute version: expected 1, found"),
    "float version": (attribute("version", 1.0), "attribute version: wrong type"),
    "long attribute": (attribute("numpy_version", np.bytes_("1" * 65)), "numpy_version: .*long"),
    "object attribute": (attribute("numpy_version", "2.0", "/"), "numpy_version: wrong type"),
    "dataset attribute": (attribute("a", 1, W1), r"/1/W: attributes here"),
    "group attribute": (attribute("a", 1, "parameters"), "/parameters: attributes here"),
    # configuration
    "not JSON": (raw_config(b"{"), "/config: not valid JSON"),
    "not UTF-8": (raw_config(b'{"\xff": 1}'), "/config: not valid JSON in UTF-8"),
    "not an object": (raw_config(b"[1]"), "/config: expected an object, found list"),
    "nested deeply": (raw_config(b"[" * 200_000), "/config: not valid JSON"),
    "key twice": (raw_config(b'{"a": 1, "a": 2}'), "/config: a key occurs twice"),
    "NaN": (raw_config(b'{"a": NaN}'), "/config: NaN is not a finite number"),
    "1e999": (raw_config(b'{"a": 1e999}'), "/config: 1e999 is not a finite number"),
    "huge integer": (raw_config(b'{"a": ' + b"9" * 10_000 + b"}"), "/config: not valid JSON"),
    "too large": (raw_config(b" " * (1024**2 + 1)), "/config: expected 1 to 1048576 bytes"),
    "2-D config": (replaced("config", np.ones((2, 2), np.uint8)), "/config: expected 1 to"),
    "unknown key": (configured("colour", "red"), "/config: .*colour"),
    "missing key": (without_key("weight_decay"), "/config: .*weight_decay"),
    "unknown layer key": (configured("layers", 1, "colour", "red"), "/config: "),
    "missing layer key": (without_key("layers", 1, "activation"), "layer 2: activation: None"),
    "dtype": (configured("dtype", "float16"), "/config: dtype: expected float64 or float32"),
    "dtype list": (configured("dtype", [1]), "/config: dtype: expected"),
    "other dtype": (configured("dtype", "float32"), r"/1/W: expected dtype <f4"),
    "no layers": (configured("layers", []), "/config: layers: expected a list of 2"),
    "layers text": (configured("layers", "ab"), "/config: layers: expected a list"),
    "layer text": (configured("layers", 1, "ab"), "/config: layer 2: expected a layer of type"),
    "two inputs": (configured("layers", 1, "type", "Input"), "/config: layer 2: .*Dense"),
    "zero units": (configured("layers", 1, "units", 0), "/config: layer 2: units: expected"),
    "true units": (configured("layers", 1, "units", True), "/config: layer 2: units: expected"),
    "float units": (configured("layers", 1, "units", 3.0), "/config: layer 2: units: expected"),
    "more units": (configured("layers", 1, "units", 4), r"/1/W: expected shape \(4, 4\)"),
    "half a surrogate": (raw_config(b'{"dtype": "\\ud800"}'), r"/config: dtype: .*ud800"),
    "half a surrogate as key": (configured("\ud800", 1), r"/config: not a config.*ud800"),
    "huge units": (configured("layers", 1, "units", 10**9), "/config: asks for .* parameters"),
    "bias": (configured("layers", 1, "bias", 1), "/config: layer 2: bias: expected true or"),
    "activation": (configured("layers", 1, "activation", "swoosh"), "layer 2.*'swoosh' is not"),
    "activation list": (configured("layers", 1, "activation", []), "layer 2: activation: "),
    "loss": (configured("loss", "hinge"), "/config: loss: 'hinge' is not registered.*losses"),
    "rho": (configured("layers", 1, "sparsity", "rho", 2.0), "/config: "),
    "sparsity text": (configured("layers", 1, "sparsity", "strong"), "/config: "),
    "decay": (configured("weight_decay", -1.0), "/config: "),
    "decay text": (configured("weight_decay", "1"), "/config: "),
    "seed": (configured("seed", "x"), "/config: "),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_file_is_refused_by_name_and_reason(model, name):
    edit, message = FORGERIES[name]
    forge(model, edit)
    with pytest.raises(ModelFormatError, match=message) as caught:
        mlpkit.load(model)
    assert str(caught.value).startswith(f"{model}: ")
    assert len(str(caught.value)) < 1000
    str(caught.value).encode()  # can be printed, whatever the file holds


def test_an_untouched_forgery_loads(model):
    """The forging itself is sound: only what it changes is refused."""
    forge(model, lambda file: None)
    assert same_bits(mlpkit.load(model).theta, small_net().theta)
    forge(model, lambda file: put_config(file, config_of(file)))
    assert same_bits(mlpkit.load(model).theta, small_net().theta)


def test_other_user_block_sizes_are_refused(model):
    image = model.read_bytes()
    for shift in [b"\0" * 512, b"\0" * 1536]:
        model.write_bytes(seal(image[:512] + shift + image[512:]))
        with pytest.raises(ModelFormatError, match=r"HDF5 signature: missing at byte 512"):
            mlpkit.load(model)


def test_a_small_file_cannot_ask_for_much_memory(model):
    forge(model, configured("layers", 0, "units", 4 * 10**8))
    tracemalloc.start()
    with pytest.raises(ModelFormatError, match="asks for"):
        mlpkit.load(model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_links_and_virtual_datasets_are_refused_though_their_targets_exist(tmp_path, model):
    net = small_net()
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["W"] = net.weights[0]
    for edit in (virtual, relinked(W1, h5py.ExternalLink(str(tmp_path / "other.h5"), "W"))):
        net.save(model)
        forge(model, edit)
        with pytest.raises(ModelFormatError, match=r"virtual|external"):
            mlpkit.load(model)


# ---------------------------------------------------------------------------------------- saving


def failing(error):
    def raises(*arguments, **keywords):
        raise error

    return raises


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_save_keeps_the_old_file_and_leaves_no_debris(tmp_path, monkeypatch, function, error, exists):
    path = tmp_path / "model.h5"
    old = small_net(seed=1)
    if exists:
        old.save(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, failing(error))
        with pytest.raises(type(error)):
            small_net(seed=2).save(path)
    assert os.listdir(tmp_path) == (["model.h5"] if exists else [])
    if exists:
        assert same_bits(mlpkit.load(path).theta, old.theta)


def test_a_failure_after_the_rename_leaves_the_new_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "model.h5"
    small_net(seed=1).save(path)
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"Input.output"):
        small_net(seed=2).save(path)
    assert os.listdir(tmp_path) == ["model.h5"]
    assert same_bits(mlpkit.load(path).theta, small_net(seed=2).theta)


@pytest.mark.parametrize("function", ["open", "fsync"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EINVAL])
def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path, monkeypatch, function, number):
    path = tmp_path / "model.h5"
    small_net(seed=1).save(path)
    real = getattr(os, function)

    def refuse(target, *arguments):
        is_folder = os.path.isdir(target) if function == "open" else stat.S_ISDIR(os.fstat(target).st_mode)
        if is_folder:
            raise OSError(number, os.strerror(number))
        return real(target, *arguments)

    monkeypatch.setattr(os, function, refuse)
    small_net(seed=2).save(path)
    monkeypatch.undo()
    assert same_bits(mlpkit.load(path).theta, small_net(seed=2).theta)


def recording(calls, name, function):
    def call(*arguments):
        calls.append(name)
        return function(*arguments)

    return call


def test_the_file_is_on_disk_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, recording(calls, name, getattr(os, name)))
    small_net().save(tmp_path / "model.h5")
    assert calls == ["fsync", "replace", *([] if os.name == "nt" else ["fsync"])]


def test_saving_replaces_what_a_symbolic_link_points_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.h5").symlink_to(Path("real", "model.h5"))
    for seed in (1, 2):  # first through a dangling link, then onto an existing file
        small_net(seed=seed).save(tmp_path / "link.h5")
        assert (tmp_path / "link.h5").is_symlink()
        assert os.listdir(tmp_path / "real") == ["model.h5"]
        loaded = mlpkit.load(tmp_path / "link.h5")
        assert same_bits(loaded.theta, small_net(seed=seed).theta)


@pytest.mark.skipif(os.name == "nt", reason="permission bits")
def test_permission_bits(tmp_path):
    path = tmp_path / "model.h5"
    old = os.umask(0o027)
    try:
        small_net().save(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o664)
    small_net().save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o664


def test_a_write_protected_file_is_not_replaced(model, monkeypatch):
    model.chmod(0o444)
    # What the system answers to anybody but root, for whom the tests may run.
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and Path(path).samefile(model)))
    with pytest.raises(PermissionError, match="write-protected"):
        small_net(seed=2).save(model)
    assert os.listdir(model.parent) == [model.name]
    assert same_bits(mlpkit.load(model).theta, small_net(seed=1).theta)


def test_where_nothing_can_be_saved(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder to save into does not exist"):
        small_net().save(tmp_path / "none" / "model.h5")
    for path in (tmp_path, f"{tmp_path}/model.h5/", f"{tmp_path}/model.h5/.", "", f"{tmp_path}/model.h5/.."):
        with pytest.raises(InvalidArgumentError, match="path: expected the name of a file"):
            small_net().save(path)
    assert os.listdir(tmp_path) == []


def test_a_seed_that_json_could_not_hold_is_not_saved(tmp_path):
    with pytest.raises(InvalidArgumentError, match="seed of at most 1024 bits, found one of 16610"):
        small_net(seed=10**5000).save(tmp_path / "model.h5")
    assert os.listdir(tmp_path) == []
    largest = 2**1024 - 1
    assert mlpkit.load(saved(small_net(seed=largest), tmp_path)).seed == largest


def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_net().save("model.h5")
    assert same_bits(mlpkit.load("model.h5").theta, small_net().theta)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_parameters_are_not_saved(tmp_path, value):
    net = small_net()
    net.biases[2][3] = value
    with pytest.raises(InvalidArgumentError, match=rf"found b\^\(3\)\[3\] = {value}"):
        net.save(tmp_path / "model.h5")
    assert os.listdir(tmp_path) == []


def test_saving_does_not_change_the_network(tmp_path):
    net = small_net()
    before, config = net.theta.copy(), net.config()
    net.save(tmp_path / "model.h5")
    assert same_bits(net.theta, before)
    assert net.config() == config


# -------------------------------------------------------------------------------- user's functions


def cube(name="cube of a test"):
    """An activation of the user's own."""
    return activations.Activation(name, lambda z: z * z * z, lambda z, a: 3.0 * z * z)


def test_an_unregistered_activation_is_named_and_loads_once_registered(tmp_path, monkeypatch):
    monkeypatch.setattr(activations, "_REGISTRY", copy.copy(activations._REGISTRY))
    own = cube()
    net = MLP([Input(3), Dense(2, own), Dense(1, "identity")], seed=0)
    with pytest.warns(UserWarning, match=r"layer 2: .*'cube of a test' is not registered") as caught:
        net.save(path := tmp_path / "model.h5")
    assert caught[0].filename == __file__
    message = r"/config: layer 2: activation: 'cube of a test' is not registered.*register it.*sigm"
    with pytest.raises(ModelFormatError, match=message):
        mlpkit.load(path)
    activations.register(own)
    back = mlpkit.load(path)
    assert back.layers[1].activation is own
    assert same_bits(back.theta, net.theta)


def test_an_unregistered_loss_is_named(model):
    forge(model, configured("loss", "hinge of a test"))
    with pytest.raises(ModelFormatError, match="'hinge of a test' is not registered"):
        mlpkit.load(model)


def test_an_impostor_of_a_registered_activation_is_not_saved(tmp_path):
    """Only the name is stored: loading would silently give another function."""
    net = MLP([Input(3), Dense(2, cube("sigmoid"))], seed=0)
    with pytest.raises(InvalidArgumentError, match="layer 2: activation: 'sigmoid' is registered"):
        net.save(tmp_path / "model.h5")
    assert os.listdir(tmp_path) == []


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
