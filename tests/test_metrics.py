"""Named metrics beside scikit-learn's, and what is made of the metrics that users hand in."""

import functools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mlpkit
from mlpkit import metrics
from mlpkit.errors import InvalidArgumentError
from mlpkit.metrics import accuracy, mean_absolute_error, mean_squared_error, r2, resolve

REGRESSION = {
    "mean_squared_error": "mean_squared_error",
    "mean_absolute_error": "mean_absolute_error",
    "r2": "r2_score",
}


def example(m, n, seed=0, weights=True):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, n)), rng.normal(size=(m, n)), rng.integers(0, 4, m) / 2 + 0.25 if weights else None


# --- parity with scikit-learn


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("name", REGRESSION)
def test_errors_are_scikit_learns(name, n, weighted, dtype):
    theirs = getattr(pytest.importorskip("sklearn.metrics"), REGRESSION[name])
    y, h, w = example(50, n, weights=weighted)
    y, h = y.astype(dtype), h.astype(dtype)
    expected = theirs(y.astype(float), h.astype(float), sample_weight=w)
    found = getattr(metrics, name)(y, h, w)
    assert type(found) is float
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_r2_of_targets_that_do_not_vary_is_scikit_learns(constant, exact):
    theirs = pytest.importorskip("sklearn.metrics").r2_score
    y, h, w = example(20, 3)
    y[:, 1] = constant
    if exact:
        h[:, 1] = constant
    assert r2(y, h, w) == pytest.approx(theirs(y, h, sample_weight=w), rel=1e-12)


def test_r2_of_a_constant_is_not_at_the_mercy_of_rounding():
    """The mean of equal numbers may differ from them in the last bit."""
    y, h = np.full((49, 1), 0.1), np.full((49, 1), 0.2)
    w = np.linspace(0.1, 1.0, 49)
    assert r2(y, h) == r2(y, h, w) == 0.0
    y[0], w[0] = 7.0, 0.0  # a row of weight 0 is as if it was not there
    assert r2(y, h, w) == 0.0


def test_r2_of_one_example_is_nan():
    assert math.isnan(r2([1.0], [1.0]))


@pytest.mark.parametrize("weighted", [False, True])
def test_accuracy_of_softmax_is_scikit_learns(weighted):
    theirs = pytest.importorskip("sklearn.metrics").accuracy_score
    rng = np.random.default_rng(1)
    h = rng.dirichlet(np.ones(5), 60)
    labels = np.where(rng.random(60) < 0.5, h.argmax(1), rng.integers(0, 5, 60))
    w = rng.uniform(0.1, 2, 60) if weighted else None
    expected = theirs(labels, h.argmax(1), sample_weight=w)
    assert 0.3 < expected < 0.9
    probabilities = 0.8 * np.eye(5)[labels] + 0.04
    for activation in (None, "softmax", mlpkit.activations.softmax):
        for y in (labels, labels[:, np.newaxis], labels.astype(np.float32), np.eye(5)[labels], probabilities):
            assert accuracy(y, h, w, activation=activation) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(60,), (60, 1)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_accuracy_of_one_output_is_scikit_learns(activation, weighted, shape):
    theirs = pytest.importorskip("sklearn.metrics").accuracy_score
    rng = np.random.default_rng(2)
    low = {"sigmoid": 0, "tanh": -1}[activation]
    h, y = rng.uniform(low, 1, 60), rng.choice([low, 1], 60)
    w = rng.uniform(0.1, 2, 60) if weighted else None
    expected = theirs(y, np.where(h >= (low + 1) / 2, 1, low), sample_weight=w)
    for known in (activation, None):
        found = accuracy(y.reshape(shape), h.reshape(shape), w, activation=known)
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_accuracy_of_several_outputs_that_stand_alone_is_the_mean_over_all(weighted):
    theirs = pytest.importorskip("sklearn.metrics").accuracy_score
    rng = np.random.default_rng(3)
    h, y = rng.uniform(0, 1, (60, 4)), rng.integers(0, 2, (60, 4))
    w = rng.uniform(0.1, 2, 60) if weighted else None
    expected = np.mean([theirs(y[:, k], h[:, k] >= 0.5, sample_weight=w) for k in range(4)])
    for known in ("sigmoid", None):
        assert accuracy(y, h, w, activation=known) == pytest.approx(expected, rel=1e-12)
    # Targets that look like classes are none if the activation says so.
    y = np.eye(4, dtype=int)[rng.integers(0, 4, 60)]
    expected = np.mean([theirs(y[:, k], h[:, k] >= 0.5, sample_weight=w) for k in range(4)])
    assert accuracy(y, h, w, activation="sigmoid") == pytest.approx(expected, rel=1e-12)


