"""The slow and obvious twin of mini-batch training, in plain NumPy: whole steps and epochs, with no kernel.

A step is written from the formulas of `mlpkit.stochastic`, a layer at a time over the examples of the batch. What an
optimiser, a schedule and a network are is read off their public attributes; orders, noise and the seed of dropout come
from the same generator as the engine's, in the same order: first the seed of dropout, then, for each epoch, the noise
and a permutation. Whether a unit is dropped is a hash of numbers, computed here on unsigned integers of NumPy.
"""

from __future__ import annotations

import math

import numpy as np
import reference
from reference_functions import activation, firing, pullback, sign
from reference_losses import example_loss, output_delta

# Learning rates ---------------------------------------------------------------------------------

SCHEDULES = {
    "StepSchedule": lambda s, epochs: s.initial * s.factor ** math.floor(epochs / s.every),
    "ExponentialSchedule": lambda s, epochs: s.initial * math.exp(epochs * math.log(s.factor)),
    "CosineSchedule": lambda s, epochs: (
        s.final + (s.initial - s.final) * math.cos(math.pi / 2 * min(epochs / s.epochs, 1)) ** 2
    ),
    "InverseScalingSchedule": lambda s, epochs: s.initial * (1 + epochs) ** -s.power,
    "WarmUp": lambda s, epochs: learning_rate(s.learning_rate, epochs) * min(epochs / s.epochs, 1),
}


def learning_rate(given, epochs):
    """Return the learning rate after so many epochs, of a number, one of mlpkit's schedules, or a user's function."""
    if not callable(given):
        return given
    return SCHEDULES.get(type(given).__name__, lambda s, t: s(t))(given, epochs)


# Dropout ----------------------------------------------------------------------------------------


