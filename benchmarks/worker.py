"""One contender in a process of its own: prepare a job, then time it whenever asked.

    python worker.py CONTENDER JOB DTYPE

Speaks JSON lines: first ``{"ready": path of an .npz with the result, "calls": n, "threads": ...}`` (or ``{"absent":
reason}``), then for each line on standard input ``{"seconds": seconds a call}``, a mean over `calls` calls.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from typing import Any

import numpy as np
from contenders import CONTENDERS
from jobs import JOBS

SAMPLE_SECONDS = 0.1


def say(**message: Any) -> None:
    """Write one JSON line to the parent."""
    print(json.dumps(message), file=CHANNEL, flush=True)


def main() -> None:
    """Serve the parent until it closes the pipe."""
    contender, job, dtype = sys.argv[1:]
    try:
        task = CONTENDERS[contender](replace(JOBS[job], dtype=dtype))
    except ImportError as error:
        return say(absent=f"not installed: {error.name}")
    if task is None:
        return say(absent="has no such job")
    result = task()
    for _ in range(2):
        task()
    calls = 1
    while True:
        start = time.perf_counter()
        for _ in range(calls):
            task()
        taken = time.perf_counter() - start
        if taken >= SAMPLE_SECONDS / 2:
            break
        calls *= 2
    calls = max(1, round(calls * SAMPLE_SECONDS / taken))
    with tempfile.NamedTemporaryFile(suffix=".npz", delete=False) as file:
        parts = {"value": result[0], "vector": result[1]} if isinstance(result, tuple) else {"vector": result}
        np.savez(file, **{name: np.asarray(part, np.float64) for name, part in parts.items()})
    say(ready=file.name, calls=calls)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(calls):
            task()
        say(seconds=(time.perf_counter() - start) / calls)


if __name__ == "__main__":
    CHANNEL, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    main()
