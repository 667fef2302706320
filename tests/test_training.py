"""The training loop: what is recorded, what the network ends up with, and what goes wrong safely."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import minimize
from threadpoolctl import threadpool_info

import mlpkit
from mlpkit import LBFGS, MLP, ConjugateGradient, Dense, GradientDescent, Input, KLSparsity, Objective, errors
from mlpkit.errors import InvalidArgumentError, MissingExtraError
from mlpkit.history import FitResult, History, Iteration
from mlpkit.training import fit


def data(m=40, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 0.9, (m, 5)), rng.uniform(0.1, 0.9, (m, 2))


def network(dtype="float64"):
    layers = [
        Input(5),
        Dense(4, "sigmoid", sparsity=KLSparsity(0.2, 2.0)),
        Dense(2, "sigmoid"),
    ]
    return MLP(layers, weight_decay=1e-3, dtype=dtype, seed=0)


class Scripted:
    """An optimiser that visits given points and reports them all as accepted."""

    def __init__(self, *points, returns=None, reason="done"):
        self.points, self.returns, self.reason = points, returns, reason

    def minimize(self, evaluate, theta, report):
        evaluate(theta)
        for point in self.points:
            report(point, *evaluate(point))
        return (self.points[-1] if self.returns is None else self.returns), self.reason


@pytest.mark.parametrize(
    "optimizer", [LBFGS(max_iter=25), ConjugateGradient(max_iter=25), GradientDescent(0.1, 25, line_search=True)]
)
def test_fit_is_the_optimiser_on_the_objective(optimizer):
    X, Y = data()
    net = network()
    objective, start, reported = Objective(net, X, Y), net.theta.copy(), []
    expected, reason = optimizer.minimize(objective.value_and_gradient, start, lambda *point: reported.append(point))
    result = net.fit(X, Y, optimizer=optimizer)
    np.testing.assert_array_equal(net.theta, expected)
    assert [record.cost for record in result.history] == [cost for _, cost, _ in reported]
    assert (result.cost, result.n_iterations, result.reason) == (reported[-1][1], 25, reason)


def test_lbfgs_is_scipys_but_for_rounding():
    X, Y = data()
    net = network()
    options = {"maxiter": 25, "ftol": 0, "gtol": 0}
    fun = Objective(net, X, Y).value_and_gradient
    expected = minimize(fun, net.theta.copy(), jac=True, method="L-BFGS-B", options=options)
    result = net.fit(X, Y, optimizer=LBFGS(max_iter=25, ftol=0, gtol=0))
    np.testing.assert_allclose(net.theta, expected.x, rtol=1e-6, atol=1e-8)
    assert result.cost == pytest.approx(expected.fun, rel=1e-9)
    assert (result.n_iterations, result.n_evaluations) == (expected.nit, expected.nfev)


def test_gradient_descent_on_a_network_is_the_notes_algorithm():
    """W := W - alpha [(1/m) Delta W + lambda W] and b := b - alpha [(1/m) Delta b], all together."""
    X, Y = data()
    net = MLP([Input(5), Dense(3, "sigmoid"), Dense(2, "sigmoid")], weight_decay=0.01, seed=3)
    W1, W2 = (W.copy() for W in net.weights)
    b1, b2 = (b.copy() for b in net.biases)
    for _ in range(4):
        dW1, db1, dW2, db2 = (np.zeros_like(p) for p in (W1, b1, W2, b2))
        for x, y in zip(X, Y, strict=True):
            a2 = 1 / (1 + np.exp(-(W1 @ x + b1)))
            a3 = 1 / (1 + np.exp(-(W2 @ a2 + b2)))
            delta3 = -(y - a3) * a3 * (1 - a3)
            delta2 = (W2.T @ delta3) * a2 * (1 - a2)
            dW2, db2 = dW2 + np.outer(delta3, a2), db2 + delta3
            dW1, db1 = dW1 + np.outer(delta2, x), db1 + delta2
        m, alpha = len(X), 0.5
        W1, b1 = W1 - alpha * (dW1 / m + 0.01 * W1), b1 - alpha * db1 / m
        W2, b2 = W2 - alpha * (dW2 / m + 0.01 * W2), b2 - alpha * db2 / m
    result = net.fit(X, Y, optimizer=GradientDescent(alpha=0.5, max_iter=4))
    expected = np.concatenate([W1.ravel(), b1, W2.ravel(), b2])
    np.testing.assert_allclose(net.theta, expected, rtol=1e-12)
    assert (result.n_iterations, result.n_evaluations) == (4, 5)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_history_says_what_happened(dtype):
    X, Y = data()
    net = network(dtype)
    result = net.fit(X, Y, optimizer=LBFGS(max_iter=12))
    history = result.history
    assert [record.iteration for record in history] == list(range(1, 13))
    assert result.n_iterations == len(history) == 12
    for record in history:
        total = record.data + record.weight_decay + record.sparsity
        assert record.cost == pytest.approx(total, rel=1e-12)
        assert record.sparsity > 0
        assert record.weight_decay > 0
    assert (np.diff([record.cost for record in history]) < 0).all()
    assert (np.diff([record.n_evaluations for record in history]) >= 1).all()
    assert history[-1].n_evaluations == result.n_evaluations
    seconds = np.array([record.seconds for record in history])
    steps = np.array([record.iteration_seconds for record in history])
    np.testing.assert_allclose(np.cumsum(steps), seconds)
    assert (steps > 0).all()
    assert seconds[-1] <= result.seconds


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_result_is_that_of_the_final_parameters(dtype):
    X, Y = data()
    net = network(dtype)
    weights = np.arange(1.0, 41.0)
    result = net.fit(X, Y, optimizer=LBFGS(max_iter=9), sample_weight=weights)
    objective = Objective(net, X, Y, sample_weight=weights)
    cost, gradient = objective.value_and_gradient(net.theta)
    assert net.theta.dtype == dtype
    assert result.cost == cost == result.history[-1].cost
    assert result.terms == objective.terms(net.theta)
    norm = np.linalg.norm(gradient.astype(np.float64))
    assert result.history[-1].gradient_norm == pytest.approx(norm)


def test_the_history_is_data():
    X, Y = data()
    history = network().fit(X, Y, optimizer=LBFGS(max_iter=3)).history
    table = history.to_dict()
    assert list(table) == [
        "iteration",
        "cost",
        "data",
        "weight_decay",
        "sparsity",
        "gradient_norm",
        "n_evaluations",
        "seconds",
        "iteration_seconds",
        "n_hessian_products",
    ]
    assert table["iteration"] == [1, 2, 3]
    assert json.loads(json.dumps(table)) == table
    assert all(isinstance(record, Iteration) for record in history)
    assert History().to_dict()["cost"] == []


def test_the_result_is_readable():
    terms = {"data": 0.4, "weight_decay": 0.1, "sparsity": 0.0}
    result = FitResult(0.5, terms, 7, 9, "max_iter reached", 1.25, History())
    assert repr(result) == (
        "FitResult(cost=0.5, n_iterations=7, n_evaluations=9, seconds=1.25, reason='max_iter reached')"
    )
    assert "weight decay 0.1" in str(result)
    assert "max_iter reached" in str(result)


def test_a_second_fit_goes_on_from_the_first():
    X, Y = data()
    net = network()
    first = net.fit(X, Y, optimizer=LBFGS(max_iter=5))
    second = net.fit(X, Y, optimizer=LBFGS(max_iter=5))
    assert second.cost < first.cost


def test_no_iteration_leaves_the_parameters_and_still_has_a_result():
    X, Y = data()
    net = network()
    before = net.theta.copy()
    result = net.fit(X, Y, optimizer=LBFGS(gtol=1e6))
    assert result.reason == "converged: gradient below gtol"
    assert (result.n_iterations, result.n_evaluations) == (0, 1)
    assert result.cost == Objective(net, X, Y).value_and_gradient(before)[0]
    np.testing.assert_array_equal(net.theta, before)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_divergence_keeps_the_last_finite_parameters(dtype):
    X, Y = data()
    net = MLP([Input(5), Dense(3, "identity"), Dense(2, "identity")], dtype=dtype, seed=0)
    result = net.fit(X, Y, optimizer=GradientDescent(alpha=1e3, max_iter=1000))
    assert result.reason.startswith("diverged: ")
    assert 0 < result.n_iterations < 100
    assert np.isfinite(net.theta).all()
    assert np.isfinite(result.cost)
    assert result.cost == result.history[-1].cost
    assert all(np.isfinite(record.cost) for record in result.history)
    assert result.cost == Objective(net, X, Y).value_and_gradient(net.theta)[0]


def test_an_optimiser_that_accepts_nan_is_stopped():
    """An optimiser of the user's is watched like our own."""
    X, Y = data()
    net = network()
    good = np.full(net.n_parameters, 0.1)
    result = net.fit(X, Y, optimizer=Scripted(good, np.full(net.n_parameters, np.nan), good))
    assert result.reason.startswith("diverged: ")
    assert result.n_iterations == 1
    np.testing.assert_array_equal(net.theta, good)


