"""Pairs by bit planes: for each expert, how often each other one is in the sets of its tokens.

The sets of an expert's tokens are added up as columns of bits, 64 experts a lane, by full adders:
two logical instructions add a token for all other experts. Only the totals of up to 240 tokens
become counters.

Source: Harley's counter of bits, in Muła, Kurz and Lemire (2018).

Shape suffixes: N experts of a layer, M the same in whole words, or all ids that the type holds,
L selections of a block in the order of their experts, W 64-bit words of a set, H bits of a count,
B tokens of a block behind some earlier ones.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.kernels.compiled.jit import inline_, inner_
from moe_probe.analysis.kernels.compiled.lanes import (
    PLANES,
    add_planes,
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
_SEGMENT = ((1 << PLANES) - 1) // GROUP * GROUP
"""Entries that the planes can count."""
_NUMBER = 2 * BLOCK - 1
"""The bits of an entry that say which token of the block it is."""


@inner_
def add_pairs(scratch, place_L, begin_M, number_M, sets_BW, zeros):
    """Add, for every expert, the sets of the tokens in its list to its row of 16-bit counters.

    `scratch` are the counters and planes to work in. A row without members follows that of a
    block's last token.
    """
    scratch_MM, planes_HW = scratch
    counts, width = scratch_MM.reshape(-1), scratch_MM.shape[1]
    store_set(sets_BW, BLOCK, empty_set(zeros))
    for e in range(len(scratch_MM)):
        begin = np.int64(begin_M[e])
        stop = begin + np.int64(number_M[e])
        add_rows(counts, e * width, planes_HW, place_L, begin, stop, sets_BW, zeros)


@inline_
def add_rows(counts, start, planes_HW, place_L, begin, stop, sets_BW, zeros):
    """Add the rows of sets that a stretch of a list names to 16-bit counters, one for each bit.

    The list goes on with rows without members up to a multiple of `GROUP` entries. `planes_HW` is
    for work.
    """
    for first in range(begin, stop, _SEGMENT):
        _add_sets(planes_HW, place_L, first, min(first + _SEGMENT, stop), sets_BW, zeros)
        for w in range(len(zeros)):
            add_planes(counts, np.intp(start + 64 * w), planes_HW, np.intp(w))


@inline_
def _add_sets(planes_HW, place_L, begin, stop, sets_BW, zeros):
    none = empty_set(zeros)
    p0, p1, p2, p3, p4, p5, p6, p7 = none, none, none, none, none, none, none, none
    for i in range(begin, stop, GROUP):
        p0, p1, p2, a = _add_eight(place_L, i, sets_BW, zeros, p0, p1, p2)
        p0, p1, p2, b = _add_eight(place_L, i + 8, sets_BW, zeros, p0, p1, p2)
        p3, a = sum_bit(p3, a, b), carry_bit(p3, a, b)
        p4, a = sum_bit(p4, a, none), carry_bit(p4, a, none)
        p5, a = sum_bit(p5, a, none), carry_bit(p5, a, none)
        p6, a = sum_bit(p6, a, none), carry_bit(p6, a, none)
        p7 = sum_bit(p7, a, none)
    store_set(planes_HW, 0, p0)
    store_set(planes_HW, 1, p1)
    store_set(planes_HW, 2, p2)
    store_set(planes_HW, 3, p3)
    store_set(planes_HW, 4, p4)
    store_set(planes_HW, 5, p5)
    store_set(planes_HW, 6, p6)
    store_set(planes_HW, 7, p7)


@inline_
def _add_eight(place_L, i, sets_BW, zeros, p0, p1, p2):
    """Add eight sets to the three low planes; return them and the carry."""
    p0, p1, a = _add_four(place_L, i, sets_BW, zeros, p0, p1)
    p0, p1, b = _add_four(place_L, i + 4, sets_BW, zeros, p0, p1)
    return p0, p1, sum_bit(p2, a, b), carry_bit(p2, a, b)


@inline_
def _add_four(place_L, i, sets_BW, zeros, p0, p1):
    """Add four sets to the two lowest planes; return them and the carry."""
    s0, s1 = _load(place_L, i, sets_BW, zeros), _load(place_L, i + 1, sets_BW, zeros)
    a, p0 = carry_bit(p0, s0, s1), sum_bit(p0, s0, s1)
    s0, s1 = _load(place_L, i + 2, sets_BW, zeros), _load(place_L, i + 3, sets_BW, zeros)
    b, p0 = carry_bit(p0, s0, s1), sum_bit(p0, s0, s1)
    return p0, sum_bit(p1, a, b), carry_bit(p1, a, b)


@inline_
def _load(place_L, i, sets_BW, zeros):
    return load_set(sets_BW, np.int64(place_L[np.uintp(i)] & _NUMBER), zeros)


@inner_
def flush(pairs_NN, scratch_MM):
    """Add the counters to the table, but those of an expert with itself, and clear them."""
    for a in range(len(pairs_NN)):
        for b in range(len(pairs_NN)):
            if a != b:
                pairs_NN[a, b] += scratch_MM[a, b]
            scratch_MM[a, b] = 0
