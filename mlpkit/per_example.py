"""Losses, gradients and their lengths for each example of an objective; Jacobians of a network's outputs.

Numbers of examples count the rows of the data as they were given. Rows of weight 0 were left out when the data were
packed, so nothing is known of them, and what they contribute is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpkit.checks import real_array
from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels import per_example
from mlpkit.kernels.jit import get_num_threads, launch
from mlpkit.kernels.tiles import aligned_empty
from mlpkit.layers import Dense, Input
from mlpkit.losses import Loss
from mlpkit.losses.record import example_losses_tile
from mlpkit.plan import Plan
from mlpkit.weights import Packed

__all__ = ["Examples", "jacobian", "numbers_of"]

_WORK = 1 << 29  # multiplications between two looks: some 20 ms


class Examples:
    """The packed examples of an objective, each by itself.

    Parameters
    ----------
    plan : Plan
        The objective's.
    network : tuple
        As the sweeps take it, theta included.
    data : Packed
        Packed inputs, targets and weights. What the weights are does not matter, but for 0 in those of masked targets.
    n_rows : int
        Rows of the data as they were given.
    used : ndarray of int or None
        Which rows are packed, in ascending order; None for all.
    """

    def __init__(
        self, plan: Plan, network: tuple[Any, ...], data: Packed, n_rows: int, used: NDArray[np.intp] | None
    ) -> None:
        self._plan = plan
        self._network = network
        self._data = data
        self._n_rows = n_rows
        self._used = used

    def losses(self, look: Callable[[], None] = lambda: None) -> NDArray[np.float64]:
        """Return the loss of each example, some at a time; `look` is called in between, and may raise."""
        plan = self._plan
        assert plan.loss is not None
        output = example_losses_tile(plan.loss, plan.dense[-1].activation, plan.dtype).address
        return self._of_all(per_example.loss_sweep, output, look=look)

    def gradient_norms(self, output: int, penalties: tuple[NDArray[Any], ...]) -> NDArray[np.float64]:
        """Return ||g_i|| of each example.

        output: address of the output layer's tile function; penalties: slopes and strengths, as the sweeps take them.
        """
        squares = self._of_all(per_example.norm_sweep, output, penalties)
        return np.sqrt(np.maximum(squares, 0))  # products of tied weights may cancel to a little less than 0

    def gradients(
        self, output: int, penalties: tuple[NDArray[Any], ...], rows: NDArray[np.intp], out: NDArray[Any]
    ) -> None:
        """Write g_i of the examples numbered `rows` to the rows of `out`; otherwise as `gradient_norms`."""
        examples, places = rows, np.arange(rows.size)
        if self._used is not None:
            examples = np.searchsorted(self._used, rows)
            found = self._used[np.minimum(examples, self._used.size - 1)] == rows
            out[~found] = 0
            examples, places = examples[found], places[found]
        if examples.size > 0:
            self._run(per_example.gradient_sweep, output, penalties, examples, places, out.ctypes.data)

    def _of_all(self, sweep: Any, *arguments: Any, look: Callable[[], None] | None = None) -> NDArray[np.float64]:
        """Return one number for each row of the data as they were given, from one for each packed example."""
        m, n_lanes = self._n_rows if self._used is None else self._used.size, self._plan.lanes
        found = np.zeros(-(-m // n_lanes) * n_lanes)
        work = sum(block.n_in * block.n_out for block in self._plan.blocks)
        some = m if look is None else max(16, _WORK // (work * n_lanes)) * n_lanes
        for begin in range(0, m, some):
            if look is not None:
                look()
            self._run(sweep, *arguments, np.arange(begin, min(begin + some, m)), found[begin:])
        if self._used is None:
            return found[:m].copy()
        everywhere = np.zeros(self._n_rows)
        everywhere[self._used] = found[:m]
        return everywhere

    def _run(self, sweep: Any, *arguments: Any) -> None:
        """Launch a sweep, with room for a strip of gathered examples a thread."""
        plan = self._plan
        strip, inputs, outputs = plan.cut.strip_panels, plan.blocks[0].n_in, plan.dense[-1].units
        workers = min(get_num_threads(), plan.cut.n_strips)
        columns = (inputs, outputs, 1, outputs if self._data.elements.size else 0)
        data = tuple(aligned_empty(n * workers * strip * plan.lanes, plan.dtype) for n in columns)
        data[2][:] = 1
        work = _memory(plan, workers, strip, inputs + 2 * plan.n_units)
        launch(
            sweep, self._network, _tiling(plan), tuple(self._data), data, *arguments, work, np.zeros(1, np.int64),
            workers=workers,
        )  # fmt: skip


def _tiling(plan: Plan) -> tuple[int, ...]:
    """Return numbers an example in each section, panels a strip, and lanes."""
    return plan.kept_rows, plan.span_rows, plan.scratch_rows, plan.cut.strip_panels, plan.lanes


def _memory(plan: Plan, workers: int, panels: int, more: int) -> NDArray[Any]:
    """Return a row for each thread: the sections for a strip of so many panels, and `more` numbers for each lane."""
    size = ((plan.kept_rows + plan.span_rows + plan.scratch_rows) * panels + more) * plan.lanes
    return aligned_empty(workers * size, plan.dtype).reshape(workers, size)


def numbers_of(rows: Any, m: int) -> NDArray[np.intp]:
    """Return which of m examples a slice or an array of integers (from -m to m - 1) or of m booleans stands for.

    Examples
    --------
    >>> numbers_of(slice(1, None, 2), 4), numbers_of([-1, 0], 4)
    (array([1, 3]), array([3, 0]))
    """
    if isinstance(rows, slice):
        try:
            return np.arange(m)[rows]
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"rows must be a slice of integers; found {rows!r}") from error
    found = real_array(rows, "rows")
    if found.size == 0 and found.ndim == 1:
        found = found.astype(np.intp)
    if found.ndim != 1 or found.dtype.kind not in "iub" or (found.dtype.kind == "b" and found.size != m):
        raise InvalidArgumentError(
            f"rows must be a slice, a one-dimensional array of integers or one of {m} booleans; found shape "
            f"{found.shape}, dtype {found.dtype}"
        )
    if found.dtype.kind == "b":
        return np.flatnonzero(found)
    bad = np.flatnonzero((found < -m) | (found >= m))
    if bad.size:
        raise InvalidArgumentError(f"rows must hold integers from {-m} to {m - 1}; found {found[bad[0]]}")
    return found.astype(np.intp) % m


def jacobian(layers: Sequence[Input | Dense], loss: Loss, theta: NDArray[Any], X: NDArray[Any]) -> NDArray[Any]:
    """Return the derivative of the outputs in the inputs for finite, contiguous rows: (m, s_{n_l}, s_1)."""
    m = X.shape[0]
    plan = Plan(layers, theta.dtype, m, loss)
    n_in, n_out = layers[0].units, layers[-1].units
    out = np.empty((m, n_out, n_in), theta.dtype)
    network = (plan.rows(), plan.n_kept, theta, plan.constants())
    workers = min(get_num_threads(), plan.cut.n_panels)
    work = _memory(plan, workers, 1, 3 * n_in)
    coupled = plan.dense[-1].activation.coupled
    launch(
        per_example.jacobian_sweep, network, _tiling(plan), X.ctypes.data, m, coupled, out.ctypes.data, work,
        np.zeros(1, np.int64), workers=workers,
    )  # fmt: skip
    return out
