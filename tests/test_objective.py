"""J, its terms, gradient and rho_hat: against the plain-NumPy twin, and to the bit."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tracemalloc
import warnings

import numba
import numpy as np
import pytest
import reference
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import Case, cases

import mlpkit
from mlpkit import sources
from mlpkit.errors import InvalidArgumentError, TargetRangeWarning
from mlpkit.kernels import sweeps, tiles

# Errors in float64 are rounding in sums of up to 600 examples and 40 units through 5 layers, some
# 1e-15 of the result; 1e-12 is the contract. In float32 the same sums give some 1e-7 to 1e-6.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])
THREADS = [n for n in (1, 2, 4) if n <= numba.config.NUMBA_NUM_THREADS]


@contextlib.contextmanager
def threads(n):
    """Use `n` threads inside the block."""
    before = mlpkit.get_num_threads()
    mlpkit.set_num_threads(n)
    try:
        yield
    finally:
        mlpkit.set_num_threads(before)


# The gradient is summed by pieces of the data where it is small, by its rows where it is large.
SUMS = pytest.mark.parametrize("by_rows", [False, True], ids=["by pieces", "by rows"])


@contextlib.contextmanager
def summed(by_rows):
    """Sum gradients of any size in one of the two ways inside the block."""
    before = tiles._SMALL_GRADIENT
    tiles._SMALL_GRADIENT = 0 if by_rows else 1 << 40
    try:
        yield
    finally:
        tiles._SMALL_GRADIENT = before


def bits(*arrays):
    """Return the arrays' bytes: equal only if every bit is."""
    return [np.ascontiguousarray(a).tobytes() for a in arrays]


def relative(value, expected):
    return abs(value - expected) / max(abs(value), abs(expected), 1e-300)


def sparse_case(m, sizes=(20, 15, 9), dtype="float64", sample_weight=None, seed=0):
    """Return a network with a sparse sigmoid and a sparse tanh layer, and data for it."""
    rng = np.random.default_rng(seed)
    net = mlpkit.MLP(
        [
            mlpkit.Input(sizes[0]),
            mlpkit.Dense(sizes[1], "sigmoid", sparsity=mlpkit.KLSparsity(0.1, 2.0)),
            mlpkit.Dense(sizes[2], "tanh", sparsity=mlpkit.KLSparsity(0.3, 0.5)),
        ],
        weight_decay=1e-3,
        dtype=dtype,
        seed=seed,
    )
    net.theta = rng.normal(0.0, 0.3, net.n_parameters)
    X = rng.uniform(-1.0, 1.0, (m, sizes[0])).astype(dtype)
    Y = rng.uniform(-1.0, 1.0, (m, sizes[2])).astype(dtype)
    return Case(net, X, Y, sample_weight, reference.describe(net))


def assert_equals_reference(case, dtype, **options):
    objective = case.objective(**options)
    J, g = objective.value_and_gradient(case.net.theta)
    assert isinstance(J, float)
    assert g.dtype == case.net.dtype

    expected = reference.terms(*case.arguments)
    found = objective.terms(case.net.theta)
    assert set(found) == {"data", "weight_decay", "sparsity"}
    for name, value in expected.items():
        # KL is a difference of numbers of order 1, which leaves rounding alone where rho_hat happens to be rho
        scale = max(abs(value), abs(sum(expected.values())) if name == "sparsity" else 0.0)
        assert abs(found[name] - value) <= TOLERANCE[dtype] * scale, name
    assert relative(J, sum(expected.values())) < TOLERANCE[dtype]
    assert relative(J, sum(found.values())) < 1e-15

    errors = reference.layer_errors(case.twin, g, reference.gradient(*case.arguments))
    assert max(errors) < TOLERANCE[dtype], errors

    twin, theta, X, _, w = case.arguments
    expected_means = reference.rho_hat(twin, theta, X, w)
    found_means = objective.rho_hat(case.net.theta)
    assert len(found_means) == len(expected_means)
    for a, b in zip(found_means, expected_means, strict=True):
        assert a.shape == b.shape
        assert reference.relative_error(a, b) < TOLERANCE[dtype]


