"""The command ``mlpkit``: the demo, model files, the configuration, and compiling ahead of time.

``mlpkit demo`` does the whole job of section 4 of the notes: whitened patches of photographs, a
sparse autoencoder, pictures of what its hidden units look for, a model file. Exit codes: 0 for
success, 1 when something fails (one line on standard error says what), 2 for a command line that
makes no sense, 3 for a file that is no model, 130 after Ctrl-C, 141 where whoever read the output has
gone (``| head``).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlpkit import activations, datasets, losses, model_file, plotting, preprocessing
from mlpkit.autoencoder import sparse_autoencoder
from mlpkit.convert_command import add_convert_command
from mlpkit.errors import InvalidArgumentError, MissingExtraError, MlpkitError, ModelFormatError, import_extra
from mlpkit.history import FitResult
from mlpkit.kernels.jit import MOST_THREADS, set_num_threads
from mlpkit.layers import Dense, Input
from mlpkit.mlp import MLP
from mlpkit.model_commands import NOT_A_MODEL, add_model_commands
from mlpkit.optimizers import LBFGS
from mlpkit.penalties import KLSparsity
from mlpkit.stochastic import Adam
from mlpkit.system import package_version, show_config

__all__ = ["main"]

_DTYPES = ("float64", "float32")

_HIGHEST_COUNT = 10**9


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words after ``mlpkit``; those of the process if None.

    Returns
    -------
    int
        0 for success, 1 for failure, 3 for a file that is no model, 130 after Ctrl-C, 141 after a broken pipe.

    Raises
    ------
    SystemExit
        With code 2 for a wrong command line, 0 after ``--help`` and ``--version``.

    Examples
    --------
    >>> main(["demo", "--images", "absent.png", "--no-progress"])
    1
    """
    try:
        try:
            return _run(arguments)
        finally:
            # Here, where a broken pipe can still be answered: not as Python exits.
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered must not be tried again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(arguments: Sequence[str] | None) -> int:
    """Do what the command line asks; make one line of every error that a user can cause."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except BrokenPipeError:
        raise
    except MemoryError as error:
        return _fail(f"not enough memory: {error}".rstrip(": "))
    except ModelFormatError as error:
        return _fail(str(error), NOT_A_MODEL)
    except (MlpkitError, OSError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("mlpkit: interrupted", file=sys.stderr)
        return 130


def _fail(message: str, code: int = 1) -> int:
    print(f"mlpkit: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mlpkit", description="Exact multilayer perceptrons on multi-core CPUs.")
    version = package_version("mlpkit")
    parser.add_argument("--version", action="version", version=f"mlpkit {version}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    add_model_commands(commands)
    add_convert_command(commands)
    config = commands.add_parser(
        "config",
        help="show versions, threads, vector width and cache folder",
        description="Show versions, threads, vector width and the folder of compiled kernels.",
    )
    config.set_defaults(run=_config)
    warmup = commands.add_parser(
        "warmup",
        help="compile the kernels now, so that later runs start at once",
        description="Compile the kernels for every built-in activation and loss, in float64 and "
        "float32, into Numba's cache on disk, so that later runs start at once.",
    )
    warmup.add_argument(
        "--dtype", choices=_DTYPES, nargs="+", default=_DTYPES, metavar="DTYPE", help="of which (default: both)"
    )
    warmup.set_defaults(run=_warmup)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="train a sparse autoencoder on photographs and draw what it learned",
        description="Train a sparse autoencoder on whitened patches of photographs, as in "
        "section 4 of the CS294A notes, and write features.png (the input that each hidden unit "
        "responds to most), training.png and model.h5.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.set_defaults(run=_demo)
    add = demo.add_argument
    add("--patch", type=_count, default=10, metavar="N", help="side of a patch, in pixels")
    add("--hidden", type=_count, default=100, metavar="N", help="number of hidden units")
    add("--rho", type=float, default=0.03, help="mean activation asked of each hidden unit")
    add("--beta", type=float, default=3.0, help="weight of the sparsity penalty")
    add("--weight-decay", type=float, default=2e-4, metavar="LAMBDA", help="weight decay lambda")
    add("--iterations", type=_count, default=400, metavar="N", help="L-BFGS iterations")
    add("--patches", type=_count, default=10_000, metavar="N", help="number of patches")
    add(
        "--images",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="images to cut patches from: .png, .jpg, .npy, .mat or .h5 "
        "(default: photographs that come with scikit-image)",
        default=argparse.SUPPRESS,
    )
    add(
        "--whitened",
        action="store_true",
        help="the --images are whitened already, as the CS294A exercise's IMAGES.mat: do not whiten them again",
        default=argparse.SUPPRESS,
    )
    add("--seed", type=int, default=0, help="seed of the patches and of the starting weights")
    add(
        "--threads",
        type=_threads,
        metavar="N",
        help="threads to compute with (default: all)",
        default=argparse.SUPPRESS,
    )
    add("--out", type=Path, default=Path("mlpkit-demo"), metavar="DIR", help="folder to write to")
    add(
        "--no-progress",
        action="store_true",
        help="show no progress line",
        default=argparse.SUPPRESS,
    )


def _count(text: str) -> int:
    """Read a positive integer; argparse puts the option's name before the error."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number; found {text!r}") from None
    if not 1 <= number <= _HIGHEST_COUNT:
        raise argparse.ArgumentTypeError(f"must lie between 1 and {_HIGHEST_COUNT}; found {number}")
    return number


