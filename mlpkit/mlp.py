"""The multilayer perceptron: a list of layers and one vector of parameters theta."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpkit import losses
from mlpkit.checks import check_choice, check_fits, check_integer, check_matrix, check_number, check_out, check_vector
from mlpkit.errors import InvalidArgumentError
from mlpkit.layers import Dense, Input, check_layers, draw_parameters, layer_config, layer_from_config, parameter_blocks
from mlpkit.losses import Loss
from mlpkit.per_example import jacobian
from mlpkit.prediction import Predictor
from mlpkit.trainable import Trainable, as_pickled

if TYPE_CHECKING:
    from mlpkit.weights import ClassWeight

__all__ = ["MLP", "check_network"]


class MLP(Trainable):
    """A feedforward network of dense layers, equations (6) and (7) of the notes.

    Parameters
    ----------
    layers : sequence
        `Input` first, then one or more `Dense`.
    loss : str or Loss
        ``"squared_error"`` (1/2 ||h - y||^2), ``"cross_entropy"`` (on a softmax output), or an object.
    weight_decay : float
        lambda of equation (8), for layers that do not set their own; biases are not decayed.
    dtype : {"float64", "float32"}
        Precision of parameters and computation.
    seed : int, Generator or None
        Where the starting parameters come from; None draws them from the system's entropy.

    Attributes
    ----------
    metadata : dict
        Whatever you want to keep with the model, as values that JSON can hold; files carry it.
    provenance : dict or None
        How the parameters came about, as `fit` last put it on record: optimiser, iterations, terms of J, versions, and
        a fingerprint of the data. Files carry it.

    Raises
    ------
    InvalidArgumentError
        Naming the argument, what was expected and what was found.

    Examples
    --------
    >>> net = MLP([Input(3), Dense(3, "sigmoid"), Dense(1, "sigmoid")], seed=0)
    >>> net.sizes, net.n_parameters
    ((3, 3, 1), 16)
    >>> net.predict([[0.1, 0.2, 0.3]]).shape
    (1, 1)
    """

    def __init__(
        self,
        layers: Sequence[Input | Dense],
        loss: str | Loss = "squared_error",
        weight_decay: float = 0.0,
        dtype: Any = "float64",
        seed: int | np.random.Generator | None = None,
    ) -> None:
        generator = self._define(layers, loss, weight_decay, dtype, seed)
        self._hold(draw_parameters(self._layers, generator).astype(self._dtype))

    def _define(
        self, layers: Any, loss: Any, weight_decay: float, dtype: Any, seed: int | np.random.Generator | None
    ) -> np.random.Generator:
        """Check and keep everything but the parameters; return what they are to be drawn from."""
        self._layers = check_layers(layers)
        self._loss = losses.get(loss)
        self._loss.check_activation(self._layers[-1].activation)  # type: ignore[union-attr]
        self._weight_decay = check_number(weight_decay, "weight_decay", low=0)
        self._dtype = _check_dtype(dtype)
        if isinstance(seed, np.random.Generator):
            generator, self._seed = seed, None
        else:
            self._seed = None if seed is None else check_integer(seed, "seed", low=0)
            generator = np.random.default_rng(self._seed)
        self._check_numbers_fit()
        self.metadata: dict[str, Any] = {}
        self.provenance: dict[str, Any] | None = None
        self.partial_state = (None, {})
        return generator

    def _hold(self, theta: NDArray[Any]) -> None:
        """Make these the parameters, without a copy."""
        self._theta = theta
        self._predictor = Predictor(self._layers, theta)

    def _check_numbers_fit(self) -> None:
        """Refuse numbers that are finite as given and infinite in the network's dtype."""
        check_fits(self._weight_decay, "weight_decay", self._dtype)
        for i, layer in enumerate(self._layers):
            if isinstance(layer, Dense):
                check_fits(layer.l1_strength, f"strength of layers[{i}]", self._dtype)
                for name in ("weight_decay", "init"):
                    value = getattr(layer, name)
                    if isinstance(value, float):
                        check_fits(value, f"{name} of layers[{i}]", self._dtype)

    @property
    def layers(self) -> tuple[Input | Dense, ...]:
        """The layers, input first."""
        return self._layers

    @property
    def loss(self) -> Loss:
        """The loss that training minimises."""
        return self._loss

    @property
    def weight_decay(self) -> float:
        """Lambda of the layers that do not set their own."""
        return self._weight_decay

    @property
    def dtype(self) -> np.dtype[Any]:
        """The precision of the parameters."""
        return self._dtype

    @property
    def seed(self) -> int | None:
        """The seed of the starting parameters, if it was a number."""
        return self._seed

    @property
    def n_layers(self) -> int:
        """n_l of the notes: the number of layers, the input layer counted."""
        return len(self._layers)

    @property
    def sizes(self) -> tuple[int, ...]:
        """s_1 to s_{n_l}: the units of each layer."""
        return tuple(layer.units for layer in self._layers)

    @property
    def n_parameters(self) -> int:
        """The length of theta."""
        return self._theta.size

    @property
    def theta(self) -> NDArray[Any]:
        """All parameters as one live vector: W^(1) row-major, b^(1), W^(2), b^(2), ...; assigning copies in.

        A tied layer has no W in it.
        """
        return self._theta

    @theta.setter
    def theta(self, values: ArrayLike) -> None:
        self._theta[:] = check_vector(values, "theta", length=self.n_parameters, dtype=self._dtype)

    @property
    def weights(self) -> list[NDArray[Any]]:
        """W^(1), W^(2), ... as live views of theta, W^(l) of shape (s_{l+1}, s_l); a tied one is a transposed view."""
        return [block.weights(self._theta) for block in parameter_blocks(self._layers)]

    @property
    def biases(self) -> list[NDArray[Any]]:
        """b^(1), b^(2), ... as live views of theta; empty for a layer without biases."""
        return [self._theta[block.b : block.end] for block in parameter_blocks(self._layers)]

    @property
    def decays(self) -> list[float]:
        """Lambda of each dense layer; 0 for a tied one, whose W is counted once, where it is owned."""
        return [
            0.0 if layer.tied_to else self._weight_decay if layer.weight_decay is None else layer.weight_decay
            for layer in self._layers
            if isinstance(layer, Dense)
        ]

    def predict(self, X: ArrayLike, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the output h(x) for each row of X.

        Parameters
        ----------
        X : array-like, shape (m, s_1)
            Examples in rows.
        out : ndarray, shape (m, s_{n_l}), optional
            Where to write; contiguous and of the network's dtype.

        Returns
        -------
        ndarray, shape (m, s_{n_l})
            A row depends on its own input only, to the bit.

        Examples
        --------
        >>> net = MLP([Input(2), Dense(1, "sigmoid", init=0.0)])
        >>> net.predict([[1.0, 2.0]])
        array([[0.5]])
        """
        found = self._predictor.few(X, out)
        if found is not None:
            return found
        rows = check_matrix(X, "X", n_columns=self.sizes[0], dtype=self._dtype)
        out = check_out(out, (rows.shape[0], self.sizes[-1]), self._dtype)
        if np.may_share_memory(rows, out):  # rows are read while others' outputs are written
            rows = rows.copy()
        self._predictor.run(rows, [None] * (self.n_layers - 2) + [out])
        return out

    def activations(self, X: ArrayLike) -> list[NDArray[Any]]:
        """Return a^(2), ..., a^(n_l), each of shape (m, s_l).

        Examples
        --------
        >>> net = MLP([Input(2), Dense(3, "tanh"), Dense(1, "sigmoid")], seed=0)
        >>> [a.shape for a in net.activations([[1.0, 2.0]])]
        [(1, 3), (1, 1)]
        """
        rows = check_matrix(X, "X", n_columns=self.sizes[0], dtype=self._dtype)
        outputs = [np.empty((rows.shape[0], units), self._dtype) for units in self.sizes[1:]]
        self._predictor.run(rows, outputs)
        return outputs

    def jacobian(self, X: ArrayLike) -> NDArray[Any]:
        """Return the derivatives of the outputs in the inputs, dh_j / dx_k at each row of X.

        Parameters
        ----------
        X : array-like, shape (m, s_1)
            Examples in rows.

        Returns
        -------
        ndarray, shape (m, s_{n_l}, s_1), the network's dtype
            A row depends on its own input only, to the bit.

        Examples
        --------
        >>> net = MLP([Input(2), Dense(1, "sigmoid", init=1.0)])
        >>> net.jacobian([[1.0, -1.0]])
        array([[[0.25, 0.25]]])
        """
        rows = check_matrix(X, "X", n_columns=self.sizes[0], dtype=self._dtype)
        return jacobian(self._layers, self._loss, self._theta, rows)

    def predict_labels(self, X: ArrayLike) -> NDArray[np.int64]:
        """Return class labels: the largest softmax output, or for each sigmoid (tanh) output 0 or 1 (-1 or +1).

        Returns
        -------
        ndarray of int64
            Shape (m,) for softmax and for a single output, otherwise (m, s_{n_l}).

        Raises
        ------
        InvalidArgumentError
            If the output activation is neither softmax nor bounded by whole numbers: its outputs name no classes.

        Examples
        --------
        >>> net = MLP([Input(2), Dense(1, "sigmoid", init=1.0)])
        >>> net.predict_labels([[1.0, 2.0], [-1.0, -2.0]])
        array([1, 0])
        """
        activation = self._layers[-1].activation  # type: ignore[union-attr]
        low, high = activation.range
        if not (np.all(np.isfinite(activation.range)) and float(low).is_integer() and float(high).is_integer()):
            raise InvalidArgumentError(
                "predict_labels needs an output layer of bounded activation (softmax, sigmoid, tanh), whose ends are "
                f"whole numbers; found {activation.name!r} with range {activation.range}"
            )
        outputs = self.predict(X)
        if activation.coupled:
            return outputs.argmax(axis=1)
        labels = np.where(outputs >= 0.5 * (low + high), int(high), int(low)).astype(np.int64)
        return labels[:, 0] if labels.shape[1] == 1 else labels

    def evaluate(
        self,
        X: ArrayLike,
        Y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        class_weight: ClassWeight | None = None,
        mask: ArrayLike | None = None,
        memory_limit: int | str | None = None,
    ) -> dict[str, float]:
        """Return the terms of J on data: ``data``, ``weight_decay`` and ``sparsity``, which sum to J.

        The arguments are those of `Objective`.

        Examples
        --------
        >>> net = MLP([Input(1), Dense(1, "identity", init=1.0)])
        >>> net.evaluate([[1.0]], [[3.0]])["data"]
        2.0
        """
        from mlpkit.objective import Objective

        more = {"class_weight": class_weight, "mask": mask, "memory_limit": memory_limit}
        return Objective(self, X, Y, sample_weight, keep_activations=False, **more).terms(self._theta)  # type: ignore[arg-type]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to an HDF5 file, atomically; see `mlpkit.model_file`."""
        from mlpkit import model_file

        model_file.save(self, path)

    def config(self) -> dict[str, Any]:
        """Return everything but the parameters, as plain values that JSON can hold.

        Examples
        --------
        >>> MLP([Input(2), Dense(1, "tanh")], seed=3).config()["layers"][0]
        {'type': 'Input', 'units': 2}
        """
        return {
            "layers": [layer_config(layer) for layer in self._layers],
            "loss": self._loss.name,
            "weight_decay": self._weight_decay,
            "dtype": self._dtype.name,
            "seed": self._seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MLP:
        """Return the network that `config` describes, with all parameters 0.

        Examples
        --------
        >>> MLP.from_config(MLP([Input(2), Dense(1, "tanh")]).config())
        MLP([Input(2), Dense(1, 'tanh')], loss='squared_error')
        """
        net = cls.__new__(cls)
        layers = [layer_from_config(entry) for entry in config["layers"]]
        net._define(layers, config["loss"], config["weight_decay"], config["dtype"], config["seed"])
        net._hold(np.zeros(parameter_blocks(net._layers)[-1].end, net._dtype))
        return net

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_predictor"]  # it holds addresses of this process
        state["partial_state"] = as_pickled(self.partial_state)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hold(np.array(self._theta))  # its own, and writable, wherever the pickle's bytes are

    def __copy__(self) -> MLP:
        return copy.deepcopy(self)  # two networks never share one theta

    def __deepcopy__(self, memo: dict[int, Any]) -> MLP:
        net = memo[id(self)] = type(self).__new__(type(self))
        optimizer = self.partial_state[0]
        memo[id(optimizer)] = optimizer  # it never changes, and a copy of a schedule may not be equal to it
        own = {name: value for name, value in self.__dict__.items() if name != "_predictor"}
        net.__setstate__(copy.deepcopy(own, memo))
        return net

    def __repr__(self) -> str:
        parts = [f"[{', '.join(map(repr, self._layers))}]", f"loss={self._loss.name!r}"]
        if self._weight_decay:
            parts.append(f"weight_decay={self._weight_decay:g}")
        if self._dtype != np.float64:
            parts.append(f"dtype={self._dtype.name!r}")
        if self._seed is not None:
            parts.append(f"seed={self._seed}")
        return f"MLP({', '.join(parts)})"


def check_network(net: Any) -> MLP:
    """Return `net` if it is an `MLP`, or say what it is."""
    if not isinstance(net, MLP):
        raise InvalidArgumentError(f"net must be an MLP; found {type(net).__name__}")
    return net


def _check_dtype(dtype: Any) -> np.dtype[Any]:
    try:
        name = np.dtype(dtype).name
    except Exception:  # what NumPy cannot parse is a TypeError, a ValueError or a SyntaxError
        name = dtype
    return np.dtype(check_choice(name, "dtype", ("float64", "float32")))
