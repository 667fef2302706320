"""Trainings on files that are read anew in every epoch: resumed, interrupted, diverging, files that change."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from row_sources import FEW, Sliced, read_anew, saved
from test_stochastic import examples, network, trained

import mlpkit
from mlpkit import SGD, Adam, BlockShuffle, Dense, GaussianNoise, Input, KLSparsity, minibatch, pace
from mlpkit.errors import DataFileError, InvalidArgumentError
from mlpkit.schedules import ExponentialSchedule


@pytest.fixture
def streaming(monkeypatch):
    return read_anew(monkeypatch)


# Runs that are cut short ------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [FEW, False])
def test_resuming_is_as_if_nothing_had_happened(tmp_path, shuffle, streaming):
    X, Y = examples(300)
    paths = saved(tmp_path, "npy", X=X, Y=Y)
    optimizer = Adam(0.01, batch_size=47, max_epochs=7, shuffle=shuffle)
    net = network(noise=GaussianNoise(0.1))
    expected = trained(net, *paths, optimizer)
    checkpoint = tmp_path / "run.h5"
    trained(net, *paths, replace(optimizer, max_epochs=3), checkpoint=checkpoint, every=1)
    assert trained(net, *paths, optimizer, resume=checkpoint) == expected
    assert trained(net, X, Y, optimizer, resume=checkpoint) == expected, "the same data in memory"
    with pytest.raises(InvalidArgumentError, match="resume needs the same optimizer"):
        net.fit(*paths, replace(optimizer, shuffle=BlockShuffle(7, 6)), resume=checkpoint)


@pytest.mark.parametrize("how", ["gone", "has changed"])
def test_a_file_that_changes_under_a_run_is_an_error_and_the_last_state_is_kept(tmp_path, how, streaming):
    X, Y = examples(300)
    paths = saved(tmp_path, "npy", X=X, Y=Y)
    optimizer = Adam(0.01, batch_size=47, max_epochs=3, shuffle=FEW)
    net, other = network(), network()
    other.fit(X, Y, optimizer)

    def change(run):
        if len(run.history) == 3:
            paths[0].unlink() if how == "gone" else os.utime(paths[0], ns=(0, 0))

    checkpoint = tmp_path / "run.h5"
    with pytest.raises(DataFileError, match=rf"X\.npy' .*{how}"):
        net.fit(*paths, replace(optimizer, max_epochs=9), callbacks=[change], checkpoint=checkpoint, every=1)
    assert net.theta.tobytes() == other.theta.tobytes()
    longer = replace(optimizer, max_epochs=5)
    again = trained(network(), X, Y, longer, callbacks=[lambda run: None], resume=checkpoint)
    assert again[0] == trained(network(), X, Y, longer)[0]


def test_a_file_that_changes_in_the_middle_of_an_epoch(streaming, tmp_path, monkeypatch):
    """No step sees a row that was read after the change."""
    monkeypatch.setattr(pace, "_SLICE_SECONDS", 0.0)
    X, Y = examples(3000)
    (path,) = saved(tmp_path, "npy", X=X)
    # With nothing shuffled, the rows of the later windows spoil what they touch.
    streaming.rows = 100
    net, optimizer = network(), SGD(0.1, batch_size=10, max_epochs=1, shuffle=False)
    steps = []

    def rate(epochs):
        steps.append(epochs)
        if len(steps) == 45:
            with open(path, "r+b") as file:
                file.seek(-(len(X) - 700) * 96, 2)
                file.write(np.full((len(X) - 700) * 12, np.nan).tobytes())
        return 0.1

    with pytest.raises(DataFileError, match=r"X\.npy' has changed"):
        net.fit(path, Y, replace(optimizer, learning_rate=rate))
    assert np.isfinite(net.theta).all()
    assert 45 <= len(steps) <= 70


def test_a_reader_s_error_reaches_the_caller(streaming):
    X, Y = examples(300)
    names, broken = set(), []

    def before(which):
        names.add(threading.current_thread().name)
        if broken and which.stop > 200:
            raise RuntimeError("no more")

    source = Sliced(X, before)
    optimizer = SGD(0.1, batch_size=10, shuffle=FEW, max_epochs=2)
    network().fit(source, Y, optimizer)
    assert names == {"MainThread", "mlpkit-reader"}  # the former in the first scan
    with pytest.raises(DataFileError, match=r"rows \d+ to \d+ of X, a Sliced cannot be read: no more"):
        network().fit(source, Y, optimizer, callbacks=[broken.append])
    assert not any(thread.name == "mlpkit-reader" for thread in threading.enumerate())


@pytest.fixture
def terminal():
    """Ctrl-C as at a terminal; in a program that runs in the background it may be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("seconds", [0.01, 10.0])
