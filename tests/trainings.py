"""Trainings to interrupt, kill and resume; as a program, one of them in a process of its own, or killed many times.

``python tests/trainings.py train CASE PATH`` trains with a checkpoint at PATH, from there on if it exists, and prints
what came out. ``python tests/trainings.py kill TIMES`` has children train and kills them at random moments.
"""

import hashlib
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import mlpkit
from mlpkit import (
    LBFGS,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Callback,
    ConjugateGradient,
    Dense,
    EarlyStopping,
    GradientDescent,
    Input,
    KLSparsity,
    RMSprop,
)
from mlpkit.checkpoint import read_checkpoint
from mlpkit.schedules import CosineSchedule

ITERATIONS = 30

OPTIMIZERS = {
    "lbfgs": LBFGS(ITERATIONS, ftol=0, gtol=0, max_corrections=6),
    "cg": ConjugateGradient(ITERATIONS, gtol=0),
    "descent": GradientDescent(0.5, ITERATIONS),
    "searched": GradientDescent(0.5, ITERATIONS, line_search=True),
    "sgd": SGD(0.3, batch_size=16, max_epochs=ITERATIONS),
    "momentum": SGD(0.1, momentum=0.9, batch_size=16, max_epochs=ITERATIONS),
    "nesterov": SGD(0.1, momentum=0.9, nesterov=True, batch_size=16, max_epochs=ITERATIONS),
    "rmsprop": RMSprop(0.01, batch_size=16, max_epochs=ITERATIONS),
    "adagrad": Adagrad(0.1, batch_size=16, max_epochs=ITERATIONS),
    "adam": Adam(0.02, batch_size=16, max_epochs=ITERATIONS),
    "adamw": AdamW(0.02, batch_size=16, max_epochs=ITERATIONS),
}
FULL_BATCH = ("lbfgs", "cg", "descent", "searched")


class Total(Callback):
    """Has a state that depends on all iterations."""

    def __init__(self):
        self.total, self.text, self.vector = 0, "", np.zeros(2)

    def on_iteration(self, run):
        self.total += run.history[-1].n_evaluations
        self.text = f"{run.history[-1].cost:.3f}"
        self.vector = self.vector / 2 + run.history[-1].cost

    def state(self):
        return {"total": self.total, "text": self.text, "vector": self.vector}

    def restore_state(self, state):
        self.total, self.text, self.vector = state["total"], state["text"], np.array(state["vector"])


def largest(targets, outputs):
    return np.abs(targets - outputs).max()


