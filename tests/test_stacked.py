"""Stacks of encoders: what they compute, what they are trained for, and what is refused."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest

import mlpkit
from mlpkit import MLP, Dense, Input, KLSparsity, L1Sparsity, MaskingNoise
from mlpkit.errors import InvalidArgumentError

SIZES = (12, 7, 5)
X = np.random.default_rng(0).random((90, 12))
LABELS = (X[:, :4].sum(axis=1) > X[:, 4:8].sum(axis=1)).astype(int) + (X[:, 8:].sum(axis=1) > 2)


def autoencoders(dtype="float64"):
    return [
        mlpkit.sparse_autoencoder(n_in, n_out, rho=0.2, beta=0.1, weight_decay=1e-4, dtype=dtype, seed=n_out)
        for n_in, n_out in pairwise(SIZES)
    ]


def softmax(dtype="float64", weight_decay=1e-3):
    layers = [Input(SIZES[-1]), Dense(3, "softmax", init="glorot_normal")]
    return MLP(layers, loss="cross_entropy", weight_decay=weight_decay, dtype=dtype, seed=1)


@pytest.fixture(scope="module")
def trained():
    nets = autoencoders()
    results = mlpkit.pretrain(nets, X, mlpkit.LBFGS(max_iter=40))
    return nets, results


# ----------------------------------------------------------------------------------------- encoder


def test_an_encoder_computes_the_hidden_activations_to_the_bit():
    net = autoencoders()[0]
    found = mlpkit.encoder(net)
    assert found.sizes == (12, 7)
    np.testing.assert_array_equal(found.predict(X), net.activations(X)[0])


@pytest.mark.parametrize("layer", [2, 3, 4, 5, None])
def test_an_encoder_ends_at_any_layer_and_by_default_in_the_middle(layer):
    hidden = [Dense(5, "tanh"), Dense(3, "sigmoid"), Dense(5, "tanh", tied_to=2)]
    net = MLP([Input(12), *hidden, Dense(12, "identity", tied_to=1)], seed=0, dtype="float32")
    found = mlpkit.encoder(net, layer)
    np.testing.assert_array_equal(found.predict(X), net.activations(X)[(layer or 3) - 2])
    assert found.dtype == np.float32


def test_an_encoder_is_a_copy_without_what_trained_it():
    hidden = [
        Dense(9, "relu", dropout=0.25),
        Dense(7, "sigmoid", sparsity=[KLSparsity(0.1, 3.0), L1Sparsity(0.1)], weight_decay=0.5, init="he_normal"),
        Dense(9, "relu"),
    ]
    net = MLP([Input(12, noise=MaskingNoise(0.3)), *hidden, Dense(12, "sigmoid")], weight_decay=0.1, seed=0)
    before = net.theta.copy()
    found = mlpkit.encoder(net)
    assert found.layers == (Input(12), Dense(9, "relu"), Dense(7, "sigmoid", init="he_normal"))
    assert found.evaluate(X, np.zeros((90, 7))) | {"data": 0.0} == {"data": 0.0, "weight_decay": 0.0, "sparsity": 0.0}
    found.theta[:] = 0
    np.testing.assert_array_equal(net.theta, before)
    assert mlpkit.encoder(net, weight_decay=0.25).decays == [0.25, 0.25]


def test_what_has_no_middle_needs_a_layer():
    for layers in ([Input(3), Dense(3, "tanh")], [Input(3), Dense(2, "tanh"), Dense(4, "tanh")]):
        net = MLP(layers, seed=0)
        with pytest.raises(InvalidArgumentError, match=r"net must be an autoencoder.*layer=.*found sizes \(3, "):
            mlpkit.encoder(net)
        assert mlpkit.encoder(net, 2).n_layers == 2
    for layer in (1, 4, 2.0):
        with pytest.raises(InvalidArgumentError, match="layer must be an integer"):
            mlpkit.encoder(net, layer)
    with pytest.raises(InvalidArgumentError, match="net must be an MLP; found list"):
        mlpkit.encoder([net])
    with pytest.raises(InvalidArgumentError, match="weight_decay"):
        mlpkit.encoder(net, 2, weight_decay=-1)


# ------------------------------------------------------------------------------------------- stack


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rows", [1, 2, 90])
def test_a_stack_computes_its_parts_one_after_another_to_the_bit(dtype, rows):
    parts = [*map(mlpkit.encoder, autoencoders(dtype)), softmax(dtype)]
    expected = X[:rows].astype(dtype)
    for part in parts:
        expected = part.predict(expected)
    found = mlpkit.stack(parts)
    assert found.sizes == (*SIZES, 3)
    assert found.dtype == dtype
    assert found.loss.name == "cross_entropy"
    np.testing.assert_array_equal(found.predict(X[:rows]), expected)


def test_a_stack_of_stacks_is_a_stack():
    *encoders, head = [*map(mlpkit.encoder, autoencoders()), softmax()]
    flat = mlpkit.stack([*encoders, head])
    for nested in ([mlpkit.stack(encoders), head], [encoders[0], mlpkit.stack([encoders[1], head])]):
        found = mlpkit.stack(nested)
        assert found.config() == flat.config()
        np.testing.assert_array_equal(found.theta, flat.theta)


def test_only_the_head_is_decayed():
    net = mlpkit.stack([*map(mlpkit.encoder, autoencoders()), softmax(weight_decay=1e-3)])
    assert net.decays == [0.0, 0.0, 1e-3]
    terms = net.evaluate(X, LABELS)
    np.testing.assert_allclose(terms["weight_decay"], 0.5e-3 * np.sum(net.weights[2] ** 2), rtol=1e-12)
    assert terms["sparsity"] == 0
    # So its J is the classifier's own on the features.
    features = mlpkit.stack([*map(mlpkit.encoder, autoencoders())]).predict(X)
    assert terms == pytest.approx(softmax(weight_decay=1e-3).evaluate(features, LABELS), rel=1e-12)


def test_the_gradient_of_a_stack_is_that_of_its_cost():
    net = mlpkit.stack([*map(mlpkit.encoder, autoencoders()), softmax()])
    report = mlpkit.check_gradient(net, X[:20], LABELS[:20])
    assert report.ok, str(report)


def test_every_part_keeps_its_own_decay_and_penalties():
    sparse = MLP([Input(4), Dense(3, "sigmoid", sparsity=KLSparsity(0.1, 2.0)), Dense(4, "tanh", tied_to=1)], seed=0)
    decayed = MLP(
        [Input(4), Dense(3, "relu", weight_decay=0.0, dropout=0.5), Dense(2, "tanh")], weight_decay=0.5, seed=0
    )
    lower = mlpkit.encoder(mlpkit.sparse_autoencoder(5, 4, seed=3), weight_decay=0.25)
    found = mlpkit.stack([lower, sparse, decayed, Dense(1, "identity", weight_decay=0.125)], seed=0)
    assert found.decays == [0.25, 0.0, 0.0, 0.0, 0.5, 0.125]
    assert found.layers[2].sparsity == KLSparsity(0.1, 2.0)
    assert found.layers[4].dropout == 0.5
    assert found.layers[3].tied_to == 2  # what was W^(1) of its network
    assert np.shares_memory(found.weights[2], found.weights[1])
    np.testing.assert_array_equal(found.theta[:-3], np.concatenate([lower.theta, sparse.theta, decayed.theta]))
    Z = X[:, :5]
    np.testing.assert_array_equal(found.activations(Z)[4], decayed.predict(sparse.predict(lower.predict(Z))))
    assert found.loss.name == "squared_error"


def test_a_layer_starts_as_its_own_rule_says():
    lower = mlpkit.encoder(autoencoders()[0])
    one, same, other = (mlpkit.stack([lower, Dense(3, "softmax")], "cross_entropy", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.theta, same.theta)
    assert np.all(one.weights[1] != other.weights[1])
    np.testing.assert_array_equal(one.weights[0], lower.weights[0])
    assert np.all(mlpkit.stack([lower, Dense(3, "tanh", init=0.5)]).weights[1] == 0.5)


def test_a_tied_layer_unrolls_the_stack():
    encoders = [*map(mlpkit.encoder, autoencoders())]
    found = mlpkit.stack([*encoders, Dense(7, "sigmoid", tied_to=2), Dense(12, "sigmoid", tied_to=1)], seed=0)
    assert found.sizes == (12, 7, 5, 7, 12)
    np.testing.assert_array_equal(found.weights[3], encoders[0].weights[0].T)


def test_the_parts_stay_as_they_are():
    parts = [mlpkit.encoder(autoencoders()[0]), mlpkit.encoder(autoencoders()[1])]
    before = [part.theta.copy() for part in parts]
    net = mlpkit.stack(parts)
    net.theta[:] = 0
    for part, theta in zip(parts, before, strict=True):
        np.testing.assert_array_equal(part.theta, theta)


def test_a_stack_is_a_network_like_any_other(tmp_path):
    net = mlpkit.stack([*map(mlpkit.encoder, autoencoders()), Dense(3, "softmax", weight_decay=0.1)], "cross_entropy")
    net.save(tmp_path / "stack.h5")
    for other in (mlpkit.load(tmp_path / "stack.h5"), pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert other.config() == net.config()
        np.testing.assert_array_equal(other.predict(X), net.predict(X))


def test_noise_stays_at_the_inputs():
    noisy = MLP([Input(12, noise=MaskingNoise(0.5)), Dense(7, "sigmoid")], seed=0)
    upper = mlpkit.encoder(autoencoders()[1])
    assert mlpkit.stack([noisy, upper]).layers[0] == Input(12, noise=MaskingNoise(0.5))
    upper = MLP([Input(7, noise=MaskingNoise(0.5)), Dense(7, "sigmoid")], seed=0)
    with pytest.raises(InvalidArgumentError, match=r"parts\[1\] must have no noise.*found MaskingNoise"):
        mlpkit.stack([noisy, upper])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda a, b: [], "parts must not be empty"),
        (lambda a, b: 3, "parts must be a list; found int"),
        (lambda a, b: a, "parts must be a list; found MLP"),
        (lambda a, b: [Dense(3, "tanh")], r"parts\[0\] must be an MLP, which says what the inputs are; found Dense"),
        (lambda a, b: [a, "softmax"], r"parts\[1\] must be an MLP or a Dense; found 'softmax'"),
        (lambda a, b: [a, Input(12)], r"parts\[1\] must be an MLP or a Dense; found Input"),
        (lambda a, b: [a, b], r"parts\[1\] must have 12 inputs, as many as parts\[0\].*found 7.*mlpkit\.encoder"),
        (lambda a, b: [mlpkit.encoder(a), softmax()], r"parts\[1\] must have 7 inputs.*found 5"),
        (lambda a, b: [mlpkit.encoder(a), *autoencoders("float32")[1:]], r"parts\[1\] must be of dtype float64"),
        (lambda a, b: [mlpkit.encoder(a), Dense(7, "tanh", tied_to=1)], "tied_to"),
    ],
)
def test_parts_that_do_not_fit_are_named(parts, message):
    with pytest.raises(InvalidArgumentError, match=message):
        mlpkit.stack(parts(*autoencoders()))


def test_a_loss_that_does_not_fit_the_last_part_is_named():
    with pytest.raises(InvalidArgumentError, match="cross_entropy"):
        mlpkit.stack([mlpkit.encoder(autoencoders()[0])], "cross_entropy")


# ---------------------------------------------------------------------------------------- training


def test_pretraining_is_the_loop_that_it_says_to_be(trained):
    nets, results = trained
    inputs = X
    for net, result, fresh in zip(nets, results, autoencoders(), strict=True):
        expected = fresh.fit(inputs, inputs, mlpkit.LBFGS(max_iter=40))
        np.testing.assert_array_equal(net.theta, fresh.theta)
        assert result.cost == expected.cost
        inputs = fresh.activations(inputs)[0]


def test_weights_of_examples_count_in_every_layer():
    sample_weight = np.where(np.arange(90) < 30, 2.0, 0.0)
    one, other = autoencoders(), autoencoders()
    mlpkit.pretrain(one, X, mlpkit.LBFGS(max_iter=5), sample_weight=sample_weight)
    mlpkit.pretrain(other, X[:30], mlpkit.LBFGS(max_iter=5))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.theta, b.theta, rtol=1e-9, atol=1e-12)


def test_denoising_autoencoders_give_features_of_clean_data():
    nets = [
        MLP([Input(n, noise=MaskingNoise(0.3)), Dense(k, "tanh"), Dense(n, "identity", tied_to=1)], seed=0)
        for n, k in pairwise(SIZES)
    ]
    mlpkit.pretrain(nets, X, mlpkit.LBFGS(max_iter=3))
    alone = MLP(nets[1].layers, seed=0)
    features = nets[0].activations(X)[0]
    alone.fit(features, features, mlpkit.LBFGS(max_iter=3))
    np.testing.assert_array_equal(alone.theta, nets[1].theta)


def test_fine_tuning_improves_what_the_features_gave(trained):
    encoder = mlpkit.stack([mlpkit.encoder(net) for net in trained[0]])
    head = softmax(weight_decay=1e-4)
    before = head.fit(encoder.predict(X), LABELS, mlpkit.LBFGS(max_iter=200))
    net = mlpkit.stack([encoder, head])
    assert net.evaluate(X, LABELS)["data"] == pytest.approx(before.terms["data"], rel=1e-12)
    after = net.fit(X, LABELS, mlpkit.LBFGS(max_iter=200))
    assert after.cost < 0.5 * before.cost
    right = [np.mean(labels == LABELS) for labels in (head.predict_labels(encoder.predict(X)), net.predict_labels(X))]
    assert right[1] > max(right[0], 0.95)
    assert np.any(net.weights[0] != encoder.weights[0])


class Interrupted:
    """An optimiser that stops as if by Ctrl-C."""

    def minimize(self, evaluate, theta, report):
        evaluate(theta)
        return theta, "interrupted"


def test_an_interrupt_leaves_out_the_autoencoders_that_follow():
    assert len(mlpkit.pretrain(autoencoders(), X, Interrupted())) == 1


@pytest.mark.parametrize(
    ("nets", "message"),
    [
        (lambda a, b: [], "autoencoders must not be empty"),
        (lambda a, b: a, "autoencoders must be a list; found MLP"),
        (lambda a, b: [a, Dense(7, "tanh")], r"autoencoders\[1\] must be an MLP; found Dense"),
        (lambda a, b: [a, softmax()], r"autoencoders\[1\] must have as many outputs as inputs.*\(5, 3\)"),
        (lambda a, b: [a, MLP([Input(7), Dense(7, "tanh")], seed=0)], r"autoencoders\[1\] must be an autoencoder"),
        (lambda a, b: [b, a], r"autoencoders\[1\] must have as many inputs as autoencoders\[0\] has features, 5.*12"),
        (lambda a, b: [a, b, a], r"autoencoders\[2\] must be another network than those before it"),
    ],
)
def test_autoencoders_that_do_not_fit_are_named_before_anything_is_trained(nets, message):
    pair = autoencoders()
    before = [net.theta.copy() for net in pair]
    with pytest.raises(InvalidArgumentError, match=message):
        mlpkit.pretrain(nets(*pair), X)
    for net, theta in zip(pair, before, strict=True):
        np.testing.assert_array_equal(net.theta, theta)
