"""The training loop: an optimiser minimises an objective, and every iteration is put on record.

`fit` is what `MLP.fit` calls. The network is given new parameters once, at the end; if anything
goes wrong on the way (an error, Ctrl-C) it is given the last parameters that an iteration accepted,
which are always finite.

The optimiser works in float64 whatever the network's dtype, so a float32 network loses nothing
between iterations but the rounding of each evaluation.

SciPy's and NumPy's BLAS is held to one thread from start to end: its idle threads would spin
between evaluations and take the cores from the engine's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.checks import check_flag, check_matrix
from mlpkit.data import fingerprint
from mlpkit.descent import norm
from mlpkit.errors import InvalidArgumentError, import_extra
from mlpkit.kernels.jit import blas_limited
from mlpkit.objective import Objective
from mlpkit.optimizers import LBFGS, Optimizer, Resumable, Snapshot, State, is_resumable
from mlpkit.row_files import open_rows
from mlpkit.system import versions

if TYPE_CHECKING:
    from mlpkit.mlp import MLP
    from mlpkit.weights import ClassWeight

__all__ = ["FitResult", "History", "Iteration", "fit"]

_SECONDS_BETWEEN_PROGRESS_LINES = 0.1


@dataclass(frozen=True)
class Iteration:
    """What is recorded after one accepted iteration.

    Attributes
    ----------
    iteration : int
        Counts from 1.
    cost : float
        J at the accepted theta: the sum of the three terms that follow.
    data, weight_decay, sparsity : float
        The terms of J.
    gradient_norm : float
        The Euclidean norm of the gradient of J.
    n_evaluations : int
        Evaluations of J and its gradient since the start of the fit.
    seconds : float
        Time since the start of the fit.
    iteration_seconds : float
        Time since the previous iteration, or the start of the fit for the first.
    n_hessian_products : int
        Products of the Hessian and a vector since the start of the fit.
    """

    iteration: int
    cost: float
    data: float
    weight_decay: float
    sparsity: float
    gradient_norm: float
    n_evaluations: int
    seconds: float
    iteration_seconds: float
    n_hessian_products: int = 0


class History(list[Iteration]):
    """The accepted iterations in order: a list of `Iteration` records.

    Examples
    --------
    >>> record = Iteration(1, 0.5, 0.4, 0.1, 0.0, 0.02, 2, 0.003, 0.003)
    >>> History([record]).to_dict()["cost"]
    [0.5]
    """

    def to_dict(self) -> dict[str, list[Any]]:
        """Return one list for each quantity, ready for JSON or ``pandas.DataFrame``."""
        return {f.name: [getattr(record, f.name) for record in self] for f in fields(Iteration)}


@dataclass(frozen=True)
class FitResult:
    """What `MLP.fit` returns.

    Attributes
    ----------
    cost : float
        J at the final parameters.
    terms : dict of str to float
        Its terms: ``"data"``, ``"weight_decay"`` and ``"sparsity"``.
    n_iterations, n_evaluations : int
        Accepted iterations; evaluations of J and its gradient.
    reason : str
        Why training stopped, in words.
    seconds : float
        How long it took.
    history : History
        One record for each accepted iteration.
    n_hessian_products : int
        Products of the Hessian and a vector.
    """

    cost: float
    terms: dict[str, float]
    n_iterations: int
    n_evaluations: int
    reason: str
    seconds: float
    history: History = field(repr=False)
    n_hessian_products: int = 0

    def __str__(self) -> str:
        products = f"{self.n_hessian_products} Hessian products, " if self.n_hessian_products else ""
        return (
            f"{self.reason}\n"
            f"J = {self.cost:.6g} ({_in_words(self.terms)})\n"
            f"{self.n_iterations} iterations, {self.n_evaluations} evaluations, {products}"
            f"{self.seconds:.2f} s"
        )

    def __repr__(self) -> str:
        return (
            f"FitResult(cost={self.cost:.6g}, n_iterations={self.n_iterations}, "
            f"n_evaluations={self.n_evaluations}, seconds={self.seconds:.3g}, "
            f"reason={self.reason!r})"
        )


def fit(
    net: MLP,
    X: ArrayLike,
    Y: ArrayLike,
    *,
    optimizer: Optimizer | None = None,
    sample_weight: ArrayLike | None = None,
    class_weight: ClassWeight | None = None,
    mask: ArrayLike | None = None,
    progress: bool = False,
    keep_activations: bool | None = None,
    memory_limit: int | str | None = None,
) -> FitResult:
    """Minimise the network's objective on the examples, starting from its present parameters.

    Parameters
    ----------
    net : MLP
        Its ``theta`` is where training starts, and receives the result.
    X : array-like, shape (m, s_1)
        Inputs, one example a row. Noise of the input layer is added to them here, once.
    Y : array-like, shape (m, s_nl) or (m,)
        Targets, or integer class labels for the cross-entropy loss. May be `X` itself.
    optimizer : Optimizer, optional
        `LBFGS` (its defaults if None), `ConjugateGradient`, `NewtonCG`, `TrustNCG`, `GradientDescent`, or any object
        with such a ``minimize``.
    sample_weight, class_weight, mask
        Weights of examples and classes, and which targets count; as `mlpkit.Objective` takes them.
    progress : bool
        Show a line that follows the training; needs the extra ``mlpkit[progress]``.
    keep_activations : bool, optional
        Keep hidden activations between the two passes (True) or compute them twice (False); None
        decides by memory. The result is the same to the bit.
    memory_limit : int or str, optional
        Bytes, or text such as ``"2GB"``; data that do not fit are read on every pass. As `mlpkit.Objective` takes it.

    Returns
    -------
    FitResult

    Raises
    ------
    InvalidArgumentError
        Naming the argument, what was expected and what was found; also if J or its gradient is not
        finite at the starting parameters.
    MissingExtraError
        If `progress` is True and rich is not installed.

    Examples
    --------
    >>> import mlpkit
    >>> X = [[0.2, 0.8], [0.8, 0.2], [0.6, 0.4]]
    >>> net = mlpkit.sparse_autoencoder(n_inputs=2, n_hidden=2, seed=0)
    >>> result = fit(net, X, X, optimizer=mlpkit.LBFGS(max_iter=5))
    >>> result.n_iterations, result.reason
    (5, 'max_iter reached')
    """
    start = time.perf_counter()
    chosen = LBFGS() if optimizer is None else optimizer
    if isinstance(chosen, type) or not isinstance(chosen, Optimizer):
        raise InvalidArgumentError(
            f"optimizer must be one such as LBFGS() or GradientDescent(alpha=0.1, max_iter=100); found {chosen!r}"
        )
    progress = check_flag(progress, "progress")
    with blas_limited(), _progress_line(progress, getattr(chosen, "max_iter", None)) as show:
        objective = Objective(
            net, _with_noise(net, X), Y, sample_weight, keep_activations, class_weight=class_weight, mask=mask,
            memory_limit=memory_limit,
        )  # fmt: skip
        recorder = _Recorder(objective, start, show)
        theta = np.array(net.theta, dtype=np.float64)
        try:
            final, reason = _minimize(chosen, recorder, theta)
            recorder.finish(final)
        except _DivergedError as error:
            reason = str(error)
        finally:
            if recorder.good is not None:
                net.theta = recorder.good.theta.astype(net.dtype)
    good = recorder.good
    assert good is not None
    net.provenance = {
        "optimizer": repr(chosen)[:1000],
        "iterations": len(recorder.history),
        "evaluations": recorder.n_evaluations,
        "reason": reason,
        "terms": good.terms,
        "seed": net.seed,
        "examples": objective.n_examples,
        "data": fingerprint(X, Y),
        "versions": versions(),
    }
    return FitResult(
        cost=good.cost,
        terms=good.terms,
        n_iterations=len(recorder.history),
        n_evaluations=recorder.n_evaluations,
        reason=reason,
        seconds=time.perf_counter() - start,
        history=recorder.history,
        n_hessian_products=recorder.n_hessian_products,
    )


def _minimize(
    optimizer: Optimizer, recorder: _Recorder, theta: NDArray[np.float64], state: State | None = None
) -> tuple[NDArray[np.float64], str]:
    """Run an optimiser, from a state of its own if there is one; after each iteration the recorder has a snapshot."""
    if is_resumable(optimizer):
        resumable = cast(Resumable, optimizer)
        return resumable.minimize(recorder, theta, recorder.report, state=state, save=recorder.save)
    return optimizer.minimize(recorder, theta, recorder.report)


def _with_noise(net: MLP, X: ArrayLike) -> ArrayLike:
    """Return the inputs as the network's noise leaves them, drawn from its seed but apart from what started theta."""
    noise = net.layers[0].noise  # type: ignore[union-attr]
    if noise is None:
        return X
    if open_rows(X, "X") is not None:
        raise InvalidArgumentError("X must be an array in memory where the input layer adds noise; found a file")
    clean = check_matrix(X, "X", n_columns=net.sizes[0], dtype=net.dtype)
    generator = np.random.default_rng(np.random.SeedSequence(net.seed, spawn_key=(1,)))
    return noise.apply(clean, generator)


