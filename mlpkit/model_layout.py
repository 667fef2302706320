"""Where everything lies in a model file: laid out for writing, and checked in reading.

What each element is called, and must be like, is specified in ``docs/model-format.md``. The parameters do not pass
through the HDF5 library: on writing it gives them their places in the file and the numbers are put there directly; on
reading it says where they lie, and they are taken from there.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from mlpkit.errors import ModelFormatError
from mlpkit.model_config import MAX_JSON_BYTES, LayerShape, parameter_shapes, parse_json
from mlpkit.paged_file import PagedFile
from mlpkit.sealed_file import FORMAT_VERSION, SEAL_BYTES
from mlpkit.strict_hdf5 import Encoding, Extent, StrictReader, refuse

__all__ = ["OBJECTIVE", "Contents", "arrays_of", "first_non_finite", "lay_out", "read_contents", "read_numbers"]

OBJECTIVE = (
    "J = sum_i w_i loss(h(x_i), y_i) / sum_i w_i + sum_l lambda_l/2 sum (W^(l))^2 + sum_l penalties_l;"
    " squared_error = 1/2 ||h - y||^2;"
    " KLSparsity = beta sum_j KL(rho || rho_hat_j); MeanPenalty = beta sum_j p(rho_hat_j);"
    " rho_hat_j = sum_i w_i s(a_ij) / sum_i w_i;"
    " L1Sparsity = strength sum_j sum_i w_i |a_ij| / sum_i w_i"
)

_MODEL = Encoding("mlpkit.model", 1, 0)
_JSON = Encoding("mlpkit.json", 1, 0)
_PARAMETERS = Encoding("mlpkit.parameters", 1, 0)
_DENSE = Encoding("mlpkit.dense", 1, 0)
_ARRAY = Encoding("mlpkit.array", 1, 0)

_DOCUMENTS = ("config", "metadata", "provenance")
_DTYPES = {"float64": h5py.h5t.IEEE_F64LE, "float32": h5py.h5t.IEEE_F32LE}
_SKELETON_PAGE = 4096
_BLOCK = 2**17  # numbers looked at in one go: what fits the cache


@dataclass(frozen=True)
class Contents:
    """All that a model file holds but the numbers, and where in the file these lie, in theta's order."""

    version: tuple[int, int]
    writer: str
    config: dict[str, Any]
    metadata: dict[str, Any]
    provenance: dict[str, Any] | None
    dtype: str
    arrays: list[tuple[Array, Extent]]
    ignored: list[str]

    @property
    def n_parameters(self) -> int:
        """The length of theta."""
        return sum(array.size for array, _ in self.arrays)


class Array(NamedTuple):
    """One dataset of parameters: its path and its shape."""

    element: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of numbers, as a Python integer that cannot overflow."""
        return math.prod(self.shape)


def arrays_of(shapes: list[LayerShape]) -> list[list[Array]]:
    """Return the datasets of each layer, in the order of theta.

    Examples
    --------
    >>> arrays_of([LayerShape(n_out=2, n_in=3, has_W=True, has_b=False)])
    [[Array(element='/parameters/1/W', shape=(2, 3))]]
    """
    found = []
    for number, layer in enumerate(shapes, start=1):
        W = Array(f"/parameters/{number}/W", (layer.n_out, layer.n_in))
        b = Array(f"/parameters/{number}/b", (layer.n_out,))
        found.append([W] * layer.has_W + [b] * layer.has_b)
    return found


# ----------------------------------------------------------------------------------------- writing


def lay_out(
    documents: dict[str, bytes], writer: str, dtype: str, shapes: list[LayerShape], theta: NDArray[Any]
) -> Iterator[memoryview]:
    """Yield the bytes of a model file in pieces, from where the seal ends; the parameters straight from `theta`."""
    skeleton = PagedFile(_SKELETON_PAGE)
    places: list[tuple[int, int]] = []  # in the file, number of numbers
    with h5py.File(skeleton, "w", userblock_size=SEAL_BYTES, libver=("v108", "v108")) as file:
        _describe(file, _MODEL)
        file.attrs["objective"] = np.bytes_(OBJECTIVE)
        file.attrs["writer"] = np.bytes_(writer.encode("ascii", "replace"))
        for name in _DOCUMENTS:
            file.create_dataset(name, data=np.frombuffer(documents[name], np.uint8))
            _describe(file[name], _JSON)
        _describe(file.create_group("parameters"), _PARAMETERS)
        for number, arrays in enumerate(arrays_of(shapes), start=1):
            _describe(file.create_group(f"parameters/{number}"), _DENSE)
            places += [(_reserve(file, array, _DTYPES[dtype]), array.size) for array in arrays]
    stored = theta.astype(theta.dtype.newbyteorder("<"), copy=False)
    position, first = SEAL_BYTES, 0
    for start, size in places:
        yield from skeleton.pieces(position, start)
        yield stored[first : first + size].data
        position, first = start + size * theta.itemsize, first + size
    yield from skeleton.pieces(position, skeleton.size)


def _describe(element: Any, encoding: Encoding) -> None:
    element.attrs["encoding-type"] = np.bytes_(encoding.name)
    element.attrs["encoding-version"] = np.bytes_(encoding.version)


def _reserve(file: h5py.File, array: Array, hdf5_type: h5py.h5t.TypeID) -> int:
    """Make a dataset of which HDF5 writes no number, and return the place in the file that it has for them."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)  # the same network, the same bytes
    h5py.h5d.create(file.id, array.element.encode(), hdf5_type, h5py.h5s.create_simple(array.shape), properties)
    _describe(file[array.element], _ARRAY)
    return int(file[array.element].id.get_offset())


