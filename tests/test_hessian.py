"""Products of the Hessian and a vector: against the plain-NumPy twin, against differences, and to the bit."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import reference
import reference_derivatives
from cases import DTYPES, SUMS, THREADS, bits, sparse_case, summed, threads
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Case, cases

import mlpkit
from mlpkit.errors import InvalidArgumentError
from mlpkit.layers import parameter_blocks

# Second derivatives are sums of twice as many terms as the gradient's, which partly cancel.
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}
EVERYTHING = {"penalties": "all", "tied": True, "masked": True}


def directions(case, n=1, seed=0):
    """Return vectors of parameters, exact in the network's dtype."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=case.net.n_parameters).astype(case.net.dtype).astype(np.float64) for _ in range(n)]


def twin_product(case, v, dtype=np.float64):
    twin, theta, X, Y, w = case.arguments
    theta, v, X, Y = (array.astype(dtype) for array in (theta, v, X, Y))
    return reference_derivatives.hessian_vector_product(twin, theta, v, X, Y, w)


def product(case, v, **options):
    return case.objective(**options).hessian_vector_product(case.net.theta, v)


def assert_equals_reference(case, dtype):
    (v,) = directions(case)
    found, expected = product(case, v), twin_product(case, v)
    assert found.dtype == case.net.dtype
    # Over all parameters: that of one layer may cancel where the gradient's does not.
    assert reference.relative_error(found, expected) < TOLERANCE[dtype]


# Against the twin and against differences -------------------------------------------------------


@SUMS
@DTYPES
@settings(max_examples=40)
@given(data=st.data())
def test_products_equal_reference(dtype, by_rows, data):
    case = data.draw(cases(dtype=dtype, **EVERYTHING))
    with summed(by_rows):
        assert_equals_reference(case, dtype)


@settings(max_examples=20)
@given(cases(class_weighted=True, max_layers=4))
def test_products_with_class_weights_equal_reference(case):
    assert_equals_reference(case, "float64")


@SUMS
@DTYPES
def test_products_equal_reference_over_many_strips(dtype, by_rows):
    weights = np.random.default_rng(1).integers(0, 5, 5003) / 2
    with summed(by_rows):
        assert_equals_reference(sparse_case(5003, dtype=dtype, sample_weight=weights), dtype)


def test_a_large_product_equals_reference():
    assert_equals_reference(sparse_case(601, sizes=(150, 260, 131)), "float64")


@settings(max_examples=25)
@given(cases(max_units=12, n_examples=st.integers(1, 60), **EVERYTHING))
def test_products_are_differences_of_gradients(case):
    (v,) = directions(case)
    objective, theta = case.objective(), case.theta
    epsilon = 1e-5 / np.abs(v).max()
    ends = [objective.value_and_gradient(theta + sign * epsilon * v)[1] for sign in (1, -1)]
    numerical = (ends[0] - ends[1]) / (2 * epsilon)
    found = objective.hessian_vector_product(theta, v)
    # Differences of gradients carry rounding of some eps |gradient| / epsilon, whatever the product's own size.
    size = np.linalg.norm(found) + 1e-3 * np.linalg.norm(ends[0])
    assert np.linalg.norm(found - numerical) <= 1e-5 * size


@settings(max_examples=15)
@given(cases(max_units=12, **EVERYTHING))
def test_the_hessian_is_symmetric(case):
    u, v = directions(case, 2)
    objective = case.objective()
    Hu, Hv = (objective.hessian_vector_product(case.net.theta, d) for d in (u, v))
    scale = np.linalg.norm(u) * np.linalg.norm(Hv) + np.linalg.norm(v) * np.linalg.norm(Hu)
    assert abs(u @ Hv - v @ Hu) <= 1e-12 * scale


def test_products_are_linear_in_the_vector():
    case = sparse_case(200)
    u, v = directions(case, 2)
    both = product(case, 2 * u - 3 * v)
    assert reference.relative_error(both, 2 * product(case, u) - 3 * product(case, v)) < 1e-13