# The twin itself --------------------------------------------------------------------------------


def test_every_built_in_has_a_twin():
    assert set(reference.ACTIVATIONS) <= set(mlpkit.activations.names())
    assert {"squared_error", "cross_entropy"} <= set(mlpkit.losses.names())


@settings(max_examples=30)
@given(
    cases(
        activations=reference.ANALYTIC,
        max_units=7,
        n_examples=st.integers(1, 40),
    )
)
def test_reference_gradient_is_the_complex_step(case):
    twin, theta, *data = case.arguments
    exact = reference.complex_step(lambda t: reference.cost(twin, t, *data), theta)
    assert max(reference.layer_errors(twin, reference.gradient(twin, theta, *data), exact)) < 1e-13


# Against the twin and against differences -------------------------------------------------------


@SUMS
@DTYPES
@settings(max_examples=100)
@given(data=st.data())
def test_objective_equals_reference(dtype, by_rows, data):
    with summed(by_rows):
        assert_equals_reference(data.draw(cases(dtype=dtype)), dtype)


# Everything that an objective can be made of; class weights go with losses for classes only, so they are drawn apart.
EVERYTHING = {"penalties": "all", "tied": True, "masked": True}
CLASSES = {"penalties": "all", "class_weighted": True}
OPTIONS = pytest.mark.parametrize("options", [EVERYTHING, CLASSES], ids=["everything", "class weights"])


@SUMS
@DTYPES
@OPTIONS
@settings(max_examples=25)
@given(data=st.data())
def test_objectives_with_masks_ties_and_penalties_equal_the_reference(dtype, by_rows, options, data):
    with summed(by_rows):
        case = data.draw(cases(dtype=dtype, **options))
        assume(case.mask is None or case.mask.any())
        assert_equals_reference(case, dtype, keep_activations=data.draw(st.booleans()))


@SUMS
@DTYPES
@OPTIONS
@settings(max_examples=8)
@given(data=st.data())
def test_masks_ties_and_penalties_give_the_same_bits_everywhere(dtype, by_rows, options, data):
    case = data.draw(cases(dtype=dtype, **options))
    assume(case.mask is None or case.mask.any())
    results = set()
    for n in THREADS:
        for keep in (True, False):
            with threads(n), summed(by_rows):
                J, g = case.objective(keep_activations=keep).value_and_gradient(case.net.theta)
                results.add((J, g.tobytes()))
    assert len(results) == 1


@SUMS
@DTYPES
@pytest.mark.parametrize("keep", [True, False])
def test_objective_equals_reference_over_many_strips(dtype, by_rows, keep):
    # float32 sums over thousands of examples must not lose digits to the number of examples
    m = 5003
    weights = np.random.default_rng(1).integers(0, 5, m) / 2
    with summed(by_rows):
        assert_equals_reference(sparse_case(m, dtype=dtype, sample_weight=weights), dtype, keep_activations=keep)


@DTYPES
def test_a_large_gradient_equals_reference(dtype):
    case = sparse_case(3001, sizes=(150, 260, 131), dtype=dtype)
    assert_equals_reference(case, dtype)


@settings(max_examples=20)
@given(cases(max_units=9))
def test_check_gradient_accepts_every_network(case):
    report = mlpkit.check_gradient(case.net, case.X, case.Y, sample_weight=case.sample_weight)
    assert report.ok, report
    assert report.max_relative_error < 1e-4


@settings(max_examples=20)
@given(cases(max_units=9))
def test_gradient_agrees_with_central_differences(case):
    objective = case.objective()
    theta = case.theta
    _, g = objective.value_and_gradient(theta)
    numerical = reference.central_difference(lambda t: objective.value_and_gradient(t)[0], theta)
    assert max(reference.layer_errors(case.twin, g, numerical)) < 1e-4


def test_check_gradient_covers_float32_through_its_float64_copy():
    case = sparse_case(50, sizes=(5, 4, 3), dtype="float32")
    report = mlpkit.check_gradient(case.net, case.X, case.Y)
    assert report.ok
    assert case.net.dtype == np.float32


