"""Mini-batch steps against their twin in plain NumPy, and what a batch's gradient is."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import reference
import reference_steps
from dropping import drop
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import Case, cases, user_penalty

import mlpkit
from mlpkit import SGD, Adagrad, Adam, AdamW, Dense, Input, KLSparsity, L1Sparsity, MeanPenalty, RMSprop, schedules
from mlpkit.data import Data
from mlpkit.minibatch import MiniBatches

# Rounding of a step, some 1e-16 (1e-7) of the parameters, is carried along and grows over some dozen steps.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])

# Rates at which parameters move by a tenth of themselves or more in a few epochs, so that a wrong step shows.
RULES = {
    "sgd": SGD(0.05),
    "momentum": SGD(0.02, momentum=0.8),
    "nesterov": SGD(0.02, momentum=0.8, nesterov=True),
    "rmsprop": RMSprop(0.02, alpha=0.9),
    "adagrad": Adagrad(0.05),
    "adam": Adam(0.03, beta1=0.8, beta2=0.99),
    "adamw": AdamW(0.03, beta1=0.8, beta2=0.99),
}
ALL_RULES = pytest.mark.parametrize("rule", RULES)


def random_case(layers, m=37, dtype="float64", seed=0, **options):
    """Return a network with random data: class labels for cross-entropy, else numbers."""
    rng = np.random.default_rng(seed)
    net = mlpkit.MLP(layers, dtype=dtype, seed=seed, **options)
    net.theta = net.theta + rng.normal(0.0, 0.05, net.n_parameters)
    X = rng.uniform(-1.0, 1.0, (m, net.sizes[0])).astype(dtype)
    Y = rng.uniform(0.1, 0.9, (m, net.sizes[-1])).astype(dtype)
    if net.loss.class_targets:
        Y = rng.integers(0, net.sizes[-1], m)
    return Case(net, X, Y, None, reference.describe(net))


NETWORKS = {
    "deep": lambda dtype: random_case(
        [Input(9), Dense(13, "tanh"), Dense(6, "sigmoid", weight_decay=0.0), Dense(17, "tanh"), Dense(5, "identity")],
        weight_decay=0.05,
        dtype=dtype,
    ),
    "tied": lambda dtype: random_case(
        [
            Input(10),
            Dense(8, "tanh", weight_decay=0.1),
            Dense(3, "sigmoid", sparsity=KLSparsity(0.2, 0.3)),
            Dense(8, "tanh", tied_to=2),
            Dense(10, "sigmoid", tied_to=1),
        ],
        weight_decay=0.05,
        dtype=dtype,
    ),
    "without bias": lambda dtype: random_case(
        [Input(6), Dense(8, "tanh", bias=False), Dense(3, "identity", bias=False)], weight_decay=0.05, dtype=dtype
    ),
    "softmax": lambda dtype: random_case(
        [Input(16), Dense(20, "relu"), Dense(7, "softmax")], loss="cross_entropy", weight_decay=0.01, dtype=dtype
    ),
    "top_k": lambda dtype: random_case(
        [Input(12), Dense(9, "top_k(3)"), Dense(12, "identity")], weight_decay=0.05, dtype=dtype
    ),
}


def assert_trains_as_the_twin(case, optimizer, dtype="float64", noise=None, least=0.01):
    """Train both; return the twin."""
    twin = reference_steps.Training(case.net, *case.arguments[2:], optimizer, noise)
    before = case.theta
    result = case.net.fit(case.X, case.Y, optimizer, **case.keywords)
    assert result.reason == "max_epochs reached"
    expected = twin.run(optimizer.max_epochs)
    errors = reference.layer_errors(case.twin, case.net.theta, expected)
    assert max(errors) < TOLERANCE[dtype], errors
    assert reference.relative_error(expected, before) >= least, "the parameters hardly move"
    assert len(result.history) == optimizer.max_epochs
    for found, record in zip(result.history, twin.records, strict=True):
        for name, value in record.items():
            # Little is left of KL, a difference, where rho_hat is near rho, nor of a gradient whose parts cancel; and
            # J may be nothing but such a KL.
            scale = max(abs(value), {"sparsity": max(found.cost, 0.01), "gradient_norm": 0.01}.get(name, 0.0))
            assert abs(found[name] - value) <= 10 * TOLERANCE[dtype] * scale, name
    return twin


# Every rule -------------------------------------------------------------------------------------


@DTYPES
@ALL_RULES
@pytest.mark.parametrize("network", NETWORKS)
def test_rules_equal_the_twin_on_every_network(network, rule, dtype):
    optimizer = replace(RULES[rule], batch_size=7, max_epochs=3)
    assert_trains_as_the_twin(NETWORKS[network](dtype), optimizer, dtype)


@DTYPES
@ALL_RULES
@pytest.mark.parametrize("batch_size", [1, 8, 36, 37, 1000])
def test_rules_equal_the_twin_at_every_batch_size(batch_size, rule, dtype):
    case = NETWORKS["tied"](dtype)
    case.sample_weight = np.random.default_rng(5).integers(0, 5, 37) / 4
    optimizer = replace(RULES[rule], batch_size=batch_size, max_epochs=1 if batch_size == 1 else 5)
    assert_trains_as_the_twin(case, optimizer, dtype)


@DTYPES
@ALL_RULES
@pytest.mark.parametrize(
    "bounds",
    [{"clip_value": 0.02}, {"clip_norm": 0.3}, {"clip_value": 0.1, "clip_norm": 0.2}, {"clip_norm": 1e6}],
    ids=str,
)
def test_clipping_equals_the_twin(bounds, rule, dtype):
    case = NETWORKS["deep"](dtype)
    optimizer = replace(RULES[rule], batch_size=10, max_epochs=3, **bounds)
    twin = assert_trains_as_the_twin(case, optimizer, dtype, least=1e-3)
    unclipped = reference_steps.Training(
        NETWORKS["deep"](dtype).net, *case.arguments[2:], replace(optimizer, clip_norm=None, clip_value=None)
    ).run(3)
    assert np.array_equal(unclipped, twin.theta) == (bounds == {"clip_norm": 1e6})


@DTYPES
@ALL_RULES
def test_what_is_remembered_equals_the_twin(rule, dtype):
    case = NETWORKS["tied"](dtype)
    optimizer = replace(RULES[rule], batch_size=10, rho_hat_momentum=0.8)
    twin = reference_steps.Training(case.net, *case.arguments[2:], optimizer)
    batches = MiniBatches(case.net, Data(case.net, case.X, case.Y), optimizer)
    for epoch in range(1, 4):
        assert [(part.failure, part.n_steps > 0) for part in batches.run_epoch()] != []
        twin.run(1)
        state = batches.state()
        assert (state["iteration"], state["step"]) == (epoch, 4 * epoch) == (epoch, twin.step)
        for name, expected in (("first", twin.first), ("second", twin.second), ("theta", twin.theta)):
            if state[name].size:
                assert max(reference.layer_errors(case.twin, state[name], expected)) < 5 * TOLERANCE[dtype]
        # means of a themselves, which sigmoid's map to [0, 1] leaves as they are
        assert reference.relative_error(state["running"][8:11], twin.running[1]) < TOLERANCE[dtype]
    needs = (rule in ("momentum", "nesterov", "adam", "adamw"), rule in ("rmsprop", "adagrad", "adam", "adamw"))
    assert tuple(state[name].size > 0 for name in ("first", "second")) == needs


@pytest.mark.parametrize("rule", [Adam(0.05), AdamW(0.05), RMSprop(0.01)], ids=repr)
def test_float32_keeps_its_digits_with_a_beta_close_to_one(rule):
    # 1 - 0.999 has 5 digits in float32: the correction has to know the beta that the moments are made with
    case = NETWORKS["deep"]("float32")
    optimizer = replace(rule, batch_size=8, max_epochs=2)
    twin = reference_steps.Training(case.net, *case.arguments[2:], optimizer)
    case.net.fit(case.X, case.Y, optimizer)
    assert max(reference.layer_errors(case.twin, case.net.theta, twin.run(2))) < 1e-6


def test_adamw_decays_weights_alone_and_apart_from_the_gradient():
    # nothing to learn: outputs hit their targets at 0
    net = mlpkit.MLP([Input(2), Dense(3, "identity"), Dense(1, "identity", weight_decay=0.5)], weight_decay=0.1)
    net.theta = np.zeros(net.n_parameters)
    net.weights[0][:] = 1.0
    net.fit(np.zeros((4, 2)), np.zeros((4, 1)), AdamW(0.01, batch_size=2, max_epochs=1))
    np.testing.assert_allclose(net.weights[0], (1 - 0.01 * 0.1) ** 2, rtol=1e-15)
    assert not any(b.any() for b in net.biases)
    assert not net.weights[1].any()
    net.biases[0][:] = 1.0
    net.fit(np.zeros((4, 2)), np.zeros((4, 1)), AdamW(0.01, batch_size=2, max_epochs=1))
    np.testing.assert_array_equal(net.biases[0], 1.0)


# Every configuration ----------------------------------------------------------------------------

FEW = {"activations": ("tanh", "sigmoid", "softmax", "identity"), "losses": ("squared_error", "cross_entropy")}


@st.composite
def optimizers(draw, m, layers):
    """Draw an optimiser with any of its options, for `m` examples and these layers.

    Epsilon is large: what is divided by nearly nothing where a gradient all but vanishes has no digits that are right.
    """
    rule = RULES[draw(st.sampled_from(sorted(RULES)))]
    if hasattr(rule, "epsilon"):
        rule = replace(rule, epsilon=0.1)
    # What is kept of a layer is divided by 1 - p, and the curvature in the weights above by its square: with steps as
    # long as ever, some trainings diverge.
    rate = rule.learning_rate * min((1 - layer.dropout) ** 2 for layer in layers)
    rates = (
        rate,
        schedules.StepSchedule(rate, factor=0.5, every=0.4),
        schedules.WarmUp(schedules.CosineSchedule(rate, epochs=1.5), epochs=0.5),
        schedules.InverseScalingSchedule(rate),
        schedules.ExponentialSchedule(rate, factor=0.3),
        lambda epochs: rate / (1 + epochs) ** 2,
    )
    return replace(
        rule,
        learning_rate=draw(st.sampled_from(rates)),
        batch_size=draw(st.sampled_from([max(1, m // 5), 7, 16, max(1, m - 1), m + 1])),
        max_epochs=2,
        shuffle=draw(st.booleans()),
        clip_norm=draw(st.sampled_from((None, 0.5))),
        clip_value=draw(st.sampled_from((None, 0.05))),
        rho_hat_momentum=draw(st.sampled_from((None, 0.0, 0.9))) if any(f.mean_penalties for f in layers) else None,
        seed=draw(st.sampled_from((None, 5))),
    )


# An L1 penalty has a kink at a = 0, which rounding in float32 may cross on the way.
@pytest.mark.parametrize(("dtype", "penalties"), [("float64", "all"), ("float32", "kl")])
@pytest.mark.parametrize("classes", [False, True], ids=["everything", "class weights"])
@settings(max_examples=100)
@given(data=st.data())
def test_any_configuration_equals_the_twin(classes, dtype, penalties, data):
    options = {"class_weighted": True} if classes else {"tied": True, "masked": True, **FEW}
    sizes = st.integers(2, 40)
    names = ("tanh", "sigmoid", "softmax")
    case = data.draw(
        cases(dtype=dtype, n_examples=sizes, penalties=penalties, max_units=20, **{"activations": names, **options})
    )
    assume(case.mask is None or case.mask.any())
    drop(data.draw, case)
    optimizer = data.draw(optimizers(len(case.X), case.net.layers[1:]))
    if dtype == "float32":
        # Where a batch's gradient all but cancels, no arithmetic gives its leading digits; the twin itself tells.
        exact, rough = (
            reference_steps.Training(case.net, *case.arguments[2:], optimizer, dtype=d).run(2) for d in "df"
        )
        assume(max(reference.layer_errors(case.twin, rough, exact)) < 2e-6)
    assert_trains_as_the_twin(case, optimizer, dtype, least=0.0)


# The gradient of a batch ------------------------------------------------------------------------


def first_steps(case, rows=None, **options):
    """Return the gradient of each batch of the first epoch, all at the same parameters."""
    rows = np.arange(len(case.X)) if rows is None else rows
    given = {name: values if name == "class_weight" else values[rows] for name, values in case.keywords.items()}
    n_used = np.count_nonzero(given.get("sample_weight", np.ones(len(rows))))
    n_steps = -(-n_used // options["batch_size"])
    found = []
    for k in range(n_steps):
        net = mlpkit.MLP.from_config(case.net.config())
        net.theta = case.net.theta
        optimizer = SGD(lambda epochs, k=k: float(round(epochs * n_steps) == k), max_epochs=1, **options)
        net.fit(case.X[rows], case.Y[rows], optimizer, **given)
        found.append(case.theta - net.theta)
    return found


def full_gradient(case):
    return case.objective().value_and_gradient(case.net.theta)[1]


def assert_close(found, expected, tolerance=1e-12):
    assert reference.relative_error(found, expected) < tolerance


def without_means(weighted=False):
    """Return a case without penalties on means, the only terms of J that are no sums over examples."""
    layers = [Input(5), Dense(7, "tanh", sparsity=L1Sparsity(0.1)), Dense(4, "sigmoid"), Dense(3, "softmax")]
    case = random_case(layers, m=36, loss="cross_entropy", weight_decay=0.1)
    if weighted:
        case.sample_weight = np.random.default_rng(3).uniform(0.1, 5.0, 36)
        case.class_weight = np.array([1.0, 3.0, 0.5])
    return case


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_gradients_of_equal_batches_have_the_full_gradient_as_their_mean(weighted, shuffle):
    case = without_means(weighted)
    gradients = first_steps(case, batch_size=6, shuffle=shuffle)
    assert len(gradients) == 6
    assert_close(np.mean(gradients, axis=0), full_gradient(case))
    assert reference.relative_error(gradients[0], full_gradient(case)) > 0.01


def test_gradients_are_unbiased_for_any_weights_and_sizes():
    # All orders of four examples, the last of which is a batch of its own
    case = without_means(weighted=True)
    some = Case(case.net, case.X[:4], case.Y[:4], np.array([0.5, 4.0, 1.0, 2.0]), case.twin, np.array([1.0, 3.0, 0.5]))
    orders = [np.array(order) for order in permutations(range(4))]
    both = np.array([first_steps(some, order, batch_size=3, shuffle=False) for order in orders])
    for gradients in both.swapaxes(0, 1):
        assert_close(gradients.mean(axis=0), full_gradient(some))
    # dividing by the sum of the batch's own weights has another expectation
    twin, theta, X, Y, w = some.arguments
    own = [reference.gradient(twin, theta, X[order[:3]], Y[order[:3]], w[order[:3]]) for order in orders]
    assert reference.relative_error(np.mean(own, axis=0), full_gradient(some)) > 0.01


def test_masked_targets_count_in_the_denominator():
    case = random_case([Input(3), Dense(4, "tanh"), Dense(2, "identity")], m=12)
    case.mask = np.random.default_rng(0).random((12, 2)) < 0.5
    case.mask[4:8] = False
    case.Y = np.where(case.mask, case.Y, np.nan)
    gradients = first_steps(case, batch_size=4, shuffle=False)
    assert_close(np.mean(gradients, axis=0), full_gradient(case))
    assert not gradients[1].any()


# Penalties on mean activations ------------------------------------------------------------------


def sparse_case(**options):
    """Return a case with three penalties on means, one of them a user's, on two layers."""
    both = (KLSparsity(0.3, 0.5), MeanPenalty(user_penalty("twin_quadratic"), beta=2.0))
    layers = [Input(6), Dense(9, "sigmoid", sparsity=KLSparsity(0.1, 1.5)), Dense(5, "tanh", sparsity=both)]
    return random_case([*layers, Dense(2, "identity")], m=36, weight_decay=0.1, **options)


