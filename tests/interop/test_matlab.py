"""MATLAB's .mat files: round trips to the bit, other programs' files, and what is refused."""

import io
import json

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from numpy.testing import assert_array_equal
from scipy.io.matlab import MatlabObject

import mlpkit
from mlpkit.interop import from_matlab, to_matlab, to_notes_order


def simple(dtype="float64", **options):
    layers = [mlpkit.Input(3), mlpkit.Dense(2, "tanh"), mlpkit.Dense(2, "softmax")]
    return mlpkit.MLP(layers, loss="cross_entropy", dtype=dtype, seed=3, **options)


def elaborate():
    layers = [
        mlpkit.Input(3, noise=mlpkit.MaskingNoise(0.25)),
        mlpkit.Dense(2, "sigmoid", sparsity=[mlpkit.KLSparsity(0.1, 2.0), mlpkit.L1Sparsity(0.5)], bias=False),
        mlpkit.Dense(4, "leaky_relu(0.2)", weight_decay=0.125, init="he_normal"),
        mlpkit.Dense(2, "tanh", tied_to=3 - 1),
        mlpkit.Dense(3, "sigmoid", tied_to=1),
    ]
    net = mlpkit.MLP(layers, loss="huber(0.5)", weight_decay=1e-3, seed=11)
    net.metadata = {"title": "Bäume 🌳", "n": [1, 2.5, None]}
    net.provenance = {"optimizer": "LBFGS(max_iter=400)"}
    return net


@pytest.mark.parametrize("make", [simple, elaborate, lambda: simple("float32", weight_decay=0.1)])
def test_round_trips_are_exact(make, tmp_path):
    net = make()
    path, mapped = to_matlab(net, tmp_path / "net.mat")
    same, back = from_matlab(path)
    assert same.config() == net.config()
    assert_array_equal(same.theta, net.theta)
    assert same.theta.dtype == net.theta.dtype
    assert (same.metadata, same.provenance) == (net.metadata, net.provenance)
    assert len(mapped) == len(scipy.io.whosmat(path))
    assert back[0].startswith("W1 (2, 3)")


def test_another_program_finds_plain_variables(tmp_path):
    net = elaborate()
    to_matlab(net, tmp_path / "net.mat")
    found = scipy.io.loadmat(tmp_path / "net.mat")
    assert_array_equal(found["W2"], net.weights[1])
    assert_array_equal(found["W4"], net.weights[0].T)
    assert found["b2"].shape == (4, 1)
    assert "b1" not in found
    assert_array_equal(found["sizes"], [[3, 2, 4, 2, 3]])
    assert [name.strip() for name in found["activations"]] == ["sigmoid", "leaky_relu(0.2)", "tanh", "sigmoid"]
    assert found["loss"] == ["huber(0.5)"]
    assert_array_equal(found["weight_decay"], [net.decays])
    X = np.random.default_rng(0).normal(size=(5, 3))
    a = 1 / (1 + np.exp(-found["W1"] @ X.T))
    assert_array_equal(np.allclose(a.T, net.activations(X)[0]), True)


