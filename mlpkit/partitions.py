"""Sums over parts of a data set, and their sum: what one machine gives to an objective of many.

A `Partition` returns its examples' share of the two sums that J is made of, not divided by anything and without
penalties. Shares are added over a binary tree whose leaves are the partitions in order: where each was computed, and
when, does not show in the result. Partitions are part of the definition of the result; the workers are not.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.base_objective import BaseObjective
from mlpkit.data import fingerprint
from mlpkit.errors import InvalidArgumentError, TargetRangeWarning
from mlpkit.mlp import MLP, check_network
from mlpkit.objective import Objective
from mlpkit.plan import Plan

__all__ = ["Partition", "PartitionedObjective", "Share", "TreeSum"]

Share = tuple[NDArray[np.float64], NDArray[Any]]  # numbers in float64, and a gradient, which may be empty


class TreeSum:
    """A sum over a binary tree with `n` leaves, added up as its nodes come in, in whatever order.

    The tree pairs leaves 0 and 1, 2 and 3, and so on, then the pairs; what has no partner moves up as it is.

    Parameters
    ----------
    n : int
        Leaves.

    Attributes
    ----------
    nodes : dict
        (level, index) -> share, of the subtrees whose partners are not here yet. When all leaves were added it holds
        the root alone.

    Examples
    --------
    >>> tree = TreeSum(3)
    >>> for leaf in (2, 0, 1):
    ...     tree.add(0, leaf, (np.array([1.0]), np.zeros(0)))
    >>> tree.root()[0]
    array([3.])
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self.nodes: dict[tuple[int, int], Share] = {}

    def add(self, level: int, index: int, share: Share) -> None:
        """Take in a node; its arrays may be written to from now on."""
        while (1 << level) < self._n:
            partner = level, index ^ 1
            if index % 2 == 0 and (index + 1) << level >= self._n:
                pass  # nobody there
            elif partner in self.nodes:
                other = self.nodes.pop(partner)
                left, right = (share, other) if index % 2 == 0 else (other, share)
                for into, more in zip(left, right, strict=True):
                    into += more
                share = left
            else:
                break
            level, index = level + 1, index // 2
        self.nodes[level, index] = share

    def root(self) -> Share:
        """Return the whole sum."""
        ((_, share),) = self.nodes.items()
        return share


class Partition:
    """Some of the examples, with a network's sweeps over them; the arguments are those of `Objective`.

    Attributes
    ----------
    n_examples : int
    fingerprint : str
        Of the data.
    memory : int
        Bytes, as `Objective.memory`.

    Examples
    --------
    >>> from mlpkit import Dense, Input
    >>> net = MLP([Input(1), Dense(1, "identity", init=0.0)])
    >>> part = Partition(net, [[1.0], [1.0]], [2.0, 4.0])
    >>> part.gradient(net.theta, np.zeros(1))
    (array([10.,  0.]), array([-6., -6.]))
    """

    def __init__(self, net: MLP, X: ArrayLike, Y: ArrayLike, memory_limit: int | str | None = None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TargetRangeWarning)  # said once a partition, and far away
            self._objective = Objective(net, X, Y, memory_limit=memory_limit)
        self.n_examples = self._objective.n_examples
        self.fingerprint = fingerprint(X, Y)

    @property
    def memory(self) -> int:
        """Bytes."""
        return self._objective.memory

    def cancel(self) -> None:
        """Make what is under way on another thread end at once."""
        self._objective.cancel()

    def sums(self, theta: NDArray[Any]) -> Share:
        """Return sum_i a_ij of each unit j whose mean activation is penalised, in float64."""
        with self._objective._exclusive:
            return self._objective._sum_activations(theta), np.zeros(0, theta.dtype)

    def gradient(self, theta: NDArray[Any], slopes: NDArray[Any]) -> Share:
        """Return the sums of the losses and of the L1 terms, and that of the gradients, given the penalties' slopes."""
        objective = self._objective
        gradient = np.empty_like(theta)
        with objective._exclusive:
            loss, l1, _ = objective._engine.gradient(
                theta,
                objective._store.parts(),
                (slopes, objective._strengths),
                theta.dtype.type(1),
                np.zeros_like(objective._decay),
                gradient,
            )
        return np.array([loss, l1]), gradient


class PartitionedObjective(BaseObjective):
    """The objective over partitions that are all in this process: what `mlpkit.distributed` computes on many.

    Parameters
    ----------
    net : MLP
    partitions : sequence of (X, Y)
        Each as `Objective` takes them, files included.
    memory_limit : int or str, optional
        Of each partition.

    Attributes
    ----------
    fingerprint : str
        Of the data and of how they are cut.

    Examples
    --------
    >>> from mlpkit import Dense, Input
    >>> net = MLP([Input(1), Dense(1, "identity", init=0.0)])
    >>> objective = PartitionedObjective(net, [([[1.0]], [2.0]), ([[1.0]], [4.0])])
    >>> objective.value_and_gradient(net.theta)
    (5.0, array([-3., -3.]))
    """

    def __init__(self, net: MLP, partitions: Sequence[tuple[Any, Any]], memory_limit: int | str | None = None) -> None:
        check_network(net)
        pairs = isinstance(partitions, Sequence) and all(isinstance(p, Sequence) and len(p) == 2 for p in partitions)
        if not pairs or not partitions:
            raise InvalidArgumentError(f"partitions must be a list of pairs (X, Y), at least one; found {partitions!r}")
        self._parts = [Partition(net, X, Y, memory_limit) for X, Y in partitions]
        self._define(net, [(part.n_examples, part.fingerprint) for part in self._parts])

    def _define(self, net: MLP, partitions: Sequence[tuple[int, str]]) -> None:
        m = sum(n for n, _ in partitions)
        self._n_partitions = len(partitions)
        self.fingerprint = hashlib.sha256("".join(text for _, text in partitions).encode()).hexdigest()
        super().__init__(net, Plan(net.layers, net.dtype, m, net.loss), m, float(m), 1.0)

    def cancel(self) -> None:
        """Make the evaluation under way on another thread end soon; no result is of use from here on."""
        for part in self._parts:
            part.cancel()

    def _shares(self, theta: NDArray[Any], slopes: NDArray[Any] | None) -> Iterable[tuple[tuple[int, int], Share]]:
        """Return nodes of the tree that together have all leaves: of activations, or, given slopes, of gradients."""
        for i, part in enumerate(self._parts):
            yield (0, i), part.sums(theta) if slopes is None else part.gradient(theta, slopes)

    def _total(self, theta: NDArray[Any], slopes: NDArray[Any] | None) -> Share:
        tree = TreeSum(self._n_partitions)
        for (level, index), share in self._shares(theta, slopes):
            tree.add(level, index, share)
        return tree.root()

    def _sum_activations(self, theta: NDArray[Any]) -> NDArray[np.float64]:
        return self._total(theta, None)[0]

    def _sum_gradients(self, theta: NDArray[Any], gradient: NDArray[Any]) -> tuple[float, float, float]:
        (loss, l1), total = self._total(theta, self._slopes)
        np.multiply(total, self._scale, out=gradient)
        term = 0.0
        for block, decay in zip(self._plan.blocks, self._decay, strict=True):
            if decay != 0:
                place = slice(block.W, block.W + block.n_in * block.n_out)
                gradient[place] += decay * theta[place]
                term += 0.5 * float(decay) * float(np.square(theta[place], dtype=np.float64).sum())
        return float(loss), float(l1), term
