"""How many steps are taken at once, on how many threads, by a clock of the tests' own."""

from __future__ import annotations

import pytest
from cases import threads

from mlpkit.pace import Pace

LOADING = 0.4


class Machine:
    """Takes slices as it is told to, each of so many seconds a step; the first on each number of threads loads code."""

    def __init__(self, seconds, most_workers=8):
        self.seconds, self.pace, self.slices = seconds, Pace(most_workers), []

    def run(self, n):
        """Take slices; return them as (threads, steps, seconds)."""
        for _ in range(n):
            workers, steps = self.pace.next()
            took = steps * self.seconds[workers]
            loading = LOADING if workers not in {slice_[0] for slice_ in self.slices} else 0.0
            self.pace.took(workers, steps, took + loading)
            self.slices.append((workers, steps, took))
        return self.slices[-n:]


@pytest.fixture(autouse=True)
def _on_two_threads():
    with threads(2):
        yield


@pytest.mark.parametrize(("seconds", "best"), [({1: 4e-4, 2: 3e-4}, 2), ({1: 4e-4, 2: 9e-4}, 1)])
def test_the_faster_number_of_threads_is_found_although_code_is_loaded(seconds, best):
    machine = Machine(seconds)
    machine.run(6)
    assert {(workers, steps) for workers, steps, _ in machine.run(19)} == {(best, int(0.05 / seconds[best]))}


def test_the_other_is_tried_now_and_then_for_a_fifth_of_a_slice():
    machine = Machine({1: 5e-4, 2: 1e-3})
    machine.run(6)
    slices = machine.run(400)
    tried = [seconds for workers, _, seconds in slices if workers == 2]
    assert len(tried) == 20
    assert sum(tried) < 0.011 * sum(seconds for _, _, seconds in slices)


def test_what_has_become_faster_is_found():
    machine = Machine({1: 5e-4, 2: 1e-3})
    machine.run(30)
    machine.seconds = {1: 5e-4, 2: 2e-4}
    machine.run(40)
    assert sum(workers == 2 for workers, _, _ in machine.run(40)) == 38


def test_long_steps_are_taken_one_by_one():
    machine = Machine({1: 3.0, 2: 2.0})
    assert {steps for _, steps, _ in machine.run(50)} == {1}


@pytest.mark.parametrize("how", ["one thread", "one worker"])
def test_where_there_is_one_thread_no_other_is_tried(how):
    machine = Machine({1: 1e-5}, most_workers=1 if how == "one worker" else 8)
    with threads(1 if how == "one thread" else 2):
        slices = machine.run(50)
    assert slices[-1] == (1, pytest.approx(5000, abs=1), pytest.approx(0.05, rel=1e-3))
