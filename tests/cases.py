"""What tests of objectives have in common: a network with data, threads, ways to sum, and comparisons."""

from __future__ import annotations

import contextlib

import numba
import numpy as np
import pytest
import reference
from strategies import Case

import mlpkit
from mlpkit.kernels import tiles

# Errors in float64 are rounding in sums of up to 600 examples and 40 units through 5 layers, some
# 1e-15 of the result; 1e-12 is the contract. In float32 the same sums give some 1e-7 to 1e-6.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])
THREADS = [n for n in (1, 2, 4) if n <= numba.config.NUMBA_NUM_THREADS]


@contextlib.contextmanager
def threads(n):
    """Use `n` threads inside the block."""
    before = mlpkit.get_num_threads()
    mlpkit.set_num_threads(n)
    try:
        yield
    finally:
        mlpkit.set_num_threads(before)


# The gradient is summed by pieces of the data where it is small, by its rows where it is large.
SUMS = pytest.mark.parametrize("by_rows", [False, True], ids=["by pieces", "by rows"])


@contextlib.contextmanager
def summed(by_rows):
    """Sum gradients of any size in one of the two ways inside the block."""
    before = tiles._SMALL_GRADIENT
    tiles._SMALL_GRADIENT = 0 if by_rows else 1 << 40
    try:
        yield
    finally:
        tiles._SMALL_GRADIENT = before


def bits(*arrays):
    """Return the arrays' bytes: equal only if every bit is."""
    return [np.ascontiguousarray(a).tobytes() for a in arrays]


def relative(value, expected):
    return abs(value - expected) / max(abs(value), abs(expected), 1e-300)


def sparse_case(m, sizes=(20, 15, 9), dtype="float64", sample_weight=None, seed=0):
    """Return a network with a sparse sigmoid and a sparse tanh layer, and data for it."""
    rng = np.random.default_rng(seed)
    net = mlpkit.MLP(
        [
            mlpkit.Input(sizes[0]),
            mlpkit.Dense(sizes[1], "sigmoid", sparsity=mlpkit.KLSparsity(0.1, 2.0)),
            mlpkit.Dense(sizes[2], "tanh", sparsity=mlpkit.KLSparsity(0.3, 0.5)),
        ],
        weight_decay=1e-3,
        dtype=dtype,
        seed=seed,
    )
    net.theta = rng.normal(0.0, 0.3, net.n_parameters)
    X = rng.uniform(-1.0, 1.0, (m, sizes[0])).astype(dtype)
    Y = rng.uniform(-1.0, 1.0, (m, sizes[2])).astype(dtype)
    return Case(net, X, Y, sample_weight, reference.describe(net))
