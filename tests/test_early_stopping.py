"""Early stopping on runs made by hand: when it stops, what it restores, and that a checkpoint loses nothing."""

import math

import numpy as np
import pytest

from mlpkit import MLP, Dense, EarlyStopping, GradientDescent, Input
from mlpkit.errors import InvalidArgumentError
from mlpkit.history import Iteration
from mlpkit.run import Run


def new_run(dtype="float64"):
    return Run(MLP([Input(2), Dense(1, "identity")], dtype=dtype, seed=0), None, None)


def iterate(run, value, monitor="validation_loss"):
    """Put an iteration on record whose parameters are its number, and a third."""
    i = len(run.history) + 1
    run.net.theta = np.array([i, i + 1 / 3, -i], run.net.dtype)
    cost, metrics = (value, {}) if monitor == "cost" else (1.0, {monitor: value})
    record = Iteration(i, cost, 1.0, 0.0, 0.0, 0.1, i, 0.1 * i, 0.1, metrics=metrics)
    run.history.append(record)
    run.final = record


def train(stopping, values, run=None, monitor="validation_loss"):
    """Return the run, and the reason and the iteration at which it stopped, if it did."""
    run = run or new_run()
    stopping.on_start(run)
    reason = None
    for value in values:
        iterate(run, value, monitor)
        reason = stopping.on_iteration(run)
        if reason is not None:
            break
    stopping.on_end(run)
    return run, reason, len(run.history)


NAN = math.nan


@pytest.mark.parametrize(
    ("patience", "values", "stops", "best"),
    [
        (1, [3, 2, 1], None, 3),
        (1, [3, 2, 2], 3, 2),
        (2, [3, 2, 2, 2], 4, 2),
        (2, [3, 2, 2.5, 1, 1.5, 1.2], 6, 4),
        (3, [3, 2, 2.5, 1, 1.5, 1.2], None, 4),
        (2, [1, NAN, NAN], 3, 1),
        (2, [NAN, NAN], 2, None),
        (3, [NAN, 5, NAN, 4], None, 4),
        (2, [math.inf, 5, 4], None, 3),
        (2, [math.inf, math.inf], 2, None),
        (2, [1, -math.inf, -math.inf, NAN], 4, 2),
    ],
)
def test_it_stops_after_so_many_iterations_without_an_improvement(patience, values, stops, best):
    stopping = EarlyStopping(patience=patience)
    run, reason, stopped = train(stopping, values)
    plural = "" if patience == 1 else "s"
    expected = None if stops is None else f"validation_loss has not improved for {patience} iteration{plural}"
    assert reason == expected
    assert stopped == (stops or len(values))
    final = best or stopped
    assert run.final.iteration == final
    np.testing.assert_array_equal(run.net.theta, [final, final + 1 / 3, -final])
    assert stopping.best_iteration == (best or 0)
    assert stopping.best == (values[best - 1] if best else math.inf)


@pytest.mark.parametrize("sign", [1, -1])
def test_an_improvement_is_more_than_min_delta(sign):
    stopping = EarlyStopping("score", patience=3, min_delta=0.5, mode="min" if sign == 1 else "max")
    # 2.5 is no improvement, 2.25 is; from there 1.75 is none.
    values = [sign * value for value in (3.0, 2.5, 2.25, 1.75, 1.75, 2.0)]
    run, reason, stopped = train(stopping, values, monitor="score")
    assert reason == "score has not improved by more than 0.5 for 3 iterations"
    assert (stopped, run.final.iteration, stopping.best) == (6, 3, sign * 2.25)


@pytest.mark.parametrize(
    ("monitor", "mode", "grows"),
    [
        ("validation_loss", "auto", False),
        ("cost", "auto", False),
        ("mean_squared_error", "auto", False),
        ("accuracy", "auto", True),
        ("validation_accuracy", "auto", True),
        ("balanced_accuracy", "auto", True),
        ("r2", "auto", True),
        ("validation_r2", "auto", True),
        ("inaccuracy", "auto", False),
        ("validation_accuracy", "min", False),
        ("cost", "max", True),
    ],
)
def test_whether_more_is_better(monitor, mode, grows):
    for values, better in ([1, 2, 3, 4], grows), ([4, 3, 2, 1], not grows):
        _, reason, _ = train(EarlyStopping(monitor, patience=2, mode=mode), values, monitor=monitor)
        assert (reason is None) == better


def test_a_name_that_is_not_on_record_lists_those_that_are():
    stopping, run = EarlyStopping("validation_acuracy"), new_run()
    stopping.on_start(run)
    iterate(run, 0.5, "validation_accuracy")
    with pytest.raises(InvalidArgumentError, match=r"on record: iteration, cost.*, validation_accuracy; found 'valid"):
        stopping.on_iteration(run)


def test_the_latest_parameters_stay_where_they_are_wanted():
    run, _, _ = train(EarlyStopping(patience=2, restore_best=False), [1, 2, 3])
    assert run.final.iteration == 3
    assert run.net.theta[0] == 3


def test_nothing_is_restored_where_the_latest_is_the_best(monkeypatch):
    run = new_run()
    monkeypatch.setattr(run, "restore", lambda *what: pytest.fail("restored"))
    train(EarlyStopping(), [3, 2, 1], run)
    train(EarlyStopping(), [])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_best_parameters_come_back_to_the_bit(dtype):
    run, _, _ = train(EarlyStopping(patience=2), [1, 2, 3], new_run(dtype))
    np.testing.assert_array_equal(run.net.theta, np.array([1, 1 + 1 / 3, -1], dtype))


