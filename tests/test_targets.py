"""Targets: scaling to the output's range with its inverse, and class labels (section 2.2)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlpkit import activations
from mlpkit.errors import InvalidArgumentError
from mlpkit.targets import encode_labels, scale_to_range

EPS = np.finfo(np.float64).eps
# Half of the largest float64, so that a spread is finite.
SPREADABLE = st.floats(-8e307, 8e307)
TARGETS = hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=2, max_side=8), elements=SPREADABLE)
MARGINS = st.floats(0.0, 0.45)
RANGES = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}


@pytest.mark.parametrize("name", RANGES)
@given(Y=TARGETS, margin=MARGINS)
def test_scaled_targets_fill_the_range_exactly_and_come_back(name, Y, margin):
    scaled, scaling = scale_to_range(Y, name, margin=margin)
    assert scaled.shape == Y.shape
    low, high = RANGES[name]
    free = margin * (high - low)
    constant = Y.min(axis=0) == Y.max(axis=0)
    expected_low = np.where(constant, (low + high) / 2, low + free)
    expected_high = np.where(constant, (low + high) / 2, high - free)
    np.testing.assert_array_equal(scaled.min(axis=0), expected_low)
    np.testing.assert_array_equal(scaled.max(axis=0), expected_high)
    # At most about eight roundings relative to the column's largest magnitude; a narrow range loses
    # as many digits as it is narrower.
    tolerance = 8 * EPS * np.abs(Y).max(axis=0) / (1 - 2 * margin)
    back = scaling.inverse(scaled)
    # Subnormal numbers have no relative precision: a few of their steps.
    assert (np.abs(back - Y) <= tolerance + 5e-323).all()
    np.testing.assert_array_equal(back.min(axis=0), Y.min(axis=0))
    np.testing.assert_array_equal(back.max(axis=0), Y.max(axis=0))


@given(TARGETS)
def test_an_unbounded_range_changes_nothing(Y):
    scaled, scaling = scale_to_range(Y, "identity")
    np.testing.assert_array_equal(scaled, Y)
    np.testing.assert_array_equal(scaling.inverse(scaled), Y)
    np.testing.assert_array_equal(scaling.transform(0.5 * Y + 1.0), 0.5 * Y + 1.0)


@given(TARGETS)
def test_a_range_bounded_below_gets_a_shift(Y):
    scaled, scaling = scale_to_range(Y, "relu")
    assert scaled.min() >= 0.0
    reachable = Y.min(axis=0) >= 0.0
    np.testing.assert_array_equal(scaled[..., reachable], Y[..., reachable])
    tolerance = 4 * EPS * np.abs(Y).max(axis=0)
    assert (np.abs(scaling.inverse(scaled) - Y) <= tolerance).all()


def test_each_column_has_its_own_scale_and_a_constant_is_the_middle():
    Y = [[1, 5, -2], [3, 5, 0], [2, 5, 2]]
    scaled, scaling = scale_to_range(Y, "sigmoid")
    np.testing.assert_array_equal(scaled, [[0, 0.5, 0], [1, 0.5, 0.5], [0.5, 0.5, 1]])
    np.testing.assert_array_equal(scale_to_range(Y, "tanh")[0], 2 * scaled - 1)
    # Whatever the network says about it, a constant comes back as itself.
    np.testing.assert_array_equal(scaling.inverse([[0.25, 0.9, 0.75]]), [[1.5, 5, 1]])


def test_other_data_goes_by_the_same_map_without_clipping():
    _, scaling = scale_to_range([0.0, 10.0], activations.sigmoid)
    np.testing.assert_allclose(scaling.transform([5.0, 20.0, -10.0]), [0.5, 2.0, -1.0])
    np.testing.assert_allclose(scaling.inverse([2.0, -1.0]), [20.0, -10.0])
    # A network's predictions have two dimensions, also for targets with one.
    np.testing.assert_allclose(scaling.inverse([[0.5], [1.0]]), [[5.0], [10.0]])


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_values_too_far_outside_to_come_back_are_named(activation):
    _, scaling = scale_to_range([[-5e307, 0.0], [5e307, 1.0]], activation)
    with pytest.raises(InvalidArgumentError, match=r"scaled must lie near .* in column 0.*found -1.7e\+308 at row 1"):
        scaling.inverse([[0.5, 0.5], [-1.7e308, 0.5]])


def test_margin_leaves_room_at_both_ends():
    scaled, _ = scale_to_range([0.0, 1.0, 2.0], "sigmoid", margin=0.1)
    np.testing.assert_allclose(scaled, [0.1, 0.5, 0.9])
    scaled, _ = scale_to_range([0.0, 1.0, 2.0], "tanh", margin=0.1)
    np.testing.assert_allclose(scaled, [-0.8, 0.0, 0.8])


@pytest.mark.parametrize(
    ("Y", "activation", "margin", "message"),
    [
        ([1.0, np.nan], "sigmoid", 0.0, "Y"),
        ([], "sigmoid", 0.0, "Y"),
        ([[1.0], [1.0, 2.0]], "sigmoid", 0.0, "Y"),
        (np.zeros((2, 2, 2)), "sigmoid", 0.0, "Y"),
        ([-1.7e308, 1.7e308], "tanh", 0.0, "column 0"),
        ([1.0, 2.0], "softmax", 0.0, "encode_labels"),
        ([1.0, 2.0], "sigmid", 0.0, "sigmoid"),
        ([1.0, 2.0], "sigmoid", 0.5, "margin"),
        ([1.0, 2.0], "sigmoid", -0.1, "margin"),
    ],
)
def test_scale_to_range_names_bad_arguments(Y, activation, margin, message):
    with pytest.raises(InvalidArgumentError, match=message):
        scale_to_range(Y, activation, margin=margin)


def test_scaling_refuses_other_widths():
    _, scaling = scale_to_range(np.arange(6.0).reshape(3, 2), "tanh")
    with pytest.raises(InvalidArgumentError, match="scaled must have 2 columns"):
        scaling.inverse(np.zeros((3, 3)))
    with pytest.raises(InvalidArgumentError, match="Y"):
        scaling.transform(np.zeros(3))


def objects(*items):
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


class Undecided:
    """Compares like pandas' NA: to itself, with a result that is neither true nor false."""

    def __ne__(self, other):
        return self

    def __bool__(self):
        raise TypeError("ambiguous")

    __hash__ = None


