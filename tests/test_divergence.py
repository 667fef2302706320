"""Trainings that must diverge: they say what went first, and leave the last finite parameters behind."""

from __future__ import annotations

import re

import numpy as np
import pytest
from trainings import data

from mlpkit import (
    LBFGS,
    MLP,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    ConjugateGradient,
    Dense,
    EarlyStopping,
    GaussianNoise,
    GradientDescent,
    Input,
    KLSparsity,
    Objective,
    RMSprop,
    minibatch,
    pace,
)
from mlpkit.checkpoint import read_checkpoint
from mlpkit.divergence import first_failure
from mlpkit.schedules import ExponentialSchedule

DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])
X, Y = data()


# A rate that is small at first, doubled or more after each epoch.
GROWING = ExponentialSchedule(0.01, 2.0)


def network(dtype, hidden="identity", output="identity", **options):
    return MLP([Input(5), Dense(3, hidden), Dense(2, output)], dtype=dtype, seed=0, **options)


def fails(net, optimizer, X=X, Y=Y, **arguments):
    """Train, which must diverge; return the result and what went first."""
    result = net.fit(X, Y, optimizer, **arguments)
    found = re.match(r"diverged: (.+) became infinite or NaN first, (?:after|at) ", result.reason)
    assert found, result.reason
    assert re.search("before it are kept|last finite parameters are kept", result.reason)
    assert np.isfinite(net.theta).all()
    assert all(np.isfinite(record.cost) for record in result.history)
    return result, found[1]


# --------------------------------------------------------------------------------------------- what went first


@DTYPES
@pytest.mark.parametrize(
    "optimizer", [SGD(1e8, batch_size=8), SGD(1e8, momentum=0.9, batch_size=8), GradientDescent(1e8, 1000)]
)
def test_a_rate_that_is_too_large(optimizer, dtype):
    """J, a square, overflows before activations do, or in float32 also with them."""
    result, what = fails(network(dtype), optimizer)
    assert what in ("the data term of J", "the activations of layer 3", "the gradient of W^(2)")
    assert result.n_evaluations < 20


@DTYPES
@pytest.mark.parametrize(
    "optimizer",
    [SGD(1.0, batch_size=8), Adam(1000.0, batch_size=8), AdamW(1000.0, batch_size=8), GradientDescent(1.0, 1000)],
)
def test_exponentials(optimizer, dtype):
    _, what = fails(network(dtype, hidden="exp"), optimizer, Y=1e3 * Y)
    assert what == "the activations of layer 2"


@DTYPES
def test_exponentials_of_the_output(dtype):
    _, what = fails(network(dtype, output="exp"), SGD(1.0, batch_size=8), Y=1e3 * Y)
    assert what == "the activations of layer 3"


@DTYPES
@pytest.mark.parametrize("optimizer", [Adam, AdamW, RMSprop, Adagrad])
def test_steps_beyond_all_floats(optimizer, dtype):
    """A step of any size is what these take: theta overflows, or the first layer's sums do."""
    rate = 1e308 if dtype == "float64" else 3e38
    net = network(dtype, hidden="tanh", output="sigmoid")
    result = net.fit(X, Y, optimizer(rate, batch_size=4, max_epochs=500))
    assert np.isfinite(net.theta).all()
    if result.reason != "max_epochs reached":  # saturated, every gradient may vanish
        assert result.reason.startswith("diverged: ")
        assert "the step" not in result.reason


@DTYPES
@pytest.mark.parametrize("optimizer", [SGD, GradientDescent])
def test_parameters_that_overflow_are_named(optimizer, dtype):
    rate = 3e38 if dtype == "float32" else 1.7e308
    net = network(dtype)
    before = net.theta.copy()
    options = {"batch_size": 60} if optimizer is SGD else {"max_iter": 5}
    result, what = fails(net, optimizer(rate, **options), 1e3 * X, 1e3 * Y)
    assert what == "W^(1)"
    assert result.n_iterations == 0
    np.testing.assert_array_equal(net.theta, before)


