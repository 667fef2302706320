"""Reading HDF5 that may be forged: what an object is gets checked before its numbers are read.

HDF5 can lead out of the file (external links, external storage, virtual datasets), run plugins
(filters) and hold variable-length data of any size. None of these is needed to store arrays, so
none is accepted: a group has exactly the members expected, a dataset exactly the type and shape,
and its numbers lie plainly in the file. Every refusal is a `ModelFormatError` that names the
element and the reason.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import h5py

from mlpkit.errors import ModelFormatError

__all__ = [
    "MAX_ATTRIBUTE_BYTES",
    "check_attributes",
    "check_members",
    "open_dataset",
    "open_group",
    "refuse",
]

MAX_ATTRIBUTE_BYTES = 64
_LINKS = {h5py.h5l.TYPE_SOFT: "a soft", h5py.h5l.TYPE_EXTERNAL: "an external"}


def refuse(element: str, reason: str) -> NoReturn:
    """Raise the error that names an element of the file and why it is refused."""
    raise ModelFormatError(f"{element}: {reason}")


def check_members(group: h5py.Group, expected: list[str]) -> None:
    """Refuse any member but those expected, and any link that could lead elsewhere."""
    base = group.name.rstrip("/")
    found = []
    for raw in group.id:  # bytes, for a forged name need not be text
        name = _printable(raw)
        kind = group.id.links.get_info(raw).type
        if kind != h5py.h5l.TYPE_HARD:
            label = _LINKS.get(kind, "a user-defined")
            refuse(f"{base}/{name}", f"expected a hard link, found {label} link")
        if raw.decode("utf-8", "replace") not in expected:
            refuse(f"{base}/{name}", "not part of the format")
        found.append(name)
    for name in expected:
        if name not in found:
            refuse(f"{base}/{name}", "missing")


def check_attributes(file: h5py.File, expected: dict[str, bytes | int | None]) -> None:
    """Refuse root attributes but those expected: uint32 numbers and short fixed-length bytes.

    A value of None stands for any bytes up to `MAX_ATTRIBUTE_BYTES`.
    """
    found = [h5py.h5a.open(file.id, index=i).name for i in range(h5py.h5a.get_num_attrs(file.id))]
    for raw in found:
        if raw.decode("utf-8", "replace") not in expected:
            refuse(f"attribute {_printable(raw)}", "not part of the format")
    for name, value in expected.items():
        if name.encode() not in found:
            refuse(f"attribute {name}", "missing")
        attribute = h5py.h5a.open(file.id, name.encode())
        if attribute.get_space().get_simple_extent_type() != h5py.h5s.SCALAR:
            refuse(f"attribute {name}", "expected a scalar")
        kind = attribute.get_type()
        if isinstance(value, int):
            right = kind == h5py.h5t.STD_U32LE
        else:
            right = (
                kind.get_class() == h5py.h5t.STRING
                and not kind.is_variable_str()
                and kind.get_size() <= max(len(value or b""), MAX_ATTRIBUTE_BYTES)
            )
        if not right:
            refuse(f"attribute {name}", "wrong type or too long")
        if value is not None and file.attrs[name] != value:
            refuse(f"attribute {name}", f"expected {value!r}, found {file.attrs[name]!r:.80}")


def open_group(parent: h5py.Group, name: str) -> h5py.Group:
    """Open a member that must be a group; its link has been checked by `check_members`."""
    return _open(parent, name, h5py.Group)


def open_dataset(
    group: h5py.Group, name: str, hdf5_type: h5py.h5t.TypeID, shape: tuple[int, ...] | None = None
) -> h5py.Dataset:
    """Open a dataset of this type and shape (any, if None), its numbers plainly in this file."""
    dataset = _open(group, name, h5py.Dataset)
    element = dataset.name
    properties = dataset.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL:
        refuse(element, "a virtual dataset, whose numbers lie elsewhere")
    if properties.get_external_count():
        refuse(element, "external storage: its numbers lie in another file")
    if properties.get_nfilters():
        refuse(element, "filters and compression are not part of the format")
    if properties.get_layout() != h5py.h5d.CONTIGUOUS:
        refuse(element, "expected contiguous storage")
    if dataset.id.get_type() != hdf5_type:
        refuse(element, f"expected dtype {hdf5_type.dtype.str}, found another")
    space = dataset.id.get_space()
    if space.get_simple_extent_type() != h5py.h5s.SIMPLE:
        refuse(element, "expected an array, found a scalar or an empty dataspace")
    found = space.get_simple_extent_dims()
    if shape is not None and found != shape:
        refuse(element, f"expected shape {shape}, found {found}")
    # A dataset that was never written takes no room, and would read as its fill value.
    if dataset.id.get_storage_size() != math.prod(found) * hdf5_type.get_size():
        refuse(element, "its numbers are missing from the file")
    return dataset


def _open(group: h5py.Group, name: str, kind: Any) -> Any:
    element = f"{group.name.rstrip('/')}/{name}"
    found: Any = group[name]
    if not isinstance(found, kind):
        expected, actual = kind.__name__.lower(), type(found).__name__.lower()
        refuse(element, f"expected a {expected}, found a {actual}")
    if h5py.h5o.get_info(found.id).rc != 1:
        refuse(element, "expected an object of its own, found one with several links")
    if h5py.h5a.get_num_attrs(found.id):
        refuse(element, "attributes here are not part of the format")
    return found


def _printable(name: bytes) -> str:
    return repr(name)[2:-1][:80]  # without b and quotes
