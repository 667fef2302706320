"""Adam by mlpkit, scikit-learn, PyTorch and JAX, each written as its users write it when they want it fast.

A contender is a function of a `Course` and of what to call with the epoch's mean loss after each epoch; it trains and
returns the function that predicts. In that call it is stopped and started by the benchmark, so that contenders take
turns. Imports stay inside, as a process times one library only.

    python training_peers.py CONTENDER VARIANT COURSE DATA SEED EPOCHS SAMPLE_SECONDS

trains in this process and speaks JSON lines: ``{"first": seconds, "loss": mean loss}`` after the first epoch, which
counts from before the import, then for each line on standard input ``{"seconds": seconds an epoch, "loss": ...}``, over
as many epochs as take about SAMPLE_SECONDS. With EPOCHS above 0 it trains that many without being asked and ends with
``{"accuracy": on the test data}``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["CONTENDERS", "COURSES", "VARIANTS", "Course"]

RATE, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-8
ENDLESS = 1_000_000


@dataclass
class Course:
    """What is trained on what: a network of one hidden layer, without weight decay, in float32.

    Attributes
    ----------
    sizes : tuple of int
        Units of the three layers.
    hidden, output, loss : str
        By mlpkit's names.
    batch : int
        Examples a step; divides the number of examples.
    X, Y : ndarray
        All examples; Y is X for an autoencoder.
    seed : int
        Of initial parameters and shuffles.
    epochs : int
        How many to train at most.
    """

    sizes: tuple[int, int, int]
    hidden: str
    output: str
    loss: str
    batch: int
    X: Any = None
    Y: Any = None
    seed: int = 0
    epochs: int = ENDLESS

    @property
    def classifies(self) -> bool:
        """Whether targets are labels."""
        return self.loss == "cross_entropy"

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return len(self.X) // self.batch

    def parameters(self) -> list[np.ndarray]:
        """W1, b1, W2, b2 by scikit-learn's rule (Glorot and Bengio, 2010), W of shape (n_out, n_in)."""
        rng = np.random.default_rng(self.seed)
        drawn: list[np.ndarray] = []
        for n_in, n_out in zip(self.sizes, self.sizes[1:], strict=False):
            limit = np.sqrt((2 if self.hidden == "sigmoid" else 6) / (n_in + n_out))
            drawn += [rng.uniform(-limit, limit, shape).astype(np.float32) for shape in ((n_out, n_in), (n_out,))]
        return drawn


COURSES = {
    "classifier 784-100-10, batch 200": Course((784, 100, 10), "relu", "softmax", "cross_entropy", 200),
    "standardized classifier 784-100-10, batch 200": Course((784, 100, 10), "relu", "softmax", "cross_entropy", 200),
    "autoencoder 64-25-64, batch 32": Course((64, 25, 64), "sigmoid", "sigmoid", "squared_error", 32),
}

Report = Callable[[float], None]
Predict = Callable[[np.ndarray], np.ndarray]


def train_mlpkit(course: Course, report: Report, variant: str) -> Predict:
    """Train by `fit`; a callback sees each epoch."""
    import mlpkit

    n_in, n_hidden, n_out = course.sizes
    layers = [mlpkit.Input(n_in), mlpkit.Dense(n_hidden, course.hidden), mlpkit.Dense(n_out, course.output)]
    net = mlpkit.MLP(layers, loss=course.loss, dtype="float32", seed=course.seed)
    net.theta = np.concatenate([part.ravel() for part in course.parameters()])
    adam = mlpkit.Adam(RATE, batch_size=course.batch, max_epochs=course.epochs)
    net.fit(course.X, course.Y, adam, callbacks=[lambda run: report(run.history[-1].cost)])
    return net.predict


