"""Reading HDF5 that may be forged: what an object is gets checked before its numbers are read.

HDF5 can lead out of the file (external links, external storage, virtual datasets), run plugins (filters) and hold
variable-length data of any size. None of these is needed to store arrays, so none is accepted: a group has exactly the
members expected, a dataset exactly the type and shape, every object its own place and the encoding that it is read as,
and the numbers lie plainly in the file. Every refusal is a `ModelFormatError` that names the element and the reason.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

import h5py
import numpy as np

from mlpkit.errors import ModelFormatError, frames_to_the_caller

__all__ = ["Encoding", "Extent", "StrictReader", "naming", "refuse", "warn_of_ignored"]

_MAX_TEXT = 1024
_MAX_IGNORED = 1000
_LINKS = {h5py.h5l.TYPE_SOFT: "a soft", h5py.h5l.TYPE_EXTERNAL: "an external"}


def refuse(element: str, reason: str) -> NoReturn:
    """Raise the error that names an element of the file and why it is refused."""
    raise ModelFormatError(f"{element}: {reason}")


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except ModelFormatError as error:
        # Half surrogates, from a path or a forged name, could not be printed.
        message = f"{path}: {error}".encode("utf-8", "backslashreplace").decode("utf-8")
        raise ModelFormatError(message) from error.__cause__


def warn_of_ignored(path: str, version: tuple[int, int], ignored: Sequence[str]) -> None:
    """Say which elements of a newer minor version were not read."""
    if ignored:
        warnings.warn(
            f"{path}: format version {version[0]}.{version[1]} is newer than this mlpkit, which does not know and "
            f"ignores: {', '.join(ignored):.400}",
            stacklevel=frames_to_the_caller(),
        )


class Encoding(NamedTuple):
    """How an element is laid out: the values of its attributes ``encoding-type`` and ``encoding-version``."""

    name: str
    major: int
    minor: int

    @property
    def version(self) -> str:
        """The version as the file has it, for instance ``"1.0"``."""
        return f"{self.major}.{self.minor}"


class Extent(NamedTuple):
    """Where a dataset's numbers lie in the file, in bytes, and what it is called."""

    start: int
    stop: int
    element: str


