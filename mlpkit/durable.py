"""Files that are whole at any moment: written beside their place, flushed to the disk, then renamed.

A crash at any moment leaves the old file or the new one, never half of one. What a killed process leaves behind, a
temporary file, is removed by the next one that writes into the folder: a lock that dies with its process tells the
abandoned from those still being written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from io import FileIO
from typing import NoReturn

from mlpkit.errors import InvalidArgumentError

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed in the first place
    fcntl = None  # type: ignore[assignment]

__all__ = ["path_text", "replace_file", "replacing", "write_all"]

_PREFIX, _SUFFIX = ".mlpkit-", ".tmp"
_COPIED_AT_A_TIME = 4 * 1024**2
# Folders that a file system cannot sync, or that may be written in but not opened.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)
# File systems that know no owners or permission bits, or owners that only root may give away.
_CANNOT_CHANGE = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
# File systems without hard links, or with as many to the file as there can be; or another one than the file's.
_CANNOT_LINK = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EMLINK, errno.EXDEV)


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
    """Put `content` at `path`, whole or not at all; see `replacing`.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     replace_file(folder + "/note", b"whole")
    ...     pathlib.Path(folder, "note").read_bytes()
    b'whole'
    """
    with replacing(path) as file:
        write_all(file, content)


def write_all(file: FileIO, content: bytes | memoryview) -> None:
    """Write all of `content` to an unbuffered file, which may take less at a time."""
    rest = memoryview(content).cast("B")
    while rest.nbytes:
        written = file.write(rest)
        if not written:
            raise OSError(errno.EIO, "the system wrote nothing and named no error")
        rest = rest[written:]


@contextlib.contextmanager
def replacing(path: str, keep: str | None = None) -> Iterator[FileIO]:
    """Give an unbuffered file to write into, which takes its place at `path` when the block ends without an error.

    It is a temporary file in the same folder, flushed to the disk before it is renamed. After an error before the
    rename the old file is untouched and the temporary one removed. Last, the folder is synced, so that the rename
    outlives a power cut too: an error then (the disk's, or Ctrl-C) finds the new file in place.

    A symbolic link is followed, and what it points to replaced. An existing file keeps its permission bits, and owner
    and group as far as the system allows; other hard links to it keep the old content. A new file gets the bits that
    the umask leaves. At no moment is the content readable for anybody whom the finished file shuts out.

    Parameters
    ----------
    path : str
        Where the file is to be; its folder must exist.
    keep : str, optional
        Where to keep the file that was at `path`, in place of any that is there (a symbolic link itself is replaced).
        It is given a second name before the rename and goes to `keep` after it, so that at no moment is `path` missing
        or either of the two anything but a whole file. What a kill in between leaves, ``.mlpkit-<name>.old``, the next
        one with the same `keep` removes.

    Yields
    ------
    FileIO
        Open for reading and writing, empty.

    Raises
    ------
    InvalidArgumentError
        If `path` is a folder, pipe or device, or ends in a slash.
    OSError
        If the file cannot be written, the folder is missing (`FileNotFoundError`) or the existing file is
        write-protected (`PermissionError`). The message says that the old file is as it was; or, if only the last step
        fails, that the new file is in place but the old one is not at `keep`.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(folder + "/note") as file:
    ...         count = file.write(b"whole")
    ...     [entry.name for entry in pathlib.Path(folder).iterdir()]
    ['note']
    """
    target, old = _target(path)
    folders = {os.path.dirname(target)}
    if keep is not None:
        folders.add(_check_place(keep, target))
    second = ""
    try:
        _remove_abandoned(os.path.dirname(target))
        with _placing(target, old) as file:
            yield file
            if keep is not None and old is not None:
                second = _second_name(target, old, keep)
    except BaseException as error:
        if second:
            with contextlib.suppress(OSError):
                os.unlink(second)
        if isinstance(error, OSError):
            _explain(error, path, old is not None)
        raise
    if keep is not None and second:
        _move(second, keep)
    for folder in folders:
        _sync_folder(folder)


@contextlib.contextmanager
def _placing(target: str, like: os.stat_result | None) -> Iterator[FileIO]:
    """Give a temporary file in the target's folder, which takes its place; or none of it, after an error."""
    mode = 0o666 if like is None else stat.S_IMODE(like.st_mode) & 0o777
    temporary, file = _open_temporary(os.path.dirname(target), mode)
    try:
        yield file
        if like is not None:
            _dress(file, like)
        os.fsync(file.fileno())
        if os.name == "nt":  # an open file cannot be renamed there
            file.close()
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    file.close()  # and not before the rename: the lock would go with it


def _second_name(target: str, found: os.stat_result, keep: str) -> str:
    """Give a file another name, in the folder where it is to be kept, or a copy where that cannot be."""
    name = os.path.join(os.path.dirname(keep), f"{_PREFIX}{os.path.basename(keep)}.old")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name)
    try:
        os.link(target, name)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        with open(target, "rb", buffering=0) as source, _placing(os.path.abspath(name), found) as copy:
            while block := source.read(_COPIED_AT_A_TIME):
                write_all(copy, block)
    return name


