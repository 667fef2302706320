"""PyTorch modules to networks and back: the same predictions, the same objectives, and nothing left out in silence."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import mlpkit
from mlpkit import InvalidArgumentError
from mlpkit.interop import from_torch, parameter_groups, to_torch

# Inputs and weights of ordinary size: errors are a few units in the last place of numbers of size 1, times the root of
# the sums' lengths.
TOLERANCE = {"float64": 1e-14, "float32": 5e-6}

MODULES = {
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(),
    "leaky_relu(0.2)": nn.LeakyReLU(0.2),
    "leaky_relu(0)": nn.LeakyReLU(0),
    "elu": nn.ELU(),
    "elu(0.5)": nn.ELU(0.5, inplace=True),
    "selu": nn.SELU(),
    "softplus": nn.Softplus(threshold=50),
    "softsign": nn.Softsign(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "hard_sigmoid": nn.Hardsigmoid(),
    "hard_tanh": nn.Hardtanh(),
    "softmax": nn.Softmax(dim=-1),
}
# What torch.nn has no module for.
OURS = ("sin", "gaussian", "exp", "top_k(2)")


def linear(n_in, n_out, *, bias=True, dtype=torch.float64, seed=0):
    """Return a linear module with weights that reach all parts of an activation."""
    module = nn.Linear(n_in, n_out, bias=bias, dtype=dtype)
    generator = torch.Generator().manual_seed(seed + 10 * n_in + n_out)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(2.0 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return module


def inputs(m, n, dtype="float64"):
    return np.random.default_rng(5).normal(size=(m, n)).astype(dtype)


def outputs(module, X):
    with torch.no_grad():
        return module(torch.tensor(X)).numpy()


def assert_alike(net, module, *, dtype="float64"):
    X = inputs(40, net.sizes[0], dtype)
    found, expected = net.predict(X), outputs(module, X)
    assert found.dtype == expected.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * max(1, np.abs(expected).max()))


# ------------------------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", MODULES)
def test_every_activation_in_both_directions(name, dtype):
    module = nn.Sequential(linear(4, 6, dtype=getattr(torch, dtype)), MODULES[name])
    net, mapped = from_torch(module)
    assert net.layers[1] == mlpkit.Dense(6, name)
    assert f"1: {MODULES[name]} -> layer 2: {net.layers[1].activation.name}" in mapped
    assert_alike(net, module, dtype=dtype)
    back, _ = to_torch(net)
    assert [type(part) for part in back] == [type(part) for part in module]
    assert_alike(net, back, dtype=dtype)
    assert all(torch.equal(one, other) for one, other in zip(back.parameters(), module.parameters(), strict=True))


def test_activations_of_mlpkit_are_all_accounted_for():
    families = {name.partition("(")[0] for name in MODULES} | {name.partition("(")[0] for name in OURS} | {"identity"}
    builtin = {name for name in mlpkit.activations.names() if mlpkit.activations.get(name).builtin}
    assert builtin <= families


@pytest.mark.parametrize("name", OURS)
def test_activations_that_torch_lacks(name):
    net = mlpkit.MLP([mlpkit.Input(3), mlpkit.Dense(4, name)], seed=0)
    with pytest.raises(InvalidArgumentError, match=rf"layer 2: torch.nn has no module .* '{name.split('(')[0]}"):
        to_torch(net)


@pytest.mark.usefixtures("clean_registries")
def test_an_activation_of_ones_own():
    @mlpkit.activation(name="cubed")
    def cubed(z):
        return z * z * z

    with pytest.raises(InvalidArgumentError, match="no module for the activation 'cubed'"):
        to_torch(mlpkit.MLP([mlpkit.Input(3), mlpkit.Dense(4, cubed)], seed=0))


def test_nested_sequentials_missing_biases_and_linear_modules_in_a_row():
    module = nn.Sequential(
        nn.Identity(),
        nn.Sequential(linear(5, 7, bias=False), nn.Tanh(), nn.Identity()),
        nn.Dropout(0.5),
        linear(7, 3),
        nn.Sequential(nn.Sequential(linear(3, 4)), nn.Sigmoid()),
    ).eval()
    net, mapped = from_torch(module, loss="absolute_error", weight_decay=0.01)
    assert net.layers == (
        mlpkit.Input(5),
        mlpkit.Dense(7, "tanh", bias=False),
        mlpkit.Dense(3, "identity"),
        mlpkit.Dense(4, "sigmoid"),
    )
    assert (net.loss.name, net.weight_decay) == ("absolute_error", 0.01)
    assert mapped == (
        "1.0.weight (7, 5) float64 -> W^(1)",
        "3.weight (3, 7) float64 -> W^(2)",
        "3.bias (3,) float64 -> b^(2)",
        "4.0.0.weight (4, 3) float64 -> W^(3)",
        "4.0.0.bias (4,) float64 -> b^(3)",
        "0: Identity() -> nothing",
        "1.1: Tanh() -> layer 2: tanh",
        "1.2: Identity() -> nothing",
        "2: Dropout(p=0.5, inplace=False) -> nothing, as at inference; mlpkit's training drops no units",
        "4.1: Sigmoid() -> layer 4: sigmoid",
    )
    assert_alike(net, module)
    back, _ = to_torch(net)
    assert list(back.state_dict()) == ["0.weight", "2.weight", "2.bias", "3.weight", "3.bias"]
    assert_alike(net, back)


def test_one_activation_object_in_several_places():
    f = nn.Tanh()
    module = nn.Sequential(linear(3, 4), f, linear(4, 2), f)
    net, _ = from_torch(module)
    assert [layer.activation.name for layer in net.layers[1:]] == ["tanh", "tanh"]
    assert_alike(net, module)


def test_a_bare_linear_module():
    net, mapped = from_torch(linear(3, 2))
    assert net.layers == (mlpkit.Input(3), mlpkit.Dense(2, "identity"))
    assert mapped == ("0.weight (2, 3) float64 -> W^(1)", "0.bias (2,) float64 -> b^(1)")
    assert_alike(net, linear(3, 2))


def test_parameters_are_copies():
    module = nn.Sequential(linear(3, 2))
    net, _ = from_torch(module)
    back, _ = to_torch(net)
    kept = net.theta.copy()
    with torch.no_grad():
        module[0].weight.zero_()
        back[0].bias.zero_()
    np.testing.assert_array_equal(net.theta, kept)


def test_frozen_parameters_are_said_to_be_trained():
    module = nn.Sequential(linear(3, 2).requires_grad_(False))
    assert from_torch(module).mapped[-1].startswith("0.bias: frozen -> trained like the others")


def test_softplus_says_what_a_threshold_makes_of_it():
    assert from_torch(nn.Sequential(linear(3, 2), nn.Softplus())).mapped[-1] == (
        "1: Softplus(beta=1.0, threshold=20.0) -> layer 2: softplus, which does not turn linear above 20"
    )
    z = np.array([[19.9], [20.1], [39.9], [40.1]])
    net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "softplus", init=1.0)])
    np.testing.assert_array_equal(outputs(to_torch(net).result, z), np.log1p(np.exp(-z)) + z)


# ------------------------------------------------------------------------------------------- to torch


def test_what_a_module_has_no_place_for_is_said():
    net = mlpkit.MLP(
        [
            mlpkit.Input(4, noise=mlpkit.MaskingNoise(0.1)),
            mlpkit.Dense(3, "sigmoid", sparsity=mlpkit.KLSparsity(rho=0.1, beta=2.0), weight_decay=0.5),
            mlpkit.Dense(4, "identity", tied_to=1),
        ],
        weight_decay=0.25,
        seed=0,
    )
    net.metadata = {"by": "me"}
    module, mapped = to_torch(net)
    assert mapped == (
        "W^(1) (3, 4) -> 0.weight",
        "b^(1) (3,) -> 0.bias",
        "W^(2) (4, 3) -> 2.weight, a copy of the transpose of W^(1), no longer tied to it",
        "b^(2) (4,) -> 2.bias",
        "layer 2: sigmoid -> 1: Sigmoid()",
        f"layer 1: {net.layers[0].noise} -> not part of a torch module",
        "layer 2: weight_decay 0.5 -> not part of a torch module",
        "layer 2: KLSparsity(rho=0.1, beta=2.0) -> not part of a torch module",
        "loss 'squared_error' -> not part of a torch module",
        "weight_decay 0.25 -> not part of a torch module",
        "metadata -> not part of a torch module",
    )
    assert_alike(net, module)


def test_torch_draws_no_random_number_for_a_module():
    net = mlpkit.MLP([mlpkit.Input(3), mlpkit.Dense(2, "tanh")], seed=0)
    before = torch.get_rng_state()
    to_torch(net)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_that_is_not_finite_is_not_exported():
    net = mlpkit.MLP([mlpkit.Input(3), mlpkit.Dense(2, "tanh")], seed=0)
    net.theta[4] = np.nan
    with pytest.raises(InvalidArgumentError, match=r"finite parameters, found theta\[4\] = nan"):
        to_torch(net)
    with pytest.raises(InvalidArgumentError, match="net must be an MLP"):
        to_torch(nn.Linear(3, 2))


# ------------------------------------------------------------------------------------------- refusals


class MyLinear(nn.Linear):
    """A class of one's own, which may compute anything."""


