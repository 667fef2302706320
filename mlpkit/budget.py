"""How much memory there is, and how much may be used: ``memory_limit`` as users write it."""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any

from mlpkit.checks import check_integer, shown
from mlpkit.errors import InvalidArgumentError

__all__ = ["available_memory", "check_memory_limit", "shown_bytes"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def check_memory_limit(limit: Any) -> int | None:
    """Return a limit in bytes, given as an integer or as text such as "2GB", "512 MiB"; None stays None.

    Examples
    --------
    >>> check_memory_limit("2GB"), check_memory_limit("1.5 KiB"), check_memory_limit(4096)
    (2000000000, 1536, 4096)
    """
    if limit is None:
        return None
    if not isinstance(limit, str):
        return check_integer(limit, "memory_limit", low=1)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", limit, re.IGNORECASE)
    n_bytes = int(float(match[1]) * _UNITS[match[2].lower()]) if match and match[2].lower() in _UNITS else 0
    if n_bytes < 1:
        raise InvalidArgumentError(
            f"memory_limit must be a number of bytes, or text such as '2GB' or '512MiB'; found {shown(limit)}"
        )
    return n_bytes


def shown_bytes(n: float) -> str:
    """Return a number of bytes as people write it.

    Examples
    --------
    >>> shown_bytes(1234567), shown_bytes(12)
    ('1.23 MB', '12 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n < 999.5:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def available_memory() -> int:
    """Return the bytes that this process can still allocate: what the machine, its container and its limits leave.

    Examples
    --------
    >>> available_memory() > 0
    True
    """
    return max(1, min(found for found in (_of_machine(), _of_container(), _of_process()) if found is not None))


def _of_machine() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 << 30


def _of_container() -> int | None:
    """Return what the innermost control group leaves, where it has a limit."""
    for most, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        # "max" is no number, and stands for no limit.
        with contextlib.suppress(OSError, ValueError), open(most) as limit, open(used) as current:
            return max(0, int(limit.read()) - int(current.read()))
    return None


def _of_process() -> int | None:
    """Return what RLIMIT_AS leaves of the address space, where it is set."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm", encoding="ascii") as file:
        return max(0, limit - int(file.read().split()[0]) * resource.getpagesize())
    return limit
