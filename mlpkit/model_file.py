r"""The model file: one network in one HDF5 file, format version 1.0.

Any HDF5 tool of release 1.8 or later opens the file (``h5dump model.h5``). ``docs/model-format.md`` is the
specification; in short, all numbers little-endian::

    bytes 0 to 511      "mlpkit model\r\n\x1a\n", "format version 1.0\n", "length <bytes of the whole file>\n",
                        "sha256 <64 hexadecimal digits: SHA-256 of byte 512 to the end>\n", then zeros
    from byte 512       HDF5
    /                   attributes encoding-type "mlpkit.model", objective (`OBJECTIVE`), writer (versions of software)
    /config             uint8 (n,), JSON: the network's ``config()``
    /metadata           uint8 (n,), JSON: ``net.metadata``, an object
    /provenance         uint8 (n,), JSON: ``net.provenance``, how it was trained: an object or null
    /parameters/<l>/W   (s_{l+1}, s_l): W^(l) of the notes, float64 or float32; absent where the layer is tied
    /parameters/<l>/b   (s_{l+1},): b^(l), same dtype; absent where layer l + 1 has "bias": false

Every element carries the attributes ``encoding-type`` and ``encoding-version``. Nothing else is in the file, every link
is a hard link, every dataset contiguous, unfiltered and inside the file, every number finite. `load` assumes that the
file is hostile: the digest is checked first, then all of this, and nothing in the file is ever executed, imported or
taken for a path. The numbers come back exactly, to the bit.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlpkit.direct_hdf5 import first_non_finite
from mlpkit.durable import path_text, replacing
from mlpkit.errors import InvalidArgumentError
from mlpkit.mlp import MLP
from mlpkit.model_config import build, check_registered, config_to_save, parameter_shapes
from mlpkit.model_layout import OBJECTIVE, Contents, arrays_of, lay_out, read_contents, read_numbers
from mlpkit.sealed_file import MAX_FILE_BYTES, MODEL, read_sealed, write_sealed
from mlpkit.strict_hdf5 import naming, refuse, warn_of_ignored
from mlpkit.strict_json import to_json
from mlpkit.system import versions

__all__ = ["OBJECTIVE", "ModelInfo", "describe", "load", "save"]


def save(net: MLP, path: str | os.PathLike[str]) -> None:
    """Write a network to a file, so that `load` gives it back exactly.

    The file is written beside its final place under a temporary name, flushed to the disk and renamed: a crash at any
    moment leaves the old file or the new one, never half of one. A symbolic link is followed: what it points to is
    replaced. An existing file keeps its permission bits; other hard links to it keep the old content.

    Parameters
    ----------
    net : MLP
        The network. Its parameters must be finite, and its metadata values that JSON can hold.
    path : str or path-like
        Where to write. The folder must exist; an existing file is replaced.

    Raises
    ------
    InvalidArgumentError
        If a parameter is NaN or infinite, the parameters take more than 64 GiB, the network's seed has more than 1024
        bits, its metadata is nothing that JSON can hold, an activation or loss shares its name with a different
        registered one, or `path` is a folder or a device.
    OSError
        If the file cannot be written; the old file, if any, is then still there. Only an error of the disk's while the
        folder is synced, after everything else, finds the new file in place.

    Warns
    -----
    UserWarning
        If an activation or loss is not registered: the file holds its name only, and `load` refuses a name that it does
        not know.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import mlpkit
    >>> net = mlpkit.MLP([mlpkit.Input(3), mlpkit.Dense(1, "sigmoid")], seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     net.save(pathlib.Path(folder, "model.h5"))
    ...     same = mlpkit.load(pathlib.Path(folder, "model.h5"))
    >>> bool((same.theta == net.theta).all())
    True
    """
    text = path_text(path)
    if net.theta.nbytes > MAX_FILE_BYTES - 2**24:  # all else takes less
        raise InvalidArgumentError(f"net: expected at most {MAX_FILE_BYTES} bytes of parameters")
    metadata, provenance = net.metadata, net.provenance
    for name, value, kinds in (("metadata", metadata, dict), ("provenance", provenance, dict | None)):
        if not isinstance(value, kinds):
            raise InvalidArgumentError(f"net.{name}: expected a dict, found {type(value).__name__}")
    documents = {
        "config": config_to_save(net),
        "metadata": to_json(metadata, "net.metadata"),
        "provenance": to_json(provenance, "net.provenance"),
    }
    _check_finite(net)
    _, shapes = parameter_shapes(net.config())
    with replacing(text) as file:
        write_sealed(file, MODEL, lay_out(documents, versions(), shapes, net.theta))


def load(path: str | os.PathLike[str]) -> MLP:
    """Read a network that `save` wrote.

    Parameters
    ----------
    path : str or path-like
        The file. It is checked against the whole specification, its digest first; nothing in it is executed and no
        other file is opened on its behalf. Memory stays within about twice the file's size, and within the parameters
        and 128 MiB where the file is a large one that `save` wrote.

    Returns
    -------
    MLP
        The network, with the same parameters, predictions, metadata and provenance as the one saved, to the bit
        (predictions: on one machine with one set of versions).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFormatError
        If the file is not a model this version can read: damaged, truncated, of another kind, of a newer major version,
        or using an activation, loss or penalty that is not registered. The message names the element and the reason.

    Warns
    -----
    UserWarning
        If the file has a newer minor version and holds elements that this version does not know: they are ignored.

    Notes
    -----
    An activation or loss of your own is stored by name: register it before loading.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import mlpkit
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "model.h5")
    ...     path.write_bytes(b"not a model")
    ...     try:
    ...         mlpkit.load(path)
    ...     except mlpkit.ModelFormatError as error:
    ...         print(str(error).rpartition("model.h5: ")[2])
    11
    user block: not an mlpkit model file (it does not begin with "mlpkit model")
    """
    text = path_text(path)
    with naming(text):
        image, version = read_sealed(text, MODEL)
        contents = read_contents(image, version)
        check_registered(contents.config)
        net, unknown = build(contents.config, newer=version > MODEL.version)
        if net.n_parameters != contents.n_parameters:
            refuse("/config", f"stands for {net.n_parameters} parameters, the file has {contents.n_parameters}")
        read_numbers(image, contents, net.theta)
    net.metadata, net.provenance = contents.metadata, contents.provenance
    warn_of_ignored(text, version, [*contents.ignored, *unknown])
    return net


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says about itself.

    Attributes
    ----------
    format_version : str
        Of the file, for instance ``"1.0"``.
    file_bytes, n_parameters : int
        Its size and the length of theta.
    config : dict
        The network's configuration, with its layers and settings.
    metadata : dict
        The user's own notes.
    provenance : dict or None
        How it was trained.
    objective : str
        The convention that loss and penalties follow.
    writer : str
        The versions of the software that wrote it.
    ignored : list of str
        Elements of a newer minor version.
    """

    format_version: str
    file_bytes: int
    n_parameters: int
    config: dict[str, Any]
    metadata: dict[str, Any]
    provenance: dict[str, Any] | None
    objective: str
    writer: str
    ignored: list[str]


