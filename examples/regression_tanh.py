"""Regression with tanh units: targets scaled to what the output can reach, predictions scaled back.

Section 2.2 of the notes: "if we were using a tanh activation function, then the [-1, 1] range".
"""

import argparse

import numpy as np

import mlpkit
from mlpkit.preprocessing import scale_to_range


def main(small: bool = False) -> float:
    """Fit a noisy function of two variables; return R**2 on points that were not trained on."""
    rng = np.random.default_rng(0)

    def sample(m: int) -> tuple[np.ndarray, np.ndarray]:
        X = rng.uniform(-2.0, 2.0, (m, 2))
        y = 50.0 + 20.0 * np.sin(2.0 * X[:, 0]) * np.exp(-(X[:, 1] ** 2))
        return X, y + rng.normal(0.0, 0.5, m)

    X, y = sample(500 if small else 2_000)
    scaled, scaling = scale_to_range(y, "tanh")

    net = mlpkit.MLP(
        [mlpkit.Input(2), mlpkit.Dense(20, "tanh"), mlpkit.Dense(1, "tanh")],
        weight_decay=1e-6,
        seed=0,
    )
    result = net.fit(X, scaled, optimizer=mlpkit.LBFGS(max_iter=200 if small else 1_000))
    print(result)

    X_new, y_new = sample(1_000)
    predicted = scaling.inverse(net.predict(X_new)).ravel()
    r2 = 1.0 - np.sum((predicted - y_new) ** 2) / np.sum((y_new - y_new.mean()) ** 2)
    print(f"R^2 on {len(y_new)} new points: {r2:.3f}")
    return float(r2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="less data, fewer iterations")
    main(parser.parse_args().small)
