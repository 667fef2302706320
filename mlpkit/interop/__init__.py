"""Ways in and out: conversions from and to other systems' models.

Every function returns a `Conversion`: what it made, and a line for each thing that it mapped. Whatever a conversion
does not understand is an error that names it, never left out.
"""

from mlpkit.interop.conversion import Conversion

__all__ = ["Conversion"]
