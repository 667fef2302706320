"""The slow and obvious twin of the engine, in plain NumPy.

Everything that mlpkit computes with compiled kernels is computed here straight from the formulas of
the CS294A notes, one example after the other, with no kernel and no import from mlpkit. The tests
hold the engine against it. Activations are in `reference_functions`, losses and penalties in
`reference_losses`, gradients of single examples and second derivatives in `reference_derivatives`.

The cost and its gradient are written so that complex numbers pass through (no absolute values, no
comparisons but those of real parts): for analytic activations ``imag(J(theta + i h e_k)) / h`` is
then the exact derivative, with no cancellation, and checks the backpropagation below to the last
digits; ``imag(grad J(theta + i h v)) / h`` is in the same way the exact product of Hessian and v.

A target that is missing is NaN; `mask` (True where the target counts) puts NaN where it is False.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from reference_functions import ANALYTIC as ANALYTIC
from reference_functions import FACTORIES, activation, firing, pullback, sign, tangent
from reference_losses import L1, PENALTIES, Mean, example_loss, kl_penalty, output_delta

# The network, described in the twin's own words -------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One layer after the input. Where it is tied, its W is the transpose of W^(tied_to) and has no decay."""

    units: int
    activation: str
    penalties: tuple[Mean | L1, ...] = ()
    weight_decay: float = 0.0
    bias: bool = True
    tied_to: int | None = None

    @property
    def means(self):
        """The penalties on mean activations."""
        return [penalty for penalty in self.penalties if isinstance(penalty, Mean)]

    @property
    def strength(self):
        """The sum of the strengths of L1 penalties."""
        return sum(penalty.strength for penalty in self.penalties if isinstance(penalty, L1))


@dataclass(frozen=True)
class Network:
    """Layer sizes, activations and everything else that defines J, but no parameters."""

    n_inputs: int
    layers: tuple[Layer, ...]
    loss: str = "squared_error"

    @property
    def sizes(self):
        return (self.n_inputs, *(layer.units for layer in self.layers))

    @property
    def n_parameters(self):
        owned = sum(
            n_in * layer.units for n_in, layer in zip(self.sizes, self.layers, strict=False) if layer.tied_to is None
        )
        return owned + sum(layer.units for layer in self.layers if layer.bias)


def describe(net):
    """Read the public attributes of an `mlpkit.MLP` into a `Network`."""
    layers = []
    for dense in net.layers[1:]:
        tied_to = getattr(dense, "tied_to", None)
        own = net.weight_decay if dense.weight_decay is None else dense.weight_decay
        single = () if dense.sparsity is None else (dense.sparsity,)
        layers.append(
            Layer(
                units=dense.units,
                activation=dense.activation.name,
                penalties=tuple(describe_penalty(p) for p in getattr(dense, "penalties", single)),
                weight_decay=own if tied_to is None else 0.0,
                bias=dense.bias,
                tied_to=tied_to,
            )
        )
    return Network(net.layers[0].units, tuple(layers), net.loss.name)


def describe_penalty(penalty):
    """Read a penalty's public attributes; a user's penalty is looked up by name in `PENALTIES`."""
    if hasattr(penalty, "rho"):
        return kl_penalty(penalty.rho, penalty.beta)
    if hasattr(penalty, "strength"):
        return L1(penalty.strength)
    return Mean(*PENALTIES[penalty.penalty.name], penalty.beta)


def unroll(network, theta):
    """Split theta = [W1 row-major, b1, W2, b2, ...] into lists of W and b (None without a bias).

    A tied W is the transpose of the one it is tied to, and has no place of its own in theta.
    """
    weights, biases, start = [], [], 0
    for n_in, layer in zip(network.sizes, network.layers, strict=False):
        if layer.tied_to is None:
            stop = start + layer.units * n_in
            weights.append(theta[start:stop].reshape(layer.units, n_in))
            start = stop
        else:
            weights.append(weights[layer.tied_to - 1].T)
        if layer.bias:
            stop = start + layer.units
            biases.append(theta[start:stop])
            start = stop
        else:
            biases.append(None)
    assert start == theta.size, f"theta has {theta.size} entries, the network {start}"
    return weights, biases


def roll(weights, biases):
    """Join lists of W and b into one vector, leaving out each that is None: the inverse of `unroll`."""
    parts = [np.ravel(part) for pair in zip(weights, biases, strict=True) for part in pair if part is not None]
    return np.concatenate(parts) if parts else np.empty(0)


