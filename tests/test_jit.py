"""The kernel cache, the guards around launches, and the hold on BLAS: each in fresh processes where that matters."""

import gc
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import scipy.linalg  # noqa: F401  (loads its BLAS, so that the counts below compare like with like)
from threadpoolctl import threadpool_info

import mlpkit
from mlpkit.kernels.jit import blas_limited

PACKAGE = Path(mlpkit.__file__).parent
PREDICT = """
import sys
from mlpkit import MLP, Dense, Input
from mlpkit.kernels import forward
net = MLP([Input(3), Dense(2, "sigmoid", init=0.5)], seed=0)
value = net.predict([[1.0, 2.0, 3.0]])[0, 0]
kernel = forward.predict_sweep[1]
print(value.hex(), sum(kernel.stats.cache_hits.values()))
"""
SHARED_NAMES = """
import gc, importlib, pkgutil
from numba.core.dispatcher import Dispatcher
import mlpkit.kernels
for module in pkgutil.iter_modules(mlpkit.kernels.__path__):
    importlib.import_module(f"mlpkit.kernels.{module.name}")
families = [mlpkit.activations.top_k(k) for k in (2, 3)]
bodies = [body for f in families for body in (f.tile_forward, f.tile_pullback, f.tile_curvature)]
named = {(body.__module__, body.__qualname__): {body} for body in bodies}
assert len(named) == len(bodies)
for kernel in gc.get_objects():
    if isinstance(kernel, Dispatcher) and not kernel.targetoptions.get("forceinline"):
        function = kernel.py_func
        if function.__module__.startswith("mlpkit."):
            named.setdefault((function.__module__, function.__qualname__), set()).add(function)
print(len(named), *(f"{module}.{name}" for (module, name), functions in named.items() if len(functions) > 1))
"""
COUNT_NOTICES = """
import logging
notices = []
class Counter(logging.Handler):
    def emit(self, record):
        notices.append(record.getMessage())
logging.getLogger("mlpkit").addHandler(Counter())
"""

# Make the bias of a layer enter as b + u in place of b u, with u = 1, in the copy of mlpkit in {folder}.
EDIT = """
import os, pathlib
simd = pathlib.Path({folder!r}, "mlpkit", "kernels", "simd.py")
source, stamp = simd.read_text(), simd.stat()
seeded = source.replace("builder.fmul(biases[j], lanes_u[i])", "builder.fadd(biases[j], lanes_u[i])")
assert seeded != source
simd.write_text(seeded)
os.utime(simd, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
"""


def run(code, folder, **environment):
    """Run code in a fresh process that imports the copy of mlpkit in `folder`; return what it printed."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        # Python itself tells edits by second and size only, and would run stale bytecode.
        env={**inherited, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def package_copy(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "mlpkit", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_an_edit_to_one_kernel_file_reaches_a_process_with_a_warm_cache(package_copy):
    cold, hits = run(PREDICT, package_copy)
    assert hits == "0"
    warm, hits = run(PREDICT, package_copy)
    assert (warm, hits) == (cold, "1")

    # forward.py, which holds the cached kernel, stays as it is: the change is in a file that it imports.
    exec(EDIT.format(folder=str(package_copy)))
    edited, hits = run(PREDICT, package_copy)
    assert hits == "0"
    assert float.fromhex(edited) == pytest.approx(1 / (1 + np.exp(-4.0)))  # 0.5 * 6, and 0 + 1 in place of 0 * 1
    assert float.fromhex(cold) == pytest.approx(1 / (1 + np.exp(-3.0)))


def test_compiling_is_announced_once_and_only_where_the_cache_is_cold(package_copy):
    code = COUNT_NOTICES + PREDICT.replace('"sigmoid"', '"tanh"') + "\nprint(len(notices), *notices)"
    _, _, n, *words = run(code, package_copy)
    assert n == "1"
    assert " ".join(words).startswith("mlpkit: compiling kernels")
    assert str(package_copy) in words[-1]
    assert run(code, package_copy)[2:] == ["0"]


def test_code_that_was_imported_before_an_edit_is_not_kept_as_that_of_the_edited_file(package_copy):
    old, hits = run("import mlpkit" + EDIT.format(folder=str(package_copy)) + PREDICT, package_copy)
    assert hits == "0"
    edited, hits = run(PREDICT, package_copy)
    assert hits == "0"
    assert float.fromhex(old) == pytest.approx(1 / (1 + np.exp(-3.0)))
    assert float.fromhex(edited) == pytest.approx(1 / (1 + np.exp(-4.0)))


def test_code_for_two_dtypes_lies_in_two_files_whoever_compiles_first():
    """Numba numbers files, so two processes that compile at once can take one number and run each other's code."""
    from mlpkit.kernels.jit import _DataFiles

    with TemporaryDirectory() as folder:
        one, other = _DataFiles(folder, "sweep"), _DataFiles(folder, "sweep")
        assert one.load("float32") is other.load("float64") is None  # both find nothing, and compile
        one.save("float32", "code for float32")
        other.save("float64", "code for float64")
        assert _DataFiles(folder, "sweep").load("float32") == "code for float32"
        assert _DataFiles(folder, "sweep").load("float64") == "code for float64"


def test_code_of_other_sources_is_removed(monkeypatch):
    from mlpkit.kernels import jit

    with TemporaryDirectory() as folder:
        monkeypatch.setattr(jit, "_FINGERPRINT", "a" * 64)
        jit._DataFiles(folder, "sweep").save("float32", "old")
        monkeypatch.setattr(jit, "_FINGERPRINT", "b" * 64)
        files = jit._DataFiles(folder, "sweep")
        assert files.load("float32") is None
        files.save("float32", "new")
        assert files.load("float32") == "new"
        assert len(list(Path(folder).iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"not a pickle"], ids=["empty", "not a pickle"])
def test_a_damaged_cache_costs_one_compile(package_copy, content):
    cold, _ = run(PREDICT, package_copy)
    damaged = list(package_copy.rglob("*.nbc"))
    assert damaged
    for file in damaged:
        file.write_bytes(content)
    again, hits = run(PREDICT, package_copy)
    assert (again, hits) == (cold, "0")
    assert run(PREDICT, package_copy) == [cold, "1"]


def test_no_two_kernels_share_a_name():
    """Symbols are made of a name, types and a number that counts up anew in each process.

    Two functions of one name, compiled by two processes and loaded from disk by a third, may so be taken for one
    another: J was wrong. What is always inlined leaves no symbol behind. In a fresh process, since what users' plugins
    bring is not kept on disk.
    """
    done = run(SHARED_NAMES, Path(mlpkit.__file__).parent.parent)
    assert int(done[0]) > 50
    assert done[1:] == []


def test_everything_runs_where_no_cache_folder_can_be_written(package_copy):
    # Regular files stand where the folders would be: permissions would not stop root.
    (package_copy / "mlpkit" / "kernels" / "__pycache__").write_text("in the way")
    home = package_copy / "home"
    home.mkdir()
    (home / ".cache").write_text("in the way")
    code = (
        PREDICT
        + """
from mlpkit import LBFGS
from mlpkit.kernels.jit import cache_folder
print(cache_folder())
net = MLP([Input(1), Dense(1, "identity")], seed=0)
print(net.fit([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0], optimizer=LBFGS(max_iter=50)).cost < 1e-8)
"""
    )
    value, hits, folder, fitted = run(code, package_copy, HOME=str(home), XDG_CACHE_HOME=str(home / ".cache"))
    assert (hits, folder, fitted) == ("0", "None", "True")
    assert float.fromhex(value) == pytest.approx(1 / (1 + np.exp(-3.0)))


def test_a_forked_child_computes_the_same_bits():
    code = """
import multiprocessing, warnings
import numpy as np
import mlpkit
warnings.simplefilter("ignore")
X = np.random.default_rng(0).uniform(0.1, 0.9, (500, 6))
net = mlpkit.sparse_autoencoder(n_inputs=6, n_hidden=4)
objective = mlpkit.Objective(net, X, X)
def evaluate(_):
    J, gradient = objective.value_and_gradient(net.theta)
    return J.hex(), gradient.tobytes(), net.predict(X).tobytes()
if __name__ == "__main__":
    mine = evaluate(0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        theirs = pool.map(evaluate, range(2))
    print(all(mine == other for other in theirs))
"""
    assert run(code, PACKAGE.parent) == ["True"]


