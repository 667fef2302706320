"""The reader of .mat files against SciPy's, on files as MATLAB writes them and on forged ones."""

import io
import struct
import zlib

import numpy as np
import pytest
import scipy.io
from numpy.testing import assert_array_equal

import mlpkit
from mlpkit.interop.mat_file import read_variables

DOUBLE, SINGLE, CHAR = 6, 7, 4
UINT8, INT16, UINT16, FLOAT32, FLOAT64, UTF8, MATRIX, COMPRESSED = 2, 3, 4, 7, 9, 16, 14, 15


def element(order, kind, content):
    """Short ones packed, as MATLAB does; the others padded to 8 bytes."""
    if 0 < len(content) <= 4:
        return struct.pack(f"{order}I", len(content) << 16 | kind) + content.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)


def variable(order, name, array_class, dimensions, stored, content, flags=0):
    parts = [
        element(order, 6, struct.pack(f"{order}II", array_class | flags, 0)),
        element(order, 5, struct.pack(f"{order}{len(dimensions)}i", *dimensions)),
        element(order, 1, name.encode()),
        element(order, stored, content),
    ]
    body = b"".join(parts)
    return struct.pack(f"{order}II", MATRIX, len(body)) + body


def compressed(order, content):
    packed = zlib.compress(content)
    return struct.pack(f"{order}II", COMPRESSED, len(packed)) + packed


def file_of(order, *variables):
    return b"MATLAB 5.0 MAT-file".ljust(124) + (b"\x00\x01IM" if order == "<" else b"\x01\x00MI") + b"".join(variables)


def read(raw, kind="parameters", ignore=()):
    return read_variables(raw, lambda name: kind, ignore)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("array_class", "dimensions", "stored", "values"),
    [
        (DOUBLE, (2, 3), UINT8, [1, 2, 3, 4, 5, 250]),
        (DOUBLE, (2, 1), INT16, [-3, 400]),
        (DOUBLE, (1, 1), UINT8, [7]),
        (DOUBLE, (3, 1), FLOAT64, [0.1, -2.5, 1e300]),
        (SINGLE, (1, 3), FLOAT32, [0.5, 1.5, -3e38]),
    ],
)
def test_numbers_as_matlab_stores_them(order, packed, array_class, dimensions, stored, values):
    code = {UINT8: "u1", INT16: "i2", FLOAT32: "f4", FLOAT64: "f8"}[stored]
    written = variable(order, "W1", array_class, dimensions, stored, np.array(values, order + code).tobytes())
    raw = file_of(order, compressed(order, written) if packed else written)
    found, expected = read(raw)["W1"], scipy.io.loadmat(io.BytesIO(raw), mat_dtype=True)["W1"]
    assert_array_equal(found, expected)
    assert found.dtype == ("float32" if array_class == SINGLE else "float64")
    assert found.dtype.isnative
    assert_array_equal(found.ravel(order="F"), np.array(values, found.dtype))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("stored", [UINT16, UTF8])
def test_text_as_matlab_stores_it(order, stored):
    codec = "utf-8" if stored == UTF8 else f"utf-16-{'le' if order == '<' else 'be'}"
    columns = "".join(map("".join, zip("tanh   ", "sigmoid", strict=True)))  # column by column
    raw = file_of(
        order,
        variable(order, "activations", CHAR, (2, 7), stored, columns.encode(codec)),
        variable(order, "title", CHAR, (1, 5), stored, "Bäume".encode(codec)),
    )
    found = read(raw, "text")
    assert found == {"activations": ["tanh", "sigmoid"], "title": ["Bäume"]}
    expected = scipy.io.loadmat(io.BytesIO(raw))
    assert [line.strip() for line in expected["activations"]] == found["activations"]


def test_a_character_of_two_units_counts_as_matlab_counts():
    for stored, codec in ((UINT16, "utf-16-le"), (UTF8, "utf-8")):
        raw = file_of("<", variable("<", "title", CHAR, (1, 2), stored, "🌳".encode(codec)))
        assert read(raw, "text") == {"title": ["🌳"]}


