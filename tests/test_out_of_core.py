"""Data that stay in files: the same bits as in memory, within the memory allowed, and errors that say what happened."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
import tracemalloc

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_objective import DTYPES, SUMS, THREADS, bits, sparse_case, summed, threads

import mlpkit
from mlpkit import out_of_core
from mlpkit.chunks import cut_into_chunks
from mlpkit.data import Data, fingerprint
from mlpkit.errors import DataFileError, InvalidArgumentError, MlpkitError
from mlpkit.kernels.tiles import Cut
from mlpkit.out_of_core import OutOfCore


class Sliced:
    """An object that gives rows when it is sliced, and counts them."""

    def __init__(self, values):
        self.values, self.shape, self.dtype, self.count = values, values.shape, values.dtype, 0

    def __getitem__(self, which):
        self.count += len(self.values[which])
        return self.values[which]


def evaluated(objective):
    J, g = objective.value_and_gradient(objective.net.theta)
    return J, bits(g, *objective.rho_hat(objective.net.theta))


def chunked(objective, X, Y, panels, run=1, kept=0, held=0, **options):
    """Make an objective read its data in chunks of so many panels, however little there is."""
    data = Data(objective.net, X, Y, **options)
    cut = out_of_core.cut_into_chunks
    out_of_core.cut_into_chunks = lambda plan, most, least: cut(plan, panels, run)
    try:
        store = OutOfCore(data, objective._engine, 1 << 40, keep=False)
    finally:
        out_of_core.cut_into_chunks = cut
    n = len(store._chunks)
    store._n_kept, store._n_held = min(kept, n) if objective._plan.n_kept else 0, min(held, n)
    objective._store = store
    return objective


# The cut ----------------------------------------------------------------------------------------


@given(st.integers(1, 500), st.integers(1, 6), st.integers(1, 30), st.integers(1, 200), st.integers(1, 50))
def test_chunks_of_pieces_cover_every_strip_once_and_in_order(n_panels, strip, piece_strips, most, run):
    strip = min(strip, n_panels)
    n_strips = -(-n_panels // strip)
    cut = Cut(False, n_panels, strip, strip, piece_strips, -(-n_strips // piece_strips))
    chunks = cut_into_chunks(cut, most, run)
    reached = {}
    for chunk in chunks:
        assert chunk.n_panels <= max(most, strip)
        for i, (begin, end) in enumerate(chunk.runs):
            piece = chunk.first_piece + i
            start = piece * piece_strips * strip
            assert begin == reached.get(piece, start)
            assert chunk.fresh == (piece not in reached)
            assert begin < end <= min(start + piece_strips * strip, n_panels)
            if i + 1 < len(chunk.runs):  # where the kernel looks for the next piece
                assert end - begin == chunk.piece_strips * strip
            reached[piece] = end
    ends = [min((p + 1) * piece_strips * strip, n_panels) for p in range(cut.n_pieces)]
    assert [reached[p] for p in range(cut.n_pieces)] == ends
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


# The same bits ----------------------------------------------------------------------------------


@DTYPES
@SUMS
@settings(max_examples=30)
@given(data=st.data())
def test_any_chunking_gives_the_same_bits(dtype, by_rows, data):
    m = data.draw(st.integers(1, 4000))
    case = sparse_case(m, dtype=dtype)
    rng = np.random.default_rng(m)
    options = {}
    if data.draw(st.booleans()):
        options["sample_weight"] = rng.integers(0, 3, m) + (np.arange(m) == m - 1)
    if data.draw(st.booleans()):
        options["mask"] = rng.random(case.Y.shape) < 0.7
        options["mask"][0, 0] = True
    source = data.draw(st.sampled_from([lambda a: a, Sliced, lambda a: Sliced(a.astype("f4"))]))
    if dtype == "float64":  # so that a file in float32 holds the same numbers
        case.X, case.Y = (a.astype("f4").astype("f8") for a in (case.X, case.Y))
    chunking = {name: data.draw(st.integers(1, 60), label=name) for name in ("panels", "run")}
    chunking |= {name: data.draw(st.integers(0, 4), label=name) for name in ("kept", "held")}
    with summed(by_rows), threads(data.draw(st.sampled_from(THREADS))):
        expected = evaluated(mlpkit.Objective(case.net, case.X, case.Y, **options))
        objective = mlpkit.Objective(case.net, case.X, case.Y, **options)
        chunked(objective, source(case.X), source(case.Y), **chunking, **options)
        assert evaluated(objective) == expected
        assert evaluated(objective) == expected  # with what the first evaluation kept


@SUMS
def test_an_autoencoder_is_read_once_a_pass(by_rows):
    net = mlpkit.sparse_autoencoder(n_inputs=20, n_hidden=15, seed=0)
    X = Sliced(np.random.default_rng(0).uniform(size=(3000, 20)))
    with summed(by_rows):
        expected = evaluated(mlpkit.Objective(net, X.values, X.values))
        objective = chunked(mlpkit.Objective(net, X.values, X.values), X, X, panels=20)
        X.count = 0
        objective.terms(net.theta)
        assert X.count == 2 * 3000
        assert evaluated(objective) == expected
        plain = mlpkit.MLP([mlpkit.Input(20), mlpkit.Dense(20, "sigmoid")], seed=0)
        objective = chunked(mlpkit.Objective(plain, X.values, X.values), X, X, panels=20)
        X.count = 0
        objective.terms(plain.theta)
        assert X.count == 3000


def sources(folder, X):
    """Return the same matrix as everything that can be read row by row."""
    np.save(folder / "X.npy", X)
    np.save(folder / "F.npy", np.asfortranarray(X))
    np.save(folder / "big.npy", X.astype(X.dtype.newbyteorder(">")))
    with h5py.File(folder / "X.h5", "w") as file:
        file["plain"] = X
        file.create_dataset("deep/packed", data=X, chunks=(97, 3), compression="gzip", fletcher32=True)
    with h5py.File(folder / "one.hdf5", "w") as file:
        file["only"] = X
    import zarr

    zarr.save_array(folder / "X.zarr", X)
    return {
        "npy": folder / "X.npy",
        "fortran": str(folder / "F.npy"),
        "big-endian": folder / "big.npy",
        "h5": f"{folder / 'X.h5'}:/plain",
        "pair": (folder / "X.h5", "deep/packed"),
        "single": folder / "one.hdf5",
        "dataset": h5py.File(folder / "X.h5", "r")["deep/packed"],
        "memmap": np.load(folder / "X.npy", mmap_mode="r"),
        "zarr": folder / "X.zarr",
        "sliced": Sliced(X),
    }


def test_every_kind_of_source_gives_the_same_bits(tmp_path):
    case = sparse_case(2000)
    np.save(tmp_path / "Y.npy", case.Y)
    expected = evaluated(case.objective())
    for name, source in sources(tmp_path, case.X).items():
        files = source, tmp_path / "Y.npy"
        packed = mlpkit.Objective(case.net, *files)
        assert packed.reading is None, name  # it fits
        assert evaluated(packed) == expected, name
        scanned = chunked(packed, *files, panels=40)
        assert scanned.reading.n_chunks > 1, name
        assert evaluated(scanned) == expected, name
        if name != "dataset":  # which h5py lets nobody pickle
            assert evaluated(pickle.loads(pickle.dumps(scanned))) == expected, name


def test_arrays_are_scanned_where_a_limit_says_so():
    case = sparse_case(2000)
    objective = case.objective(memory_limit="460kB")
    assert objective.reading.n_chunks > 1
    assert objective.memory <= 460_000
    assert "chunks" in repr(objective)
    assert evaluated(objective) == evaluated(case.objective())
    assert case.objective(memory_limit="1GB").reading is None


def test_labels_and_masks_out_of_core(tmp_path, rng):
    layers = [mlpkit.Input(6), mlpkit.Dense(4, "softmax")]
    net = mlpkit.MLP(layers, loss="cross_entropy", seed=0)
    X, labels = rng.normal(size=(3000, 6)), rng.integers(0, 4, 3000)
    mask = rng.random((3000, 1)) < 0.8
    labels[~mask[:, 0]] = 99
    mask = np.repeat(mask, 4, axis=1)
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "y.npy", labels)
    files = tmp_path / "X.npy", tmp_path / "y.npy"
    for options in ({"mask": mask}, {"mask": mask, "class_weight": "balanced"}):
        expected = evaluated(mlpkit.Objective(net, X, labels, **options))
        assert evaluated(mlpkit.Objective(net, *files, **options)) == expected
        scanned = chunked(mlpkit.Objective(net, *files, **options), *files, panels=12, **options)
        assert evaluated(scanned) == expected
    with pytest.raises(InvalidArgumentError, match=r"Y must hold class labels from 0 to 3; found 99 at row"):
        mlpkit.Objective(net, *files)


def test_fit_on_files_is_fit_on_arrays(tmp_path):
    case = sparse_case(1500)
    np.save(tmp_path / "X.npy", case.X)
    with h5py.File(tmp_path / "Y.h5", "w") as file:
        file["Y"] = case.Y
    nets = []
    for X, Y, limit in (
        (case.X, case.Y, None),
        (tmp_path / "X.npy", tmp_path / "Y.h5", None),
        (tmp_path / "X.npy", tmp_path / "Y.h5", "420kB"),
    ):
        net = mlpkit.MLP.from_config(case.net.config())
        net.theta = case.net.theta
        result = net.fit(X, Y, mlpkit.LBFGS(max_iter=8), memory_limit=limit)
        nets.append((bits(net.theta), result.cost, net.provenance["data"], net.evaluate(X, Y, memory_limit=limit)))
    assert nets[0] == nets[1] == nets[2]
    assert fingerprint(tmp_path / "X.npy") == fingerprint(case.X)


# Memory -----------------------------------------------------------------------------------------


@SUMS
@pytest.mark.parametrize("limit", [5_000_000, 15_000_000])
def test_memory_stays_within_the_limit(tmp_path, by_rows, limit):
    case = sparse_case(60_000, sizes=(64, 25, 40))
    np.save(tmp_path / "X.npy", case.X)
    np.save(tmp_path / "Y.npy", case.Y)
    files = tmp_path / "X.npy", tmp_path / "Y.npy"
    with summed(by_rows):
        mlpkit.Objective(case.net, *files, memory_limit=limit).terms(case.net.theta)  # compiles
        tracemalloc.start()
        try:
            objective = mlpkit.Objective(case.net, *files, memory_limit=limit)
            objective.terms(case.net.theta)
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert objective.memory <= limit
    assert 0.85 * objective.memory < held < 1.05 * objective.memory + 100_000
    assert peak < 1.1 * objective.memory + 3_000_000  # what is read at once in the first scan
    assert objective.reading.chunks_kept > 0 or limit == 5_000_000


@pytest.mark.parametrize("limit", ["2 XB", "GB", "-1MB", 0, 1.5, True, "0"])
def test_limits_that_are_none(limit):
    case = sparse_case(3)
    with pytest.raises(InvalidArgumentError, match="memory_limit must be"):
        case.objective(memory_limit=limit)


def test_a_limit_below_what_a_chunk_takes_says_what_it_takes():
    case = sparse_case(3000)
    with pytest.raises(InvalidArgumentError, match=r"memory_limit must be at least (\S+) kB") as error:
        case.objective(memory_limit=10_000)
    needed = str(error.value).split("at least ")[1].split(" for")[0]
    kilobytes = float(needed.split()[0]) + 1  # what is shown is rounded
    assert case.objective(memory_limit=f"{kilobytes} kB").reading is not None


PROGRAM = """
import resource, sys
import numpy as np, mlpkit
path, budget, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
mlpkit.set_num_threads(2)
net = mlpkit.sparse_autoencoder(n_inputs=4096, n_hidden=3, seed=0, dtype="float32")
small = np.zeros((4, 4096), "f4")
net.fit(small, small, mlpkit.GradientDescent(alpha=0.1, max_iter=1))  # loads the kernels, starts the threads
if limit < 400 << 20:  # what the interpreter, NumPy, SciPy and Numba take comes on top
    with open("/proc/self/statm") as file:
        limit += int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
