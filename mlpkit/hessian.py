"""Products of an objective's Hessian with vectors: the plan of their memory, the addresses, and the order of sweeps.

`Objective.hessian_vector_product` is what users call; the formulas are in `mlpkit.kernels.second_order`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core.ccallback import CFunc
from numpy.typing import NDArray

from mlpkit.activations.record import curvature_tile, forward_tile, tangent_tile
from mlpkit.engine import Engine
from mlpkit.kernels import second_order
from mlpkit.kernels.jit import get_num_threads, launch
from mlpkit.kernels.tiles import aligned_empty, cut
from mlpkit.losses.record import output_curvature_tile
from mlpkit.weights import Packed

__all__ = ["HessianProducts"]

_LARGEST = np.finfo(np.float64).max


class HessianProducts:
    """What products with the Hessian need beside what gradients need; made at the first product.

    Values and rates of all layers are held for one strip a thread where the parameters are few, for one span where
    they are many, and never for all examples: a sweep forward for mean activations is done again in the second sweep.

    Parameters
    ----------
    engine : Engine
        The objective's own, which can be told to cancel what is under way.

    Attributes
    ----------
    memory : int
        Bytes that are held after the first product with the present number of threads.
    """

    def __init__(self, engine: Engine) -> None:
        plan = self._plan = engine.plan
        assert plan.loss is not None
        dtype, top = plan.dtype, len(plan.dense) - 1
        self._table, self._constants, self._counter = engine.table, engine.constants, engine.counter
        self._functions = np.zeros((top + 1, second_order.FUNCTION_COLUMNS), np.int64)
        for row, layer in zip(self._functions, plan.dense, strict=True):
            row[second_order.FORWARD] = _address(forward_tile(layer.activation, dtype, False))
            row[second_order.TANGENT] = _address(tangent_tile(layer.activation, dtype))
            row[second_order.CURVATURE] = _address(curvature_tile(layer.activation, dtype))
        self._output = _address(output_curvature_tile(plan.loss, plan.dense[top].activation, dtype))
        # A penalised output layer needs room for the second part of its delta, and for that one's rate.
        self._rows = second_order.FIELDS * plan.n_units + (
            2 * plan.dense[top].units if plan.dense[top].penalties else 0
        )
        live = plan.blocks[0].n_in + plan.dense[top].units + self._rows
        self._cut = cut(plan.cut.n_panels * plan.lanes, dtype, live, self._rows, plan.n_parameters)
        self._sums, self._rates = (np.zeros((self._cut.n_pieces, plan.n_units)) for _ in range(2))
        self._terms = (np.zeros(plan.n_units, dtype), np.zeros(plan.n_units, dtype))
        n_products = 0 if self._cut.by_rows else self._cut.n_pieces
        self._products = aligned_empty(n_products * plan.n_parameters, dtype).reshape(n_products, plan.n_parameters)
        self._held = np.empty((0, 0), dtype)

    @property
    def memory(self) -> int:
        """Bytes."""
        owners = 1 if self._cut.by_rows else self._workers
        numbers = owners * self._owned + self._products.size
        return numbers * self._plan.dtype.itemsize

    @property
    def _workers(self) -> int:
        c = self._cut
        return min(get_num_threads(), c.n_pieces, c.span_panels // c.strip_panels if c.by_rows else c.n_pieces)

    @property
    def _owned(self) -> int:
        """How many numbers the owner of a span's memory holds."""
        return self._rows * self._cut.span_panels * self._plan.lanes

    def product(
        self,
        theta: NDArray[Any],
        v: NDArray[Any],
        data: Packed,
        total_weight: float,
        decay: NDArray[Any],
        strengths: NDArray[Any],
        steepest: float,
        out: NDArray[Any],
    ) -> None:
        """Write the product of the Hessian at `theta` and `v` to `out`, which is neither of them.

        Parameters
        ----------
        theta, v, out : ndarray, shape (n_parameters,)
            Contiguous, in the network's dtype.
        data : Packed
            Packed inputs, targets and weights, as the sweeps take them.
        total_weight : float
            The sum of the weights.
        decay : ndarray
            lambda of each dense layer.
        strengths : ndarray
            Of each dense layer's L1 penalty.
        steepest : float
            What sparsity terms are held to, lest an infinite one meet an f' of 0.
        """
        c, plan, workers = self._cut, self._plan, self._workers
        owners = 1 if c.by_rows else workers
        if self._held.shape[0] < owners:
            self._held = aligned_empty(owners * self._owned, plan.dtype).reshape(owners, self._owned)
        network = (self._table, self._functions, theta, v, self._constants)
        tiling = (c.n_panels, c.strip_panels, c.span_panels, plan.lanes)
        if plan.sparse:
            launch(
                second_order.mean_rates_sweep, network, plan.n_kept, tiling, c.piece_strips, self._held, data.X,
                data.weights, self._sums, self._rates, self._counter, workers=workers,
            )  # fmt: skip
            means, rates = (sums.sum(axis=0) / total_weight for sums in (self._sums, self._rates))
            self._find_terms(means, rates, steepest)
        work: tuple[Any, ...] = (self._held, tuple(data), self._output, (*self._terms, strengths))
        whole = (self._counter, plan.dtype.type(1.0 / total_weight), decay, out)
        if c.by_rows:
            launch(second_order.product_by_rows, network, tiling, *work, *whole, workers=workers)
        else:
            work = (c.piece_strips, *work, self._products)
            launch(second_order.product_by_pieces, network, tiling, *work, *whole, workers=workers)

    def _find_terms(self, means: NDArray[np.float64], rates: NDArray[np.float64], steepest: float) -> None:
        """Set what penalties on means add to each unit's delta before f', and its rate: s is linear.

        means, rates: of the activations themselves, not mapped to [0, 1].
        """
        for i in self._plan.sparse:
            units, layer = self._plan.units(i), self._plan.dense[i]
            rho_hat, s = layer.to_unit(means[units]), layer.unit_slope
            slope, bend = np.zeros((2, rho_hat.size))
            for penalty in layer.mean_penalties:
                slope += s * penalty.derivative(rho_hat)
                bend += s * s * penalty.second_derivative(rho_hat)
            bend = np.clip(bend, -_LARGEST, _LARGEST)  # infinity times a rate of 0 would be NaN
            for terms, values in zip(self._terms, (slope, bend * rates[units]), strict=True):
                terms[units] = np.minimum(np.maximum(values, -steepest), steepest)


def _address(tile: CFunc) -> int:
    address = tile.address
    assert address is not None
    return address
