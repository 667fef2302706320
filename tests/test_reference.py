"""The twin's networks, against derivatives found in other ways: complex step and central differences.

The complex step follows the branch that the real part takes, so that it is exact at any point that is not a kink
itself, which random numbers never are.
"""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest
import reference
import reference_derivatives
import reference_functions as functions
import reference_losses as losses
from reference import L1, Layer, Mean, Network
from reference_losses import kl_penalty
from twins import COUPLED, ELEMENTWISE, LOSSES, PAIRS, STEP, close, targets_for


def user_penalty(name, beta):
    return Mean(*reference.PENALTIES[name], beta)


def random_network(rng):
    """Draw a network with all that the twin knows: penalties, ties, decay, with and without biases."""
    sizes, layers = [int(rng.integers(1, 6))], []
    depth = rng.integers(1, 5)
    loss, last = PAIRS[rng.integers(len(PAIRS))]
    for k in range(depth):
        name = last if k == depth - 1 else str(rng.choice(ELEMENTWISE + COUPLED))
        units, tied_to = int(rng.integers(1, 6)), None
        owners = [t for t, layer in enumerate(layers, 1) if layer.tied_to is None and layer.units == sizes[-1]]
        if owners and rng.random() < 0.4:
            tied_to = int(rng.choice(owners))
            units = sizes[tied_to - 1]
        choices = [L1(0.3), user_penalty("twin_quadratic", 0.7), user_penalty("twin_exponential", 0.2)]
        if functions.bounded(name) and not (name == "softmax" and units == 1):
            choices += [kl_penalty(0.1, 0.5), kl_penalty(0.6, 1.5)]
        penalties = tuple(choices[c] for c in rng.choice(len(choices), rng.integers(0, 3), replace=False))
        decay = float(rng.choice([0.0, 0.1])) if tied_to is None else 0.0
        layers.append(Layer(units, name, penalties, decay, bool(rng.random() < 0.8), tied_to))
        sizes.append(units)
    return Network(sizes[0], tuple(layers), loss)


def inside(layer, a):
    """Whether a layer that may have KL fires neither never nor always."""
    s, _ = functions.firing(layer.activation, a)
    return not (functions.bounded(layer.activation) and layer.means) or bool(s.min() > 0.01 and s.max() < 0.99)


def random_case(seed):
    """Return (network, theta, X, Y, w, mask) and a direction."""
    rng = np.random.default_rng(seed)
    while True:
        network = random_network(rng)
        m = int(rng.integers(1, 6))
        theta, v = rng.uniform(-0.8, 0.8, (2, network.n_parameters))
        X = rng.uniform(-1.5, 1.5, (m, network.n_inputs))
        activations = reference.forward(network, theta, X)[1][1:]
        # KL' loses its digits where a difference from 0 or 1 is rounding error
        if all(inside(f, a) for f, a in zip(network.layers, activations, strict=True)):
            break
    Y = targets_for(network.loss, (m, network.sizes[-1]), rng)
    w = mask = None
    if rng.random() < 0.5:
        w = rng.integers(0, 4, m) / 2
        w[rng.integers(m)] = 1.0
    if rng.random() < 0.5:
        mask = rng.random(Y.shape) < 0.7
        Y = np.where(mask, Y, rng.choice([np.nan, np.inf, 7.0], Y.shape))
    return (network, theta, X, Y, w, mask), v


SEEDS = pytest.mark.parametrize("block", range(10))


def cases_of(block, n=15):
    return [random_case(seed) for seed in range(n * block, n * (block + 1))]


def test_random_networks_have_everything():
    drawn = [random_case(seed)[0] for seed in range(150)]
    layers = [layer for network, *_ in drawn for layer in network.layers]
    assert {layer.activation for layer in layers} == set(ELEMENTWISE + COUPLED)
    assert {network.loss for network, *_ in drawn} == set(LOSSES)
    assert sum(layer.tied_to is not None for layer in layers) > 20
    assert sum(layer.strength > 0 for layer in layers) > 20
    assert sum(len(layer.means) > 1 for layer in layers) > 20
    assert sum(w is not None and mask is not None for *_, w, mask in drawn) > 20


@SEEDS
def test_gradient(block):
    for (network, theta, *data), _ in cases_of(block):
        exact = reference.complex_step(lambda t: reference.cost(network, t, *data), theta)  # noqa: B023
        assert max(reference.layer_errors(network, reference.gradient(network, theta, *data), exact)) < 1e-12


@SEEDS
def test_hessian_vector_product(block):
    for (network, theta, *data), v in cases_of(block):
        exact = reference.complex_step_along(lambda t: reference.gradient(network, t, *data), theta, v)  # noqa: B023
        found = reference_derivatives.hessian_vector_product(network, theta, v, *data)
        assert close(found, exact)
        assert max(reference.layer_errors(network, found, exact)) < 1e-9


