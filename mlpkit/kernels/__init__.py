"""Everything that Numba compiles: arrays and sizes in, arrays out; no objects and no exceptions inside."""

from mlpkit.kernels import jit  # first of all kernel modules: it notes the sources that they are about to run from

__all__ = ["jit"]
