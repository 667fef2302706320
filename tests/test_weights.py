"""Masks, class weights and what they have to do with sample weights."""

from __future__ import annotations

import pickle

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlpkit
from mlpkit import Dense, Input, InvalidArgumentError, KLSparsity
from mlpkit.kernels import tiles
from mlpkit.weights import check_mask

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
THREADS = [n for n in (1, 2, 4) if n <= numba.config.NUMBA_NUM_THREADS]
DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])
# (loss, output activation)
OUTPUTS = [
    ("squared_error", "tanh"),
    ("squared_error", "softmax"),
    ("cross_entropy", "softmax"),
    ("binary_cross_entropy", "sigmoid"),
    ("poisson", "exp"),
]


@pytest.fixture(params=[False, True], ids=["by pieces", "by rows"])
def way(request, monkeypatch):
    """Sum gradients of any size in one of the two ways."""
    monkeypatch.setattr(tiles, "_SMALL_GRADIENT", 0 if request.param else 1 << 40)


def network(loss="squared_error", activation="tanh", sizes=(6, 5, 4), dtype="float64", seed=0):
    net = mlpkit.MLP(
        [Input(sizes[0]), Dense(sizes[1], "tanh", sparsity=KLSparsity(0.3, 0.5)), Dense(sizes[2], activation)],
        loss=loss,
        weight_decay=0.01,
        dtype=dtype,
        seed=seed,
    )
    net.theta = np.random.default_rng(seed).normal(0.0, 0.5, net.n_parameters)
    return net


