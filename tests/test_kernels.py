"""The micro-kernels and the packing against NumPy."""

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpkit.kernels import emitter, simd, tiles
from mlpkit.kernels.pointers import at
from mlpkit.kernels.simd import accumulate_outer, accumulate_sums, affine, affine_onto
from mlpkit.kernels.tiles import pack_panels, unpack_panels

DTYPES = (np.float64, np.float32)
SIZES = st.integers(1, 40)


@numba.njit(error_model="numpy")
def run_affine(W, row_stride, column_stride, rows, columns, bias, u, u_panel, x, z, panels, n_lanes):
    affine(
        at(W, 0), row_stride, column_stride, rows, columns, at(bias, 0), at(u, 0), u_panel, at(x, 0), at(z, 0),
        panels, n_lanes,
    )  # fmt: skip


@numba.njit(error_model="numpy")
def run_affine_onto(W, row_stride, column_stride, rows, columns, x, z, panels, n_lanes):
    affine_onto(at(W, 0), row_stride, column_stride, rows, columns, at(x, 0), at(z, 0), panels, n_lanes)


@numba.njit(error_model="numpy")
def run_outer(d, rows, x, columns, g, panels, n_lanes):
    accumulate_outer(
        at(d, 0), rows, rows * n_lanes, at(x, 0), columns, columns * n_lanes, at(g, 0), columns, panels, n_lanes
    )


@numba.njit(error_model="numpy")
def run_sums(a, rows, u, sums, panels, n_lanes):
    accumulate_sums(at(a, 0), rows, at(u, 0), at(sums, 0), panels, n_lanes)


@numba.njit(error_model="numpy")
def run_pack(rows, first, stop, panels, n_panels, n_lanes):
    pack_panels(at(rows, 0), first, stop, rows.shape[1], at(panels, 0), n_panels, n_lanes, n_lanes // simd.VECTORS)


@numba.njit(error_model="numpy")
def run_unpack(panels, n_panels, rows, first, stop, n_lanes):
    unpack_panels(at(panels, 0), n_panels, rows.shape[1], at(rows, 0), first, stop, n_lanes, n_lanes // simd.VECTORS)


def close(found, expected, terms):
    """Whether sums of `terms` products agree, normwise, to a small multiple of the dtype's eps."""
    bound = 4 * np.finfo(found.dtype).eps * (terms + 4)
    scale = np.abs(expected).max() + 1e-30
    return np.abs(found - expected).max() <= bound * scale * np.sqrt(terms + 1)


@pytest.mark.parametrize("dtype", DTYPES)
@given(rows=SIZES, columns=st.one_of(st.integers(0, 40), st.integers(120, 300)), panels=st.integers(1, 3), seed=SIZES)
def test_affine_equals_numpy_in_both_orientations(dtype, rows, columns, panels, seed):
    rng, n_lanes = np.random.default_rng(seed), simd.lanes(dtype)
    W = rng.normal(size=(rows, columns)).astype(dtype)
    bias = rng.normal(size=rows).astype(dtype)
    u = rng.normal(size=(panels, n_lanes)).astype(dtype)
    x = rng.normal(size=(panels, columns, n_lanes)).astype(dtype)
    expected = bias[:, None] * u[:, None, :] + np.einsum("jk,pkt->pjt", W, x)
    for matrix, row_stride, column_stride in ((W, columns, 1), (np.ascontiguousarray(W.T), 1, rows)):
        z = np.full((panels, rows, n_lanes), np.nan, dtype)
        run_affine(matrix, row_stride, column_stride, rows, columns, bias, u, n_lanes, x, z, panels, n_lanes)
        assert close(z, expected, columns)
        run_affine_onto(matrix, row_stride, column_stride, rows, columns, x, z, panels, n_lanes)
        assert close(z, 2 * expected - bias[:, None] * u[:, None, :], 2 * columns)


@pytest.mark.parametrize(
    ("name", "features", "avx", "bits"),
    [
        ("haswell", None, True, "host"),  # the name alone changes how Numba schedules, not what it may use
        ("generic", "", True, 128),
        ("haswell", "+avx2,+fma", True, 256),
        (None, "+sse2, +avx2, -avx512f", True, 256),
        (None, "+avx2,+avx512fp16", True, 256),
        ("generic", "+avx2,+avx512f", True, 512),
        (None, None, False, 128),  # NUMBA_ENABLE_AVX=0
    ],
)
def test_vector_width_is_that_of_the_features_numba_compiles_for(monkeypatch, name, features, avx, bits):
    config = numba.config
    with monkeypatch.context() as patch:
        patch.setattr(config, "CPU_NAME", None)
        patch.setattr(config, "CPU_FEATURES", None)
        patch.setattr(config, "ENABLE_AVX", True)
        host = emitter._vector_bits()
    monkeypatch.setattr(config, "CPU_NAME", name)
    monkeypatch.setattr(config, "CPU_FEATURES", features)
    monkeypatch.setattr(config, "ENABLE_AVX", avx)
    assert emitter._vector_bits() == (host if bits == "host" else bits)


@pytest.mark.parametrize("dtype", DTYPES)
@given(rows=SIZES, columns=SIZES, panels=st.integers(1, 5), seed=SIZES)
def test_accumulate_outer_equals_numpy_and_adds(dtype, rows, columns, panels, seed):
    rng, n_lanes = np.random.default_rng(seed), simd.lanes(dtype)
    d = rng.normal(size=(panels, rows, n_lanes)).astype(dtype)
    x = rng.normal(size=(panels, columns, n_lanes)).astype(dtype)
    start = rng.normal(size=(rows, columns)).astype(dtype)
    g = start.copy()
    run_outer(d, rows, x, columns, g, panels, n_lanes)
    assert close(g, start + np.einsum("pjt,pkt->jk", d, x), panels * n_lanes)


@pytest.mark.parametrize("dtype", DTYPES)
@given(rows=SIZES, panels=st.integers(1, 5), seed=SIZES)
def test_accumulate_sums_is_exact_to_float64(dtype, rows, panels, seed):
    rng, n_lanes = np.random.default_rng(seed), simd.lanes(dtype)
    a = rng.uniform(size=(panels, rows, n_lanes)).astype(dtype)
    u = rng.uniform(size=(panels, n_lanes)).astype(dtype)
    sums = np.zeros(rows)
    run_sums(a, rows, u, sums, panels, n_lanes)
    expected = np.einsum("pt,pjt->j", u.astype(np.float64), a.astype(np.float64))
    np.testing.assert_allclose(sums, expected, rtol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@given(m=st.integers(1, 200), n=SIZES)
def test_packing_and_unpacking_are_inverse_and_padding_repeats_the_last_row(dtype, m, n):
    rows, n_lanes = np.arange(m * n, dtype=dtype).reshape(m, n), simd.lanes(dtype)
    n_panels = -(-m // n_lanes)
    panels = tiles.empty_panels(m, n, dtype)
    tiles.pack(rows, panels)
    packed = panels.reshape(n_panels, n, n_lanes)
    padded = np.concatenate([rows, np.repeat(rows[-1:], n_panels * n_lanes - m, axis=0)])
    np.testing.assert_array_equal(packed, padded.reshape(n_panels, n_lanes, n).transpose(0, 2, 1))
    again = np.empty_like(packed)
    run_pack(rows, 0, m, again, n_panels, n_lanes)
    np.testing.assert_array_equal(again, packed)
    back = np.full_like(rows, -1)
    run_unpack(packed, n_panels, back, 0, m, n_lanes)
    np.testing.assert_array_equal(back, rows)
