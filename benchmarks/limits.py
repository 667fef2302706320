"""What mlpkit costs beside the time of an evaluation at its best: start, settings, threads, memory, growth.

    python benchmarks/limits.py [--only SECTION ...] [--json FILE]

    start     importing, the first evaluation with kernels on disk, compiling without
    settings  default environment variables against others, and after NumPy and PyTorch have been used in the process
    exercise  the same for the training time of the CS294A exercise
    threads   one evaluation on 1, 2, 4, ... threads
    memory    the most that an `Objective` takes, against what its `memory` says and what it cannot do without
    scaling   one evaluation against the width of layers, their number and the number of examples

Each figure comes from fresh processes at default environment variables (unless they are the point), as a median where
it is a time. Figures that have a bound show it, and those that miss it are listed at the end. Sections that are not run
keep what the JSON file has of them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cs294a_exercise import make_data, run_once
from evaluations import Worker
from machine import default_environment, describe

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "limits.json"
ROUNDS = 11
DTYPES = ("float64", "float32")
FIRST_JOBS = ("sparse autoencoder 64-25-64", "sparse autoencoder 784-196-784")

# What a user might set to make mlpkit faster; the first is what there is without.
SETTINGS: list[dict[str, str]] = [
    {},
    {"OPENBLAS_NUM_THREADS": "1"},
    {"OMP_WAIT_POLICY": "passive"},
    {"OMP_WAIT_POLICY": "active"},
]
LAYERS = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}  # and Numba's modules for them
USED = [("numpy",), ("torch",), ("numpy", "torch")]  # in the process before, at default variables

Row = dict[str, Any]


def probe(name: str, setting: dict[str, str] | None = None, **arguments: Any) -> Any:
    """Run a probe in a fresh process and return its result."""
    command = [sys.executable, str(HERE / "probes.py"), name, json.dumps(arguments)]
    environment = default_environment() | (setting or {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} {arguments} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def bound(value: float, *, most: float | None = None, least: float | None = None) -> Row:
    """Return cells that say what was asked for and whether it was met."""
    asked = f"<= {most:g}" if most is not None else f">= {least:g}"
    return {"asked": asked, "met": value <= most if most is not None else value >= (least or 0)}


# Sections ------------------------------------------------------------------------------------------------------


def start() -> Iterator[Row]:
    """Time importing, first evaluations and compiling."""
    times: dict[str, list[float]] = {"numpy": [], "numba": [], "mlpkit": []}
    for module in times:
        probe("import_seconds", module=module)  # bytecode written, files in the system's cache
    for _ in range(9):
        for module, seconds in times.items():
            seconds.append(probe("import_seconds", module=module))
    for module, seconds in times.items():
        median = statistics.median(seconds)
        yield {"what": f"import {module}", "s": median} | (bound(median, most=0.35) if module == "mlpkit" else {})
    for dtype in DTYPES:
        probe("first_calls", dtype=dtype)  # kernels on disk
        runs = [probe("first_calls", dtype=dtype) for _ in range(5)]
        median = statistics.median(run["evaluation"] for run in runs)
        yield {"what": f"first evaluation of 64-25-64, {dtype}, kernels on disk", "s": median} | bound(median, most=0.5)
    for dtype in DTYPES:
        with tempfile.TemporaryDirectory() as folder:
            cold = probe("first_calls", {"NUMBA_CACHE_DIR": folder}, dtype=dtype)
        yield {"what": f"first evaluation of 64-25-64, {dtype}, no kernels", "s": cold["evaluation"]}
        yield {"what": "... and first prediction", "s": cold["prediction"]} | bound(cold["prediction"], most=25)
        yield {"what": "... and first evaluation of 784-196-784, first prediction of one row", "s": cold["one row"]}


def settings() -> Iterator[Row]:
    """Time one evaluation at default and other variables, and after other libraries."""
    circumstances = _circumstances()
    for job in FIRST_JOBS:
        workers = []
        for setting, libraries in circumstances:
            workers.append(Worker("mlpkit", job, "float64", setting, libraries))
            if workers[-1].absent is not None:
                raise SystemExit(f"{_named(setting, libraries)}: {workers[-1].absent}")
            workers[-1].process.send_signal(signal.SIGSTOP)  # some settings let threads spin for good
        for _, worker in itertools.product(range(ROUNDS), workers):
            worker.process.send_signal(signal.SIGCONT)
            worker.sample()
            worker.process.send_signal(signal.SIGSTOP)
        for worker in workers:
            worker.process.send_signal(signal.SIGCONT)
            worker.close()
        best = min(worker.median for worker in workers)
        for worker, (setting, libraries) in zip(workers, circumstances, strict=True):
            ratio = worker.median / best
            row = {"job": job, **_named(setting, libraries), "ms": 1e3 * worker.median, "to best": ratio}
            yield row if setting else row | bound(ratio, most=1.15)
        for (library,), held in itertools.product(USED[:2], (True, False)):
            if importlib.util.find_spec(library):
                seconds = probe("between", job=job, library=library, held=held, rounds=2 * ROUNDS)
                when = f"{library}, before each evaluation{'' if held else ' (looked up each time)'}"
                yield {"job": job, **_named({}, (when,)), "ms": 1e3 * seconds, "to best": seconds / best}


def exercise() -> Iterator[Row]:
    """Time the training of the CS294A exercise at default and other variables, and after other libraries."""
    circumstances = _circumstances()
    times: list[list[float]] = [[] for _ in circumstances]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "exercise.npz"
        make_data(data)
        run_once("mlpkit", data, 1)  # kernels on disk
        for _, (seconds, circumstance) in itertools.product(range(3), list(zip(times, circumstances, strict=True))):
            seconds.append(run_once("mlpkit", data, 400, *circumstance)["training"])
    medians = [statistics.median(seconds) for seconds in times]
    for median, (setting, libraries) in zip(medians, circumstances, strict=True):
        ratio = median / min(medians)
        row = {**_named(setting, libraries), "training s": median, "to best": ratio}
        yield row if setting else row | bound(ratio, most=1.15)


def threads() -> Iterator[Row]:
    """Time one evaluation on more and more threads."""
    cores = os.cpu_count() or 1
    counts = sorted({2**k for k in range(cores.bit_length()) if 2**k <= cores} | {cores})
    for job, dtype in itertools.product(FIRST_JOBS, DTYPES):
        seconds = probe("threads", job=job, dtype=dtype, counts=counts, rounds=ROUNDS)
        for n, taken in zip(counts, seconds, strict=True):
            row = {"job": job, "dtype": dtype, "threads": n, "ms": 1e3 * taken, "speed-up": seconds[0] / taken}
            yield row | bound(row["speed-up"], least=1.85) if n == 2 else row


def memory() -> Iterator[Row]:
    """Weigh objectives at their largest."""
    usual = {"sizes": [784, 196, 784], "m": 10_000, "keep": True}
    for name, changes in (
        ("784-196-784", {}),
        ("784-196-784, activations computed twice", {"keep": False}),
        ("784-196-784, float32 network and X", {"dtype": "float32", "data_dtype": "float32"}),
        ("784-196-784, float32 X", {"data_dtype": "float32"}),
        ("784-196-784, targets a copy of X", {"copied": True}),
        ("784-196-784, a tenth of the weights 0", {"weightless": 0.1}),
        ("64-25-64, m = 100 000", {"sizes": [64, 25, 64], "m": 100_000}),
    ):
        found = probe("memory", **(usual | changes))
        peak, promised, necessary = (found[key] / 1e6 for key in ("peak", "promised", "necessary"))
        row = {"network": name, "peak MB": peak, "promised MB": promised, "peak / promised": peak / promised}
        yield row | bound(peak / promised, most=1.1)
        if name == "784-196-784":
            ratio = promised / necessary
            row = {"network": "... packed X and kept activations", "peak MB": necessary, "promised MB": promised}
            yield row | {"promised / necessary": ratio} | bound(ratio, most=1.5)


def scaling() -> Iterator[Row]:
    """Time one evaluation against width, depth and number of examples."""
    curves = {
        "width": [{"sizes": [n, n // 4, n], "m": 10_000, "beta": 3.0} for n in (16, 32, 64, 128, 256, 512, 1024)],
        "depth": [{"sizes": [64] * (depth + 2), "m": 10_000, "beta": 0.0} for depth in (1, 2, 4, 8)],
        "examples": [{"sizes": [64, 25, 64], "m": m, "beta": 3.0} for m in (100, 300, 1_000, 3_000, 10_000, 100_000)],
    }
    rows: list[Row] = []
    for name, points in curves.items():
        measured = {dtype: probe("curve", points=points, dtype=dtype, rounds=7) for dtype in DTYPES}
        for i, point in enumerate(points):
            sizes, m = point["sizes"], point["m"]
            network = "-".join(map(str, sizes)) if len(sizes) == 3 else f"64 to 64 over {len(sizes) - 2} x 64"
            row = {"against": name, "network": network, "m": m, "units": sum(sizes[1:])}
            for dtype, found in measured.items():
                row[f"us an example, {dtype}"] = 1e6 * found[i]["seconds"] / m
                row[f"GFLOP/s, {dtype}"] = 1e-9 * found[i]["flops"] / found[i]["seconds"]
            rows.append(row)
    fits = [{"against": "fit", "network": f"us {what}"} for what in ("an operation", "a unit and example", "a call")]
    for dtype in DTYPES:
        for fit, value in zip(fits, _fit(rows, dtype), strict=True):
            fit[f"us an example, {dtype}"] = value
        fits[0][f"GFLOP/s, {dtype}"] = 1e-3 / fits[0][f"us an example, {dtype}"]
    yield from rows + fits


def _fit(rows: list[Row], dtype: str) -> list[float]:
    """Fit us = a operations + b units m + c by relative least squares; note each row's ratio of fit to measured."""
    m = np.array([row["m"] for row in rows], float)
    us = m * [row[f"us an example, {dtype}"] for row in rows]
    operations = 1e3 * us * [row[f"GFLOP/s, {dtype}"] for row in rows]
    terms = np.stack([operations, m * [row["units"] for row in rows], np.ones(len(rows))], axis=1) / us[:, np.newaxis]
    found = np.linalg.lstsq(terms, np.ones(len(rows)))[0]
    for row, ratio in zip(rows, terms @ found, strict=True):
        row[f"fit / measured, {dtype}"] = ratio
    return found.tolist()


