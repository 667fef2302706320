"""The objective over a Dask cluster: the same bits on any number of workers, also when they are killed."""

from __future__ import annotations

import signal
import threading
import time

import dask.array as da
import distributed
import numpy as np
import pytest
from clusters import SECONDS, cluster, time_limit
from test_objective import bits, sparse_case

import mlpkit
from mlpkit import distributed as module
from mlpkit.distributed import DaskObjective
from mlpkit.errors import DataFileError, InvalidArgumentError, MlpkitError
from mlpkit.held_partitions import release
from mlpkit.partitions import PartitionedObjective

M, ROWS = 4000, 450  # nine partitions, the last one smaller: no tree of pairs alone


@pytest.fixture(scope="module")
def case():
    return sparse_case(M)


@pytest.fixture(scope="module")
def expected(case):
    parts = [(case.X[i : i + ROWS], case.Y[i : i + ROWS]) for i in range(0, M, ROWS)]
    return PartitionedObjective(case.net, parts)


def as_dask(case):
    return da.from_array(case.X, chunks=(ROWS, -1)), da.from_array(case.Y, chunks=(1000, 3))


def evaluated(objective, theta):
    J, g = objective.value_and_gradient(theta)
    return J, bits(g, *objective.rho_hat(theta)), objective.terms(theta)


@pytest.fixture(scope="module")
def one_for_all():
    with cluster(1) as found:
        yield found


@pytest.fixture
def processes(one_for_all, request):
    """Return the cluster of processes that tests share; the test has to end in time."""
    if one_for_all.broken:
        pytest.fail("the cluster was given up when an earlier test took too long")
    with time_limit(request.node.name, one_for_all.give_up):
        yield one_for_all


@pytest.fixture
def client(processes):
    """Return the client of two workers."""
    processes.scale(2)
    return processes.client


@pytest.fixture(scope="module")
def inside():
    """Return the client of a worker in this process, for what needs no other."""
    with (
        distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=":0", silence_logs=50) as found,
        distributed.Client(found) as client,
    ):
        yield client


# The same numbers -------------------------------------------------------------------------------


def in_files(folder, **columns):
    """Write arrays to files of 1500 rows; return a list of paths for each."""
    paths = {name: [] for name in columns}
    for name, array in columns.items():
        for i in range(0, len(array), 1500):
            paths[name].append(folder / f"{name}{i}.npy")
            np.save(paths[name][-1], array[i : i + 1500])
    return paths


@pytest.fixture(scope="module")
def weighted(case):
    """Return weights, all zero in partition 2 and small in partition 5, and a mask, all False in partition 4."""
    rng = np.random.default_rng(5)
    weights = rng.uniform(0.0, 3.0, M) * (rng.random(M) < 0.7)
    weights[2 * ROWS : 3 * ROWS] = 0
    weights[5 * ROWS : 6 * ROWS] *= 1e-6
    mask = rng.random((M, 9)) < 0.8
    mask[4 * ROWS : 5 * ROWS] = False
    return weights, mask, np.where(mask, case.Y, np.nan)


def test_any_number_of_workers_gives_the_same_bits(case, expected, weighted, processes, tmp_path):
    net = mlpkit.MLP([mlpkit.Input(20), mlpkit.Dense(5, "softmax")], loss="cross_entropy", seed=0)
    weights, mask, Y = weighted
    files = in_files(tmp_path, X=case.X, Y=np.arange(M) % 5, sample_weight=weights)
    alone = PartitionedObjective(net, list(zip(*files.values(), strict=True)))
    cuts = [slice(i, i + ROWS) for i in range(0, M, ROWS)]
    weighed = PartitionedObjective(case.net, [(case.X[c], Y[c], weights[c], mask[c]) for c in cuts])
    extra = {"sample_weight": da.from_array(weights, chunks=700), "mask": da.from_array(mask, chunks=(M, 4))}
    for n_workers in (1, 2, 4):
        processes.scale(n_workers)
        client = processes.client
        with DaskObjective(case.net, *as_dask(case), client) as objective:
            assert len(objective.partitions) == n_workers
            assert evaluated(objective, case.net.theta) == evaluated(expected, case.net.theta)
        with DaskObjective(case.net, as_dask(case)[0], da.from_array(Y, chunks=(500, 9)), client, **extra) as objective:
            assert evaluated(objective, case.net.theta) == evaluated(weighed, case.net.theta)
            assert objective.n_examples == np.count_nonzero(weights)
            assert objective.fingerprint == weighed.fingerprint
        with DaskObjective(net, client=client, memory_limit="1MB", **files) as objective:
            assert evaluated(objective, net.theta) == evaluated(alone, net.theta)
    one = mlpkit.Objective(case.net, case.X, Y, weights, mask=mask)
    assert weighed.terms(case.net.theta) == pytest.approx(one.terms(case.net.theta), rel=1e-12)


