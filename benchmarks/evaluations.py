"""J and its gradient, and predictions: mlpkit beside NumPy, scikit-learn, PyTorch, JAX and onnxruntime.

    python benchmarks/evaluations.py [--rounds 15] [--jobs WORD ...] [--dtypes float64 float32] [--peers NAME ...]

Every contender does the same job on the same numbers in a process of its own, at default environment variables and at
the settings in `contenders.SETTINGS`. Results are compared before anything is timed. Then all contenders take turns,
one sample of about 0.1 s each a round; the table shows medians over the rounds in milliseconds, each peer at the best
of its settings, and the fastest peer's time over mlpkit's. The fraction of peak counts the operations of the matrix
products only, against the fastest large matrix product that NumPy or PyTorch reaches on this machine in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from contenders import CONTENDERS, SETTINGS
from jobs import JOBS
from machine import default_environment, describe, gemm_peak

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "evaluations.json"
TOLERANCE = {"float64": 1e-9, "float32": 1e-3}


class Worker:
    """A contender's process; `libraries` are used in it before each timing."""

    def __init__(
        self, contender: str, job: str, dtype: str, setting: dict[str, str], libraries: tuple[str, ...] = ()
    ) -> None:
        self.contender, self.setting, self.samples = contender, setting, list[float]()
        command = [sys.executable, str(HERE / "worker.py"), contender, job, dtype, *libraries]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=default_environment() | setting,
        )
        answer = self._read()
        self.absent = answer.get("absent")
        if self.absent is None:
            with np.load(answer["ready"]) as file:
                self.result = dict(file)
            Path(answer["ready"]).unlink()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            return {"absent": f"failed: {''.join(self.errors.read().strip().splitlines()[-1:])}"}
        return json.loads(line)

    def sample(self) -> None:
        """Take one timing, after a pause in which the threads of the last contender go to sleep."""
        assert self.process.stdin is not None
        time.sleep(0.05)
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.samples.append(self._read()["seconds"])

    @property
    def median(self) -> float:
        """Seconds a call."""
        return statistics.median(self.samples)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()
        self.errors.close()


def disagreement(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Return the largest normwise difference between two results."""
    return max(
        float(np.linalg.norm(a[k] - b[k]) / (np.linalg.norm(a[k]) + np.linalg.norm(b[k]))) for k in ("value", "vector")
        if k in a
    )  # fmt: skip


def measure(job: str, dtype: str, peers: list[str], rounds: int) -> dict[str, Any]:
    """Time one job; return medians in seconds by contender and setting, and what was left out."""
    workers, absent = [], {}
    for contender in ["mlpkit", *peers]:
        for setting in SETTINGS[contender]:
            worker = Worker(contender, job, dtype, setting)
            if worker.absent is not None:
                absent[contender] = worker.absent
                worker.close()
                break
            workers.append(worker)
    for worker in workers[1:]:
        error = disagreement(workers[0].result, worker.result)
        if not error < TOLERANCE[dtype]:
            raise SystemExit(f"{worker.contender} disagrees with mlpkit on {job} in {dtype}: {error:.2g}")
    for _ in range(rounds):
        for worker in workers:
            worker.sample()
    for worker in workers:
        worker.close()
    rows = [
        {
            "contender": worker.contender,
            "setting": worker.setting,
            "seconds": worker.median,
            "samples": worker.samples,
        }
        for worker in workers
    ]
    return {"job": job, "dtype": dtype, "rows": rows, "absent": absent}


def summarise(result: dict[str, Any], peak: float) -> dict[str, Any]:
    """Add each peer's best setting, the ratio to the fastest and the fraction of peak."""
    ours = result["rows"][0]["seconds"]
    best: dict[str, Any] = {}
    for row in result["rows"][1:]:
        if row["contender"] not in best or row["seconds"] < best[row["contender"]]["seconds"]:
            best[row["contender"]] = row
    fastest = min(best.values(), key=lambda row: row["seconds"], default=None)
    job = JOBS[result["job"]]
    return result | {
        "mlpkit_seconds": ours,
        "best": {name: {"seconds": row["seconds"], "setting": row["setting"]} for name, row in best.items()},
        "fastest_peer": fastest and fastest["contender"],
        "ratio": fastest and fastest["seconds"] / ours,
        "fraction_of_peak": job.flops / ours / peak,
    }


def table(results: list[dict[str, Any]], peers: list[str]) -> str:
    """Lay the medians out as Markdown, in milliseconds."""
    lines = [
        f"| job | dtype | mlpkit | {' | '.join(peers)} | fastest peer / mlpkit | of GEMM peak |",
        "|" + "---|" * (len(peers) + 5),
    ]
    for r in results:
        cells = [f"{1e3 * r['best'][p]['seconds']:.3g}" if p in r["best"] else "" for p in peers]
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        lines.append(
            f"| {r['job']} | {r['dtype']} | {1e3 * r['mlpkit_seconds']:.3g} | {' | '.join(cells)} | {ratio} "
            f"| {100 * r['fraction_of_peak']:.0f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the comparison, print it and write it as JSON."""
    parser = argparse.ArgumentParser(description="mlpkit beside its peers, one evaluation or prediction at a time")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--jobs", nargs="*", default=[""], metavar="WORD", help="only jobs whose name has such a word")
    parser.add_argument("--dtypes", nargs="*", default=["float64", "float32"])
    parser.add_argument("--peers", nargs="*", default=[name for name in CONTENDERS if name != "mlpkit"])
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    machine = describe()
    print(f"{machine['cpu']}, {machine['cores']} cores", flush=True)
    results = []
    for dtype in arguments.dtypes:
        peak = gemm_peak(dtype)
        machine[f"gemm_peak_{dtype}"] = peak
        print(f"{dtype}: fastest large matrix product {peak / 1e9:.0f} GFLOP/s", flush=True)
        for job in JOBS:
            if any(word in job for word in arguments.jobs):
                result = summarise(measure(job, dtype, arguments.peers, arguments.rounds), peak)
                results.append(result)
                print(table([result], arguments.peers).splitlines()[-1], flush=True)
    print()
    print(table(results, arguments.peers))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()
