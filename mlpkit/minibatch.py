"""Mini-batch training of one network on one data set: the state of a stochastic optimiser, and its compiled steps.

Steps run in slices, each one call of the engine that takes some 50 ms, so that Python gets to look at the clock, at
Ctrl-C and at whether all is still finite. Where slices begin and end changes nothing. Examples come in windows, of all
of them or of those that memory holds (`mlpkit.row_windows`), and no slice goes beyond one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlpkit.data import Data
from mlpkit.descent import State
from mlpkit.divergence import first_failure
from mlpkit.errors import InvalidArgumentError
from mlpkit.kernels import steps
from mlpkit.kernels.batch_gradient import layout_places
from mlpkit.kernels.jit import MOST_THREADS, launch
from mlpkit.kernels.phases import yield_address
from mlpkit.kernels.simd import BATCH_VECTORS, batch_lanes
from mlpkit.kernels.tiles import aligned_zeros
from mlpkit.mlp import MLP
from mlpkit.objective import Objective
from mlpkit.optimizer_state import StateReader
from mlpkit.pace import Pace
from mlpkit.penalties import KLSparsity
from mlpkit.plan import Plan
from mlpkit.row_windows import Window, choose_windows
from mlpkit.schedules import rates_at
from mlpkit.sparse_inputs import TurnedLayer, no_layer, zeros_pay
from mlpkit.stochastic import Stochastic

__all__ = ["MiniBatches", "Slice"]

_SECONDS_BETWEEN_COPIES = 0.5  # of the parameters, to go back to
_SERIAL_WORK = 750_000  # multiplications in a step; below that, handing work to threads takes longer than doing it
_STATE_VERSION = 1
_YIELD = yield_address()


class Slice(NamedTuple):
    """What a slice of steps brought."""

    n_steps: int
    n_examples: int
    sums: NDArray[np.float64]  # for each step: the weighted losses, L1 penalties, and what penalties on means add to J
    gradient_norm: float = 0.0  # of its last step
    failure: str | None = None  # what became infinite or NaN first; the parameters are then those before the last step


class MiniBatches:
    """A network's parameters, and what a stochastic optimiser knows of them, on their way.

    Parameters
    ----------
    net : MLP
        Where to start; it is not changed.
    data : Data
        Checked examples.
    optimizer : Stochastic
        The rule.
    limit : int, optional
        Bytes that all this may take; see `mlpkit.row_windows.choose_windows`.

    Attributes
    ----------
    theta : ndarray
        The parameters, in the network's dtype.
    epoch, step : int
        Whole epochs and steps taken.
    """

    def __init__(self, net: MLP, data: Data, optimizer: Stochastic, limit: int | None = None) -> None:
        self._net, self._optimizer = net, optimizer
        dtype = net.dtype
        optimizer.check_fits(dtype)
        self._n = data.n_examples
        self._size = size = min(optimizer.batch_size, self._n)
        self.steps_an_epoch = -(-self._n // size)
        self.total_weight = data.total_weight
        self._plan = plan = Plan(net.layers, dtype, size, net.loss, dropout=True)
        self._theta = net.theta.copy()
        first, second = optimizer.moments
        self._moments = tuple(np.zeros(plan.n_parameters if there else 0, dtype) for there in (first, second))
        self.epoch = self.step = 0
        seed = net.seed if optimizer.seed is None else optimizer.seed
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(2,))))
        self._dropout_seed = int(self._generator.integers(1 << 62))
        self._running = np.zeros(plan.n_units + 1)
        self._running[-1] = -1.0 if optimizer.rho_hat_momentum is None else optimizer.rho_hat_momentum
        self._arrays = (self._theta, *self._moments, self._running)
        self._running_known = optimizer.rho_hat_momentum is None or not plan.sparse
        clean = net.layers[0].noise is None  # type: ignore[union-attr]
        self._prepare(data, clean, clean and zeros_pay(data, plan, self.steps_an_epoch))
        self._rows = choose_windows(data, net, optimizer, limit, self._engine_bytes)
        self._window: Window
        self._epoch_began = self._window_began = 0  # the steps taken by then

    def _prepare(self, data: Data, clean: bool, skips: bool) -> None:
        """Set up what the engine works with: for inputs without noise, of which those that are 0 are skipped."""
        plan, dtype, size = self._plan, self._net.dtype, self._size
        lanes = self._lanes = batch_lanes(dtype)
        panels = -(-size // lanes)
        multiplications = 3 * size * sum(block.n_in * block.n_out for block in plan.blocks)
        workers = 1 if multiplications < _SERIAL_WORK else MOST_THREADS
        self._pace = Pace(workers)
        n_in, n_out = plan.blocks[0].n_in, plan.blocks[-1].n_out
        # Where zeros are skipped, no panels of inputs are made, which are targets of an autoencoder otherwise.
        same = not data.widths[1] and clean and not skips
        masked = data.widths[2] > 0
        stripes = max(-(-block.n_in // lanes) for block in plan.blocks)

        def zeros(n: int) -> NDArray[Any]:  # where units are few, a square of numbers is read all the same
            return aligned_zeros(n, dtype, room=lanes * lanes)

        def panel(n: int) -> NDArray[Any]:
            return zeros(panels * lanes * n)

        self._tiles = (
            panel(0 if skips else n_in), panel(0 if same else n_out), panel(1), panel(n_out if masked else 0),
            np.zeros((workers, lanes), np.uint32),
        )  # fmt: skip
        self._memory = (
            panel(max(1, plan.kept_rows)), panel(plan.span_rows),
            zeros(workers * plan.scratch_rows * lanes).reshape(workers, -1),
            zeros(workers * steps.BLOCK_ROWS * stripes * lanes).reshape(workers, -1),
        )  # fmt: skip
        self._network = (plan.rows(), plan.n_kept, self._theta, plan.constants())
        stride = panels * lanes + lanes // BATCH_VECTORS  # powers of two would crowd into a few lines of the cache
        places, length = layout_places(self._network[0], panels * lanes, stride, lanes, skipping=skips)
        self._layout = (places, zeros(length), stride, panels * lanes, lanes)
        self._turned = None
        if skips:
            self._turned = TurnedLayer(plan, self._moments, stride, panels * lanes, lanes, workers)
        self._skip = no_layer(dtype) if self._turned is None else self._turned.arrays
        self._output = plan.output_address()
        sparse, numbers = _penalty_tables(plan)
        self._penalties = (
            np.zeros(plan.n_units, dtype), np.array([layer.l1_strength for layer in plan.dense], dtype),
            sparse, numbers, self._running, float(np.finfo(dtype).max / (16.0 * data.largest_weight)),
        )  # fmt: skip
        drops = [layer.dropout for layer in plan.dense]
        self._drops = any(drops)
        self._thresholds = np.array([min(round(p * 2.0**32), 2**32 - 1) for p in drops], np.uint32)
        self._factors = np.array([1.0 / (1.0 - p) for p in drops], dtype)
        optimizer = self._optimizer
        bounds = (optimizer.clip_norm or 0.0, optimizer.clip_value or 0.0)
        with np.errstate(over="ignore"):  # a bound beyond float32 bounds nothing
            self._settings = np.array([*optimizer.constants, *bounds]).astype(dtype)
        self._scale = dtype.type(self._n / (size * self.total_weight))
        self._work = (
            np.zeros(plan.n_parameters, dtype), np.zeros((panels, 2)), np.zeros((panels, plan.n_units)),
            np.zeros(plan.n_units),
            np.zeros(2 * plan.n_units + (0 if self._turned is None else self._turned.n_groups)),
        )  # fmt: skip
        # Beside the arrays themselves, the search for a step that fails remembers them twice.
        copied = 3 * sum(array.nbytes for array in self._arrays)
        self._engine_bytes = copied + sum(
            array.nbytes for array in (*self._tiles, *self._memory, self._layout[1], *self._skip, *self._work)
        )

    def run_epoch(
        self, look: Callable[[], None] = lambda: None, most: Callable[[], int] = lambda: sys.maxsize
    ) -> Generator[Slice]:
        """Take the steps of one epoch, a slice at a time; one with a failure is the last.

        Parameters
        ----------
        look : callable
            Called every now and then while no slice is yielded; what it raises ends the epoch.
        most : callable
            Returns how many steps the next slice may have, at least 1.
        """
        self._start_running_mean(look)
        self._draw_noise(look)
        self._epoch_began = self.step
        with closing(self._rows.windows(self._generator, look)) as windows:
            for window in windows:
                for part in self._run_window(window, look, most):
                    yield part
                    if part.failure is not None:
                        return
        self.epoch += 1

    def _run_window(self, window: Window, look: Callable[[], None], most: Callable[[], int]) -> Iterator[Slice]:
        """Take the steps of a window."""
        self._window, self._window_began = window, self.step
        end = self.step + -(-window.order.size // self._size)
        # One may go back no further than to where this window's rows begin.
        safe, safe_at = self._remember(), time.perf_counter()
        while self.step < end:
            workers, count = self._pace.next()
            count = min(count, end - self.step, max(1, most()))
            start = time.perf_counter()
            if start - safe_at > _SECONDS_BETWEEN_COPIES:
                safe, safe_at = self._remember(), start
            record, n_examples = self._advance(count, workers)
            self._pace.took(workers, count, time.perf_counter() - start)
            if not self._finite(record):
                began = self.step - count
                failure = self._find_failure(safe, workers, look)
                yield Slice(self.step + 1 - began, 0, np.empty((0, 3)), failure=failure)
                return
            yield Slice(count, n_examples, record[:, :3], float(np.sqrt(record[-1, 3])))

    def _draw_noise(self, look: Callable[[], None]) -> None:
        """Make the epoch's noisy inputs."""
        self._rows.draw_noise(self._generator, look)

    def _finite(self, record: NDArray[np.float64]) -> bool:
        # While W lies turned over, the parameters have an old one.
        return bool(
            np.isfinite(record[:, :3]).all() and np.isfinite(self._theta).all() and np.isfinite(self._skip[0]).all()
        )

    @property
    def theta(self) -> NDArray[Any]:
        """The parameters, in the network's dtype."""
        self._settle()
        return self._theta

    def _settle(self) -> None:
        """Bring theta and what the optimiser remembers up to date."""
        if self._turned is not None:
            self._turned.give_back(self._theta, self._moments)

    def _remember(self) -> tuple[Any, ...]:
        self._settle()
        return (self.step, *(array.copy() for array in self._arrays))

    def _go_back(self, safe: tuple[Any, ...]) -> None:
        self.step = safe[0]
        self._forget()
        for array, before in zip(self._arrays, safe[1:], strict=True):
            array[:] = before

    def _forget(self) -> None:
        """Say that parameters are about to be set."""
        if self._turned is not None:
            self._turned.forget()

    def _find_failure(self, safe: tuple[Any, ...], workers: int, look: Callable[[], None]) -> str:
        """Leave the parameters as before the first step since `safe` that fails, and say why it does.

        Steps are taken again, half of those in question at a time: what has become infinite or NaN stays so.
        """
        before, count = safe, self.step - safe[0]
        while True:
            self._go_back(before)
            look()
            some = (count + 1) // 2
            record, _ = self._advance(some, workers)
            if self._finite(record) and count > some:
                before, count = self._remember(), count - some
            elif some > 1:
                count = some
            else:
                break
        after = self.theta.copy()
        self._go_back(before)
        numbers = self._batch(1)
        inputs, evaluate = self._window.X[numbers], self._objective_of(numbers)
        what = first_failure(self._net, self.theta, inputs, evaluate)
        if what is None:
            what = first_failure(self._net, after, inputs, evaluate)
        return what or "the step"

    def _objective_of(
        self, numbers: NDArray[np.int64]
    ) -> Callable[[NDArray[Any]], tuple[dict[str, float], NDArray[Any]]]:
        """Return what gives the terms of J and its gradient for some examples: nothing where no target counts."""
        rows, weights = self._window, self._window.weights[numbers]
        mask = None if not rows.elements.size else rows.elements[numbers] > 0
        if not weights.any() or not (mask is None or mask.any()):
            return lambda theta: ({}, np.zeros_like(theta))
        return Objective(self._net, rows.X[numbers], rows.Y[numbers], weights, mask=mask).terms_and_gradient

    def _batch(self, count: int) -> NDArray[np.int64]:
        """Return the numbers of the window's rows that the next steps see."""
        done = self.step - self._window_began
        return self._window.order[done * self._size : (done + count) * self._size]

    def _advance(self, count: int, workers: int) -> tuple[NDArray[np.float64], int]:
        """Take `count` steps; return their record, and how many examples they saw."""
        numbers = self._batch(count)
        dtype = self._net.dtype
        optimizer = self._optimizer
        times = np.arange(self.step + 1, self.step + count + 1)
        rates = np.empty((count, 3))
        # Not self.step: for `partial_fit`, epochs may differ in length.
        began = self.epoch * self.steps_an_epoch + self.step - self._epoch_began
        rates[:, 0] = rates_at(optimizer.learning_rate, began, count, self.steps_an_epoch)  # type: ignore[attr-defined]
        rates[:, 1], rates[:, 2] = optimizer.corrections(times, dtype)
        seeds = self._dropout_seed + times if self._drops else times[:0]
        with np.errstate(over="ignore"):  # a rate beyond float32 makes the step fail, and that is said
            rates = rates.astype(dtype)
        update = (
            optimizer.rule, self._settings, rates, *self._moments, np.array(self._net.decays, dtype),
            self._scale,
        )  # fmt: skip
        record = np.zeros((count, 4))
        batch = (self._size, self._lanes)
        window = self._window
        if self._turned is not None:
            self._turned.take(self._theta, self._moments)
        rows = (window.X.ctypes.data, window.Y.ctypes.data, window.weights, window.elements)
        launch(
            steps.run_steps, self._network, rows, numbers, batch, self._tiles, self._memory, self._layout,
            self._output, self._penalties, (seeds, self._thresholds, self._factors), update, self._work,
            self._skip, np.zeros((workers + 1) * steps.PHASES * count, np.int64), _YIELD, record,
            workers=workers, serial=workers == 1,
        )  # fmt: skip
        self.step += count
        return record, numbers.size

    def _start_running_mean(self, look: Callable[[], None]) -> None:
        """Begin the running mean of activations with that of all examples."""
        if self._running_known:
            return
        plan = self._plan
        net = self._net.__copy__()
        net.theta = self.theta
        total = np.zeros(plan.n_units)
        for X, weights in self._rows.slabs():
            look()
            w = weights.astype(np.float64)
            layers = net.activations(X)
            for i in plan.sparse:
                total[plan.units(i)] += w @ layers[i]
        self._running[:-1] = total / self.total_weight
        self._running_known = True

    # State -----------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Return all that it takes to go on from here, to the bit; good between epochs."""
        self._settle()
        name = type(self._optimizer).__name__
        return {
            "optimizer": name,
            "version": _STATE_VERSION,
            "iteration": self.epoch,
            "step": self.step,
            "theta": self.theta.astype(np.float64),
            "first": self._moments[0].astype(np.float64),
            "second": self._moments[1].astype(np.float64),
            "running": self._running.copy(),
            "running_known": int(self._running_known),
            "dropout_seed": self._dropout_seed,
            "generator": json.dumps(self._generator.bit_generator.state),
        }

    def restore(self, state: State) -> None:
        """Go on from what `state` returned.

        Raises
        ------
        InvalidArgumentError
            If it is of another optimiser or does not fit the network.
        """
        reader = StateReader(state, type(self._optimizer).__name__, _STATE_VERSION, self.theta)
        arrays = {"theta": self.theta, "first": self._moments[0], "second": self._moments[1], "running": self._running}
        found = {name: reader.array(name, target.shape) for name, target in arrays.items()}
        self.epoch, self.step = reader.iteration, reader.integer("step")
        self._dropout_seed = reader.integer("dropout_seed")
        self._running_known = bool(reader.integer("running_known"))
        try:
            self._generator.bit_generator.state = json.loads(reader.text("generator"))
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidArgumentError(f"state['generator'] must be that of a PCG64 generator ({error})") from None
        self._forget()
        for name, target in arrays.items():
            target[:] = found[name]


def _penalty_tables(plan: Plan) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the penalties on mean activations as the engine takes them."""
    sparse, numbers = [], []
    for i in plan.sparse:
        layer, units = plan.dense[i], plan.units(i)
        offset = -layer.to_unit(np.zeros(1))[0] / layer.unit_slope
        for penalty in layer.mean_penalties:
            kl = isinstance(penalty, KLSparsity)
            address = 0 if isinstance(penalty, KLSparsity) else penalty.penalty.compiled.address
            sparse.append((units.start, units.stop - units.start, address))
            numbers.append((penalty.rho if kl else 0.0, penalty.beta, offset, layer.unit_slope))  # type: ignore[union-attr]
    return np.array(sparse, np.int64).reshape(-1, 3), np.array(numbers, np.float64).reshape(-1, 4)