@DTYPES
def test_weight_decay_that_overflows_is_named(dtype):
    net = MLP([Input(5), Dense(2, "sigmoid")], weight_decay=1e30, dtype=dtype, seed=0)
    result, what = fails(net, SGD(1e-29, batch_size=60, max_epochs=10_000))
    assert what in ("the weight decay term of J", "the gradient of W^(1)", "W^(1)")
    assert result.n_iterations > 3


def test_what_a_users_optimiser_accepts():
    class Leaping:
        def minimize(self, evaluate, theta, report):
            report(theta / 2, *evaluate(theta / 2))
            far = np.full_like(theta, 1e90)
            report(far, *evaluate(far))

    net = network("float64")
    before = net.theta.copy()
    result, what = fails(net, Leaping())
    assert (what, result.n_iterations) == ("the data term of J", 1)
    assert "after iteration 2" in result.reason
    np.testing.assert_array_equal(net.theta, before / 2)


def test_rows_that_are_left_out_are_not_to_blame():
    weights = np.ones(60)
    weights[7] = 0
    wild = X.copy()
    wild[7] = 1e300
    net = network("float64", hidden="exp")
    _, what = fails(net, GradientDescent(1e8, 1000), wild, Y, sample_weight=weights)
    assert what == "the activations of layer 2"


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (0, np.nan, "W^(1)"),
        (15, np.inf, "b^(1)"),
        (18, -np.inf, "W^(2)"),
        (25, np.nan, "b^(2)"),
        (0, 1e308, "the activations of layer 2"),
        (18, 1e308, "the activations of layer 3"),
        (18, 1e200, "the data term of J"),
    ],
)
def test_the_order_is_that_of_computation(place, value, expected):
    net = MLP([Input(5), Dense(3, "identity"), Dense(2, "identity")], seed=0)
    theta = np.ones(net.n_parameters)
    theta[place] = value
    evaluate = Objective(net, 10 * X, Y).terms_and_gradient
    assert first_failure(net, theta, 10 * X, evaluate) == expected
    theta[place + 1 :] = value
    assert first_failure(net, theta, 10 * X, evaluate) == expected or value > 1


# ---------------------------------------------------------------------------------------------- what is left


