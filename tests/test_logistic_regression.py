"""Networks without a hidden layer are logistic regression, and reach the optimum that scikit-learn finds."""

import numpy as np
import pytest

import mlpkit
from mlpkit import Dense, Input

linear_model = pytest.importorskip("sklearn.linear_model")

TIGHT = mlpkit.LBFGS(max_iter=5_000, ftol=0, gtol=1e-10)
C = 0.7


def blobs(n_classes, m=300, n=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, m)
    centres = rng.normal(size=(n_classes, n))
    return centres[labels] + rng.normal(size=(m, n)), labels


def peer(X, labels, sample_weight=None):
    model = linear_model.LogisticRegression(C=C, tol=1e-12, max_iter=100_000)
    return model.fit(X, labels, sample_weight=sample_weight)


def decay(total_weight):
    """Return lambda: scikit-learn minimises C sum of losses + 1/2 ||w||^2, mlpkit the mean loss + lambda/2 ||W||^2."""
    return 1.0 / (C * total_weight)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_sigmoid_unit_is_binary_logistic_regression(weighted):
    X, labels = blobs(2)
    w = np.random.default_rng(1).integers(0, 4, len(X)) / 2 if weighted else np.ones(len(X))
    model = peer(X, labels, w)
    net = mlpkit.MLP([Input(5), Dense(1, "sigmoid")], loss="binary_cross_entropy", weight_decay=decay(w.sum()), seed=0)
    cost = net.fit(X, labels, optimizer=TIGHT, sample_weight=w).cost
    np.testing.assert_allclose(net.weights[0], model.coef_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(net.biases[0], model.intercept_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(net.predict(X)[:, 0], model.predict_proba(X)[:, 1], rtol=1e-5)
    theirs = mlpkit.Objective(net, X, labels, w).terms(np.r_[model.coef_.ravel(), model.intercept_])
    assert cost == pytest.approx(sum(theirs.values()), rel=1e-10)


def test_a_softmax_layer_is_multinomial_logistic_regression():
    X, labels = blobs(4)
    model = peer(X, labels)
    net = mlpkit.MLP([Input(5), Dense(4, "softmax")], loss="cross_entropy", weight_decay=decay(len(X)), seed=0)
    cost = net.fit(X, labels, optimizer=TIGHT).cost
    np.testing.assert_allclose(net.weights[0], model.coef_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(net.predict(X), model.predict_proba(X), rtol=1e-4, atol=1e-7)
    theirs = np.concatenate([model.coef_.ravel(), model.intercept_])
    assert cost == pytest.approx(sum(mlpkit.Objective(net, X, labels).terms(theirs).values()), rel=1e-10)


def test_an_exp_unit_is_poisson_regression():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3))
    y = rng.poisson(np.exp(X @ [0.5, -0.3, 0.2] + 0.4)).astype(float)
    alpha = 0.01  # of 1/2 ||w||^2 beside the mean of half the deviance: lambda itself
    model = linear_model.PoissonRegressor(alpha=alpha, tol=1e-12, max_iter=10_000).fit(X, y)
    net = mlpkit.MLP([Input(3), Dense(1, "exp")], loss="poisson", weight_decay=alpha, seed=0)
    net.fit(X, y, optimizer=TIGHT)
    np.testing.assert_allclose(net.weights[0][0], model.coef_, rtol=1e-5)
    np.testing.assert_allclose(net.biases[0], model.intercept_, rtol=1e-5)


def test_a_linear_unit_with_the_quantile_loss_is_quantile_regression():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 2))
    y = X @ [1.0, -2.0] + rng.gumbel(size=400)
    model = linear_model.QuantileRegressor(quantile=0.8, alpha=0.0).fit(X, y)
    net = mlpkit.MLP([Input(2), Dense(1, "identity")], loss="quantile(0.8)", seed=0)
    net.fit(X, y, optimizer=mlpkit.LBFGS(max_iter=2_000, ftol=0, gtol=0))
    exact = mlpkit.Objective(net, X, y).terms(np.r_[model.coef_, model.intercept_])["data"]
    assert net.evaluate(X, y)["data"] <= exact * 1.001, "near the optimum of a function with kinks"
    assert np.mean(y <= net.predict(X)[:, 0]) == pytest.approx(0.8, abs=0.02)
