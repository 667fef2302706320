"""The objective over a Dask cluster: the same bits on any number of workers, also when they are killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager, suppress

import dask
import dask.array as da
import distributed
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from test_objective import TOLERANCE, bits, relative, sparse_case

import mlpkit
from mlpkit.distributed import DaskObjective
from mlpkit.errors import InvalidArgumentError, MlpkitError
from mlpkit.partitions import PartitionedObjective, TreeSum

# Processes take long to start, and where other work keeps the cores busy a lost one is waited for half a minute.
on_a_cluster = pytest.mark.soak

M, ROWS = 4000, 450  # nine partitions, the last one smaller: no tree of pairs alone


@contextmanager
def cluster(n_workers):
    """Run a client of a cluster of processes with one thread each."""
    with (
        dask.config.set({"distributed.worker.daemon": True, "distributed.admin.log-format": "%(message)s"}),
        distributed.LocalCluster(
            n_workers=n_workers, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
        ) as found,
        distributed.Client(found) as client,
    ):
        yield client


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


# The tree ---------------------------------------------------------------------------------------


def recursive(values):
    """Add up as the tree does, from the definition."""
    half = 1
    while 2 * half < len(values):
        half *= 2
    return values[0] if len(values) == 1 else recursive(values[:half]) + recursive(values[half:])


@given(st.integers(1, 40), st.integers(1, 6), st.randoms(use_true_random=False))
def test_a_tree_sum_does_not_depend_on_who_adds_up_what_and_when(n, n_workers, random):
    values = [random.uniform(-1, 1) * 10 ** random.randint(-8, 8) for _ in range(n)]
    owners = [random.randrange(n_workers) for _ in range(n)]
    whole = TreeSum(n)
    for worker in range(n_workers):
        part = TreeSum(n)
        mine = [i for i in range(n) if owners[i] == worker]
        random.shuffle(mine)
        for i in mine:
            part.add(0, i, (np.array([values[i]]), np.zeros(0)))
        for place, share in part.nodes.items():
            whole.add(*place, share)
    assert whole.root()[0][0] == recursive(values)


# In one process ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_partitions_equal_the_reference(dtype):
    case = sparse_case(500, dtype=dtype)
    parts = [(case.X[:200], case.Y[:200]), (case.X[200:201], case.Y[200:201]), (case.X[201:], case.Y[201:])]
    objective = PartitionedObjective(case.net, parts)
    J, g = objective.value_and_gradient(case.net.theta)
    assert relative(J, sum(reference.terms(*case.arguments).values())) < TOLERANCE[dtype]
    assert max(reference.layer_errors(case.twin, g, reference.gradient(*case.arguments))) < TOLERANCE[dtype]
    assert objective.n_examples == 500


def test_tied_weights_decay_once():
    net = mlpkit.MLP(
        [mlpkit.Input(3), mlpkit.Dense(2, "tanh"), mlpkit.Dense(3, "identity", tied_to=1)], weight_decay=0.3, seed=0
    )
    X = np.random.default_rng(0).normal(size=(50, 3))
    found = PartitionedObjective(net, [(X[:20], X[:20]), (X[20:], X[20:])]).terms_and_gradient(net.theta)
    terms, gradient = mlpkit.Objective(net, X, X).terms_and_gradient(net.theta)
    assert found[0] == pytest.approx(terms, rel=1e-12)
    np.testing.assert_allclose(found[1], gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("partitions", [[], "x", None])
def test_partitions_are_pairs(case, partitions):
    with pytest.raises(InvalidArgumentError, match="partitions must be a list of pairs"):
        PartitionedObjective(case.net, partitions)


# On a cluster -----------------------------------------------------------------------------------


@on_a_cluster
@pytest.mark.parametrize("n_workers", [1, 2, 4])
def test_any_number_of_workers_gives_the_same_bits(case, expected, tmp_path, n_workers):
    net = mlpkit.MLP([mlpkit.Input(20), mlpkit.Dense(5, "softmax")], loss="cross_entropy", seed=0)
    labels = np.arange(M) % 5
    files = []
    for i in range(0, M, 1500):
        files.append((tmp_path / f"X{i}.npy", tmp_path / f"y{i}.npy"))
        np.save(files[-1][0], case.X[i : i + 1500])
        np.save(files[-1][1], labels[i : i + 1500])
    with cluster(n_workers) as client:
        with DaskObjective(case.net, *as_dask(case), client) as objective:
            assert len(objective.partitions) == n_workers
            assert evaluated(objective, case.net.theta) == evaluated(expected, case.net.theta)
        with DaskObjective(net, *map(list, zip(*files, strict=True)), client, memory_limit="1MB") as objective:
            alone = PartitionedObjective(net, files)
            assert objective.n_examples == M
            assert evaluated(objective, net.theta) == evaluated(alone, net.theta)


@pytest.fixture(scope="module")
def client():
    with cluster(2) as found:
        yield found


@on_a_cluster
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


@on_a_cluster
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


@on_a_cluster
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


@on_a_cluster
def test_what_is_wrong_with_the_data_is_said_here(case, client, tmp_path):
    X, Y = as_dask(case)
    bad = case.X.copy()
    bad[1000, 3] = np.nan
    np.save(tmp_path / "X.npy", case.X)
    for arguments, message in [
        ((da.from_array(bad, chunks=(ROWS, -1)), Y, client), "X must be finite in float64; found nan at row 100 col"),
        ((X[:, :7], Y, client), "X must have 20 columns"),
        ((case.X, Y, client), "X must be a Dask array"),
        ((X, Y, None), "client must be a distributed.Client; found NoneType"),
        (([tmp_path / "X.npy"], Y, client), "Y must have as many partitions as X, 1; found 4"),
        (([tmp_path / "gone.npy"], [tmp_path / "X.npy"], client), "X must name a file that can be read"),
    ]:
        with pytest.raises(InvalidArgumentError, match=message):
            DaskObjective(case.net, *arguments)


# Workers that are lost --------------------------------------------------------------------------


def kill(client, which):
    """Kill a worker's process as a machine that fails would."""
    with suppress(Exception):  # it may be starting anew just now
        pids = client.run(os.getpid, on_error="ignore")
        os.kill(sorted(pids.values())[which % len(pids)], signal.SIGKILL)


