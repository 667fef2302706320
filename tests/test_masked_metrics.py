"""Metrics where a mask says which targets count: each against NumPy on those alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlpkit import LBFGS, MLP, Adam, Dense, Input, InvalidArgumentError, metrics
from mlpkit.metrics import accuracy, mean_absolute_error, mean_squared_error, r2, resolve

rng = np.random.default_rng(6)
M, N = 40, 3
WEIGHTS = rng.integers(1, 5, M) / 4
MASK = rng.random((M, N)) < 0.6
MASK[[3, 17]] = False  # nothing of these examples counts
MASK[5] = True
X = rng.normal(size=(M, 4))
Y = np.where(MASK, rng.uniform(0.1, 0.9, (M, N)), np.nan)
OUTPUTS = rng.uniform(0, 1, (M, N))
CLASSES = np.where(MASK, rng.integers(0, 2, (M, N)), np.nan)
PARTIAL = "mask hides some of an example's targets and not all"


def listed(y, h, w, mask):
    """Return targets, outputs and weights that count, as lists."""
    return [np.array(v) for v in zip(*[(y[i, j], h[i, j], w[i]) for i, j in np.argwhere(mask)], strict=True)]


def numpy_mean_squared_error(y, h, w, mask):
    t, o, v = listed(y, h, w, mask)
    return (v * (t - o) ** 2).sum() / v.sum()


def numpy_mean_absolute_error(y, h, w, mask):
    t, o, v = listed(y, h, w, mask)
    return (v * abs(t - o)).sum() / v.sum()


def numpy_accuracy(y, h, w, mask):
    t, o, v = listed(y, h, w, mask)
    return v[(t == 1) == (o >= 0.5)].sum() / v.sum()


def numpy_r2(y, h, w, mask):
    found = []
    for j in range(y.shape[1]):
        t, o, v = (a[mask[:, j]] for a in (y[:, j], h[:, j], w))
        found.append(1 - (v * (t - o) ** 2).sum() / (v * (t - np.average(t, weights=v)) ** 2).sum())
    return np.mean(found)


EXPECTED = {
    "mean_squared_error": (numpy_mean_squared_error, Y),
    "mean_absolute_error": (numpy_mean_absolute_error, Y),
    "r2": (numpy_r2, Y),
    "accuracy": (numpy_accuracy, CLASSES),
}


def network(n=N, activation="sigmoid", loss="squared_error"):
    return MLP([Input(4), Dense(5, "tanh"), Dense(n, activation)], loss, seed=0)


def test_all_that_have_names_are_here():
    assert set(EXPECTED) == set(metrics.__all__) - {"resolve"}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", EXPECTED)
def test_what_counts_is_all_that_is_seen(name, weighted):
    expected, y = EXPECTED[name]
    w = WEIGHTS if weighted else None
    ones = WEIGHTS if weighted else np.ones(M)
    metric = getattr(metrics, name)
    found = metric(y, OUTPUTS, w, mask=MASK)
    assert found == pytest.approx(expected(y, OUTPUTS, ones, MASK), rel=1e-12)
    filled = np.where(MASK, y, 0.25)
    assert found != pytest.approx(metric(filled, OUTPUTS, w), rel=1e-3)
    # Whatever hidden targets and outputs are.
    for value in (math.inf, -math.inf, 1e300):
        other = np.where(MASK, y, value), np.where(MASK, OUTPUTS, math.nan)
        assert metric(*other, w, mask=MASK) == found
    assert metric(filled, OUTPUTS, w, mask=np.ones_like(MASK)) == metric(filled, OUTPUTS, w)


@pytest.mark.parametrize("name", EXPECTED)
def test_hidden_examples_are_as_if_they_were_not_there(name):
    _, y = EXPECTED[name]
    metric, rows = getattr(metrics, name), MASK.any(axis=1)
    few = y[rows], OUTPUTS[rows], WEIGHTS[rows]
    assert metric(y, OUTPUTS, WEIGHTS, mask=MASK) == pytest.approx(metric(*few, mask=MASK[rows]), rel=1e-12)
    one = np.arange(M) % 3 > 0
    expected = metric(np.nan_to_num(y[one, 0]), OUTPUTS[one, 0], WEIGHTS[one])
    targets = np.where(one, np.nan_to_num(y[:, 0]), np.nan)
    assert metric(targets, OUTPUTS[:, 0], WEIGHTS, mask=one) == pytest.approx(expected, rel=1e-12)


def test_r2_is_of_outputs_that_have_two_targets():
    y = np.array([[1.0, 5.0, math.nan], [2.0, math.nan, math.nan], [3.0, math.nan, math.nan]])
    h = np.array([[1.0, 9.0, 1.0], [2.0, 1.0, 2.0], [4.0, 1.0, 3.0]])
    assert r2(y, h, mask=~np.isnan(y)) == 0.5
    assert math.isnan(r2(y, h, [0, 1, 0], mask=~np.isnan(y)))


@pytest.mark.parametrize("activation", ["softmax", None])
def test_one_class_an_example_counts_or_does_not(activation):
    labels = rng.integers(0, N, M).astype(float)
    rows = np.arange(M) % 4 > 0
    mask = np.repeat(rows[:, np.newaxis], N, axis=1)
    expected = WEIGHTS[rows & (OUTPUTS.argmax(axis=1) == labels)].sum() / WEIGHTS[rows].sum()
    probabilities = np.where(mask, np.eye(N)[labels.astype(int)], np.nan)
    for y in (np.where(rows, labels, np.nan), np.where(rows, labels, 99)[:, np.newaxis], probabilities):
        assert accuracy(y, OUTPUTS, WEIGHTS, mask=mask, activation=activation) == pytest.approx(expected, rel=1e-12)
    mask[1, 0] = False
    with pytest.raises(InvalidArgumentError, match="mask must leave out all of an example's targets or none"):
        accuracy(labels, OUTPUTS, mask=mask, activation=activation)
    with pytest.raises(InvalidArgumentError, match="mask must leave out all of an example's targets or none"):
        accuracy(np.eye(N)[labels.astype(int)], OUTPUTS, mask=mask, activation="softmax")


@pytest.mark.parametrize("metric", [accuracy, mean_squared_error, mean_absolute_error, r2])
@pytest.mark.parametrize(
    ("mask", "weights", "message"),
    [
        ([True], None, r"mask must have the shape of the targets, \(2, 1\); found \(1, 1\)"),
        ([1, 0], None, "mask must hold True where a target counts"),
        ([False, False], None, "mask must be True somewhere"),
        ([True, False], [0.0, 1.0], "weights must not be zero wherever mask is True"),
    ],
)
def test_a_mask_is_checked(metric, mask, weights, message):
    with pytest.raises(InvalidArgumentError, match=message):
        metric([0.0, 1.0], [1.0, 0.0], weights, mask=mask)


@pytest.mark.parametrize("name", EXPECTED)
def test_targets_that_count_must_be_finite(name):
    _, y = EXPECTED[name]
    with pytest.raises(InvalidArgumentError, match=r"targets must be finite.*; found nan at row 3 column 0"):
        getattr(metrics, name)(y, OUTPUTS, mask=MASK | (np.arange(M) == 3)[:, np.newaxis])


# ------------------------------------------------------------------------------------------------- in training


@pytest.mark.parametrize("optimizer", [LBFGS(max_iter=3), Adam(max_epochs=3)])
@pytest.mark.parametrize("name", EXPECTED)
def test_training_reports_what_counts(name, optimizer):
    expected, y = EXPECTED[name]
    net = network()
    result = net.fit(X, y, optimizer, sample_weight=WEIGHTS, mask=MASK, metrics=[name])
    assert result.history[-1][name] == pytest.approx(expected(y, net.predict(X), WEIGHTS, MASK), rel=1e-12)
    some = slice(0, 20)
    validation = (X[some], y[some], WEIGHTS[some], MASK[some])
    result = net.fit(X, y, optimizer, mask=MASK, validation=validation, metrics=[name])
    value = expected(y[some], net.predict(X[some]), WEIGHTS[some], MASK[some])
    assert result.history[-1][f"validation_{name}"] == pytest.approx(value, rel=1e-12)
    loss = 0.5 * (np.nan_to_num(y[some] - net.predict(X[some])) ** 2).sum(axis=1)
    assert result.history[-1]["validation_loss"] == pytest.approx(np.average(loss, weights=WEIGHTS[some]), rel=1e-12)


def test_a_fraction_of_masked_data():
    result = network().fit(X, Y, LBFGS(max_iter=2), mask=MASK, validation=0.3, metrics=["r2", "mean_squared_error"])
    assert 0 < result.history[-1]["validation_mean_squared_error"] < 1
    assert -10 < result.history[-1]["validation_r2"] < 1


def test_hidden_examples_are_kept_from_every_function():
    rows = np.arange(M) % 5 > 0
    y, w = np.where(rows, X[:, 0], np.nan), np.linspace(0, 1, M)

    def look(targets, outputs, weights):
        np.testing.assert_array_equal(targets[:, 0], y[rows])
        np.testing.assert_array_equal(weights, w[rows])
        assert len(outputs) == len(targets)
        return float(abs(targets - outputs).max())

    net = network(1, "identity")
    result = net.fit(X, y, LBFGS(max_iter=3), sample_weight=w, mask=rows, metrics=[look])
    assert result.history[-1]["look"] == abs(y[rows] - net.predict(X[rows])[:, 0]).max()
    labels, mask = np.where(rows, np.arange(M) % 3, -1), np.repeat(rows[:, np.newaxis], 3, axis=1)
    net = network(3, "softmax", "cross_entropy")
    result = net.fit(X, labels, LBFGS(max_iter=3), mask=mask, metrics=["accuracy"])
    assert result.history[-1]["accuracy"] == np.mean(net.predict_labels(X[rows]) == labels[rows])


def test_a_function_that_takes_a_mask_gets_it():
    seen = []

    def third(targets, outputs, importance, mask):
        seen.append(importance)
        return np.average(abs(targets - outputs)[mask])

    def keyword(targets, outputs, *, weights=None, mask=None):
        seen.append(weights)
        return np.average(abs(targets - outputs)[mask])

    def alone(targets, outputs, mask):
        return np.average(abs(targets - outputs)[mask])

    net = network()
    functions = [third, keyword, alone]
    result = net.fit(X, Y, LBFGS(max_iter=1), sample_weight=WEIGHTS, mask=MASK, metrics=functions)
    expected = np.nanmean(abs(Y - net.predict(X)))
    for function in functions:
        assert result.history[-1][function.__name__] == pytest.approx(expected, rel=1e-12)
    for weights in seen:
        np.testing.assert_array_equal(weights, WEIGHTS[MASK.any(axis=1)])
    # Without a mask all count, and nothing can be written to.
    ((_, function),) = resolve({"n": lambda y, h, mask: mask.sum() if not mask.flags.writeable else math.nan})
    assert function([0.0, 1.0], [[1.0], [1.0]]) == 2
    assert function([0.0, 1.0], [[1.0], [1.0]], None, np.array([[True], [False]])) == 1


def largest(targets, outputs):
    return abs(targets - outputs).max()


@pytest.mark.parametrize(
    ("net", "metric", "message"),
    [
        (network(), largest, f"metrics must take an argument called mask where {PARTIAL}.*'largest'"),
        (
            network(N, "softmax"),
            "accuracy",
            f"metrics must be without the accuracy 'accuracy' where {PARTIAL}.*softmax",
        ),
        (network(N, "softmax"), ("hits", accuracy), "metrics must be without the accuracy 'hits'"),
    ],
)
def test_what_a_part_of_an_examples_targets_says_nothing_of_is_refused_before_training(net, metric, message):
    def trained(run):
        pytest.fail("trained")

    for more in ({}, {"validation": (X, Y, None, MASK)}, {"validation": 0.5}):
        with pytest.raises(InvalidArgumentError, match=message):
            net.fit(X, Y, mask=MASK, metrics=[metric], callbacks=[trained], **more)


def test_weights_that_leave_nothing_are_refused_before_training():
    w = (~MASK.any(axis=1)).astype(float)
    with pytest.raises(InvalidArgumentError, match="sample_weight must not be zero wherever mask is True"):
        network().fit(X, Y, mask=MASK, sample_weight=w, metrics=["r2"], callbacks=[lambda run: pytest.fail("trained")])


def test_validation_may_have_a_mask():
    with pytest.raises(InvalidArgumentError, match=r"validation: mask must have the shape"):
        network().fit(X, Y, mask=MASK, validation=(X, Y, None, MASK[:3]))
    with pytest.raises(InvalidArgumentError, match=r"\(X, Y, sample_weight, mask\) or a fraction; found 5 things"):
        network().fit(X, Y, mask=MASK, validation=(X, Y, None, MASK, None))
