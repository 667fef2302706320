"""The command line: the demo end to end at small size, its errors, and the other commands."""

import os
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest

import mlpkit
from mlpkit import cli, model_file, plotting
from mlpkit.cli import main
from mlpkit.kernels import forward, sweeps
from mlpkit.kernels.jit import MOST_THREADS
from mlpkit.preprocessing import remove_dc, sample_patches, squash, whiten_images

pytest.importorskip("matplotlib")

SMALL = ["--patch", "4", "--hidden", "6", "--patches", "300", "--iterations", "10", "--no-progress"]


@pytest.fixture(autouse=True)
def threads_as_before():
    """Undo --threads, which sets the number for the whole process."""
    before = mlpkit.get_num_threads()
    yield
    mlpkit.set_num_threads(before)


@pytest.fixture
def image(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "noise.npy"
    np.save(path, rng.standard_normal((40, 50)).cumsum(axis=0).cumsum(axis=1))
    return path


def demo(image, out, *more):
    return main(["demo", *SMALL, "--images", str(image), "--out", str(out), *more])


def test_demo_writes_pictures_and_a_model_and_sums_up(image, tmp_path, capsys):
    out = tmp_path / "deep" / "folder"
    assert demo(image, out) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "features.png",
        "model.h5",
        "training.png",
    ]
    net = mlpkit.load(out / "model.h5")
    assert net.sizes == (16, 6, 16)
    said = capsys.readouterr().out
    assert "sparse autoencoder 16-6-16 on 300 whitened 4x4 patches" in said
    assert re.search(r"rho_hat: mean 0\.\d+, standard deviation 0\.\d+", said)
    assert re.search(r"10 iterations, \d+ evaluations, \d+\.\d s", said)
    cost, *terms = map(float, re.search(r"J = (\S+) = data (\S+) \+ .*decay (\S+) \+ .*sity (\S+)", said).groups())
    assert cost == pytest.approx(sum(terms), rel=2e-5)
    assert "equal predictions" in said


def test_demo_settings_reach_the_network(image, tmp_path):
    settings = ["--rho", "0.1", "--beta", "2", "--weight-decay", "0.01", "--seed", "7"]
    assert demo(image, tmp_path, *settings, "--threads", "1") == 0
    net = mlpkit.load(tmp_path / "model.h5")
    assert net.layers[1].sparsity == mlpkit.KLSparsity(rho=0.1, beta=2.0)
    assert net.weight_decay == 0.01
    assert net.seed == 7


def test_demo_is_reproducible_and_follows_its_seed(image, tmp_path):
    thetas = []
    for seed in ("1", "1", "2"):
        assert demo(image, tmp_path, "--seed", seed) == 0
        thetas.append(mlpkit.load(tmp_path / "model.h5").theta)
    np.testing.assert_array_equal(thetas[0], thetas[1])
    assert np.any(thetas[0] != thetas[2])


def by_hand(images, seed, weight_decay=2e-4, **optimizer):
    """Train as the demo should, with the numbers of SMALL."""
    X = squash(remove_dc(sample_patches(images, 300, size=4, seed=seed)))
    net = mlpkit.sparse_autoencoder(16, 6, rho=0.03, beta=3.0, weight_decay=weight_decay, seed=seed)
    net.fit(X, X, optimizer=mlpkit.LBFGS(**optimizer))
    return net.theta


@pytest.mark.parametrize("whitened", [False, True])
def test_demo_prepares_its_patches_as_the_exercise_does(image, tmp_path, whitened):
    assert demo(image, tmp_path, "--seed", "7", *(["--whitened"] if whitened else [])) == 0
    images = [np.load(image)] if whitened else whiten_images([np.load(image)])
    expected = by_hand(images, seed=7, max_iter=10, ftol=0, gtol=0)
    np.testing.assert_array_equal(mlpkit.load(tmp_path / "model.h5").theta, expected)


def test_demo_stops_at_no_tolerance(image, tmp_path):
    assert demo(image, tmp_path, "--weight-decay", "1", "--iterations", "60") == 0
    theta = mlpkit.load(tmp_path / "model.h5").theta
    images = whiten_images([np.load(image)])
    settings = {"seed": 0, "weight_decay": 1, "max_iter": 60}
    np.testing.assert_array_equal(theta, by_hand(images, **settings, ftol=0, gtol=0))
    assert (theta != by_hand(images, **settings, gtol=0)).any()
    assert (theta != by_hand(images, **settings, ftol=0)).any()


def test_demo_compares_what_it_reloads(image, tmp_path, monkeypatch, capsys):
    def load(path):
        net = mlpkit.load(path)
        net.biases[1][0] += 1e-9
        return net

    monkeypatch.setattr(model_file, "load", load)
    assert demo(image, tmp_path) == 1
    said = capsys.readouterr()
    assert "equal predictions" not in said.out
    assert "model.h5 predicts otherwise than it was saved" in said.err


def test_demo_saves_the_model_before_it_draws(image, tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plotting, "features", fail)
    assert demo(image, tmp_path / "out") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.h5"]
    assert "No space left" in capsys.readouterr().err


