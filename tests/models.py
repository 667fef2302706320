"""A small network and its file, which tests of model files have in common."""

from pathlib import Path

from mlpkit import MLP, Dense, Input, KLSparsity


def small_net(dtype="float64", seed=1):
    return MLP(
        [
            Input(4),
            Dense(3, "sigmoid", sparsity=KLSparsity(rho=0.1, beta=2.0), weight_decay=0.5),
            Dense(2, "tanh", bias=False, init="glorot_uniform"),
            Dense(4, "identity"),
        ],
        weight_decay=1e-3,
        dtype=dtype,
        seed=seed,
    )


def saved(net, folder):
    path = Path(folder, "model.h5")
    net.save(path)
    return path


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
