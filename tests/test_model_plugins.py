"""The user's own functions in model files: only their names are stored, and registered they come back."""

import os

import pytest
from forging import configured, forge
from models import same_bits, saved, small_net

import mlpkit
from mlpkit import MLP, Dense, Input, activations, losses, user_penalties
from mlpkit.errors import InvalidArgumentError, ModelFormatError


@pytest.fixture
def model(tmp_path):
    return saved(small_net(), tmp_path)


def cube(name="cube of a test"):
    """An activation of the user's own."""
    return activations.Activation(name, lambda z: z * z * z, lambda z, a: 3.0 * z * z)


@pytest.fixture
def registries():
    """Forget what a test registers."""
    found = [module.REGISTRY for module in (activations.record, losses.record, user_penalties)]
    before = [set(registry) for registry in found]
    yield
    for registry, names in zip(found, before, strict=True):
        for name in registry.keys() - names:
            del registry[name]


@pytest.mark.usefixtures("registries")
def test_an_unregistered_activation_is_named_and_loads_once_registered(tmp_path):
    own = cube()
    net = MLP([Input(3), Dense(2, own), Dense(1, "identity")], seed=0)
    with pytest.warns(UserWarning, match=r"layer 2: .*'cube of a test' is not registered") as caught:
        net.save(path := tmp_path / "model.h5")
    assert caught[0].filename == __file__
    message = r"/config: layer 2: activation: 'cube of a test' is not registered.*@mlpkit.activation.*sigm"
    with pytest.raises(ModelFormatError, match=message):
        mlpkit.load(path)
    activations.register(own)
    back = mlpkit.load(path)
    assert back.layers[1].activation is own
    assert same_bits(back.theta, net.theta)


def test_an_unregistered_loss_is_named(model):
    forge(model, configured("loss", "hinge of a test"))
    with pytest.raises(ModelFormatError, match=r"'hinge of a test' is not registered.*@mlpkit\.loss"):
        mlpkit.load(model)


@pytest.mark.parametrize("alone", [True, False])
def test_an_unregistered_penalty_is_named(model, alone):
    entry = {"type": "MeanPenalty", "penalty": "dull of a test", "beta": 1.0}
    forge(model, configured("layers", 1, "sparsity", entry if alone else [entry]))
    message = r"layer 2: sparsity: penalty: 'dull of a test' is not registered.*@mlpkit\.penalty"
    with pytest.raises(ModelFormatError, match=message):
        mlpkit.load(model)


@pytest.mark.parametrize("name", ["leaky_relu(0.2)", "top_k(2)", "leaky_relu", "gelu"])
def test_activations_with_parameters_come_back(tmp_path, name):
    net = MLP([Input(3), Dense(4, name), Dense(2, "identity")], seed=0)
    back = mlpkit.load(saved(net, tmp_path))
    assert back.layers[1].activation is net.layers[1].activation
    assert same_bits(back.theta, net.theta)


@pytest.mark.parametrize("name", ["leaky_relu(0.20)", "leaky_relu(nan)", "leaky_relu(1e400)", "top_k(9**9)", "top_k()"])
def test_parameters_are_numbers_as_they_are_written(model, name):
    forge(model, configured("layers", 1, "activation", name))
    with pytest.raises(ModelFormatError, match="activation"):
        mlpkit.load(model)


def test_an_impostor_of_a_registered_activation_is_not_saved(tmp_path):
    """Only the name is stored: loading would silently give another function."""
    net = MLP([Input(3), Dense(2, cube("sigmoid"))], seed=0)
    with pytest.raises(InvalidArgumentError, match="layer 2: activation: 'sigmoid' is registered"):
        net.save(tmp_path / "model.h5")
    assert os.listdir(tmp_path) == []
