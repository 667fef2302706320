"""The slow and obvious twin of the engine, in plain NumPy.

Everything that mlpkit computes with compiled kernels is computed here straight from the formulas of
the CS294A notes, one example after the other, with no kernel and no import from mlpkit. The tests
hold the engine against it.

The cost is written so that complex numbers pass through (no absolute values, no comparisons but
those of real parts): for analytic activations ``imag(J(theta + i h e_k)) / h`` is then the exact
derivative, with no cancellation, and checks the backpropagation below to the last digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TINY = np.finfo(np.float64).tiny
EPS = np.finfo(np.float64).eps


# The network, described in the twin's own words -------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One layer after the input; `rho` and `beta` are None where it is not sparse."""

    units: int
    activation: str
    rho: float | None = None
    beta: float | None = None
    weight_decay: float = 0.0
    bias: bool = True


@dataclass(frozen=True)
class Network:
    """Layer sizes, activations and everything else that defines J, but no parameters."""

    n_inputs: int
    layers: tuple[Layer, ...]
    loss: str = "squared_error"

    @property
    def sizes(self):
        return (self.n_inputs, *(layer.units for layer in self.layers))


def describe(net):
    """Read the public attributes of an `mlpkit.MLP` into a `Network`."""
    layers = []
    for dense in net.layers[1:]:
        own = dense.weight_decay
        layers.append(
            Layer(
                units=dense.units,
                activation=dense.activation.name,
                rho=None if dense.sparsity is None else dense.sparsity.rho,
                beta=None if dense.sparsity is None else dense.sparsity.beta,
                weight_decay=net.weight_decay if own is None else own,
                bias=dense.bias,
            )
        )
    return Network(net.layers[0].units, tuple(layers), net.loss.name)


def unroll(network, theta):
    """Split theta = [W1 row-major, b1, W2, b2, ...] into lists of W and b (None without a bias)."""
    weights, biases, start = [], [], 0
    for n_in, layer in zip(network.sizes, network.layers, strict=False):
        stop = start + layer.units * n_in
        weights.append(theta[start:stop].reshape(layer.units, n_in))
        start = stop
        if layer.bias:
            stop = start + layer.units
            biases.append(theta[start:stop])
            start = stop
        else:
            biases.append(None)
    assert start == theta.size, f"theta has {theta.size} entries, the network {start}"
    return weights, biases


def roll(weights, biases):
    """Join lists of W and b into one vector: the inverse of `unroll`."""
    parts = []
    for W, b in zip(weights, biases, strict=True):
        parts.append(np.ravel(W))
        if b is not None:
            parts.append(b)
    return np.concatenate(parts)


def parts(network, theta):
    """Return one vector per layer (W and b together): what errors are measured on."""
    weights, biases = unroll(network, theta)
    return [roll([W], [b]) for W, b in zip(weights, biases, strict=True)]


# Activations ------------------------------------------------------------------------------------


def sigmoid(z):
    """1 / (1 + exp(-z)), by the branch whose exponential cannot overflow."""
    small = np.exp(np.where(z.real >= 0, -z, z))
    return np.where(z.real >= 0, 1.0 / (1.0 + small), small / (1.0 + small)).astype(z.dtype)


def softmax(z):
    """exp(z_j) / sum_k exp(z_k) over the last axis."""
    e = np.exp(z - z.real.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


ACTIVATIONS = {
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "identity": lambda z: z + 0,
    "relu": lambda z: np.where(z.real > 0, z, 0).astype(z.dtype),
    "softmax": softmax,
}
RANGES = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "softmax": (0.0, 1.0)}
ANALYTIC = ("sigmoid", "tanh", "identity", "softmax")


def pullback(name, z, a, g):
    """Return J_f(z)^T g for one example: f'(z) g, or for softmax the full Jacobian's product."""
    if name == "sigmoid":
        return a * (1 - a) * g
    if name == "tanh":
        return (1 - a * a) * g
    if name == "identity":
        return g
    if name == "relu":
        return np.where(z > 0, g, 0).astype(g.dtype)
    if name == "softmax":
        jacobian = np.diag(a) - np.outer(a, a)
        return jacobian.T @ g
    raise KeyError(name)


