"""Hypothesis strategies that draw networks with data on which every gradient is well defined.

Hypothesis draws the shape of a case (depth, sizes, activations, penalties, number of examples) and
a seed; the numbers come from that seed. They are built layer by layer, looking at the
pre-activations of the very data they will meet, so that

- pre-activations stay within a few units of 0: nothing saturates, and rho_hat stays inside
  [0.01, 0.99], where KL's derivative is of ordinary size;
- no relu sees a pre-activation within `KINK_MARGIN` of 0: the bias moves 0 into a gap between the
  examples' values. Neither central differences nor rounding in float32 then crosses a kink.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import reference
import reference_functions as functions
from hypothesis import assume
from hypothesis import strategies as st

import mlpkit

KINK_MARGIN = 0.02

# How far pre-activations may go. For the bounded activations these keep rho_hat in [0.01, 0.99]:
# sigmoid(3) = 0.953, (tanh(2) + 1) / 2 = 0.982, and a sparse softmax over 40 units with logits
# within 0.4 of one another gives each unit at least exp(-0.4) / 40 = 0.017.
REACH = {"sigmoid": 3.0, "tanh": 2.0, "softmax": 3.0, "identity": 3.0, "relu": 3.0}
SPARSE_SOFTMAX_REACH = 0.2

# Sizes on both sides of whatever the engine calls a tile, and of its vector width.
SEVERAL_TILES = (31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300, 513, 600)


@dataclass
class Case:
    """A network with parameters set, data for it, and its twin's description."""

    net: mlpkit.MLP
    X: np.ndarray
    Y: np.ndarray
    sample_weight: np.ndarray | None
    twin: reference.Network

    @property
    def theta(self):
        return self.net.theta.astype(np.float64)

    @property
    def targets(self):
        """Y as the twin wants it: a float64 row per example."""
        if self.Y.ndim == 1:
            return reference.one_hot(self.Y, self.twin.sizes[-1])
        return self.Y.astype(np.float64)

    @property
    def arguments(self):
        """What the twin's functions take, in float64."""
        X = self.X.astype(np.float64)
        return self.twin, self.theta, X, self.targets, self.sample_weight

    def objective(self, **options):
        return mlpkit.Objective(self.net, self.X, self.Y, self.sample_weight, **options)

    def twin_gradient_in(self, dtype):
        """Return the twin's gradient with every operation in `dtype`."""
        twin, theta, X, Y, w = self.arguments
        return reference.gradient(twin, theta.astype(dtype), X.astype(dtype), Y.astype(dtype), w)

    def __repr__(self):
        return f"Case({self.net!r}, m={len(self.X)}, weighted={self.sample_weight is not None})"


def built_in(kind):
    """Return the names of `kind` (a registry module) that have a twin in `reference`."""
    known = {"activations": functions.FACTORIES, "losses": ("squared_error", "cross_entropy")}
    return [name for name in getattr(mlpkit, kind).names() if name in known[kind]]


@st.composite
def layer_lists(draw, activations=None, max_layers=6, max_units=40, bias=None):
    """Draw the layers of a network and its loss."""
    known = built_in("activations")
    names = known if activations is None else [name for name in activations if name in known]
    n_layers = draw(st.integers(2, max_layers), label="n_layers")
    sizes = st.integers(1, max_units)
    layers = [mlpkit.Input(draw(sizes))]
    for _ in range(n_layers - 1):
        units, name = draw(sizes), draw(st.sampled_from(names))
        # A softmax over one unit is the constant 1: nothing to hold sparse.
        sparse = functions.bounded(name) and not (name == "softmax" and units == 1)
        sparsity = None
        if sparse and draw(st.booleans()):
            rho = draw(st.sampled_from((0.02, 0.05, 0.2, 0.5)))
            sparsity = mlpkit.KLSparsity(rho=rho, beta=draw(st.sampled_from((0.1, 1.0, 3.0))))
        has_bias = draw(st.sampled_from((True, True, True, False))) if bias is None else bias
        if name == "relu" and not _positive(layers[-1]):
            has_bias = True  # its kink is avoided through the bias, see `_parameters`
        own = draw(st.sampled_from((None, None, 0.0, 0.05)))
        layers.append(mlpkit.Dense(units, name, sparsity=sparsity, weight_decay=own, bias=has_bias))
    loss = "squared_error"
    if layers[-1].activation.name == "softmax":
        loss = draw(st.sampled_from(built_in("losses")))
    return layers, loss


