"""What the tests of the twin have in common: the names it knows, points without kinks, and comparisons."""

import numpy as np
import reference
import reference_functions as functions
import reference_losses as losses

STEP = 1e-30
PARAMETRISED = ("leaky_relu(0.2)", "elu(0.5)", "top_k(1)", "top_k(3)")
ELEMENTWISE = [name for name in functions.FACTORIES if name not in ("softmax", "top_k")] + list(PARAMETRISED[:2])
COUPLED = ["softmax", *PARAMETRISED[2:]]
LOSSES = [*losses.LOSS_FACTORIES, "huber(0.3)", "quantile(0.9)"]
PAIRS = [(loss, name) for loss in LOSSES for name in ELEMENTWISE + COUPLED if losses.allowed(loss, name)]
GRID = np.setdiff1d(np.linspace(-6, 6, 97), [-3, -1, 0, 1, 3])


def close(found, expected, tolerance=1e-12):
    """Whether two arrays have one shape, and numbers that differ by rounding."""
    # A gradient that is 0 but for rounding, as of a softmax over one unit, has no digits to compare.
    tiny = np.abs(np.subtract(found, expected)).max() < 1e-16
    return np.shape(found) == np.shape(expected) and (tiny or reference.relative_error(found, expected) < tolerance)


def targets_for(loss, shape, rng):
    low, high = losses.loss(loss).targets
    return rng.uniform(max(low, -2), min(high, 2), shape)
