"""A token's set of experts as one vector of bits, which processors add up many at a time.

A vector has 64 bits per lane; how many lanes is said by a tuple of as many zeros, since compiled
code must know it beforehand.

Shape suffixes: T tokens, W 64-bit words of a set, H bits of a count, L tokens that are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

from moe_probe.analysis.kernels.compiled.jit import intrinsic_

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_WORD = 64
EIGHT = 8
"""Sets that are compared at a time."""
_COUNTS = ir.VectorType(_I16, EIGHT)
PLANES = 8
"""Columns of so many bits are added to counters: as far as they can count without them."""


class Lanes(types.Type):  # type: ignore[misc]
    """Type of a vector of `width` 64-bit lanes."""

    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__(name=f"Lanes({width})")


_register: Callable[[Any], Any] = register_model(Lanes)


@_register
class LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    """How such a vector is kept: in one register, or as few as hold it."""

    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, _vector(kind.width))


@intrinsic_
def empty_set(typing_context: Any, zeros: Any) -> Any:
    """The set without members."""
    kind = Lanes(len(zeros))

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return ir.Constant(_vector(kind.width), None)

    return kind(zeros), generate


@intrinsic_
def load_set(typing_context: Any, sets_TW: Any, row: Any, zeros: Any) -> Any:
    """Row `row` of a contiguous uint64 array whose rows are sets."""
    kind = Lanes(len(zeros))

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        pointer = _row(context, builder, signature.args[0], arguments, kind.width)
        return builder.load(pointer, align=8)

    return kind(sets_TW, types.intp, zeros), generate


@intrinsic_
def store_set(typing_context: Any, sets_TW: Any, row: Any, members: Any) -> Any:
    """Write a set to such a row."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        pointer = _row(context, builder, signature.args[0], arguments, members.width)
        builder.store(arguments[2], pointer, align=8)
        return context.get_dummy_value()

    return types.void(sets_TW, types.intp, members), generate


@intrinsic_
def union(typing_context: Any, a: Any, b: Any) -> Any:
    """The members of either set."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.or_(*arguments)

    return a(a, a), generate


@intrinsic_
def sum_bit(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """The low bit of how many of three sets have each member."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        x, y, z = arguments
        return builder.xor(builder.xor(x, y), z)

    return a(a, a, a), generate


@intrinsic_
def carry_bit(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """The high bit of that: whether two of three sets have it."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        x, y, z = arguments
        return builder.or_(builder.and_(x, y), builder.and_(z, builder.xor(x, y)))

    return a(a, a, a), generate


@intrinsic_
def common_members(typing_context: Any, a: Any, b: Any) -> Any:
    """How many members two sets share: int64."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return _total(builder, _ones(builder, builder.and_(*arguments)))

    return types.int64(a, a), generate


@intrinsic_
def store_common(
    typing_context: Any, common_L: Any, start: Any, sets_TW: Any, row: Any, other: Any, zeros: Any
) -> Any:
    """Write how many members `EIGHT` rows share with as many others, from `start` of uint16 on.

    `row` and `other` are the first ones.
    """
    width = len(zeros)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        kind, (common, start, table, row, other, _) = signature.args, arguments
        sets = [
            builder.load(_row(context, builder, kind[2], (table, number), width, EIGHT), align=8)
            for number in (row, other)
        ]
        ones = builder.trunc(_ones(builder, builder.and_(*sets)), _bytes(EIGHT * width))
        total = ir.Constant(_COUNTS, None)
        for word in range(width):
            places = [word + width * token for token in range(EIGHT)]
            order = ir.Constant(ir.VectorType(_I32, EIGHT), places)
            some = builder.shuffle_vector(ones, ir.Constant(ones.type, ir.Undefined), order)
            total = builder.add(total, builder.zext(some, _COUNTS))
        array = context.make_array(kind[0])(context, builder, common)
        target = builder.bitcast(builder.gep(array.data, [start]), _COUNTS.as_pointer())
        builder.store(total, target, align=2)
        return context.get_dummy_value()

    return types.void(common_L, types.intp, sets_TW, types.intp, types.intp, zeros), generate


@intrinsic_
def add_members(typing_context: Any, sums: Any, members: Any) -> Any:
    """Sums by lane, with the members of a set added; `sum_lanes` gives their number."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.add(arguments[0], _ones(builder, arguments[1]))

    return sums(sums, sums), generate


@intrinsic_
def sum_lanes(typing_context: Any, sums: Any) -> Any:
    """The sum over all lanes: int64."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return _total(builder, arguments[0])

    return types.int64(sums), generate


@intrinsic_
def add_planes(typing_context: Any, counts: Any, start: Any, planes_HW: Any, word: Any) -> Any:
    """Add the numbers of 64 columns of bits to as many uint16 counters, the first at `start`.

    Bit h of column b is bit b of `planes_HW[h, word]`; there are `PLANES` of them.
    """
    kind = ir.VectorType(_I16, _WORD)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        array, planes = (
            context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2)
        )
        pointer = builder.bitcast(builder.gep(array.data, [arguments[1]]), kind.as_pointer())
        words = builder.extract_value(planes.shape, 1)
        total = builder.load(pointer, align=2)
        for bit in range(PLANES):
            place = builder.add(builder.mul(words, ir.Constant(_I64, bit)), arguments[3])
            bits = builder.load(builder.gep(planes.data, [place]))
            is_set = builder.bitcast(bits, ir.VectorType(ir.IntType(1), _WORD))
            values = ir.Constant(kind, [1 << bit] * _WORD)
            total = builder.add(total, builder.select(is_set, values, ir.Constant(kind, None)))
        builder.store(total, pointer, align=2)
        return context.get_dummy_value()

    return types.void(counts, types.intp, planes_HW, types.intp), generate


def _vector(width: int) -> ir.VectorType:
    return ir.VectorType(_I64, width)


def _bytes(width: int) -> ir.VectorType:
    return ir.VectorType(ir.IntType(8), width)


def _ones(builder: ir.IRBuilder, members: Any) -> Any:
    """How many bits each lane has."""
    return builder.call(_instruction(builder, "ctpop", members.type, members.type), [members])


def _total(builder: ir.IRBuilder, sums: Any) -> Any:
    return builder.call(_instruction(builder, "vector.reduce.add", _I64, sums.type), [sums])


def _instruction(builder: ir.IRBuilder, name: str, result: ir.Type, vector: ir.VectorType) -> Any:
    """One of LLVM's own functions, which llvmlite does not have for vectors."""
    kind = ir.FunctionType(result, [vector])
    full_name = f"llvm.{name}.v{vector.count}i64"
    return cgutils.get_or_insert_function(builder.module, kind, full_name)


def _row(
    context: Any, builder: ir.IRBuilder, kind: Any, arguments: Any, width: int, rows: int = 1
) -> Any:
    array = context.make_array(kind)(context, builder, arguments[0])
    start = builder.mul(arguments[1], ir.Constant(_I64, width))
    return builder.bitcast(builder.gep(array.data, [start]), _vector(rows * width).as_pointer())
