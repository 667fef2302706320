"""J and its gradient over a file, and over the workers of a cluster, beside data in memory and beside peers.

    python benchmarks/out_of_core.py [--only file cold workers cpu] [--examples N] [--rounds 7]

- `file`: evaluations over a .npy file in the system's cache, with a memory limit of a quarter of the data (or what the
  network needs), beside the same objective in memory; and PyTorch, which reads the same file batch by batch.
- `cold`: the same with the file dropped from the system's cache before each evaluation, beside reading it alone.
- `cpu`: as `file`, on one thread and in time of the processor, which other programs on the machine change little.
- `workers`: a Dask cluster of processes with one thread each, beside a plain map-reduce of NumPy code by Dask; and what
  an evaluation takes where there is next to nothing to compute.

All contenders compute the sparse autoencoder's J and gradient over all examples: first the mean activations, then the
gradient. Each round takes one sample of each in turn; the table shows medians in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jobs import EVALUATIONS, Job
from machine import describe

import mlpkit

RESULTS = Path(__file__).parent / "results" / "out_of_core.json"
NAMES = ("sparse autoencoder 64-25-64", "sparse autoencoder 784-196-784")
LEAST_LIMIT = 40 << 20


def network(job: Job) -> mlpkit.MLP:
    """Return mlpkit's network for a job."""
    net = mlpkit.sparse_autoencoder(
        n_inputs=job.sizes[0], n_hidden=job.sizes[1], rho=job.rho, beta=job.beta, weight_decay=job.weight_decay,
        dtype=job.dtype,
    )  # fmt: skip
    net.theta = job.theta
    return net


def medians(
    tasks: dict[str, Callable[[], Any]], rounds: int, before: Callable[[], None] = lambda: None, clock: Any = None
) -> dict:
    """Time tasks in turn; return the median seconds of each."""
    clock = clock or time.perf_counter
    samples: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds + 1):  # the first round warms up
        for name, task in tasks.items():
            before()
            time.sleep(0.05)  # in which the threads of the last contender go to sleep
            start = clock()
            task()
            samples[name].append(clock() - start)
    return {name: statistics.median(times[1:]) for name, times in samples.items()}


# Peers ---------------------------------------------------------------------------------------------------------


def numpy_sums(X: np.ndarray, layers: Any, slope: np.ndarray | None) -> list[Any]:
    """Return a block's sums: of hidden activations, or, given the penalty's slope, of losses and gradients."""
    (W1, b1), (W2, b2) = layers
    a = 1 / (1 + np.exp(-(X @ W1.T + b1)))
    if slope is None:
        return [a.sum(axis=0, dtype=np.float64)]
    h = 1 / (1 + np.exp(-(a @ W2.T + b2)))
    delta = (h - X) * h * (1 - h)
    below = (delta @ W2 + slope) * a * (1 - a)
    loss = 0.5 * float(np.square(h - X).sum(dtype=np.float64))
    return [loss, below.T @ X, below.sum(axis=0), delta.T @ a, delta.sum(axis=0)]


def slope_of(job: Job, rho_hat: np.ndarray) -> np.ndarray:
    """Return the derivative of the sparsity penalty."""
    return (job.beta * (-job.rho / rho_hat + (1 - job.rho) / (1 - rho_hat))).astype(job.dtype)


def torch_over(path: str, job: Job, rows: int) -> Callable[[], Any]:
    """Return PyTorch's evaluation over a file, batch by batch."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    mapped = np.load(path, mmap_mode="r")

    class Blocks(torch.utils.data.IterableDataset):
        """The file's rows, a block at a time."""

        def __iter__(self) -> Any:
            for i in range(0, len(mapped), rows):
                yield torch.from_numpy(np.array(mapped[i : i + rows]))

    loader = torch.utils.data.DataLoader(Blocks(), batch_size=None)
    parameters = [torch.tensor(p, requires_grad=True) for layer in job.parameters for p in layer]
    W1, b1, W2, b2 = parameters

    def evaluate() -> Any:
        for p in parameters:
            p.grad = None
        with torch.no_grad():
            rho_hat = sum(torch.sigmoid(x @ W1.T + b1).sum(0) for x in loader) / job.m
        slope = torch.from_numpy(slope_of(job, rho_hat.numpy()))
        loss = 0.0
        for x in loader:
            a = torch.sigmoid(x @ W1.T + b1)
            part = 0.5 * ((torch.sigmoid(a @ W2.T + b2) - x) ** 2).sum()
            loss += float(part)
            (part + (a * slope).sum()).backward()
        return loss, [p.grad / job.m for p in parameters]

    return evaluate


def dask_numpy(client: Any, blocks: list[Any], job: Job) -> Callable[[], Any]:
    """Return an evaluation by Dask as one would write it: a task for each block, sums added on the client."""
    held = client.scatter(blocks)
    layers = job.parameters

    def evaluate() -> Any:
        sent = client.scatter(layers, broadcast=True, hash=False)
        sums = client.gather([client.submit(numpy_sums, x, sent, None, pure=False) for x in held])
        slope = slope_of(job, sum(s[0] for s in sums) / job.m)
        parts = client.gather([client.submit(numpy_sums, x, sent, slope, pure=False) for x in held])
        return [sum(p[i] for p in parts) / job.m for i in range(5)]

    return evaluate


