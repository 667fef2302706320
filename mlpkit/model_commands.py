"""The commands about files: ``mlpkit info``, ``mlpkit verify`` and ``mlpkit predict``.

The first two take models and checkpoints alike. Beside the exit codes of every command, 3 says that a file is not one
that this version can read, or is damaged.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlpkit import model_file
from mlpkit.checkpoint import CheckpointInfo, describe_checkpoint
from mlpkit.checks import shown
from mlpkit.errors import InvalidArgumentError, ModelFormatError
from mlpkit.model_config import parameter_shapes
from mlpkit.model_file import OBJECTIVE, ModelInfo
from mlpkit.sealed_file import CHECKPOINT, kind_of
from mlpkit.tables import check_table_name, read_table, write_table

__all__ = ["NOT_A_MODEL", "add_command", "add_model_commands", "printable"]

NOT_A_MODEL = 3


def add_model_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser of the command line."""
    info = add_command(commands, "info", _info, "show what a model or checkpoint file holds, after checking it")
    info.add_argument("model", type=Path, metavar="FILE", help="the model or checkpoint file")
    verify = add_command(
        commands, "verify", _verify, "check model and checkpoint files: digest, structure, every number"
    )
    verify.add_argument("models", type=Path, nargs="+", metavar="FILE", help="the files")
    predict = add_command(commands, "predict", _predict, "compute a model's outputs for a table of examples")
    predict.add_argument("model", type=Path, metavar="MODEL", help="the model file")
    predict.add_argument("data", type=Path, metavar="DATA", help="examples in rows: .npy, .h5 or .csv")
    predict.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help="where to write: .npy, .h5 or .csv"
    )
    predict.add_argument("--dataset", metavar="NAME", help="which dataset of an HDF5 file with several")
    predict.add_argument("--labels", action="store_true", help="write class labels instead of outputs")


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    """Add a command that can answer in JSON, and return its parser."""
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--json", action="store_true", help="answer in JSON, one object a line")
    parser.set_defaults(run=run)
    return parser


def _describe(path: Path) -> ModelInfo | CheckpointInfo:
    """Check a file as what it says it is; whatever is neither is refused as a model."""
    return describe_checkpoint(path) if kind_of(str(path)) is CHECKPOINT else model_file.describe(path)


def _info(options: argparse.Namespace) -> int:
    info = _describe(options.model)
    if options.json:
        print(json.dumps({"file": str(options.model), **vars(info)}))
        return 0
    if isinstance(info, ModelInfo):
        documents = {"provenance": info.provenance, "metadata": info.metadata}
    else:
        documents = {"optimizer": _shortened(info.optimizer), "loop": _shortened(info.loop)}
    rows = [
        ("file", f"{options.model}, {info.file_bytes} bytes, {_version(info)}, digest right"),
        *_layers(info.config),
        ("parameters", f"{info.n_parameters} of {info.config['dtype']}"),
        ("loss", str(info.config.get("loss"))),
        ("weight decay", str(info.config.get("weight_decay"))),
        ("seed", str(info.config.get("seed"))),
        ("objective", OBJECTIVE),
        ("written by", info.writer),
        *(row for name, document in documents.items() for row in _document(name, document)),
        *(("ignored", element) for element in info.ignored),
    ]
    for name, value in rows:
        print(f"{name:14}{printable(value)}")
    return 0


def _layers(config: dict[str, Any]) -> list[tuple[str, str]]:
    layers = config["layers"]
    rows = [("layer 1", f"{layers[0]['units']} inputs")]
    for number, (layer, shape) in enumerate(zip(layers[1:], parameter_shapes(config)[1], strict=True), start=2):
        parts = [f"{shape.n_out} units", str(layer.get("activation"))]
        parts += [] if shape.has_b else ["no biases"]
        keys = ("sparsity", "weight_decay", "tied_to")
        parts += [f"{key} {json.dumps(layer[key])}" for key in keys if layer.get(key) is not None]
        rows.append((f"layer {number}", ", ".join(parts)))
    return rows


def _version(info: ModelInfo | CheckpointInfo) -> str:
    return f"{'' if isinstance(info, ModelInfo) else 'checkpoint '}format version {info.format_version}"


def _shortened(state: dict[str, int | str]) -> dict[str, Any]:
    """Leave of long strings, such as a generator's state, what fits a line."""
    return {
        name: shown(value) if isinstance(value, str) and len(value) > 80 else value for name, value in state.items()
    }


def _document(name: str, document: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return a row for each entry, or one that says that there is none."""
    if not document:
        return [(name, "none")]
    rows = [f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in document.items()]
    return [(name if i == 0 else "", row) for i, row in enumerate(rows)]


def printable(text: str) -> str:
    r"""Show what a file says without letting it move the cursor or end the line.

    Examples
    --------
    >>> print(printable("one\ntwo"))
    one\ntwo
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _verify(options: argparse.Namespace) -> int:
    code = 0
    for path in options.models:
        problem = ""
        try:
            info = _describe(path)
        except ModelFormatError as error:
            problem, code = str(error), NOT_A_MODEL
        except OSError as error:
            problem, code = str(error), code or 1
        if options.json:
            print(json.dumps({"file": str(path), "ok": not problem, "problem": problem or None}))
        elif problem:
            print(printable(problem))
        else:
            print(printable(f"{path}: right ({info.n_parameters} parameters, {_version(info)})"))
    return code


def _predict(options: argparse.Namespace) -> int:
    check_table_name(options.out)
    net = model_file.load(options.model)
    X = read_table(options.data, options.dataset)
    if X.ndim == 1 and net.sizes[0] == 1:
        X = X[:, np.newaxis]
    try:
        table = net.predict_labels(X) if options.labels else net.predict(X)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{str(options.data)!r}: {error}") from error
    write_table(options.out, table)
    columns = 1 if table.ndim == 1 else table.shape[1]
    if options.json:
        print(json.dumps({"wrote": str(options.out), "rows": table.shape[0], "columns": columns}))
    else:
        print(f"wrote {options.out}: {table.shape[0]} rows of {columns}", file=sys.stderr)
    return 0