def test_hessian_vector_product_by_differences():
    network = Network(3, (Layer(4, "tanh", (kl_penalty(0.2, 2.0),), 0.1), Layer(3, "sigmoid", (), 0.0, True, 1)))
    rng = np.random.default_rng(0)
    theta, v = rng.normal(0, 0.5, (2, network.n_parameters))
    data = rng.uniform(0.1, 0.9, (2, 6, 3))
    h = 1e-5
    plus, minus = (reference.gradient(network, theta + s * h * v, *data) for s in (1, -1))
    assert close(reference_derivatives.hessian_vector_product(network, theta, v, *data), (plus - minus) / (2 * h), 1e-8)


def fixed_objective(network, theta, means, X, Y):
    """loss + sum of beta p'(rho_hat) s(a) + strength |a| of one example, with rho_hat given."""
    zs, activations = reference.forward(network, theta, X)
    total = losses.example_loss(network.loss, network.layers[-1].activation, zs[-1], activations[-1], Y)[0]
    for layer, a, mean in zip(network.layers, activations[1:], means, strict=True):
        for penalty in layer.means:
            total = total + penalty.beta * penalty.first(mean) @ functions.firing(layer.activation, a[0])[0]
        total = total + layer.strength * (np.sign(a[0].real) @ a[0])
    return total


@SEEDS
def test_per_example_gradient(block):
    for arguments, _ in cases_of(block):
        network, theta, X, Y, w, mask = arguments
        counted = reference.example_weights(X, w)
        known = reference.hide(Y, mask)
        bare = replace(network, layers=tuple(replace(layer, penalties=()) for layer in network.layers))
        for sparsity, target in ((True, network), (False, bare)):
            G = reference_derivatives.per_example_gradient(*arguments, sparsity=sparsity)
            assert G.shape == (len(X), theta.size)
            means = reference.mean_firing(target, reference.forward(target, theta, X)[1], counted)
            for i in range(len(X)):
                row = slice(i, i + 1)
                exact = np.zeros(theta.size)
                if counted[i] > 0:
                    one = (X[row], known[row])
                    exact = reference.complex_step(lambda t: fixed_objective(target, t, means, *one), theta)  # noqa: B023
                assert close(G[i], exact)
            weights, biases = reference.unroll(network, theta)
            decayed = [layer.weight_decay * W for layer, W in zip(network.layers, weights, strict=True)]
            none = [None if b is None else 0 * b for b in biases]
            total = counted @ G / counted.sum() + reference.roll(reference.owned(network, decayed), none)
            assert close(total, reference.gradient(target, theta, X, Y, w, mask))
            norms = reference_derivatives.per_example_gradient_norm(*arguments, sparsity=sparsity)
            assert close(norms, np.sqrt((G**2).sum(axis=1)))


def test_per_example_loss_is_the_data_term():
    for seed in range(30):
        arguments, _ = random_case(seed)
        w = reference.example_weights(arguments[2], arguments[4])
        data = reference.terms(*arguments)["data"]
        each = reference.per_example_loss(*arguments)
        assert (each[w == 0] == 0).all()
        assert w @ each / w.sum() == pytest.approx(data, rel=1e-14, abs=1e-15)


@SEEDS
def test_jacobian(block):
    for (network, theta, X, *_), _ in cases_of(block, 4):
        found = reference.jacobian(network, theta, X)
        assert found.shape == (len(X), network.sizes[-1], network.n_inputs)
        for k in range(network.n_inputs):
            shifted = X.astype(np.complex128)
            shifted[:, k] += 1j * STEP
            assert close(found[:, :, k], reference.predict(network, theta, shifted).imag / STEP)


# Weights, masks and ties ------------------------------------------------------------------------


@pytest.fixture
def case(rng):
    """A network with every kind of penalty, and data with repeated and dropped examples."""
    layers = (
        Layer(3, "tanh", (kl_penalty(0.2, 2.0), L1(0.1)), 0.1),
        Layer(2, "softplus", (user_penalty("twin_exponential", 0.5),)),
        Layer(2, "sigmoid", (), 0.2),
    )
    network = Network(4, layers, "binary_cross_entropy")
    theta, v = rng.normal(0, 0.6, (2, network.n_parameters))
    return network, theta, v, rng.normal(size=(5, 4)), rng.uniform(size=(5, 2)), np.array([1.0, 2, 0, 3, 1])


def quantities(network, theta, v, *data):
    product = reference_derivatives.hessian_vector_product(network, theta, v, *data)
    return [reference.cost(network, theta, *data), reference.gradient(network, theta, *data), product]


