"""What stands between the training loop and mini-batches: epochs become iterations on record."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit.data import Data
from mlpkit.descent import State
from mlpkit.history import Iteration
from mlpkit.layers import parameter_blocks
from mlpkit.loop import Loop, Stop, Whole
from mlpkit.minibatch import MiniBatches
from mlpkit.mlp import MLP
from mlpkit.stochastic import Stochastic

__all__ = ["StochasticTraining"]


class StochasticTraining:
    """A stochastic optimiser on a data set.

    Parameters
    ----------
    net : MLP
        Where to start; it is not changed.
    data : Data
        Checked examples.
    optimizer : Stochastic
        What trains.
    limit : int, optional
        Bytes that it may take; see `mlpkit.row_windows.choose_windows`.

    Attributes
    ----------
    max_epochs : int
        After how many to stop.
    terms : dict
        The terms of J, as means over the mini-batches of the latest epoch, as far as it has come; NaN before any.
    """

    def __init__(self, net: MLP, data: Data, optimizer: Stochastic, limit: int | None = None) -> None:
        self._net, self._optimizer = net, optimizer
        self._batches = MiniBatches(net, data, optimizer, limit)
        self.n_examples = data.n_examples
        self.max_epochs = optimizer.max_epochs
        self.terms = dict.fromkeys(("data", "weight_decay", "sparsity"), np.nan)

    @property
    def theta(self) -> NDArray[Any]:
        """The latest parameters, which are finite."""
        return self._batches.theta

    @property
    def epoch(self) -> int:
        """How many are behind."""
        return self._batches.epoch

    def cancel(self) -> None:
        """Do nothing: slices of steps are short."""

    def check_resumable(self) -> None:
        """Accept: all stochastic optimisers are."""

    def state(self) -> State:
        """Return the optimiser's state after the latest epoch; good between epochs."""
        return self._batches.state()

    def restore(self, state: State, theta: NDArray[Any] | None, record: Iteration | None) -> None:
        """Go on from an optimiser's state, in which the parameters are, and the record of its epoch."""
        self._batches.restore(state)
        if record is not None:
            self.terms = {name: float(record[name]) for name in self.terms}

    def train(self, loop: Loop) -> str:
        """Go through epochs until there are enough."""
        batches = self._batches
        while batches.epoch < self.max_epochs:
            loop.look()
            norm = self._epoch(loop)
            for name, value in self.terms.items():
                if not np.isfinite(value):  # a sum over the epoch, or of theta's squares at its end
                    raise Stop(
                        f"diverged: the {name.replace('_', ' ')} term of J became infinite or NaN first, at the end of "
                        f"epoch {batches.epoch}; the last finite parameters are kept (a smaller learning rate may help)"
                    )
            metrics = loop.measure(batches.theta)
            loop.accept(self.terms, norm, metrics, self._keep() if loop.saves else None)
        return "max_epochs reached"

    def _keep(self) -> Whole:
        """Keep what a checkpoint needs, which may be written when the next epoch has begun."""
        theta, state = self._batches.theta.copy(), self._batches.state()
        return lambda: (theta, state)

    def _epoch(self, loop: Loop) -> float:
        """Go through all examples once; return the last gradient's norm."""
        batches = self._batches
        totals, norm = np.zeros((1, 3)), 0.0
        steps = examples = 0
        try:
            with closing(batches.run_epoch(loop.heed, lambda: loop.evaluations_left)) as parts:
                for part in parts:
                    loop.n_evaluations += part.n_steps
                    if part.failure is not None:
                        raise Stop(
                            f"diverged: {part.failure} became infinite or NaN first, at step {steps + part.n_steps} of "
                            f"epoch {batches.epoch + 1}; the parameters before it are kept (a smaller learning rate "
                            f"may help)"
                        )
                    # One after the other, so that the sums do not depend on where slices end.
                    with np.errstate(over="ignore"):  # which is told at the epoch's end
                        totals = np.add.accumulate(np.concatenate([totals, part.sums]))[-1:]
                    steps, examples, norm = steps + part.n_steps, examples + part.n_examples, part.gradient_norm
                    if steps < batches.steps_an_epoch:
                        loop.look()
        finally:
            if steps:
                self.terms = self._means(totals[0], steps, examples)
        return norm

    def _means(self, totals: NDArray[np.float64], steps: int, examples: int) -> dict[str, float]:
        """Return the terms of J from sums over so many steps and examples."""
        loss, l1, sparsity = totals
        batches = self._batches
        share = 1.0 if steps == batches.steps_an_epoch else examples / self.n_examples
        weight = share * batches.total_weight
        return {
            "data": float(loss / weight),
            "weight_decay": self._weight_decay(),
            "sparsity": float(l1 / weight + sparsity / steps),
        }

    def _weight_decay(self) -> float:
        """Return sum_l lambda_l / 2 sum (W^(l))^2."""
        blocks = parameter_blocks(self._net.layers)
        with np.errstate(over="ignore"):  # before it diverges
            squares = [float(np.sum(np.square(block.weights(self.theta), dtype=np.float64))) for block in blocks]
        return sum(0.5 * decay * square for decay, square in zip(self._net.decays, squares, strict=True))