def test_autoencoder_targets_equal_to_inputs():
    net = mlpkit.sparse_autoencoder(n_inputs=12, n_hidden=7, seed=3)
    X = np.random.default_rng(0).uniform(0.1, 0.9, (333, 12))
    case = Case(net, X, X, None, reference.describe(net))
    assert_equals_reference(case, "float64")
    one = mlpkit.Objective(net, X, X).value_and_gradient(net.theta)
    two = mlpkit.Objective(net, X, X.copy()).value_and_gradient(net.theta)
    assert one[0] == two[0]
    assert bits(one[1]) == bits(two[1])


@DTYPES
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "softmax"])
@pytest.mark.parametrize("value", [-1e4, -200.0, 40.0, 1e4])
def test_dead_and_saturated_units_cost_much_but_stay_finite(dtype, activation, value):
    # rho_hat rounds to 0 or to 1: KL is clamped, and f' = 0 lets none of its huge slope through,
    # which must not overflow on the way, since 0 * inf is NaN
    sparsity = mlpkit.KLSparsity(rho=0.5, beta=30.0)
    layers = [mlpkit.Input(4), mlpkit.Dense(3, activation, sparsity=sparsity)]
    net = mlpkit.MLP([*layers, mlpkit.Dense(4, "sigmoid")], dtype=dtype, seed=0)
    net.biases[0][:] = value
    if activation == "softmax":
        net.biases[0][1:] = 0.0
    X = np.full((5, 4), 0.5)
    J, g = mlpkit.Objective(net, X, X).value_and_gradient(net.theta)
    assert np.isfinite(J)
    assert J > 100.0
    assert np.isfinite(g).all()


@pytest.mark.parametrize("m", [1, 3, 9, 17])
def test_lanes_without_an_example_leak_nothing(m):
    # W x + b cancels for the data; whatever fills a tile up must not bring in b alone, which
    # the second layer would take to infinity
    identity = [mlpkit.Dense(1, "identity") for _ in range(3)]
    net = mlpkit.MLP([mlpkit.Input(1), *identity])
    net.theta = [-1e200, 1e200, 1e200, 0.0, 1.0, 0.0]
    X = np.ones((m, 1))
    J, g = mlpkit.Objective(net, X, X).value_and_gradient(net.theta)
    assert relative(J, 0.5) < 1e-12
    np.testing.assert_allclose(g, [-1e200, -1e200, 0.0, -1.0, 0.0, -1.0])
    assert not net.predict(X).any()


# Sample weights ---------------------------------------------------------------------------------


@settings(max_examples=25)
@given(cases(weighted=True, n_examples=st.integers(2, 300), max_layers=4))
def test_weights_remove_and_repeat_rows(case):
    counts = (4 * case.sample_weight).astype(int)
    J, g = case.objective().value_and_gradient(case.net.theta)
    rows = np.repeat(np.arange(len(counts)), counts)
    repeated = mlpkit.Objective(case.net, case.X[rows], case.Y[rows])
    J2, g2 = repeated.value_and_gradient(case.net.theta)
    assert relative(J, J2) < 1e-12
    assert max(reference.layer_errors(case.twin, g, g2)) < 1e-12


def test_weight_zero_is_removal_to_the_bit():
    case = sparse_case(300)
    keep = np.random.default_rng(2).random(300) < 0.7
    weighted = mlpkit.Objective(case.net, case.X, case.Y, keep.astype(float))
    removed = mlpkit.Objective(case.net, case.X[keep], case.Y[keep])
    J, g = weighted.value_and_gradient(case.net.theta)
    J2, g2 = removed.value_and_gradient(case.net.theta)
    assert J == J2
    assert bits(g) == bits(g2)


