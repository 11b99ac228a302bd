"""The sets of a block's tokens, and what neighbours share.

Shape suffixes: T tokens of a part, K slots, N experts of a layer, M all ids that the type holds,
B tokens of a block behind some earlier ones, W 64-bit words of a set, S groups, X lags, L tokens
that are compared.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.kernels.compiled.jit import compile_, inline_
from moe_probe.analysis.kernels.compiled.lanes import (
    add_members,
    common_members,
    empty_set,
    load_set,
    store_set,
    union,
)


def lone_sets(lone_MW: np.ndarray, num_experts: int) -> np.ndarray:
    """Fill zeros with the set of each expert alone; ids of no expert have an empty one."""
    expert_N = np.arange(num_experts)
    lone_MW[expert_N, expert_N >> 6] = np.uint64(1) << (expert_N & 63).astype(np.uint64)
    return lone_MW


@compile_
def take_in(counts_KM, members, at, ids_TK, rows, num_experts, slots, zeros, sums):
    """Count tokens' selections by slot; write their sets and first experts, -1 for an empty slot.

    `rows` are the first of the tokens and the one after the last, `at` is where the first one's set
    goes to. Returns `sums` with the members of the sets added.
    """
    sets_BW, first_B, _, lone_MW = members
    for t in range(rows[0], rows[1]):
        b, own = at + t - rows[0], empty_set(zeros)
        for k in range(len(slots)):
            e = ids_TK[t, k]
            # A row per slot: one counter that all slots add to would be waited for.
            counts_KM[k, e] += np.uint32(1)
            # Looked up: setting bit by bit would wait for itself.
            own = union(own, load_set(lone_MW, np.int64(e), zeros))
        store_set(sets_BW, b, own)
        first = np.int32(ids_TK[t, 0])
        first_B[b] = first if first < num_experts else np.int32(-1)
        sums = add_members(sums, own)
    return sums


@compile_
def measure_sets(members, begin, tokens, is_full, slots, zeros):
    """Note the sizes of a block's sets; `is_full` says that every id is one of an expert."""
    sets_BW, _, size_B, _ = members
    for b in range(begin, begin + tokens):
        size_B[b] = len(slots)
    if not is_full:
        for b in range(begin, begin + tokens):
            own = load_set(sets_BW, b, zeros)
            size_B[b] = common_members(own, own)


@compile_
def add_overlaps(overlaps, group, run, members, at, rows, common_L, zeros):
    """Compare tokens with those some lags before; of these, `run` are of the same document."""
    sets_BW, first_B, size_B, _ = members
    sums_SX5, other_SX5, lag_X, repeats_T = overlaps
    for x in range(len(lag_X)):
        lag = lag_X[x]
        skip = max(lag - run, 0)
        number = rows[1] - rows[0] - skip
        if number <= 0:
            continue
        later = at + skip
        for i in range(number):
            earlier_set = load_set(sets_BW, later + i - lag, zeros)
            common_L[i] = common_members(load_set(sets_BW, later + i, zeros), earlier_set)
        some_L = common_L[:number]
        firsts = first_B[later : later + number], first_B[later - lag : later - lag + number]
        sizes = size_B[later : later + number], size_B[later - lag : later - lag + number]
        _add(sums_SX5[group, x], some_L, firsts, sizes)
        if len(repeats_T):
            repeats_L = repeats_T[rows[0] + skip : rows[1]]
            _add_others(other_SX5[group, x], some_L, firsts, sizes, repeats_L, np.uint8(1 << x))


@compile_
def _add(sums_5, common_L, firsts, sizes):
    later_first_L, earlier_first_L = firsts
    later_size_L, earlier_size_L = sizes
    # Numbers as small as they can be: so more of them fit an instruction.
    total, touching, leading, equal = np.int32(0), np.int32(0), np.int32(0), np.int32(0)
    for i in range(len(common_L)):
        common = common_L[i]
        most = max(later_size_L[i], earlier_size_L[i])
        leads = (later_first_L[i] == earlier_first_L[i]) & (later_first_L[i] >= 0)
        total = np.int32(total + np.int32(common))
        touching = np.int32(touching + np.int32(common > 0))
        leading = np.int32(leading + np.int32(leads))
        equal = np.int32(equal + np.int32(common == most))
    _store(sums_5, len(common_L), total, touching, leading, equal)


@compile_
def _add_others(sums_5, common_L, firsts, sizes, repeats_L, bit):
    """The same of tokens whose text differs."""
    later_first_L, earlier_first_L = firsts
    later_size_L, earlier_size_L = sizes
    pairs, total, touching = np.int32(0), np.int32(0), np.int32(0)
    leading, equal = np.int32(0), np.int32(0)
    for i in range(len(common_L)):
        differs = (repeats_L[i] & bit) == 0
        common = common_L[i]
        most = max(later_size_L[i], earlier_size_L[i])
        leads = (later_first_L[i] == earlier_first_L[i]) & (later_first_L[i] >= 0)
        pairs = np.int32(pairs + np.int32(differs))
        total = np.int32(total + (np.int32(common) if differs else np.int32(0)))
        touching = np.int32(touching + np.int32(differs & (common > 0)))
        leading = np.int32(leading + np.int32(differs & leads))
        equal = np.int32(equal + np.int32(differs & (common == most)))
    _store(sums_5, pairs, total, touching, leading, equal)


@inline_
def _store(sums_5, pairs, total, touching, leading, equal):
    sums_5[0] += pairs
    sums_5[1] += total
    sums_5[2] += touching
    sums_5[3] += leading
    sums_5[4] += equal
