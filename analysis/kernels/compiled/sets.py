"""The sets of a block's tokens, and what neighbours share.

Shape suffixes: T tokens of a part, K slots, N experts of a layer, M all ids that the type holds,
B tokens of a block behind some earlier ones, W 64-bit words of a set, S groups, X lags, L tokens
that are compared.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.kernels.compiled.jit import compile_, inline_
from moe_probe.analysis.kernels.compiled.lanes import (
    common_members,
    empty_set,
    load_set,
    store_set,
    union,
)


def lone_sets(num_experts: int, width: int, words: int) -> np.ndarray:
    """Return for every id the set of this expert alone, empty for ids of no expert: [M, W]."""
    lone_MW, expert_N = np.zeros((width, words), np.uint64), np.arange(num_experts)
    lone_MW[expert_N, expert_N >> 6] = np.uint64(1) << (expert_N & 63).astype(np.uint64)
    return lone_MW


@compile_
def build_sets(members, at, ids_TK, rows, num_experts, is_full, slots, zeros):
    """Write sets, first experts and sizes of some tokens; a first one of -1 is an empty slot.

    `rows` are the first of the tokens and the one after the last, `at` is where the first goes to;
    `is_full` says that every id is one of an expert.
    """
    sets_BW, first_B, size_B, lone_MW = members
    for t in range(rows[0], rows[1]):
        b = at + t - rows[0]
        own = empty_set(zeros)
        for k in range(len(slots)):
            # Looked up: setting bit by bit would wait for itself.
            own = union(own, load_set(lone_MW, np.int64(ids_TK[t, k]), zeros))
        store_set(sets_BW, b, own)
        first = np.int64(ids_TK[t, 0])
        first_B[b] = first if first < num_experts else -1
        size_B[b] = len(slots) if is_full else common_members(own, own)


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