class _DivergedError(Exception):
    """An optimiser accepted a point that is not finite; the message is the reason for stopping."""


@dataclass(frozen=True)
class _Evaluated:
    """A theta and what the objective said of it."""

    theta: NDArray[np.float64]
    cost: float
    terms: dict[str, float]


class _Recorder:
    """Stands between optimiser and objective: counts, times, keeps the last good parameters."""

    def __init__(self, objective: Objective, start: float, show: Any) -> None:
        self.history = History()
        self.n_evaluations = self.n_hessian_products = 0
        self.good: _Evaluated | None = None
        self.snapshot: Snapshot | None = None
        self._objective = objective
        self._dtype = objective.net.dtype
        self._start = start
        self._show = show
        self._latest: _Evaluated | None = None

    def __call__(self, theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return J and its gradient in float64, remembering the terms."""
        with np.errstate(over="ignore"):
            rounded = np.asarray(theta, dtype=self._dtype)
        self.n_evaluations += 1
        if not np.isfinite(rounded).all():  # finite in float64, but not in float32
            self._latest = _Evaluated(theta.copy(), np.nan, {})
            return np.nan, np.full(theta.shape, np.nan)
        terms, gradient = self._objective.terms_and_gradient(rounded)
        cost = sum(terms.values())
        self._latest = _Evaluated(theta.copy(), cost, terms)
        gradient64 = np.asarray(gradient, dtype=np.float64)
        if self.good is None and np.isfinite(cost) and np.isfinite(gradient64).all():
            self.good = self._latest  # the starting point
        return cost, gradient64

    def hessian_vector_product(self, theta: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the product of the Hessian of J and v in float64."""
        self.n_hessian_products += 1
        with np.errstate(over="ignore"):
            rounded = (np.asarray(array, dtype=self._dtype) for array in (theta, v))
            return np.asarray(self._objective.hessian_vector_product(*rounded), dtype=np.float64)

    def save(self, snapshot: Snapshot) -> None:
        """Keep what makes the optimiser's state after the iteration that is about to be reported."""
        self.snapshot = snapshot

    def report(self, theta: NDArray[np.float64], cost: float, gradient: NDArray[np.float64]) -> None:
        """Put an accepted iteration on record."""
        number = len(self.history) + 1
        if not (np.isfinite(cost) and np.isfinite(theta).all() and np.isfinite(gradient).all()):
            raise _DivergedError(f"diverged: J = {cost} after iteration {number}; the parameters before it are kept")
        self.good = self._at(theta)
        seconds = time.perf_counter() - self._start
        before = self.history[-1].seconds if self.history else 0.0
        record = Iteration(
            iteration=number,
            cost=float(cost),
            gradient_norm=norm(gradient),
            n_evaluations=self.n_evaluations,
            seconds=seconds,
            iteration_seconds=seconds - before,
            n_hessian_products=self.n_hessian_products,
            **self.good.terms,
        )
        self.history.append(record)
        self._show(record)

    def finish(self, theta: NDArray[np.float64]) -> None:
        """Take what the optimiser returned, which a user's own may not have reported."""
        final = self._at(np.asarray(theta, dtype=np.float64))
        if np.isfinite(final.cost):
            self.good = final

    def _at(self, theta: NDArray[np.float64]) -> _Evaluated:
        for known in (self._latest, self.good):
            if known is not None and np.array_equal(known.theta, theta):
                return known
        self(theta)
        assert self._latest is not None
        return self._latest


@contextmanager
def _progress_line(wanted: bool, max_iter: int | None) -> Iterator[Any]:
    """Give a function that shows one `Iteration`, in a line rewritten in place on stderr."""
    if not wanted:
        yield lambda record: None
        return
    import_extra("rich", extra="progress")  # so that the error names the package, not a part of it
    console = import_extra("rich.console", extra="progress").Console(stderr=True)
    live_line = import_extra("rich.live", extra="progress").Live
    text = import_extra("rich.text", extra="progress").Text

    def line(record: Iteration) -> Any:
        # Cut short rather than wrapped in a narrow terminal: what matters least comes last.
        return text(_line(record, max_iter), no_wrap=True, overflow="ellipsis")

    # Refreshed by hand: rich's own refreshing would be one more thread beside the engine's.
    with live_line(console=console, auto_refresh=False) as live:
        shown = latest = None

        def show(record: Iteration) -> None:
            nonlocal shown, latest
            latest = record
            if shown is None or record.seconds - shown >= _SECONDS_BETWEEN_PROGRESS_LINES:
                shown = record.seconds
                live.update(line(record), refresh=True)

        yield show
        if latest is not None:
            live.update(line(latest), refresh=True)


def _line(record: Iteration, max_iter: int | None) -> str:
    # Short, for all of it should fit into the 80 columns of many a terminal.
    of = f"/{max_iter}" if max_iter is not None else ""
    return (
        f"{record.iteration}{of}  {record.seconds:.0f} s  J {record.cost:.5g} = data {record.data:.3g} "
        f"+ decay {record.weight_decay:.3g} + KL {record.sparsity:.3g}  grad {record.gradient_norm:.1e}"
    )


def _in_words(terms: dict[str, float]) -> str:
    return " + ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in terms.items())
