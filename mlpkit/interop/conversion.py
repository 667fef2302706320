"""What every conversion returns: what it made, and a line for each thing that it mapped."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Conversion"]


class Conversion(NamedTuple):
    """The result of a conversion and the account of it; unpacks as ``net, mapped = ...``.

    What a conversion does not understand is an error and never left out, so `mapped` covers all that was there.

    Attributes
    ----------
    result : Any
        What was made: a network, another library's object, or the path of the file that was written.
    mapped : tuple of str
        A line for each thing that was mapped: what it was, an arrow, and what it became.

    Examples
    --------
    >>> print(Conversion("model.onnx", ("layer 2: W^(1) (3, 2) -> initializer W1", "sigmoid -> Sigmoid")))
    model.onnx
      layer 2: W^(1) (3, 2) -> initializer W1
      sigmoid -> Sigmoid
    """

    result: Any
    mapped: tuple[str, ...]

    def __str__(self) -> str:
        return "\n  ".join((str(self.result), *self.mapped))
