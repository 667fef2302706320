"""The objective J(theta) of the notes, its terms and its exact gradient, over data in memory or in files.

    J(theta) = sum_i w_i loss(h(x_i), y_i) / sum_i w_i  +  sum_l lambda_l / 2 sum (W^(l))^2
             + sum over sparse layers  beta sum_j KL(rho || rho_hat_j), or other penalties on activations

rho_hat is a mean over *all* examples, so where a layer is sparse one sweep forward over everything comes before the
sweep that goes backward (section 3 of the notes). Between the two, the hidden activations are kept, or computed again
where they would take too much memory; both ways give the same bits. Data that memory does not hold are read on every
sweep (`mlpkit.out_of_core`), to the same bits again. Division by the sum of weights happens once, in
`mlpkit.base_objective`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.base_objective import BaseObjective
from mlpkit.budget import available_memory, check_memory_limit, shown_bytes
from mlpkit.checks import check_flag, check_out
from mlpkit.data import Data
from mlpkit.engine import Engine
from mlpkit.errors import MlpkitError
from mlpkit.hessian import HessianProducts
from mlpkit.mlp import MLP, check_network
from mlpkit.out_of_core import InMemory, OutOfCore, Reading
from mlpkit.per_example import Examples, numbers_of
from mlpkit.plan import Plan
from mlpkit.weights import ClassWeight, Packed

__all__ = ["Objective"]


class Objective(BaseObjective):
    """A network and a data set as a function of theta: J, its gradient and its terms.

    The data are checked once, and packed once if they fit; otherwise a thread reads and packs them chunk by chunk while
    others compute. The network is read when the objective is made and never changed by it.

    Parameters
    ----------
    net : MLP
        Layers, loss and weight decay.
    X : array-like, shape (m, s_1), or path
        Examples in rows: an array, the path of a .npy, HDF5 or Zarr file, an open dataset, a memory map, or whatever
        has ``shape``, ``dtype`` and slices of rows; see `mlpkit.row_files`.
    Y : array-like or path
        Targets, shape (m, s_{n_l}), or (m,) for one output; for cross-entropy integer class labels (m,) or rows of
        probabilities. X itself, an equal array or the same file makes an autoencoder, whose rows are read once.
    sample_weight : array-like, shape (m,), optional
        w_i >= 0, not all 0; examples of weight 0 are left out.
    keep_activations : bool, optional
        Whether to keep the hidden activations from the first sweep to the second (the notes' first way) or to compute
        them twice (the second way). None keeps them if they take at most a quarter of the free memory. Of data that do
        not fit `memory_limit`, those of as many chunks are kept as it allows, or none if False.
    class_weight : mapping, array-like or "balanced", optional
        Weights of the classes, for cross-entropy, and for binary cross-entropy with one output: a mapping from labels
        (1 for those it does not name), or one weight for each class. w_i is multiplied by that of the example's class;
        where targets are probabilities, by their mean, sum_j y_ij c_j. ``"balanced"`` gives each class the same weight
        in all.
    mask : array-like of bool, shape (m, s_{n_l}), optional
        True where a target counts. The others, which may be NaN, bring nothing to loss and gradient, and are read as 0
        by class weights; the sum of weights that J is divided by stays what it is.
    memory_limit : int or str, optional
        Bytes, or text such as ``"2GB"``, that the objective may hold. Data that fit are packed in memory, others read
        on every pass. By default arrays are packed, and files if they take at most half of the memory that is free.

    Raises
    ------
    InvalidArgumentError
        Naming the argument, what was expected and what was found.
    DataFileError
        Then or at any evaluation, for a file that cannot be read, has changed or is gone.

    Examples
    --------
    >>> from mlpkit import Dense, Input
    >>> net = MLP([Input(1), Dense(1, "identity", init=1.0)])
    >>> objective = Objective(net, [[1.0], [2.0]], [[1.0], [4.0]])
    >>> objective.value_and_gradient(net.theta)
    (1.0, array([-2., -1.]))
    """

    def __init__(
        self,
        net: MLP,
        X: ArrayLike,
        Y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        keep_activations: bool | None = None,
        *,
        class_weight: ClassWeight | None = None,
        mask: ArrayLike | None = None,
        memory_limit: int | str | None = None,
    ) -> None:
        check_network(net)
        if keep_activations is not None:
            keep_activations = check_flag(keep_activations, "keep_activations")
        limit = check_memory_limit(memory_limit)
        data = Data(net, X, Y, sample_weight, class_weight, mask)
        plan = Plan(net.layers, net.dtype, data.n_examples, net.loss)
        super().__init__(net, plan, data.n_examples, data.total_weight, data.largest_weight)
        self.n_rows, self._used = data.n_rows, data.used
        self._engine = Engine(plan)
        self._hessian: HessianProducts | None = None
        self._store: InMemory | OutOfCore = self._find_store(data, keep_activations, limit)

    def _find_store(self, data: Data, keep: bool | None, limit: int | None) -> InMemory | OutOfCore:
        """Pack the data, or plan how to read them."""
        if limit is None and data.sources:
            limit = available_memory() // 2
        engine, plan = self._engine, self._plan
        if limit is None:
            n_bytes = plan.kept_rows * plan.cut.n_panels * plan.lanes * plan.dtype.itemsize
            wanted = _fits(n_bytes) if keep is None else keep
            return InMemory(data, engine, plan.n_kept > 0 and wanted)
        for kept in {keep} if keep is not None else (True, False):
            kept = kept and plan.n_kept > 0
            if InMemory.bytes_needed(data, engine, kept) <= limit:
                return InMemory(data, engine, kept)
        return OutOfCore(data, engine, limit, keep is not False)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_hessian": None}

    def __repr__(self) -> str:
        how = shown_bytes(self.memory) if self.reading is None else str(self.reading)
        return f"<Objective of {self.net!r} on {self.n_examples} examples, {how}>"

    @property
    def memory(self) -> int:
        """Bytes that the objective holds once it has been evaluated with the present number of threads.

        Packed X, Y (if different), weights and, with a mask, a weight for each target, which it holds from the start;
        and, allocated at the first evaluation, kept activations, activations and deltas of what is in work, and partial
        gradients. Of data that are read on every pass: two chunks, and those for which `memory_limit` has room.

        Examples
        --------
        >>> from mlpkit import Dense, Input
        >>> Objective(MLP([Input(2), Dense(1, "tanh")]), [[0.0, 0.0]], [0.0]).memory > 0
        True
        """
        return self._store.memory

    @property
    def reading(self) -> Reading | None:
        """How the data are read on every pass, known before the first; None where they are packed in memory.

        Examples
        --------
        >>> from mlpkit import Dense, Input
        >>> net, X = MLP([Input(2), Dense(1, "tanh")]), np.zeros((20_000, 2))
        >>> reading = Objective(net, X, np.zeros(20_000), memory_limit="400kB").reading
        >>> reading.passes, reading.n_chunks > 1
        (1, True)
        """
        return self._store.reading if isinstance(self._store, OutOfCore) else None

    def _sum_activations(self, theta: NDArray[Any]) -> NDArray[np.float64]:
        return self._engine.sum_activations(theta, self._store.parts())

    def _sum_gradients(self, theta: NDArray[Any], gradient: NDArray[Any]) -> tuple[float, float, float]:
        penalties = (self._slopes, self._strengths)
        return self._engine.gradient(theta, self._store.parts(), penalties, self._scale, self._decay, gradient)

    def _packed(self, what: str) -> Packed:
        """Return the packed data, or say that `what` needs them."""
        if isinstance(self._store, InMemory):
            return self._store.packed
        raise MlpkitError(
            f"{what} needs the data in memory; they are read from files here, or do not fit memory_limit: make an "
            "objective of a part of them, or with a larger memory_limit"
        )

    def hessian_vector_product(self, theta: ArrayLike, v: ArrayLike, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the exact product of the Hessian of J at theta and a vector v, without forming the Hessian.

        Pearlmutter's R-operator (1994): the derivative of the gradient along v, in sweeps like the gradient's own, at
        two to three times its cost. Where an activation or a loss has a kink it is the derivative of the pieces.

        Memory that `memory` does not count is allocated at the first product and held: six numbers for each unit and
        example of a strip for every thread, or where parameters are many, of a span shared by all (some 16 MB, or
        twelve panels of examples if those take more); and copies of the gradient where parameters are few.

        Parameters
        ----------
        theta, v : array-like, shape (n_parameters,)
            The point, and the vector; converted to the network's dtype.
        out : ndarray, optional
            Receives the product; it may be `v`.

        Returns
        -------
        ndarray, shape (n_parameters,), the network's dtype

        Raises
        ------
        InvalidArgumentError
            If an argument has the wrong shape or dtype, or an activation or a loss that couples units lacks the second
            derivative.

        Examples
        --------
        >>> from mlpkit import Dense, Input
        >>> net = MLP([Input(1), Dense(1, "identity", init=0.0)], weight_decay=0.5)
        >>> Objective(net, [[2.0]], [[0.0]]).hessian_vector_product(net.theta, [1.0, 0.0])
        array([4.5, 2. ])
        """
        data = self._packed("hessian_vector_product")
        point, direction = self._check_theta(theta), self._check_theta(v, "v")
        product = check_out(out, point.shape, point.dtype)
        point, direction = (a.copy() if np.may_share_memory(a, product) else a for a in (point, direction))
        with self._exclusive:
            if self._hessian is None:
                self._hessian = HessianProducts(self._engine)
            weights = (self._total_weight, self._decay, self._strengths)
            self._hessian.product(point, direction, data, *weights, self._steepest, product)
        return product

    def cancel(self) -> None:
        """Make the evaluation under way on another thread end at once; no result is of use from here on."""
        self._engine.cancel()

    def per_example_loss(self, theta: ArrayLike, look: Callable[[], None] = lambda: None) -> NDArray[np.float64]:
        """Return the loss of each example, some at a time; `look` is called in between, and may raise.

        Returns
        -------
        ndarray of float64, shape (m,)
            For each row of X as given, without its weight, 0 where that is 0: sum w_i loss_i / sum w is the data term.

        Examples
        --------
        >>> from mlpkit import Dense, Input
        >>> net = MLP([Input(1), Dense(1, "identity", init=1.0)])
        >>> Objective(net, [[1.0], [2.0]], [[1.0], [4.0]]).per_example_loss(net.theta)
        array([0., 2.])
        """
        point = self._check_theta(theta)
        with self._exclusive:
            return self._examples(point).losses(look)

    def per_example_gradient(
        self,
        theta: ArrayLike,
        rows: slice | ArrayLike = slice(None),
        *,
        sparsity: bool = True,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Return the gradient g_i of each example, so that gradient = sum w_i g_i / sum w + lambda W.

            g_i = grad[loss_i + sum over layers (beta sum_j KL'(rho_hat_j) s(a_ij) + strength sum_j |a_ij|)]

        rho_hat is that of all examples, held fixed. Beside `out` this takes memory for a few strips of examples.

        Parameters
        ----------
        theta : array-like, shape (n_parameters,)
            Where to evaluate.
        rows : slice or array-like
            Which examples, as numbers of rows of X as it was given, in any order, or m booleans.
        sparsity : bool
            False leaves the penalties on activations out: the gradients of the losses alone.
        out : ndarray, shape (n, n_parameters), optional
            Where to write: contiguous, of the network's dtype; a `numpy.memmap` where memory does not hold it.

        Returns
        -------
        ndarray, shape (n, n_parameters), the network's dtype
            0 for rows of weight 0. A row does not depend on the others, to the bit.

        Raises
        ------
        InvalidArgumentError
            If an argument has the wrong shape, dtype or range.

        Examples
        --------
        >>> from mlpkit import Dense, Input
        >>> net = MLP([Input(1), Dense(1, "identity", init=1.0)])
        >>> Objective(net, [[1.0], [2.0]], [[1.0], [4.0]]).per_example_gradient(net.theta, rows=[1])
        array([[-4., -2.]])
        """
        point = self._check_theta(theta)
        wanted = numbers_of(rows, self.n_rows)
        sparsity = check_flag(sparsity, "sparsity")
        gradients = check_out(out, (wanted.size, point.size), point.dtype)
        if np.may_share_memory(point, gradients):
            point = point.copy()
        with self._exclusive:
            penalties = self._penalties_at(point, sparsity)
            self._examples(point).gradients(self._engine.output, penalties, wanted, gradients)
        return gradients

    def per_example_gradient_norm(self, theta: ArrayLike, *, sparsity: bool = True) -> NDArray[np.float64]:
        """Return the length of each example's gradient, without the gradients; see `per_example_gradient`.

        For a layer's W and b it is ||delta|| sqrt(||a||^2 + 1): how hard an example pulls at them.

        Returns
        -------
        ndarray of float64, shape (m,)
            0 for rows of weight 0.

        Examples
        --------
        >>> from mlpkit import Dense, Input
        >>> net = MLP([Input(1), Dense(1, "identity", init=0.0)])
        >>> Objective(net, [[0.75], [2.0]], [[4.0], [0.0]]).per_example_gradient_norm(net.theta)
        array([5., 0.])
        """
        point = self._check_theta(theta)
        sparsity = check_flag(sparsity, "sparsity")
        with self._exclusive:
            penalties = self._penalties_at(point, sparsity)
            return self._examples(point).gradient_norms(self._engine.output, penalties)

    def _examples(self, theta: NDArray[Any]) -> Examples:
        """Return the packed examples, each by itself, at theta."""
        data = self._packed("what is asked of each example")
        return Examples(self._plan, self._engine.network(theta), data, self.n_rows, self._used)

    def _penalties_at(self, theta: NDArray[Any], sparsity: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return slopes at theta and strengths as the sweeps take them, or zeros."""
        if not sparsity:
            return np.zeros_like(self._slopes), np.zeros_like(self._strengths)
        self._set_slopes(theta)
        return self._slopes, self._strengths


def _fits(n_bytes: int) -> bool:
    """Say whether the kept activations take at most a quarter of the free memory."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        free = 4 << 30
    return n_bytes <= free // 4
