"""What timings depend on: processor, versions, and the fastest matrix product that this machine reaches."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["THREAD_VARIABLES", "default_environment", "describe", "gemm_peak", "use"]

THREAD_VARIABLES = ("OMP_", "OPENBLAS_", "MKL_", "BLIS_", "GOTO_", "NUMBA_", "KMP_", "VECLIB_")
_PACKAGES = (
    "mlpkit", "numba", "llvmlite", "numpy", "scipy", "scikit-learn", "torch", "jax", "jaxlib", "onnxruntime"
)  # fmt: skip
_GEMM = """
import sys, time, statistics
library, dtype, n = sys.argv[1], sys.argv[2], 2048
if library == "numpy":
    import numpy as np
    a, b, c = (np.random.default_rng(0).random((n, n)).astype(dtype) for _ in range(3))
    product = lambda: np.matmul(a, b, out=c)
else:
    import torch
    a, b, c = (torch.rand(n, n, dtype=getattr(torch, dtype)) for _ in range(3))
    product = lambda: torch.mm(a, b, out=c)
product()
times = []
for _ in range(9):
    start = time.perf_counter()
    product()
    times.append(time.perf_counter() - start)
print(2 * n**3 / statistics.median(times))
"""


def default_environment() -> dict[str, str]:
    """Return this environment without any variable that sets a number of threads: what a user has who sets nothing."""
    return {k: v for k, v in os.environ.items() if not k.startswith(THREAD_VARIABLES)}


def use(library: str) -> None:
    """Multiply large matrices with ``"numpy"`` or ``"torch"`` in this process, so that its threads exist and spin."""
    module = importlib.import_module(library)
    matrix = module.ones((1024, 1024), dtype=module.float64)
    matrix @ matrix


def gemm_peak(dtype: str) -> float:
    """Return the operations a second of a 2048 x 2048 matrix product, the fastest of NumPy's and PyTorch's."""
    found = []
    for library in ("numpy", "torch"):
        runs = []
        for _ in range(3):
            done = subprocess.run(
                [sys.executable, "-c", _GEMM, library, dtype], env=default_environment(), capture_output=True, text=True
            )
            if done.returncode == 0:  # PyTorch may not be installed
                runs.append(float(done.stdout))
        if runs:
            found.append(statistics.median(runs))
    return max(found)


def describe() -> dict[str, Any]:
    """Return processor, system and versions."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }
