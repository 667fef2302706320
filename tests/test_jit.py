"""The kernel cache, the guards around launches, and the hold on BLAS: each in fresh processes where that matters."""

import gc
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

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
from mlpkit.kernels import sweeps
net = MLP([Input(3), Dense(2, "sigmoid", init=0.5)], seed=0)
value = net.predict([[1.0, 2.0, 3.0]])[0, 0]
kernel = sweeps.predict_sweep[1]
print(value.hex(), sum(kernel.stats.cache_hits.values()))
"""


def run(code, folder, **environment):
    """Run code in a fresh process that imports the copy of mlpkit in `folder`; return what it printed."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(folder), **environment},
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

    # sweeps.py, which holds the cached kernel, stays as it is: the change is in a file that it imports.
    simd = package_copy / "mlpkit" / "kernels" / "simd.py"
    source = simd.read_text()
    seeded = source.replace("builder.fmul(biases[j], lanes_u[i])", "builder.fadd(biases[j], lanes_u[i])")
    assert seeded != source
    stamp = simd.stat()
    simd.write_text(seeded)
    os.utime(simd, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    edited, hits = run(PREDICT, package_copy)
    assert hits == "0"
    assert float.fromhex(edited) == pytest.approx(1 / (1 + np.exp(-4.0)))  # 0.5 * 6, and 0 + 1 in place of 0 * 1
    assert float.fromhex(cold) == pytest.approx(1 / (1 + np.exp(-3.0)))


def test_everything_runs_where_no_cache_folder_can_be_written(package_copy):
    # Regular files stand where the folders would be: permissions would not stop root.
    (package_copy / "mlpkit" / "kernels" / "__pycache__").write_text("in the way")
    home = package_copy / "home"
    home.mkdir()
    (home / ".cache").write_text("in the way")
    code = PREDICT + "\nfrom mlpkit.kernels.jit import cache_folder; print(cache_folder())"
    value, hits, folder = run(
        code, package_copy, HOME=str(home), XDG_CACHE_HOME=str(home / ".cache"), PYTHONDONTWRITEBYTECODE="1"
    )
    assert (hits, folder) == ("0", "None")
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
    expected = objective.value_and_gradient(net.theta)[1].tobytes(), net.predict(X).tobytes()
    results = []

    def work():
        for _ in range(10):
            results.append((objective.value_and_gradient(net.theta)[1].tobytes(), net.predict(X).tobytes()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    assert set(results) == {expected}


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
