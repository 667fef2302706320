"""Make the files beside this one, with Keras 3 on its JAX backend: ``python make_files.py``.

They were made with keras 3.15.1 and jax 0.10.2; the tests read them and need neither. ``expected.json`` holds for each
file of weights some inputs and what Keras predicts for them, and for ``objective.weights.h5`` values and gradients of
three of Keras's losses with L2 regularisers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_ENABLE_X64"] = "1"

import jax
import keras
import numpy as np
from keras import layers

FOLDER = Path(__file__).parent
GENERATOR = np.random.default_rng(3)
EXPECTED = {}


def start(model, scale=0.8):
    """Give a model weights and biases of ordinary size."""
    model.set_weights([GENERATOR.normal(scale=scale, size=w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def save(model, name, activations, **more):
    """Write a model's weights, and what it predicts."""
    dtype = model.get_weights()[0].dtype
    X = GENERATOR.normal(size=(6, 4)).astype(dtype)
    model.save_weights(FOLDER / f"{name}.weights.h5")
    predictions = np.asarray(model(X, training=False))
    EXPECTED[name] = {
        "dtype": dtype.name,
        "activations": activations,
        "X": X.tolist(),
        "predictions": predictions.tolist(),
        **more,
    }


def sequential():
    """Dropout, a layer without biases, an activation layer, and an optimiser's state."""
    model = keras.Sequential(
        [
            layers.Input((4,)),
            layers.Dense(5, activation="tanh"),
            layers.Dropout(0.5),
            layers.Dense(3, use_bias=False),
            layers.LeakyReLU(),
            layers.Dense(2, activation="softmax", name="head"),
        ]
    )
    start(model).compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    model.fit(np.ones((8, 4)), np.eye(2)[[0, 1] * 4], verbose=0)
    save(model, "sequential", ["tanh", "leaky_relu(0.3)", "softmax"])


def chain():
    """More than ten layers with names of their own, in double precision, and nearly all activations."""
    names = ["elu", "selu", "softplus", "softsign", "silu", "gelu", "hard_sigmoid", "relu", "leaky_relu", "sigmoid"]
    names += ["exponential", "relu", "linear"]  # tanh gives float32 on this backend, whatever it is given
    ours = {"leaky_relu": "leaky_relu(0.2)", "exponential": "exp", "linear": "identity"}
    x = inputs = layers.Input((4,))
    for number, activation in enumerate(names):
        x = layers.Dense(3, activation=activation, name=f"z{len(names) - number}")(x)
    save(start(keras.Model(inputs, x)), "chain", [ours.get(name, name) for name in names])


def nested():
    """A model within a model."""
    inner = keras.Sequential([layers.Dense(5, activation="relu"), layers.Dense(6, activation="tanh")])
    model = keras.Sequential([layers.Input((4,)), layers.Dense(3), inner, layers.Dense(2, activation="sigmoid")])
    order = ["layers/dense", "layers/sequential/layers/dense", "layers/sequential/layers/dense_1", "layers/dense_1"]
    save(start(model), "nested", ["identity", "relu", "tanh", "sigmoid"], order=order)


class Subclassed(keras.Model):
    """Layers that are attributes."""

    def __init__(self):
        super().__init__()
        self.flat = layers.Flatten()
        self.second = layers.Dense(2, activation="sigmoid")
        self.first = layers.Dense(3, activation="tanh")
        self.drop = layers.Dropout(0.1)

    def call(self, x):
        """Apply them in another order than they were made in."""
        return self.second(self.drop(self.first(self.flat(x))))


def subclassed():
    """Names that say nothing about the order."""
    model = Subclassed()
    model(np.ones((1, 4)))
    # Keras goes through attributes in the order of their names, of which one is `layers`: all that come after it are
    # found there first, in the order in which they were made.
    save(start(model), "subclassed", ["tanh", "sigmoid"], order=["first", "layers/dense"])


def normalised():
    """A layer that is none of ours."""
    model = keras.Sequential([layers.Input((4,)), layers.Dense(3), layers.BatchNormalization(), layers.Dense(2)])
    start(model).save_weights(FOLDER / "normalised.weights.h5")


def whole():
    """Write whole models, in both of Keras's ways."""
    model = start(keras.Sequential([layers.Input((2,)), layers.Dense(1)]))
    model.save(FOLDER / "whole.keras")
    model.save(FOLDER / "whole.h5")


LOSSES = {
    "mse": ("linear", keras.losses.MeanSquaredError),
    "categorical_crossentropy": ("softmax", keras.losses.CategoricalCrossentropy),
    "binary_crossentropy": ("sigmoid", keras.losses.BinaryCrossentropy),
}


def objective():
    """Keras's objectives with L2 regularisers, and their gradients."""
    l2, X, labels = 0.05, GENERATOR.normal(size=(7, 4)), np.eye(3)[GENERATOR.integers(3, size=7)]
    weights = None
    for name, (activation, loss) in LOSSES.items():
        regularised = {"kernel_regularizer": keras.regularizers.L2(l2)}
        model = keras.Sequential(
            [
                layers.Input((4,)),
                layers.Dense(6, activation="sigmoid", **regularised),
                layers.Dense(3, activation=activation, **regularised),
            ]
        )
        if weights is None:
            weights = start(model).get_weights()
            save(model, "objective", ["sigmoid", "identity"], l2=l2, inputs=X.tolist(), objectives={})
        model.set_weights(weights)
        Y = GENERATOR.normal(size=(7, 3)) if name == "mse" else labels

        def value(variables, model=model, loss=loss, Y=Y):
            outputs, _, penalties = model.stateless_call(variables, [], X, return_losses=True)
            return loss()(Y, outputs) + sum(penalties)

        J, gradients = jax.value_and_grad(value)([variable.value for variable in model.trainable_variables])
        EXPECTED["objective"]["objectives"][name] = {
            "activation": activation.replace("linear", "identity"),
            "targets": Y.tolist(),
            "value": float(J),
            "gradients": [np.asarray(gradient).tolist() for gradient in gradients],
        }


if __name__ == "__main__":
    for make in (sequential, nested, subclassed, normalised, whole):
        make()
    keras.config.set_floatx("float64")  # else inputs and losses are rounded to float32 on the way
    keras.config.set_dtype_policy("float64")
    chain()
    objective()
    (FOLDER / "expected.json").write_text(json.dumps(EXPECTED, indent=1) + "\n")
