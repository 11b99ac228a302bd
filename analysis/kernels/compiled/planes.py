"""Pairs by bit planes: for each expert, how often each other one is in the sets of its tokens.

The sets of an expert's tokens are added up as columns of bits, 64 experts a lane, by full adders:
two logical instructions add a token for all other experts. Only the totals, one for each block of
tokens and expert, become counters.

Source: Harley's counter of bits, in Muła, Kurz and Lemire (2018).

Shape suffixes: N experts of a layer, M the same in whole words, or all ids that the type holds,
L selections of a block in the order of their experts, W 64-bit words of a set, H bits of a count,
B tokens of a block behind some earlier ones.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.kernels.compiled.jit import compile_, inline_
from moe_probe.analysis.kernels.compiled.lanes import (
    add_where,
    carry_bit,
    empty_set,
    load_set,
    store_set,
    sum_bit,
)

BLOCK = 8192
"""Tokens of a block: its lists and sets stay in the second cache."""
GROUP = 16
"""Entries of a list that are added at a time: lists end with rows of no members up to that."""
_BITS = BLOCK.bit_length()
_NUMBER = 2 * BLOCK - 1
"""The bits of an entry that say which token of the block it is."""


@compile_
def add_pairs(scratch_MM, place_L, begin_M, number_M, sets_BW, first, zeros):
    """Add, for every expert, the sets of the tokens in its list to its row of 16-bit counters.

    The set of a block's first token is row `first`; a row without members follows its last one.
    """
    planes_HW = np.empty((_BITS, len(zeros)), np.uint64)
    counts = scratch_MM.reshape(-1)
    width = scratch_MM.shape[1]
    store_set(sets_BW, len(sets_BW) - 1, empty_set(zeros))
    for e in range(len(scratch_MM)):
        if number_M[e] == 0:
            continue
        _add_sets(planes_HW, place_L, begin_M[e], number_M[e], sets_BW, first, zeros)
        number, bit = number_M[e], 0
        while number > 0:
            for w in range(len(zeros)):
                start = np.intp(e * width + 64 * w)
                add_where(counts, start, planes_HW[bit, w], np.uint16(1 << bit))
            number >>= 1
            bit += 1


@compile_
def _add_sets(planes_HW, place_L, begin, number, sets_BW, first, zeros):
    none = empty_set(zeros)
    p0, p1, p2, p3, p4, p5, p6 = none, none, none, none, none, none, none
    p7, p8, p9, p10, p11, p12, p13 = none, none, none, none, none, none, none
    for i in range(begin, begin + number, GROUP):
        p0, p1, p2, a = _add_eight(place_L, i, sets_BW, first, zeros, p0, p1, p2)
        p0, p1, p2, b = _add_eight(place_L, i + 8, sets_BW, first, zeros, p0, p1, p2)
        p3, a = sum_bit(p3, a, b), carry_bit(p3, a, b)
        p4, a = sum_bit(p4, a, none), carry_bit(p4, a, none)
        p5, a = sum_bit(p5, a, none), carry_bit(p5, a, none)
        p6, a = sum_bit(p6, a, none), carry_bit(p6, a, none)
        p7, a = sum_bit(p7, a, none), carry_bit(p7, a, none)
        p8, a = sum_bit(p8, a, none), carry_bit(p8, a, none)
        p9, a = sum_bit(p9, a, none), carry_bit(p9, a, none)
        p10, a = sum_bit(p10, a, none), carry_bit(p10, a, none)
        p11, a = sum_bit(p11, a, none), carry_bit(p11, a, none)
        p12, a = sum_bit(p12, a, none), carry_bit(p12, a, none)
        p13 = sum_bit(p13, a, none)
    store_set(planes_HW, 0, p0)
    store_set(planes_HW, 1, p1)
    store_set(planes_HW, 2, p2)
    store_set(planes_HW, 3, p3)
    store_set(planes_HW, 4, p4)
    store_set(planes_HW, 5, p5)
    store_set(planes_HW, 6, p6)
    store_set(planes_HW, 7, p7)
    store_set(planes_HW, 8, p8)
    store_set(planes_HW, 9, p9)
    store_set(planes_HW, 10, p10)
    store_set(planes_HW, 11, p11)
    store_set(planes_HW, 12, p12)
    store_set(planes_HW, 13, p13)


@inline_
def _add_eight(place_L, i, sets_BW, first, zeros, p0, p1, p2):
    """Add eight sets to the three low planes; return them and the carry."""
    p0, p1, a = _add_four(place_L, i, sets_BW, first, zeros, p0, p1)
    p0, p1, b = _add_four(place_L, i + 4, sets_BW, first, zeros, p0, p1)
    return p0, p1, sum_bit(p2, a, b), carry_bit(p2, a, b)


@inline_
def _add_four(place_L, i, sets_BW, first, zeros, p0, p1):
    """Add four sets to the two lowest planes; return them and the carry."""
    s0 = load_set(sets_BW, first + (place_L[i] & _NUMBER), zeros)
    s1 = load_set(sets_BW, first + (place_L[i + 1] & _NUMBER), zeros)
    a, p0 = carry_bit(p0, s0, s1), sum_bit(p0, s0, s1)
    s0 = load_set(sets_BW, first + (place_L[i + 2] & _NUMBER), zeros)
    s1 = load_set(sets_BW, first + (place_L[i + 3] & _NUMBER), zeros)
    b, p0 = carry_bit(p0, s0, s1), sum_bit(p0, s0, s1)
    return p0, sum_bit(p1, a, b), carry_bit(p1, a, b)


@compile_
def flush(pairs_NN, scratch_MM):
    """Add the counters to the table, but those of an expert with itself, and clear them."""
    for a in range(len(pairs_NN)):
        for b in range(len(pairs_NN)):
            if a != b:
                pairs_NN[a, b] += scratch_MM[a, b]
            scratch_MM[a, b] = 0
