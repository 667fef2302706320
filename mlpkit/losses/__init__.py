"""Losses: how far outputs lie from their targets. Those of mlpkit, and how to write one.

Examples
--------
>>> from mlpkit import losses
>>> losses.squared_error.function(1.0, 0.0)
0.5
"""

from mlpkit.losses.builtin import (
    absolute_error,
    binary_cross_entropy,
    cross_entropy,
    huber,
    log_cosh,
    poisson,
    quantile,
    squared_error,
)
from mlpkit.losses.record import Fused, Loss, get, loss, names, register

__all__ = [
    "Fused",
    "Loss",
    "absolute_error",
    "binary_cross_entropy",
    "cross_entropy",
    "get",
    "huber",
    "log_cosh",
    "loss",
    "names",
    "poisson",
    "quantile",
    "register",
    "squared_error",
]