def data(m=60, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    X = rng.uniform(0.1, 0.9, (m, 5))
    return X.astype(dtype), (0.5 + 0.4 * np.sin(3 * X[:, :2]) * X[:, 2:4]).astype(dtype)


def network(dtype="float64", seed=0, everything=False):
    if everything:
        layers = [
            Input(5, noise=mlpkit.GaussianNoise(0.05)),
            Dense(6, "tanh", dropout=0.25),
            Dense(4, "sigmoid", sparsity=KLSparsity(0.2, 0.5)),
            Dense(2, "sigmoid"),
        ]
    else:
        layers = [Input(5), Dense(4, "sigmoid", sparsity=KLSparsity(0.2, 0.5)), Dense(2, "sigmoid")]
    return mlpkit.MLP(layers, weight_decay=1e-3, dtype=dtype, seed=seed)


def training(case):
    """Return a network and the arguments of fit; a case is an optimiser, a dtype and how much else, by name."""
    name, dtype, extent = case.split("-")
    X, Y = data(dtype=dtype)
    more = {}
    optimizer = OPTIMIZERS[name]
    if extent == "everything":
        more = {
            "validation": 0.2,
            "metrics": [largest, "r2"],
            "sample_weight": np.linspace(0.5, 2, len(X)),
            "callbacks": [Total()],
            "early_stopping": EarlyStopping("validation_loss", patience=12, min_delta=1e-4),
        }
        if name not in FULL_BATCH:
            schedule = CosineSchedule(optimizer.learning_rate, epochs=ITERATIONS)
            changes = {"rho_hat_momentum": 0.9, "learning_rate": schedule, "clip_norm": 2.0}
            optimizer = type(optimizer)(**{**vars(optimizer), **changes})
    net = network(dtype, everything=extent == "everything" and name not in FULL_BATCH)
    return net, {"X": X, "Y": Y, "optimizer": optimizer, **more}


def fingerprint(net, result):
    """Return all that a training comes to, but for times, as text."""
    history = [[record[name] for name in record.names() if "seconds" not in name] for record in result.history]
    numbers = [result.terms, result.cost, result.n_iterations, result.n_evaluations, result.iteration, result.reason]
    theta = hashlib.sha256(net.theta.tobytes()).hexdigest()
    return json.dumps([theta, history, numbers])


def train(case, checkpoint, *more, every=1):
    net, arguments = training(case)
    arguments["callbacks"] = [*arguments.get("callbacks", ()), *more]
    return fingerprint(net, net.fit(**arguments, checkpoint=checkpoint, every=every, resume=True))


# ---------------------------------------------------------------------------------- killed at random moments

KILLED = ("lbfgs-float32-everything", "adam-float64-everything", "cg-float64-plain", "momentum-float32-everything")


class Saved(Callback):
    """Tells the parent, through memory that they share, which checkpoint is written beyond doubt."""

    def __init__(self, memory):
        self.memory = memory

    def on_iteration(self, run):
        self.memory[:] = struct.pack("<q", len(run.history) - 1)


class Alive(Callback):
    """Tells the parent that training has begun."""

    def on_start(self, run):
        print("training", flush=True)


def in_a_fork(case, path, memory, seconds=None):
    """Let a child train for so long, or to the end; return its exit status, negative if it was killed."""
    child = os.fork()
    if not child:
        try:
            came_out = train(case, path, Saved(memory))
            Path(path + ".json").write_text(came_out)
            os._exit(0)
        finally:
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_a_process(case, path, seconds):
    """Do the same with a process that has threads."""
    with subprocess.Popen([sys.executable, __file__, "train", case, path], stdout=subprocess.PIPE, text=True) as child:
        child.stdout.readline()
        time.sleep(seconds)
        child.kill()
        came_out = child.stdout.read()
    if child.returncode == 0:
        Path(path + ".json").write_text(came_out.strip())
    return child.returncode


def main(times, seed):
    rng = random.Random(seed)
    counts = {"killed": 0, "resumed": 0, "finished": 0}
    with tempfile.TemporaryDirectory() as folder, mmap.mmap(-1, 8) as memory:
        path = str(Path(folder, "run.h5"))
        turn = 0
        while counts["killed"] < times:
            case = KILLED[turn % len(KILLED)]
            turn += 1
            expected = subprocess.run(
                [sys.executable, __file__, "train", case, path], stdout=subprocess.PIPE, text=True, check=True
            ).stdout.splitlines()[1]
            clean(folder)
            # Kernels for one thread may have to be compiled, for which no child that is killed has the time.
            assert in_a_fork(case, path, memory) == 0
            assert Path(path + ".json").read_text() == expected, case
            clean(folder)
            known, attempts, fruitless = 0, 0, 0
            while True:
                attempts += 1
                memory[:] = struct.pack("<q", known)
                # On a busy machine a child may get nowhere in so short a time: then the next one has longer.
                seconds = rng.uniform(0, 0.15) * (1 + fruitless)
                if attempts == 1 and turn % 4 == 1:
                    status = in_a_process(case, path, 2 * seconds)
                else:
                    status = in_a_fork(case, path, memory, seconds)
                if status == 0:
                    break
                assert status == -signal.SIGKILL, status
                counts["killed"] += 1
                (saved,) = struct.unpack("<q", memory[:])
                if not os.path.exists(path):
                    assert saved <= 0, saved
                    fruitless += 1
                    continue
                counts["resumed"] += 1
                found = read_checkpoint(path)
                assert found.loop["history.cost"].size == found.optimizer["iteration"] >= max(saved, known)
                fruitless = 0 if found.optimizer["iteration"] > known else fruitless + 1
                known = found.optimizer["iteration"]
            assert Path(path + ".json").read_text() == expected, case
            counts["finished"] += 1
            clean(folder)
    print(json.dumps(counts))


def clean(folder):
    for name in os.listdir(folder):
        os.remove(Path(folder, name))


if __name__ == "__main__":
    if sys.argv[1] == "train":
        print(train(*sys.argv[2:4], Alive()))
    else:
        main(int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else os.urandom(4).hex())
