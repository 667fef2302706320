"""The history of a training in a file that grows by a line an iteration, for other programs to follow.

Each line is handed to the system in one piece and at once. A training that is killed leaves whole lines, but the last
may be cut short if the kill came in the middle of writing it: one without its line break is for readers to leave out.
A training that goes on from a checkpoint first puts the history up to there in the file, in place of what it holds. So
each iteration is in it once, also those that the killed training had got to beyond its last checkpoint.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import numbers
import os
from typing import Any

from mlpkit.durable import path_text, replace_file, write_all
from mlpkit.history import History, Iteration
from mlpkit.run import Callback, Run

__all__ = ["CSVHistory", "JSONLinesHistory"]


class _HistoryFile(Callback):
    """What both kinds of file have in common: when they are written whole, and when a line is added."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path_text(path)
        self._file = ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"

    def _whole(self, history: History) -> str:
        """Return the file's text for a history."""
        raise NotImplementedError

    def _line(self, record: Iteration) -> str | None:
        """Return the line for one more record, or None if the file must be written anew for it."""
        raise NotImplementedError

    def on_start(self, run: Run) -> None:
        """Write the file with what there is of a history, replacing an old one."""
        self._file = os.path.abspath(self.path)  # wherever the program may go in the meantime
        self._write(run.history)

    def on_iteration(self, run: Run) -> None:
        """Add a line."""
        line = self._line(run.history[-1])
        if line is None or not _append(self._file, line.encode()):
            self._write(run.history)

    def _write(self, history: History) -> None:
        replace_file(self._file, self._whole(history).encode())


def _append(path: str, content: bytes) -> bool:
    """Add to a file, all or nothing as far as the system lets us; False if there is none."""
    try:
        # Opened each time, which takes microseconds: so the line is in the file that has this name now.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        return False
    with open(descriptor, "ab", buffering=0) as file:
        size = os.fstat(descriptor).st_size
        try:
            write_all(file, content)
        except OSError:  # a full disk, for instance
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    return True


class CSVHistory(_HistoryFile):
    """The history in a file of comma-separated values, a line an iteration, below one with the names.

    Numbers are written so that they come back exactly; ``nan`` is one that is missing.

    Parameters
    ----------
    path : path-like
        The file. What it holds is replaced when training starts.

    Raises
    ------
    InvalidArgumentError
        If `path` is none.
    OSError
        When training starts, if the file cannot be written; also later on, for instance where a disk is full, which
        ends the training.

    Examples
    --------
    >>> import mlpkit, pathlib, tempfile
    >>> net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "identity", init=0.0)])
    >>> few = mlpkit.LBFGS(max_iter=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "history.csv")
    ...     result = net.fit([[0.0], [1.0]], [1.0, 3.0], optimizer=few, callbacks=[CSVHistory(path)])
    ...     names, *lines = path.read_text().splitlines()
    >>> names
    'iteration,cost,data,weight_decay,sparsity,gradient_norm,n_evaluations,seconds,iteration_seconds,n_hessian_products'
    >>> [line.split(",")[0] for line in lines]
    ['1', '2']
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._names: list[str] = []

    def _whole(self, history: History) -> str:
        table = history.to_dict()
        self._names = list(table)
        return _csv([self._names, *map(self._values, history)])

    def _line(self, record: Iteration) -> str | None:
        if not set(record.names()) <= set(self._names):  # a metric, which is not known before the first record
            return None
        return _csv([self._values(record)])

    def _values(self, record: Iteration) -> list[int | float]:
        known = record.names()
        return [_plain(record[name]) if name in known else math.nan for name in self._names]


class JSONLinesHistory(_HistoryFile):
    """The history in a file of JSON lines: an object an iteration.

    Numbers are written so that they come back exactly; what is not finite is ``null``.

    Parameters
    ----------
    path : path-like
        The file. What it holds is replaced when training starts.

    Raises
    ------
    InvalidArgumentError
        If `path` is none.
    OSError
        When training starts, if the file cannot be written; also later on, for instance where a disk is full, which
        ends the training.

    Examples
    --------
    >>> import mlpkit, pathlib, tempfile
    >>> net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "identity", init=0.0)])
    >>> few = mlpkit.LBFGS(max_iter=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "history.jsonl")
    ...     result = net.fit([[0.0], [1.0]], [1.0, 3.0], optimizer=few, callbacks=[JSONLinesHistory(path)])
    ...     records = [json.loads(line) for line in path.read_text().splitlines()]
    >>> [record["cost"] for record in records] == [record.cost for record in result.history]
    True
    """

    def _whole(self, history: History) -> str:
        return "".join(map(self._line, history))

    def _line(self, record: Iteration) -> str:
        values = {name: _plain(record[name]) for name in record.names()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        return json.dumps(finite, allow_nan=False) + "\n"


def _plain(value: Any) -> int | float:
    """Return a number of Python's, whose repr comes back exactly."""
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _csv(rows: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
