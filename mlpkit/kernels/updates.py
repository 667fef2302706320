"""The rules by which a stochastic optimiser moves the parameters; `mlpkit.stochastic` has their formulas.

Arguments are grouped as steps.py says.
"""

from __future__ import annotations

import numpy as np

from mlpkit.kernels.jit import ELEMENTWISE, REDUCTION, kernel
from mlpkit.kernels.pointers import at
from mlpkit.kernels.strips import N_IN, N_OUT, TIED, B, W

__all__ = [
    "ADAGRAD",
    "ADAM",
    "ADAMW",
    "MOMENTUM",
    "NESTEROV",
    "RMSPROP",
    "SGD",
    "clipping",
    "finish_gradient",
    "squared_norm",
    "update_parameters",
    "update_share",
]

SGD, MOMENTUM, NESTEROV, RMSPROP, ADAGRAD, ADAM, ADAMW = range(7)


@kernel(fastmath=REDUCTION)
def _square(gradient, n, zero):
    square = zero
    for i in range(n):
        value = gradient[i] + zero  # in the precision of `zero`
        square += value * value
    return np.float64(square)


@kernel(fastmath=ELEMENTWISE, inlined=True)
def finish_gradient(thetas, gradients, begin, end, scale, decay, largest):
    """gradient[begin:end] becomes that of J, its numbers clipped to +-largest if that is above 0; return its square."""
    n = end - begin  # as in update_parameters
    theta, gradient = at(thetas, begin), at(gradients, begin)
    if largest > 0:
        for i in range(n):
            gradient[i] = min(max(gradient[i] * scale + decay * theta[i], -largest), largest)
    else:
        for i in range(n):
            gradient[i] = gradient[i] * scale + decay * theta[i]
    square = _square(gradient, n, scale - scale)
    # Squares can leave the range of float32 where the numbers do not.
    return square if square < np.inf else _square(gradient, n, 0.0)


@kernel
def update_share(network, update, step, gradient, skip, factor, worker, n_workers):
    """Update a worker's share of the parameters of each layer."""
    plan, theta = network[0], network[2]
    kind, settings, rates, _, _, decay, scale = update
    n = skip[0].size
    turned = (kind, settings, rates, skip[2], skip[3], decay, scale)
    begin, end = worker * n // n_workers, (worker + 1) * n // n_workers
    update_parameters(skip[0], skip[1], begin, end, turned, step, decay[0], factor)
    for layer in range(plan.shape[0]):
        n = plan[layer, N_IN] * plan[layer, N_OUT] if plan[layer, TIED] == 0 else 0
        if layer == 0 and skip[0].size > 0:
            n = 0
        w = plan[layer, W]
        begin, end = w + worker * n // n_workers, w + (worker + 1) * n // n_workers
        update_parameters(theta, gradient, begin, end, update, step, decay[layer], factor)
        if plan[layer, B] >= 0 and worker == 0:
            b = plan[layer, B]
            update_parameters(theta, gradient, b, b + plan[layer, N_OUT], update, step, factor - factor, factor)


@kernel(fastmath=ELEMENTWISE, inlined=True)
def update_parameters(thetas, gradients, begin, end, update, step, decay, factor):
    """Move theta[begin:end] by one step of the rule; see `mlpkit.stochastic` for the formulas.

    decay: lambda of these parameters, which only AdamW takes here; factor: what clipping multiplies the gradient by.
    """
    kind, settings, rates, firsts, seconds, _, _ = update
    # Slices, for an index that counts from 0 is known not to be negative, and the loops become vectors.
    n = end - begin
    theta, gradient = at(thetas, begin), at(gradients, begin)
    first, second = at(firsts, begin), at(seconds, begin)
    a, b, eps = settings[0], settings[1], settings[2]
    rate, first_correction, second_correction = rates[step, 0], rates[step, 1], rates[step, 2]
    one = thetas.dtype.type(1)  # a Python number would make float32 double
    fresh, rest = one - a, one - b
    if kind in (ADAM, ADAMW):
        keep = one - rate * decay if kind == ADAMW else one
        for i in range(n):
            g = gradient[i] * factor
            first[i] = a * first[i] + fresh * g
            second[i] = b * second[i] + rest * (g * g)
            move = first[i] * first_correction / (np.sqrt(second[i] * second_correction) + eps)
            theta[i] = keep * theta[i] - rate * move
    elif kind == SGD:
        for i in range(n):
            theta[i] -= rate * (gradient[i] * factor)
    elif kind == MOMENTUM:
        for i in range(n):
            first[i] = a * first[i] + gradient[i] * factor
            theta[i] -= rate * first[i]
    elif kind == NESTEROV:
        for i in range(n):
            g = gradient[i] * factor
            first[i] = a * first[i] + g
            theta[i] -= rate * (g + a * first[i])
    elif kind == RMSPROP:
        for i in range(n):
            g = gradient[i] * factor
            second[i] = a * second[i] + fresh * (g * g)
            theta[i] -= rate * g / (np.sqrt(second[i]) + eps)
    else:
        for i in range(n):
            g = gradient[i] * factor
            second[i] += g * g
            theta[i] -= rate * g / (np.sqrt(second[i]) + eps)


@kernel
def squared_norm(squares):
    """Add up the squares of the gradient's parts."""
    total = 0.0
    for i in range(squares.size):
        total += squares[i]
    return total


@kernel
def clipping(square, bound):
    """Return what makes a gradient's norm at most `bound`, if that is above 0, from the norm's square."""
    if bound > 0 and square > bound * bound:
        return bound / np.sqrt(square)
    return 1.0
