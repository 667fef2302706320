"""Mini-batches on inputs that are mostly 0: when they are skipped, and that nothing but the time depends on it."""

from __future__ import annotations

import mmap
import pickle
from dataclasses import replace

import numpy as np
import pytest
import reference
import reference_steps
from cases import DTYPES, THREADS, threads
from dropping import drop
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from row_sources import FEW, read_anew, saved
from strategies import cases
from test_steps import RULES, assert_trains_as_the_twin, optimizers, random_case

import mlpkit
from mlpkit import Adam, Dense, GaussianNoise, Input, KLSparsity, minibatch, pace
from mlpkit.data import Data
from mlpkit.kernels.skipping import padded_width
from mlpkit.minibatch import MiniBatches
from mlpkit.sparse_inputs import zeros_pay

LAYERS = {
    "deep": [Input(70), Dense(45, "relu", weight_decay=0.1), Dense(9, "tanh"), Dense(5, "softmax")],
    "sparse": [Input(33), Dense(17, "sigmoid", sparsity=KLSparsity(0.1, 0.5)), Dense(4, "softmax")],
    "without bias": [Input(20), Dense(50, "tanh", bias=False), Dense(3, "softmax")],
    "one layer": [Input(130), Dense(41, "softmax")],
    "wide": [Input(65), Dense(300, "tanh", dropout=0.3), Dense(6, "softmax")],
}


def sparse_case(name, dtype="float64", m=83, share=0.2):
    """Return a case in which a fifth of the inputs are not 0."""
    case = random_case(LAYERS[name], m, dtype, loss="cross_entropy", weight_decay=0.02)
    thin(case, share)
    return case


def thin(case, share, seed=1):
    case.X = np.where(np.random.default_rng(seed).random(case.X.shape) < share, case.X, case.X.dtype.type(0))


def skipping(monkeypatch, whether):
    """Skip, or do not, whatever the inputs are."""
    monkeypatch.setattr(minibatch, "zeros_pay", lambda *arguments: whether)


def trained(case, optimizer, **options):
    net = pickle.loads(pickle.dumps(case.net))
    result = net.fit(case.X, case.Y, optimizer, **case.keywords, **options)
    return net.theta, [result.cost, *(record["data"] for record in result.history)]


def assert_same_numbers(one, other):
    """Equal but for the sign of 0."""
    np.testing.assert_array_equal(one[0], other[0])
    assert one[1] == other[1]


# When -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "units", "expected"),
    [(0.05, 100, True), (0.35, 100, True), (0.6, 100, False), (0.05, 1, False), (0.2, 1000, True), (1.0, 1000, False)],
)
def test_zeros_are_skipped_where_there_are_many_and_units_enough(share, units, expected):
    rng = np.random.default_rng(0)
    X = rng.uniform(1.0, 2.0, (400, 60)) * (rng.random((400, 60)) < share)
    net = mlpkit.MLP([Input(60), Dense(units, "tanh"), Dense(2, "identity")])
    batches = MiniBatches(net, Data(net, X, X[:, :2]), Adam(batch_size=20))
    assert (batches._turned is not None) == expected


@pytest.mark.parametrize(("n", "expected"), [(150, False), (151, True)])
def test_zeros_are_not_skipped_where_copying_takes_longer_than_the_steps(n, expected):
    X = np.eye(n)
    net = mlpkit.MLP([Input(n), Dense(100, "tanh"), Dense(2, "identity")])
    assert (MiniBatches(net, Data(net, X, X[:, :2]), Adam(batch_size=10))._turned is not None) == expected


def test_zeros_are_not_skipped_in_weights_that_are_shared_or_inputs_with_noise():
    X = np.eye(50)
    nets = {
        True: mlpkit.MLP([Input(50), Dense(90, "tanh"), Dense(50, "identity")]),
        "tied": mlpkit.MLP([Input(50), Dense(90, "tanh"), Dense(50, "identity", tied_to=1)]),
        "noise": mlpkit.MLP([Input(50, noise=GaussianNoise(0.1)), Dense(90, "tanh"), Dense(50, "identity")]),
    }
    assert [kind for kind, net in nets.items() if MiniBatches(net, Data(net, X, X), Adam(batch_size=3))._turned] == [
        True
    ]


def test_the_data_are_looked_at_everywhere(monkeypatch):
    seen = []
    monkeypatch.setattr(minibatch, "zeros_pay", lambda *given: seen.append(zeros_pay(*given)) or False)
    X = np.zeros((5000, 60))
    X[1000:] = 1.0
    net = mlpkit.MLP([Input(60), Dense(100, "tanh"), Dense(2, "identity")])
    for rows in (X, X[:1500]):
        MiniBatches(net, Data(net, rows, rows[:, :2]), Adam(batch_size=50))
    assert seen == [False, True]


