"""The exercise's order of parameters: [W1(:); W2(:); b1; b2], and mlpkit's."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import mlpkit
from mlpkit.interop import from_notes_order, to_notes_order

SIZES = (4, 3, 2, 5)


def network(**options):
    layers = [mlpkit.Dense(units, "sigmoid", **options) for units in SIZES[1:]]
    return mlpkit.MLP([mlpkit.Input(SIZES[0]), *layers], seed=0)


def test_the_exercises_own_indices_find_the_matrices():
    """sparseAutoencoderCost.m, with MATLAB's reshape, which fills columns first."""
    visible, hidden = 4, 3
    net = mlpkit.sparse_autoencoder(n_inputs=visible, n_hidden=hidden, seed=0)
    net.biases[0][:], net.biases[1][:] = [10, 11, 12], [20, 21, 22, 23]
    theta = to_notes_order(net)
    n = hidden * visible
    W1 = theta[:n].reshape(hidden, visible, order="F")
    W2 = theta[n : 2 * n].reshape(visible, hidden, order="F")
    b1 = theta[2 * n : 2 * n + hidden]
    b2 = theta[2 * n + hidden :]
    for found, expected in ((W1, net.weights[0]), (W2, net.weights[1]), (b1, net.biases[0]), (b2, net.biases[1])):
        assert_array_equal(found, expected)


def test_there_and_back_at_any_depth(rng):
    net = network()
    net.theta = rng.normal(size=net.n_parameters)
    unrolled = to_notes_order(net)
    assert_array_equal(unrolled[:12], net.weights[0].ravel(order="F"))
    assert_array_equal(unrolled[-10:], np.concatenate(net.biases))
    assert_array_equal(from_notes_order(net, unrolled), net.theta)
    assert_array_equal(from_notes_order(net, unrolled[:, np.newaxis]), net.theta)


def test_a_gradient_converts_as_parameters_do(rng):
    """The exercise's J of theta in its own order, differentiated there, is mlpkit's gradient converted."""
    net = mlpkit.sparse_autoencoder(n_inputs=4, n_hidden=3, seed=0)
    X = rng.uniform(0.1, 0.9, (20, 4))
    objective = mlpkit.Objective(net, X, X)
    gradient = to_notes_order(net, objective.value_and_gradient(net.theta)[1])
    start, differences = to_notes_order(net), []
    for step in 1e-5 * np.eye(start.size):
        values = [objective.value_and_gradient(from_notes_order(net, start + s))[0] for s in (step, -step)]
        differences.append((values[0] - values[1]) / 2e-5)
    assert np.abs(gradient - differences).max() < 1e-8


def test_what_theta_does_not_hold_is_in_neither():
    layers = [mlpkit.Input(4), mlpkit.Dense(3, "sigmoid", bias=False), mlpkit.Dense(4, "sigmoid", tied_to=1)]
    net = mlpkit.MLP(layers, seed=0)
    net.biases[1][:] = [1, 2, 3, 4]
    unrolled = to_notes_order(net)
    assert_array_equal(unrolled, np.concatenate([net.weights[0].ravel(order="F"), [1, 2, 3, 4]]))
    assert_array_equal(from_notes_order(net, unrolled), net.theta)


@pytest.mark.parametrize("convert", [to_notes_order, from_notes_order])
def test_a_vector_of_another_length_is_refused(convert):
    with pytest.raises(mlpkit.InvalidArgumentError, match=r"vector must have shape \(38,\); found shape \(42,\)"):
        convert(network(), np.zeros(42))