def test_with_rho_hat_of_the_batch_its_gradient_is_that_of_its_own_objective():
    case = sparse_case()
    gradients = first_steps(case, batch_size=8, shuffle=False)
    assert len(gradients) == 5
    terms = []
    for k, found in enumerate(gradients):
        batch = slice(8 * k, 8 * k + 8)
        own = mlpkit.Objective(case.net, case.X[batch], case.Y[batch])
        assert_close(found, own.value_and_gradient(case.net.theta)[1])
        terms.append(own.terms(case.net.theta))
    result = case.net.fit(case.X, case.Y, SGD(lambda epochs: 0.0, batch_size=8, max_epochs=1, shuffle=False))
    assert result.terms["sparsity"] == pytest.approx(np.mean([found["sparsity"] for found in terms]), rel=1e-12)
    assert result.terms["data"] == pytest.approx(case.objective().terms(case.net.theta)["data"], rel=1e-12)
    # which is not that of all examples, on average
    equal = first_steps(case, batch_size=6, shuffle=False)
    assert reference.relative_error(np.mean(equal, axis=0), full_gradient(case)) > 1e-4


def test_a_running_mean_that_forgets_at_once_is_that_of_the_batch():
    case = sparse_case()
    one, two = (first_steps(case, batch_size=7, rho_hat_momentum=keep) for keep in (None, 0.0))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_running_mean_starts_from_all_examples_and_goes_straight_through(weighted):
    # One that never moves leaves the penalties' derivatives where they are for all examples: the gradient of
    # mini-batches is then unbiased.
    case = sparse_case()
    if weighted:
        # in each batch the same weights, since a batch's mean activations are divided by its own
        case.sample_weight = np.tile([0.25, 1.0, 3.0, 0.5], 9)
    still = np.nextafter(1.0, 0.0)
    gradients = first_steps(case, batch_size=4, shuffle=False, rho_hat_momentum=still)
    assert_close(np.mean(gradients, axis=0), full_gradient(case))
    bent = first_steps(case, batch_size=4, shuffle=False, rho_hat_momentum=0.5)
    assert reference.relative_error(np.mean(bent, axis=0), full_gradient(case)) > 1e-4


