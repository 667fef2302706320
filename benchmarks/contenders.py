"""Each library's way of doing a job, written as its users write it when they want it fast.

A contender is a function from a `Job` to a callable without arguments that does the job once. For J and its gradient
it returns (J, gradient as one vector in theta's order); for prediction, the outputs (m, s_nl). Imports stay inside, as
a process times one library only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jobs import Job

__all__ = ["CONTENDERS", "SETTINGS"]

Task = Callable[[], Any]


def mlpkit_task(job: Job) -> Task:
    """Return mlpkit's own task."""
    import mlpkit

    sparsity = mlpkit.KLSparsity(rho=job.rho, beta=job.beta) if job.beta else None
    layers = [mlpkit.Input(job.sizes[0])]
    layers += [mlpkit.Dense(units, job.hidden, sparsity=sparsity) for units in job.sizes[1:-1]]
    layers += [mlpkit.Dense(job.sizes[-1], job.output)]
    net = mlpkit.MLP(layers, loss=job.loss, weight_decay=job.weight_decay, dtype=job.dtype)
    theta = net.theta = job.theta
    if job.predict:
        X, out = job.X, np.empty((job.m, job.sizes[-1]), job.dtype)
        return lambda: net.predict(X, out=out)
    evaluate = mlpkit.Objective(net, job.X, job.Y).value_and_gradient
    return lambda: evaluate(theta)


def numpy_task(job: Job) -> Task:
    """Whole matrices, one BLAS call a product, buffers made once, elementwise work in place."""
    X, dtype, sizes = job.X, np.dtype(job.dtype), job.sizes
    a = [X] + [np.empty((job.m, n), dtype) for n in sizes[1:]]
    delta = [None] + [np.empty((job.m, n), dtype) for n in sizes[1:]]
    ones = np.ones(job.m, dtype)
    layers = job.parameters
    target = job.Y
    if job.loss == "cross_entropy" and not job.predict:
        target = np.eye(sizes[-1], dtype=dtype)[job.Y]

    def apply(name: str, z: np.ndarray) -> None:
        if name == "sigmoid":
            np.negative(z, out=z)
            np.exp(z, out=z)
            z += 1
            np.reciprocal(z, out=z)
        elif name == "tanh":
            np.tanh(z, out=z)
        elif name == "relu":
            np.maximum(z, 0, out=z)
        elif name == "softmax":
            z -= z.max(axis=1, keepdims=True)
            np.exp(z, out=z)
            z /= z.sum(axis=1, keepdims=True)

    def times_slope(name: str, a: np.ndarray, d: np.ndarray) -> None:
        if name == "sigmoid":
            d *= a
            np.subtract(1, a, out=a)
            d *= a
        elif name == "tanh":
            a *= a
            np.subtract(1, a, out=a)
            d *= a
        elif name == "relu":
            d *= a > 0

    def forward() -> None:
        for layer, (W, b) in enumerate(layers):
            np.matmul(a[layer], W.T, out=a[layer + 1])
            a[layer + 1] += b
            apply(job.output if layer == len(layers) - 1 else job.hidden, a[layer + 1])

    def predict() -> np.ndarray:
        forward()
        return a[-1]

    def evaluate() -> tuple[float, np.ndarray]:
        forward()
        gradient = np.empty_like(job.theta)
        top = delta[-1]
        if job.loss == "cross_entropy":
            cost = -float(np.log(a[-1][np.arange(job.m), job.Y]).sum()) / job.m
            np.subtract(a[-1], target, out=top)
        else:
            np.subtract(a[-1], target, out=top)
            cost = 0.5 * float(np.vdot(top, top)) / job.m
        top /= job.m
        if job.loss != "cross_entropy":
            times_slope(job.output, a[-1], top)
        end = gradient.size
        for layer in range(len(layers) - 1, -1, -1):
            W, b = layers[layer]
            gb = gradient[end - b.size : end]
            gW = gradient[end - b.size - W.size : end - b.size].reshape(W.shape)
            end -= b.size + W.size
            np.matmul(ones, delta[layer + 1], out=gb)
            np.matmul(delta[layer + 1].T, a[layer], out=gW)
            cost += 0.5 * job.weight_decay * float(np.vdot(W, W))
            gW += job.weight_decay * W
            if layer:
                np.matmul(delta[layer + 1], W, out=delta[layer])
                if job.beta:
                    rho, rho_hat = job.rho, a[layer].mean(axis=0, dtype=np.float64)
                    kl = rho * np.log(rho / rho_hat) + (1 - rho) * np.log((1 - rho) / (1 - rho_hat))
                    cost += job.beta * float(kl.sum())
                    slope = job.beta * (-rho / rho_hat + (1 - rho) / (1 - rho_hat)) / job.m
                    delta[layer] += slope.astype(dtype)
                times_slope(job.hidden, a[layer], delta[layer])  # overwrites a, of which all else has been taken
        return cost, gradient

    return predict if job.predict else evaluate


