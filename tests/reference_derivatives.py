"""The twin's gradients of single examples, and its products of the Hessian and a vector."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from reference import example_weights, fold, forward, gradient, hide, l1_slope, mean_firing, roll, unroll
from reference_functions import curvature, firing, pullback, tangent
from reference_losses import output_curvature, output_delta


def without_decay(network, sparsity=True):
    """Return the network without weight decay, and without penalties where `sparsity` is False."""
    layers = [
        replace(layer, weight_decay=0.0, penalties=layer.penalties if sparsity else ()) for layer in network.layers
    ]
    return replace(network, layers=tuple(layers))


def per_example_gradient(network, theta, X, Y, sample_weight=None, mask=None, *, sparsity=True):
    """Return g_i of each example as rows, 0 where its weight is 0.

    g_i = grad[loss_i + sum_l beta_l sum_j p'(rho_hat_j) s(a_ij) + strength |a_ij|] with rho_hat held fixed: the
    gradient of an objective that has this example only, without decay. So sum_i w_i g_i / sum w + lambda W is the
    gradient.
    """
    w, Y = example_weights(X, sample_weight), hide(Y, mask)
    network = without_decay(network, sparsity)
    means = mean_firing(network, forward(network, theta, X)[1], w)
    result = np.zeros((len(X), theta.size), theta.dtype)
    for i in np.flatnonzero(w > 0):
        result[i] = gradient(network, theta, X[i : i + 1], Y[i : i + 1], means=means)
    return result


def per_example_gradient_norm(network, theta, X, Y, sample_weight=None, mask=None, *, sparsity=True):
    """Return ||g_i|| of each example."""
    return np.linalg.norm(per_example_gradient(network, theta, X, Y, sample_weight, mask, sparsity=sparsity), axis=1)


def hessian_vector_product(network, theta, v, X, Y, sample_weight=None, mask=None):
    """Return H v by Pearlmutter's R-operator, the derivative of everything above as theta moves along v.

    R{z} = R{W} a + W R{a} + R{b} and R{a} = f'(z) R{z} go forward over all examples, since the backward part needs
    R{rho_hat} = sum_i w_i s' R{a_i} / sum w. Then, with q = W^T delta+ + sum of beta s' p'(rho_hat) + strength sign(a)

        R{q} = R{W}^T delta+ + W^T R{delta+} + sum of beta s' p''(rho_hat) R{rho_hat}
        delta = f'(z) q,   R{delta} = f'(z) R{q} + f''(z) R{z} q

    and the output layer's delta of the loss beside it. Each tied W moves with the one that it is tied to.
    """
    w, Y = example_weights(X, sample_weight), hide(Y, mask)
    share = w / w.sum()
    weights, biases = unroll(network, theta)
    r_weights, r_biases = unroll(network, v)
    zs, activations = forward(network, theta, X)
    means = mean_firing(network, activations, w)
    names = [layer.activation for layer in network.layers]
    depth = len(network.layers)

    rzs, ras = [], [np.zeros_like(X)]
    for k in range(depth):
        rz = activations[k] @ r_weights[k].T + ras[k] @ weights[k].T
        if r_biases[k] is not None:
            rz = rz + r_biases[k]
        rzs.append(rz)
        ras.append(np.array([tangent(names[k], *pair) for pair in zip(zs[k], rz, strict=True)]))

    pulls, r_pulls = [], []  # what penalties on means add to q and to R{q} of every example
    for layer, mean, ra in zip(network.layers, means, ras[1:], strict=True):
        pull, r_pull = np.zeros(layer.units), np.zeros(layer.units)
        for penalty in layer.means:
            _, slope = firing(layer.activation, mean)
            pull = pull + penalty.beta * slope * penalty.first(mean)
            r_mean = share @ (slope * ra)
            r_pull = r_pull + penalty.beta * slope * penalty.second(mean) * r_mean
        pulls.append(pull)
        r_pulls.append(r_pull)

    sum_W = [np.zeros_like(W) for W in weights]
    sum_b = [np.zeros(layer.units) for layer in network.layers]
    for i in range(len(X)):
        delta = r_delta = None
        for k in range(depth - 1, -1, -1):
            z, a, rz = zs[k][i], activations[k + 1][i], rzs[k][i]
            q, rq = pulls[k] + l1_slope(network.layers[k], a), r_pulls[k]
            if k < depth - 1:
                q = q + weights[k + 1].T @ delta
                rq = rq + r_weights[k + 1].T @ delta + weights[k + 1].T @ r_delta
            delta = pullback(names[k], z, a, q)
            r_delta = pullback(names[k], z, a, rq) + curvature(names[k], z, rz, q)
            if k == depth - 1:
                delta = delta + output_delta(network.loss, names[k], z, a, Y[i])
                r_delta = r_delta + output_curvature(network.loss, names[k], z, a, Y[i], rz)
            below, r_below = activations[k][i], ras[k][i]
            sum_W[k] += share[i] * (np.outer(r_delta, below) + np.outer(delta, r_below))
            sum_b[k] += share[i] * r_delta

    for k, layer in enumerate(network.layers):
        sum_W[k] += layer.weight_decay * r_weights[k]
    return roll(fold(network, sum_W), [s if b is not None else None for s, b in zip(sum_b, biases, strict=True)])
