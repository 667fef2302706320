"""Ctrl-C, with real signals: training ends in good order and at once, and a second one raises."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from trainings import OPTIMIZERS, data, fingerprint, network

from mlpkit import (
    LBFGS,
    MLP,
    SGD,
    Adam,
    Callback,
    Dense,
    EarlyStopping,
    GaussianNoise,
    GradientDescent,
    Input,
    minibatch,
    pace,
)
from mlpkit.checkpoint import read_checkpoint

# 0.3 s are promised, and measured in quiet it is less; but these tests run beside others, on whatever machine.
SOON = 3.0


@pytest.fixture(autouse=True)
def _handlers_are_given_back():
    """As they are in a program at a terminal; in one that runs in the background Ctrl-C may be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1
    assert not [thread for thread in threading.enumerate() if thread.name == "mlpkit-interrupts"]


def press(*arguments):
    os.kill(os.getpid(), signal.SIGINT)


def press_and_wait():
    press()
    time.sleep(30)


class Pressed(Callback):
    """Presses Ctrl-C from another thread, so many seconds after training has begun."""

    def __init__(self, seconds):
        self.seconds, self.at = seconds, None

    def on_start(self, run):
        self.thread = threading.Thread(target=self.wait)
        self.thread.start()

    def wait(self):
        time.sleep(self.seconds)
        self.at = time.perf_counter()
        press()

    def ago(self):
        """Seconds since then."""
        found = time.perf_counter() - self.at
        self.thread.join()
        return found


class At(Callback):
    """Does something at an iteration."""

    def __init__(self, iteration, what=press):
        self.iteration, self.what = iteration, what

    def on_iteration(self, run):
        if run.history[-1].iteration == self.iteration:
            self.what()


def wide():
    """A network whose evaluation takes long on little data."""
    return MLP([Input(64), Dense(8000, "sigmoid"), Dense(64, "sigmoid")], dtype="float32", seed=0)


@pytest.fixture(scope="module")
def many():
    """Data of which one evaluation takes it about a second on two cores; its kernels are compiled when tests begin."""
    X = np.random.default_rng(0).uniform(0.1, 0.9, (10_000, 64)).astype("float32")
    some = X[:2000]
    wide().fit(some, some, GradientDescent(1e-3, 1))
    wide().fit(some[:64], some[:64], SGD(0.01, batch_size=64, max_epochs=3), validation=(some, some), metrics=["r2"])
    return X


# ------------------------------------------------------------------------------------------------------ at once


def test_an_evaluation_that_takes_long_is_dropped(many):
    net = wide()
    before, live = net.theta.copy(), net.theta
    pressed = Pressed(0.15)
    result = net.fit(many, many, GradientDescent(1e-3, 1000), callbacks=[pressed])
    assert pressed.ago() < SOON
    assert result.reason == "interrupted"
    assert net.theta is live
    if not result.n_iterations:  # as is likely
        np.testing.assert_array_equal(net.theta, before)
        assert np.isnan(result.cost)
    assert np.isfinite(net.theta).all()


def test_after_an_iteration_its_parameters_are_kept(many):
    net, other = wide(), wide()
    some = many[:2000]
    pressed = Pressed(0.0)
    starts = At(2, lambda: pressed.on_start(None))
    result = net.fit(some, some, GradientDescent(1e-3, 1000), callbacks=[starts])
    assert pressed.ago() < SOON
    assert result.reason == "interrupted"
    assert result.n_iterations >= 2
    expected = other.fit(some, some, GradientDescent(1e-3, result.n_iterations))
    np.testing.assert_array_equal(net.theta, other.theta)
    assert (result.cost, result.terms) == (expected.cost, expected.terms)


def test_steps_are_interrupted(many):
    net = wide()
    before = net.theta.copy()
    pressed = Pressed(0.3)
    result = net.fit(many, many, SGD(0.01, batch_size=64, max_epochs=1000), callbacks=[pressed])
    assert pressed.ago() < SOON
    assert result.reason == "interrupted"
    assert np.isfinite(net.theta).all()
    assert (net.theta != before).any()
    assert result.n_evaluations > 0
    assert np.isfinite(result.cost)


