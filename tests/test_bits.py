"""To the bit: the same numbers in both memory modes, at any number of threads, and whatever other rows there are."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from cases import DTYPES, SUMS, THREADS, bits, sparse_case, summed, threads
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cases

import mlpkit


@SUMS
@DTYPES
@settings(max_examples=25)
@given(data=st.data())
def test_both_memory_modes_give_the_same_bits(dtype, by_rows, data):
    case = data.draw(cases(dtype=dtype))
    theta = case.net.theta.copy()
    with summed(by_rows):
        kept, recomputed = (case.objective(keep_activations=keep) for keep in (True, False))
    J, g = kept.value_and_gradient(theta)
    J2, g2 = recomputed.value_and_gradient(theta)
    assert J == J2
    assert bits(g, *kept.rho_hat(theta)) == bits(g2, *recomputed.rho_hat(theta))


@SUMS
@DTYPES
@settings(max_examples=20)
@given(data=st.data())
def test_any_number_of_threads_gives_the_same_bits(dtype, by_rows, data):
    case = data.draw(cases(dtype=dtype))
    results = []
    for n in THREADS:
        with threads(n), summed(by_rows):
            J, g = case.objective().value_and_gradient(case.net.theta)
            results.append((J, bits(g, case.net.predict(case.X))))
    assert all(result == results[0] for result in results)


@DTYPES
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("sizes", [(20, 15, 9), (150, 260, 131)])
def test_threads_give_the_same_bits_over_many_strips(dtype, keep, sizes):
    case = sparse_case(6007, dtype=dtype, sizes=sizes)
    objective = case.objective(keep_activations=keep)
    results = []
    for n in THREADS:
        with threads(n):
            J, g = objective.value_and_gradient(case.net.theta)
            J2, g2 = case.objective(keep_activations=keep).value_and_gradient(case.net.theta)
            results += [(J, bits(g)), (J2, bits(g2))]
    assert all(result == results[0] for result in results)


@DTYPES
def test_training_gives_the_same_bits(dtype):
    case = sparse_case(3001, dtype=dtype)
    start = case.net.theta.copy()
    results = []
    for n in THREADS:
        for keep in (True, False):
            with threads(n):
                case.net.theta = start
                result = case.net.fit(
                    case.X,
                    case.Y,
                    optimizer=mlpkit.LBFGS(max_iter=50, ftol=0.0, gtol=0.0),
                    keep_activations=keep,
                )
                assert result.n_iterations == 50
                predictions = case.net.predict(case.X)
                results.append((result.cost, bits(case.net.theta, predictions)))
    assert all(result == results[0] for result in results)


@DTYPES
@settings(max_examples=25)
@given(data=st.data())
def test_a_row_s_prediction_ignores_the_other_rows(dtype, data):
    case = data.draw(cases(dtype=dtype, n_examples=st.sampled_from((2, 7, 33, 129, 300))))
    net, X = case.net, case.X
    whole = net.predict(X)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(X))
    assert bits(net.predict(X[order])) == bits(whole[order])
    for i in rng.integers(0, len(X), 5):
        assert bits(net.predict(X[i : i + 1])[0]) == bits(whole[i])
        strangers = rng.normal(0.0, 1e3, X.shape).astype(dtype)
        strangers[0] = X[i]
        assert bits(net.predict(strangers)[0]) == bits(whole[i])
    assert bits(net.activations(X)[-1]) == bits(whole)


def test_predictions_equal_the_reference():
    case = sparse_case(200)
    _, activations = reference.forward(case.twin, case.theta, case.X)
    found = case.net.activations(case.X)
    assert len(found) == case.net.n_layers - 1
    for a, b in zip(found, activations[1:], strict=True):
        assert a.shape == b.shape
        assert reference.relative_error(a, b) < 1e-14
