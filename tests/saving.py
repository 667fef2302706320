"""Saving killed at random moments: a program, for only a process that can be killed can be tried.

``python tests/saving.py TIMES`` forks a child that saves over and over, kills it after a random time, and looks at what
it left: one whole network or another, and nothing else once somebody has saved again.
"""

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import mlpkit


def networks():
    """Some small, some of a megabyte or two: kills find them at every stage of saving."""
    return [
        mlpkit.MLP([mlpkit.Input(units), mlpkit.Dense(units, "sigmoid")], seed=seed)
        for seed, units in enumerate((3, 300, 4, 500))
    ]


def save_forever(nets, path):
    while True:
        for net in nets:
            net.save(path)


def killed(nets, path, seconds):
    """Let a child save for so long; return whether it was still alive."""
    child = os.fork()
    if not child:
        try:
            save_forever(nets, path)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main(times, seed):
    rng = random.Random(seed)
    nets = networks()
    bits = [net.theta.tobytes() for net in nets]
    left_something = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.h5")
        nets[0].save(path)
        for _ in range(times):
            assert killed(nets, path, rng.uniform(0.0005, 0.05)), "the child ended by itself"
            found = mlpkit.load(path).theta.tobytes()
            assert found in bits, "neither the old nor the new file"
            left = set(os.listdir(folder)) - {"model.h5"}
            left_something += bool(left)
            assert len(left) <= 1, left
            net = rng.choice(nets)
            net.save(path)
            assert os.listdir(folder) == ["model.h5"]
            assert np.array_equal(mlpkit.load(path).theta, net.theta)
    print(f"killed {times} times, {left_something} times while a temporary file was there")
    return left_something


if __name__ == "__main__":
    times = int(sys.argv[1])
    left_something = main(times, sys.argv[2] if len(sys.argv) > 2 else os.urandom(4).hex())
    sys.exit(left_something < times // 10)
