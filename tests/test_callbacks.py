"""Callbacks that come with mlpkit, on a run made by hand: what they show, log and draw."""

import logging
import os
import re
import sys

import pytest
from runs import follow, put_on_record, run_of

import mlpkit
from mlpkit import KLSparsity, L1Sparsity, callbacks, errors, plotting
from mlpkit.callbacks.lines import line
from mlpkit.errors import InvalidArgumentError, MissingExtraError
from mlpkit.history import History, Iteration


def test_what_users_see_is_exported():
    assert issubclass(callbacks.Progress, mlpkit.Callback)
    assert mlpkit.callbacks is callbacks


# --- the line


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_line_shows_every_term_in_80_columns(scale):
    record = Iteration(12345, 0.98765 * scale, 0.543 * scale, 0.321e-5 * scale, 0.123 * scale, 0.01, 1, 1234.5, 0.1)
    text = line(History([record]), 15000, 80, "KL")
    assert f"data {0.543 * scale:.3g} + decay {0.321e-5 * scale:.3g} + KL {0.123 * scale:.3g}" in text
    assert len(text) <= 80


def test_the_line_of_the_demo_is_whole_in_80_columns():
    record = Iteration(400, 0.456789, 0.34567, 0.0567891, 0.00543211, 1.2e-3, 450, 12.3, 0.1)
    expected = "400/400  12 s  J 0.45679 = data 0.346 + decay 0.0568 + KL 0.00543  grad 1.2e-03"
    assert line(History([record]), 400, 80, "KL") == expected


@pytest.mark.parametrize(
    ("word", "penalties"),
    [
        ("KL", KLSparsity(0.1)),
        ("KL", (KLSparsity(0.1), KLSparsity(0.3))),
        ("sparsity", L1Sparsity(0.1)),
        ("sparsity", (KLSparsity(0.1), L1Sparsity(0.1))),
        ("sparsity", None),
    ],
)
def test_the_line_says_kl_where_it_is_nothing_else(word, penalties):
    layers = [mlpkit.Input(1), mlpkit.Dense(3, "sigmoid", sparsity=penalties), mlpkit.Dense(1, "identity")]
    logger = logging.Logger("mine")
    texts = []
    logger.handle = lambda message: texts.append(message.getMessage())
    mlpkit.MLP(layers, seed=0).fit([[0.0], [1.0]], [1.0, 3.0], mlpkit.LBFGS(3), callbacks=[callbacks.Logging(logger)])
    assert len(texts) == 3
    assert all(re.search(rf"= data \S+ \+ decay 0 \+ {word} \S+  grad", text) for text in texts), texts


def test_the_line_shows_what_there_is_room_for():
    run = run_of(4, validation_loss=0.625, validation_accuracy=0.975)
    shown = [line(run.history, 12, width) for width in (126, 106, 96, 86, 76, 68, 46)]
    assert shown == [
        "4/12  2 s  J 0.25 = data 0.175 + decay 0.075 + sparsity 0  validation loss 0.625  validation accuracy 0.975"
        "  grad 3.3e-02",
        "4/12  2 s, 4 s left  J 0.25 = data 0.175 + decay 0.075 + sparsity 0  validation loss 0.625  grad 3.3e-02",
        "4/12  2 s  J 0.25 = data 0.175 + decay 0.075 + sparsity 0  validation loss 0.625  grad 3.3e-02",
        "4/12  2 s  J 0.25 = data 0.175 + decay 0.075 + sparsity 0  validation loss 0.625",
        "4/12  2 s  J 0.25 = data 0.175 + decay 0.075 + sparsity 0  grad 3.3e-02",
        "4/12  2 s, 4 s left  J 0.25 = data 0.175 + decay 0.075 + sparsity 0",
        "4/12  2 s  J 0.25 = data 0.175 + decay 0.075 + sparsity 0",
    ]