@pytest.mark.parametrize(
    "optimizer",
    [mlpkit.LBFGS(max_iter=6), mlpkit.ConjugateGradient(max_iter=4), mlpkit.GradientDescent(alpha=0.1, max_iter=4)],
)
def test_optimisers_take_the_same_steps(case, expected, client, optimizer):
    def run(objective):
        steps = []
        start = case.net.theta.astype(np.float64)
        final, reason = optimizer.minimize(objective.value_and_gradient, start, lambda *step: steps.append(step[1]))
        return bits(final), reason, steps

    with DaskObjective(case.net, *as_dask(case), client) as objective:
        assert run(objective) == run(expected)


def test_fit_on_a_cluster_is_fit_on_the_partitions_also_resumed(case, client, tmp_path):
    parts = [(case.X[i : i + ROWS], case.Y[i : i + ROWS]) for i in range(0, M, ROWS)]
    found = []
    for where in ("here", "cluster"):
        net = mlpkit.MLP.from_config(case.net.config())
        net.theta = case.net.theta
        optimizer = mlpkit.LBFGS(max_iter=6)
        if where == "here":
            result = net.fit(PartitionedObjective(net, parts), optimizer=optimizer)
        else:
            with DaskObjective(net, *as_dask(case), client) as objective:
                saved = {"checkpoint": tmp_path / "run.h5", "every": 1}
                net.fit(objective, optimizer=mlpkit.LBFGS(max_iter=3), **saved)
                result = net.fit(objective, optimizer=optimizer, resume=True, **saved)
                with pytest.raises(InvalidArgumentError, match="mask must be None where X is an objective"):
                    net.fit(objective, mask=case.Y > 0)
        found.append((bits(net.theta), result.cost, net.provenance["data"]))
    assert found[0] == found[1]
    with pytest.raises(InvalidArgumentError, match="made for this network"):
        net.fit(PartitionedObjective(case.net, parts))
    with pytest.raises(InvalidArgumentError, match="Y must be given"):
        net.fit(case.X)


def test_an_autoencoder_without_penalties_takes_one_round(client):
    net = mlpkit.MLP([mlpkit.Input(20), mlpkit.Dense(20, "sigmoid")], seed=0)
    X = np.random.default_rng(0).uniform(size=(1000, 20))
    D = da.from_array(X, chunks=(300, -1))
    parts = [(X[i : i + 300], X[i : i + 300]) for i in range(0, 1000, 300)]
    with DaskObjective(net, D, D, client) as objective:
        assert "4 partitions on 2 workers" in repr(objective)
        assert evaluated(objective, net.theta) == evaluated(PartitionedObjective(net, parts), net.theta)
        with pytest.raises(MlpkitError, match="cannot be pickled"):
            objective.__getstate__()
        with pytest.raises(InvalidArgumentError, match="theta must have shape"):
            objective.terms(net.theta[1:])


