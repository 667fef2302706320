"""What stands between the training loop and mini-batches: epochs become iterations on record."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit.data import Data
from mlpkit.descent import State
from mlpkit.layers import parameter_blocks
from mlpkit.loop import Loop, Stop
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

    Attributes
    ----------
    max_epochs : int
        After how many to stop.
    terms : dict
        The terms of J, as means over the mini-batches of the latest epoch, as far as it has come.
    whole : bool
        Whether the latest epoch has come to its end.
    """

    def __init__(self, net: MLP, data: Data, optimizer: Stochastic) -> None:
        self._net, self._optimizer = net, optimizer
        self._batches = MiniBatches(net, data, optimizer)
        self.n_examples = data.n_examples
        self.max_epochs = optimizer.max_epochs
        self.terms = dict.fromkeys(("data", "weight_decay", "sparsity"), np.nan)
        self.whole = True

    @property
    def theta(self) -> NDArray[Any]:
        """The latest parameters, which are finite."""
        return self._batches.theta

    def cancel(self) -> None:
        """Do nothing: slices of steps are short."""

    def check_resumable(self) -> None:
        """Accept: all stochastic optimisers are."""

    def snapshot(self) -> State:
        """Return the optimiser's state after the latest epoch."""
        return self._batches.state()

    def restore(self, state: State) -> None:
        """Go on from what `snapshot` returned."""
        self._batches.restore(state)

    def train(self, loop: Loop) -> str:
        """Go through epochs until there are enough."""
        batches = self._batches
        while batches.epoch < self.max_epochs:
            loop.look()
            self.whole = False
            norm = self._epoch(loop)
            self.whole = True
            loop.accept(batches.theta, self.terms, norm)
        return "max_epochs reached"

    def _epoch(self, loop: Loop) -> float:
        """Go through all examples once; return the last gradient's norm."""
        batches = self._batches
        loss = l1 = sparsity = norm = 0.0
        steps = examples = 0
        mean_weight = batches.total_weight / self.n_examples
        for part in batches.run_epoch():
            if part.failure is not None:
                loop.n_evaluations += part.n_steps
                raise Stop(
                    f"diverged: {part.failure} after {steps + part.n_steps} steps of epoch {batches.epoch + 1}; the "
                    f"parameters before them are kept (a smaller learning rate may help)"
                )
            loss, l1, sparsity, norm = loss + part.loss, l1 + part.l1, sparsity + part.sparsity, part.gradient_norm
            steps, examples = steps + part.n_steps, examples + part.n_examples
            loop.n_evaluations += part.n_steps
            done = steps == batches.steps_an_epoch
            weight = batches.total_weight if done else examples * mean_weight
            self.terms = {
                "data": loss / weight,
                "weight_decay": self._weight_decay() if done else self.terms["weight_decay"],
                "sparsity": l1 / weight + sparsity / steps,
            }
            if not done:
                loop.look()
        return norm

    def _weight_decay(self) -> float:
        """Return sum_l lambda_l / 2 sum (W^(l))^2."""
        blocks = parameter_blocks(self._net.layers)
        squares = [float(np.sum(np.square(block.weights(self.theta), dtype=np.float64))) for block in blocks]
        return sum(0.5 * decay * square for decay, square in zip(self._net.decays, squares, strict=True))
