"""``mlpkit convert``: what goes through, what it says, and how it ends."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import scipy.io
from numpy.testing import assert_array_equal

import mlpkit
from mlpkit.cli import main
from mlpkit.interop import to_notes_order


@pytest.fixture
def net():
    layers = [mlpkit.Input(3), mlpkit.Dense(2, "leaky_relu(0.2)", weight_decay=0.5), mlpkit.Dense(1, "sigmoid")]
    net = mlpkit.MLP(layers, loss="binary_cross_entropy", weight_decay=1e-3, seed=5)
    net.metadata = {"title": "one\x1b[2Jtwo"}
    return net


@pytest.fixture
def model(net, tmp_path):
    net.save(tmp_path / "model.h5")
    return tmp_path / "model.h5"


def run(capsys, *words):
    code = main(["convert", *(str(word) for word in words)])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("ending", [".mat", ".safetensors", ".h5"])
def test_there_and_back_is_the_same_file(ending, model, capsys, tmp_path):
    between, back = tmp_path / f"between{ending}", tmp_path / "back.h5"
    assert run(capsys, model, between)[0] == 0
    code, out, err = run(capsys, between, back)
    assert (code, err) == (0, "")
    assert back.read_bytes() == model.read_bytes()
    assert out.startswith(f"read {between}\n  ")
    assert f"\nwrote {back}\n  " in out


def test_keras_weights_need_to_be_told_the_rest(net, model, capsys, tmp_path):
    between, back = tmp_path / "net.weights.h5", tmp_path / "back.h5"
    code, out, _ = run(capsys, model, between)
    assert code == 0
    assert "layers/dense_1/vars/0" in out
    code, _, err = run(capsys, between, back)
    assert code == 1
    assert f"mlpkit: error: {str(between)!r}: activations must be a list of 2" in err
    options = ["--activations", "leaky_relu(0.2), sigmoid", "--loss", "binary_cross_entropy", "--weight-decay", "0.25"]
    assert run(capsys, between, back, *options)[0] == 0
    same = mlpkit.load(back)
    assert_array_equal(same.theta, net.theta)
    assert [layer.activation.name for layer in same.layers[1:]] == ["leaky_relu(0.2)", "sigmoid"]
    assert (same.loss.name, same.weight_decay) == ("binary_cross_entropy", 0.25)


def test_onnx(model, capsys, tmp_path):
    code, out, _ = run(capsys, model, tmp_path / "model.onnx")
    assert code == 0
    assert "layer 2: W^(1) (2, 3), b^(1) -> Gemm" in out
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))
    code, _, err = run(capsys, tmp_path / "model.onnx", tmp_path / "back.h5")
    assert code == 1
    assert "is of a kind that mlpkit only writes" in err


def test_the_exercises_vector(capsys, tmp_path):
    net = mlpkit.sparse_autoencoder(n_inputs=4, n_hidden=3, weight_decay=0.0, seed=0)
    scipy.io.savemat(tmp_path / "opt.mat", {"opttheta": to_notes_order(net), "patches": np.eye(4), "m": 1.0})
    options = ["--activations", "sigmoid,sigmoid", "--sizes", "4,3,4", "--vector", "opttheta", "--ignore", "patches,m"]
    assert run(capsys, tmp_path / "opt.mat", tmp_path / "net.h5", *options)[0] == 0
    assert_array_equal(mlpkit.load(tmp_path / "net.h5").theta, net.theta)


def test_json(model, capsys, tmp_path):
    code, out, _ = run(capsys, model, tmp_path / "net.mat", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["read"], found["wrote"]) == (str(model), str(tmp_path / "net.mat"))
    assert found["mapped_out"][0] == "W^(1) (2, 3) -> W1"
    assert len(found["mapped_in"]) == 1


def test_a_model_file_is_known_whatever_it_is_called(model, capsys, tmp_path):
    for name in ("model", "model.weights.h5", "model.MAT"):
        model = model.rename(tmp_path / name)
        assert run(capsys, model, tmp_path / "out.h5")[0] == 0
        assert (tmp_path / "out.h5").read_bytes() == model.read_bytes()


def test_what_a_file_says_cannot_move_the_cursor(capsys, tmp_path):
    scipy.io.savemat(tmp_path / "net.mat", {"W1": np.eye(2)})
    path = tmp_path / "net\x1b[2J.mat"
    (tmp_path / "net.mat").rename(path)
    code, out, _ = run(capsys, path, tmp_path / "net.h5", "--activations", "tanh")
    assert code == 0
    assert "net\\x1b[2J.mat" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("source", "target", "options", "reason"),
    [
        ("model.h5", "net.txt", [], r"net.txt' must end in .weights.h5, .h5, .onnx, .mat, .safetensors"),
        ("absent.h5", "net.mat", [], "No such file or directory"),
        ("absent.mat", "net.h5", ["--activations", "tanh"], "No such file or directory"),
        ("model.h5", "net.mat", ["--loss", "huber"], "--loss does not go with"),
        ("net.mat", "net.h5", ["--order", "fc"], "--order does not go with"),
        ("net.mat", "net.h5", ["--activations", "swoosh"], "'swoosh'"),
        ("net.mat", "net.h5", ["--activations", "tanh", "--sizes", "3,3"], "sizes must be those of W1"),
        ("net.mat", "absent/net.h5", ["--activations", "tanh"], "absent"),
        ("net.mat", "net.weights.h5", ["--activations", "tanh", "--weight-decay", "-1"], "weight_decay must be"),
    ],
)
def test_requests_that_fail(source, target, options, reason, model, capsys, tmp_path):
    scipy.io.savemat(tmp_path / "net.mat", {"W1": np.eye(2)})
    before = sorted(tmp_path.iterdir())
    code, out, err = run(capsys, tmp_path / source, tmp_path / target, *options)
    assert (code, out) == (1, "")
    assert err.startswith("mlpkit: error: ")
    assert reason in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("net.pt", b"PK\x03\x04", "pickle"),
        ("net.mat", b"MATLAB 7.3 MAT-file".ljust(600), "version 7.3"),
        ("net.h5", b"\x89HDF\r\n\x1a\n", "not an mlpkit model"),
        ("net.h5", b"mlpkit model\r\n\x1a\n", "user block"),
        ("net.weights.h5", b"no such thing", "HDF5"),
        ("net.safetensors", b"no such thing", "net.safetensors: "),
    ],
)
def test_files_that_are_no_models_end_with_3(name, content, reason, capsys, tmp_path):
    (tmp_path / name).write_bytes(content)
    options = ["--activations", "tanh"] if name.split(".")[1] not in ("h5", "pt") else []
    code, out, err = run(capsys, tmp_path / name, tmp_path / "out.mat", *options)
    assert (code, out) == (3, "")
    assert reason in err
    assert not (tmp_path / "out.mat").exists()


def test_a_wrong_command_line_ends_with_2(model, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(model), "net.mat", "--sizes", "3,x"])
    assert ended.value.code == 2
    assert "--sizes: must be whole numbers with commas between; found '3,x'" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_extra(model, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, err = run(capsys, model, tmp_path / "net.onnx")
    assert code == 1
    assert 'pip install "mlpkit[onnx]"' in err


def test_importing_mlpkit_imports_none_of_the_other_systems():
    others = {"sklearn", "torch", "onnx", "onnxruntime", "safetensors", "keras", "scipy.io"}
    program = f"import mlpkit, mlpkit.cli, sys; print({others} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"
