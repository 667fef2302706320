"""Callbacks that come with mlpkit: what follows a training, for the eye, for logs, for files and for pictures.

>>> import mlpkit
>>> net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "identity")], seed=0)
>>> seen = []
>>> def look(run):
...     seen.append(run.history[-1].cost)
>>> result = net.fit([[0.0], [1.0]], [1.0, 3.0], callbacks=[mlpkit.callbacks.Logging(), look])
>>> len(seen) == result.n_iterations
True

Those of your own are plain functions like this one, called after each iteration, or derive from `mlpkit.Callback`.
"""

from mlpkit.callbacks.files import CSVHistory, JSONLinesHistory
from mlpkit.callbacks.lines import Logging, Progress
from mlpkit.callbacks.plot import Plot
from mlpkit.run import Callback

__all__ = ["CSVHistory", "Callback", "JSONLinesHistory", "Logging", "Plot", "Progress"]