def describe(path: str | os.PathLike[str]) -> ModelInfo:
    """Check a model file as `load` does, its numbers too, and say what it holds.

    No network is made, so activations, losses and penalties need not be registered.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFormatError
        If the file is not a model this version can read. The message names the element and the reason.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import mlpkit
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "model.h5")
    ...     mlpkit.MLP([mlpkit.Input(3), mlpkit.Dense(1, "sigmoid")]).save(path)
    ...     describe(path).n_parameters
    4
    """
    text = path_text(path)
    with naming(text):
        image, version = read_sealed(text, MODEL)
        contents: Contents = read_contents(image, version)
        read_numbers(image, contents, np.zeros(contents.n_parameters, contents.dtype))
    return ModelInfo(
        format_version=f"{version[0]}.{version[1]}",
        file_bytes=image.size,
        n_parameters=contents.n_parameters,
        config=contents.config,
        metadata=contents.metadata,
        provenance=contents.provenance,
        objective=OBJECTIVE,
        writer=contents.writer,
        ignored=contents.ignored,
    )


def _check_finite(net: MLP) -> None:
    bad = first_non_finite(net.theta)
    if bad is None:
        return
    for arrays in arrays_of(parameter_shapes(net.config())[1]):
        for array in arrays:
            if bad < array.size:
                number, symbol = array.element.split("/")[2:]
                index = [int(i) for i in np.unravel_index(bad, array.shape)]
                found = (net.weights if symbol == "W" else net.biases)[int(number) - 1][tuple(index)]
                raise InvalidArgumentError(
                    f"net: expected finite parameters, found {symbol}^({number}){index} = {found}"
                )
            bad -= array.size
