"""The CS294A exercise end to end: mlpkit against the same job in NumPy, JAX and PyTorch, all with SciPy's L-BFGS-B.

A sparse autoencoder of 64-25-64 sigmoid units on 10 000 whitened 8x8 patches, lambda 1e-4, rho 0.01, beta 3, and 400
iterations with tolerances switched off. mlpkit runs twice: by `fit`, and with its objective handed to
`scipy.optimize.minimize`. All start from the same theta on the same float64 patches, each run in a process of its own,
alternating, with every variable that sets a number of threads removed from the environment: what a user gets who sets
nothing. The others run a second time with OpenBLAS held to one thread, which helps them.

    python benchmarks/cs294a_exercise.py [--repeats 5] [--json FILE]

"training" is the time of the call that trains, which for mlpkit includes loading compiled kernels from Numba's cache,
and for the others leaves compiling out; "process" is the whole process, from interpreter start to exit. The table shows
medians, and how many times longer than `fit` each side trains.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from exercise_peers import jax_objective, torch_objective
from machine import default_environment, describe, use

N_INPUTS, N_HIDDEN, N_PATCHES = 64, 25, 10_000
WEIGHT_DECAY, RHO, BETA = 1e-4, 0.01, 3.0
ONE_BLAS_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
# Who trains, and with which environment variables; what needs a package that is not installed is left out.
SIDES: dict[str, tuple[str, dict[str, str]]] = {
    "mlpkit fit": ("mlpkit", {}),
    "mlpkit, minimize": ("handed", {}),
    "NumPy": ("numpy", {}),
    "NumPy, 1 BLAS thread": ("numpy", ONE_BLAS_THREAD),
    "JAX": ("jax", {}),
    "JAX, 1 BLAS thread": ("jax", ONE_BLAS_THREAD),
    "PyTorch": ("torch", {}),
    "PyTorch, 1 BLAS thread": ("torch", ONE_BLAS_THREAD),
}
RESULTS = Path(__file__).parent / "results" / "cs294a_exercise.json"


class NumpyAutoencoder:
    """Cost and gradient of the sparse autoencoder in NumPy, written with care.

    Whole matrices, one BLAS call a product, buffers made once and reused, and the sigmoid by
    NumPy's vectorised exp, which is several times faster than `scipy.special.expit`.
    """

    def __init__(self, X: np.ndarray, n_hidden: int) -> None:
        m, n = X.shape
        self.X, self.n, self.h = X, n, n_hidden
        self.a2, self.d2, self.f2 = (np.empty((m, n_hidden)) for _ in range(3))
        self.a3, self.d3 = (np.empty((m, n)) for _ in range(2))

    def value_and_gradient(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Return J and its gradient; theta = [W1, b1, W2, b2], each row-major."""
        X, m = self.X, len(self.X)
        W1, b1, W2, b2 = self.split(theta)
        a2 = self._sigmoid_layer(X, W1, b1, self.a2)
        a3 = self._sigmoid_layer(a2, W2, b2, self.a3)
        rho_hat = a2.mean(axis=0)

        d3 = np.subtract(a3, X, out=self.d3)
        cost = 0.5 * np.vdot(d3, d3) / m
        cost += 0.5 * WEIGHT_DECAY * (np.vdot(W1, W1) + np.vdot(W2, W2))
        kl = RHO * np.log(RHO / rho_hat) + (1 - RHO) * np.log((1 - RHO) / (1 - rho_hat))
        cost += BETA * kl.sum()

        d3 *= a3
        np.subtract(1.0, a3, out=a3)
        d3 *= a3
        d2 = np.matmul(d3, W2, out=self.d2)
        d2 += BETA * (-RHO / rho_hat + (1 - RHO) / (1 - rho_hat))
        d2 *= a2
        np.subtract(1.0, a2, out=self.f2)
        d2 *= self.f2

        gradient = np.empty_like(theta)
        gW1, gb1, gW2, gb2 = self.split(gradient)
        np.matmul(d2.T, X, out=gW1)
        np.matmul(d3.T, a2, out=gW2)
        for gW, W in ((gW1, W1), (gW2, W2)):
            gW /= m
            gW += WEIGHT_DECAY * W
        gb1[:] = d2.sum(axis=0) / m
        gb2[:] = d3.sum(axis=0) / m
        return float(cost), gradient

    def split(self, theta: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return W1, b1, W2, b2 as views of theta."""
        n, h = self.n, self.h
        W1, b1, W2, b2 = np.split(theta, np.cumsum([h * n, h, n * h]))
        return W1.reshape(h, n), b1, W2.reshape(n, h), b2

    @staticmethod
    def _sigmoid_layer(a: np.ndarray, W: np.ndarray, b: np.ndarray, out: np.ndarray) -> np.ndarray:
        np.matmul(a, W.T, out=out)
        out += b
        np.negative(out, out=out)
        with np.errstate(over="ignore"):  # exp overflows to infinity, whose reciprocal is the right 0
            np.exp(out, out=out)
        out += 1.0
        return np.reciprocal(out, out=out)


def train_numpy(X: np.ndarray, theta: np.ndarray, iterations: int) -> dict[str, float]:
    """Train with NumPy and SciPy."""
    start = time.perf_counter()
    return minimise(NumpyAutoencoder(X, N_HIDDEN).value_and_gradient, theta, iterations, start)


def minimise(fun: Callable, theta: np.ndarray, iterations: int, start: float) -> dict[str, float]:
    """Run SciPy's L-BFGS-B for a fixed number of iterations."""
    from scipy.optimize import minimize

    options = {"maxiter": iterations, "maxfun": 10 * iterations, "ftol": 0, "gtol": 0}
    result = minimize(fun, theta, jac=True, method="L-BFGS-B", options=options)
    seconds = time.perf_counter() - start
    return {"cost": float(result.fun), "evaluations": int(result.nfev), "training": seconds}


def train_mlpkit(X: np.ndarray, theta: np.ndarray, iterations: int) -> dict[str, float]:
    """Train with mlpkit."""
    import mlpkit

    net = mlpkit.sparse_autoencoder(N_INPUTS, N_HIDDEN, rho=RHO, beta=BETA, weight_decay=WEIGHT_DECAY)
    net.theta = theta
    start = time.perf_counter()
    result = net.fit(X, X, optimizer=mlpkit.LBFGS(max_iter=iterations, ftol=0, gtol=0))
    seconds = time.perf_counter() - start
    return {"cost": result.cost, "evaluations": result.n_evaluations, "training": seconds}


def train_handed(X: np.ndarray, theta: np.ndarray, iterations: int) -> dict[str, float]:
    """Train by handing mlpkit's objective to SciPy, as a user may."""
    import mlpkit

    net = mlpkit.sparse_autoencoder(N_INPUTS, N_HIDDEN, rho=RHO, beta=BETA, weight_decay=WEIGHT_DECAY)
    start = time.perf_counter()
    return minimise(mlpkit.Objective(net, X, X).value_and_gradient, theta, iterations, start)


def train_peer(make: Callable, X: np.ndarray, theta: np.ndarray, iterations: int) -> dict[str, float]:
    """Train with another library's cost and gradient, compiled before the clock starts."""
    fun = make(X, (N_INPUTS, N_HIDDEN), WEIGHT_DECAY, RHO, BETA)
    fun(theta)
    return minimise(fun, theta, iterations, time.perf_counter())


TRAINERS: dict[str, Callable[..., dict[str, float]]] = {
    "numpy": train_numpy,
    "mlpkit": train_mlpkit,
    "handed": train_handed,
    "jax": partial(train_peer, jax_objective),
    "torch": partial(train_peer, torch_objective),
}


def work(side: str, data: str, iterations: int, libraries: list[str]) -> None:
    """Run one side in this process, after the use of other libraries, and print its result as JSON."""
    for library in libraries:
        use(library)
    with np.load(data) as arrays:
        X, theta = arrays["X"], arrays["theta"]
    print(json.dumps(TRAINERS[side](X, theta, iterations)))


def make_data(path: Path) -> None:
    """Write the patches and the starting theta that both sides read."""
    import mlpkit
    from mlpkit import datasets, preprocessing

    images = preprocessing.whiten_images(datasets.natural_images())
    patches = preprocessing.sample_patches(images, N_PATCHES, size=8, seed=0)
    X = preprocessing.squash(preprocessing.remove_dc(patches))
    np.savez(path, X=X, theta=mlpkit.sparse_autoencoder(N_INPUTS, N_HIDDEN, seed=0).theta)


def run_once(
    side: str,
    data: Path,
    iterations: int,
    setting: dict[str, str] | None = None,
    libraries: tuple[str, ...] = (),
) -> dict[str, float]:
    """Run one side in a fresh process, under default environment variables but for `setting`."""
    command = [sys.executable, __file__, "--iterations", str(iterations)]
    command += ["--worker", side, "--data", str(data), "--after", *libraries]
    start = time.perf_counter()
    environment = default_environment() | (setting or {})
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout) | {"process": time.perf_counter() - start}


