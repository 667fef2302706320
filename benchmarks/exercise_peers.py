"""Cost and gradient of the CS294A sparse autoencoder by other libraries, as functions of theta to hand to SciPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["jax_objective", "torch_objective"]

Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]


def _cost(
    theta: Any, X: Any, library: Any, sizes: tuple[int, int], weight_decay: float, rho: float, beta: float
) -> Any:
    """Return J by functions that `library` (jax.numpy or torch) has under the names below."""
    n, h = sizes
    W1, b1 = theta[: h * n].reshape(h, n), theta[h * n : h * n + h]
    W2, b2 = theta[h * n + h : 2 * h * n + h].reshape(n, h), theta[2 * h * n + h :]
    a2 = library.sigmoid(X @ W1.T + b1)
    a3 = library.sigmoid(a2 @ W2.T + b2)
    rho_hat = a2.mean(0)
    kl = rho * library.log(rho / rho_hat) + (1 - rho) * library.log((1 - rho) / (1 - rho_hat))
    decay = 0.5 * weight_decay * (library.square(W1).sum() + library.square(W2).sum())
    return 0.5 * library.square(a3 - X).sum() / X.shape[0] + decay + beta * kl.sum()


def jax_objective(X: np.ndarray, *arguments: Any) -> Objective:
    """jit(value_and_grad) in float64."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp

    class Library:
        sigmoid, log, square = staticmethod(jax.nn.sigmoid), staticmethod(jnp.log), staticmethod(jnp.square)

    data = jnp.asarray(X)
    compiled = jax.jit(jax.value_and_grad(lambda theta, X: _cost(theta, X, Library, *arguments)))

    def value_and_gradient(theta: np.ndarray) -> tuple[float, np.ndarray]:
        J, gradient = compiled(theta, data)
        return float(J), np.asarray(gradient)

    return value_and_gradient


def torch_objective(X: np.ndarray, *arguments: Any) -> Objective:
    """Autograd."""
    import torch

    data = torch.from_numpy(X)

    def value_and_gradient(theta: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(theta.copy()).requires_grad_(True)
        J = _cost(point, data, torch, *arguments)
        (gradient,) = torch.autograd.grad(J, point)
        return float(J.detach()), gradient.numpy()

    return value_and_gradient
