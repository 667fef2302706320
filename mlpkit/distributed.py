"""The objective over the workers of a Dask cluster, exactly (extra ``mlpkit[dask]``).

KL sparsity is no sum over examples, so an evaluation takes two rounds where a layer is sparse: theta goes to every
worker, sums of activations come back; the slopes of the penalties go out, sums of losses and gradients come back. There
is one call for each worker and round (`distributed.Client.run`: tasks of Dask's scheduler would wait for one another's
messages, up to 10 ms a round). Each worker holds its partitions packed and runs mlpkit's kernels on them in its
own process. It adds up whole subtrees of the fixed tree of `mlpkit.partitions` before it answers, so what travels is a
gradient or a few for each worker, and 1, 2 or 40 workers give the same bits.

When a worker is lost its partitions are loaded by others and the evaluation is done again from the start: there is
never a sum over a part of the data.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.checks import check_integer
from mlpkit.errors import InvalidArgumentError, MlpkitError, import_extra
from mlpkit.kernels.jit import set_num_threads
from mlpkit.mlp import MLP, check_network
from mlpkit.partitions import Partition, PartitionedObjective, Share, TreeSum

__all__ = ["DaskObjective"]

_POLL_SECONDS = 0.25
_WORKERS_WAITED_FOR = 60.0  # seconds, when none is left
_MOST_LOSSES = 100  # in one evaluation

# In a worker's process -----------------------------------------------------------------------------------------

_held: dict[str, dict[int, Partition]] = {}
_thetas: dict[str, tuple[int, NDArray[Any]]] = {}
_thread = ThreadPoolExecutor(1, "mlpkit-partitions")  # one after the other, in the order in which they were asked for


def _load(
    key: str, net: MLP, indices: list[int], same: bool, options: dict[str, Any], *blocks: Any
) -> list[tuple[int, str]]:
    """Pack partitions in this worker; return how many examples each has, and their fingerprints."""
    set_num_threads(options["threads"])
    held = _held.setdefault(key, {})
    xs = blocks if same else blocks[: len(indices)]
    ys = blocks if same else blocks[len(indices) :]
    for index, X, Y in zip(indices, xs, ys, strict=True):
        held[index] = Partition(net, X, Y, options["memory_limit"])
    return [(held[index].n_examples, held[index].fingerprint) for index in indices]


async def _work(
    key: str,
    evaluation: int,
    n: int,
    place: dict[str, list[int]],
    threads: int,
    theta: NDArray[Any] | None,
    slopes: NDArray[Any] | None,
    dask_worker: Any = None,
) -> list[tuple[tuple[int, int], Share]] | None:
    """Return this worker's part of the tree; off the event loop, whose heartbeats must go on."""
    indices = place[dask_worker.address]
    return await asyncio.wrap_future(_thread.submit(_add_up, key, evaluation, n, indices, threads, theta, slopes))


def _add_up(
    key: str,
    evaluation: int,
    n: int,
    indices: list[int],
    threads: int,
    theta: NDArray[Any] | None,
    slopes: NDArray[Any] | None,
) -> list[tuple[tuple[int, int], Share]] | None:
    """Add up shares of activations or, given slopes, of gradients; None if this process lacks what it needs."""
    set_num_threads(threads)
    if theta is not None:
        _thetas[key] = evaluation, theta
    known, point = _thetas.get(key, (-1, None))
    held = _held.get(key, {})
    if known != evaluation or point is None or not held.keys() >= set(indices):
        return None
    tree = TreeSum(n)
    for index in indices:
        part = held[index]
        tree.add(0, index, part.sums(point) if slopes is None else part.gradient(point, slopes))
    return list(tree.nodes.items())


def _release(key: str) -> None:
    _held.pop(key, None)
    _thetas.pop(key, None)


# In the client's -----------------------------------------------------------------------------------------------


class _LostError(Exception):
    """A worker has gone, or does not have what it was given."""


class _CancelledError(Exception):
    """Nobody waits for the evaluation any more."""


