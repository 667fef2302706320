"""The sparse autoencoder is a configuration; its maximal inputs are the notes' formula."""

from __future__ import annotations

import numpy as np
import pytest

from mlpkit import MLP, Dense, Input, KLSparsity, maximal_inputs, sparse_autoencoder
from mlpkit.errors import InvalidArgumentError


def test_sparse_autoencoder_is_that_mlp():
    ours = sparse_autoencoder(n_inputs=9, n_hidden=4, rho=0.02, beta=2.0, weight_decay=1e-3, seed=7, dtype="float32")
    spelt_out = MLP(
        [
            Input(9),
            Dense(4, "sigmoid", sparsity=KLSparsity(rho=0.02, beta=2.0)),
            Dense(9, "sigmoid"),
        ],
        loss="squared_error",
        weight_decay=1e-3,
        dtype="float32",
        seed=7,
    )
    assert ours.config() == spelt_out.config()
    np.testing.assert_array_equal(ours.theta, spelt_out.theta)


def test_the_defaults_are_the_exercises():
    net = sparse_autoencoder()
    assert net.sizes == (64, 25, 64)
    assert net.layers[1].sparsity == KLSparsity(rho=0.01, beta=3.0)
    assert net.layers[2].sparsity is None
    assert net.weight_decay == 1e-4
    assert net.dtype == np.float64


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"n_inputs": 0}, "n_inputs"),
        ({"n_hidden": 2.5}, "n_hidden"),
        ({"rho": 0.0}, "rho"),
        ({"rho": 1.0}, "rho"),
        ({"beta": -1.0}, "beta"),
        ({"weight_decay": -1e-4}, "weight_decay"),
        ({"dtype": "float16"}, "dtype"),
    ],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(InvalidArgumentError, match=name):
        sparse_autoencoder(**arguments)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_maximal_inputs_are_the_notes_formula(dtype):
    net = sparse_autoencoder(n_inputs=16, n_hidden=5, seed=1, dtype=dtype)
    W = net.weights[0].astype(np.float64)
    X = maximal_inputs(net, layer=2)
    assert X.shape == (5, 16)
    assert X.dtype == dtype
    expected = W / np.sqrt((W**2).sum(axis=1))[:, np.newaxis]
    np.testing.assert_allclose(X, expected, rtol=1e-12 if dtype == "float64" else 1e-6)


def test_no_other_input_of_norm_one_activates_a_unit_more():
    rng = np.random.default_rng(0)
    net = sparse_autoencoder(n_inputs=6, n_hidden=3, seed=2)
    best = np.diag(net.activations(maximal_inputs(net))[0])
    others = rng.normal(size=(500, 6))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    assert (net.activations(others)[0] <= best).all()


def test_a_zero_row_gives_zeros_and_extreme_rows_have_norm_one():
    net = sparse_autoencoder(n_inputs=3, n_hidden=4)
    net.weights[0][:] = [[0, 0, 0], [1e-200, 0, 1e-200], [1e200, -1e200, 0], [5e-324, 0, 0]]
    X = maximal_inputs(net)
    np.testing.assert_array_equal(X[0], [0, 0, 0])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(X[1:], [[half, 0, half], [half, -half, 0], [1, 0, 0]], rtol=1e-15)
    assert not np.shares_memory(X, net.theta)


@pytest.mark.parametrize("layer", [1, 3, 0, -1, 2.0, True])
def test_other_layers_are_an_error_with_the_reason(layer):
    with pytest.raises(InvalidArgumentError, match="layer must be"):
        maximal_inputs(sparse_autoencoder(n_inputs=3, n_hidden=2), layer=layer)
    if layer == 3:
        with pytest.raises(InvalidArgumentError, match="first layer after the input"):
            maximal_inputs(sparse_autoencoder(n_inputs=3, n_hidden=2), layer=layer)


def test_weights_that_are_not_finite_are_an_error():
    net = sparse_autoencoder(n_inputs=3, n_hidden=2)
    net.weights[0][1, 1] = np.nan
    with pytest.raises(InvalidArgumentError, match=r"W\^\(1\)"):
        maximal_inputs(net)
