"""Functions of the twin, against derivatives found in other ways: complex step and central differences.

The complex step follows the branch that the real part takes, so that it is exact at any point that is not a kink
itself, which random numbers never are.
"""

from __future__ import annotations

import numpy as np
import pytest
import reference
import reference_functions as functions
import reference_losses as losses
from reference_functions import activation
from twins import COUPLED, ELEMENTWISE, GRID, PAIRS, PARAMETRISED, STEP, close, targets_for

# Activations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_derivatives_of_activations(name):
    f = activation(name)
    assert close(f.first(GRID), f.f(GRID + 1j * STEP).imag / STEP)
    assert close(f.second(GRID), f.first(GRID + 1j * STEP).imag / STEP)
    h = 1e-5
    assert close(f.first(GRID), (f.f(GRID + h) - f.f(GRID - h)) / (2 * h), 1e-8)
    assert close(f.second(GRID), (f.first(GRID + h) - f.first(GRID - h)) / (2 * h), 1e-8)


@pytest.mark.parametrize("name", COUPLED)
def test_derivatives_of_coupled_activations(name, rng):
    f = activation(name)
    z, rz, g = rng.normal(size=(3, 5))
    shifted = z + 1j * STEP * rz
    assert close(f.first(z) @ rz, f.f(shifted).imag / STEP)
    assert close(functions.tangent(name, z, rz), f.f(shifted).imag / STEP)
    along = functions.pullback(name, shifted, f.f(shifted), g).imag / STEP
    assert close(functions.curvature(name, z, rz, g), along)
    assert close(functions.pullback(name, z, f.f(z), g) @ rz, g @ f.first(z) @ rz)


@pytest.mark.parametrize(
    ("name", "z", "slopes"),
    [  # PyTorch's derivative at kinks, read off its backward formulas
        ("relu", 0.0, (0, 0)),
        ("leaky_relu", 0.0, (0.01, 0)),
        ("leaky_relu(0.2)", 0.0, (0.2, 0)),
        ("elu", 0.0, (1, 1)),
        ("elu(0.5)", 0.0, (0.5, 0.5)),
        ("selu", 0.0, (1.7580993408473766, 1.7580993408473766)),
        ("hard_tanh", -1.0, (0, 0)),
        ("hard_tanh", 1.0, (0, 0)),
        ("hard_sigmoid", -3.0, (0, 0)),
        ("hard_sigmoid", 3.0, (0, 0)),
        ("softsign", 0.0, (1, 0)),
    ],
)
def test_derivatives_at_kinks(name, z, slopes):
    f = activation(name)
    assert z in f.kinks
    assert f.first(np.array([z]))[0] == pytest.approx(slopes[0], rel=1e-15)
    assert f.second(np.array([z]))[0] == pytest.approx(slopes[1], rel=1e-15)


@pytest.mark.parametrize(
    ("name", "z", "a"),
    [
        ("sigmoid", 1.0, 0.7310585786300049),
        ("leaky_relu", -2.0, -0.02),
        ("leaky_relu(0.2)", -2.0, -0.4),
        ("elu", -1.0, -0.6321205588285577),
        ("elu(0.5)", -1.0, -0.31606027941427883),
        ("selu", -1.0, -1.1113307378125625),
        ("selu", 1.0, 1.0507009873554805),
        ("softplus", 1.0, 1.3132616875182228),
        ("softsign", -1.0, -0.5),
        ("silu", 1.0, 0.7310585786300049),
        ("gelu", 1.0, 0.8413447460685429),
        ("hard_sigmoid", 1.0, 2 / 3),
        ("hard_sigmoid", 4.0, 1.0),
        ("hard_tanh", -2.0, -1.0),
        ("gaussian", 1.0, 0.36787944117144233),
    ],
)
def test_values_of_activations(name, z, a):
    assert activation(name).f(np.array([z]))[0] == pytest.approx(a, rel=1e-14)