class DaskObjective(PartitionedObjective):
    """A network and a data set on the workers of a Dask cluster as a function of theta.

    It has the methods of `Objective` that optimisers and the training loop need, with the same meaning; penalties are
    added here, on the client. Every example has weight 1.

    Parameters
    ----------
    net : MLP
        Read now, and never changed.
    X : dask.array.Array, shape (m, s_1), or sequence of paths
        The inputs. Partitions are the blocks of rows of a Dask array, or the files, which every worker must reach
        under the same names; see `mlpkit.row_files`. They are part of the definition of the result, to the bit.
    Y : dask.array.Array or sequence of paths
        The targets, as `Objective` takes them; cut as X is. X itself makes an autoencoder.
    client : distributed.Client
    threads_per_worker : int, default 1
        Threads that mlpkit computes with in each worker's process.
    memory_limit : int or str, optional
        Of each partition, as `Objective` takes it: files that do not fit are read on every pass.

    Raises
    ------
    InvalidArgumentError
        For data that `Objective` refuses, and where X and Y have different numbers of partitions.
    MissingExtraError
        If Dask is not installed.

    Examples
    --------
    >>> import dask.array, distributed
    >>> from mlpkit import Dense, Input
    >>> net = MLP([Input(1), Dense(1, "identity", init=0.0)])
    >>> X = dask.array.ones((4, 1), chunks=2)
    >>> cluster = distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=":0")
    >>> with cluster, distributed.Client(cluster) as client, DaskObjective(net, X, 2 * X[:, 0], client) as objective:
    ...     objective.value_and_gradient(net.theta)
    (2.0, array([-2., -2.]))
    """

    def __init__(
        self,
        net: MLP,
        X: Any,
        Y: Any,
        client: Any,
        *,
        threads_per_worker: int = 1,
        memory_limit: int | str | None = None,
    ) -> None:
        distributed = import_extra("distributed", extra="dask")
        check_network(net)
        if not isinstance(client, distributed.Client):
            raise InvalidArgumentError(f"client must be a distributed.Client; found {type(client).__name__}")
        self._client, self._distributed = client, distributed
        self._key = f"mlpkit-{uuid.uuid4().hex}"
        self._options = {
            "threads": check_integer(threads_per_worker, "threads_per_worker", low=1),
            "memory_limit": memory_limit,
        }
        self._same = Y is X
        self._xs = _blocks(X, "X", net.sizes[0])
        self._ys = self._xs if self._same else _blocks(Y, "Y", None, like=X)
        if len(self._xs) != len(self._ys):
            raise InvalidArgumentError(f"Y must have as many partitions as X, {len(self._xs)}; found {len(self._ys)}")
        self._net = net
        self._evaluation = 0
        self._place: dict[str, list[int]] = {}  # worker -> its partitions
        self._counts = [(0, "")] * len(self._xs)
        self._cancelled = False
        self.losses = 0
        self._load_missing()
        self._define(net, self._counts)

    def __enter__(self) -> DaskObjective:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        raise MlpkitError("an objective on a cluster cannot be pickled: make a new one from the same data")

    def __repr__(self) -> str:
        return (
            f"<DaskObjective of {self.net!r} on {self.n_examples} examples, {self._n_partitions} partitions on "
            f"{len(self._place)} workers>"
        )

    def close(self) -> None:
        """Free the memory that the workers hold for this objective."""
        alive = self._alive()
        self._client.run(_release, self._key, workers=[worker for worker in self._place if worker in alive])
        self._place = {}

    @property
    def partitions(self) -> dict[str, list[int]]:
        """Which partitions each worker holds."""
        return {worker: list(indices) for worker, indices in self._place.items()}

    def cancel(self) -> None:
        """Stop waiting for the evaluation under way on another thread; no result is of use from here on."""
        self._cancelled = True

    def rho_hat(self, theta: ArrayLike) -> list[NDArray[np.float64]]:
        """Return the mean activation of each unit; as `Objective.rho_hat`."""
        return self._repeat(super().rho_hat, theta)

    def _evaluate(self, theta: NDArray[Any], gradient: NDArray[Any]) -> dict[str, float]:
        try:
            return self._repeat(super()._evaluate, theta, gradient)
        except _CancelledError:
            gradient[:] = np.nan
            return dict.fromkeys(("data", "weight_decay", "sparsity"), np.nan)

    def _repeat(self, evaluate: Any, *arguments: Any) -> Any:
        """Evaluate, from the start again whenever a worker was lost on the way."""
        for _ in range(_MOST_LOSSES):
            self._evaluation += 1
            self._sent = False
            try:
                return evaluate(*arguments)
            except _LostError:
                self.losses += 1
                self._load_missing()
        raise MlpkitError(f"workers were lost {_MOST_LOSSES} times during one evaluation")

    def _shares(self, theta: NDArray[Any], slopes: NDArray[Any] | None) -> Iterable[tuple[tuple[int, int], Share]]:
        sent, self._sent = (None if self._sent else theta), True
        arguments = (self._key, self._evaluation, self._n_partitions, self._place, self._options["threads"])
        workers = list(self._place)

        async def run() -> dict[str, Any]:
            return await self._client.run(_work, *arguments, sent, slopes, workers=workers, on_error="return")

        answers = self._wait_for(run, workers)
        lost = [worker for worker, nodes in answers.items() if nodes is None or isinstance(nodes, OSError)]
        if lost:
            self._place = {worker: indices for worker, indices in self._place.items() if worker not in lost}
            raise _LostError
        for nodes in answers.values():
            if isinstance(nodes, Exception):
                raise nodes
            for place, share in nodes:
                # What came in a message cannot be written to.
                yield place, tuple(a if a.flags.writeable else a.copy() for a in share)  # type: ignore[misc]

    def _alive(self) -> set[str]:
        return set(self._client.nthreads())

    def _wait_for(self, run: Callable[[], Coroutine[Any, Any, Any]], workers: Iterable[str]) -> Any:
        """Return what a coroutine on the client's loop does, and see whether the workers are still there meanwhile."""
        coming = asyncio.run_coroutine_threadsafe(run(), self._client.loop.asyncio_loop)
        try:
            while True:
                try:
                    return coming.result(_POLL_SECONDS)
                except TimeoutError:
                    if coming.done():  # its own
                        raise
                    if self._cancelled:
                        raise _CancelledError from None
                    if not self._alive() >= set(workers):
                        raise _LostError from None
        except (self._distributed.KilledWorker, CancelledError):
            raise _LostError from None
        finally:
            coming.cancel()

    def _load_missing(self) -> None:
        """Have the partitions that no worker holds loaded, each by the one that has the least to do."""
        for _ in range(_MOST_LOSSES):
            alive = self._alive()
            if not alive:
                self._client.wait_for_workers(1, timeout=_WORKERS_WAITED_FOR)
                continue
            self._place = {worker: indices for worker, indices in self._place.items() if worker in alive}
            placed = {index for indices in self._place.values() for index in indices}
            missing = [index for index in range(len(self._xs)) if index not in placed]
            if not missing:
                return
            if self._try_to_load(self._share_out(missing, sorted(alive))):
                return
        raise MlpkitError(f"workers were lost {_MOST_LOSSES} times while partitions were loaded")

    def _share_out(self, missing: Sequence[int], workers: Sequence[str]) -> dict[str, list[int]]:
        """Give neighbours in the tree to the same worker, so that it can add them up."""
        held = {worker: len(self._place.get(worker, ())) for worker in workers}
        wanted = dict.fromkeys(workers, 0)
        for _ in missing:
            wanted[min(workers, key=lambda worker: held[worker] + wanted[worker])] += 1
        given, rest = {}, list(missing)
        for worker in workers:
            if wanted[worker]:
                given[worker], rest = rest[: wanted[worker]], rest[wanted[worker] :]
        return given

    def _try_to_load(self, shares: dict[str, list[int]]) -> bool:
        """Load partitions; False if a worker was lost meanwhile."""
        futures = {}
        for worker, indices in shares.items():
            blocks = [self._xs[i] for i in indices] + ([] if self._same else [self._ys[i] for i in indices])
            if not isinstance(blocks[0], str):
                blocks = self._client.compute(blocks, workers=[worker], allow_other_workers=True)
            what = (self._key, self._net, indices, self._same, self._options)
            futures[worker] = self._client.submit(_load, *what, *blocks, workers=[worker], pure=False)

        async def gather() -> list[Any]:
            return await self._client.gather(list(futures.values()), asynchronous=True)

        try:
            counts = self._wait_for(gather, futures)
        except _LostError:
            return False
        finally:
            self._client.cancel(list(futures.values()))
        for (worker, indices), numbers in zip(shares.items(), counts, strict=True):
            self._place[worker] = sorted([*self._place.get(worker, []), *indices])
            for index, found in zip(indices, numbers, strict=True):
                self._counts[index] = found
        return True


def _blocks(values: Any, name: str, n_columns: int | None, like: Any = None) -> list[Any]:
    """Return the partitions of a data set: paths, or blocks of rows as Dask computes them."""
    if isinstance(values, Sequence) and not isinstance(values, str | bytes) and values:
        if all(isinstance(path, str | os.PathLike) for path in values):
            return [os.path.abspath(os.fspath(path)) for path in values]
    elif hasattr(values, "to_delayed") and hasattr(values, "rechunk") and getattr(values, "ndim", 0) in (1, 2):
        if like is not None and hasattr(like, "chunks") and like.shape[0] == values.shape[0]:
            values = values.rechunk({0: like.chunks[0]})
        if values.ndim == 2:
            values = values.rechunk({1: -1})
            if n_columns is not None and values.shape[1] != n_columns:
                raise InvalidArgumentError(f"{name} must have {n_columns} columns; found shape {values.shape}")
        return list(values.to_delayed().reshape(-1))
    raise InvalidArgumentError(
        f"{name} must be a Dask array of one or two dimensions, or a list of paths of files; found "
        f"{type(values).__name__}"
    )
