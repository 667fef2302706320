"""The objective on its own: cost and gradient handed to any of SciPy's minimisers.

`Objective` packs the data once; `value_and_gradient(theta)` is all that `scipy.optimize.minimize`
asks for with ``jac=True``. Each gradient is a fresh array, so SciPy may keep it.
"""

import argparse

import numpy as np
from scipy.optimize import minimize

import mlpkit


def main(small: bool = False) -> dict[str, float]:
    """Minimise the same objective by three methods; return the cost that each one reaches."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200 if small else 5_000, 10))
    Y = 1.0 / (1.0 + np.exp(-(X @ rng.normal(size=(10, 3)))))

    # One convex layer, so that every method must find the same minimum.
    net = mlpkit.MLP(
        [mlpkit.Input(10), mlpkit.Dense(3, "softmax")],
        loss="cross_entropy",
        weight_decay=1e-3,
        seed=0,
    )
    objective = mlpkit.Objective(net, X, Y.argmax(axis=1))

    costs = {}
    for method in ("L-BFGS-B", "CG", "BFGS"):
        result = minimize(objective.value_and_gradient, net.theta, jac=True, method=method)
        costs[method] = float(result.fun)
        print(f"{method:9} J = {result.fun:.10f} after {result.nfev} evaluations")

    net.theta = result.x
    print(f"terms at the minimum: {objective.terms(net.theta)}")
    return costs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="less data")
    main(parser.parse_args().small)