# Measurements --------------------------------------------------------------------------------------------------


def in_processor_time(job: Job, folder: str, rounds: int) -> dict[str, float]:
    """Time evaluations of a file on one thread, by the processor's clock."""
    before = mlpkit.get_num_threads()
    mlpkit.set_num_threads(1)
    try:
        return over_a_file(job, folder, rounds, time.process_time)
    finally:
        mlpkit.set_num_threads(before)


def over_a_file(job: Job, folder: str, rounds: int, clock: Any = None) -> dict[str, float]:
    """Time evaluations of a file that is in the system's cache."""
    path = os.path.join(folder, "X.npy")
    np.save(path, job.X)
    net, limit = network(job), max(LEAST_LIMIT, job.X.nbytes // 4)
    kept, again = (mlpkit.Objective(net, job.X, job.X, keep_activations=keep) for keep in (True, False))
    scanned = mlpkit.Objective(net, path, path, memory_limit=limit)
    print(f"  {scanned.reading}", flush=True)
    theta = net.theta
    if not np.array_equal(kept.value_and_gradient(theta)[1], scanned.value_and_gradient(theta)[1]):
        raise SystemExit("the results differ")
    tasks: dict[str, Callable[[], Any]] = {
        "in memory": lambda: kept.terms(theta),
        "in memory, recomputed": lambda: again.terms(theta),
        "out of core": lambda: scanned.terms(theta),
    }
    try:
        if clock is None:
            tasks["PyTorch out of core"] = torch_over(path, job, 4096)
    except ImportError:
        print("  PyTorch is not installed")
    return medians(tasks, rounds, clock=clock)


def cold(job: Job, folder: str, rounds: int) -> dict[str, float]:
    """Time evaluations of a file that is not in the system's cache, and reading it alone."""
    path = os.path.join(folder, "X.npy")
    np.save(path, job.X)
    os.sync()
    net = network(job)
    scanned = mlpkit.Objective(net, path, path, memory_limit=max(LEAST_LIMIT, job.X.nbytes // 4))
    descriptor = os.open(path, os.O_RDONLY)

    def drop() -> None:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def read() -> None:
        buffer = bytearray(4 << 20)
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    return medians({"reading it once": read, "out of core": lambda: scanned.terms(net.theta)}, rounds, drop)


def over_workers(job: Job, rounds: int) -> dict[str, float]:
    """Time evaluations over 1 and 2 workers of one thread."""
    import dask.array as da
    from distributed import Client, LocalCluster

    from mlpkit.distributed import DaskObjective

    net, found = network(job), {}
    tiny = np.full((16, job.sizes[0]), 0.5, job.dtype)
    for n in (1, 2):
        with (
            LocalCluster(n_workers=n, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as cluster,
            Client(cluster) as client,
        ):
            X = da.from_array(job.X, chunks=(-(-job.m // 8), -1))
            few = da.from_array(tiny, chunks=(2, -1))
            with DaskObjective(net, X, X, client) as objective, DaskObjective(net, few, few, client) as small:
                blocks = [job.X[i : i + -(-job.m // 8)] for i in range(0, job.m, -(-job.m // 8))]
                tasks = {
                    f"{n} workers": lambda o=objective: o.terms(net.theta),
                    f"{n} workers, overhead": lambda o=small: o.terms(net.theta),
                    f"{n} workers, NumPy by Dask": dask_numpy(client, blocks, job),
                }
                found |= medians(tasks, rounds)
    return found


def main() -> None:
    """Run what is asked for, print it and write it as JSON."""
    parser = argparse.ArgumentParser(description="mlpkit over files and over workers")
    parser.add_argument("--only", nargs="*", default=["file", "cold", "workers"])
    parser.add_argument("--dtypes", nargs="*", default=["float64", "float32"])
    parser.add_argument("--examples", type=float, default=1.0, help="times 320 000 (64-25-64) or 30 000 (784-196-784)")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    machine = describe()
    print(f"{machine['cpu']}, {machine['cores']} cores", flush=True)
    measurements = {"file": over_a_file, "cold": cold, "workers": None, "cpu": in_processor_time}
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for what in arguments.only:
            for name in NAMES:
                for dtype in arguments.dtypes:
                    m = int(arguments.examples * (320_000 if "64-25" in name else 30_000))
                    job = replace(EVALUATIONS[name], dtype=dtype, m=m)
                    print(f"{what}: {name}, {dtype}, {m} examples, {job.X.nbytes / 1e6:.0f} MB", flush=True)
                    measure = measurements[what]
                    rounds = arguments.rounds
                    found = measure(job, folder, rounds) if measure else over_workers(job, rounds)
                    for contender, seconds in found.items():
                        print(f"  {contender:30} {1e3 * seconds:8.1f} ms", flush=True)
                    results.append({"what": what, "job": name, "dtype": dtype, "m": m, "seconds": found})
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()
