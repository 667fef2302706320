"""mlpkit: multilayer perceptrons on a CPU, with exact objectives, checked gradients and reproducible bits.

Examples
--------
>>> import mlpkit
>>> net = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(3, "tanh"), mlpkit.Dense(1, "sigmoid")], seed=0)
>>> net.predict([[0.0, 1.0]]).shape
(1, 1)
"""

# First of all, since it notes the sources that compiled code is about to come from.
import mlpkit.kernels as kernels  # noqa: F401
from mlpkit import (
    activations,
    callbacks,
    datasets,
    errors,
    interop,
    losses,
    metrics,
    plotting,
    prepare,
    preprocessing,
    schedules,
)
from mlpkit.activations import activation
from mlpkit.autoencoder import maximal_inputs, sparse_autoencoder
from mlpkit.block_shuffle import BlockShuffle
from mlpkit.early_stopping import EarlyStopping
from mlpkit.errors import (
    DataFileError,
    InvalidArgumentError,
    MissingExtraError,
    MlpkitError,
    ModelFormatError,
    TargetRangeWarning,
)
from mlpkit.gradient_check import check_gradient, numerical_gradient
from mlpkit.kernels import vmath
from mlpkit.kernels.jit import blas_limited, get_num_threads, set_num_threads
from mlpkit.layers import Dense, Input
from mlpkit.losses import loss
from mlpkit.mlp import MLP
from mlpkit.model_file import load
from mlpkit.newton import NewtonCG, TrustNCG
from mlpkit.noise import GaussianNoise, MaskingNoise, SaltAndPepperNoise
from mlpkit.objective import Objective
from mlpkit.optimizers import LBFGS, ConjugateGradient, GradientDescent
from mlpkit.penalties import KLSparsity, L1Sparsity, MeanPenalty
from mlpkit.run import Callback
from mlpkit.stacked import encoder, pretrain, stack
from mlpkit.stochastic import SGD, Adagrad, Adam, AdamW, RMSprop
from mlpkit.system import package_version, show_config
from mlpkit.user_penalties import penalty

__version__ = package_version("mlpkit")

__all__ = [
    "LBFGS",
    "MLP",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "BlockShuffle",
    "Callback",
    "ConjugateGradient",
    "DataFileError",
    "Dense",
    "EarlyStopping",
    "GaussianNoise",
    "GradientDescent",
    "Input",
    "InvalidArgumentError",
    "KLSparsity",
    "L1Sparsity",
    "MaskingNoise",
    "MeanPenalty",
    "MissingExtraError",
    "MlpkitError",
    "ModelFormatError",
    "NewtonCG",
    "Objective",
    "RMSprop",
    "SaltAndPepperNoise",
    "TargetRangeWarning",
    "TrustNCG",
    "activation",
    "activations",
    "blas_limited",
    "callbacks",
    "check_gradient",
    "datasets",
    "encoder",
    "errors",
    "get_num_threads",
    "interop",
    "load",
    "loss",
    "losses",
    "maximal_inputs",
    "metrics",
    "numerical_gradient",
    "penalty",
    "plotting",
    "prepare",
    "preprocessing",
    "pretrain",
    "schedules",
    "set_num_threads",
    "show_config",
    "sparse_autoencoder",
    "stack",
    "vmath",
]
