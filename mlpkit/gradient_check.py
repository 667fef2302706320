"""Gradient checking: the analytic gradient against central differences, section 2.3 of the notes.

For each parameter, g_i(theta) should agree with

    (J(theta + EPSILON e_i) - J(theta - EPSILON e_i)) / (2 EPSILON)

to at least four significant digits when EPSILON = 1e-4. An implementation that drops the bias or
trains only some layers still learns something plausible; this finds it out.

Three levels: `numerical_gradient` differentiates any function; `compare_gradients` checks any
function that returns a value and a gradient, block by block; `check_gradient` does that for a
network and its data.

Differences are always taken in float64. In float32, J has seven digits, so that differences at
EPSILON = 1e-4 keep two or three; the gradient of a float32 network is therefore compared with that
of a float64 copy, and the copy's with differences.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit.checks import check_integer, check_number, check_vector
from mlpkit.errors import InvalidArgumentError, TargetRangeWarning
from mlpkit.gradient_report import BlockCheck, GradientReport
from mlpkit.kernels.jit import blas_limited
from mlpkit.layers import parameter_blocks
from mlpkit.mlp import MLP, check_network
from mlpkit.objective import Objective
from mlpkit.weights import ClassWeight

__all__ = [
    "BlockCheck",
    "GradientReport",
    "check_gradient",
    "compare_gradients",
    "numerical_gradient",
]

#: Four significant digits, as the notes ask for.
TOLERANCE = 1e-4

# The rounding error of J, or in float32 of its gradient, is taken to be this many eps |J|.
_ROUNDING = 10.0

_MOST_PARAMETERS_ONE_BY_ONE = 2000
_SAMPLED_COORDINATES = 400
_FEWEST_IN_A_BLOCK = 10
_DIRECTIONS_IN_A_BLOCK = 8


def numerical_gradient(
    fun: Callable[[NDArray[np.float64]], Any], theta: ArrayLike, epsilon: float = 1e-4
) -> NDArray[np.float64]:
    """Return the gradient of any function of a vector by central differences.

    Element i is (J(theta + epsilon e_i) - J(theta - epsilon e_i)) / (2 epsilon), section 2.3 of the
    notes.

    Parameters
    ----------
    fun : callable
        J: takes a float64 vector, which is its own to keep or change, and returns a number.
    theta : array-like, shape (n,)
        Where to differentiate; it is not changed.
    epsilon : float
        The step, positive.

    Returns
    -------
    ndarray of float64, shape (n,)

    Raises
    ------
    InvalidArgumentError
        If `epsilon` is so small beside a parameter that theta_i + epsilon is theta_i in floating
        point (the error names i), or if `fun` does not return one finite number.

    Examples
    --------
    >>> numerical_gradient(lambda theta: theta[0] ** 2 * theta[1], [3.0, 2.0]).round(6)
    array([12.,  9.])
    """
    if not callable(fun):
        raise InvalidArgumentError(f"fun must be callable; found {fun!r}")
    point = check_vector(theta, "theta")
    step = _check_epsilon(epsilon, point)
    return _differences(fun, point, np.arange(point.size), step)


def compare_gradients(
    value_and_gradient: Callable[[NDArray[np.float64]], tuple[float, ArrayLike]],
    theta: ArrayLike,
    blocks: Mapping[str, slice],
    epsilon: float = 1e-4,
    *,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> GradientReport:
    """Check the gradient that a function returns against differences of the value that it returns.

    Up to 2000 parameters, every one is differentiated. Above that a sample is, at least ten in each
    block, and beside it the slopes along eight random directions in each block, to which every
    parameter of the block contributes.

    Parameters
    ----------
    value_and_gradient : callable
        theta -> (J, gradient).
    theta : array-like, shape (n,)
        Where to check.
    blocks : mapping of str to slice
        The parts of theta to report on, each judged by its own norm, so that an error in a small
        part is not lost beside a large one.
    epsilon : float
        The step, positive.
    tolerance : float
        The relative error from which on a block is wrong.
    seed : int
        Seed of the sample and the directions.

    Returns
    -------
    GradientReport

    Raises
    ------
    InvalidArgumentError
        As `numerical_gradient` does, and if `blocks` is empty or the gradient has not the shape of
        theta.

    Notes
    -----
    A value J carries a rounding error of up to 10 eps |J|, hence a difference one of 10 eps |J| /
    epsilon. Where a block's gradient is so small that this alone would reach the tolerance, the
    error is measured relative to that smallest meaningful norm instead of to the gradient's own.

    Differences also have an error of their own of order epsilon**2, which beside a small gradient
    (near a minimum) can reach the tolerance. So a block that fails is looked at again with steps
    epsilon and epsilon / 2 combined such that this error cancels, (4 D(epsilon / 2) - D(epsilon)) /
    3. A wrong gradient fails both ways.

    At a kink (relu at exactly z = 0) differences and gradient disagree and neither is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> def wrong(theta):
    ...     return float(theta @ theta), np.array([2 * theta[0], theta[1]])
    >>> print(compare_gradients(wrong, [1.0, 2.0], {"first": slice(0, 1), "second": slice(1, 2)}))
    gradient check FAILED: largest relative error 3.3e-01 (below 0.0001 is right, epsilon 0.0001)
      first   ...  ok     1 of 1 parameters one by one
      second  3.3e-01  WRONG  1 of 1 parameters one by one
    """
    point = check_vector(theta, "theta")
    step = _check_epsilon(epsilon, point)
    tolerance = check_number(tolerance, "tolerance", low=0, low_open=True)
    generator = np.random.default_rng(check_integer(seed, "seed", low=0))
    kept = {name: np.arange(point.size)[where] for name, where in blocks.items()}
    kept = {name: where for name, where in kept.items() if where.size}
    if not kept:
        raise InvalidArgumentError("blocks must hold at least one parameter; found none")

    def value(at: NDArray[np.float64]) -> Any:
        return value_and_gradient(at)[0]

    halvable = _lost(point, step / 2).size == 0
    cost, gradient = value_and_gradient(point.copy())
    analytic = check_vector(gradient, "gradient", length=point.size)
    rounding = _ROUNDING * np.finfo(np.float64).eps * abs(float(cost)) / (step * tolerance)
    checks = []
    for name, where in kept.items():
        everything = point.size <= _MOST_PARAMETERS_ONE_BY_ONE
        chosen = where if everything else _sample(where, point.size, generator)
        pairs = [_Pair(analytic[chosen], partial(_differences, value, point, chosen))]
        if not everything:
            # Of length 1, so that the step along them has the length that epsilon says.
            V = generator.choice([-1.0, 1.0], (_DIRECTIONS_IN_A_BLOCK, where.size))
            V /= np.sqrt(where.size)
            pairs.append(_Pair(V @ analytic[where], partial(_slopes, value, point, where, V)))
        error = max(pair.error(step, rounding, tolerance, halvable) for pair in pairs)
        checks.append(BlockCheck(name, where.size, chosen.size, error, error < tolerance))
    return GradientReport(tuple(checks), step, tolerance)


def check_gradient(
    net: MLP,
    X: ArrayLike,
    Y: ArrayLike,
    epsilon: float = 1e-4,
    sample_weight: ArrayLike | None = None,
    *,
    class_weight: ClassWeight | None = None,
    mask: ArrayLike | None = None,
    seed: int = 0,
) -> GradientReport:
    """Check the gradient of a network's objective at its present parameters, on any data.

    A few dozen examples are enough, and quick: every parameter costs two evaluations. Up to 2000
    parameters all are checked; see `compare_gradients` for larger networks and for how errors are
    measured.

    Parameters
    ----------
    net : MLP
        It is not changed.
    X : array-like, shape (m, s_1)
        Inputs, one example a row.
    Y : array-like, shape (m, s_nl) or (m,)
        Targets or class labels.
    epsilon : float
        The step of the differences, positive.
    sample_weight : array-like, shape (m,), optional
        Weights of the examples.
    class_weight, mask
        Weights of the classes, and which targets count; as `mlpkit.Objective` takes them.
    seed : int
        Seed of the sample of parameters in large networks.

    Returns
    -------
    GradientReport
        Its ``ok`` says whether gradient and differences agree to four digits in every W and b.

    Raises
    ------
    InvalidArgumentError
        As `numerical_gradient` does, and for data that do not fit the network.

    Examples
    --------
    >>> import mlpkit
    >>> net = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(1, "sigmoid")], seed=0)
    >>> report = check_gradient(net, [[0.1, 0.9], [0.8, 0.3]], [[1.0], [0.0]])
    >>> report.ok
    True
    """
    check_network(net)
    blocks: dict[str, slice] = {}
    for number, block in enumerate(parameter_blocks(net.layers), start=1):
        blocks[f"W^({number})"] = block.own_weights
        blocks[f"b^({number})"] = slice(block.b, block.end)
    theta = net.theta.astype(np.float64)
    with blas_limited():
        objective = Objective(net, X, Y, sample_weight, class_weight=class_weight, mask=mask)
        if net.dtype == np.float64:
            return compare_gradients(objective.value_and_gradient, theta, blocks, epsilon, seed=seed)
        _, single = objective.value_and_gradient(net.theta.copy())
        gradient32 = check_vector(single, "gradient in float32", length=theta.size)
        # The same rounded data in both, so that what is compared is the arithmetic.
        X, Y, sample_weight = (_rounded(values, net.dtype) for values in (X, Y, sample_weight))
        with warnings.catch_warnings():  # about targets: the first objective has warned
            warnings.simplefilter("ignore", TargetRangeWarning)
            exact = Objective(_float64_copy(net), X, Y, sample_weight, class_weight=class_weight, mask=mask)
        report = compare_gradients(exact.value_and_gradient, theta, blocks, epsilon, seed=seed)
        cost, gradient = exact.value_and_gradient(theta)
    smallest = _ROUNDING * float(np.finfo(net.dtype).eps) * abs(cost) / TOLERANCE
    checks = []
    for check in report.layers:
        where = blocks[check.name]
        error = max(check.relative_error, _relative_error(gradient32[where], gradient[where], smallest))
        checks.append(BlockCheck(check.name, check.n_parameters, check.n_checked, error, error < TOLERANCE))
    return GradientReport(tuple(checks), report.epsilon, report.tolerance)


@dataclass(frozen=True)
class _Pair:
    """Analytic derivatives, and how to get their numerical counterparts for a step."""

    analytic: NDArray[np.float64]
    numerical: Callable[[float], NDArray[np.float64]]

    def error(self, step: float, rounding: float, tolerance: float, halvable: bool) -> float:
        coarse = self.numerical(step)
        error = _relative_error(self.analytic, coarse, rounding)
        if error >= tolerance and halvable:
            better = (4.0 * self.numerical(step / 2) - coarse) / 3.0
            error = min(error, _relative_error(self.analytic, better, rounding))
        return error


def _relative_error(g: NDArray[np.float64], n: NDArray[np.float64], smallest: float = 0.0) -> float:
    """Return ||g - n|| / (||g|| + ||n||), 0 for two zeros.

    `smallest` is the root mean square below which a gradient is too small to be measured.
    """
    norms = float(np.linalg.norm(g) + np.linalg.norm(n))
    scale = max(norms, smallest * math.sqrt(g.size))
    difference = float(np.linalg.norm(g - n))
    return 0.0 if difference == 0 else difference / scale


def _lost(theta: NDArray[np.float64], step: float) -> NDArray[np.intp]:
    """Return the parameters that a step leaves as they are, because it is rounded away."""
    return np.flatnonzero((theta + step == theta) | (theta - step == theta))


def _check_epsilon(epsilon: float, theta: NDArray[np.float64]) -> float:
    step = check_number(epsilon, "epsilon", low=0, low_open=True)
    lost = _lost(theta, step)
    if lost.size:
        index = int(lost[0])
        raise InvalidArgumentError(
            f"epsilon must be large enough to change every parameter; found {step:g}, which is "
            f"lost to rounding beside theta[{index}] = {float(theta[index])!r}"
        )
    return step


def _differences(
    fun: Callable[[NDArray[np.float64]], Any],
    theta: NDArray[np.float64],
    chosen: NDArray[np.intp],
    step: float,
) -> NDArray[np.float64]:
    """Return the central differences of `fun` for the chosen parameters."""
    gradient = np.empty(chosen.size)
    for k, index in enumerate(chosen):
        above, below = theta.copy(), theta.copy()
        above[index] += step
        below[index] -= step
        # theta_i + epsilon rounds, so the distance that was really walked is divided by.
        distance = above[index] - below[index]
        high, low = (_value(fun, at, f"theta[{index}]", step) for at in (above, below))
        gradient[k] = (high - low) / distance
    return gradient


def _slopes(
    fun: Callable[[NDArray[np.float64]], Any],
    theta: NDArray[np.float64],
    where: NDArray[np.intp],
    V: NDArray[np.float64],
    step: float,
) -> NDArray[np.float64]:
    """Return the central differences of `fun` along each row of `V`, in the parameters `where`."""
    slopes = np.empty(len(V))
    for k, direction in enumerate(V):
        above, below = theta.copy(), theta.copy()
        above[where] += step * direction
        below[where] -= step * direction
        high, low = (_value(fun, at, "a random direction", step) for at in (above, below))
        slopes[k] = (high - low) / (2.0 * step)
    return slopes


def _value(fun: Callable[[NDArray[np.float64]], Any], at: NDArray[np.float64], where: str, step: float) -> float:
    result = fun(at)
    if isinstance(result, np.ndarray) and result.ndim == 0:
        result = result[()]
    if not isinstance(result, numbers.Real) or not math.isfinite(result):
        raise InvalidArgumentError(
            f"fun must return one finite number; found {result!r} a step of {step:g} along {where}"
        )
    return float(result)


def _sample(where: NDArray[np.intp], n_parameters: int, generator: np.random.Generator) -> NDArray[np.intp]:
    """Choose parameters of a block, in proportion to its size but never too few."""
    share = round(_SAMPLED_COORDINATES * where.size / n_parameters)
    size = min(where.size, max(_FEWEST_IN_A_BLOCK, share))
    return np.sort(generator.choice(where, size, replace=False))


def _float64_copy(net: MLP) -> MLP:
    double = type(net)(net.layers, loss=net.loss, weight_decay=net.weight_decay, dtype="float64", seed=0)
    double.theta = net.theta.astype(np.float64)
    return double


def _rounded(values: Any, dtype: np.dtype[Any]) -> Any:
    """Return `values` rounded to `dtype`, in float64; None and integers (labels) as they are."""
    if values is None or np.asarray(values).dtype.kind != "f":
        return values
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(dtype).astype(np.float64)