def _threads(text: str) -> int:
    number = _count(text)
    if number > MOST_THREADS:
        raise argparse.ArgumentTypeError(
            f"must be at most {MOST_THREADS}, the number of cores or NUMBA_NUM_THREADS; found {number}"
        )
    return number


def _config(options: argparse.Namespace) -> int:
    show_config()
    return 0


def _warmup(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    for dtype in options.dtype:
        for activation in map(activations.get, activations.names()):
            if activation.builtin:
                _exercise(activation.name, "squared_error", dtype)
        for loss in map(losses.get, losses.names()):
            if loss.builtin:
                _exercise(next(iter(loss.fused)).name if loss.fused else "identity", loss.name, dtype)
        _exercise("relu", "squared_error", dtype, width=300)  # a gradient too large for a copy for each thread
        _exercise_steps(dtype)
    print(f"kernels ready after {time.perf_counter() - start:.1f} s")
    return 0


def _exercise(activation: str, loss: str, dtype: str, *, width: int = 2) -> None:
    """Make a network do everything once, sparse and on several strips, which compiles what it uses."""
    bounded = np.isfinite(activations.get(activation).range).all()
    hidden = Dense(width + 1, activation, sparsity=KLSparsity() if bounded else None)
    net = MLP([Input(width), hidden, Dense(width, activation)], loss=loss, dtype=dtype, seed=0)
    X = np.resize([[0.2, 0.8], [0.6, 0.4]], (2000, width)).astype(dtype)
    net.fit(X, X[:, ::-1], optimizer=LBFGS(max_iter=1))
    net.predict(X[:1])
    net.predict(X)


def _exercise_steps(dtype: str) -> None:
    """Take mini-batch steps, large enough to be tried on several threads and on one."""
    net = MLP([Input(100), Dense(100, "relu"), Dense(100, "identity")], dtype=dtype, seed=0)
    X = np.zeros((512, 100), dtype)
    net.fit(X, X, Adam(max_epochs=1, batch_size=128), validation=0.25)


def _demo(options: argparse.Namespace) -> int:
    # Everything that can be wrong with the request should show before the long part.
    import_extra("matplotlib", extra="demo")
    progress = not hasattr(options, "no_progress") and _has_progress()
    if hasattr(options, "threads"):
        set_num_threads(options.threads)
    X = _patches(options)
    net = sparse_autoencoder(
        n_inputs=options.patch**2,
        n_hidden=options.hidden,
        rho=options.rho,
        beta=options.beta,
        weight_decay=options.weight_decay,
        seed=options.seed,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    sizes = "-".join(str(size) for size in net.sizes)
    print(
        f"sparse autoencoder {sizes} on {len(X)} whitened {options.patch}x{options.patch} patches: "
        f"rho {options.rho:g}, beta {options.beta:g}, lambda {options.weight_decay:g}"
    )
    _prepare_kernels(options)
    try:
        result = net.fit(X, X, optimizer=LBFGS(options.iterations, ftol=0, gtol=0), progress=progress)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            f"training cannot start with --beta {options.beta:g} and --weight-decay {options.weight_decay:g}: {error}"
        ) from error
    _summarise(result, net.activations(X)[0].mean(axis=0))

    # The model first: it is what took the time.
    model, features, training = (options.out / name for name in ("model.h5", "features.png", "training.png"))
    net.save(model)
    print(f"wrote {model}")
    plotting.features(net, path=features)
    print(f"wrote {features}")
    plotting.training(result.history, path=training)
    print(f"wrote {training}")
    if not np.array_equal(model_file.load(model).predict(X), net.predict(X)):
        return _fail(f"{model} predicts otherwise than it was saved")
    print(f"reloaded {model.name}: equal predictions for all {len(X)} patches")
    return 0


def _summarise(result: FitResult, rho_hat: NDArray[np.float64]) -> None:
    terms = result.terms
    print(
        f"J = {result.cost:.6g} = data {terms['data']:.6g} + weight decay "
        f"{terms['weight_decay']:.6g} + sparsity {terms['sparsity']:.6g}\n"
        f"rho_hat: mean {rho_hat.mean():.4f}, standard deviation {rho_hat.std():.4f}, "
        f"from {rho_hat.min():.4f} to {rho_hat.max():.4f}\n"
        f"{result.n_iterations} iterations, {result.n_evaluations} evaluations, "
        f"{result.seconds:.1f} s ({result.reason})"
    )
    if not result.history:
        hint = "" if result.reason.startswith("converged") else ": a smaller --beta or --weight-decay may help"
        print(f"mlpkit: warning: the network is as it started, for no step was accepted{hint}", file=sys.stderr)


def _has_progress() -> bool:
    """Tell whether rich is there; the demo does without it rather than not at all."""
    try:
        import_extra("rich", extra="progress")
    except MissingExtraError as error:
        print(f"no progress line: {error}", file=sys.stderr)
        return False
    return True


def _patches(options: argparse.Namespace) -> NDArray[np.float64]:
    """Return the training examples, made as the CS294A exercise makes them."""
    images = _images(options)
    if not hasattr(options, "whitened"):
        images = preprocessing.whiten_images(images)
    patches = preprocessing.sample_patches(images, options.patches, size=options.patch, seed=options.seed)
    return preprocessing.squash(preprocessing.remove_dc(patches))


def _images(options: argparse.Namespace) -> list[NDArray[np.float64]]:
    if not hasattr(options, "images"):
        if hasattr(options, "whitened"):
            raise InvalidArgumentError("--whitened needs --images that are: scikit-image's photographs are not")
        return datasets.natural_images()
    images: list[NDArray[np.float64]] = []
    for file in options.images:
        for image in datasets.load_images(file):
            if min(image.shape) < options.patch:
                height, width = image.shape
                raise InvalidArgumentError(
                    f"--patch must not exceed any image's side; found {options.patch} for an image of "
                    f"{height} x {width} pixels in {str(file)!r}"
                )
            images.append(image)
    return images


def _prepare_kernels(options: argparse.Namespace) -> None:
    """Compile (or load from the cache) what training needs, so that its seconds are its own."""
    print("kernels: the first run compiles them, later ones find them in the cache ...", flush=True)
    start = time.perf_counter()
    _exercise("sigmoid", "squared_error", "float64")
    print(f"kernels ready after {time.perf_counter() - start:.1f} s")