def test_demo_that_cannot_take_a_step_says_so(image, tmp_path, capsys, monkeypatch):
    class Stuck:
        def __init__(self, *arguments, **options):
            pass

        def minimize(self, evaluate, theta, report):
            evaluate(theta)
            return theta, "line search failed"

    monkeypatch.setattr(cli, "LBFGS", Stuck)
    out = tmp_path / "out"
    assert demo(image, out) == 0
    said = capsys.readouterr()
    assert said.err.startswith("mlpkit: warning: the network is as it started, for no step was accepted")
    assert "line search failed" in said.out
    assert sorted(path.name for path in out.iterdir()) == ["features.png", "model.h5", "training.png"]


def test_demo_takes_several_images_of_several_kinds(image, tmp_path):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["image"] = np.random.default_rng(1).uniform(size=(30, 30))
    assert demo(image, tmp_path / "out", "--images", str(image), str(other)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rho", "1.5"], "rho"),
        (["--beta", "-1"], "beta"),
        (["--weight-decay", "-1"], "weight_decay"),
        (["--beta", "1e308"], "cannot start with --beta 1e+308 and --weight-decay 0.0002"),
        (["--patch", "41"], "--patch must not exceed any image's side; found 41 for an image of 40 x 50 pixels in"),
        (["--patch", "41"], "noise.npy"),
        (["--patch", "1000000000"], "noise.npy"),
        (["--images", "absent.png"], "absent.png"),
    ],
)
def test_demo_errors_are_one_line_on_stderr(image, tmp_path, capsys, options, message):
    assert demo(image, tmp_path, *options) == 1
    said = capsys.readouterr()
    assert said.err.startswith("mlpkit: error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert not (tmp_path / "model.h5").exists()


def test_whitened_needs_images(capsys):
    assert main(["demo", *SMALL, "--whitened"]) == 1
    assert "--whitened needs --images" in capsys.readouterr().err


def test_demo_without_enough_memory_is_one_line_on_stderr(image, tmp_path, monkeypatch, capsys):
    def fail(**settings):
        raise MemoryError("Unable to allocate 14.6 TiB")

    monkeypatch.setattr(cli, "sparse_autoencoder", fail)
    assert demo(image, tmp_path) == 1
    assert capsys.readouterr().err == "mlpkit: error: not enough memory: Unable to allocate 14.6 TiB\n"


def test_demo_into_a_file_is_an_error(image, capsys):
    assert demo(image, image) == 1
    assert capsys.readouterr().err.startswith("mlpkit: error: ")


def test_demo_without_matplotlib_names_the_extra_before_training(image, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert demo(image, image.parent / "out") == 1
    assert "mlpkit[demo]" in capsys.readouterr().err


def test_demo_without_rich_goes_on_without_progress(image, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich", None)
    arguments = [word for word in SMALL if word != "--no-progress"]
    out = str(tmp_path / "out")
    assert main(["demo", *arguments, "--images", str(image), "--out", out]) == 0
    assert "mlpkit[progress]" in capsys.readouterr().err


def test_demo_shows_progress_on_stderr(image, tmp_path, capsys):
    arguments = [word for word in SMALL if word != "--no-progress"]
    out = str(tmp_path / "out")
    assert main(["demo", *arguments, "--images", str(image), "--out", out]) == 0
    assert "10/10  " in capsys.readouterr().err


def test_ctrl_c_ends_with_130(image, tmp_path, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(mlpkit.MLP, "fit", interrupt)
    assert demo(image, tmp_path) == 130
    assert capsys.readouterr().err == "mlpkit: interrupted\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["undo"],
        ["demo", "--iterations", "0"],
        ["demo", "--hidden", "many"],
        ["demo", "--images"],
    ],
)
def test_a_wrong_command_line_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: mlpkit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--iterations", "1e2"], "argument --iterations: must be a whole number; found '1e2'"),
        (["--hidden", "0"], "argument --hidden: must lie between 1 and 1000000000; found 0"),
        (["--hidden", "10000000000"], "argument --hidden: must lie between 1 and 1000000000; found 10000000000"),
        (["--threads", "99"], f"argument --threads: must be at most {MOST_THREADS}, the .*; found 99"),
        (["--rho", "few"], "argument --rho: invalid float value: 'few'"),
        (["--seed", "1.5"], "argument --seed: invalid int value: '1.5'"),
    ],
)
def test_a_wrong_number_is_named_by_its_option(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["demo", *arguments])
    assert caught.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.skipif(os.name == "nt", reason="pipes")
@pytest.mark.parametrize("arguments", [["config"], ["--help"], ["demo", "--help"]])
def test_a_broken_pipe_is_no_error(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mlpkit", *arguments]
    # Unbuffered, argparse would meet the error itself, and hide it.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, check=False, stdout=writer, stderr=subprocess.PIPE, text=True, env=env)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_shows_the_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--help"])
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "side of a patch, in pixels (default: 10)" in said
    assert "None" not in said


def test_config_prints_versions(capsys):
    assert main(["config"]) == 0
    said = capsys.readouterr().out
    assert "numba" in said
    assert np.__version__ in said


def test_warmup_compiles_for_every_dtype(capsys):
    assert main(["warmup"]) == 0
    assert "kernels ready" in capsys.readouterr().out
    for sweep in (sweeps.forward_sweep, sweeps.gradient_by_pieces, sweeps.gradient_by_rows, forward.predict_sweep):
        assert len(sweep[0].signatures) >= 2


def test_python_m_mlpkit_is_the_command():
    command = [sys.executable, "-m", "mlpkit", "--version"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    assert re.fullmatch(r"mlpkit \d+\.\d+\.\d+\S*\n", done.stdout)