@pytest.mark.parametrize("metrics", [None, ["r2"]])
def test_validation_is_interrupted(many, metrics):
    net = wide()
    few = many[:64]
    pressed = Pressed(0.15)
    arguments = {"validation": (many, many), "metrics": metrics, "callbacks": [pressed]}
    result = net.fit(few, few, SGD(0.01, batch_size=64, max_epochs=1000), **arguments)
    assert pressed.ago() < SOON
    assert result.reason == "interrupted"
    assert result.n_iterations < 10
    assert np.isfinite(net.theta).all()


def test_noise_and_mean_activations_are_interrupted():
    """What comes before the first step of an epoch."""
    layers = [Input(5, noise=GaussianNoise(0.1)), Dense(4, "sigmoid", sparsity=network().layers[1].sparsity)]
    X = np.tile(data()[0], (10_000, 1))
    for momentum, kill_at in ((None, "_draw_noise"), (0.9, "_start_running_mean")):
        net = MLP([*layers, Dense(2, "sigmoid")], seed=0)
        batches = []

        def look(batches=batches):
            batches.append(None)
            if len(batches) == 3:
                press()

        original = getattr(minibatch.MiniBatches, kill_at)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                minibatch.MiniBatches, kill_at,
                lambda self, heed, original=original, look=look: original(self, lambda: (look(), heed())),
            )  # fmt: skip
            result = net.fit(X, X[:, :2], SGD(0.1, rho_hat_momentum=momentum))
        assert (result.reason, result.n_evaluations, len(batches)) == ("interrupted", 0, 3)


# ------------------------------------------------------------------------------------------------ what is left


@pytest.mark.parametrize("name", ["lbfgs", "adam"])
def test_in_a_callback_it_ends_training_after_the_iteration(name):
    X, Y = data()
    net, other = network(), network()
    seen = []
    result = net.fit(X, Y, OPTIMIZERS[name], callbacks=[At(3), lambda run: seen.append(run.history[-1].iteration)])
    assert (result.reason, result.n_iterations, seen) == ("interrupted", 3, [1, 2, 3])
    expected = other.fit(X, Y, OPTIMIZERS[name], callbacks=[lambda run: "enough" if len(run.history) == 3 else None])
    np.testing.assert_array_equal(net.theta, other.theta)
    assert (result.terms, result.cost) == (expected.terms, expected.cost)
    assert net.provenance["reason"] == "interrupted"


@pytest.mark.parametrize("name", ["lbfgs", "adam"])
@pytest.mark.parametrize("where", ["metric", "callback", "anywhere"])
def test_a_checkpoint_is_written_and_goes_on_to_the_bit(where, name, tmp_path):
    """In the middle of an epoch, of a validation or of a line search as well: from the last whole iteration."""
    X, Y = data()
    path = tmp_path / "run.h5"
    calls = []

    def metric(targets, outputs):
        calls.append(None)
        if where == "metric" and len(calls) == 6:
            press()
        return len(outputs)

    def soon():
        threading.Timer(len(calls) * 2e-4, press).start()

    interrupting = {"metric": At(0), "callback": At(6), "anywhere": At(3, soon)}[where]
    arguments = {"metrics": [metric, "r2"], "early_stopping": EarlyStopping("data", patience=40)}
    net, again, whole = network(), network(), network()
    optimizer = replace(OPTIMIZERS[name], **{"max_iter" if name == "lbfgs" else "max_epochs": 10_000})
    stopped = net.fit(X, Y, optimizer, **arguments, callbacks=[interrupting], checkpoint=path, every=10_000)
    assert stopped.reason == "interrupted"
    if where != "anywhere":
        assert stopped.n_iterations == (5 if where == "metric" else 6)
    found = read_checkpoint(path)
    assert found.optimizer["iteration"] == stopped.n_iterations == found.loop["history.cost"].size
    longer = replace(optimizer, **{"max_iter" if name == "lbfgs" else "max_epochs": stopped.n_iterations + 20})
    resumed = again.fit(X, Y, longer, **arguments, callbacks=[At(0)], resume=path)
    expected = whole.fit(X, Y, longer, **arguments, callbacks=[At(0)])
    assert fingerprint(again, resumed) == fingerprint(whole, expected)


