"""Derivatives by dual numbers, and those that are written down, against differences."""

import math

import numpy as np
import pytest
from plugin_samples import ACTIVATIONS, LOSSES, swish

import mlpkit
from mlpkit import Dense, Input
from mlpkit.activations import Activation
from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels import vmath


def _polynomial(z):
    total = 0.0
    for i in range(4):
        total = total * z + i
    return total


def _branches(z):
    if z > 1:
        return z * z
    return 2 if z < -1 else z


def _in_place(z):
    z += 1
    z *= z
    z /= 3.0
    z -= 0.5
    return z


DIFFERENTIABLE = {
    "polynomial": _polynomial,
    "branches": _branches,
    "in place": _in_place,
    "abs": lambda z: abs(z) * z + abs(-z),
    "max and min": lambda z: max(z, 0.3 * z, -1) * min(1.0, z * z) + np.maximum(z, 0.1) * np.minimum(2, z),
    "whole powers": lambda z: z**3 - 2 * z**2 + z**-2 + z**0,
    "powers": lambda z: abs(z) ** 1.5 + (1 + z * z) ** z + 2.0**z + math.pow(2.0, z),
    "quotients": lambda z: 1 / (1 + z * z) / (2 - z),
    "exponentials": lambda z: math.exp(-z * z) + np.expm1(z) + vmath.expit(z) * vmath.softplus(z) + math.tanh(z),
    "logarithms": lambda z: math.log(2.0 + z * z) + np.log1p(z * z) + math.log2(3 + abs(z)) + np.log10(z * z + 1),
    "erf": lambda z: math.erf(z) + math.erfc(z / 2) * z,
    "circle": lambda z: math.sin(z) * np.cos(2 * z) + math.tan(z / 5) + math.atan2(z, 2.0) + math.hypot(z, 1),
    "arcs": lambda z: math.asin(z / 9) + np.arccos(z / 9) + math.atan(z) + np.arctan(z),
    "hyperbolic": lambda z: math.sinh(z) / np.cosh(z) + math.asinh(z) + math.acosh(2 + z * z) + math.atanh(z / 9),
    "steps": lambda z: math.floor(z) + np.ceil(z) * z + z // 1 + z % 2 + int(z) + math.copysign(z, -1.0) + np.sign(z),
    "questions": lambda z: z if math.isfinite(z) and not np.isnan(z) and not math.isinf(z) and z else 0.0,
    "square root": lambda z: math.sqrt(1 + z * z) + np.square(z) + float(z),
}


@pytest.mark.filterwarnings("ignore:.*no vector code")
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives_by_dual_numbers_agree_with_differences(name):
    function = DIFFERENTIABLE[name]
    f = Activation("f", function)
    z = np.array([-2.3, -1.7, -0.6, 0.37, 0.8, 1.9])  # away from the steps and kinks above
    h = 1e-4
    at = [np.array([float(function(float(v))) for v in z + i * h]) for i in (-2, -1, 0, 1, 2)]
    slope = (at[0] - 8 * at[1] + 8 * at[3] - at[4]) / (12 * h)
    bend = (-at[0] + 16 * at[1] - 30 * at[2] + 16 * at[3] - at[4]) / (12 * h * h)
    np.testing.assert_allclose(f.derivative(z, at[2]), slope, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(f.second_derivative(z, at[2]), bend, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("f", [*ACTIVATIONS, swish], ids=lambda f: f.name)
def test_second_derivatives_of_activations_agree_with_differences_of_the_first(f):
    if f.coupled:
        with pytest.raises(InvalidArgumentError, match="couples the units"):
            f.second_derivative(0.0, 0.0)
        return
    z = np.array([-3.7, -2.3, -0.9, -0.4, 0.37, 0.8, 1.9, 3.3])
    h = 1e-5
    difference = (f.derivative(z + h, f(z + h)) - f.derivative(z - h, f(z - h))) / (2 * h)
    np.testing.assert_allclose(f.second_derivative(z, f(z)), difference, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss.function], ids=lambda loss: loss.name)
def test_derivatives_of_losses_agree_with_differences(loss):
    a, y = map(np.ravel, np.meshgrid([0.1, 0.47, 1.2, 2.9], [0.0, 0.3, 1.0, 2.0]))
    h = 1e-5
    values = np.vectorize(loss.function)
    difference = (values(a + h, y) - values(a - h, y)) / (2 * h)
    np.testing.assert_allclose(loss.derivative(a, y), difference, rtol=1e-7, atol=1e-7)
    difference = (loss.derivative(a + h, y) - loss.derivative(a - h, y)) / (2 * h)
    np.testing.assert_allclose(loss.second_derivative(a, y), difference, rtol=1e-6, atol=1e-6)


def test_a_derivative_that_cannot_be_derived_is_asked_for():
    f = Activation("table", lambda z: math.gamma(2.0 + abs(z)))
    net = mlpkit.MLP([Input(1), Dense(1, f)])
    with pytest.raises(InvalidArgumentError, match="gamma"):
        mlpkit.Objective(net, [[1.0]], [[1.0]])