@DTYPES
def test_the_full_pass_sees_every_example(dtype):
    layers = [Input(3), Dense(4, "sigmoid", dropout=0.5), Dense(5, "tanh", sparsity=KLSparsity(0.2, 1.0))]
    case = random_case([*layers, Dense(1, "identity")], m=9001, dtype=dtype)
    case.sample_weight = np.random.default_rng(1).integers(0, 3, 9001) / 2
    still = SGD(lambda epochs: 0.0, batch_size=9000, rho_hat_momentum=np.nextafter(1.0, 0.0))
    batches = MiniBatches(case.net, Data(case.net, case.X, case.Y, case.sample_weight), still)
    assert len(list(batches.run_epoch())) == 1
    (expected,) = case.objective().rho_hat(case.net.theta)
    running = batches.state()["running"]
    assert_close((running[4:9] + 1) / 2, expected, TOLERANCE[dtype])
    assert not running[:4].any()


# Dropout ----------------------------------------------------------------------------------------


def dropped(m=40, units=9, p=0.3, layer=0, step=1, dtype="float64", **options):
    """Return the factors of each example and unit in one step, from the change that the step makes.

    Examples are the rows of an identity matrix, so that each has a column of W^(1) of its own. All layers but the first
    pass on what they get; outputs are 0 and targets -1, so that dJ/dz of the first layer is what is passed back.
    """
    hidden = [Dense(units, "identity", init=0.0, dropout=p if k == layer else 0.0) for k in range(layer + 1)]
    net = mlpkit.MLP([Input(m), *hidden, Dense(1, "identity", init=1.0)], dtype=dtype, seed=4)
    for W in net.weights[1:-1]:
        W[:] = np.eye(units)
    size = min(m, options.setdefault("batch_size", m))
    n_steps = -(-m // size)
    options.setdefault("shuffle", False)
    rate = SGD(lambda epochs: size * float(round(epochs * n_steps) == step - 1), max_epochs=step, **options)
    net.fit(np.eye(m), np.full((m, 1), -1.0), rate)
    return -net.weights[0].T


def twin_dropped(m, units, p, layer, step, seed=4):
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(2,))))
    start = int(generator.integers(1 << 62))
    return reference_steps.dropout_mask(start + step, np.arange(m), layer, units, p)


