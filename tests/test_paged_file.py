"""A file in pages behaves as any binary file in memory, and takes no memory for what nobody wrote."""

import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpkit.paged_file import PagedFile

OPERATION = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 60), st.binary(max_size=40)),
    st.tuples(st.just("read"), st.integers(0, 80), st.integers(0, 50)),
    st.tuples(st.just("truncate"), st.integers(0, 100), st.none()),
)


@settings(max_examples=200)
@given(page=st.integers(1, 20), operations=st.lists(OPERATION, max_size=12))
def test_it_is_a_file(page, operations):
    ours, plain = PagedFile(page), io.BytesIO()
    for kind, position, value in operations:
        if kind == "truncate":
            if position >= len(plain.getvalue()):  # HDF5 only ever makes a file longer this way
                plain.seek(0, io.SEEK_END)
                plain.write(bytes(position - plain.tell()))
                ours.truncate(position)
            continue
        assert ours.seek(position) == plain.seek(position) == ours.tell()
        if kind == "write":
            if position > len(plain.getvalue()):
                plain.seek(0, io.SEEK_END)
                plain.write(bytes(position - plain.tell()))
            assert ours.write(value) == plain.write(value)
            if not value:
                ours.truncate(len(plain.getvalue()))
        else:
            assert ours.read(value) == plain.read(value)
    assert ours.size == ours.seek(0, io.SEEK_END) == len(plain.getvalue())
    assert b"".join(ours.pieces(0, ours.size)) == plain.getvalue()


def test_what_nobody_wrote_takes_no_memory():
    file = PagedFile(4096)
    tracemalloc.start()
    file.seek(10**12)
    file.write(b"far away")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert file.size == 10**12 + 8
    assert peak < 50_000


@pytest.mark.parametrize("data", [b"ab", bytearray(b"ab"), memoryview(b"ab"), np.frombuffer(b"ab", np.int16)])
def test_it_takes_any_bytes(data):
    file = PagedFile(4)
    assert file.write(data) == 2
    assert b"".join(file.pieces(0, 2)) == b"ab"