class PressingRate:
    """A learning rate that presses Ctrl-C at a time, which is in the middle of an epoch."""

    def __init__(self, epochs):
        self.epochs = epochs

    def __call__(self, epochs):
        if self.epochs is not None and epochs >= self.epochs:
            self.epochs = None
            press()
        return 0.02


def test_in_the_middle_of_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "_SLICE_SECONDS", 0.0)  # a step at a time
    X, Y = data()
    path = tmp_path / "run.h5"
    arguments = {"batch_size": 6, "max_epochs": 8}
    net, again, whole = network(), network(), network()
    stopped = net.fit(X, Y, Adam(PressingRate(3.5), **arguments), checkpoint=path, every=100)
    assert (stopped.reason, stopped.n_iterations, stopped.n_evaluations) == ("interrupted", 3, 36)
    found = read_checkpoint(path)
    assert (found.optimizer["iteration"], found.loop["n_evaluations"]) == (3, 30)
    resumed = again.fit(X, Y, Adam(PressingRate(None), **arguments), resume=path)
    expected = whole.fit(X, Y, Adam(PressingRate(None), **arguments))
    assert fingerprint(again, resumed) == fingerprint(whole, expected)
    # the network itself has what the steps of the fourth epoch made of it, and the terms are means over those
    steps = network()
    result = steps.fit(X, Y, Adam(PressingRate(None), **arguments), max_evaluations=36)
    np.testing.assert_array_equal(net.theta, steps.theta)
    assert (stopped.terms, stopped.cost) == (result.terms, result.cost)
    assert all(np.isfinite(value) for value in stopped.terms.values())


def test_in_the_middle_of_an_epoch_the_best_iteration_comes_back(monkeypatch):
    """The latest iteration was the best, and the steps after it are undone."""
    monkeypatch.setattr(pace, "_SLICE_SECONDS", 0.0)
    X, Y = data()
    net, other = network(), network()
    stop = EarlyStopping("cost")
    result = net.fit(X, Y, Adam(PressingRate(3.5), batch_size=6), early_stopping=stop)
    assert (result.reason, result.iteration, stop.best_iteration) == ("interrupted", 3, 3)
    other.fit(X, Y, Adam(PressingRate(None), batch_size=6, max_epochs=3))
    np.testing.assert_array_equal(net.theta, other.theta)
    assert result.cost == result.history[-1].cost


# ------------------------------------------------------------------------------------------- more than once


@pytest.mark.parametrize("name", ["lbfgs", "adam"])
def test_a_second_one_raises_and_the_network_is_good(name, tmp_path):
    X, Y = data()
    net, other = network(), network()
    ended, path = [], tmp_path / "run.h5"

    def twice():
        press()
        press()

    class Ends(Callback):
        def on_end(self, run):
            ended.append(run.history[-1].iteration)

    with pytest.raises(KeyboardInterrupt):
        net.fit(X, Y, OPTIMIZERS[name], callbacks=[At(4, twice), Ends()], checkpoint=path, every=3)
    assert ended == [4]
    other.fit(X, Y, OPTIMIZERS[name], callbacks=[lambda run: "enough" if len(run.history) == 4 else None])
    np.testing.assert_array_equal(net.theta, other.theta)
    # not all callbacks have seen the fourth iteration, so there is no checkpoint of it
    assert read_checkpoint(path).optimizer["iteration"] == 3


def test_what_a_second_one_cuts_short_is_not_kept(monkeypatch):
    """A step that fails is undone; where there was no time for that, the network has the latest iteration."""
    X, Y = data()
    net, other = network(), network()
    calls = []

    def cut_short(batches, record):
        calls.append(None)
        if len(calls) == 20:
            batches.theta[:] = np.nan
            raise KeyboardInterrupt
        return True

    other.fit(X, Y, Adam(batch_size=10, max_epochs=3))
    monkeypatch.setattr(pace, "_SLICE_SECONDS", 0.0)
    monkeypatch.setattr(minibatch.MiniBatches, "_finite", cut_short)
    with pytest.raises(KeyboardInterrupt):
        net.fit(X, Y, Adam(batch_size=10))
    np.testing.assert_array_equal(net.theta, other.theta)


