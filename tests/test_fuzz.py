"""Whatever a file holds, loading it gives the network that is in it, to the bit, or a `ModelFormatError`."""

import collections
import os
import sys

import fuzzing
import pytest

from mlpkit import ModelFormatError, load


def test_mutations_are_told_by_their_seed():
    assert fuzzing.mutated(7) == fuzzing.mutated(7) != fuzzing.mutated(8)


def test_mutations_reach_every_part_of_the_loader(tmp_path):
    """They would be worth little if the digest stopped them all."""
    reasons = collections.Counter()
    path = tmp_path / "model.h5"
    for seed in range(400):
        path.write_bytes(fuzzing.mutated(seed))
        try:
            load(path)
            reasons["loaded"] += 1
        except ModelFormatError as error:
            reasons[str(error).removeprefix(f"{path}: ").partition(":")[0]] += 1
        except UserWarning:
            reasons["newer"] += 1
    assert reasons["loaded"] > 8
    assert 20 < reasons["content"] < 300
    assert reasons["SHA-256 digest"] < 60
    assert reasons.keys() >= {"/config", "file", "/parameters"}
    assert len(reasons) > 12


def test_five_thousand_mutations():
    assert fuzzing.fuzz(0, 5000) == []


@pytest.mark.soak
def test_a_hundred_thousand_mutations():
    first = 10**6 * (1 + int.from_bytes(os.urandom(4), "little"))
    assert fuzzing.fuzz(first, 100_000) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_crash_and_a_hang_are_noticed(monkeypatch, tmp_path):
    """The harness itself: a worker that dies or never answers is replaced, and the seed named."""
    stand_in = tmp_path / "worker.py"
    stand_in.write_text(
        "import mmap, os, struct, sys, time\n"
        "progress = mmap.mmap(os.open(sys.argv[2], os.O_RDWR), 8)\n"
        "for line in sys.stdin:\n"
        "    for seed in range(*map(int, line.split())):\n"
        "        progress[:] = struct.pack('<Q', seed)\n"
        "        if seed == 12: os.abort()\n"
        "        if seed == 14: time.sleep(1000)\n"
        "    print('[]', flush=True)\n"
    )
    monkeypatch.setattr(fuzzing, "__file__", str(stand_in))
    monkeypatch.setattr(fuzzing, "SECONDS_FOR_ONE", 1)
    assert fuzzing.fuzz(10, 10, n_workers=1) == [(12, "kills the process (-6)"), (14, "hangs")]
