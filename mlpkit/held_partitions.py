"""The partitions that a worker of a cluster holds, and what it computes from them: half of `mlpkit.distributed`.

Everything here runs in a worker's process. What an objective holds there goes by a key of its own, so that several can
share a cluster; a process that has started anew holds nothing, and says so.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from mlpkit.kernels.jit import set_num_threads
from mlpkit.mlp import MLP
from mlpkit.partitions import Content, Partition, Share, TreeSum, part_of

__all__ = ["Round", "load", "release", "work"]

_held: dict[str, dict[int, Partition]] = {}
_thetas: dict[str, tuple[int, NDArray[Any]]] = {}
_thread = ThreadPoolExecutor(1, "mlpkit-partitions")  # one after the other, in the order in which they were asked for

Nodes = list[tuple[tuple[int, int], Share]]


@dataclass(frozen=True)
class Round:
    """What every worker must know for its part of a sum.

    Parameters
    ----------
    key : str
        The objective's.
    evaluation : int
        Its number, by which a theta that came late is known.
    place : dict
        Address of a worker -> its partitions.
    shifts : list of int
        Of all partitions: by which power of two their shares are scaled.
    threads : int
    """

    key: str
    evaluation: int
    place: dict[str, list[int]]
    shifts: list[int]
    threads: int


def load(
    key: str, net: MLP, indices: list[int], names: list[str], threads: int, memory_limit: int | None, *blocks: Any
) -> list[Content]:
    """Pack partitions in this process, and return what is in them.

    Parameters
    ----------
    key : str
        The objective's.
    net : MLP
    indices : list of int
        Which partitions these are.
    names : list of str
        Arguments of `Partition`; without Y, X is the targets too.
    threads : int
        To compute with.
    memory_limit : int or None
        Of each partition.
    *blocks
        Of each partition the first, of each the second, and so on.
    """
    set_num_threads(threads)
    held = _held.setdefault(key, {})
    n = len(indices)
    for i, index in enumerate(indices):
        part = {name: blocks[k * n + i] for k, name in enumerate(names)}
        part.setdefault("Y", part["X"])
        with part_of(index):
            held[index] = Partition(net, **part, memory_limit=memory_limit)
    return [held[index].content for index in indices]


async def work(
    task: Round, theta: NDArray[Any] | None, slopes: NDArray[Any] | None, dask_worker: Any = None
) -> Nodes | None:
    """Return this worker's part of the tree; off the event loop, whose heartbeats must go on."""
    indices = task.place[dask_worker.address]
    return await asyncio.wrap_future(_thread.submit(_add_up, task, indices, theta, slopes))


def _add_up(task: Round, indices: list[int], theta: NDArray[Any] | None, slopes: NDArray[Any] | None) -> Nodes | None:
    """Add up shares of activations or, given slopes, of gradients; None if this process lacks what it needs."""
    set_num_threads(task.threads)
    if theta is not None:
        _thetas[task.key] = task.evaluation, theta
    known, point = _thetas.get(task.key, (-1, None))
    held = _held.get(task.key, {})
    if known != task.evaluation or point is None or not held.keys() >= set(indices):
        return None
    tree = TreeSum(len(task.shifts))
    for index in indices:
        part, shift = held[index], task.shifts[index]
        tree.add(0, index, part.sums(point, shift) if slopes is None else part.gradient(point, slopes, shift))
    return list(tree.nodes.items())


def release(key: str) -> None:
    """Forget an objective."""
    _held.pop(key, None)
    _thetas.pop(key, None)
