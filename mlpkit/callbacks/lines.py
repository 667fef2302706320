"""One line of text for an iteration: rewritten in place on the terminal, or handed to `logging`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from mlpkit.checks import check_integer, shown
from mlpkit.errors import InvalidArgumentError, import_extra
from mlpkit.history import History
from mlpkit.penalties import KLSparsity
from mlpkit.run import Callback, Run

if TYPE_CHECKING:
    from mlpkit.mlp import MLP

__all__ = ["Logging", "Progress"]

_SECONDS_BETWEEN_LINES = 0.1
# The time left is guessed from so many of the latest iterations: the first may have had to compile.
_ITERATIONS_TIMED = 20


class Progress(Callback):
    """A line on stderr that follows the training, rewritten in place; ``MLP.fit(..., progress=True)``.

    It shows the iteration, the time, J and its terms, and as far as the terminal is wide enough the metrics, the norm
    of the gradient, and about how long the rest may take, where it is known how many iterations are planned. It is
    rewritten ten times a second at most, so that it costs nothing to speak of however fast iterations are.

    Raises
    ------
    MissingExtraError
        If rich is not installed; it comes with ``mlpkit[progress]``.

    Examples
    --------
    >>> import mlpkit
    >>> net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "identity")], seed=0)
    >>> result = net.fit([[0.0], [1.0]], [1.0, 3.0], callbacks=[Progress()])
    """

    def __init__(self) -> None:
        import_extra("rich", extra="progress")  # so that the error names the package, not a part of it
        self._console = import_extra("rich.console", extra="progress").Console
        self._live_line = import_extra("rich.live", extra="progress").Live
        self._text = import_extra("rich.text", extra="progress").Text
        self._live: Any = None
        self._shown: float | None = None

    def __repr__(self) -> str:
        return "Progress()"

    def on_start(self, run: Run) -> None:
        """Take over a line of the terminal."""
        self._close()
        # Refreshed by hand: rich's own refreshing would be one more thread beside the engine's.
        self._live = self._live_line(console=self._console(stderr=True), auto_refresh=False)
        self._shown = None
        self._live.start()

    def on_iteration(self, run: Run) -> None:
        """Rewrite the line, if the last time was long enough ago."""
        seconds = run.history[-1].seconds
        if self._shown is None or seconds - self._shown >= _SECONDS_BETWEEN_LINES:
            self._shown = seconds
            self._show(run)

    def on_end(self, run: Run) -> None:
        """Show the last iteration and give the terminal back."""
        try:
            if self._live is not None and run.history:
                self._show(run)
        finally:
            self._close()

    def _show(self, run: Run) -> None:
        text = line(run.history, run.max_iter, self._live.console.width, sparsity_word(run.net))
        # Cut short rather than wrapped in a narrow terminal: what matters least comes last.
        self._live.update(self._text(text, no_wrap=True, overflow="ellipsis"), refresh=True)

    def _close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()


class Logging(Callback):
    """A line for each iteration, handed to a logger of Python's.

    Parameters
    ----------
    logger : str or logging.Logger
        Which one, or its name.
    every : int
        One line for so many iterations; the last iteration has one in any case.
    level : int
        Of the messages.

    Raises
    ------
    InvalidArgumentError
        Naming the argument.

    Examples
    --------
    Python shows messages of the level INFO once it is told to, for instance by ``logging.basicConfig(level="INFO")``.

    >>> import mlpkit, sys
    >>> logger = logging.Logger("mine")
    >>> logger.addHandler(logging.StreamHandler(sys.stdout))
    >>> net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "identity", init=0.0)])
    >>> few = mlpkit.LBFGS(max_iter=2)
    >>> result = net.fit([[0.0], [1.0]], [1.0, 3.0], optimizer=few, callbacks=[Logging(logger)])
    1/2  ... s  J 0.65 = data 0.65 + decay 0 + sparsity 0  grad 1.2e+00
    2/2  ... s  J 0.069953 = data 0.07 + decay 0 + sparsity 0  grad 1.6e-01
    """

    def __init__(self, logger: str | logging.Logger = "mlpkit", every: int = 1, level: int = logging.INFO) -> None:
        if not isinstance(logger, (str, logging.Logger)):
            raise InvalidArgumentError(f"logger must be a logging.Logger or the name of one; found {shown(logger)}")
        self.logger = logging.getLogger(logger) if isinstance(logger, str) else logger
        self.every = check_integer(every, "every", low=1)
        self.level = check_integer(level, "level", low=0)
        self._logged = 0

    def __repr__(self) -> str:
        return f"Logging({self.logger.name!r}, every={self.every}, level={self.level})"

    def on_start(self, run: Run) -> None:
        """Note which iterations another training has logged."""
        self._logged = len(run.history)

    def on_iteration(self, run: Run) -> None:
        """Log the iteration, if it is one of those wanted."""
        if run.history[-1].iteration % self.every == 0:
            self._log(run)

    def on_end(self, run: Run) -> None:
        """Log the last iteration, if that has not been done."""
        if len(run.history) > self._logged:
            self._log(run)

    def _log(self, run: Run) -> None:
        self._logged = len(run.history)
        self.logger.log(self.level, "%s", line(run.history, run.max_iter, None, sparsity_word(run.net)))


def sparsity_word(net: MLP) -> str:
    """Return what to call a network's penalties on activations in little room: "KL" if they are nothing else.

    Examples
    --------
    >>> import mlpkit
    >>> sparsity_word(mlpkit.sparse_autoencoder(4, 2))
    'KL'
    >>> sparsity_word(mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "tanh", sparsity=mlpkit.L1Sparsity(0.1))]))
    'sparsity'
    """
    penalties = [penalty for layer in net.layers[1:] for penalty in layer.penalties]  # type: ignore[union-attr]
    return "KL" if penalties and all(isinstance(penalty, KLSparsity) for penalty in penalties) else "sparsity"


def line(history: History, max_iter: int | None, width: int | None, word: str = "sparsity") -> str:
    """Return the latest iteration in words, `word` being that for the penalties on activations.

    What always is there fits into 80 columns with KL, a few more with another word. Of the rest there is, in this
    order, what `width` has room for: metrics, the norm of the gradient, the time left. Without a width, as for a log,
    it is metrics and norm.

    Examples
    --------
    >>> from mlpkit.history import Iteration
    >>> history = History([Iteration(4, 0.5, 0.4, 0.1, 0.0, 0.02, 5, 2.0, 0.5, metrics={"validation_loss": 0.6})])
    >>> line(history, 12, 110)
    '4/12  2 s, 4 s left  J 0.5 = data 0.4 + decay 0.1 + sparsity 0  validation loss 0.6  grad 2.0e-02'
    """
    record = history[-1]
    of = f"/{max_iter}" if max_iter is not None else ""
    head = f"{record.iteration}{of}  {record.seconds:.0f} s"
    terms = {"data": record.data, "decay": record.weight_decay, word: record.sparsity}
    body = f"  J {record.cost:.5g} = {' + '.join(f'{name} {value:.3g}' for name, value in terms.items())}"
    room = float("inf") if width is None else width - len(head) - len(body)
    end = ""
    metrics = [f"  {name.replace('_', ' ')} {value:.4g}" for name, value in record.metrics.items()]
    for part in (*metrics, f"  grad {record.gradient_norm:.1e}"):
        if len(part) <= room - len(end):
            end += part
    left = "" if width is None else _time_left(history, max_iter)
    if len(left) > room - len(end):
        left = ""
    return f"{head}{left}{body}{end}"


def _time_left(history: History, max_iter: int | None) -> str:
    """Return a guess from the latest iterations, in words that follow the time passed."""
    record = history[-1]
    if max_iter is None or record.iteration >= max_iter:
        return ""
    latest = history[-_ITERATIONS_TIMED:]
    seconds = (max_iter - record.iteration) * sum(record.iteration_seconds for record in latest) / len(latest)
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f", {seconds / size:.0f} {unit} left"
    return f", {seconds:.0f} s left"
