"""Stochastic optimisers as users meet them: the same bits everywhere, seeds, noise, data of any kind, and errors."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import reference
from reference_steps import Training

import mlpkit
from mlpkit import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Dense,
    GaussianNoise,
    Input,
    KLSparsity,
    MaskingNoise,
    RMSprop,
    minibatch,
)
from mlpkit.pace import Pace

THREADS = [n for n in (1, 2, 4) if n <= numba.config.NUMBA_NUM_THREADS]
DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])
RULES = {
    "sgd": SGD(0.05),
    "momentum": SGD(0.02, momentum=0.8),
    "nesterov": SGD(0.02, momentum=0.8, nesterov=True),
    "rmsprop": RMSprop(0.01),
    "adagrad": Adagrad(0.05),
    "adam": Adam(0.01),
    "adamw": AdamW(0.01),
}
ALL_RULES = pytest.mark.parametrize("rule", RULES)


def network(sizes=(12, 9, 5), dtype="float64", seed=0, noise=None, dropout=0.0, **options):
    """Return a network whose first hidden layer is sparse, or has dropout."""
    first = {"dropout": dropout} if dropout else {"sparsity": KLSparsity(0.1, 0.5)}
    layers = [Input(sizes[0], noise), Dense(sizes[1], "sigmoid", **first)]
    layers += [Dense(units, "tanh") for units in sizes[2:-1]]
    return mlpkit.MLP([*layers, Dense(sizes[-1], "sigmoid")], weight_decay=0.01, dtype=dtype, seed=seed, **options)


def examples(m, n_in=12, n_out=5, dtype="float64"):
    rng = np.random.default_rng(7)
    return rng.uniform(0.1, 0.9, (m, n_in)).astype(dtype), rng.uniform(0.1, 0.9, (m, n_out)).astype(dtype)


def trained(net, X, Y, optimizer, **options):
    """Return all that training leaves behind, but times, as bytes."""
    net = copy.copy(net)
    result = net.fit(X, Y, optimizer, **options)
    kept = ("iteration", "cost", "data", "weight_decay", "sparsity", "gradient_norm", "n_evaluations")
    history = np.array([[record[name] for name in kept] for record in result.history])
    return net.theta.tobytes(), history.tobytes(), result.reason


# To the bit -------------------------------------------------------------------------------------


@pytest.fixture
def launches(monkeypatch):
    """Let all threads work on every slice, of `launches.steps`; `launches.seen` counts how they were started."""

    found, launch = SimpleNamespace(steps=3, seen=Counter()), minibatch.launch

    def watched(*arguments, workers, serial):
        found.seen[workers, serial] += 1
        return launch(*arguments, workers=workers, serial=serial)

    monkeypatch.setattr(minibatch, "launch", watched)
    monkeypatch.setattr(Pace, "next", lambda self: (min(mlpkit.get_num_threads(), self._most_workers), found.steps))
    return found


@pytest.fixture
def any_threads():
    before = mlpkit.get_num_threads()
    yield
    mlpkit.set_num_threads(before)


# Odd numbers, so that threads share out what does not divide; the last batch, of 21, has fewer panels than threads.
LARGE = (63, 41, 47, 61)
CHOICES = {
    "plain": ({}, {}),
    "clipped": ({}, {"clip_norm": 0.05, "clip_value": 0.02}),
    "dropout": ({"dropout": 0.4}, {}),
    "running mean": ({}, {"rho_hat_momentum": 0.9}),
}


@DTYPES
@ALL_RULES
@pytest.mark.parametrize("choice", CHOICES)
def test_any_number_of_threads_gives_the_same_bits(choice, rule, dtype, launches, any_threads):
    of_network, of_optimizer = CHOICES[choice]
    net = network(LARGE, dtype, noise=GaussianNoise(0.1) if choice == "plain" else None, **of_network)
    X, Y = examples(621, LARGE[0], LARGE[-1], dtype)
    weights = np.random.default_rng(0).integers(1, 4, 621) / 4
    optimizer = replace(RULES[rule], batch_size=300, max_epochs=2, **of_optimizer)
    found = set()
    for n in THREADS:
        mlpkit.set_num_threads(n)
        launches.seen.clear()
        found.add(trained(net, X, Y, optimizer, sample_weight=weights))
        assert set(launches.seen) == {(n, n == 1)}, "steps did not run as they should"
    assert len(found) == 1


@pytest.mark.parametrize("steps", [1, 2, 5, 10_000])
@pytest.mark.parametrize("choice", CHOICES)
def test_where_slices_end_changes_nothing(choice, steps, launches):
    of_network, of_optimizer = CHOICES[choice]
    net, (X, Y) = network(**of_network), examples(203)
    optimizer = Adam(0.01, batch_size=10, max_epochs=3, **of_optimizer)
    expected = trained(net, X, Y, optimizer)
    launches.steps = steps
    launches.seen.clear()
    assert trained(net, X, Y, optimizer) == expected
    assert launches.seen.total() == 3 * -(-21 // steps)


@DTYPES
def test_a_batch_that_is_larger_than_the_data_is_all_of_them(dtype):
    net, (X, Y) = network(dtype=dtype), examples(43, dtype=dtype)
    one, two = (trained(net, X, Y, Adam(batch_size=size, max_epochs=3)) for size in (43, 10**9))
    assert one == two


# Orders and seeds -------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    net, (X, Y) = network(noise=MaskingNoise(0.2), dropout=0.3), examples(50)
    optimizer = Adam(0.01, batch_size=8, max_epochs=2)
    results = {
        seed: {trained(net, X, Y, replace(optimizer, seed=seed)) for _ in range(2)} for seed in (None, 0, 1, 10**30)
    }
    assert all(len(found) == 1 for found in results.values())
    assert results[None] == results[0], "the network's seed is 0"
    assert len(results[0] | results[1] | results[10**30]) == 3


def test_the_optimisers_seed_goes_before_the_networks():
    X, Y = examples(50)
    nets = [network(seed=seed, dropout=0.3) for seed in (1, 2)]
    nets[1].theta = nets[0].theta
    given, own = (
        [trained(net, X, Y, Adam(batch_size=8, max_epochs=2, seed=seed)) for net in nets] for seed in (5, None)
    )
    assert given[0] == given[1]
    assert own[0] != own[1]


def test_without_any_seed_orders_differ():
    net, (X, Y) = network(seed=None), examples(50)
    assert trained(net, X, Y, Adam(batch_size=8, max_epochs=2)) != trained(net, X, Y, Adam(batch_size=8, max_epochs=2))


def test_examples_keep_their_order_without_shuffling():
    net = mlpkit.MLP([Input(1), Dense(1, "identity", init=0.0, bias=False)], seed=0)
    result = net.fit(np.ones((3, 1)), [[1.0], [2.0], [4.0]], SGD(0.5, batch_size=1, max_epochs=1, shuffle=False))
    # 0 -> 1/2 -> 5/4 -> 21/8
    assert net.theta[0] == 21 / 8
    assert result.terms["data"] == (1 + 1.5**2 + 2.75**2) / 2 / 3
    assert result.n_evaluations == 3


def test_every_epoch_has_an_order_of_its_own_in_which_each_example_comes_once():
    # Each example moves a weight of its own, by the number of steps before it: theta says when it was seen.
    m = 12
    net = mlpkit.MLP([Input(m), Dense(m, "identity", init=0.0, bias=False)], seed=0)
    orders = []
    for epochs in (1, 2):
        net.theta = np.zeros(net.n_parameters)
        first = (epochs - 1) * m
        rate = SGD(lambda t, first=first: max(0.0, 1e-3 * (round(t * m) - first + 1)), batch_size=1, max_epochs=epochs)
        net.fit(np.eye(m), np.ones((m, m)), rate)
        orders.append(np.round(1e3 * np.diag(net.weights[0])).astype(int))
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(1, m + 1))
    assert (orders[0] != orders[1]).any()
    assert (orders[0] != np.arange(1, m + 1)).any()


# Noise ------------------------------------------------------------------------------------------


def test_noise_is_drawn_anew_for_each_epoch():
    net, (X, _) = network((12, 9, 12), noise=MaskingNoise(0.4)), examples(2500)

    def spoil(X, generator):
        return np.where(generator.random(X.shape) < 0.4, 0.0, X)

    optimizer = SGD(0.5, batch_size=500, max_epochs=3)
    twin = Training(net, X, X, None, optimizer, spoil)
    net.fit(X, X, optimizer)
    assert max(reference.layer_errors(twin.network, net.theta, twin.run(3))) < 1e-12


def test_targets_stay_clean():
    X, _ = examples(40)
    kept = X.copy()
    net = network((12, 9, 12), noise=MaskingNoise(1.0))
    before = net.weights[0].copy()
    net.fit(X, X, AdamW(0.1, batch_size=10, max_epochs=200))
    np.testing.assert_array_equal(X, kept)
    # nothing is known of the inputs: W^(1) only decays, and outputs become what is best for all examples together
    np.testing.assert_allclose(net.weights[0], before * (1 - 0.1 * 0.01) ** 800, rtol=1e-10)
    np.testing.assert_allclose(net.predict(np.zeros((1, 12)))[0], X.mean(axis=0), atol=0.05)


def test_nothing_but_training_drops_units_or_adds_noise():
    net, plain = network(dropout=0.5, noise=MaskingNoise(0.5)), network(dropout=1e-12)
    X, Y = examples(30)
    np.testing.assert_array_equal(net.predict(X), plain.predict(X))
    np.testing.assert_array_equal(net.activations(X)[0], plain.activations(X)[0])
    assert net.evaluate(X, Y) == plain.evaluate(X, Y)
    assert mlpkit.check_gradient(net, X, Y).ok
    result = net.fit(X, Y, SGD(lambda epochs: 0.0, max_epochs=1), validation=(X, Y))
    assert result.history[0]["validation_loss"] == pytest.approx(plain.evaluate(X, Y)["data"], rel=1e-14)
    assert result.cost != pytest.approx(sum(plain.evaluate(X, Y).values()), rel=1e-3)


# Data -------------------------------------------------------------------------------------------


def test_data_of_any_kind_and_order_give_the_same_bits():
    X, Y = examples(45)
    X, Y = X.astype(np.float32).astype(np.float64), Y.astype(np.float32).astype(np.float64)
    net, optimizer = network(), Adam(0.01, batch_size=7, max_epochs=2)
    expected = trained(net, X, Y, optimizer)
    frozen = X.copy(), Y.copy()
    for array in frozen:
        array.flags.writeable = False
    wide = np.zeros((90, 24))
    wide[::2, ::2] = X
    for one, two in [
        frozen,
        (np.asfortranarray(X), np.asfortranarray(Y)),
        (X.astype(np.float32), Y.astype(np.float32)),
        (X.astype(">f8"), Y),
        (wide[::2, ::2], Y),
        (X.tolist(), Y.tolist()),
    ]:
        assert trained(net, one, two, optimizer) == expected


@DTYPES
def test_equal_inputs_and_targets_are_one_data_set(dtype):
    X, _ = examples(45, dtype=dtype)
    net, optimizer = network((12, 9, 12), dtype), Adam(0.01, batch_size=7, max_epochs=2)
    assert trained(net, X, X, optimizer) == trained(net, X, X.copy(), optimizer)


@DTYPES
def test_rows_of_weight_zero_do_not_exist(dtype):
    X, Y = examples(60, dtype=dtype)
    counts = np.random.default_rng(2).random(60) < 0.6
    net, optimizer = network(dtype=dtype), Adam(0.01, batch_size=7, max_epochs=3)
    weighted = trained(net, X, Y, optimizer, sample_weight=counts.astype(float))
    assert weighted == trained(net, X[counts], Y[counts], optimizer)


@pytest.mark.parametrize("factor", [2.0**-1000, 2.0**20, 1e300])
def test_only_the_proportions_of_weights_matter(factor):
    X, Y = examples(40)
    weights = np.random.default_rng(2).integers(1, 9, 40) / 4
    one, two = network(), network()
    for net, w in ((one, weights), (two, factor * weights)):
        net.fit(X, Y, Adam(0.01, batch_size=7, max_epochs=3), sample_weight=w)
    assert reference.relative_error(one.theta, two.theta) < 1e-12


def test_labels_are_one_hot_rows():
    net = mlpkit.MLP([Input(12), Dense(6, "tanh"), Dense(4, "softmax")], loss="cross_entropy", seed=0)
    X, labels = examples(50)[0], np.arange(50) % 4
    optimizer = Adam(0.01, batch_size=7, max_epochs=2)
    expected = trained(net, X, labels, optimizer)
    assert trained(net, X, np.eye(4)[labels], optimizer) == expected
    assert trained(net, X, labels, optimizer, class_weight=[3, 3, 3, 3]) != expected[:0]
    balanced = trained(net, X, labels, optimizer, class_weight="balanced")
    each = trained(net, X, labels, optimizer, sample_weight=1 / np.array([13, 13, 12, 12])[labels])
    assert reference.relative_error(*(np.frombuffer(found[0]) for found in (balanced, each))) < 1e-12


def test_one_row_and_one_column_are_enough():
    net = mlpkit.MLP([Input(1), Dense(1, "identity", init=0.0)], seed=0)
    result = net.fit([[1.0]], [1.0], SGD(0.25, max_epochs=2))
    np.testing.assert_array_equal(net.theta, [0.375, 0.375])
    assert result.terms["data"] == 0.125
    assert [record.iteration for record in result.history] == [1, 2]


@ALL_RULES
def test_training_gets_somewhere(rule):
    net, (X, Y) = network(), examples(200)
    first = sum(net.evaluate(X, Y).values())
    net.fit(X, Y, replace(RULES[rule], batch_size=20, max_epochs=40))
    best = network()
    least = best.fit(X, Y, mlpkit.LBFGS(max_iter=400)).cost
    assert sum(net.evaluate(X, Y).values()) - least < 0.25 * (first - least)
