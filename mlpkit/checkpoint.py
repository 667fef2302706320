r"""The checkpoint file: all that a training needs to go on, in one HDF5 file, format version 1.0.

It is a sealed file like a model (see `mlpkit.model_file`), written and read by the same code and as strictly, with
other elements; ``docs/model-format.md`` is the specification. In short::

    bytes 0 to 511      "mlpkit checkpoint\r\n\x1a\n", then version, length and SHA-256 as in a model
    from byte 512       HDF5
    /                   attributes encoding-type "mlpkit.checkpoint", objective, writer
    /config             uint8 (n,), JSON: the network's ``config()``
    /theta              (n,): all parameters in the order of the notes, float64 or float32, finite
    /optimizer, /loop   a state each, see `mlpkit.state_layout`:
        values              uint8 (n,), JSON: name -> an integer, a string, or an array's dtype and shape
        arrays/<name>       the array, float64 or float32 of any shape; any bits, NaN too

**Two are kept.** `write_checkpoint` keeps the file that was there before, beside it, as `previous_path` says. The new
one takes its place by one rename, so once there is a checkpoint its path is never missing and never half of one,
whenever the process is killed; nor is the previous one's. After a kill ``run.h5`` is the last checkpoint whose writing
ended, or the one after it, and ``run.previous.h5`` an earlier one. So to resume is to read ``run.h5``. Should it be
damaged (a failing disk) or gone (somebody removed it), the error of `read_checkpoint` says whether the one before it is
whole. It never goes back to that by itself, for who asks for one file should not unknowingly get another.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlpkit.descent import State
from mlpkit.direct_hdf5 import ARRAY, DTYPES, Layout, first_non_finite, move_numbers, opened, read_document
from mlpkit.durable import path_text, replacing
from mlpkit.errors import InvalidArgumentError, ModelFormatError
from mlpkit.model_config import config_json, parameter_shapes
from mlpkit.model_layout import OBJECTIVE
from mlpkit.sealed_file import CHECKPOINT, MAX_FILE_BYTES, read_sealed, write_sealed
from mlpkit.state_layout import ArraySpec, lay_out_state, plan_state, read_index
from mlpkit.strict_hdf5 import Encoding, Extent, StrictReader, naming, refuse, warn_of_ignored
from mlpkit.system import versions

__all__ = [
    "Checkpoint",
    "CheckpointInfo",
    "describe_checkpoint",
    "previous_path",
    "read_checkpoint",
    "write_checkpoint",
]

_CHECKPOINT = Encoding("mlpkit.checkpoint", 1, 0)
_STATES = ("optimizer", "loop")
_ALL_ELSE = 2**26  # bytes of a file that are none of its arrays': more than there can be


class Checkpoint(NamedTuple):
    """What a training goes on from.

    Attributes
    ----------
    config : dict
        ``MLP.config()`` of the network in training.
    theta : ndarray, shape (n,)
        Its parameters, in its dtype; finite.
    optimizer : mapping
        The optimiser's state: names to arrays (float64 or float32, of any shape and any values), integers of 64 bits
        and strings. May be empty.
    loop : mapping
        The training loop's state: values of the same kinds.
    """

    config: dict[str, Any]
    theta: NDArray[Any]
    optimizer: State
    loop: State


def previous_path(path: str | os.PathLike[str]) -> str:
    """Return where the checkpoint before the one at `path` is kept.

    Examples
    --------
    >>> previous_path("run.h5")
    'run.previous.h5'
    """
    stem, ending = os.path.splitext(path_text(path))
    return f"{stem}.previous{ending}"


# ----------------------------------------------------------------------------------------- writing


def write_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint, so that `read_checkpoint` gives it back exactly, and keep the one that was there.

    The file is written beside its final place under a temporary name, flushed to the disk and renamed. What was at
    `path` is then at ``previous_path(path)``, by a hard link, or by a copy where the file system has none; what was
    there is gone. For a moment the disk holds three. See `MLP.save` for links and permission bits.

    Parameters
    ----------
    path : str or path-like
        Where to write. The folder must exist.
    checkpoint : Checkpoint
        What to write.

    Raises
    ------
    InvalidArgumentError
        If `theta` is not finite or not what `config` asks for, a state has a name or value that a file cannot hold,
        its integers, strings and names take more than 1 MiB as JSON, all takes more than 64 GiB, or `path` is a folder
        or a device.
    OSError
        If the file cannot be written. The message says what became of it: the file at `path` is as it was, or, where
        only the old one could not be kept or the folder not be synced, the new one is in place.

    Examples
    --------
    >>> import os, tempfile
    >>> import mlpkit
    >>> net = mlpkit.MLP([mlpkit.Input(3), mlpkit.Dense(1, "sigmoid")], seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for epoch in range(3):
    ...         write_checkpoint(f"{folder}/run.h5", Checkpoint(net.config(), net.theta, {}, {"epoch": epoch}))
    ...     names = sorted(os.listdir(folder))
    ...     names, [read_checkpoint(f"{folder}/{name}").loop["epoch"] for name in names]
    (['run.h5', 'run.previous.h5'], [2, 1])
    """
    text = path_text(path)
    content = _lay_out(checkpoint)
    with replacing(text, keep=previous_path(text)) as file:
        write_sealed(file, CHECKPOINT, content)


