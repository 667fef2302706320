"""Two outputs at once: independent 0/1 labels on two sigmoid units, behind two hidden layers.

The network with two output units of section 1 of the notes, as for a diagnosis of two diseases that
a patient may have in any combination.
"""

import argparse

import numpy as np

import mlpkit


def main(small: bool = False) -> np.ndarray:
    """Learn two different regions of the plane; return each label's accuracy on new points."""
    rng = np.random.default_rng(0)

    def sample(m: int) -> tuple[np.ndarray, np.ndarray]:
        X = rng.uniform(-1.0, 1.0, (m, 2))
        inside_ring = np.abs(np.hypot(X[:, 0], X[:, 1]) - 0.6) < 0.25
        opposite_signs = X[:, 0] * X[:, 1] < 0
        return X, np.column_stack([inside_ring, opposite_signs]).astype(float)

    X, Y = sample(1_000 if small else 4_000)
    net = mlpkit.MLP(
        [
            mlpkit.Input(2),
            mlpkit.Dense(12, "sigmoid"),
            mlpkit.Dense(8, "sigmoid"),
            mlpkit.Dense(2, "sigmoid"),
        ],
        weight_decay=1e-6,
        seed=0,
    )
    result = net.fit(X, Y, optimizer=mlpkit.LBFGS(max_iter=300 if small else 1_000))
    print(result)

    X_new, Y_new = sample(2_000)
    accuracy = np.mean((net.predict(X_new) > 0.5) == (Y_new == 1.0), axis=0)
    print(f"accuracy on new points: ring {accuracy[0]:.1%}, opposite signs {accuracy[1]:.1%}")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="less data, fewer iterations")
    main(parser.parse_args().small)
