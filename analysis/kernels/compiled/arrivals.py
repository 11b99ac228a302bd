"""Inter-arrival times of an expert, sixteen at a time; each is one more than the run between.

Shape suffixes: L selections of a block in the order of their experts.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from moe_probe.analysis.kernels.compiled.jit import intrinsic_
from moe_probe.analysis.kernels.compiled.lanes import Lanes

SIXTEEN = 16
_I32 = ir.IntType(32)
_TIMES = ir.VectorType(_I32, SIXTEEN)
_OCTAVES = ir.VectorType(ir.IntType(16), SIXTEEN)
# As large as sixteen of 32 bits.
_KIND = Lanes(SIXTEEN // 2)


@intrinsic_
def no_times(typing_context: Any) -> Any:
    """Sixteen zeros."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return ir.Constant(context.get_value_type(_KIND), None)

    return _KIND(), generate


@intrinsic_
def arrivals(typing_context: Any, place_L: Any, start: Any, most: Any) -> Any:
    """Differences of int32 neighbours from `start` on; 0 for those that are more than `most`."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        start, end = arguments[1], builder.add(arguments[1], ir.Constant(ir.IntType(64), 1))
        ends = [builder.gep(array.data, [index]) for index in (start, end)]
        earlier, later = (
            builder.load(builder.bitcast(end, _TIMES.as_pointer()), align=4) for end in ends
        )
        times = builder.sub(later, earlier)
        limit = _everywhere(builder, arguments[2])
        is_inside = builder.icmp_unsigned("<=", times, limit)
        times = builder.select(is_inside, times, ir.Constant(_TIMES, None))
        return builder.bitcast(times, context.get_value_type(_KIND))

    return _KIND(place_L, types.intp, types.int32), generate


@intrinsic_
def store_octaves(typing_context: Any, octave_L: Any, start: Any, times: Any) -> Any:
    """Write, to a uint16 array, the bit that says which powers of two an idle run lies between.

    Bit h is that of runs for which `log2_bin` is h; a time of 0 has none.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(array.data, [arguments[1]])
        runs = builder.sub(builder.bitcast(arguments[2], _TIMES), _all(1))
        # What a time of 0 leaves is a bit beyond those that are stored.
        runs = builder.and_(runs, _all((1 << 16) - 1))
        kind = ir.FunctionType(_TIMES, [_TIMES, ir.IntType(1)])
        name = f"llvm.ctlz.v{SIXTEEN}i32"
        zeros = cgutils.get_or_insert_function(builder.module, kind, name)
        number = builder.call(zeros, [runs, ir.Constant(ir.IntType(1), 0)])
        octaves = builder.shl(_all(1), builder.sub(_all(32), number))
        target = builder.bitcast(pointer, _OCTAVES.as_pointer())
        builder.store(builder.trunc(octaves, _OCTAVES), target, align=2)
        return context.get_dummy_value()

    return types.void(octave_L, types.intp, _KIND), generate


@intrinsic_
def add_squares(typing_context: Any, sums: Any, times: Any) -> Any:
    """Sixteen sums, each with the square of a time added."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        sums, times = (builder.bitcast(value, _TIMES) for value in arguments)
        total = builder.add(sums, builder.mul(times, times))
        return builder.bitcast(total, context.get_value_type(_KIND))

    return _KIND(_KIND, _KIND), generate


@intrinsic_
def longer(typing_context: Any, most: Any, times: Any) -> Any:
    """The larger of each two times."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        most, times = (builder.bitcast(value, _TIMES) for value in arguments)
        larger = builder.select(builder.icmp_unsigned(">", times, most), times, most)
        return builder.bitcast(larger, context.get_value_type(_KIND))

    return _KIND(_KIND, _KIND), generate


@intrinsic_
def sum_of(typing_context: Any, sums: Any) -> Any:
    """All sixteen sums: int64."""
    return types.int64(_KIND), _reduction("add")


@intrinsic_
def longest_of(typing_context: Any, most: Any) -> Any:
    """The longest of sixteen times: int64."""
    return types.int64(_KIND), _reduction("umax")


def _reduction(name: str) -> Any:
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_I32, [_TIMES])
        full_name = f"llvm.vector.reduce.{name}.v{SIXTEEN}i32"
        reduce = cgutils.get_or_insert_function(builder.module, kind, full_name)
        found = builder.call(reduce, [builder.bitcast(arguments[0], _TIMES)])
        return builder.zext(found, ir.IntType(64))

    return generate


def _all(value: int) -> Any:
    return ir.Constant(_TIMES, [value] * SIXTEEN)


def _everywhere(builder: ir.IRBuilder, value: Any) -> Any:
    blank = ir.Constant(_TIMES, ir.Undefined)
    first = builder.insert_element(blank, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, blank, ir.Constant(_TIMES, None))
