"""Phases of work: every item is done once, and nobody goes on before all are, however threads come and go."""

from __future__ import annotations

import threading
import time

import numba
import numpy as np
import pytest

from mlpkit.kernels.jit import kernel
from mlpkit.kernels.phases import finish, release, take, wait, yield_address


@kernel
def _work(tickets, yielding, n_phases, n_items, worker, n_workers, done, seen):
    """Count each item in `done`; note whether the phase before was done when it began, and who sees a phase end."""
    for phase in range(n_phases):
        while True:
            item = take(tickets, phase, n_items, worker, n_workers)
            if item < 0:
                break
            if phase > 0 and done[phase - 1].sum() == n_items:
                seen[phase, item] += 1
            done[phase, item] += 1
            if finish(tickets, phase, n_items, n_workers):
                if done[phase].sum() == n_items:
                    seen[phase, n_items] += 1
                release(tickets, phase, n_workers)
        wait(tickets, phase, n_items, n_workers, yielding)


@pytest.mark.parametrize("n_items", [1, 3, 7])
@pytest.mark.parametrize("late", [0.0, 0.05, None], ids=["together", "late", "never"])
def test_every_item_is_done_once_and_phases_follow_one_another(n_items, late):
    n_phases, n_workers = 2000, 3
    tickets = np.zeros(n_phases * (n_workers + 1), np.int64)
    done, seen = np.zeros((n_phases, n_items), np.int64), np.zeros((n_phases, n_items + 1), np.int64)

    def work(worker):
        if worker and late:
            time.sleep(late)
        _work(tickets, yield_address(), n_phases, n_items, worker, n_workers, done, seen)

    present = [0] if late is None else range(n_workers)
    threads = [threading.Thread(target=work, args=(worker,)) for worker in present]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (done == 1).all()
    assert (seen[1:, :n_items] == 1).all()  # all of the phase before were done when an item began
    assert (seen[:, n_items] == 1).all()  # and one thread alone saw the end of each


def test_threads_take_their_own_items_first():
    @numba.njit
    def order(tickets, worker, n_items, n_workers):
        return [take(tickets, 0, n_items, worker, n_workers) for _ in range(n_items + 1)]

    assert order(np.zeros(4, np.int64), 1, 7, 3) == [2, 3, 4, 5, 6, 0, 1, -1]
