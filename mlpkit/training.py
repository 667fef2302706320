"""Training: an optimiser minimises an objective in a loop that records, validates, saves and stops.

`fit` is what `MLP.fit` calls. The network is given new parameters once, at the end; if anything goes wrong on the way
(an error, Ctrl-C, a divergence) it is given the last good ones, which are always finite.

Full-batch optimisers work in float64 whatever the network's dtype, so a float32 network loses nothing between
iterations but the rounding of each evaluation. Stochastic ones work in the network's dtype.

SciPy's and NumPy's BLAS is held to one thread from start to end: its idle threads would spin between evaluations and
take the cores from the engine's.
"""

from __future__ import annotations

import copy
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from mlpkit.base_objective import BaseObjective
from mlpkit.budget import check_memory_limit
from mlpkit.callbacks import Progress
from mlpkit.checks import check_flag, check_integer, check_matrix
from mlpkit.data import Data, fingerprint
from mlpkit.early_stopping import EarlyStopping
from mlpkit.errors import InvalidArgumentError
from mlpkit.full_batch import FullBatch
from mlpkit.history import FitResult
from mlpkit.interrupts import interruptible
from mlpkit.kernels.jit import blas_limited
from mlpkit.loop import INTERRUPTED, Loop, Stop
from mlpkit.mlp import MLP
from mlpkit.monitor import Examples, Monitor, hold_out
from mlpkit.objective import Objective
from mlpkit.optimizers import LBFGS, Optimizer
from mlpkit.resuming import Saver, resume_from
from mlpkit.row_files import refuse_files
from mlpkit.run import Run, check_callbacks
from mlpkit.stochastic import Adam, Stochastic
from mlpkit.stochastic_training import StochasticTraining
from mlpkit.system import versions

if TYPE_CHECKING:
    from mlpkit.weights import ClassWeight

__all__ = ["fit", "partial_fit"]


