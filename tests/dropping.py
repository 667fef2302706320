"""Dropout for the networks that `strategies` draws, which are built without."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from strategies import REACH, SPARSE_REACH

import mlpkit


def drop(draw, case):
    """Give some layers of a case dropout, and keep those with a penalty on mean activations from saturating by it.

    What is not dropped is divided by 1 - p. A layer above gets ten times what it was built for where p = 0.9, its
    rho_hat comes within some eps of 0 or 1, and few digits are left of KL's slope. So there p is 0.5 at most, and
    weights are scaled for the worst that units on and off can add up to.
    """
    layers = list(case.net.layers)
    for k, layer in enumerate(layers[1:-1], start=1):
        if layer.sparsity is None and draw(st.booleans()):
            kept = {name: getattr(layer, name) for name in ("weight_decay", "bias", "tied_to")}
            chances = (0.1, 0.5) if layers[k + 1].mean_penalties else (0.1, 0.5, 0.9)
            layers[k] = mlpkit.Dense(layer.units, layer.activation, dropout=draw(st.sampled_from(chances)), **kept)
    net = mlpkit.MLP(layers, loss=case.net.loss, weight_decay=case.net.weight_decay, dtype=case.net.dtype, seed=3)
    net.theta = case.net.theta
    for _ in layers:  # a layer that is scaled may own the weights of one below, which then has less to scale
        _hold(net, case.X)
    case.net = net


def _hold(net, X):
    """Scale what reaches too far above a dropout."""
    most = np.abs(X).max(axis=0)
    dropped = False
    for layer, W, b in zip(net.layers[1:], net.weights, net.biases, strict=True):
        name = layer.activation.name
        z = (np.abs(W) @ most).max() + np.abs(b).max(initial=0.0)
        if dropped and layer.mean_penalties:
            factor = min(1.0, SPARSE_REACH.get(name, REACH.get(name, 3.0)) / z)
            W *= factor
            b *= factor
        bounded = np.isfinite(layer.activation.range).all()
        most = np.full(layer.units, (1.0 if bounded else z) / (1 - layer.dropout))
        dropped = dropped or layer.dropout > 0
