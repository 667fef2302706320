"""The classic mistakes in a gradient, seeded one at a time: each must be flagged.

Each mistake is an edit of one line of `reference.gradient`. What it gives is put in the place of
the gradient that an `Objective` returns, whose J stays true, and `mlpkit.check_gradient` is
asked what it thinks of that; the true gradient in the same place must pass. The comparison with the
twin that test_objective.py makes must flag each mistake as well.
"""

from __future__ import annotations

import inspect
import types

import numpy as np
import pytest
import reference

import mlpkit
from mlpkit import MLP, Dense, Input, KLSparsity, L1Sparsity, Objective

# name: (the line as it should be, the line with the mistake)
MISTAKES = {
    "dropped bias gradient": ("sum_b[k] += share * delta", "sum_b[k] += 0 * delta"),
    "missing 1/m": ("share = theta.dtype.type(w[i] / w.sum())", "share = theta.dtype.type(w[i])"),
    "decayed bias": (
        "sum_W[k] += layer.weight_decay * weights[k]",
        "sum_W[k] += layer.weight_decay * weights[k]; sum_b[k] += layer.weight_decay * biases[k]",
    ),
    "off-by-one layer": ("for k in range(last, -1, -1):", "for k in range(last, 0, -1):"),
    "another example's activations": (
        "np.outer(delta, activations[k][i])",
        "np.outer(delta, activations[k][i - 1])",
    ),
    "unweighted rho_hat": (
        "means = mean_firing(network, activations, w)",
        "means = mean_firing(network, activations, np.ones_like(w))",
    ),
    "missing tanh factor 1/2": ("penalty.beta * slope * penalty.first", "penalty.beta * penalty.first"),
    "hidden sparsity without f'": (
        "pullback(name, z, a, weights[k + 1].T @ delta + pulls[k])",
        "pullback(name, z, a, weights[k + 1].T @ delta) + pulls[k]",
    ),
    "output sparsity without f'": (
        "output_delta(network.loss, name, z, a, Y[i]) + pullback(name, z, a, pulls[k])",
        "output_delta(network.loss, name, z, a, Y[i]) + pulls[k]",
    ),
    "no sparsity term": (
        "weights[k + 1].T @ delta + pulls[k])",
        "weights[k + 1].T @ delta)",
    ),
    "W not transposed": ("weights[k + 1].T @ delta", "weights[k + 1] @ delta"),
}

# The same for a case with tied weights, L1 penalties and masked targets.
RICHER = {
    "no L1 term": ("pull + l1_slope(layer, a[i])", "pull"),
    "L1 by value instead of sign": ("l1_slope(layer, a[i])", "layer.strength * a[i]"),
    "hidden L1 without f'": MISTAKES["hidden sparsity without f'"],
    "output L1 without f'": MISTAKES["output sparsity without f'"],
    "mask ignored": ("hide(Y, mask)", "Y"),
    "masked examples dropped": (
        "w, Y = example_weights(X, sample_weight), hide(Y, mask)",
        "w, Y = example_weights(X, sample_weight) * mask.all(axis=1), hide(Y, mask)",
    ),
    "mask in the denominator": (
        "share = theta.dtype.type(w[i] / w.sum())",
        "share = theta.dtype.type(w[i] / (w @ mask.mean(axis=1)))",
    ),
    "tied gradient dropped": ("fold(network, sum_W)", "owned(network, sum_W)"),
    "tied weights decayed twice": (
        "sum_W[k] += layer.weight_decay * weights[k]",
        "sum_W[k] += network.layers[0].weight_decay * weights[k]",
    ),
    "tied W not transposed": ("weights[k + 1].T @ delta", "weights[k + 1] @ delta"),
}

# Mistakes made consistently in J and its gradient pass every gradient check: only the twin tells.
CONSISTENT = {
    "missing 1/m": {
        "gradient": [("output_delta(net", "w.sum() * output_delta(net")],
        "terms": [(".sum() / w.sum()", ".sum()")],
    },
    "decayed bias": {
        "gradient": [MISTAKES["decayed bias"]],
        "terms": [
            (
                "weights, _ = unroll(network, theta)",
                "weights = [np.column_stack(pair) for pair in zip(*unroll(network, theta))]",
            )
        ],
    },
    "unweighted rho_hat": {
        "gradient": [
            MISTAKES["unweighted rho_hat"],
            ("+ pulls[k]", "+ pulls[k] * (w.sum() / len(w) / w[i])"),
            ("z, a, pulls[k]", "z, a, pulls[k] * (w.sum() / len(w) / w[i])"),
        ],
        "terms": [MISTAKES["unweighted rho_hat"]],
    },
}


def mutated(function, *edits):
    """Return a copy of a function of `reference` with each (right, wrong) text replaced."""
    source = inspect.getsource(getattr(reference, function))
    for right, wrong in edits:
        assert source.count(right) == 1, f"the line to break is no longer there: {right}"
        source = source.replace(right, wrong)
    namespace = dict(vars(reference))
    exec(source, namespace)
    return namespace[function]


