"""Loading images: what comes with scikit-image, and every kind of file, good and bad."""

import socket
import struct
import sys
import zlib

import h5py
import numpy as np
import pytest
import scipy.io

from mlpkit import datasets
from mlpkit.datasets import load_images, natural_images
from mlpkit.errors import InvalidArgumentError, MissingExtraError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
STACK = RNG.standard_normal((7, 7, 5))


def luminance(colour):
    return 0.2125 * colour[..., 0] + 0.7154 * colour[..., 1] + 0.0721 * colour[..., 2]


def save_picture(path, pixels, **options):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    # pooch is what scikit-image downloads with: None makes importing it an error.
    monkeypatch.setitem(sys.modules, "pooch", None)


def test_natural_images_are_grey_photographs_from_the_wheel(no_network):
    pytest.importorskip("skimage")
    images = natural_images()
    assert len(images) == 8
    for image in images:
        assert image.ndim == 2
        assert image.dtype == np.float64
        assert min(image.shape) >= 300
        assert image.min() >= 0.0
        assert image.max() <= 1.0
        assert image.std() > 0.05


def test_natural_images_agree_with_scikit_images_own_loader():
    data = pytest.importorskip("skimage.data")
    images = natural_images()
    np.testing.assert_array_equal(images[0], data.camera() / 255)
    np.testing.assert_allclose(images[1], luminance(data.astronaut() / 255), atol=1e-15)


def test_every_natural_image_is_listed_in_the_wheels_record():
    pytest.importorskip("skimage")
    from importlib.metadata import files

    record = {str(file) for file in files("scikit-image") or ()}
    if not record:
        pytest.skip("this installation has no record of its files")
    assert {f"skimage/data/{name}" for name in datasets.NATURAL_IMAGES} <= record


@pytest.mark.parametrize("module", ["skimage", "PIL.Image"])
def test_a_missing_package_names_the_extra(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"mlpkit\[images\]"):
        natural_images()


def test_a_distribution_without_the_pictures_is_a_clear_error(monkeypatch, tmp_path):
    skimage = pytest.importorskip("skimage")
    monkeypatch.setattr(skimage, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(InvalidArgumentError, match=r"camera\.png"):
        natural_images()


def test_png_grey_and_colour(tmp_path):
    grey = save_picture(tmp_path / "grey.png", GREY)
    colour = save_picture(tmp_path / "colour.PNG", COLOUR)
    images = load_images([grey, str(colour)])
    np.testing.assert_array_equal(images[0], GREY / 255)
    np.testing.assert_allclose(images[1], luminance(COLOUR / 255), atol=1e-15)


def test_png_opacity_is_laid_on_white(tmp_path):
    opacity = RNG.integers(0, 256, (6, 9, 1), dtype=np.uint8)
    path = save_picture(tmp_path / "a.png", np.concatenate([COLOUR, opacity], axis=2))
    alpha = opacity[..., 0] / 255
    expected = luminance(COLOUR / 255) * alpha + 1 - alpha
    np.testing.assert_allclose(load_images(path)[0], expected, atol=1e-15)


def test_png_of_16_bits_of_1_bit_and_with_a_palette(tmp_path):
    image = pytest.importorskip("PIL.Image")
    deep = RNG.integers(0, 65536, (6, 9), dtype=np.uint16)
    path = save_picture(tmp_path / "deep.png", deep)
    np.testing.assert_array_equal(load_images(path)[0], deep / 65535)
    path = tmp_path / "bits.png"
    image.fromarray(GREY).convert("1", dither=0).save(path)
    np.testing.assert_array_equal(load_images(path)[0], GREY >= 128)
    path = tmp_path / "palette.png"
    palette = image.fromarray(COLOUR).convert("P")
    palette.save(path)
    expected = luminance(np.asarray(palette.convert("RGB")) / 255)
    np.testing.assert_allclose(load_images(path)[0], expected, atol=1e-15)


@pytest.mark.parametrize("ending", [".jpg", ".jpeg"])
def test_jpg(tmp_path, ending):
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (32, 1))
    (image,) = load_images(save_picture(tmp_path / f"ramp{ending}", ramp, quality=95))
    np.testing.assert_allclose(image, ramp / 255, atol=0.03)


