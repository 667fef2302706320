"""What the CS294A notes state, one statement a test, with its formula written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from scipy.special import expit

import mlpkit
from mlpkit import LBFGS, MLP, Dense, GradientDescent, Input, KLSparsity, Objective
from mlpkit.errors import InvalidArgumentError


def random_net(layers, rng, scale=0.5, **options):
    net = MLP(layers, **options)
    net.theta = rng.normal(0.0, scale, net.n_parameters)
    return net


# Section 2: one neuron, and what f is -----------------------------------------------------------


def test_a_single_neuron_is_logistic_regression(rng):
    net = random_net([Input(3), Dense(1, "sigmoid")], rng)
    X = rng.normal(size=(50, 3))
    W, b = net.weights[0], net.biases[0]
    np.testing.assert_allclose(net.predict(X), expit(X @ W.T + b), rtol=1e-14)


def test_sigmoid_is_a_rescaled_tanh(rng):
    net = random_net([Input(4), Dense(6, "sigmoid")], rng, scale=2.0)
    X = rng.normal(size=(50, 4))
    z = X @ net.weights[0].T + net.biases[0]
    np.testing.assert_allclose(net.predict(X), (1 + np.tanh(z / 2)) / 2, atol=1e-15)


def test_tanh_is_equation_1(rng):
    net = random_net([Input(4), Dense(6, "tanh")], rng)
    X = rng.normal(size=(50, 4))
    z = X @ net.weights[0].T + net.biases[0]
    expected = (np.exp(z) - np.exp(-z)) / (np.exp(z) + np.exp(-z))
    np.testing.assert_allclose(net.predict(X), expected, atol=1e-15)


@pytest.mark.parametrize("z", [-1e4, -800.0, 800.0, 1e4])
def test_sigmoid_and_tanh_do_not_overflow(z):
    for name, expected in [("sigmoid", (z > 0) * 1.0), ("tanh", math.copysign(1.0, z))]:
        net = MLP([Input(1), Dense(1, name, init=1.0)])
        assert net.predict([[z]])[0, 0] == pytest.approx(expected, abs=1e-300)


@pytest.mark.parametrize(("name", "from_output"), [("sigmoid", lambda a: a * (1 - a)), ("tanh", lambda a: 1 - a**2)])
def test_derivative_follows_from_the_output(name, from_output):
    # J of one example with one output and squared error: dJ/db = (a - y) f'(z)
    net = MLP([Input(1), Dense(1, name, init=1.0)])
    for z in np.linspace(-4.0, 4.0, 17):
        a = net.predict([[z]])[0, 0]
        _, g = Objective(net, [[z]], [[0.0]]).value_and_gradient(net.theta)
        assert g[1] == pytest.approx(a * from_output(a), rel=1e-12, abs=1e-15)


# Section 2.1: the 3-3-1 network, equations (2) to (7) -------------------------------------------


def test_the_3_3_1_network_by_equations_2_to_5(rng):
    net = random_net([Input(3), Dense(3, "sigmoid"), Dense(1, "sigmoid")], rng)
    assert net.n_layers == 3
    assert tuple(net.sizes) == (3, 3, 1)
    assert net.weights[0].shape == (3, 3)
    assert net.weights[1].shape == (1, 3)
    assert net.n_parameters == 9 + 3 + 3 + 1

    def f(z):
        return 1 / (1 + math.exp(-z))

    W1, b1, W2, b2 = net.weights[0], net.biases[0], net.weights[1], net.biases[1]
    for x in rng.normal(size=(20, 3)):
        x1, x2, x3 = x
        a1 = f(W1[0, 0] * x1 + W1[0, 1] * x2 + W1[0, 2] * x3 + b1[0])
        a2 = f(W1[1, 0] * x1 + W1[1, 1] * x2 + W1[1, 2] * x3 + b1[1])
        a3 = f(W1[2, 0] * x1 + W1[2, 1] * x2 + W1[2, 2] * x3 + b1[2])
        h = f(W2[0, 0] * a1 + W2[0, 1] * a2 + W2[0, 2] * a3 + b2[0])
        hidden, output = net.activations(x[np.newaxis])
        np.testing.assert_allclose(hidden, [[a1, a2, a3]], rtol=1e-14)
        np.testing.assert_allclose(output, [[h]], rtol=1e-14)
        np.testing.assert_allclose(net.predict(x[np.newaxis]), [[h]], rtol=1e-14)


def test_two_hidden_layers_and_two_outputs_by_equations_6_and_7(rng):
    net = random_net([Input(3), Dense(3, "sigmoid"), Dense(2, "tanh"), Dense(2, "sigmoid")], rng)
    assert net.n_layers == 4
    X = rng.normal(size=(30, 3))
    a2 = expit(X @ net.weights[0].T + net.biases[0])
    a3 = np.tanh(a2 @ net.weights[1].T + net.biases[1])
    a4 = expit(a3 @ net.weights[2].T + net.biases[2])
    for found, expected in zip(net.activations(X), [a2, a3, a4], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_a_bias_is_the_weight_of_a_constant_input(rng):
    # companion, note 1.1.2: at lambda = 0 (b is not decayed, W is) the two networks are one
    X, Y = rng.normal(size=(40, 4)), rng.uniform(size=(40, 2))
    biased = random_net([Input(4), Dense(5, "sigmoid"), Dense(2, "sigmoid")], rng)
    folded = MLP([Input(5), Dense(5, "sigmoid", bias=False), Dense(2, "sigmoid")])
    assert folded.n_parameters == biased.n_parameters
    assert folded.biases[0].shape == (0,)
    folded.weights[0][:] = np.column_stack([biased.weights[0], biased.biases[0]])
    folded.weights[1][:], folded.biases[1][:] = biased.weights[1], biased.biases[1]
    X1 = np.column_stack([X, np.ones(40)])

    np.testing.assert_allclose(folded.predict(X1), biased.predict(X), rtol=1e-13)
    cost, g = Objective(biased, X, Y).value_and_gradient(biased.theta)
    cost1, g1 = Objective(folded, X1, Y).value_and_gradient(folded.theta)
    assert cost1 == pytest.approx(cost, rel=1e-13)
    by_row = g1[:25].reshape(5, 5)
    np.testing.assert_allclose(by_row[:, :4].ravel(), g[:20], rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(by_row[:, 4], g[20:25], rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(g1[25:], g[25:], rtol=1e-10, atol=1e-15)


# Section 2.2: the cost (8), its gradient, gradient descent --------------------------------------


def test_the_cost_is_equation_8(rng):
    lam, m = 0.07, 11
    net = random_net([Input(3), Dense(4, "sigmoid"), Dense(2, "sigmoid")], rng, weight_decay=lam)
    X, Y = rng.normal(size=(m, 3)), rng.uniform(size=(m, 2))
    h = net.predict(X)
    data = 0.0
    for i in range(m):
        data += 0.5 * sum((h[i, k] - Y[i, k]) ** 2 for k in range(2))
    squares = 0.0
    for W in net.weights:
        for i in range(W.shape[1]):
            for j in range(W.shape[0]):
                squares += W[j, i] ** 2
    cost, _ = Objective(net, X, Y).value_and_gradient(net.theta)
    assert cost == pytest.approx(data / m + lam / 2 * squares, rel=1e-13)


def test_the_gradient_is_the_mean_over_examples_and_lambda_W(rng):
    lam, m = 0.3, 9
    layers = [Input(3), Dense(4, "sigmoid"), Dense(2, "tanh")]
    net = random_net(layers, rng, weight_decay=lam)
    plain = MLP(layers)
    X, Y = rng.normal(size=(m, 3)), rng.uniform(-1, 1, (m, 2))
    mean = np.zeros(net.n_parameters)
    for i in range(m):
        mean += Objective(plain, X[i : i + 1], Y[i : i + 1]).value_and_gradient(net.theta)[1] / m
    decayed = MLP(layers)
    for into, W in zip(decayed.weights, net.weights, strict=True):
        into[:] = lam * W
    for b in decayed.biases:
        b[:] = 0.0
    _, g = Objective(net, X, Y).value_and_gradient(net.theta)
    np.testing.assert_allclose(g, mean + decayed.theta, rtol=1e-11, atol=1e-15)


def test_a_single_layer_s_delta(rng):
    # delta^(n_l) = -(y - a) f'(z); dJ/dW = delta a^T; dJ/db = delta
    net = random_net([Input(3), Dense(2, "sigmoid")], rng)
    x, y = rng.normal(size=3), rng.uniform(size=2)
    a = net.predict(x[np.newaxis])[0]
    delta = -(y - a) * a * (1 - a)
    _, g = Objective(net, x[np.newaxis], y[np.newaxis]).value_and_gradient(net.theta)
    np.testing.assert_allclose(g[:6].reshape(2, 3), np.outer(delta, x), rtol=1e-12)
    np.testing.assert_allclose(g[6:], delta, rtol=1e-12)


@pytest.mark.parametrize("n_steps", [1, 25])
def test_gradient_descent_steps_as_the_notes_write(rng, n_steps):
    # all of W and b move together, by alpha times the gradient at the old values
    net = random_net(
        [Input(4), Dense(3, "sigmoid", sparsity=KLSparsity(0.1, 1.0)), Dense(4, "tanh")],
        rng,
        weight_decay=0.01,
    )
    X = rng.uniform(-0.9, 0.9, (60, 4))
    twin = reference.describe(net)
    expected = reference.gradient_descent(twin, net.theta.copy(), X, X, 0.5, n_steps)
    result = net.fit(X, X, optimizer=GradientDescent(alpha=0.5, max_iter=n_steps))
    assert result.n_iterations == n_steps
    np.testing.assert_allclose(net.theta, expected, rtol=1e-10, atol=1e-14)


def test_small_steps_of_gradient_descent_reduce_the_cost(rng):
    net = random_net([Input(4), Dense(3, "sigmoid"), Dense(1, "sigmoid")], rng)
    X, Y = rng.normal(size=(80, 4)), rng.integers(0, 2, (80, 1)) * 1.0
    result = net.fit(X, Y, optimizer=GradientDescent(alpha=0.3, max_iter=40))
    costs = [entry["cost"] if isinstance(entry, dict) else entry.cost for entry in result.history]
    assert np.all(np.diff(costs) < 0)


def test_the_notes_initialisation_is_small_and_normal():
    net = MLP([Input(200), Dense(150, "sigmoid", init="notes")], seed=1)
    for drawn in (net.weights[0], net.biases[0]):
        assert abs(drawn.mean()) < 4 * 0.01 / math.sqrt(drawn.size)
        assert drawn.std() == pytest.approx(0.01, rel=4 / math.sqrt(2 * drawn.size))


@pytest.mark.parametrize("optimizer", [GradientDescent(alpha=0.5, max_iter=60), LBFGS(max_iter=60)])
def test_equal_parameters_stay_equal_and_random_ones_break_the_symmetry(rng, optimizer):
    X = rng.uniform(size=(100, 6))
    Y = np.column_stack([X[:, 0] * X[:, 1], X[:, 2] ** 2])

    def train(init):
        layers = [Input(6), Dense(5, "sigmoid", init=init), Dense(2, "sigmoid", init=init)]
        net = MLP(layers, seed=0)
        start = net.theta.copy()
        net.fit(X, Y, optimizer=optimizer)
        assert not np.allclose(net.theta, start)  # it did train
        return net

    # equal up to rounding, which depends on the order of sums and which L-BFGS lets grow
    equal = train(0.2)
    for W in (equal.weights[0], equal.weights[1].T, equal.biases[0]):
        np.testing.assert_allclose(W, np.broadcast_to(W[0], W.shape), rtol=1e-6)
    hidden = equal.activations(X)[0]
    np.testing.assert_allclose(hidden, hidden[:, :1] * np.ones(5), rtol=1e-6)

    hidden = train("uniform").activations(X)[0]
    distances = [np.abs(hidden[:, i] - hidden[:, j]).max() for i in range(5) for j in range(i)]
    assert min(distances) > 0.01


# Section 2.3: gradient checking -----------------------------------------------------------------


def test_central_differences_agree_to_four_digits(rng):
    net = random_net(
        [Input(5), Dense(4, "sigmoid", sparsity=KLSparsity(0.05, 3.0)), Dense(5, "sigmoid")],
        rng,
        weight_decay=1e-3,
    )
    X = rng.uniform(0.1, 0.9, (30, 5))
    objective = Objective(net, X, X)
    _, g = objective.value_and_gradient(net.theta)
    numerical = mlpkit.numerical_gradient(
        lambda theta: objective.value_and_gradient(theta)[0], net.theta.copy(), epsilon=1e-4
    )
    np.testing.assert_allclose(g, numerical, rtol=1e-4, atol=1e-8)


def test_numerical_gradient_of_a_function_with_a_known_derivative():
    theta = np.array([0.3, -1.2, 2.0])
    found = mlpkit.numerical_gradient(lambda t: float(np.sin(t[0]) + t[1] ** 2 * t[2]), theta)
    expected = [math.cos(0.3), 2 * -1.2 * 2.0, 1.2**2]
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_an_extremely_small_epsilon_is_refused():
    with pytest.raises(InvalidArgumentError, match="epsilon"):
        mlpkit.numerical_gradient(lambda t: float(t @ t), np.ones(2), epsilon=1e-20)


# Section 3: sparsity ----------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.01, 0.05, 0.2, 0.7])
def test_kl_is_zero_at_rho_and_grows_on_either_side(rho):
    penalty = KLSparsity(rho=rho, beta=1.0)
    assert penalty.value(np.array([rho])) == pytest.approx(0.0, abs=1e-15)
    assert penalty.derivative(np.array([rho]))[0] == pytest.approx(0.0, abs=1e-12)
    above = [penalty.value(np.array([r])) for r in np.linspace(rho, 0.999, 50)]
    below = [penalty.value(np.array([r])) for r in np.linspace(rho, 0.001, 50)]
    assert np.all(np.diff(above) > 0)
    assert np.all(np.diff(below) > 0)
    assert np.all(penalty.derivative(np.linspace(rho + 1e-3, 0.999, 50)) > 0)
    assert np.all(penalty.derivative(np.linspace(1e-4, rho - 1e-3, 50)) < 0)


def test_kl_is_the_formula_and_blows_up_at_the_ends():
    rho = 0.2
    for r in (0.05, 0.2, 0.6):
        expected = rho * math.log(rho / r) + (1 - rho) * math.log((1 - rho) / (1 - r))
        assert KLSparsity(rho, 3.0).value(np.array([r])) == pytest.approx(3 * expected, abs=1e-15)
    ends = KLSparsity(rho, 1.0).value(np.array([0.0])), KLSparsity(rho, 1.0).value(np.array([1.0]))
    assert min(ends) > 20
    assert np.isfinite(ends).all()


def test_the_sparse_cost_adds_beta_times_the_sum_of_kl(rng):
    rho, beta = 0.05, 3.0
    layers = [Input(5), Dense(4, "sigmoid", sparsity=KLSparsity(rho, beta)), Dense(5, "sigmoid")]
    net = random_net(layers, rng)
    plain = MLP([layers[0], Dense(4, "sigmoid"), layers[2]])
    X = rng.uniform(0.1, 0.9, (40, 5))
    rho_hat = net.activations(X)[0].mean(axis=0)
    objective = Objective(net, X, X)
    np.testing.assert_allclose(objective.rho_hat(net.theta)[0], rho_hat, rtol=1e-14)
    kl = rho * np.log(rho / rho_hat) + (1 - rho) * np.log((1 - rho) / (1 - rho_hat))
    cost, g = objective.value_and_gradient(net.theta)
    plain_cost, g_plain = Objective(plain, X, X).value_and_gradient(net.theta)
    assert cost == pytest.approx(plain_cost + beta * kl.sum(), rel=1e-13)
    # the trick changes the gradient of W^(1), b^(1) only, since layer 2 alone is sparse ...
    np.testing.assert_allclose(g[24:], g_plain[24:], rtol=1e-11, atol=1e-15)
    # ... by the companion's (1.3.28)
    a = net.activations(X)[0]
    slope = beta * (-rho / rho_hat + (1 - rho) / (1 - rho_hat)) * a * (1 - a) / len(X)
    np.testing.assert_allclose((g - g_plain)[:20].reshape(4, 5), slope.T @ X, rtol=1e-9)
    np.testing.assert_allclose((g - g_plain)[20:24], slope.sum(axis=0), rtol=1e-9)


def test_sparsity_of_a_later_layer_reaches_every_layer_below(rng):
    penalty = KLSparsity(0.05, 3.0)
    sizes = [Input(4), Dense(4, "tanh"), Dense(4, "sigmoid")]
    sparse = random_net([*sizes, Dense(4, "sigmoid", sparsity=penalty), Dense(2, "sigmoid")], rng)
    plain = MLP([*sizes, Dense(4, "sigmoid"), Dense(2, "sigmoid")])
    X, Y = rng.normal(size=(30, 4)), rng.uniform(size=(30, 2))
    _, g = Objective(sparse, X, Y).value_and_gradient(sparse.theta)
    _, g_plain = Objective(plain, X, Y).value_and_gradient(sparse.theta)
    twin = reference.describe(sparse)
    differences = reference.layer_errors(twin, g, g_plain)
    assert min(differences[:3]) > 1e-3
    assert differences[3] < 1e-12


def test_training_with_sparsity_brings_rho_hat_to_rho(rng):
    net = mlpkit.sparse_autoencoder(n_inputs=9, n_hidden=12, rho=0.05, beta=3.0, seed=0)
    X = rng.uniform(0.1, 0.9, (300, 9))
    before = Objective(net, X, X).rho_hat(net.theta)[0]
    net.fit(X, X, optimizer=LBFGS(max_iter=150))
    after = Objective(net, X, X).rho_hat(net.theta)[0]
    assert np.abs(before - 0.05).min() > 0.1
    assert np.abs(after - 0.05).max() < 0.03


# Section 3: what an autoencoder finds -----------------------------------------------------------


def correlated(rng, m, n, rank, noise=0.05):
    """Return data near a subspace, its columns scaled to unit variance."""
    X = rng.normal(size=(m, rank)) @ rng.normal(size=(rank, n)) + noise * rng.normal(size=(m, n))
    X -= X.mean(axis=0)
    return X / X.std(axis=0)


def bottleneck(n, n_hidden):
    return MLP(
        [
            Input(n),
            Dense(n_hidden, "identity", init="uniform"),
            Dense(n, "identity", init="uniform"),
        ],
        weight_decay=1e-7,
        seed=0,
    )


def test_a_linear_bottleneck_spans_the_top_principal_subspace(rng):
    # footnote 2: what it learns is very similar to PCA's representation
    n, k = 8, 3
    X = correlated(rng, 500, n, rank=5, noise=0.3)
    net = bottleneck(n, k)
    net.fit(X, X, optimizer=LBFGS(max_iter=500, ftol=0.0, gtol=1e-7))
    principal = np.linalg.svd(X, full_matrices=False)[2][:k].T
    decoder = np.linalg.qr(net.weights[1])[0]
    cosines = np.linalg.svd(principal.T @ decoder, compute_uv=False)
    assert cosines.min() > 1 - 1e-5
    residual = X - X @ principal @ principal.T
    best = 0.5 * (residual**2).sum(axis=1).mean()
    assert net.evaluate(X, X)["data"] == pytest.approx(best, rel=1e-3)


def test_random_inputs_reconstruct_worse_than_correlated_ones(rng):
    n, k, m = 8, 3, 500
    independent = rng.normal(size=(m, n))
    independent = (independent - independent.mean(axis=0)) / independent.std(axis=0)
    errors = []
    for X in (independent, correlated(rng, m, n, rank=3)):
        np.testing.assert_allclose(X.var(axis=0), 1.0)
        net = bottleneck(n, k)
        net.fit(X, X, optimizer=LBFGS(max_iter=300))
        errors.append(net.evaluate(X, X)["data"])
    assert errors[0] > 10 * errors[1]


# Section 4: visualisation -----------------------------------------------------------------------


def test_the_maximal_input_has_norm_one_and_beats_every_other(rng):
    net = mlpkit.sparse_autoencoder(n_inputs=16, n_hidden=6, seed=2)
    inputs = mlpkit.maximal_inputs(net)
    W = net.weights[0]
    assert inputs.shape == (6, 16)
    for i in range(6):
        np.testing.assert_allclose(inputs[i], W[i] / math.sqrt((W[i] ** 2).sum()), rtol=1e-14)
    best = np.diag(net.activations(inputs)[0])
    others = rng.normal(size=(2000, 16))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    assert np.all(net.activations(others)[0].max(axis=0) <= best)
