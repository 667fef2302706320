"""The objective over partitions in one process: the tree of sums, weights, masks, and what is refused."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from test_objective import TOLERANCE, bits, relative, sparse_case

import mlpkit
from mlpkit.errors import InvalidArgumentError
from mlpkit.partitions import PartitionedObjective, TreeSum

# The tree ---------------------------------------------------------------------------------------


def recursive(values):
    """Add up as the tree does, from the definition."""
    half = 1
    while 2 * half < len(values):
        half *= 2
    return values[0] if len(values) == 1 else recursive(values[:half]) + recursive(values[half:])


@given(st.integers(1, 40), st.integers(1, 6), st.randoms(use_true_random=False))
def test_a_tree_sum_does_not_depend_on_who_adds_up_what_and_when(n, n_workers, random):
    values = [random.uniform(-1, 1) * 10 ** random.randint(-8, 8) for _ in range(n)]
    owners = [random.randrange(n_workers) for _ in range(n)]
    whole = TreeSum(n)
    for worker in range(n_workers):
        part = TreeSum(n)
        mine = [i for i in range(n) if owners[i] == worker]
        random.shuffle(mine)
        for i in mine:
            part.add(0, i, (np.array([values[i]]), np.zeros(0)))
        for place, share in part.nodes.items():
            whole.add(*place, share)
    assert whole.root()[0][0] == recursive(values)


# The objective ----------------------------------------------------------------------------------


def assert_equals_reference(case, objective, mask=None):
    dtype = case.net.dtype.name
    arguments = (*case.arguments, mask)
    J, g = objective.value_and_gradient(case.net.theta)
    assert relative(J, sum(reference.terms(*arguments).values())) < TOLERANCE[dtype]
    assert max(reference.layer_errors(case.twin, g, reference.gradient(*arguments))) < TOLERANCE[dtype]
    expected = reference.rho_hat(case.twin, case.theta, case.X.astype(np.float64), case.weights)
    for found, wanted in zip(objective.rho_hat(case.net.theta), expected, strict=True):
        assert reference.relative_error(found, wanted) < TOLERANCE[dtype]
    assert objective.n_examples == (len(case.X) if case.weights is None else np.count_nonzero(case.weights))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_partitions_equal_the_reference(dtype):
    case = sparse_case(500, dtype=dtype)
    parts = [(case.X[:200], case.Y[:200]), (case.X[200:201], case.Y[200:201]), (case.X[201:], case.Y[201:])]
    assert_equals_reference(case, PartitionedObjective(case.net, parts))


def cut(case, cuts, weights=None, mask=None):
    """Return partitions that end where `cuts` says."""
    columns = [case.X, case.Y, weights, mask]
    ends = [0, *cuts, len(case.X)]
    return [tuple(None if column is None else column[begin:end] for column in columns) for begin, end in pairwise(ends)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@settings(max_examples=15)
@given(data=st.data())
def test_weights_and_masks_equal_the_reference(dtype, data):
    m = 60
    cuts = sorted(data.draw(st.sets(st.integers(1, m - 1), min_size=1, max_size=6), "cuts"))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), "seed"))
    weights = rng.uniform(0.1, 2.0, m) * (rng.random(m) < 0.8)
    mask = rng.random((m, 9)) < 0.7
    masked, weighted = data.draw(st.booleans(), "masked"), data.draw(st.booleans(), "weighted")
    # Some partitions weigh nothing, much less or much more; in some no target counts.
    for begin, end in pairwise([0, *cuts, m]):
        weights[begin:end] *= data.draw(st.sampled_from([0.0, 1.0, 1.0, 2.0**-40, 1e6]), "scale")
        mask[begin:end] &= data.draw(st.sampled_from([True, True, False]), "counts")
    weights[-1], mask[-1] = 1.0, True
    case = sparse_case(m, dtype=dtype, sample_weight=weights if weighted else None, seed=int(rng.integers(99)))
    case.Y[~mask & masked] = np.nan
    parts = cut(case, cuts, case.sample_weight, mask if masked else None)
    assert_equals_reference(case, PartitionedObjective(case.net, parts), mask if masked else None)


def test_only_ratios_of_weights_matter_to_the_bit_and_no_scale_overflows():
    case = sparse_case(90)
    weights = np.random.default_rng(0).integers(1, 16, 90) / 8
    found = []
    for scale in (1.0, 2.0**1000, 2.0**-1060):  # the last brings weights below the normal numbers
        objective = PartitionedObjective(case.net, cut(case, [20, 70], weights * scale))
        J, g = objective.value_and_gradient(case.net.theta)
        found.append((J, bits(g)))
    assert found[0] == found[1] == found[2]
    extremes = weights * np.repeat([1e300, 1.0, 1e-300], 30)
    first = PartitionedObjective(case.net, cut(case, [30, 60], extremes)).value_and_gradient(case.net.theta)
    alone = mlpkit.Objective(case.net, case.X[:30], case.Y[:30], weights[:30]).value_and_gradient(case.net.theta)
    assert relative(first[0], alone[0]) < 1e-13
    np.testing.assert_allclose(first[1], alone[1], rtol=1e-10, atol=1e-14)


def test_weights_of_one_are_no_weights_and_may_be_missing_in_some_partitions():
    case = sparse_case(90)
    plain = PartitionedObjective(case.net, cut(case, [40])).value_and_gradient(case.net.theta)
    ones = cut(case, [40], np.ones(90))
    mixed = [ones[0], (*ones[1][:2], None)]
    for parts in (ones, mixed):
        found = PartitionedObjective(case.net, parts).value_and_gradient(case.net.theta)
        assert (found[0], bits(found[1])) == (plain[0], bits(plain[1]))


def test_weights_and_masks_are_part_of_the_fingerprint():
    case = sparse_case(20)
    weights, mask = np.ones(20), np.ones((20, 9), bool)
    found = {
        PartitionedObjective(case.net, cut(case, [10], *extra)).fingerprint
        for extra in [(), (weights,), (2 * weights,), (None, mask), (weights, mask)]
    }
    assert len(found) == 5


def test_weights_and_masks_in_files(tmp_path):
    case = sparse_case(50)
    weights, mask = np.arange(50.0), case.Y > -0.5
    parts = cut(case, [30], weights, mask)
    files = []
    for i, part in enumerate(parts):
        files.append([tmp_path / f"{name}{i}.npy" for name in ("X", "Y", "w", "mask")])
        for path, array in zip(files[-1], part, strict=True):
            np.save(path, array)
    inside = PartitionedObjective(case.net, parts)
    outside = PartitionedObjective(case.net, files)
    assert bits(outside.value_and_gradient(case.net.theta)[1]) == bits(inside.value_and_gradient(case.net.theta)[1])
    assert outside.fingerprint == inside.fingerprint


def test_tied_weights_decay_once():
    net = mlpkit.MLP(
        [mlpkit.Input(3), mlpkit.Dense(2, "tanh"), mlpkit.Dense(3, "identity", tied_to=1)], weight_decay=0.3, seed=0
    )
    X = np.random.default_rng(0).normal(size=(50, 3))
    found = PartitionedObjective(net, [(X[:20], X[:20]), (X[20:], X[20:])]).terms_and_gradient(net.theta)
    terms, gradient = mlpkit.Objective(net, X, X).terms_and_gradient(net.theta)
    assert found[0] == pytest.approx(terms, rel=1e-12)
    np.testing.assert_allclose(found[1], gradient, rtol=1e-12, atol=1e-15)


# What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [[], "x", ["xy"], None, [([1.0],)], [(1, 2, 3, 4, 5)]])
def test_partitions_are_tuples(partitions):
    with pytest.raises(InvalidArgumentError, match=r"partitions must be a list of \(X, Y\), \(X, Y, sample_weight\)"):
        PartitionedObjective(sparse_case(5).net, partitions)


@pytest.mark.parametrize(
    ("weights", "mask", "message"),
    [
        (np.zeros(20), None, "sample_weight must not be all zero; found no other weight in any partition"),
        (
            np.r_[np.ones(12), -1.0, np.ones(7)],
            None,
            r"sample_weight must not be negative; .* row 2 \(in partition 1\)",
        ),
        (np.r_[np.ones(12), np.nan, np.ones(7)], None, r"sample_weight must be finite.* \(in partition 1\)"),
        (np.ones((20, 2)), None, r"sample_weight must have one dimension; found shape \(10, 2\) \(in partition 0\)"),
        (None, np.zeros((20, 9), bool), "mask must be True somewhere; found no target that counts in any partition"),
        (None, np.ones((20, 9)), r"mask must hold True where .* found dtype float64 \(in partition 0\)"),
        (None, np.ones((20, 8), bool), r"mask must have the shape of the targets, \(10, 9\); found \(10, 8\)"),
    ],
)
def test_weights_and_masks_that_are_refused(weights, mask, message):
    case = sparse_case(20)
    with pytest.raises(InvalidArgumentError, match=message):
        PartitionedObjective(case.net, cut(case, [10], weights, mask))


def test_partitions_without_weight_are_checked_too():
    case = sparse_case(20)
    case.X[3, 4] = np.inf
    weights = np.repeat([0.0, 1.0], 10)
    with pytest.raises(InvalidArgumentError, match=r"X must be finite.* row 3 column 4 .*\(in partition 0\)"):
        PartitionedObjective(case.net, cut(case, [10], weights))
    with pytest.raises(InvalidArgumentError, match=r"sample_weight must have shape \(10,\); found shape \(9,\)"):
        PartitionedObjective(case.net, [(case.X[:10], case.Y[:10], np.zeros(9)), *cut(case, [10], weights)[1:]])
