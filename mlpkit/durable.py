"""Files that are whole at any moment: bytes put at a path by writing beside it and renaming."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat

from mlpkit.errors import InvalidArgumentError

__all__ = ["path_text", "replace_file"]

# Folders that a file system cannot sync, or that may be written in but not opened.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)


def path_text(path: object) -> str:
    """Return a path as text; refuse numbers, which the system would take for open files.

    Raises
    ------
    InvalidArgumentError
        If `path` is no str, bytes or path-like, is empty or holds a null character.

    Examples
    --------
    >>> import pathlib
    >>> path_text(pathlib.PurePosixPath("models", "edges.h5"))
    'models/edges.h5'
    """
    try:
        text = os.fsdecode(path)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgumentError(f"path: expected a str or path-like, found {type(path).__name__}") from None
    if not text or "\0" in text:
        raise InvalidArgumentError(f"path: expected the name of a file, found {text!r}")
    return text


def replace_file(path: str, content: bytes | memoryview) -> None:
    """Put `content` at `path`, whole or not at all.

    It is written under a temporary name in the same folder, flushed to the disk and renamed: a
    crash at any moment leaves the old file or the new one. After an error before the rename the old
    file is untouched and the temporary one removed. Last, the folder is synced, so that the rename
    outlives a power cut too: an error then (the disk's, or Ctrl-C) finds the new file in place. A
    symbolic link is followed, and what it points to replaced; an existing file keeps its permission
    bits.

    Parameters
    ----------
    path : str
        Where to put it; its folder must exist.
    content : bytes or memoryview
        The whole file.

    Raises
    ------
    InvalidArgumentError
        If `path` is a folder, pipe or device, or ends in a slash.
    OSError
        If the file cannot be written, the folder is missing (`FileNotFoundError`) or the existing
        file is write-protected (`PermissionError`).

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     replace_file(folder + "/note", b"whole")
    ...     pathlib.Path(folder, "note").read_bytes()
    b'whole'
    """
    if os.path.basename(path) in ("", os.curdir):
        # The system would call it a folder; realpath would drop the ending.
        raise InvalidArgumentError(f"path: expected the name of a file, found that of a folder: {path!r}")
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "the folder to save into does not exist", folder)
    mode = None
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(target).st_mode
    if mode is not None:
        if not stat.S_ISREG(mode):
            raise InvalidArgumentError(f"path: expected the name of a file, found a folder, pipe or device: {path}")
        # Renaming asks no leave of the old file; opening it for writing would have.
        if not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, "the existing file is write-protected", path)
    temporary = os.path.join(folder, f".mlpkit-{secrets.token_hex(8)}.tmp")
    try:
        # "x" never opens a file that is already there; the umask applies as for any new file.
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            if mode is not None and hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Make the rename itself outlive a power cut, where the system has a way to ask for that."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # The file is whole and in place all the same.
        if error.errno not in _CANNOT_SYNC:
            raise
