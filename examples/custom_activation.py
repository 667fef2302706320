"""Activations of your own, in plain Python: a wavelet unit with its derivative, another without.

A function of one number is all that the engine needs. It runs as fast as mlpkit's own; a derivative that is not written
down is found by dual numbers, and one that is written down is held against differences before anything is trained.
"""

import argparse
import math

import numpy as np

import mlpkit
from mlpkit import vmath


@mlpkit.activation(range=(-0.43, 0.43))
def wavelet(z):
    """Return z e^(-z^2), a Gaussian's derivative: it answers to a narrow band of its input only."""
    return z * vmath.exp(-z * z)


@wavelet.derivative
def _(z, a):
    return vmath.exp(-z * z) * (1 - 2 * z * z)


@mlpkit.activation(range=(-1, 1))
def triangle(z):
    """Triangle wave of period 4: where math.floor is a step, its derivative is 0, as it should be."""
    return 4 * abs(z / 4 - math.floor(z / 4 + 0.5)) - 1


def main(small: bool = False) -> dict[str, float]:
    """Fit a chirp with each activation; return each one's R**2 on new points."""
    rng = np.random.default_rng(0)

    def sample(m: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.uniform(-1.0, 1.0, (m, 1))
        return x, np.sin(12.0 * x * np.abs(x)) * np.exp(-x)

    X, Y = sample(400 if small else 2_000)
    X_new, Y_new = sample(1_000)
    scores = {}
    for activation in ("tanh", wavelet, triangle):
        first = mlpkit.Dense(30, activation, init="glorot_normal")
        net = mlpkit.MLP([mlpkit.Input(1), first, mlpkit.Dense(1, "identity")], weight_decay=1e-7, seed=0)
        net.weights[0][:] *= 10.0  # wavelets and waves of many widths
        net.biases[0][:] = rng.uniform(-4.0, 4.0, 30)
        net.fit(X, Y, optimizer=mlpkit.LBFGS(max_iter=300 if small else 1_000))
        r2 = 1.0 - np.sum((net.predict(X_new) - Y_new) ** 2) / np.sum((Y_new - Y_new.mean()) ** 2)
        name = net.layers[1].activation.name
        scores[name] = float(r2)
        print(f"{name:10s} R^2 on {len(X_new)} new points: {r2:.4f}")

    try:
        mlpkit.activation(lambda z: z**3, name="cube", derivative=lambda z, a: 2 * z**2)
    except mlpkit.InvalidArgumentError as error:
        print(f"a slip is found as it is typed: {error}")
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="less data, fewer iterations")
    main(parser.parse_args().small)