def _circumstances() -> list[tuple[dict[str, str], tuple[str, ...]]]:
    """Return settings with no other library used, then other libraries at default settings: what is installed."""
    found: list[tuple[dict[str, str], tuple[str, ...]]] = [(setting, ()) for setting in SETTINGS]
    for layer, module in LAYERS.items():
        with contextlib.suppress(ImportError):
            importlib.import_module(f"numba.np.ufunc.{module}")
            found.append(({"NUMBA_THREADING_LAYER": layer}, ()))
    return found + [({}, libraries) for libraries in USED if all(map(importlib.util.find_spec, libraries))]


def _named(setting: dict[str, str], libraries: tuple[str, ...]) -> Row:
    variables = " ".join(f"{name}={value}" for name, value in setting.items())
    return {"variables": variables or "default", "used before": " and ".join(libraries)}


SECTIONS: dict[str, Callable[[], Iterator[Row]]] = {
    section.__name__: section for section in (start, settings, exercise, threads, memory, scaling)
}


# Output --------------------------------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    """Lay rows out as Markdown; columns in the order in which they appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in ("asked", "met")))
    if any("asked" in row for row in rows):
        columns += ["asked", "met"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(_cell(row.get(column, '')) for column in columns)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def _seconds_of_others() -> float:
    """Return the processor time of all that runs beside this program, from some start; 0 where Linux is silent."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])


def main() -> None:
    """Run the sections, print each as it is done and write all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(SECTIONS), choices=SECTIONS, metavar="SECTION")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    arguments = parser.parse_args()
    machine = describe()
    print(f"{machine['cpu']}, {machine['cores']} cores")
    report = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    missed = []
    for name in arguments.only:
        began, elsewhere = time.perf_counter(), _seconds_of_others()
        rows = list(SECTIONS[name]())
        taken = time.perf_counter() - began
        others = (_seconds_of_others() - elsewhere) / taken / (os.cpu_count() or 1)
        print(f"\n{name}, {taken:.0f} s, {others:.0%} of the processors taken by others\n\n{table(rows)}", flush=True)
        report[name] = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "others": others, "rows": rows}
        missed += [row for row in rows if not row.get("met", True)]
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{len(missed)} figures miss their bounds")
    if missed:
        print(f"\n{table(missed)}")


if __name__ == "__main__":
    main()