def _move(second: str, keep: str) -> None:
    try:
        os.replace(second, keep)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(second)  # to rename a file onto another name of its own does nothing
    except OSError as error:
        reason = error.strerror or str(error)
        fate = f"saved; but the file that was there before cannot be kept under this name ({reason})"
        raise OSError(error.errno or errno.EIO, fate, keep) from error


def _explain(error: OSError, path: str, exists: bool) -> NoReturn:
    """Raise an error of the system's again, with the path that the user gave and what became of it."""
    fate = "the file there is as it was" if exists else "nothing was written there"
    reason = error.strerror or str(error)
    raise OSError(error.errno or errno.EIO, f"cannot save ({reason}); {fate}", path) from error


def _target(path: str) -> tuple[str, os.stat_result | None]:
    """Return the file that `path` leads to, and what is there now."""
    if os.path.basename(path) in ("", os.curdir):
        # The system would call it a folder; realpath would drop the ending.
        raise InvalidArgumentError(f"path: expected the name of a file, found that of a folder: {path!r}")
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "the folder to save into does not exist", folder)
    try:
        old = os.stat(target)
    except FileNotFoundError:
        return target, None
    _check_regular(old, path)
    # Renaming asks no leave of the old file; opening it for writing would have.
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "the existing file is write-protected", path)
    return target, old


def _check_place(keep: str, target: str) -> str:
    """Refuse to keep a file where none can be, or where the new one is to be; return the folder."""
    folder, name = os.path.split(keep)
    folder = os.path.realpath(folder)
    if os.path.join(folder, name) == target:
        raise InvalidArgumentError(f"path: is a link to {keep!r}, where the file before it is to be kept")
    with contextlib.suppress(FileNotFoundError):
        found = os.lstat(keep)
        if not stat.S_ISLNK(found.st_mode):
            _check_regular(found, keep)
    return folder


def _check_regular(found: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise InvalidArgumentError(f"path: expected the name of a file, found a folder, pipe or device: {path}")


def _open_temporary(folder: str, mode: int) -> tuple[str, FileIO]:
    """Make a file that nobody else has, locked for as long as it is open."""
    while True:
        path = os.path.join(folder, f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}")
        # "x" never opens a file that is already there; the umask applies as for any new file.
        file = open(path, "x+b", buffering=0, opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
        try:
            if _locked(file.fileno()) and os.path.exists(path):
                return path, file
        except BaseException:
            file.close()
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        file.close()  # between the two calls another process found it unlocked and cleared it away


def _locked(descriptor: int) -> bool:
    """Lock a new temporary file, if there are locks here; False if another process is just removing it."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # a file system without locks, where nothing is ever cleared away
    return True


def _remove_abandoned(folder: str) -> None:
    """Remove what killed processes of this user left in the folder; any error leaves it for another time."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(_PREFIX) and entry.name.endswith(_SUFFIX)]
        for path in (os.path.join(folder, name) for name in names):
            with contextlib.suppress(OSError):
                _remove_if_abandoned(path)


def _remove_if_abandoned(path: str) -> None:
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        return
    if fcntl is None:
        os.unlink(path)  # an error if it is open
        return
    if found.st_uid != os.geteuid():
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error while its writer lives
        os.unlink(path)
    finally:
        os.close(descriptor)


def _dress(file: FileIO, old: os.stat_result) -> None:
    """Give the new file the old one's owner, group and permission bits, as far as the system lets us."""
    if not hasattr(os, "fchmod"):
        return
    new = os.fstat(file.fileno())
    # The group alone may be ours to give where the owner is not. Owners first: changing them clears bits.
    for owner in (old.st_uid, -1):
        if (new.st_uid if owner == -1 else owner, old.st_gid) != (new.st_uid, new.st_gid):
            with _tolerating(_CANNOT_CHANGE):
                os.fchown(file.fileno(), owner, old.st_gid)
                break
    if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != stat.S_IMODE(old.st_mode):
        with _tolerating(_CANNOT_CHANGE):
            os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))


@contextlib.contextmanager
def _tolerating(numbers: tuple[int, ...]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


def _sync_folder(folder: str) -> None:
    """Make the rename itself outlive a power cut, where the system has a way to ask for that."""
    if os.name == "nt":
        return
    with _tolerating(_CANNOT_SYNC):  # the file is whole and in place all the same
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
