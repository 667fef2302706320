"""Ways in and out: conversions from and to other systems' models.

Every function returns a `Conversion`: what it made, and a line for each thing that it mapped. Whatever a conversion
does not understand is an error that names it, never left out.
"""

from mlpkit.interop.conversion import Conversion
from mlpkit.interop.keras import from_keras, to_keras
from mlpkit.interop.matlab import from_matlab, to_matlab
from mlpkit.interop.notes_order import from_notes_order, to_notes_order
from mlpkit.interop.onnx import to_onnx
from mlpkit.interop.safetensors import from_safetensors, to_safetensors
from mlpkit.interop.sklearn import from_sklearn, to_sklearn
from mlpkit.interop.torch import from_torch, parameter_groups, to_torch

__all__ = [
    "Conversion",
    "from_keras",
    "from_matlab",
    "from_notes_order",
    "from_safetensors",
    "from_sklearn",
    "from_torch",
    "parameter_groups",
    "to_keras",
    "to_matlab",
    "to_notes_order",
    "to_onnx",
    "to_safetensors",
    "to_sklearn",
    "to_torch",
]