@st.composite
def cases(draw, dtype="float64", n_examples=None, weighted=None, **options):
    """Draw a network with data; `n_examples` is a strategy, `options` go to `layer_lists`."""
    layers, loss = draw(layer_lists(**options))
    if n_examples is None:
        n_examples = st.integers(1, 30) | st.sampled_from(SEVERAL_TILES)
    m = draw(n_examples, label="m")
    decay = draw(st.sampled_from((0.0, 1e-4, 0.03, 0.5)))
    has_weights = draw(st.booleans()) if weighted is None else weighted
    kind = draw(st.sampled_from(("labels", "one-hot", "mixed"))) if loss != "squared_error" else ""
    seed = draw(st.integers(0, 2**32 - 1), label="seed")

    rng = np.random.default_rng(seed)
    net = mlpkit.MLP(layers, loss=loss, weight_decay=decay, dtype=dtype, seed=0)
    twin = reference.describe(net)
    X = rng.uniform(-1.5, 1.5, (m, twin.n_inputs)).astype(dtype)
    net.theta = _parameters(twin, X.astype(np.float64), rng, dtype)
    case = Case(net, X, _targets(twin, kind, m, rng, dtype), None, twin)
    if has_weights:
        # Multiples of 1/4 are exact in both dtypes, as are their sums.
        case.sample_weight = rng.integers(0, 9, m) / 4
        case.sample_weight[rng.integers(m)] = 1.0
    # Where the exact gradient of a layer all but cancels (one output that happens to hit its
    # target, say), no arithmetic gives its leading digits. Such draws are rare, and the twin itself
    # tells them: evaluated in float32 it then misses its own float64 value.
    exact, rough = case.twin_gradient_in(np.float64), case.twin_gradient_in(np.float32)
    assume(max(reference.layer_errors(twin, rough, exact)) < 2e-6)
    return case


def _positive(layer):
    """Whether a layer's activations are bounded away from 0 from above."""
    return isinstance(layer, mlpkit.Dense) and layer.activation.name in ("sigmoid", "softmax")


def _parameters(twin, X, rng, dtype):
    """Return theta, layer by layer, each fitted to the activations that reach it."""
    weights, biases = [], []
    a = X
    for n_in, layer in zip(twin.sizes, twin.layers, strict=False):
        W = rng.uniform(0.2, 1.0, (layer.units, n_in))
        if layer.activation == "relu" and not layer.bias:
            W *= rng.choice((-1.0, 1.0), (layer.units, 1))  # with a > 0, each unit keeps its sign
        else:
            W *= rng.choice((-1.0, 1.0), W.shape)
        W *= 1.5 / np.sqrt(n_in)
        b = rng.uniform(-0.5, 0.5, layer.units)
        z = a @ W.T + (b if layer.bias else 0.0)
        reach = REACH[layer.activation]
        if layer.activation == "softmax" and layer.means:
            reach = SPARSE_SOFTMAX_REACH
        shrink = np.minimum(1.0, reach / np.abs(z).max(axis=0))
        W, b = W * shrink[:, np.newaxis], b * shrink
        if layer.activation == "relu" and layer.bias:
            b += np.array([_away_from_zero(column) for column in (z * shrink).T])
        W, b = W.astype(dtype).astype(np.float64), b.astype(dtype).astype(np.float64)
        weights.append(W)
        biases.append(b if layer.bias else None)
        z = a @ W.T + (b if layer.bias else 0.0)
        if layer.activation == "relu":
            assert np.abs(z).min() > KINK_MARGIN / 2
        a = reference.ACTIVATIONS[layer.activation](z)
        if layer.means:
            s, _ = functions.firing(layer.activation, a)
            assert s.min() >= 0.01
            assert s.max() <= 0.99
    return reference.roll(weights, biases)


def _away_from_zero(values):
    """Return what to add to `values` so that 0 falls into their widest gap, or below them all."""
    ordered = np.sort(values)
    gaps = np.diff(ordered)
    if gaps.size and gaps.max() > 2 * KINK_MARGIN:
        k = int(gaps.argmax())
        return -(ordered[k] + ordered[k + 1]) / 2
    return 5 * KINK_MARGIN - ordered[0]


def _targets(twin, kind, m, rng, dtype):
    """Return targets inside the output's range: classes for cross-entropy, else numbers."""
    n = twin.sizes[-1]
    if kind == "labels":
        return rng.integers(0, n, m)
    if kind == "one-hot":
        return np.eye(n)[rng.integers(0, n, m)].astype(dtype)
    if kind == "mixed":
        return rng.dirichlet(np.ones(n), m).astype(dtype)
    low, high = {"tanh": (-1.0, 1.0), "identity": (-2.0, 2.0), "relu": (0.0, 2.0)}.get(
        twin.layers[-1].activation, (0.0, 1.0)
    )
    return rng.uniform(low, high, (m, n)).astype(dtype)