@DTYPES
@pytest.mark.parametrize(("p", "layer", "step"), [(0.3, 0, 1), (0.5, 1, 1), (0.9, 2, 3), (1e-9, 0, 1)])
def test_dropped_units_are_those_of_the_twin(p, layer, step, dtype):
    found = dropped(40, 9, p, layer, step, dtype)
    np.testing.assert_allclose(found, twin_dropped(40, 9, p, layer, step), rtol=1e-6 if dtype == "float32" else 1e-12)
    assert (found == 0).any() == (p > 1e-6)


def test_whether_a_unit_is_dropped_does_not_depend_on_its_place_in_a_batch():
    expected = dropped()
    np.testing.assert_allclose(dropped(shuffle=True), expected, rtol=1e-12)
    np.testing.assert_allclose(dropped(batch_size=7)[:7], expected[:7], rtol=1e-12)
    np.testing.assert_allclose(dropped(batch_size=7, step=2)[7:14], dropped(step=2)[7:14], rtol=1e-12)


def test_dropout_is_fair_and_independent():
    p, m, units = 0.3, 20_000, 60
    masks = [twin_dropped(m, units, p, layer, step, seed) > 0 for layer, step, seed in
             [(0, 1, 4), (1, 1, 4), (0, 2, 4), (0, 1, 5)]]  # fmt: skip
    sigma = np.sqrt(p * (1 - p))
    for kept in masks:
        assert abs(kept.mean() - (1 - p)) < 4 * sigma / np.sqrt(m * units)
        assert abs(kept.mean(axis=0) - (1 - p)).max() < 5 * sigma / np.sqrt(m)
        assert abs(kept.mean(axis=1) - (1 - p)).max() < 6 * sigma / np.sqrt(units)
        between_units = np.corrcoef(kept, rowvar=False) - np.eye(units)
        assert abs(between_units).max() < 5 / np.sqrt(m)
    for kept in (*masks[1:], np.roll(masks[0], 1, axis=0)):  # another layer, step, seed; the next example
        both = np.corrcoef(masks[0].ravel(), kept.ravel())[0, 1]
        assert abs(both) < 5 / np.sqrt(m * units)
        each = [np.corrcoef(a, b)[0, 1] for a, b in zip(masks[0].T, kept.T, strict=True)]
        assert max(map(abs, each)) < 5 / np.sqrt(m)


@pytest.mark.parametrize("p", [0.999999999, 0.9999999999, 1 - 2**-53])
def test_dropout_close_to_one_leaves_next_to_nothing(p):
    assert np.count_nonzero(dropped(p=p)) == 0