def test_an_optimiser_may_return_what_it_did_not_report():
    X, Y = data()
    net = network()
    first, last = np.full(net.n_parameters, 0.1), np.full(net.n_parameters, 0.05)
    result = net.fit(X, Y, optimizer=Scripted(first, returns=last))
    np.testing.assert_array_equal(net.theta, last)
    assert result.cost == Objective(net, X, Y).value_and_gradient(last)[0]
    assert result.history[-1].cost != result.cost


def test_the_network_is_written_only_at_the_end():
    X, Y = data()
    net = network()
    before = net.theta.copy()
    live = net.theta

    class Watching(Scripted):
        def minimize(self, evaluate, theta, report):
            answer = super().minimize(evaluate, theta, report)
            np.testing.assert_array_equal(net.theta, before)
            return answer

    net.fit(X, Y, optimizer=Watching(before + 0.1))
    np.testing.assert_array_equal(net.theta, before + 0.1)
    assert net.theta is live


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_leaves_the_last_good_parameters(error):
    X, Y = data()
    net = network()
    good = np.full(net.n_parameters, 0.1)

    class Failing(Scripted):
        def minimize(self, evaluate, theta, report):
            super().minimize(evaluate, theta, report)
            evaluate(good * 2)
            raise error

    with pytest.raises(error):
        net.fit(X, Y, optimizer=Failing(good))
    np.testing.assert_array_equal(net.theta, good)