def fit(
    net: MLP,
    X: Any,
    Y: Any = None,
    *,
    optimizer: Optimizer | Stochastic | None = None,
    sample_weight: ArrayLike | None = None,
    class_weight: ClassWeight | None = None,
    mask: ArrayLike | None = None,
    keep_activations: bool | None = None,
    memory_limit: int | str | None = None,
    validation: Any = None,
    metrics: Any = None,
    early_stopping: EarlyStopping | None = None,
    callbacks: Any = None,
    max_seconds: float | None = None,
    max_evaluations: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int | None = None,
    resume: str | os.PathLike[str] | bool = False,
    progress: bool = False,
) -> FitResult:
    """Minimise the network's objective on the examples, starting from its present parameters.

    Parameters
    ----------
    net : MLP
        Its ``theta`` is where training starts, and receives the result.
    X, Y, optimizer, validation, ...
        See `MLP.fit`.

    Examples
    --------
    >>> import mlpkit
    >>> X = [[0.2, 0.8], [0.8, 0.2], [0.6, 0.4]]
    >>> net = mlpkit.sparse_autoencoder(n_inputs=2, n_hidden=2, seed=0)
    >>> result = fit(net, X, X, optimizer=mlpkit.LBFGS(max_iter=5))
    >>> result.n_iterations, result.reason
    (5, 'max_iter reached')
    """
    chosen = _check_optimizer(LBFGS() if optimizer is None else optimizer)
    stochastic = isinstance(chosen, Stochastic)
    told = check_callbacks(callbacks)
    if early_stopping is not None:
        if not isinstance(early_stopping, EarlyStopping):
            raise InvalidArgumentError(f"early_stopping must be an EarlyStopping or None; found {early_stopping!r}")
        told.append(early_stopping)
    display = Progress() if check_flag(progress, "progress") else None
    if stochastic and keep_activations is not None:
        raise InvalidArgumentError(
            f"keep_activations must be None for a stochastic optimiser, whose batches are always kept; found "
            f"{keep_activations!r}"
        )
    limit = check_memory_limit(memory_limit)
    if stochastic:
        _refuse_running_mean_of_nothing(net, chosen)
    else:
        _refuse_dropout(net)
    if isinstance(X, BaseObjective):
        more = {"Y": Y, "sample_weight": sample_weight, "class_weight": class_weight, "mask": mask}
        more |= {"keep_activations": keep_activations, "memory_limit": memory_limit}
        _check_objective(net, X, stochastic, more, validation)
    elif Y is None:
        raise InvalidArgumentError("Y must be given: only an objective that holds its data comes without")
    given = Examples(X, Y, sample_weight, mask)
    generator = np.random.default_rng(np.random.SeedSequence(net.seed, spawn_key=(3,)))
    train, held = hold_out(given, validation, generator)
    run = Run(copy.copy(net), chosen, getattr(chosen, "max_iter", getattr(chosen, "max_epochs", None)))
    with blas_limited():
        training: FullBatch | StochasticTraining
        if stochastic:
            data = Data(net, train.X, train.Y, train.sample_weight, class_weight, train.mask)
            training = StochasticTraining(net, data, chosen, limit)
        elif isinstance(X, BaseObjective):
            nothing = np.zeros((0, net.sizes[0]))  # the inputs are elsewhere
            training = FullBatch(chosen, X, lambda: nothing)
        else:
            noisy = partial(_with_noise, net, train.X)
            weights = (train.sample_weight, keep_activations)
            more = {"mask": train.mask, "memory_limit": memory_limit}
            objective = Objective(net, noisy(), train.Y, *weights, class_weight=class_weight, **more)  # type: ignore[arg-type]
            training = FullBatch(chosen, objective, noisy)
        loop = Loop(run, told, Monitor(run.net, train, held, metrics), max_seconds, max_evaluations, display)
        if checkpoint is None and every is not None:
            raise InvalidArgumentError(f"every must be None where there is no checkpoint; found {every!r}")
        if checkpoint is not None or resume is not False:
            saver = Saver(net, chosen, training, [X, Y, sample_weight, mask, *(held or ())], class_weight)
            if checkpoint is not None:
                interval = 10 if every is None else check_integer(every, "every", low=1)
                loop.save_every(interval, saver.to(checkpoint))
            resume_from(resume, checkpoint, saver, loop)
        data_fingerprint = fingerprint(X, Y)  # now, for it takes time that nobody has after Ctrl-C
        reason = _train(net, training, loop)
    terms = _terms(run.final) if run.restored else training.terms
    net.provenance = {
        "optimizer": repr(chosen)[:1000],
        "iterations": loop.iteration,
        "evaluations": loop.n_evaluations,
        "reason": reason,
        "terms": {name: value if np.isfinite(value) else None for name, value in terms.items()},
        "seed": net.seed,
        "examples": training.n_examples,
        "data": data_fingerprint,
        "versions": versions(),
    }
    return FitResult(
        cost=float(sum(terms.values())),
        terms=terms,
        n_iterations=loop.iteration,
        n_evaluations=loop.n_evaluations,
        reason=reason,
        seconds=loop.seconds,
        history=run.history,
        n_hessian_products=loop.n_hessian_products,
        iteration=0 if run.final is None else run.final.iteration,
    )


def _train(net: MLP, training: FullBatch | StochasticTraining, loop: Loop) -> str:
    """Train until there is a reason to stop, and return it; give the network what is good, whatever happens."""

    def cancel() -> None:  # called from another thread
        loop.cancelled = True
        training.cancel()

    run = loop.run
    with interruptible(cancel) as loop.interrupt:
        try:
            failure: BaseException | None = None
            try:
                loop.begin()
                reason = training.train(loop)
            except Stop as stop:
                reason = str(stop)
            except BaseException as error:
                failure = error
                raise
            finally:
                theta = training.theta
                if np.isfinite(theta).all():  # as they are but in the middle of what a second Ctrl-C has cut short
                    run.net.theta = theta
                try:
                    loop.end()
                except Exception as error:
                    if failure is None:
                        raise
                    failure.add_note(f"and then, at the end of training: {type(error).__name__}: {error}")
        finally:
            net.theta = run.net.theta
    return INTERRUPTED if loop.interrupt.pending else reason