def fold(network, sums):
    """Add what belongs to tied W to those that they are tied to, in place; None is left in their stead."""
    for k, layer in enumerate(network.layers):
        if layer.tied_to is not None:
            sums[layer.tied_to - 1] = sums[layer.tied_to - 1] + sums[k].T
            sums[k] = None
    return sums


def owned(network, weights):
    """Return the list of W with None in the place of those that are tied."""
    return [W if layer.tied_to is None else None for W, layer in zip(weights, network.layers, strict=True)]


def parts(network, theta):
    """Return one vector per layer (W and b together): what errors are measured on."""
    weights, biases = unroll(network, theta)
    return [roll([W], [b]) for W, b in zip(owned(network, weights), biases, strict=True)]


# Those that need no parameter, by name.
ACTIVATIONS = {name: activation(name).f for name in FACTORIES if name != "top_k"}


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
        activations.append(activation(layer.activation).f(z))
    return zs, activations


def predict(network, theta, X):
    """Return h(x) for each row."""
    return forward(network, theta, X)[1][-1]


def jacobian(network, theta, X):
    """Return dh_j / dx_k of each example, (m, s_out, s_in): the chain rule, layer by layer."""
    weights, _ = unroll(network, theta)
    zs, _ = forward(network, theta, X)
    result = []
    for i in range(len(X)):
        J = np.eye(network.n_inputs, dtype=theta.dtype)
        for k, layer in enumerate(network.layers):
            J = weights[k] @ J
            J = np.column_stack([tangent(layer.activation, zs[k][i], column) for column in J.T])
        result.append(J)
    return np.array(result)


# Data -------------------------------------------------------------------------------------------


def example_weights(X, sample_weight):
    """Return the weights as float64; one each by default."""
    return np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, np.float64)


def one_hot(labels, n_classes):
    """Return a row per label with a one in the label's column."""
    return np.eye(n_classes)[np.asarray(labels)]


def class_weights(network, Y, weight_of_class, sample_weight=None):
    """Return the weight of each example: its own times that of its class.

    `weight_of_class` has a number for each class: for each output of a softmax, or for 0 and 1 where binary
    cross-entropy has one output. A row of probabilities has the mean of the weights under it.
    """
    w, c = example_weights(Y, sample_weight), np.asarray(weight_of_class, np.float64)
    if network.loss == "cross_entropy":
        return w * (Y @ c)
    assert network.loss == "binary_cross_entropy"
    assert Y.shape[1] == 1
    return w * ((1 - Y[:, 0]) * c[0] + Y[:, 0] * c[1])


def hide(Y, mask):
    """Return the targets with NaN where `mask` is False; they stay as they are without a mask."""
    return Y if mask is None else np.where(mask, Y, np.nan).astype(Y.dtype)


# The objective ----------------------------------------------------------------------------------


def mean_firing(network, activations, w):
    """Return rho_hat of each layer in float64 (None where no penalty looks at it)."""
    result = []
    for layer, a in zip(network.layers, activations[1:], strict=True):
        if layer.means:
            wide = a if np.iscomplexobj(a) else a.astype(np.float64)
            s, _ = firing(layer.activation, wide)
            result.append((w @ s) / w.sum())
        else:
            result.append(None)
    return result


def rho_hat(network, theta, X, sample_weight=None):
    """Return rho_hat of the layers with a penalty on it only, as `Objective.rho_hat` does."""
    w = example_weights(X, sample_weight)
    means = mean_firing(network, forward(network, theta, X)[1], w)
    return [mean for mean in means if mean is not None]


def per_example_loss(network, theta, X, Y, sample_weight=None, mask=None):
    """Return the loss of each example, 0 where its weight is 0."""
    zs, activations = forward(network, theta, X)
    each = example_loss(network.loss, network.layers[-1].activation, zs[-1], activations[-1], hide(Y, mask))
    return np.where(example_weights(X, sample_weight) > 0, each, 0)


