"""The objective over the workers of a Dask cluster, exactly (extra ``mlpkit[dask]``).

KL sparsity is no sum over examples, so an evaluation takes two rounds where a layer is sparse: theta goes to every
worker, sums of activations come back; the slopes of the penalties go out, sums of losses and gradients come back. There
is one call for each worker and round (`distributed.Client.run`: tasks of Dask's scheduler would wait for one another's
messages, up to 10 ms a round). Each worker holds its partitions packed and runs mlpkit's kernels on them in its own
process (`mlpkit.held_partitions`). It adds up whole subtrees of the fixed tree of `mlpkit.partitions` before it
answers, so what travels is a gradient or a few for each worker, and 1, 2 or 40 workers give the same bits.

When a worker is lost its partitions are loaded by others and the evaluation is done again from the start: there is
never a sum over a part of the data. The scheduler is asked whether workers are lost for as long as there is something
to wait for; Dask itself would try the address of a dead one for 30 seconds. Every wait has an end, and an error that
says what was waited for.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.budget import check_memory_limit
from mlpkit.checks import check_integer, check_number
from mlpkit.errors import DataFileError, InvalidArgumentError, MlpkitError, import_extra
from mlpkit.held_partitions import Round, load, release, work
from mlpkit.mlp import MLP, check_network
from mlpkit.partitions import Content, PartitionedObjective, Share

__all__ = ["DaskObjective"]

_POLL_SECONDS = 0.25
_SCHEDULER_SECONDS = 120.0  # for an answer of the scheduler's
_WORKER_SECONDS = 120.0  # for a worker where none is left
_MOST_LOSSES = 100  # in one evaluation
_DIMENSIONS = {1: "one dimension", 2: "one or two dimensions"}


class _LostError(Exception):
    """A worker has gone, or does not have what it was given."""


class _CancelledError(Exception):
    """Nobody waits for the evaluation any more."""


class DaskObjective(PartitionedObjective):
    """A network and a data set on the workers of a Dask cluster as a function of theta.

    It has the methods of `Objective` that optimisers and the training loop need, with the same meaning; penalties are
    added here, on the client.

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
    sample_weight : dask.array.Array, shape (m,), or sequence of paths, optional
        w_i >= 0, not all 0; of a single partition they may be.
    mask : dask.array.Array of bool, shape (m, s_{n_l}), or sequence of paths, optional
        True where a target counts, as `Objective` takes it.
    threads_per_worker : int, default 1
        Threads that mlpkit computes with in each worker's process.
    memory_limit : int or str, optional
        Of each partition, as `Objective` takes it: files that do not fit are read on every pass.
    timeout : float, default 3600
        Seconds that workers may take to load their partitions, or for one of the rounds of an evaluation. For workers
        that are lost nobody waits so long: the scheduler is asked again and again.

    Raises
    ------
    InvalidArgumentError
        For data that `Objective` refuses, and where X and Y have different numbers of partitions.
    MissingExtraError
        If Dask is not installed.
    DataFileError
        Then or at any evaluation, for a file that cannot be read, has changed or is gone.
    MlpkitError
        Then or at any evaluation, where workers take longer than `timeout`, none comes within two minutes, or the
        scheduler does not answer.

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
        sample_weight: Any = None,
        mask: Any = None,
        threads_per_worker: int = 1,
        memory_limit: int | str | None = None,
        timeout: float = 3600.0,
    ) -> None:
        distributed = import_extra("distributed", extra="dask")
        check_network(net)
        if not isinstance(client, distributed.Client):
            raise InvalidArgumentError(f"client must be a distributed.Client; found {type(client).__name__}")
        self._client, self._distributed = client, distributed
        self._key = f"mlpkit-{uuid.uuid4().hex}"
        self._threads = check_integer(threads_per_worker, "threads_per_worker", low=1)
        self._memory_limit = check_memory_limit(memory_limit)
        self._timeout = check_number(timeout, "timeout", low=0, low_open=True)
        self._columns = _columns(net, X, Y, sample_weight, mask)
        self._net = net
        self._evaluation = 0
        self._place: dict[str, list[int]] = {}  # worker -> its partitions
        self._contents: list[Content | None] = [None] * len(self._columns["X"])
        self._cancelled = False
        self.losses = 0
        self._load_missing()
        self._define(net, [content for content in self._contents if content is not None])

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
        place, self._place, self._cancelled = self._place, {}, False
        while place and self._client.status == "running":  # a client that is closed has lost its workers
            workers = [worker for worker in place if worker in self._alive()]

            async def run(workers: list[str] = workers) -> Any:
                return await self._client.run(release, self._key, workers=workers, on_error="ignore")

            try:
                self._wait_for(run, workers, "freeing memory", _SCHEDULER_SECONDS)
                return
            except _LostError:
                continue

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
        task = Round(self._key, self._evaluation, self._place, self._shifts, self._threads)
        workers = list(self._place)

        async def run() -> dict[str, Any]:
            return await self._client.run(work, task, sent, slopes, workers=workers, on_error="return")

        answers = self._wait_for(run, workers, "sums over the partitions", self._timeout)
        lost = [worker for worker, nodes in answers.items() if nodes is None or _is_loss(nodes)]
        if lost:
            self._place = {worker: indices for worker, indices in self._place.items() if worker not in lost}
            raise _LostError
        for nodes in answers.values():
            if isinstance(nodes, Exception):
                raise nodes
            for place, share in nodes:
                # What came in a message cannot be written to.
                yield place, tuple(a if a.flags.writeable else a.copy() for a in share)  # type: ignore[misc]

    # Waiting ---------------------------------------------------------------------------------------------------

    def _start(self, run: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Start a coroutine on the client's loop."""
        if self._client.status != "running":
            raise MlpkitError(f"client must be connected to its scheduler; found it {self._client.status}")
        return asyncio.run_coroutine_threadsafe(run(), self._client.loop.asyncio_loop)

    def _alive(self) -> set[str]:
        """Ask the scheduler which workers there are."""

        async def ask() -> Any:
            return await self._client.nthreads()

        coming = self._start(ask)
        try:
            return set(coming.result(_SCHEDULER_SECONDS))
        except TimeoutError:
            raise MlpkitError(
                f"the scheduler of {self._client!r} has not said within {_SCHEDULER_SECONDS:g} s which workers it has"
            ) from None
        except (OSError, CancelledError) as error:
            raise MlpkitError(f"the scheduler of {self._client!r} cannot be reached: {error}") from error
        finally:
            coming.cancel()

    def _wait_for(
        self, run: Callable[[], Coroutine[Any, Any, Any]], workers: Iterable[str], what: str, seconds: float
    ) -> Any:
        """Return what a coroutine on the client's loop does, and see whether the workers are still there meanwhile."""
        coming, end = self._start(run), time.monotonic() + seconds
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
                    if time.monotonic() > end:
                        raise MlpkitError(
                            f"{what} took longer than {seconds:g} s, the timeout, on workers that are still there: "
                            f"{', '.join(workers)}"
                        ) from None
        except (self._distributed.KilledWorker, CancelledError):
            raise _LostError from None
        except OSError:
            self._alive()  # says so if the scheduler is gone
            raise
        finally:
            coming.cancel()

    def _wait_for_workers(self) -> list[str]:
        """Return the workers that there are, at least one."""
        end = time.monotonic() + _WORKER_SECONDS
        while not (alive := self._alive()):
            if self._cancelled:
                raise _CancelledError
            if time.monotonic() > end:
                raise MlpkitError(
                    f"{self._client!r} has no worker to load partitions; none came in {_WORKER_SECONDS:g} s"
                )
            time.sleep(_POLL_SECONDS)
        return sorted(alive)

    # Loading ---------------------------------------------------------------------------------------------------

    def _load_missing(self) -> None:
        """Have the partitions that no worker holds loaded, each by the one that has the least to do."""
        for _ in range(_MOST_LOSSES):
            alive = self._wait_for_workers()
            self._place = {worker: indices for worker, indices in self._place.items() if worker in alive}
            placed = {index for indices in self._place.values() for index in indices}
            missing = [index for index in range(len(self._contents)) if index not in placed]
            if not missing or self._try_to_load(self._share_out(missing, alive)):
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
            blocks = [column[index] for column in self._columns.values() for index in indices]
            lazy = iter(
                self._client.compute(
                    [block for block in blocks if not isinstance(block, str)],
                    workers=[worker],
                    allow_other_workers=True,
                )
            )
            blocks = [block if isinstance(block, str) else next(lazy) for block in blocks]
            what = (self._key, self._net, indices, list(self._columns), self._threads, self._memory_limit)
            futures[worker] = self._client.submit(load, *what, *blocks, workers=[worker], pure=False)

        async def gather() -> list[list[Content]]:
            return [await future for future in futures.values()]

        try:
            found = self._wait_for(gather, futures, "loading partitions", self._timeout)
        except _LostError:
            return False
        finally:
            self._client.cancel(list(futures.values()))
        for (worker, indices), contents in zip(shares.items(), found, strict=True):
            for index, content in zip(indices, contents, strict=True):
                if self._contents[index] not in (None, content):
                    raise DataFileError(
                        f"partition {index} is not what it was when the objective was made: its data have changed"
                    )
                self._contents[index] = content
            self._place[worker] = sorted([*self._place.get(worker, []), *indices])
        return True


def _is_loss(answer: Any) -> bool:
    """Say whether an answer is that nobody can be reached; files that cannot be read are `OSError` too."""
    return isinstance(answer, OSError) and not isinstance(answer, MlpkitError)


def _columns(net: MLP, X: Any, Y: Any, sample_weight: Any, mask: Any) -> dict[str, list[Any]]:
    """Return the partitions of each argument that there is; of Y, if it is not X."""
    columns = {"X": _blocks(X, "X", X)}
    if getattr(X, "ndim", 0) == 2 and X.shape[1] != net.sizes[0]:
        raise InvalidArgumentError(f"X must have {net.sizes[0]} columns; found shape {X.shape}")
    if Y is not X:
        columns["Y"] = _blocks(Y, "Y", X)
    if sample_weight is not None:
        columns["sample_weight"] = _blocks(sample_weight, "sample_weight", X)
    if mask is not None:
        columns["mask"] = _blocks(mask, "mask", X)
    n = len(columns["X"])
    for name, blocks in columns.items():
        if len(blocks) != n:
            raise InvalidArgumentError(f"{name} must have as many partitions as X, {n}; found {len(blocks)}")
    return columns


def _blocks(values: Any, name: str, X: Any) -> list[Any]:
    """Return the partitions of a data set: paths, or blocks of rows as Dask computes them, cut as X is."""
    most = 1 if name == "sample_weight" else 2
    if isinstance(values, Sequence) and not isinstance(values, str | bytes) and values:
        if all(isinstance(path, str | os.PathLike) for path in values):
            return [os.path.abspath(os.fspath(path)) for path in values]
    elif hasattr(values, "to_delayed") and hasattr(values, "rechunk"):
        if 1 <= values.ndim <= most:
            if hasattr(X, "chunks") and X.shape[0] == values.shape[0]:
                values = values.rechunk({0: X.chunks[0]})
            return list((values.rechunk({1: -1}) if values.ndim == 2 else values).to_delayed().reshape(-1))
        raise InvalidArgumentError(f"{name} must have {_DIMENSIONS[most]}; found shape {values.shape}")
    raise InvalidArgumentError(
        f"{name} must be a Dask array of {_DIMENSIONS[most]}, or a list of paths of files; "
        f"found {type(values).__name__}"
    )