def data(net, m, seed=0):
    """Return inputs, targets in the output's range, quarters as weights, and a mask that leaves something."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1, 1, (m, net.sizes[0])).astype(net.dtype)
    Y = rng.dirichlet(np.ones(net.sizes[-1]), m).astype(net.dtype)
    w = rng.integers(0, 5, m) / 4
    mask = rng.random(Y.shape) < 0.7
    w[0], mask[0, 0] = 1.0, True
    return X, Y, w, mask


def close(found, expected, dtype="float64"):
    return np.linalg.norm(np.subtract(found, expected)) <= TOLERANCE[dtype] * np.linalg.norm(expected)


def one_by_one(net, X, Y, w, mask):
    """Return the data term as the formula has it, from predictions."""
    h = net.predict(X).astype(np.float64)
    each = {
        "squared_error": lambda: 0.5 * (h - Y) ** 2,
        "cross_entropy": lambda: -Y * np.log(h),
        "binary_cross_entropy": lambda: -Y * np.log(h) - (1 - Y) * np.log(1 - h),
        "poisson": lambda: h - Y * np.log(h),
    }[net.loss.name]()
    return (w @ np.where(mask, each, 0.0).sum(axis=1)) / w.sum()


# Masks ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("way")
@DTYPES
@pytest.mark.parametrize(("loss", "activation"), OUTPUTS)
@settings(max_examples=20)
@given(m=st.integers(1, 200), seed=st.integers(0, 2**32 - 1))
def test_masked_targets_bring_nothing_and_may_be_anything(dtype, loss, activation, m, seed):
    net = network(loss, activation, dtype=dtype)
    X, Y, w, mask = data(net, m, seed)
    J, g = mlpkit.Objective(net, X, Y, w, mask=mask).value_and_gradient(net.theta)
    terms = net.evaluate(X, Y, w, mask=mask)
    assert close(terms["data"], one_by_one(net, X, Y, w, mask), dtype)
    assert sum(terms.values()) == J
    unmasked = net.evaluate(X, Y, w)
    assert terms["sparsity"] == unmasked["sparsity"]
    for hidden in (np.nan, np.inf, -1e30):
        spoilt = np.where(mask, Y, net.dtype.type(hidden))
        J2, g2 = mlpkit.Objective(net, X, spoilt, w, mask=mask).value_and_gradient(net.theta)
        assert (J2, g2.tobytes()) == (J, g.tobytes())


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("loss", "activation"), OUTPUTS)
@pytest.mark.parametrize("m", [1, 7, 90])
def test_the_gradient_of_a_masked_loss_agrees_with_differences(loss, activation, m):
    net = network(loss, activation)
    X, Y, w, mask = data(net, m)
    report = mlpkit.check_gradient(net, X, np.where(mask, Y, np.nan), sample_weight=w, mask=mask)
    assert report.ok, report
    assert report.max_relative_error < 1e-6


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("loss", "activation"), OUTPUTS)
def test_hessian_products_of_a_masked_loss_agree_with_differences(loss, activation):
    net = network(loss, activation)
    X, Y, w, mask = data(net, 90)
    objective = mlpkit.Objective(net, X, Y, w, mask=mask)
    v, h = np.random.default_rng(1).normal(size=net.n_parameters), 1e-5
    above, below = (objective.value_and_gradient(net.theta + step * v)[1] for step in (h, -h))
    expected = (above - below) / (2 * h)
    found = objective.hessian_vector_product(net.theta, v)
    assert np.linalg.norm(found - expected) < 1e-7 * np.linalg.norm(expected)


def test_check_gradient_takes_masks_in_float32():
    net = network(dtype="float32")
    X, Y, w, mask = data(net, 50)
    assert mlpkit.check_gradient(net, X, np.where(mask, Y, np.float32(np.nan)), sample_weight=w, mask=mask).ok


@pytest.mark.usefixtures("way")
@DTYPES
def test_masking_one_target_of_an_example_at_a_time_adds_up(dtype):
    # What is left of data term and gradient under a mask and under its complement sums to the whole.
    net = network(dtype=dtype)
    X, Y, w, mask = data(net, 333)
    objectives = [mlpkit.Objective(net, X, Y, w, mask=kept) for kept in (mask, ~mask, None)]
    (a, g_a), (b, g_b), (whole, g) = (o.terms_and_gradient(net.theta) for o in objectives)
    assert close(a["data"] + b["data"], whole["data"], dtype)
    nothing = mlpkit.Objective(net, X, net.predict(X), w).terms_and_gradient(net.theta)[1]  # penalties alone
    assert close(g_a + g_b - nothing, g, dtype)


@DTYPES
def test_a_mask_that_leaves_nothing_out_changes_no_bit(dtype):
    net = network(dtype=dtype)
    X, Y, w, mask = data(net, 200)
    plain = mlpkit.Objective(net, X, Y, w)
    J, g = plain.value_and_gradient(net.theta)
    full = mlpkit.Objective(net, X, Y, w, mask=np.ones_like(mask))
    assert full.memory == plain.memory
    # and one that leaves out only what has no weight goes the long way to the same bits
    unseen = np.ones_like(mask)
    unseen[w == 0] = False
    masked = mlpkit.Objective(net, X, Y, w, mask=unseen)
    assert masked.memory > plain.memory
    for objective in (full, masked):
        J2, g2 = objective.value_and_gradient(net.theta)
        assert (J2, g2.tobytes()) == (J, g.tobytes())


@pytest.mark.usefixtures("way")
@DTYPES
def test_threads_and_memory_modes_give_the_same_bits(dtype):
    net = network(sizes=(40, 30, 20), dtype=dtype)
    X, Y, w, mask = data(net, 3001)
    before, results = mlpkit.get_num_threads(), set()
    try:
        for n in THREADS:
            mlpkit.set_num_threads(n)
            for keep in (True, False):
                objective = mlpkit.Objective(net, X, Y, w, keep, mask=mask)
                J, g = objective.value_and_gradient(net.theta)
                results.add((J, g.tobytes()))
                J, g = pickle.loads(pickle.dumps(objective)).value_and_gradient(net.theta)
                results.add((J, g.tobytes()))
    finally:
        mlpkit.set_num_threads(before)
    assert len(results) == 1


def test_an_autoencoder_can_be_asked_for_a_part_of_its_inputs():
    net = network(sizes=(6, 5, 6))
    X, _, w, _ = data(net, 60)
    mask = np.random.default_rng(1).random(X.shape) < 0.5
    same, other = (mlpkit.Objective(net, X, Y, w, mask=mask) for Y in (X, np.where(mask, X, np.nan)))
    assert same.memory < other.memory, "X is packed once"
    (J, g), (J2, g2) = (o.value_and_gradient(net.theta) for o in (same, other))
    assert (J, g.tobytes()) == (J2, g2.tobytes())


def test_labels_of_wholly_masked_rows_are_not_read():
    net = network("cross_entropy", "softmax")
    X, _, _, _ = data(net, 4)
    mask = np.ones((4, 4), bool)
    mask[2] = False
    J, g = mlpkit.Objective(net, X, [0, 3, -1, 2], mask=mask).value_and_gradient(net.theta)
    J2, g2 = mlpkit.Objective(net, X, [0, 3, 1, 2], mask=mask).value_and_gradient(net.theta)
    assert (J, g.tobytes()) == (J2, g2.tobytes())
    with pytest.raises(InvalidArgumentError, match="Y must hold class labels from 0 to 3; found -1 at row 2"):
        mlpkit.Objective(net, X, [0, 3, -1, 2])


def test_training_with_missing_targets_learns_what_is_there():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 3))
    W, b = rng.normal(size=(2, 3)), rng.normal(size=2)
    Y = X @ W.T + b
    Y[rng.random(Y.shape) < 0.4] = np.nan
    net = mlpkit.MLP([Input(3), Dense(2, "identity")], seed=0)
    net.fit(X, Y, mask=~np.isnan(Y))
    np.testing.assert_allclose(net.weights[0], W, atol=1e-4)
    np.testing.assert_allclose(net.biases[0], b, atol=1e-4)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((3, 2), bool), r"mask must have the shape of the targets, \(3, 4\); found \(3, 2\)"),
        (np.ones(3, bool), r"mask must have the shape of the targets, \(3, 4\); found \(3,\)"),
        (np.ones((3, 4)), "mask must hold True where a target counts and False .*; found dtype float64"),
        (np.zeros((3, 4), bool), "mask must be True somewhere"),
        ("yes", "mask must"),
    ],
)
def test_bad_masks_are_named(mask, message):
    net = network()
    with pytest.raises(InvalidArgumentError, match=message):
        mlpkit.Objective(net, np.zeros((3, 6)), np.zeros((3, 4)), mask=mask)


def test_a_mask_may_be_flat_where_there_is_one_output():
    assert check_mask([True, False], (2, 1)).tolist() == [[True], [False]]


def test_missing_targets_without_a_mask_say_what_to_write():
    net = network()
    X, Y, _, _ = data(net, 5)
    Y[3, 1] = np.nan
    with pytest.raises(InvalidArgumentError, match=r"Y must be finite .* row 3 column 1 .*mask=~np\.isnan\(Y\)"):
        mlpkit.Objective(net, X, Y)
    mask = np.ones(Y.shape, bool)
    mask[0, 0] = False
    with pytest.raises(InvalidArgumentError, match=r"found nan at row 3 column 1 \(1 such value\)$"):
        mlpkit.Objective(net, X, Y, mask=mask)


@pytest.mark.parametrize(
    ("loss", "activation", "bad"), [("binary_cross_entropy", "sigmoid", 1.5), ("poisson", "exp", -2.0)]
)
def test_targets_for_which_the_loss_is_not_defined_are_named_if_they_count(loss, activation, bad):
    net = network(loss, activation)
    X, Y, w, mask = data(net, 9)
    Y[4, 2] = bad
    with pytest.raises(InvalidArgumentError, match=rf"Y must lie in .* {loss!r}; found {bad:g} at row 4 column 2"):
        mlpkit.Objective(net, X, Y)
    w[4], mask[4, 2] = 0, False
    costs = [mlpkit.Objective(net, X, Y, w).value_and_gradient(net.theta)[0]]
    costs += [mlpkit.Objective(net, X, Y, mask=mask).value_and_gradient(net.theta)[0]]
    assert np.isfinite(costs).all()
    with pytest.raises(InvalidArgumentError, match=rf"found {bad:g} at row 4 column 2"):
        mlpkit.Objective(net, X, Y, np.arange(9.0), mask=np.arange(36).reshape(9, 4) != 0)


def test_only_targets_that_count_are_out_of_range():
    net = network(activation="sigmoid")
    X, Y, w, mask = data(net, 9)
    mask[4, 2], Y[4, 2] = False, 7.0
    mlpkit.Objective(net, X, Y, w, mask=mask)  # no warning, which would be an error here
    with pytest.warns(mlpkit.TargetRangeWarning):
        mlpkit.Objective(net, X, Y)


def test_rows_of_probabilities_are_checked_as_far_as_they_are_given():
    net = network("cross_entropy", "softmax")
    X = np.zeros((2, 6))
    Y = np.array([[0.25, 0.25, 0.5, np.nan], [0.1, 0.2, 0.3, 0.4]])
    mlpkit.Objective(net, X, Y, mask=~np.isnan(Y))
    Y[0, 0] = 0.75
    with pytest.raises(InvalidArgumentError, match=r"Y must hold rows of probabilities.* at row 0"):
        mlpkit.Objective(net, X, Y, mask=~np.isnan(Y))
    Y[0] = [-0.25, 0.25, 0.5, np.nan]
    with pytest.raises(InvalidArgumentError, match=r"Y must hold rows of probabilities.* at row 0"):
        mlpkit.Objective(net, X, Y, mask=~np.isnan(Y))


# Class weights ----------------------------------------------------------------------------------


def classifier(dtype="float64"):
    return network("cross_entropy", "softmax", sizes=(6, 5, 3), dtype=dtype)


@DTYPES
@settings(max_examples=20)
@given(m=st.integers(2, 200), seed=st.integers(0, 2**32 - 1))
def test_class_weights_multiply_sample_weights(dtype, m, seed):
    net = classifier(dtype)
    X, _, w, _ = data(net, m, seed)
    labels = np.random.default_rng(seed).integers(0, 3, m)
    labels[0] = 0
    c = np.array([0.5, 2.0, 0.25])
    expected = mlpkit.Objective(net, X, labels, w * c[labels]).value_and_gradient(net.theta)
    for given_as in (c, list(c), dict(enumerate(c)), {0: 0.5, 1: 2.0, np.int64(2): 0.25}, 1e300 * c):
        J, g = mlpkit.Objective(net, X, labels, w, class_weight=given_as).value_and_gradient(net.theta)
        assert close(J, expected[0], dtype)
        assert close(g, expected[1], dtype)
    rows = np.eye(3)[labels]
    J, g = mlpkit.Objective(net, X, rows, w, class_weight=c).value_and_gradient(net.theta)
    assert close(g, expected[1], dtype)


def binary(activation="sigmoid"):
    return network("binary_cross_entropy", activation, sizes=(6, 5, 1))


def test_binary_classes_weigh_as_probabilities_say():
    net = binary()
    X, _, w, _ = data(net, 50)
    c = np.array([0.5, 3.0])
    rng = np.random.default_rng(1)
    for y in (rng.integers(0, 2, 50), rng.random(50)):
        J, g = mlpkit.Objective(net, X, y, w, class_weight={0: 0.5, 1: 3.0}).value_and_gradient(net.theta)
        J2, g2 = mlpkit.Objective(net, X, y, w * ((1 - y) * c[0] + y * c[1])).value_and_gradient(net.theta)
        assert close(J, J2)
        assert close(g, g2)
    y = np.arange(50) % 5 == 0
    J, g = mlpkit.Objective(net, X, y, class_weight="balanced").value_and_gradient(net.theta)
    J2, g2 = mlpkit.Objective(net, X, y, np.where(y, 4.0, 1.0)).value_and_gradient(net.theta)
    assert close(J, J2)
    assert close(g, g2)


def test_rows_of_probabilities_weigh_by_their_mean():
    net = classifier()
    X, Y, w, _ = data(net, 40)
    c = np.array([1.0, 3.0, 0.0])
    J, g = mlpkit.Objective(net, X, Y, w, class_weight=c).value_and_gradient(net.theta)
    J2, g2 = mlpkit.Objective(net, X, Y, w * (Y @ c)).value_and_gradient(net.theta)
    assert close(J, J2)
    assert close(g, g2)


def test_classes_that_a_mapping_does_not_name_weigh_one():
    net = classifier()
    X, _, _, _ = data(net, 30)
    labels = np.arange(30) % 3
    a, b = (net.evaluate(X, labels, class_weight=c)["data"] for c in ({1: 4.0}, [1.0, 4.0, 1.0]))
    assert a == b


def test_a_class_of_weight_zero_is_removed():
    net = classifier()
    X, _, _, _ = data(net, 30)
    labels = np.arange(30) % 3
    J, g = mlpkit.Objective(net, X, labels, class_weight={2: 0.0}).value_and_gradient(net.theta)
    kept = labels != 2
    J2, g2 = mlpkit.Objective(net, X[kept], labels[kept]).value_and_gradient(net.theta)
    assert close(J, J2)
    assert close(g, g2)


@pytest.mark.parametrize("weighted", [False, True])
def test_balanced_classes_weigh_the_same_in_all(weighted):
    net = classifier()
    X, _, _, _ = data(net, 24)
    labels = np.repeat([0, 1, 2, 0], [3, 5, 12, 4])
    repeats = np.random.default_rng(0).integers(0, 4, 24) if weighted else np.ones(24, int)
    counts = np.bincount(np.repeat(labels, repeats))
    w = repeats * (repeats.sum() / (3 * counts))[labels]
    expected = mlpkit.Objective(net, X, labels, w).value_and_gradient(net.theta)
    # a weight of 2 is a repetition, also in what is counted
    for rows, weights in ((np.arange(24), repeats), (np.repeat(np.arange(24), repeats), None)):
        objective = mlpkit.Objective(net, X[rows], labels[rows], weights, class_weight="balanced")
        J, g = objective.value_and_gradient(net.theta)
        assert close(J, expected[0])
        assert close(g, expected[1])
    np.testing.assert_allclose([w[labels == k].sum() for k in range(3)], w.sum() / 3)


def test_balance_ignores_classes_without_an_example():
    net = classifier()
    X, _, _, _ = data(net, 6)
    labels = np.array([0, 0, 0, 0, 1, 1])
    a = net.evaluate(X, labels, class_weight="balanced")
    assert a == pytest.approx(net.evaluate(X, labels, np.where(labels == 0, 1.0, 2.0)))


def test_masked_targets_are_nothing_to_class_weights():
    net = classifier()
    X, Y, w, mask = data(net, 40)
    c = np.array([1.0, 3.0, 0.5])
    J, g = mlpkit.Objective(net, X, np.where(mask, Y, np.nan), w, class_weight=c, mask=mask).value_and_gradient(
        net.theta
    )
    weights = w * (np.where(mask, Y, 0) @ c)
    J2, g2 = mlpkit.Objective(net, X, Y, weights, mask=mask).value_and_gradient(net.theta)
    assert close(J, J2)
    assert close(g, g2)


def test_fit_and_check_gradient_take_class_weights():
    net = classifier()
    X, _, w, _ = data(net, 50)
    labels = np.arange(50) % 3
    c = [1.0, 0.0, 5.0]
    assert mlpkit.check_gradient(net, X, labels, sample_weight=w, class_weight=c).ok
    again = pickle.loads(pickle.dumps(net))
    net.fit(X, labels, mlpkit.LBFGS(max_iter=5), sample_weight=w, class_weight=c)
    again.fit(X, labels, mlpkit.LBFGS(max_iter=5), sample_weight=w * np.array(c)[labels])
    np.testing.assert_allclose(net.theta, again.theta, rtol=1e-6)


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ("balance", "class_weight must be 'balanced', a mapping .* or an array of 3 weights; found 'balance'"),
        ([1.0, 2.0], r"class_weight must have shape \(3,\); found shape \(2,\)"),
        ([1.0, -2.0, 1.0], "class_weight must not be negative; found -2.0 for class 1"),
        ([0.0, 0.0, 0.0], "class_weight must not be all zero"),
        ({0: 0.0, 1: 0.0, 2: 0.0}, "class_weight must not be all zero"),
        ({3: 1.0}, "class_weight must have class labels from 0 to 2 as keys; found 3"),
        ({"a": 1.0}, "class_weight must have class labels from 0 to 2 as keys; found 'a'"),
        ({1: -1.0}, "class_weight of class 1 must be a finite number"),
        ({1: "x"}, "class_weight of class 1 must be a number"),
        ([np.nan, 1.0, 1.0], "class_weight must be finite"),
        ({0: 0.0, 1: 0.0}, "class_weight must leave an example whose weight is not 0"),
    ],
)
def test_bad_class_weights_are_named(class_weight, message):
    with pytest.raises(InvalidArgumentError, match=message):
        mlpkit.Objective(classifier(), np.zeros((3, 6)), [0, 1, 1], class_weight=class_weight)


def test_class_weights_need_classes():
    many = network("binary_cross_entropy", "sigmoid")
    with pytest.raises(InvalidArgumentError, match=r"class_weight needs .*; found binary_cross_entropy with 4 outputs"):
        mlpkit.Objective(many, np.zeros((3, 6)), np.zeros((3, 4)), class_weight="balanced")
    net = network()
    with pytest.raises(InvalidArgumentError, match=r"class_weight needs .*; found squared_error with 4 outputs"):
        mlpkit.Objective(net, np.zeros((3, 6)), np.zeros((3, 4)), class_weight="balanced")