@pytest.mark.parametrize("units", [1, 15, 16, 17, 100, 128, 1000])
def test_rows_are_an_odd_number_of_registers_apart(units):
    width = padded_width(units, lanes=16)
    assert width >= units
    assert width % 32 == 16
    assert width - units < 32


# What -------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("network", LAYERS)
def test_rules_equal_the_twin(network, rule, dtype, monkeypatch):
    skipping(monkeypatch, True)
    case = sparse_case(network, dtype)
    assert_trains_as_the_twin(case, replace(RULES[rule], batch_size=30, max_epochs=3), dtype, least=1e-3)


@DTYPES
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bounds", [{"clip_value": 0.02}, {"clip_norm": 0.3}], ids=str)
def test_clipping_equals_the_twin(bounds, rule, dtype, monkeypatch):
    skipping(monkeypatch, True)
    case = sparse_case("deep", dtype)
    assert_trains_as_the_twin(case, replace(RULES[rule], batch_size=30, max_epochs=3, **bounds), dtype, least=1e-3)


@DTYPES
@pytest.mark.parametrize("batch_size", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("network", LAYERS)
def test_the_numbers_are_those_of_training_that_skips_nothing(network, batch_size, dtype, monkeypatch):
    case = sparse_case(network, dtype, m=300 if batch_size > 1 else 20)
    optimizer = Adam(0.03, batch_size=batch_size, max_epochs=2)
    found = []
    for whether in (True, False):
        skipping(monkeypatch, whether)
        found.append(trained(case, optimizer))
    assert_same_numbers(*found)


@DTYPES
@settings(max_examples=60)
@given(data=st.data())
def test_any_configuration_has_the_numbers_of_training_that_skips_nothing(dtype, data):
    case = data.draw(cases(dtype=dtype, n_examples=st.integers(2, 140), masked=True))
    assume(case.mask is None or case.mask.any())
    drop(data.draw, case)
    thin(case, data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])))
    optimizer = data.draw(optimizers(len(case.X), case.net.layers[1:]))
    # The norm's last bit depends on the order in which squares are added up.
    optimizer = replace(optimizer, clip_norm=None)
    with pytest.MonkeyPatch.context() as patch:
        found = []
        for whether in (True, False):
            skipping(patch, whether)
            found.append(trained(case, optimizer))
    assert_same_numbers(*found)


@DTYPES
@pytest.mark.parametrize("network", LAYERS)
def test_any_number_of_threads_gives_the_same_bits(network, dtype, monkeypatch):
    monkeypatch.setattr(minibatch, "_SERIAL_WORK", 0)
    skipping(monkeypatch, True)
    case = sparse_case(network, dtype, m=400)
    found = []
    for n in THREADS:
        with threads(n):
            theta, costs = trained(case, Adam(0.01, batch_size=150, max_epochs=4, clip_norm=0.5))
            found.append((theta.tobytes(), costs))
    assert found == found[:1] * len(THREADS)


def test_an_autoencoder_has_its_inputs_as_targets():
    X = np.abs(sparse_case("deep").X)
    net = mlpkit.MLP([Input(70), Dense(45, "sigmoid"), Dense(70, "sigmoid")], weight_decay=0.01, seed=3)
    description = reference.describe(net)
    optimizer = Adam(0.03, batch_size=5, max_epochs=2)
    assert MiniBatches(net, Data(net, X, X), optimizer)._turned is not None
    twin = reference_steps.Training(net, X, X, None, optimizer)
    net.fit(X, X, optimizer)
    assert max(reference.layer_errors(description, net.theta, twin.run(2))) < 1e-12


def test_weights_of_inputs_that_are_0_are_not_looked_at(monkeypatch):
    case = sparse_case("deep")
    case.X[:, ::7] = 0.0
    case.net.weights[0][:, ::7] = np.inf
    losses = []
    for whether in (True, False):
        skipping(monkeypatch, whether)
        batches = MiniBatches(case.net, Data(case.net, case.X, case.Y), mlpkit.SGD(batch_size=83))
        (batches._window,) = batches._rows.windows(np.random.default_rng(0), lambda: None)
        losses.append(batches._advance(1, 1)[0][0, 0])
    assert np.isfinite(losses[0])
    assert np.isnan(losses[1])


