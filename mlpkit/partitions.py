"""Sums over parts of a data set, and their sum: what one machine gives to an objective of many.

A `Partition` returns its examples' share of the two sums that J is made of, not divided by anything and without
penalties. Shares are added over a binary tree whose leaves are the partitions in order: where each was computed, and
when, does not show in the result. Partitions are part of the definition of the result; the workers are not.

Each partition scales its weights by a power of two, as `mlpkit.weights` does with those of a whole data set. The powers
differ; what is left to the largest of them scales the shares, which rounds nothing.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.base_objective import BaseObjective
from mlpkit.checks import check_vector, real_array, shown
from mlpkit.data import Data, fingerprint
from mlpkit.errors import InvalidArgumentError, TargetRangeWarning
from mlpkit.mlp import MLP, check_network
from mlpkit.objective import Objective
from mlpkit.plan import Plan
from mlpkit.row_files import open_rows
from mlpkit.weights import OfPart

__all__ = ["Content", "Partition", "PartitionedObjective", "Share", "TreeSum", "part_of"]

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


class Content(NamedTuple):
    """What is in a partition, as far as the objective over all of them must know.

    Its weights are those of `mlpkit.weights.scaled`, times 2 ** -exponent.
    """

    n_examples: int  # of a weight that is not 0
    fingerprint: str
    total_weight: float
    largest_weight: float
    exponent: int
    weighted: bool  # False where every example has weight 1 because nobody said otherwise
    counts: bool  # whether a mask lets any target count


class Partition:
    """Some of the examples, with a network's sweeps over them; the arguments are those of `Objective`.

    Weights may be all zero, and a mask all False. They may be in files too, which are read now.

    Attributes
    ----------
    content : Content
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

    def __init__(
        self,
        net: MLP,
        X: ArrayLike,
        Y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        *,
        memory_limit: int | str | None = None,
    ) -> None:
        weights = counted = None
        if sample_weight is not None:
            weights = check_vector(_read(sample_weight, "sample_weight"), "sample_weight").view(OfPart)
        if mask is not None:
            counted = _read(mask, "mask").view(OfPart)
        self._objective: Objective | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TargetRangeWarning)  # said once a partition, and far away
            if weights is not None and not weights.any():
                Data(net, X, Y, weights, None, counted)  # nothing counts, and what is wrong is still said
                self._n_units = Plan(net.layers, net.dtype, 1, net.loss).n_units
            else:
                self._objective = Objective(net, X, Y, weights, mask=counted, memory_limit=memory_limit)
        marks = [X, Y] if mask is None and weights is None else [X, Y, *_marks(weights, counted)]
        exponent = 0 if weights is None else int(np.frexp(weights.max())[1])
        self.content = Content(
            n_examples=0 if self._objective is None else self._objective.n_examples,
            fingerprint=fingerprint(*marks),
            total_weight=0.0 if self._objective is None else self._objective._total_weight,
            largest_weight=1.0 if weights is None else float(np.ldexp(weights.max(), -exponent)),
            exponent=exponent,
            weighted=weights is not None,
            counts=counted is None or bool(counted.any()),
        )

    @property
    def memory(self) -> int:
        """Bytes."""
        return 0 if self._objective is None else self._objective.memory

    def cancel(self) -> None:
        """Make what is under way on another thread end at once."""
        if self._objective is not None:
            self._objective.cancel()

    def sums(self, theta: NDArray[Any], shift: int = 0) -> Share:
        """Return sum_i w_i a_ij of each unit j whose mean activation is penalised, in float64, times 2 ** shift."""
        nothing = np.zeros(0, theta.dtype)
        if self._objective is None:
            return np.zeros(self._n_units), nothing
        with self._objective._exclusive:
            return _shifted(self._objective._sum_activations(theta), shift), nothing

    def gradient(self, theta: NDArray[Any], slopes: NDArray[Any], shift: int = 0) -> Share:
        """Return sums of losses and of L1 terms, and of gradients given the penalties' slopes, times 2 ** shift."""
        objective = self._objective
        if objective is None:
            return np.zeros(2), np.zeros_like(theta)
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
        return _shifted(np.array([loss, l1]), shift), _shifted(gradient, shift)