def test_the_same_network_is_the_same_bytes(tmp_path):
    paths = [tmp_path / "one.mat", tmp_path / "two.mat"]
    for path in paths:
        to_matlab(elaborate(), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def resaved(path, drop=(), compress=True, **changes):
    """What MATLAB does: load, change, save."""
    found = {name: value for name, value in scipy.io.loadmat(path).items() if not name.startswith("__")}
    kept = {name: value for name, value in {**found, **changes}.items() if name not in drop}
    scipy.io.savemat(path, kept, do_compression=compress)
    return path


def test_parameters_that_were_changed_in_matlab_are_taken(tmp_path):
    path, _ = to_matlab(elaborate(), tmp_path / "net.mat")
    W2 = np.arange(8.0).reshape(4, 2)
    net, _ = from_matlab(resaved(path, W2=W2, W3=W2.T))
    assert_array_equal(net.weights[1], W2)
    resaved(path, W3=W2.T + 1)
    with pytest.raises(mlpkit.ModelFormatError, match="W3: expected the transpose of W2, which it is tied to"):
        from_matlab(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weight_decay": [[0.1, 0.1]]}, r"weight_decay: \[0.1, 0.1\] contradicts the variable mlpkit"),
        ({"activations": np.array(["relu", "softmax"])}, "activations: .* contradicts the variable mlpkit"),
        ({"loss": "huber"}, "loss: .* contradicts the variable mlpkit"),
        ({"sizes": [[3, 2, 4]]}, "sizes: .* contradicts the variable mlpkit"),
        ({"W1": np.zeros((2, 2))}, r"W1: the variable mlpkit says float64 \(2, 3\), found float64 \(2, 2\)"),
        ({"b1": np.zeros((2, 1), np.float32)}, "b1: the variable mlpkit says float64 .*, found float32"),
        ({"W3": np.zeros((2, 2))}, "W3: the configuration in the variable mlpkit has no place for it"),
        ({"theta": np.zeros((9, 1))}, "theta: the configuration in the variable mlpkit has no place for it"),
        ({"mlpkit": "{}"}, "mlpkit: expected an object of version, config, metadata and provenance"),
        ({"mlpkit": "{"}, "mlpkit: not valid JSON"),
        ({"mlpkit": np.array(["{", "}"])}, "mlpkit: expected an object of version"),
    ],
)
def test_variables_that_contradict_the_configuration_are_refused(changes, reason, tmp_path):
    path, _ = to_matlab(simple(), tmp_path / "net.mat")
    with pytest.raises(mlpkit.ModelFormatError, match=f"net.mat: {reason}"):
        from_matlab(resaved(path, **changes))


@pytest.mark.parametrize(
    ("entry", "value", "reason"),
    [
        ("provenance", [], "mlpkit: provenance: expected an object"),
        ("metadata", None, "mlpkit: metadata: expected an object"),
        ("config", {}, "/config"),
        ("version", "2.0", r"mlpkit: expected version 1\.0, found '2\.0'"),
    ],
)
def test_a_document_of_another_kind_is_refused(entry, value, reason, tmp_path):
    path, _ = to_matlab(simple(), tmp_path / "net.mat")
    document = {**json.loads(scipy.io.loadmat(path)["mlpkit"][0]), entry: value}
    with pytest.raises(mlpkit.ModelFormatError, match=reason):
        from_matlab(resaved(path, mlpkit=json.dumps(document)))


def test_a_missing_matrix_is_named(tmp_path):
    path, _ = to_matlab(simple(), tmp_path / "net.mat")
    with pytest.raises(mlpkit.ModelFormatError, match="W2: missing"):
        from_matlab(resaved(path, drop=["W2"]))


def test_our_file_without_its_document_is_a_file_like_any_other(tmp_path):
    net = mlpkit.MLP([mlpkit.Input(3), mlpkit.Dense(2, "tanh", weight_decay=0.5), mlpkit.Dense(1, "relu")], seed=0)
    path, _ = to_matlab(net, tmp_path / "net.mat")
    same, mapped = from_matlab(resaved(path, drop=["mlpkit"], loss="log_cosh"))
    assert_array_equal(same.theta, net.theta)
    assert same.decays == [0.5, 0]
    assert same.loss.name == "log_cosh"
    assert "activations -> activations tanh, relu" in mapped


@pytest.mark.parametrize("b", [lambda b: b[:, np.newaxis], lambda b: b[np.newaxis]])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("compress", [False, True])
def test_matrices_of_another_program(b, dtype, compress, tmp_path, rng):
    W1, W2 = (rng.normal(size=shape).astype(dtype) for shape in ((4, 3), (2, 4)))
    b1 = rng.normal(size=4).astype(dtype)
    scipy.io.savemat(tmp_path / "net.mat", {"W1": W1, "W2": W2, "b1": b(b1), "m": {"a": 3.0}}, do_compression=compress)
    options = {"activations": ["sigmoid", mlpkit.activations.tanh], "loss": "huber", "weight_decay": 0.1}
    net, mapped = from_matlab(tmp_path / "net.mat", ignore=["m"], **options)
    assert net.dtype == dtype
    assert_array_equal(net.theta, np.concatenate([W1.ravel(), b1, W2.ravel()]))
    assert (net.layers[2].bias, net.loss.name, net.weight_decay) == (False, "huber", 0.1)
    assert mapped[-1] == "m -> ignored, as asked"


