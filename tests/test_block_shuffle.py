"""Mini-batches from files: the rule of blocks, the same bits as in memory, limits of memory."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_sources import FEW, UNLIMITED, Sliced, read_anew, saved
from test_stochastic import DTYPES, THREADS, examples, network, trained

import mlpkit
from mlpkit import Adam, BlockShuffle, Dense, GaussianNoise, Input
from mlpkit.data import Data
from mlpkit.errors import InvalidArgumentError
from mlpkit.row_windows import HeldRows, StreamedRows


@pytest.fixture
def streaming(monkeypatch):
    return read_anew(monkeypatch)


@pytest.fixture
def any_threads():
    before = mlpkit.get_num_threads()
    yield
    mlpkit.set_num_threads(before)


# The rule ---------------------------------------------------------------------------------------


def batches_of(rows, size, seed, epochs=2):
    """Return the first input of each example as steps would see them, batch by batch, epoch by epoch."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(epochs):
        rows.draw_noise(generator, lambda: None)
        batches = []
        for window in rows.windows(generator, lambda: None):
            assert np.array_equal(window.X[window.order], window.Y[window.order])
            assert (window.weights[window.order] > 0).all()
            batches += [window.X[window.order[i : i + size], 0].tolist() for i in range(0, window.order.size, size)]
        found.append(batches)
    return found, generator.bit_generator.state