result = net.fit(path, path, mlpkit.GradientDescent(alpha=0.1, max_iter=1), memory_limit=budget)
print("done", len(result.history))
"""


def run_limited(path, budget, limit):
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(path), str(budget), str(limit)]
    # Arenas and thread stacks take address space, not memory: few of them leave the limit to what is measured.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "NUMBA_NUM_THREADS": "2"}
    return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the address space is not limited here")
@pytest.mark.parametrize("limit", [128 << 20, pytest.param(600 << 20, marks=pytest.mark.soak)])
def test_a_file_of_four_times_the_memory_limit_is_trained_on(tmp_path, limit):
    X = np.lib.format.open_memmap(tmp_path / "X.npy", mode="w+", dtype="f4", shape=(limit // 4096, 4096))
    X[:: len(X) // 7] = np.random.default_rng(0).random(4096)  # the rest is a hole in the file, and zero
    del X
    assert os.path.getsize(tmp_path / "X.npy") >= 4 * limit
    done = run_limited(tmp_path / "X.npy", 48 << 20, limit)
    assert done.stdout == "done 1\n", done.stderr[-2000:]
    too_much = run_limited(tmp_path / "X.npy", 8 * limit, limit)  # all of it
    assert too_much.returncode != 0
    assert "emory" in too_much.stderr, too_much.stderr[-2000:]


# What goes wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [0, 2500, 2999])
def test_bad_numbers_are_found_in_the_first_scan(tmp_path, row):
    case = sparse_case(3000)
    case.X[row, 3] = np.nan
    np.save(tmp_path / "X.npy", case.X)
    with pytest.raises(InvalidArgumentError, match=f"X must be finite in float64; found nan at row {row} column 3 "):
        mlpkit.Objective(case.net, tmp_path / "X.npy", case.Y, memory_limit="460kB")


def test_what_cannot_be_opened_is_named(tmp_path):
    case = sparse_case(5)
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["a"], file["b"] = case.X, case.X
        file["text"] = ["a"]
    (tmp_path / "bad.npy").write_bytes(b"no array")
    (tmp_path / "bad.h5").write_bytes(b"no file")
    np.save(tmp_path / "short.npy", case.X)
    os.truncate(tmp_path / "short.npy", 300)
    np.save(tmp_path / "complex.npy", case.X * 1j)
    np.save(tmp_path / "other.npy", case.X[:, :3])
    np.save(tmp_path / "fewer.npy", case.X[:3])
    for path, message in [
        ("none.npy", "X must name a file that can be read"),
        ("none.h5", "X must name a file that can be read"),
        ("data.txt", "X must be an array, or the path of a .npy"),
        ("two.h5", r"must be given with the name of a dataset.* a, b, text"),
        ("two.h5:c", r"its datasets are a, b, text; found 'c'"),
        ("two.h5:text", "X must be an array of real numbers; found dtype object"),
        ("bad.npy", "cannot be read as .npy"),
        ("bad.h5", "cannot be read as HDF5"),
        ("short.npy", "must have 928 bytes, as its header says; found 300"),
        ("complex.npy", "X must be an array of real numbers; found dtype complex128"),
        ("other.npy", "X must have 20 columns; found 3"),
        ("fewer.npy", "Y must have as many rows as X, 3; found 5"),
    ]:
        with pytest.raises(InvalidArgumentError, match=message):
            mlpkit.Objective(case.net, str(tmp_path / path), case.Y)


def changes(path):
    return {
        "gone": lambda: path.unlink(),
        "replaced": lambda: os.replace(path.with_name("other.npy"), path),
        "written to": lambda: os.utime(path, ns=(0, 0)),
        "shorter": lambda: os.truncate(path, 5000),
    }


@pytest.mark.parametrize("how", ["gone", "replaced", "written to", "shorter"])
def test_a_file_that_changes_under_a_run_is_an_error_and_the_last_state_is_kept(tmp_path, how):
    case = sparse_case(3000)
    path = tmp_path / "X.npy"
    np.save(path, case.X)
    np.save(tmp_path / "other.npy", case.X)
    states = []

    class Change(mlpkit.GradientDescent):
        def minimize(self, evaluate, theta, report, **more):
            def then(theta, cost, gradient):
                report(theta, cost, gradient)
                states.append(theta.copy())
                if len(states) == 3:
                    changes(path)[how]()

            return super().minimize(evaluate, theta, then, **more)

    start = case.net.theta.copy()
    expected = "is gone" if how == "gone" else "has changed"
    with pytest.raises(DataFileError, match=rf"X\.npy' .*{expected}"):
        case.net.fit(path, case.Y, Change(alpha=0.01, max_iter=10), memory_limit="560kB")
    assert len(states) == 3
    assert bits(case.net.theta) == bits(states[-1]) != bits(start)


def test_a_reader_s_error_reaches_the_caller(tmp_path):
    case = sparse_case(3000)
    X = Sliced(case.X)
    objective = mlpkit.Objective(case.net, X, case.Y, memory_limit="560kB")
    expected = evaluated(case.objective())

    def fail(which):
        raise RuntimeError("no more")

    X.__class__ = type("Broken", (Sliced,), {"__getitem__": lambda self, which: fail(which)})
    with pytest.raises(DataFileError, match=r"rows \d+ to \d+ of X, a Sliced cannot be read: no more"):
        objective.terms(case.net.theta)
    X.__class__ = Sliced
    assert evaluated(objective) == expected


def test_what_needs_data_in_memory_says_so():
    case = sparse_case(3000)
    objective = case.objective(memory_limit="560kB")
    theta = case.net.theta
    for act in (
        lambda: objective.hessian_vector_product(theta, theta),
        lambda: objective.per_example_loss(theta),
        lambda: objective.per_example_gradient(theta, [0]),
        lambda: objective.per_example_gradient_norm(theta),
    ):
        with pytest.raises(MlpkitError, match="needs the data in memory"):
            act()


def test_noise_is_for_arrays(tmp_path):
    net = mlpkit.MLP([mlpkit.Input(2, noise=mlpkit.MaskingNoise(0.5)), mlpkit.Dense(2, "sigmoid")], seed=0)
    np.save(tmp_path / "X.npy", np.zeros((3, 2)))
    with pytest.raises(InvalidArgumentError, match="X must be an array in memory"):
        net.fit(tmp_path / "X.npy", np.zeros((3, 2)))
