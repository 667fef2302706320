"""Groups as the oldest HDF5 libraries lay them out: read, but not where their lists go round in circles."""

import io
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest
from forging import seal

import mlpkit


def old_style(model):
    """A model's bytes with the same elements in groups of the old kind."""
    buffer = io.BytesIO()
    with h5py.File(model) as source, h5py.File(buffer, "w", userblock_size=512, libver=("earliest", "v108")) as file:

        def copy(name, element):
            made = file.create_dataset(name, data=element[...]) if isinstance(element, h5py.Dataset) else None
            made = file.require_group(name) if made is None else made
            for key, value in element.attrs.items():
                made.attrs[key] = np.bytes_(value)

        copy("/", source["/"])
        source.visititems(copy)
    return bytearray(model.read_bytes()[:512] + buffer.getvalue()[512:])


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.h5"
    mlpkit.MLP([mlpkit.Input(3), mlpkit.Dense(2, "tanh")], seed=0).save(path)
    return path


def test_a_model_in_old_groups_is_read(model):
    net = mlpkit.load(model)
    model.write_bytes(seal(bytes(old_style(model))))
    assert (mlpkit.load(model).theta == net.theta).all()


def test_a_heap_in_a_circle_is_refused(model):
    """The library would follow its list of free blocks for ever."""
    content = old_style(model)
    heap = content.find(b"HEAP")
    patched = 0
    while heap >= 0:
        head = int.from_bytes(content[heap + 16 : heap + 24], "little")
        segment = int.from_bytes(content[heap + 24 : heap + 32], "little") + 512
        if head != 1:  # the end of the list
            content[segment + head : segment + head + 8] = head.to_bytes(8, "little")
            patched += 1
        heap = content.find(b"HEAP", heap + 4)
    assert patched
    model.write_bytes(seal(bytes(content)))
    # In a process of its own, which can be ended should the list be followed after all.
    code = "import sys, mlpkit; mlpkit.load(sys.argv[1])"
    found = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True, timeout=60)
    assert re.search("ModelFormatError: .*heap: its list of free blocks, at byte .* runs in a circle", found.stderr)


def test_words_of_a_users_own_are_no_groups(model):
    net = mlpkit.load(model)
    net.metadata = {"HEAP": "TREE SNOD HEAP"}
    net.save(model)
    assert mlpkit.load(model).metadata == net.metadata