def test_the_exercises_result_in_its_own_order(tmp_path):
    net = mlpkit.sparse_autoencoder(n_inputs=4, n_hidden=3, seed=0)
    theta = to_notes_order(net)
    scipy.io.savemat(tmp_path / "opt.mat", {"opttheta": theta[:, np.newaxis], "patches": np.zeros((4, 9))})
    options = {"activations": ["sigmoid", "sigmoid"], "vector": "opttheta", "ignore": ["patches"]}
    same, mapped = from_matlab(tmp_path / "opt.mat", sizes=[4, 3, 4], **options)
    assert_array_equal(same.theta, net.theta)
    assert "opttheta (31, 1) float64 in the notes' order -> W^(1), ..., b^(1), ..." in mapped
    for sizes, reason in (
        (None, "sizes must be given"),
        ([4], "two or more"),
        (3, "two or more"),
        ([4, 0], "at least 1"),
    ):
        with pytest.raises(mlpkit.InvalidArgumentError, match=reason):
            from_matlab(tmp_path / "opt.mat", sizes=sizes, **options)
    with pytest.raises(mlpkit.ModelFormatError, match="opttheta: expected a vector of 24 numbers for sizes"):
        from_matlab(tmp_path / "opt.mat", sizes=[3, 3, 3], **options)


FOREIGN = {"W1": np.ones((2, 3)), "b1": np.ones((2, 1))}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"patches": np.ones(3)}, "patches: not understood; name it as one to ignore"),
        ({"W0": np.ones((2, 3))}, "W0: not understood"),
        ({"W3": np.ones((2, 3))}, "W2: missing"),
        ({"b2": np.ones((2, 1))}, "b2: expected W1 to W1 and at most one b for each"),
        ({"b1": np.ones((2, 2))}, r"b1: expected a vector, found shape \(2, 2\)"),
        ({"b1": np.ones((3, 1))}, r"b1: expected shape \(2,\), found \(3,\)"),
        ({"b1": np.ones((2, 1), np.float32)}, "b1: expected float64 as in W1, found float32"),
        ({"W1": np.ones((2, 3), np.int16)}, "W1: expected an array of class double or single, found int16"),
        ({"W1": np.ones((2, 3)) * 1j}, "W1: expected real numbers, found complex ones"),
        (
            {"W1": np.ones((2, 3, 1, 2))},
            r"W1: expected a matrix, found dimensions \(2, 3, 1, 2\)",
        ),
        ({"W1": [[1, 2, np.nan]]}, r"W1\(1, 3\): expected finite numbers, found nan"),
        ({"W1": scipy.sparse.csc_array(np.eye(2))}, "W1: expected an array of class double or single, found sparse"),
        ({"W1": "text"}, "W1: expected an array of class double or single, found char"),
        ({"W1": np.array([[1, "a"]], dtype=object)}, "W1: expected an array of class .*, found cell"),
        ({"loss": {"name": "huber"}}, "loss: expected an array of class char, found struct"),
        ({"loss": MatlabObject(np.zeros((1, 1), [("x", object)]), "net")}, "loss: .* class char, found object"),
        ({"loss": "swoosh"}, "loss: .*'swoosh'"),
        ({"loss": np.array(["huber", "huber"])}, "loss: expected 1 line of text, found 2"),
        ({"activations": np.array(["tanh", "tanh"])}, "activations: expected 1 line of text, found 2"),
        ({"weight_decay": [[1.0, 2.0]]}, "weight_decay: expected one number or 1"),
        ({"weight_decay": -1.0}, "weight_decay: expected one number .* at least 0"),
        ({"sizes": [[3, 2.5]]}, "sizes: expected two or more whole numbers"),
        ({"sizes": [[3, 3]]}, r"sizes: \(3, 3\) contradicts the shapes of W1, W2, ...: \(3, 2\)"),
        ({"theta": np.ones((8, 1)), "sizes": [[3, 2]]}, "W1: of no use beside theta"),
    ],
)
def test_what_a_file_must_not_hold(changes, reason, tmp_path):
    given = {} if "activations" in changes else {"activations": ["tanh"]}
    scipy.io.savemat(tmp_path / "net.mat", {**FOREIGN, **changes})
    with pytest.raises(mlpkit.ModelFormatError, match=f"net.mat: {reason}"):
        from_matlab(tmp_path / "net.mat", **given)


