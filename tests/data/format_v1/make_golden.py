"""Make the model files that every later version must read, and beside each what it holds and predicts.

Run from anywhere: python tests/data/format_v1/make_golden.py. Not to be run again once the format is frozen:
from then on these files are what users have. New ones may be added, under names of their own.
"""

import json
import warnings
from pathlib import Path

import numpy as np

from mlpkit import MLP, Dense, Input, KLSparsity, L1Sparsity, MaskingNoise, sparse_autoencoder

HERE = Path(__file__).resolve().parent


def networks():
    """Every kind of network that the format holds, by name."""
    autoencoder = sparse_autoencoder(n_inputs=6, n_hidden=3, rho=0.05, beta=3.0, weight_decay=1e-4, seed=1)
    autoencoder.metadata = {"title": "a sparse autoencoder", "ü": [1, 2.5, None, True, {"nested": "\ud800"}]}
    autoencoder.provenance = {"optimizer": "LBFGS(max_iter=400)", "seed": 2**70, "terms": {"data": 0.5}}
    layers = [Dense(5, "relu", bias=False), Dense(4, "tanh", weight_decay=0.5), Dense(3, "softmax", init="notes")]
    deep = [Dense(3, name) for name in ("leaky_relu(0.2)", "gelu", "elu", "top_k(2)", "silu", "softplus")]
    several = Dense(3, "sigmoid", sparsity=[KLSparsity(0.1, 2.0), L1Sparsity(0.5)])
    return {
        "autoencoder": autoencoder,
        "noisy": MLP([Input(4, noise=MaskingNoise(0.25)), several, Dense(4, "softsign")], loss="log_cosh", seed=5),
        "classifier_float32": MLP([Input(4), *layers], loss="cross_entropy", dtype="float32", seed=2),
        "tied": MLP([Input(5), Dense(2, "tanh"), Dense(5, "identity", tied_to=1, bias=False)], seed=3),
        "deep": MLP([Input(3), *deep, Dense(1, "identity")], loss="huber(0.5)", weight_decay=1e-3, seed=4),
        "smallest": MLP([Input(1), Dense(1, "sigmoid", sparsity=KLSparsity(0.2, 1.0), init=0.25)]),
    }


def make(folder=HERE):
    """Write every file and what it holds."""
    for name, net in networks().items():
        X = np.random.default_rng(0).normal(size=(4, net.sizes[0])).astype(net.dtype)
        net.save(folder / f"{name}.h5")
        expected = {
            "config": net.config(),
            "metadata": getattr(net, "metadata", {}),
            "provenance": getattr(net, "provenance", None),
            "theta": [float(number).hex() for number in net.theta],
            "X": X.tolist(),
            "predictions": net.predict(X).tolist(),
        }
        (folder / f"{name}.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    warnings.simplefilter("error")
    make()
