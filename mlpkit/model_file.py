r"""The model file: one network in one HDF5 file, format version 1.

Any HDF5 tool of release 1.8 or later opens the file (``h5dump model.h5``); this docstring is its
specification. All numbers are little-endian.

**User block**, bytes 0 to 511: ASCII text, then zeros to byte 511. Bytes 0 to 15 are the magic,
whose line ends show up a transfer in text mode (the trick is PNG's); the magic and the next line
keep their place and meaning in every later version, so that an old mlpkit always knows a newer
file::

    mlpkit model\r\n\x1a\n
    format version 1\n
    length <bytes of the whole file, user block included: decimal, no leading zeros>\n
    sha256 <64 lower-case hexadecimal digits: SHA-256 of the bytes from 512 to the end>\n

A reader checks the magic, the version, the length and the digest, and that the block holds nothing
else, *before* the HDF5 library sees a byte. HDF5 keeps no checksum of contiguous data: without the
digest most flipped bits would load as different, finite numbers. The digest guards against
accidents; it is no signature, and says nothing about who wrote the file.

**HDF5 file**, from byte 512 on (HDF5 too is told of a user block of 512 bytes)::

    /                   attributes, all scalar:
        format          fixed-length bytes, "mlpkit.MLP"
        version         uint32, 1, as in the user block
        objective       fixed-length bytes: `OBJECTIVE`, the convention that the numbers were
                        trained under
        mlpkit_version, python_version, numba_version, numpy_version, scipy_version, h5py_version
                        fixed-length bytes, at most 64: what wrote the file, for information
    /config             uint8 (n,), n <= 1 MiB: the network's config() as UTF-8 JSON, with layers,
                        loss, weight decay and the settings of each sparsity penalty
    /parameters/<l>/W   (s_{l+1}, s_l): W^(l) of the notes, l = 1 .. n_l - 1; float64 or float32,
                        as the configuration's "dtype" says
    /parameters/<l>/b   (s_{l+1},): b^(l), same dtype; absent where layer l + 1 has "bias": false

Nothing else is in the file. Every link is a hard link and leads to an object of its own; every
dataset is contiguous, unfiltered and stored inside the file (no chunks, external storage or virtual
datasets); groups and datasets carry no attributes; no variable-length, object or pickled data
anywhere. Every number is finite. The whole file is at most 4 GiB, for it is read into memory to be
checked.

The numbers come back exactly, to the bit. Version 1 is written with the HDF5 1.8 file format, whose
metadata carry checksums of their own.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import platform
import re
import stat
import warnings
from itertools import pairwise
from typing import Any

import h5py
import numpy as np

from mlpkit import activations, losses
from mlpkit.durable import path_text, replace_file
from mlpkit.errors import InvalidArgumentError, ModelFormatError
from mlpkit.layers import Dense
from mlpkit.mlp import MLP
from mlpkit.strict_hdf5 import (
    MAX_ATTRIBUTE_BYTES,
    check_attributes,
    check_members,
    open_dataset,
    open_group,
    refuse,
)
from mlpkit.system import package_version

__all__ = ["FORMAT_VERSION", "OBJECTIVE", "load", "save"]

FORMAT_VERSION = 1
OBJECTIVE = (
    "J = sum_i w_i loss_i / sum_i w_i + sum_l lambda_l/2 sum (W^(l))^2"
    " + sum_l beta_l sum_j KL(rho_l || rho_hat_j); squared_error = 1/2 ||h - y||^2"
)

_MAGIC = b"mlpkit model\r\n\x1a\n"
_USER_BLOCK = 512
_MAX_FILE_BYTES = 4 * 1024**3
_MAX_CONFIG_BYTES = 1024**2
_MAX_LAYERS = 1000
_MAX_SEED_BITS = 1024  # Python can be told to read no integer of more than 640 digits
_VERSIONED = ("mlpkit", "numba", "numpy", "scipy", "h5py")
_VERSION_ATTRIBUTES = ("python_version", *(f"{package}_version" for package in _VERSIONED))
_DTYPES = {"float64": ("<f8", h5py.h5t.IEEE_F64LE), "float32": ("<f4", h5py.h5t.IEEE_F32LE)}


# ------------------------------------------------------------------------------------------ public


def save(net: MLP, path: str | os.PathLike[str]) -> None:
    """Write a network to a file, so that `load` gives it back exactly.

    The file is written beside its final place under a temporary name, flushed to the disk and
    renamed: a crash at any moment leaves the old file or the new one, never half of one. A symbolic
    link is followed: what it points to is replaced. An existing file keeps its permission bits;
    other hard links to it keep the old content.

    Parameters
    ----------
    net : MLP
        The network. Its parameters must be finite.
    path : str or path-like
        Where to write. The folder must exist; an existing file is replaced.

    Raises
    ------
    InvalidArgumentError
        If a parameter is NaN or infinite, the file would exceed 4 GiB, the network's seed has more
        than 1024 bits, an activation or loss shares its name with a different registered one, or
        `path` is a folder or a device.
    OSError
        If the file cannot be written; the old file, if any, is then still there. Only an error of
        the disk's while the folder is synced, after everything else, finds the new file in place.

    Warns
    -----
    UserWarning
        If an activation or loss is not registered: the file holds its name only, and `load` refuses
        a name that it does not know.

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
    config = _config_to_save(net)
    image = _image(net, config)
    if len(image) > _MAX_FILE_BYTES:
        raise InvalidArgumentError(f"net: its file would take {len(image)} bytes, expected at most {_MAX_FILE_BYTES}")
    replace_file(text, image)


