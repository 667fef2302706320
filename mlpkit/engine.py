"""The sweeps of one network over a data set that arrives in parts: addresses, memory to work in, launches.

A data set in memory is one part; one that is read from a file while kernels compute is many. What is added to what, and
in which order, follows from the cut of the *whole* data set (`Plan.cut`), so the parts do not show in the result:

- where each piece of the data has a gradient of its own, a part holds some strips of each of several pieces, whose sums
  go on where the part before left them;
- where there is one gradient, a part is a run of whole spans, which follow one another in any case. Sums of activations
  are then made for every few panels and added in order, also in memory, for pieces would be larger than a part.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlpkit.kernels import sweeps
from mlpkit.kernels.jit import get_num_threads, launch
from mlpkit.kernels.tiles import CHUNK, aligned_empty
from mlpkit.plan import Plan
from mlpkit.weights import Packed

__all__ = ["Engine", "Part", "whole"]

_SUMS_AT_ONCE = 256  # sums of activations that are held before they are added up


class Part(NamedTuple):
    """Some of a data set's panels, and where in the sweep they come."""

    data: Packed
    n_panels: int
    first_piece: int  # of those that the panels belong to, with their number and how many strips of each are here
    n_pieces: int
    piece_strips: int
    fresh: bool  # sums start with this part
    last: bool  # after it they are complete
    kept: NDArray[Any] | None = None  # shape (1, n): holds activations from the first sweep to the second


def whole(plan: Plan, data: Packed, kept: NDArray[Any] | None) -> Part:
    """Return a data set that is all in memory as one part."""
    cut = plan.cut
    return Part(data, cut.n_panels, 0, cut.n_pieces, cut.piece_strips, True, True, kept)