class Sigmoid(nn.Module):
    """Another's class by a name that torch.nn has too."""


class MySequential(nn.Sequential):
    """A Sequential that may not be one."""


def hooked():
    module = nn.Sequential(linear(3, 2))
    module[0].register_forward_hook(lambda *_: None)
    return module


def patched():
    module = nn.Sequential(linear(3, 2))
    module[0].forward = lambda x: x
    return module


def shared():
    module = nn.Sequential(linear(3, 3), nn.Tanh(), linear(3, 3))
    module[2].weight = module[0].weight
    return module


def buffered():
    module = linear(3, 2)
    module.register_buffer("mask", torch.ones(2))
    return module


def twice():
    one = linear(3, 3)
    return nn.Sequential(one, nn.Tanh(), one)


def infinite():
    module = nn.Sequential(linear(3, 2))
    with torch.no_grad():
        module[0].weight[1, 2] = float("inf")
    return module


REFUSED = {
    "Flatten": (lambda: nn.Sequential(nn.Flatten(), linear(3, 2)), "0: Flatten.* as rows"),
    "BatchNorm1d": (lambda: nn.Sequential(linear(3, 2), nn.BatchNorm1d(2)), r"1: BatchNorm1d\(2.*not understood"),
    "LayerNorm": (lambda: nn.Sequential(linear(3, 2), nn.LayerNorm(2)), "1: LayerNorm"),
    "Conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 2, 1)), "0: Conv1d"),
    "bare Tanh": (nn.Tanh, "0: Tanh.*linear module before"),
    "ReLU6": (lambda: nn.Sequential(linear(3, 2), nn.ReLU6()), "1: ReLU6.*cut off at 6"),
    "PReLU": (lambda: nn.Sequential(linear(3, 2), nn.PReLU()), "1: PReLU"),
    "LogSoftmax": (lambda: nn.Sequential(linear(3, 2), nn.LogSoftmax(1)), "1: LogSoftmax.*logarithms.*Softmax"),
    "GELU": (lambda: nn.Sequential(linear(3, 2), nn.GELU(approximate="tanh")), "1: GELU.*approximation"),
    "Hardtanh": (lambda: nn.Sequential(linear(3, 2), nn.Hardtanh(0, 6)), "1: Hardtanh.*-1 and 1"),
    "Softplus beta": (lambda: nn.Sequential(linear(3, 2), nn.Softplus(beta=2)), "1: Softplus.*beta = 1"),
    "Softplus threshold": (lambda: nn.Sequential(linear(3, 2), nn.Softplus(threshold=5)), "1: Softplus.*threshold"),
    "Softmax over examples": (lambda: nn.Sequential(linear(3, 2), nn.Softmax(0)), "1: Softmax.*over the units"),
    "Softmax over whatever": (lambda: nn.Sequential(linear(3, 2), nn.Softmax()), "1: Softmax.*over the units"),
    "LeakyReLU": (lambda: nn.Sequential(linear(3, 2), nn.LeakyReLU(-0.1)), "1: LeakyReLU.*slope"),
    "ELU": (lambda: nn.Sequential(linear(3, 2), nn.ELU(0.0)), "1: ELU.*alpha"),
    "Dropout": (lambda: nn.Sequential(linear(3, 2), nn.Dropout(0.3)), r"1: Dropout.*module.eval\(\)"),
    "AlphaDropout": (lambda: nn.Sequential(linear(3, 2), nn.AlphaDropout()).eval(), "1: AlphaDropout"),
    "own linear": (lambda: nn.Sequential(MyLinear(3, 2)), "0: MyLinear.*of torch.nn itself"),
    "own Sigmoid": (lambda: nn.Sequential(linear(3, 2), Sigmoid()), "1: Sigmoid.*of torch.nn itself"),
    "own Sequential": (lambda: MySequential(linear(3, 2)), "MySequential"),
    "weight norm": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(linear(3, 2))), "Parametrized"),
    "hooks": (hooked, "0: has hooks"),
    "forward": (patched, "0: has a forward function"),
    "shared": (shared, r"2.weight: is shared with 0.weight"),
    "twice": (twice, r"2.weight: is shared with 0.weight"),
    "buffers": (buffered, "0: expected a linear module without buffers"),
    "two activations": (lambda: nn.Sequential(linear(3, 2), nn.ReLU(), nn.Tanh()), "2: Tanh.*second.*'relu'"),
    "activation first": (lambda: nn.Sequential(nn.ReLU(), linear(3, 2)), "0: ReLU.*before the first"),
    "nothing": (nn.Sequential, "no linear module"),
    "shapes": (lambda: nn.Sequential(linear(3, 2), linear(4, 2)), "1.weight: takes 4 inputs, but 0.weight .* gives 2"),
    "dtypes": (
        lambda: nn.Sequential(linear(3, 2), linear(2, 2, dtype=torch.float32)),
        "1.weight: expected float64 as in 0.weight, found float32",
    ),
    "bfloat16": (lambda: linear(3, 2).bfloat16(), "0.weight: expected float64 or float32, found bfloat16"),
    "meta": (lambda: nn.Linear(3, 2, device="meta"), "0.weight: expected a dense tensor with values"),
    "infinite": (infinite, r"0.weight\[1, 2\]: expected finite numbers, found inf"),
    "path": (lambda: "model.pt", "'model.pt'.*pickle"),
    "state": (lambda: linear(3, 2).state_dict(), "a dict"),
    "network": (lambda: 3, "must be a torch.nn.Module; found int"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name_and_reason(case):
    make, reason = REFUSED[case]
    with pytest.raises(InvalidArgumentError, match=rf"(?s)^module.*{reason}"):
        from_torch(make())


def test_a_loss_that_the_outputs_do_not_fit_is_refused():
    with pytest.raises(InvalidArgumentError, match="'cross_entropy' needs an output layer with 'softmax'"):
        from_torch(linear(3, 2), loss="cross_entropy")


# ------------------------------------------------------------------------------------------- objectives

K = 3


def targets(kind, m):
    generator = np.random.default_rng(6)
    if kind == "classes":
        return generator.integers(K, size=m)
    return generator.random((m, K)) if kind == "probabilities" else generator.normal(size=(m, K))


OBJECTIVES = {
    # torch's loss, what it has inside it, mlpkit's loss, how many times torch's, targets
    "MSELoss": (nn.MSELoss(), None, "squared_error", K / 2, "numbers"),
    "CrossEntropyLoss": (nn.CrossEntropyLoss(), nn.Softmax(1), "cross_entropy", 1.0, "classes"),
    "BCEWithLogitsLoss": (nn.BCEWithLogitsLoss(), nn.Sigmoid(), "binary_cross_entropy", K, "probabilities"),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_and_gradients_agree_where_weights_alone_are_decayed(name):
    loss, inside, ours, factor, kind = OBJECTIVES[name]
    decay = 0.3
    module = nn.Sequential(linear(4, 6), nn.Tanh(), linear(6, K))
    converted = copy.deepcopy(module) if inside is None else nn.Sequential(*copy.deepcopy(module), inside)
    net, _ = from_torch(converted, loss=ours, weight_decay=factor * decay)
    X, Y = inputs(50, 4), targets(kind, 50)
    J, gradient = mlpkit.Objective(net, X, Y).value_and_gradient(net.theta)

    value = loss(module(torch.tensor(X)), torch.tensor(Y))
    value = value + decay / 2 * sum((part.weight**2).sum() for part in module if isinstance(part, nn.Linear))
    value.backward()
    theirs = np.concatenate([parameter.grad.numpy().ravel() for parameter in module.parameters()])
    np.testing.assert_allclose(J, factor * value.item(), rtol=1e-13)
    np.testing.assert_allclose(gradient, factor * theirs, rtol=0, atol=1e-13 * np.abs(gradient).max())


@pytest.mark.parametrize("groups", [True, False])
def test_a_step_of_sgd_decays_biases_too_unless_in_groups(groups):
    decay, rate = 0.3, 0.01
    module = nn.Sequential(linear(4, 6), nn.Tanh(), linear(6, K))
    net, _ = from_torch(module, weight_decay=K / 2 * decay)
    X, Y = inputs(50, 4), targets("numbers", 50)
    _, gradient = mlpkit.Objective(net, X, Y).value_and_gradient(net.theta)
    expected, kept = net.theta - rate * gradient / (K / 2), [b.copy() for b in net.biases]

    given = parameter_groups(module, decay) if groups else module.parameters()
    optimizer = torch.optim.SGD(given, lr=rate, weight_decay=0.0 if groups else decay)
    nn.MSELoss()(module(torch.tensor(X)), torch.tensor(Y)).backward()
    optimizer.step()
    net.theta = expected
    moved = from_torch(module).result
    for mine, theirs in zip(net.weights, moved.weights, strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=0, atol=1e-14)
    for mine, theirs, before in zip(net.biases, moved.biases, kept, strict=True):
        np.testing.assert_allclose(theirs, mine - (0.0 if groups else rate * decay * before), rtol=0, atol=1e-14)


def test_parameter_groups_holds_every_parameter_once():
    module = nn.Sequential(linear(3, 2), nn.BatchNorm1d(2), linear(2, 2, bias=False))
    weights, others = parameter_groups(module, 0.1)
    assert (len(weights["params"]), len(others["params"])) == (2, 3)
    with pytest.raises(InvalidArgumentError, match="weight_decay must be"):
        parameter_groups(module, -1.0)
    with pytest.raises(InvalidArgumentError, match=r"must be a torch\.nn\.Module"):
        parameter_groups([], 0.1)


# ------------------------------------------------------------------------------------------- without torch


def test_torch_is_imported_on_use_only_and_its_absence_explained():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import mlpkit, mlpkit.interop\n"
        "try: mlpkit.interop.to_torch(mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(1, 'tanh')]))\n"
        "except mlpkit.MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert 'torch is not installed: it comes with  pip install "mlpkit[torch]"' in done.stdout, done.stderr
