"""The history in files that grow by a line an iteration: CSV and JSON lines."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from runs import follow, put_on_record, run_of

from mlpkit import callbacks
from mlpkit.history import History, Iteration
from mlpkit.tables import read_table

KINDS = [callbacks.CSVHistory, callbacks.JSONLinesHistory]
QUANTITIES = list(History().to_dict())


def read(path):
    """Return the records in a history file as dicts of numbers, NaN where one is missing."""
    lines = path.read_text().splitlines()
    if path.suffix == ".csv":
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]
    records = [json.loads(text, parse_constant=pytest.fail) for text in lines]
    return [{name: math.nan if value is None else value for name, value in record.items()} for record in records]


def expected(history):
    return [{name: record[name] for name in record.names()} for record in history]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def path(kind, tmp_path):
    return tmp_path / ("history.csv" if kind is callbacks.CSVHistory else "history.jsonl")


@pytest.mark.parametrize("metrics", [{}, {"validation_loss": 0.1 / 3, "accuracy": 0.9}])
def test_each_iteration_is_in_the_file_at_once_and_exactly(kind, path, metrics):
    callback, run = kind(path), run_of()
    callback.on_start(run)
    assert read(path) == []
    for n in range(1, 4):
        follow(callback, run, 1, **metrics)
        assert path.read_text().endswith("\n")
        assert read(path) == expected(run.history)
        assert len(read(path)) == n
    before = path.read_bytes()
    callback.on_end(run)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_file_of_an_earlier_training_is_replaced(kind, path):
    path.write_text("what was here\n")
    callback, run = kind(path), run_of()
    callback.on_start(run)
    follow(callback, run, 1)
    assert read(path) == expected(run.history)
    callback.on_start(again := run_of())
    assert read(path) == []
    follow(callback, again, 2)
    assert read(path) == expected(again.history)


def test_a_training_that_goes_on_has_each_iteration_once(kind, path):
    """The killed one had got beyond its last checkpoint."""
    callback, run = kind(path), run_of()
    callback.on_start(run)
    follow(callback, run, 5, validation_loss=0.5)
    with path.open("a") as file:
        file.write("6,0.1")  # and was stopped in the middle of a line
    callback, run = kind(path), run_of(3, validation_loss=0.25)
    callback.on_start(run)
    assert read(path) == expected(run.history)
    follow(callback, run, 2, validation_loss=0.25)
    assert [record["iteration"] for record in read(path)] == [1, 2, 3, 4, 5]
    assert read(path) == expected(run.history)


def test_lines_are_added_and_the_file_is_not_written_anew(kind, path):
    callback, run = kind(path), run_of()
    callback.on_start(run)
    follow(callback, run, 1, validation_loss=1.0)
    inode = path.stat().st_ino
    with path.open() as follower:
        follower.read()
        follow(callback, run, 1, validation_loss=2.0)
        assert len(follower.read().splitlines()) == 1
    assert path.stat().st_ino == inode


def test_numbers_that_are_not_finite(kind, path):
    callback, run = kind(path), run_of()
    callback.on_start(run)
    follow(callback, run, 1, validation_r2=math.nan, validation_loss=math.inf)
    (record,) = read(path)
    assert math.isnan(record["validation_r2"])
    last = path.read_text().splitlines()[-1]
    if kind is callbacks.CSVHistory:
        assert last.endswith(",nan,inf")
    else:
        assert last.endswith('"validation_r2": null, "validation_loss": null}')


def test_numbers_of_numpy_are_written_as_numbers(kind, path):
    callback, run = kind(path), run_of()
    callback.on_start(run)
    run.history.append(Iteration(1, *np.array([0.5, 0.25, 0.25, 0.0, 0.1]), np.int64(3), 0.5, 0.5))
    callback.on_iteration(run)
    assert read(path) == expected(run.history)
    assert "3.0" not in path.read_text()


def test_a_metric_may_come_later(kind, path):
    callback, run = kind(path), run_of(2)
    callback.on_start(run)
    follow(callback, run, 1, accuracy=0.5)
    follow(callback, run, 1)
    records = read(path)
    assert [record["iteration"] for record in records] == [1, 2, 3, 4]
    np.testing.assert_equal(
        [record.get("accuracy", math.nan) for record in records], [math.nan, math.nan, 0.5, math.nan]
    )


def test_a_file_that_was_taken_away_comes_back_whole(kind, path):
    callback, run = kind(path), run_of()
    callback.on_start(run)
    follow(callback, run, 2)
    path.unlink()
    follow(callback, run, 1)
    assert read(path) == expected(run.history)


def test_the_file_stays_where_it_was_when_the_program_goes_elsewhere(kind, path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    callback, run = kind(path.name), run_of()
    callback.on_start(run)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    follow(callback, run, 1)
    assert read(path) == expected(run.history)
    assert repr(callback) == f"{kind.__name__}({path.name!r})"


def test_a_folder_that_is_not_there_is_said_before_training(kind, tmp_path):
    with pytest.raises(FileNotFoundError, match="folder to save into does not exist"):
        kind(tmp_path / "missing" / "history").on_start(run_of())


def test_a_full_disk_leaves_whole_lines(kind, path, monkeypatch):
    callback, run = kind(path), run_of()
    callback.on_start(run)
    follow(callback, run, 2)
    before = path.read_bytes()

    def half(file, content):
        file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlpkit.callbacks.files.write_all", half)
    put_on_record(run)
    with pytest.raises(OSError, match="No space"):
        callback.on_iteration(run)
    assert path.read_bytes() == before


def test_csv_is_a_table_that_other_programs_read(tmp_path):
    path = tmp_path / "history.csv"
    callback, run = callbacks.CSVHistory(path), run_of()
    callback.on_start(run)
    assert path.read_text() == ",".join(QUANTITIES) + "\n"
    follow(callback, run, 3, validation_loss=math.nan)
    table = read_table(path)
    np.testing.assert_array_equal(table[:, 1], [record.cost for record in run.history])
    assert np.isnan(table[:, -1]).all()
    frame = pytest.importorskip("pandas").read_csv(path).set_index("iteration")
    assert frame.equals(run.history.to_pandas())


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from test_history_files import *
callback, run = callbacks.{kind}({path!r}), run_of()
callback.on_start(run)
while True:
    follow(callback, run, 1, **{{"a_metric_with_a_long_name_" * 20: 1 / 3}})
"""


def test_a_killed_training_leaves_whole_lines(kind, path):
    """The last alone may be cut short, which its missing end tells: a kill can come between two pages of a write."""
    program = KILLED.format(tests=os.path.dirname(__file__), kind=kind.__name__, path=str(path))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > 100_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole, _, rest = path.read_text().rpartition("\n")
    path.write_text(whole + "\n")
    records = read(path)
    assert [record["iteration"] for record in records] == list(range(1, len(records) + 1))
    assert len(records) > 100
    callback, run = kind(path), run_of(len(records) + 1, **{name: 1 / 3 for name in records[0] if name[:2] == "a_"})
    assert records == expected(run.history)[:-1]
    callback.on_start(run)
    assert path.read_text().startswith(f"{whole}\n{rest}")
