"""LLVM instructions on vectors, and how wide the host's are.

Numba would leave it to LLVM whether a loop becomes vectors, and of what width; the kernels that matter say it.
"""

from __future__ import annotations

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba.core import cgutils

__all__ = ["BITS", "I32", "I64", "Emitter", "mask_of_zip", "repeat", "vector_mask"]

I32, I64 = ir.IntType(32), ir.IntType(64)


def _vector_bits() -> int:
    """Return the width of the vector registers that Numba compiles for: it takes features, not a name, as given."""
    listed = numba.config.CPU_FEATURES
    if listed is not None:
        names = {name.strip() for name in listed.split(",")}
        wide, middle = "+avx512f" in names, "+avx2" in names
    else:
        try:
            features = llvm.get_host_cpu_features() if numba.config.ENABLE_AVX else {}
        except RuntimeError:  # llvmlite cannot tell; Numba then compiles for what every such processor has
            features = {}
        wide, middle = features.get("avx512f", False), features.get("avx2", False)
    return 512 if wide else 256 if middle else 128


BITS = _vector_bits()


class Emitter:
    """LLVM instructions on vectors of one element type."""

    def __init__(self, builder, element):
        self.builder = builder
        self.element = element
        self.bytes = 8 if isinstance(element, ir.DoubleType) else 4
        self.width = BITS // (8 * self.bytes)
        self.type = ir.VectorType(element, self.width)

    def offset(self, pointer, n):
        """Return the address n elements further on."""
        return self.builder.gep(pointer, [n if isinstance(n, ir.Value) else ir.Constant(I64, n)])

    def load(self, pointer, type_=None):
        """Load a register, or what the type says."""
        type_ = self.type if type_ is None else type_
        instruction = self.builder.load(self.builder.bitcast(pointer, type_.as_pointer()))
        instruction.align = self.bytes
        return instruction

    def load_first(self, pointer, count):
        """Load a register whose lanes from `count` on are 0, without reading what would be there."""
        undefined = ir.Constant(ir.VectorType(I64, self.width), ir.Undefined)
        first = self.builder.insert_element(undefined, count, ir.Constant(I32, 0))
        counts = self.builder.shuffle_vector(first, undefined, vector_mask([0] * self.width))
        lanes = ir.Constant(counts.type, list(range(self.width)))
        mask = self.builder.icmp_signed("<", lanes, counts)
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(self.type, [self.type.as_pointer(), I32, mask.type, self.type]),
            f"llvm.masked.load.v{self.width}f{8 * self.bytes}.p0",
        )
        place = self.builder.bitcast(pointer, self.type.as_pointer())
        zeros = ir.Constant(self.type, [0.0] * self.width)
        return self.builder.call(function, [place, ir.Constant(I32, self.bytes), mask, zeros])

    def store(self, value, pointer):
        """Store a register."""
        instruction = self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer()))
        instruction.align = self.bytes

    def splat(self, scalar):
        """Return a register with the number in each lane."""
        undefined = ir.Constant(self.type, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, undefined, vector_mask([0] * self.width))

    def fma(self, a, b, c):
        """Emit a * b + c, fused where the host can (fmuladd never calls a slow library function)."""
        kind = "f64" if isinstance(a.type.element, ir.DoubleType) else "f32"
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(a.type, [a.type] * 3),
            f"llvm.fmuladd.v{a.type.count}{kind}",
        )
        return self.builder.call(function, [a, b, c])

    def prefetch(self, pointer, *, write=False):
        """Ask for the cache line at an address: to be written at once, or to be read before long."""
        byte = ir.IntType(8).as_pointer()
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32]), "llvm.prefetch.p0"
        )
        kind, keep, data = (ir.Constant(I32, n) for n in ((1, 3, 1) if write else (0, 2, 1)))
        self.builder.call(function, [self.builder.bitcast(pointer, byte), kind, keep, data])

    def fold(self, vectors):
        """Sum each vector's lanes; return vectors whose lanes, one after another, are those sums.

        A shuffle tree: at each level pairs of vectors become one that carries both, in groups half as long.
        """
        group = vectors[0].type.count
        while group > 1:
            pairs = len(vectors) > 1
            folded = []
            for a, b in zip(vectors[0::2], vectors[1::2], strict=True) if pairs else [(vectors[0], vectors[0])]:
                n = a.type.count * (2 if pairs else 1)
                low = [i for i in range(n) if i % group < group // 2]
                high = [i for i in range(n) if i % group >= group // 2]
                folded.append(
                    self.builder.fadd(
                        self.builder.shuffle_vector(a, b, vector_mask(low)),
                        self.builder.shuffle_vector(a, b, vector_mask(high)),
                    )
                )
            vectors, group = folded, group // 2
        return vectors


def mask_of_zip(width, half):
    """Lanes of two vectors taken in turn: the first or the second half of the result."""
    return [half * width // 2 + i // 2 + width * (i % 2) for i in range(width)]


def vector_mask(indices):
    """Return the constant that a shuffle picks lanes by."""
    return ir.Constant(ir.VectorType(I32, len(indices)), indices)


def repeat(builder, count, initial, step):
    """Emit ``for i in range(count)`` over carried values: ``carried = step(i, carried)``; return the last."""
    before = builder.block
    head, body, done = (builder.append_basic_block(name) for name in ("head", "body", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    i = builder.phi(I64)
    i.add_incoming(ir.Constant(I64, 0), before)
    carried = []
    for value in initial:
        phi = builder.phi(value.type)
        phi.add_incoming(value, before)
        carried.append(phi)
    builder.cbranch(builder.icmp_signed("<", i, count), body, done)
    builder.position_at_end(body)
    updated = step(i, carried)
    i.add_incoming(builder.add(i, ir.Constant(I64, 1)), builder.block)
    for phi, value in zip(carried, updated, strict=True):
        phi.add_incoming(value, builder.block)
    builder.branch(head)
    builder.position_at_end(done)
    return carried