def scramble64(x):
    """Mix 64 bits: the finaliser of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def scramble32(h):
    """Mix 32 bits: the finaliser of MurmurHash3."""
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


def dropout_mask(seed, examples, layer, units, probability):
    """Return what the activations of a layer (counted from 0) are multiplied by, (examples, units).

    `seed` stands for the fit and the step; `examples` are rows of the data, wherever in a batch they are.
    """
    example = scramble64(np.asarray(examples, np.uint64) * np.uint64(64) + np.uint64(layer))
    mixed = (scramble64(np.uint64(seed) ^ example) >> np.uint64(32)).astype(np.uint32)
    unit = (np.arange(units, dtype=np.uint64) * np.uint64(0x9E3779B1)).astype(np.uint32)
    hashed = scramble32(mixed[:, np.newaxis] ^ unit)
    return np.where(hashed >= probability * 2.0**32, 1 / (1 - probability), 0.0)


# A network on a batch ---------------------------------------------------------------------------


def pull_rows(name, z, a, g):
    """Return J_f(z)^T g of each row."""
    if activation(name).coupled:
        return np.array([pullback(name, *row) for row in zip(z, a, g, strict=True)])
    return pullback(name, z, a, g)


def forward(network, theta, X, masks):
    """Return z and a of each layer, and what the layer above sees of it, beginning with X."""
    weights, biases = reference.unroll(network, theta)
    zs, activations, seen = [], [], [X]
    for W, b, layer, mask in zip(weights, biases, network.layers, masks, strict=True):
        z = seen[-1] @ W.T + (0 if b is None else b)
        a = activation(layer.activation).f(z)
        zs.append(z)
        activations.append(a)
        seen.append(a if mask is None else a * mask)
    return zs, activations, seen


class Training:
    """A network in mini-batch training.

    Parameters
    ----------
    net : mlpkit.MLP
        Read, not changed.
    X, Y, w : ndarray
        Examples as the reference takes them: float64, a row of targets for each, NaN where one is masked; w None for
        ones. Rows of weight 0 do not exist.
    optimizer : mlpkit.Stochastic
        Read.
    noise : callable, optional
        (X, generator) -> noisy X.
    dtype : dtype
        Of parameters and steps; rho_hat and sums over examples are in float64 whatever it is.

    Attributes
    ----------
    theta : ndarray
        Parameters.
    records : list of dict
        One an epoch.
    """

    def __init__(self, net, X, Y, w, optimizer, noise=None, dtype=np.float64):
        self.network, self.optimizer = reference.describe(net), optimizer
        self.theta = net.theta.astype(dtype)
        self.dropout = [getattr(layer, "dropout", 0.0) for layer in net.layers[1:]]
        self.X, self.Y = X.astype(dtype), Y.astype(dtype)
        self.w, self.noise = reference.example_weights(X, w), noise
        self.used = np.flatnonzero(self.w)
        self.mean_weight = self.w[self.used].mean()
        self.size = min(optimizer.batch_size, self.used.size)
        seed = net.seed if optimizer.seed is None else optimizer.seed
        self.generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(2,))))
        self.dropout_seed = int(self.generator.integers(2**62))
        self.step = 0
        self.first, self.second = np.zeros_like(self.theta), np.zeros_like(self.theta)
        self.running = None
        self.records = []
        weights, biases = reference.unroll(self.network, self.theta)
        lambdas = [np.full_like(W, layer.weight_decay) for W, layer in zip(weights, self.network.layers, strict=True)]
        nothing = [None if b is None else np.zeros_like(b) for b in biases]
        self.lambdas = reference.roll(reference.owned(self.network, lambdas), nothing)

    def run(self, n_epochs):
        """Train, and return theta."""
        for _ in range(n_epochs):
            self.epoch()
        return self.theta

    def epoch(self):
        """Go through all examples once."""
        optimizer = self.optimizer
        if optimizer.rho_hat_momentum is not None and self.running is None:
            self.running = self.means(forward(self.network, self.theta, self.X, self.no_masks)[1], self.w)
        X = self.X if self.noise is None else self.noise(self.X, self.generator)
        order = self.generator.permutation(self.used) if optimizer.shuffle else self.used
        batches = [order[i : i + self.size] for i in range(0, order.size, self.size)]
        total = {"loss": 0.0, "l1": 0.0, "means": 0.0}
        for batch in batches:
            epochs = self.step / len(batches)
            self.step += 1
            g, terms = self.gradient(X, batch)
            for name, value in terms.items():
                total[name] += value
            if optimizer.clip_value is not None:
                g = np.clip(g, -optimizer.clip_value, optimizer.clip_value)
            norm = np.sqrt(np.sum(g**2))
            if optimizer.clip_norm is not None:
                g = g * min(1.0, optimizer.clip_norm / norm) if norm > 0 else g
            self.move(g, learning_rate(optimizer.learning_rate, epochs))
        everything = self.w.sum()
        self.records.append(
            {
                "data": total["loss"] / everything,
                "weight_decay": np.sum(self.lambdas / 2 * self.theta**2),
                "sparsity": total["l1"] / everything + total["means"] / len(batches),
                "gradient_norm": norm,
                "n_evaluations": self.step,
            }
        )

    @property
    def no_masks(self):
        return [None] * len(self.network.layers)

    def masks(self, batch):
        """Return what each layer's activations are multiplied by in this step, None where nothing is dropped."""
        layers = self.network.layers
        return [
            dropout_mask(self.dropout_seed + self.step, batch, k, layers[k].units, p).astype(self.theta.dtype)
            if p
            else None
            for k, p in enumerate(self.dropout)
        ]

    def means(self, activations, w):
        """Return rho_hat of each layer, None where no penalty looks at it."""
        return reference.mean_firing(self.network, [None, *activations], w)

    def gradient(self, X, batch):
        """Return g of a batch, and its part of each term."""
        network, w = self.network, self.w[batch]
        weights, biases = reference.unroll(network, self.theta)
        zs, activations, seen = forward(network, self.theta, X[batch], self.masks(batch))
        names = [layer.activation for layer in network.layers]
        Y = self.Y[batch]
        terms = {"loss": w @ example_loss(network.loss, names[-1], zs[-1], activations[-1], Y), "l1": 0.0, "means": 0.0}

        means = self.means(activations, w)
        keep = self.optimizer.rho_hat_momentum
        if keep is not None:
            means = [
                None if now is None else keep * r + (1 - keep) * now for r, now in zip(self.running, means, strict=True)
            ]
            self.running = means
        share = (w / (batch.size * self.mean_weight)).astype(self.theta.dtype)[:, np.newaxis]
        own_share = (w / w.sum())[:, np.newaxis]
        pulls = []  # what penalties send to each example's activations
        for layer, a, mean in zip(network.layers, activations, means, strict=True):
            pull = share * layer.strength * sign(a)
            terms["l1"] += layer.strength * (w @ np.abs(a)).sum()
            for penalty in layer.means:
                _, slope = firing(layer.activation, mean)
                pull = pull + (own_share * (penalty.beta * slope * penalty.first(mean))).astype(pull.dtype)
                terms["means"] += penalty.beta * penalty.value(mean).sum()
            pulls.append(pull)

        masks = self.masks(batch)
        sum_W, sum_b, delta = [], [], None
        for k in reversed(range(len(network.layers))):
            z, a = zs[k], activations[k]
            if delta is None:
                delta = share * np.array(
                    [output_delta(network.loss, names[k], *row) for row in zip(z, a, Y, strict=True)]
                )
                delta = delta + pull_rows(names[k], z, a, pulls[k])
            else:
                back = delta @ weights[k + 1]
                delta = pull_rows(names[k], z, a, (back if masks[k] is None else back * masks[k]) + pulls[k])
            sum_W.insert(0, delta.T @ seen[k])
            sum_b.insert(0, delta.sum(axis=0) if biases[k] is not None else None)
        g = reference.roll(reference.fold(network, sum_W), sum_b)
        if type(self.optimizer).__name__ != "AdamW":
            g = g + self.lambdas * self.theta
        assert g.dtype == self.theta.dtype
        return g, terms

    def move(self, g, rate):
        """Move theta by one step of the rule."""
        o, t = self.optimizer, self.step
        kind = type(o).__name__
        if kind == "SGD":
            self.first = o.momentum * self.first + g
            change = g + o.momentum * self.first if o.nesterov else self.first
        elif kind == "RMSprop":
            self.second = o.alpha * self.second + (1 - o.alpha) * g**2
            change = g / (np.sqrt(self.second) + o.epsilon)
        elif kind == "Adagrad":
            self.second = self.second + g**2
            change = g / (np.sqrt(self.second) + o.epsilon)
        else:
            assert kind in ("Adam", "AdamW")
            self.first = o.beta1 * self.first + (1 - o.beta1) * g
            self.second = o.beta2 * self.second + (1 - o.beta2) * g**2
            m, s = self.first / (1 - o.beta1**t), self.second / (1 - o.beta2**t)
            change = m / (np.sqrt(s) + o.epsilon)
            if kind == "AdamW":
                change = change + self.lambdas * self.theta
        self.theta = self.theta - rate * change
