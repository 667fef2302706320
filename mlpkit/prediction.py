"""Going forward through a network: many rows in parallel strips, or a few with as little Python as possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlpkit.checks import can_hold
from mlpkit.kernels import forward
from mlpkit.kernels.jit import get_num_threads, launch
from mlpkit.kernels.simd import VECTORS
from mlpkit.kernels.tiles import aligned_empty
from mlpkit.layers import Dense, Input
from mlpkit.plan import Plan

__all__ = ["Predictor"]

_REMEMBERED = 8  # numbers of rows whose plans are kept


class _Prepared(NamedTuple):
    """What a number of rows needs, ready to be handed to the kernel."""

    plan: Plan
    network: tuple[Any, ...]
    few: bool  # rows enough for one register, and no activation that couples units
    spare: list[NDArray[Any]]  # working memory for one thread, not in use


class Predictor:
    """Activations of a network's layers for rows of data.

    Parameters
    ----------
    layers : sequence of layers
        `Input` first, then `Dense`.
    theta : ndarray
        The network's live parameters; their dtype is the precision.
    """

    def __init__(self, layers: Sequence[Input | Dense], theta: NDArray[Any]) -> None:
        self._layers = layers
        self._theta = theta
        self._n_inputs = layers[0].units
        self._n_outputs = layers[-1].units
        self._prepared: dict[int, _Prepared] = {}

    def few(self, X: Any, out: Any) -> NDArray[Any] | None:
        """Return the outputs for very few rows that need no conversion, or None if the long way is needed.

        The kernel itself looks for numbers that are not finite, and writes nothing if it finds one.
        """
        dtype = self._theta.dtype
        if type(X) is not np.ndarray or X.dtype is not dtype or X.ndim != 2 or not X.flags.c_contiguous:
            return None
        m, n = X.shape
        if n != self._n_inputs or m == 0:
            return None
        prepared = self._prepared.get(m) or self._prepare(m)
        if not prepared.few:
            return None
        if out is None:
            out = np.empty((m, self._n_outputs), dtype)
        elif not (can_hold(out, (m, self._n_outputs), dtype)):
            return None
        try:
            work = prepared.spare.pop()
        except IndexError:
            work = self._memory(prepared.plan, 1)
        finite = forward.predict_few(prepared.network, prepared.plan.lanes, X.ctypes.data, m, out.reshape(-1), work)
        prepared.spare.append(work)
        return out if finite else None

    def run(self, rows: NDArray[Any], outputs: Sequence[NDArray[Any] | None]) -> None:
        """Write the activations of the dense layers that have an output array, for finite, contiguous rows."""
        m, dtype = rows.shape[0], self._theta.dtype
        prepared = self._prepared.get(m) or self._prepare(m)
        workers = min(get_num_threads(), prepared.plan.cut.n_strips)
        places = np.full(len(outputs), -1, np.int64)
        wanted = [(i, out) for i, out in enumerate(outputs) if out is not None]
        if len(wanted) == 1:
            places[wanted[0][0]] = 0
            target = wanted[0][1].reshape(-1)
        else:
            places[:] = np.cumsum([0] + [out.size for _, out in wanted[:-1]])
            target = np.empty(sum(out.size for _, out in wanted), dtype)
        launch(
            forward.predict_sweep, prepared.network, prepared.plan.tiling, rows.ctypes.data, m, target, places,
            self._memory(prepared.plan, workers), np.zeros(1, np.int64), workers=workers, serial=workers == 1,
        )  # fmt: skip
        if len(wanted) > 1:
            for i, out in wanted:
                out.reshape(-1)[:] = target[places[i] : places[i] + out.size]

    def _memory(self, plan: Plan, workers: int) -> NDArray[Any]:
        size = plan.prediction_rows * plan.lanes * plan.cut.strip_panels
        return aligned_empty(workers * size, plan.dtype).reshape(workers, size)

    def _prepare(self, m: int) -> _Prepared:
        plan = Plan(self._layers, self._theta.dtype, m)
        network = (plan.rows(), 0, self._theta, plan.constants())
        coupled = any(layer.activation.coupled for layer in plan.dense)
        few = m <= plan.lanes // VECTORS and not coupled
        prepared = _Prepared(plan, network, few, [])
        if len(self._prepared) >= _REMEMBERED:
            self._prepared.clear()
        self._prepared[m] = prepared
        return prepared
