"""Whitening from the examples' covariance: uncorrelated components, all of the same variance.

For examples of any kind, where `mlpkit.preprocessing.whiten_images` is for whole images. Whitening
takes away what a network would otherwise learn first, the correlation between neighbouring inputs,
and leaves the structure beyond it (section 4 of the notes trains on whitened images). PCA whitening
gives one column for each principal component; ZCA whitening rotates these back, so that a patch
still looks like itself.

References
----------
A. J. Bell and T. J. Sejnowski, "The 'independent components' of natural scenes are edge filters",
Vision Research 37 (1997), 3327-3338: ZCA.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.checks import check_integer, check_matrix, check_number
from mlpkit.errors import InvalidArgumentError

__all__ = ["PCAWhitening", "ZCAWhitening"]


class _Whitening:
    """What PCA and ZCA whitening share: the eigenvectors of the examples' covariance."""

    mean_: NDArray[np.float64]
    components_: NDArray[np.float64]
    variances_: NDArray[np.float64]

    def __init__(self, epsilon: float = 1e-5, n_components: int | None = None) -> None:
        self.epsilon = check_number(epsilon, "epsilon", low=0.0)
        self.n_components = None if n_components is None else check_integer(n_components, "n_components", low=1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(epsilon={self.epsilon!r}, n_components={self.n_components!r})"

    def _fit(self, X: ArrayLike) -> None:
        matrix = check_matrix(X, "X")
        m, n = matrix.shape
        k = n if self.n_components is None else self.n_components
        if k > n:
            raise InvalidArgumentError(f"n_components must be at most X's {n} columns; found {k}")
        with np.errstate(over="ignore", invalid="ignore"):
            # A constant column is its own mean: what rounding leaves of it is no variance.
            constant = (matrix == matrix[0]).all(axis=0)
            mean = np.where(constant, matrix[0], matrix.mean(axis=0))
            centred = matrix - mean
            covariance = centred.T @ centred / m
        if not np.isfinite(covariance).all():
            raise InvalidArgumentError(f"X must have finite squares; found values as large as {np.abs(matrix).max():g}")
        variances, vectors = np.linalg.eigh(covariance)
        variances, vectors = np.maximum(variances[::-1], 0.0), vectors[:, ::-1]
        # Rounding leaves eigenvalues of about n*eps times the largest where the truth is zero.
        rank = int(np.sum(variances > n * np.finfo(np.float64).eps * variances[0]))
        if self.epsilon == 0.0 and rank == 0:
            raise InvalidArgumentError("epsilon must be positive for examples that are all alike; found epsilon=0")
        if self.epsilon == 0.0 and k > rank:
            raise InvalidArgumentError(
                f"epsilon must be positive, or n_components at most {rank}, for examples whose "
                f"covariance has rank {rank}; found epsilon=0 and {k} components (removing each "
                "patch's mean, for instance, takes away one)"
            )
        # An eigenvector's sign is arbitrary: the largest entry positive makes it reproducible.
        largest = np.abs(vectors).argmax(axis=0)
        signs = np.where(vectors[largest, np.arange(n)] < 0.0, -1.0, 1.0)
        self.mean_ = mean
        self.components_ = np.ascontiguousarray((vectors * signs).T[:k])
        self.variances_ = variances[:k].copy()
        self._scales = np.sqrt(self.variances_ + self.epsilon)

    def _require_fit(self) -> None:
        if not hasattr(self, "mean_"):
            raise InvalidArgumentError(f"{type(self).__name__} must be fitted first: call fit(X)")


class PCAWhitening(_Whitening):
    """Rotate examples onto their principal axes and scale each to unit variance.

    With the eigenvectors u_k and eigenvalues v_k, largest first, of the covariance
    C = (1/m) sum_i (x_i - mean)(x_i - mean)^T, component k of an example becomes
    u_k^T (x - mean) / sqrt(v_k + epsilon): uncorrelated components, of variance 1 at epsilon = 0.

    Parameters
    ----------
    epsilon : float, default 1e-5
        Added to every eigenvalue, in the units of the data's variance: it keeps directions that are
        all noise from being blown up. 0 whitens exactly, and is refused where the covariance is
        singular.
    n_components : int, optional
        Keep only the components of largest variance. By default all.

    Attributes
    ----------
    mean_ : ndarray, shape (n,)
        The examples' mean, after `fit`.
    components_ : ndarray, shape (k, n)
        The eigenvectors, one a row, each with its largest entry positive.
    variances_ : ndarray, shape (k,)
        Their eigenvalues, largest first.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).standard_normal((500, 3)).cumsum(axis=1)
    >>> white = PCAWhitening(epsilon=0).fit(X).transform(X)
    >>> np.allclose(np.cov(white.T, bias=True), np.eye(3))
    True
    """

    def fit(self, X: ArrayLike) -> PCAWhitening:
        """Learn mean, axes and variances from examples, one a row; returns the object itself.

        Parameters
        ----------
        X : array-like, shape (m, n)

        Raises
        ------
        InvalidArgumentError
            If `X` is not a finite two-dimensional array, has fewer columns than `n_components`, or
            a singular covariance at epsilon = 0.
        """
        self._fit(X)
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Whiten examples of shape (m, n); returns shape (m, k), float64."""
        self._require_fit()
        centred = check_matrix(X, "X", n_columns=self.mean_.size) - self.mean_
        return centred @ self.components_.T / self._scales

    def inverse_transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Undo `transform`, exactly (to rounding) if all components are kept: (m, k) to (m, n)."""
        self._require_fit()
        matrix = check_matrix(X, "X", n_columns=self.variances_.size)
        return matrix * self._scales @ self.components_ + self.mean_


class ZCAWhitening(_Whitening):
    """Whiten examples and rotate them back, so that whitened patches still look like patches.

    x becomes U diag(1 / sqrt(v_k + epsilon)) U^T (x - mean), U having the eigenvectors u_k of the
    covariance (see `PCAWhitening`) in its columns. Of all whitening maps it is the symmetric one,
    which changes the examples least.

    Parameters
    ----------
    epsilon : float, default 1e-5
        Added to every eigenvalue, in the units of the data's variance; 0 is refused where the
        covariance is singular.
    n_components : int, optional
        Keep only the components of largest variance; the others' part of an example is dropped. By
        default all.

    Attributes
    ----------
    mean_, components_, variances_ : ndarray
        As in `PCAWhitening`.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).standard_normal((500, 3)).cumsum(axis=1)
    >>> zca = ZCAWhitening(epsilon=0).fit(X)
    >>> np.allclose(zca.matrix, zca.matrix.T)
    True
    >>> np.allclose(zca.inverse_transform(zca.transform(X)), X)
    True
    """

    def fit(self, X: ArrayLike) -> ZCAWhitening:
        """Learn mean, axes and variances from examples, one a row; returns the object itself.

        Parameters
        ----------
        X : array-like, shape (m, n)

        Raises
        ------
        InvalidArgumentError
            If `X` is not a finite two-dimensional array, has fewer columns than `n_components`, or
            a singular covariance at epsilon = 0.
        """
        self._fit(X)
        return self

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The symmetric whitening matrix, shape (n, n)."""
        self._require_fit()
        return (self.components_.T / self._scales) @ self.components_

    def transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Whiten examples of shape (m, n); returns the same shape, float64."""
        self._require_fit()
        centred = check_matrix(X, "X", n_columns=self.mean_.size) - self.mean_
        return centred @ self.components_.T / self._scales @ self.components_

    def inverse_transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Undo `transform`, exactly (to rounding) if all components are kept: (m, n) to (m, n)."""
        self._require_fit()
        matrix = check_matrix(X, "X", n_columns=self.mean_.size)
        return matrix @ self.components_.T * self._scales @ self.components_ + self.mean_
