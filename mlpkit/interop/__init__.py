"""Ways in and out: conversions from and to other systems' models.

Every function returns a `Conversion`: what it made, and a line for each thing that it mapped. Whatever a conversion
does not understand is an error that names it, never left out. ``docs/interop.md`` has an example for each; each
system's module says what goes through. The other system's package is imported when a conversion is called, not before.

Hyper-parameters. mlpkit's J sums a loss over the K outputs, takes the mean over examples, and adds lambda / 2 sum W^2
without biases. Where other systems scale otherwise, J is c times what they minimise, with the lambda below:

==========================================  ==============================  =======  ===============================
scikit-learn, solver lbfgs                  squared_error, log loss         c = 1    lambda = alpha / n
scikit-learn, solvers sgd and adam          the same                        c = 1    lambda = alpha / batch size
Keras with L2(l)                            mse                             c = K/2  lambda = K l
Keras with L2(l)                            categorical_crossentropy        c = 1    lambda = 2 l
Keras with L2(l)                            binary_crossentropy             c = K    lambda = 2 K l
PyTorch, weight_decay=d of weights alone    MSELoss                         c = K/2  lambda = K d / 2
PyTorch, weight_decay=d of weights alone    CrossEntropyLoss                c = 1    lambda = d
PyTorch, weight_decay=d of weights alone    BCEWithLogitsLoss               c = K    lambda = K d
==========================================  ==============================  =======  ===============================

In scikit-learn c = 1 is that of the gradient: the squared error that it reports has 1/K of the data term (its issue
8349). PyTorch's weight_decay decays biases too, unless `parameter_groups` keeps them apart.

Examples
--------
>>> import mlpkit
>>> net = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(1, "identity")], weight_decay=0.5, seed=0)
>>> regressor, mapped = mlpkit.interop.to_sklearn(net, n_samples=100)
>>> mapped[2]
'weight_decay 0.5 -> alpha 50, 100 times'
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
