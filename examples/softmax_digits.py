"""Classify handwritten digits: softmax outputs, cross-entropy, integer labels.

The 1797 digits of 8x8 pixels that come with scikit-learn (``mlpkit[examples]``).
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits

import mlpkit


def main(small: bool = False) -> tuple[float, float]:
    """Train on two thirds of the digits; return the accuracy on them and on the rest."""
    digits, labels = load_digits(return_X_y=True)
    X = digits / 16.0
    order = np.random.default_rng(0).permutation(len(X))
    train, test = np.split(order, [2 * len(X) // 3])

    net = mlpkit.MLP(
        [mlpkit.Input(64), mlpkit.Dense(32, "sigmoid"), mlpkit.Dense(10, "softmax")],
        loss="cross_entropy",
        weight_decay=1e-3,
        seed=0,
    )
    optimizer = mlpkit.LBFGS(max_iter=30 if small else 300)
    result = net.fit(X[train], labels[train], optimizer=optimizer)
    print(result)

    def accuracy(rows: np.ndarray) -> float:
        return float(np.mean(net.predict_labels(X[rows]) == labels[rows]))

    on_train, on_test = accuracy(train), accuracy(test)
    print(f"accuracy: {on_train:.1%} on {len(train)} training digits, {on_test:.1%} on the others")
    return on_train, on_test


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="few iterations")
    main(parser.parse_args().small)
