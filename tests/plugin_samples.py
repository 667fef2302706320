"""Activations and losses as a user would write them, and pairs of plugins to test with data for them."""

import math

import numpy as np

from mlpkit import activations, losses
from mlpkit.activations import Activation
from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels import vmath
from mlpkit.losses import Loss

# Reads z as well as a, so the engine has to keep both.
swish = Activation(
    "swish",
    lambda z: z * vmath.expit(z),
    lambda z, a: vmath.expit(z) * (1.0 + z * (1.0 - vmath.expit(z))),
)


def unit_ball_forward(z, a):
    panels, rows, lanes = z.shape
    for p in range(panels):
        for t in range(lanes):
            square = 1.0
            for j in range(rows):
                square += z[p, j, t] * z[p, j, t]
            for j in range(rows):
                a[p, j, t] = z[p, j, t] / math.sqrt(square)


def unit_ball_pullback(z, a, g):
    panels, rows, lanes = z.shape
    for p in range(panels):
        for t in range(lanes):
            square, dot = 1.0, 0.0
            for j in range(rows):
                square += z[p, j, t] * z[p, j, t]
                dot += a[p, j, t] * g[p, j, t]
            for j in range(rows):
                g[p, j, t] = (g[p, j, t] - a[p, j, t] * dot) / math.sqrt(square)


# Couples the units of a layer, a = z / sqrt(1 + ||z||^2), and reads z on the way back.
unit_ball = Activation(
    "unit_ball", None, None, range=(-1.0, 1.0), tile_forward=unit_ball_forward, tile_pullback=unit_ball_pullback
)


def neighbours_forward(z, a):
    """a_j = z_j + z_{j+1}, around the ring; a is written before all of z is read."""
    panels, rows, lanes = z.shape
    for p in range(panels):
        for j in range(rows):
            for t in range(lanes):
                a[p, j, t] = z[p, j, t] + z[p, (j + 1) % rows, t]


def neighbours_pullback(z, a, g):
    panels, rows, lanes = g.shape
    before = np.empty((rows, lanes), g.dtype)
    for p in range(panels):
        for j in range(rows):
            for t in range(lanes):
                before[j, t] = g[p, j, t]
        for j in range(rows):
            for t in range(lanes):
                g[p, j, t] = before[j, t] + before[(j - 1) % rows, t]


neighbours = Activation("neighbours", None, None, tile_forward=neighbours_forward, tile_pullback=neighbours_pullback)


# Has the name of another, and must not be taken for it.
impostor = Activation("softmax", lambda z: z, lambda z, a: 1.0, range=(0.0, 1.0))


def make_scaled(factor):
    """Make an activation that captures a number from outside."""
    return Activation(
        "scaled", lambda z: vmath.tanh(factor * z), lambda z, a: factor * (1.0 - a * a), range=(-1.0, 1.0)
    )


fair = Loss("fair", lambda a, y: abs(a - y) - np.log1p(abs(a - y)), lambda a, y: (a - y) / (1 + abs(a - y)))


def data(net, seed=0, m=70):
    """Return inputs and targets, none so near to its output that a loss with a kink there has no gradient."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(m, net.sizes[0]))
    if net.loss.class_targets:
        return X, rng.integers(0, net.sizes[-1], m)
    Y, outputs = rng.uniform(0.2, 0.8, (m, net.sizes[-1])), net.predict(X)
    near = np.abs(outputs - Y) < 0.02
    return X, np.where(near, np.where(outputs > 0.5, outputs - 0.1, outputs + 0.1), Y)


USERS = [swish, make_scaled(0.5), unit_ball, neighbours]
ACTIVATIONS = [*map(activations.get, activations.names()), activations.leaky_relu(0.2), activations.top_k(2)]
LOSSES = [*map(losses.get, losses.names()), losses.huber(0.15), losses.quantile(0.9), fair]


def pairs():
    """Return each activation with squared error, and each loss on one or two activations."""
    found = [(losses.squared_error, f) for f in [*ACTIVATIONS, *USERS]]
    for loss in LOSSES:
        usual = [activations.identity, activations.softplus]
        found += [(loss, f) for f in [*loss.fused, *(usual if loss.function else [])]]
    return [pair for pair in dict.fromkeys(found) if compatible(*pair)]


def compatible(loss, activation):
    try:
        loss.check_activation(activation)
    except InvalidArgumentError:
        return False
    return True