def test_a_second_training_starts_anew():
    stopping = EarlyStopping(patience=2)
    train(stopping, [1, 2, 3])
    run, reason, stopped = train(stopping, [9, 8, 7])
    assert (reason, stopped, run.final.iteration) == (None, 3, 3)
    run, reason, stopped = train(stopping, [])
    assert run.final is None


VALUES = [5, 3, NAN, 4, 2.5, 2.4, 2.6, 2.5, 2.45, 9]


@pytest.mark.parametrize("restored_first", [True, False])
@pytest.mark.parametrize("k", range(9))
def test_a_training_that_goes_on_is_one_that_was_never_interrupted(k, restored_first):
    whole, reason, stopped = train(EarlyStopping(patience=3), VALUES)
    assert (stopped, whole.final.iteration) == (9, 6)
    first = EarlyStopping(patience=3)
    run = new_run()
    first.on_start(run)
    for value in VALUES[:k]:
        iterate(run, value)
        first.on_iteration(run)
    state = {name: np.copy(v) if isinstance(v, np.ndarray) else v for name, v in first.state().items()}
    assert all(isinstance(v, (int, str)) or v.dtype == np.float64 for v in state.values())
    iterate(run, -1.0)  # what happens after the checkpoint is forgotten
    first.on_iteration(run)
    run = new_run()
    for value in VALUES[:k]:
        iterate(run, value)
    second = EarlyStopping(patience=3)
    if restored_first:
        second.restore_state(state)
    second.on_start(run)
    if not restored_first:
        second.restore_state(state)
    for value in VALUES[k:]:
        iterate(run, value)
        again = second.on_iteration(run)
        if again is not None:
            break
    second.on_end(run)
    assert (again, len(run.history), run.final.iteration) == (reason, stopped, 6)
    np.testing.assert_array_equal(run.net.theta, whole.net.theta)
    assert second.state().keys() == {"monitor", "best", "best_iteration", "waited", "theta"}


def test_a_state_shares_no_memory():
    stopping, run = EarlyStopping(), new_run()
    stopping.on_start(run)
    iterate(run, 1.0)
    stopping.on_iteration(run)
    state = stopping.state()
    state["theta"][:] = 7
    other = EarlyStopping()
    other.restore_state(mine := stopping.state())
    mine["theta"][:] = 8
    iterate(run, 2.0)
    for one in (stopping, other):
        one.on_end(run)
        assert run.net.theta[0] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"best": None}, "must have 'best'"),
        ({"waited": None}, "must have 'waited'"),
        ({"monitor": "cost"}, "of its monitor, 'validation_loss'; found 'cost'"),
        ({"waited": -1}, "waited must be an integer of at least 0"),
        ({"best_iteration": 1.5}, "best_iteration must be an integer"),
        ({"best": np.zeros(2)}, "best must be one number"),
        ({"best": np.array(NAN)}, "best must be one number, not NaN"),
        ({"theta": None}, "restore_best must be False"),
        ({"theta": np.array([1.0, NAN, 3.0])}, "theta must be finite"),
    ],
)
def test_a_state_is_checked(change, message):
    stopping = EarlyStopping()
    train(stopping, [1.0])
    state = {name: value for name, value in (stopping.state() | change).items() if value is not None}
    with pytest.raises(InvalidArgumentError, match=message):
        EarlyStopping().restore_state(state)


def test_a_history_without_the_best_iteration_is_an_error():
    stopping = EarlyStopping()
    train(stopping, [3.0, 2.0])
    other, run = EarlyStopping(), new_run()
    iterate(run, 3.0)
    other.restore_state(stopping.state())
    other.on_start(run)
    with pytest.raises(InvalidArgumentError, match="must have the best iteration, 2"):
        other.on_end(run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"monitor": ""}, "monitor must be the name of a quantity"),
        ({"monitor": 3}, "monitor must be the name of a quantity.*found 3"),
        ({"patience": 0}, "patience must be an integer of at least 1; found 0"),
        ({"patience": 2.0}, "patience must be an integer"),
        ({"min_delta": -1}, r"min_delta must be a finite number in \[0, inf\]; found -1"),
        ({"min_delta": NAN}, "min_delta must be a finite number"),
        ({"mode": "less"}, "mode must be one of 'auto', 'min', 'max'; found 'less'"),
        ({"restore_best": 1}, "restore_best must be True or False; found 1"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        EarlyStopping(**arguments)


def test_it_is_readable():
    assert repr(EarlyStopping("cost", 3)) == (
        "EarlyStopping('cost', patience=3, min_delta=0.0, mode='auto', restore_best=True)"
    )


def test_fit_stops_early_and_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path):
    rng = np.random.default_rng(0)
    X, held = rng.normal(size=(30, 2)), rng.normal(size=(20, 2))
    Y, truth = X[:, :1] + rng.normal(size=(30, 1)), held[:, :1]

    def fit(max_iter, **more):
        net = MLP([Input(2), Dense(1, "identity")], seed=0)
        stopping = EarlyStopping(patience=4)
        result = net.fit(
            X, Y, optimizer=GradientDescent(0.5, max_iter), validation=(held, truth), early_stopping=stopping, **more
        )
        return net.theta, result

    theta, result = fit(100)
    assert result.reason == "validation_loss has not improved for 4 iterations"
    assert result.iteration == len(result.history) - 4
    assert result.history[result.iteration - 1] == min(result.history, key=lambda record: record["validation_loss"])
    path = tmp_path / "run.h5"
    for k in (1, result.iteration, result.iteration + 2):
        fit(k, checkpoint=path, every=1)
        again, rest = fit(100, resume=path)
        np.testing.assert_array_equal(again, theta)
        assert (rest.reason, rest.iteration, rest.n_iterations) == (
            result.reason,
            result.iteration,
            len(result.history),
        )
