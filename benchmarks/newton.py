"""Cost against time on the CS294A exercise: L-BFGS beside Newton's method by products with the Hessian.

A sparse autoencoder of 64-25-64 sigmoid units on 10 000 whitened 8x8 patches, lambda 1e-4, rho 0.01, beta 3, float64,
tolerances switched off, from the initial parameters of a few seeds. Each optimiser gets the same time, in turn, with
kernels loaded before the clock starts. Runs end in different minima, a thousandth apart, so that only the way there
tells the optimisers from one another.

    python benchmarks/newton.py [--seeds 2] [--seconds 20] [--json FILE]

Prints J when some seconds have passed, the median over the seeds; what that took; and how long one product with the
Hessian takes beside one evaluation of J and its gradient.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cs294a_exercise import BETA, N_HIDDEN, N_INPUTS, N_PATCHES, RHO, WEIGHT_DECAY
from machine import describe

import mlpkit
from mlpkit import datasets, preprocessing

MARKS = (1.0, 2.0, 5.0, 10.0, 20.0)
OPTIMIZERS = {
    "L-BFGS": mlpkit.LBFGS(ftol=0, gtol=0),
    "Newton-CG": mlpkit.NewtonCG(xtol=0),
    "trust-ncg": mlpkit.TrustNCG(gtol=0),
}
RESULTS = Path(__file__).parent / "results" / "newton.json"


class _TimeUpError(Exception):
    """The seconds that were granted have passed."""


class Run:
    """The objective with its products, which writes down when J got where, until time is up."""

    def __init__(self, objective: mlpkit.Objective, seconds: float) -> None:
        self.objective, self.seconds = objective, seconds
        self.evaluations = self.products = 0
        self.accepted: list[tuple[float, float, float]] = []
        self.start = time.perf_counter()

    def _check_time(self) -> float:
        passed = time.perf_counter() - self.start
        if passed > self.seconds:
            raise _TimeUpError
        return passed

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Return J and its gradient."""
        self._check_time()
        self.evaluations += 1
        return self.objective.value_and_gradient(theta)

    def hessian_vector_product(self, theta: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return the Hessian at theta times v."""
        self._check_time()
        self.products += 1
        return self.objective.hessian_vector_product(theta, v)

    def report(self, theta: np.ndarray, cost: float, gradient: np.ndarray) -> None:
        """Write an accepted point down."""
        self.accepted.append((self._check_time(), cost, float(np.linalg.norm(gradient))))

    def cost_after(self, seconds: float) -> float:
        """Return J at the last point accepted by then."""
        return min((cost for when, cost, _ in self.accepted if when <= seconds), default=np.nan)


def run(optimizer: Any, objective: mlpkit.Objective, theta: np.ndarray, seconds: float) -> dict[str, Any]:
    """Run one optimiser for some seconds."""
    going = Run(objective, seconds)
    try:
        with mlpkit.blas_limited():
            _, reason = optimizer.minimize(going, theta, going.report)
    except _TimeUpError:
        reason = "time is up"
    when, cost, gradient = going.accepted[-1]
    return {
        "cost_after": {mark: going.cost_after(mark) for mark in MARKS if mark <= seconds},
        "final": cost,
        "gradient": gradient,
        "iterations": len(going.accepted),
        "evaluations": going.evaluations,
        "products": going.products,
        "seconds": when,
        "reason": reason,
    }


def milliseconds(function: Callable[[], Any], repeats: int = 60) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2, help="starts (default 2)")
    parser.add_argument("--seconds", type=float, default=20.0, help="time of each run (default 20)")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    options = parser.parse_args(arguments)

    images = preprocessing.whiten_images(datasets.natural_images())
    patches = preprocessing.sample_patches(images, N_PATCHES, size=8, seed=0)
    X = preprocessing.squash(preprocessing.remove_dc(patches))
    starts = [mlpkit.sparse_autoencoder(N_INPUTS, N_HIDDEN, seed=seed).theta for seed in range(options.seeds)]
    net = mlpkit.sparse_autoencoder(N_INPUTS, N_HIDDEN, rho=RHO, beta=BETA, weight_decay=WEIGHT_DECAY)
    objective = mlpkit.Objective(net, X, X)
    for optimizer in OPTIMIZERS.values():
        run(optimizer, objective, starts[0], 2.0)  # loads kernels and SciPy

    value = milliseconds(lambda: objective.value_and_gradient(starts[0]))
    product = milliseconds(lambda: objective.hessian_vector_product(starts[0], starts[0]))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in OPTIMIZERS}
    for theta in starts:
        for name, optimizer in OPTIMIZERS.items():
            runs[name].append(run(optimizer, objective, theta, options.seconds))

    report = {
        "machine": describe(),
        "value_and_gradient_ms": value,
        "hessian_vector_product_ms": product,
        "runs": runs,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n")

    about = report["machine"]
    print(f"{about['cpu']}, {about['cores']} cores; one evaluation {value:.2f} ms, one product {product:.2f} ms,")
    print(f"{product / value:.2f} times as long. J after some seconds, medians of {options.seeds} starts:\n")
    marks = [mark for mark in MARKS if mark <= options.seconds]
    print(
        f"{'':18}"
        + "".join(f"{mark:>10g} s" for mark in marks)
        + f"{'iterations':>12}{'evaluations':>13}{'products':>10}"
    )
    for name, done in runs.items():
        print(f"{name:18}", end="")
        for mark in marks:
            print(f"{statistics.median(one['cost_after'][mark] for one in done):12.6f}", end="")
        for key, width in (("iterations", 12), ("evaluations", 13), ("products", 10)):
            print(f"{statistics.median(one[key] for one in done):{width}.0f}", end="")
        print()
    print("\nLast J of each start, the norm of its gradient, when it was reached, and why the run ended:")
    for name, done in runs.items():
        for one in done:
            print(f"{name:18}{one['final']:12.8f}{one['gradient']:10.1e}{one['seconds']:7.1f} s  {one['reason']}")
    print(f"\nwritten to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
