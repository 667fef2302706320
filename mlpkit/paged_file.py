"""A file in memory, in pages: what nobody wrote takes no memory."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PagedFile"]


class PagedFile(io.RawIOBase):
    r"""A binary file whose content lies in pages of equal size; a page that is absent reads as zeros.

    The HDF5 library reads and writes it like any other file object. A model file is laid out in one before it is
    written, its parameters left out, so that they need no second copy; and read into one, of one page, to be checked.

    Parameters
    ----------
    page_bytes : int
        The size of a page.

    Examples
    --------
    >>> file = PagedFile(page_bytes=8)
    >>> file.seek(14), file.write(b"abcd")
    (14, 4)
    >>> b"".join(file.pieces(12, 18))
    b'\x00\x00abcd'
    """

    def __init__(self, page_bytes: int) -> None:
        super().__init__()
        self.page_bytes = page_bytes
        self.size = 0
        self._pages: dict[int, NDArray[np.uint8]] = {}
        self._position = 0

    def page(self, number: int, n_bytes: int | None = None) -> NDArray[np.uint8]:
        """Return a page; one that is absent is made: of zeros, or of `n_bytes` that are to be filled at once."""
        found = self._pages.get(number)
        if found is None:
            found = np.zeros(self.page_bytes, np.uint8) if n_bytes is None else np.empty(n_bytes, np.uint8)
            self._pages[number] = found
            if n_bytes is not None:
                self.size = max(self.size, number * self.page_bytes + n_bytes)
        return found

    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        """Yield the bytes from `start` to `stop`, page by page."""
        while start < stop:
            number, offset = divmod(start, self.page_bytes)
            end = min(self.page_bytes, offset + stop - start)
            found = self._pages.get(number)
            yield memoryview(bytes(end - offset)) if found is None else found[offset:end].data
            start += end - offset

    def readable(self) -> bool:
        """Return True."""
        return True

    def writable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position that the next read or write starts at."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position, which may lie beyond the end."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Set the size; bytes that it adds are zeros."""
        self.size = self._position if size is None else size
        return self.size

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as the file goes and return the number of bytes."""
        target = memoryview(buffer).cast("B")
        n_bytes = max(0, min(len(target), self.size - self._position))
        start = 0
        for piece in self.pieces(self._position, self._position + n_bytes):
            target[start : start + len(piece)] = piece
            start += len(piece)
        self._position += n_bytes
        return n_bytes

    def write(self, data: Any) -> int:
        """Write `data` at the position and return the number of bytes."""
        source = np.frombuffer(data, np.uint8)
        start = 0
        while start < source.size:
            number, offset = divmod(self._position, self.page_bytes)
            n_bytes = min(self.page_bytes - offset, source.size - start)
            self.page(number)[offset : offset + n_bytes] = source[start : start + n_bytes]
            start += n_bytes
            self._position += n_bytes
        self.size = max(self.size, self._position)
        return source.size
