"""``mlpkit info``, ``verify`` and ``predict``: what they say, what they write, and how they end."""

import json

import h5py
import numpy as np
import pytest
from forging import configured, forge

import mlpkit
from mlpkit.cli import main
from mlpkit.tables import read_table, write_table


@pytest.fixture
def net():
    hidden = mlpkit.Dense(2, "sigmoid", sparsity=mlpkit.KLSparsity(0.1, 2.0), bias=False)
    return mlpkit.MLP([mlpkit.Input(3), hidden, mlpkit.Dense(1, "sigmoid")], weight_decay=1e-3, seed=5)


@pytest.fixture
def model(net, tmp_path):
    net.metadata = {"title": "one\x1b[2Jtwo", "n": 3}
    net.provenance = {"optimizer": "LBFGS(max_iter=400)"}
    net.save(tmp_path / "model.h5")
    return tmp_path / "model.h5"


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(7, 3))


def run(capsys, *words):
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_info_says_what_the_file_holds(model, capsys):
    code, out, _ = run(capsys, "info", model)
    assert code == 0
    for text in (
        f"{model}, {model.stat().st_size} bytes, format version 1.0, digest right",
        "layer 1       3 inputs",
        "layer 2       2 units, sigmoid, no biases, sparsity {",
        "layer 3       1 units, sigmoid",
        "parameters    9 of float64",
        "weight decay  0.001",
        "seed          5",
        "objective     J = ",
        "written by    Python 3.",
        "provenance    optimizer: LBFGS(max_iter=400)",
        "metadata      title: one\\x1b[2Jtwo",
    ):
        assert text in out
    assert "\x1b" not in out


def test_info_in_json(model, net, capsys):
    code, out, _ = run(capsys, "info", model, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["config"] == net.config()
    assert found["n_parameters"] == 9
    assert found["metadata"]["n"] == 3


def test_info_needs_no_registered_functions(model, capsys):
    forge(model, configured("layers", 1, "activation", "swoosh"))
    code, out, _ = run(capsys, "info", model)
    assert code == 0
    assert "2 units, swoosh" in out


@pytest.mark.parametrize("command", ["info", "predict"])
def test_what_is_no_model_ends_with_3(tmp_path, model, capsys, command):
    model.write_bytes(model.read_bytes()[:-1])
    more = [tmp_path / "X.npy", "-o", tmp_path / "out.npy"] if command == "predict" else []
    code, out, err = run(capsys, command, model, *more)
    assert code == 3
    assert out == ""
    assert err.startswith("mlpkit: error: ")
    assert "truncated" in err


def test_a_missing_file_ends_with_1(tmp_path, capsys):
    assert run(capsys, "info", tmp_path / "none.h5")[0] == 1
    assert run(capsys, "verify", tmp_path / "none.h5")[0] == 1


def test_verify_looks_at_every_file(tmp_path, model, capsys):
    bad = tmp_path / "bad.h5"
    bad.write_bytes(model.read_bytes())
    forge(bad, lambda file: file["parameters/1/W"].__setitem__((0, 0), np.nan))
    assert run(capsys, "verify", model)[:2] == (0, f"{model}: right (9 parameters, format version 1.0)\n")
    code, out, _ = run(capsys, "verify", bad, tmp_path / "none.h5", model)
    assert code == 3
    assert [line.partition(": ")[0] for line in out.splitlines()][::2] == [str(bad), str(model)]
    assert "/parameters/1/W[0, 0]: expected finite" in out
    assert "none.h5" in out.splitlines()[1]
    code, out, _ = run(capsys, "verify", "--json", bad, model)
    assert code == 3
    assert [json.loads(line)["ok"] for line in out.splitlines()] == [False, True]


def test_verify_is_for_models_with_functions_that_are_not_registered_too(model, capsys):
    forge(model, configured("loss", "hinge"))
    assert run(capsys, "verify", model)[0] == 0


@pytest.mark.parametrize("ending", ["npy", "h5", "csv"])
@pytest.mark.parametrize("out", ["npy", "h5", "csv"])
def test_predict(tmp_path, model, net, X, capsys, ending, out):
    write_table(tmp_path / f"X.{ending}", X)
    code, said, _ = run(capsys, "predict", model, tmp_path / f"X.{ending}", "-o", tmp_path / f"out.{out}", "--json")
    assert code == 0
    assert json.loads(said) == {"wrote": str(tmp_path / f"out.{out}"), "rows": 7, "columns": 1}
    np.testing.assert_array_equal(read_table(tmp_path / f"out.{out}"), net.predict(X))


def test_predict_labels(tmp_path, model, net, X, capsys):
    write_table(tmp_path / "X.npy", X)
    code, _, err = run(capsys, "predict", model, tmp_path / "X.npy", "-o", tmp_path / "out.csv", "--labels")
    assert (code, err) == (0, f"wrote {tmp_path / 'out.csv'}: 7 rows of 1\n")
    assert (tmp_path / "out.csv").read_text() == "".join(f"{label}\n" for label in net.predict_labels(X))


def test_titles_of_columns_are_skipped(tmp_path, model, net, X, capsys):
    rows = "".join(",".join(map(repr, row)) + "\r\n" for row in X.tolist())
    (tmp_path / "X.csv").write_bytes(b"\xef\xbb\xbf" + f"a,b,c\r\n{rows}".encode())
    assert run(capsys, "predict", model, tmp_path / "X.csv", "-o", tmp_path / "out.npy")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), net.predict(X))


def test_one_dataset_of_several_is_named(tmp_path, model, net, X, capsys):
    with h5py.File(tmp_path / "X.h5", "w") as file:
        file["group/X"], file["Y"] = X, X + 1
    command = ["predict", model, tmp_path / "X.h5", "-o", tmp_path / "out.npy"]
    code, _, err = run(capsys, *command)
    assert code == 1
    assert "--dataset must name one of" in err
    assert "'group/X' (7, 3)" in err
    assert run(capsys, *command, "--dataset", "/group/X")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), net.predict(X))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("X.npy", b"not npy", "cannot be read as .npy"),
        ("X.csv", b"1,2,3\n4,5\n", "cannot be read as .csv"),
        ("X.csv", b"1,2,x\n4,5,y\n", "cannot be read as .csv"),
        ("X.csv", b"", "no rows of numbers"),
        ("X.csv", b"a,b,c\n", "no rows of numbers"),
        ("X.csv", b"1,2\n", "X must have"),
        ("X.csv", b"1,2,nan\n", "nan"),
        ("X.h5", b"not hdf5", "cannot be read as .h5"),
        ("X.txt", b"1,2,3\n", "must end in .npy"),
    ],
)
def test_data_that_cannot_be_used(tmp_path, model, capsys, name, content, message):
    (tmp_path / name).write_bytes(content)
    code, _, err = run(capsys, "predict", model, tmp_path / name, "-o", tmp_path / "out.npy")
    assert code == 1
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out.npy").exists()


def test_pickles_are_not_read(tmp_path, model, capsys):
    np.save(tmp_path / "X.npy", np.array([print], dtype=object), allow_pickle=True)
    code, _, err = run(capsys, "predict", model, tmp_path / "X.npy", "-o", tmp_path / "out.npy")
    assert code == 1
    assert "allow_pickle" in err


def test_a_place_that_cannot_be_written_shows_at_once(tmp_path, model, capsys):
    code, _, err = run(capsys, "predict", model, tmp_path / "X.npy", "-o", tmp_path / "out.txt")
    assert code == 1
    assert "out.txt' must end in" in err
