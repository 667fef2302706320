"""PCA and ZCA whitening: identity covariance, symmetry, exact inverses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpkit.errors import InvalidArgumentError
from mlpkit.whitening import PCAWhitening, ZCAWhitening

BOTH = pytest.mark.parametrize("kind", [PCAWhitening, ZCAWhitening])


def correlated(seed, n, m=200):
    """Examples with variances between 0.01 and 100 along random axes, and a mean."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return rng.standard_normal((m, n)) * 10.0 ** rng.uniform(-1, 1, n) @ axes + rng.uniform(-5, 5, n)


def covariance(X):
    return (X - X.mean(axis=0)).T @ (X - X.mean(axis=0)) / len(X)


@BOTH
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12))
def test_whitened_examples_have_identity_covariance_and_mean_0(kind, seed, n):
    X = correlated(seed, n)
    white = kind(epsilon=0).fit(X).transform(X)
    # Condition numbers up to 1e4 times eps, with room.
    np.testing.assert_allclose(white.mean(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose(covariance(white), np.eye(n), atol=1e-9)


@BOTH
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), epsilon=st.sampled_from([0.0, 1e-5, 0.1]))
def test_inverse_is_exact_with_all_components(kind, seed, n, epsilon):
    X = correlated(seed, n)
    whitening = kind(epsilon).fit(X)
    np.testing.assert_allclose(whitening.inverse_transform(whitening.transform(X)), X, atol=1e-10)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), epsilon=st.floats(0, 1))
def test_zca_is_symmetric_and_its_transform_is_its_matrix(seed, n, epsilon):
    X = correlated(seed, n)
    zca = ZCAWhitening(epsilon).fit(X)
    W = zca.matrix
    np.testing.assert_allclose(W, W.T, atol=1e-12)
    assert (np.linalg.eigvalsh(W) > 0.0).all()
    np.testing.assert_allclose(zca.transform(X), (X - X.mean(axis=0)) @ W.T, atol=1e-10)


def test_epsilon_regularises_as_the_formula_says():
    X = correlated(1, 5)
    pca = PCAWhitening(epsilon=0.3).fit(X)
    variances = np.linalg.eigvalsh(covariance(X))[::-1]
    np.testing.assert_allclose(pca.variances_, variances, rtol=1e-10)
    white = pca.transform(X)
    np.testing.assert_allclose(covariance(white), np.diag(variances / (variances + 0.3)), atol=1e-12)


def test_components_are_orthonormal_ordered_and_of_fixed_sign():
    pca = PCAWhitening().fit(correlated(2, 6))
    np.testing.assert_allclose(pca.components_ @ pca.components_.T, np.eye(6), atol=1e-12)
    assert (np.diff(pca.variances_) <= 0.0).all()
    largest = np.abs(pca.components_).argmax(axis=1)
    assert (pca.components_[np.arange(6), largest] > 0.0).all()


def test_fewer_components_reconstruct_the_nearest_examples():
    X = correlated(3, 6)
    pca = PCAWhitening(epsilon=0, n_components=2).fit(X)
    white = pca.transform(X)
    assert white.shape == (200, 2)
    u, s, vt = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    nearest = (u[:, :2] * s[:2]) @ vt[:2] + X.mean(axis=0)
    np.testing.assert_allclose(pca.inverse_transform(white), nearest, atol=1e-10)
    zca = ZCAWhitening(epsilon=0, n_components=2).fit(X)
    np.testing.assert_allclose(zca.inverse_transform(zca.transform(X)), nearest, atol=1e-10)


@BOTH
def test_singular_covariance_needs_epsilon_or_fewer_components(kind):
    X = correlated(4, 5)
    X -= X.mean(axis=1, keepdims=True)
    with pytest.raises(InvalidArgumentError, match=r"n_components at most 4.*rank 4"):
        kind(epsilon=0).fit(X)
    assert np.isfinite(kind(epsilon=1e-5).fit(X).transform(X)).all()
    white = PCAWhitening(epsilon=0, n_components=4).fit(X).transform(X)
    np.testing.assert_allclose(covariance(white), np.eye(4), atol=1e-9)


@BOTH
def test_examples_that_are_all_alike_need_epsilon(kind):
    X = np.full((7, 3), 0.1)
    assert (X.mean(axis=0) != 0.1).any()
    with pytest.raises(InvalidArgumentError, match="epsilon must be positive for examples that are all alike"):
        kind(epsilon=0).fit(X)
    np.testing.assert_array_equal(kind().fit(X).transform(X), 0.0)


@BOTH
def test_bad_arguments_are_named(kind):
    X = correlated(5, 3)
    with pytest.raises(InvalidArgumentError, match="fit"):
        kind().transform(X)
    with pytest.raises(InvalidArgumentError, match="fit"):
        kind().inverse_transform(X)
    with pytest.raises(InvalidArgumentError, match="epsilon"):
        kind(epsilon=-1.0)
    with pytest.raises(InvalidArgumentError, match="n_components"):
        kind(n_components=0)
    with pytest.raises(InvalidArgumentError, match="n_components must be at most X's 3"):
        kind(n_components=4).fit(X)
    with pytest.raises(InvalidArgumentError, match="3 columns"):
        kind().fit(X).transform(X[:, :2])
    with pytest.raises(InvalidArgumentError, match="3 columns"):
        kind().fit(X).inverse_transform(X[:, :2])
    with pytest.raises(InvalidArgumentError, match="X must be finite"):
        kind().fit([[0.0, np.nan]])
    with pytest.raises(InvalidArgumentError, match="finite squares"):
        kind().fit([[0.0, 1e300], [1.0, -1e300]])


def test_matrix_needs_a_fit_and_repr_says_what_it_is():
    with pytest.raises(InvalidArgumentError, match="fit"):
        _ = ZCAWhitening().matrix
    assert repr(PCAWhitening(0.1, n_components=3)) == "PCAWhitening(epsilon=0.1, n_components=3)"
