"""The engine's inner loops as assembly for another processor than this one; run as a program, prints them as JSON.

    NUMBA_OPT=0 NUMBA_CPU_NAME=generic NUMBA_CPU_FEATURES=+avx2 python tests/assembly.py TRIPLE CPU

The variables make mlpkit choose that processor's vector width and keep Numba from optimising for this one. What it
emits is then optimised and compiled for the processor named by LLVM, of which llvmlite brings every target.
"""

import json
import re
import sys

import llvmlite.binding as llvm
import numba
from numba import types

from mlpkit import vmath
from mlpkit.kernels import simd


def loop_over(function):
    """Compile the loop of a tile function over one of vmath's functions."""

    @numba.njit(error_model="numpy")
    def over(a, n):
        for i in range(n):
            a[i] = function(a[i])

    return over


def kernels(element):
    """Return the engine's inner loops, each with the types of its arguments."""
    p, n = types.CPointer(element), types.intp
    affine = (p, n, n, n, n, p, p, n, p, p, n, n)
    return {
        "affine": (simd._affine_wide, affine),
        "affine_batch": (simd._affine_batch, affine),
        "affine_narrow": (simd._affine_narrow, affine),
        "accumulate_outer": (simd.accumulate_outer, (p, n, n, p, n, n, p, n, n, n)),
        **{name: (loop_over(getattr(vmath, name)), (p, n)) for name in vmath.__all__},
    }


def compile_for(machine, triple, text):
    """Return the assembly of a module, given as Numba's LLVM code."""
    text = re.sub('target triple = ".*"', f'target triple = "{triple}"', text)
    text = re.sub('target datalayout = ".*"', f'target datalayout = "{machine.target_data}"', text)
    module = llvm.parse_assembly(text)
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_vectorization = tuning.slp_vectorization = tuning.loop_interleaving = True
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    return machine.emit_assembly(module)


def innermost_loops(assembly):
    """Return the loops without a label inside, each a list of instructions."""
    lines = [re.split("//|# ", line)[0].strip() for line in assembly.splitlines()]
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.fullmatch(r"\.LBB\w+:", line)}
    loops = []
    for i, line in enumerate(lines):
        start = labels.get(line.split()[-1] if line else "", i)
        body = [instruction for instruction in lines[start + 1 : i + 1] if instruction]
        if body and not any(instruction[:-1] in labels for instruction in body):
            loops.append(body)
    return loops


def main(triple, cpu):
    """Print {dtype: {kernel: loops}}."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3, reloc="pic", codemodel="default")
    found = {}
    for element in (types.float64, types.float32):
        found[str(element)] = {}
        for name, (dispatcher, signature) in kernels(element).items():
            dispatcher.compile(signature)
            text = dispatcher.inspect_llvm(signature)
            found[str(element)][name] = innermost_loops(compile_for(machine, triple, text))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
