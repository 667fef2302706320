r"""The seal of a file of mlpkit's: 512 bytes in front that say what follows, how much of it, and its SHA-256.

HDF5 keeps no checksum of contiguous data, so without the digest most flipped bits would load as different, finite
numbers; and with it, no byte reaches the HDF5 library of a file that was damaged by accident. It is no signature:
whoever forges a file can compute it. The layout of the block is part of the format, see ``docs/model-format.md``.

Reading goes through memory: the bytes that were hashed are the bytes that are parsed, whatever happens to the file
meanwhile. Writing does not: the numbers go from their arrays straight into the file, which a thread reads back, and
hashes, while it is being written.

There are two kinds of sealed files, models and checkpoints, told apart by the first line and each of its own version.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from typing import Any, NamedTuple

import numpy as np

from mlpkit.durable import write_all
from mlpkit.paged_file import PagedFile
from mlpkit.strict_hdf5 import refuse

__all__ = ["CHECKPOINT", "MAX_FILE_BYTES", "MODEL", "SEAL_BYTES", "Kind", "kind_of", "read_sealed", "write_sealed"]

SEAL_BYTES = 512
MAX_FILE_BYTES = 64 * 1024**3

_LINE_ENDS = b"\r\n\x1a\n"  # which a transfer in text mode changes
_HDF5 = b"\x89HDF\r\n\x1a\n"
_PAGE = 64 * 1024**2  # given back one by one while numbers move to their arrays: large enough to be memory of its own
_BLOCK = 4 * 1024**2  # read, hashed and written at a time


class Kind(NamedTuple):
    """What a sealed file is: the word that its first line ends in, its format's version, and what reads it."""

    name: str
    version: tuple[int, int]  # major, minor
    use: str

    @property
    def magic(self) -> bytes:
        """The first line."""
        return b"mlpkit " + self.name.encode("ascii") + _LINE_ENDS


MODEL = Kind("model", (1, 0), "mlpkit.load reads it")
CHECKPOINT = Kind("checkpoint", (1, 0), "training goes on from it with fit(..., resume=...)")
_KINDS = (MODEL, CHECKPOINT)


def seal(kind: Kind, length: int, digest: str, version: tuple[int, int] | None = None) -> bytes:
    """Return the first 512 bytes of a file of `length` bytes, of which those that follow have this SHA-256."""
    major, minor = version or kind.version
    lines = f"format version {major}.{minor}\nlength {length}\nsha256 {digest}\n"
    return (kind.magic + lines.encode("ascii")).ljust(SEAL_BYTES, b"\0")


