"""Checkpoints of a training, and going on from one: what must be the same, and what is kept."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from mlpkit.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from mlpkit.checks import shown
from mlpkit.data import fingerprint
from mlpkit.durable import path_text
from mlpkit.errors import InvalidArgumentError
from mlpkit.loop import Loop
from mlpkit.mlp import MLP

__all__ = ["Saver", "resume_from"]

_LENGTHS = ("max_iter", "max_epochs")  # a run may go on for longer than it was meant to


class Saver:
    """Makes checkpoints of a training, and knows what a training must share with one to go on from it.

    Parameters
    ----------
    net : MLP
        The network.
    optimizer : Any
        Whatever trains it.
    training : FullBatch or StochasticTraining
        What has the optimiser's state.
    arrays : list
        All data, None where there is none.
    class_weight : Any
        As `MLP.fit` takes it.
    """

    def __init__(self, net: MLP, optimizer: Any, training: Any, arrays: list[Any], class_weight: Any) -> None:
        training.check_resumable()
        self.net, self.training = net, training
        weights = class_weight if class_weight is None or isinstance(class_weight, (str, dict)) else list(class_weight)
        self.identity = {
            "optimizer": describe(optimizer),
            "data": fingerprint(*[np.zeros(0) if array is None else array for array in arrays]),
            "class_weight": repr(weights),
        }

    def to(self, path: str | os.PathLike[str]) -> Callable[[Loop], None]:
        """Return a function that writes a checkpoint of a loop to `path`.

        Raises
        ------
        FileNotFoundError
            If there is no folder for it: now, not after hours.
        """
        target = os.path.abspath(path_text(path))  # wherever the program may go in the meantime
        if not os.path.isdir(os.path.dirname(target)):
            raise FileNotFoundError(errno.ENOENT, "no folder for the checkpoint", os.fspath(path))

        def save(loop: Loop) -> None:
            theta, optimizer = loop.whole
            write_checkpoint(target, Checkpoint(self.net.config(), theta, optimizer, {**loop.state(), **self.identity}))

        return save


def describe(optimizer: Any) -> str:
    """Return an optimiser's settings in words, how long it is to run left out.

    Examples
    --------
    >>> from mlpkit import GradientDescent
    >>> describe(GradientDescent(0.5, 10))
    'GradientDescent(alpha=0.5, line_search=False)'
    """
    name = type(optimizer).__name__
    if not is_dataclass(optimizer):
        return name
    settings = [(f.name, getattr(optimizer, f.name)) for f in fields(optimizer) if f.name not in _LENGTHS]
    return f"{name}({', '.join(f'{key}={_in_words(value)}' for key, value in settings)})"


def _in_words(value: Any) -> str:
    if callable(value) and not is_dataclass(value):  # its repr has an address in it
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return repr(value)


def resume_from(resume: Any, checkpoint: Any, saver: Saver, loop: Loop) -> None:
    """Set a training up to go on from a checkpoint, if `resume` asks for it; see `MLP.fit`."""
    if resume is False:
        return
    if resume is True:
        if checkpoint is None:
            raise InvalidArgumentError("resume=True goes on from the checkpoint, which must be given")
        if not os.path.exists(checkpoint):
            return
        resume = checkpoint
    elif not isinstance(resume, (str, bytes, os.PathLike)):
        raise InvalidArgumentError(f"resume must be True, False or the path of a checkpoint; found {shown(resume)}")
    found = read_checkpoint(resume)
    expected = saver.net.config()
    for name in expected:
        if found.config.get(name) != expected[name]:
            raise InvalidArgumentError(
                f"resume needs the network that the checkpoint is of: its {name} is {found.config.get(name)!r:.200}; "
                f"found {expected[name]!r:.200}"
            )
    for name, value in saver.identity.items():
        if found.loop.get(name) != value:
            what = "the same data, weights and validation data" if name == "data" else f"the same {name}"
            raise InvalidArgumentError(
                f"resume needs {what} as the run had: {found.loop.get(name)!r:.300}; found {value!r:.300}"
            )
    loop.restore(found.loop)
    if loop.run.final is None:
        raise InvalidArgumentError("resume needs a checkpoint with an iteration on record; found none")
    saver.training.restore(found.optimizer, found.theta, loop.run.final)
    loop.run.net.theta = saver.training.theta