def test_arguments(tmp_path):
    scipy.io.savemat(tmp_path / "net.mat", {**FOREIGN, "loss": "huber"})
    for options, reason in (
        ({}, "activations must be a list of 1 names"),
        ({"activations": "tanh"}, "activations must be a list of 1 names"),
        ({"activations": ["tanh"], "loss": "huber"}, "loss must not be given: .*net.mat says it itself"),
        ({"activations": ["tanh"], "sizes": (3, 3)}, r"sizes must be those of W1, W2, ..., \(3, 2\)"),
        ({"activations": ["tanh"], "weight_decay": -1}, "weight_decay must be"),
        ({"activations": ["tanh"], "ignore": "loss"}, "ignore must be a list of names"),
    ):
        with pytest.raises(mlpkit.InvalidArgumentError, match=reason):
            from_matlab(tmp_path / "net.mat", **options)
    to_matlab(simple(), tmp_path / "own.mat")
    with pytest.raises(mlpkit.InvalidArgumentError, match="sizes must not be given"):
        from_matlab(tmp_path / "own.mat", sizes=(3, 2, 2))


def test_no_network_at_all(tmp_path):
    with pytest.raises(FileNotFoundError):
        from_matlab(tmp_path / "absent.mat")
    path = tmp_path / "net.mat"
    for raw, reason in (
        (b"no such thing" * 20, "not a .mat file of version 5, 6 or 7"),
        (b"x", "not a .mat file of version 5, 6 or 7"),
        (b"MATLAB 7.3 MAT-file".ljust(600), "version 7.3"),
    ):
        path.write_bytes(raw)
        with pytest.raises(mlpkit.ModelFormatError, match=f"net.mat: file: {reason}"):
            from_matlab(path)
    with h5py.File(path, "w", userblock_size=512) as file:
        file["W1"] = np.eye(2)
    with pytest.raises(mlpkit.ModelFormatError, match=r"version 7\.3"):
        from_matlab(path)
    scipy.io.savemat(path, {"loss": "huber"})
    with pytest.raises(mlpkit.ModelFormatError, match="file: expected W1 or theta, found loss"):
        from_matlab(path, activations=["tanh"])
    with pytest.raises(mlpkit.ModelFormatError, match="file: no variables"):
        from_matlab(path, activations=["tanh"], ignore=["loss"])


def test_a_variable_that_occurs_twice_is_refused(tmp_path):
    parts = []
    for value in (1.0, 2.0):
        file = io.BytesIO()
        scipy.io.savemat(file, {"W1": np.full((2, 3), value)})
        parts.append(file.getvalue())
    (tmp_path / "net.mat").write_bytes(parts[0] + parts[1][128:])
    with pytest.raises(mlpkit.ModelFormatError, match="W1: occurs twice"):
        from_matlab(tmp_path / "net.mat", activations=["tanh"])


@pytest.mark.parametrize("compress", [False, True])
def test_damage_is_a_model_format_error_or_other_numbers(compress, tmp_path, rng):
    path, _ = to_matlab(simple(), tmp_path / "net.mat")
    raw = bytearray(resaved(tmp_path / "net.mat", compress=compress).read_bytes())
    outcomes = set()
    for _ in range(1500):
        damaged = raw.copy()
        for place in rng.integers(0, len(raw), 2):
            damaged[place] = rng.integers(256)
        (tmp_path / "net.mat").write_bytes(damaged[: rng.integers(len(raw) // 2, 2 * len(raw))])
        try:
            outcomes.add(from_matlab(path).result.n_parameters)
        except mlpkit.ModelFormatError as error:
            outcomes.add(str(error).startswith(str(path)))
        except mlpkit.InvalidArgumentError as error:  # cut off where a variable ends, it is a file like any other
            outcomes.add("activations must be" in str(error))
    assert outcomes == {14, True}


def test_what_cannot_be_written(tmp_path):
    net = simple()
    net.theta[3] = np.inf
    with pytest.raises(mlpkit.InvalidArgumentError, match="finite"):
        to_matlab(net, tmp_path / "net.mat")
    net = simple()
    net.metadata = {"when": {1, 2}}
    with pytest.raises(mlpkit.InvalidArgumentError, match=r"net\.metadata: expected values that JSON can hold"):
        to_matlab(net, tmp_path / "net.mat")
    assert not list(tmp_path.iterdir())
