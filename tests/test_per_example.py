"""What each example contributes to J, against the twin, the gradient and to the bit; Jacobians of networks."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import reference
import reference_derivatives
from cases import DTYPES, THREADS, TOLERANCE, threads
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Case, cases

import mlpkit
from mlpkit.errors import InvalidArgumentError
from mlpkit.layers import parameter_blocks

EVERYTHING = {"penalties": "all", "tied": True, "masked": True}


def random_case(m, sizes=(20, 15, 9), dtype="float64", sample_weight=None, **options):
    """Return a network with a sparse sigmoid layer and a tanh layer, and data for it."""
    rng = np.random.default_rng(0)
    net = mlpkit.MLP(
        [
            mlpkit.Input(sizes[0]),
            mlpkit.Dense(sizes[1], "sigmoid", sparsity=mlpkit.KLSparsity(0.1, 2.0)),
            mlpkit.Dense(sizes[2], "tanh", **options),
        ],
        weight_decay=1e-3,
        dtype=dtype,
        seed=0,
    )
    net.theta = rng.normal(0.0, 0.3, net.n_parameters)
    X = rng.uniform(-1.0, 1.0, (m, sizes[0])).astype(dtype)
    Y = rng.uniform(-1.0, 1.0, (m, sizes[2])).astype(dtype)
    return Case(net, X, Y, sample_weight, reference.describe(net))


def row_weights(case):
    """Return what each example counts, as an array."""
    return reference.example_weights(case.X, case.weights)


def decay_part(net):
    """Return lambda W at its places in theta: the gradient of weight decay."""
    part = np.zeros(net.n_parameters)
    for block, decay in zip(parameter_blocks(net.layers), net.decays, strict=True):
        part[block.own_weights] = decay * net.theta[block.own_weights].astype(np.float64)
    return part


def everything_about(objective, theta):
    """Return the bytes of all that an objective says of its examples."""
    found = [objective.per_example_loss(theta)]
    for sparsity in (True, False):
        found.append(objective.per_example_gradient(theta, sparsity=sparsity))
        found.append(objective.per_example_gradient_norm(theta, sparsity=sparsity))
    return [a.tobytes() for a in found]


# Against the twin and the gradient --------------------------------------------------------------


@DTYPES
@given(data=st.data())
@settings(max_examples=30)
def test_losses_gradients_and_norms_equal_the_twins(dtype, data):
    case = data.draw(cases(dtype, **EVERYTHING))
    sparsity = data.draw(st.booleans())
    objective, theta = case.objective(), case.net.theta

    losses = objective.per_example_loss(theta)
    assert losses.dtype == np.float64
    assert losses.shape == (len(case.X),)
    assert reference.relative_error(losses, reference.per_example_loss(*case.arguments)) < TOLERANCE[dtype]

    expected = reference_derivatives.per_example_gradient(*case.arguments, sparsity=sparsity)
    gradients = objective.per_example_gradient(theta, sparsity=sparsity)
    assert gradients.dtype == dtype
    assert gradients.shape == expected.shape
    assert reference.relative_error(gradients, expected) < TOLERANCE[dtype]

    norms = objective.per_example_gradient_norm(theta, sparsity=sparsity)
    assert norms.dtype == np.float64
    assert reference.relative_error(norms, np.linalg.norm(expected, axis=1)) < TOLERANCE[dtype]


@DTYPES
@given(data=st.data())
@settings(max_examples=20)
def test_their_weighted_means_are_the_objectives_terms_and_gradient(dtype, data):
    options = EVERYTHING if data.draw(st.booleans()) else {"class_weighted": True}
    case = data.draw(cases(dtype, **options))
    objective, theta, w = case.objective(), case.net.theta, row_weights(case)
    terms, gradient = objective.terms_and_gradient(theta)

    mean = w @ objective.per_example_loss(theta) / w.sum()
    np.testing.assert_allclose(mean, terms["data"], rtol=TOLERANCE[dtype])
    mean = w @ objective.per_example_gradient(theta).astype(np.float64) / w.sum()
    assert reference.relative_error(mean + decay_part(case.net), gradient) < TOLERANCE[dtype]


def test_a_gradient_is_the_slope_of_the_examples_loss():
    case = random_case(7)
    objective, theta = case.objective(), case.net.theta
    slopes = reference.central_difference(objective.per_example_loss, theta, epsilon=1e-5).T
    gradients = objective.per_example_gradient(theta, sparsity=False)
    np.testing.assert_allclose(gradients, slopes, atol=1e-8 * np.abs(slopes).max())


def test_norms_of_tied_weights_hold_the_products_of_both_layers():
    net = mlpkit.MLP(
        [mlpkit.Input(6), mlpkit.Dense(4, "tanh"), mlpkit.Dense(6, "sigmoid", tied_to=1), mlpkit.Dense(4, "tanh"),
         mlpkit.Dense(6, "identity", tied_to=1)],
        seed=0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    net.theta = rng.normal(size=net.n_parameters)
    objective = mlpkit.Objective(net, rng.normal(size=(50, 6)), rng.normal(size=(50, 6)))
    expected = np.linalg.norm(objective.per_example_gradient(net.theta), axis=1)
    np.testing.assert_allclose(objective.per_example_gradient_norm(net.theta), expected, rtol=1e-13)


def test_examples_of_weight_zero_contribute_nothing():
    weights = np.tile([0.0, 2.0, 1.0], 40)
    case = random_case(120, sample_weight=weights)
    objective, theta = case.objective(), case.net.theta
    unused = weights == 0
    for found in (
        objective.per_example_loss(theta),
        objective.per_example_gradient_norm(theta),
        objective.per_example_gradient(theta),
    ):
        assert np.all(found[unused] == 0)
        assert np.all(found[~unused].reshape((~unused).sum(), -1).any(axis=1))
    assert not objective.per_example_gradient(theta, rows=np.flatnonzero(unused)).any()


# To the bit -------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("sizes", [(20, 15, 9), (30, 200, 190)], ids=["small", "large"])
def test_any_number_of_threads_gives_the_same_bits(dtype, sizes):
    case = random_case(700, sizes, dtype, sample_weight=np.tile([1.0, 0.0, 2.0, 3.0], 175))
    found = []
    for n in THREADS:
        with threads(n):
            found.append((*everything_about(case.objective(), case.net.theta), case.net.jacobian(case.X).tobytes()))
    assert len(set(found)) == 1


@DTYPES
@given(data=st.data())
@settings(max_examples=20)
def test_a_row_does_not_depend_on_the_others_asked_for(dtype, data):
    m = data.draw(st.sampled_from((1, 5, 31, 200, 513)))
    weights = data.draw(st.sampled_from((None, np.arange(m) % 3 - (m == 1) + 0.0)))
    weights = None if weights is None else np.abs(weights)
    case = random_case(m, dtype=dtype, sample_weight=weights)
    objective, theta = case.objective(), case.net.theta
    whole = objective.per_example_gradient(theta)
    number = st.integers(-m, m - 1)
    rows = data.draw(
        st.lists(number, max_size=80).map(lambda numbers: np.array(numbers, np.int64))
        | st.builds(slice, st.none() | number, st.none() | number, st.sampled_from((None, 1, 3, -1, -2)))
        | st.integers(0, 99).map(lambda seed: np.random.default_rng(seed).random(m) < 0.3)
    )
    found = objective.per_example_gradient(theta, rows)
    assert found.shape == whole[rows].shape
    assert found.tobytes() == whole[rows].tobytes()


def test_a_list_of_rows_will_do():
    case = random_case(5)
    objective, theta = case.objective(), case.net.theta
    whole = objective.per_example_gradient(theta)
    np.testing.assert_array_equal(objective.per_example_gradient(theta, [3, -5]), whole[[3, 0]])
    assert objective.per_example_gradient(theta, []).shape == (0, theta.size)


# Where results go -------------------------------------------------------------------------------


@DTYPES
def test_gradients_go_to_a_memmap(dtype, tmp_path):
    case = random_case(300, dtype=dtype)
    objective, theta = case.objective(), case.net.theta
    shape = (300, theta.size)
    out = np.memmap(tmp_path / "gradients", dtype, "w+", shape=shape)
    assert objective.per_example_gradient(theta, out=out) is out
    out.flush()
    stored = np.fromfile(tmp_path / "gradients", dtype).reshape(shape)
    np.testing.assert_array_equal(stored, objective.per_example_gradient(theta))


def test_memory_beside_out_does_not_grow_with_the_gradients():
    m = 4_000
    case = random_case(m, sizes=(64, 25, 64))
    objective, theta = case.objective(), case.net.theta
    out = np.empty((m, theta.size))
    objective.per_example_gradient(theta, out=out)  # compiles, and allocates what the objective keeps
    tracemalloc.start()
    objective.per_example_gradient(theta, out=out)
    objective.per_example_gradient_norm(theta)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < out.nbytes / 20, f"{peak / 1e6:.1f} MB beside {out.nbytes / 1e6:.1f} MB"


def test_out_may_be_where_theta_is():
    case = random_case(3)
    objective, theta = case.objective(), case.net.theta
    expected = objective.per_example_gradient(theta)
    out = np.vstack([theta, theta, theta])
    np.testing.assert_array_equal(objective.per_example_gradient(out[1], out=out), expected)


def test_an_objective_and_a_network_are_left_as_they_were():
    case = random_case(100)
    objective, theta = case.objective(), case.net.theta.copy()
    J, gradient = objective.value_and_gradient(theta)
    everything_about(objective, theta)
    case.net.jacobian(case.X)
    np.testing.assert_array_equal(case.net.theta, theta)
    again, same = objective.value_and_gradient(theta)
    assert (J, gradient.tobytes()) == (again, same.tobytes())


# Errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 7], "rows must hold integers from -7 to 6; found 7"),
        ([-8], "rows must hold integers from -7 to 6; found -8"),
        (3, "rows must be a slice"),
        ([[0, 1]], r"found shape \(1, 2\)"),
        ([0.5], "found shape .*float64"),
        ([True, False], "7 booleans"),
        ("all", "rows must be"),
        (slice("a", None), "rows must be a slice of integers"),
        (slice(0, 5, 0), "rows must be a slice of integers"),
        (np.array([2**63], np.uint64), "rows must hold integers from -7 to 6; found 9223372036854775808"),
    ],
)
def test_wrong_rows_are_named(rows, message):
    case = random_case(7)
    with pytest.raises(InvalidArgumentError, match=message):
        case.objective().per_example_gradient(case.net.theta, rows)


def test_other_arguments_are_checked_and_named():
    case = random_case(7)
    objective, theta = case.objective(), case.net.theta
    for method in (objective.per_example_loss, objective.per_example_gradient, objective.per_example_gradient_norm):
        with pytest.raises(InvalidArgumentError, match="theta must have shape"):
            method(theta[1:])
    for method in (objective.per_example_gradient, objective.per_example_gradient_norm):
        with pytest.raises(InvalidArgumentError, match="sparsity must be True or False"):
            method(theta, sparsity=1)
    for out in (np.empty((6, theta.size)), np.empty((7, theta.size), np.float32), np.empty((theta.size, 7)).T):
        with pytest.raises(InvalidArgumentError, match="out must be a writable C-contiguous array of shape"):
            objective.per_example_gradient(theta, out=out)
    with pytest.raises(InvalidArgumentError, match="X must have 20 columns"):
        case.net.jacobian(case.X[:, 1:])
    with pytest.raises(InvalidArgumentError, match="X must be finite"):
        case.net.jacobian(np.full((1, 20), np.nan))


# Jacobians --------------------------------------------------------------------------------------


@DTYPES
@given(data=st.data())
@settings(max_examples=30)
def test_jacobians_equal_the_twins(dtype, data):
    case = data.draw(cases(dtype, penalties="all", tied=True))
    twin, theta, X = case.arguments[:3]
    found = case.net.jacobian(case.X)
    assert found.dtype == dtype
    assert found.shape == (len(X), twin.sizes[-1], twin.n_inputs)
    assert reference.relative_error(found, reference.jacobian(twin, theta, X)) < TOLERANCE[dtype]


@given(case=cases(activations=reference.ANALYTIC, n_examples=st.integers(1, 40)))
@settings(max_examples=15)
def test_jacobians_equal_the_complex_step(case):
    twin, theta, X = case.arguments[:3]
    columns = [
        reference.complex_step_along(lambda X: reference.predict(twin, theta + 0j, X), X, unit)
        for unit in np.eye(twin.n_inputs)
    ]
    assert reference.relative_error(case.net.jacobian(case.X), np.stack(columns, axis=2)) < 1e-12


def test_jacobians_are_slopes_of_predictions():
    case = random_case(40, sizes=(5, 15, 9))
    found, h = case.net.jacobian(case.X), 1e-6
    for k, unit in enumerate(np.eye(5)):
        slope = (case.net.predict(case.X + h * unit) - case.net.predict(case.X - h * unit)) / (2 * h)
        np.testing.assert_allclose(found[:, :, k], slope, atol=1e-8)


def test_a_jacobian_depends_on_its_own_row_only():
    case = random_case(200)
    whole = case.net.jacobian(case.X)
    for rows in (slice(0, 1), slice(150, 200), slice(None, None, 7)):
        np.testing.assert_array_equal(case.net.jacobian(case.X[rows]), whole[rows])
