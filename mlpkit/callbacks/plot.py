"""A picture of the training so far, drawn anew every so many iterations."""

from __future__ import annotations

import os

from mlpkit import plotting
from mlpkit.checks import check_integer
from mlpkit.figures import check_picture
from mlpkit.run import Callback, Run

__all__ = ["Plot"]


class Plot(Callback):
    """Draws `mlpkit.plotting.training` into a file every so many iterations, and at the end.

    The file is replaced whole, so that a viewer which watches it never sees half a picture. A picture takes some tenths
    of a second, during which training waits.

    Parameters
    ----------
    path : path-like
        The file, whose suffix says what kind of picture (.png, .pdf, .svg, ...).
    every : int
        One picture for so many iterations.

    Raises
    ------
    InvalidArgumentError
        Naming the argument; for a suffix that is unknown the error lists those there are.
    MissingExtraError
        If matplotlib is not installed; it comes with ``mlpkit[plot]``.
    OSError
        If the file cannot be written, which ends the training.

    Examples
    --------
    >>> import mlpkit, pathlib, tempfile
    >>> net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "identity")], seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "training.svg")
    ...     result = net.fit([[0.0], [1.0]], [1.0, 3.0], callbacks=[Plot(path)])
    ...     path.read_text().startswith("<?xml")
    True
    """

    def __init__(self, path: str | os.PathLike[str], every: int = 10) -> None:
        self.path = check_picture(path)
        self.every = check_integer(every, "every", low=1)
        self._file = ""
        self._drawn = -1

    def __repr__(self) -> str:
        return f"Plot({self.path!r}, every={self.every})"

    def on_start(self, run: Run) -> None:
        """Forget what an earlier training has drawn."""
        self._file, self._drawn = os.path.abspath(self.path), -1

    def on_iteration(self, run: Run) -> None:
        """Draw, if it is time to."""
        if run.history[-1].iteration % self.every == 0:
            self._draw(run)

    def on_end(self, run: Run) -> None:
        """Draw the whole training, if that has not been done."""
        if len(run.history) != self._drawn:
            self._draw(run)

    def _draw(self, run: Run) -> None:
        plotting.training(run.history, path=self._file)
        self._drawn = len(run.history)
