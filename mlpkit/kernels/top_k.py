"""Top-k: of each example's units the k largest pass, the others are 0 (Makhzani and Frey, 2013).

Bodies of tile functions, as in softmax.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlpkit.kernels.jit import ELEMENTWISE, kernel

__all__ = ["top_k_bodies"]


@kernel(fastmath=ELEMENTWISE)
def _thresholds(z, p, k, top, ties):
    """Find each lane's k-th largest number, and how many that equal it still pass; top: (k, lanes) to work in."""
    _, rows, lanes = z.shape
    for i in range(k):
        for t in range(lanes):
            top[i, t] = -np.inf
    for j in range(rows):
        for t in range(lanes):
            ties[t] = z[p, j, t]
        for i in range(k):  # insert into a sorted list: the larger stays, the smaller goes on
            for t in range(lanes):
                stays = max(top[i, t], ties[t])
                ties[t] = min(top[i, t], ties[t])
                top[i, t] = stays
    for t in range(lanes):
        ties[t] = k
    for j in range(rows):
        for t in range(lanes):
            ties[t] -= 1 if z[p, j, t] > top[k - 1, t] else 0


def top_k_bodies(k: int) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Return forward, pullback and curvature for one k. Among equal numbers those of the lowest units pass."""

    def select_largest(z, out):
        """Set what does not pass to 0."""
        panels, rows, lanes = z.shape
        n = min(k, rows)
        top, ties = np.empty((n, lanes), z.dtype), np.empty(lanes, z.dtype)
        for p in range(panels):
            _thresholds(z, p, n, top, ties)
            for j in range(rows):
                for t in range(lanes):
                    value, least = z[p, j, t], top[n - 1, t]
                    tied = value == least
                    if value < least or (tied and ties[t] <= 0):  # false for NaN, which must pass
                        out[p, j, t] = 0
                    ties[t] -= 1 if tied else 0

    # Each k needs symbols of its own; see `affine` in simd.py.
    select_largest.__name__ = select_largest.__qualname__ = f"select_largest_{k}"
    select = kernel(select_largest, fastmath=ELEMENTWISE, allocates=True)

    def forward(z, a):
        flat, out = z.reshape(-1), a.reshape(-1)
        for i in range(flat.size):
            out[i] = flat[i]
        select(z, a)

    def pullback(z, a, g):
        select(z, g)

    def curvature(z, a, rz, ra, g, rg):
        select(z, g)
        select(z, rg)

    for body in (forward, pullback, curvature):
        body.__name__ = body.__qualname__ = f"top_k_{k}_{body.__name__}"
    return forward, pullback, curvature
