"""The examples run as a user would run them, at small size, and do what they say."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load(path):
    spec = importlib.util.spec_from_file_location(f"_program_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sparse_autoencoder_saves_its_model_and_picture(tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("skimage")
    out = tmp_path / "new" / "folder"
    net = load(EXAMPLES / "sparse_autoencoder.py").main(small=True, out=out)
    assert net.sizes == (64, 25, 64)
    assert (out / "autoencoder.h5").exists()
    assert (out / "features.png").exists()


def test_softmax_digits_learns_and_generalises():
    pytest.importorskip("sklearn")
    on_train, on_test = load(EXAMPLES / "softmax_digits.py").main(small=True)
    assert on_train > 0.95
    assert on_test > 0.9


def test_regression_tanh_predicts_new_points():
    assert load(EXAMPLES / "regression_tanh.py").main(small=True) > 0.95


def test_multi_output_learns_both_labels():
    assert np.all(load(EXAMPLES / "multi_output.py").main(small=True) > 0.9)


def test_custom_activation_fits_what_tanh_cannot():
    scores = load(EXAMPLES / "custom_activation.py").main(small=True)
    assert scores["wavelet"] > 0.99
    assert min(scores.values()) > 0.9


def test_custom_loss_draws_an_interval_that_holds_as_many_points_as_it_says(tmp_path):
    pytest.importorskip("matplotlib")
    shares = load(EXAMPLES / "custom_loss.py").main(small=True, out=tmp_path / "new")
    assert len(shares) == 2
    assert all(0.75 < share < 0.85 for share in shares)
    assert (tmp_path / "new" / "quantiles.png").exists()


def test_tied_weights_halve_the_parameters_and_still_learn():
    pytest.importorskip("sklearn")
    found = load(EXAMPLES / "tied_weights.py").main(small=True)
    assert found["tied"][0] == 64 * 25 + 25 + 64
    assert found["tied"][1] < 0.03


def test_denoising_repairs_better_than_a_network_that_never_saw_noise():
    pytest.importorskip("sklearn")
    damaged, plain, denoising = load(EXAMPLES / "denoising.py").main(small=True)
    assert denoising < 0.7 * plain < 0.7 * damaged


def test_stacked_autoencoder_gains_by_fine_tuning():
    pytest.importorskip("sklearn")
    found = load(EXAMPLES / "stacked_autoencoder_mnist.py").main(small=True)
    assert found["before fine-tuning"] > 0.9
    assert found["after fine-tuning"] > max(0.95, found["before fine-tuning"])


def test_self_taught_features_tell_digits_apart_that_they_were_not_learnt_from():
    pytest.importorskip("sklearn")
    found = load(EXAMPLES / "self_taught_mnist.py").main(small=True)
    assert found["features", 1e-4] > 0.92
    assert min(found.values()) > 0.9


def test_scipy_minimize_reaches_one_minimum_by_every_method():
    costs = load(EXAMPLES / "scipy_minimize.py").main(small=True)
    assert set(costs) == {"L-BFGS-B", "CG", "BFGS"}
    np.testing.assert_allclose(list(costs.values()), min(costs.values()), rtol=1e-5)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_has_a_command_line(path):
    command = [sys.executable, str(path), "--help"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "--small" in done.stdout


def test_the_benchmark_runs_both_sides_to_the_same_cost(tmp_path):
    pytest.importorskip("skimage")
    results = tmp_path / "results.json"
    program = str(BENCHMARKS / "cs294a_exercise.py")
    command = [sys.executable, program, "--repeats", "1", "--iterations", "10"]
    command += ["--json", str(results)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "ratio" in done.stdout
    assert results.exists()


def test_the_readme_quick_start_runs(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("skimage")
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    program = readme.split("```python\n")[1].split("```")[0]
    small = program.replace("10_000", "200").replace("max_iter=400", "max_iter=5")
    assert small.count("200") == small.count("max_iter=5") == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(small, "README.md", "exec"), {})
    assert (tmp_path / "features.png").exists()