GOOD = variable("<", "W1", DOUBLE, (1, 2), FLOAT64, bytes(16))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (variable("<", "W1", DOUBLE, (1, 3), FLOAT64, bytes(16)), r"W1: expected 24 bytes for .*, found 16"),
        (variable("<", "W1", DOUBLE, (2**31 - 1, 2**31 - 1), FLOAT64, bytes(16)), "W1: expected .* bytes"),
        (
            variable("<", "W1", DOUBLE, (-1, -2), FLOAT64, bytes(16)),
            r"W1: .* dimensions \(-1, -2\)",
        ),
        (variable("<", "W1", DOUBLE, (1, 2), 99, bytes(16)), "W1: expected numbers, found an element of type 99"),
        (variable("<", "W1", DOUBLE, (1, 2), FLOAT64, bytes(16), flags=0x800), "W1: expected real numbers"),
        (variable("<", "W1", 77, (1, 2), FLOAT64, bytes(16)), "W1: expected an array of class .*, found unknown"),
        (variable("<", "W1", 17, (1, 2), FLOAT64, bytes(16)), "W1: expected an array of class .*, found opaque"),
        (variable("<", "", 9, (1, 16), UINT8, bytes(16)), "file: has data of functions or objects"),
        (variable("<", "x" * 64, DOUBLE, (1, 2), FLOAT64, bytes(16)), "file: expected a variable's name"),
        (variable("<", "W1", DOUBLE, (1,) * 33, FLOAT64, bytes(8)), "file: a variable's dimensions are not"),
        (GOOD + GOOD, "W1: occurs twice|file: compressed data go on|W1: compressed data go on"),
    ],
)
def test_forged_variables(packed, written, reason):
    with pytest.raises(mlpkit.ModelFormatError, match=reason):
        read(file_of("<", compressed("<", written) if packed else written))


def test_lengths_that_lead_out_of_what_holds_them():
    longer = bytearray(GOOD)
    for place in range(0, len(GOOD) - 16, 8):  # every tag of the variable, and numbers that are none
        forged = bytes(
            longer[:place] + struct.pack("<II", MATRIX if place == 0 else 9, 2**32 - 8) + longer[place + 8 :]
        )
        for raw in (file_of("<", forged), file_of("<", compressed("<", forged))):
            with pytest.raises(mlpkit.ModelFormatError):
                read(raw)
    too_long = struct.pack("<II", MATRIX, len(GOOD)) + GOOD[8:] + bytes(8)
    with pytest.raises(mlpkit.ModelFormatError, match="W1: 8 bytes too many"):
        read(file_of("<", too_long))
    with pytest.raises(mlpkit.ModelFormatError, match=r"W1: compressed data end too soon|W1: an element is longer"):
        read(file_of("<", compressed("<", GOOD[:-8])))


def test_compressed_data_that_are_damaged():
    packed = bytearray(compressed("<", variable("<", "W1", DOUBLE, (1, 2), FLOAT64, bytes(range(16)))))
    packed[-1] ^= 1  # the checksum
    with pytest.raises(mlpkit.ModelFormatError, match="W1: compressed data are damaged"):
        read(file_of("<", bytes(packed)))
    inner = compressed("<", struct.pack("<II", COMPRESSED, 8) + bytes(8))
    with pytest.raises(mlpkit.ModelFormatError, match=r"file: expected a compressed variable, found .* type 15"):
        read(file_of("<", inner))


def test_what_is_ignored_is_not_decompressed():
    packed = bytearray(compressed("<", variable("<", "big", DOUBLE, (1, 2**20), FLOAT64, bytes(2**23))))
    packed[-1] ^= 1
    assert list(read(file_of("<", bytes(packed), GOOD), ignore=["big"])) == ["W1"]


def test_other_headers_and_elements():
    for raw in (file_of("<")[:100], file_of("<")[:124] + b"\x00\x02IM", b"\0" * 200):
        with pytest.raises(mlpkit.ModelFormatError, match=r"file: not a .mat file of version 5, 6 or 7"):
            read(raw)
    for tail, reason in (
        (b"abc", "inside an element"),
        (bytes(8), "an element of type 0"),
        (GOOD[:-1], "inside a var"),
    ):
        with pytest.raises(mlpkit.ModelFormatError, match=reason):
            read(file_of("<", GOOD, tail))
    with pytest.raises(mlpkit.ModelFormatError, match=r"title: expected text, found an element of type 9"):
        read(file_of("<", variable("<", "title", CHAR, (1, 2), FLOAT64, bytes(16))), "text")
    for content, reason in ((b"\xff\xff", "title: not text"), (b"abc", "title: expected 2 characters")):
        with pytest.raises(mlpkit.ModelFormatError, match=reason):
            read(file_of("<", variable("<", "title", CHAR, (1, 2), UTF8, content)), "text")
