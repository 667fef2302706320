"""Every known attack on the loader is refused, by the name of the element and the reason, and harms nothing."""

import json
import os
import re
import sys
import tracemalloc
from pathlib import Path

import h5py
import pytest

import mlpkit
from mlpkit.errors import ModelFormatError

HOSTILE = Path(__file__).parent / "data" / "hostile"
EXPECTED = json.loads((HOSTILE / "expected.json").read_text())


def test_every_file_is_expected_and_small():
    files = {path.stem: path.stat().st_size for path in HOSTILE.glob("*.h5")}
    assert files.keys() == EXPECTED.keys()
    assert len(files) > 100
    assert max(files.values()) < 32 * 1024


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_refused_for_the_expected_reason(name):
    path = HOSTILE / f"{name}.h5"
    tracemalloc.start()
    try:
        with pytest.raises(ModelFormatError, match=EXPECTED[name]) as caught:
            mlpkit.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 1000
    str(caught.value).encode()  # can be printed, whatever the file holds
    assert peak < 10e6


def test_no_other_file_is_opened():
    """Not by Python; what HDF5 opens by itself is looked for below."""
    opened = []
    watching = True
    sys.addaudithook(lambda event, arguments: opened.append(arguments[0]) if event == "open" and watching else None)
    for name in EXPECTED:
        path = HOSTILE / f"{name}.h5"
        opened.clear()
        with pytest.raises(ModelFormatError):
            mlpkit.load(path)
        assert {os.fspath(found) for found in opened if isinstance(found, str | os.PathLike)} <= {str(path)}
    watching = False


def test_targets_that_exist_are_not_followed(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["W"] = [[0.0] * 4] * 3
    for name in ("virtual", "external_link", "external_group", "external_storage"):
        path = tmp_path / f"{name}.h5"
        path.write_bytes((HOSTILE / path.name).read_bytes())
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelFormatError, match=re.compile(EXPECTED[name])):
            mlpkit.load(path)
