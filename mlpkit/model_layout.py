"""Where everything lies in a model file: laid out for writing, and checked in reading.

What each element is called, and must be like, is specified in ``docs/model-format.md``. The parameters do not pass
through the HDF5 library, see `mlpkit.direct_hdf5`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from mlpkit.direct_hdf5 import ARRAY, DTYPES, Layout, first_non_finite, move_numbers, opened, read_document
from mlpkit.model_config import LayerShape, parameter_shapes
from mlpkit.paged_file import PagedFile
from mlpkit.sealed_file import MODEL
from mlpkit.strict_hdf5 import Encoding, Extent, StrictReader, refuse

__all__ = ["OBJECTIVE", "Contents", "arrays_of", "lay_out", "read_contents", "read_numbers"]

OBJECTIVE = (
    "J = sum_i w_i loss(h(x_i), y_i) / sum_i w_i + sum_l lambda_l/2 sum (W^(l))^2 + sum_l penalties_l;"
    " squared_error = 1/2 ||h - y||^2;"
    " KLSparsity = beta sum_j KL(rho || rho_hat_j); MeanPenalty = beta sum_j p(rho_hat_j);"
    " rho_hat_j = sum_i w_i s(a_ij) / sum_i w_i;"
    " L1Sparsity = strength sum_j sum_i w_i |a_ij| / sum_i w_i"
)

_MODEL = Encoding("mlpkit.model", 1, 0)
_PARAMETERS = Encoding("mlpkit.parameters", 1, 0)
_DENSE = Encoding("mlpkit.dense", 1, 0)

_DOCUMENTS = ("config", "metadata", "provenance")


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
    documents: dict[str, bytes], writer: str, shapes: list[LayerShape], theta: NDArray[Any]
) -> Iterator[memoryview]:
    """Return the bytes of a model file in pieces, from where the seal ends; the parameters straight from `theta`."""
    with Layout(_MODEL, {"objective": OBJECTIVE, "writer": writer}) as layout:
        for name in _DOCUMENTS:
            layout.document(f"/{name}", documents[name])
        layout.group("/parameters", _PARAMETERS)
        first = 0
        for number, arrays in enumerate(arrays_of(shapes), start=1):
            layout.group(f"/parameters/{number}", _DENSE)
            for array in arrays:
                layout.array(array.element, theta[first : first + array.size], array.shape)
                first += array.size
    return layout.pieces()


# ----------------------------------------------------------------------------------------- reading


def read_contents(image: PagedFile, version: tuple[int, int]) -> Contents:
    """Check a file of which only the seal is known to be right, and say what it holds."""
    with opened(image) as file:
        return _read_file(file, image, version)


def _read_file(file: h5py.File, image: PagedFile, version: tuple[int, int]) -> Contents:
    reader = StrictReader(file, image.size, newer=version > MODEL.version)
    texts = reader.root(_MODEL, {"objective": OBJECTIVE, "writer": None}, [*_DOCUMENTS, "parameters"])
    documents = {name: read_document(reader, image, f"/{name}") for name in _DOCUMENTS}
    config, metadata, provenance = documents.values()
    if not isinstance(metadata, dict):
        refuse("/metadata", f"expected an object, found {type(metadata).__name__}")
    if not isinstance(provenance, dict | None):
        refuse("/provenance", f"expected an object or null, found {type(provenance).__name__}")

    dtype, shapes = parameter_shapes(config)
    layers, hdf5_type = arrays_of(shapes), DTYPES[dtype]
    n_parameters = sum(shape.n_parameters for shape in shapes)
    if n_parameters * hdf5_type.get_size() > image.size:
        refuse("/config", f"asks for {n_parameters} parameters, more than the file can hold")
    reader.group("/parameters", _PARAMETERS, [str(number) for number in range(1, len(layers) + 1)])
    places = []
    for number, arrays in enumerate(layers, start=1):
        reader.group(f"/parameters/{number}", _DENSE, [array.element[-1] for array in arrays])
        for array in arrays:
            places.append((array, reader.dataset(array.element, ARRAY, hdf5_type, array.shape)[0]))
    reader.check_extents()
    return Contents(version, texts["writer"], config, metadata, provenance, dtype, places, reader.ignored)


def read_numbers(image: PagedFile, contents: Contents, theta: NDArray[Any]) -> None:
    """Move all parameters from the file to `theta`, a contiguous array of their dtype, and check that they are finite.

    See `mlpkit.direct_hdf5.move_numbers` for the memory that it takes.
    """
    first, parts = 0, []
    for array, _ in contents.arrays:
        parts.append(theta[first : first + array.size])
        first += array.size
    move_numbers(image, [(extent, part) for (_, extent), part in zip(contents.arrays, parts, strict=True)])
    for (array, _), part in zip(contents.arrays, parts, strict=True):
        if (bad := first_non_finite(part)) is not None:
            index = [int(i) for i in np.unravel_index(bad, array.shape)]
            refuse(f"{array.element}{index}", f"expected finite numbers, found {part[bad]}")
