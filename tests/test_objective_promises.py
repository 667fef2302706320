"""What an objective promises its callers: what it changes, holds and gives back, alone and where others evaluate."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import reference
from cases import bits, sparse_case, summed

import mlpkit
from mlpkit.kernels import sweeps


def test_objective_changes_nothing_but_out():
    case = sparse_case(100)
    before, X = case.net.theta.copy(), case.X.copy()
    objective = case.objective()
    theta = before + 0.1
    J, g = objective.value_and_gradient(theta)
    out = np.empty_like(g)
    J2, g2 = objective.value_and_gradient(theta, out=out)
    assert g2 is out
    assert J == J2
    assert bits(g) == bits(out)
    assert objective.value_and_gradient(theta)[1] is not g
    assert bits(case.net.theta, case.X) == bits(before, X)
    assert np.array_equal(theta, before + 0.1)


def test_objective_keeps_its_own_copy_of_the_data():
    case = sparse_case(100)
    objective = case.objective()
    J, _ = objective.value_and_gradient(case.net.theta)
    case.X[:] = 0.0
    case.Y[:] = 0.0
    assert objective.value_and_gradient(case.net.theta)[0] == J


def test_any_kind_of_array_is_welcome():
    case = sparse_case(70)
    J, g = case.objective().value_and_gradient(case.net.theta)
    frozen = case.X.copy()
    frozen.setflags(write=False)
    for X, Y in [
        (case.X.tolist(), case.Y.tolist()),
        (np.asfortranarray(case.X), np.asfortranarray(case.Y)),
        (frozen, case.Y),
        (np.repeat(case.X, 2, axis=0)[::2], case.Y[::-1].copy()[::-1]),
    ]:
        J2, g2 = mlpkit.Objective(case.net, X, Y).value_and_gradient(case.net.theta.tolist())
        assert J2 == J
        assert bits(g2) == bits(g)


def test_one_dimensional_targets_are_one_column():
    net = mlpkit.MLP([mlpkit.Input(3), mlpkit.Dense(1, "identity")])
    X, y = np.arange(12.0).reshape(4, 3), np.arange(4.0)
    costs = [mlpkit.Objective(net, X, Y).terms(net.theta) for Y in (y, y[:, np.newaxis])]
    assert costs[0] == costs[1]


def test_evaluate_returns_the_terms():
    case = sparse_case(90)
    found = case.net.evaluate(case.X, case.Y)
    for name, value in reference.terms(*case.arguments).items():
        assert found[name] == pytest.approx(value, rel=1e-12)


def test_memory_is_known_beforehand_and_smaller_without_kept_activations():
    case = sparse_case(20000)
    kept, recomputed = (case.objective(keep_activations=keep) for keep in (True, False))
    assert recomputed.memory < kept.memory
    assert recomputed.memory >= case.X.nbytes + case.Y.nbytes


def test_the_gradient_may_be_written_over_theta(rng):
    net = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(2, "sigmoid")], weight_decay=1.0, seed=0)
    X = rng.uniform(size=(5, 2))
    objective = mlpkit.Objective(net, X, X)
    J, gradient = objective.value_and_gradient(net.theta)
    theta = net.theta.copy()
    J2, gradient2 = objective.value_and_gradient(theta, out=theta)
    assert gradient2 is theta
    assert (J, bits(gradient)) == (J2, bits(theta))


def test_float32_weight_decay_is_summed_in_float64():
    net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "sigmoid", init=1e20)], weight_decay=0.5, dtype="float32")
    terms = mlpkit.Objective(net, [[1.0]], [1.0]).terms(net.theta)
    assert terms["weight_decay"] == pytest.approx(0.25e40, rel=1e-6)


# What it holds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("by_rows", [False, True], ids=["by pieces", "by rows"])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("change", ["none", "dtype", "weights"])
def test_memory_is_what_the_objective_says(by_rows, keep, change):
    m, sizes = 60_000, (64, 25, 40)
    case = sparse_case(m, sizes=sizes)
    X, w = case.X, None
    if change == "dtype":
        X = X.astype(np.float32)
    if change == "weights":
        w = np.arange(m) % 3 > 0
    with summed(by_rows):
        case.objective(keep_activations=keep).value_and_gradient(case.net.theta)  # compiles
        tracemalloc.start()
        try:
            objective = mlpkit.Objective(case.net, X, case.Y, w, keep_activations=keep)
            objective.value_and_gradient(case.net.theta)
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert 0.95 * objective.memory < held < 1.05 * objective.memory
    assert peak < 1.1 * objective.memory


def test_a_pickled_objective_computes_the_same_bits():
    case = sparse_case(300)
    objective = case.objective()
    J, g = objective.value_and_gradient(case.net.theta)
    J2, g2 = pickle.loads(pickle.dumps(objective)).value_and_gradient(case.net.theta)
    assert J == J2
    assert bits(g) == bits(g2)
    assert "300 examples" in repr(objective)


def test_a_read_only_theta_compiles_nothing():
    case = sparse_case(100)
    objective = case.objective()
    objective.value_and_gradient(case.net.theta)
    before = [len(sweep.signatures) for sweep in (*sweeps.forward_sweep, *sweeps.gradient_by_pieces)]
    theta = case.net.theta.copy()
    theta.flags.writeable = False
    objective.value_and_gradient(theta)
    assert before == [len(sweep.signatures) for sweep in (*sweeps.forward_sweep, *sweeps.gradient_by_pieces)]


# Guards -----------------------------------------------------------------------------------------


def test_an_evaluation_inside_an_evaluation_is_an_error(monkeypatch):
    case = sparse_case(50)
    objective = case.objective()
    inner = []

    def value(self, rho_hat):
        inner.append(objective.value_and_gradient(case.net.theta))
        return 0.0

    monkeypatch.setattr(mlpkit.KLSparsity, "value", value)
    with pytest.raises(mlpkit.MlpkitError, match="inside its own evaluation"):
        objective.value_and_gradient(case.net.theta)
    assert not inner
    monkeypatch.undo()
    objective.value_and_gradient(case.net.theta)  # and it is free again


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_child_forked_inside_an_evaluation_can_evaluate():
    program = """
import os, threading, warnings
import numpy as np, mlpkit
warnings.simplefilter("ignore", DeprecationWarning)
net = mlpkit.sparse_autoencoder(n_inputs=4, n_hidden=2, seed=0)
X = np.full((40, 4), 0.5)
objective = mlpkit.Objective(net, X, X)
expected = objective.value_and_gradient(net.theta)[0]
held, forked = threading.Event(), threading.Event()
def hold():
    with objective._exclusive:
        held.set()
        forked.wait()
threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if child == 0:
    os._exit(0 if objective.value_and_gradient(net.theta)[0] == expected else 1)
forked.set()
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