def torch_task(job: Job, *, compiled: bool = False) -> Task:
    """Autograd over whole matrices; `compiled` passes the cost through torch.compile."""
    import torch
    import torch.nn.functional as F

    X = torch.from_numpy(job.X)
    Y = X if job.autoencoder else torch.from_numpy(job.Y)
    layers = [(torch.from_numpy(W).clone(), torch.from_numpy(b).clone()) for W, b in job.parameters]
    functions = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "identity": lambda z: z}
    flat = [part for layer in layers for part in layer]

    def forward(*parameters: Any) -> tuple[Any, list[Any]]:
        a, hidden = X, []
        for W, b in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
            a = functions[job.hidden](F.linear(a, W, b))
            hidden.append(a)
        return F.linear(a, *parameters[-2:]), hidden

    if job.predict:

        def outputs(*parameters: Any) -> Any:
            z = forward(*parameters)[0]
            return torch.softmax(z, 1) if job.output == "softmax" else functions[job.output](z)

        run = torch.compile(outputs) if compiled else outputs

        def predict() -> Any:
            with torch.inference_mode():
                return run(*flat).numpy()

        return predict

    def cost(*parameters: Any) -> Any:
        z, hidden = forward(*parameters)
        if job.loss == "cross_entropy":
            J = F.cross_entropy(z, Y)
        else:
            J = 0.5 * (functions[job.output](z) - Y).square().sum() / job.m
        J = J + 0.5 * job.weight_decay * sum(W.square().sum() for W in parameters[::2])
        if job.beta:
            rho_hat = hidden[0].mean(0)
            rho = job.rho
            kl = rho * torch.log(rho / rho_hat) + (1 - rho) * torch.log((1 - rho) / (1 - rho_hat))
            J = J + job.beta * kl.sum()
        return J

    run = torch.compile(cost) if compiled else cost
    for part in flat:
        part.requires_grad_(True)

    def evaluate() -> tuple[float, np.ndarray]:
        J = run(*flat)
        gradients = torch.autograd.grad(J, flat)
        return float(J), torch.cat([g.reshape(-1) for g in gradients]).numpy()

    return evaluate


def torch_compiled_task(job: Job) -> Task:
    """`torch_task` through torch.compile."""
    return torch_task(job, compiled=True)


def jax_task(job: Job) -> Task:
    """jit(value_and_grad) of the cost over one flat theta."""
    import jax

    if job.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp

    functions = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh, "relu": jax.nn.relu, "identity": lambda z: z}
    X = jnp.asarray(job.X)
    Y = X if job.autoencoder else jnp.asarray(job.Y)
    theta = jnp.asarray(job.theta)
    shapes = [(W.shape, b.shape) for W, b in job.parameters]

    def unpack(theta: Any) -> list[tuple[Any, Any]]:
        layers, place = [], 0
        for (n_out, n_in), _ in shapes:
            W = theta[place : place + n_out * n_in].reshape(n_out, n_in)
            place += n_out * n_in
            layers.append((W, theta[place : place + n_out]))
            place += n_out
        return layers

    def forward(layers: Any, X: Any) -> tuple[Any, list[Any]]:
        a, hidden = X, []
        for W, b in layers[:-1]:
            a = functions[job.hidden](a @ W.T + b)
            hidden.append(a)
        W, b = layers[-1]
        return a @ W.T + b, hidden

    if job.predict:

        @jax.jit
        def outputs(theta: Any, X: Any) -> Any:
            z = forward(unpack(theta), X)[0]
            return jax.nn.softmax(z) if job.output == "softmax" else functions[job.output](z)

        rows = job.X
        return lambda: np.asarray(outputs(theta, rows))

    @jax.jit
    @jax.value_and_grad
    def cost(theta: Any, X: Any, Y: Any) -> Any:
        layers = unpack(theta)
        z, hidden = forward(layers, X)
        if job.loss == "cross_entropy":
            J = -jnp.take_along_axis(jax.nn.log_softmax(z), Y[:, None], 1).mean()
        else:
            J = 0.5 * jnp.square(functions[job.output](z) - Y).sum() / job.m
        J = J + 0.5 * job.weight_decay * sum(jnp.square(W).sum() for W, _ in layers)
        if job.beta:
            rho, rho_hat = job.rho, hidden[0].mean(0)
            J = J + job.beta * (rho * jnp.log(rho / rho_hat) + (1 - rho) * jnp.log((1 - rho) / (1 - rho_hat))).sum()
        return J

    def evaluate() -> tuple[float, np.ndarray]:
        J, gradient = cost(theta, X, Y)
        return float(J), np.asarray(gradient)

    return evaluate


