"""Validation data in every form, and metrics on them or on the training data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from trainings import OPTIMIZERS, data, network

from mlpkit import LBFGS, MLP, Adam, Dense, GaussianNoise, Input, InvalidArgumentError, Objective, monitor, per_example
from mlpkit.monitor import Examples, Monitor, hold_out

X, Y = data()
VX, VY = data(m=23, seed=1)


def classifier(loss="cross_entropy"):
    return MLP([Input(5), Dense(4, "tanh"), Dense(3, "softmax")], loss=loss, seed=0)


def thetas(seen):
    """Return a callback that keeps the parameters of each iteration."""
    return lambda run: seen.append(run.net.theta.copy())


# -------------------------------------------------------------------------------------------- validation data


@pytest.mark.parametrize("name", ["lbfgs", "adam"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_validation_loss_is_the_data_term_on_validation_data(name, weighted, dtype):
    weights = np.random.default_rng(0).uniform(0, 2, 23) * (np.arange(23) != 4) if weighted else None
    net, seen = network(dtype), []
    validation = (VX, VY, weights) if weighted else (VX, VY)
    result = net.fit(X, Y, OPTIMIZERS[name], validation=validation, callbacks=[thetas(seen)])
    objective = Objective(net, VX, VY, weights)
    expected = [objective.terms(theta)["data"] for theta in seen]
    found = [record["validation_loss"] for record in result.history]
    assert len(found) == 30
    np.testing.assert_allclose(found, expected, rtol=1e-12 if dtype == "float64" else 1e-5)
    assert result.history[-1].names()[-1] == "validation_loss"


def test_validation_does_not_change_training():
    nets = [network() for _ in range(3)]
    for net, more in zip(nets, ({}, {"validation": (VX, VY)}, {"metrics": ["r2"]}), strict=True):
        net.fit(X, Y, OPTIMIZERS["adam"], **more)
    np.testing.assert_array_equal(nets[0].theta, nets[1].theta)
    np.testing.assert_array_equal(nets[0].theta, nets[2].theta)


@pytest.mark.parametrize("name", ["lbfgs", "adam"])
def test_a_fraction_holds_out_rows_that_training_does_not_see(name):
    """Each row once, on one side: seen by a metric, and by training on the others alone."""
    sample_weight = np.linspace(0.5, 2, 60)
    mask = np.arange(120).reshape(60, 2) % 7 > 0
    held = []

    def look(targets, outputs, weights, mask):
        held.append((targets.copy(), weights.copy(), mask.copy()))
        return 0.0

    net, other = network(), network()
    arguments = {"sample_weight": sample_weight, "mask": mask}
    result = net.fit(X, Y, OPTIMIZERS[name], **arguments, validation=0.3, metrics=[look])
    targets, weights, counts = held[0]
    rows = np.flatnonzero((Y[:, np.newaxis] == targets).all(axis=2).any(axis=1))
    assert rows.size == len(targets) == 18
    assert not (np.diff(rows) == 1).all()
    np.testing.assert_array_equal(targets, Y[rows])  # in their order
    np.testing.assert_array_equal(weights, sample_weight[rows])
    np.testing.assert_array_equal(counts, mask[rows])
    rest = np.setdiff1d(np.arange(60), rows)
    other.fit(X[rest], Y[rest], OPTIMIZERS[name], sample_weight=sample_weight[rest], mask=mask[rest])
    np.testing.assert_array_equal(net.theta, other.theta)
    expected = Objective(net, X[rows], Y[rows], weights, mask=mask[rows]).terms(net.theta)["data"]
    assert result.history[-1]["validation_loss"] == pytest.approx(expected, rel=1e-12)


def test_which_rows_are_held_out_is_the_networks_seed_and_nothing_else():
    def held(seed, optimizer):
        found = []
        metric = {"look": lambda targets, outputs: found.append(targets.copy()) or 0.0}
        network(seed=seed).fit(X, Y, optimizer, validation=0.5, metrics=metric)
        return found[0]

    first = held(0, Adam(max_epochs=1))
    np.testing.assert_array_equal(first, held(0, LBFGS(max_iter=1)))
    assert (first != held(1, LBFGS(max_iter=1))).any()


def test_a_fraction_of_an_autoencoders_data():
    held = []
    net = MLP([Input(5, noise=GaussianNoise(0.1)), Dense(3, "sigmoid"), Dense(5, "sigmoid")], seed=0)
    metric = {"look": lambda targets, outputs: held.append((targets.copy(), outputs.copy())) or 0.0}
    result = net.fit(X, X, LBFGS(max_iter=3), validation=0.2, metrics=metric)
    targets, outputs = held[-1]
    assert len(targets) == 12
    np.testing.assert_array_equal(net.predict(targets), outputs)  # of inputs without noise
    expected = 0.5 * ((targets - outputs) ** 2).sum(axis=1).mean()
    assert result.history[-1]["validation_loss"] == pytest.approx(expected, rel=1e-12)


def test_labels_frames_and_lists():
    labels = np.arange(60) % 3
    net = classifier()
    frames = (pd.DataFrame(VX), pd.Series(np.arange(23) % 3))
    result = net.fit(X, labels, LBFGS(max_iter=3), validation=frames, metrics=["accuracy"])
    expected = np.mean(net.predict_labels(VX) == np.arange(23) % 3)
    assert result.history[-1]["validation_accuracy"] == expected
    lists = [VX.tolist(), (np.arange(23) % 3).tolist()]
    again = classifier().fit(X, labels, LBFGS(max_iter=3), validation=lists, metrics=["accuracy"])
    assert again.history[-1].metrics == result.history[-1].metrics
    fraction = classifier().fit(pd.DataFrame(X), labels.tolist(), LBFGS(max_iter=3), validation=0.25)
    assert 0 < fraction.history[-1]["validation_loss"] < 5


def test_class_weights_are_of_the_training_rows_and_the_loss_has_none():
    labels = (np.arange(60) % 10 == 0).astype(int)
    net = classifier()
    result = net.fit(X, labels, LBFGS(max_iter=3), class_weight="balanced", validation=(VX, np.arange(23) % 3))
    expected = Objective(net, VX, np.arange(23) % 3).terms(net.theta)["data"]
    assert result.history[-1]["validation_loss"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["lbfgs", "adam"])
def test_penalties_and_dropout_are_no_part_of_it(name):
    net = network(everything=name == "adam")
    result = net.fit(X, Y, OPTIMIZERS[name], validation=(VX, VY))
    expected = 0.5 * ((net.predict(VX) - VY) ** 2).sum(axis=1).mean()
    assert result.history[-1]["validation_loss"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("validation", "match"),
    [
        ((VX,), r"validation must be \(X, Y\), \(X, Y, sample_weight\), .* or a fraction; found 1 things"),
        ((VX, VY, None, None, None), "found 5 things"),
        ([], "found 0 things"),
        (VX, "or a fraction; found ndarray"),
        (True, "or a fraction; found bool"),
        ({"X": VX}, "or a fraction; found dict"),
        (0, "validation must be"),
        (0.0, "validation must be"),
        (1.0, "validation must be"),
        (-0.1, "validation must be"),
        (float("nan"), "validation must be"),
        ("0.1", "validation must be"),
        (0.001, "validation must leave rows on both sides; found 0.001 of 60 rows"),
        (0.999, "validation must leave rows on both sides; found 0.999 of 60 rows"),
        ((VX[:, :3], VY), "validation: X"),
        ((VX, VY[:5]), "validation: Y must have as many rows as X, 23; found 5"),
        ((VX, VY[:, :1]), "validation: Y"),
        ((VX, np.where(VY > 0.7, np.nan, VY)), "validation: Y"),
        ((np.full((23, 5), np.inf), VY), "validation: X"),
        ((VX, VY, np.ones(5)), "validation: sample_weight"),
        ((VX, VY, -np.ones(23)), "validation: sample_weight"),
        ((VX, VY, np.zeros(23)), "validation: sample_weight"),
        ((VX[:0], VY[:0]), "validation: X"),
        ((None, VY), "validation: X"),
    ],
)
def test_what_is_wrong_with_validation_data_is_named(validation, match):
    net = network()
    before = net.theta.copy()
    with pytest.raises(InvalidArgumentError, match=match):
        net.fit(X, Y, validation=validation)
    np.testing.assert_array_equal(net.theta, before)


def test_rows_are_held_out_as_they_are():
    train, held = hold_out(Examples(X, X, None, None), 0.25, np.random.default_rng(0))
    assert train.Y is train.X
    assert held.Y is held.X
    assert hold_out(train, None, None) == (train, None)


# -------------------------------------------------------------------------------------------------- metrics


def test_metrics_are_of_the_training_data_where_there_are_no_others():
    noisy = MLP([Input(5, noise=GaussianNoise(0.5)), Dense(4, "sigmoid"), Dense(2, "sigmoid")], seed=0)
    weights = np.linspace(0, 2, 60)
    seen = []

    def spread(targets, outputs, sample_weight):
        np.testing.assert_array_equal(targets, Y)
        np.testing.assert_array_equal(sample_weight, weights)
        seen.append(outputs.copy())
        return np.float32(len(seen))

    result = noisy.fit(X, Y, Adam(max_epochs=3), sample_weight=weights, metrics=[spread, "mean_squared_error"])
    assert [record.names()[-2:] for record in result.history] == [["spread", "mean_squared_error"]] * 3
    assert [record["spread"] for record in result.history] == [1.0, 2.0, 3.0]
    np.testing.assert_array_equal(seen[-1], noisy.predict(X))
    expected = np.average(((noisy.predict(X) - Y) ** 2).mean(axis=1), weights=weights)
    assert result.history[-1]["mean_squared_error"] == pytest.approx(expected, rel=1e-12)
    assert result.history.to_dict()["spread"] == [1.0, 2.0, 3.0]


def test_on_validation_data_their_names_say_so():
    metrics = ["r2", ("size", lambda targets, outputs: len(targets))]
    result = network().fit(X, Y, LBFGS(max_iter=2), validation=(VX, VY), metrics=metrics)
    assert list(result.history[0].metrics) == ["validation_loss", "validation_r2", "validation_size"]
    assert result.history[0]["validation_size"] == 23.0


def test_a_metric_that_raises_ends_training_with_the_latest_iteration():
    calls = []

    def fragile(targets, outputs):
        calls.append(None)
        return 1 / (4 - len(calls))

    for optimizer in (LBFGS(max_iter=10), Adam(max_epochs=10)):
        calls.clear()
        net, other = network(), network()
        with pytest.raises(ZeroDivisionError) as caught:
            net.fit(X, Y, optimizer, metrics=[fragile])
        assert any("raised by the metric 'fragile'" in note for note in caught.value.__notes__)
        n = 3 if isinstance(optimizer, LBFGS) else 4  # the steps of the epoch are taken
        other.fit(X, Y, LBFGS(max_iter=n) if n == 3 else Adam(max_epochs=n))
        np.testing.assert_array_equal(net.theta, other.theta)


@pytest.mark.parametrize("metrics", ["accuracy", [3], [lambda t, o: 0.0], ["acuracy"], ["cost"]])
def test_what_is_wrong_with_metrics_is_said_before_training(metrics):
    with pytest.raises(InvalidArgumentError, match="metric"):
        network().fit(X, Y, metrics=metrics, callbacks=[lambda run: pytest.fail("trained")])


# ----------------------------------------------------------------------------------------- a part at a time


@pytest.mark.parametrize("weighted", [False, True])
def test_parts_change_nothing_and_somebody_looks_in_between(weighted, monkeypatch):
    many = np.tile(VX, (300, 1)) + np.linspace(0, 1e-3, 6900)[:, np.newaxis]
    targets = np.tile(VY, (300, 1))
    net = network()
    weights = np.arange(6900) % 5 * 1.0 if weighted else None
    objective = Objective(net, many, targets, weights)
    expected = objective.per_example_loss(net.theta)
    assert expected.any()
    assert Monitor(net, Examples(X, Y), Examples(many, targets, weights), ["r2"])(lambda: None)
    monkeypatch.setattr(monitor, "_WORK", 1)
    monkeypatch.setattr(per_example, "_WORK", 1)
    looks = []
    np.testing.assert_array_equal(objective.per_example_loss(net.theta, lambda: looks.append(0)), expected)
    assert len(looks) > 10
    looks.clear()
    whole = np.average(expected, weights=weights)
    evaluated = Monitor(net, Examples(X, Y), Examples(many, targets, weights), {"out": lambda t, o: o.sum()})
    found = evaluated(lambda: looks.append(0))
    assert found["validation_loss"] == pytest.approx(whole, rel=1e-12)
    assert found["validation_out"] == net.predict(many).sum()
    assert len(looks) > 15


def test_what_looks_may_end_it(monkeypatch):
    monkeypatch.setattr(monitor, "_WORK", 1)
    net = network()
    evaluated = Monitor(net, Examples(X, Y), Examples(VX, VY), ["r2"])

    def enough():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        evaluated(enough)
    assert evaluated(lambda: None)["validation_loss"] > 0  # and it works as before