def test_linear_least_squares_has_a_constant_hessian():
    rng = np.random.default_rng(0)
    X, w = rng.normal(size=(70, 4)), rng.uniform(size=70)
    net = mlpkit.MLP([mlpkit.Input(4), mlpkit.Dense(1, "identity")], weight_decay=0.3)
    ones = np.column_stack([X, np.ones(70)])
    H = (ones.T * w) @ ones / w.sum() + np.diag([0.3] * 4 + [0.0])
    objective = mlpkit.Objective(net, X, rng.normal(size=70), sample_weight=w)
    for theta in (np.zeros(5), rng.normal(size=5)):
        columns = [objective.hessian_vector_product(theta, e) for e in np.eye(5)]
        np.testing.assert_allclose(columns, H, rtol=1e-12, atol=1e-14)


# What is special ---------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "softmax"])
@pytest.mark.parametrize("value", [-1e4, -200.0, 40.0, 1e4])
def test_dead_and_saturated_units_give_finite_products(dtype, activation, value):
    layers = [mlpkit.Input(4), mlpkit.Dense(3, activation, sparsity=mlpkit.KLSparsity(rho=0.5, beta=30.0))]
    net = mlpkit.MLP([*layers, mlpkit.Dense(4, "sigmoid")], dtype=dtype, seed=0)
    net.biases[0][:] = value
    if activation == "softmax":
        net.biases[0][1:] = 0.0
    X = np.full((5, 4), 0.5)
    objective = mlpkit.Objective(net, X, X)
    assert np.isfinite(objective.hessian_vector_product(net.theta, np.ones(net.n_parameters))).all()


