"""Losses at the ends of the range of numbers: finite, accurate, and right where an output is certain."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plugin_samples import LOSSES, USERS, pairs

import mlpkit
from mlpkit import Dense, Input, activations

EXTREMES = [0.0, 1e-300, -1e-300, 1.0, -1.0, 50.0, -50.0, 1e4, -1e4]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("loss", "activation"),
    [pair for pair in pairs() if pair[0] in LOSSES and pair[1] not in USERS],
    ids=lambda plugin: plugin.name,
)
def test_losses_and_gradients_are_finite_wherever_they_can_be(loss, activation, dtype):
    net = mlpkit.MLP([Input(1), Dense(3, activation, init=1.0)], loss=loss, dtype=dtype)
    for z in EXTREMES:
        if activation is activations.exp and z > 20:
            continue  # its square, or exp(z) itself, is infinite, and so is the loss
        targets = [1.0, 0.0, 0.0] if loss.class_targets else [0.0, 0.5, 1.0]
        net.theta = [1.0, 0.5, 0.0, 0.0, 0.0, z / 2]
        J, gradient = mlpkit.Objective(net, [[z]], [targets]).value_and_gradient(net.theta)
        assert np.isfinite(J), (z, J)
        assert np.isfinite(gradient).all(), (z, gradient)


@pytest.mark.parametrize(
    ("loss", "activation"),
    [pair for pair in pairs() if pair[0] in LOSSES and pair[1] not in USERS],
    ids=lambda plugin: plugin.name,
)
@given(
    z=st.floats(-1e4, 1e4) | st.floats(-1e-300, 1e-300) | st.sampled_from(EXTREMES),
    shift=st.floats(-1e4, 1e4),
    target=st.floats(0, 1),
)
@settings(max_examples=40)
def test_losses_are_finite_at_whatever_hypothesis_thinks_of(loss, activation, z, shift, target):
    assume(activation is not activations.exp or max(z, shift) <= 300)  # the square of exp(z) must be a number
    net = mlpkit.MLP([Input(1), Dense(2, activation, init=1.0)], loss=loss)
    net.biases[0][:] = [0.0, shift - z]
    J, gradient = mlpkit.Objective(net, [[z]], [[target, 1.0 - target]]).value_and_gradient(net.theta)
    assert np.isfinite(J)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("z", "y"), [(np.inf, 1.0), (-np.inf, 0.0), (1e4, 1.0), (-1e4, 0.0)])
def test_binary_cross_entropy_vanishes_at_a_certain_and_right_answer(z, y, dtype):
    net = mlpkit.MLP([Input(1), Dense(1, "sigmoid", init=0.0)], loss="binary_cross_entropy", dtype=dtype)
    net.biases[0][:] = z
    J, gradient = mlpkit.Objective(net, [[0.0]], [[y]]).value_and_gradient(net.theta)
    assert J == 0
    assert not gradient.any()


def test_binary_cross_entropy_keeps_the_gradient_where_the_output_rounds_to_one():
    net = mlpkit.MLP([Input(1), Dense(1, "sigmoid", init=0.0)], loss="binary_cross_entropy", dtype="float32")
    net.biases[0][:] = 30.0
    J, gradient = mlpkit.Objective(net, [[0.0]], [[1.0]]).value_and_gradient(net.theta)
    assert net.predict([[0.0]])[0, 0] == 1.0
    assert pytest.approx(np.exp(-30.0), rel=1e-6) == J
    assert pytest.approx(-np.exp(-30.0), rel=1e-6) == gradient[1]


def test_log_cosh_keeps_its_digits_near_zero_and_far_away():
    for d in (1e-9, 1e-4, 0.3, 0.49, 0.51, 2.0, 30.0, 1e4):
        exact = 0.5 * d * d - d**4 / 12 if d < 1e-2 else d + math.log1p(math.exp(-2 * d)) - math.log(2)
        net = mlpkit.MLP([Input(1), Dense(1, "identity", init=1.0)], loss="log_cosh")
        J, _ = mlpkit.Objective(net, [[d]], [[0.0]]).value_and_gradient(net.theta)
        assert pytest.approx(exact, rel=1e-13) == J


def test_cross_entropy_stays_right_where_a_softmax_output_underflows():
    net = mlpkit.MLP([Input(1), Dense(2, "softmax", bias=False)], loss="cross_entropy")
    net.theta = [1.0, -1.0]
    J, gradient = mlpkit.Objective(net, [[5e3]], [1]).value_and_gradient(net.theta)
    assert J == 1e4
    np.testing.assert_allclose(gradient, [5e3, -5e3])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("gap", "offset"), [(8, 0), (14, 0), (30, 0), (3, 1e3), (0, 1e6)])
def test_cross_entropy_is_accurate_for_confident_outputs_and_large_logits(dtype, gap, offset):
    net = mlpkit.MLP([Input(1), Dense(3, "softmax", init=0.0)], loss="cross_entropy", dtype=dtype)
    net.biases[0][:] = [offset + gap, offset, offset]
    J = mlpkit.Objective(net, [[1.0]], [0]).value_and_gradient(net.theta)[0]
    # a_j carries the rounding of one exp and one division; the logarithm adds none of its own
    assert pytest.approx(np.log1p(2 * np.exp(-float(gap))), rel=8 * float(np.finfo(dtype).eps)) == J
