"""Images to learn from: photographs that come with scikit-image, and the user's own files.

`natural_images` and `load_images` give a list of grey images, two-dimensional float64 arrays, which is what
`mlpkit.preprocessing` takes. Nothing is ever downloaded. Colour becomes grey by the luminance
0.2125 R + 0.7154 G + 0.0721 B (Rec. ITU-R BT.709).

MNIST's kind of files has a module of its own, `mlpkit.idx`, whose `load_mnist` and `read_idx` are offered here too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mlpkit.checks import check_integer, check_matrix
from mlpkit.errors import InvalidArgumentError, MlpkitError, import_extra
from mlpkit.idx import load_mnist, read_idx
from mlpkit.row_writer import write_patches

__all__ = ["load_images", "load_mnist", "natural_images", "read_idx", "write_patches"]

LUMINANCE = np.array([0.2125, 0.7154, 0.0721])

# In scikit-image's wheel itself (most others are downloaded on demand); CC0 or public domain.
NATURAL_IMAGES = (
    "camera.png",
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "grass.png",
    "gravel.png",
    "brick.png",
)


def natural_images() -> list[NDArray[np.float64]]:
    """Load eight grey photographs that come with scikit-image: nothing is downloaded.

    A photographer, an astronaut, a cat, a cup of coffee, a rocket, and surfaces of grass, gravel
    and brick: enough variety for a sparse autoencoder to find edges. All are CC0 or in the public
    domain.

    Returns
    -------
    list of ndarray, float64
        Images from 300 x 451 to 512 x 512 pixels, black 0 and white 1.

    Raises
    ------
    MissingExtraError
        If scikit-image or Pillow is not installed (``pip install "mlpkit[images]"``).
    InvalidArgumentError
        If this installation of scikit-image left its pictures out.

    Examples
    --------
    >>> images = natural_images()
    >>> len(images), images[0].shape
    (8, (512, 512))
    """
    skimage = import_extra("skimage", extra="images")
    # As files, not through skimage.data, which asks the network for what it does not find.
    folder = Path(str(skimage.__file__)).parent / "data"
    return load_images(folder / name for name in NATURAL_IMAGES)


def load_images(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    variable: str | None = None,
    stack_axis: int | None = None,
) -> list[NDArray[np.float64]]:
    """Load grey images from .png, .jpg, .npy, .mat and .h5 files.

    A two-dimensional array is one image, (height, width). A three-dimensional one in a .mat file is a
    stack of grey images along the last axis, as MATLAB has it and as in the CS294A exercise's
    IMAGES.mat, (512, 512, 10). In other files it is a colour image if its last axis has length 3 or 4
    (red, green, blue and perhaps opacity) and its values are 8-bit or 16-bit unsigned integers or
    all within [0, 1], an error if that length comes with other values, and otherwise a stack along the
    first axis or the last, whichever makes the images square, and an error where that does not
    settle it. Four dimensions are a stack of colour images. `stack_axis` overrules all of this.

    Values of 8-bit and 16-bit unsigned integers are divided by the largest that the type holds, so
    that white is 1; truth values become 0 and 1; all others are taken as they are, for images that
    are already whitened are not between 0 and 1.

    Parameters
    ----------
    paths : path or iterable of paths
        The files; the name's ending, in either case, says which kind. .jpeg and .hdf5 are known
        too, and a .mat file may be of any version, 7.3 (which is HDF5) included.
    variable : str, optional
        The name of the array in .mat and .h5 files. By default the only array of at least two
        dimensions, all longer than 1, and an error where there are several.
    stack_axis : int, optional
        The axis that counts the images in arrays of three dimensions or more, for instance 0 or -1.

    Returns
    -------
    list of ndarray, each of shape (height, width), float64
        The images of all files, in order.

    Raises
    ------
    InvalidArgumentError
        For a file that is missing, of an unknown kind, damaged, or without an array of real, finite
        numbers that can be read as images; the message names the file. Object arrays, which would
        have to be unpickled, are refused.
    MissingExtraError
        For .png and .jpg if Pillow is not installed (``pip install "mlpkit[images]"``).

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "images.npy"
    ...     np.save(path, np.zeros((12, 12, 5)))
    ...     images = load_images([path])
    >>> len(images), images[0].shape
    (5, (12, 12))
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    if not isinstance(paths, Iterable):
        raise InvalidArgumentError(f"paths must be file names; found {paths!r}")
    if stack_axis is not None:
        stack_axis = check_integer(stack_axis, "stack_axis")
    images: list[NDArray[np.float64]] = []
    for item in paths:
        if not isinstance(item, str | os.PathLike):
            raise InvalidArgumentError(f"paths must be file names; found {item!r}")
        path = Path(item)
        images.extend(_load_file(path, variable, stack_axis))
    if not images:
        raise InvalidArgumentError("paths must name at least one file; found none")
    return images


