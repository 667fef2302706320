"""What minimises J: each optimiser is a small immutable record with one method, `minimize`.

An optimiser knows nothing of networks. It is given a function that returns J and its gradient, a
starting theta, and a function to call after each accepted iteration; it returns the final theta
and, in words, why it stopped. Whatever has such a `minimize` can be handed to `MLP.fit`; see
`Optimizer`. One that can also stop and go on to the bit is a `Resumable`, as all our own are, but not
SciPy's in `mlpkit.newton`.

NaN or infinity is treated alike by all of them. At the start it is an error. On a *trial* of a line
search it is a rejected step: the search goes on with a shorter one. At an *accepted* point it ends
the minimisation, and the last finite theta is kept.

Each optimiser has a file of its own; this one gathers them.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol, runtime_checkable

from mlpkit.conjugate_gradient import ConjugateGradient
from mlpkit.descent import Evaluate, Report, Save, Snapshot, State, Vector
from mlpkit.gradient_descent import GradientDescent
from mlpkit.lbfgs import LBFGS
from mlpkit.newton import NewtonCG, TrustNCG

__all__ = [
    "LBFGS",
    "ConjugateGradient",
    "Evaluate",
    "GradientDescent",
    "NewtonCG",
    "Optimizer",
    "Report",
    "Resumable",
    "Save",
    "Snapshot",
    "State",
    "TrustNCG",
    "Vector",
    "is_resumable",
]


@runtime_checkable
class Optimizer(Protocol):
    """What `MLP.fit` asks of an optimiser.

    Examples
    --------
    >>> isinstance(LBFGS(), Optimizer)
    True
    """

    def minimize(self, evaluate: Evaluate, theta: Vector, report: Report) -> tuple[Vector, str]:
        """Minimise J from `theta` and return the final theta and the reason for stopping, in words.

        Parameters
        ----------
        evaluate : callable
            theta -> (J, gradient), a float and a fresh float64 array. That of `MLP.fit` also has a method
            ``hessian_vector_product(theta, v)``, which returns the Hessian of J at `theta` times `v` in float64, and a
            method ``first_failure(theta)``, which says in words what is infinite or NaN first there, if anything is.
        theta : ndarray of float64, shape (n,)
            Where to start; it is not changed.
        report : callable
            To be called as ``report(theta, J, gradient)`` after each accepted iteration, and for no
            other point. An exception that it raises ends the minimisation and must be let through.
        """
        ...


class Resumable(Optimizer, Protocol):
    """An optimiser that goes on from the state it was in after any iteration, to the bit; see `is_resumable`.

    Examples
    --------
    A run of ten iterations, and one that goes on from the fourth of them:

    >>> import numpy as np
    >>> evaluate = lambda theta: (float((theta**4).sum()), 4 * theta**3)
    >>> start, optimizer, snapshots = np.array([1.0, 2.0]), LBFGS(max_iter=10), []
    >>> whole, _ = optimizer.minimize(evaluate, start, lambda *point: None, save=snapshots.append)
    >>> state = snapshots[3]()
    >>> state["optimizer"], state["iteration"]
    ('LBFGS', 4)
    >>> rest, _ = optimizer.minimize(evaluate, start, lambda *point: None, state=state)
    >>> np.array_equal(rest, whole)
    True
    """

    def minimize(
        self,
        evaluate: Evaluate,
        theta: Vector,
        report: Report,
        *,
        state: State | None = None,
        save: Save | None = None,
    ) -> tuple[Vector, str]:
        """Minimise J from `theta`, or go on from `state`.

        Parameters
        ----------
        evaluate, theta, report
            As for `Optimizer`. Where there is a `state`, it says where to start, and only the length of `theta`
            matters; J is not evaluated there again, nor is that point reported.
        state : mapping, optional
            What a snapshot returned: names to float64 arrays, integers and strings, so that a file can hold them. The
            iterations that follow, and the reason for stopping, are those of the run that it was taken from, if J and
            the optimiser's settings are the same. Iterations count from that run's start, `max_iter` too.
        save : callable, optional
            To be called as ``save(snapshot)`` after each accepted iteration, just before its report. ``snapshot()``
            returns the state after that iteration, at whatever time it is called; until then it costs nothing, and
            holds on to the vectors that it needs.

        Raises
        ------
        InvalidArgumentError
            If `state` is not one of this optimiser's, or does not fit `theta`.
        """
        ...


def is_resumable(optimizer: Any) -> bool:
    """Say whether the ``minimize`` of an optimiser takes ``state`` and ``save``, as that of a `Resumable` does.

    Examples
    --------
    >>> is_resumable(LBFGS())
    True
    """
    return {"state", "save"} <= set(inspect.signature(optimizer.minimize).parameters)