def firing(name, a):
    """Map an activation's range onto [0, 1]: how active a unit is. Returns (s(a), s')."""
    low, high = RANGES[name]
    slope = 1.0 / (high - low)
    return (a - low) * slope, slope


# Forward, equations (6) and (7) -----------------------------------------------------------------


def forward(network, theta, X):
    """Return lists z^(2).. and a^(1), a^(2).. with one row per example."""
    weights, biases = unroll(network, theta)
    zs, activations = [], [X]
    for W, b, layer in zip(weights, biases, network.layers, strict=True):
        z = activations[-1] @ W.T
        if b is not None:
            z = z + b
        zs.append(z)
        activations.append(ACTIVATIONS[layer.activation](z))
    return zs, activations


def predict(network, theta, X):
    """Return h(x) for each row."""
    return forward(network, theta, X)[1][-1]


# The objective ----------------------------------------------------------------------------------


def clamp(rho_hat):
    """Hold rho_hat in [tiny, 1 - eps], so that KL stays finite at a dead or saturated unit."""
    rho_hat = np.where(rho_hat.real < TINY, TINY, rho_hat)
    return np.where(rho_hat.real > 1 - EPS, 1 - EPS, rho_hat)


def kl(rho, rho_hat):
    """KL(rho || rho_hat) of two Bernoulli variables, per unit."""
    r = clamp(np.asarray(rho_hat))
    return rho * np.log(rho / r) + (1 - rho) * np.log((1 - rho) / (1 - r))


def kl_derivative(rho, rho_hat):
    """Return -rho / rho_hat + (1 - rho) / (1 - rho_hat)."""
    r = clamp(np.asarray(rho_hat))
    return -rho / r + (1 - rho) / (1 - r)


def losses(network, z, a, Y):
    """Return the loss of each example, summed over outputs; cross-entropy from z, not log(a)."""
    if network.loss == "squared_error":
        return 0.5 * ((a - Y) ** 2).sum(axis=-1)
    if network.loss == "cross_entropy" and network.layers[-1].activation == "softmax":
        top = z.real.max(axis=-1, keepdims=True)
        log_a = z - top - np.log(np.exp(z - top).sum(axis=-1, keepdims=True))
        return -(Y * log_a).sum(axis=-1)
    raise KeyError((network.loss, network.layers[-1].activation))


def output_delta(network, z, a, y):
    """Return delta^(n_l) of one example without the sparsity term."""
    if network.loss == "squared_error":
        return pullback(network.layers[-1].activation, z, a, a - y)
    if network.loss == "cross_entropy" and network.layers[-1].activation == "softmax":
        return a * y.sum() - y
    raise KeyError((network.loss, network.layers[-1].activation))


def mean_firing(network, activations, w):
    """Return rho_hat of each layer in float64 (None where the layer is not sparse)."""
    result = []
    for layer, a in zip(network.layers, activations[1:], strict=True):
        if layer.rho is None:
            result.append(None)
        else:
            wide = a if np.iscomplexobj(a) else a.astype(np.float64)
            s, _ = firing(layer.activation, wide)
            result.append((w @ s) / w.sum())
    return result


def example_weights(X, sample_weight):
    """Return the weights as float64; one each by default."""
    return np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, np.float64)


def one_hot(labels, n_classes):
    """Return a row per label with a one in the label's column."""
    return np.eye(n_classes)[np.asarray(labels)]


def rho_hat(network, theta, X, sample_weight=None):
    """Return rho_hat of the sparse layers only, as `Objective.rho_hat` does."""
    w = example_weights(X, sample_weight)
    means = mean_firing(network, forward(network, theta, X)[1], w)
    return [mean for mean in means if mean is not None]


def terms(network, theta, X, Y, sample_weight=None):
    """Return the three terms of J by name."""
    w = example_weights(X, sample_weight)
    zs, activations = forward(network, theta, X)
    weights, _ = unroll(network, theta)
    means = mean_firing(network, activations, w)
    data = (w * losses(network, zs[-1], activations[-1], Y)).sum() / w.sum()
    decay, sparsity = 0.0, 0.0
    for layer, W, mean in zip(network.layers, weights, means, strict=True):
        decay = decay + layer.weight_decay / 2 * (W**2).sum()
        if mean is not None:
            sparsity = sparsity + layer.beta * kl(layer.rho, mean).sum()
    return {"data": data, "weight_decay": decay, "sparsity": sparsity}


