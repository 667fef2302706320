"""One contender in a process of its own: prepare a job, then time it whenever asked.

    python worker.py CONTENDER JOB DTYPE [LIBRARY ...]

Libraries named at the end are used before the job is prepared and again before each timing (see `machine.use`).

Speaks JSON lines: first ``{"ready": path of an .npz with the result, "calls": n}`` (or ``{"absent": reason}``), then
for each line on standard input ``{"seconds": seconds a call}``, a mean over `calls` calls.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from contenders import CONTENDERS
from jobs import JOBS
from machine import use

__all__ = ["calls_that_take", "seconds_a_call"]

SAMPLE_SECONDS = 0.1


def seconds_a_call(task: Callable[[], Any], calls: int) -> float:
    """Return the mean time of some calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        task()
    return (time.perf_counter() - start) / calls


def calls_that_take(seconds: float, task: Callable[[], Any]) -> int:
    """Return how many calls take about so long, after two calls to warm up."""
    for _ in range(2):
        task()
    calls = 1
    while (taken := calls * seconds_a_call(task, calls)) < seconds / 2:
        calls *= 2
    return max(1, round(calls * seconds / taken))


def say(**message: Any) -> None:
    """Write one JSON line to the parent."""
    print(json.dumps(message), file=CHANNEL, flush=True)


def main() -> None:
    """Serve the parent until it closes the pipe."""
    contender, job, dtype, *libraries = sys.argv[1:]
    try:
        for library in libraries:
            use(library)
        task = CONTENDERS[contender](replace(JOBS[job], dtype=dtype))
    except ImportError as error:
        return say(absent=f"not installed: {error.name}")
    if task is None:
        return say(absent="has no such job")
    result = task()
    calls = calls_that_take(SAMPLE_SECONDS, task)
    with tempfile.NamedTemporaryFile(suffix=".npz", delete=False) as file:
        parts = {"value": result[0], "vector": result[1]} if isinstance(result, tuple) else {"vector": result}
        np.savez(file, **{name: np.asarray(part, np.float64) for name, part in parts.items()})
    say(ready=file.name, calls=calls)
    for _ in sys.stdin:
        for library in libraries:
            use(library)
        say(seconds=seconds_a_call(task, calls))


if __name__ == "__main__":
    CHANNEL, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    main()
