"""The engine's inner loops on processors that the tests do not run on, read as assembly.

A loop is as fast as its processor allows where it consists of fused multiply-adds on whole vectors, keeps its sums in
registers and calls nothing.
"""

import functools
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from mlpkit import vmath


class Processor(NamedTuple):
    """How to compile for a processor, and patterns of its instructions."""

    triple: str
    cpu: str
    features: str  # what mlpkit takes the width of its vectors from
    fused: str  # a multiply-add of whole vectors
    spilled: str  # a vector register kept on the stack
    calls: str


X86 = "x86_64-unknown-linux-gnu"
PROCESSORS = {
    "NEON": Processor(
        "aarch64-unknown-linux-gnu",
        "neoverse-n1",
        "",
        r"fml[as]\s+v\d+\.(2d|4s)",
        r"(st|ld)u?[pr]\s+q.*\[sp",
        r"blr?\s",
    ),
    "AVX2": Processor(X86, "haswell", "+avx2", r"vfn?m(add|sub)\d+p[ds]\s.*%ymm", r"v.*\(%rsp\)", r"call"),
    "AVX-512": Processor(
        X86, "skylake-avx512", "+avx512f", r"vfn?m(add|sub)\d+p[ds]\s.*%[yz]mm", r"v.*\(%rsp\)", r"call"
    ),
}
MATRIX = ("affine", "affine_batch", "affine_narrow", "accumulate_outer")
ELEMENTWISE = tuple(vmath.__all__)
DTYPES = ("float64", "float32")


def compile_elsewhere(processor):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("assembly.py"), processor.triple, processor.cpu],
        env={**inherited, "NUMBA_OPT": "0", "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": processor.features},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@functools.cache
def inner_loops():
    """Return {processor: {dtype: {kernel: loops}}}."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(PROCESSORS, pool.map(compile_elsewhere, PROCESSORS.values()), strict=True))


def count(pattern, loop):
    return sum(bool(re.match(pattern, instruction)) for instruction in loop)


def fused_loops(processor, dtype, kernel):
    """Return a kernel's loops that have fused multiply-adds, the one with most of them first."""
    fused = PROCESSORS[processor].fused
    loops = [loop for loop in inner_loops()[processor][dtype][kernel] if count(fused, loop)]
    return sorted(loops, key=lambda loop: -count(fused, loop))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", MATRIX)
@pytest.mark.parametrize("processor", PROCESSORS)
def test_matrix_kernels_are_multiply_adds_in_registers(processor, kernel, dtype):
    machine, loops = PROCESSORS[processor], fused_loops(processor, dtype, kernel)
    assert len(loops) >= 6  # blocks of 1 to 6 rows
    for loop in loops:
        # One operand may wait on the stack: 6 of 150 instructions on AVX-512.
        assert count(machine.spilled, loop) <= 0.05 * len(loop), "\n".join(loop)
        assert not count(machine.calls, loop), "\n".join(loop)
    if kernel != "affine_narrow":  # which has one vector to each number of W
        assert count(machine.fused, loops[0]) >= 0.4 * len(loops[0]), "\n".join(loops[0])


@pytest.mark.parametrize("kernel", ELEMENTWISE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("processor", PROCESSORS)
def test_vector_functions_are_vector_code(processor, dtype, kernel):
    assert fused_loops(processor, dtype, kernel)
    for loop in inner_loops()[processor][dtype][kernel]:
        assert not count(PROCESSORS[processor].calls, loop), "\n".join(loop)