@settings(max_examples=60)
@given(data=st.data())
def test_every_example_is_seen_once_in_batches_that_are_full(data):
    m = data.draw(st.integers(1, 300), label="m")
    size = data.draw(st.integers(1, 40), label="batch")
    shuffle = data.draw(st.booleans(), label="blocks") and BlockShuffle(
        data.draw(st.integers(1, 40), label="block"), data.draw(st.integers(1, 9), label="window")
    )
    weights = None
    if data.draw(st.booleans(), label="weighted"):
        weights = np.random.default_rng(m).integers(0, 2, m) + (np.arange(m) == m // 2)
    X = np.repeat(np.arange(m, dtype=float)[:, np.newaxis], 2, axis=1)
    net = mlpkit.MLP([Input(2), Dense(2, "identity")], seed=0)
    optimizer = Adam(batch_size=size, shuffle=shuffle)
    held = HeldRows(Data(net, X, X.copy(), weights), net, shuffle).load()
    size = min(size, m if weights is None else np.count_nonzero(weights))
    expected = batches_of(held, size, seed=m)
    streamed = StreamedRows(Data(net, Sliced(X), Sliced(X), weights), net, optimizer, UNLIMITED, 0)
    if not shuffle:
        streamed._rows = data.draw(st.integers(1, 50), label="rows")
    streamed._piece = data.draw(st.integers(1, 20), label="piece")
    assert batches_of(streamed, size, seed=m) == expected
    used = np.arange(m) if weights is None else np.flatnonzero(weights)
    for batches in expected[0]:
        assert sorted([x for batch in batches for x in batch]) == used.tolist()
        assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
        if not shuffle:
            assert [x for batch in batches for x in batch] == used.tolist()


def test_a_window_is_made_of_whole_blocks_in_an_order_of_their_own():
    X = np.repeat(np.arange(1000.0)[:, np.newaxis], 2, axis=1)
    net = mlpkit.MLP([Input(2), Dense(2, "identity")], seed=0)
    shuffle = BlockShuffle(block=50, window=4)
    held = HeldRows(Data(net, X, X), net, shuffle).load()
    (first, second), _ = batches_of(held, 200, seed=0)
    for epoch in (first, second):
        for window in epoch:  # as many as a batch here
            blocks = {int(x) // 50 for x in window}
            assert len(blocks) == 4
            assert {int(x) for x in window} == {i for b in blocks for i in range(50 * b, 50 * b + 50)}
            assert window != sorted(window)
    assert [sorted(window) for window in first] != [sorted(window) for window in second]
    (whole,), _ = batches_of(HeldRows(Data(net, X, X), net, BlockShuffle(50, 20)).load(), 1000, seed=0, epochs=1)
    assert len(whole) == 1, "one window shuffles all"


def test_defaults_follow_from_the_data():
    net = mlpkit.MLP([Input(96), Dense(32, "tanh")], dtype="float32", seed=0)
    X = np.zeros((150_000, 96), "f4")
    streamed = StreamedRows(Data(net, X, X[:, :32]), net, Adam(shuffle="blocks"), UNLIMITED, 0)
    assert streamed._rows == 64 * (1 << 20) // 512
    assert BlockShuffle().block_examples(1 << 30) == 1


# The same bits ----------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("kind", ["npy", "h5"])
@pytest.mark.parametrize("shuffle", [FEW, False], ids=["blocks", "in order"])
def test_files_give_the_bits_of_arrays(tmp_path, dtype, kind, shuffle, streaming, any_threads):
    X, Y = examples(621, dtype=dtype)
    paths = saved(tmp_path, kind, X=X, Y=Y)
    weights = np.random.default_rng(0).integers(0, 4, 621) / 4
    optimizer = Adam(0.01, batch_size=47, max_epochs=3, shuffle=shuffle)
    cases = [
        (network(dtype=dtype), {"sample_weight": weights}),
        (network(dtype=dtype, dropout=0.4), {"mask": np.random.default_rng(1).random(Y.shape) < 0.8}),
    ]
    if not shuffle:
        cases.pop()
    for net, options in cases:
        expected = trained(net, X, Y, optimizer, **options)
        assert expected[2] == "max_epochs reached"
        for n in THREADS:
            mlpkit.set_num_threads(n)
            assert trained(net, *paths, optimizer, **options) == expected
    assert len(streaming.made) == len(cases) * len(THREADS), "files were not read as they should"
    other = replace(optimizer, shuffle=True)
    assert trained(net, X, Y, other, **options) != expected


@DTYPES
def test_an_autoencoder_from_one_file(tmp_path, dtype, streaming):
    X, _ = examples(300, dtype=dtype)
    (path,) = saved(tmp_path, "npy", X=X)
    for shuffle in (FEW, False):
        optimizer = Adam(0.01, batch_size=47, max_epochs=2, shuffle=shuffle, rho_hat_momentum=0.9)
        for noise in (None, GaussianNoise(0.1)):
            net = network((12, 9, 12), dtype, noise=noise)
            expected = trained(net, X, X, optimizer)
            assert trained(net, path, path, optimizer) == expected
            assert trained(net, path, path, replace(optimizer, batch_size=500)) != expected
        weights = np.random.default_rng(0).integers(0, 3, 300)
        expected = trained(net, X, X, optimizer, sample_weight=weights)  # noise of rows that are left out
        assert trained(net, path, path, optimizer, sample_weight=weights) == expected
    # where a window ends changes nothing if nothing is shuffled
    streaming.rows = 61
    assert trained(net, path, path, optimizer, sample_weight=weights) == expected
    assert streaming.made[-1]._rows == 61


def test_labels_from_files(tmp_path, streaming):
    net = mlpkit.MLP([Input(12), Dense(6, "tanh"), Dense(4, "softmax")], loss="cross_entropy", seed=0)
    X, labels = examples(150)[0], np.arange(150) % 4
    paths = saved(tmp_path, "h5", X=X, y=labels)
    optimizer = Adam(0.01, batch_size=17, max_epochs=2, shuffle=FEW)
    for options in ({}, {"class_weight": "balanced", "sample_weight": np.arange(150) % 3}):
        assert trained(net, *paths, optimizer, **options) == trained(net, X, labels, optimizer, **options)
    (bad,) = saved(tmp_path, "npy", bad=labels + 1)
    with pytest.raises(InvalidArgumentError, match="Y must hold class labels from 0 to 3; found 4 at row 3"):
        net.fit(paths[0], bad, optimizer)


def test_rows_of_weight_zero_are_no_examples():
    X, Y = examples(200)
    counts = np.random.default_rng(2).random(200) < 0.6
    optimizer = Adam(0.01, batch_size=7, max_epochs=3, shuffle=FEW)
    for net in (network(), network(noise=GaussianNoise(0.1))):
        weighted = trained(net, X, Y, optimizer, sample_weight=counts.astype(float))
        assert weighted == trained(net, X[counts], Y[counts], optimizer)


def test_parts_of_a_data_set_may_be_shuffled_by_blocks():
    X, Y = examples(200)
    whole, parts = network(), network()
    optimizer = Adam(0.01, batch_size=20, max_epochs=1, shuffle=FEW)
    expected = whole.fit(X, Y, optimizer).terms
    assert parts.partial_fit(X, Y, optimizer) == expected
    assert whole.theta.tobytes() == parts.theta.tobytes()


# Limits of memory -------------------------------------------------------------------------------


def test_no_limit_changes_a_bit(tmp_path):
    X = np.random.default_rng(0).uniform(0.1, 0.9, (40_000, 12))
    Y = X[:, :5]
    paths = saved(tmp_path, "npy", X=X, Y=Y)
    net = network()
    optimizer = Adam(batch_size=500, max_epochs=1, shuffle=BlockShuffle(block=500, window=7))
    expected = trained(net, X, Y, optimizer)
    for limit in (None, "1GB", "4MB"):
        assert trained(net, *paths, optimizer, memory_limit=limit) == expected
    dropping = network(dropout=0.3)
    found = {trained(dropping, *data, optimizer, memory_limit="4MB") for data in ((X, Y), paths)}
    assert found == {trained(dropping, X, Y, optimizer)}
    assert trained(net, X.astype(">f8"), Y, optimizer, memory_limit="4MB") == expected
    ordered = replace(optimizer, shuffle=False)
    expected = trained(net, X, Y, ordered)
    for limit in (None, "3MB", "4MB"):
        assert trained(net, *paths, ordered, memory_limit=limit) == expected
    exact = replace(optimizer, shuffle=True)
    for limit in (None, "10MB"):  # files that fit are read once, and are arrays from then on
        assert trained(net, *paths, exact, memory_limit=limit) == trained(net, X, Y, exact)


def test_what_does_not_fit_is_said(tmp_path):
    X = np.zeros((40_000, 12))
    paths = saved(tmp_path, "npy", X=X, Y=X[:, :5])
    net = network()
    refused = r"shuffle must be 'blocks'{} for .* 6\.\d+ MB with memory_limit at 4 MB; found {}, which {}"
    with pytest.raises(InvalidArgumentError, match=refused.format(" or False", True, "draws an order of all of them")):
        net.fit(*paths, Adam(), memory_limit="4MB")
    with pytest.raises(InvalidArgumentError, match=refused.format("", False, "with dropout takes their numbers")):
        network(dropout=0.2).fit(*paths, Adam(shuffle=False), memory_limit="4MB")
    small = (
        r"memory_limit must be at least \d.* MB for shuffle=BlockShuffle\(block=None, window=64\), whose windows "
        r"are of 40000 examples.*; found 4 MB"
    )
    with pytest.raises(InvalidArgumentError, match=small):
        net.fit(*paths, Adam(shuffle="blocks"), memory_limit="4MB")
    for shuffle in (BlockShuffle(500, 8), False):
        optimizer = Adam(batch_size=1000, max_epochs=1, shuffle=shuffle)
        with pytest.raises(InvalidArgumentError, match="memory_limit must be at least") as error:
            net.fit(*paths, optimizer, memory_limit="1MB")
        enough = float(str(error.value).split("at least ")[1].split(" MB")[0]) + 0.01
        assert net.fit(*paths, optimizer, memory_limit=f"{enough} MB").reason == "max_epochs reached"
    with pytest.raises(InvalidArgumentError, match="memory_limit must be a number of bytes"):
        net.fit(*paths, Adam(), memory_limit="many")


PROGRAM = """
import sys
import numpy as np, mlpkit
path, limit = sys.argv[1], int(sys.argv[2])
mlpkit.set_num_threads(2)
def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))
net = mlpkit.MLP([mlpkit.Input(1024), mlpkit.Dense(8, "tanh"), mlpkit.Dense(1024, "identity")], seed=0, dtype="float32")
shuffle = {"blocks": mlpkit.BlockShuffle(block=128, window=9), "order": False}[sys.argv[3]]
optimizer = mlpkit.Adam(batch_size=100, max_epochs=2, shuffle=shuffle)
small = np.zeros((200, 1024), "f4")
net.fit(small, small, optimizer)  # loads the kernels, starts the threads
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forget the peak
start = status("VmRSS")
result = net.fit(path, path, optimizer, memory_limit=limit)
print(result.n_evaluations, status("VmHWM") - start)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak is not known here")
@pytest.mark.parametrize("how", ["blocks", "order"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_memory_stays_within_the_limit(tmp_path, how, dtype):
    X = np.lib.format.open_memmap(tmp_path / "X.npy", mode="w+", dtype=dtype, shape=(20_000, 1024))
    X[:: len(X) // 7] = 1.0  # the rest is a hole in the file, and zero
    del X
    limit = 16 << 20
    assert os.path.getsize(tmp_path / "X.npy") > 4.5 * limit
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path / "X.npy"), str(limit), how]
    environment = os.environ | {"NUMBA_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    steps, peak = map(int, done.stdout.split())
    assert steps == 2 * 200
    assert peak < limit + (1 << 20)


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockShuffle(0), "block must be an integer of at least 1; found 0"),
        (lambda: BlockShuffle(window=0), "window must be an integer of at least 1; found 0"),
        (lambda: BlockShuffle(window=2.5), "window must be an integer; found 2.5 of type float"),
        (lambda: Adam(shuffle="block"), "shuffle must be True, False, 'blocks' or a BlockShuffle; found 'block'"),
        (lambda: Adam(shuffle=64), "shuffle must be True, False, 'blocks' or a BlockShuffle; found 64"),
    ],
)
def test_settings_that_are_none(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


def test_settings_are_shown():
    assert Adam(shuffle="blocks") == Adam(shuffle=BlockShuffle(None, 64))
    assert repr(Adam(shuffle=BlockShuffle(8, 2))) == "Adam(shuffle=BlockShuffle(block=8, window=2))"