def test_what_is_wrong_with_the_data_is_said_here(case, inside, tmp_path):
    X, Y = as_dask(case)
    bad = case.X.copy()
    bad[1000, 3] = np.nan
    np.save(tmp_path / "X.npy", case.X)
    one = [tmp_path / "X.npy"]
    w = da.ones(M, chunks=ROWS)
    for arguments, extra, message in [
        ((da.from_array(bad, chunks=(ROWS, -1)), Y), {}, r"X must be finite .* row 100 column 3 .*\(in partition 2\)"),
        ((X[:, :7], Y), {}, "X must have 20 columns"),
        (
            (case.X, Y),
            {},
            "X must be a Dask array of one or two dimensions, or a list of paths of files; found ndarray",
        ),
        ((one, Y), {}, "Y must have as many partitions as X, 1; found 4"),
        (([tmp_path / "gone.npy"], one), {}, "X must name a file that can be read"),
        ((X, Y), {"sample_weight": np.ones(M)}, "sample_weight must be a Dask array of one dimension, or a list"),
        ((X, Y), {"sample_weight": w[:, None]}, r"sample_weight must have one dimension; found shape \(4000, 1\)"),
        ((X, Y), {"sample_weight": one}, "sample_weight must have as many partitions as X, 9; found 1"),
        ((X, Y), {"sample_weight": 0 * w}, "sample_weight must not be all zero"),
        ((X, Y), {"sample_weight": -w}, r"sample_weight must not be negative; found -1.0 at row 0 \(in partition 0\)"),
        ((X, Y), {"mask": Y > 9}, "mask must be True somewhere; found no target that counts in any partition"),
        ((X, Y), {"mask": Y}, r"mask must hold True where .* found dtype float64 \(in partition 0\)"),
        ((X, Y), {"mask": case.Y > 0}, "mask must be a Dask array of one or two dimensions"),
        ((X, Y), {"timeout": 0}, "timeout must be a finite number in"),
        ((X, Y), {"memory_limit": "much"}, "memory_limit must be a number of bytes"),
    ]:
        with pytest.raises(InvalidArgumentError, match=message):
            DaskObjective(case.net, *arguments, inside, **extra)
    with pytest.raises(InvalidArgumentError, match=r"client must be a distributed.Client; found NoneType"):
        DaskObjective(case.net, X, Y, None)


def test_files_that_change_are_an_error_also_when_they_are_loaded_again(inside, tmp_path):
    net = mlpkit.MLP([mlpkit.Input(20), mlpkit.Dense(9, "tanh")], seed=0)
    rng = np.random.default_rng(0)
    files = in_files(tmp_path, X=rng.random((3000, 20)), Y=rng.random((3000, 9)))
    with DaskObjective(net, client=inside, **files) as packed:
        J = packed.value_and_gradient(net.theta)[0]
        with DaskObjective(net, client=inside, memory_limit="200kB", **files) as read:
            assert read.value_and_gradient(net.theta)[0] == J
            np.save(files["X"][1], rng.random((1500, 20)))
            with pytest.raises(DataFileError, match=r"X1500\.npy"):
                read.value_and_gradient(net.theta)
            assert read.losses == 0
        assert packed.value_and_gradient(net.theta)[0] == J
        inside.run(release, packed._key)
        with pytest.raises(DataFileError, match="partition 1 is not what it was when the objective was made"):
            packed.value_and_gradient(net.theta)


# Workers that are lost --------------------------------------------------------------------------


class Shot(DaskObjective):
    """An objective that calls `shoot` once, before the second round of an evaluation."""

    shoot = None

    def _shares(self, theta, slopes):
        if slopes is not None and self.shoot is not None:
            shoot, self.shoot = self.shoot, None
            shoot()
        return super()._shares(theta, slopes)


@pytest.mark.parametrize("when", ["between rounds", "while it computes", "with all others"])
def test_a_worker_killed_during_an_evaluation_changes_nothing(case, expected, processes, client, when):
    with Shot(case.net, *as_dask(case), client) as objective:
        first, *others = objective.partitions

        def shoot():
            if when == "while it computes":  # what is stopped does not answer
                assert processes.signal(signal.SIGSTOP, first) == 1
                threading.Timer(0.5, processes.kill, [first]).start()
            else:
                processes.kill(first, *(others if when == "with all others" else []))

        objective.shoot = shoot
        assert evaluated(objective, case.net.theta) == evaluated(expected, case.net.theta)
        assert objective.losses >= 1
        assert first not in objective.partitions
        assert sorted(index for indices in objective.partitions.values() for index in indices) == list(range(9))


def test_a_worker_that_forgot_its_partitions_has_them_loaded_again(case, expected, client):
    with DaskObjective(case.net, *as_dask(case), client) as objective:
        client.run(release, objective._key)
        assert evaluated(objective, case.net.theta) == evaluated(expected, case.net.theta)
        assert objective.losses == 1


