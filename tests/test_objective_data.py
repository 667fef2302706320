"""The data that an objective is made of: of any kind and order, and what is said of those that will not do."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from cases import DTYPES, bits, sparse_case
from hypothesis import given, settings
from hypothesis import strategies as st

import mlpkit
from mlpkit import sources
from mlpkit.errors import InvalidArgumentError, TargetRangeWarning

# Bad input --------------------------------------------------------------------------------------


def _classifier():
    layers = [mlpkit.Input(2), mlpkit.Dense(3, "softmax")]
    return mlpkit.MLP(layers, loss="cross_entropy", seed=0)


@pytest.mark.parametrize("extra", [-1, 1])
def test_theta_of_wrong_length(extra):
    case = sparse_case(10)
    wrong = np.zeros(case.net.n_parameters + extra)
    objective = case.objective()
    for act in (
        lambda: objective.value_and_gradient(wrong),
        lambda: objective.terms(wrong),
        lambda: objective.rho_hat(wrong),
        lambda: setattr(case.net, "theta", wrong),
    ):
        with pytest.raises(InvalidArgumentError, match="theta") as error:
            act()
        assert str(case.net.n_parameters) in str(error.value)
        assert str(wrong.size) in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["X", "Y"])
def test_non_finite_data_names_row_and_column(name, bad):
    case = sparse_case(10)
    data = {"X": case.X, "Y": case.Y}
    data[name][7, 4] = bad
    data[name][8, 1] = bad
    with pytest.raises(InvalidArgumentError, match=rf"{name}\b.*row 7 column 4"):
        mlpkit.Objective(case.net, **data)


@pytest.mark.parametrize(
    ("name", "X", "Y"),
    [
        ("X", np.zeros((0, 20)), np.zeros((0, 9))),
        ("X", np.zeros((5, 19)), np.zeros((5, 9))),
        ("X", np.zeros(20), np.zeros((1, 9))),
        ("X", np.zeros((5, 20), complex), np.zeros((5, 9))),
        ("X", [["a"] * 20], np.zeros((1, 9))),
        ("Y", np.zeros((5, 20)), np.zeros((5, 8))),
        ("Y", np.zeros((5, 20)), np.zeros((4, 9))),
        ("Y", np.zeros((5, 20)), np.zeros(5)),
    ],
)
def test_data_of_wrong_shape_or_type(name, X, Y):
    with pytest.raises(InvalidArgumentError, match=rf"\b{name}\b"):
        mlpkit.Objective(sparse_case(1).net, X, Y)


@pytest.mark.parametrize(
    "weights",
    [[1.0, -0.5, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0], [1.0, np.nan, 1.0], [[1.0, 1.0, 1.0]]],
    ids=["negative", "all zero", "too short", "NaN", "two-dimensional"],
)
def test_bad_weights(weights):
    case = sparse_case(3)
    with pytest.raises(InvalidArgumentError, match="sample_weight"):
        mlpkit.Objective(case.net, case.X, case.Y, weights)


@pytest.mark.parametrize("labels", [[0, 1, 3], [0, -1, 2]])
def test_labels_out_of_range(labels):
    with pytest.raises(InvalidArgumentError, match=r"\bY\b"):
        mlpkit.Objective(_classifier(), np.zeros((3, 2)), np.array(labels))


def test_labels_equal_one_hot_rows():
    net, X = _classifier(), np.arange(8.0).reshape(4, 2) / 8
    labels = np.array([2, 0, 1, 1])
    J, g = mlpkit.Objective(net, X, labels).value_and_gradient(net.theta)
    J2, g2 = mlpkit.Objective(net, X, np.eye(3)[labels]).value_and_gradient(net.theta)
    assert J == J2
    assert bits(g) == bits(g2)


@pytest.mark.parametrize(("activation", "value"), [("sigmoid", 1.5), ("sigmoid", -0.1), ("tanh", -1.2), ("tanh", 1.1)])
def test_targets_outside_the_output_range_warn(activation, value):
    net = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(1, activation)], seed=0)
    X, Y = np.zeros((3, 2)), np.array([[0.5], [value], [0.5]])
    with pytest.warns(TargetRangeWarning, match=r"\bY\b"):
        mlpkit.Objective(net, X, Y)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "identity"])
def test_targets_inside_the_output_range_do_not_warn(activation):
    net = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(1, activation)], seed=0)
    low = {"sigmoid": 0.0, "tanh": -1.0, "identity": -9.0}[activation]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mlpkit.Objective(net, np.zeros((3, 2)), np.array([[low], [1.0], [0.5]]))


def test_labels_may_stand_in_one_column():
    net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(3, "softmax")], loss="cross_entropy", seed=0)
    flat, column = ([1, 2], [[1], [2]])
    assert net.evaluate([[0.0], [1.0]], flat) == net.evaluate([[0.0], [1.0]], column)


def test_the_warning_about_targets_points_at_the_users_line():
    net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "sigmoid")], seed=0)
    calls = [
        lambda: mlpkit.Objective(net, [[0.0]], [2.0]),
        lambda: net.evaluate([[0.0]], [2.0]),
        lambda: net.fit([[0.0]], [2.0], mlpkit.LBFGS(max_iter=1)),
    ]
    for call in calls:
        with pytest.warns(TargetRangeWarning) as caught:
            call()
        assert caught[0].filename == __file__


@pytest.mark.parametrize("options", [{"keep_activations": 1}, {"keep_activations": np.array([1, 2])}])
def test_flags_are_true_or_false(options):
    net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "sigmoid")], seed=0)
    with pytest.raises(InvalidArgumentError, match="keep_activations must be True or False"):
        mlpkit.Objective(net, [[0.0]], [0.5], **options)


@pytest.mark.parametrize(
    "call",
    [
        lambda: mlpkit.maximal_inputs("x"),
        lambda: mlpkit.check_gradient(3, [[0.0]], [[0.0]]),
        lambda: mlpkit.Objective(None, [[0.0]], [[0.0]]),
    ],
)
def test_what_is_no_network_is_named(call):
    with pytest.raises(InvalidArgumentError, match="net must be an MLP"):
        call()


# Data as it comes -------------------------------------------------------------------------------


@DTYPES
@settings(max_examples=25)
@given(
    m=st.integers(1, 400),
    source=st.sampled_from(["float64", "float32", "int8", "bool"]),
    order=st.sampled_from("CF"),
    zeros=st.booleans(),
    seed=st.integers(0, 99),
)
def test_data_are_packed_in_blocks_as_if_converted_at_once(dtype, m, source, order, zeros, seed):
    rng = np.random.default_rng(seed)
    case = sparse_case(m, dtype=dtype)
    X = np.asarray(rng.integers(0, 2, case.X.shape), dtype=source, order=order)
    Y = np.asarray(rng.integers(0, 2, case.Y.shape), dtype=source, order=order)
    w = rng.integers(0, 2, m).astype(float) if zeros else np.ones(m)
    w[-1] = 1
    X.flags.writeable = Y.flags.writeable = False
    converted = [np.ascontiguousarray(a[w > 0], dtype=dtype) for a in (X, Y)]
    expected = mlpkit.Objective(case.net, *converted).value_and_gradient(case.net.theta)
    before = sources._BLOCK_BYTES
    sources._BLOCK_BYTES = 1  # a panel at a time
    try:
        found = mlpkit.Objective(case.net, X, Y, sample_weight=w).value_and_gradient(case.net.theta)
    finally:
        sources._BLOCK_BYTES = before
    assert found[0] == expected[0]
    assert bits(found[1]) == bits(expected[1])


@pytest.mark.parametrize("row", [0, 70_000, 99_999])
def test_the_row_of_a_bad_number_is_counted_from_the_first(row):
    net = mlpkit.MLP([mlpkit.Input(8), mlpkit.Dense(1, "tanh")])
    X = np.zeros((100_000, 8))
    X[row, 3] = np.nan
    with pytest.raises(InvalidArgumentError, match=f"X must be finite in float64; found nan at row {row} column 3 "):
        mlpkit.Objective(net, X, np.zeros(100_000))


def test_masked_labels_are_refused():
    net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(3, "softmax")], loss="cross_entropy")
    with pytest.raises(InvalidArgumentError, match="Y must not be a masked array"):
        mlpkit.Objective(net, np.zeros((3, 1)), np.ma.masked_array([0, 1, 2], mask=[0, 1, 0]))
