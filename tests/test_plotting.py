"""Pictures: what is in the figures, and that drawing leaves the program around it alone."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

import mlpkit
from mlpkit import plotting
from mlpkit.errors import InvalidArgumentError, MissingExtraError
from mlpkit.history import History, Iteration

pytest.importorskip("matplotlib")


@pytest.fixture
def net():
    return mlpkit.sparse_autoencoder(n_inputs=9, n_hidden=5, seed=0)


def test_features_draw_each_unit_in_reading_order_on_its_own_scale(net):
    net.weights[0][...] *= np.array([1, 10, 100, 1000, 0])[:, np.newaxis]
    picture = plotting.features(net).axes[0].images[0].get_array()
    assert picture.shape == (2 * 4 + 1, 3 * 4 + 1)  # five units of 3 x 3: a row of three, then two
    for unit, (top, left) in enumerate([(1, 1), (1, 5), (1, 9), (5, 1)]):
        W = net.weights[0][unit].reshape(3, 3)
        np.testing.assert_allclose(picture[top : top + 3, left : left + 3], W / np.abs(W).max())
    assert np.all(picture[5:8, 5:8] == 0)  # a unit without weights is mid-grey
    assert np.all(picture[::4] == -1)  # lines, and the place no unit fills, are black
    assert np.all(picture[5:8, 9:12] == -1)


def test_features_use_a_symmetric_grey_scale(net):
    image = plotting.features(net).axes[0].images[0]
    assert image.get_clim() == (-1, 1)
    assert image.get_cmap().name == "gray"


@pytest.mark.parametrize("value", [-1.0, 0.0])
def test_the_grey_scale_is_symmetric_whatever_the_weights(net, value):
    """Pictures without white must not be stretched to have some: mid-grey is always 0."""
    net.weights[0][...] = value
    image = plotting.features(net).axes[0].images[0]
    assert image.get_clim() == (-1, 1)
    assert image.norm(0.0) == 0.5


@pytest.mark.parametrize("shape", [(2, 3), [2, 3], np.array([2, 3])])
def test_features_of_a_given_shape(shape):
    net = mlpkit.sparse_autoencoder(n_inputs=6, n_hidden=2, seed=0)
    picture = plotting.features(net, shape=shape).axes[0].images[0].get_array()
    W = net.weights[0][0].reshape(2, 3)
    np.testing.assert_allclose(picture[1:3, 1:4], W / np.abs(W).max())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (None, "shape must be given.*6 inputs"),
        ((2, 2), "shape must hold.*6; found 2 x 2"),
        ((2, 0), "shape must be an integer of at least 1"),
        (6, "shape must be .height, width.; found 6"),
        ((1, 2, 3), "shape must be .height, width.; found .1, 2, 3"),
        (np.array([2.0, 3.0]), "shape must be an integer"),
        ("23", "shape must be an integer"),
    ],
)
def test_features_say_which_shape_they_need(shape, message):
    net = mlpkit.sparse_autoencoder(n_inputs=6, n_hidden=2, seed=0)
    with pytest.raises(InvalidArgumentError, match=message):
        plotting.features(net, shape=shape)


def test_features_draw_float32_networks():
    net = mlpkit.sparse_autoencoder(n_inputs=9, n_hidden=4, seed=0, dtype="float32")
    assert plotting.features(net).axes[0].images[0].get_array().shape == (9, 9)


def test_training_draws_cost_terms_and_gradient_norm(net):
    X = np.random.default_rng(0).uniform(0.1, 0.9, (20, 9))
    result = net.fit(X, X, optimizer=mlpkit.LBFGS(max_iter=5))
    figure = plotting.training(result.history)
    above, below = figure.axes
    assert [line.get_label() for line in above.lines] == [
        "cost J",
        "data",
        "weight decay",
        "sparsity",
    ]
    costs = above.lines[0].get_ydata()
    assert costs[-1] == result.cost
    np.testing.assert_allclose(np.sum([line.get_ydata() for line in above.lines[1:]], 0), costs)
    assert np.all(below.lines[0].get_ydata() > 0)
    assert above.get_yscale() == below.get_yscale() == "log"


def test_training_leaves_out_terms_that_are_zero_and_takes_a_result():
    net = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(1, "sigmoid")], seed=0)
    result = net.fit([[0.0, 1.0], [1.0, 0.0]], [0.2, 0.8], optimizer=mlpkit.LBFGS(max_iter=3))
    above, _ = plotting.training(result).axes
    assert [line.get_label() for line in above.lines] == ["cost J", "data"]


def test_training_draws_metrics_of_the_costs_kind_with_it_and_others_apart():
    metrics = [
        {"validation_loss": 0.5, "validation_accuracy": 0.25, "mean_squared_error": 0.1, "validation_r2": math.nan},
        {"validation_loss": 0.25, "mean_squared_error": 0.2, "validation_r2": math.nan},
        {"validation_loss": 0.125, "validation_accuracy": 0.75, "mean_squared_error": 0.3, "validation_r2": math.nan},
    ]
    records = History(metrics_of(i + 1, **metrics[i]) for i in range(3))
    above, middle, below = plotting.training(records).axes
    assert [axes.get_ylabel() for axes in (above, middle, below)] == ["cost", "metrics", "gradient norm"]
    labels = [line.get_label() for line in above.lines]
    assert labels == ["cost J", "data", "weight decay", "sparsity", "validation loss", "mean squared error"]
    assert above.lines[4].get_ydata().tolist() == [0.5, 0.25, 0.125]
    (line,) = middle.lines  # and none for what is NaN throughout
    assert line.get_label() == "validation accuracy"
    np.testing.assert_array_equal(line.get_ydata(), [0.25, math.nan, 0.75])
    assert [axes.get_yscale() for axes in (above, middle, below)] == ["log", "linear", "log"]
    assert below.get_xlabel() == "iteration"


def test_training_has_no_axes_for_metrics_that_there_are_not():
    records = History(metrics_of(i, validation_loss=1 / i, validation_r2=math.nan) for i in (1, 2, 3))
    above, _ = plotting.training(records).axes
    assert above.lines[-1].get_label() == "validation loss"


def metrics_of(i, **metrics):
    return Iteration(i, 1 / i, 0.5 / i, 0.3 / i, 0.2 / i, 0.1, i, 0.1, 0.1, metrics=metrics)


def test_training_without_an_iteration_says_so():
    net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "identity", init=0.0)])
    result = net.fit([[1.0]], [[0.0]])  # where it starts is the minimum
    assert result.history == []
    for history in (result, result.history):
        above, below = plotting.training(history).axes
        assert [text.get_text() for text in above.texts] == ["no iteration was accepted"]
        assert below.get_xlabel() == "iteration"


@pytest.mark.parametrize("history", [[1, 2], None, 3, "history", [None]])
def test_training_refuses_what_is_no_history(history):
    with pytest.raises(InvalidArgumentError, match="history must be a History or a FitResult; found"):
        plotting.training(history)


def history_of(n):
    return [Iteration(i, 1 / i, 0.5 / i, 0.3 / i, 0.2 / i, 0.1, i, 0.1, 0.1) for i in range(1, n + 1)]


@pytest.mark.parametrize("n", [1, 2, 5, 30, 31, 400])
def test_short_runs_are_marked_and_iterations_are_whole_numbers(n):
    figure = plotting.training(history_of(n))
    above, below = figure.axes
    figure.draw_without_rendering()
    ticks = [tick for tick in below.get_xticks() if below.get_xlim()[0] <= tick <= below.get_xlim()[1]]
    assert ticks
    assert all(tick == round(tick) for tick in ticks)
    assert {line.get_marker() for line in above.lines + below.lines} == {"." if n <= 30 else "None"}


def test_the_cost_is_drawn_on_top_of_its_terms():
    cost, *terms = plotting.training(history_of(3)).axes[0].lines
    assert cost.get_label() == "cost J"
    assert all(cost.get_zorder() > term.get_zorder() for term in terms)


def test_activation_draws_each_function():
    figure = plotting.activation("sigmoid", mlpkit.activations.tanh)
    sigmoid, tanh = (axes.lines[0].get_data() for axes in figure.axes)
    np.testing.assert_allclose(sigmoid[1], 1 / (1 + np.exp(-sigmoid[0])), rtol=1e-12)
    np.testing.assert_allclose(tanh[1], np.tanh(tanh[0]), rtol=1e-12)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "at least one"),
        (("sigmoyd",), "sigmoid"),
        (("softmax",), "one number; found 'softmax'"),
    ],
)
def test_activation_refuses_what_it_cannot_draw(names, message):
    with pytest.raises(InvalidArgumentError, match=message):
        plotting.activation(*names)


def test_kl_is_zero_at_rho_and_grows_on_either_side():
    x, y = plotting.kl(rho=0.2).axes[0].lines[0].get_data()
    lowest = np.argmin(y)
    assert x[lowest] == 0.2
    assert y[lowest] == 0
    assert np.all(np.diff(y[: lowest + 1]) < 0)
    assert np.all(np.diff(y[lowest:]) > 0)


@pytest.mark.parametrize("rho", [0, 1, -0.1, "0.2", float("nan")])
def test_kl_refuses_rho_outside_the_open_interval(rho):
    with pytest.raises(InvalidArgumentError, match="rho"):
        plotting.kl(rho)


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def circles(figure):
    return [line for line in figure.axes[0].lines if line.get_marker() == "o"]


def test_network_draws_units_and_bias_units_as_in_the_notes():
    layers = [mlpkit.Input(3), mlpkit.Dense(3, "sigmoid"), mlpkit.Dense(1, "sigmoid")]
    figure = plotting.network(mlpkit.MLP(layers, seed=0))
    assert texts(figure).count("+1") == 2
    assert len(circles(figure)) == 3 + 3 + 1 + 2
    edges = [line for line in figure.axes[0].lines if line.get_marker() == "None"]
    assert len(edges) == (3 + 1) * 3 + (3 + 1) * 1  # one for each entry of W and b
    assert "$x_{3}$" in texts(figure)
    assert "Layer $L_{3}$\n1 unit, sigmoid" in texts(figure)


def test_network_abbreviates_large_layers_and_omits_absent_biases():
    layers = [mlpkit.Input(64), mlpkit.Dense(25, "tanh", bias=False), mlpkit.Dense(7, "identity")]
    figure = plotting.network(mlpkit.MLP(layers, seed=0))
    assert texts(figure).count("+1") == 1
    assert texts(figure).count(r"$\vdots$") == 3
    assert "$x_{64}$" in texts(figure)
    assert len(circles(figure)) == 3 * 5 + 1


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_every_picture_can_be_saved(net, tmp_path, suffix):
    X = np.full((4, 9), 0.5)
    result = net.fit(X, X, optimizer=mlpkit.LBFGS(max_iter=2))
    for name, draw in {
        "features": lambda path: plotting.features(net, path=path),
        "training": lambda path: plotting.training(result.history, path=path),
        "activation": lambda path: plotting.activation("sigmoid", path=path),
        "kl": lambda path: plotting.kl(path=path),
        "network": lambda path: plotting.network(net, path=path),
    }.items():
        path = tmp_path / f"{name}.{suffix}"
        draw(path)
        assert path.stat().st_size > 500


@pytest.mark.parametrize("name", ["", "kl.xyz", "kl", "kl.png/", ".png", "kl."])
def test_a_path_that_names_no_picture_is_refused(tmp_path, name):
    with pytest.raises(InvalidArgumentError, match=f"path: expected .*{tmp_path}/{name}"):
        plotting.kl(path=f"{tmp_path}/{name}")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_replaces_another_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "kl.png"
    path.write_bytes(b"old")
    with path.open("rb") as viewer:
        plotting.kl(path=path)
        assert viewer.read() == b"old"
    before = path.read_bytes()
    assert before.startswith(b"\x89PNG")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device.*the file there is as it was"):
        plotting.kl(rho=0.3, path=path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["kl.png"]


def test_the_suffix_may_be_in_capitals(tmp_path):
    plotting.kl(path=tmp_path / "KL.PNG")
    assert (tmp_path / "KL.PNG").exists()


def test_drawing_never_imports_pyplot():
    program = (
        "import sys, mlpkit; mlpkit.plotting.kl(); mlpkit.plotting.activation('tanh');"
        "mlpkit.plotting.features(mlpkit.sparse_autoencoder(4, 2));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"mlpkit\[plot\]"):
        plotting.kl()