@pytest.fixture
def case():
    """A weighted case in which each mistake has something to spoil."""
    rng = np.random.default_rng(5)
    net = MLP(
        [
            Input(6),
            Dense(4, "tanh", sparsity=KLSparsity(0.1, 2.0)),
            Dense(4, "sigmoid", sparsity=KLSparsity(0.2, 1.0)),
            Dense(4, "tanh", sparsity=KLSparsity(0.3, 1.5)),
        ],
        weight_decay=0.1,
    )
    net.theta = rng.normal(0.0, 0.5, net.n_parameters)
    X, Y = rng.normal(size=(7, 6)), rng.uniform(-0.9, 0.9, (7, 4))
    w = np.array([1.0, 2.0, 0.5, 4.0, 1.0, 0.25, 3.0])
    return types.SimpleNamespace(net=net, X=X, Y=Y, w=w, twin=reference.describe(net))


@pytest.fixture
def richer():
    """A case with tied weights, L1 penalties, and masked targets."""
    rng = np.random.default_rng(6)
    layers = [
        Input(4),
        Dense(4, "tanh", sparsity=L1Sparsity(0.5)),
        Dense(4, "tanh", tied_to=1, sparsity=(KLSparsity(0.3, 1.0), L1Sparsity(0.4))),
    ]
    net = MLP(layers, weight_decay=0.1)
    net.theta = rng.normal(0.0, 0.5, net.n_parameters)
    X, Y = rng.normal(size=(9, 4)), rng.uniform(-0.9, 0.9, (9, 4))
    w, mask = rng.integers(1, 5, 9) / 2, rng.random((9, 4)) < 0.7
    return types.SimpleNamespace(net=net, X=X, Y=Y, w=w, mask=mask, twin=reference.describe(net))


def check_with_gradient(case, monkeypatch, gradient):
    """Run mlpkit.check_gradient on the true J with `gradient` in place of the engine's."""
    calls, mask = [], getattr(case, "mask", None)

    class Seeded(Objective):
        def value_and_gradient(self, theta, out=None):
            J, g = super().value_and_gradient(theta, out)
            calls.append(J)
            g[:] = gradient(case.twin, np.array(theta, np.float64), case.X, case.Y, case.w, mask)
            return J, g

    monkeypatch.setattr(mlpkit.gradient_check, "Objective", Seeded)
    report = mlpkit.check_gradient(case.net, case.X, case.Y, sample_weight=case.w, mask=mask)
    assert calls, "check_gradient never asked for the gradient"
    return report


@pytest.mark.parametrize("name", ["case", "richer"])
def test_the_true_gradient_passes(name, request, monkeypatch):
    report = check_with_gradient(request.getfixturevalue(name), monkeypatch, reference.gradient)
    assert report.ok
    assert report.max_relative_error < 1e-6


@pytest.mark.parametrize("name", MISTAKES)
def test_check_gradient_flags(case, monkeypatch, name):
    report = check_with_gradient(case, monkeypatch, mutated("gradient", MISTAKES[name]))
    assert not report.ok
    assert report.max_relative_error > 1e-3


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("dropped bias gradient", {"b^(1)", "b^(2)", "b^(3)"}),
        ("decayed bias", {"b^(1)", "b^(2)", "b^(3)"}),
        ("off-by-one layer", {"W^(1)", "b^(1)"}),
    ],
)
def test_check_gradient_says_where(case, monkeypatch, name, blocks):
    report = check_with_gradient(case, monkeypatch, mutated("gradient", MISTAKES[name]))
    assert {block.name for block in report.layers if not block.ok} == blocks


@pytest.mark.parametrize("name", MISTAKES)
def test_comparison_with_the_twin_flags(case, name):
    data = (case.twin, case.net.theta.copy(), case.X, case.Y, case.w)
    _, g = Objective(case.net, case.X, case.Y, case.w).value_and_gradient(case.net.theta)
    assert max(reference.layer_errors(case.twin, g, reference.gradient(*data))) < 1e-12
    wrong = mutated("gradient", MISTAKES[name])(*data)
    assert max(reference.layer_errors(case.twin, g, wrong)) > 1e-3


@pytest.mark.parametrize("name", CONSISTENT)
def test_comparison_flags_what_no_gradient_check_can(case, name):
    theta = case.net.theta.copy()
    data = (case.X, case.Y, case.w)
    broken = {f: mutated(f, *edits) for f, edits in CONSISTENT[name].items()}
    # consistent indeed: the wrong gradient is the derivative of the wrong J
    numerical = reference.central_difference(lambda t: sum(broken["terms"](case.twin, t, *data).values()), theta)
    wrong = broken["gradient"](case.twin, theta, *data)
    assert reference.relative_error(wrong, numerical) < 1e-6
    J, g = Objective(case.net, *data).value_and_gradient(theta)
    assert max(reference.layer_errors(case.twin, g, wrong)) > 1e-3
    wrong_J = sum(broken["terms"](case.twin, theta, *data).values())
    assert abs(J - wrong_J) > 1e-3 * J


@pytest.mark.parametrize("name", RICHER)
def test_mistakes_with_ties_masks_and_l1_are_flagged(richer, monkeypatch, name):
    wrong = mutated("gradient", RICHER[name])
    report = check_with_gradient(richer, monkeypatch, wrong)
    assert not report.ok
    assert report.max_relative_error > 1e-3
    theta, data = richer.net.theta.copy(), (richer.X, richer.Y, richer.w)
    _, g = Objective(richer.net, *data, mask=richer.mask).value_and_gradient(theta)
    errors = [
        max(reference.layer_errors(richer.twin, g, gradient(richer.twin, theta, *data, richer.mask)))
        for gradient in (reference.gradient, wrong)
    ]
    assert errors[0] < 1e-12
    assert errors[1] > 1e-3
