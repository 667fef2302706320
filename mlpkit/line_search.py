"""A line search for the strong Wolfe conditions, shared by all our optimisers.

With phi(t) = J(theta + t d) along a direction d in which J falls, phi'(0) < 0, a step t is wanted with

    phi(t) <= phi(0) + decrease t phi'(0)        (J falls enough)
    |phi'(t)| <= curvature |phi'(0)|             (and the slope has flattened)

The search is that of Moré and Thuente, "Line search algorithms with guaranteed sufficient decrease", ACM TOMS 20
(1994): it keeps the *best* step so far and an *other* end, between which, once it is known, such a step must lie; the
next trial comes from cubics and parabolas through what is known. Until a step is found where J falls enough and rises
again, they are drawn through psi(t) = phi(t) - phi(0) - decrease t phi'(0) where that is the safer guide.

A trial at which J or its gradient is NaN or infinite is a rejected step. It becomes the other end, infinitely high, and
the next trial lies a quarter of the way to it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mlpkit.descent import Evaluate, Point, Vector, evaluate_at

__all__ = ["Trial", "line_search"]

# Trials at which J is finite, and at which it is not: (1/4)**100 of the first step is shorter than any that counts.
_MOST_TRIALS = 20
_MOST_REJECTED = 100
_SHRINK = 0.25
# Where the slope says that a step is good, but J changes by no more than this part of it, it will not fall any more.
_ROUNDING = 2 * float(np.finfo(np.float64).eps)
# Without an upper end, the next trial is 1.1 to 4 times as far beyond the latest as that is beyond the best.
_LEAST_GROWTH, _MOST_GROWTH = 1.1, 4.0
# Two trials that leave more than this of the interval are followed by one in its middle.
_LEAST_CUT = 0.66


class Trial(NamedTuple):
    """A step that has been tried."""

    step: float
    cost: float
    slope: float
    point: Point

    def tilted(self, slope: float) -> Trial:
        """Return the same trial of phi(t) - slope * t."""
        return self._replace(cost=self.cost - slope * self.step, slope=self.slope - slope)


def line_search(
    evaluate: Evaluate,
    start: Point,
    direction: Vector,
    first: float = 1.0,
    *,
    decrease: float = 1e-3,
    curvature: float = 0.9,
    narrowest: float = 0.1,
) -> Trial | None:
    """Return a step along `direction` that J accepts, or None if there is none to be found.

    Parameters
    ----------
    evaluate : callable
        theta -> (J, gradient).
    start : Point
        Where the search starts.
    direction : ndarray, shape (n,)
        J must fall along it.
    first : float
        The first step to try, positive.
    decrease, curvature : float
        See the module; ``0 < decrease < curvature < 1``.
    narrowest : float
        Once both ends are known to within this part of the farther one, the best step will do if J is lower there,
        however steep it still is. So it will after 20 trials.

    Returns
    -------
    Trial or None
        None if `direction` does not go down, or no step was found where J is lower.

    Examples
    --------
    >>> evaluate = lambda theta: (0.5 * float(theta @ theta), theta.copy())
    >>> start = Point(np.array([4.0]), 8.0, np.array([4.0]))
    >>> line_search(evaluate, start, np.array([-4.0]), curvature=0.1).step
    1.0
    """
    origin = Trial(0.0, start.cost, float(np.dot(start.gradient, direction)), start)
    if not (-math.inf < origin.slope < 0.0 < first < math.inf):
        return None
    least = decrease * origin.slope  # the slope of the line below which J must come
    best = origin
    other: Trial | None = None
    widths = (math.inf, math.inf)  # of the interval, after the last trial and the one before
    armed = True  # until J has fallen enough and rises again
    step, trials, rejected = first, 0, 0

    while trials < _MOST_TRIALS and rejected < _MOST_REJECTED:
        trial = _try(evaluate, start, direction, step)
        if not trial.point.finite:
            rejected += 1
            other = trial
            step = best.step + _SHRINK * (trial.step - best.step)
            widths = (abs(trial.step - best.step), math.inf)
        else:
            trials += 1
            enough = _falls_enough(trial, origin, least)
            flat = abs(trial.slope) <= curvature * -origin.slope
            if enough and flat:
                return trial
            if flat and abs(trial.cost - origin.cost) <= _ROUNDING * abs(origin.cost):
                break
            armed = armed and not (enough and trial.slope >= 0)
            tilt = least if armed and not enough and trial.cost <= best.cost else 0.0
            step = _interpolate(best.tilted(tilt), other and other.tilted(tilt), trial.tilted(tilt))
            best, other = _narrow(best, other, trial, tilt)
            if other is not None:
                width = abs(other.step - best.step)
                if width >= _LEAST_CUT * widths[1]:
                    step = best.step + 0.5 * (other.step - best.step)
                widths = (width, widths[0])
        if other is not None:
            low, high = sorted((best.step, other.step))
            if high - low <= narrowest * high or not low < step < high:
                break
        elif not math.isfinite(step):
            break
    return best if best.cost < origin.cost else None


def _try(evaluate: Evaluate, start: Point, direction: Vector, step: float) -> Trial:
    with np.errstate(over="ignore", invalid="ignore"):
        theta = start.theta + step * direction
    point = evaluate_at(evaluate, theta)
    if not point.finite:
        return Trial(step, math.inf, math.nan, point)
    return Trial(step, point.cost, float(np.dot(point.gradient, direction)), point)


def _falls_enough(trial: Trial, origin: Trial, least: float) -> bool:
    return trial.cost <= origin.cost + least * trial.step


def _narrow(best: Trial, other: Trial | None, trial: Trial, tilt: float) -> tuple[Trial, Trial | None]:
    """Return the best step and the other end, knowing one trial more."""
    old, new = best.tilted(tilt), trial.tilted(tilt)
    if new.cost > old.cost:
        return best, trial
    turned = new.slope * math.copysign(1.0, old.slope) < 0
    return trial, best if turned else other


def _interpolate(best: Trial, other: Trial | None, trial: Trial) -> float:
    """Return the next step to try, by the four cases of Moré and Thuente's section 4.

    The function is phi or psi, and the ends are those from before `trial`.
    """
    toward = trial.step - best.step
    if trial.cost > best.cost:
        # 1. Too far: there is a minimum between. The cubic's, if it is the more cautious one; else it meets the
        # parabola's half-way.
        cubic = _cubic_minimum(best, trial)
        parabola = best.step + 0.5 * toward * _ratio(best.slope, best.slope + _ratio(best.cost - trial.cost, toward))
        if abs(cubic - best.step) < abs(parabola - best.step):
            return cubic
        return _or_middle(cubic + 0.5 * (parabola - cubic), best, trial)
    cubic = _cubic_minimum(trial, best)
    secant = trial.step - toward * _ratio(trial.slope, trial.slope - best.slope)
    closer, farther = sorted((cubic, secant), key=lambda step: abs(step - trial.step))
    if trial.slope * math.copysign(1.0, best.slope) < 0:
        # 2. Lower, and past a minimum, which is between.
        return _or_middle(farther, best, trial)
    low = trial.step + _LEAST_GROWTH * toward if best.step > 0 else 0.0
    high = trial.step + _MOST_GROWTH * toward
    if abs(trial.slope) < abs(best.slope):
        # 3. Lower, and flatter: a minimum seems to be ahead. The cubic may have none there.
        if not (cubic - trial.step) * toward > 0:
            cubic = high if other is None else other.step
            closer, farther = sorted((cubic, secant), key=lambda step: abs(step - trial.step))
        if other is None:
            return min(max(farther, low), high) if math.isfinite(farther) else high
        limit = trial.step + _LEAST_CUT * (other.step - trial.step)
        if not math.isfinite(closer):
            return limit
        return min(closer, limit) if toward > 0 else max(closer, limit)
    # 4. Lower, and at least as steep.
    return high if other is None else _or_middle(_cubic_minimum(trial, other), trial, other)


def _cubic_minimum(a: Trial, b: Trial) -> float:
    """Return the minimiser of the cubic that has the values and slopes of `a` and `b`, NaN if it has none.

    Slopes are divided by the largest, lest their squares overflow; where even these do, it is NaN as well.
    """
    width = b.step - a.step
    middle = 3.0 * _ratio(a.cost - b.cost, width) + a.slope + b.slope
    scale = max(abs(middle), abs(a.slope), abs(b.slope))
    square = _ratio(middle, scale) ** 2 - _ratio(a.slope, scale) * _ratio(b.slope, scale)
    if not square > 0.0:
        return math.nan
    root = math.copysign(scale * math.sqrt(square), width)
    return a.step + width * _ratio((root - a.slope) + middle, ((root - a.slope) + root) + b.slope)


def _ratio(a: float, b: float) -> float:
    """Return a / b, NaN where Python would raise."""
    return a / b if b != 0.0 else math.nan


def _or_middle(step: float, a: Trial, b: Trial) -> float:
    return step if math.isfinite(step) else a.step + 0.5 * (b.step - a.step)
