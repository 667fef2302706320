"""What callbacks see of a training that is under way, and what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from mlpkit.errors import InvalidArgumentError
from mlpkit.history import History, Iteration

if TYPE_CHECKING:
    from mlpkit.mlp import MLP

__all__ = ["Callback", "Run", "check_callbacks", "settings_of"]


class Run:
    """A training under way, as callbacks see it.

    Attributes
    ----------
    net : MLP
        A copy of the network, with the parameters of the latest iteration. What it holds when training ends is what
        the network is given.
    optimizer : Optimizer
        What was handed to `MLP.fit`.
    history : History
        ``history[-1]`` is the latest iteration.
    max_iter : int or None
        How many iterations (epochs) are planned in all, if the optimiser says.
    final : Iteration or None
        The record of the iteration that the parameters are of: the latest, unless an earlier one's were restored.
    restored : bool
        Whether they were.
    """

    def __init__(self, net: MLP, optimizer: Any, max_iter: int | None) -> None:
        self.net = net
        self.optimizer = optimizer
        self.max_iter = max_iter
        self.history = History()
        self.final: Iteration | None = None
        self.restored = False

    def restore(self, theta: NDArray[Any], record: Iteration) -> None:
        """Give the network the parameters of an earlier iteration; for ``on_end``."""
        self.net.theta = theta
        self.final = record
        self.restored = True


class Callback:
    """What `MLP.fit` tells about a training; a subclass has the methods that it needs.

    Examples
    --------
    >>> class Until(Callback):
    ...     "Stops where J is low enough."
    ...
    ...     def __init__(self, cost):
    ...         self.cost = cost
    ...
    ...     def on_iteration(self, run):
    ...         return "low enough" if run.history[-1].cost <= self.cost else None
    >>> import mlpkit
    >>> net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "identity")], seed=0)
    >>> net.fit([[0.0], [1.0]], [1.0, 3.0], callbacks=[Until(0.01)]).reason
    'low enough'
    """

    def on_start(self, run: Run) -> None:
        """See that training begins, or goes on from a checkpoint."""

    def on_iteration(self, run: Run) -> str | None:
        """See that an iteration is on record, and end training by returning a reason to stop, in words."""
        return None

    def on_end(self, run: Run) -> None:
        """See that training has ended, for whatever reason, an error and Ctrl-C among them."""

    def state(self) -> Mapping[str, Any]:
        """Return what a checkpoint must keep for training to go on to the bit: float64 arrays, int, str by name."""
        return {}

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""


class _Function(Callback):
    """A plain function, called after each iteration."""

    def __init__(self, function: Callable[[Run], str | None]) -> None:
        self.function = function

    def on_iteration(self, run: Run) -> str | None:
        return self.function(run)

    def __repr__(self) -> str:
        return repr(self.function)


def settings_of(callback: Any) -> str:
    """Return what a callback is in words that are the same in another process: its repr has an address in it.

    Examples
    --------
    >>> settings_of(Callback()), settings_of(check_callbacks([print])[0])
    ('mlpkit.run.Callback', 'builtins.print')
    """
    if isinstance(callback, _Function):
        named = callback.function if hasattr(callback.function, "__qualname__") else type(callback.function)
    elif type(callback).__repr__ is not object.__repr__:
        return repr(callback)
    else:
        named = type(callback)
    return f"{named.__module__}.{named.__qualname__}"


def check_callbacks(callbacks: Any) -> list[Any]:
    """Return callbacks as a list of objects with all the methods of `Callback`.

    Examples
    --------
    >>> check_callbacks([]), len(check_callbacks([lambda run: None]))
    ([], 1)
    """
    if callbacks is None:
        return []
    if not isinstance(callbacks, (list, tuple)):
        raise InvalidArgumentError(f"callbacks must be a list; found {callbacks!r}")
    return [_whole(callback, i) for i, callback in enumerate(callbacks)]


def _whole(callback: Any, i: int) -> Any:
    if isinstance(callback, Callback):
        return callback
    if callable(callback) and not isinstance(callback, type):
        return _Function(callback)
    raise InvalidArgumentError(
        f"callbacks[{i}] must be an object of a class derived from mlpkit.Callback, or a function of the run; found "
        f"{callback!r}"
    )
