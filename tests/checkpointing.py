"""Checkpoints to test with; as a program, checkpoints killed at random moments while they are written.

``python tests/checkpointing.py TIMES`` forks a child that writes one checkpoint after another, each with its number,
and after each the number into memory that it shares. It is killed after a random time. What it left must be whole, and
the last one written or the one being written. Every second child finds a file system without hard links.
"""

import errno
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import mlpkit
from mlpkit.checkpoint import Checkpoint, previous_path, read_checkpoint, write_checkpoint


def same_bits(one, other):
    """Whether two states or checkpoints hold the same: names and their order, types, shapes, every bit."""
    if isinstance(one, dict):
        return list(one) == list(other) and all(same_bits(one[name], other[name]) for name in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same_bits, one, other))
    if isinstance(one, np.ndarray) and type(other) is np.ndarray:
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    return type(one) is type(other) and bool(one == other)


def small_net(dtype="float64", seed=1):
    hidden = [mlpkit.Dense(3, "tanh"), mlpkit.Dense(2, "tanh", bias=False)]
    tied = mlpkit.Dense(3, "identity", tied_to=2)
    return mlpkit.MLP([mlpkit.Input(4), *hidden, tied], weight_decay=1e-3, dtype=dtype, seed=seed)


def small_checkpoint(dtype="float64", number=0):
    """A checkpoint with something of everything."""
    net = small_net(dtype)
    n = net.n_parameters
    optimizer = {
        "optimizer": "Adam",
        "version": 1,
        "iteration": 2**53 + 1,
        "m": np.linspace(-1, 1, n).astype(dtype),
        "pairs": np.arange(24.0).reshape(2, 3, 4),
        "no pairs": np.empty((0, n)),
        "step": np.array(-0.0),
    }
    loop = {
        "number": number,
        "rng": '{"state": 123}',
        "history.cost": np.array([1.5, np.nan, np.inf, -np.inf, -0.0, 5e-324]),
        "métrique": np.ones(2, np.float32),
        "empty": "",
    }
    return Checkpoint(net.config(), net.theta, optimizer, loop)


# ---------------------------------------------------------------------------------- killed at random moments


def number_of(path):
    return read_checkpoint(path).loop["number"]


def write_forever(checkpoints, path, done, number):
    while True:
        number += 1
        one = checkpoints[number % len(checkpoints)]
        write_checkpoint(path, one._replace(loop={**one.loop, "number": number}))
        done[:] = struct.pack("<Q", number)


def killed(checkpoints, path, done, number, seconds):
    """Let a child write for so long; return whether it was still alive."""
    child = os.fork()
    if not child:
        try:
            write_forever(checkpoints, path, done, number)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def no_links(*arguments):
    raise OSError(errno.EPERM, "Operation not permitted")


def main(times, seed):
    rng = random.Random(seed)
    large = mlpkit.MLP([mlpkit.Input(300), mlpkit.Dense(300, "sigmoid")], seed=0)
    moments = {"m": large.theta + 1, "v": large.theta**2}
    checkpoints = [small_checkpoint(), Checkpoint(large.config(), large.theta, moments, {})]
    left_something, link = 0, os.link
    with tempfile.TemporaryDirectory() as folder, mmap.mmap(-1, 8) as done:
        path = str(Path(folder, "run.h5"))
        number = 2
        for first in (1, 2):
            write_checkpoint(path, checkpoints[0]._replace(loop={"number": first}))
        for turn in range(times):
            os.link = no_links if turn % 2 else link
            done[:] = struct.pack("<Q", number)
            assert killed(checkpoints, path, done, number, rng.uniform(0.0005, 0.06)), "the child ended by itself"
            (finished,) = struct.unpack("<Q", done[:])
            number, before = number_of(path), number_of(previous_path(path))
            assert number in (finished, finished + 1), (finished, number)
            assert before in (number - 1, number - 2), (before, number)
            left = set(os.listdir(folder)) - {"run.h5", "run.previous.h5"}
            left_something += bool(left)
            assert len(left) <= 3, left
            number += 1
            write_checkpoint(path, checkpoints[0]._replace(loop={"number": number}))
            assert (number_of(path), number_of(previous_path(path))) == (number, number - 1)
            assert sorted(os.listdir(folder)) == ["run.h5", "run.previous.h5"], os.listdir(folder)
    print(f"killed {times} times, {left_something} times while a temporary file was there")
    return left_something


if __name__ == "__main__":
    times = int(sys.argv[1])
    left_something = main(times, sys.argv[2] if len(sys.argv) > 2 else os.urandom(4).hex())
    sys.exit(left_something < times // 10)
