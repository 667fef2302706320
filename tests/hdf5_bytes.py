"""HDF5 files as bytes: where the metadata blocks of the 1.8 format lie, and their checksums made right again.

With them a file can be changed in ways that no HDF5 library would write, past the checks of the library that reads it.
"""

import struct
from typing import NamedTuple

_MASK = 0xFFFFFFFF


class Block(NamedTuple):
    """A stretch of metadata from `start` to `stop`, where its checksum follows; its messages begin at `first`."""

    kind: str
    start: int
    first: int
    stop: int
    flags: int


def lookup3(data):
    """Bob Jenkins's hash, as HDF5 computes it over metadata."""

    def rot(x, k):
        return ((x << k) | (x >> (32 - k))) & _MASK

    length = len(data)
    a = b = c = (0xDEADBEEF + length) & _MASK
    words = struct.unpack(f"<{(length + 3) // 4}I", data + bytes(-length % 4))
    i = 0
    while length - 4 * i > 12:
        a, b, c = (a + words[i]) & _MASK, (b + words[i + 1]) & _MASK, (c + words[i + 2]) & _MASK
        a = (a - c) & _MASK ^ rot(c, 4)
        c = (c + b) & _MASK
        b = (b - a) & _MASK ^ rot(a, 6)
        a = (a + c) & _MASK
        c = (c - b) & _MASK ^ rot(b, 8)
        b = (b + a) & _MASK
        a = (a - c) & _MASK ^ rot(c, 16)
        c = (c + b) & _MASK
        b = (b - a) & _MASK ^ rot(a, 19)
        a = (a + c) & _MASK
        c = (c - b) & _MASK ^ rot(b, 4)
        b = (b + a) & _MASK
        i += 3
    if length == 4 * i:
        return c
    rest = [*words[i:], 0, 0, 0][:3]
    a, b, c = ((x + y) & _MASK for x, y in zip((a, b, c), rest, strict=True))
    for first, second, k in ((2, 1, 14), (0, 2, 11), (1, 0, 25), (2, 1, 16), (0, 2, 4), (1, 0, 14), (2, 1, 24)):
        state = [a, b, c]
        state[first] = ((state[first] ^ state[second]) - rot(state[second], k)) & _MASK
        a, b, c = state
    return c


def blocks(image, start=512):
    """Return the superblock and all object headers, with their continuations, of a file of the 1.8 format."""
    found = [Block("superblock", start, start + 44, start + 44, 0)]
    position = image.find(b"OHDR", start)
    while position >= 0:
        flags = image[position + 5]
        head = position + 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
        width = 1 << (flags & 3)
        first = head + width
        stop = first + int.from_bytes(image[head:first], "little")
        if stop + 4 <= len(image):
            found.append(Block("object header", position, first, stop, flags))
        position = image.find(b"OHDR", position + 4)
    seen = {block.start for block in found}
    for block in found:  # which grows on the way
        for kind, place, end in messages(image, block):
            if kind == 0x10 and end - place >= 16:
                address, size = struct.unpack_from("<QQ", image, place)
                first, stop = start + address, start + address + size - 4
                if first not in seen and first + 4 <= stop and stop + 4 <= len(image):
                    seen.add(first)
                    found.append(Block("continuation", first, first + 4, stop, flags=block.flags))
    return found


def messages(image, block):
    """Yield type, start and stop of each message's data in a block."""
    first, head = block.first, 4 + 2 * bool(block.flags & 4)
    while first + head <= block.stop:
        end = first + head + int.from_bytes(image[first + 1 : first + 3], "little")
        if end > block.stop:
            return
        yield image[first], first + head, end
        first = end


def with_checksums(image):
    """The image with every block's checksum made right, so that the library reads what is in it."""
    image = bytearray(image)
    for block in blocks(image):
        struct.pack_into("<I", image, block.stop, lookup3(bytes(image[block.start : block.stop])))
    return bytes(image)


def links(image):
    """Return, by the name of the link, where each link's flags, name and target begin."""
    found = {}
    for block in blocks(image):
        for kind, start, _ in messages(image, block):
            if kind == 6:
                flags, width = image[start + 1], 1 << (image[start + 1] & 3)
                head = start + 2 + bool(flags & 8) + 8 * bool(flags & 4) + bool(flags & 16)
                length = int.from_bytes(image[head : head + width], "little")
                name = head + width
                found.setdefault(bytes(image[name : name + length]), []).append((start, name, name + length))
    return found