def test_accuracy_is_that_of_predict_labels():
    rng = np.random.default_rng(4)
    X = rng.normal(size=(30, 3))
    for activation, n in (("softmax", 3), ("sigmoid", 1), ("tanh", 1), ("sigmoid", 3), ("hard_tanh", 2)):
        net = mlpkit.MLP([mlpkit.Input(3), mlpkit.Dense(n, activation)], loss="squared_error", seed=1)
        labels = net.predict_labels(X)
        wrong = rng.random(labels.shape) < 0.3
        low = net.layers[-1].activation.range[0]
        y = np.where(wrong, (labels + 1) % 3 if activation == "softmax" else low + 1 - labels, labels)
        assert accuracy(y, net.predict(X), activation=activation) == pytest.approx(1 - wrong.mean())


def test_a_threshold_belongs_to_the_upper_class():
    assert accuracy([1.0], [0.5]) == accuracy([0.0], [np.nextafter(0.5, 0)]) == 1.0
    assert accuracy([1.0, -1.0], [0.0, -1e-9]) == 1.0
    assert accuracy([0, 1], [[0.5, 0.5], [0.5, 0.5]]) == 0.5  # the first of equals


# --- properties

quarters = st.integers(-100, 100).map(lambda i: i / 4)


@given(st.data(), st.integers(1, 3), st.integers(2, 8), st.sampled_from(sorted(REGRESSION)))
def test_a_weight_of_two_is_an_example_twice(data, n, m, name):
    y, h = (data.draw(hnp.arrays(float, (m, n), elements=quarters)) for _ in range(2))
    metric, w = getattr(metrics, name), np.ones(m)
    w[0] = 2
    twice = metric(np.vstack([y[:1], y]), np.vstack([h[:1], h]))
    assert metric(y, h, w) == pytest.approx(twice, rel=1e-9, abs=1e-9)
    assert metric(y, h, 2.0**1000 * w) == metric(y, h, w)


def test_r2_of_targets_whose_spread_underflows_is_that_of_a_constant():
    assert r2([1e-300, 0.0], [0.0, 0.0]) == 1.0
    assert r2([1e-300, 0.0], [1.0, 0.0]) == 0.0


@pytest.mark.parametrize("name", ["accuracy", *REGRESSION])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_not_finite_make_it_nan(name, value):
    assert math.isnan(getattr(metrics, name)([0.0, 1.0], [0.5, value]))
    assert math.isnan(getattr(metrics, name)([0.0, 1.0, 1.0], [0.5, value, -value], [1, 1, 2]))


@pytest.mark.parametrize("name", REGRESSION)
def test_errors_beyond_all_floats_are_nan(name):
    found = getattr(metrics, name)([-1e308, 1e308], [1e308, -1e308])
    assert math.isnan(found)