def minimise_under_fire(case, client, n_kills, seed):
    """Minimise while workers are killed at random moments; return the path and how often an evaluation was repeated."""
    random, steps, done = np.random.default_rng(seed), [], threading.Event()
    with DaskObjective(case.net, *as_dask(case), client) as objective:

        def shoot():
            for _ in range(n_kills):
                if done.wait(random.uniform(0.0, 0.8)):
                    break
                kill(client, int(random.integers(99)))
            done.set()

        gunner = threading.Thread(target=shoot)
        gunner.start()
        theta = case.net.theta.astype(np.float64)
        while not done.is_set():
            J, g = objective.value_and_gradient(theta)
            steps.append((J, bits(g)))
        gunner.join()
        steps.append((objective.value_and_gradient(theta)[0], bits(objective.value_and_gradient(theta)[1])))
        return steps, objective.losses


@on_a_cluster
@pytest.mark.parametrize("n_kills", [2, 20])
def test_a_worker_killed_at_a_random_moment_changes_nothing(case, expected, n_kills):
    J, g = expected.value_and_gradient(case.net.theta)
    with cluster(2) as client:
        steps, losses = minimise_under_fire(case, client, n_kills, seed=n_kills)
    assert len(steps) > 1
    assert losses > 0
    assert all(step == (J, bits(g)) for step in steps)


@on_a_cluster
def test_a_worker_that_forgot_its_partitions_has_them_loaded_again(case, expected, client):
    from mlpkit.distributed import _release

    with DaskObjective(case.net, *as_dask(case), client) as objective:
        client.run(_release, objective._key)
        assert evaluated(objective, case.net.theta) == evaluated(expected, case.net.theta)
        assert objective.losses == 1


@on_a_cluster
def test_overhead_of_an_evaluation(client):
    net = mlpkit.sparse_autoencoder(n_inputs=64, n_hidden=25, seed=0)
    X = da.from_array(np.full((8, 64), 0.5), chunks=(4, -1))
    with DaskObjective(net, X, X, client) as objective:
        seconds = []
        for _ in range(40):
            start = time.perf_counter()
            objective.value_and_gradient(net.theta)
            seconds.append(time.perf_counter() - start)
    assert np.median(seconds) < 0.06  # 15 ms on an idle machine: benchmarks/out_of_core.py
