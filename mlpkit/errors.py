"""The exceptions and warnings that users of mlpkit can catch.

Every exception derives from `MlpkitError`, and also from the built-in that a caller would expect:
a bad argument is a `ValueError`, a missing optional package an `ImportError`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

__all__ = [
    "DataFileError",
    "InvalidArgumentError",
    "MissingExtraError",
    "MlpkitError",
    "ModelFormatError",
    "TargetRangeWarning",
    "frames_to_the_caller",
    "import_extra",
]


class MlpkitError(Exception):
    """Base class of everything that mlpkit raises on purpose."""


class InvalidArgumentError(MlpkitError, ValueError):
    """An argument is not what the function expects; the message names it, what was expected and what was found."""


class ModelFormatError(MlpkitError, ValueError):
    """A file is not a model that this version can read; the message names the element and the reason."""


class DataFileError(MlpkitError, OSError):
    """A file of data changed or vanished while it was in use, or cannot be read; the message names it."""


class MissingExtraError(MlpkitError, ImportError):
    """An optional package is not installed, or broken; the message names the extra that installs it."""


class TargetRangeWarning(UserWarning):
    """Targets lie outside the range of a bounded output activation, which therefore can never reach them."""


# Packages that are installed under another name than they are imported by.
_PACKAGES = {"PIL": "pillow", "skimage": "scikit-image"}


def import_extra(module: str, *, extra: str) -> ModuleType:
    """Import an optional package, or say which extra of mlpkit installs it.

    Parameters
    ----------
    module : str
        Name of the module to import, for instance ``"matplotlib"``.
    extra : str
        The extra of mlpkit that lists the package.

    Raises
    ------
    MissingExtraError
        If the module cannot be imported: because its package is not installed, or, with the reason,
        because the installation is broken.

    Examples
    --------
    >>> import_extra("math", extra="plot").sqrt(4.0)
    2.0
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        package, command = _PACKAGES.get(top, top), f'pip install "mlpkit[{extra}]"'
        if isinstance(error, ModuleNotFoundError) and error.name in (top, module):
            raise MissingExtraError(f"{package} is not installed: it comes with  {command}") from error
        raise MissingExtraError(
            f"{package} cannot be imported ({error}): reinstall it, for instance with  {command}"
        ) from error


def frames_to_the_caller() -> int:
    """Return the stack level, counted from the calling function, of the first code that is not mlpkit's own.

    Examples
    --------
    >>> frames_to_the_caller() >= 1
    True
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("mlpkit."):
        level, frame = level + 1, frame.f_back
    return level