def _lay_out(checkpoint: Checkpoint) -> Iterator[memoryview]:
    """Check everything; return the bytes of the file in pieces, from where the seal ends."""
    config = config_json(checkpoint.config, "checkpoint.config")
    theta = _checked_theta(checkpoint)
    plans = {name: plan_state(getattr(checkpoint, name), f"checkpoint.{name}") for name in _STATES}
    if theta.nbytes + sum(plan.n_bytes for plan in plans.values()) > MAX_FILE_BYTES - _ALL_ELSE:
        raise InvalidArgumentError(f"checkpoint: expected at most {MAX_FILE_BYTES} bytes in all")
    with Layout(_CHECKPOINT, {"objective": OBJECTIVE, "writer": versions()}) as layout:
        layout.document("/config", config)
        layout.array("/theta", theta, theta.shape)
        for name, plan in plans.items():
            lay_out_state(layout, f"/{name}", plan)
    return layout.pieces()


def _checked_theta(checkpoint: Checkpoint) -> NDArray[Any]:
    """Return the parameters, contiguous, once they are what the configuration asks for."""
    theta, (dtype, n_parameters) = checkpoint.theta, _dtype_and_length(checkpoint.config)
    if not isinstance(theta, np.ndarray) or str(theta.dtype) != dtype or theta.shape != (n_parameters,):
        found = f"{theta.dtype} of shape {theta.shape}" if isinstance(theta, np.ndarray) else type(theta).__name__
        raise InvalidArgumentError(
            f"checkpoint.theta: expected {dtype} of shape ({n_parameters},), as checkpoint.config says; found {found}"
        )
    if (bad := first_non_finite(theta)) is not None:
        raise InvalidArgumentError(f"checkpoint.theta: expected finite parameters; found theta[{bad}] = {theta[bad]}")
    return np.ascontiguousarray(theta)


def _dtype_and_length(config: Any) -> tuple[str, int]:
    """Return what theta must be like, from plain integers, of which nothing is allocated."""
    dtype, shapes = parameter_shapes(config)
    return dtype, sum(shape.n_parameters for shape in shapes)


# ----------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint file says about itself.

    Attributes
    ----------
    format_version : str
        Of the file, for instance ``"1.0"``.
    file_bytes, n_parameters : int
        Its size and the length of theta.
    config : dict
        The network's configuration.
    optimizer, loop : dict
        The states, with ``"float64 (30, 4)"`` in place of an array.
    writer : str
        The versions of the software that wrote it.
    ignored : list of str
        Elements of a newer minor version.
    """

    format_version: str
    file_bytes: int
    n_parameters: int
    config: dict[str, Any]
    optimizer: dict[str, int | str]
    loop: dict[str, int | str]
    writer: str
    ignored: list[str]


class _Found(NamedTuple):
    """A checkpoint and the file around it."""

    checkpoint: Checkpoint
    version: tuple[int, int]
    file_bytes: int
    writer: str
    ignored: list[str]


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint that `write_checkpoint` wrote.

    Parameters
    ----------
    path : str or path-like
        The file. It is checked against the whole specification, its digest first; nothing in it is executed and no
        other file is opened on its behalf. Memory stays within about twice the file's size.

    Returns
    -------
    Checkpoint
        As it was written, to the bit. What its configuration names need not be registered, and no network is made.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFormatError
        If the file is not a checkpoint that this version can read: damaged, truncated, of another kind or of a newer
        major version. The message names the element and the reason.

        Either error says so if the checkpoint before it is there and whole: give its path instead, to go on from it.

    Warns
    -----
    UserWarning
        If the file has a newer minor version and holds elements that this version does not know: they are ignored.

    Examples
    --------
    >>> import tempfile
    >>> import mlpkit
    >>> net = mlpkit.MLP([mlpkit.Input(3), mlpkit.Dense(1, "sigmoid")], seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = folder + "/run.h5"
    ...     history = {"cost": np.array([0.5, np.nan])}
    ...     write_checkpoint(path, Checkpoint(net.config(), net.theta, {"m": np.zeros(4)}, history))
    ...     found = read_checkpoint(path)
    >>> found.optimizer, found.loop
    ({'m': array([0., 0., 0., 0.])}, {'cost': array([0.5, nan])})
    """
    text = path_text(path)
    found = _read_or_hint(text)
    warn_of_ignored(text, found.version, found.ignored)
    return found.checkpoint