@pytest.mark.parametrize("labels", [[0, 1, 1, 0], ["a", "b", "b", "a"], [False, True, True, False], [-1.0, 7, 7, -1]])
def test_two_classes(labels):
    np.testing.assert_array_equal(encode_labels(labels, "sigmoid"), [[0], [1], [1], [0]])
    np.testing.assert_array_equal(encode_labels(labels, "tanh"), [[-1], [1], [1], [-1]])
    one_hot = [[1, 0], [0, 1], [0, 1], [1, 0]]
    np.testing.assert_array_equal(encode_labels(labels, "softmax"), one_hot)
    assert encode_labels(labels, "softmax").dtype == np.float64


def test_more_classes_have_a_column_each_in_sorted_order():
    labels = ["cat", "ant", "dog", "cat"]
    hot = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(encode_labels(labels, "softmax"), hot)
    np.testing.assert_array_equal(encode_labels(labels, activations.sigmoid), hot)
    np.testing.assert_array_equal(encode_labels(labels, "tanh"), 2 * hot - 1)
    np.testing.assert_array_equal(encode_labels(np.array(labels)[:, np.newaxis], "softmax"), hot)


def test_classes_fix_the_columns_for_a_test_set():
    classes = ["low", "middle", "high"]
    np.testing.assert_array_equal(encode_labels(["high", "low"], "softmax", classes=classes), [[0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(encode_labels([1, 1], "sigmoid", classes=[0, 1]), [[1], [1]])


@given(st.lists(st.integers(-5, 5), min_size=2).filter(lambda labels: len(set(labels)) > 1))
def test_the_largest_output_gives_the_label_back(labels):
    one_hot = encode_labels(labels, "softmax")
    np.testing.assert_array_equal(one_hot.sum(axis=1), 1.0)
    np.testing.assert_array_equal(np.unique(labels)[one_hot.argmax(axis=1)], labels)


@pytest.mark.parametrize(
    ("labels", "activation", "classes", "message"),
    [
        ([1, 1, 1], "sigmoid", None, "two classes; found only 1"),
        ([1, 1], "softmax", [1], "two classes"),
        ([0, 1, 2], "softmax", [0, 1], "found 2 at index 2"),
        ([0, 1], "softmax", [0, 1, 1], "repeat"),
        ([0.0, np.nan], "sigmoid", None, "missing; found nan at index 1"),
        (["a", None], "sigmoid", None, "missing; found None at index 1"),
        (np.array(["a", 1], dtype=object), "sigmoid", None, "sorted"),
        (np.array(["2011-01-01", "NaT"], "M8[D]"), "sigmoid", None, "labels must not be missing; found NaT at index 1"),
        (np.array([1, "NaT"], "m8[s]"), "sigmoid", None, "labels must not be missing; found NaT at index 1"),
        ([0, 1], "sigmoid", [0.0, np.nan], "classes must not be missing; found nan at index 1"),
        (np.ma.array([0, 1, 2], mask=[0, 0, 1]), "softmax", None, "labels must not be a masked array"),
        ([0, 1], "softmax", np.ma.array([0, 1, 2], mask=[0, 0, 1]), "classes must not be a masked array"),
        ([0, 1], "sigmoid", [{}, {}], "classes and labels must be of kinds that can be hashed"),
        (objects([1], [2]), "sigmoid", [[1], [2]], "classes and labels must be of kinds that can be hashed"),
        (objects(np.eye(2), np.eye(2)), "sigmoid", None, "labels must be of kinds that can be sorted"),
        (objects(0, Undecided()), "sigmoid", None, "labels must not be missing; found"),
        ([], "sigmoid", None, "empty"),
        (np.eye(3), "softmax", None, r"one dimension.*\(3, 3\)"),
        ([[0], [0, 1]], "softmax", None, "labels must be a list"),
        (3, "softmax", None, "one dimension"),
        ([0, 1], "identity", None, "bounded"),
        ([0, 1], "relu", None, "bounded"),
        ([0, 1], "nothing", None, "sigmoid"),
    ],
)
def test_encode_labels_names_bad_arguments(labels, activation, classes, message):
    with pytest.raises(InvalidArgumentError, match=message):
        encode_labels(labels, activation, classes=classes)
