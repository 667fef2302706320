"""From photographs to training examples: whitened images, patches, and a range to be in.

Section 4 of the notes trains on patches of *whitened* natural images, "a preprocessing step which
removes redundancy in the input, by causing adjacent pixels to become less correlated". The spectrum
of natural images falls off as 1/f, so a filter that rises as f flattens it; that is
`whiten_images`, on whole images, before patches are cut. The usual road to the picture in section 4
is

    images = whiten_images(images)
    patches = squash(remove_dc(sample_patches(images, 10000, size=10)))

Whitening of examples of any kind from their covariance (`PCAWhitening`, `ZCAWhitening`) lives in
`mlpkit.whitening`, and what is done to targets (`scale_to_range`, `encode_labels`) in
`mlpkit.targets`; both are offered here too.

References
----------
B. A. Olshausen and D. J. Field, "Sparse coding with an overcomplete basis set: a strategy employed
by V1?", Vision Research 37 (1997), 3311-3325: the filter f*exp(-(f/f0)**4).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.checks import check_integer, check_matrix, check_number
from mlpkit.errors import InvalidArgumentError
from mlpkit.targets import Scaling, encode_labels, scale_to_range
from mlpkit.whitening import PCAWhitening, ZCAWhitening

__all__ = [
    "PCAWhitening",
    "Scaling",
    "ZCAWhitening",
    "encode_labels",
    "remove_dc",
    "sample_patches",
    "scale_to_range",
    "squash",
    "whiten_images",
]

# Differences that rounding alone can make between values of about 1.
_ROUNDING = 16 * float(np.finfo(np.float64).eps)


def whiten_images(
    images: Sequence[ArrayLike] | NDArray[np.generic], f0: float | None = None
) -> list[NDArray[np.float64]]:
    """Flatten the spectrum of each image with Olshausen and Field's filter f*exp(-(f/f0)**4).

    The factor f undoes the 1/f fall of natural images' spectra; the factor exp(-(f/f0)**4) cuts off
    the highest frequencies, where there is more noise and aliasing than picture. f is the distance
    from the origin of the frequency plane, in cycles per picture, a picture being as long as the
    image's shorter side, so that the filter is the same in every direction on oblong images too.
    The image's mean is removed before filtering and the result is scaled to unit variance, since
    the filter leaves an arbitrary scale. The image is taken as periodic, as by any filter applied
    with the FFT.

    Parameters
    ----------
    images : sequence of array-like, each of shape (height, width)
        Grey images of any sizes, or a single one.
    f0 : float, optional
        Cut-off in cycles per picture. By default 0.4 times the shorter side of each image: 200
        (205, exactly) for the 512 x 512 images of Olshausen and Field, and of the CS294A exercise.

    Returns
    -------
    list of ndarray, float64
        Images of the same shapes, with mean 0 and variance 1. An image without contrast becomes
        zeros.

    Raises
    ------
    InvalidArgumentError
        If an image is not a finite two-dimensional array, or `f0` is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.random.default_rng(0).random((48, 64)).cumsum(axis=0)
    >>> (white,) = whiten_images([image])
    >>> white.shape, bool(abs(white.mean()) < 1e-12), round(float(white.std()), 12)
    ((48, 64), True, 1.0)
    """
    if f0 is not None:
        f0 = check_number(f0, "f0", low=0.0, low_open=True)
    return [_whiten_image(image, f0) for image in _check_images(images)]


def sample_patches(
    images: Sequence[ArrayLike] | NDArray[np.generic],
    n_patches: int = 10000,
    size: int = 8,
    seed: int | np.random.Generator | None = 0,
) -> NDArray[np.float64]:
    """Cut square patches at random from a list of images.

    Each patch comes from an image drawn uniformly, then from a place in it drawn uniformly; patches
    may overlap.

    Parameters
    ----------
    images : sequence of array-like, each of shape (height, width)
        Grey images of any sizes, or a single one.
    n_patches : int, default 10000
        How many.
    size : int, default 8
        Height and width of a patch, in pixels.
    seed : int, numpy.random.Generator or None, default 0
        The same seed cuts the same patches; None draws a fresh seed; a Generator is used as it
        stands.

    Returns
    -------
    ndarray, shape (n_patches, size * size), float64
        A patch a row, its pixels row by row: ``patches[i].reshape(size, size)`` is the picture.

    Raises
    ------
    InvalidArgumentError
        If an image is not a finite two-dimensional array or is smaller than the patch, or a number
        is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(12.0).reshape(3, 4)
    >>> patches = sample_patches([image], n_patches=5, size=2, seed=0)
    >>> patches.shape
    (5, 4)
    >>> patches[:, 2] - patches[:, 0]  # one row further down
    array([4., 4., 4., 4., 4.])
    """
    arrays = _check_images(images)
    n_patches = check_integer(n_patches, "n_patches", low=1)
    size = check_integer(size, "size", low=1)
    for i, image in enumerate(arrays):
        if min(image.shape) < size:
            raise InvalidArgumentError(
                f"images must be at least as large as a patch, {size} x {size}; found image {i} "
                f"with shape {image.shape}"
            )
    rng = _generator(seed)
    n_places = np.array([image.shape for image in arrays]) - size + 1
    source = rng.integers(len(arrays), size=n_patches)
    rows = rng.integers(n_places[source, 0])
    columns = rng.integers(n_places[source, 1])
    patches = np.empty((n_patches, size * size))
    for i, image in enumerate(arrays):
        mine = np.flatnonzero(source == i)
        windows = np.lib.stride_tricks.sliding_window_view(image, (size, size))
        patches[mine] = windows[rows[mine], columns[mine]].reshape(len(mine), size * size)
    return patches


def remove_dc(patches: ArrayLike) -> NDArray[np.float64]:
    """Subtract from each patch its mean brightness.

    Parameters
    ----------
    patches : array-like, shape (m, n)
        A patch a row.

    Returns
    -------
    ndarray, shape (m, n), float64
        Rows of mean 0.

    Raises
    ------
    InvalidArgumentError
        If `patches` is not a finite two-dimensional array.

    Examples
    --------
    >>> remove_dc([[1.0, 2.0, 3.0], [10.0, 10.0, 40.0]])
    array([[ -1.,   0.,   1.],
           [-10., -10.,  20.]])
    """
    matrix = check_matrix(patches, "patches")
    first = matrix[:, :1]
    # A constant patch is its own mean: what rounding leaves of it is no picture.
    constant = (matrix == first).all(axis=1, keepdims=True)
    return matrix - np.where(constant, first, matrix.mean(axis=1, keepdims=True))


def squash(patches: ArrayLike, low: float = 0.1, high: float = 0.9, n_std: float = 3.0) -> NDArray[np.float64]:
    """Clip patches at a few standard deviations and scale them to a range a sigmoid can reach.

    The CS294A exercise's preparation of its patches: with s = `n_std` times the standard deviation
    of all values together (dividing by their number less one), values are clipped to [-s, s], and
    [-s, s] becomes [`low`, `high`], zero the middle. Call `remove_dc` first, as the exercise does:
    the clipping is around zero.

    Parameters
    ----------
    patches : array-like, shape (m, n)
        A patch a row, with mean near zero.
    low, high : float, default 0.1 and 0.9
        The range, `low` < `high`.
    n_std : float, default 3.0
        Where to clip, in standard deviations.

    Returns
    -------
    ndarray, shape (m, n), float64
        Within [`low`, `high`]. Patches without any spread but that of rounding become the middle.

    Raises
    ------
    InvalidArgumentError
        If `patches` is not a finite two-dimensional array, `low` is not below `high`, or `n_std` is
        not positive.

    Examples
    --------
    >>> squash([[-1.0, 0.0, 1.0]], n_std=1.0)
    array([[0.1, 0.5, 0.9]])
    """
    matrix = check_matrix(patches, "patches")
    low = check_number(low, "low")
    high = check_number(high, "high", low=low, low_open=True)
    n_std = check_number(n_std, "n_std", low=0.0, low_open=True)
    half = 0.5 * high - 0.5 * low  # high - low itself may overflow
    middle = low + half
    peak = np.abs(matrix).max()
    if matrix.size == 1 or peak == 0.0:
        return np.full_like(matrix, middle)
    # In units of the largest value, so that squares neither overflow nor vanish.
    scaled = matrix / peak
    std = float(scaled.std(ddof=1))
    limit = n_std * std
    if std <= _ROUNDING or limit == 0.0:
        return np.full_like(matrix, middle)
    ratio = np.clip(scaled, -limit, limit) / limit
    return np.clip(middle + ratio * half, low, high)


def _whiten_image(image: NDArray[np.float64], f0: float | None) -> NDArray[np.float64]:
    height, width = image.shape
    side = min(height, width)
    # In units of the largest pixel: the scale is lost anyway, and nothing can overflow.
    peak = np.abs(image).max()
    centred = image / peak if peak > 0.0 else image
    centred = centred - centred.mean()
    if np.abs(centred).max() <= _ROUNDING:
        return np.zeros_like(image)
    f = side * np.hypot(np.fft.fftfreq(height)[:, np.newaxis], np.fft.rfftfreq(width))
    with np.errstate(over="ignore", under="ignore"):
        response = f * np.exp(-((f / (0.4 * side if f0 is None else f0)) ** 4))
    filtered = np.fft.irfft2(np.fft.rfft2(centred) * response, s=image.shape)
    filtered -= filtered.mean()
    std = filtered.std()
    return filtered / std if std > 0.0 else np.zeros_like(image)


def _check_images(images: Sequence[ArrayLike] | NDArray[np.generic]) -> list[NDArray[np.float64]]:
    """Return the images as float64 arrays; a bare two-dimensional array is one image."""
    if isinstance(images, np.ndarray):
        if images.ndim == 2:
            return [check_matrix(images, "images")]
        raise InvalidArgumentError(
            "images must be a list of two-dimensional arrays, since an array does not say which "
            f"axis counts its images; found an array of shape {images.shape}: pass list(array) "
            "where that is the first axis, list(numpy.moveaxis(array, -1, 0)) where it is the last"
        )
    try:
        items = list(images)
    except TypeError as error:
        raise InvalidArgumentError(
            f"images must be a list of two-dimensional arrays; found {type(images).__name__}"
        ) from error
    if not items:
        raise InvalidArgumentError("images must not be empty; found no image")
    return [check_matrix(image, f"images[{i}]") for i, image in enumerate(items)]


def _generator(seed: int | np.random.Generator | None) -> np.random.Generator:
    if seed is None or isinstance(seed, np.random.Generator):
        return np.random.default_rng(seed)
    return np.random.default_rng(check_integer(seed, "seed", low=0))