def cost(network, theta, X, Y, sample_weight=None):
    """Return J."""
    return sum(terms(network, theta, X, Y, sample_weight).values())


def gradient(network, theta, X, Y, sample_weight=None):
    """Backpropagation as the notes write it: example by example, sums kept in Delta W, Delta b.

    The forward pass over all examples comes first, since each delta needs rho_hat.
    """
    w = example_weights(X, sample_weight)
    weights, biases = unroll(network, theta)
    zs, activations = forward(network, theta, X)
    means = mean_firing(network, activations, w)
    last = len(network.layers) - 1

    pulls = []  # beta s' KL'(rho_hat), for each layer what sparsity adds before f'
    for layer, mean in zip(network.layers, means, strict=True):
        if mean is None:
            pulls.append(np.zeros(layer.units, theta.dtype))
        else:
            _, slope = firing(layer.activation, mean)
            pulls.append((layer.beta * slope * kl_derivative(layer.rho, mean)).astype(theta.dtype))

    sum_W = [np.zeros_like(W) for W in weights]
    sum_b = [np.zeros(layer.units, theta.dtype) for layer in network.layers]
    for i in range(len(X)):
        share = theta.dtype.type(w[i] / w.sum())
        delta = None
        for k in range(last, -1, -1):  # weights[k] is W^(k+1), which leads into layer k + 2
            z, a, name = zs[k][i], activations[k + 1][i], network.layers[k].activation
            if k == last:
                delta = output_delta(network, z, a, Y[i]) + pullback(name, z, a, pulls[k])
            else:
                delta = pullback(name, z, a, weights[k + 1].T @ delta + pulls[k])
            sum_W[k] += share * np.outer(delta, activations[k][i])
            sum_b[k] += share * delta

    for k, layer in enumerate(network.layers):
        sum_W[k] += layer.weight_decay * weights[k]
    return roll(sum_W, [s if b is not None else None for s, b in zip(sum_b, biases, strict=True)])


# Independent derivatives and the notes' gradient descent ----------------------------------------


def complex_step(fun, theta, h=1e-30):
    """Return the gradient of an analytic `fun` as imag(fun(theta + i h e_k)) / h, exactly."""
    result = np.empty(theta.size)
    for k in range(theta.size):
        shifted = theta.astype(np.complex128)
        shifted[k] += 1j * h
        result[k] = fun(shifted).imag / h
    return result


def central_difference(fun, theta, epsilon=1e-4, indices=None):
    """Return (J(theta + eps e_k) - J(theta - eps e_k)) / (2 eps) for the given k, or all."""
    indices = range(theta.size) if indices is None else indices
    result = []
    for k in indices:
        plus, minus = theta.copy(), theta.copy()
        plus[k] += epsilon
        minus[k] -= epsilon
        result.append((fun(plus) - fun(minus)) / (2 * epsilon))
    return np.array(result)


def gradient_descent(network, theta, X, Y, alpha, n_steps, sample_weight=None):
    """Return theta after `n_steps` of theta := theta - alpha grad J, all entries together."""
    theta = theta.copy()
    for _ in range(n_steps):
        theta = theta - alpha * gradient(network, theta, X, Y, sample_weight)
    return theta


def relative_error(g, r):
    """Return ||g - r|| / (||g|| + ||r||), and 0 where both vanish."""
    g, r = np.asarray(g, np.float64).ravel(), np.asarray(r, np.float64).ravel()
    scale = np.linalg.norm(g) + np.linalg.norm(r)
    return float(np.linalg.norm(g - r) / scale) if scale > 0 else 0.0


def layer_errors(network, g, r):
    """Return `relative_error` for each layer's W and b together."""
    pairs = zip(parts(network, np.asarray(g)), parts(network, np.asarray(r)), strict=True)
    return [relative_error(a, b) for a, b in pairs]
