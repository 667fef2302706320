"""Training that goes on from a checkpoint is training that was never interrupted, to the bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import trainings
from trainings import ITERATIONS, OPTIMIZERS, Total, data, fingerprint, network, training

from mlpkit import (
    MLP,
    Callback,
    Dense,
    EarlyStopping,
    Input,
    InvalidArgumentError,
    ModelFormatError,
    NewtonCG,
    TrustNCG,
)
from mlpkit.checkpoint import read_checkpoint

TIMES = ("seconds", "iteration_seconds")


class Copies(Callback):
    """Puts aside the checkpoint of each iteration, which is written after callbacks are told."""

    def __init__(self, path):
        self.path = path

    def on_iteration(self, run):
        self.copy(len(run.history) - 1)

    def on_end(self, run):
        self.copy(len(run.history))

    def copy(self, k):
        if k:
            shutil.copy(self.path, self.path.with_name(f"{k}.h5"))


def ignore(run):
    """Take the place of a callback."""


def state_of(path):
    """What a checkpoint holds but for times, as bytes."""
    found = read_checkpoint(path)
    known = {"theta": found.theta, **found.optimizer, **found.loop}
    known = {name: value for name, value in known.items() if not any(time in name for time in TIMES)}
    return {name: value.tobytes() if isinstance(value, np.ndarray) else value for name, value in known.items()}


def uninterrupted(case, folder):
    """Train with a checkpoint of every iteration; return what came out and how many there were."""
    net, arguments = training(case)
    path = folder / "run.h5"
    arguments["callbacks"] = [*arguments.get("callbacks", ()), Copies(path)]
    result = net.fit(**arguments, checkpoint=path, every=1)
    return fingerprint(net, result), result.n_iterations


def resumed(case, path, **more):
    net, arguments = training(case)
    net.theta = np.zeros(net.n_parameters)  # what it was before does not matter
    arguments["callbacks"] = [*arguments.get("callbacks", ()), ignore]
    return fingerprint(net, net.fit(**arguments, resume=path, **more))


CASES = [
    *(f"{name}-float64-plain" for name in OPTIMIZERS),
    *(f"{name}-float32-everything" for name in OPTIMIZERS),
    "adam-float64-everything",
    "lbfgs-float32-plain",
]


@pytest.mark.parametrize("case", CASES)
def test_resume_at_every_iteration_equals_the_uninterrupted_run(case, tmp_path):
    expected, n = uninterrupted(case, tmp_path)
    assert n == ITERATIONS or "everything" in case
    assert n > 12
    last = state_of(tmp_path / f"{n}.h5")
    for k in range(1, n + 1, 1 if "plain" in case else 3):
        again = tmp_path / "again.h5" if k % 6 == 1 and k < n else None  # writing one takes as long as all the rest
        assert resumed(case, tmp_path / f"{k}.h5", checkpoint=again) == expected, k
        if again is not None:
            assert state_of(again) == last, k
            again.unlink()


@pytest.mark.parametrize("case", ["lbfgs-float64-plain", "adam-float64-everything"])
def test_resume_in_another_process(case, tmp_path):
    net, arguments = training(case)
    expected = trainings.train(case, tmp_path / "whole.h5", ignore)
    arguments["optimizer"] = shorter(arguments["optimizer"], 11)
    arguments["callbacks"] = [*arguments.get("callbacks", ()), ignore]
    net.fit(**arguments, checkpoint=tmp_path / "run.h5", every=4)
    command = [sys.executable, trainings.__file__, "train", case, str(tmp_path / "run.h5")]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert found.splitlines()[1] == expected


def shorter(optimizer, n):
    return replace(optimizer, **{"max_iter" if hasattr(optimizer, "max_iter") else "max_epochs": n})


@pytest.mark.parametrize("name", ["lbfgs", "descent", "adam"])
def test_a_run_may_go_on_for_longer_than_it_was_meant_to(name, tmp_path):
    X, Y = data()
    path = tmp_path / "run.h5"
    first = network()
    result = first.fit(X, Y, shorter(OPTIMIZERS[name], 10), checkpoint=path)
    assert result.n_iterations == 10
    longer, whole = network(), network()
    again = longer.fit(X, Y, OPTIMIZERS[name], resume=path)
    assert fingerprint(longer, again) == fingerprint(whole, whole.fit(X, Y, OPTIMIZERS[name]))
    assert len(again.history) == ITERATIONS
    assert [record.seconds for record in again.history[:10]] == [record.seconds for record in result.history]
    assert again.history[10].seconds > again.history[9].seconds


@pytest.mark.parametrize("name", ["cg", "momentum"])
def test_a_run_that_is_over_comes_back_as_it_was(name, tmp_path):
    X, Y = data()
    net, again = network(), network()
    expected = fingerprint(net, net.fit(X, Y, OPTIMIZERS[name], checkpoint=tmp_path / "run.h5"))
    assert fingerprint(again, again.fit(X, Y, OPTIMIZERS[name], resume=tmp_path / "run.h5")) == expected
    fewer = again.fit(X, Y, shorter(OPTIMIZERS[name], 5), resume=tmp_path / "run.h5")
    assert fewer.n_iterations == ITERATIONS  # more than asked for cannot be taken back


@pytest.mark.parametrize("name", ["lbfgs", "adam"])
def test_resumed_and_stopped_at_once_the_network_has_the_checkpoints_parameters(name, tmp_path):
    X, Y = data()
    net, again = network(), network()
    result = net.fit(X, Y, shorter(OPTIMIZERS[name], 10), checkpoint=tmp_path / "run.h5")
    late = again.fit(X, Y, OPTIMIZERS[name], resume=tmp_path / "run.h5", max_seconds=1e-9)
    assert late.reason == "max_seconds reached"
    np.testing.assert_array_equal(again.theta, net.theta)
    assert (late.terms, late.n_evaluations, late.n_iterations) == (result.terms, result.n_evaluations, 10)


def test_resume_true_is_the_checkpoint_or_a_new_start(tmp_path):
    X, Y = data()
    path = tmp_path / "run.h5"
    whole = network()
    expected = fingerprint(whole, whole.fit(X, Y, OPTIMIZERS["adam"]))
    for n in (4, 9, ITERATIONS):  # a program that is run three times
        net = network()
        result = net.fit(X, Y, shorter(OPTIMIZERS["adam"], n), checkpoint=path, resume=True)
        assert result.n_iterations == n
    assert fingerprint(net, result) == expected
    assert sorted(os.listdir(tmp_path)) == ["run.h5", "run.previous.h5"]
    # without resume, the same call begins anew
    assert network().fit(X, Y, shorter(OPTIMIZERS["adam"], 2), checkpoint=path).n_iterations == 2
    assert read_checkpoint(path).optimizer["iteration"] == 2


def test_two_checkpoints_are_kept_and_how_often_they_are_written(tmp_path):
    X, Y = data()
    for every, expected in ((None, (25, 20)), (7, (25, 21)), (25, (25, None)), (100, (25, None))):
        for path in tmp_path.iterdir():
            path.unlink()
        network().fit(X, Y, shorter(OPTIMIZERS["sgd"], 25), checkpoint=tmp_path / "run.h5", every=every)
        found = [read_checkpoint(path).optimizer["iteration"] for path in sorted(tmp_path.iterdir())]
        assert found == [k for k in expected if k is not None]


def test_a_checkpoint_stays_where_it_was_when_the_program_goes_elsewhere(tmp_path, monkeypatch):
    X, Y = data()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    network().fit(X, Y, OPTIMIZERS["sgd"], checkpoint="run.h5", callbacks=[lambda run: os.chdir("/")])
    assert read_checkpoint(tmp_path / "run.h5").optimizer["iteration"] == ITERATIONS


def test_a_folder_that_is_not_there_is_said_before_training(tmp_path):
    X, Y = data()
    net = network()
    before = net.theta.copy()
    with pytest.raises(FileNotFoundError, match="no folder for the checkpoint"):
        net.fit(X, Y, checkpoint=tmp_path / "missing" / "run.h5")
    np.testing.assert_array_equal(net.theta, before)


# ---------------------------------------------------------------------------------------------- what must be the same


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("resume") / "run.h5"
    X, Y = data()
    for name in ("lbfgs", "adam"):
        net = network()
        target = path.with_name(f"{name}.h5")
        net.fit(X, Y, shorter(OPTIMIZERS[name], 3), sample_weight=np.ones(60), callbacks=[ignore], checkpoint=target)
    net.save(path.with_name("model.h5"))
    return path.parent


def refused(path, match, net=None, optimizer=OPTIMIZERS["lbfgs"], error=InvalidArgumentError, **changes):
    X, Y = data()
    arguments = {"X": X, "Y": Y, "sample_weight": np.ones(60), "callbacks": [ignore], "resume": path, **changes}
    net = network() if net is None else net
    before = net.theta.copy()
    with pytest.raises(error, match=match):
        net.fit(optimizer=optimizer, **arguments)
    np.testing.assert_array_equal(net.theta, before)


X, Y = data()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"X": X + 1e-12}, "the same data"),
        ({"Y": np.where(np.arange(120).reshape(60, 2) == 7, 0.5, Y)}, "the same data"),
        ({"X": X.astype("float32")}, "the same data"),
        ({"sample_weight": np.linspace(1, 2, 60)}, "the same data, weights"),
        ({"sample_weight": None}, "the same data, weights"),
        ({"mask": np.arange(120).reshape(60, 2) > 0}, "the same data"),
        ({"validation": (X, Y)}, "validation data"),
        ({"validation": 0.1}, "validation data"),
        ({"callbacks": None}, "as many callbacks as the run had, 1; found 0"),
        ({"callbacks": [ignore, ignore]}, "as many callbacks as the run had, 1; found 2"),
        ({"early_stopping": EarlyStopping("cost")}, "as many callbacks as the run had, 1; found 2"),
    ],
)
def test_what_differs_is_named(checkpoint, changes, match):
    refused(checkpoint / "lbfgs.h5", match, **changes)


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (network(seed=1), "its seed is 0"),
        (network("float32"), "its dtype is 'float64'"),
        (MLP([Input(5), Dense(4, "sigmoid"), Dense(2, "sigmoid")], weight_decay=1e-3, seed=0), "its layers is"),
        (MLP(network().layers, weight_decay=2e-3, seed=0), "its weight_decay is 0.001; found 0.002"),
    ],
)
def test_another_network_is_refused(checkpoint, net, match):
    refused(checkpoint / "lbfgs.h5", match, net=net)


@pytest.mark.parametrize(
    ("path", "optimizer"),
    [
        ("lbfgs.h5", OPTIMIZERS["cg"]),
        ("lbfgs.h5", OPTIMIZERS["adam"]),
        ("lbfgs.h5", replace(OPTIMIZERS["lbfgs"], max_corrections=7)),
        ("lbfgs.h5", replace(OPTIMIZERS["lbfgs"], gtol=1e-9)),
        ("adam.h5", OPTIMIZERS["adamw"]),
        ("adam.h5", OPTIMIZERS["lbfgs"]),
        ("adam.h5", replace(OPTIMIZERS["adam"], batch_size=15)),
        ("adam.h5", replace(OPTIMIZERS["adam"], learning_rate=0.03)),
        ("adam.h5", replace(OPTIMIZERS["adam"], clip_norm=1.0)),
        ("adam.h5", replace(OPTIMIZERS["adam"], seed=0)),
    ],
)
def test_another_optimiser_is_refused(checkpoint, path, optimizer):
    refused(checkpoint / path, "resume needs the same optimizer as the run had: '(LBFGS|Adam)", optimizer=optimizer)


@pytest.mark.parametrize("optimizer", [NewtonCG(max_iter=2), TrustNCG(max_iter=2)])
@pytest.mark.parametrize("option", ["checkpoint", "resume"])
def test_scipys_optimisers_say_why_they_cannot(checkpoint, optimizer, option, tmp_path):
    path = tmp_path / "run.h5" if option == "checkpoint" else checkpoint / "lbfgs.h5"
    reason = f"{type(optimizer).__name__} keeps its state to itself"
    refused(False, reason, optimizer=optimizer, **{"resume": False, option: path})
    assert not os.listdir(tmp_path)


def test_files_that_are_no_whole_checkpoints(checkpoint, tmp_path):
    refused(checkpoint / "model.h5", "checkpoint", error=ModelFormatError)
    damaged = tmp_path / "damaged.h5"
    content = bytearray((checkpoint / "lbfgs.h5").read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    refused(damaged, "damaged", error=ModelFormatError)
    shutil.copy(checkpoint / "lbfgs.h5", tmp_path / "damaged.previous.h5")
    refused(damaged, "the checkpoint before it, .*damaged.previous.h5', is whole", error=ModelFormatError)
    damaged.write_bytes(content[:3000])
    refused(damaged, "damaged.h5", error=ModelFormatError)
    refused(tmp_path / "missing.h5", "missing.h5", error=FileNotFoundError)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"resume": True}, "resume=True goes on from the checkpoint, which must be given"),
        ({"resume": None}, "resume must be True, False or the path of a checkpoint; found None"),
        ({"resume": 3}, "resume must be True, False or the path of a checkpoint; found 3"),
        ({"resume": False, "every": 3}, "every must be None where there is no checkpoint; found 3"),
        ({"resume": False, "checkpoint": "run.h5", "every": 0}, "every must be"),
        ({"resume": False, "checkpoint": 3}, "path"),
    ],
)
def test_options_that_do_not_go_together(changes, match):
    refused(None, match, **changes)


def test_progress_is_no_callback_that_must_be_there_again(checkpoint, capsys):
    pytest.importorskip("rich")
    net = network()
    X, Y = data()
    arguments = {"sample_weight": np.ones(60), "callbacks": [ignore], "resume": checkpoint / "lbfgs.h5"}
    assert net.fit(X, Y, OPTIMIZERS["lbfgs"], **arguments, progress=True).n_iterations == ITERATIONS
    assert "30/30" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- what a checkpoint is of


def test_a_run_that_a_callback_ended_stays_ended(tmp_path):
    """Also where it was killed between its last checkpoint and its end."""
    X, Y = data()
    path = tmp_path / "run.h5"

    def enough(run):
        return "enough" if len(run.history) >= 10 else None

    net = network()
    expected = fingerprint(net, net.fit(X, Y, OPTIMIZERS["adam"], callbacks=[enough], checkpoint=path, every=5))
    again = network()
    assert fingerprint(again, again.fit(X, Y, OPTIMIZERS["adam"], callbacks=[enough], resume=path)) == expected
    # another callback in its place has not ended it
    assert network().fit(X, Y, OPTIMIZERS["adam"], callbacks=[ignore], resume=path).n_iterations == ITERATIONS


def test_more_patience_goes_on(tmp_path):
    X, Y = data()
    path = tmp_path / "run.h5"
    stop = {"validation": 0.2, "early_stopping": EarlyStopping(patience=3, min_delta=0.01)}
    first = network().fit(X, Y, OPTIMIZERS["lbfgs"], **stop, checkpoint=path)
    assert first.reason.startswith("validation_loss has not improved")
    assert network().fit(X, Y, OPTIMIZERS["lbfgs"], **stop, resume=path).n_iterations == first.n_iterations
    stop["early_stopping"] = EarlyStopping(patience=5, min_delta=0.01)
    assert network().fit(X, Y, OPTIMIZERS["lbfgs"], **stop, resume=path).n_iterations == first.n_iterations + 2


def fails_once(at):
    """Return something to call that raises the first time that it has been called so often."""
    calls = []

    def fragile(*arguments):
        calls.append(None)
        if len(calls) == at:
            raise OSError("no")

    return fragile


@pytest.mark.parametrize("name", ["lbfgs", "adam"])
@pytest.mark.parametrize("where", ["metric", "callback"])
def test_a_checkpoint_after_an_error_is_of_one_iteration(where, name, tmp_path):
    """An iteration whose metrics cannot be had is in no part of it; of one that a callback cannot take, all is."""
    X, Y = data()
    path = tmp_path / "run.h5"
    fragile = fails_once(8)

    def metric(targets, outputs):
        return (where == "metric" and fragile()) or 0.5

    def arguments():
        first = fragile if where == "callback" else ignore
        stop = EarlyStopping("cost", patience=25, min_delta=1.0)
        return {"metrics": [metric], "callbacks": [Total(), first, Total()], "early_stopping": stop}

    with pytest.raises(OSError, match="no"):
        network().fit(X, Y, OPTIMIZERS[name], **arguments(), checkpoint=path, every=100)
    found = read_checkpoint(path)
    expected = 7 if where == "metric" else 8
    assert found.optimizer["iteration"] == found.loop["history.cost"].size == expected
    assert found.loop["callback0.total"] == found.loop["callback2.total"] == found.loop["history.n_evaluations"].sum()
    net, whole = network(), network()
    resumed = fingerprint(net, net.fit(X, Y, OPTIMIZERS[name], **arguments(), resume=path))
    assert resumed == fingerprint(whole, whole.fit(X, Y, OPTIMIZERS[name], **arguments()))


@pytest.mark.parametrize("name", ["lbfgs", "cg", "searched", "adam"])
def test_a_run_out_of_evaluations_goes_on_from_its_last_iteration(name, tmp_path):
    """Wherever the budget ends: between a line search's trials, and between an epoch's steps."""
    X, Y = data()
    path = tmp_path / "run.h5"
    whole = network()
    expected = fingerprint(whole, whole.fit(X, Y, OPTIMIZERS[name]))
    ends = []
    for budget in range(4, 26):
        net, again = network(), network()
        stopped = net.fit(X, Y, OPTIMIZERS[name], max_evaluations=budget, checkpoint=path, every=100)
        assert (stopped.reason, stopped.n_evaluations) == ("max_evaluations reached", budget)
        ends.append(budget - stopped.history[-1].n_evaluations)
        assert read_checkpoint(path).optimizer["iteration"] == stopped.n_iterations
        assert fingerprint(again, again.fit(X, Y, OPTIMIZERS[name], resume=path)) == expected
    assert min(ends) == 0
    assert max(ends) > 0 or name == "lbfgs"  # whose first trials do


def test_an_optimiser_of_a_users_own_can_resume(tmp_path):
    class Halving:
        """theta <- theta / 2, with a state of its own, in which there is no theta."""

        def minimize(self, evaluate, theta, report, *, state=None, save=None):
            done, theta = (0, theta) if state is None else (state["done"], np.array(state["where"]))
            for number in range(done + 1, 9):
                theta = theta / 2
                if save is not None and self.saves:
                    save(lambda number=number, theta=theta: {"done": number, "where": theta})
                report(theta, *evaluate(theta))
            return theta, "done"

    X, Y = data()
    path = tmp_path / "run.h5"
    optimizer = Halving()
    optimizer.saves = True
    whole, net, again = network("float32"), network("float32"), network("float32")
    expected = fingerprint(whole, whole.fit(X, Y, optimizer))
    net.fit(X, Y, optimizer, max_evaluations=5, checkpoint=path)
    assert fingerprint(again, again.fit(X, Y, optimizer, resume=path)) == expected
    optimizer.saves = False
    with pytest.raises(InvalidArgumentError, match="must call save before each report"):
        net.fit(X, Y, optimizer, checkpoint=path)
