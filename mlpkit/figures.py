"""Figures that belong to no pyplot state, and the files they are saved to, whole or not at all.

Drawing neither needs a display nor changes the backend or the current figure of the program around it. Matplotlib comes
with the extra ``mlpkit[plot]`` and is imported on use.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Literal

from mlpkit.durable import path_text, replace_file
from mlpkit.errors import InvalidArgumentError, import_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DPI", "PathLike", "check_picture", "finish", "new_figure"]

PathLike = str | os.PathLike[str]

DPI = 100


def new_figure(size: tuple[float, float], layout: Literal["constrained"] | None = "constrained") -> Figure:
    """Return an empty figure of `size` inches.

    Examples
    --------
    >>> new_figure((3.0, 2.0)).axes
    []
    """
    import_extra("matplotlib", extra="plot")
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=DPI, layout=layout)


def check_picture(path: PathLike) -> str:
    """Return the name of a file as text if its suffix is that of a kind of picture.

    Raises
    ------
    InvalidArgumentError
        If matplotlib does not know the suffix, or `path` is a folder.

    Examples
    --------
    >>> check_picture("training.PNG")
    'training.PNG'
    """
    text = path_text(path)
    if os.path.isdir(text):
        raise InvalidArgumentError(f"path: expected the name of a file, found that of a folder: {text!r}")
    known = new_figure((1.0, 1.0)).canvas.get_supported_filetypes()
    if _kind(text) not in known:
        raise InvalidArgumentError(f"path: expected a name that ends in .{', .'.join(sorted(known))}; found {text!r}")
    return text


def finish(figure: Figure, path: PathLike | None) -> Figure:
    """Save the figure if asked to, and hand it on.

    Examples
    --------
    >>> figure = new_figure((3.0, 2.0))
    >>> finish(figure, None) is figure
    True
    """
    if path is not None:
        text = check_picture(path)
        picture = io.BytesIO()
        figure.savefig(picture, format=_kind(text))
        replace_file(text, picture.getbuffer())
    return figure


def _kind(path: str) -> str:
    return os.path.splitext(path)[1].lower()[1:]