def test_a_start_that_is_not_finite_is_a_clear_error():
    X, Y = data()
    net = MLP([Input(5), Dense(2, "identity", init=1e200)])
    with pytest.raises(InvalidArgumentError, match="starting point"):
        net.fit(X, Y)
    assert (net.weights[0] == 1e200).all()


@pytest.mark.parametrize("optimizer", ["adam", LBFGS, 3])
def test_an_optimizer_must_be_one(optimizer):
    X, Y = data()
    with pytest.raises(InvalidArgumentError, match="optimizer must be"):
        network().fit(X, Y, optimizer=optimizer)


def test_bad_data_are_named():
    X, Y = data()
    with pytest.raises(InvalidArgumentError, match="X"):
        network().fit(X[:, :2], Y)
    with pytest.raises(InvalidArgumentError, match="sample_weight"):
        network().fit(X, Y, sample_weight=-np.ones(40))


def test_blas_is_held_to_one_thread_and_given_back():
    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    X, Y = data()
    before, during = threads(), []

    class Watching(Scripted):
        def minimize(self, evaluate, theta, report):
            during.extend(threads())
            return super().minimize(evaluate, theta, report)

    net = network()
    net.fit(X, Y, optimizer=Watching(net.theta + 0.1))
    assert during
    assert set(during) == {1}
    assert threads() == before
    with pytest.raises(InvalidArgumentError):
        net.fit(X, Y[:3])
    assert threads() == before


def test_progress_is_a_line_on_stderr(capsys):
    pytest.importorskip("rich")
    X, Y = data()
    network().fit(X, Y, optimizer=LBFGS(max_iter=6), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "6/6  " in err
    network().fit(X, Y, optimizer=LBFGS(max_iter=6))
    assert capsys.readouterr() == ("", "")


def test_progress_without_rich_names_the_extra(monkeypatch):
    X, Y = data()

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(errors.importlib, "import_module", missing)
    net = network()
    before = net.theta.copy()
    with pytest.raises(MissingExtraError, match=r"mlpkit\[progress\]"):
        fit(net, X, Y, progress=True)
    np.testing.assert_array_equal(net.theta, before)


def test_scipys_optimisers_are_imported_on_use():
    """They take 0.2 s, which those who only predict should not pay."""
    code = "import sys, mlpkit; assert 'scipy.optimize' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("keep_activations", [True, False])
def test_both_memory_modes_train_to_the_same_bits(keep_activations):
    X, Y = data()
    net, other = network(), network()
    net.fit(X, Y, optimizer=LBFGS(max_iter=20))
    other.fit(X, Y, optimizer=LBFGS(max_iter=20), keep_activations=keep_activations)
    np.testing.assert_array_equal(net.theta, other.theta)


def test_a_fit_is_put_on_record_with_the_network():
    net, X = mlpkit.sparse_autoencoder(4, 2, seed=3), np.random.default_rng(0).uniform(0.2, 0.8, (20, 4))
    assert net.provenance is None
    result = net.fit(X, X, optimizer=mlpkit.LBFGS(max_iter=3))
    record = net.provenance
    assert record["optimizer"].startswith("LBFGS(max_iter=3")
    assert (record["iterations"], record["evaluations"]) == (result.n_iterations, result.n_evaluations)
    assert (record["terms"], record["reason"]) == (result.terms, result.reason)
    assert (record["seed"], record["examples"]) == (3, 20)
    again = mlpkit.sparse_autoencoder(4, 2, seed=3)
    again.fit(np.asfortranarray(X), X.copy(), optimizer=mlpkit.LBFGS(max_iter=1))
    assert again.provenance["data"] == record["data"], "the same numbers, however they lie in memory"
    again.fit(X + 0.1, X, optimizer=mlpkit.LBFGS(max_iter=1))
    assert again.provenance["data"] != record["data"]
