"""Whitened images, patches and squashing, each against its formula."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlpkit import preprocessing
from mlpkit.errors import InvalidArgumentError
from mlpkit.preprocessing import remove_dc, sample_patches, squash, whiten_images

ORDINARY = st.floats(-1e3, 1e3, allow_subnormal=False)
ANY_FINITE = st.floats(allow_nan=False, allow_infinity=False)
MATRICES = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=ANY_FINITE)


def frequency(height, width):
    """Distance from the origin in cycles per picture, as long as the shorter side: a slow twin."""
    f = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            fy = (i if i <= height // 2 else i - height) / height
            fx = (j if j <= width // 2 else j - width) / width
            f[i, j] = min(height, width) * np.sqrt(fx**2 + fy**2)
    return f


@pytest.mark.parametrize("shape", [(16, 16), (17, 17), (12, 21), (21, 12), (1, 9), (2, 2)])
@pytest.mark.parametrize("f0", [None, 3.0, 200.0])
def test_whitening_filter_has_the_formulas_frequency_response(shape, f0):
    image = np.random.default_rng(0).standard_normal(shape)
    (white,) = whiten_images([image], f0=f0)
    f = frequency(*shape)
    cut = 0.4 * min(shape) if f0 is None else f0
    expected = np.fft.fft2(image) * f * np.exp(-((f / cut) ** 4))
    # The formula leaves the scale open: the variance says what it is.
    expected /= np.fft.ifft2(expected).real.std()
    np.testing.assert_allclose(np.fft.fft2(white), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_default_cut_off_is_200_cycles_for_500_pixels():
    image = np.random.default_rng(1).standard_normal((500, 500))
    np.testing.assert_allclose(whiten_images([image])[0], whiten_images([image], f0=200)[0], atol=1e-12)


@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=ANY_FINITE))
def test_whitened_images_have_mean_0_and_variance_1_or_no_contrast(image):
    (white,) = whiten_images([image])
    assert white.shape == image.shape
    assert np.isfinite(white).all()
    if white.any():
        assert abs(white.mean()) < 1e-12
        assert abs(white.var() - 1.0) < 1e-12


@given(ORDINARY, st.integers(1, 9), st.integers(1, 9))
def test_an_image_without_contrast_becomes_zeros(value, height, width):
    np.testing.assert_array_equal(whiten_images([np.full((height, width), value)]), 0.0)


def test_whitening_ignores_brightness_and_scale_and_leaves_its_argument_alone():
    image = np.random.default_rng(2).random((20, 30))
    before = image.copy()
    (white,) = whiten_images([image])
    (other,) = whiten_images([1000.0 + 5.0 * image])
    np.testing.assert_allclose(white, other, atol=1e-10)
    np.testing.assert_array_equal(image, before)


def test_whitening_flattens_a_1_over_f_spectrum():
    rng = np.random.default_rng(3)
    f = frequency(128, 128)
    spectrum = np.fft.fft2(rng.standard_normal((128, 128))) / np.maximum(f, 1.0)
    (white,) = whiten_images([np.fft.ifft2(spectrum).real])
    power = np.abs(np.fft.fft2(white)) ** 2
    bands = [power[(f >= a) & (f < a + 5)].mean() for a in (2, 8, 14, 20)]
    assert max(bands) / min(bands) < 1.6


@pytest.mark.parametrize("f0", [0.0, -1.0, np.inf, np.nan, "200"])
def test_cut_off_must_be_positive(f0):
    with pytest.raises(InvalidArgumentError, match="f0"):
        whiten_images([np.eye(4)], f0=f0)


def test_patches_are_windows_of_the_images():
    rng = np.random.default_rng(4)
    images = [rng.random((9, 14)), rng.random((6, 5)), rng.random((4, 4))]
    patches = sample_patches(images, n_patches=300, size=4, seed=7)
    assert patches.shape == (300, 16)
    assert patches.dtype == np.float64
    windows = {
        image[r : r + 4, c : c + 4].tobytes(): (i, r, c)
        for i, image in enumerate(images)
        for r in range(image.shape[0] - 3)
        for c in range(image.shape[1] - 3)
    }
    places = {windows[patch.tobytes()] for patch in patches}
    # Every image, the first and the last row and column of places included.
    assert {i for i, _, _ in places} == {0, 1, 2}
    assert {r for i, r, _ in places if i == 0} == set(range(6))
    assert {c for i, _, c in places if i == 0} == set(range(11))


def test_patches_come_from_each_image_equally_often():
    images = [np.full((10, 10), 0.0), np.full((50, 50), 1.0)]
    share = sample_patches(images, n_patches=4000, size=3, seed=0).mean()
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(4000)


def test_fewer_patches_than_images():
    images = [np.full((9, 9), float(k)) for k in range(20)]
    patches = sample_patches(images, n_patches=3, size=4)
    assert patches.shape == (3, 16)
    np.testing.assert_array_equal(patches, np.repeat(patches[:, :1], 16, axis=1))


def test_patches_are_reproducible():
    images = [np.random.default_rng(5).random((20, 20))]
    first = sample_patches(images, 50, 5, seed=3)
    np.testing.assert_array_equal(first, sample_patches(images, 50, 5, seed=3))
    np.testing.assert_array_equal(first, sample_patches(images, 50, 5, np.random.default_rng(3)))
    assert not np.array_equal(first, sample_patches(images, 50, 5, seed=4))
    rng = np.random.default_rng(3)
    assert not np.array_equal(sample_patches(images, 50, 5, rng), sample_patches(images, 50, 5, rng))


def test_a_single_image_integers_and_lists_are_welcome():
    image = np.arange(30, dtype=np.uint8).reshape(5, 6)
    expected = sample_patches([image.astype(float)], 20, 2)
    np.testing.assert_array_equal(sample_patches(image, 20, 2), expected)
    np.testing.assert_array_equal(sample_patches([image.tolist()], 20, 2), expected)
    np.testing.assert_array_equal(sample_patches((image,), 20, np.int64(2)), expected)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([np.zeros((9, 9)), np.zeros((9, 7))], r"8 x 8; found image 1 with shape \(9, 7\)"),
        ([], "no image"),
        (3, "int"),
        ([np.zeros(9)], r"images\[0\]"),
        ([np.eye(9), np.full((9, 9), np.nan)], r"images\[1\].*row 0 column 0"),
        ([np.zeros((9, 9, 3))], r"images\[0\]"),
        (np.zeros((10, 10, 12)), "which axis"),
        ([np.array([["a"] * 9] * 9)], "real numbers"),
    ],
)
def test_bad_images_are_named(images, message):
    with pytest.raises(InvalidArgumentError, match=message):
        sample_patches(images)


@pytest.mark.parametrize("changes", [{"n_patches": 0}, {"size": 0}, {"size": 2.5}, {"seed": -1}, {"seed": "x"}])
def test_bad_numbers_are_named(changes):
    with pytest.raises(InvalidArgumentError, match=next(iter(changes))):
        sample_patches([np.eye(9)], **changes)


@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2), elements=ORDINARY))
def test_remove_dc_leaves_rows_of_mean_0_and_their_differences(patches):
    result = remove_dc(patches)
    np.testing.assert_allclose(result.mean(axis=1), 0.0, atol=1e-12)
    np.testing.assert_allclose(np.diff(result), np.diff(patches), atol=1e-12)


def test_constant_patches_leave_no_residue_of_rounding():
    patches = np.repeat(np.random.default_rng(8).random((200, 1)), 7, axis=1)
    assert (patches.mean(axis=1) != patches[:, 0]).any()
    np.testing.assert_array_equal(remove_dc(patches), 0.0)
    np.testing.assert_array_equal(squash(remove_dc(patches)), 0.5)


def test_squash_is_the_exercises_normalisation():
    patches = remove_dc(np.random.default_rng(6).standard_t(3, (200, 16)))
    limit = 3 * patches.std(ddof=1)
    expected = (np.maximum(np.minimum(patches, limit), -limit) / limit + 1) * 0.4 + 0.1
    result = squash(patches)
    np.testing.assert_allclose(result, expected, rtol=1e-14)
    assert result.min() == 0.1
    assert result.max() == 0.9


@given(MATRICES, ORDINARY, st.floats(1e-3, 1e3), st.floats(1e-3, 10.0))
def test_squash_stays_within_its_bounds_and_in_order(patches, low, width, n_std):
    result = squash(patches, low=low, high=low + width, n_std=n_std)
    assert result.min() >= low
    assert result.max() <= low + width
    assert (np.diff(result.ravel()[np.argsort(patches.ravel())]) >= 0.0).all()


@pytest.mark.parametrize("patches", [np.zeros((3, 4)), np.full((3, 4), 2.0), [[5.0]], [[1e9, 1e9 * (1 + 4e-16)]]])
def test_squash_of_patches_without_spread_is_the_middle(patches):
    np.testing.assert_allclose(squash(patches), 0.5)


def test_squash_to_a_range_whose_width_overflows():
    np.testing.assert_allclose(squash([[-1.0, 0.0, 1.0]], -1.5e308, 1.5e308, n_std=1.0), [[-1.5e308, 0, 1.5e308]])
    np.testing.assert_array_equal(squash([[-1.0, 0.0, 1.0]], n_std=1.7e308), 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low": 0.9, "high": 0.1}, "high"),
        ({"low": 0.5, "high": 0.5}, "high"),
        ({"n_std": 0.0}, "n_std"),
        ({"patches": [[np.inf]]}, "patches"),
        ({"patches": [1.0, 2.0]}, "patches"),
    ],
)
def test_squash_names_bad_arguments(changes, message):
    with pytest.raises(InvalidArgumentError, match=message):
        squash(**{"patches": [[0.0, 1.0]], **changes})


def test_everything_about_preparing_data_is_offered_in_one_place():
    for name in preprocessing.__all__:
        assert getattr(preprocessing, name).__doc__
