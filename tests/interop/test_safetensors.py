"""safetensors files: there and back to the bit, with PyTorch's names, and hostile ones refused."""

from __future__ import annotations

import json
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as torch_load_file
from safetensors.torch import save_file as torch_save_file
from torch import nn

import mlpkit
from mlpkit import InvalidArgumentError, ModelFormatError
from mlpkit.interop import from_safetensors, from_torch, to_safetensors, to_torch


def network(dtype="float64"):
    net = mlpkit.MLP(
        [
            mlpkit.Input(4),
            mlpkit.Dense(3, "leaky_relu(0.2)", weight_decay=0.5),
            mlpkit.Dense(5, "identity", bias=False),
            mlpkit.Dense(2, "softmax"),
        ],
        loss="cross_entropy",
        weight_decay=0.25,
        dtype=dtype,
        seed=3,
    )
    net.biases[0][:] = 0.5
    net.metadata = {"by": "me", "è": [1, None]}
    return net


def tied():
    layers = [
        mlpkit.Input(6),
        mlpkit.Dense(3, "sigmoid", sparsity=mlpkit.KLSparsity(rho=0.1, beta=2.0)),
        mlpkit.Dense(6, "sigmoid", tied_to=1),
    ]
    return mlpkit.MLP(layers, seed=0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def raw(header, body=b""):
    """Return a file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def plain(**entries):
    """Return the header of tensors of float64, given by name and shape, one behind another."""
    header, place = {}, 0
    for name, shape in entries.items():
        end = place + 8 * int(np.prod(shape))
        header[name] = {"dtype": "F64", "shape": shape, "data_offsets": [place, end]}
        place = end
    return header


# ------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("make", [network, lambda: network("float32"), tied], ids=["float64", "float32", "tied"])
def test_a_network_comes_back_to_the_bit(make, path):
    net = make()
    written = to_safetensors(net, path)
    assert written.result == str(path)
    same, mapped = from_safetensors(path)
    np.testing.assert_array_equal(same.theta, net.theta)
    assert same.theta.dtype == net.dtype
    assert same.config() == net.config()
    assert (same.metadata, same.provenance) == (net.metadata, net.provenance)
    assert len(mapped) == len(written.mapped)
    assert mapped[-1] == "__metadata__: mlpkit -> configuration, metadata, provenance"


def test_what_is_mapped(path):
    assert to_safetensors(tied(), path).mapped == (
        "W^(1) (3, 6) -> 0.weight",
        "b^(1) (3,) -> 0.bias",
        "W^(2) (6, 3) -> 2.weight, a copy of the transpose of W^(1), no longer tied to it",
        "b^(2) (6,) -> 2.bias",
        "configuration, metadata, provenance -> __metadata__: mlpkit",
    )
    assert from_safetensors(path).mapped[:4] == (
        "0.weight (3, 6) float64 -> W^(1)",
        "0.bias (3,) float64 -> b^(1)",
        "2.bias (6,) float64 -> b^(2)",
        "2.weight (6, 3) float64 -> W^(2), tied",
    )


def test_a_trained_network_keeps_its_provenance(path, rng):
    net = mlpkit.MLP([mlpkit.Input(3), mlpkit.Dense(1, "identity")], seed=0)
    net.fit(rng.normal(size=(9, 3)), rng.normal(size=9), mlpkit.LBFGS(max_iter=2))
    to_safetensors(net, path)
    assert from_safetensors(path).result.provenance == net.provenance != None  # noqa: E711


def test_the_same_network_gives_the_same_bytes(path, tmp_path):
    to_safetensors(network(), path)
    to_safetensors(network(), tmp_path / "again.safetensors")
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_torch_reads_it_into_the_module_that_to_torch_makes(path):
    net = network()
    to_safetensors(net, path)
    module = to_torch(net).result
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    module.load_state_dict(torch_load_file(path))
    X = np.random.default_rng(1).normal(size=(9, 4))
    np.testing.assert_allclose(module(torch.tensor(X)).detach(), net.predict(X), rtol=0, atol=1e-14)


def test_what_torch_writes_is_read_with_activations_given(path):
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Sequential(nn.Linear(3, 11), nn.ReLU()))
    module.append(nn.Linear(11, 2, bias=False)).double()
    torch_save_file(module.state_dict(), path, metadata={"format": "pt"})
    net, mapped = from_safetensors(path, activations=["tanh", "relu", "identity"], loss="huber", weight_decay=0.1)
    same = from_torch(module, loss="huber", weight_decay=0.1).result
    assert net.config() == same.config()
    np.testing.assert_array_equal(net.theta, same.theta)
    assert mapped[-1] == "__metadata__: 'format' -> not taken"
    assert "2.0.weight (11, 3) float64 -> W^(2)" in mapped


def test_an_existing_file_stays_where_the_disk_is_full(path, monkeypatch):
    to_safetensors(network(), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="the file there is as it was"):
        to_safetensors(tied(), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


# ------------------------------------------------------------------------------------------- the order of modules


def modules(path, *names):
    """Write square matrices of one module each, told apart by their numbers."""
    save_file({f"{name}.weight": np.full((2, 2), float(i)) for i, name in enumerate(names)}, path)


def read_order(path, **options):
    net, _ = from_safetensors(path, activations=["tanh"] * len(load_file(path)), **options)
    return [int(W[0, 0]) for W in net.weights]


@pytest.mark.parametrize(
    "names",
    [
        ("0", "2", "10"),
        ("net.0", "net.2", "net.10"),
        ("0", "1.0", "1.2", "1.10.0", "2"),
        ("a.b.0.1", "a.b.0.3", "a.b.1"),
    ],
)
def test_numbers_below_one_name_are_an_order(path, names):
    modules(path, *names)
    assert read_order(path) == list(range(len(names)))


def test_one_module_has_an_order_whatever_it_is_called(path):
    modules(path, "classifier.out_proj")
    assert read_order(path) == [0]
    save_file({"weight": np.ones((2, 3)), "bias": np.ones(2)}, path)
    assert from_safetensors(path, activations=["tanh"]).mapped == (
        "weight (2, 3) float64 -> W^(1)",
        "bias (2,) float64 -> b^(1)",
    )


@pytest.mark.parametrize("names", [("fc1", "fc2"), ("encoder.0", "decoder.0"), ("0", "out"), ("0", "01"), ("a", "a.0")])
def test_other_names_need_the_order_given(path, names):
    modules(path, *names)
    with pytest.raises(InvalidArgumentError, match="order must be given"):
        read_order(path)
    assert read_order(path, order=names[::-1]) == [1, 0]


@pytest.mark.parametrize("order", [["fc1"], ["fc1", "fc1"], ["fc1", "fc3"], ["fc1", "fc2", "fc3"], "fc1"])
def test_an_order_names_every_module_once(path, order):
    modules(path, "fc1", "fc2")
    with pytest.raises(InvalidArgumentError, match="order must be a list of the file's modules, each once"):
        read_order(path, order=order)


# ------------------------------------------------------------------------------------------- what the caller gives


def test_activations_are_needed_and_counted(path):
    modules(path, "0", "1")
    for given in (None, "tanh", ["tanh"], ["tanh"] * 3):
        with pytest.raises(InvalidArgumentError, match="activations must"):
            from_safetensors(path, activations=given)
    with pytest.raises(InvalidArgumentError, match="activation must be"):
        from_safetensors(path, activations=["tanh", "no such"])


def test_a_file_of_mlpkits_has_its_own(path):
    net = network()
    to_safetensors(net, path)
    same = {
        "activations": ["leaky_relu(0.2)", mlpkit.activations.identity, "softmax"],
        "loss": mlpkit.losses.cross_entropy,
        "weight_decay": 0.25,
    }
    assert from_safetensors(path, **same).result.config() == net.config()
    others = {"activations": ["relu"] * 3, "loss": "squared_error", "weight_decay": 0.0, "order": ["0", "2", "3"]}
    for name, value in others.items():
        with pytest.raises(InvalidArgumentError, match=f"{name} must be None for a file of mlpkit's"):
            from_safetensors(path, **{name: value})


@pytest.mark.usefixtures("clean_registries")
def test_an_activation_of_ones_own_must_be_registered_to_be_read(path):
    f = mlpkit.activations.register(
        mlpkit.activations.Activation("cubed", lambda z: z * z * z, lambda z, a: 3.0 * z * z)
    )
    net = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(2, f)], seed=0)
    to_safetensors(net, path)
    np.testing.assert_array_equal(from_safetensors(path).result.theta, net.theta)
    del mlpkit.activations.record.REGISTRY["cubed"]
    with pytest.raises(ModelFormatError, match="'cubed' is not registered"):
        from_safetensors(path)


def test_what_cannot_be_written(path):
    net = network()
    net.theta[3] = np.inf
    with pytest.raises(InvalidArgumentError, match=r"finite parameters, found theta\[3\] = inf"):
        to_safetensors(net, path)
    net = network()
    net.metadata = {"x": np.ones(2)}
    with pytest.raises(InvalidArgumentError, match="JSON can hold"):
        to_safetensors(net, path)
    with pytest.raises(InvalidArgumentError, match=r"name that ends in \.safetensors"):
        to_safetensors(network(), path.with_suffix(".pt"))
    assert not list(path.parent.iterdir())


# ------------------------------------------------------------------------------------------- hostile files


def test_pickles_are_refused_by_name_and_by_content(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("exploded").touch, ())

    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "model.pt")
    for protocol in range(2, 6):
        (tmp_path / f"renamed{protocol}.safetensors").write_bytes(pickle.dumps(Bomb(), protocol))
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.pt").read_bytes())
    (tmp_path / "model.pkl").write_bytes(b"")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 7
    for file in files:
        with pytest.raises(ModelFormatError, match=r"a pickle, .* would run whatever program"):
            from_safetensors(file, activations=["tanh"])
    assert not tmp_path.joinpath("exploded").exists()


ONE = np.zeros(4).tobytes()
HUGE = {"0.weight": {"dtype": "F64", "shape": [2**62, 2**62], "data_offsets": [0, 8]}}
CASES = {
    "empty": (b"", "expected 1 to"),
    "short": (b"abc", "not a safetensors file"),
    "no length": (b"{" * 64, "not a safetensors file"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "not a safetensors file"),
    "length beyond the end": (struct.pack("<Q", 1000) + b"{}", "not a safetensors file"),
    "huge header": (raw(b"{" + b" " * 8 * 1024**2 + b"}"), "at most 8388608 bytes"),
    "no JSON": (raw(b"{nonsense}"), "not valid JSON"),
    "nested": (raw(b'{"a":' + b"[" * 100_000), "not valid JSON"),
    "no tensors": (raw({}), "no tensor in the file"),
    "list": (raw({"0.weight": []}), r"0\.weight: expected dtype F64 or F32, found None"),
    "no dtype": (raw({"0.weight": {"shape": [2, 2], "data_offsets": [0, 32]}}, ONE), "dtype F64 or F32"),
    "bfloat16": (
        raw({"0.weight": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}, ONE[:8]),
        r"0\.weight: expected dtype F64 or F32, found 'BF16'",
    ),
    "integers": (
        raw({"0.weight": {"dtype": "I64", "shape": [2, 2], "data_offsets": [0, 32]}}, ONE),
        r"0\.weight: expected dtype F64 or F32, found 'I64'",
    ),
    "twice": (raw(b'{"0.weight":{"dtype":"F64"},"0.weight":{"dtype":"F64"}}'), "a key occurs twice"),
    "huge shape": (raw(HUGE, ONE[:8]), "overflow"),
    "negative": (raw({"0.weight": {"dtype": "F64", "shape": [-2, 2], "data_offsets": [0, 32]}}, ONE), "header: "),
    "trailing bytes": (raw(plain(**{"0.weight": [2, 2]}), ONE + b"\0"), "header: "),
    "truncated": (raw(plain(**{"0.weight": [2, 2]}), ONE[:-1]), "header: "),
    "overlapping": (
        raw({name: plain(**{"0.weight": [2, 2]})["0.weight"] for name in ("0.weight", "1.weight")}, ONE),
        "header: ",
    ),
    "metadata list": (raw({"__metadata__": [1], **plain(**{"0.weight": [2, 2]})}, ONE), "__metadata__: expected"),
    "metadata number": (raw({"__metadata__": {"a": 1}, **plain(**{"0.weight": [2, 2]})}, ONE), "__metadata__: expec"),
    "surrogate": (raw(b'{"__metadata__":{"mlpkit":"\\ud800"}}'), "header: "),
    "norm": (
        raw(plain(**{"1.weight": [2], "1.running_mean": [2]}), ONE),
        r"1\.running_mean: not understood: expected the weight or bias",
    ),
    "vector": (raw(plain(**{"0.weight": [4]}), ONE), r"0\.weight: expected a matrix, found shape \(4,\)"),
    "convolution": (raw(plain(**{"0.weight": [2, 2, 1]}), ONE), r"0\.weight: expected a matrix"),
    "no units": (raw(plain(**{"0.weight": [0, 4]})), r"0\.weight: expected a matrix, found shape \(0, 4\)"),
    "bias alone": (raw(plain(**{"0.bias": [4]}), ONE), r"0\.weight: missing"),
    "bias": (raw(plain(**{"0.bias": [2], "0.weight": [1, 2]}), ONE), r"0\.bias: expected shape \(1,\), found \(2,\)"),
    "nan": (
        raw(plain(**{"0.weight": [2, 2]}), np.array([0, 0, np.nan, 0]).tobytes()),
        r"0\.weight\[1, 0\]: expected finite numbers, found nan",
    ),
    "control characters": (raw(plain(**{"0.\x1b[31m": [2, 2]}), ONE), "not understood"),
}


@pytest.mark.parametrize("case", CASES)
def test_hostile_files_are_refused_with_the_reason(case, path):
    data, reason = CASES[case]
    path.write_bytes(data)
    with pytest.raises(ModelFormatError, match=rf"model\.safetensors: .*{reason}"):
        from_safetensors(path, activations=["tanh"])


def test_shapes_and_dtypes_that_do_not_chain(path):
    save_file({"0.weight": np.ones((2, 3)), "1.weight": np.ones((2, 3))}, path)
    with pytest.raises(ModelFormatError, match=r"1\.weight: takes 3 inputs, but 0\.weight before it gives 2"):
        from_safetensors(path, activations=["tanh"] * 2)
    save_file({"0.weight": np.ones((2, 3)), "1.weight": np.ones((2, 2), "f4")}, path)
    with pytest.raises(ModelFormatError, match=r"1\.weight: expected float64 as in 0\.weight, found float32"):
        from_safetensors(path, activations=["tanh"] * 2)


def test_folders_pipes_and_missing_files(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.safetensors")
    for name in ("pipe.safetensors", "."):
        with pytest.raises(ModelFormatError, match="expected a regular file"):
            from_safetensors(tmp_path / name, activations=["tanh"])
    with pytest.raises(FileNotFoundError):
        from_safetensors(tmp_path / "none.safetensors", activations=["tanh"])


def forged(path, make=network, tensors=None, **changes):
    """Write a file of mlpkit's with another document, or other tensors, than it should have."""
    to_safetensors(make(), path)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    document = json.loads(header["__metadata__"]["mlpkit"])
    for key, value in changes.items():
        if callable(value):
            value(document[key])
        elif value is None:
            del document[key]
        else:
            document[key] = value
    arrays = load_file(path)
    arrays.update(tensors or {})
    save_file(
        {name: array for name, array in arrays.items() if array is not None}, path, {"mlpkit": json.dumps(document)}
    )


FORGED = {
    "newer": ({"version": "2.0"}, "mlpkit: version: this mlpkit reads 1.0, found '2.0'"),
    "missing key": ({"provenance": None}, "mlpkit: provenance: missing"),
    "unknown key": ({"extra": 1}, "mlpkit: extra: not part of the format"),
    "metadata": ({"metadata": [1]}, "expected metadata to be an object"),
    "config": ({"config": [1]}, "/config: expected an object"),
    "huge": ({"config": lambda c: c["layers"][1].update(units=2**39)}, "stands for more parameters"),
    "activation": (
        {"config": lambda c: c["layers"][1].update(activation="os.system")},
        "'os.system' is not registered",
    ),
    "unknown setting": ({"config": lambda c: c.update(run="rm")}, "/config: run: not part of the format"),
    "fewer units": ({"config": lambda c: c["layers"][1].update(units=2)}, r"0\.bias: expected float64 of shape \(2,\)"),
    "missing tensor": ({"tensors": {"2.weight": None}}, "stands for more parameters|2.weight: missing"),
    "missing bias": ({"tensors": {"0.bias": None}}, r"0\.bias: missing"),
    "extra tensor": ({"tensors": {"9.weight": np.ones((2, 2))}}, r"9\.weight: not part of the network"),
    "dtype": ({"tensors": {"0.bias": np.ones(3, "f4")}}, r"0\.bias: expected float64 of shape \(3,\), found float32"),
    "nan": ({"tensors": {"0.bias": np.array([0, np.nan, 1])}}, r"0\.bias: expected finite numbers"),
    "untied": (
        {"make": tied, "tensors": {"2.weight": np.ones((6, 3))}},
        r"2\.weight: must be the transpose of the W that W\^\(2\) is tied to",
    ),
}


@pytest.mark.parametrize("case", FORGED)
def test_files_of_mlpkits_that_were_forged(case, path):
    changes, reason = FORGED[case]
    forged(path, **changes)
    with pytest.raises(ModelFormatError, match=rf"model\.safetensors: .*{reason}"):
        from_safetensors(path)


def test_flipped_bytes_and_truncations_load_or_are_refused(path, rng):
    to_safetensors(network("float32"), path)
    data = path.read_bytes()
    refused, others = 0, set()
    for _ in range(1500):
        changed = bytearray(data)
        for place in rng.integers(len(data), size=rng.integers(1, 4)):
            changed[place] = rng.integers(256)
        path.write_bytes(changed[: rng.integers(len(data))] if rng.random() < 0.2 else changed)
        try:
            net = from_safetensors(path).result
            assert np.isfinite(net.theta).all()
        except ModelFormatError:
            refused += 1
        except InvalidArgumentError as error:
            others.add(str(error)[:25])
    assert refused > 500
    # Where the entry that makes it a file of mlpkit's is no longer called so.
    assert others <= {"activations must be a list"[:25], "order must be given: the "[:25]}
