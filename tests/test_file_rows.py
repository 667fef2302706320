"""Rows read and packed in one kernel: as packing them from memory, and False where they cannot be had."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpkit.kernels.file_rows import can_read, read_and_pack
from mlpkit.kernels.simd import lanes
from mlpkit.kernels.tiles import empty_panels, pack

pytestmark = pytest.mark.skipif(not can_read(), reason="this system has no pread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


@given(
    st.sampled_from(["float64", "float32"]), st.integers(1, 90), st.lists(st.integers(1, 700), min_size=1, max_size=4),
    st.integers(0, 40),
)  # fmt: skip
def test_runs_are_packed_as_from_memory(folder, dtype, n_columns, lengths, header):
    rows = np.arange(sum(lengths) * n_columns, dtype=dtype).reshape(-1, n_columns)
    path = folder / "rows"
    path.write_bytes(bytes(header) + rows.tobytes())
    n_lanes, begin, panel = lanes(dtype), 0, 0
    runs, expected = [], []
    for n in lengths:
        runs.append((header + begin * rows[0].nbytes, n, panel))
        expected.append(empty_panels(n, n_columns, dtype))
        pack(rows[begin : begin + n], expected[-1])
        begin, panel = begin + n, panel + -(-n // n_lanes)
    panels = empty_panels(panel * n_lanes, n_columns, dtype)
    with open(path, "rb") as file:
        assert read_and_pack(file.fileno(), runs, n_columns, panels)
    assert np.array_equal(panels, np.concatenate(expected))


def test_a_file_that_ends_too_early_and_one_that_is_closed_are_told(folder):
    path = folder / "short"
    path.write_bytes(bytes(8 * 64 * 1000 - 3))
    panels = empty_panels(1000, 64, "float64")
    descriptor = os.open(path, os.O_RDONLY)
    assert read_and_pack(descriptor, [(0, 999, 0)], 64, panels)
    assert not read_and_pack(descriptor, [(0, 1000, 0)], 64, panels)
    os.close(descriptor)
    assert not read_and_pack(descriptor, [(0, 999, 0)], 64, panels)
