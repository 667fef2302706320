"""Gradient checking: on plain functions with seeded mistakes, and on networks."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from mlpkit import LBFGS, MLP, Dense, Input, KLSparsity, Objective, gradient_check
from mlpkit.errors import InvalidArgumentError
from mlpkit.gradient_check import (
    check_gradient,
    compare_gradients,
    numerical_gradient,
)


def quartic(theta):
    """A smooth function of every coordinate, with its true gradient."""
    scale = 1.0 + np.arange(theta.size) % 7
    square = theta * theta
    return float((scale + square) @ square), 2 * scale * theta + 4 * square * theta


def data(n_inputs, n_outputs, m=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 0.9, (m, n_inputs)), rng.uniform(0.1, 0.9, (m, n_outputs))


def network(dtype="float64", seed=0):
    layers = [
        Input(5),
        Dense(4, "sigmoid", sparsity=KLSparsity(0.2, 2.0)),
        Dense(3, "tanh", sparsity=KLSparsity(0.3, 1.0)),
        Dense(2, "sigmoid"),
    ]
    return MLP(layers, weight_decay=1e-2, dtype=dtype, seed=seed)


class TestNumericalGradient:
    def test_is_right_for_any_callable(self):
        theta = np.random.default_rng(0).normal(size=20)
        gradient = numerical_gradient(lambda t: quartic(t)[0], theta)
        assert gradient.dtype == np.float64
        np.testing.assert_allclose(gradient, quartic(theta)[1], rtol=1e-6)

    def test_is_the_central_difference_of_the_notes(self):
        """A one-sided difference of t**2 would be off by epsilon, and so would half of a quotient."""
        assert numerical_gradient(lambda t: t[0] ** 2, [3.0], epsilon=0.5)[0] == pytest.approx(6.0)
        cubic = numerical_gradient(lambda t: t[0] ** 3, [1.0], epsilon=0.5)[0]
        assert cubic == pytest.approx(3.0 + 0.5**2)

    def test_leaves_theta_alone_and_gives_fun_a_vector_of_its_own(self):
        theta = np.array([1.0, 2.0])
        theta.flags.writeable = False

        def spoils(t):
            value = float(t @ t)
            t[:] = 0.0
            return value

        np.testing.assert_allclose(numerical_gradient(spoils, theta), [2.0, 4.0])
        np.testing.assert_array_equal(theta, [1.0, 2.0])

    def test_works_in_float64_whatever_it_is_given(self):
        theta = np.array([0.1, 0.7], np.float32)
        gradient = numerical_gradient(lambda t: np.sin(t).sum(), theta)
        np.testing.assert_allclose(gradient, np.cos(theta.astype(np.float64)), rtol=1e-8)

    @pytest.mark.parametrize(("epsilon", "theta"), [(1e-20, [0.0, 0.3]), (1e-4, [1.0, -1e13])])
    def test_an_epsilon_that_changes_nothing_is_an_error_naming_the_parameter(self, epsilon, theta):
        calls = []
        with pytest.raises(InvalidArgumentError, match=r"epsilon .* beside theta\[1\]"):
            numerical_gradient(calls.append, theta, epsilon)
        assert not calls

    @pytest.mark.parametrize("epsilon", [0.0, -1e-4, np.nan, "small"])
    def test_epsilon_must_be_positive(self, epsilon):
        with pytest.raises(InvalidArgumentError, match="epsilon"):
            numerical_gradient(lambda t: t.sum(), [1.0], epsilon)

    @pytest.mark.parametrize("result", [np.nan, np.inf, np.ones(2), (1.0, np.ones(2)), None, "1"])
    def test_fun_must_return_a_finite_number(self, result):
        with pytest.raises(InvalidArgumentError, match=r"fun must return .* theta\[0\]"):
            numerical_gradient(lambda t: result, [1.0])

    def test_theta_must_be_a_finite_vector(self):
        with pytest.raises(InvalidArgumentError, match="theta"):
            numerical_gradient(lambda t: t.sum(), [[1.0], [2.0]])
        with pytest.raises(InvalidArgumentError, match="theta"):
            numerical_gradient(lambda t: t.sum(), [1.0, np.nan])


class TestCompareGradients:
    BLOCKS: ClassVar = {"first": slice(0, 30), "second": slice(30, 40), "empty": slice(40, 40)}

    def compare(self, edit=lambda g: None, size=40, blocks=None, **options):
        def function(theta):
            value, gradient = quartic(theta)
            edit(gradient)
            return value, gradient

        theta = np.random.default_rng(1).normal(size=size)
        return compare_gradients(function, theta, blocks or self.BLOCKS, **options)

    def test_a_right_gradient_passes(self):
        report = self.compare()
        assert report.ok
        assert report
        assert report.max_relative_error < 1e-7
        assert [block.name for block in report.layers] == ["first", "second"]
        assert [block.n_checked for block in report.layers] == [30, 10]
        assert "passed" in str(report)

    @pytest.mark.parametrize(
        "edit",
        [
            lambda g: g.__setitem__(slice(30, 40), 0.0),
            lambda g: g.__setitem__(35, g[35] * 1.01),
            lambda g: g.__setitem__(slice(30, 40), g[30:40] * (1 + 3e-4)),
            lambda g: g.__setitem__(slice(30, 40), -g[30:40]),
            lambda g: g.__setitem__(slice(30, 40), np.roll(g[30:40], 1)),
        ],
        ids=["dropped", "one parameter", "slightly scaled", "sign", "shifted"],
    )
    def test_a_mistake_is_found_in_its_block(self, edit):
        report = self.compare(edit)
        assert not report.ok
        assert not report
        assert [block.ok for block in report.layers] == [True, False]
        assert report.max_relative_error == report.layers[1].relative_error >= 1e-4
        assert "FAILED" in str(report)
        assert "WRONG" in str(report).splitlines()[2]

    def test_four_digits_are_right(self):
        assert self.compare(lambda g: g.__imul__(1 + 1e-5)).ok

    def test_the_error_is_normwise(self):
        report = compare_gradients(
            lambda t: (float(3 * t[0] + 4 * t[1]), np.array([3.0, 2.0])), [1.0, 1.0], {"": slice(2)}
        )
        assert report.max_relative_error == pytest.approx(2 / (5 + np.sqrt(13)))

    def test_two_zeros_agree(self):
        report = compare_gradients(lambda t: (1.0, np.zeros(3)), np.ones(3), {"all": slice(3)})
        assert report.max_relative_error == 0.0

    def test_a_gradient_lost_in_rounding_is_no_mistake(self):
        """J = 1 has an ulp of 2e-16, so that differences are only good to about 1e-12."""

        def function(theta):
            return 1.0 + 1e-13 * float(theta @ theta), 2e-13 * theta

        assert compare_gradients(function, np.ones(4), {"all": slice(4)}).ok

    def test_the_differences_own_error_is_no_mistake(self):
        """Near a minimum of a curved J, epsilon**2 J''' / 6 is large beside the gradient."""

        def function(theta, factor=1.0):
            value = (theta**3 + 1e-5 * theta).sum()
            return float(value), factor * (3 * theta**2 + 1e-5)

        assert compare_gradients(function, np.zeros(2), {"all": slice(2)}).ok
        assert not compare_gradients(lambda t: function(t, 1.01), np.zeros(2), {"all": slice(2)}).ok

    LARGE: ClassVar = {"first": slice(0, 5000), "second": slice(5000, 5005), "third": slice(5005, 6000)}

    def test_large_vectors_are_sampled(self):
        calls = []

        def function(theta):
            calls.append(1)
            return quartic(theta)

        theta = np.random.default_rng(2).normal(size=6000)
        report = compare_gradients(function, theta, self.LARGE)
        assert report.ok
        assert report.max_relative_error < 1e-5
        assert len(calls) < 1000
        assert [block.n_checked for block in report.layers] == [333, 5, 66]
        assert compare_gradients(function, theta, self.LARGE) == report  # seeded

    def test_directions_find_a_single_wrong_parameter_among_many(self):
        def edit(gradient):
            gradient[4321] += 15.0  # a hundredth of the norm, in a parameter outside the sample

        report = self.compare(edit, size=6000, blocks=self.LARGE)
        assert [block.ok for block in report.layers] == [False, True, True]

    def test_up_to_2000_parameters_every_one_is_checked(self):
        report = self.compare(size=2000, blocks={"all": slice(2000)})
        assert report.layers[0].n_checked == 2000

    def test_bad_arguments_are_named(self):
        with pytest.raises(InvalidArgumentError, match="blocks"):
            compare_gradients(quartic, np.ones(3), {})
        with pytest.raises(InvalidArgumentError, match="gradient"):
            compare_gradients(lambda t: (1.0, np.ones(2)), np.ones(3), {"all": slice(3)})
        with pytest.raises(InvalidArgumentError, match="epsilon"):
            compare_gradients(quartic, np.ones(3), {"all": slice(3)}, 1e-20)


class TestCheckGradient:
    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    def test_passes_and_names_every_block(self, dtype):
        net = network(dtype)
        before = net.theta.copy()
        report = check_gradient(net, *data(5, 2), sample_weight=np.arange(1.0, 13.0))
        assert report.ok, str(report)
        assert report.max_relative_error < (1e-5 if dtype == "float32" else 1e-7)
        names = ["W^(1)", "b^(1)", "W^(2)", "b^(2)", "W^(3)", "b^(3)"]
        assert [block.name for block in report.layers] == names
        assert [block.n_parameters for block in report.layers] == [20, 4, 12, 3, 6, 2]
        np.testing.assert_array_equal(net.theta, before)
        assert net.theta.dtype == dtype

    def test_class_labels_and_a_layer_without_bias(self):
        net = MLP(
            [Input(4), Dense(6, "tanh", bias=False), Dense(3, "softmax")],
            loss="cross_entropy",
            dtype="float32",
            seed=1,
        )
        X, _ = data(4, 1)
        report = check_gradient(net, X, np.arange(12) % 3)
        assert report.ok, str(report)
        assert [block.name for block in report.layers] == ["W^(1)", "W^(2)", "b^(2)"]

    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    def test_passes_on_a_trained_network(self, dtype):
        """Where the gradient almost vanishes, nothing but rounding and truncation is left."""
        net = network(dtype)
        X, Y = data(5, 2)
        net.fit(X, Y, optimizer=LBFGS(max_iter=300))
        report = check_gradient(net, X, Y)
        assert report.ok, str(report)

    def test_a_large_network_is_sampled(self):
        net = MLP([Input(40), Dense(40, "sigmoid"), Dense(40, "sigmoid")], seed=0)
        report = check_gradient(net, *data(40, 40, m=8))
        assert report.ok, str(report)
        assert sum(block.n_checked for block in report.layers) < 500

    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    @pytest.mark.parametrize("block", [0, 1, 4, 5])
    def test_a_mistake_in_the_engine_is_found(self, dtype, block, monkeypatch):
        net = network(dtype)
        bounds = np.cumsum([0, 20, 4, 12, 3, 6, 2])
        where = slice(bounds[block], bounds[block + 1])

        class Wrong(Objective):
            def value_and_gradient(self, theta):
                value, gradient = super().value_and_gradient(theta)
                gradient[where] *= 1.001
                return value, gradient

        monkeypatch.setattr(gradient_check, "Objective", Wrong)
        report = check_gradient(net, *data(5, 2))
        assert [check.ok for check in report.layers] == [k != block for k in range(6)]

    def test_a_mistake_in_float32_alone_is_found(self, monkeypatch):
        class Wrong(Objective):
            def value_and_gradient(self, theta):
                value, gradient = super().value_and_gradient(theta)
                if gradient.dtype == np.float32:
                    gradient *= 1.001
                return value, gradient

        monkeypatch.setattr(gradient_check, "Objective", Wrong)
        assert check_gradient(network(), *data(5, 2)).ok
        assert not check_gradient(network("float32"), *data(5, 2)).ok

    def test_bad_data_are_named(self):
        X, Y = data(5, 2)
        for dtype in ("float64", "float32"):
            with pytest.raises(InvalidArgumentError, match="X"):
                check_gradient(network(dtype), X[:, :3], Y)
            with pytest.raises(InvalidArgumentError, match="epsilon"):
                check_gradient(network(dtype), X, Y, epsilon=1e-20)