def partial_fit(
    net: MLP,
    X: ArrayLike,
    Y: ArrayLike,
    *,
    optimizer: Stochastic | None = None,
    sample_weight: ArrayLike | None = None,
    class_weight: ClassWeight | None = None,
    mask: ArrayLike | None = None,
) -> dict[str, float]:
    """Go through the examples once, with what the optimiser remembers from the last call; see `MLP.partial_fit`.

    Examples
    --------
    >>> import mlpkit
    >>> net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "identity")], seed=0)
    >>> costs = [partial_fit(net, [[0.0], [1.0]], [1.0, 3.0], optimizer=Adam(0.5))["data"] for _ in range(20)]
    >>> costs[-1] < 0.1 * costs[0]
    True
    """
    chosen = Adam() if optimizer is None else optimizer
    if not isinstance(chosen, Stochastic):
        raise InvalidArgumentError(f"optimizer must be a stochastic one, such as Adam(); found {chosen!r}")
    _refuse_running_mean_of_nothing(net, chosen)
    training = StochasticTraining(net, Data(net, X, Y, sample_weight, class_weight, mask), chosen)
    known, state = net.partial_state
    if known == chosen:
        training.restore({**state, "theta": net.theta.astype(np.float64)}, None, None)
    with blas_limited():
        loop = Loop(Run(copy.copy(net), chosen, 1), [], lambda heed: {})
        training.max_epochs = training.epoch + 1
        reason = _train(net, training, loop)
    if loop.iteration:
        net.partial_state = (chosen, training.state())
    if reason == INTERRUPTED:
        raise KeyboardInterrupt
    if not loop.iteration:
        raise InvalidArgumentError(f"optimizer {chosen!r}: {reason}")
    return training.terms


def _check_optimizer(optimizer: Any) -> Any:
    if isinstance(optimizer, type) or not isinstance(optimizer, (Optimizer, Stochastic)):
        raise InvalidArgumentError(
            f"optimizer must be one such as LBFGS(), Adam() or GradientDescent(alpha=0.1, max_iter=100); found "
            f"{optimizer!r}"
        )
    return optimizer


def _check_objective(
    net: MLP, objective: BaseObjective, stochastic: bool, more: dict[str, Any], validation: Any
) -> None:
    """Refuse what an objective that is made already leaves no room for."""
    if objective.net is not net or not isinstance(getattr(objective, "fingerprint", None), str):
        raise InvalidArgumentError(
            f"X must be data, or a partitioned objective that was made for this network; found {objective!r}"
        )
    if stochastic:
        raise InvalidArgumentError("optimizer must be one that sees all examples at once where X is an objective")
    given = [name for name, value in more.items() if value is not None]
    if given:
        raise InvalidArgumentError(f"{given[0]} must be None where X is an objective, which has its own")
    if validation is not None and not isinstance(validation, (tuple, list)):
        raise InvalidArgumentError(f"validation must be None or (X, Y) where X is an objective; found {validation!r}")


def _refuse_dropout(net: MLP) -> None:
    """Refuse dropout where the objective must stay the same from one evaluation to the next."""
    for number, layer in enumerate(net.layers[1:], start=2):
        if layer.dropout:  # type: ignore[union-attr]
            raise InvalidArgumentError(
                f"optimizer must be a stochastic one, such as Adam(), for a network with dropout (layer {number})"
            )


def _refuse_running_mean_of_nothing(net: MLP, optimizer: Stochastic) -> None:
    """Refuse `rho_hat_momentum` where it would make no difference."""
    if optimizer.rho_hat_momentum is None or any(layer.mean_penalties for layer in net.layers[1:]):  # type: ignore[union-attr]
        return
    raise InvalidArgumentError(
        f"rho_hat_momentum must be None for a network without a penalty on mean activations (KLSparsity, MeanPenalty); "
        f"found {optimizer.rho_hat_momentum!r}"
    )


def _terms(record: Any) -> dict[str, float]:
    return {name: record[name] for name in ("data", "weight_decay", "sparsity")}


def _with_noise(net: MLP, X: ArrayLike) -> ArrayLike:
    """Return the inputs as the network's noise leaves them, drawn from its seed but apart from what started theta."""
    noise = net.layers[0].noise  # type: ignore[union-attr]
    if noise is None:
        return X
    refuse_files(X, "X", "where the input layer adds noise")
    clean = check_matrix(X, "X", n_columns=net.sizes[0], dtype=net.dtype)
    return noise.apply(clean, np.random.default_rng(np.random.SeedSequence(net.seed, spawn_key=(1,))))
