"""A deep classifier of handwritten digits, pre-trained layer by layer and then fine-tuned.

The stacked autoencoder exercise of Stanford's UFLDL tutorial: two sparse autoencoders learn features of MNIST's digits
and features of those, a softmax classifier learns from the second ones, and the whole, 784-200-200-10, is trained once
more, with weight decay on the softmax layer only. Beside it, softmax on the pixels themselves.

MNIST's four files, gzipped or not, are read from the folder that ``--data`` names. ``--small`` needs none: it takes the
8x8 digits that come with scikit-learn (``mlpkit[examples]``).
"""

import argparse
import time
from pathlib import Path

import numpy as np

import mlpkit
from mlpkit import datasets

SOFTMAX_DECAY = 1e-4


def main(data: Path | None = None, small: bool = False, dtype: str = "float32") -> dict[str, float]:
    """Train on one part of the digits; return the accuracies on the other."""
    X, y, X_test, y_test = small_digits() if small else datasets.load_mnist(data, dtype=dtype)
    n_hidden, max_iter = (30, 60) if small else (200, 400)
    rho, beta, weight_decay = (0.1, 0.1, 1e-4) if small else (0.1, 3.0, 3e-3)
    optimizer = mlpkit.LBFGS(max_iter=max_iter)
    accuracies = {}

    def show(name: str, net: mlpkit.MLP, inputs: np.ndarray, published: str) -> None:
        accuracies[name] = float(np.mean(net.predict_labels(inputs) == y_test))
        beside = "" if small else f"  (published: {published})"
        print(f"{time.perf_counter() - start:6.0f} s  {name}: {accuracies[name]:.2%}{beside}", flush=True)

    start = time.perf_counter()
    softmax = softmax_on(X.shape[1], dtype)
    softmax.fit(X, y, optimizer=optimizer)
    show("softmax on pixels", softmax, X_test, "92.6 %")

    autoencoders = [
        mlpkit.sparse_autoencoder(n_inputs, n_hidden, rho=rho, beta=beta, weight_decay=weight_decay, dtype=dtype)
        for n_inputs in (X.shape[1], n_hidden)
    ]
    for result in mlpkit.pretrain(autoencoders, X, optimizer):
        print(f"         autoencoder: {result.n_iterations} iterations, J = {result.cost:.4f}, {result.seconds:.0f} s")

    encoder = mlpkit.stack([mlpkit.encoder(net) for net in autoencoders])
    softmax = softmax_on(n_hidden, dtype)
    softmax.fit(encoder.predict(X), y, optimizer=optimizer)
    show("before fine-tuning", softmax, encoder.predict(X_test), "87.7 % to 92 %")

    net = mlpkit.stack([encoder, softmax])
    net.fit(X, y, optimizer=optimizer)
    show("after fine-tuning", net, X_test, "97.6 % to 97.8 %")
    return accuracies


def softmax_on(n_inputs: int, dtype: str) -> mlpkit.MLP:
    """Return softmax regression on so many numbers."""
    layers = [mlpkit.Input(n_inputs), mlpkit.Dense(10, "softmax", weight_decay=SOFTMAX_DECAY)]
    return mlpkit.MLP(layers, loss="cross_entropy", dtype=dtype, seed=0)


def small_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return scikit-learn's digits, two thirds to train with and the others."""
    from sklearn.datasets import load_digits  # not needed for MNIST

    digits, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    train, test = np.split(order, [2 * len(order) // 3])
    return digits[train] / 16.0, labels[train], digits[test] / 16.0, labels[test]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data", type=Path, metavar="FOLDER", help="where MNIST's files are")
    where.add_argument("--small", action="store_true", help="scikit-learn's digits, few units and iterations")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="default: float32")
    options = parser.parse_args()
    main(options.data, options.small, options.dtype)
