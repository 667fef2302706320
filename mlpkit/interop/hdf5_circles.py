"""HDF5 files in which the library itself would be led around in a circle are refused before it sees them.

Files of other programs are mostly laid out as the oldest HDF5 libraries do it: the names of a group's members lie in a
local heap, in order in a B-tree. Both are linked lists of addresses, which the present library (2.0) follows without
looking where it has been: a forged file can have it open a group for ever. So the links are followed here first. What
is looked for may also occur among the numbers of an honest file, by chance; it then links to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from mlpkit.strict_hdf5 import refuse

__all__ = ["refuse_circles"]

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Where the superblock of each version has the sizes of addresses and of lengths, and the base of all addresses.
_SUPERBLOCKS = {0: (13, 24), 1: (13, 28), 2: (9, 12), 3: (9, 12)}
_FREE_NULL = 1  # the end of a list of free blocks
# In a node of a B-tree: its neighbours' addresses, that of the first child, after a key, and from there to the next's.
_LEFT, _RIGHT, _FIRST_CHILD, _STEP = 8, 16, 32, 16


def refuse_circles(data: bytes) -> None:
    """Refuse a file with a heap or B-tree that is linked in a circle, and addresses of unusual size or base.

    Raises
    ------
    ModelFormatError
        If it is not an HDF5 file, or one in which the library could be caught for ever.

    Examples
    --------
    >>> import io, h5py
    >>> file = io.BytesIO()
    >>> with h5py.File(file, "w") as made:
    ...     group = made.create_group("layers")
    >>> refuse_circles(file.getvalue())
    """
    if not data.startswith(_SIGNATURE) or len(data) < 48:
        refuse("file", "not an HDF5 file")
    sizes, base = _SUPERBLOCKS.get(data[8], (0, 0))
    if not sizes or data[sizes : sizes + 2] != b"\x08\x08" or any(data[base : base + 8]):
        refuse("superblock", "expected version 0 to 3, addresses and lengths of 8 bytes, and base 0")
    _check_heaps(data)
    nodes = {node for node in _places(data, b"TREE") if node + _FIRST_CHILD <= len(data)}
    for side in (_LEFT, _RIGHT):
        _check_neighbours(data, nodes, side)
    _check_children(data, nodes)


def _places(data: bytes, signature: bytes) -> Iterator[int]:
    place = data.find(signature)
    while place >= 0:
        yield place
        place = data.find(signature, place + 1)


def _integer(data: bytes, place: int) -> int:
    return int.from_bytes(data[place : place + 8], "little")


def _check_heaps(data: bytes) -> None:
    """Follow the lists of free blocks in local heaps, of which no two share one."""
    seen: set[int] = set()
    for heap in _places(data, b"HEAP"):
        length, head, segment = (_integer(data, heap + at) for at in (8, 16, 24))
        while head != _FREE_NULL and head < length and segment + head + 16 <= len(data):
            if segment + head in seen:
                refuse("heap", f"its list of free blocks, at byte {heap}, runs in a circle or into another's")
            seen.add(segment + head)
            head = _integer(data, segment + head)


def _check_neighbours(data: bytes, nodes: set[int], side: int) -> None:
    """Refuse two nodes with one neighbour on the same side, and chains of neighbours that end nowhere."""
    following = {node: other for node in nodes if (other := _integer(data, node + side)) in nodes}
    followers = set(following.values())
    if len(followers) < len(following):
        refuse("B-tree", "two of its nodes have the same neighbour")
    for first in nodes - followers:  # a chain begins here; a circle has no beginning
        node = first
        while node in following:
            node = following.pop(node)
    if following:
        refuse("B-tree", f"its nodes, from byte {min(following)}, are neighbours in a circle")


def _check_children(data: bytes, nodes: set[int]) -> None:
    """Refuse nodes, of trees of groups, with a child that is not below them or is another's too."""
    seen: set[int] = set()
    n_entries = 0
    for node in nodes:
        kind, level = data[node + 4], data[node + 5]
        if kind != 0 or level == 0:
            continue
        n_children = int.from_bytes(data[node + 6 : node + 8], "little")
        n_entries += n_children
        if n_entries * _STEP > len(data) + 2**20:  # more than there is room for; a few may stand there by chance
            refuse("B-tree", "has more entries than the file has room for")
        for number in range(n_children):
            child = _integer(data, node + _FIRST_CHILD + number * _STEP)
            if child not in nodes:
                continue
            if child in seen or data[child + 5] >= level:
                refuse("B-tree", f"its node at byte {child} is not below one other, and only one")
            seen.add(child)
