"""Softmax, whose outputs depend on every unit of a column, and its stable pairing with cross-entropy.

These are bodies of tile functions (see plugins.py): they take arrays of shape (panels, rows, LANES). The lane loops
run along contiguous memory; each lane is one example and never sees another.
"""

from __future__ import annotations

import numpy as np

from mlpkit.kernels import vmath
from mlpkit.kernels.jit import ELEMENTWISE, kernel

__all__ = [
    "cross_entropy_curvature",
    "cross_entropy_output",
    "softmax_curvature",
    "softmax_forward",
    "softmax_pullback",
]


def softmax_forward(z, a):
    """a_j = exp(z_j - max z) / sum_k exp(z_k - max z); the shift keeps every exponential at most 1."""
    panels, rows, lanes = z.shape
    top = np.empty(lanes, z.dtype)
    total = np.empty(lanes, z.dtype)
    for p in range(panels):
        for t in range(lanes):
            top[t] = z[p, 0, t]
            total[t] = 0
        for j in range(1, rows):
            for t in range(lanes):
                top[t] = max(top[t], z[p, j, t])
        for j in range(rows):
            for t in range(lanes):
                e = vmath.exp(z[p, j, t] - top[t])
                a[p, j, t] = e
                total[t] += e
        for j in range(rows):
            for t in range(lanes):
                a[p, j, t] /= total[t]


def softmax_pullback(z, a, g):
    """G <- J^T g with J = diag(a) - a a^T: g_j <- a_j (g_j - sum_k a_k g_k)."""
    panels, rows, lanes = g.shape
    dot = np.empty(lanes, g.dtype)
    for p in range(panels):
        for t in range(lanes):
            dot[t] = 0
        for j in range(rows):
            for t in range(lanes):
                dot[t] += a[p, j, t] * g[p, j, t]
        for j in range(rows):
            for t in range(lanes):
                g[p, j, t] = a[p, j, t] * (g[p, j, t] - dot[t])


def softmax_curvature(z, a, rz, ra, g, rg):
    """G <- J^T g and rg <- R{J^T g} = ra_j (g_j - s) + a_j (rg_j - sum_k (ra_k g_k + a_k rg_k)), s = sum_k a_k g_k."""
    panels, rows, lanes = g.shape
    dot = np.empty(lanes, g.dtype)
    rate = np.empty(lanes, g.dtype)
    for p in range(panels):
        for t in range(lanes):
            dot[t] = 0
            rate[t] = 0
        for j in range(rows):
            for t in range(lanes):
                dot[t] += a[p, j, t] * g[p, j, t]
                rate[t] += ra[p, j, t] * g[p, j, t] + a[p, j, t] * rg[p, j, t]
        for j in range(rows):
            for t in range(lanes):
                off = g[p, j, t] - dot[t]
                rg[p, j, t] = ra[p, j, t] * off + a[p, j, t] * (rg[p, j, t] - rate[t])
                g[p, j, t] = a[p, j, t] * off


def cross_entropy_output(z, a, y, delta, loss):
    """Loss -sum_j y_j log a_j and its derivative in z, from the logits.

    -log a_j = (max z - z_j) + log(1 + r), where r sums the other exponentials: a_j may underflow and r be far below the
    dtype's eps, but no logarithm of a vanishing number is taken, and nothing is added at the size of the logits. r and
    its logarithm are in float64. On entry delta holds each element's weight, 0 where a term is left out.
    """
    panels, rows, lanes = z.shape
    largest = np.empty(lanes, np.int64)
    log_sum = np.empty(lanes, np.float64)
    mass = np.empty(lanes, z.dtype)
    weight = np.empty(lanes, z.dtype)
    for p in range(panels):
        _add_masses(y, delta, p, mass, weight)
        for t in range(lanes):
            largest[t] = 0
            log_sum[t] = 0
            loss[p, t] = 0
        for j in range(1, rows):
            for t in range(lanes):
                if z[p, j, t] > z[p, largest[t], t]:
                    largest[t] = j
        for j in range(rows):
            for t in range(lanes):
                if j != largest[t]:  # a_j / max a = exp(z_j - max z)
                    log_sum[t] += np.float64(a[p, j, t]) / np.float64(a[p, largest[t], t])
        for t in range(lanes):
            log_sum[t] = vmath.log1p(log_sum[t])
        for j in range(rows):
            for t in range(lanes):
                used = delta[p, j, t] != 0 and y[p, j, t] != 0
                if used:
                    below = np.float64(z[p, largest[t], t]) - np.float64(z[p, j, t])
                    loss[p, t] += np.float64(weight[t]) * np.float64(y[p, j, t]) * (below + log_sum[t])
                target = y[p, j, t] if used else z.dtype.type(0)
                delta[p, j, t] = weight[t] * (mass[t] * a[p, j, t] - target)


def cross_entropy_curvature(z, a, y, rz, ra, delta, rdelta):
    """R{delta} = w ra_j sum_k y_k, since delta_j = w (a_j sum_k y_k - y_j); delta holds the weights."""
    panels, rows, lanes = z.shape
    mass = np.empty(lanes, z.dtype)
    weight = np.empty(lanes, z.dtype)
    for p in range(panels):
        _add_masses(y, delta, p, mass, weight)
        for j in range(rows):
            for t in range(lanes):
                rdelta[p, j, t] = weight[t] * (mass[t] * ra[p, j, t])


@kernel(fastmath=ELEMENTWISE)
def _add_masses(y, delta, p, mass, weight):
    """Find each example's weight, and the sum of its targets as far as their terms are in use."""
    _, rows, lanes = y.shape
    for t in range(lanes):
        mass[t] = 0
        weight[t] = 0
    for j in range(rows):
        for t in range(lanes):
            w = delta[p, j, t]
            mass[t] += y[p, j, t] if w != 0 else y.dtype.type(0)
            weight[t] = max(weight[t], w)