def test_weights_repeat_and_remove_examples(case):
    network, theta, v, X, Y, w = case
    rows = np.repeat(np.arange(5), w.astype(int))
    weighted = quantities(network, theta, v, X, Y, w)
    for a, b in zip(weighted, quantities(network, theta, v, X[rows], Y[rows]), strict=True):
        assert close(a, b)


def test_a_mask_of_everything_changes_nothing(case):
    network, theta, v, X, Y, w = case
    everything = np.ones(Y.shape, bool)
    masked = quantities(network, theta, v, X, Y, w, everything)
    for a, b in zip(masked, quantities(network, theta, v, X, Y, w), strict=True):
        assert close(a, b)


def test_masks_of_either_output_add_up_to_the_whole(case):
    network, theta, _, X, Y, w = case
    network = reference_derivatives.without_decay(network, sparsity=False)
    one = np.arange(2) == np.zeros((5, 1))
    halves = [reference.gradient(network, theta, X, Y, w, mask) for mask in (one, ~one)]
    assert close(sum(halves), reference.gradient(network, theta, X, Y, w))


def test_a_missing_target_of_a_softmax_is_a_zero(rng):
    network = Network(3, (Layer(4, "softmax"),), "cross_entropy")
    theta, v = rng.normal(size=(2, network.n_parameters))
    X, Y, mask = rng.normal(size=(6, 3)), rng.dirichlet(np.ones(4), 6), rng.random((6, 4)) < 0.6
    masked = quantities(network, theta, v, X, np.where(mask, Y, np.nan))
    for a, b in zip(masked, quantities(network, theta, v, X, Y * mask), strict=True):
        assert close(a, b)


def test_class_weights():
    softmax = Network(2, (Layer(3, "softmax"),), "cross_entropy")
    Y = np.array([[1.0, 0, 0], [0, 0, 1], [0.5, 0.5, 0]])
    assert reference.class_weights(softmax, Y, [1, 2, 4], [1, 1, 2]).tolist() == [1, 4, 3]
    binary = Network(2, (Layer(1, "sigmoid"),), "binary_cross_entropy")
    assert reference.class_weights(binary, np.array([[0.0], [1], [0.25]]), [1, 5]).tolist() == [1, 5, 2]


def test_tied_weights_are_one_matrix_used_twice(case):
    *_, rng_theta, _, X, _, w = case
    tied = Network(4, (Layer(3, "tanh", (kl_penalty(0.3, 1.0),), 0.1), Layer(4, "sigmoid", (), 0.0, True, 1)))
    free = replace(tied, layers=(tied.layers[0], replace(tied.layers[1], tied_to=None)))
    theta = rng_theta[: tied.n_parameters]
    assert tied.n_parameters == 12 + 3 + 4
    W, b = theta[:12].reshape(3, 4), theta[12:15]
    full = np.concatenate([theta[:15], W.T.ravel(), theta[15:]])
    assert reference.cost(tied, theta, X, X, w) == reference.cost(free, full, X, X, w)
    (G1, G2), biases = reference.unroll(free, reference.gradient(free, full, X, X, w))
    expected = np.concatenate([(G1 + G2.T).ravel(), *biases])
    assert close(reference.gradient(tied, theta, X, X, w), expected)
    assert [part.size for part in reference.parts(tied, theta)] == [12 + b.size, 4]


# The checks above can fail ----------------------------------------------------------------------

SECOND_ORDER_MISTAKES = {
    "R{rho_hat} of each example alone": ("r_mean = share @ (slope * ra)", "r_mean = 0 * ra[0]"),
    "missing second s'": ("share @ (slope * ra)", "share @ ra"),
    "no R{W} in the backward part": ("r_weights[k + 1].T @ delta + ", ""),
    "no f''": (" + curvature(names[k], z, rz, q)", ""),
    "f'' without penalties": ("curvature(names[k], z, rz, q)", "curvature(names[k], z, rz, q - pulls[k])"),
    "no R{a} in the outer product": ("np.outer(delta, r_below)", "0"),
    "decay along theta": ("layer.weight_decay * r_weights[k]", "layer.weight_decay * weights[k]"),
    "no R{b}": ("rz = rz + r_biases[k]", "pass"),
}


@pytest.mark.parametrize("name", SECOND_ORDER_MISTAKES)
def test_a_mistake_in_second_order_is_seen(case, name):
    network, theta, v, *data = case
    right, wrong = SECOND_ORDER_MISTAKES[name]
    source = inspect.getsource(reference_derivatives.hessian_vector_product)
    assert source.count(right) == 1
    namespace = dict(vars(reference_derivatives))
    exec(source.replace(right, wrong), namespace)
    exact = reference.complex_step_along(lambda t: reference.gradient(network, t, *data), theta, v)
    assert reference.relative_error(namespace["hessian_vector_product"](network, theta, v, *data), exact) > 1e-3
