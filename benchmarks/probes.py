"""One measurement of mlpkit by itself, in a process of its own; `limits` asks for them.

    python probes.py NAME ARGUMENTS-AS-JSON

prints the result as JSON. Imports stay inside the probes, as most of them time or weigh what follows an import.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 0.05


def import_seconds(module: str) -> float:
    """Return the time that an import takes."""
    start = time.perf_counter()
    __import__(module)
    return time.perf_counter() - start


def first_calls(dtype: str) -> dict[str, float]:
    """Return seconds from the end of `import mlpkit` to the end of each of a user's first calls, one after another."""
    from dataclasses import replace

    from contenders import mlpkit_task
    from jobs import JOBS

    small = replace(JOBS["sparse autoencoder 64-25-64"], dtype=dtype)
    rows = replace(small, predict=True)
    large = replace(JOBS["sparse autoencoder 784-196-784"], dtype=dtype, m=100)
    row = replace(JOBS["predict 64-25-64, one row"], dtype=dtype)
    for job in (small, rows, large, row):
        assert job.X is not None
        assert job.parameters
    import mlpkit  # noqa: F401

    start = time.perf_counter()
    done = {}
    for name, job in (("evaluation", small), ("prediction", rows), ("large evaluation", large), ("one row", row)):
        mlpkit_task(job)()
        done[name] = time.perf_counter() - start
    return done


def threads(job: str, dtype: str, counts: list[int], rounds: int) -> list[float]:
    """Return seconds an evaluation with each number of threads: medians of samples in turn."""
    from dataclasses import replace

    from contenders import mlpkit_task
    from jobs import JOBS
    from worker import calls_that_take, seconds_a_call

    import mlpkit

    task = mlpkit_task(replace(JOBS[job], dtype=dtype))
    mlpkit.set_num_threads(max(counts))
    calls = calls_that_take(SAMPLE_SECONDS, task)
    samples: list[list[float]] = [[] for _ in counts]
    for _ in range(rounds):
        for n, seconds in zip(counts, samples, strict=True):
            mlpkit.set_num_threads(n)
            task()
            seconds.append(seconds_a_call(task, calls))
    return [statistics.median(seconds) for seconds in samples]


def between(job: str, library: str, held: bool, rounds: int) -> float:
    """Return the median seconds of an evaluation that follows the use of a library at once, as in a loop of the user's.

    `held` is for one `objective.value_and_gradient` called again and again, as an optimiser does, which holds BLAS to
    one thread; otherwise the attribute is looked up for each call.
    """
    from jobs import JOBS
    from machine import use

    import mlpkit

    work = JOBS[job]
    net = mlpkit.sparse_autoencoder(work.sizes[0], work.sizes[1], seed=0)
    objective = mlpkit.Objective(net, work.X, work.Y)
    evaluate, seconds = objective.value_and_gradient, []
    for _ in range(rounds):
        use(library)
        start = time.perf_counter()
        (evaluate if held else objective.value_and_gradient)(net.theta)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def curve(points: list[dict[str, Any]], dtype: str, rounds: int) -> list[dict[str, float]]:
    """Return seconds and operations of one evaluation for each network of sigmoid units: medians of samples in turn."""
    from contenders import mlpkit_task
    from jobs import Job
    from worker import calls_that_take, seconds_a_call

    jobs = [
        Job(tuple(p["sizes"]), "sigmoid", "sigmoid", "squared_error", p["m"], beta=p["beta"], dtype=dtype)
        for p in points
    ]
    tasks = [mlpkit_task(job) for job in jobs]
    calls = [calls_that_take(SAMPLE_SECONDS, task) for task in tasks]
    samples: list[list[float]] = [[] for _ in tasks]
    for _ in range(rounds):
        for task, n, seconds in zip(tasks, calls, samples, strict=True):
            seconds.append(seconds_a_call(task, n))
    return [{"seconds": statistics.median(s), "flops": job.flops} for job, s in zip(jobs, samples, strict=True)]


def memory(
    sizes: list[int],
    m: int,
    keep: bool,
    dtype: str = "float64",
    data_dtype: str = "float64",
    weightless: float = 0.0,
    copied: bool = False,
) -> dict[str, float]:
    """Return the bytes an autoencoder's `Objective` takes at most, made and evaluated once, and what it promised.

    Parameters
    ----------
    sizes : list of int
        Units of the three layers.
    m : int
        Rows of data.
    keep : bool
        Whether to keep activations.
    dtype, data_dtype : str
        Of the network and of X.
    weightless : float
        The fraction of examples with weight 0.
    copied : bool
        Whether targets are a copy of X, which the objective has to find out.
    """
    import numpy as np

    import mlpkit

    def net(n: int, hidden: int) -> mlpkit.MLP:
        return mlpkit.sparse_autoencoder(n, hidden, dtype=dtype, seed=0)

    for n, hidden in ((8, 4), (400, 200)):  # both ways of adding up the gradient: kernels loaded, threads started
        few = np.full((300, n), 0.5, dtype)
        weights = np.ones(300)
        weights[:10] = 0
        evaluate = mlpkit.Objective(net(n, hidden), few, few, weights, keep).value_and_gradient
        for _ in range(2):  # the second call loads SciPy's BLAS
            evaluate(net(n, hidden).theta)
    del evaluate, few
    X = np.random.default_rng(1).uniform(0.1, 0.9, (m, sizes[0])).astype(data_dtype)
    Y = X.copy() if copied else X
    sample_weight = None
    if weightless:
        sample_weight = np.ones(m)
        sample_weight[: round(weightless * m)] = 0
    network = net(sizes[0], sizes[1])
    gc.collect()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, or it would hide a part of what is taken next
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size so far is forgotten
    before = _status("VmRSS")
    objective = mlpkit.Objective(network, X, Y, sample_weight, keep)
    made = _status("VmHWM") - before
    promised = objective.memory
    objective.value_and_gradient(network.theta)
    used = round((1 - weightless) * m)
    numbers = used * (sizes[0] + (sizes[1] if keep else 0))
    return {
        "made": made,
        "peak": _status("VmHWM") - before,
        "promised": promised,
        "necessary": numbers * np.dtype(dtype).itemsize,
    }


def _status(name: str) -> int:
    """Return a size from /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {name}")


PROBES = {probe.__name__: probe for probe in (import_seconds, first_calls, threads, between, curve, memory)}

if __name__ == "__main__":
    CHANNEL, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    print(json.dumps(PROBES[sys.argv[1]](**json.loads(sys.argv[2]))), file=CHANNEL)
