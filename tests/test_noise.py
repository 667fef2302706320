"""Noise on inputs: what each kind does, when it is applied, and that targets stay clean."""

from __future__ import annotations

import json

import numpy as np
import pytest

import mlpkit
from mlpkit import Dense, GaussianNoise, Input, InvalidArgumentError, MaskingNoise, SaltAndPepperNoise

KINDS = [MaskingNoise(0.3), GaussianNoise(0.2), SaltAndPepperNoise(0.4, -1.0, 2.0)]


def network(noise, seed=0):
    return mlpkit.MLP([Input(4, noise), Dense(3, "tanh"), Dense(4, "identity")], seed=seed)


@pytest.fixture
def X():
    return np.random.default_rng(1).uniform(0.2, 0.8, (2500, 4))


@pytest.mark.parametrize("noise", KINDS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_noise_gives_a_new_array_that_depends_on_the_generator_alone(noise, dtype, X):
    X = X.astype(dtype)
    clean = X.copy()
    one, two, three = (noise.apply(X, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(X, clean)
    assert one.dtype == X.dtype
    np.testing.assert_array_equal(one, two)
    assert (one != three).any()


def test_masking_sets_a_fraction_to_zero(X):
    noisy = MaskingNoise(0.3).apply(X, np.random.default_rng(0))
    hit = noisy == 0
    assert hit.mean() == pytest.approx(0.3, abs=0.02)
    np.testing.assert_array_equal(noisy[~hit], X[~hit])


def test_gaussian_noise_has_its_scale(X):
    added = GaussianNoise(0.2).apply(X, np.random.default_rng(0)) - X
    assert added.mean() == pytest.approx(0.0, abs=0.01)
    assert added.std() == pytest.approx(0.2, rel=0.03)


def test_salt_and_pepper_replace_by_both_ends(X):
    noisy = SaltAndPepperNoise(0.4, -1.0, 2.0).apply(X, np.random.default_rng(0))
    low, high = noisy == -1, noisy == 2
    assert low.mean() == pytest.approx(0.2, abs=0.02)
    assert high.mean() == pytest.approx(0.2, abs=0.02)
    np.testing.assert_array_equal(noisy[~(low | high)], X[~(low | high)])


@pytest.mark.parametrize("noise", KINDS)
def test_fit_corrupts_the_inputs_and_not_the_targets(noise, X):
    net, plain = network(noise), network(None)
    np.testing.assert_array_equal(net.theta, plain.theta)
    generator = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(1,)))
    noisy = noise.apply(X, generator)
    optimizer = mlpkit.LBFGS(max_iter=5)
    result, expected = net.fit(X, X, optimizer), plain.fit(noisy, X, optimizer)
    assert result.cost == expected.cost
    np.testing.assert_array_equal(net.theta, plain.theta)


def test_only_fit_adds_noise(X):
    net, plain = network(MaskingNoise(0.5)), network(None)
    np.testing.assert_array_equal(net.predict(X), plain.predict(X))
    np.testing.assert_array_equal(net.activations(X)[0], plain.activations(X)[0])
    assert net.evaluate(X, X) == plain.evaluate(X, X)
    J, J2 = (mlpkit.Objective(n, X, X).value_and_gradient(n.theta)[0] for n in (net, plain))
    assert J == J2
    assert mlpkit.check_gradient(net, X[:20], X[:20]).ok


def test_a_seed_makes_training_repeatable(X):
    costs = [network(MaskingNoise(0.5), seed).fit(X, X, mlpkit.LBFGS(max_iter=3)).cost for seed in (1, 1, 2)]
    assert costs[0] == costs[1] != costs[2]


def test_noise_meets_checked_data(X):
    X[3, 1] = np.nan
    with pytest.raises(InvalidArgumentError, match="X must be finite in float64; found nan at row 3 column 1"):
        network(MaskingNoise(1.0)).fit(X, np.zeros_like(X))


@pytest.mark.parametrize("noise", [None, *KINDS])
def test_config_and_representation(noise):
    net = network(noise)
    config = json.loads(json.dumps(net.config()))
    again = mlpkit.MLP.from_config(config)
    assert again.layers[0] == net.layers[0]
    assert again.config() == config
    assert repr(again) == repr(net)
    assert ("noise" in config["layers"][0]) == (noise is not None)


def test_the_representation_reads_as_it_is_written():
    assert repr(Input(64)) == "Input(64)"
    assert repr(Input(64, MaskingNoise(0.3))) == "Input(64, noise=MaskingNoise(fraction=0.3))"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskingNoise(1.5), r"fraction must be a finite number in \[0, 1\]; found 1.5"),
        (lambda: GaussianNoise(-1), "scale must be a finite number"),
        (lambda: SaltAndPepperNoise(0.5, 1.0, 1.0), "low must be less than high; found low=1.0, high=1.0"),
        (lambda: SaltAndPepperNoise(0.5, np.nan), "low must be a finite number"),
        (lambda: Input(3, noise=0.3), "noise must be a MaskingNoise, GaussianNoise, .* or None; found 0.3"),
    ],
)
def test_bad_noise_is_named(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "Dropout", "fraction": 0.5}, "noise type must be one of 'MaskingNoise'"),
        ({"type": "MaskingNoise", "scale": 0.5}, r"a MaskingNoise cannot have the entries \['scale'\]"),
        (None, "noise must be described by its type and numbers; found None"),
    ],
)
def test_unknown_noise_in_a_config_is_refused(entry, message):
    config = network(None).config()
    config["layers"][0]["noise"] = entry
    with pytest.raises(InvalidArgumentError, match=message):
        mlpkit.MLP.from_config(config)
