"""Layers as small immutable records, their initialisers, and where each layer's parameters lie in theta.

A network is a list of these records: `Input` first, then `Dense` layers. They hold no numbers to train;
those live in the network's one vector theta = [W^(1) row-major, b^(1), W^(2), b^(2), ...]. A layer whose weights are
tied to an earlier layer's has no W of its own there: it uses the transpose of the other's.
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
from mlpkit.noise import Noise, check_noise, noise_config, noise_from_config
from mlpkit.penalties import (
    KLSparsity,
    L1Sparsity,
    LayerPenalty,
    MeanPenalty,
    check_penalties,
    penalty_config,
    penalty_from_config,
)

__all__ = [
    "Dense",
    "Input",
    "ParameterBlock",
    "check_layers",
    "draw_parameters",
    "layer_config",
    "layer_from_config",
    "parameter_blocks",
]


@dataclass(frozen=True)
class Input:
    """The input layer L_1: `units` numbers an example.

    Parameters
    ----------
    units : int
        How many.
    noise : MaskingNoise, GaussianNoise or SaltAndPepperNoise, optional
        What `MLP.fit`, and nothing else, does to the inputs; see `mlpkit.noise`.

    Examples
    --------
    >>> Input(64).units
    64
    """

    units: int
    noise: Noise | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", check_integer(self.units, "Input units", low=1))
        check_noise(self.noise)

    def __repr__(self) -> str:
        return f"Input({self.units})" if self.noise is None else f"Input({self.units}, noise={self.noise!r})"


@dataclass(frozen=True)
class Dense:
    """A fully connected layer: z = W a + b and a = f(z), equations (6) and (7) of the notes.

    Parameters
    ----------
    units : int
        Number of units s_{l+1}.
    activation : str or Activation
        f, by name or as an object.
    sparsity : KLSparsity, L1Sparsity, MeanPenalty, or list of such, optional
        Penalties on the units' activations. For KL the activation's range must be bounded.
    weight_decay : float, optional
        lambda of this layer's W; the network's own if None.
    init : str or float, optional
        How W and b start. ``"notes"``: both from N(0, 0.01**2). ``"uniform"``: W from
        +-sqrt(6 / (n_in + n_out + 1)). ``"glorot_uniform"``, ``"glorot_normal"``: Glorot and Bengio (2010).
        ``"he_uniform"``, ``"he_normal"``: He et al. (2015). A number: every weight is that number. Biases start
        at 0 except for ``"notes"``. None takes the activation's default.
    bias : bool
        False leaves b out: theta then has no entries for it.
    tied_to : int, optional
        l, counted as the notes count: this layer's W is the transpose of W^(l), which must be an earlier layer's own
        and of the matching shape. theta has no entries for it, and weight decay and `init`, which then cannot be given
        here, are W^(l)'s.
    dropout : float
        The probability, from 0 to below 1, with which a stochastic optimiser leaves a unit out, anew for each example
        and step; the others' activations are divided by 1 - dropout (Srivastava et al., 2014). Nothing else applies it.

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
    sparsity: LayerPenalty | tuple[LayerPenalty, ...] | None
    weight_decay: float | None
    init: str | float | None
    bias: bool
    tied_to: int | None
    dropout: float

    def __init__(
        self,
        units: int,
        activation: str | Activation,
        *,
        sparsity: LayerPenalty | Sequence[LayerPenalty] | None = None,
        weight_decay: float | None = None,
        init: str | float | None = None,
        bias: bool = True,
        tied_to: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        f = activations.get(activation)
        kept = check_penalties(sparsity)
        if weight_decay is not None:
            weight_decay = check_number(weight_decay, "weight_decay", low=0)
        if isinstance(init, str):
            check_choice(init, "init", INITIALIZERS)
        elif init is not None:
            init = check_number(init, "init")
        if tied_to is not None:
            tied_to = check_integer(tied_to, "tied_to", low=1)
            for name, given in (("weight_decay", weight_decay), ("init", init)):
                if given is not None:
                    raise InvalidArgumentError(
                        f"{name} must be None for a layer with tied_to, whose weights are those of W^({tied_to}); "
                        f"found {given!r}"
                    )
        fields = {
            "units": check_integer(units, "Dense units", low=1),
            "activation": f,
            "sparsity": kept,
            "weight_decay": weight_decay,
            "init": init,
            "bias": check_flag(bias, "bias"),
            "tied_to": tied_to,
            "dropout": check_number(dropout, "dropout", low=0, high=1, high_open=True),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        if not self._bounded and any(isinstance(penalty, KLSparsity) for penalty in self.penalties):
            raise InvalidArgumentError(
                "sparsity by KL needs an activation of bounded range, whose mean can be mapped to [0, 1]; "
                f"found {f.name!r} with range {f.range}"
            )
        if self.dropout and kept is not None:
            raise InvalidArgumentError(
                f"dropout must be 0 in a layer whose activations are penalised; found {self.dropout!r}"
            )

    @property
    def penalties(self) -> tuple[LayerPenalty, ...]:
        """All penalties on the layer's activations."""
        if self.sparsity is None:
            return ()
        return self.sparsity if isinstance(self.sparsity, tuple) else (self.sparsity,)

    @property
    def mean_penalties(self) -> tuple[KLSparsity | MeanPenalty, ...]:
        """Those on mean activations."""
        return tuple(penalty for penalty in self.penalties if not isinstance(penalty, L1Sparsity))

    @property
    def l1_strength(self) -> float:
        """The strength of the L1 penalty, 0 where there is none."""
        return sum(penalty.strength for penalty in self.penalties if isinstance(penalty, L1Sparsity))

    @property
    def _bounded(self) -> bool:
        return bool(np.isfinite(self.activation.range).all())

    def to_unit(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map mean activations to [0, 1] where the activation's range is bounded."""
        return self.activation.to_unit(mean) if self._bounded else mean

    @property
    def unit_slope(self) -> float:
        """The derivative of that map."""
        return self.activation.unit_slope if self._bounded else 1.0

    def __repr__(self) -> str:
        parts = [str(self.units), repr(self.activation.name)]
        for name, default in (
            ("sparsity", None),
            ("weight_decay", None),
            ("init", None),
            ("bias", True),
            ("tied_to", None),
            ("dropout", 0.0),
        ):
            value = getattr(self, name)
            if value != default:
                parts.append(f"{name}={value!r}")
        return f"Dense({', '.join(parts)})"


class ParameterBlock(NamedTuple):
    """Where one layer's W and b lie in theta.

    b is ``theta[b:end]``. W begins at ``theta[W]``, in rows of `n_in`; that of a layer tied to another lies at the
    `owner`'s place, in columns of `n_out`.
    """

    n_out: int
    n_in: int
    W: int
    b: int
    end: int
    owner: int | None = None  # the index, among dense layers, of the layer that W is the transpose of

    @property
    def strides(self) -> tuple[int, int]:
        """How far W[j, k] is from W[j - 1, k] and from W[j, k - 1]."""
        return (self.n_in, 1) if self.owner is None else (1, self.n_out)

    @property
    def own_weights(self) -> slice:
        """Where theta holds weights of this layer and of no earlier one: nowhere for a tied layer."""
        return slice(self.W if self.owner is None else self.b, self.b)

    def weights(self, theta: NDArray[Any]) -> NDArray[Any]:
        """Return W of shape (n_out, n_in) as a view of theta."""
        flat = theta[self.W : self.W + self.n_out * self.n_in]
        return flat.reshape(self.n_out, self.n_in) if self.owner is None else flat.reshape(self.n_in, self.n_out).T


def parameter_blocks(layers: Sequence[Input | Dense]) -> list[ParameterBlock]:
    """Return each dense layer's place in theta, in order.

    Examples
    --------
    >>> parameter_blocks([Input(3), Dense(2, "sigmoid")])
    [ParameterBlock(n_out=2, n_in=3, W=0, b=6, end=8, owner=None)]
    """
    blocks: list[ParameterBlock] = []
    start = 0
    for below, layer in pairwise(layers):
        assert isinstance(layer, Dense)
        owner = None if layer.tied_to is None else layer.tied_to - 1
        b = start + (layer.units * below.units if owner is None else 0)
        end = b + (layer.units if layer.bias else 0)
        W = start if owner is None else blocks[owner].W
        blocks.append(ParameterBlock(layer.units, below.units, W, b, end, owner))
        start = end
    return blocks


def check_layers(layers: Any) -> tuple[Input | Dense, ...]:
    """Return a list of layers as a tuple if it makes a network, or say what is wrong.

    Examples
    --------
    >>> check_layers([Input(3), Dense(2, "sigmoid"), Dense(3, "sigmoid", tied_to=1)])[0].units
    3
    """
    if not isinstance(layers, Sequence) or isinstance(layers, str):
        raise InvalidArgumentError(f"layers must be a list of layers; found {type(layers).__name__}")
    if len(layers) < 2:
        raise InvalidArgumentError(f"layers must hold an Input and at least one Dense; found {len(layers)} layer(s)")
    for i, layer in enumerate(layers):
        expected = Input if i == 0 else Dense
        if not isinstance(layer, expected):
            raise InvalidArgumentError(f"layers[{i}] must be {expected.__name__}; found {layer!r}")
    _check_ties(layers)
    if layers[-1].dropout:
        raise InvalidArgumentError(f"dropout must be 0 in the output layer; found {layers[-1].dropout!r}")
    return tuple(layers)


def _check_ties(layers: Sequence[Input | Dense]) -> None:
    """Refuse a layer that is tied to one that is not before it, is tied itself, or has another shape."""
    for i, layer in enumerate(layers):
        if not isinstance(layer, Dense) or layer.tied_to is None:
            continue
        name, number = f"tied_to of layers[{i}]", layer.tied_to
        if number >= i:
            raise InvalidArgumentError(
                f"{name} must be the number of an earlier layer's W, of which there {'is' if i == 2 else 'are'} "
                f"{i - 1}; found {number}"
            )
        owner = layers[number]
        assert isinstance(owner, Dense)
        if owner.tied_to is not None:
            raise InvalidArgumentError(
                f"{name} must be the number of a layer that is not tied itself; found {number}, which is tied to "
                f"{owner.tied_to}"
            )
        wanted, found = (layers[number - 1].units, owner.units), (layer.units, layers[i - 1].units)
        if wanted != found:
            raise InvalidArgumentError(
                f"{name} must be the number of a W whose transpose has the shape of this layer's, {found}; found "
                f"{number}, for which it is {wanted}"
            )


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
        b = theta[block.b : block.end]
        if block.owner is None:
            theta[block.own_weights] = _draw_weights(rule, block, generator)
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
    """Return a layer as plain values that JSON can hold; what was added later is left out where it is not used."""
    if isinstance(layer, Input):
        entry = {"type": "Input", "units": layer.units}
        return entry if layer.noise is None else {**entry, "noise": noise_config(layer.noise)}
    sparsity: Any = layer.sparsity
    if sparsity is not None:
        entries = [penalty_config(penalty) for penalty in layer.penalties]
        sparsity = entries if isinstance(sparsity, tuple) else entries[0]
    entry = {
        "type": "Dense",
        "units": layer.units,
        "activation": layer.activation.name,
        "sparsity": sparsity,
        "weight_decay": layer.weight_decay,
        "init": layer.init,
        "bias": layer.bias,
    }
    if layer.tied_to is not None:
        entry["tied_to"] = layer.tied_to
    if layer.dropout:
        entry["dropout"] = layer.dropout
    return entry


def layer_from_config(entry: dict[str, Any]) -> Input | Dense:
    """Return the layer that `layer_config` described."""
    kind = check_choice(entry["type"], "type", ("Input", "Dense"))
    if kind == "Input":
        return Input(entry["units"], noise_from_config(entry["noise"]) if "noise" in entry else None)
    sparsity = entry["sparsity"]
    if sparsity is not None:
        several = [penalty_from_config(p) for p in (sparsity if isinstance(sparsity, list) else [sparsity])]
        sparsity = several if isinstance(sparsity, list) else several[0]
    return Dense(
        entry["units"],
        entry["activation"],
        sparsity=sparsity,
        weight_decay=entry["weight_decay"],
        init=entry["init"],
        bias=entry["bias"],
        tied_to=entry.get("tied_to"),
        dropout=entry.get("dropout", 0.0),
    )