@DTYPES
@pytest.mark.parametrize("seconds", [0.0, 1.0])
@pytest.mark.parametrize("size", [1, 7])
def test_the_parameters_are_those_before_the_step_that_fails(size, seconds, dtype, monkeypatch):
    """However many steps are taken at a time, and wherever in them it lies."""
    monkeypatch.setattr(pace, "_SLICE_SECONDS", seconds)
    optimizer = SGD(2.0, batch_size=size, max_epochs=200)
    net, other, more = (MLP([Input(5), Dense(2, "identity")], dtype=dtype, seed=0) for _ in range(3))
    result, _ = fails(net, optimizer)
    step = int(re.search(r"at step (\d+) of epoch", result.reason)[1])
    epoch = int(re.search(r"of epoch (\d+)", result.reason)[1])
    assert result.n_iterations == epoch - 1
    total = (epoch - 1) * -(-60 // size) + step
    assert result.n_evaluations == total
    assert total > 30
    other.fit(X, Y, optimizer, max_evaluations=total - 1)
    np.testing.assert_array_equal(net.theta, other.theta)
    assert more.fit(X, Y, optimizer, max_evaluations=total).reason == result.reason


def test_what_went_first_does_not_depend_on_the_moment(monkeypatch):
    """With dropout, noise, class labels and penalties on means as well."""
    layers = [
        Input(5, noise=GaussianNoise(0.1)),
        Dense(6, "identity", dropout=0.3),
        Dense(4, "sigmoid", sparsity=KLSparsity(0.2, 1.0)),
        Dense(3, "identity", dropout=0.3),
        Dense(3, "softmax"),
    ]
    labels = np.arange(60) % 3
    found = set()
    for seconds in (0.0, 0.001, 10.0):
        monkeypatch.setattr(pace, "_SLICE_SECONDS", seconds)
        monkeypatch.setattr(minibatch, "_SECONDS_BETWEEN_COPIES", seconds / 10)
        net = MLP(layers, loss="cross_entropy", seed=0)
        optimizer = Adam(ExponentialSchedule(1e-3, 100.0), batch_size=4, rho_hat_momentum=0.9, max_epochs=150)
        result, _ = fails(net, optimizer, Y=labels, class_weight="balanced", sample_weight=np.linspace(0, 1, 60))
        assert result.n_iterations > 3
        found.add((result.reason, net.theta.tobytes()))
    assert len(found) == 1


def test_no_record_is_infinite():
    """Squares of weights overflow before the step that fails: it is said at the end of the epoch."""
    net = network("float64", weight_decay=1e-3)
    result, what = fails(net, SGD(3.0, batch_size=20, momentum=0.5))
    assert what == "the weight decay term of J"
    assert "at the end of epoch 2" in result.reason
    assert result.n_iterations == 1


@DTYPES
def test_full_batch_keeps_the_last_iteration(dtype):
    net, other = network(dtype), network(dtype)
    result, _ = fails(net, GradientDescent(10.0, 1000))
    assert 1 < result.n_iterations < 100
    other.fit(X, Y, GradientDescent(10.0, result.n_iterations))
    np.testing.assert_array_equal(net.theta, other.theta)
    assert result.cost == result.history[-1].cost
    assert f"after iteration {result.n_iterations + 1}" in result.reason
    assert "a smaller alpha than 10 may help" in result.reason
    assert net.provenance["reason"] == result.reason


@pytest.mark.parametrize("optimizer", [LBFGS(max_iter=50), ConjugateGradient(max_iter=50)])
def test_trials_that_overflow_are_no_divergence(optimizer):
    """Exponentials of exponentials are not finite a short way from the minimum."""
    net = MLP([Input(5), Dense(4, "exp"), Dense(2, "exp")], seed=0)
    result = net.fit(X, 1 + 10 * Y, optimizer)
    assert not result.reason.startswith("diverged")
    assert np.isfinite(net.theta).all()
    costs = [record.cost for record in result.history]
    assert np.isfinite(costs).all()
    assert costs[-1] < costs[0]


def test_the_best_iteration_comes_back():
    net, other = network("float64"), network("float64")
    stop = EarlyStopping("cost")
    result, _ = fails(net, SGD(GROWING, batch_size=20), early_stopping=stop)
    assert stop.best_iteration == result.iteration == min(result.history, key=lambda record: record.cost).iteration
    assert 1 < result.iteration < result.n_iterations
    other.fit(X, Y, SGD(GROWING, batch_size=20, max_epochs=result.iteration))
    np.testing.assert_array_equal(net.theta, other.theta)
    assert result.cost == stop.best


@pytest.mark.parametrize("optimizer", [SGD(GROWING, batch_size=20), GradientDescent(10.0, 1000)])
def test_the_checkpoint_is_of_the_last_iteration(optimizer, tmp_path):
    net, again = network("float64"), network("float64")
    result, _ = fails(net, optimizer, checkpoint=tmp_path / "run.h5")
    found = read_checkpoint(tmp_path / "run.h5")
    assert found.optimizer["iteration"] == result.n_iterations == len(result.history) > 2
    resumed, _ = fails(again, optimizer, resume=tmp_path / "run.h5")
    assert (resumed.reason, resumed.n_evaluations) == (result.reason, result.n_evaluations)
    np.testing.assert_array_equal(again.theta, net.theta)


def test_at_once_there_is_no_cost_and_the_network_can_be_saved(tmp_path):
    net = network("float32")
    before = net.theta.copy()
    result, what = fails(net, Adam(1e300))
    assert (what, result.n_iterations, result.n_evaluations) == ("W^(1)", 0, 1)
    assert np.isnan(result.cost)
    assert "nan" in str(result)
    np.testing.assert_array_equal(net.theta, before)
    assert net.provenance["terms"] == {"data": None, "weight_decay": None, "sparsity": None}
    net.save(tmp_path / "net.h5")
