"""J, its terms, gradient and rho_hat against the plain-NumPy twin and against differences."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from cases import DTYPES, SUMS, THREADS, TOLERANCE, bits, relative, sparse_case, summed, threads
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import Case, cases

import mlpkit


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
        # activations are of order 1, but their means may cancel
        assert reference.relative_error(a, b, least=0.1) < TOLERANCE[dtype]


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