def load(path: str | os.PathLike[str]) -> MLP:
    """Read a network that `save` wrote.

    Parameters
    ----------
    path : str or path-like
        The file. It is checked against the whole specification in this module's docstring, its
        digest first; nothing in it is executed and no other file is opened on its behalf.

    Returns
    -------
    MLP
        The network, with the same parameters and predictions as the one saved, to the bit
        (predictions: on one machine with one set of versions).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFormatError
        If the file is not a model this version can read: damaged, truncated, of another kind, of a
        newer version, or using an activation or loss that is not registered. The message names the
        element and the reason.

    Notes
    -----
    An activation or loss of your own is stored by name: register it (`mlpkit.activations.register`,
    `mlpkit.losses.register`) before loading.

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
    try:
        image = _read_checked(text)
        return _read_image(image)
    except ModelFormatError as error:
        # Half surrogates, from a path or a forged name, could not be printed.
        message = f"{text}: {error}".encode("utf-8", "backslashreplace").decode("utf-8")
        raise ModelFormatError(message) from error.__cause__


# --------------------------------------------------------------------- bytes before HDF5 sees them


def _user_block(length: int, digest: str) -> bytes:
    lines = f"format version {FORMAT_VERSION}\nlength {length}\nsha256 {digest}\n"
    return (_MAGIC + lines.encode("ascii")).ljust(_USER_BLOCK, b"\0")


def _digest(image: bytes | memoryview) -> str:
    return hashlib.sha256(memoryview(image)[_USER_BLOCK:]).hexdigest()


def _read_checked(path: str) -> bytes:
    """Read the whole file, once magic, version and length are right, and check its digest."""
    # Looked at before it is opened: opening a pipe would wait for somebody to write into it.
    if not stat.S_ISREG(os.stat(path).st_mode):
        refuse("file", "expected a regular file, found a folder, pipe or device")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = _declared_length(file.read(_USER_BLOCK))
        if size != length:
            what = "it is truncated" if size < length else "something follows its end"
            refuse("file", f"expected {length} bytes, found {size}: {what}")
        if size > _MAX_FILE_BYTES:
            refuse("file", f"expected at most {_MAX_FILE_BYTES} bytes, found {size}")
        file.seek(0)
        image = file.read(length)
    # The user block is a function of what follows it, so one comparison covers all 512 bytes.
    if image[:_USER_BLOCK] != _user_block(len(image), _digest(image)):
        refuse("SHA-256 digest", "does not match the content: the file is damaged")
    if image[_USER_BLOCK : _USER_BLOCK + 8] != b"\x89HDF\r\n\x1a\n":
        refuse("HDF5 signature", f"missing at byte {_USER_BLOCK}")
    return image


def _declared_length(head: bytes) -> int:
    """Check a user block's magic and version and return the file length that it states."""
    if not head:
        refuse("file", "is empty")
    if not head.startswith(_MAGIC):
        if _MAGIC.startswith(head):
            refuse("user block", f"truncated after {len(head)} bytes")
        if head.startswith(b"\x89HDF\r\n\x1a\n"):
            refuse("user block", "missing: an HDF5 file, but not an mlpkit model")
        if head.startswith(b"mlpkit model"):
            refuse("user block", "line ends changed: was the file transferred in text mode?")
        refuse("user block", 'not an mlpkit model file (it does not begin with "mlpkit model")')
    lines = head[len(_MAGIC) :].split(b"\n")
    version = re.fullmatch(rb"format version ([1-9][0-9]{0,8})", lines[0])
    # Before anything else is looked at: a newer version may have changed all the rest.
    if version and len(lines) > 1 and int(version[1]) > FORMAT_VERSION:
        refuse(
            "format version",
            f"the file has version {int(version[1])}, this mlpkit reads up to {FORMAT_VERSION}:"
            " update mlpkit to load it",
        )
    if len(head) < _USER_BLOCK:
        refuse("user block", f"truncated after {len(head)} of {_USER_BLOCK} bytes")
    if not version:
        refuse("format version", f"cannot be read from {lines[0][:40]!r}: the file is damaged")
    length = re.fullmatch(rb"length ([1-9][0-9]{0,18})", lines[1])
    if not length:
        refuse("length", f"cannot be read from {lines[1][:40]!r}: the file is damaged")
    return int(length[1])