class Engine:
    """A network's sweeps, with the memory that they work in.

    Parameters
    ----------
    plan : Plan
        Of the network and the whole data set, with a loss.

    Attributes
    ----------
    plan : Plan
    table : ndarray
        The network's layers as the sweeps take them.
    constants : ndarray
        Ones and zeros, as the sweeps take them.
    output : int
        Address of the output layer's tile function.
    counter : ndarray
        From which threads take work; its second number is not 0 from the moment that work is cancelled.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.constants = plan.constants()
        self.counter = np.zeros(2, np.int64)
        self._nothing = np.zeros((1, 0), plan.dtype)
        self._make_ready()

    def _make_ready(self) -> None:
        """Set up what holds in this process only: addresses, and memory to work in."""
        self.table = self.plan.rows()
        self.output = self.plan.output_address()
        self._sections: dict[str, NDArray[Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"plan": self.plan, "constants": self.constants}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["plan"])  # type: ignore[misc]

    def network(self, theta: NDArray[Any]) -> tuple[Any, ...]:
        """Return the network at theta as the sweeps take it."""
        return self.table, self.plan.n_kept, theta, self.constants

    def memory(self, panels: int, recomputes: bool) -> int:
        """Return the bytes that the present number of threads works in.

        Parameters
        ----------
        panels : int
            In the largest part.
        recomputes : bool
            Whether there are parts whose activations are not kept.
        """
        plan = self.plan
        shapes = self._shapes(self._workers, recomputes)
        numbers = sum(owners * size for owners, size in shapes.values())
        sums = 8 * (self._n_sums(panels) * plan.n_units if plan.n_kept else 0)
        return numbers * plan.dtype.itemsize + sums + 16 * self._n_losses(panels)

    def cancel(self) -> None:
        """Make what is under way on another thread end at once; no result is of use from here on."""
        self.counter[1] = 1

    @property
    def _workers(self) -> int:
        return min(get_num_threads(), self.plan.worker_limit)

    def _shapes(self, workers: int, recomputes: bool) -> dict[str, tuple[int, int]]:
        """Return the shape of each section that is to be allocated."""
        plan = self.plan
        shapes = plan.sections(workers, False)
        if not (recomputes and plan.n_kept):
            del shapes["kept"]
        if plan.n_gradients:
            shapes["gradients"] = (plan.n_gradients, plan.n_parameters)
        return shapes

    def _n_sums(self, panels: int) -> int:
        cut = self.plan.cut
        return min(_SUMS_AT_ONCE, -(-panels // CHUNK)) if cut.by_rows else cut.n_pieces

    def _n_losses(self, panels: int) -> int:
        cut = self.plan.cut
        return -(-panels // cut.strip_panels) if cut.by_rows else cut.n_pieces

    def _array(self, name: str, shape: tuple[int, int], dtype: Any = np.float64) -> NDArray[Any]:
        """Return working memory, which grows when it must."""
        held = self._sections.get(name)
        if held is None or held.shape[0] < shape[0]:
            self._sections.pop(name, None)
            held = self._sections[name] = aligned_empty(shape[0] * shape[1], dtype).reshape(shape)
        return held

    def _memory(self, part: Part) -> tuple[tuple[bool, NDArray[Any]], tuple[Any, ...], int]:
        """Return (keep, kept) and the other sections of memory for a part, and how many threads there are for it."""
        plan, workers = self.plan, self._workers
        keep = part.kept is not None
        shapes = self._shapes(workers, not keep)
        sections = {name: self._array(name, shape, plan.dtype) for name, shape in shapes.items()}
        kept = part.kept if part.kept is not None else sections.get("kept", self._nothing)
        return (keep, kept), (sections["span"], sections["scratch"]), workers

    def _tiling(self, part: Part) -> tuple[int, int, int, int]:
        return (part.n_panels, *self.plan.tiling[1:])

    def sum_activations(self, theta: NDArray[Any], parts: Iterable[Part]) -> NDArray[np.float64]:
        """Return sum_i w_i a_ij of each unit j whose mean activation is penalised; other entries mean nothing.

        This is the forward sweep; it leaves the activations in the parts' own memory where they have any.
        """
        plan = self.plan
        by_rows, strip = plan.cut.by_rows, plan.cut.strip_panels
        total = np.zeros(plan.n_units)
        for part in parts:
            if self.counter[1] != 0:
                break
            memory, _, workers = self._memory(part)
            arguments = self.network(theta), self._tiling(part)
            if not by_rows:
                sums = self._array("sums", (plan.cut.n_pieces, plan.n_units))
                some = sums[part.first_piece : part.first_piece + part.n_pieces]
                where = (0, part.n_panels, part.piece_strips, part.fresh)
                launch(
                    sweeps.forward_sweep, *arguments, where, memory, part.data.X, part.data.weights, some,
                    self.counter, workers=workers,
                )  # fmt: skip
                if part.last:
                    total = sums.sum(axis=0)
                continue
            sums = self._array("sums", (self._n_sums(part.n_panels), plan.n_units))
            step = len(sums) * CHUNK * strip
            for begin in range(0, part.n_panels, step):
                end = min(begin + step, part.n_panels)
                some = sums[: -(-(end - begin) // (CHUNK * strip))]
                launch(
                    sweeps.forward_sweep, *arguments, (begin, end, CHUNK, True), memory, part.data.X,
                    part.data.weights, some, self.counter, workers=workers,
                )  # fmt: skip
                for row in some:  # one after the other, wherever a part ends
                    total += row
        return total

    def gradient(
        self,
        theta: NDArray[Any],
        parts: Iterable[Part],
        penalties: tuple[NDArray[Any], NDArray[Any]],
        scale: Any,
        decay: NDArray[Any],
        gradient: NDArray[Any],
    ) -> tuple[float, float, float]:
        """Fill `gradient` with scale * sum_i w_i grad_i + lambda W.

        Parameters
        ----------
        theta, gradient : ndarray, shape (n_parameters,)
        parts : iterable of Part
        penalties : tuple
            Slopes and strengths, as the sweeps take them.
        scale : scalar of the network's dtype
            1 / sum of weights, or 1.
        decay : ndarray
            lambda of each dense layer.

        Returns
        -------
        tuple of float
            sum_i w_i loss_i, the sum of the L1 penalties' terms, both without `scale`, and the weight decay term.
        """
        plan = self.plan
        loss = l1 = term = 0.0
        for part in parts:
            if self.counter[1] != 0:
                break
            kept, rest, workers = self._memory(part)
            memory = (*kept, *rest)
            work: tuple[Any, ...] = (memory, tuple(part.data), self.output, penalties)
            losses = self._array("losses", (self._n_losses(part.n_panels), 2))
            end = (self.counter, scale, decay, gradient)
            sweep = (self.network(theta), self._tiling(part))
            if plan.cut.by_rows:
                where: tuple[Any, ...] = (part.fresh, part.last, loss, l1)
                loss, l1, term = launch(sweeps.gradient_by_rows, *sweep, where, *work, losses, *end, workers=workers)
            else:
                where = (part.first_piece, part.n_pieces, part.piece_strips, part.fresh, part.last)
                work = (where, *work, self._sections["gradients"], losses)
                loss, l1, term = launch(sweeps.gradient_by_pieces, *sweep, *work, *end, workers=workers)
        return loss, l1, term
