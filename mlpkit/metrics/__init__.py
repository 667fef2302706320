"""Metrics: what is reported of a network's outputs beside the loss, but not trained for.

A metric is a function of targets and outputs, both with an example a row, that returns one number; it may also take
the examples' weights and a mask, True where a target counts. Those here have names, and any function of the kind can be
handed to `MLP.fit` beside them:

>>> def largest_error(targets, outputs):
...     return abs(targets - outputs).max()
>>> import mlpkit
>>> net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(1, "identity")], seed=0)
>>> result = net.fit([[0.0], [1.0]], [1.0, 3.0], metrics=["r2", largest_error])
>>> result.history[-1]["r2"] > 0.999, result.history[-1]["largest_error"] < 0.01
(True, True)

Where `MLP.fit` is given a mask, metrics are of the targets that count, as the loss is. An example of which none counts
is left out for every metric. If a mask hides some targets of an example and not all, a function must have an argument
called ``mask`` to know them; hidden targets are what they are in the data, NaN perhaps:

>>> def largest(targets, outputs, mask):
...     return abs(targets - outputs)[mask].max()
>>> net = mlpkit.MLP([mlpkit.Input(1), mlpkit.Dense(2, "identity")], seed=0)
>>> Y, mask = [[1.0, float("nan")], [3.0, 0.0]], [[True, False], [True, True]]
>>> result = net.fit([[0.0], [1.0]], Y, mask=mask, metrics=["mean_squared_error", largest])
>>> result.history[-1]["largest"] < 0.01
True
"""

from mlpkit.metrics.named import accuracy, mean_absolute_error, mean_squared_error, r2
from mlpkit.metrics.resolving import resolve

__all__ = ["accuracy", "mean_absolute_error", "mean_squared_error", "r2", "resolve"]