def test_no_number_beyond_the_inputs_is_read():
    """They end where a page ends that nobody may look beyond."""
    libc = pytest.importorskip("ctypes").CDLL(None)
    if not hasattr(libc, "mprotect"):
        pytest.skip("pages cannot be protected")
    import ctypes

    with mmap.mmap(-1, 3 * mmap.PAGESIZE) as pages:
        whole = np.frombuffer(pages, np.float64)
        address = whole.ctypes.data + 2 * mmap.PAGESIZE
        assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        try:
            X = whole[: 2 * mmap.PAGESIZE // 8][-37 * 20 :].reshape(20, 37)
            X[:, ::5] = 1.0
            net = mlpkit.MLP([Input(37), Dense(60, "tanh"), Dense(2, "identity")])
            batches = MiniBatches(net, Data(net, X, X[:, :2].copy()), Adam(batch_size=1))
            assert batches._turned is not None
            assert np.shares_memory(batches._rows._rows.X, X), "rows are not copied"
            assert sum(part.n_steps for part in batches.run_epoch()) == 20
        finally:
            libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), 3)
        del X, whole, batches


@pytest.mark.parametrize("shuffle", [FEW, False])
def test_files_that_are_read_anew_give_the_same_numbers(tmp_path, shuffle, monkeypatch):
    read_anew(monkeypatch)
    X, Y = (np.ascontiguousarray(values) for values in (sparse_case("deep", m=300).X, sparse_case("deep", m=300).Y))
    paths = saved(tmp_path, "npy", X=X, Y=Y)
    optimizer = Adam(0.02, batch_size=17, max_epochs=3, shuffle=shuffle)
    nets = [mlpkit.MLP(LAYERS["deep"], loss="cross_entropy", seed=0) for _ in range(2)]
    for net, data in zip(nets, ((X, Y), paths), strict=True):
        assert MiniBatches(net, Data(net, *data), optimizer)._turned is not None
        net.fit(*data, optimizer)
    assert nets[0].theta.tobytes() == nets[1].theta.tobytes()


# Cut short --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_resuming_is_as_if_nothing_had_happened(tmp_path, rule):
    case = sparse_case("deep")
    optimizer = replace(RULES[rule], batch_size=5, max_epochs=6, clip_norm=1.0)
    assert MiniBatches(case.net, Data(case.net, case.X, case.Y), optimizer)._turned is not None
    expected = trained(case, optimizer)
    checkpoint = tmp_path / "run.h5"
    trained(case, replace(optimizer, max_epochs=2), checkpoint=checkpoint)
    assert_same_numbers(trained(case, optimizer, resume=checkpoint), expected)


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_a_state_may_be_taken_and_put_back_at_any_time(seconds, monkeypatch):
    monkeypatch.setattr(pace, "_SLICE_SECONDS", seconds)
    case = sparse_case("deep")
    optimizer = Adam(0.02, batch_size=5)
    batches, other = (MiniBatches(case.net, Data(case.net, case.X, case.Y), optimizer) for _ in range(2))
    assert batches._turned is not None
    list(batches.run_epoch())
    state = batches.state()
    list(batches.run_epoch())
    expected = batches.theta.copy()
    assert np.abs(expected - state["theta"]).max() > 0.01
    for one in (batches, other):
        one.restore(state)
        np.testing.assert_array_equal(one.theta, state["theta"])
        list(one.run_epoch())
        np.testing.assert_array_equal(one.theta, expected)


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_the_parameters_are_those_before_the_step_that_fails(seconds, monkeypatch):
    monkeypatch.setattr(pace, "_SLICE_SECONDS", seconds)
    case = sparse_case("deep")
    optimizer = mlpkit.SGD(1e3, momentum=0.99, batch_size=20, max_epochs=200)
    found = []
    for whether in (True, False):
        skipping(monkeypatch, whether)
        net = pickle.loads(pickle.dumps(case.net))
        result = net.fit(case.X, case.Y, optimizer)
        assert "became" in result.reason
        assert np.isfinite(net.theta).all()
        found.append((net.theta.tobytes(), result.reason))
    assert found[0] == found[1]


@pytest.mark.parametrize("whether", [True, False])
def test_weights_that_alone_become_infinite_are_seen_at_once(whether, monkeypatch):
    monkeypatch.setattr(pace, "_SLICE_SECONDS", 0.0)
    skipping(monkeypatch, whether)
    case = sparse_case("deep")
    case.X[:, 3] = 1e300
    case.net.weights[0][:, 3] = 0.0
    batches = MiniBatches(case.net, Data(case.net, case.X, case.Y), mlpkit.SGD(1e30, batch_size=20))
    (part,) = batches.run_epoch()
    assert part.failure is not None
    assert batches.step == 0
    np.testing.assert_array_equal(batches.theta, case.net.theta)
