"""Files prepared for training: the same numbers as in memory, whole or not at all, and errors that name the place."""

from __future__ import annotations

import gzip
import struct
import tracemalloc

import h5py
import numpy as np
import pytest

import mlpkit
from mlpkit import datasets, prepare, preprocessing
from mlpkit.errors import DataFileError, InvalidArgumentError
from mlpkit.row_files import open_rows
from mlpkit.row_writer import write_rows


def rows(where):
    source = open_rows(where, "X")
    return source.rows(0, source.shape[0])


@pytest.fixture
def images(rng):
    return [rng.normal(size=(40, 50)), rng.normal(size=(64, 33))]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_patches_are_those_of_memory(tmp_path, images, dtype):
    seen = []
    where = datasets.write_patches(
        images, tmp_path / "p.h5", 5000, 7, seed=3, dtype=dtype, progress=lambda *at: seen.append(at)
    )
    expected = preprocessing.squash(preprocessing.remove_dc(preprocessing.sample_patches(images, 5000, 7, seed=3)))
    np.testing.assert_allclose(rows(where), expected, rtol=0, atol=1e-14 if dtype == "float64" else 1e-7)
    assert seen[-1] == (5000, 5000)
    with h5py.File(tmp_path / "p.h5") as file:
        assert file["X"].fletcher32
        assert file["X"].dtype == dtype
    plain = datasets.write_patches(images, tmp_path / "plain.h5", 50, normalise=False, dtype="float64")
    assert np.array_equal(rows(plain), preprocessing.sample_patches(images, 50))


def test_many_patches_take_little_memory_and_are_drawn_twice_alike(tmp_path, images):
    tracemalloc.start()
    where = datasets.write_patches(images, tmp_path / "p.h5", 100_000, seed=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    X = rows(where)
    assert X.shape == (100_000, 64)
    assert peak < X.nbytes  # float64 patches would be twice that, and squash takes three times those
    again = datasets.write_patches(images, tmp_path / "q.h5", 100_000, seed=1)
    assert np.array_equal(rows(again), X)
    assert 0.1 <= X.min() < 0.11
    assert 0.89 < X.max() <= 0.9


def test_a_network_is_trained_on_what_was_written(tmp_path, images):
    where = datasets.write_patches(images, tmp_path / "p.h5", 2000, dtype="float64")
    net = mlpkit.sparse_autoencoder(n_inputs=64, n_hidden=5, seed=0)
    result = net.fit(where, where, mlpkit.LBFGS(max_iter=3))
    assert result.n_iterations == 3


def test_a_flipped_bit_is_an_error(tmp_path, images):
    where = datasets.write_patches(images, tmp_path / "p.h5", 2000)
    content = bytearray((tmp_path / "p.h5").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "p.h5").write_bytes(content)
    with pytest.raises(DataFileError, match=r"rows 0 to .* of '.*p.h5:/X' cannot be read"):
        rows(where)


def test_tables_of_text(tmp_path, rng):
    X = rng.normal(size=(3000, 7))
    path = tmp_path / "X.csv"
    lines = [",".join(map(repr, row)) for row in X.tolist()]
    path.write_text("\n".join(["a,b,c,d,e,f,g", *lines, "", ""]))
    assert np.array_equal(rows(prepare.to_hdf5(path, tmp_path / "X.h5", name="table")), X)
    for text, message in [
        ("1,2\n3,x\n", "line 2: could not convert"),
        ("1,2\n3\n", "must have 2 columns; found 1 in line 2"),
        ("a,b\n", "found none"),
    ]:
        path.write_text(text)
        with pytest.raises(InvalidArgumentError, match=message):
            prepare.to_hdf5(path, tmp_path / "X.h5")
    assert rows(f"{tmp_path / 'X.h5'}:/table").shape == X.shape  # the old file is as it was


def test_arrays_and_other_sources(tmp_path, rng):
    X = rng.integers(0, 255, (5000, 40), dtype=np.uint8)
    np.save(tmp_path / "X.npy", X)
    where = prepare.to_hdf5(tmp_path / "X.npy", tmp_path / "X.h5")
    assert rows(where).dtype == np.uint8
    again = prepare.to_hdf5(where, tmp_path / "Y.h5", dtype="float32")
    assert rows(again).dtype == np.float32
    assert np.array_equal(rows(again), X)
    with pytest.raises(InvalidArgumentError, match="source must be the path"):
        prepare.to_hdf5(X, tmp_path / "Z.h5")


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(tmp_path, rng, packed):
    pixels, labels = rng.integers(0, 255, (300, 5, 6), dtype=np.uint8), rng.integers(0, 9, 300).astype(">i4")
    images = b"\0\0\x08\x03" + struct.pack(">3I", 300, 5, 6) + pixels.tobytes()
    numbers = b"\0\0\x0c\x01" + struct.pack(">I", 300) + labels.tobytes()
    for name, content in [("train-images-idx3-ubyte", images), ("train-labels-idx1", numbers)]:
        (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    where = prepare.to_hdf5(tmp_path / "train-images-idx3-ubyte", tmp_path / "X.h5")
    assert np.array_equal(rows(where), pixels.reshape(300, 30))
    assert np.array_equal(rows(prepare.to_hdf5(tmp_path / "train-labels-idx1", tmp_path / "y.h5")), labels)
    for content, message in [
        (images[:-1], "must have 300 rows"),
        (images + b"x", "must end after 300 rows"),
        (images[:9], "ends inside its header"),
        (b"\1" + images[1:], "must be an IDX file"),
    ]:
        (tmp_path / "bad-idx").write_bytes(content)
        with pytest.raises(InvalidArgumentError, match=message):
            prepare.to_hdf5(tmp_path / "bad-idx", tmp_path / "bad.h5")
    assert not (tmp_path / "bad.h5").exists()


def test_a_folder_of_images(tmp_path, rng):
    from PIL import Image

    (tmp_path / "images").mkdir()
    pixels = rng.integers(0, 255, (12, 9, 8), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{i:02}.png")
    where = prepare.to_hdf5(tmp_path / "images", tmp_path / "X.h5")
    assert np.array_equal(rows(where), pixels.reshape(12, 72) / 255)
    with h5py.File(tmp_path / "X.h5") as file:
        assert tuple(file["X"].attrs["image_shape"]) == (9, 8)
    Image.fromarray(pixels[0, :4]).save(tmp_path / "images" / "11.png")
    with pytest.raises(InvalidArgumentError, match=r"must all have shape \(9, 8\); found \(4, 8\) in .*11.png"):
        prepare.to_hdf5(tmp_path / "images", tmp_path / "X.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArgumentError, match="found none"):
        prepare.to_hdf5(tmp_path / "empty", tmp_path / "X.h5")


def test_rows_of_different_lengths_are_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"rows must all have shape \(2,\); found \(3,\)"):
        write_rows(tmp_path / "X.h5", iter([np.zeros((1, 2)), np.zeros((1, 3))]))
    assert not list(tmp_path.iterdir())