@pytest.mark.parametrize("m", [1, 3, 9, 17])
def test_lanes_without_an_example_leak_nothing(m):
    net = mlpkit.MLP([mlpkit.Input(1), *(mlpkit.Dense(1, "identity") for _ in range(3))])
    net.theta = [-1e200, 1e200, 1e200, 0.0, 1.0, 0.0]
    X = np.ones((m, 1))
    found = mlpkit.Objective(net, X, X).hessian_vector_product(net.theta, [0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(found, [1e200, 1e200, 0.0, 1.0, 0.0, 1.0])


def test_weight_zero_is_removal_to_the_bit():
    case = sparse_case(300)
    keep = np.random.default_rng(2).random(300) < 0.7
    (v,) = directions(case)
    weighted = mlpkit.Objective(case.net, case.X, case.Y, keep.astype(float))
    removed = mlpkit.Objective(case.net, case.X[keep], case.Y[keep])
    results = [objective.hessian_vector_product(case.net.theta, v) for objective in (weighted, removed)]
    assert bits(results[0]) == bits(results[1])


def test_clamped_means_have_no_second_derivative():
    penalty = mlpkit.KLSparsity(0.2, 3.0)
    np.testing.assert_array_equal(penalty.second_derivative([0.0, 1.0]), [0.0, 0.0])
    r, h = np.array([0.01, 0.2, 0.7]), 1e-7
    numerical = (penalty.derivative(r + h) - penalty.derivative(r - h)) / (2 * h)
    np.testing.assert_allclose(penalty.second_derivative(r), numerical, rtol=1e-6)
    assert np.isnan(penalty.second_derivative([np.nan])).all()


# To the bit --------------------------------------------------------------------------------------


@SUMS
@DTYPES
@settings(max_examples=10)
@given(data=st.data())
def test_any_number_of_threads_gives_the_same_bits(dtype, by_rows, data):
    case = data.draw(cases(dtype=dtype, **EVERYTHING))
    (v,) = directions(case)
    results = []
    for n in THREADS:
        with threads(n), summed(by_rows):
            results.append(bits(product(case, v)))
    assert all(result == results[0] for result in results)


@DTYPES
@pytest.mark.parametrize("sizes", [(20, 15, 9), (150, 260, 131)])
def test_threads_give_the_same_bits_over_many_strips(dtype, sizes):
    case = sparse_case(3007, dtype=dtype, sizes=sizes)
    (v,) = directions(case)
    objective = case.objective()
    results = []
    for n in (*THREADS, 1):
        with threads(n):
            results.append(bits(objective.hessian_vector_product(case.net.theta, v)))
    assert all(result == results[0] for result in results)


# As a method -------------------------------------------------------------------------------------


def test_products_leave_the_objective_and_arguments_as_they_are():
    case = sparse_case(50)
    (v,) = directions(case)
    objective, theta = case.objective(), case.net.theta.copy()
    before = objective.value_and_gradient(theta)
    first = objective.hessian_vector_product(theta, v)
    kept = v.copy()
    for array in (v, theta):
        array.flags.writeable = False
    second = objective.hessian_vector_product(theta, v)
    assert first is not second
    assert bits(first, v) == bits(second, kept)
    after = objective.value_and_gradient(theta)
    assert before[0] == after[0]
    assert bits(before[1]) == bits(after[1])


def test_out_receives_the_product_and_may_be_the_vector():
    case = sparse_case(50)
    (v,) = directions(case)
    objective = case.objective()
    expected = objective.hessian_vector_product(case.net.theta, v)
    out = np.empty_like(v)
    assert objective.hessian_vector_product(case.net.theta, v, out=out) is out
    assert objective.hessian_vector_product(case.net.theta, v, out=v) is v
    assert bits(out, v) == bits(expected, expected)


def test_pickled_objectives_give_the_same_products():
    case = sparse_case(50)
    (v,) = directions(case)
    objective = case.objective()
    expected = objective.hessian_vector_product(case.net.theta, v)
    again = pickle.loads(pickle.dumps(objective))
    assert bits(again.hessian_vector_product(case.net.theta, v)) == bits(expected)


def test_bad_arguments_are_named():
    case = sparse_case(5)
    objective, theta = case.objective(), case.net.theta
    with pytest.raises(InvalidArgumentError, match=r"^v must have shape"):
        objective.hessian_vector_product(theta, theta[1:])
    with pytest.raises(InvalidArgumentError, match=r"^theta must have shape"):
        objective.hessian_vector_product(theta[1:], theta)
    with pytest.raises(InvalidArgumentError, match=r"^out "):
        objective.hessian_vector_product(theta, theta, out=np.empty(3))


def test_a_users_activation_gets_its_second_derivative_from_dual_numbers():
    f = mlpkit.activation(lambda z: z * mlpkit.vmath.expit(2 * z), name="hessian_swish2", replace=True)
    net = mlpkit.MLP([mlpkit.Input(3), mlpkit.Dense(4, f), mlpkit.Dense(2, f)], seed=0)
    rng = np.random.default_rng(0)
    case = Case(net, rng.normal(size=(9, 3)), rng.normal(size=(9, 2)), None, None)
    (v,) = directions(case)
    objective, h = case.objective(), 1e-5
    ends = [objective.value_and_gradient(net.theta + s * h * v)[1] for s in (1, -1)]
    found = objective.hessian_vector_product(net.theta, v)
    assert reference.relative_error(found, (ends[0] - ends[1]) / (2 * h)) < 1e-8


def test_a_product_that_is_cancelled_leaves_the_data_alone():
    """Ctrl-C is not to wait for it: what is left then is what needs no data, weight decay."""
    net = mlpkit.MLP(
        [mlpkit.Input(64), mlpkit.Dense(600, "tanh"), mlpkit.Dense(1, "identity")], weight_decay=0.5, seed=0
    )
    rng = np.random.default_rng(0)
    objective = mlpkit.Objective(net, rng.normal(size=(500, 64)), rng.normal(size=500))
    v = rng.normal(size=net.theta.size)
    whole = objective.hessian_vector_product(net.theta, v)
    objective.cancel()
    product = objective.hessian_vector_product(net.theta, v)
    weights = np.zeros(v.size, bool)
    for block in parameter_blocks(net.layers):
        weights[block.W : block.b] = True
    assert np.array_equal(product, np.where(weights, 0.5 * v, 0))
    assert not np.array_equal(product, whole)