def _load_file(path: Path, variable: str | None, stack_axis: int | None) -> Iterator[NDArray[np.float64]]:
    kind = path.suffix.lower()
    if kind not in READERS:
        raise InvalidArgumentError(f"paths must end in one of {', '.join(READERS)}; found {str(path)!r}")
    if not path.is_file():
        raise InvalidArgumentError(f"paths must name existing files; found no file {str(path)!r}")
    try:
        array = READERS[kind](path, variable)
    except MlpkitError:
        raise
    except Exception as error:
        # The readers raise whatever their parsers stumble over: no list of types is complete.
        reason = str(error) or type(error).__name__
        raise InvalidArgumentError(f"{str(path)!r} cannot be read as {kind}: {reason}") from error
    name = f"the array in {str(path)!r}"
    if array.dtype.kind not in "biuf" or array.size == 0:
        raise InvalidArgumentError(f"{name} must hold real numbers; found dtype {array.dtype} and shape {array.shape}")
    # MATLAB has no other habit than the last axis; elsewhere both are found.
    habit = -1 if kind == ".mat" else None
    for i, image in enumerate(_split(array, name, stack_axis, habit)):
        grey = _to_grey(_to_float(image))
        if grey.ndim != 2:
            raise InvalidArgumentError(
                f"{name} must hold images of shape (height, width), or of (height, width, 3) or "
                f"(height, width, 4) in colour; found images of shape {image.shape}"
            )
        yield check_matrix(grey, f"image {i} of {name}")


def _split(array: NDArray[Any], name: str, stack_axis: int | None, habit: int | None) -> Iterable[NDArray[Any]]:
    """Return the images in an array of any shape, still with their colours."""
    if array.ndim not in (2, 3, 4):
        raise InvalidArgumentError(f"{name} must have two to four dimensions; found shape {array.shape}")
    if array.ndim == 2:
        return [array]
    axis = habit if stack_axis is None else stack_axis
    colour = array.shape[-1] in (3, 4)
    if axis is None and array.ndim == 4:
        axis = 0 if colour else -1
    if axis is None and colour and _are_colours(array):
        return [array]
    if axis is None:
        first = array.shape[1] == array.shape[2]
        last = array.shape[0] == array.shape[1]
        if first == last or colour:
            unless = ", and colours would lie within [0, 1]" if colour else ""
            raise InvalidArgumentError(
                f"stack_axis must say which axis of {name} counts the images, 0 or -1: its shape "
                f"{array.shape} does not tell{unless} (on the command line, give each image a file of its own)"
            )
        axis = 0 if first else -1
    if not -array.ndim <= axis < array.ndim:
        raise InvalidArgumentError(f"stack_axis must be an axis of {name}, whose shape is {array.shape}; found {axis}")
    return list(np.moveaxis(array, axis, 0))


def _are_colours(array: NDArray[Any]) -> bool:
    """Tell whether the values can be brightnesses, which those of whitened images are not."""
    is_picture = array.dtype.kind == "u" and array.dtype.itemsize <= 2
    return is_picture or not np.any((array < 0) | (array > 1))


