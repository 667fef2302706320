"""What fit does around an optimiser: budgets, callbacks, early stopping, results, threads."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from trainings import FULL_BATCH, OPTIMIZERS, Total, data, fingerprint, network

import mlpkit
from mlpkit import (
    LBFGS,
    SGD,
    Adam,
    Callback,
    EarlyStopping,
    GradientDescent,
    InvalidArgumentError,
    NewtonCG,
    Objective,
    TrustNCG,
    pace,
)
from mlpkit.history import History

X, Y = data()
BOTH = pytest.mark.parametrize("name", ["lbfgs", "adam"])


class Told(Callback):
    """Keeps what it is told, and raises or answers where it is asked to."""

    def __init__(self, raises=None, answers=None, at=3):
        self.raises, self.answers, self.at, self.heard = raises, answers, at, []

    def hear(self, run, what):
        self.heard.append((what, len(run.history)))
        now = what != "on_iteration" or len(run.history) == self.at
        if self.raises == what and now:
            raise ZeroDivisionError("as asked")
        return self.answers if self.raises == f"answers {what}" and now else None

    def on_start(self, run):
        return self.hear(run, "on_start")

    def on_iteration(self, run):
        return self.hear(run, "on_iteration")

    def on_end(self, run):
        return self.hear(run, "on_end")

    def __repr__(self):
        return "Told()"


# ---------------------------------------------------------------------------------------------------- budgets


@BOTH
@pytest.mark.parametrize("seconds", [0.0, 10.0])
def test_no_more_evaluations_than_allowed(name, seconds, monkeypatch):
    """However many steps are taken at once."""
    monkeypatch.setattr(pace, "_SLICE_SECONDS", seconds)
    nets = []
    for budget in (1, 2, 7, 30):
        nets.append(network())
        result = nets[-1].fit(X, Y, OPTIMIZERS[name], max_evaluations=budget)
        assert (result.n_evaluations, result.reason) == (budget, "max_evaluations reached")
        assert np.isfinite(result.cost)
    enough = network().fit(X, Y, OPTIMIZERS[name], max_evaluations=10_000)
    assert enough.reason == ("max_iter reached" if name == "lbfgs" else "max_epochs reached")


@BOTH
def test_no_more_time_than_allowed(name):
    optimizer = replace(OPTIMIZERS[name], **{"max_iter" if name == "lbfgs" else "max_epochs": 10**9})
    many = np.tile(X, (50, 1)), np.tile(Y, (50, 1))
    start = time.perf_counter()
    result = network().fit(*many, optimizer, max_seconds=0.2)
    took = time.perf_counter() - start
    if name == "adam":  # the other may have converged
        assert result.reason == "max_seconds reached"
    assert took < 5
    assert result.seconds >= 0.2 or name == "lbfgs"
    assert result.history[-1].seconds <= result.seconds


@BOTH
@pytest.mark.parametrize("option", ["max_seconds", "max_evaluations"])
def test_budgets_are_checked(name, option):
    for bad in (0, -1, float("nan"), "1", True):
        with pytest.raises(InvalidArgumentError, match=option):
            network().fit(X, Y, OPTIMIZERS[name], **{option: bad})


def test_no_time_leaves_the_parameters_and_can_be_saved(tmp_path):
    for name in ("lbfgs", "adam"):
        net, before = network(), network().theta
        result = net.fit(X, Y, OPTIMIZERS[name], max_seconds=1e-9, callbacks=[told := Told()])
        assert (result.reason, result.n_iterations, result.n_evaluations) == ("max_seconds reached", 0, 0)
        assert np.isnan(result.cost)
        assert told.heard == [("on_start", 0), ("on_end", 0)]
        np.testing.assert_array_equal(net.theta, before)
        net.save(tmp_path / "net.h5")
        assert mlpkit.load(tmp_path / "net.h5").provenance["reason"] == "max_seconds reached"


# ---------------------------------------------------------------------------------------------------- callbacks


@BOTH
def test_callbacks_are_told_in_order(name):
    order, first, last = [], Told(), Told()
    callbacks = [first, lambda run: order.append((len(first.heard), len(last.heard))), last]
    result = network().fit(X, Y, OPTIMIZERS[name], callbacks=callbacks)
    expected = [("on_start", 0), *(("on_iteration", k) for k in range(1, 31)), ("on_end", 30)]
    assert first.heard == last.heard == expected
    assert order == [(k + 1, k) for k in range(1, 31)]
    assert result.n_iterations == 30


@BOTH
def test_what_they_see(name):
    net = network()
    before, optimizer, seen = net.theta.copy(), OPTIMIZERS[name], []

    def look(run):
        assert run.net is not net
        assert (net.theta == before).all()
        assert run.optimizer is optimizer
        assert run.max_iter == 30
        assert run.final is run.history[-1]
        assert isinstance(run.history, History)
        seen.append(run.net.theta.copy())

    result = net.fit(X, Y, optimizer, callbacks=[look])
    np.testing.assert_array_equal(seen[-1], net.theta)
    if name == "lbfgs":
        for theta, record in zip(seen, result.history, strict=True):
            assert Objective(net, X, Y).value_and_gradient(theta)[0] == record.cost


@BOTH
def test_a_reason_to_stop_ends_training(name):
    others = Told()
    callbacks = [lambda run: "low enough" if len(run.history) == 4 else None, Told("answers on_iteration", "too", 4)]
    result = network().fit(X, Y, OPTIMIZERS[name], callbacks=[*callbacks, others])
    assert (result.reason, result.n_iterations) == ("low enough", 4)
    assert others.heard[-2:] == [("on_iteration", 4), ("on_end", 4)]


@BOTH
@pytest.mark.parametrize(("raises", "n"), [("on_start", 0), ("on_iteration", 3), ("on_end", 30)])
def test_one_that_raises_ends_training(raises, n, name):
    """The error says who and when, others are told, and the network has the parameters of the latest iteration."""
    net, other, before, after = network(), network(), Told(), Told()
    with pytest.raises(ZeroDivisionError, match="as asked") as caught:
        net.fit(X, Y, OPTIMIZERS[name], callbacks=[before, Told(raises), after])
    assert caught.value.__notes__ == [f"raised by {raises} of the callback Told(), at iteration {n}"]
    assert before.heard[-1] == after.heard[-1] == ("on_end", n)
    assert [what for what, _ in after.heard].count("on_iteration") == n
    if n:
        other.fit(X, Y, replace(OPTIMIZERS[name], **{"max_iter" if name == "lbfgs" else "max_epochs": n}))
    np.testing.assert_array_equal(net.theta, other.theta)
    assert net.provenance is None
    net.fit(X, Y, OPTIMIZERS[name])  # and all is well


def test_a_second_error_is_a_note_to_the_first():
    with pytest.raises(ZeroDivisionError) as caught:
        network().fit(X, Y, callbacks=[Told("on_iteration"), Told("answers on_end", 3)])
    first, second = caught.value.__notes__
    assert first == "raised by on_iteration of the callback Told(), at iteration 3"
    assert second == "and then, at the end of training: InvalidArgumentError: on_end must return None; found 3"


@BOTH
@pytest.mark.parametrize(
    ("raises", "answer", "match"),
    [
        ("answers on_iteration", True, "on_iteration must return None or a reason to stop, in words; found True"),
        ("answers on_iteration", 3.0, "found 3.0"),
        ("answers on_iteration", "", "found ''"),
        ("answers on_start", "no", "on_start must return None; found 'no'"),
        ("answers on_end", "no", "on_end must return None; found 'no'"),
    ],
)
def test_nonsense_is_an_error(raises, answer, match, name):
    with pytest.raises(InvalidArgumentError, match=match) as caught:
        network().fit(X, Y, OPTIMIZERS[name], callbacks=[Told(raises, answer)])
    assert "of the callback Told()" in caught.value.__notes__[0]


@pytest.mark.parametrize("callbacks", [Told(), lambda run: None, [Told], ["progress"], [None], 3])
def test_what_is_no_callback_is_refused(callbacks):
    with pytest.raises(InvalidArgumentError, match="callbacks"):
        network().fit(X, Y, callbacks=callbacks)


@BOTH
def test_one_may_give_back_earlier_parameters(name):
    class Second(Callback):
        def on_iteration(self, run):
            if len(run.history) == 2:
                self.theta = run.net.theta.copy()

        def on_end(self, run):
            run.restore(self.theta, run.history[1])

    net, other = network(), network()
    result = net.fit(X, Y, OPTIMIZERS[name], callbacks=[Second()])
    assert (result.iteration, result.n_iterations, result.cost) == (2, 30, result.history[1].cost)
    assert result.terms["data"] == result.history[1].data
    assert net.provenance["terms"] == result.terms
    other.fit(X, Y, replace(OPTIMIZERS[name], **{"max_iter" if name == "lbfgs" else "max_epochs": 2}))
    np.testing.assert_array_equal(net.theta, other.theta)
    assert "of which 2 was the best" in str(result)


def test_a_checkpoint_that_cannot_be_written_is_said_and_callbacks_hear_the_end(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mlpkit.resuming, "write_checkpoint", full)
    for every, n in ((3, 3), (100, 30)):
        net, other, told = network(), network(), Told()
        with pytest.raises(OSError, match="No space left") as caught:
            net.fit(X, Y, OPTIMIZERS["sgd"], callbacks=[told], checkpoint=tmp_path / "run.h5", every=every)
        assert caught.value.__notes__[0] == f"raised while a checkpoint was made, at iteration {n}"
        assert told.heard[-1] == ("on_end", n)
        other.fit(X, Y, replace(OPTIMIZERS["sgd"], max_epochs=n))
        np.testing.assert_array_equal(net.theta, other.theta)


# ------------------------------------------------------------------------------------------------ early stopping


@pytest.mark.parametrize("name", ["lbfgs", "sgd", "adam"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_early_stopping_restores_the_best(name, dtype):
    """Validation data that are nothing like the training data: what was best for them was early."""
    rng = np.random.default_rng(5)
    validation = (rng.uniform(0, 1, (20, 5)), rng.uniform(0, 1, (20, 2)))
    net, other, stop = network(dtype), network(dtype), EarlyStopping(patience=6)
    option = "max_iter" if name == "lbfgs" else "max_epochs"
    optimizer = replace(OPTIMIZERS[name], **{option: 500})
    result = net.fit(X, Y, optimizer, validation=validation, early_stopping=stop)
    losses = [record["validation_loss"] for record in result.history]
    best = int(np.argmin(losses)) + 1
    assert result.reason == "validation_loss has not improved for 6 iterations"
    assert (result.iteration, stop.best_iteration, stop.best) == (best, best, min(losses))
    assert result.n_iterations == best + 6
    assert result.cost == result.history[best - 1].cost
    other.fit(X, Y, replace(optimizer, **{option: best}))
    np.testing.assert_array_equal(net.theta, other.theta)
    if name == "lbfgs":
        assert result.terms == Objective(net, X, Y).terms(net.theta)


def test_early_stopping_among_callbacks_and_what_is_none():
    result = network().fit(X, Y, callbacks=[EarlyStopping("cost", patience=1, min_delta=1.0)])
    assert result.reason.startswith("cost has not improved by more than 1")
    with pytest.raises(InvalidArgumentError, match="early_stopping must be an EarlyStopping or None; found Told"):
        network().fit(X, Y, early_stopping=Told())
    with pytest.raises(InvalidArgumentError, match=r"monitor must be a quantity on record: .*cost.*'validation_loss'"):
        network().fit(X, Y, early_stopping=EarlyStopping())


# ----------------------------------------------------------------------------------- what does not go together


@pytest.mark.parametrize(
    ("optimizer", "options", "match"),
    [
        (Adam(), {"keep_activations": True}, "keep_activations must be None for a stochastic optimiser"),
        (Adam(), {"keep_activations": False}, "keep_activations must be None for a stochastic optimiser"),
        (LBFGS(), {"every": 5}, "every must be None where there is no checkpoint; found 5"),
        (Adam(), {"every": 5}, "every must be None where there is no checkpoint; found 5"),
        (LBFGS(), {"progress": 1}, "progress"),
        (LBFGS(), {"keep_activations": 1}, "keep_activations"),
        (Adam, {}, "optimizer must be one such as"),
        ("adam", {}, "optimizer must be one such as"),
    ],
)
def test_options_that_do_not_go_together_are_refused(optimizer, options, match):
    net = network()
    before = net.theta.copy()
    with pytest.raises(InvalidArgumentError, match=match):
        net.fit(X, Y, optimizer, **options)
    np.testing.assert_array_equal(net.theta, before)


@pytest.mark.parametrize(
    "optimizer", [None, LBFGS(), GradientDescent(0.1, 5), NewtonCG(max_iter=2), TrustNCG(max_iter=2)]
)
def test_dropout_needs_a_stochastic_optimiser(optimizer):
    with pytest.raises(InvalidArgumentError, match=r"stochastic one, such as Adam\(\), .* dropout \(layer 2\)"):
        network(everything=True).fit(X, Y, optimizer)


def test_partial_fit_needs_a_stochastic_optimiser():
    with pytest.raises(InvalidArgumentError, match=r"optimizer must be a stochastic one"):
        network().partial_fit(X, Y, LBFGS())


# ------------------------------------------------------------------------------------------------------ results


@BOTH
def test_the_theta_is_the_live_one(name):
    net = network()
    theta, W, before = net.theta, net.weights[0], net.theta.copy()
    net.fit(X, Y, OPTIMIZERS[name])
    assert net.theta is theta
    assert (theta != before).any()
    assert np.shares_memory(W, net.theta)


@BOTH
def test_the_result_and_its_history(name):
    net = network()
    result = net.fit(X, Y, OPTIMIZERS[name], validation=0.2, metrics=["r2"])
    table = result.history.to_dict()
    assert list(table)[-2:] == ["validation_loss", "validation_r2"]
    assert all(len(values) == 30 for values in table.values())
    assert json.loads(json.dumps(table)) == table
    assert result.cost == table["cost"][-1] == pytest.approx(sum(result.terms.values()))
    assert result.n_evaluations == table["n_evaluations"][-1] == (result.n_evaluations if name == "lbfgs" else 90)
    assert (result.n_iterations, result.iteration) == (30, 30)
    assert np.allclose(np.cumsum(table["iteration_seconds"]), table["seconds"])
    assert table["seconds"][-1] <= result.seconds
    text = str(result)
    assert text.startswith(f"{result.reason}\nJ = ")
    assert "30 iterations, " in text
    assert f"reason='{result.reason}'" in repr(result)


@BOTH
def test_provenance(name, tmp_path):
    net = network()
    result = net.fit(X, Y, OPTIMIZERS[name], validation=0.25)
    record = net.provenance
    assert record["optimizer"] == repr(OPTIMIZERS[name])
    assert (record["iterations"], record["evaluations"]) == (30, result.n_evaluations)
    assert (record["reason"], record["terms"], record["seed"]) == (result.reason, result.terms, 0)
    assert record["examples"] == 45
    net.save(tmp_path / "net.h5")
    assert mlpkit.load(tmp_path / "net.h5").provenance == record


def test_an_epochs_record_is_the_mean_of_its_batches():
    """J of each batch before its step, which in the case of one batch is that of the last parameters."""
    seen = []
    net = network()
    optimizer = SGD(0.1, batch_size=60, max_epochs=4, shuffle=False)
    result = net.fit(X, Y, optimizer, callbacks=[lambda run: seen.append(run.net.theta.copy())])
    for record, theta, after in zip(result.history, [network().theta, *seen], seen, strict=False):
        terms = Objective(net, X, Y).terms(theta)
        assert record.data == pytest.approx(terms["data"], rel=1e-12)
        assert record.sparsity == pytest.approx(terms["sparsity"], rel=1e-12)
        assert record.weight_decay == pytest.approx(Objective(net, X, Y).terms(after)["weight_decay"], rel=1e-12)


def test_the_history_does_not_depend_on_how_many_steps_are_taken_at_once(monkeypatch):
    found = set()
    for seconds in (0.0, 1e-4, 10.0):
        monkeypatch.setattr(pace, "_SLICE_SECONDS", seconds)
        net = network(everything=True)
        result = net.fit(np.tile(X, (5, 1)), np.tile(Y, (5, 1)), Adam(batch_size=1, max_epochs=2))
        found.add(fingerprint(net, result))
    assert len(found) == 1


def test_a_second_fit_starts_where_the_first_ended():
    net, other = network(), network()
    for _ in range(2):
        net.fit(X, Y, GradientDescent(0.5, 5))
    other.fit(X, Y, GradientDescent(0.5, 10))
    np.testing.assert_array_equal(net.theta, other.theta)
    first = net.fit(X, Y, Adam(max_epochs=3))
    assert net.fit(X, Y, Adam(max_epochs=3)).history[0].cost < first.history[0].cost
    assert net.provenance["iterations"] == 3


# ------------------------------------------------------------------------------------------------------ threads


@pytest.fixture
def threads():
    before = mlpkit.get_num_threads()
    yield mlpkit.set_num_threads
    mlpkit.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", [*FULL_BATCH, "newton", "trust"])
def test_training_is_the_same_to_the_bit_on_any_number_of_threads(name, dtype, threads):
    """With validation, metrics and early stopping, on data enough for many pieces."""
    rng = np.random.default_rng(0)
    many = rng.uniform(0.1, 0.9, (1500, 5)).astype(dtype), rng.uniform(0.1, 0.9, (1500, 2)).astype(dtype)
    others = {"newton": NewtonCG(max_iter=5), "trust": TrustNCG(max_iter=5)}
    optimizer = others[name] if name in others else replace(OPTIMIZERS[name], max_iter=12)
    found = set()
    for n in (1, 2, 4):
        threads(n)
        net = network(dtype)
        stop = EarlyStopping("validation_loss", patience=30)
        arguments = {"validation": 0.3, "metrics": ["r2", "mean_absolute_error"], "callbacks": [Total()]}
        result = net.fit(*many, optimizer, early_stopping=stop, **arguments)
        assert result.n_iterations > 3
        found.add(fingerprint(net, result))
    assert len(found) == 1