@pytest.mark.parametrize("name", ["accuracy", *REGRESSION])
@pytest.mark.parametrize(
    ("targets", "outputs", "weights", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0, 3.0], None, r"targets must have the outputs' shape, \(3, 1\); found \(2,\)"),
        ([[0, 1, 0]], [[1, 0]], None, r"targets must have the outputs' shape, \(1, 2\); found \(1, 3\)"),
        ([[1.0, math.nan]], [[0.5, 0.5]], None, "targets must be finite.*nan at row 0 column 1"),
        (["a"], [1.0], None, "targets must be an array of"),
        ([1.0], 3.0, None, r"outputs must be a matrix.*found shape \(\)"),
        ([], [], None, r"outputs must be a matrix.*found shape \(0, 1\)"),
        ([1.0], [1.0], [1.0, 2.0], r"weights must have shape \(1,\); found shape \(2,\)"),
        ([1.0, 0.0], [1.0, 1.0], [1.0, -1.0], "weights must not be negative, nor all zero; found a least of -1"),
        ([1.0, 0.0], [1.0, 1.0], [0.0, 0.0], "weights must not be negative, nor all zero; found a least of 0"),
    ],
)
def test_arguments_are_checked(name, targets, outputs, weights, message):
    with pytest.raises(InvalidArgumentError, match=message):
        getattr(metrics, name)(targets, outputs, weights)


@pytest.mark.parametrize("label", [-1, 2, 0.5])
def test_labels_are_checked(label):
    with pytest.raises(InvalidArgumentError, match=f"class labels from 0 to 1; found {label} at row 1"):
        accuracy([0, label], [[0.1, 0.9], [0.2, 0.8]])


def test_labels_are_for_softmax():
    with pytest.raises(InvalidArgumentError, match="targets must have the outputs' shape"):
        accuracy([0, 1], [[0.1, 0.9], [0.2, 0.8]], activation="sigmoid")


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_accuracy_needs_outputs_that_name_classes(activation):
    with pytest.raises(InvalidArgumentError, match="accuracy needs an output layer of bounded activation"):
        accuracy([0.0], [1.0], activation=activation)
    for given_ in (["accuracy"], [accuracy], {"acc": accuracy}):
        with pytest.raises(InvalidArgumentError, match="accuracy needs an output layer of bounded activation"):
            resolve(given_, activation)


# --- resolve


def largest_error(targets, outputs):
    return np.abs(targets - outputs).max()


def test_what_is_named():
    found = resolve(["r2", "accuracy", largest_error, ("spread", lambda y, h: h.std())])
    assert [name for name, _ in found] == ["r2", "accuracy", "largest_error", "spread"]
    y, h = [0.0, 1.0, 1.0], np.array([[0.25], [0.5], [1.0]])
    assert [function(y, h) for _, function in found] == [r2(y, h), 1.0, 0.5, h.std()]
    assert all(type(function(y, h)) is float for _, function in found)
    assert resolve(None) == resolve([]) == resolve({}) == []
    ((name, function),) = resolve({"largest": largest_error})
    assert (name, function(y, h)) == ("largest", 0.5)


def test_accuracy_is_told_the_activation():
    y, h = np.eye(3)[[0, 1]], [[0.9, 0.6, 0.1], [0.9, 0.6, 0.1]]
    for given_ in (["accuracy"], [accuracy], {"accuracy": accuracy}):
        assert resolve(given_, "sigmoid")[0][1](y, h) == pytest.approx(4 / 6)
        assert resolve(given_, "softmax")[0][1](y, h) == 0.5


def test_weights_go_to_those_that_ask_for_them():
    seen = []

    def third(y, h, importance):
        seen.append(importance)
        return 0.0

    def keyword(y, h, *, sample_weight=None):
        seen.append(sample_weight)
        return 0.0

    def named(y, h, q=0.5, weights=None):
        assert q == 0.5
        seen.append(weights)
        return 0.0

    def none(y, h, q=0.5):
        assert q == 0.5
        return 0.0

    def positional(y, h, weights, /):
        seen.append(weights)
        return 0.0

    for _, function in resolve([third, keyword, named, none, positional]):
        function([1.0], [[1.0]], [2.0])
        function([1.0], [[1.0]])
    assert [None if w is None else w.tolist() for w in seen] == [[2.0], None] * 4


def test_the_named_take_weights():
    y, h, w = example(10, 2)
    for name in REGRESSION:
        ((_, function),) = resolve([name])
        assert function(y, h, w) == getattr(metrics, name)(y, h, w) != function(y, h)


def test_scikit_learns_metrics_can_be_handed_in():
    theirs = pytest.importorskip("sklearn.metrics")
    y, h, w = example(10, 1)
    ((name, function),) = resolve([theirs.median_absolute_error])
    assert name == "median_absolute_error"
    assert function(y, h, w) == theirs.median_absolute_error(y, h, sample_weight=w)


