"""What a network does to be trained: the methods of `MLP` that `mlpkit.training` carries out."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from mlpkit.early_stopping import EarlyStopping
    from mlpkit.history import FitResult
    from mlpkit.optimizers import Optimizer
    from mlpkit.stochastic import Stochastic
    from mlpkit.weights import ClassWeight

__all__ = ["Trainable", "as_pickled"]


class Trainable:
    """A network that can be trained.

    Attributes
    ----------
    partial_state : tuple
        The optimiser of the last `partial_fit`, and what it remembers; (None, {}) before the first. Copies of the
        network have it, and pickles where the optimiser can be pickled. One whose learning rate is a lambda cannot:
        then a network that comes out of a pickle begins anew, as before the first call.
    """

    partial_state: tuple[Any, Any]

    def fit(
        self,
        X: ArrayLike,
        Y: ArrayLike | None = None,
        optimizer: Optimizer | Stochastic | None = None,
        *,
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
        """Minimise J over theta, starting at the present parameters.

        An *iteration* below is an accepted step of an optimiser that sees all examples at once, or an epoch of a
        stochastic one. Ctrl-C ends training with the last good parameters; a second one raises `KeyboardInterrupt`.

        Parameters
        ----------
        X : array-like, shape (m, s_1), or path
            Examples in rows, or a file of them; see `Objective`. Noise of the input layer is added to them here: once,
            or anew for each epoch. Or a `mlpkit.distributed.DaskObjective` of this network, and Y left out.
        Y : array-like
            Targets, shape (m, s_nl); class labels (m,) for cross-entropy; X itself for an autoencoder.
        optimizer : optimizer, optional
            `LBFGS` (its defaults if None), `ConjugateGradient`, `GradientDescent`, `NewtonCG`, `TrustNCG`; `Adam`,
            `AdamW`, `SGD`, `RMSprop`, `Adagrad`; or an object of your own, see `mlpkit.optimizers.Optimizer`.
        sample_weight, class_weight, mask
            Weights of examples and classes, and which targets count; see `Objective`.
        keep_activations : bool, optional
            See `Objective`; not for stochastic optimisers.
        memory_limit : int or str, optional
            Bytes, or text such as ``"2GB"``: data that do not fit are read on every pass, or every epoch; see
            `Objective`. A stochastic optimiser needs ``shuffle="blocks"`` then, or False. What it counts are examples,
            the optimiser's copies of the parameters and the activations of a batch; validation data come on top.
        validation : tuple or float, optional
            (X, Y), (X, Y, sample_weight) or (X, Y, sample_weight, mask) of other examples, or the fraction of the rows,
            drawn at random from the network's seed, to hold out. After each iteration ``validation_loss``, the data
            term of J on them, is put on record.
        metrics : list or dict, optional
            What else to put on record: names such as ``"accuracy"`` and functions of (targets, outputs); see
            `mlpkit.metrics`. Of validation data if there are any, else of the training data; only of targets that
            count, so that where a mask hides a part of an example's targets, functions must take a ``mask`` too.
        early_stopping : EarlyStopping, optional
            Stop when a quantity on record no longer improves, with the best parameters.
        callbacks : list, optional
            Objects derived from `mlpkit.Callback`, and functions of the run, called after each iteration; what comes
            with mlpkit is in `mlpkit.callbacks`. One that raises ends training, and the error comes through.
        max_seconds, max_evaluations : optional
            Stop when so much time has passed, or after so many evaluations of J (mini-batches).
        checkpoint : path-like, optional
            Where to keep what it takes to go on, a file that is whole at any moment; the one before it is kept beside
            it (``run.previous.h5``).
        every : int, optional
            After how many iterations to write it, 10 by default, and at the end.
        resume : path-like or bool
            A checkpoint to go on from, with the same network, optimiser, data and callbacks, to the bit; True is the
            file named by `checkpoint`, if it is there. A training that a callback has ended stays so, unless that
            callback's settings are others now.
        progress : bool
            Show a line that follows the training; needs the extra ``mlpkit[progress]``.

        Returns
        -------
        FitResult
            cost, n_iterations, n_evaluations, history and the reason for stopping.

        Raises
        ------
        InvalidArgumentError
            Naming the argument, what was expected and what was found; also if J or its gradient is not finite at the
            starting parameters.
        MissingExtraError
            If `progress` is True and rich is not installed.
        ModelFormatError
            If `resume` is no checkpoint, or a damaged one.
        OSError
            If a checkpoint cannot be read or written; at once if its folder is missing.

        Examples
        --------
        >>> from mlpkit import MLP, Adam, Dense, Input
        >>> net = MLP([Input(1), Dense(1, "identity")], seed=0)
        >>> result = net.fit([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0])
        >>> net.weights[0].round(3), net.biases[0].round(3)
        (array([[2.]]), array([1.]))
        >>> result = net.fit([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0], Adam(max_epochs=3))
        >>> result.reason, result.n_iterations
        ('max_epochs reached', 3)
        """
        from mlpkit import training

        return training.fit(
            self,  # type: ignore[arg-type]
            X,
            Y,
            optimizer=optimizer,
            sample_weight=sample_weight,
            class_weight=class_weight,
            mask=mask,
            keep_activations=keep_activations,
            memory_limit=memory_limit,
            validation=validation,
            metrics=metrics,
            early_stopping=early_stopping,
            callbacks=callbacks,
            max_seconds=max_seconds,
            max_evaluations=max_evaluations,
            checkpoint=checkpoint,
            every=every,
            resume=resume,
            progress=progress,
        )

    def partial_fit(
        self,
        X: ArrayLike,
        Y: ArrayLike,
        optimizer: Stochastic | None = None,
        *,
        sample_weight: ArrayLike | None = None,
        class_weight: ClassWeight | None = None,
        mask: ArrayLike | None = None,
    ) -> dict[str, float]:
        """Go through the examples once, and remember until the next call what the optimiser does.

        For data that come in parts.

        As long as calls are made with an equal optimiser, moments, numbers of steps and the generator go on from one
        to the next. They are not part of a model file; of a pickle only if the optimiser can be pickled: not where its
        learning rate is a lambda, for instance.

        Parameters
        ----------
        X, Y, sample_weight, class_weight, mask
            As `fit` takes them; the number of examples may change from call to call.
        optimizer : Stochastic, optional
            `Adam` by default; its `max_epochs` is not used.

        Returns
        -------
        dict of str to float
            The terms of J, as means over the mini-batches, each before its step.

        Raises
        ------
        InvalidArgumentError
            Naming the argument; also where the step diverges, after which the parameters are the last finite ones.

        Examples
        --------
        >>> from mlpkit import MLP, SGD, Dense, Input
        >>> net = MLP([Input(1), Dense(1, "identity", init=0.0)], seed=0)
        >>> net.partial_fit([[1.0]], [2.0], SGD(0.5))["data"], net.weights[0]
        (2.0, array([[1.]]))
        """
        from mlpkit import training

        return training.partial_fit(
            self,  # type: ignore[arg-type]
            X,
            Y,
            optimizer=optimizer,
            sample_weight=sample_weight,
            class_weight=class_weight,
            mask=mask,
        )


def as_pickled(partial_state: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return what a pickle keeps of a network's `partial_state`: all or nothing.

    Examples
    --------
    >>> from mlpkit import SGD
    >>> as_pickled((SGD(0.1), {"epoch": 1}))
    (SGD(learning_rate=0.1), {'epoch': 1})
    >>> as_pickled((SGD(lambda epochs: 0.1), {"epoch": 1}))
    (None, {})
    """
    try:
        pickle.dumps(partial_state[0])
    except Exception:  # whatever a schedule of the user's own makes of it
        return None, {}
    return partial_state
