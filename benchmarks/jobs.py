"""The jobs that mlpkit and its peers are timed on: a network, its data and a theta, the same for everybody.

Data and parameters are drawn from a fixed seed in each process, so that nothing but a name travels between processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["EVALUATIONS", "JOBS", "PREDICTIONS", "Job"]


@dataclass(frozen=True)
class Job:
    """A network at a theta, with data: evaluate J and its gradient, or predict.

    Attributes
    ----------
    sizes : tuple of int
        Units of each layer, the input layer first.
    hidden, output : str
        Activations by mlpkit's names.
    loss : str
        ``"squared_error"`` or ``"cross_entropy"``.
    m : int
        Number of examples.
    weight_decay, rho, beta : float
        The penalties; beta = 0 leaves the hidden layer without sparsity.
    predict : bool
        Whether the job is `predict` instead of J and its gradient.
    """

    sizes: tuple[int, ...]
    hidden: str
    output: str
    loss: str
    m: int
    weight_decay: float = 1e-4
    rho: float = 0.05
    beta: float = 0.0
    predict: bool = False
    dtype: str = field(default="float64", compare=False)

    @property
    def autoencoder(self) -> bool:
        """Whether targets are the inputs."""
        return self.loss == "squared_error" and self.sizes[0] == self.sizes[-1]

    @property
    def flops(self) -> int:
        """Multiplications and additions in matrix products: 10 m n h for an autoencoder's cost and gradient."""
        products = [2 * self.m * a * b for a, b in zip(self.sizes, self.sizes[1:], strict=False)]
        if self.predict:
            return sum(products)
        return 3 * sum(products) - products[0]  # forward, weights' gradient, and deltas, which the input has none of

    @cached_property
    def X(self) -> NDArray[np.floating]:
        """Inputs, shape (m, s_1), in [0.1, 0.9]."""
        return np.random.default_rng(1).uniform(0.1, 0.9, (self.m, self.sizes[0])).astype(self.dtype)

    @cached_property
    def Y(self) -> NDArray[np.generic]:
        """Targets: the inputs, class labels, or a smooth function of the inputs."""
        if self.autoencoder:
            return self.X
        if self.loss == "cross_entropy":
            return np.random.default_rng(2).integers(0, self.sizes[-1], self.m)
        direction = np.random.default_rng(3).standard_normal((self.sizes[0], self.sizes[-1]))
        return np.sin(self.X @ direction).astype(self.dtype)

    @cached_property
    def parameters(self) -> list[tuple[NDArray[np.floating], NDArray[np.floating]]]:
        """(W, b) of each layer, W of shape (s_{l+1}, s_l)."""
        rng = np.random.default_rng(0)
        layers = []
        for n_in, n_out in zip(self.sizes, self.sizes[1:], strict=False):
            limit = np.sqrt(6 / (n_in + n_out + 1))
            W = rng.uniform(-limit, limit, (n_out, n_in))
            layers.append((W.astype(self.dtype), rng.uniform(-0.1, 0.1, n_out).astype(self.dtype)))
        return layers

    @property
    def theta(self) -> NDArray[np.floating]:
        """[W^(1) row-major, b^(1), W^(2), ...]."""
        return np.concatenate([part.ravel() for layer in self.parameters for part in layer])


EVALUATIONS = {
    "sparse autoencoder 64-25-64": Job((64, 25, 64), "sigmoid", "sigmoid", "squared_error", 10_000, beta=3.0),
    "sparse autoencoder 784-196-784": Job((784, 196, 784), "sigmoid", "sigmoid", "squared_error", 10_000, beta=3.0),
    "classifier 784-500-500-10": Job((784, 500, 500, 10), "relu", "softmax", "cross_entropy", 10_000),
    "regression 16-32-32-1": Job((16, 32, 32, 1), "tanh", "identity", "squared_error", 100_000),
}
PREDICTIONS = {
    "predict 784-500-500-10": Job((784, 500, 500, 10), "relu", "softmax", "cross_entropy", 10_000, predict=True),
    "predict 64-25-64, one row": Job((64, 25, 64), "sigmoid", "sigmoid", "squared_error", 1, predict=True),
}
JOBS = EVALUATIONS | PREDICTIONS