def _read(values: Any, name: str) -> NDArray[Any]:
    source = open_rows(values, name)
    return real_array(values, name) if source is None else source.rows(0, source.shape[0])


def _marks(weights: NDArray[Any] | None, mask: NDArray[Any] | None) -> list[NDArray[Any]]:
    """Return what a fingerprint is made of, so that weights are not taken for a mask."""
    return [np.zeros(0) if array is None else array.view(np.ndarray) for array in (weights, mask)]


def _shifted(array: NDArray[Any], shift: int) -> NDArray[Any]:
    return np.ldexp(array, shift, out=array) if shift else array


@contextmanager
def part_of(index: int) -> Iterator[None]:
    """Let errors about data say in which partition they are.

    Examples
    --------
    >>> with part_of(3):
    ...     raise InvalidArgumentError("X must be finite")
    Traceback (most recent call last):
    mlpkit.errors.InvalidArgumentError: X must be finite (in partition 3)
    """
    try:
        yield
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{error} (in partition {index})") from None


class PartitionedObjective(BaseObjective):
    """The objective over partitions that are all in this process: what `mlpkit.distributed` computes on many.

    Parameters
    ----------
    net : MLP
    partitions : sequence of (X, Y), (X, Y, sample_weight) or (X, Y, sample_weight, mask)
        Each as `Objective` takes them, files included; None for weights or a mask that a partition does not have. Some
        weights, and some targets that count, are enough: in single partitions there may be none.
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
    >>> weighted = PartitionedObjective(net, [([[1.0]], [2.0], [3.0]), ([[1.0]], [4.0], [1.0])])
    >>> weighted.value_and_gradient(net.theta)
    (3.5, array([-2.5, -2.5]))
    """

    def __init__(self, net: MLP, partitions: Sequence[tuple[Any, ...]], memory_limit: int | str | None = None) -> None:
        check_network(net)
        tuples = isinstance(partitions, Sequence) and all(
            isinstance(p, Sequence) and not isinstance(p, str) and 2 <= len(p) <= 4 for p in partitions
        )
        if not tuples or not partitions:
            raise InvalidArgumentError(
                "partitions must be a list of (X, Y), (X, Y, sample_weight) or (X, Y, sample_weight, mask), at least "
                f"one; found {shown(partitions)}"
            )
        self._parts = []
        for index, partition in enumerate(partitions):
            with part_of(index):
                self._parts.append(Partition(net, *partition, memory_limit=memory_limit))
        self._define(net, [part.content for part in self._parts])

    def _define(self, net: MLP, contents: Sequence[Content]) -> None:
        """Find out what all partitions weigh together."""
        self._n_partitions = len(contents)
        self.fingerprint = hashlib.sha256("".join(content.fingerprint for content in contents).encode()).hexdigest()
        if not any(content.counts for content in contents):
            raise InvalidArgumentError("mask must be True somewhere; found no target that counts in any partition")
        used = [content for content in contents if content.n_examples]
        if not used:
            raise InvalidArgumentError("sample_weight must not be all zero; found no other weight in any partition")
        top = 0
        if any(content.weighted for content in contents):
            top = max(content.exponent + math.frexp(content.largest_weight)[1] for content in used)
        self._shifts = [content.exponent - top if content.n_examples else 0 for content in contents]
        weighed = list(zip(contents, self._shifts, strict=True))
        m = sum(content.n_examples for content in contents)
        total = sum(math.ldexp(content.total_weight, shift) for content, shift in weighed)
        largest = max(math.ldexp(content.largest_weight, shift) for content, shift in weighed)
        super().__init__(net, Plan(net.layers, net.dtype, m, net.loss), m, total, largest)

    def cancel(self) -> None:
        """Make the evaluation under way on another thread end soon; no result is of use from here on."""
        for part in self._parts:
            part.cancel()

    def _shares(self, theta: NDArray[Any], slopes: NDArray[Any] | None) -> Iterable[tuple[tuple[int, int], Share]]:
        """Return nodes of the tree that together have all leaves: of activations, or, given slopes, of gradients."""
        for i, (part, shift) in enumerate(zip(self._parts, self._shifts, strict=True)):
            yield (0, i), part.sums(theta, shift) if slopes is None else part.gradient(theta, slopes, shift)

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
