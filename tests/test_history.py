"""What training puts on record: records, histories as data, and the result in words."""

import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpkit.errors import InvalidArgumentError, MissingExtraError
from mlpkit.history import FitResult, History, Iteration, in_words

NUMBERS = [
    "iteration",
    "cost",
    "data",
    "weight_decay",
    "sparsity",
    "gradient_norm",
    "n_evaluations",
    "seconds",
    "iteration_seconds",
    "n_hessian_products",
]


def record_of(i, **metrics):
    return Iteration(i, 1 / i, 0.7 / i, 0.2 / i, 0.1 / i, 0.1 / 3, 2 * i, 0.3 * i, 0.3, i - 1, metrics)


def test_a_record_looks_up_numbers_and_metrics_alike():
    record = record_of(3, validation_loss=0.25, accuracy=math.nan)
    assert record.names() == [*NUMBERS, "validation_loss", "accuracy"]
    assert [record[name] for name in NUMBERS] == [getattr(record, name) for name in NUMBERS]
    assert record["validation_loss"] == 0.25
    assert math.isnan(record["accuracy"])


@pytest.mark.parametrize("name", ["metrics", "names", "loss", "validation_accuracy", "__class__"])
def test_a_record_has_nothing_else(name):
    with pytest.raises(KeyError, match=name):
        record_of(1, validation_loss=0.5)[name]


def test_records_share_no_metrics():
    record_of(1).metrics["x"] = 1.0
    assert Iteration(1, 0.0, 0.0, 0.0, 0.0, 0.0, 1, 0.0, 0.0).metrics == {}


def test_a_history_becomes_a_dict_that_json_takes():
    table = History([record_of(1, accuracy=0.5), record_of(2, accuracy=0.75)]).to_dict()
    assert list(table) == [*NUMBERS, "accuracy"]
    assert table["iteration"] == [1, 2]
    assert table["accuracy"] == [0.5, 0.75]
    assert json.loads(json.dumps(table)) == table


def test_an_empty_history_has_every_column():
    assert History().to_dict() == {name: [] for name in NUMBERS}
    assert list(History().to_columns()) == NUMBERS
    assert History.from_columns(History().to_columns()) == History()


def test_what_is_not_on_record_is_none_or_nan():
    history = History([record_of(1), record_of(2, a=0.5), record_of(3, b=2.0)])
    table, columns = history.to_dict(), history.to_columns()
    assert (table["a"], table["b"]) == ([None, 0.5, None], [None, None, 2.0])
    np.testing.assert_array_equal(columns["a"], [np.nan, 0.5, np.nan])


values = st.floats(allow_nan=False)
metric_names = st.sampled_from([(), ("validation_loss",), ("r2", "validation_loss")])


@given(st.data(), st.integers(1, 5), metric_names)
def test_columns_give_the_history_back_to_the_bit(data, n, names):
    history = History(
        Iteration(
            i,
            *(data.draw(values) for _ in range(5)),
            data.draw(st.integers(0, 2**53)),
            data.draw(values),
            data.draw(values),
            data.draw(st.integers(0, 2**53)),
            {name: data.draw(values) for name in names},
        )
        for i in range(1, n + 1)
    )
    columns = history.to_columns()
    assert all(column.dtype == np.float64 and column.shape == (n,) for column in columns.values())
    again = History.from_columns(columns)
    assert again == history
    assert type(again) is History
    assert [type(again[0][name]) for name in NUMBERS] == [type(history[0][name]) for name in NUMBERS]
    assert repr(again) == repr(history)  # the sign of zero too


def test_nan_survives_in_columns():
    again = History.from_columns(History([record_of(1, a=math.nan), record_of(2, a=1.0)]).to_columns())
    assert math.isnan(again[0]["a"])
    assert again[1]["a"] == 1.0


@pytest.mark.parametrize("change", ["missing", "longer", "matrix"])
def test_columns_that_make_no_history_are_refused(change):
    columns = History([record_of(1), record_of(2)]).to_columns()
    if change == "missing":
        del columns["seconds"]
    else:
        columns["seconds"] = np.zeros(3 if change == "longer" else (2, 1))
    with pytest.raises(InvalidArgumentError, match="history must have columns of one length named iteration, cost"):
        History.from_columns(columns)


def test_a_history_becomes_a_data_frame():
    pandas = pytest.importorskip("pandas")
    history = History([record_of(1, accuracy=0.5), record_of(2), record_of(3, accuracy=0.75)])
    frame = history.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.index.name == "iteration"
    assert frame.index.tolist() == [1, 2, 3]
    assert frame.columns.tolist() == [*NUMBERS[1:], "accuracy"]
    assert frame["cost"].tolist() == [record.cost for record in history]
    assert frame["accuracy"].isna().tolist() == [False, True, False]
    assert frame["accuracy"].dtype == np.float64
    assert frame["n_evaluations"].dtype == np.int64


def test_an_empty_history_becomes_an_empty_data_frame():
    pytest.importorskip("pandas")
    frame = History().to_pandas()
    assert len(frame) == 0
    assert frame.columns.tolist() == NUMBERS[1:]


def test_without_pandas_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"mlpkit\[pandas\]"):
        History().to_pandas()


def result_of(**changes):
    terms = {"data": 0.4, "weight_decay": 0.1, "sparsity": 0.0}
    return FitResult(cost=0.5, terms=terms, n_iterations=7, n_evaluations=9, **changes)


def test_a_result_is_readable():
    result = result_of(reason="max_iter reached", seconds=1.25, history=History())
    assert repr(result) == (
        "FitResult(cost=0.5, n_iterations=7, n_evaluations=9, seconds=1.25, reason='max_iter reached')"
    )
    assert str(result) == (
        "max_iter reached\nJ = 0.5 (data 0.4 + weight decay 0.1 + sparsity 0)\n7 iterations, 9 evaluations, 1.25 s"
    )


@pytest.mark.parametrize(("iteration", "shown"), [(0, False), (7, False), (3, True)])
def test_a_result_says_which_iteration_was_restored(iteration, shown):
    text = str(result_of(reason="stopped", seconds=1.0, history=History(), iteration=iteration, n_hessian_products=4))
    assert ("7 iterations, of which 3 was the best, 9" in text) == shown
    assert "9 evaluations, 4 Hessian products, 1.00 s" in text


def test_terms_in_words():
    assert in_words({"data": 0.123456, "weight_decay": 1e-9}) == "data 0.1235 + weight decay 1e-09"