def terms(network, theta, X, Y, sample_weight=None, mask=None):
    """Return the three terms of J by name."""
    w = example_weights(X, sample_weight)
    _, activations = forward(network, theta, X)
    weights, _ = unroll(network, theta)
    means = mean_firing(network, activations, w)
    data = (w * per_example_loss(network, theta, X, Y, w, mask)).sum() / w.sum()
    decay, sparsity = 0.0, 0.0
    for layer, W, a, mean in zip(network.layers, weights, activations[1:], means, strict=True):
        decay = decay + layer.weight_decay / 2 * (W**2).sum()
        sparsity = sparsity + layer.strength * mean_magnitude(a, w)
        for penalty in layer.means:
            sparsity = sparsity + penalty.beta * penalty.value(mean).sum()
    return {"data": data, "weight_decay": decay, "sparsity": sparsity}


def mean_magnitude(a, w):
    """Return sum_j sum_i w_i |a_ij| / sum w."""
    return (w @ (sign(a) * a)).sum() / w.sum()


def cost(network, theta, X, Y, sample_weight=None, mask=None):
    """Return J."""
    return sum(terms(network, theta, X, Y, sample_weight, mask).values())


def gradient(network, theta, X, Y, sample_weight=None, mask=None, means=None):
    """Backpropagation as the notes write it: example by example, sums kept in Delta W, Delta b.

    The forward pass over all examples comes first, since each delta needs rho_hat. `means` puts other numbers in the
    place of each layer's rho_hat.
    """
    w, Y = example_weights(X, sample_weight), hide(Y, mask)
    weights, biases = unroll(network, theta)
    zs, activations = forward(network, theta, X)
    if means is None:
        means = mean_firing(network, activations, w)
    last = len(network.layers) - 1

    steady = []  # sum of beta s' p'(rho_hat): for each layer what penalties on means add before f'
    for layer, mean in zip(network.layers, means, strict=True):
        pull = np.zeros(layer.units, theta.dtype)
        for penalty in layer.means:
            _, slope = firing(layer.activation, mean)
            pull = pull + (penalty.beta * slope * penalty.first(mean)).astype(theta.dtype)
        steady.append(pull)

    sum_W = [np.zeros_like(W) for W in weights]
    sum_b = [np.zeros(layer.units, theta.dtype) for layer in network.layers]
    for i in range(len(X)):
        share = theta.dtype.type(w[i] / w.sum())
        pulls = [
            pull + l1_slope(layer, a[i]) for layer, pull, a in zip(network.layers, steady, activations[1:], strict=True)
        ]
        delta = None
        for k in range(last, -1, -1):  # weights[k] is W^(k+1), which leads into layer k + 2
            z, a, name = zs[k][i], activations[k + 1][i], network.layers[k].activation
            if k == last:
                delta = output_delta(network.loss, name, z, a, Y[i]) + pullback(name, z, a, pulls[k])
            else:
                delta = pullback(name, z, a, weights[k + 1].T @ delta + pulls[k])
            sum_W[k] += share * np.outer(delta, activations[k][i])
            sum_b[k] += share * delta

    for k, layer in enumerate(network.layers):
        sum_W[k] += layer.weight_decay * weights[k]
    return roll(fold(network, sum_W), [s if b is not None else None for s, b in zip(sum_b, biases, strict=True)])


def l1_slope(layer, a):
    """Return strength sign(a), 0 at 0: what L1 penalties add before f' for one example."""
    return a.dtype.type(layer.strength) * sign(a)


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


def complex_step_along(fun, theta, v, h=1e-30):
    """Return the derivative of an analytic `fun`, which may give an array, along v."""
    return fun(theta + 1j * h * v).imag / h


def gradient_descent(network, theta, X, Y, alpha, n_steps, sample_weight=None):
    """Return theta after `n_steps` of theta := theta - alpha grad J, all entries together."""
    theta = theta.copy()
    for _ in range(n_steps):
        theta = theta - alpha * gradient(network, theta, X, Y, sample_weight)
    return theta


def relative_error(g, r, least=0.0):
    """Return ||g - r|| / (||g|| + ||r||), which counts as `least` where it is less, and 0 where all vanish."""
    g, r = np.asarray(g, np.float64).ravel(), np.asarray(r, np.float64).ravel()
    scale = max(np.linalg.norm(g) + np.linalg.norm(r), least)
    return float(np.linalg.norm(g - r) / scale) if scale > 0 else 0.0


def layer_errors(network, g, r):
    """Return `relative_error` for each layer's W and b together."""
    pairs = zip(parts(network, np.asarray(g)), parts(network, np.asarray(r)), strict=True)
    return [relative_error(a, b) for a, b in pairs]
