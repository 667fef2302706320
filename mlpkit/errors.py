"""The exceptions and warnings that users of mlpkit can catch.

Every exception derives from `MlpkitError`, and also from the built-in that a caller would expect:
a bad argument is a `ValueError`, a missing optional package an `ImportError`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = [
    "InvalidArgumentError",
    "MissingExtraError",
    "MlpkitError",
    "ModelFormatError",
    "TargetRangeWarning",
    "import_extra",
]


class MlpkitError(Exception):
    """Base class of everything that mlpkit raises on purpose."""


class InvalidArgumentError(MlpkitError, ValueError):
    """An argument is not what the function expects; the message names it, what was expected and what was found."""


class ModelFormatError(MlpkitError, ValueError):
    """A file is not a model that this version can read; the message names the element and the reason."""


class MissingExtraError(MlpkitError, ImportError):
    """An optional package is not installed; the message names the extra that installs it."""


class TargetRangeWarning(UserWarning):
    """Targets lie outside the range of a bounded output activation, which therefore can never reach them."""


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
        If the module cannot be imported.

    Examples
    --------
    >>> import_extra("math", extra="plot").sqrt(4.0)
    2.0
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f'{module} is not installed: it comes with  pip install "mlpkit[{extra}]"') from error