def test_a_second_one_ends_a_slow_end():
    class Slow(Callback):
        def on_end(self, run):
            press()
            time.sleep(30)

    X, Y = data()
    net, other = network(), network()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        net.fit(X, Y, LBFGS(), callbacks=[At(4), Slow()])
    assert time.perf_counter() - start < 20
    other.fit(X, Y, LBFGS(max_iter=4))
    np.testing.assert_array_equal(net.theta, other.theta)


def test_one_that_comes_when_training_is_over_is_not_lost():
    class Late(Callback):
        def on_end(self, run):
            press()

    X, Y = data()
    result = network().fit(X, Y, LBFGS(max_iter=4), callbacks=[Late()])
    assert (result.reason, result.n_iterations) == ("interrupted", 4)


def test_data_in_parts_are_left_by_one():
    """However small the parts: what a loop over them would not see raises."""
    X, Y = data()
    net, other = network(), network()
    net.partial_fit(X, Y, optimizer := Adam(PressingRate(1.0), batch_size=60))
    with pytest.raises(KeyboardInterrupt):
        net.partial_fit(X, Y, optimizer)
    for _ in range(2):
        other.partial_fit(X, Y, optimizer)
    np.testing.assert_array_equal(net.theta, other.theta)  # the part was trained on, and is remembered
    net.partial_fit(X, Y, optimizer)
    other.partial_fit(X, Y, optimizer)
    np.testing.assert_array_equal(net.theta, other.theta)


# ---------------------------------------------------------------------------------------------- other handlers


def test_who_waits_for_signals_is_told_too():
    """An event loop's file descriptor is woken up, and is in its place again afterwards."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    X, Y = data()
    with contextlib.closing(ours), contextlib.closing(theirs):
        signal.set_wakeup_fd(theirs.fileno())
        try:
            assert network().fit(X, Y, LBFGS(), callbacks=[At(2)]).reason == "interrupted"
        finally:
            assert signal.set_wakeup_fd(-1) == theirs.fileno()
        ours.settimeout(5)
        assert ours.recv(10) == bytes([signal.SIGINT])


def test_a_handler_of_the_users_is_left_alone():
    seen = []
    X, Y = data()
    signal.signal(signal.SIGINT, handler := lambda number, frame: seen.append(number))
    try:
        result = network().fit(X, Y, LBFGS(max_iter=6), callbacks=[At(2), At(3)])
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert (result.reason, result.n_iterations, seen) == ("max_iter reached", 6, [signal.SIGINT] * 2)


def test_fit_in_another_thread_leaves_signals_to_the_main_one():
    X, Y = data()
    results = []
    started, interrupted = threading.Event(), threading.Event()

    def wait(run):
        started.set()
        assert interrupted.wait(30)

    net = network()
    thread = threading.Thread(target=lambda: results.append(net.fit(X, Y, LBFGS(max_iter=5), callbacks=[wait])))
    thread.start()
    assert started.wait(30)
    with pytest.raises(KeyboardInterrupt):
        press_and_wait()
    interrupted.set()
    thread.join(30)
    assert results[0].reason == "max_iter reached"


def test_two_trainings_one_inside_the_other():
    """The inner one, in a callback, takes note of Ctrl-C no more than the outer one lets it."""
    X, Y = data()
    inner = []

    def train():
        inner.append(network().fit(X, Y, LBFGS(max_iter=5), callbacks=[At(2)]))

    result = network().fit(X, Y, LBFGS(max_iter=8), callbacks=[At(3, train)])
    assert (result.reason, result.n_iterations) == ("interrupted", 3)
    assert inner[0].reason == "max_iter reached"


def test_after_an_error_handlers_are_given_back():
    X, Y = data()
    with pytest.raises(ZeroDivisionError):
        network().fit(X, Y, callbacks=[lambda run: 1 / 0])