@pytest.mark.parametrize(
    ("max_iter", "expected"),
    [
        (4, ""),
        (3, ""),
        (None, ""),
        (5, ", 0 s left"),
        (202, ", 99 s left"),
        (404, ", 3 min left"),
        (40004, ", 6 h left"),
    ],
)
def test_the_time_left_is_guessed_where_the_end_is_known(max_iter, expected):
    run = run_of(4)
    text = line(run.history, max_iter, 120)
    of = "" if max_iter is None else f"/{max_iter}"
    assert text.startswith(f"4{of}  2 s{expected}  J")


def test_the_time_left_is_of_the_latest_iterations():
    """The first iteration has had to compile."""
    history = run_of(30).history
    slow = Iteration(1, 1.0, 1.0, 0.0, 0.0, 0.1, 1, 1000.0, 1000.0)
    assert line(History([slow, *history[1:]]), 50, 120) == line(history, 50, 120)
    assert ", 10 s left" in line(history, 50, 120)


def test_a_log_has_metrics_and_norm_but_no_guess():
    text = line(run_of(4, validation_loss=0.625, validation_accuracy=0.975).history, 12, None)
    assert text.endswith("  validation loss 0.625  validation accuracy 0.975  grad 3.3e-02")
    assert "left" not in text


# --- Progress


def shown_by(callback, run, capsys, n_iterations=3):
    callback.on_start(run)
    follow(callback, run, n_iterations)
    callback.on_end(run)
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_progress_is_one_line_on_stderr(capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "80")
    (text,) = shown_by(callbacks.Progress(), run_of(max_iter=3), capsys).splitlines()
    assert re.fullmatch(r"3/3  \d+ s  J \S+ = data \S+ \+ decay \S+ \+ sparsity \S+  grad \S+\s*", text)


def test_progress_is_cut_in_a_narrow_terminal(capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "30")
    (text,) = shown_by(callbacks.Progress(), run_of(max_iter=3), capsys).splitlines()
    assert text.startswith("3/3  2 s  J 0.33333 = data 0.")
    assert len(text) == 30


def test_progress_serves_one_training_after_another(capsys):
    pytest.importorskip("rich")
    progress = callbacks.Progress()
    assert "3/5" in shown_by(progress, run_of(max_iter=5), capsys)
    assert "2/7" in shown_by(progress, run_of(max_iter=7), capsys, 2)


def test_progress_without_an_iteration_shows_nothing(capsys):
    pytest.importorskip("rich")
    assert shown_by(callbacks.Progress(), run_of(), capsys, 0).strip() == ""


def test_progress_ends_without_having_started(capsys):
    """As it must where another callback's start fails."""
    pytest.importorskip("rich")
    callbacks.Progress().on_end(run_of(2))
    assert capsys.readouterr() == ("", "")


def test_progress_is_rewritten_ten_times_a_second_at_most(monkeypatch):
    pytest.importorskip("rich")
    progress, run, shown = callbacks.Progress(), run_of(), []
    monkeypatch.setattr(progress, "_show", lambda run: shown.append(run.history[-1].iteration))
    progress.on_start(run)
    for seconds in (0.01, 0.02, 0.10, 0.115, 0.2, 0.22, 1.0):
        put_on_record(run, seconds)
        progress.on_iteration(run)
    assert shown == [1, 4, 6, 7]
    progress.on_end(run)
    assert shown == [1, 4, 6, 7, 7]
    put_on_record(again := run_of(), 0.001)
    progress.on_start(again)
    progress.on_iteration(again)
    progress.on_end(again)
    assert shown[5:] == [1, 1]


def test_progress_gives_the_terminal_back_when_showing_fails(monkeypatch):
    pytest.importorskip("rich")
    progress, run = callbacks.Progress(), run_of(1)
    progress.on_start(run)
    live = progress._live

    def fail(run):
        raise OSError("no terminal any more")

    monkeypatch.setattr(progress, "_show", fail)
    with pytest.raises(OSError, match="no terminal"):
        progress.on_end(run)
    assert not live.is_started


