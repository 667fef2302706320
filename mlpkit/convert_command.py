"""The command ``mlpkit convert``: a model file to another system's file, and back.

What the files are is told by how their names end, and a model file of mlpkit's by its first bytes, whatever it is
called. All that goes from one file to the other, and all that does not, is printed, a line for each.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mlpkit import interop, model_file
from mlpkit.errors import InvalidArgumentError
from mlpkit.interop import Conversion
from mlpkit.interop.foreign_file import refuse_pickle
from mlpkit.mlp import MLP
from mlpkit.model_commands import add_command, printable
from mlpkit.sealed_file import kind_of
from mlpkit.strict_hdf5 import naming

__all__ = ["add_convert_command"]


class _Kind(NamedTuple):
    """How files of one ending are written and read, and with which options."""

    write: Callable[[MLP, Path], Conversion]
    read: Callable[..., Conversion] | None
    options: tuple[str, ...] = ()


def _save(net: MLP, path: Path) -> Conversion:
    net.save(path)
    return Conversion(str(path), ("all there is to the network -> the model file",))


def _load(path: Path) -> Conversion:
    return Conversion(model_file.load(path), ("the model file -> all there is to the network",))


_FOREIGN = ("activations", "loss", "weight_decay")
# The longer endings first.
_KINDS = {
    ".weights.h5": _Kind(interop.to_keras, interop.from_keras, (*_FOREIGN, "order")),
    ".h5": _Kind(_save, _load),
    ".onnx": _Kind(interop.to_onnx, None),
    ".mat": _Kind(interop.to_matlab, interop.from_matlab, (*_FOREIGN, "sizes", "vector", "ignore")),
    ".safetensors": _Kind(interop.to_safetensors, interop.from_safetensors, (*_FOREIGN, "order")),
}
_OPTIONS = sorted({name for kind in _KINDS.values() for name in kind.options})


def add_convert_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of the command line."""
    convert = add_command(commands, "convert", _convert, "turn a model file into another system's, or back")
    add = convert.add_argument
    readable = [ending for ending, kind in _KINDS.items() if kind.read]
    add("source", type=Path, metavar="IN", help=f"what to read: {', '.join(readable)}")
    add("target", type=Path, metavar="OUT", help=f"what to write: {', '.join(_KINDS)}")
    foreign = convert.add_argument_group("for files that do not say it themselves (none of them for mlpkit's own)")
    add = foreign.add_argument
    add("--activations", type=_words, metavar="F,F,...", help="one activation for each layer after the input")
    add("--loss", metavar="LOSS", help="the loss (default: squared_error)")
    add("--weight-decay", type=float, metavar="LAMBDA", help="weight decay lambda (default: 0)")
    add("--sizes", type=_sizes, metavar="N,N,...", help=".mat: units of each layer, for parameters in one vector")
    add("--vector", metavar="NAME", help=".mat: what that vector is called (default: theta)")
    add("--ignore", type=_words, metavar="NAME,...", help=".mat: variables that have nothing to do with the network")
    add("--order", type=_words, metavar="NAME,...", help=".safetensors, .weights.h5: the layers, in order")


def _words(text: str) -> list[str]:
    """Split at commas, but not at those inside parentheses, as in ``huber(0.5),tanh``."""
    return [word.strip() for word in re.split(r",(?![^(]*\))", text)]


def _sizes(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be whole numbers with commas between; found {text!r}") from None


def _convert(options: argparse.Namespace) -> int:
    # What is wrong with the request should show before anything is read.
    writer, (reader, accepted) = _kind(options.target).write, _reader(options.source)
    given = {name: value for name in _OPTIONS if (value := getattr(options, name)) is not None}
    for name in given:
        if name not in accepted:
            raise InvalidArgumentError(f"--{name.replace('_', '-')} does not go with {str(options.source)!r}")
    if "activations" in accepted:
        given.setdefault("activations", None)
    try:
        read = reader(options.source, **given)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{str(options.source)!r}: {error}") from error
    written = writer(read.result, options.target)
    if options.json:
        answer = {"read": str(options.source), "wrote": str(options.target)}
        print(json.dumps({**answer, "mapped_in": read.mapped, "mapped_out": written.mapped}))
        return 0
    for verb, path, lines in (("read", options.source, read.mapped), ("wrote", options.target, written.mapped)):
        print(printable(f"{verb} {path}"))
        for line in lines:
            print(printable(f"  {line}"))
    return 0


def _reader(path: Path) -> tuple[Callable[..., Conversion], tuple[str, ...]]:
    """Return what reads a file, and the options that it takes."""
    kind = _KINDS[".h5"] if kind_of(str(path)) is not None else _kind(path)
    if kind.read is None:
        raise InvalidArgumentError(f"{str(path)!r} is of a kind that mlpkit only writes")
    return kind.read, kind.options


def _kind(path: Path) -> _Kind:
    """Return the kind of a file by the ending of its name, the longest that fits."""
    for ending, kind in _KINDS.items():
        if path.name.lower().endswith(ending):
            return kind
    with naming(str(path)):
        refuse_pickle(str(path))
    raise InvalidArgumentError(f"{str(path)!r} must end in {', '.join(_KINDS)}")
