"""J and its gradient from sums over a data set, wherever the data are.

Two sums are needed: of w_i a_ij over the examples, for the units j whose mean activation is penalised; and then, with
the slopes of those penalties known, of the losses and of the gradients. Penalties, weight decay and the division by the
sum of weights come in here, once, whether the data are in memory, in a file, or spread over machines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.checks import check_out, real_array
from mlpkit.errors import InvalidArgumentError
from mlpkit.evaluation import Evaluation
from mlpkit.kernels.jit import Exclusive
from mlpkit.mlp import MLP
from mlpkit.plan import Plan

__all__ = ["BaseObjective"]


class BaseObjective:
    """What every objective over all examples has in common; `Objective` is the one for a single process.

    Parameters
    ----------
    net : MLP
        Read now, and never changed.
    plan : Plan
        Its plan, for the number of examples, with a loss.
    n_examples : int
        Examples of a weight that is not 0.
    total_weight, largest_weight : float
        Of all weights.
    """

    def __init__(self, net: MLP, plan: Plan, n_examples: int, total_weight: float, largest_weight: float) -> None:
        dtype = net.dtype
        self.net = net
        self.n_examples = n_examples
        self._plan = plan
        self._total_weight = total_weight
        self._scale = dtype.type(1.0 / total_weight)
        # A dead unit's slope rho / tiny would be infinite in float32, and infinity times its f' = 0 is NaN.
        self._steepest = np.finfo(dtype).max / (16.0 * largest_weight)
        self._decay = np.array(net.decays, dtype)
        self._strengths = np.array([layer.l1_strength for layer in plan.dense], dtype)
        self._penalized = [(plan.units(i), plan.dense[i]) for i in plan.sparse]
        self._slopes = np.zeros(plan.n_units, dtype)
        self._guard()

    def _guard(self) -> None:
        self._exclusive = Exclusive("an objective cannot be evaluated inside its own evaluation (by a signal handler?)")

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_exclusive"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._guard()

    def _sum_activations(self, theta: NDArray[Any]) -> NDArray[np.float64]:
        """Return sum_i w_i a_ij for each unit whose mean is penalised."""
        raise NotImplementedError

    def _sum_gradients(self, theta: NDArray[Any], gradient: NDArray[Any]) -> tuple[float, float, float]:
        """Fill the gradient of J; return the sums of losses and of L1 terms, and the weight decay term."""
        raise NotImplementedError

    @property
    def value_and_gradient(self) -> Evaluation:
        """The function theta -> (J, gradient), to call or to hand to an optimiser; see `Evaluation`.

        Examples
        --------
        >>> from mlpkit import MLP, Dense, Input, Objective
        >>> net = MLP([Input(1), Dense(1, "identity", init=0.0)])
        >>> Objective(net, [[1.0]], [[2.0]]).value_and_gradient(net.theta)[0]
        2.0
        """
        return Evaluation(self)

    def terms(self, theta: ArrayLike) -> dict[str, float]:
        """Return J's terms at theta: ``data``, ``weight_decay`` and ``sparsity``, which sum to J.

        Examples
        --------
        >>> from mlpkit import MLP, Dense, Input, Objective
        >>> net = MLP([Input(1), Dense(1, "identity", init=1.0)], weight_decay=0.5)
        >>> Objective(net, [[1.0]], [[1.0]]).terms(net.theta)
        {'data': 0.0, 'weight_decay': 0.25, 'sparsity': 0.0}
        """
        return self.terms_and_gradient(theta)[0]

    def terms_and_gradient(
        self, theta: ArrayLike, out: NDArray[Any] | None = None
    ) -> tuple[dict[str, float], NDArray[Any]]:
        """Return J's terms and its gradient; otherwise as `value_and_gradient`.

        Examples
        --------
        >>> from mlpkit import MLP, Dense, Input, Objective
        >>> net = MLP([Input(1), Dense(1, "identity", init=0.0)])
        >>> Objective(net, [[1.0]], [[2.0]]).terms_and_gradient(net.theta)
        ({'data': 2.0, 'weight_decay': 0.0, 'sparsity': 0.0}, array([-2., -2.]))
        """
        point = self._check_theta(theta)
        gradient = check_out(out, point.shape, point.dtype)
        if np.may_share_memory(point, gradient):  # theta is read again after the gradient's first numbers are written
            point = point.copy()
        with self._exclusive:
            return self._evaluate(point, gradient), gradient

    def rho_hat(self, theta: ArrayLike) -> list[NDArray[np.float64]]:
        """Return the mean activation of each unit: a float64 array for each layer with a penalty on it.

        It is mapped to [0, 1] where the activation's range is bounded.

        Examples
        --------
        >>> import mlpkit
        >>> net = mlpkit.sparse_autoencoder(n_inputs=2, n_hidden=3)
        >>> mlpkit.Objective(net, [[0.1, 0.2]], [[0.1, 0.2]]).rho_hat(net.theta)[0].shape
        (3,)
        """
        point = self._check_theta(theta)
        if not self._penalized:
            return []
        with self._exclusive:
            return self._mean_activations(point)

    def _check_theta(self, theta: ArrayLike, name: str = "theta") -> NDArray[Any]:
        point = real_array(theta, name)
        if point.shape != (self._plan.n_parameters,):
            raise InvalidArgumentError(
                f"{name} must have shape ({self._plan.n_parameters},); found shape {point.shape}"
            )
        with np.errstate(over="ignore"):
            point = np.ascontiguousarray(point, dtype=self.net.dtype)
        return point if point.flags.writeable else point.copy()  # kernels would be compiled anew for a read-only one

    def _mean_activations(self, theta: NDArray[Any]) -> list[NDArray[np.float64]]:
        """Return rho_hat of the layers that want it."""
        means = self._sum_activations(theta) / self._total_weight
        return [layer.to_unit(means[units]) for units, layer in self._penalized]

    def _set_slopes(self, theta: NDArray[Any]) -> float:
        """Find the derivative of the penalties on each unit's mean activation; return what they add to J."""
        sparsity = 0.0
        if self._penalized:
            means = self._mean_activations(theta)
            for (units, layer), rho_hat in zip(self._penalized, means, strict=True):
                slope = np.zeros(rho_hat.size)
                for penalty in layer.mean_penalties:
                    sparsity += penalty.value(rho_hat)
                    slope += penalty.derivative(rho_hat) * layer.unit_slope
                self._slopes[units] = np.minimum(np.maximum(slope, -self._steepest), self._steepest)
        return sparsity

    def _evaluate(self, theta: NDArray[Any], gradient: NDArray[Any]) -> dict[str, float]:
        """Fill `gradient` and return the terms of J."""
        sparsity = self._set_slopes(theta)
        loss, l1, decay = self._sum_gradients(theta, gradient)
        data, sparsity = loss / self._total_weight, sparsity + l1 / self._total_weight
        return {"data": data, "weight_decay": decay, "sparsity": sparsity}
