"""The pictures of the notes: features, training curves, activations, the KL penalty, the network.

Each function returns a `matplotlib.figure.Figure` and writes it to `path` if one is given; the
suffix picks the format (.png, .pdf, .svg, ...), and one that matplotlib does not know, or none, is an
`InvalidArgumentError`. No figure belongs to pyplot (see `mlpkit.figures`). Matplotlib comes with the extra
``mlpkit[plot]`` and is imported on use.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlpkit import activations
from mlpkit.autoencoder import maximal_inputs
from mlpkit.checks import check_integer, check_number
from mlpkit.errors import InvalidArgumentError
from mlpkit.figures import DPI, PathLike, finish, new_figure
from mlpkit.history import FitResult, History, Iteration
from mlpkit.layers import Dense
from mlpkit.mlp import MLP, check_network
from mlpkit.penalties import KLSparsity, kl_divergence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mlpkit.activations import Activation

__all__ = ["activation", "features", "kl", "network", "training"]

# A layer with more units than this is drawn as its first few, dots, and its last.
_MOST_UNITS_DRAWN = 6
_UNITS_BEFORE_DOTS = 4
# Up to so many iterations are marked one by one: a line through few points says little, and
# through a single one nothing.
_MOST_ITERATIONS_MARKED = 30


def features(net: MLP, shape: tuple[int, int] | None = None, path: PathLike | None = None) -> Figure:
    """Draw the input that each unit of the first hidden layer responds to most, as a grid.

    The norm-bounded input x_j = W_ij / sqrt(sum_k W_ik**2) of section 4 of the notes, one square a
    unit. Each has its own grey scale, symmetric about zero: mid-grey is 0, white and black are plus
    and minus its largest magnitude. A unit whose weights are all zero is plain grey.

    Parameters
    ----------
    net : MLP
        A network whose inputs are images, flattened row by row.
    shape : (int, int), optional
        Height and width of the images. By default they are square.
    path : path-like, optional
        Where to save the picture.

    Returns
    -------
    matplotlib.figure.Figure
        One axes with one image of all units, in reading order.

    Raises
    ------
    InvalidArgumentError
        If `shape` does not hold as many pixels as the network has inputs, or is None and that
        number is not a square.
    MissingExtraError
        If matplotlib is not installed.

    Examples
    --------
    >>> import mlpkit
    >>> net = mlpkit.sparse_autoencoder(n_inputs=64, n_hidden=25, seed=0)
    >>> figure = mlpkit.plotting.features(net, shape=(8, 8))
    >>> figure.axes[0].images[0].get_array().shape  # five rows of five, with a line between
    (46, 46)
    """
    inputs = maximal_inputs(net, layer=2)
    height, width = _image_shape(shape, inputs.shape[1])
    picture = _mosaic(inputs.reshape(-1, height, width))
    # Whole screen pixels for each input pixel, so that every one comes out equally large.
    scale = max(1, 700 // max(picture.shape))
    size = (scale * picture.shape[1] / DPI, scale * picture.shape[0] / DPI)
    figure = new_figure(size, layout=None)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(picture, cmap="gray", vmin=-1.0, vmax=1.0, interpolation="nearest", aspect="equal")
    axes.set_axis_off()
    return finish(figure, path)


def training(history: History | FitResult, path: PathLike | None = None) -> Figure:
    """Draw the cost, its terms, the metrics and the norm of the gradient against the iterations.

    Parameters
    ----------
    history : History or FitResult
        What `MLP.fit` returned, or its ``history``.
    path : path-like, optional
        Where to save the picture.

    Returns
    -------
    matplotlib.figure.Figure
        Two axes with logarithmic scales: cost, terms and those metrics that are a loss or an error
        above, gradient norm below; if there are other metrics, such as accuracy, a third between
        them. A term that is zero throughout is left out, and so is a metric that is NaN. Where no
        iteration was accepted, for instance because training started at a minimum, the axes are
        empty and say so.

    Raises
    ------
    InvalidArgumentError
        If it is no history.
    MissingExtraError
        If matplotlib is not installed.

    Examples
    --------
    >>> import mlpkit
    >>> X = [[0.2, 0.8], [0.8, 0.2], [0.6, 0.4]]
    >>> net = mlpkit.sparse_autoencoder(n_inputs=2, n_hidden=2, seed=0)
    >>> result = net.fit(X, X, optimizer=mlpkit.LBFGS(max_iter=5))
    >>> figure = mlpkit.plotting.training(result.history)
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['cost', 'gradient norm']
    """
    records = getattr(history, "history", history)
    if not isinstance(records, list) or not all(isinstance(record, Iteration) for record in records):
        raise InvalidArgumentError(f"history must be a History or a FitResult; found {history!r:.80}")
    others = [name for name in _metrics(records) if not _is_cost(name)]
    figure = new_figure((7.0, 7.0 if others else 5.5))
    panels = figure.subplots(3 if others else 2, 1, sharex=True, height_ratios=(2, 1, 1) if others else (2, 1))
    panels[0].set_ylabel("cost")
    panels[-1].set_ylabel("gradient norm")
    panels[-1].set_xlabel("iteration")
    if records:
        _draw_history(records, panels[0], panels[-1])
        if others:
            panels[1].set_ylabel("metrics")
            _draw_metrics(records, panels[1], others)
            panels[1].legend()
            panels[1].grid(alpha=0.3)
    else:
        panels[0].text(0.5, 0.5, "no iteration was accepted", ha="center", va="center", transform=panels[0].transAxes)
        for axes in panels:
            axes.set(xticks=[], yticks=[])
    return finish(figure, path)


def activation(*names: str | Activation, path: PathLike | None = None) -> Figure:
    """Draw activation functions f(z), as the notes do for sigmoid and tanh in section 2.

    Parameters
    ----------
    *names : str or Activation
        One or more, by name or as objects; each gets its own axes.
    path : path-like, optional
        Where to save the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InvalidArgumentError
        For no name, an unknown name (the error lists those known), or an activation such as softmax
        that is not a function of one number.
    MissingExtraError
        If matplotlib is not installed.

    Examples
    --------
    >>> import mlpkit
    >>> figure = mlpkit.plotting.activation("sigmoid", "tanh")
    >>> [axes.get_title() for axes in figure.axes]
    ['sigmoid', 'tanh']
    """
    if not names:
        raise InvalidArgumentError("names must hold at least one activation; found none")
    functions = [activations.get(name) for name in names]
    for f in functions:
        if f.coupled:
            raise InvalidArgumentError(
                f"names must be functions of one number; found {f.name!r}, whose value depends on a whole layer"
            )
    z = np.linspace(-5.0, 5.0, 401)
    figure = new_figure((3.5 * len(functions), 2.8))
    for axes, f in zip(figure.subplots(1, len(functions), squeeze=False)[0], functions, strict=True):
        axes.plot(z, f(z), color="black")
        axes.axhline(0.0, color="grey", linewidth=0.5)
        axes.axvline(0.0, color="grey", linewidth=0.5)
        axes.set_title(f.name)
        axes.set_xlabel("z")
        axes.set_ylabel("f(z)")
    return finish(figure, path)


def kl(rho: float = 0.2, path: PathLike | None = None) -> Figure:
    """Draw the sparsity penalty KL(rho || rho_hat) against rho_hat, as section 3 of the notes does.

    Parameters
    ----------
    rho : float
        The sparsity parameter, strictly between 0 and 1.
    path : path-like, optional
        Where to save the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InvalidArgumentError
        If `rho` lies outside (0, 1).
    MissingExtraError
        If matplotlib is not installed.

    Examples
    --------
    >>> import mlpkit
    >>> x, y = mlpkit.plotting.kl(rho=0.2).axes[0].lines[0].get_data()
    >>> float(x[y.argmin()].round(3))  # the penalty vanishes where rho_hat is rho
    0.2
    """
    rho = check_number(rho, "rho", low=0, high=1, low_open=True, high_open=True)
    below = np.linspace(min(0.002, rho / 2), rho, 200)
    above = np.linspace(rho, max(0.998, (1 + rho) / 2), 200)
    rho_hat = np.append(below, above[1:])
    figure = new_figure((4.5, 3.2))
    axes = figure.subplots()
    axes.plot(rho_hat, kl_divergence(rho, rho_hat), color="black")
    axes.axvline(rho, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel(r"$\hat\rho_j$")
    axes.set_ylabel(r"$\mathrm{KL}(\rho\,\|\,\hat\rho_j)$")
    axes.set_title(rf"$\rho = {rho:g}$")
    return finish(figure, path)


def network(net: MLP, path: PathLike | None = None) -> Figure:
    """Draw the network as the notes do in section 2: units as circles, bias units marked +1.

    Layers run from left to right. A layer of more than six units is abbreviated to its first four
    and its last, with dots between. A layer feeds a bias unit's +1 into the next unless that has
    ``bias=False``.

    Parameters
    ----------
    net : MLP
        The network.
    path : path-like, optional
        Where to save the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.

    Examples
    --------
    >>> import mlpkit
    >>> net = mlpkit.MLP(
    ...     [mlpkit.Input(3), mlpkit.Dense(3, "sigmoid"), mlpkit.Dense(1, "sigmoid")], seed=0
    ... )
    >>> axes = mlpkit.plotting.network(net).axes[0]
    >>> [text.get_text() for text in axes.texts].count("+1")
    2
    """
    check_network(net)
    last = net.n_layers - 1
    # A bias unit stands in a layer if the next one adds a bias; the output layer feeds nothing.
    has_bias = [isinstance(layer, Dense) and layer.bias for layer in net.layers[1:]] + [False]
    columns = [_column(units, bias) for units, bias in zip(net.sizes, has_bias, strict=True)]
    tallest = max(len(column) for column in columns)
    figure = new_figure((2.2 * (last + 1) + 0.8, 0.75 * tallest + 1.3))
    axes = figure.subplots()
    for x, column in enumerate(columns):
        if x < last:
            sources = [y for label, y in column if label != _DOTS]
            targets = [y for label, y in columns[x + 1] if label not in (_DOTS, _BIAS)]
            _connect(axes, x, sources, targets)
        for label, y in column:
            _draw_unit(axes, x, y, label, is_input=x == 0)
            if x == last and label != _DOTS:
                axes.annotate("", (x + 0.6, y), (x + 0.14, y), arrowprops=_ARROW)
        _caption(axes, net, x, y=-(tallest / 2) - 0.3)
    axes.text(last + 0.65, 0.0, r"$h_{W,b}(x)$", va="center")
    axes.set_xlim(-0.6, last + 1.3)
    axes.set_ylim(-(tallest / 2) - 1.1, tallest / 2 + 0.1)
    axes.set_axis_off()
    return finish(figure, path)


_BIAS = "+1"
_DOTS = "..."
_ARROW = {"arrowstyle": "-|>", "color": "black", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}


def _draw_history(records: list[Iteration], above: Axes, below: Axes) -> None:
    """Draw cost and terms above, gradient norm below."""
    from matplotlib.ticker import MaxNLocator

    iterations = [record.iteration for record in records]
    marker = "." if len(records) <= _MOST_ITERATIONS_MARKED else None
    # On top of its terms, the largest of which often runs along it.
    above.plot(iterations, [record.cost for record in records], "black", marker=marker, zorder=3, label="cost J")
    for name in ("data", "weight_decay", "sparsity"):
        values = np.array([getattr(record, name) for record in records])
        if np.any(values > 0):
            above.plot(iterations, values, linewidth=1, marker=marker, label=name.replace("_", " "))
    _draw_metrics(records, above, [name for name in _metrics(records) if _is_cost(name)], linestyle="--")
    above.legend()
    below.plot(iterations, [record.gradient_norm for record in records], "black", linewidth=1, marker=marker)
    below.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    for axes in (above, below):
        axes.set_yscale("log", nonpositive="mask")
        axes.grid(alpha=0.3)


def _metrics(records: list[Iteration]) -> list[str]:
    """Return the names of all metrics that are more than NaN."""
    found = [item for record in records for item in record.metrics.items()]
    return list(dict.fromkeys(name for name, value in found if not math.isnan(value)))


def _is_cost(name: str) -> bool:
    """Say whether a metric is of the cost's kind, positive and better the smaller, by its name."""
    return name.endswith(("loss", "error"))


