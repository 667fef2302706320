"""The network's configuration in a file: checked before anything hangs on it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from mlpkit import activations, losses, user_penalties
from mlpkit.checks import shown
from mlpkit.errors import InvalidArgumentError, ModelFormatError, frames_to_the_caller
from mlpkit.layers import Dense
from mlpkit.mlp import MLP
from mlpkit.strict_hdf5 import refuse
from mlpkit.strict_json import to_json

__all__ = ["LayerShape", "build", "check_registered", "config_json", "config_to_save", "parameter_shapes"]

_MAX_LAYERS = 1000
_MAX_UNITS = 2**40
_MAX_SEED_BITS = 1024  # Python can be told to read no integer of more than 640 digits


class LayerShape(NamedTuple):
    """What the file holds for one dense layer: W of shape (n_out, n_in) unless it is tied, and b if it has one."""

    n_out: int
    n_in: int
    has_W: bool
    has_b: bool

    @property
    def n_parameters(self) -> int:
        """How many numbers these are, as a Python integer that cannot overflow."""
        return self.n_out * self.n_in * self.has_W + self.n_out * self.has_b


def parameter_shapes(config: Any) -> tuple[str, list[LayerShape]]:
    """Check what sizes hang on; return the dtype and what the file holds for each dense layer.

    Only plain integers are touched, so a hostile configuration cannot make us allocate anything.

    Examples
    --------
    >>> layers = [{"type": "Input", "units": 3}, {"type": "Dense", "units": 2}]
    >>> parameter_shapes({"dtype": "float64", "layers": layers})
    ('float64', [LayerShape(n_out=2, n_in=3, has_W=True, has_b=True)])
    """
    if not isinstance(config, dict):
        refuse("/config", f"expected an object, found {type(config).__name__}")
    dtype = config.get("dtype")
    if not isinstance(dtype, str) or dtype not in ("float64", "float32"):
        refuse("/config: dtype", f"expected float64 or float32, found {dtype!r:.80}")
    layers = config.get("layers")
    if not isinstance(layers, list) or not 2 <= len(layers) <= _MAX_LAYERS:
        refuse("/config: layers", f"expected a list of 2 to {_MAX_LAYERS} layers")
    for number, layer in enumerate(layers, start=1):
        _check_layer(number, layer)
    shapes: list[LayerShape] = []
    for number, (below, layer) in enumerate(pairwise(layers), start=2):
        tied_to = layer.get("tied_to")
        shapes.append(LayerShape(layer["units"], below["units"], tied_to is None, layer.get("bias", True)))
        if tied_to is not None:
            where = f"/config: layer {number}: tied_to"
            if type(tied_to) is not int or not 1 <= tied_to < number - 1:
                refuse(where, f"expected the number of an earlier layer's W, found {tied_to!r:.80}")
            owner = shapes[tied_to - 1]
            if not owner.has_W or (owner.n_in, owner.n_out) != shapes[-1][:2]:
                refuse(where, f"W^({tied_to}) is tied itself, or its transpose has another shape than this layer's W")
    return dtype, shapes


def _check_layer(number: int, layer: Any) -> None:
    where = f"/config: layer {number}"
    kind = "Input" if number == 1 else "Dense"
    if not isinstance(layer, dict) or layer.get("type") != kind:
        refuse(where, f"expected a layer of type {kind}")
    units = layer.get("units")
    if type(units) is not int or not 1 <= units <= _MAX_UNITS:
        refuse(f"{where}: units", f"expected a positive integer, found {units!r:.80}")
    bias = layer.get("bias", True)
    if type(bias) is not bool:
        refuse(f"{where}: bias", f"expected true or false, found {bias!r:.80}")


def check_registered(config: dict[str, Any]) -> None:
    """Refuse a configuration that names a function which nobody has registered, and say how to register it."""
    for where, name, kind, registry in _named(config):
        if not isinstance(name, str) or _find(registry, name) is None:
            refuse(
                f"/config: {where}",
                f"{name!r:.80} is not registered: define it before loading, with @mlpkit.{kind}(name=...) "
                f"(known: {', '.join(registry.names()):.400})",
            )


def _named(config: dict[str, Any]) -> Iterator[tuple[str, Any, str, Any]]:
    """Yield all that a configuration refers to by name: where, the name, what it is, and its registry."""
    for number, layer in enumerate(config["layers"][1:], start=2):
        yield f"layer {number}: activation", layer.get("activation"), "activation", activations
        entries = layer.get("sparsity")
        for entry in entries if isinstance(entries, list) else [entries]:
            if isinstance(entry, dict) and "penalty" in entry:
                yield f"layer {number}: sparsity: penalty", entry["penalty"], "penalty", user_penalties
    yield "loss", config.get("loss"), "loss", losses


def _plugins(net: MLP) -> Iterator[Any]:
    """Yield the functions of a network in the order of `_named`."""
    for layer in net.layers:
        if isinstance(layer, Dense):
            yield layer.activation
            yield from (entry.penalty for entry in getattr(layer, "penalties", ()) if hasattr(entry, "penalty"))
    yield net.loss


def _find(registry: Any, name: str) -> Any:
    try:
        return registry.get(name)
    except InvalidArgumentError:
        return None


def build(config: dict[str, Any], *, newer: bool) -> tuple[MLP, list[str]]:
    """Return the network, with parameters still to be filled in, and the keys that were ignored.

    A key that this version does not write is refused unless the file has a higher minor version.
    """
    try:
        net = MLP.from_config(config)
        rebuilt = json.loads(json.dumps(net.config()))
    except KeyError as error:
        raise ModelFormatError(f"/config: {error} is missing") from error
    except Exception as error:
        raise ModelFormatError(f"/config: {error!s:.400}") from error
    unknown = list(_unknown(config, rebuilt, "/config"))
    if unknown and not newer:
        refuse(unknown[0], "not part of the format")
    return net, unknown


def _unknown(found: Any, rebuilt: Any, where: str) -> Iterator[str]:
    """Yield the keys that this version would not have written; refuse values that it would have written otherwise."""
    if isinstance(found, dict) and isinstance(rebuilt, dict):
        for key in rebuilt:
            if key not in found:
                refuse(f"{where}: {key}", "missing")
        for key, value in found.items():
            if key in rebuilt:
                yield from _unknown(value, rebuilt[key], f"{where}: {key}")
            else:
                yield f"{where}: {key:.80}"
    elif isinstance(found, list) and isinstance(rebuilt, list) and len(found) == len(rebuilt):
        for number, (one, other) in enumerate(zip(found, rebuilt, strict=True), start=1):
            yield from _unknown(one, other, f"{where} {number}")
    elif isinstance(found, bool) is not isinstance(rebuilt, bool) or found != rebuilt:
        refuse(where, f"expected {rebuilt!r:.80}, which is how it is understood, found {found!r:.80}")


def config_json(config: dict[str, Any], what: str) -> bytes:
    """Check that a network's configuration can be read again; return it as JSON bytes.

    Examples
    --------
    >>> config_json({"layers": [], "dtype": "float64"}, "net")
    Traceback (most recent call last):
        ...
    mlpkit.errors.InvalidArgumentError: net: cannot be saved: /config: layers: expected a list of 2 to 1000 layers
    """
    seed = config.get("seed") if isinstance(config, dict) else None
    if isinstance(seed, int) and seed.bit_length() > _MAX_SEED_BITS:
        raise InvalidArgumentError(
            f"{what}: expected a seed of at most {_MAX_SEED_BITS} bits, found one of {seed.bit_length()}"
        )
    raw = to_json(config, what)
    try:
        parameter_shapes(config)
    except ModelFormatError as error:
        raise InvalidArgumentError(f"{what}: cannot be saved: {error}") from error
    return raw


def config_to_save(net: MLP) -> bytes:
    """Check that the network's configuration can be read again, its functions too; return it as JSON bytes."""
    config = net.config()
    raw = config_json(config, "net")
    # Only names are stored, so a name must mean the same function here as in the registry.
    for (where, name, kind, registry), plugin in zip(_named(config), _plugins(net), strict=True):
        known = _find(registry, name)
        if known is None:
            warnings.warn(
                f"net: {where}: {name!r} is not registered, and the file holds its name only: define it with "
                f"@mlpkit.{kind}, here and before loading",
                stacklevel=frames_to_the_caller(),
            )
        elif known is not plugin:
            raise InvalidArgumentError(
                f"net: {where}: {shown(name)} is registered as another function; give yours a name of its own"
            )
    return raw