class StrictReader:
    """Opens the elements of one file, each once, and refuses all that is not as it should be.

    Elements are named by their full path, and a group must be opened before its members.

    Parameters
    ----------
    file : h5py.File
        Open for reading.
    file_bytes : int
        Its size: what no dataset may reach beyond.
    newer : bool
        Whether the file has a higher minor version than is known here. Only then are members, attributes and minor
        versions of encodings that are not known no error: they are never opened, and `ignored` lists them.
    """

    def __init__(self, file: h5py.File, file_bytes: int, *, newer: bool) -> None:
        self.ignored: list[str] = []
        self._file_bytes = file_bytes
        self._newer = newer
        self._groups: dict[str, h5py.Group] = {"": file}
        self._addresses: dict[int, str] = {h5py.h5o.get_info(file.id).addr: "/"}
        self._extents: list[Extent] = []

    def root(self, encoding: Encoding, texts: dict[str, str | None], members: Sequence[str]) -> dict[str, str]:
        """Check the root group and return its texts, other than the encoding; one of None stands for any."""
        found = self._check_attributes(self._groups[""], "/", encoding, texts)
        self._check_members("", members)
        return found

    def group(self, element: str, encoding: Encoding, members: Sequence[str]) -> None:
        """Open a member that must be a group of this encoding with exactly these members."""
        self._groups[element] = group = self._open(element, h5py.Group)
        self._check_attributes(group, element, encoding)
        self._check_members(element, members)

    def dataset(
        self,
        element: str,
        encoding: Encoding,
        hdf5_type: h5py.h5t.TypeID,
        shape: tuple[int, ...] | None = None,
    ) -> tuple[Extent, tuple[int, ...]]:
        """Check a member that must be a dataset of this type and shape (any, if None); say where its numbers lie.

        The shape () stands for a scalar.
        """
        dataset = self._open(element, h5py.Dataset)
        self._check_attributes(dataset, element, encoding)
        _check_storage(dataset.id.get_create_plist(), element)
        kind = dataset.id.get_type()
        if kind != hdf5_type or kind.committed():
            refuse(element, f"expected dtype {hdf5_type.dtype.str}, found another")
        space = dataset.id.get_space()
        extent_type = space.get_simple_extent_type()
        if shape == () and extent_type != h5py.h5s.SCALAR:
            refuse(element, "expected a scalar, found an array or an empty dataspace")
        if shape != () and extent_type != h5py.h5s.SIMPLE:
            refuse(element, "expected an array, found a scalar or an empty dataspace")
        found = space.get_simple_extent_dims()
        if shape is not None and found != shape:
            refuse(element, f"expected shape {shape}, found {found!s:.80}")
        n_bytes = math.prod(found) * hdf5_type.get_size()
        start = dataset.id.get_offset() if n_bytes else 0  # nothing lies anywhere
        # A dataset that was never written takes no room, and would read as its fill value.
        if start is None or dataset.id.get_storage_size() != n_bytes or start + n_bytes > self._file_bytes:
            refuse(element, "its numbers are missing from the file")
        self._extents.append(Extent(start, start + n_bytes, element))
        return self._extents[-1], found

    def check_extents(self) -> None:
        """Refuse datasets that share bytes of the file."""
        for one, other in pairwise(sorted(self._extents)):
            if other.start < one.stop:
                refuse(other.element, f"shares bytes of the file with {one.element}")

    def _open(self, element: str, kind: Any) -> Any:
        """Open a member, whose link `_check_members` has seen, and check that it is one of its kind and by itself."""
        parent, _, name = element.rpartition("/")
        found: Any = self._groups[parent][name]
        if not isinstance(found, kind):
            expected, actual = kind.__name__.lower(), type(found).__name__.lower()
            refuse(element, f"expected a {expected}, found a {actual}")
        # The count is the file's own word, the address is not; but only the count sees links that are never opened.
        info = h5py.h5o.get_info(found.id)
        if self._addresses.setdefault(info.addr, element) != element or info.rc != 1:
            refuse(element, "expected an object of its own, found one with several links")
        return found

    def _check_members(self, base: str, expected: Sequence[str]) -> None:
        """Refuse any member but those expected, and any link that could lead elsewhere."""
        group, names = self._groups[base].id, set(expected)
        missing = dict.fromkeys(expected)
        for raw in group:  # bytes, for a forged name need not be text
            element = f"{base}/{_printable(raw)}"
            name = raw.decode("utf-8", "replace")
            if name not in names and self._newer:
                self._ignore(element)  # whatever kind of link it is, for it is not followed
                continue
            kind = group.links.get_info(raw).type
            if kind != h5py.h5l.TYPE_HARD:
                refuse(element, f"expected a hard link, found {_LINKS.get(kind, 'a user-defined')} link")
            if name not in names:
                refuse(element, "not part of the format")
            if name not in missing:
                refuse(element, "occurs twice")
            del missing[name]
        for name in missing:
            refuse(f"{base}/{name}", "missing")

    def _check_attributes(
        self, found: Any, element: str, encoding: Encoding, texts: dict[str, str | None] | None = None
    ) -> dict[str, str]:
        """Refuse attributes but the encoding and the texts expected, all of them short; return the texts."""
        expected = {"encoding-type": encoding.name, "encoding-version": None, **(texts or {})}
        names = [h5py.h5a.open(found.id, index=i).name for i in range(h5py.h5a.get_num_attrs(found.id))]
        for raw in names:
            if raw.decode("utf-8", "replace") not in expected:
                if not self._newer:
                    refuse(f"{element}: attribute {_printable(raw)}", "not part of the format")
                self._ignore(f"{element}: attribute {_printable(raw)}")
        values = {}
        for name, value in expected.items():
            where = f"{element}: attribute {name}"
            if name.encode() not in names:
                refuse(where, "missing")
            values[name] = text = _read_text(h5py.h5a.open(found.id, name.encode()), where)
            if value is not None and text != value:
                refuse(where, f"expected {value!r}, found {text!r:.80}")
        self._check_version(values["encoding-version"], encoding, f"{element}: attribute encoding-version")
        return {name: values[name] for name in texts or {}}

    def _check_version(self, text: str, encoding: Encoding, where: str) -> None:
        if text == encoding.version:
            return
        found = re.fullmatch(r"([1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})", text)
        if not found:
            refuse(where, f"expected one such as {encoding.version!r}, found {text!r:.80}")
        major, minor = int(found[1]), int(found[2])
        if major > encoding.major:
            refuse(where, f"{encoding.name} {text} is newer than this mlpkit: update mlpkit to load it")
        if major < encoding.major or (minor > encoding.minor and not self._newer):
            refuse(where, f"expected {encoding.version!r}, found {text!r:.80}")

    def _ignore(self, element: str) -> None:
        if len(self.ignored) >= _MAX_IGNORED:
            refuse(element, f"more than {_MAX_IGNORED} elements are not known to this mlpkit: update mlpkit to load it")
        self.ignored.append(element)


def _check_storage(properties: h5py.h5p.PropDCID, element: str) -> None:
    """Refuse all storage but one unbroken run of plain numbers in this file."""
    if properties.get_layout() == h5py.h5d.VIRTUAL:
        refuse(element, "a virtual dataset, whose numbers lie elsewhere")
    if properties.get_external_count():
        refuse(element, "external storage: its numbers lie in another file")
    if properties.get_nfilters():
        refuse(element, "filters and compression are not part of the format")
    if properties.get_layout() != h5py.h5d.CONTIGUOUS:
        refuse(element, "expected contiguous storage")


def _read_text(attribute: h5py.h5a.AttrID, where: str) -> str:
    if attribute.get_space().get_simple_extent_type() != h5py.h5s.SCALAR:
        refuse(where, "expected a scalar")
    kind = attribute.get_type()
    if kind.get_class() != h5py.h5t.STRING or kind.is_variable_str() or kind.get_size() > _MAX_TEXT:
        refuse(where, f"expected text of fixed length, at most {_MAX_TEXT} bytes")
    text = np.empty((), f"S{kind.get_size()}")
    attribute.read(text)
    return bytes(text[()]).partition(b"\0")[0].decode("utf-8", "replace")


def _printable(name: bytes) -> str:
    return repr(name)[2:-1][:80]  # without b and quotes