def test_ctrl_c_does_not_wait_for_the_disk(streaming, terminal, seconds):
    """Neither while steps are taken nor while a window is waited for. 0.3 s are promised; other tests run beside it."""
    X, Y = examples(600)
    slow = False
    pressed = []

    def before(which):
        if slow:
            time.sleep(seconds)

    def press():
        pressed.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    class Press(mlpkit.Callback):
        def on_start(self, run):
            nonlocal slow
            slow = True
            threading.Timer(0.3, press).start()

    net = network()
    result = net.fit(Sliced(X, before), Y, SGD(0.1, batch_size=10, max_epochs=10**6, shuffle=FEW), callbacks=[Press()])
    ago = time.perf_counter() - pressed[0]
    slow = False
    assert result.reason == "interrupted"
    assert ago < 3
    assert np.isfinite(net.theta).all()


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_what_diverges_is_found_among_the_rows_of_its_window(tmp_path, monkeypatch, seconds, streaming):
    """The last copy of the parameters may be long ago; windows are gone by then, so each begins with a copy."""
    monkeypatch.setattr(pace, "_SLICE_SECONDS", seconds)
    monkeypatch.setattr(minibatch, "_SECONDS_BETWEEN_COPIES", 1e9)
    X, Y = examples(300)
    paths = saved(tmp_path, "npy", X=X, Y=Y)
    layers = [Input(12), Dense(6, "identity"), Dense(4, "sigmoid", sparsity=KLSparsity(0.2, 1.0)), Dense(5, "identity")]
    for shuffle in (FEW, False):
        optimizer = SGD(ExponentialSchedule(1e-3, 8.0), batch_size=4, max_epochs=50, shuffle=shuffle)
        found = []
        for data in ((X, Y), paths):
            net = mlpkit.MLP(layers, seed=0)
            found.append(trained(net, *data, optimizer))
        assert found[0] == found[1]
        step, epoch = map(int, re.search(r"infinite or NaN first, at step (\d+) of epoch (\d+);", found[0][2]).groups())
        assert epoch > 2
        assert step > 9, "it is in the first window"


# Around it --------------------------------------------------------------------------------------


def test_validation_from_files(tmp_path, streaming):
    X, Y = examples(300)
    paths = saved(tmp_path, "npy", X=X, Y=Y)
    held = saved(tmp_path, "h5", V=X[:50], W=Y[:50])
    optimizer = Adam(0.01, batch_size=47, max_epochs=3, shuffle=FEW)
    losses = []
    for data, validation in (((X, Y), (X[:50], Y[:50])), (paths, tuple(held)), (paths, (X[:50], Y[:50]))):
        net = network()
        stop = mlpkit.EarlyStopping("validation_loss", patience=5)
        result = net.fit(*data, optimizer, validation=validation, early_stopping=stop)
        losses.append([record["validation_loss"] for record in result.history])
    assert losses[0] == losses[1] == losses[2]
    with pytest.raises(InvalidArgumentError, match="X must be an array in memory where a fraction of it is held out"):
        network().fit(*paths, optimizer, validation=0.2)


def test_bad_numbers_are_found_before_training(tmp_path):
    X, Y = examples(3000)
    X[2500, 3] = np.nan
    (path,) = saved(tmp_path, "npy", X=X)
    with pytest.raises(InvalidArgumentError, match="X must be finite in float64; found nan at row 2500 column 3"):
        network().fit(path, Y, Adam(shuffle="blocks"))


def test_the_next_window_is_read_while_steps_are_taken_and_no_more(streaming, monkeypatch):
    """Steps of the first window wait until the second is being read, and see that the third is not."""
    monkeypatch.setattr(pace, "_SLICE_SECONDS", 0.0)
    X, Y = examples(300)
    streaming.rows = 50
    begun, furthest, seen = threading.Event(), [], []

    def before(which):
        if threading.current_thread().name == "mlpkit-reader":
            furthest.append(which.stop)
            if which.start >= 50:
                begun.set()

    def rate(epochs):
        if not seen:
            assert begun.wait(30), "nothing was read ahead"
            time.sleep(0.1)
            seen.append(max(furthest))
        return 0.1

    network().fit(Sliced(X, before), Y, SGD(rate, batch_size=10, max_epochs=1, shuffle=False))
    assert seen == [100]
    assert max(furthest) == 300
