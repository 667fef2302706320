"""Files and other things that give rows, and a way to have any of them read anew in every epoch."""

from __future__ import annotations

from types import SimpleNamespace

import h5py
import numpy as np

from mlpkit import BlockShuffle, minibatch
from mlpkit.row_windows import StreamedRows, choose_windows

UNLIMITED = 1 << 40
FEW = BlockShuffle(block=7, window=5)


class Sliced:
    """An object that gives rows when it is sliced, and does something before."""

    def __init__(self, values, before=lambda which: None):
        self.values, self.shape, self.dtype, self.before = values, values.shape, values.dtype, before

    def __getitem__(self, which):
        self.before(which)
        return self.values[which]


def read_anew(monkeypatch):
    """Have whatever comes from a file read anew in every epoch, however little it is.

    What is returned has a list of what was made, and how many rows a window shall have where that changes nothing.
    """
    found = SimpleNamespace(made=[], rows=None)

    def choose(data, net, optimizer, limit, engine_bytes):
        if not data.sources:
            return choose_windows(data, net, optimizer, limit, engine_bytes)
        made = StreamedRows(data, net, optimizer, UNLIMITED, engine_bytes)
        made._rows = found.rows or made._rows
        found.made.append(made)
        return made

    monkeypatch.setattr(minibatch, "choose_windows", choose)
    return found


def saved(folder, kind, **arrays):
    """Write arrays to files; return what stands for them."""
    found = []
    for name, values in arrays.items():
        if kind == "npy":
            np.save(folder / f"{name}.npy", values)
            found.append(folder / f"{name}.npy")
        else:
            with h5py.File(folder / f"{name}.h5", "w") as file:
                file.create_dataset("rows", data=values, chunks=(13, *values.shape[1:]), compression="gzip")
            found.append(f"{folder / name}.h5:/rows")
    return found