@pytest.mark.parametrize(
    ("targets", "outputs", "shape"),
    [
        ([0.0, 1.0], [[0.1], [0.2]], (2, 1)),  # else their difference would be a square
        ([[0.0], [1.0]], [[0.1], [0.2]], (2, 1)),
        ([[0], [1]], [[0.1, 0.9], [0.2, 0.8]], (2,)),
        ([0, 1], [[0.1, 0.9], [0.2, 0.8]], (2,)),
        ([[0, 1], [1, 0]], [[0.1, 0.9], [0.2, 0.8]], (2, 2)),
    ],
)
def test_targets_have_the_outputs_dimensions(targets, outputs, shape):
    ((_, function),) = resolve({"n": lambda y, h: float(y.shape == shape and h.shape == np.shape(outputs))})
    assert function(targets, outputs) == 1.0


def test_data_cannot_be_written_to():
    y, h = np.zeros((2, 1)), np.ones((2, 1))

    def careless(targets, outputs):
        outputs -= targets
        return 0.0

    with pytest.raises(ValueError, match="read-only") as error:
        resolve([careless])[0][1](y, h)
    assert error.value.__notes__ == ["raised by the metric 'careless'"]
    assert h.flags.writeable
    assert (h == 1).all()


@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, np.float32(math.inf), None, "1", 1j, True, np.True_, np.zeros(2), np.zeros(1)]
)
def test_a_value_that_is_no_number_names_the_metric(value):
    ((_, function),) = resolve({"odd": lambda y, h: value})
    with pytest.raises(InvalidArgumentError, match="the metric 'odd' must return a finite number or NaN; found"):
        function([1.0], [[1.0]])


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.array(0.5), np.float64(0.5), 3, np.int32(3), math.nan])
def test_numbers_of_every_kind_become_floats(value):
    found = resolve({"fine": lambda y, h: value})[0][1]([1.0], [[1.0]])
    assert type(found) is float
    np.testing.assert_equal(found, float(value))


class Callable:
    def __call__(self, y, h):
        return 0.0


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ("accuracy", "metrics must be a list of names and functions.*found 'accuracy'"),
        (("r2", largest_error), "metrics must be a list"),
        (3, "metrics must be a list"),
        (["acuracy"], r"metrics\[0\] must be a function or one of 'accuracy', 'mean_squ.*'r2'; found 'acuracy'"),
        (["r2", 3], r"metrics\[1\] must be a name, a function or a pair"),
        ([Callable], r"metrics\[0\] must be a name, a function or a pair"),
        ([lambda y, h: 0.0], r'metrics\[0\] must come with a name, as the pair \("name", function\)'),
        ([functools.partial(largest_error)], r"metrics\[0\] must come with a name"),
        ([Callable()], r"metrics\[0\] must come with a name"),
        (["r2", "r2"], "metrics must not repeat; found 'r2' 2 times"),
        (["r2", ("r2", largest_error)], "metrics must not repeat; found 'r2' 2 times"),
        ({"r 2": largest_error}, "the name of a metric must be one word.*found 'r 2'"),
        ({3: largest_error}, "the name of a metric must be one word.*found 3"),
        ({"cost": largest_error}, "must be none of iteration, cost,.*found 'cost'"),
        ([("loss", largest_error)], "must be none of .*found 'loss'"),
        ({"validation_r2": largest_error}, "must be none of .*found 'validation_r2'"),
        ({"mine": "r2"}, "the metric 'mine' must be a function; found 'r2'"),
        ({"mine": Callable}, "the metric 'mine' must be a function"),
    ],
)
def test_what_is_no_metric_is_refused(given_, message):
    with pytest.raises(InvalidArgumentError, match=message):
        resolve(given_)


def test_a_mean_over_outputs_is_no_sum():
    y, h = np.zeros((3, 4)), np.ones((3, 4))
    assert mean_squared_error(y, h) == mean_absolute_error(y, h) == 1.0