@DTYPES
@pytest.mark.parametrize("factor", [1e-320, 1e-50, 2.0**-20, 2.0**20, 1e39, 1e300])
def test_only_the_proportions_of_weights_matter(dtype, factor):
    w = np.random.default_rng(3).integers(1, 2 if factor < 1e-300 else 9, 100) / 4
    case, scaled = (sparse_case(100, dtype=dtype, sample_weight=v) for v in (w, factor * w))
    J, g = case.objective().value_and_gradient(case.net.theta)
    J2, g2 = scaled.objective().value_and_gradient(case.net.theta)
    assert relative(J, J2) < TOLERANCE[dtype]
    assert max(reference.layer_errors(case.twin, g, g2)) < TOLERANCE[dtype]


# To the bit -------------------------------------------------------------------------------------


@SUMS
@DTYPES
@settings(max_examples=25)
@given(data=st.data())
def test_both_memory_modes_give_the_same_bits(dtype, by_rows, data):
    case = data.draw(cases(dtype=dtype))
    theta = case.net.theta.copy()
    with summed(by_rows):
        kept, recomputed = (case.objective(keep_activations=keep) for keep in (True, False))
    J, g = kept.value_and_gradient(theta)
    J2, g2 = recomputed.value_and_gradient(theta)
    assert J == J2
    assert bits(g, *kept.rho_hat(theta)) == bits(g2, *recomputed.rho_hat(theta))


@SUMS
@DTYPES
@settings(max_examples=20)
@given(data=st.data())
def test_any_number_of_threads_gives_the_same_bits(dtype, by_rows, data):
    case = data.draw(cases(dtype=dtype))
    results = []
    for n in THREADS:
        with threads(n), summed(by_rows):
            J, g = case.objective().value_and_gradient(case.net.theta)
            results.append((J, bits(g, case.net.predict(case.X))))
    assert all(result == results[0] for result in results)


@DTYPES
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("sizes", [(20, 15, 9), (150, 260, 131)])
def test_threads_give_the_same_bits_over_many_strips(dtype, keep, sizes):
    case = sparse_case(6007, dtype=dtype, sizes=sizes)
    objective = case.objective(keep_activations=keep)
    results = []
    for n in THREADS:
        with threads(n):
            J, g = objective.value_and_gradient(case.net.theta)
            J2, g2 = case.objective(keep_activations=keep).value_and_gradient(case.net.theta)
            results += [(J, bits(g)), (J2, bits(g2))]
    assert all(result == results[0] for result in results)


@DTYPES
def test_training_gives_the_same_bits(dtype):
    case = sparse_case(3001, dtype=dtype)
    start = case.net.theta.copy()
    results = []
    for n in THREADS:
        for keep in (True, False):
            with threads(n):
                case.net.theta = start
                result = case.net.fit(
                    case.X,
                    case.Y,
                    optimizer=mlpkit.LBFGS(max_iter=50, ftol=0.0, gtol=0.0),
                    keep_activations=keep,
                )
                assert result.n_iterations == 50
                predictions = case.net.predict(case.X)
                results.append((result.cost, bits(case.net.theta, predictions)))
    assert all(result == results[0] for result in results)


@DTYPES
@settings(max_examples=25)
@given(data=st.data())
def test_a_row_s_prediction_ignores_the_other_rows(dtype, data):
    case = data.draw(cases(dtype=dtype, n_examples=st.sampled_from((2, 7, 33, 129, 300))))
    net, X = case.net, case.X
    whole = net.predict(X)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(X))
    assert bits(net.predict(X[order])) == bits(whole[order])
    for i in rng.integers(0, len(X), 5):
        assert bits(net.predict(X[i : i + 1])[0]) == bits(whole[i])
        strangers = rng.normal(0.0, 1e3, X.shape).astype(dtype)
        strangers[0] = X[i]
        assert bits(net.predict(strangers)[0]) == bits(whole[i])
    assert bits(net.activations(X)[-1]) == bits(whole)


def test_predictions_equal_the_reference():
    case = sparse_case(200)
    _, activations = reference.forward(case.twin, case.theta, case.X)
    found = case.net.activations(case.X)
    assert len(found) == case.net.n_layers - 1
    for a, b in zip(found, activations[1:], strict=True):
        assert a.shape == b.shape
        assert reference.relative_error(a, b) < 1e-14


# What an objective promises its callers ---------------------------------------------------------


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
