"""The seal of a model file: what is damaged, truncated, newer or something else is refused before HDF5 sees it."""

import errno
import hashlib
import io
import os
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from forging import MAGIC, seal

import mlpkit
from mlpkit import MLP, Dense, Input, model_file, sealed_file
from mlpkit.errors import InvalidArgumentError, ModelFormatError


def small_net(seed=1):
    return MLP([Input(4), Dense(3, "sigmoid"), Dense(2, "tanh", bias=False)], seed=seed)


@pytest.fixture
def model(tmp_path):
    small_net().save(tmp_path / "model.h5")
    return tmp_path / "model.h5"


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
    head = MAGIC + b"format version 2.0\n"
    for content in [
        seal(image, version="2.0"),
        image.replace(b"format version 1.0", b"format version 3.1"),
        head,
        head + b"another layout",
        head.ljust(4096, b"?"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ModelFormatError, match=r"version [23]\.[01], this mlpkit reads up to 1: update"):
            mlpkit.load(path)


def test_unreadable_versions(tmp_path, model):
    for version in ["0", "01", "-1", "x", "", "1", "1.", ".1", "1.05", "0.1", "1.0.0", "1.-1", "9" * 100 + ".0"]:
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


def test_the_size_cap_is_kept_by_save_and_load(tmp_path, model, monkeypatch):
    monkeypatch.setattr(sealed_file, "MAX_FILE_BYTES", 1000)
    with pytest.raises(ModelFormatError, match="file: expected at most 1000 bytes"):
        mlpkit.load(model)
    monkeypatch.setattr(model_file, "MAX_FILE_BYTES", 2**24 + 100)
    with pytest.raises(InvalidArgumentError, match=r"expected at most .* bytes of parameters"):
        small_net().save(tmp_path / "big.h5")
    assert os.listdir(tmp_path) == ["model.h5"]


# ------------------------------------------------------------------------------ blocks and threads


@pytest.fixture(params=[(64, 2, 64), (1000, 3, 1), (1024, 8, 4096), (7, 3, 1000)])
def _sizes(request, monkeypatch):
    """Blocks of odd sizes, many to a file; few of them ahead of the hash, and the disk asked often."""
    for name, value in zip(("_BLOCK", "_AHEAD", "_SYNCED"), request.param, strict=True):
        monkeypatch.setattr(sealed_file, name, value)


@pytest.mark.usefixtures("_sizes")
def test_blocks_of_any_size(tmp_path):
    net = MLP([Input(40), Dense(30, "sigmoid"), Dense(20, "tanh", bias=False), Dense(1, "identity")], seed=0)
    net.save(tmp_path / "model.h5")
    image = (tmp_path / "model.h5").read_bytes()
    assert image == seal(image)
    assert mlpkit.load(tmp_path / "model.h5").theta.tobytes() == net.theta.tobytes()


def test_an_error_of_the_disk_while_more_is_written_is_not_lost(tmp_path, model, monkeypatch):
    """The system tells it once, to whoever asks first."""
    monkeypatch.setattr(sealed_file, "_BLOCK", 64)
    monkeypatch.setattr(sealed_file, "_SYNCED", 64)
    before, told = model.read_bytes(), []

    def fsync(descriptor):
        if not told:
            told.append(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="the file there is as it was"):
        small_net(seed=2).save(model)
    assert told
    assert model.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.h5"]


def test_a_hash_that_lags_is_waited_for(tmp_path, monkeypatch):
    """A buffer is not filled again before what was in it is hashed."""
    real = hashlib.sha256

    class Slow:
        def __init__(self):
            self.digest = real()

        def update(self, block):
            time.sleep(0.001)
            self.digest.update(block)

        def hexdigest(self):
            return self.digest.hexdigest()

    monkeypatch.setattr(sealed_file, "_BLOCK", 512)
    monkeypatch.setattr(hashlib, "sha256", Slow)
    net = MLP([Input(40), Dense(30, "sigmoid")], seed=0)
    net.save(tmp_path / "model.h5")
    monkeypatch.undo()
    image = (tmp_path / "model.h5").read_bytes()
    assert image == seal(image)


@pytest.mark.usefixtures("_sizes")
def test_a_system_that_reads_from_one_place_only(model, monkeypatch):
    monkeypatch.setattr(sealed_file, "_ANY_ORDER", False)
    monkeypatch.setattr(sealed_file, "_READERS", 1)
    assert mlpkit.load(model).theta.tobytes() == small_net().theta.tobytes()


@pytest.fixture
def images(monkeypatch):
    """The files that are read, as they are in memory."""
    found, real = [], model_file.read_sealed

    def spy(*arguments):
        image, version = real(*arguments)
        found.append(image.page(0))
        return image, version

    monkeypatch.setattr(model_file, "read_sealed", spy)
    return found


def test_parameters_stay_where_they_were_read(model, images):
    net = MLP([Input(50), Dense(40, "sigmoid"), Dense(30, "sigmoid", bias=False), Dense(7, "sigmoid")], seed=0)
    net.save(model)
    theta = mlpkit.load(model).theta
    assert theta.tobytes() == net.theta.tobytes()
    assert np.shares_memory(theta, images[0])
    assert theta.flags.carray  # contiguous, aligned and writable
    with h5py.File(model) as file:  # nothing but the biases is moved
        assert theta.ctypes.data == images[0].ctypes.data + file["parameters/1/W"].id.get_offset()


def test_parameters_in_another_order_are_put_in_order(model, images):
    buffer = io.BytesIO()
    with h5py.File(model) as ours, h5py.File(buffer, "w", userblock_size=512) as theirs:
        theirs.create_group("parameters").attrs.update(ours["parameters"].attrs)
        for name in ("parameters/2", "parameters/1", "config", "metadata", "provenance"):
            ours.copy(name, theirs, name)
        theirs.attrs.update(ours.attrs)
    model.write_bytes(seal(buffer.getvalue()))
    theta = mlpkit.load(model).theta
    assert theta.tobytes() == small_net().theta.tobytes()
    assert not np.shares_memory(theta, images[0])


@pytest.mark.parametrize("small", [True, False])
def test_as_python_exits_no_thread_is_needed(tmp_path, monkeypatch, small):
    """An atexit handler may save, though threads cannot be started any more."""

    def submit(*arguments):
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    if small:
        monkeypatch.setattr(sealed_file, "_BLOCK", 64)
    monkeypatch.setattr(sealed_file.ThreadPoolExecutor, "submit", submit)
    small_net().save(tmp_path / "model.h5")
    assert mlpkit.load(tmp_path / "model.h5").theta.tobytes() == small_net().theta.tobytes()


def test_a_file_that_shrinks_while_it_is_read_is_refused(model, monkeypatch):
    real, length = sealed_file._read_hashed, model.stat().st_size

    def read(file, size):
        os.truncate(model, length - 100)
        return real(file, size)

    monkeypatch.setattr(sealed_file, "_read_hashed", read)
    with pytest.raises(ModelFormatError, match="file: became shorter while it was read"):
        mlpkit.load(model)


def test_a_file_that_changes_while_it_is_read_is_refused(model, monkeypatch):
    real, image = sealed_file._read_hashed, model.read_bytes()

    def read(file, size):
        model.write_bytes(image[:20] + b"X" + image[21:])
        return real(file, size)

    monkeypatch.setattr(sealed_file, "_read_hashed", read)
    with pytest.raises(ModelFormatError, match="SHA-256 digest: does not match"):
        mlpkit.load(model)


def test_a_network_that_changes_while_it_is_saved_leaves_a_file_that_loads(tmp_path, monkeypatch):
    """Some of the numbers are old and some new, but the digest is that of what was written."""
    net = MLP([Input(50), Dense(50, "sigmoid")], seed=0)
    real = sealed_file.write_all

    def write_all(file, content):
        real(file, content)
        net.theta += 1.0

    monkeypatch.setattr(sealed_file, "write_all", write_all)
    monkeypatch.setattr(sealed_file, "_BLOCK", 1000)
    net.save(tmp_path / "model.h5")
    monkeypatch.undo()
    assert np.isfinite(mlpkit.load(tmp_path / "model.h5").theta).all()
