"""Files that other programs wrote, taken into memory: the bytes that are checked are the bytes that are used.

A file that may be hostile is opened only if it is a regular one, and read whole, so that it cannot change between a
check and its use. Pickles are refused, whatever they are called: to read one is to run the program in it.
"""

from __future__ import annotations

import os
import stat

from mlpkit.strict_hdf5 import refuse

__all__ = ["MAX_FILE_BYTES", "read_foreign", "refuse_pickle"]

MAX_FILE_BYTES = 64 * 1024**3

_PICKLE_NAMES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".bin")
# What torch.save writes is a zip archive with a pickle in it, or, before PyTorch 1.6, pickles one after another; every
# pickle of protocol 2 or later begins with its number.
_PICKLE_STARTS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))


def read_foreign(path: str) -> bytes:
    """Read a regular file whole.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFormatError
        If it is no regular file, is empty or larger than 64 GiB, or changes while it is read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     count = pathlib.Path(folder, "model").write_bytes(b"numbers")
    ...     read_foreign(folder + "/model")
    b'numbers'
    """
    # Looked at before it is opened, for to open a device may be to act on it; and after, for it may be another by then.
    if not stat.S_ISREG(os.stat(path).st_mode):
        refuse("file", "expected a regular file, found a folder, pipe or device")
    with open(path, "rb", opener=_open_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            refuse("file", "expected a regular file, found a folder, pipe or device")
        if not 0 < found.st_size <= MAX_FILE_BYTES:
            refuse("file", f"expected 1 to {MAX_FILE_BYTES} bytes, found {found.st_size}")
        data = file.read(found.st_size)
        if len(data) != found.st_size or file.read(1):
            refuse("file", "changed its length while it was read")
    return data


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting, should a pipe that nobody writes into have taken the file's place."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def refuse_pickle(path: str, head: bytes = b"") -> None:
    """Refuse a file that is a pickle by its name or its first bytes, and say why and what to do.

    Examples
    --------
    >>> refuse_pickle("model.safetensors", b"{")
    """
    if path.lower().endswith(_PICKLE_NAMES) or head.startswith(_PICKLE_STARTS):
        refuse(
            "file",
            "a pickle, or an archive with one, as torch.save writes it: reading it would run whatever program is in "
            "it, so mlpkit does not; load it where you trust it and give the module to from_torch, or save its "
            "state_dict() with safetensors.torch.save_file",
        )