def describe_checkpoint(path: str | os.PathLike[str]) -> CheckpointInfo:
    """Check a checkpoint file as `read_checkpoint` does, and say what it holds.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFormatError
        If the file is not a checkpoint that this version can read. The message names the element and the reason.

    Examples
    --------
    >>> import tempfile
    >>> import mlpkit
    >>> net = mlpkit.MLP([mlpkit.Input(3), mlpkit.Dense(1, "sigmoid")], seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_checkpoint(folder + "/run.h5", Checkpoint(net.config(), net.theta, {"m": np.zeros(4)}, {"epoch": 3}))
    ...     info = describe_checkpoint(folder + "/run.h5")
    >>> info.n_parameters, info.optimizer, info.loop
    (4, {'m': 'float64 (4,)'}, {'epoch': 3})
    """
    found = _read_or_hint(path_text(path))
    states = {
        name: {
            key: f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else value
            for key, value in getattr(found.checkpoint, name).items()
        }
        for name in _STATES
    }
    return CheckpointInfo(
        format_version=f"{found.version[0]}.{found.version[1]}",
        file_bytes=found.file_bytes,
        n_parameters=found.checkpoint.theta.size,
        config=found.checkpoint.config,
        **states,
        writer=found.writer,
        ignored=found.ignored,
    )


def _read_or_hint(path: str) -> _Found:
    """Read a file; where that fails, say whether the one before it would do."""
    try:
        return _read(path)
    except (FileNotFoundError, ModelFormatError) as error:
        earlier = previous_path(path)
        try:
            _read(earlier)
        except (OSError, ModelFormatError):
            raise error from error.__cause__
        hint = f"the checkpoint before it, {earlier!r}, is whole: give that path to go on from it"
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, f"{os.strerror(errno.ENOENT)}; but {hint}", path) from None
        message = f"{error}; {hint}".encode("utf-8", "backslashreplace").decode("utf-8")
        raise ModelFormatError(message) from error.__cause__


def _read(path: str) -> _Found:
    with naming(path):
        image, version = read_sealed(path, CHECKPOINT)
        with opened(image) as file:
            reader = StrictReader(file, image.size, newer=version > CHECKPOINT.version)
            texts = reader.root(_CHECKPOINT, {"objective": OBJECTIVE, "writer": None}, ["config", "theta", *_STATES])
            config = read_document(reader, image, "/config")
            dtype, n_parameters = _dtype_and_length(config)
            extent, _ = reader.dataset("/theta", ARRAY, DTYPES[dtype], (n_parameters,))
            indices = {name: read_index(reader, image, f"/{name}") for name in _STATES}
            reader.check_extents()
        # From here on the arrays are known to fit the file together.
        theta = np.empty(n_parameters, dtype)
        moves: list[tuple[Extent, NDArray[Any]]] = [(extent, theta)]
        states: dict[str, dict[str, Any]] = {}
        for state, (index, extents) in indices.items():
            values = states[state] = {}
            for name, entry in index.items():
                if isinstance(entry, ArraySpec):
                    values[name] = np.empty(entry.shape, entry.dtype)
                    moves.append((extents[name], values[name].reshape(-1)))
                else:
                    values[name] = entry
        move_numbers(image, moves)
        if (bad := first_non_finite(theta)) is not None:
            refuse(f"/theta[{bad}]", f"expected finite numbers, found {theta[bad]}")
    return _Found(Checkpoint(config, theta, **states), version, image.size, texts["writer"], reader.ignored)