@pytest.mark.soak
def test_workers_killed_at_random_moments_change_nothing(case, expected):
    J, g = expected.value_and_gradient(case.net.theta)
    random, steps, kills, done = np.random.default_rng(0), [], [], threading.Event()
    with (
        cluster(2) as processes,
        time_limit("an evaluation under fire", processes.give_up, 600),
        DaskObjective(case.net, *as_dask(case), processes.client) as objective,
    ):

        def shoot():
            while len(kills) < 20 and not done.wait(random.uniform(0.0, 0.8)):
                running = list(processes.processes())
                if running and processes.kill(running[random.integers(len(running))]):
                    kills.append(time.perf_counter())
            done.set()

        gunner = threading.Thread(target=shoot)
        gunner.start()
        try:
            while not done.is_set():
                steps.append(objective.value_and_gradient(case.net.theta))
        finally:
            done.set()
            gunner.join()
        steps.append(objective.value_and_gradient(case.net.theta))
        assert objective.losses > 0
    assert len(kills) == 20
    assert len(steps) > 1
    assert all((value, bits(gradient)) == (J, bits(g)) for value, gradient in steps)


# Waits have an end ------------------------------------------------------------------------------


def test_a_test_that_waits_too_long_fails_and_says_where():
    gave_up = []
    with (
        pytest.raises(
            pytest.fail.Exception, match=r"(?s)this took longer than 0\.2 s.*threading\.Event\(\)\.wait\(60\)"
        ),
        time_limit("this", lambda: gave_up.append(True), 0.2),
    ):
        threading.Event().wait(60)
    assert gave_up == [True]


def test_workers_that_do_not_answer_are_named(case, expected, processes, client):
    with DaskObjective(case.net, *as_dask(case), client) as objective:
        stopped = next(iter(objective.partitions))
        objective._timeout = 0.5
        processes.signal(signal.SIGSTOP, stopped)
        try:
            with pytest.raises(MlpkitError, match=f"sums over the partitions took longer than 0.5 s, .*{stopped}"):
                objective.value_and_gradient(case.net.theta)
        finally:
            processes.signal(signal.SIGCONT, stopped)
            objective._timeout = SECONDS
        assert evaluated(objective, case.net.theta) == evaluated(expected, case.net.theta)


def test_a_cancelled_evaluation_ends_though_workers_do_not_answer(case, processes, client):
    with DaskObjective(case.net, *as_dask(case), client) as objective:
        stopped = next(iter(objective.partitions))
        processes.signal(signal.SIGSTOP, stopped)
        try:
            threading.Timer(0.3, objective.cancel).start()
            assert np.isnan(objective.value_and_gradient(case.net.theta)[0])
        finally:
            processes.signal(signal.SIGCONT, stopped)


def test_a_cluster_without_workers_or_scheduler_is_an_error(monkeypatch):
    net, X = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(2, "tanh")], seed=0), da.zeros((4, 2), chunks=2)
    monkeypatch.setattr(module, "_WORKER_SECONDS", 0.5)
    found = distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=":0", silence_logs=50)
    client = distributed.Client(found)
    objective = DaskObjective(net, X, X, client)
    found.scale(0)
    while client.nthreads():
        time.sleep(0.01)
    with pytest.raises(MlpkitError, match=r"has no worker to load partitions; none came in 0\.5 s"):
        objective.value_and_gradient(net.theta)
    client.close()
    found.close()
    with pytest.raises(MlpkitError, match="client must be connected to its scheduler; found it closed"):
        objective.value_and_gradient(net.theta)
    objective.close()


def test_overhead_of_an_evaluation(client):
    net = mlpkit.sparse_autoencoder(n_inputs=64, n_hidden=25, seed=0)
    X = da.from_array(np.full((8, 64), 0.5), chunks=(4, -1))
    with DaskObjective(net, X, X, client) as objective:
        seconds = []
        for _ in range(40):
            start = time.perf_counter()
            objective.value_and_gradient(net.theta)
            seconds.append(time.perf_counter() - start)
    # 15 ms on an idle machine (benchmarks/out_of_core.py): here the fastest, for other tests run at the same time.
    assert min(seconds) < 0.06