def test_top_k_keeps_the_lowest_index_of_a_tie():
    kept = activation("top_k(2)").f(np.array([[1.0, 3.0, 3.0, 3.0], [5.0, -1.0, 2.0, 0.0]]))
    assert kept.tolist() == [[0, 3, 3, 0], [5, 0, 2, 0]]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_ranges_and_zeros_of_activations(name):
    f = activation(name)
    wide = np.concatenate([np.linspace(-800, 800, 4001), np.linspace(-4, 4, 80001)])
    with np.errstate(over="ignore"):  # exp(800) is infinite, as it must be
        a = f.f(wide)
    low, high = f.range
    assert a.min() >= low
    assert a.max() <= high
    for end, reached in ((low, a.min()), (high, a.max())):
        assert abs(end - reached) < 0.002 if np.isfinite(end) else abs(reached) > 1.5
    np.testing.assert_allclose(f.f(np.array(f.zeros)), 0, atol=1e-15)
    crossings = np.flatnonzero(np.diff(np.sign(a[-80001:])) * (a[-80001:-1] != 0) * (a[-80000:] != 0))
    assert all(np.abs(wide[-80001:][c] - np.array(f.zeros)).min() < 1e-3 for c in crossings)


def test_parse():
    assert functions.parse("relu") == ("relu", ())
    assert functions.parse("top_k(3)") == ("top_k", (3.0,))
    assert functions.parse("leaky_relu(-1e-3)") == ("leaky_relu", (-0.001,))


# Losses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [False, True], ids=["", "missing"])
@pytest.mark.parametrize(("loss", "name"), PAIRS)
def test_derivatives_of_losses(loss, name, missing, rng):
    z, rz = rng.uniform(-2, 2, (2, 5))
    y = targets_for(loss, 5, rng)
    if missing:
        y[1:3] = np.nan
    f = activation(name).f

    def value(z):
        return losses.example_loss(loss, name, z, f(z), y)

    def delta(z):
        return losses.output_delta(loss, name, z, f(z), y)

    assert close(delta(z), reference.complex_step(value, z))
    along = delta(z + 1j * STEP * rz).imag / STEP
    assert close(losses.output_curvature(loss, name, z, f(z), y, rz), along)


@pytest.mark.parametrize(
    ("loss", "a", "y", "expected"),
    [
        ("squared_error", 3.0, 1.0, 2.0),
        ("absolute_error", 1.0, 3.0, 2.0),
        ("huber", 1.5, 1.0, 0.125),
        ("huber", 4.0, 1.0, 2.5),
        ("huber(2)", 4.0, 1.0, 4.0),
        ("log_cosh", 2.0, 1.0, 0.4337808304830271),
        ("log_cosh", 1e4, 0.0, 1e4 - np.log(2)),
        ("log_cosh", 1e-6, 0.0, 5e-13),
        ("quantile", 1.0, 3.0, 1.0),
        ("quantile(0.9)", 1.0, 3.0, 1.8),
        ("quantile(0.9)", 3.0, 1.0, 0.2),
        ("poisson", 2.0, 3.0, 2 - 3 * np.log(2 + 1e-8)),
    ],
)
def test_values_of_losses(loss, a, y, expected):
    found = losses.loss(loss).value(np.array([a]), np.array([y]))[0]
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "name", "z", "y", "expected"),
    [
        ("binary_cross_entropy", "sigmoid", [1e4], [1.0], 0.0),
        ("binary_cross_entropy", "sigmoid", [1e4], [0.25], 7500.0),
        ("binary_cross_entropy", "sigmoid", [-1e4], [1.0], 1e4),
        ("binary_cross_entropy", "sigmoid", [1.0], [0.25], 1.0632616875182228),
        ("cross_entropy", "softmax", [1e4, -1e4], [0.5, 0.5], 1e4),
        ("poisson", "exp", [0.5], [3.0], 0.14872127070012820),
        ("poisson", "exp", [-1e4], [3.0], 3e4),
    ],
)
def test_losses_from_z(loss, name, z, y, expected):
    z, y = np.array(z), np.array(y)
    a = activation(name).f(z)
    assert losses.example_loss(loss, name, z, a, y) == pytest.approx(expected, rel=1e-12)
    assert np.isfinite(losses.output_delta(loss, name, z, a, y)).all()


def test_losses_that_are_refused():
    names = ELEMENTWISE + COUPLED
    assert [name for name in names if losses.allowed("binary_cross_entropy", name)] == ["sigmoid"]
    assert [name for name in names if losses.allowed("cross_entropy", name)] == ["softmax"]
    negative = {"identity", "tanh", "leaky_relu", "leaky_relu(0.2)", "elu", "elu(0.5)", "selu", "softsign", "silu"}
    negative |= {"gelu", "hard_tanh", "sin", *PARAMETRISED[2:]}
    assert {name for name in names if not losses.allowed("poisson", name)} == negative
    assert all(losses.allowed(loss, name) for loss in ("squared_error", "quantile(0.9)") for name in names)
