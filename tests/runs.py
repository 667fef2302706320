"""Runs made by hand, as callbacks see them."""

import mlpkit
from mlpkit.history import Iteration
from mlpkit.run import Run


def run_of(n_iterations=0, max_iter=None, **metrics):
    """Return a run with some iterations on record."""
    run = Run(mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "identity")], seed=0), None, max_iter)
    for _ in range(n_iterations):
        put_on_record(run, **metrics)
    return run


def put_on_record(run, seconds=None, **metrics):
    i = len(run.history) + 1
    at = 0.5 * i if seconds is None else seconds
    run.history.append(Iteration(i, 1 / i, 0.7 / i, 0.3 / i, 0.0, 0.1 / 3, i + 1, at, 0.5, metrics=metrics))


def follow(callback, run, n_iterations, **metrics):
    for _ in range(n_iterations):
        put_on_record(run, **metrics)
        assert callback.on_iteration(run) is None
