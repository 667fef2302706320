"""Layers as small immutable records, their initialisers, and where each layer's parameters lie in theta.

A network is a list of these records: `Input` first, then `Dense` layers. They hold no numbers to train;
those live in the network's one vector theta = [W^(1) row-major, b^(1), W^(2), b^(2), ...].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlpkit import activations
from mlpkit.activations import INITIALIZERS, Activation
from mlpkit.checks import check_choice, check_flag, check_integer, check_number
from mlpkit.errors import InvalidArgumentError
from mlpkit.penalties import KLSparsity

__all__ = [
    "Dense",
    "Input",
    "ParameterBlock",
    "draw_parameters",
    "layer_config",
    "layer_from_config",
    "parameter_blocks",
]


@dataclass(frozen=True)
class Input:
    """The input layer L_1: `units` numbers an example.

    Examples
    --------
    >>> Input(64).units
    64
    """

    units: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", check_integer(self.units, "Input units", low=1))


@dataclass(frozen=True)
class Dense:
    """A fully connected layer: z = W a + b and a = f(z), equations (6) and (7) of the notes.

    Parameters
    ----------
    units : int
        Number of units s_{l+1}.
    activation : str or Activation
        f, by name or as an object.
    sparsity : KLSparsity, optional
        Penalty on the units' mean activations; the activation's range must be bounded.
    weight_decay : float, optional
        lambda of this layer's W; the network's own if None.
    init : str or float, optional
        How W and b start. ``"notes"``: both from N(0, 0.01**2). ``"uniform"``: W from
        +-sqrt(6 / (n_in + n_out + 1)). ``"glorot_uniform"``, ``"glorot_normal"``: Glorot and Bengio (2010).
        ``"he_uniform"``, ``"he_normal"``: He et al. (2015). A number: every weight is that number. Biases start
        at 0 except for ``"notes"``. None takes the activation's default.
    bias : bool
        False leaves b out: theta then has no entries for it.

    Raises
    ------
    InvalidArgumentError
        Naming the argument, what was expected and what was found.

    Examples
    --------
    >>> Dense(25, "sigmoid", sparsity=KLSparsity(rho=0.01, beta=3.0))
    Dense(25, 'sigmoid', sparsity=KLSparsity(rho=0.01, beta=3.0))
    """

    units: int
    activation: Activation
    sparsity: KLSparsity | None
    weight_decay: float | None
    init: str | float | None
    bias: bool

    def __init__(
        self,
        units: int,
        activation: str | Activation,
        *,
        sparsity: KLSparsity | None = None,
        weight_decay: float | None = None,
        init: str | float | None = None,
        bias: bool = True,
    ) -> None:
        f = activations.get(activation)
        if sparsity is not None:
            if not isinstance(sparsity, KLSparsity):
                raise InvalidArgumentError(f"sparsity must be a KLSparsity or None; found {sparsity!r}")
            if not np.all(np.isfinite(f.range)):
                raise InvalidArgumentError(
                    "sparsity needs an activation of bounded range, whose mean can be mapped to [0, 1]; "
                    f"found {f.name!r} with range {f.range}"
                )
        if weight_decay is not None:
            weight_decay = check_number(weight_decay, "weight_decay", low=0)
        if isinstance(init, str):
            check_choice(init, "init", INITIALIZERS)
        elif init is not None:
            init = check_number(init, "init")
        fields = {
            "units": check_integer(units, "Dense units", low=1),
            "activation": f,
            "sparsity": sparsity,
            "weight_decay": weight_decay,
            "init": init,
            "bias": check_flag(bias, "bias"),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        parts = [str(self.units), repr(self.activation.name)]
        for name, default in (
            ("sparsity", None),
            ("weight_decay", None),
            ("init", None),
            ("bias", True),
        ):
            value = getattr(self, name)
            if value != default:
                parts.append(f"{name}={value!r}")
        return f"Dense({', '.join(parts)})"


class ParameterBlock(NamedTuple):
    """Where one layer's W and b lie in theta: W is ``theta[W:b]`` in rows of `n_in`, b is ``theta[b:end]``."""

    n_out: int
    n_in: int
    W: int
    b: int
    end: int


