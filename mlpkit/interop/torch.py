"""PyTorch: modules in memory to networks and back.

What is understood is ``nn.Sequential``, also nested, of ``nn.Linear`` and the activations that both have; a bare
``nn.Linear`` too. Everything else is an error that names the module. Files that ``torch.save`` writes are not read, for
they are pickles, which can run code; see `mlpkit.interop.safetensors`.

**Predictions.** PyTorch's W is mlpkit's, (out, in), and a name that PyTorch also has means PyTorch's formula, so both
predict the same to rounding. One exception: PyTorch's softplus is linear above its threshold of 20, which makes a
difference of up to 2.1e-9; `to_torch` sets a threshold of 40, where there is none.

**Objectives.** A module has no loss and no weight decay; give `from_torch` mlpkit's. With K outputs, lambda the
``weight_decay`` of a torch optimiser, and weights alone decayed, J of mlpkit and PyTorch's are::

    nn.MSELoss()            squared_error on identity       J = K/2 * torch's with weight_decay = K/2 * lambda
    nn.CrossEntropyLoss()   cross_entropy on softmax        J = torch's       with weight_decay = lambda
    nn.BCEWithLogitsLoss()  binary_cross_entropy on sigmoid J = K * torch's   with weight_decay = K * lambda

The first and third average over outputs, which mlpkit's sum. The second and third take logits: append the
``nn.Softmax(1)`` or ``nn.Sigmoid()`` that the loss has inside it before you convert. ``weight_decay`` of a torch
optimiser decays *all* parameters it is given, the biases too, and mlpkit's only W: `parameter_groups` makes an
optimiser do the same. In AdamW decay is no part of the objective, so there is nothing to convert it to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from mlpkit import activations
from mlpkit.activations import Activation
from mlpkit.checks import check_number, shown
from mlpkit.errors import InvalidArgumentError, import_extra
from mlpkit.interop.conversion import Conversion
from mlpkit.interop.dense_stack import (
    Linear,
    assemble,
    check_exportable,
    left_out,
    name_and_parameters,
    parameters_of,
    sequential_keys,
)
from mlpkit.layers import Dense
from mlpkit.losses import Loss
from mlpkit.mlp import MLP

__all__ = ["from_torch", "parameter_groups", "to_torch"]

# Without parameters, on either side.
_PLAIN = {
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "ReLU": "relu",
    "SELU": "selu",
    "Softsign": "softsign",
    "SiLU": "silu",
    "Hardsigmoid": "hard_sigmoid",
}
_THRESHOLD = 40.0  # of softplus: log(1 + e^-40) is below the last digit of 40, in either precision

_REASONS = {
    "LogSoftmax": "its outputs are logarithms, which mlpkit's cross_entropy takes itself: put nn.Softmax(1) in its "
    "place and give loss='cross_entropy'",
    "Flatten": "mlpkit takes examples as rows: leave it out, and give X.reshape(len(X), -1)",
    "ReLU6": "mlpkit has no activation that is cut off at 6",
}


def from_torch(module: Any, *, loss: str | Loss = "squared_error", weight_decay: float = 0.0) -> Conversion:
    r"""Make a network of a PyTorch module in memory.

    Parameters
    ----------
    module : torch.nn.Sequential or torch.nn.Linear
        Linear modules, each followed by at most one activation: Sigmoid, Tanh, ReLU, LeakyReLU, ELU, SELU, Softplus,
        Softsign, SiLU, GELU (the exact one), Hardsigmoid, Hardtanh, Softmax over the units. Sequentials inside it are
        taken apart; Identity is nothing, and so is Dropout in a module that is in evaluation mode.
    loss : str or Loss
        What the network is to be trained with; the module's heading has what corresponds to PyTorch's.
    weight_decay : float
        lambda of equation (8).

    Returns
    -------
    Conversion
        The network, of the module's dtype, with copies of its parameters; and a line for each module.

    Raises
    ------
    InvalidArgumentError
        For a module that is not understood (by name, with the reason), two activations in a row, one without a linear
        module before it, shapes that do not chain, dtypes other than float32 and float64, parameters that are shared,
        not finite or without values, and modules with hooks, whose output is not that of their class.
    MissingExtraError
        If PyTorch is not installed.

    Examples
    --------
    >>> from torch import nn
    >>> net, mapped = from_torch(nn.Sequential(nn.Linear(3, 2), nn.LeakyReLU(0.2), nn.Linear(2, 1, bias=False)))
    >>> net.layers
    (Input(3), Dense(2, 'leaky_relu(0.2)'), Dense(1, 'identity', bias=False))
    >>> print(*mapped, sep="\n")
    0.weight (2, 3) float32 -> W^(1)
    0.bias (2,) float32 -> b^(1)
    2.weight (1, 2) float32 -> W^(2)
    1: LeakyReLU(negative_slope=0.2) -> layer 2: leaky_relu(0.2)
    """
    torch = import_extra("torch", extra="torch")
    if isinstance(module, (str, bytes, os.PathLike)):
        raise InvalidArgumentError(
            f"module must be a module in memory; found the path {shown(module)}: a file of torch.save's is a pickle, "
            "which can run code. from_safetensors reads safetensors files"
        )
    if isinstance(module, dict):
        raise InvalidArgumentError(
            "module must be a module; found a dict, which has no activations: load it into a module first"
        )
    if not isinstance(module, torch.nn.Module):
        raise InvalidArgumentError(f"module must be a torch.nn.Module; found {type(module).__name__}")
    stack: list[Linear] = []
    found: list[Activation | None] = []
    lines = []
    seen: dict[int, str] = {}
    for name, part in _leaves(torch.nn, module, ""):
        if type(part) is torch.nn.Linear:
            stack.append(_linear(torch, part, name, seen))
            found.append(None)
            frozen = [key for key, tensor in part.named_parameters() if not tensor.requires_grad]
            lines += [f"{name}.{key}: frozen -> trained like the others, since mlpkit freezes none" for key in frozen]
            continue
        what = f"{name}: {part}"
        if type(part) is torch.nn.Identity:
            lines.append(f"{what} -> nothing")
        elif type(part) is torch.nn.Dropout:
            _check_dropout(part, name)
            lines.append(f"{what} -> nothing, as at inference; mlpkit's training drops no units")
        else:
            activation, note = _activation(torch.nn, part, name, stack)
            if not found:
                _fail(what, "expected a linear module before the first activation")
            if found[-1] is not None:
                _fail(what, f"a second activation on one linear module; the first is {found[-1].name!r}")
            found[-1] = activation
            lines.append(f"{what} -> layer {len(found) + 1}: {activation.name}{note}")
    if not stack:
        _fail(type(module).__name__, "has no linear module")
    functions = [activation or activations.identity for activation in found]
    net, arrays = assemble(stack, functions, loss=loss, weight_decay=weight_decay, fail=_fail)
    return Conversion(net, (*arrays, *lines))


def to_torch(net: MLP) -> Conversion:
    """Make a PyTorch module that predicts as a network does.

    Parameters
    ----------
    net : MLP
        The network. Its parameters must be finite.

    Returns
    -------
    Conversion
        An ``nn.Sequential`` of the network's dtype, with copies of its parameters; and a line for each of them and each
        activation, and for what a module has no place for: the loss, weight decay, sparsity. Where a layer's weights
        are tied to another's, PyTorch gets a copy of the transpose, which training there would no longer keep tied.

    Raises
    ------
    InvalidArgumentError
        If an activation is none that PyTorch has: sin, gaussian, exp, top_k, and your own.
    MissingExtraError
        If PyTorch is not installed.

    Examples
    --------
    >>> import mlpkit
    >>> module, mapped = to_torch(mlpkit.MLP([mlpkit.Input(3), mlpkit.Dense(2, "tanh")], seed=0))
    >>> module
    Sequential(
      (0): Linear(in_features=3, out_features=2, bias=True)
      (1): Tanh()
    )
    >>> mapped[0]
    'W^(1) (2, 3) -> 0.weight'
    """
    check_exportable(net)
    torch = import_extra("torch", extra="torch")
    modules, lines = [], []
    for number, layer in enumerate(net.layers[1:], start=2):
        assert isinstance(layer, Dense)
        n_in = net.sizes[number - 2]
        dtype = getattr(torch, net.dtype.name)
        # Its own start would be drawn from PyTorch's generator, and be overwritten.
        modules.append(torch.nn.utils.skip_init(torch.nn.Linear, n_in, layer.units, bias=layer.bias, dtype=dtype))
        if layer.activation is not activations.identity:
            modules.append(_module(torch.nn, layer.activation, number))
            lines.append(f"layer {number}: {layer.activation.name} -> {len(modules) - 1}: {modules[-1]}")
    module = torch.nn.Sequential(*modules)
    names = [(f"{key}.weight", f"{key}.bias") for key in sequential_keys(net)]
    arrays, mapped = parameters_of(net, names)
    module.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return Conversion(module, (*mapped, *lines, *left_out(net, "a torch module")))


def parameter_groups(module: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Return a module's parameters in groups with which a torch optimiser decays what mlpkit decays: no biases.

    Parameters
    ----------
    module : torch.nn.Module
        The module.
    weight_decay : float
        lambda, for the weights of linear modules.

    Returns
    -------
    list of dict
        Two parameter groups: the weights of linear modules, and everything else with a decay of 0.

    Examples
    --------
    >>> import torch
    >>> groups = parameter_groups(torch.nn.Linear(3, 2), weight_decay=1e-4)
    >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
    [(1, 0.0001), (1, 0.0)]
    >>> optimizer = torch.optim.SGD(groups, lr=0.1)
    """
    torch = import_extra("torch", extra="torch")
    decay = check_number(weight_decay, "weight_decay", low=0)
    if not isinstance(module, torch.nn.Module):
        raise InvalidArgumentError(f"module must be a torch.nn.Module; found {type(module).__name__}")
    weights = {id(part.weight): part.weight for part in module.modules() if isinstance(part, torch.nn.Linear)}
    others = [parameter for parameter in module.parameters() if id(parameter) not in weights]
    return [
        {"params": list(weights.values()), "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
    ]


# ------------------------------------------------------------------------------------------- reading modules


def _fail(element: str, reason: str) -> NoReturn:
    raise InvalidArgumentError(f"module: {element}: {reason}")


def _leaves(nn: Any, module: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the modules of a Sequential in the order in which they are applied, nested ones taken apart."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, kind, None) for kind in hooks):
        _fail(f"{name or type(module).__name__}", "has hooks, which may change what it computes: remove them first")
    if "forward" in vars(module):
        _fail(f"{name or type(module).__name__}", "has a forward function that is not its class's")
    if type(module) is not nn.Sequential:
        yield name or "0", module
        return
    for key, part in module._modules.items():  # named_children() leaves out what occurs a second time
        yield from _leaves(nn, part, f"{name}.{key}" if name else key)


def _linear(torch: Any, part: Any, name: str, seen: dict[int, str]) -> Linear:
    """Return a linear module's parameters, once it is sure that they are its own and are numbers."""
    arrays = {}
    for key, tensor in part.named_parameters(remove_duplicate=False):
        element = f"{name}.{key}"
        if key not in ("weight", "bias"):
            _fail(element, "expected weight and bias only")
        if tensor.dtype not in (torch.float64, torch.float32):
            _fail(element, f"expected float64 or float32, found {str(tensor.dtype).removeprefix('torch.')}")
        if tensor.is_meta or tensor.layout is not torch.strided:
            _fail(element, "expected a dense tensor with values")
        other = seen.setdefault(tensor.data_ptr(), element)
        if other != element and tensor.numel():
            _fail(element, f"is shared with {other}; mlpkit ties a W to the transpose of another only")
        arrays[key] = tensor.detach().cpu().numpy()
    if any(True for _ in part.buffers()):
        _fail(name, "expected a linear module without buffers")
    return Linear(f"{name}.weight", f"{name}.bias", arrays["weight"], arrays.get("bias"))


def _check_dropout(part: Any, name: str) -> None:
    if part.training and part.p > 0:
        _fail(
            f"{name}: {part}", "drops units at random in training mode; call module.eval() to convert what it predicts"
        )


def _activation(nn: Any, part: Any, name: str, stack: list[Linear]) -> tuple[Activation, str]:
    """Return mlpkit's activation for a module, and what there is to be said about it."""
    kind, what = type(part).__name__, f"{name}: {part}"
    if type(part) is not getattr(nn, kind, None):  # a class of one's own by this name, or of another module
        _fail(what, "not understood: only linear modules and activations of torch.nn itself are")
    if kind in _PLAIN:
        return activations.get(_PLAIN[kind]), ""
    if kind == "LeakyReLU":
        return _member(activations.leaky_relu, part.negative_slope, what), ""
    if kind == "ELU":
        return _member(activations.elu, part.alpha, what), ""
    if kind == "GELU":
        if part.approximate != "none":
            _fail(what, "mlpkit has the exact GELU only, of which this is an approximation")
        return activations.gelu, ""
    if kind == "Hardtanh":
        if (part.min_val, part.max_val) != (-1, 1):
            _fail(what, "mlpkit's hard_tanh is cut off at -1 and 1")
        return activations.hard_tanh, ""
    if kind == "Softplus":
        if part.beta != 1 or part.threshold < 20:
            _fail(what, "mlpkit's softplus has beta = 1, and no threshold below 20 is near enough to it")
        if part.threshold >= _THRESHOLD:
            return activations.softplus, ""
        return activations.softplus, f", which does not turn linear above {part.threshold:g}"
    if kind == "Softmax":
        if part.dim not in (-1, 1):
            _fail(what, "mlpkit's softmax is over the units: dim must be 1 or -1")
        return activations.softmax, ""
    known = ", ".join([*_PLAIN, "LeakyReLU", "ELU", "GELU", "Hardtanh", "Softplus", "Softmax", "Identity", "Dropout"])
    _fail(what, _REASONS.get(kind, f"not understood (known are Sequential, Linear, {known})"))


def _member(family: Callable[..., Activation], parameter: Any, what: str) -> Activation:
    try:
        return family(parameter)
    except InvalidArgumentError as error:
        _fail(what, str(error))


# ------------------------------------------------------------------------------------------- making modules


def _module(nn: Any, activation: Activation, number: int) -> Any:
    """Return PyTorch's module for an activation of mlpkit's."""
    name, parameters = name_and_parameters(activation)
    makers: dict[str, Callable[..., Any]] = {
        **{ours: getattr(nn, theirs) for theirs, ours in _PLAIN.items()},
        "leaky_relu": nn.LeakyReLU,
        "elu": nn.ELU,
        "gelu": nn.GELU,
        "hard_tanh": nn.Hardtanh,
        "softplus": lambda: nn.Softplus(threshold=_THRESHOLD),
        "softmax": lambda: nn.Softmax(dim=-1),
    }
    if not activation.builtin or name not in makers:
        raise InvalidArgumentError(
            f"net: layer {number}: torch.nn has no module for the activation {activation.name!r}; it has those for "
            f"identity, {', '.join(makers)}"
        )
    return makers[name](*parameters)