def test_progress_without_rich_names_the_extra(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(errors.importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"mlpkit\[progress\]"):
        callbacks.Progress()


# --- Logging


def logged_by(callback, run, n_iterations, caplog):
    with caplog.at_level(logging.DEBUG):
        callback.on_start(run)
        follow(callback, run, n_iterations)
        callback.on_end(run)
    return [(record.name, record.levelno, record.getMessage().split()[0]) for record in caplog.records]


def test_logging_has_a_line_for_each_iteration(caplog):
    assert logged_by(callbacks.Logging(), run_of(max_iter=9), 3, caplog) == [
        ("mlpkit", logging.INFO, f"{i}/9") for i in (1, 2, 3)
    ]


def test_logging_every_so_many_has_the_last_too(caplog):
    callback = callbacks.Logging("mine", every=4, level=logging.DEBUG)
    assert logged_by(callback, run_of(), 10, caplog) == [("mine", logging.DEBUG, i) for i in ("4", "8", "10")]
    caplog.clear()
    assert [i for *_, i in logged_by(callback, run_of(), 8, caplog)] == ["4", "8"]
    caplog.clear()
    assert logged_by(callback, run_of(), 0, caplog) == []
    # One that goes on where another has ended.
    assert [i for *_, i in logged_by(callback, run_of(9), 2, caplog)] == ["11"]
    caplog.clear()
    assert logged_by(callback, run_of(9), 0, caplog) == []


def test_logging_takes_a_logger(caplog):
    assert logged_by(callbacks.Logging(logging.getLogger("its.own")), run_of(), 1, caplog)[0][0] == "its.own"


# --- Plot


def test_plot_draws_every_so_many_iterations_and_at_the_end(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(plotting, "training", lambda history, path: drawn.append((len(history), path)))
    path = tmp_path / "training.png"
    callback, run = callbacks.Plot(path, every=3), run_of()
    callback.on_start(run)
    follow(callback, run, 7)
    callback.on_end(run)
    assert drawn == [(n, str(path)) for n in (3, 6, 7)]
    callback.on_start(again := run_of())
    follow(callback, again, 3)
    callback.on_end(again)
    assert [n for n, _ in drawn[3:]] == [3]
    callback.on_start(empty := run_of())
    callback.on_end(empty)
    assert [n for n, _ in drawn[4:]] == [0]


def test_plot_replaces_the_picture_whole(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "training.svg"
    path.write_text("old")
    before = os.stat(path).st_ino
    callback, run = callbacks.Plot(path, every=2), run_of()
    callback.on_start(run)
    follow(callback, run, 1, validation_loss=0.3, validation_accuracy=0.8)
    assert path.read_text() == "old"
    with path.open() as viewer:
        follow(callback, run, 1, validation_loss=0.2, validation_accuracy=0.9)
        assert viewer.read() == "old"
    assert path.read_text().startswith("<?xml")
    assert os.stat(path).st_ino != before
    assert os.listdir(tmp_path) == ["training.svg"]


def test_plot_without_matplotlib_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"mlpkit\[plot\]"):
        callbacks.Plot(tmp_path / "training.png")


# --- arguments


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: callbacks.Logging(3), "logger must be a logging.Logger or the name of one; found 3"),
        (lambda: callbacks.Logging(every=0), "every must be an integer of at least 1; found 0"),
        (lambda: callbacks.Logging(every=1.5), "every must be an integer; found 1.5"),
        (lambda: callbacks.Logging(level="INFO"), "level must be an integer; found 'INFO'"),
        (lambda: callbacks.CSVHistory(3), "path: expected a str or path-like, found int"),
        (lambda: callbacks.JSONLinesHistory(""), "path: expected the name of a file, found ''"),
        (lambda: callbacks.Plot("training.xyz"), r"path: expected a name that ends in .*\.png.*; found 'training.xyz'"),
        (lambda: callbacks.Plot("training.png", every=True), "every must be an integer; found True"),
    ],
)
def test_arguments_are_checked(make, message):
    pytest.importorskip("matplotlib")
    with pytest.raises(InvalidArgumentError, match=message):
        make()


def test_callbacks_are_readable():
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    assert repr(callbacks.Progress()) == "Progress()"
    assert repr(callbacks.Logging(every=2)) == "Logging('mlpkit', every=2, level=20)"
    assert repr(callbacks.Plot("a.png")) == "Plot('a.png', every=10)"