# ------------------------------------------------------------------------------- the configuration


def _parse_config(raw: bytes) -> dict[str, Any]:
    """JSON bytes -> configuration, without the latitude that Python's parser allows by default."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            refuse("/config", "a key occurs twice in one object")
        return dict(pairs)

    def number(token: str) -> float:
        value = float(token)
        if not math.isfinite(value):
            refuse("/config", f"{token[:40]} is not a finite number")
        return value

    try:
        config = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=number,
            parse_float=number,
        )
    except ModelFormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"/config: not valid JSON in UTF-8 ({error})") from error
    if not isinstance(config, dict):
        refuse("/config", f"expected an object, found {type(config).__name__}")
    return config


def _parameter_shapes(config: dict[str, Any]) -> tuple[str, list[tuple[tuple[int, int], bool]]]:
    """Check what sizes hang on; return the dtype and each layer's (shape of W, has a bias).

    Only plain integers are touched, so a hostile configuration cannot make us allocate anything.
    """
    dtype = config.get("dtype")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        refuse("/config: dtype", f"expected float64 or float32, found {dtype!r:.80}")
    layers = config.get("layers")
    if not isinstance(layers, list) or not 2 <= len(layers) <= _MAX_LAYERS:
        refuse("/config: layers", f"expected a list of 2 to {_MAX_LAYERS} layers")
    sizes: list[int] = []
    biases: list[bool] = []
    for number, layer in enumerate(layers, start=1):
        where = f"/config: layer {number}"
        kind = "Input" if number == 1 else "Dense"
        if not isinstance(layer, dict) or layer.get("type") != kind:
            refuse(where, f"expected a layer of type {kind}")
        units = layer.get("units")
        if type(units) is not int or not 1 <= units <= _MAX_FILE_BYTES:
            refuse(f"{where}: units", f"expected a positive integer, found {units!r:.80}")
        bias = layer.get("bias", True)
        if type(bias) is not bool:
            refuse(f"{where}: bias", f"expected true or false, found {bias!r:.80}")
        sizes.append(units)
        biases.append(bias)
    shapes = [((n_out, n_in), bias) for (n_in, n_out), bias in zip(pairwise(sizes), biases[1:], strict=True)]
    return dtype, shapes


def _check_registered(config: dict[str, Any]) -> None:
    for number, layer in enumerate(config["layers"][1:], start=2):
        name = layer.get("activation")
        if name not in activations.names():
            refuse(
                f"/config: layer {number}: activation",
                f"{name!r:.80} is not registered: mlpkit.activations.register it before loading"
                f" (known: {', '.join(activations.names())})",
            )
    if config.get("loss") not in losses.names():
        refuse(
            "/config: loss",
            f"{config.get('loss')!r:.80} is not registered: mlpkit.losses.register it before"
            f" loading (known: {', '.join(losses.names())})",
        )


# ----------------------------------------------------------------------------------------- writing


def _config_to_save(net: MLP) -> bytes:
    """Check that `load` will accept the network; return its configuration as JSON bytes."""
    for number, arrays in enumerate(zip(net.weights, net.biases, strict=True), start=1):
        for symbol, array in zip("Wb", arrays, strict=True):
            if (bad := _first_non_finite(array)) is not None:
                raise InvalidArgumentError(
                    f"net: expected finite parameters, found {symbol}^({number}){bad[0]} = {bad[1]}"
                )
    # Only names are stored, so a name must mean the same function here as in the registry.
    users: list[tuple[str, Any, Any]] = [
        (f"layer {number}: activation", layer.activation, activations)
        for number, layer in enumerate(net.layers, start=1)
        if isinstance(layer, Dense)
    ]
    for where, used, registry in [*users, ("loss", net.loss, losses)]:
        if used.name in registry.names() and registry.get(used.name) is not used:
            raise InvalidArgumentError(
                f"net: {where}: {used.name!r} is registered as another function; give yours a name of its own"
            )
        if used.name not in registry.names():
            warnings.warn(
                f"net: {where}: {used.name!r} is not registered, and the file holds its name only: "
                f"{registry.__name__}.register it, here and before loading",
                stacklevel=4,
            )
    if net.seed is not None and net.seed.bit_length() > _MAX_SEED_BITS:
        raise InvalidArgumentError(
            f"net: expected a seed of at most {_MAX_SEED_BITS} bits, found one of {net.seed.bit_length()}"
        )
    raw = json.dumps(net.config(), allow_nan=False, indent=1).encode()
    if len(raw) > _MAX_CONFIG_BYTES:
        raise InvalidArgumentError(
            f"net: expected a configuration of at most {_MAX_CONFIG_BYTES} bytes, found {len(raw)}"
        )
    try:
        _parameter_shapes(_parse_config(raw))
    except ModelFormatError as error:
        raise InvalidArgumentError(f"net: cannot be saved: {error}") from error
    return raw


def _image(net: MLP, config: bytes) -> memoryview:
    """Build the whole file in memory."""
    # Through memory: a full disk then shows as an OSError of an ordinary write, not inside the HDF5
    # library, and the file is written front to back in one go.
    stored = _DTYPES[net.dtype.name][0]
    versions = [platform.python_version(), *(package_version(name) for name in _VERSIONED)]
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=_USER_BLOCK, libver=("v108", "v108")) as file:
        file.attrs["format"] = np.bytes_("mlpkit.MLP")
        file.attrs.create("version", FORMAT_VERSION, dtype="<u4")
        file.attrs["objective"] = np.bytes_(OBJECTIVE)
        for name, version in zip(_VERSION_ATTRIBUTES, versions, strict=True):
            file.attrs[name] = np.bytes_(version[:MAX_ATTRIBUTE_BYTES])
        file.create_dataset("config", data=np.frombuffer(config, dtype=np.uint8))
        for number, (W, b) in enumerate(zip(net.weights, net.biases, strict=True), start=1):
            group = file.create_group(f"parameters/{number}")
            group.create_dataset("W", data=W, dtype=stored)  # (s_{l+1}, s_l)
            if b.size:
                group.create_dataset("b", data=b, dtype=stored)  # (s_{l+1},)
    image = buffer.getbuffer()
    image[:_USER_BLOCK] = _user_block(len(image), _digest(image))
    return image


# ----------------------------------------------------------------------------------------- reading


def _read_image(image: bytes) -> MLP:
    """Read a file whose digest is right, though its content may still be anything."""
    try:
        # From memory, so that what was checked is what is parsed.
        with h5py.File(io.BytesIO(image), "r") as file:
            return _read_file(file, len(image))
    except (ModelFormatError, MemoryError):
        raise
    except Exception as error:
        # h5py turns the HDF5 library's complaints into half a dozen kinds of exception.
        raise ModelFormatError(f"content: the HDF5 library cannot read it ({error})") from error


def _read_file(file: h5py.File, file_bytes: int) -> MLP:
    expected: dict[str, bytes | int | None] = dict.fromkeys(_VERSION_ATTRIBUTES)
    expected |= {
        "format": b"mlpkit.MLP",
        "version": FORMAT_VERSION,
        "objective": OBJECTIVE.encode(),
    }
    check_attributes(file, expected)
    check_members(file, ["config", "parameters"])

    stored = open_dataset(file, "config", h5py.h5t.STD_U8LE)
    if len(stored.shape) != 1 or not 1 <= stored.shape[0] <= _MAX_CONFIG_BYTES:
        refuse("/config", f"expected 1 to {_MAX_CONFIG_BYTES} bytes, found shape {stored.shape}")
    config = _parse_config(stored[()].tobytes())
    dtype, shapes = _parameter_shapes(config)
    hdf5_type = _DTYPES[dtype][1]
    n_parameters = sum(math.prod(shape) + bias * shape[0] for shape, bias in shapes)
    if n_parameters * hdf5_type.get_size() > file_bytes:
        refuse("/config", f"asks for {n_parameters} parameters, more than the file can hold")
    _check_registered(config)

    # Every dataset is checked before the network is built and the first number is read.
    parameters = open_group(file, "parameters")
    check_members(parameters, [str(number) for number in range(1, len(shapes) + 1)])
    datasets = []
    for number, (shape, has_bias) in enumerate(shapes, start=1):
        group = open_group(parameters, str(number))
        check_members(group, ["W", "b"] if has_bias else ["W"])
        W = open_dataset(group, "W", hdf5_type, shape)
        b = open_dataset(group, "b", hdf5_type, shape[:1]) if has_bias else None
        datasets.append((W, b))

    net = _build(config)
    for (W, b), W_view, b_view in zip(datasets, net.weights, net.biases, strict=True):
        for dataset, view in ((W, W_view), (b, b_view)):
            if dataset is None:
                continue
            view[...] = dataset[()]
            if (bad := _first_non_finite(view)) is not None:
                refuse(f"{dataset.name}{bad[0]}", f"expected finite numbers, found {bad[1]}")
    return net


def _build(config: dict[str, Any]) -> MLP:
    try:
        net = MLP.from_config(config)
        rebuilt = json.loads(json.dumps(net.config()))
    except KeyError as error:
        raise ModelFormatError(f"/config: {error} is missing") from error
    except Exception as error:
        raise ModelFormatError(f"/config: {error}") from error
    # Refuses keys that this version does not know, keys left out, and values that were adjusted.
    if rebuilt != config:
        differing = sorted(key for key in {*rebuilt, *config} if _differ(rebuilt, config, key))
        refuse(
            "/config",
            f"not a configuration that this version writes (see {', '.join(differing)[:200]})",
        )
    return net


def _differ(one: dict[str, Any], other: dict[str, Any], key: str) -> bool:
    return key not in one or key not in other or one[key] != other[key]


def _first_non_finite(array: np.ndarray) -> tuple[list[int], float] | None:
    finite = np.isfinite(array)
    if finite.all():
        return None
    index = np.unravel_index(int(np.argmin(finite)), array.shape)
    return [int(i) for i in index], float(array[index])
