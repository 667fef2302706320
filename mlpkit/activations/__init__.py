"""Activation functions: what a layer does to its weighted sums. Those of mlpkit, and how to write one.

Examples
--------
>>> from mlpkit import activations
>>> activations.sigmoid([0.0, 100.0])
array([0.5, 1. ])
>>> activations.sigmoid.derivative(0.0, 0.5)
0.25
"""

from mlpkit.activations.builtin import (
    elu,
    exp,
    gaussian,
    gelu,
    hard_sigmoid,
    hard_tanh,
    identity,
    leaky_relu,
    relu,
    selu,
    sigmoid,
    silu,
    sin,
    softmax,
    softplus,
    softsign,
    tanh,
    top_k,
)
from mlpkit.activations.record import INITIALIZERS, Activation, activation, get, names, register

__all__ = [
    "INITIALIZERS",
    "Activation",
    "activation",
    "elu",
    "exp",
    "gaussian",
    "gelu",
    "get",
    "hard_sigmoid",
    "hard_tanh",
    "identity",
    "leaky_relu",
    "names",
    "register",
    "relu",
    "selu",
    "sigmoid",
    "silu",
    "sin",
    "softmax",
    "softplus",
    "softsign",
    "tanh",
    "top_k",
]
