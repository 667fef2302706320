"""Saving and loading a network of a hundred million parameters, beside a plain copy of the same file with fsync.

Run in the project's own environment: python benchmarks/model_files.py [--parameters 100000000] [--folder DIR]. Each
round copies and saves to a name that is free, saves over a file (which gives the old one's room back) and loads; what
is printed are medians, and each as a part of the copy's speed. The peak of memory is that of a process of its own,
beyond what it had before, as a multiple of the parameters' bytes; for saving, the parameters themselves are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTH = 10_000


def network(n_parameters):
    """Return a network of about so many parameters, in float64, without drawing them one by one."""
    import mlpkit

    return mlpkit.MLP([mlpkit.Input(WIDTH), mlpkit.Dense(n_parameters // (WIDTH + 1), "sigmoid", init=0.5)], seed=0)


def copy(source, target):
    """Copy as any program does, and wait until it is on the disk."""
    shutil.copyfile(source, target)
    with open(target, "rb+") as file:
        os.fsync(file.fileno())


def peak_bytes():
    """Return the most memory that the process has ever had, and what it has now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024, int(status["VmRSS"].split()[0]) * 1024


def timed(function, *arguments):
    """Call a function; return the seconds that it took and its result."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def memory_of(what, folder, n_parameters):
    """Save or load in a process of its own; return how far its peak lies above its start, in bytes."""
    command = [
        sys.executable,
        __file__,
        "--folder",
        str(folder),
        "--parameters",
        str(n_parameters),
        "--memory-of",
        what,
    ]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(what, path, n_parameters):
    """Save or load, and print how far the peak of this process lies above its start."""
    import mlpkit

    # The first network compiles and imports what has nothing to do with the size.
    small = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(1, "sigmoid")], seed=0)
    small.save(path.with_name("small.h5"))
    mlpkit.load(path.with_name("small.h5"))
    _, before = peak_bytes()
    if what == "save":
        net = network(n_parameters)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of making it
        net.save(path)
    else:
        mlpkit.load(path)
    print(peak_bytes()[0] - before)


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parameters", type=int, default=100_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", choices=["save", "load"])
    options = parser.parse_args()
    if options.memory_of:
        measure_memory(options.memory_of, options.folder / "model.h5", options.parameters)
        return
    import mlpkit

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        path = folder / "model.h5"
        net = network(options.parameters)
        n_bytes = net.theta.nbytes
        net.save(path)
        seconds = {"copy": [], "save": [], "save over": [], "load": []}
        for _ in range(options.rounds):
            (folder / "copy.h5").unlink(missing_ok=True)
            seconds["copy"].append(timed(copy, path, folder / "copy.h5")[0])
            path.unlink()
            seconds["save"].append(timed(net.save, path)[0])
            seconds["save over"].append(timed(net.save, path)[0])
            mlpkit.load(path)  # the copy's source, too, has been read since it was written, and is read faster
            took, back = timed(mlpkit.load, path)
            seconds["load"].append(took)
            del back
        del net
        (folder / "copy.h5").unlink()
        memory = {what: memory_of(what, folder, options.parameters) / n_bytes for what in ("save", "load")}
        plain = statistics.median(seconds["copy"])
        print(f"{n_bytes / 1e6:.0f} MB of parameters; rounds: {options.rounds}")
        for what, times in seconds.items():
            median = statistics.median(times)
            line = f"{what:9} {median:.2f} s ({min(times):.2f} to {max(times):.2f})  {n_bytes / median / 1e9:5.2f} GB/s"
            if what != "copy":
                line += f"  {plain / median:5.2f} of a copy's speed"
            if what in memory:
                line += f"  memory {memory[what]:5.2f} times the parameters"
            print(line)


if __name__ == "__main__":
    main()