# ----------------------------------------------------------------------------------------- reading


def read_contents(image: PagedFile, version: tuple[int, int]) -> Contents:
    """Check a file of which only the seal is known to be right, and say what it holds."""
    try:
        with h5py.File(image, "r") as file:
            return _read_file(file, image, version)
    except (ModelFormatError, MemoryError):
        raise
    except Exception as error:
        # h5py turns the HDF5 library's complaints into half a dozen kinds of exception.
        raise ModelFormatError(f"content: the HDF5 library cannot read it ({error!s:.400})") from error


def _read_file(file: h5py.File, image: PagedFile, version: tuple[int, int]) -> Contents:
    reader = StrictReader(file, image.size, newer=version > FORMAT_VERSION)
    texts = reader.root(_MODEL, {"objective": OBJECTIVE, "writer": None}, [*_DOCUMENTS, "parameters"])
    documents = {}
    for name in _DOCUMENTS:
        extent, shape = reader.dataset(f"/{name}", _JSON, h5py.h5t.STD_U8LE)
        if len(shape) != 1 or not 1 <= shape[0] <= MAX_JSON_BYTES:
            refuse(f"/{name}", f"expected 1 to {MAX_JSON_BYTES} bytes, found shape {shape!s:.80}")
        documents[name] = parse_json(b"".join(image.pieces(extent.start, extent.stop)), f"/{name}")
    config, metadata, provenance = documents.values()
    if not isinstance(metadata, dict):
        refuse("/metadata", f"expected an object, found {type(metadata).__name__}")
    if not isinstance(provenance, dict | None):
        refuse("/provenance", f"expected an object or null, found {type(provenance).__name__}")

    dtype, shapes = parameter_shapes(config)
    layers, hdf5_type = arrays_of(shapes), _DTYPES[dtype]
    n_parameters = sum(array.size for arrays in layers for array in arrays)
    if n_parameters * hdf5_type.get_size() > image.size:
        refuse("/config", f"asks for {n_parameters} parameters, more than the file can hold")
    reader.group("/parameters", _PARAMETERS, [str(number) for number in range(1, len(layers) + 1)])
    places = []
    for number, arrays in enumerate(layers, start=1):
        reader.group(f"/parameters/{number}", _DENSE, [array.element[-1] for array in arrays])
        for array in arrays:
            places.append((array, reader.dataset(array.element, _ARRAY, hdf5_type, array.shape)[0]))
    reader.check_extents()
    return Contents(version, texts["writer"], config, metadata, provenance, dtype, places, reader.ignored)


def read_numbers(image: PagedFile, contents: Contents, theta: NDArray[Any]) -> None:
    """Move all parameters from the file to `theta`, a contiguous array of their dtype, and check that they are finite.

    The file's pages are given back on the way, so that file and parameters together never take twice the memory.
    """
    target = theta.view(np.uint8)
    moves, first = [], 0
    for array, extent in contents.arrays:
        moves.append((extent.start, extent.stop, first))
        first += array.size * theta.itemsize
    released = 0
    for start, stop, first in sorted(moves):
        position = start
        for piece in image.pieces(start, stop):
            target[first : first + len(piece)] = piece
            first, position = first + len(piece), position + len(piece)
            for number in range(released, position // image.page_bytes):
                image.release(number)
            released = max(released, position // image.page_bytes)
    if sys.byteorder == "big":
        theta.byteswap(inplace=True)
    first = 0
    for array, _ in contents.arrays:
        numbers = theta[first : first + array.size]
        first += array.size
        if (bad := first_non_finite(numbers)) is not None:
            index = [int(i) for i in np.unravel_index(bad, array.shape)]
            refuse(f"{array.element}{index}", f"expected finite numbers, found {numbers[bad]}")


def first_non_finite(numbers: NDArray[Any]) -> int | None:
    """Return the index of the first NaN or infinity in a vector.

    Examples
    --------
    >>> first_non_finite(np.array([1.0, np.inf]))
    1
    """
    for start in range(0, numbers.size, _BLOCK):
        finite = np.isfinite(numbers[start : start + _BLOCK])
        if not finite.all():
            return start + int(np.argmin(finite))
    return None
