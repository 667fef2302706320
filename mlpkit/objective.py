"""The objective J(theta) of the notes, its terms and its exact gradient, over data held in memory.

    J(theta) = sum_i w_i loss(h(x_i), y_i) / sum_i w_i  +  sum_l lambda_l / 2 sum (W^(l))^2
             + sum over sparse layers  beta sum_j KL(rho || rho_hat_j), or other penalties on activations

rho_hat is a mean over *all* examples, so where a layer is sparse one sweep forward over everything comes before the
sweep that goes backward (section 3 of the notes). Between the two, the hidden activations are kept, or computed again
where they would take too much memory; both ways give the same bits. Division by the sum of weights happens here, once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.checks import check_flag, check_out, real_array
from mlpkit.data import Data
from mlpkit.errors import InvalidArgumentError
from mlpkit.evaluation import Evaluation
from mlpkit.hessian import HessianProducts
from mlpkit.kernels import sweeps
from mlpkit.kernels.jit import Exclusive, get_num_threads, launch
from mlpkit.kernels.tiles import aligned_empty
from mlpkit.mlp import MLP, check_network
from mlpkit.per_example import Examples, numbers_of
from mlpkit.plan import Plan
from mlpkit.weights import ClassWeight

__all__ = ["Objective"]


class Objective:
    """A network and a data set as a function of theta: J, its gradient and its terms.

    The data are checked and packed once. The network is read when the objective is made and never changed by it.

    Parameters
    ----------
    net : MLP
        Layers, loss and weight decay.
    X : array-like, shape (m, s_1)
        Examples in rows.
    Y : array-like
        Targets, shape (m, s_{n_l}), or (m,) for one output; for cross-entropy integer class labels (m,) or rows of
        probabilities. X itself, or an equal array, makes an autoencoder and is packed once.
    sample_weight : array-like, shape (m,), optional
        w_i >= 0, not all 0; examples of weight 0 are left out.
    keep_activations : bool, optional
        Whether to keep the hidden activations from the first sweep to the second (the notes' first way) or to compute
        them twice (the second way). None keeps them if they take at most a quarter of the free memory.
    class_weight : mapping, array-like or "balanced", optional
        Weights of the classes, for cross-entropy, and for binary cross-entropy with one output: a mapping from labels
        (1 for those it does not name), or one weight for each class. w_i is multiplied by that of the example's class;
        where targets are probabilities, by their mean, sum_j y_ij c_j. ``"balanced"`` gives each class the same weight
        in all.
    mask : array-like of bool, shape (m, s_{n_l}), optional
        True where a target counts. The others, which may be NaN, bring nothing to loss and gradient, and are read as 0
        by class weights; the sum of weights that J is divided by stays what it is.

    Raises
    ------
    InvalidArgumentError
        Naming the argument, what was expected and what was found.

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
    ) -> None:
        check_network(net)
        if keep_activations is not None:
            keep_activations = check_flag(keep_activations, "keep_activations")
        self.net = net
        dtype = net.dtype
        data = Data(net, X, Y, sample_weight, class_weight, mask)
        self.n_examples = data.n_examples
        self._plan = plan = Plan(net.layers, dtype, self.n_examples, net.loss)
        n_lanes = plan.cut.n_panels * plan.lanes
        self._keep = plan.n_kept > 0 and (
            _fits(plan.kept_rows * n_lanes * dtype.itemsize) if keep_activations is None else keep_activations
        )
        self._packed_bytes = n_lanes * data.numbers_an_example * dtype.itemsize
        try:
            self._data = data.pack(n_lanes)
        except MemoryError as error:
            raise MemoryError(f"the objective needs {self.memory / 1e9:.3g} GB for these data") from error
        self.n_rows, self._used = data.n_rows, data.used
        self._total_weight = data.total_weight
        self._scale = dtype.type(1.0 / self._total_weight)
        # A dead unit's slope rho / tiny would be infinite in float32, and infinity times its f' = 0 is NaN.
        self._steepest = np.finfo(dtype).max / (16.0 * data.largest_weight)
        self._decay = np.array(net.decays, dtype)
        self._strengths = np.array([layer.l1_strength for layer in plan.dense], dtype)
        self._penalized = [(plan.units(i), plan.dense[i]) for i in plan.sparse]
        self._constants = plan.constants()
        self._counter = np.zeros(2, np.int64)
        self._slopes = np.zeros(plan.n_units, dtype)
        self._sums = np.zeros((plan.cut.n_pieces, plan.n_units))
        self._losses = np.zeros((plan.n_losses, 2))
        self._make_ready()

    def _make_ready(self) -> None:
        """Set up what holds in this process only: addresses, memory to work in, a lock."""
        self._table = self._plan.rows()
        self._output = self._plan.output_address()
        self._sections: dict[str, NDArray[Any]] = {}
        self._hessian: HessianProducts | None = None
        self._exclusive = Exclusive("an objective cannot be evaluated inside its own evaluation (by a signal handler?)")

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_table", "_output", "_sections", "_hessian", "_exclusive"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_ready()

    def __repr__(self) -> str:
        return f"<Objective of {self.net!r} on {self.n_examples} examples, {self.memory / 1e6:.1f} MB>"

    @property
    def memory(self) -> int:
        """Bytes that the objective holds once it has been evaluated with the present number of threads.

        Packed X, Y (if different), weights and, with a mask, a weight for each target, which it holds from the start;
        and, allocated at the first evaluation, kept activations, activations and deltas of what is in work, and partial
        gradients.

        Examples
        --------
        >>> from mlpkit import Dense, Input
        >>> Objective(MLP([Input(2), Dense(1, "tanh")]), [[0.0, 0.0]], [0.0]).memory > 0
        True
        """
        plan = self._plan
        workers = min(get_num_threads(), plan.worker_limit)
        sections = plan.sections(workers, self._keep).values()
        numbers = sum(owners * size for owners, size in sections) + plan.n_gradients * plan.n_parameters
        return self._packed_bytes + numbers * self.net.dtype.itemsize

    @property
    def value_and_gradient(self) -> Evaluation:
        """The function theta -> (J, gradient), to call or to hand to an optimiser; see `Evaluation`.

        Examples
        --------
        >>> from mlpkit import Dense, Input
        >>> net = MLP([Input(1), Dense(1, "identity", init=0.0)])
        >>> Objective(net, [[1.0]], [[2.0]]).value_and_gradient(net.theta)[0]
        2.0
        """
        return Evaluation(self)

    def terms(self, theta: ArrayLike) -> dict[str, float]:
        """Return J's terms at theta: ``data``, ``weight_decay`` and ``sparsity``, which sum to J.

        Examples
        --------
        >>> from mlpkit import Dense, Input
        >>> net = MLP([Input(1), Dense(1, "identity", init=1.0)], weight_decay=0.5)
        >>> Objective(net, [[1.0]], [[1.0]]).terms(net.theta)
        {'data': 0.0, 'weight_decay': 0.25, 'sparsity': 0.0}
        """
        return self.terms_and_gradient(theta)[0]

    def terms_and_gradient(
        self, theta: ArrayLike, out: NDArray[Any] | None = None
    ) -> tuple[dict[str, float], NDArray[Any]]:
        """Return J's terms and its gradient; otherwise as `value_and_gradient`.

        Examples
        --------
        >>> from mlpkit import Dense, Input
        >>> net = MLP([Input(1), Dense(1, "identity", init=0.0)])
        >>> Objective(net, [[1.0]], [[2.0]]).terms_and_gradient(net.theta)
        ({'data': 2.0, 'weight_decay': 0.0, 'sparsity': 0.0}, array([-2., -2.]))
        """
        point = self._check_theta(theta)
        gradient = check_out(out, point.shape, point.dtype)
        if np.may_share_memory(point, gradient):  # theta is read again after the gradient's first numbers are written
            point = point.copy()
        with self._exclusive:
            return self._evaluate(point, gradient), gradient

    def cancel(self) -> None:
        """Make the evaluation under way on another thread end at once; no result is of use from here on."""
        self._counter[1] = 1

    def rho_hat(self, theta: ArrayLike) -> list[NDArray[np.float64]]:
        """Return the mean activation of each unit: a float64 array for each layer with a penalty on it.

        It is mapped to [0, 1] where the activation's range is bounded.

        Examples
        --------
        >>> import mlpkit
        >>> net = mlpkit.sparse_autoencoder(n_inputs=2, n_hidden=3)
        >>> Objective(net, [[0.1, 0.2]], [[0.1, 0.2]]).rho_hat(net.theta)[0].shape
        (3,)
        """
        point = self._check_theta(theta)
        if not self._penalized:
            return []
        with self._exclusive:
            return self._mean_activations(point)

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
        point, direction = self._check_theta(theta), self._check_theta(v, "v")
        product = check_out(out, point.shape, point.dtype)
        point, direction = (a.copy() if np.may_share_memory(a, product) else a for a in (point, direction))
        with self._exclusive:
            if self._hessian is None:
                self._hessian = HessianProducts(self._plan, self._table, self._constants)
            weights = (self._total_weight, self._decay, self._strengths)
            self._hessian.product(point, direction, self._data, *weights, self._steepest, product)
        return product

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
            self._examples(point).gradients(self._output, penalties, wanted, gradients)
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
            return self._examples(point).gradient_norms(self._output, penalties)

    def _examples(self, theta: NDArray[Any]) -> Examples:
        """Return the packed examples, each by itself, at theta."""
        network = (self._table, self._plan.n_kept, theta, self._constants)
        return Examples(self._plan, network, self._data, self.n_rows, self._used)

    def _penalties_at(self, theta: NDArray[Any], sparsity: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return slopes at theta and strengths as the sweeps take them, or zeros."""
        if not sparsity:
            return np.zeros_like(self._slopes), np.zeros_like(self._strengths)
        self._set_slopes(theta)
        return self._slopes, self._strengths

    def _check_theta(self, theta: ArrayLike, name: str = "theta") -> NDArray[Any]:
        point = real_array(theta, name)
        if point.shape != (self._plan.n_parameters,):
            raise InvalidArgumentError(
                f"{name} must have shape ({self._plan.n_parameters},); found shape {point.shape}"
            )
        with np.errstate(over="ignore"):
            point = np.ascontiguousarray(point, dtype=self.net.dtype)
        return point if point.flags.writeable else point.copy()  # kernels would be compiled anew for a read-only one

    def _allocate(self) -> int:
        """Return how many threads to use, with working memory for them in place; it grows with the threads."""
        plan, dtype = self._plan, self.net.dtype
        workers = min(get_num_threads(), plan.worker_limit)
        for name, (owners, size) in plan.sections(workers, self._keep).items():
            if name not in self._sections or self._sections[name].shape[0] < owners:
                self._sections[name] = aligned_empty(owners * size, dtype).reshape(owners, size)
        if plan.n_gradients and "gradients" not in self._sections:
            gradients = aligned_empty(plan.n_gradients * plan.n_parameters, dtype)
            self._sections["gradients"] = gradients.reshape(plan.n_gradients, plan.n_parameters)
        return workers

    def _mean_activations(self, theta: NDArray[Any]) -> list[NDArray[np.float64]]:
        """Run the forward sweep; leave the kept activations in place; return rho_hat of the layers that want it."""
        plan = self._plan
        workers = self._allocate()
        network = (self._table, plan.n_kept, theta, self._constants)
        memory = (self._keep, self._sections["kept"])
        launch(
            sweeps.forward_sweep, network, plan.tiling, plan.cut.piece_strips, memory, self._data.X, self._data.weights,
            self._sums, self._counter, workers=workers,
        )  # fmt: skip
        means = self._sums.sum(axis=0) / self._total_weight
        return [layer.to_unit(means[units]) for units, layer in self._penalized]

    def _set_slopes(self, theta: NDArray[Any]) -> float:
        """Find the derivative of the penalties on each unit's mean activation; return what they add to J."""
        sparsity = 0.0
        if self._penalized:
            means = self._mean_activations(theta)
            for (units, layer), rho_hat in zip(self._penalized, means, strict=True):
                slope = np.zeros(rho_hat.size)
                for penalty in layer.mean_penalties:
                    sparsity += penalty.value(rho_hat)
                    slope += penalty.derivative(rho_hat) * layer.unit_slope
                self._slopes[units] = np.minimum(np.maximum(slope, -self._steepest), self._steepest)
        return sparsity

    def _evaluate(self, theta: NDArray[Any], gradient: NDArray[Any]) -> dict[str, float]:
        """Fill `gradient` and return the terms of J."""
        plan = self._plan
        sparsity = self._set_slopes(theta)
        workers = self._allocate()
        network = (self._table, plan.n_kept, theta, self._constants)
        memory = (self._keep, *(self._sections[name] for name in ("kept", "span", "scratch")))
        penalties = (self._slopes, self._strengths)
        work: tuple[Any, ...] = (memory, tuple(self._data), self._output, penalties)
        whole = (self._losses, self._counter, self._scale, self._decay, gradient)
        sweep = (network, plan.tiling)
        if plan.cut.by_rows:
            loss, l1, decay = launch(sweeps.gradient_by_rows, *sweep, *work, *whole, workers=workers)
        else:
            work = (plan.cut.piece_strips, *work, self._sections["gradients"])
            loss, l1, decay = launch(sweeps.gradient_by_pieces, *sweep, *work, *whole, workers=workers)
        data, sparsity = loss / self._total_weight, sparsity + l1 / self._total_weight
        return {"data": data, "weight_decay": decay, "sparsity": sparsity}


def _fits(n_bytes: int) -> bool:
    """Say whether the kept activations take at most a quarter of the free memory."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        free = 4 << 30
    return n_bytes <= free // 4