def train_sklearn(course: Course, report: Report, variant: str) -> Predict:
    """Train by one `fit`, which draws parameters by itself; a private method that it calls once an epoch reports.

    `partial_fit` would check all examples in each epoch. Of regressors' output layers there are only linear ones,
    which saves it a little work on the autoencoder.
    """
    import warnings

    from sklearn.neural_network import MLPClassifier, MLPRegressor

    kind = MLPClassifier if course.classifies else MLPRegressor
    outputs = 1 if course.classifies else course.sizes[2]  # its squared error is a mean over outputs as well

    class Reporting(kind):  # type: ignore[misc, valid-type]
        def _update_no_improvement_count(self, *arguments: Any) -> None:
            super()._update_no_improvement_count(*arguments)
            report(self.loss_ * outputs)

    net = Reporting(
        hidden_layer_sizes=course.sizes[1:2], activation={"sigmoid": "logistic"}.get(course.hidden, course.hidden),
        solver="adam", alpha=0.0, batch_size=course.batch, learning_rate_init=RATE, max_iter=course.epochs, tol=0.0,
        n_iter_no_change=course.epochs, random_state=course.seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        net.fit(course.X, course.Y)
    return net.predict


def train_torch(course: Course, report: Report, variant: str) -> Predict:
    """Train by autograd and torch.optim.Adam on plain tensors, without modules and loaders, which take time.

    The variant says whether an epoch's examples are gathered at once ("whole") or batch by batch, how Adam goes over
    the parameters ("fused", "foreach"), and whether torch.compile is given the cost.
    """
    import torch
    import torch.nn.functional as F

    torch.manual_seed(course.seed)
    words = variant.split()
    X, batch = torch.from_numpy(course.X), course.batch
    Y = torch.from_numpy(course.Y) if course.classifies else X
    W1, b1, W2, b2 = parameters = [torch.from_numpy(part).requires_grad_() for part in course.parameters()]
    adam = torch.optim.Adam(
        parameters, RATE, (BETA1, BETA2), EPSILON, fused="fused" in words, foreach="foreach" in words
    )
    function = {"sigmoid": torch.sigmoid, "relu": torch.relu}[course.hidden]

    def forward(x: Any) -> Any:
        return F.linear(function(F.linear(x, W1, b1)), W2, b2)

    def cost(x: Any, y: Any) -> Any:
        if course.classifies:
            return F.cross_entropy(forward(x), y)
        return (0.5 / batch) * F.mse_loss(torch.sigmoid(forward(x)), y, reduction="sum")

    if "compile" in words:
        cost = torch.compile(cost)
    for _ in range(course.epochs):
        order = torch.randperm(len(X))
        total = torch.zeros(())
        if "whole" in words:
            inputs = X[order].split(batch)
            batches = zip(inputs, Y[order].split(batch) if course.classifies else inputs, strict=True)
        else:
            gathered = ((X[numbers], numbers) for numbers in order.split(batch))
            batches = ((x, Y[numbers] if course.classifies else x) for x, numbers in gathered)
        for x, y in batches:
            adam.zero_grad()
            loss = cost(x, y)
            loss.backward()
            adam.step()
            total += loss.detach()
        report(float(total) / course.steps)

    def predict(X: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return forward(torch.from_numpy(X)).argmax(1).numpy()

    return predict


def train_jax(course: Course, report: Report, variant: str) -> Predict:
    """Train by one compiled call an epoch, a scan over its steps, with buffers given away.

    The variant says whether an epoch's examples are gathered at once ("whole") or batch by batch. Orders are NumPy's,
    which draws them faster than jax.random does on a processor.
    """
    import jax
    import jax.numpy as jnp

    batch, steps = course.batch, course.steps
    function = {"sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu}[course.hidden]

    def forward(parameters: Any, x: Any) -> Any:
        W1, b1, W2, b2 = parameters
        return function(x @ W1.T + b1) @ W2.T + b2

    def cost(parameters: Any, x: Any, y: Any) -> Any:
        z = forward(parameters, x)
        if course.classifies:
            return -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1).mean()
        return 0.5 * jnp.square(jax.nn.sigmoid(z) - y).sum() / batch

    def step(state: Any, x: Any, y: Any) -> Any:
        parameters, first, second, t = state
        loss, gradient = jax.value_and_grad(cost)(parameters, x, y)
        t = t + 1
        first = [BETA1 * m + (1 - BETA1) * g for m, g in zip(first, gradient, strict=True)]
        second = [BETA2 * s + (1 - BETA2) * g * g for s, g in zip(second, gradient, strict=True)]
        c1, c2 = 1 / (1 - BETA1**t), 1 / (1 - BETA2**t)
        moved = [
            p - RATE * (m * c1) / (jnp.sqrt(s * c2) + EPSILON)
            for p, m, s in zip(parameters, first, second, strict=True)
        ]
        return (moved, first, second, t), loss

    def epoch(state: Any, X: Any, Y: Any, order: Any) -> Any:
        if "whole" in variant:
            inputs = X[order].reshape(steps, batch, -1)
            batches = (inputs, Y[order].reshape(steps, batch) if course.classifies else inputs)
            state, losses = jax.lax.scan(lambda state, xy: step(state, *xy), state, batches)
        else:

            def gather_and_step(state: Any, numbers: Any) -> Any:
                x = X[numbers]
                return step(state, x, Y[numbers] if course.classifies else x)

            state, losses = jax.lax.scan(gather_and_step, state, order.reshape(steps, batch))
        return state, losses.mean()

    epoch = jax.jit(epoch, donate_argnums=0)
    parameters = [jnp.asarray(part) for part in course.parameters()]
    zeros = [[jnp.zeros_like(part) for part in parameters] for _ in range(2)]
    state = (parameters, *zeros, jnp.float32(0))
    X = jnp.asarray(course.X)
    Y = jnp.asarray(course.Y.astype(np.int32)) if course.classifies else X
    rng = np.random.default_rng(course.seed)
    for _ in range(course.epochs):
        state, loss = epoch(state, X, Y, rng.permutation(len(X)).astype(np.int32))
        report(float(loss))
    return lambda X: np.asarray(forward(state[0], X).argmax(1))


CONTENDERS: dict[str, Callable[[Course, Report, str], Predict]] = {
    "mlpkit": train_mlpkit,
    "scikit-learn": train_sklearn,
    "torch": train_torch,
    "torch.compile": train_torch,
    "jax": train_jax,
}

# What is worth trying of each: how it is written, and environment variables, which set its threads before it starts.
ONE_EIGEN_THREAD = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
VARIANTS: dict[str, list[tuple[str, dict[str, str]]]] = {
    "mlpkit": [("", {})],
    "scikit-learn": [("", {}), ("", {"OPENBLAS_NUM_THREADS": "1"})],
    "torch": [("fused", {}), ("fused", ONE_THREAD), ("fused whole", ONE_THREAD), ("foreach", ONE_THREAD)],
    "torch.compile": [("compile fused", {}), ("compile fused", ONE_THREAD)],
    "jax": [("", {}), ("whole", {}), ("", ONE_EIGEN_THREAD), ("whole", ONE_EIGEN_THREAD)],
}


class Turns:
    """Reports the first epoch, then waits before each sample to be asked for it."""

    def __init__(self, sample_seconds: float) -> None:
        self.sample_seconds = sample_seconds
        self.epochs = self.n_epochs = 1  # of a sample, and still to come of it
        self.asked = False
        self.start = time.perf_counter()

    def __call__(self, loss: float) -> None:
        """Take note of an epoch."""
        now = time.perf_counter()
        self.n_epochs -= 1
        if self.n_epochs:
            return
        seconds = (now - self.start) / self.epochs
        say(**{"seconds" if self.asked else "first": seconds, "loss": loss})
        if self.asked:
            self.epochs = max(1, round(self.sample_seconds / seconds)) if self.epochs == 1 else self.epochs
        if not sys.stdin.readline():
            raise SystemExit
        self.asked, self.n_epochs = True, self.epochs
        self.start = time.perf_counter()


def say(**message: Any) -> None:
    """Write one JSON line to the parent."""
    print(json.dumps(message), file=CHANNEL, flush=True)


def main() -> None:
    """Train as the command line says."""
    contender, variant, course_name, data, seed, epochs, sample_seconds = sys.argv[1:]
    course = COURSES[course_name]
    with np.load(data) as arrays:
        course.X = arrays["X"]
        course.Y = arrays["Y"] if course.classifies else course.X
        X_test, Y_test = arrays["X_test"], arrays["Y_test"]
    course.seed, wanted = int(seed), int(epochs)
    course.epochs = wanted or ENDLESS
    losses: list[float] = []
    try:
        predict = CONTENDERS[contender](course, losses.append if wanted else Turns(float(sample_seconds)), variant)
    except ImportError as error:
        return say(absent=f"not installed: {error.name}")
    outputs = predict(X_test)
    labels = outputs.argmax(1) if outputs.ndim == 2 else outputs
    say(accuracy=float(np.mean(labels == Y_test)), losses=losses)


if __name__ == "__main__":
    # Libraries may print, also from compiled code.
    CHANNEL = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main()
