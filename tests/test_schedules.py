"""Learning-rate schedules: their values, what training makes of them, and how mistakes are named."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import reference
import reference_steps

import mlpkit
from mlpkit import SGD, Adam, Dense, Input, InvalidArgumentError
from mlpkit.schedules import (
    CosineSchedule,
    ExponentialSchedule,
    InverseScalingSchedule,
    StepSchedule,
    WarmUp,
    check_learning_rate,
    rates_at,
)

ALL = [
    StepSchedule(0.2, factor=0.5, every=3),
    StepSchedule(0.2),
    ExponentialSchedule(0.2, factor=0.7),
    ExponentialSchedule(0.2),
    CosineSchedule(0.2, epochs=7),
    CosineSchedule(0.2, epochs=7, final=0.05),
    InverseScalingSchedule(0.2, power=1.5),
    InverseScalingSchedule(0.2),
    WarmUp(0.2, epochs=3),
    WarmUp(CosineSchedule(0.2, epochs=7)),
    WarmUp(lambda epochs: 0.2 / (1 + epochs), epochs=0.5),
]


# Values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ALL)
def test_schedules_equal_the_twin(schedule):
    for epochs in np.linspace(0.0, 25.0, 251):
        expected = reference_steps.learning_rate(schedule, epochs)
        assert schedule(float(epochs)) == pytest.approx(expected, rel=1e-13, abs=1e-17)


@pytest.mark.parametrize("schedule", ALL)
def test_schedules_begin_at_the_first_rate_and_fall(schedule):
    rates = [schedule(epochs) for epochs in np.linspace(0.0, 30.0, 301).tolist()]
    assert all(isinstance(rate, float) for rate in rates)
    if isinstance(schedule, WarmUp):
        assert rates[0] == 0.0
        rates = rates[math.ceil(schedule.epochs * 10) :]
    else:
        assert rates[0] == 0.2
    assert all(later <= earlier for earlier, later in pairwise(rates))


def test_steps_fall_at_the_beginning_of_an_epoch():
    schedule = StepSchedule(1.0, factor=0.5, every=3)
    assert [schedule(t) for t in (0.0, 2.999, 3.0, 5.9, 6.0, 300.0)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.5**100]


def test_a_cosine_is_level_at_both_ends_and_stays_at_the_last():
    schedule = CosineSchedule(1.0, epochs=4, final=0.5)
    assert [schedule(t) for t in (0.0, 4.0, 4.1, 1e9)] == [1.0, 0.5, 0.5, 0.5]
    assert schedule(2.0) == pytest.approx(0.75, rel=1e-15)
    assert 1.0 - schedule(1e-3) < 1e-6
    assert schedule(4 - 1e-3) - 0.5 < 1e-6


def test_an_exponential_takes_an_epoch_for_its_factor():
    schedule = ExponentialSchedule(3.0, factor=0.5)
    assert schedule(7.25) / schedule(6.25) == pytest.approx(0.5, rel=1e-14)


def test_warming_up_is_a_straight_line_to_what_the_other_schedule_gives():
    inner = ExponentialSchedule(1.0, factor=0.5)
    schedule = WarmUp(inner, epochs=4)
    assert schedule(1.0) == inner(1.0) / 4
    assert schedule(4.0) == inner(4.0)
    assert schedule(9.0) == inner(9.0)
    assert WarmUp(WarmUp(1.0, epochs=2), epochs=2)(1.0) == 0.25


def test_rates_follow_the_steps():
    np.testing.assert_array_equal(rates_at(0.25, 17, 3, 5), [0.25] * 3)
    seen = []
    rates = rates_at(lambda epochs: seen.append(epochs) or 1.0 + epochs, 8, 4, steps_an_epoch=4)
    assert seen == [2.0, 2.25, 2.5, 2.75]
    np.testing.assert_array_equal(rates, [3.0, 3.25, 3.5, 3.75])
    # however they are sliced
    parts = np.concatenate([rates_at(ALL[4], first, 3, 7) for first in (0, 3, 6)])
    np.testing.assert_array_equal(parts, rates_at(ALL[4], 0, 9, 7))


# In training ------------------------------------------------------------------------------------


def data(m=23):
    rng = np.random.default_rng(3)
    return rng.uniform(-1.0, 1.0, (m, 4)), rng.uniform(-1.0, 1.0, (m, 2))


def network(dtype="float64"):
    return mlpkit.MLP([Input(4), Dense(5, "tanh"), Dense(2, "identity")], seed=0, weight_decay=0.01, dtype=dtype)


@pytest.mark.parametrize("schedule", ALL)
def test_training_follows_the_schedule(schedule):
    X, Y = data()
    for optimizer in (SGD(schedule, momentum=0.5, batch_size=5, max_epochs=9), Adam(schedule, batch_size=9)):
        net = network()
        twin = reference_steps.Training(net, X, Y, None, optimizer)
        net.fit(X, Y, optimizer)
        twin.run(optimizer.max_epochs)
        assert max(reference.layer_errors(twin.network, net.theta, twin.theta)) < 1e-12
        constant = network()
        constant.fit(X, Y, type(optimizer)(0.2, batch_size=optimizer.batch_size, max_epochs=optimizer.max_epochs))
        assert reference.relative_error(constant.theta, net.theta) > 1e-3


def test_a_rate_of_nothing_moves_nothing():
    net, (X, Y) = network(), data()
    before = net.theta.copy()
    result = net.fit(X, Y, Adam(lambda epochs: 0.0, max_epochs=3))
    np.testing.assert_array_equal(net.theta, before)
    expected = pytest.approx(sum(net.evaluate(X, Y).values()), rel=1e-14)
    assert [record.cost for record in result.history] == [expected] * 3


def test_equal_schedules_are_equal_optimisers():
    assert Adam(WarmUp(CosineSchedule(0.1, 5))) == Adam(WarmUp(CosineSchedule(0.1, epochs=5.0), epochs=1))
    assert Adam(CosineSchedule(0.1, 5)) != Adam(CosineSchedule(0.1, 6))
    assert repr(SGD(StepSchedule(1, every=2))) == (
        "SGD(learning_rate=StepSchedule(initial=1.0, factor=0.1, every=2.0))"
    )


# Mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepSchedule(0.0), r"initial must be a finite number in \(0, inf\]; found 0.0"),
        (lambda: StepSchedule(0.1, factor=0), "factor must be a finite number"),
        (lambda: StepSchedule(0.1, every=-1), "every must be a finite number"),
        (lambda: ExponentialSchedule(np.nan), "initial must be a finite number"),
        (lambda: ExponentialSchedule(0.1, factor="half"), "factor must be a number in .*; found 'half' of type str"),
        (lambda: CosineSchedule(0.1, epochs=0), "epochs must be a finite number"),
        (lambda: CosineSchedule(0.1, epochs=2, final=-0.1), r"final must be a finite number in \[0, inf\]; found -0.1"),
        (lambda: InverseScalingSchedule(0.1, power=-1), "power must be a finite number"),
        (lambda: InverseScalingSchedule(True), "initial must be a number"),
        (lambda: WarmUp(0.0), "learning_rate must be a finite number"),
        (lambda: WarmUp(CosineSchedule), "learning_rate must be a number"),
        (lambda: WarmUp(0.1, epochs=np.inf), "epochs must be a finite number"),
        (lambda: check_learning_rate([0.1]), r"learning_rate must be a number in .*; found \[0.1\] of type list"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    ("rate", "found"),
    [
        (-0.5, r"\[0, inf\]; found -0.5"),
        (math.nan, "found nan"),
        (math.inf, "found inf"),
        (None, "found None of type NoneType"),
        (np.array([0.1]), "of type ndarray"),
    ],
)
def test_a_schedule_that_gives_no_rate_is_named_with_its_epoch(rate, found):
    net, (X, Y) = network(), data()

    def tenth(epochs):
        return 0.1 if epochs < 2.2 else rate

    message = rf"learning_rate\(2.2\), a schedule: learning rate must be .*{found}"
    with pytest.raises(InvalidArgumentError, match=message):
        net.fit(X, Y, SGD(tenth, batch_size=5, max_epochs=4))
    # it is a user's mistake in mid-training: the network has the last good parameters
    assert np.isfinite(net.theta).all()
    assert (net.theta != network().theta).any()


def test_an_error_in_a_schedule_comes_through():
    net, (X, Y) = network(), data()

    def broken(epochs):
        return {0.0: 0.1}[epochs]

    with pytest.raises(KeyError, match=r"0\.2") as caught:
        net.fit(X, Y, SGD(broken, batch_size=5))
    assert caught.value.__notes__ == ["raised by learning_rate(0.2), a schedule"]
    assert np.isfinite(net.theta).all()
    with pytest.raises(KeyError, match=r"0\.2"):
        net.partial_fit(X, Y, SGD(broken, batch_size=5))


def test_a_rate_beyond_float32_is_a_divergence():
    net, (X, Y) = network("float32"), data()
    result = net.fit(X, Y, SGD(lambda epochs: 1e39, batch_size=5))
    assert result.reason.startswith("diverged: ")
    np.testing.assert_array_equal(net.theta, network("float32").theta)
