"""Trainings in processes of their own, which are killed and interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
import trainings


def kill(times):
    command = [sys.executable, "-W", "error", trainings.__file__, "kill", str(times)]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    print(out)
    counts = json.loads(out)
    assert counts["killed"] >= times
    return counts


def test_killed_at_random_moments_training_loses_nothing():
    assert kill(10)["resumed"] > 0


@pytest.mark.soak
def test_killed_two_hundred_times_training_loses_nothing():
    assert kill(200)["resumed"] > 100


PROGRAM = """
import signal, sys, time
import numpy as np, mlpkit

signal.signal(signal.SIGINT, signal.default_int_handler)

class Begun(mlpkit.Callback):
    def on_iteration(self, run):
        if len(run.history) == 1:
            print("training", flush=True)

    def on_end(self, run):
        print("ended", flush=True)
        time.sleep(float(sys.argv[1]))

X = np.random.default_rng(0).uniform(0.1, 0.9, (400, 64)).astype("float32")
net = mlpkit.MLP([mlpkit.Input(64), mlpkit.Dense(500, "sigmoid"), mlpkit.Dense(64, "sigmoid")], dtype="float32", seed=0)
result = net.fit(X, X, mlpkit.GradientDescent(1e-3, 10**9), callbacks=[Begun()])
print(result.reason, bool(np.isfinite(net.theta).all()))
"""


@pytest.mark.parametrize("presses", [1, 2])
def test_a_program_ends_in_good_order(presses):
    command = [sys.executable, "-W", "error", "-c", PROGRAM, "0" if presses == 1 else "60"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as child:
        assert child.stdout.readline() == "training\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "ended\n"
        if presses == 2:
            child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=50)
    if presses == 1:
        assert (child.returncode, out, err) == (0, "interrupted True\n", "")
    else:
        assert child.returncode == -signal.SIGINT
        assert out == ""
        assert "KeyboardInterrupt" in err
