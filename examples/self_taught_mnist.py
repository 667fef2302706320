"""Self-taught learning: features of some digits, learnt without labels, help to tell others apart.

The exercise of Stanford's UFLDL tutorial: a sparse autoencoder learns from MNIST's digits 5 to 9, and then a softmax
classifier tells the digits 0 to 4 apart by its features; half of those (of the 60 000 training images) are to train
with, the others to test on. Beside it, softmax on the pixels themselves.

MNIST's four files, gzipped or not, are read from the folder that ``--data`` names. ``--small`` needs none: it takes the
8x8 digits that come with scikit-learn (``mlpkit[examples]``).
"""

import argparse
import time
from pathlib import Path

import numpy as np

import mlpkit
from mlpkit import datasets

# Of the softmax layer: the exercise's, and what a quarter of the training half, held out, found best for the features.
DECAYS = (1e-4, 3e-5)


def main(data: Path | None = None, small: bool = False, dtype: str = "float32") -> dict[tuple[str, float], float]:
    """Train on half of the digits 0 to 4; return the accuracies on the other half, by inputs and weight decay."""
    if small:
        from sklearn.datasets import load_digits  # not needed for MNIST

        digits, y = load_digits(return_X_y=True)
        X = digits / 16.0
        settings = {"n_hidden": 100, "rho": 0.1, "beta": 0.1, "weight_decay": 1e-4}
        optimizer = mlpkit.LBFGS(max_iter=100)
    else:
        X, y, _, _ = datasets.load_mnist(data, dtype=dtype)
        settings = {"n_hidden": 200, "rho": 0.1, "beta": 3.0, "weight_decay": 3e-3}
        optimizer = mlpkit.LBFGS(max_iter=400)
    unlabelled, labelled = X[y >= 5], X[y < 5]
    labels = y[y < 5]
    half = round(len(labels) / 2)
    print(f"{len(unlabelled)} digits without labels, {half} with, {len(labels) - half} to test on")

    start = time.perf_counter()
    autoencoder = mlpkit.sparse_autoencoder(X.shape[1], **settings, dtype=dtype)
    result = autoencoder.fit(unlabelled, unlabelled, optimizer=optimizer)
    seconds = time.perf_counter() - start
    print(f"{seconds:6.0f} s  {result.n_iterations} iterations, J = {result.cost:.4f}", flush=True)

    features = mlpkit.encoder(autoencoder).predict(labelled)
    accuracies = {}
    for decay in DECAYS:
        for name, inputs, published in (("features", features, "98.3 %"), ("pixels", labelled, "96 %")):
            layers = [mlpkit.Input(inputs.shape[1]), mlpkit.Dense(5, "softmax")]
            softmax = mlpkit.MLP(layers, loss="cross_entropy", weight_decay=decay, dtype=dtype, seed=0)
            softmax.fit(inputs[:half], labels[:half], optimizer=optimizer)
            accuracies[name, decay] = float(np.mean(softmax.predict_labels(inputs[half:]) == labels[half:]))
            beside = "" if small else f"  (published: {published})"
            seconds = time.perf_counter() - start
            print(f"{seconds:6.0f} s  softmax on {name}, weight decay {decay:g}: {accuracies[name, decay]:.2%}{beside}")
    return accuracies


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data", type=Path, metavar="FOLDER", help="where MNIST's files are")
    where.add_argument("--small", action="store_true", help="scikit-learn's digits, few units and iterations")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="default: float32")
    options = parser.parse_args()
    main(options.data, options.small, options.dtype)