def _draw_metrics(records: list[Iteration], axes: Axes, names: list[str], linestyle: str = "-") -> None:
    iterations = [record.iteration for record in records]
    marker = "." if len(records) <= _MOST_ITERATIONS_MARKED else None
    for name in names:
        values = [record.metrics.get(name, math.nan) for record in records]
        axes.plot(iterations, values, linestyle, linewidth=1, marker=marker, label=name.replace("_", " "))


def _image_shape(shape: tuple[int, int] | None, n_pixels: int) -> tuple[int, int]:
    """Return the height and width of an image of `n_pixels`, square unless told otherwise."""
    if shape is None:
        side = math.isqrt(n_pixels)
        if side * side != n_pixels:
            raise InvalidArgumentError(
                f"shape must be given when the images are not square; the network has {n_pixels} inputs"
            )
        return side, side
    try:
        first, second = shape
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"shape must be (height, width); found {shape!r}") from None
    height, width = check_integer(first, "shape", low=1), check_integer(second, "shape", low=1)
    if height * width != n_pixels:
        raise InvalidArgumentError(
            f"shape must hold as many pixels as the network has inputs, {n_pixels}; found {height} x {width}"
        )
    return height, width


def _mosaic(images: NDArray[np.floating]) -> NDArray[np.float64]:
    """Lay (n, height, width) images out in reading order, each scaled to [-1, 1], lines between."""
    n, height, width = images.shape
    n_across = math.ceil(math.sqrt(n * height / width))  # so that the whole is about square
    n_down = math.ceil(n / n_across)
    picture = np.full((n_down * (height + 1) + 1, n_across * (width + 1) + 1), -1.0)
    for i, image in enumerate(images.astype(np.float64)):
        largest = np.abs(image).max()
        row, column = divmod(i, n_across)
        top, left = row * (height + 1) + 1, column * (width + 1) + 1
        picture[top : top + height, left : left + width] = image / (largest or 1.0)
    return picture


