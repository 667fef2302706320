"""What mlpkit runs on: versions, threads, vector width, caches."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from numba import threading_layer

from mlpkit.kernels import simd
from mlpkit.kernels.emitter import BITS
from mlpkit.kernels.jit import MOST_THREADS, cache_folder, get_num_threads

__all__ = ["package_version", "show_config", "versions"]


def package_version(name: str) -> str:
    """Return an installed package's version, or ``"not installed"``.

    Examples
    --------
    >>> package_version("no-such-package")
    'not installed'
    """
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


@cache  # a checkpoint may be written after every epoch, and reading packages' metadata takes milliseconds
def versions() -> str:
    """Return the versions that matter for what is computed and written, in one line.

    Examples
    --------
    >>> versions().startswith("Python 3.")
    True
    """
    packages = ("mlpkit", "numpy", "scipy", "numba", "h5py")
    return ", ".join((f"Python {platform.python_version()}", *(f"{name} {package_version(name)}" for name in packages)))


def show_config() -> None:
    """Print versions, threads, vector width and where compiled kernels are kept.

    Examples
    --------
    >>> show_config()  # doctest: +ELLIPSIS
    mlpkit ...
    """
    layer: str
    try:
        layer = threading_layer()
    except ValueError:
        layer = "chosen at the first launch"
    core = ("numba", "llvmlite", "numpy", "scipy", "h5py", "threadpoolctl")
    rows = [
        ("mlpkit", package_version("mlpkit")),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *((name, package_version(name)) for name in core),
        ("threads", f"{get_num_threads()} of {MOST_THREADS}"),
        ("threading layer", layer),
        (
            "vectors",
            f"{BITS} bits, {simd.lanes('float64')} float64 or {simd.lanes('float32')} float32 examples a panel",
        ),
        ("kernel cache", cache_folder() or "none: no folder can be written"),
    ]
    for name, value in rows:
        print(f"{name:16}{value}")