def test_white_is_exactly_1_and_grey_in_three_channels_is_that_grey(tmp_path):
    levels = np.repeat(np.arange(256, dtype=np.uint8)[:, np.newaxis], 3, axis=1)[np.newaxis]
    (image,) = load_images(save_picture(tmp_path / "levels.png", np.ascontiguousarray(levels)))
    np.testing.assert_array_equal(image[0], np.arange(256) / 255)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, [GREY / 255]),
        (GREY.astype(np.uint16), [GREY / 65535]),
        (GREY > 99, [GREY > 99]),
        (GREY.astype(np.int64), [GREY]),
        (STACK[:, :, 0].astype(np.float32), [STACK[:, :, 0].astype(np.float32)]),
        (STACK, list(np.moveaxis(STACK, -1, 0))),
        (np.moveaxis(STACK, -1, 0), list(np.moveaxis(STACK, -1, 0))),
        (COLOUR, [luminance(COLOUR / 255)]),
        (COLOUR / 255, [luminance(COLOUR / 255)]),
        (COLOUR.astype(np.uint16), [luminance(COLOUR / 65535)]),
        (np.stack([COLOUR, 255 - COLOUR]), [luminance(COLOUR / 255), luminance(1 - COLOUR / 255)]),
        (np.asfortranarray(GREY), [GREY / 255]),
    ],
)
def test_npy_and_h5_read_the_same(tmp_path, array, expected):
    np.save(tmp_path / "a.npy", array)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["group/images"] = array
        file["size"] = 3
    for name in ("a.npy", "a.h5"):
        images = load_images(tmp_path / name)
        assert len(images) == len(expected)
        for image, wanted in zip(images, expected, strict=True):
            assert image.dtype == np.float64
            assert image.flags["C_CONTIGUOUS"]
            np.testing.assert_allclose(image, wanted, atol=1e-15)


def test_mat_has_its_images_along_the_last_axis_as_the_exercise(tmp_path):
    stack = RNG.standard_normal((8, 6, 5))
    scipy.io.savemat(tmp_path / "IMAGES.mat", {"IMAGES": stack, "rate": 0.5, "name": "exercise"})
    # MATLAB 7.3 writes HDF5, with the axes the other way round.
    with h5py.File(tmp_path / "new.mat", "w", userblock_size=512) as file:
        file["IMAGES"] = stack.T
        file["#refs#/a"] = np.zeros((3, 3))
    for name in ("IMAGES.mat", "new.mat"):
        images = load_images(tmp_path / name)
        assert len(images) == 5
        for k, image in enumerate(images):
            np.testing.assert_array_equal(image, stack[:, :, k])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_mat_stack_of_any_length_is_no_colour_image(tmp_path, count):
    stack = RNG.random((8, 8, count))
    scipy.io.savemat(tmp_path / "IMAGES.mat", {"IMAGES": stack if count > 1 else stack[:, :, 0]})
    images = load_images(tmp_path / "IMAGES.mat")
    assert len(images) == count
    np.testing.assert_array_equal(np.stack(images, axis=-1), stack)


@pytest.mark.parametrize(
    "stack", [RNG.standard_normal((8, 8, 3)), RNG.standard_normal((5, 9, 4)), 2 * COLOUR.astype(int)]
)
def test_three_or_four_channels_that_are_no_colours_are_not_guessed_at(tmp_path, stack):
    path = tmp_path / "whitened.npy"
    np.save(path, stack)
    with pytest.raises(
        InvalidArgumentError, match=r"stack_axis.*whitened\.npy.*colours.*command line.*file of its own"
    ):
        load_images(path)
    np.testing.assert_array_equal(np.stack(load_images(path, stack_axis=-1), axis=-1), stack)


def test_stack_axis_settles_what_the_shape_does_not(tmp_path):
    path = tmp_path / "a.npy"
    stack = RNG.random((5, 6, 7))
    np.save(path, stack)
    with pytest.raises(InvalidArgumentError, match=r"stack_axis.*a\.npy.*\(5, 6, 7\)"):
        load_images(path)
    for axis, count in ((0, 5), (1, 6), (-1, 7)):
        images = load_images(path, stack_axis=axis)
        assert len(images) == count
        np.testing.assert_array_equal(images[1], np.take(stack, 1, axis=axis))
    with pytest.raises(InvalidArgumentError, match="found 3"):
        load_images(path, stack_axis=3)
    with pytest.raises(InvalidArgumentError, match="stack_axis must be an integer"):
        load_images(path, stack_axis="last")
    np.save(path, COLOUR)
    assert len(load_images(path, stack_axis=-1)) == 3


def test_variable_chooses_among_arrays(tmp_path):
    arrays = {"first": np.eye(4), "second": np.ones((4, 4))}
    scipy.io.savemat(tmp_path / "a.mat", arrays)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.update(arrays)
    for name in ("a.mat", "a.h5"):
        with pytest.raises(InvalidArgumentError, match=r"variable=.*'first'.*'second'"):
            load_images(tmp_path / name)
        np.testing.assert_array_equal(load_images(tmp_path / name, variable="first")[0], np.eye(4))
        with pytest.raises(InvalidArgumentError, match="'third'"):
            load_images(tmp_path / name, variable="third")


def test_files_keep_their_order_and_any_iterable_will_do(tmp_path):
    for k in range(3):
        np.save(tmp_path / f"{k}.npy", np.full((2, 2), k))
    images = load_images(tmp_path / f"{k}.npy" for k in (2, 0, 1))
    assert [image[0, 0] for image in images] == [2.0, 0.0, 1.0]


@pytest.mark.parametrize("ending", [".png", ".jpg", ".npy", ".mat", ".h5"])
@pytest.mark.parametrize("content", [b"", b"this is text\n" * 50, b"\x00" * 700])
def test_a_file_of_something_else_is_a_clear_error(tmp_path, ending, content):
    path = tmp_path / f"bad{ending}"
    path.write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=rf"bad\{ending}"):
        load_images(path)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".npy", ".mat", ".h5"])
def test_a_truncated_file_is_a_clear_error(tmp_path, ending):
    noise = RNG.integers(0, 256, (40, 40), dtype=np.uint8)
    path = tmp_path / f"cut{ending}"
    if ending in (".png", ".jpg"):
        save_picture(path, noise)
    elif ending == ".npy":
        np.save(path, noise)
    elif ending == ".mat":
        scipy.io.savemat(path, {"noise": noise})
    else:
        with h5py.File(path, "w") as file:
            file["noise"] = noise
    whole = path.read_bytes()
    for fraction in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(fraction * len(whole))])
        with pytest.raises(InvalidArgumentError, match=rf"cut\{ending}"):
            load_images(path)


def test_a_picture_of_another_format_is_refused_whatever_its_name(tmp_path):
    save_picture(tmp_path / "a.gif", GREY)
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    with pytest.raises(InvalidArgumentError, match=r"a\.png"):
        load_images(tmp_path / "a.png")


def test_pickles_are_refused(tmp_path):
    path = tmp_path / "objects.npy"
    np.save(path, np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidArgumentError, match=r"objects\.npy.*(Object arrays|pickle)"):
        load_images(path)


def test_archives_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", np.eye(3))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(InvalidArgumentError, match="archive"):
        load_images(tmp_path / "a.npy")


def test_a_png_that_claims_to_be_enormous_is_refused(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pytest.importorskip("PIL.Image")
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b""))
    with pytest.raises(InvalidArgumentError, match=r"bomb\.png"):
        load_images(path)


def test_h5_values_kept_in_other_files_are_refused(tmp_path):
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    np.save(tmp_path / "other.npy", np.eye(8))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = np.eye(8)
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("a", (8, 8), "u1", external=[(str(tmp_path / "secret.bin"), 0, 64)])
    layout = h5py.VirtualLayout((8, 8), "f8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "images", (8, 8))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("a", layout)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["a"] = h5py.ExternalLink("other.h5", "images")
    for name in ("external.h5", "virtual.h5", "link.h5"):
        with pytest.raises(InvalidArgumentError, match=name):
            load_images(tmp_path / name)
        with pytest.raises(InvalidArgumentError, match=name):
            load_images(tmp_path / name, variable="a")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[1.0, np.nan]]), "row 0 column 1"),
        (np.zeros((2, 2), dtype=complex), "complex"),
        (np.array([["a", "b"]]), "real numbers"),
        (np.zeros((0, 4)), "shape"),
        (np.zeros(4), "two to four dimensions"),
        (np.float64(3.0), "two to four dimensions"),
        (np.zeros((2, 2, 2, 2, 2)), "two to four dimensions"),
        (np.zeros((6, 5, 5, 2)), r"images of shape \(6, 5, 5\)"),
    ],
)
def test_arrays_that_are_no_images_are_named(tmp_path, array, message):
    np.save(tmp_path / "odd.npy", array)
    with pytest.raises(InvalidArgumentError, match=rf"odd\.npy.*{message}"):
        load_images(tmp_path / "odd.npy")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("nowhere.png", "no file 'nowhere.png'"),
        ("picture.gif", "must end in one of .png"),
        ("picture", "must end in one of .png"),
        ([], "at least one file"),
        (3, "file names; found 3"),
        ([3], "file names; found 3"),
    ],
)
def test_bad_paths_are_named(paths, message):
    with pytest.raises(InvalidArgumentError, match=message):
        load_images(paths)
