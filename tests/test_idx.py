"""IDX files: what is written is read, of every type, packed or not; anything else is an error that says what."""

import contextlib
import gzip
import io
import os
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlpkit import datasets
from mlpkit.datasets import load_mnist, read_idx
from mlpkit.errors import InvalidArgumentError

TYPES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def header(kind, *sizes):
    return bytes([0, 0, kind, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)


def encoded(array):
    kind = TYPES[f"{array.dtype.kind}{array.dtype.itemsize}"]
    return header(kind, *array.shape) + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "some.file"
        path.write_bytes(content)
        return path

    return write


def arrays():
    shapes = hnp.array_shapes(min_dims=1, max_dims=5, min_side=1, max_side=5)
    return st.sampled_from(sorted(TYPES)).flatmap(lambda name: hnp.arrays(np.dtype(name), shapes))


@given(array=arrays(), packed=st.booleans())
def test_every_type_and_shape_reads_as_it_was_written(tmp_path_factory, array, packed):
    path = tmp_path_factory.mktemp("idx", numbered=True) / ("a" if packed else "a.gz")  # the name says nothing
    content = encoded(array)
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    found = read_idx(path)
    path.unlink()
    assert found.dtype == array.dtype
    assert found.dtype.isnative
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()  # NaNs too
    assert found.flags.writeable
    assert found.flags.c_contiguous


def test_big_endian_bytes_spelt_out(written):
    path = written(bytes([0, 0, 0x0B, 2, 0, 0, 0, 1, 0, 0, 0, 3, 0x01, 0x02, 0xFF, 0xFE, 0x00, 0x07]))
    np.testing.assert_array_equal(read_idx(str(path)), np.array([[258, -2, 7]], np.int16))


def test_several_gzip_members_and_padding_are_one_file(written):
    content = encoded(np.arange(100, dtype=np.int32))
    packed = gzip.compress(content[:7]) + gzip.compress(content[7:]) + bytes(50)
    np.testing.assert_array_equal(read_idx(written(packed)), np.arange(100))


GOOD = header(8, 2, 3) + bytes(6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begin with bytes 0, 0 and one of .*found nothing"),
        (b"\x89PNG\r\n\x1a\n", "begin with bytes 0, 0 .*found 89 50 4e"),
        (b"\0\0\x0a\1\0\0\0\1\0", "found 00 00 0a"),
        (b"\0\0\x08", "found 00 00 08"),
        (b"\0\0\x08\0\7", "1 to 32 dimensions; found 0"),
        (header(8, *[1] * 33) + b"\7", "1 to 32 dimensions; found 33"),
        (GOOD[:11], "ends within its header, after 11 bytes"),
        (GOOD[:-1], r"2 x 3 numbers of 1 bytes, 6 bytes in all; 5 follow it"),
        (GOOD + b"\0", "6 bytes in all; (7|more) follow it"),
        (header(8, 2, 0, 3), "2 x 0 x 3 numbers: none"),
        (header(8, 0, 2**32 - 1, 2**32 - 1), "none"),
        (header(0x0E, 2, 3) + bytes(6), "2 x 3 numbers of 8 bytes, 48 bytes in all; 6 follow it"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_wrong_is_said(written, content, message, packed):
    path = written(gzip.compress(content) if packed else content)
    with pytest.raises(InvalidArgumentError, match=rf"some\.file' cannot be read as IDX.*{message}"):
        read_idx(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sizes", [(2**31,), (2**32 - 1,) * 3, (2**32 - 1,) * 32])
def test_sizes_that_the_file_cannot_hold_take_no_memory(written, packed, sizes):
    content = header(0x0E, *sizes) + bytes(100)
    path = written(gzip.compress(content) if packed else content)
    for limit in ({}, {"max_bytes": 2**1100}):
        tracemalloc.start()
        with pytest.raises(InvalidArgumentError, match=r"max_bytes allows|no gzipped file|100 follow it"):
            read_idx(path, **limit)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**20


def test_max_bytes_is_the_largest_array(written):
    path = written(gzip.compress(header(0x0C, 5, 5) + bytes(100)))
    assert read_idx(path, max_bytes=100).shape == (5, 5)
    with pytest.raises(InvalidArgumentError, match=r"5 x 5 numbers of 4 bytes.*max_bytes allows 99"):
        read_idx(path, max_bytes=99)
    with pytest.raises(InvalidArgumentError, match="max_bytes must be an integer of at least 1"):
        read_idx(path, max_bytes=0)


def test_a_gzip_bomb_is_not_unpacked_beyond_what_its_header_says(written):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = io.BytesIO()
    bomb.write(packer.compress(header(8, 1000)))
    for _ in range(64):
        bomb.write(packer.compress(bytes(2**20)))
    bomb.write(packer.flush())
    path = written(bomb.getvalue())
    tracemalloc.start()
    with pytest.raises(InvalidArgumentError, match="1000 bytes in all; more follow it"):
        read_idx(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**21


def test_damaged_gzip_is_an_error(written):
    rng = np.random.default_rng(0)
    packed = gzip.compress(encoded(rng.integers(0, 256, (20, 20), dtype=np.uint8)))
    for cut in (3, 12, len(packed) // 2, len(packed) - 1):
        with pytest.raises(InvalidArgumentError, match=r"some\.file' cannot be read as IDX"):
            read_idx(written(packed[:cut]))
    wrong_sum = packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]
    with pytest.raises(InvalidArgumentError, match="CRC"):
        read_idx(written(wrong_sum))
    with pytest.raises(InvalidArgumentError, match="gzip"):
        read_idx(written(packed + b"something else"))


@given(data=st.data())
def test_no_bytes_raise_anything_else(tmp_path_factory, data):
    content = bytearray(data.draw(st.sampled_from([GOOD, gzip.compress(GOOD)])))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("idx", numbered=True) / "a"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(InvalidArgumentError):
        assert read_idx(path).size <= 6
    path.unlink()


def test_paths_are_checked(tmp_path):
    with pytest.raises(InvalidArgumentError, match="path must be a path; found 3"):
        read_idx(3)
    with pytest.raises(InvalidArgumentError, match=r"no file '.*nowhere'"):
        read_idx(tmp_path / "nowhere")
    with pytest.raises(InvalidArgumentError, match="no file"):
        read_idx(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(InvalidArgumentError, match="no file"):
            read_idx(tmp_path / "pipe")


# ------------------------------------------------------------------------------------------- MNIST

RNG = np.random.default_rng(0)
IMAGES, TEST_IMAGES = (RNG.integers(0, 256, (m, 4, 3), dtype=np.uint8) for m in (7, 5))
LABELS, TEST_LABELS = (RNG.integers(0, 10, m, dtype=np.uint8) for m in (7, 5))


def write_mnist(folder, names="{part}-{what}-idx{n}-ubyte", test="t10k", **changed):
    contents = {"images": IMAGES, "labels": LABELS, "test_images": TEST_IMAGES, "test_labels": TEST_LABELS} | changed
    for key, array in contents.items():
        part, what = (test, key[5:]) if key.startswith("test_") else ("train", key)
        name = names.format(part=part, what=what, n=3 if what == "images" else 1)
        content = encoded(array)
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


@pytest.mark.parametrize("names", ["{part}-{what}-idx{n}-ubyte", "{part}-{what}.idx{n}-ubyte"])
@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("dtype", ["float64", np.float32])
def test_mnist_under_all_its_names(tmp_path, names, ending, dtype):
    write_mnist(tmp_path, names + ending)
    X, y, X_test, y_test = load_mnist(str(tmp_path), dtype=dtype)
    for found, images in ((X, IMAGES), (X_test, TEST_IMAGES)):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, (images / 255).reshape(len(images), 12).astype(dtype))
    for found, labels in ((y, LABELS), (y_test, TEST_LABELS)):
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, labels)


def test_mnist_test_may_be_called_test(tmp_path):
    write_mnist(tmp_path, test="test")
    assert [len(array) for array in load_mnist(tmp_path)] == [7, 7, 5, 5]


def test_white_is_1_and_black_0(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    write_mnist(tmp_path, images=levels, labels=LABELS[:1], test_images=levels, test_labels=LABELS[:1])
    X, *_ = load_mnist(tmp_path, dtype="float32")
    np.testing.assert_array_equal(X[0], (np.arange(256) / 255).astype(np.float32))


def test_all_missing_files_are_listed(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(InvalidArgumentError) as error:
        load_mnist(tmp_path)
    message = str(error.value)
    assert "training labels (train-labels-idx1-ubyte[.gz])" in message
    assert "test images (t10k-images-idx3-ubyte[.gz])" in message
    assert "training images" not in message
    assert str(tmp_path) in message
    with pytest.raises(InvalidArgumentError, match="no folder"):
        load_mnist(tmp_path / "nowhere")
    with pytest.raises(InvalidArgumentError, match="folder must be a path"):
        load_mnist(None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": LABELS[:-1]}, r"train-labels-idx1-ubyte' must hold a label for each of 7 images; found 6"),
        ({"test_labels": LABELS}, r"t10k-labels.* for each of 5 images; found 7"),
        ({"images": IMAGES[0]}, r"train-images.* must hold images, \(m, height, width\).*found shape \(4, 3\)"),
        ({"test_labels": TEST_IMAGES}, r"t10k-labels.* must hold labels, \(m,\)"),
        ({"images": IMAGES.astype(np.int16)}, r"of dtype uint8; found .* int16"),
        ({"test_images": TEST_IMAGES[:, :2]}, r"t10k-images.*training images' size \(4, 3\); found \(2, 3\)"),
    ],
)
def test_files_that_do_not_fit_together_are_named(tmp_path, changed, message):
    write_mnist(tmp_path, **changed)
    with pytest.raises(InvalidArgumentError, match=message):
        load_mnist(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "int64", "pixels", [1], None])
def test_dtype_is_checked(tmp_path, dtype):
    write_mnist(tmp_path)
    if dtype is None:  # to NumPy that means float64
        assert load_mnist(tmp_path, dtype=dtype)[0].dtype == np.float64
        return
    with pytest.raises(InvalidArgumentError, match="dtype must be one of"):
        load_mnist(tmp_path, dtype=dtype)


def test_they_are_reached_through_datasets():
    assert {"read_idx", "load_mnist"} <= set(datasets.__all__)