def _to_float(array: NDArray[Any]) -> NDArray[np.float64]:
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        return array / float(np.iinfo(array.dtype).max)
    return array.astype(np.float64)


def _to_grey(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the luminance of a colour image, transparent parts on white; grey stays as it is."""
    if image.ndim != 3 or image.shape[-1] not in (3, 4):
        return image
    # Weights that sum to 1 only to rounding could make white brighter than 1.
    grey = image[..., :3] @ LUMINANCE
    grey = np.clip(grey, image[..., :3].min(axis=-1), image[..., :3].max(axis=-1))
    if image.shape[-1] == 4:
        opacity = image[..., 3]
        grey = grey * opacity + (1.0 - opacity)
    return grey


def _read_picture(path: Path, variable: str | None) -> NDArray[Any]:
    pillow = import_extra("PIL.Image", extra="images")
    # Only the two formats promised: every further parser is a further way to be surprised.
    with pillow.open(path, formats=("PNG", "JPEG")) as picture:
        if picture.mode in ("L", "RGB", "RGBA"):
            return np.asarray(picture)
        if picture.mode == "1":
            return np.asarray(picture.convert("L"))
        if picture.mode.startswith("I"):
            # 16-bit grey, which some versions of Pillow hold in 32-bit integers.
            return np.asarray(picture).astype(np.uint16)
        transparent = "A" in picture.mode or "transparency" in picture.info
        return np.asarray(picture.convert("RGBA" if transparent else "RGB"))


def _read_npy(path: Path, variable: str | None) -> NDArray[Any]:
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an archive of several arrays (.npz)")
    return array


def _read_mat(path: Path, variable: str | None) -> NDArray[Any]:
    if h5py.is_hdf5(path):
        # MATLAB 7.3 writes HDF5 with the axes reversed.
        return _read_h5(path, variable).T
    import scipy.io  # here, since SciPy's readers are slow to import and seldom wanted

    arrays = {name: value for name, value in scipy.io.loadmat(path).items() if isinstance(value, np.ndarray)}
    return np.asarray(arrays[_choose(path, {k: v.shape for k, v in arrays.items()}, variable)])


def _read_h5(path: Path, variable: str | None) -> NDArray[Any]:
    with h5py.File(path, "r") as file:
        arrays: dict[str, h5py.Dataset] = {}

        def collect(name: str, item: Any) -> None:
            # "#refs#" is where MATLAB keeps the insides of its cell arrays.
            if isinstance(item, h5py.Dataset) and not name.startswith("#"):
                arrays[name] = item

        # Follows no links, so neither here nor through `variable` is another file reached.
        file.visititems(collect)
        name = _choose(path, {k: v.shape or () for k, v in arrays.items()}, variable)
        if arrays[name].is_virtual or arrays[name].external:
            raise ValueError(f"the values of {name!r} are kept in other files")
        return np.asarray(arrays[name][()])


def _choose(path: Path, shapes: dict[str, tuple[int, ...]], variable: str | None) -> str:
    """Return the name of the array to read, from the shapes of all in the file."""
    found = ", ".join(f"{name!r} {shape}" for name, shape in shapes.items()) or "none"
    if variable is not None:
        if variable.strip("/") not in shapes:
            raise InvalidArgumentError(
                f"variable must be an array in {str(path)!r}, which has {found}; found {variable!r}"
            )
        return variable.strip("/")
    images = [name for name, shape in shapes.items() if len(shape) >= 2 and min(shape) > 1]
    if len(images) != 1:
        raise InvalidArgumentError(
            f"{str(path)!r} must have a single array of images, or variable= must name it; its arrays are {found}"
        )
    return images[0]


READERS: dict[str, Callable[[Path, str | None], NDArray[Any]]] = {
    ".png": _read_picture,
    ".jpg": _read_picture,
    ".jpeg": _read_picture,
    ".npy": _read_npy,
    ".mat": _read_mat,
    ".h5": _read_h5,
    ".hdf5": _read_h5,
}
