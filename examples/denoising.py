"""A denoising autoencoder: it sees digits with pixels missing and learns to draw them whole.

Noise is a property of the input layer. `fit` draws it from the network's seed, and the targets stay clean; predictions
and costs are of the data as they are given.
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits

import mlpkit


def main(small: bool = False) -> tuple[float, float, float]:
    """Return the mean squared error of damaged new digits, and after repair by a plain and a denoising network."""
    X = load_digits().data / 16.0
    X = X[np.random.default_rng(0).permutation(len(X))]
    clean_train, clean_test = X[:1_400], X[1_400:]
    # Full-batch training draws its noise once, so each digit comes in several copies, each to be damaged differently.
    X_train = np.tile(clean_train, (2 if small else 10, 1))

    noise = mlpkit.MaskingNoise(0.3)
    damaged = noise.apply(clean_test, np.random.default_rng(1))

    errors = [float(np.mean((damaged - clean_test) ** 2))]
    for name, present in (("plain", None), ("denoising", noise)):
        net = mlpkit.MLP(
            [mlpkit.Input(64, noise=present), mlpkit.Dense(60, "sigmoid"), mlpkit.Dense(64, "sigmoid")],
            weight_decay=1e-6,
            seed=0,
        )
        net.fit(X_train, X_train, optimizer=mlpkit.LBFGS(max_iter=100 if small else 300))
        errors.append(float(np.mean((net.predict(damaged) - clean_test) ** 2)))
        print(f"{name}: mean squared error {errors[0]:.4f} damaged, {errors[-1]:.4f} repaired")
    return errors[0], errors[1], errors[2]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="less data, fewer iterations")
    main(parser.parse_args().small)