def _column(n_units: int, bias: bool) -> list[tuple[str, float]]:
    """Return the labels of one layer's circles and their heights, top to bottom, centred on 0."""
    if n_units > _MOST_UNITS_DRAWN:
        labels = [str(i + 1) for i in range(_UNITS_BEFORE_DOTS)] + [_DOTS, str(n_units)]
    else:
        labels = [str(i + 1) for i in range(n_units)]
    if bias:
        labels.append(_BIAS)
    top = (len(labels) - 1) / 2
    return [(label, top - i) for i, label in enumerate(labels)]


def _connect(axes: Axes, x: float, sources: list[float], targets: list[float]) -> None:
    """Draw a line from each unit of a column to each unit of the next."""
    for source in sources:
        for target in targets:
            axes.plot([x, x + 1], [source, target], color="black", linewidth=0.5, alpha=0.6, zorder=1)


def _draw_unit(axes: Axes, x: float, y: float, label: str, *, is_input: bool) -> None:
    """Draw one circle, or the dots that stand for many."""
    if label == _DOTS:
        axes.text(x, y, r"$\vdots$", ha="center", va="center", fontsize=16)
        return
    face = "lightgrey" if label == _BIAS else "white"
    axes.plot(x, y, "o", markersize=30, markerfacecolor=face, markeredgecolor="black", zorder=2)
    if label == _BIAS:
        axes.text(x, y, label, ha="center", va="center", zorder=3)
    elif is_input:
        axes.text(x, y, rf"$x_{{{label}}}$", ha="center", va="center", zorder=3)


def _caption(axes: Axes, net: MLP, x: int, y: float) -> None:
    """Write which layer a column is, how many units it has and what they compute."""
    layer = net.layers[x]
    kind, note = "input", ""
    if isinstance(layer, Dense):
        kind = layer.activation.name
        if layer.penalties:
            targets = [rf"$\rho$ = {penalty.rho:g}" for penalty in layer.penalties if isinstance(penalty, KLSparsity)]
            note = "\nsparse" + (": " + ", ".join(targets) if targets else "")
    noun = "unit" if layer.units == 1 else "units"
    caption = f"Layer $L_{{{x + 1}}}$\n{layer.units} {noun}, {kind}{note}"
    axes.text(x, y, caption, ha="center", va="top", fontsize=9)