def sklearn_task(job: Job) -> Task | None:
    """Return what MLPClassifier and MLPRegressor hand to L-BFGS (private, but it is their whole evaluation)."""
    if job.beta or job.hidden == "sigmoid":
        return None
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    kind = MLPClassifier if job.loss == "cross_entropy" else MLPRegressor
    net = kind(
        job.sizes[1:-1], activation=job.hidden, solver="lbfgs", alpha=job.weight_decay * job.m, max_iter=1, tol=0.0
    )
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = slice(0, 200)
        labels = np.arange(200) % job.sizes[-1] if job.loss == "cross_entropy" else job.Y[rows].ravel()
        net.fit(job.X[rows], labels)
    net.coefs_ = [np.ascontiguousarray(W.T) for W, _ in job.parameters]
    net.intercepts_ = [b.copy() for _, b in job.parameters]
    if job.predict:
        return lambda: net.predict_proba(job.X)
    Y = np.eye(job.sizes[-1], dtype=bool)[job.Y] if job.loss == "cross_entropy" else job.Y
    activations = [job.X] + [np.empty((job.m, n), job.dtype) for n in job.sizes[1:]]
    deltas = [np.empty_like(a) for a in activations[1:]]
    coefs, intercepts = [np.empty_like(W) for W in net.coefs_], [np.empty_like(b) for b in net.intercepts_]
    packed = np.concatenate([part.ravel() for part in (*net.coefs_, *net.intercepts_)])
    import inspect

    names = list(inspect.signature(net._loss_grad_lbfgs).parameters)
    extra = (None,) if "sample_weight" in names else ()

    def evaluate() -> tuple[float, np.ndarray]:
        J, _ = net._loss_grad_lbfgs(packed, job.X, Y, *extra, activations, deltas, coefs, intercepts)
        return float(J), np.concatenate([p.ravel() for W, b in zip(coefs, intercepts, strict=True) for p in (W.T, b)])

    return evaluate


def onnxruntime_task(job: Job) -> Task | None:
    """Inference of the same network as an ONNX graph."""
    if not job.predict:
        return None
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    element = TensorProto.DOUBLE if job.dtype == "float64" else TensorProto.FLOAT
    operators = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu", "softmax": "Softmax"}
    nodes, constants, name = [], [], "x"
    for layer, (W, b) in enumerate(job.parameters):
        constants += [numpy_helper.from_array(W, f"W{layer}"), numpy_helper.from_array(b, f"b{layer}")]
        nodes.append(helper.make_node("Gemm", [name, f"W{layer}", f"b{layer}"], [f"z{layer}"], transB=1))
        kind = job.output if layer == len(job.parameters) - 1 else job.hidden
        nodes.append(helper.make_node(operators[kind], [f"z{layer}"], [f"a{layer}"]))
        name = f"a{layer}"
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", element, ["m", job.sizes[0]])],
        [helper.make_tensor_value_info(name, element, ["m", job.sizes[-1]])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"x": job.X}
    return lambda: session.run(None, feed)[0]


CONTENDERS = {
    "mlpkit": mlpkit_task,
    "numpy": numpy_task,
    "scikit-learn": sklearn_task,
    "torch": torch_task,
    "torch.compile": torch_compiled_task,
    "jax": jax_task,
    "onnxruntime": onnxruntime_task,
}

# Environment variables worth trying for each, beside none at all: what a user may set to make it faster. (One thread
# was tried for torch.compile and JAX as well, and never was the faster; it only cost time to measure.)
SETTINGS: dict[str, list[dict[str, str]]] = {
    "mlpkit": [{}],
    "numpy": [{}, {"OPENBLAS_NUM_THREADS": "1"}],
    "scikit-learn": [{}, {"OPENBLAS_NUM_THREADS": "1"}],
    "torch": [{}, {"OMP_NUM_THREADS": "1"}],
    "torch.compile": [{}],
    "jax": [{}],
    "onnxruntime": [{}],
}