def summarise(runs: dict[str, list[dict[str, float]]]) -> dict[str, object]:
    """Return each side's medians with its ratio to `fit`, and how far the final costs differ."""
    sides = {side: {key: statistics.median(run[key] for run in done) for key in done[0]} for side, done in runs.items()}
    for medians in sides.values():
        medians["ratio"] = medians["training"] / sides["mlpkit fit"]["training"]
    costs = [medians["cost"] for medians in sides.values()]
    return {"medians": sides, "cost_difference": max(costs) / min(costs) - 1}


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return 1 if the sides end at different costs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side (default 5)")
    parser.add_argument("--iterations", type=int, default=400, help="default 400")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    parser.add_argument("--worker", choices=TRAINERS, help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    parser.add_argument("--after", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work(options.worker, options.data, options.iterations, options.after)
        return 0

    runs: dict[str, list[dict[str, float]]] = {
        side: [] for side, (who, _) in SIDES.items() if who not in ("jax", "torch") or find_spec(who)
    }
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "exercise.npz"
        make_data(data)
        run_once("mlpkit", data, iterations=1)  # compiles into Numba's cache what is not there yet
        for _ in range(options.repeats):
            for side, done in runs.items():
                who, setting = SIDES[side]
                done.append(run_once(who, data, options.iterations, setting))
    summary = summarise(runs)
    report = {
        "iterations": options.iterations,
        "repeats": options.repeats,
        "machine": describe(),
        **summary,
        "runs": runs,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n")

    about = report["machine"]
    print(f"{about['cpu']}, {about['cores']} cores; Python {about['python']}, ", end="")
    print(", ".join(f"{name} {version}" for name, version in about["versions"].items()))
    print(f"{options.iterations} iterations, medians of {options.repeats} runs\n")
    print(f"{'':24}{'training s':>12}{'ratio':>8}{'process s':>12}{'evaluations':>13}{'cost':>12}")
    for side, row in summary["medians"].items():
        print(f"{side:24}{row['training']:12.2f}{row['ratio']:8.1f}{row['process']:12.2f}", end="")
        print(f"{row['evaluations']:13.0f}{row['cost']:12.6f}")
    print(f"\nwritten to {options.json}")
    # Rounding alone sends long L-BFGS runs apart; on this problem they stay close.
    if summary["cost_difference"] > 0.01:
        print(f"the final costs differ by {summary['cost_difference']:.1%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