def kind_of(path: str) -> Kind | None:
    """Return what a regular file says it is in its first line, None for anything else; nothing is checked.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        return None
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        head = bytearray(SEAL_BYTES)
        _fill(file, memoryview(head))
    return _kind_of_head(bytes(head))


def _kind_of_head(head: bytes) -> Kind | None:
    return next((kind for kind in _KINDS if head.startswith(kind.magic)), None)


# ----------------------------------------------------------------------------------------- reading


def read_sealed(path: str, kind: Kind) -> tuple[PagedFile, tuple[int, int]]:
    """Read a file of this kind into memory, once its seal is right; return it and its format version.

    In this order: a regular file; magic, version and length in the seal; the size, and that it is at most
    `MAX_FILE_BYTES`; the digest; the HDF5 signature.

    Raises
    ------
    ModelFormatError
        If any of these is not as it should be.
    """
    # Looked at before it is opened, for to open a device may be to act on it; and after, for it may be another by then.
    if not stat.S_ISREG(os.stat(path).st_mode):
        refuse("file", "expected a regular file, found a folder, pipe or device")
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            refuse("file", "expected a regular file, found a folder, pipe or device")
        head = bytearray(SEAL_BYTES)
        version, length = _read_seal(bytes(head[: _fill(file, memoryview(head))]), kind)
        if found.st_size != length:
            what = "it is truncated" if found.st_size < length else "something follows its end"
            refuse("file", f"expected {length} bytes, found {found.st_size}: {what}")
        if length > MAX_FILE_BYTES:
            refuse("file", f"expected at most {MAX_FILE_BYTES} bytes, found {length}")
        image, digest = _read_hashed(file, length)
    # The seal is a function of what follows it, so one comparison covers all 512 bytes.
    if b"".join(image.pieces(0, SEAL_BYTES)) != seal(kind, length, digest, version):
        refuse("SHA-256 digest", "does not match the content: the file is damaged")
    if b"".join(image.pieces(SEAL_BYTES, SEAL_BYTES + len(_HDF5))) != _HDF5:
        refuse("HDF5 signature", f"missing at byte {SEAL_BYTES}")
    return image, version


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting, should a pipe that nobody writes into have taken the file's place."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _fill(file: FileIO, buffer: memoryview) -> int:
    """Read until the buffer is full or the file ends; return the number of bytes."""
    filled = 0
    while filled < len(buffer):
        count = file.readinto(buffer[filled:])
        if not count:
            break
        filled += count
    return filled


def _read_hashed(file: FileIO, length: int) -> tuple[PagedFile, str]:
    """Read a whole file of `length` bytes, hashing what follows the seal in a thread while more is read."""
    image = PagedFile(min(_PAGE, length))
    digest = hashlib.sha256()
    file.seek(0)
    with _InOrder() as hashing:
        for start in range(0, length, _BLOCK):
            number, offset = divmod(start, image.page_bytes)
            page = image.page(number, min(image.page_bytes, length - number * image.page_bytes))
            block = page[offset : offset + _BLOCK].data
            if _fill(file, block) != len(block):
                refuse("file", "became shorter while it was read")
            hashing.do(digest.update, block[max(0, SEAL_BYTES - start) :])
    return image, digest.hexdigest()


def _read_seal(head: bytes, kind: Kind) -> tuple[tuple[int, int], int]:
    """Check a seal's magic and version and return the version and the file length that it states."""
    if not head:
        refuse("file", "is empty")
    if not head.startswith(kind.magic):
        if kind.magic.startswith(head):
            refuse("user block", f"truncated after {len(head)} bytes")
        if head.startswith(_HDF5):
            refuse("user block", f"missing: an HDF5 file, but not an mlpkit {kind.name}")
        if (other := _kind_of_head(head)) is not None:
            refuse("user block", f"an mlpkit {other.name}, not an mlpkit {kind.name}: {other.use}")
        if head.startswith(kind.magic.removesuffix(_LINE_ENDS)):
            refuse("user block", "line ends changed: was the file transferred in text mode?")
        refuse("user block", f'not an mlpkit {kind.name} file (it does not begin with "mlpkit {kind.name}")')
    lines = head[len(kind.magic) :].split(b"\n")
    found = re.fullmatch(rb"format version ([1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})", lines[0])
    # Before anything else is looked at: a newer version may have changed all the rest.
    if found and len(lines) > 1 and int(found[1]) > kind.version[0]:
        refuse(
            "format version",
            f"the file has version {int(found[1])}.{int(found[2])}, this mlpkit reads up to {kind.version[0]}:"
            " update mlpkit to load it",
        )
    if len(head) < SEAL_BYTES:
        refuse("user block", f"truncated after {len(head)} of {SEAL_BYTES} bytes")
    if not found:
        refuse("format version", f"cannot be read from {lines[0][:40]!r}: the file is damaged")
    length = re.fullmatch(rb"length ([1-9][0-9]{0,18})", lines[1])
    if not length:
        refuse("length", f"cannot be read from {lines[1][:40]!r}: the file is damaged")
    return (int(found[1]), int(found[2])), int(length[1])


# ----------------------------------------------------------------------------------------- writing


def write_sealed(file: FileIO, kind: Kind, content: Iterable[memoryview]) -> None:
    """Write a whole file of a kind: `content`, in pieces, after the seal that it calls for.

    `content` begins where the seal ends. Each piece is looked at once, so that the digest is that of the bytes in the
    file even if somebody changes a network while it is saved.
    """
    write_all(file, bytes(SEAL_BYTES))
    length = SEAL_BYTES
    digest = hashlib.sha256()
    buffer = np.empty(_BLOCK, np.uint8).data
    with open(file.name, "rb", buffering=0) as reader, _InOrder() as hashing:
        reader.seek(SEAL_BYTES)
        for piece in content:
            data = piece.cast("B")
            for start in range(0, len(data), _BLOCK):
                block = data[start : start + _BLOCK]
                write_all(file, block)
                length += len(block)
                hashing.do(_hash_next, digest, reader, buffer[: len(block)])
        if length > _PAGE:
            os.fsync(file.fileno())  # most of the work, done while the rest is hashed
    file.seek(0)
    write_all(file, seal(kind, length, digest.hexdigest()))


def _hash_next(digest: Any, reader: FileIO, buffer: memoryview) -> None:
    """Read as much as the buffer holds, which has just been written, and hash it."""
    if _fill(reader, buffer) != len(buffer):
        raise OSError(f"{len(buffer)} bytes were written that cannot be read back")
    digest.update(buffer)


class _InOrder:
    """Does calls one after another in a thread of its own, or at once where no thread can be started any more.

    Leaving the block waits for all of them and raises the first error among them.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._futures: list[Future[None]] = []
        self._threads = True

    def do(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function soon."""
        if self._threads:
            try:
                self._futures.append(self._pool.submit(function, *arguments))
            except RuntimeError:  # as Python exits, or beyond the system's limit of threads
                self._threads = False
                self._pool.shutdown(wait=True)
            else:
                return
        function(*arguments)

    def __enter__(self) -> _InOrder:
        return self

    def __exit__(self, kind: object, *details: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            for future in self._futures:
                future.result()