def test_python_threads_that_call_at_once_get_the_right_results():
    X = np.random.default_rng(0).uniform(0.1, 0.9, (2000, 8))
    net = mlpkit.sparse_autoencoder(n_inputs=8, n_hidden=5)
    objective = mlpkit.Objective(net, X, X)
    thetas = np.random.default_rng(1).normal(size=(4, net.n_parameters))  # one for each thread, to tell them apart

    def evaluate(theta):
        J, gradient = objective.value_and_gradient(theta)
        return J, gradient.tobytes(), objective.rho_hat(theta)[0].tobytes()

    expected = [evaluate(theta) for theta in thetas]
    assert len(set(expected)) == 4
    results = [set() for _ in thetas]

    def work(i):
        for _ in range(50):
            results[i].add(evaluate(thetas[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [{value} for value in expected]


def test_python_threads_may_call_at_once_on_the_layer_that_allows_one_call():
    code = """
import threading
import numpy as np, numba
import mlpkit
X = np.random.default_rng(0).uniform(0.1, 0.9, (20_000, 8))
nets = [mlpkit.sparse_autoencoder(n_inputs=8, n_hidden=5, seed=i) for i in range(4)]
expected = [net.predict(X).tobytes() for net in nets]
right = []
def work(i):
    right.extend(nets[i].predict(X).tobytes() == expected[i] for _ in range(20))
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(numba.threading_layer(), len(right), all(right))
"""
    found = run(code, PACKAGE.parent, NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS="2")
    assert found == ["workqueue", "80", "True"]


def test_a_signal_handler_that_predicts_during_a_prediction_gets_the_same_bits():
    code = """
import signal
import numpy as np
import mlpkit
from mlpkit.kernels import jit
X = np.random.default_rng(0).uniform(0.1, 0.9, (20_000, 8))
net = mlpkit.sparse_autoencoder(n_inputs=8, n_hidden=5, seed=0)
expected = net.predict(X).tobytes()
inside = []
def handle(number, frame):
    if jit._lock._is_owned():
        inside.append(net.predict(X).tobytes() == expected)
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
while len(inside) < 5:
    assert net.predict(X).tobytes() == expected
signal.setitimer(signal.ITIMER_REAL, 0)
print(all(inside))
"""
    assert run(code, PACKAGE.parent, NUMBA_NUM_THREADS="2") == ["True"]


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_blas_is_held_to_one_thread_and_given_back():
    before = blas_threads()
    with blas_limited(), blas_limited():
        assert set(blas_threads()) <= {1}
    assert blas_threads() == before


def test_the_hold_reaches_the_blas_that_scipy_loads_later():
    code = """
from mlpkit.kernels.jit import blas_limited
import scipy.linalg  # noqa: F401  (loads its BLAS, so that the counts below compare like with like)
from threadpoolctl import threadpool_info
with blas_limited():
    import scipy.optimize
    import scipy.linalg
    print({pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"})
"""
    assert run(code, PACKAGE.parent) == ["{1}"]


def test_an_evaluation_handed_on_holds_blas_until_it_is_let_go():
    net = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(1, "tanh")], seed=0)
    objective = mlpkit.Objective(net, [[0.0, 1.0]], [0.5])
    before = blas_threads()
    handed_on = objective.value_and_gradient
    handed_on(net.theta)
    assert blas_threads() == before, "a single call must not touch BLAS"
    handed_on(net.theta)
    assert set(blas_threads()) <= {1}
    del handed_on
    gc.collect()
    assert blas_threads() == before


@pytest.mark.parametrize("n", [0, -1, 10_000, 1.5, True, "2"])
def test_a_wrong_number_of_threads_is_refused(n):
    with pytest.raises(mlpkit.errors.InvalidArgumentError, match="n must be"):
        mlpkit.set_num_threads(n)
