"""Evaluations that our optimisers take on the CS294A exercise, beside SciPy's on the same objective.

A sparse autoencoder of 64-25-64 sigmoid units on 10 000 whitened 8x8 patches, lambda 1e-4, rho 0.01, beta 3, float64,
400 iterations with tolerances switched off, from the initial parameters of ten seeds. Optimisers of one kind start from
the same parameters and take turns. Rounding alone sends such runs apart, so that each seed's counts and costs scatter:
`mlpkit.LBFGS` and SciPy's L-BFGS-B are the same method, summed in another order.

    python benchmarks/optimizers.py [--seeds 10] [--others] [--json FILE]

With ``--others``, `mlpkit.ConjugateGradient` and gradient descent with a line search as well, given as many evaluations
as 400 iterations of L-BFGS take, and SciPy's CG.
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
from scipy.optimize import minimize

import mlpkit
from mlpkit import datasets, preprocessing

ITERATIONS = 400
BUDGET = 420
RESULTS = Path(__file__).parent / "results" / "optimizers.json"


class _SpentError(Exception):
    """The evaluations that were granted have been used."""


class Counted:
    """The objective, counting evaluations, and remembering the least cost."""

    def __init__(self, objective: mlpkit.Objective, budget: float) -> None:
        self.objective, self.budget = objective, budget
        self.calls, self.least = 0, np.inf

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Return J and its gradient."""
        if self.calls >= self.budget:
            raise _SpentError
        self.calls += 1
        cost, gradient = self.objective.value_and_gradient(theta)
        self.least = min(self.least, cost)
        return cost, gradient


def ours(optimizer: Any) -> Callable[[Counted, np.ndarray], float]:
    """Return what runs one of our optimisers and returns the final cost."""

    def run(evaluate: Counted, theta: np.ndarray) -> float:
        costs: list[float] = []
        optimizer.minimize(evaluate, theta, lambda theta, cost, gradient: costs.append(cost))
        return costs[-1]

    return run


def scipys(method: str, **options: Any) -> Callable[[Counted, np.ndarray], float]:
    """Return what runs one of SciPy's and returns the final cost."""

    def run(evaluate: Counted, theta: np.ndarray) -> float:
        return float(minimize(evaluate, theta, jac=True, method=method, options=options).fun)

    return run


PAIR = {
    "LBFGS": (ours(mlpkit.LBFGS(ITERATIONS, ftol=0, gtol=0)), np.inf),
    "SciPy L-BFGS-B": (scipys("L-BFGS-B", maxiter=ITERATIONS, maxfun=10**6, ftol=0, gtol=0), np.inf),
}
OTHERS = {
    "ConjugateGradient": (ours(mlpkit.ConjugateGradient(10**6, gtol=0)), BUDGET),
    "SciPy CG": (scipys("CG", maxiter=10**6, gtol=0), BUDGET),
    "GradientDescent, line search": (ours(mlpkit.GradientDescent(1.0, 10**6, line_search=True)), BUDGET),
}


def patches() -> np.ndarray:
    """Return the exercise's data, as `cs294a_exercise.py` makes them."""
    images = preprocessing.whiten_images(datasets.natural_images())
    return preprocessing.squash(
        preprocessing.remove_dc(preprocessing.sample_patches(images, N_PATCHES, size=8, seed=0))
    )


def run_once(side: Callable[[Counted, np.ndarray], float], budget: float, X: np.ndarray, seed: int) -> dict[str, float]:
    """Train from one seed's parameters; return the number of evaluations, the final cost and the time."""
    net = mlpkit.sparse_autoencoder(N_INPUTS, N_HIDDEN, rho=RHO, beta=BETA, weight_decay=WEIGHT_DECAY, seed=seed)
    evaluate = Counted(mlpkit.Objective(net, X, X), budget)
    start = time.perf_counter()
    try:
        cost = side(evaluate, net.theta.copy())
    except _SpentError:
        cost = evaluate.least
    return {"evaluations": evaluate.calls, "cost": cost, "seconds": time.perf_counter() - start}


def print_row(label: str, row: list[dict[str, float]]) -> None:
    """Print what each side took and reached."""
    print(label + "".join(f"{r['evaluations']:15g}{r['cost']:10.6f}{r['seconds']:8.2f}" for r in row), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return 1 if ours takes more evaluations than SciPy's, or ends at a higher cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="default 10")
    parser.add_argument("--others", action="store_true", help="conjugate gradients and gradient descent as well")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    options = parser.parse_args(arguments)
    sides = PAIR | (OTHERS if options.others else {})
    X = patches()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    print("    " + "".join(f"{name:>33}" for name in sides))
    print("seed" + f"{'evaluations':>15}{'cost':>10}{'seconds':>8}" * len(sides))
    with mlpkit.blas_limited():  # as fit does
        run_once(PAIR["LBFGS"][0], 1, X, 0)  # compiles
        for seed in range(options.seeds):
            for name, (side, budget) in sides.items():
                runs[name].append(run_once(side, budget, X, seed))
            print_row(f"{seed:4}", [done[-1] for done in runs.values()])
    keys = ("evaluations", "cost", "seconds")
    medians = {name: {key: statistics.median(r[key] for r in done) for key in keys} for name, done in runs.items()}
    print_row("med.", list(medians.values()))
    a, b = medians["LBFGS"], medians["SciPy L-BFGS-B"]
    ratios = {key: a[key] / b[key] for key in keys}
    print("\nmedians of LBFGS to SciPy's: " + ", ".join(f"{key} {ratio:.4f}" for key, ratio in ratios.items()))
    report = {"machine": describe(), "iterations": ITERATIONS, "medians": medians, "ratios": ratios, "runs": runs}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {options.json}")
    return int(ratios["evaluations"] > 1.03 or ratios["cost"] > 1.005)


if __name__ == "__main__":
    sys.exit(main())
