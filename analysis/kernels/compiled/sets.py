"""The sets of a block's tokens, and what neighbours share.

Shape suffixes: T tokens of a part, Q pieces cut into blocks, K slots, N experts of a layer, M all
ids that the type holds, B tokens of a block behind some earlier ones, W 64-bit words of a set, S
groups, X lags, L tokens that are compared.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.kernels.compiled.jit import inner_
from moe_probe.analysis.kernels.compiled.lanes import (
    EIGHT,
    add_members,
    common_members,
    empty_set,
    load_set,
    store_common,
    store_set,
    sum_lanes,
    union,
)

OTHERS = 8
"""From the bit that says that a token has a pair to the one that says that their texts differ."""


def lone_sets(lone_MW: np.ndarray, num_experts: int) -> np.ndarray:
    """Fill zeros with the set of each expert alone; ids of no expert have an empty one."""
    expert_N = np.arange(num_experts)
    lone_MW[expert_N, expert_N >> 6] = np.uint64(1) << (expert_N & 63).astype(np.uint64)
    return lone_MW


@inner_
def take_in(counts_KM, members, at, ids_TK, start_Q, stop_Q, slots, zeros):
    """Count tokens' selections by slot; write their sets and first ids, from row `at` on.

    Returns how many members the sets of all tokens have.
    """
    sets_BW, first_B, _, lone_MW = members
    sums = empty_set(zeros)
    for q in range(len(start_Q)):
        # Slices, whose indices nobody asks if they count from the end: loops with spare registers.
        some_TK = ids_TK[start_Q[q] : stop_Q[q]]
        for t in range(len(some_TK)):
            own = empty_set(zeros)
            for k in range(len(slots)):
                e = some_TK[t, k]
                # A row per slot: one counter that all slots add to would be waited for.
                counts_KM[k, e] += np.uint32(1)
                # Looked up: setting bit by bit would wait for itself.
                own = union(own, load_set(lone_MW, np.int64(e), zeros))
            store_set(sets_BW, at + t, own)
            sums = add_members(sums, own)
        some_B = first_B[at : at + len(some_TK)]
        for t in range(len(some_TK)):
            some_B[t] = some_TK[t, 0]
        at += len(some_TK)
    return sum_lanes(sums)


@inner_
def measure_sets(members, begin, tokens, is_full, slots, zeros):
    """Note the sizes of a block's sets; `is_full` says that every id is one of an expert."""
    sets_BW, _, size_B, _ = members
    for b in range(begin, begin + tokens):
        size_B[b] = len(slots)
    if not is_full:
        for b in range(begin, begin + tokens):
            own = load_set(sets_BW, b, zeros)
            size_B[b] = common_members(own, own)


@inner_
def add_overlaps(overlaps, group, members, at, pairs_L, num_experts, common_L, zeros):
    """Compare tokens with those some lags before; the first one's set is in row `at`.

    `pairs_L` says with which, see `workspace`. Runs of tokens are as long as a group's, whatever
    documents they are of: short ones would not fill the instructions.
    """
    sums_SX5, other_SX5, lag_X = overlaps
    sets_BW, first_B, size_B, _ = members
    number, beyond = len(pairs_L), np.uint16(num_experts)
    for x in range(len(lag_X)):
        before = at - lag_X[x]
        for i in range(0, number, EIGHT):
            store_common(common_L, np.intp(i), sets_BW, at + i, before + i, zeros)
        common = common_L[:number]
        firsts = first_B[at : at + number], first_B[before : before + number]
        sizes = size_B[at : at + number], size_B[before : before + number]
        _add(sums_SX5[group, x], pairs_L, np.uint16(x), common, firsts, sizes, beyond)
        if len(other_SX5):
            bit = np.uint16(OTHERS + x)
            _add(other_SX5[group, x], pairs_L, bit, common, firsts, sizes, beyond)


@inner_
def _add(sums_5, pairs_L, bit, common_L, firsts, sizes, beyond):
    later_first_L, earlier_first_L = firsts
    later_size_L, earlier_size_L = sizes
    # Numbers as small as they can be: so more of them fit an instruction.
    number, touching, leading, equal = np.uint16(0), np.uint16(0), np.uint16(0), np.uint16(0)
    total = np.uint32(0)
    for i in range(len(common_L)):
        is_pair, common = np.uint16((pairs_L[i] >> bit) & np.uint16(1)), common_L[i]
        most = max(later_size_L[i], earlier_size_L[i])
        leads = (later_first_L[i] == earlier_first_L[i]) & (later_first_L[i] < beyond)
        number = np.uint16(number + is_pair)
        total = np.uint32(total + np.uint32(is_pair) * np.uint32(common))
        touching = np.uint16(touching + (is_pair & np.uint16(common > 0)))
        leading = np.uint16(leading + (is_pair & np.uint16(leads)))
        equal = np.uint16(equal + (is_pair & np.uint16(common == most)))
    sums_5[0] += np.int64(number)
    sums_5[1] += np.int64(total)
    sums_5[2] += np.int64(touching)
    sums_5[3] += np.int64(leading)
    sums_5[4] += np.int64(equal)
