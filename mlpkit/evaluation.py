"""J and its gradient as what an optimiser calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike, NDArray

from mlpkit.kernels.jit import hold_blas_while_alive

if TYPE_CHECKING:
    from mlpkit.base_objective import BaseObjective

__all__ = ["Evaluation"]


class Evaluation:
    """J and its gradient as one callable: ``J, gradient = objective.value_and_gradient(theta)``.

    Between evaluations SciPy's optimisers call BLAS, whose idle threads would then spin on the cores that the next
    evaluation needs, and make it many times slower. So from its second call on, this callable holds BLAS to one thread
    for as long as it is alive. Handed to an optimiser, it lives until that returns; called once, it holds nothing.
    A function of your own around it is not seen through: wrap the optimiser's call in ``with mlpkit.blas_limited():``.

    Examples
    --------
    >>> from mlpkit import MLP, Dense, Input, Objective
    >>> net = MLP([Input(1), Dense(1, "identity", init=0.0)])
    >>> from scipy.optimize import minimize
    >>> minimize(Objective(net, [[0.0], [1.0]], [1.0, 3.0]).value_and_gradient, net.theta, jac=True).x.round(3)
    array([2., 1.])
    """

    def __init__(self, objective: BaseObjective) -> None:
        self._objective = objective
        self._n_calls = 0

    def __call__(self, theta: ArrayLike, out: NDArray[Any] | None = None) -> tuple[float, NDArray[Any]]:
        """Return J(theta) and its gradient, from the same sweeps over the data.

        Parameters
        ----------
        theta : array-like, shape (n_parameters,)
            Where to evaluate. Values that are not finite are allowed, since a line search may try them; what comes
            of them is what arithmetic makes of them.
        out : ndarray, optional
            Where to write the gradient; fresh if not given, as SciPy keeps what it gets.

        Returns
        -------
        J : float
        gradient : ndarray, shape (n_parameters,), the network's dtype

        Raises
        ------
        InvalidArgumentError
            If theta or out has the wrong shape or dtype.
        """
        self._n_calls += 1
        if self._n_calls == 2:
            hold_blas_while_alive(self)
        terms, gradient = self._objective.terms_and_gradient(theta, out)
        return sum(terms.values()), gradient