def parameter_blocks(layers: Sequence[Input | Dense]) -> list[ParameterBlock]:
    """Return each dense layer's place in theta, in order.

    Examples
    --------
    >>> parameter_blocks([Input(3), Dense(2, "sigmoid")])
    [ParameterBlock(n_out=2, n_in=3, W=0, b=6, end=8)]
    """
    blocks = []
    start = 0
    for below, layer in pairwise(layers):
        b = start + layer.units * below.units
        end = b + (layer.units if isinstance(layer, Dense) and layer.bias else 0)
        blocks.append(ParameterBlock(layer.units, below.units, start, b, end))
        start = end
    return blocks


def draw_parameters(layers: Sequence[Input | Dense], generator: np.random.Generator) -> NDArray[np.float64]:
    """Draw a starting theta in float64, layer by layer, each by its own rule.

    Examples
    --------
    >>> draw_parameters([Input(2), Dense(1, "sigmoid", init=0.5)], np.random.default_rng(0))
    array([0.5, 0.5, 0. ])
    """
    blocks = parameter_blocks(layers)
    theta = np.zeros(blocks[-1].end)
    for layer, block in zip(layers[1:], blocks, strict=True):
        assert isinstance(layer, Dense)
        rule = layer.activation.default_init if layer.init is None else layer.init
        W, b = theta[block.W : block.b], theta[block.b : block.end]
        W[:] = _draw_weights(rule, block, generator)
        if rule == "notes":
            b[:] = generator.normal(0.0, 0.01, b.size)
    return theta


def _draw_weights(
    rule: str | float, block: ParameterBlock, generator: np.random.Generator
) -> NDArray[np.float64] | float:
    """Draw W as one flat array; see `Dense` for the rules."""
    if not isinstance(rule, str):
        return rule
    n_in, n_out, size = block.n_in, block.n_out, block.n_in * block.n_out
    if rule == "notes":
        return generator.normal(0.0, 0.01, size)
    if rule == "uniform":
        limit = np.sqrt(6.0 / (n_in + n_out + 1))
        return generator.uniform(-limit, limit, size)
    variance = 2.0 / (n_in + n_out) if rule.startswith("glorot") else 2.0 / n_in
    if rule.endswith("normal"):
        return generator.normal(0.0, np.sqrt(variance), size)
    limit = np.sqrt(3.0 * variance)  # a uniform variable on [-limit, limit] has variance limit**2 / 3
    return generator.uniform(-limit, limit, size)


def layer_config(layer: Input | Dense) -> dict[str, Any]:
    """Return a layer as plain values that JSON can hold."""
    if isinstance(layer, Input):
        return {"type": "Input", "units": layer.units}
    sparsity = layer.sparsity
    return {
        "type": "Dense",
        "units": layer.units,
        "activation": layer.activation.name,
        "sparsity": None if sparsity is None else {"type": "KLSparsity", "rho": sparsity.rho, "beta": sparsity.beta},
        "weight_decay": layer.weight_decay,
        "init": layer.init,
        "bias": layer.bias,
    }


def layer_from_config(entry: dict[str, Any]) -> Input | Dense:
    """Return the layer that `layer_config` described."""
    kind = check_choice(entry["type"], "type", ("Input", "Dense"))
    if kind == "Input":
        return Input(entry["units"])
    sparsity = entry["sparsity"]
    if sparsity is not None:
        check_choice(sparsity["type"], "sparsity type", ("KLSparsity",))
        sparsity = KLSparsity(sparsity["rho"], sparsity["beta"])
    return Dense(
        entry["units"],
        entry["activation"],
        sparsity=sparsity,
        weight_decay=entry["weight_decay"],
        init=entry["init"],
        bias=entry["bias"],
    )
