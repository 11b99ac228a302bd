"""One pass that fills all tables of rows that count once, a block of tokens at a time.

Shape suffixes: T tokens of a part, K slots, Q pieces cut into blocks, G rows of a table, N experts
of a layer, M all ids that the type holds, C clusters, W 64-bit words of a set, X lags, L selections
of a block in the order of their experts, B tokens of a block behind some earlier ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_probe.analysis.kernels.compiled.jit import compile_
from moe_probe.analysis.kernels.compiled.lists import (
    STEP,
    add_gaps,
    close_visit,
    count_selections,
    place_selections,
    reserve_lists,
)
from moe_probe.analysis.kernels.compiled.planes import BLOCK, GROUP, add_pairs, flush
from moe_probe.analysis.kernels.compiled.sets import add_overlaps, build_sets, lone_sets

# Tokens after which 16-bit counters may overflow.
_FLUSH = (1 << 16) - 1


def workspace(
    num_experts: int, slots: int, width: int, words: int, history: int, *, of_pairs: bool
) -> tuple[Any, ...]:
    """Arrays that `fill_blocks` works in; made here, since compiled code for it takes long to make.

    Args:
        num_experts: N.
        slots: K.
        width: M.
        words: W.
        history: Tokens before a block that its tokens are compared with.
        of_pairs: Whether pairs are counted.
    """
    counts_KM = np.empty((slots, width), np.uint32)
    marks = tuple(np.empty(width, np.int64) for _ in range(5))
    place_L = np.zeros(BLOCK * slots + GROUP * width + 2, np.int32)
    gap_L = np.empty(BLOCK * slots, np.uint16)
    sets_BW = np.zeros((history + BLOCK + 1, words), np.uint64)
    first_B, size_B = np.zeros(history + BLOCK, np.int32), np.zeros(history + BLOCK, np.uint16)
    common_L = np.empty(BLOCK, np.uint16)
    scratch_MM = np.zeros((num_experts if of_pairs else 0, 64 * words), np.uint16)
    sets = sets_BW, first_B, size_B, lone_sets(num_experts, width, words)
    return counts_KM, marks, place_L, gap_L, sets, common_L, scratch_MM


@compile_
def fill_blocks(tables, ids_TK, spans, work, history, slots, zeros):
    """Add the tokens of spans, which are pieces cut at the ends of blocks.

    Tables without rows are not wanted. `slots` and `zeros` are tuples of zeros, one for each slot
    and for each word of a set.
    """
    slots_KN, pairs_NN, gaps = tables[2], tables[3], tables[5]
    start_Q, stop_Q = spans[0], spans[1]
    counts_KM, marks, place_L, gap_L, sets, _, scratch_MM = work
    # Not the literal 0, for which the loops would be compiled once more.
    q, used = np.int64(0), 0
    while q < len(start_Q):
        _clear(counts_KM)
        stop, tokens = q, 0
        while stop < len(start_Q) and tokens < BLOCK:
            count_selections(counts_KM, ids_TK, start_Q[stop], stop_Q[stop], slots)
            tokens += stop_Q[stop] - start_Q[stop]
            stop += 1
        is_full = reserve_lists(marks, place_L, counts_KM, slots_KN) == tokens * len(slots)
        _fill_lists(tables, work, history, ids_TK, spans, q, stop, is_full, slots, zeros)
        if len(gaps[0]):
            add_gaps(gaps, gap_L, place_L, marks[0], marks[1])
        if len(pairs_NN):
            if used + tokens > _FLUSH:
                flush(pairs_NN, scratch_MM)
                used = 0
            used += tokens
            add_pairs(scratch_MM, place_L, marks[0], marks[1], sets[0], history, zeros)
        _keep(sets, tokens, history)
        q = stop
    flush(pairs_NN, scratch_MM)


@compile_
def _fill_lists(tables, work, history, ids_TK, spans, begin_q, end_q, is_full, slots, zeros):
    """Go through a block's tokens in order: lists and sets, and what changes from span to span."""
    counts_GN, counts_CN, slots_KN, pairs_NN, overlaps, gaps = tables
    start_Q, stop_Q, row_Q, cluster_Q, group_Q, run_Q = spans
    _, marks, place_L, _, sets, common_L, _ = work
    _, _, end_M, seen_M, visited_M = marks
    num_experts = slots_KN.shape[1]
    place, begin, visit = 0, 0, 0
    for q in range(begin_q, end_q):
        rows, at = (start_Q[q], stop_Q[q]), history + place
        place_selections(place_L, end_M, ids_TK, rows, visit * STEP + place, slots)
        if len(counts_GN):
            _count_span(counts_GN[row_Q[q]], seen_M, end_M, ids_TK, rows, slots)
        if len(pairs_NN) or len(overlaps[2]):
            build_sets(sets, at, ids_TK, rows, num_experts, is_full, slots, zeros)
            add_overlaps(overlaps, group_Q[q], run_Q[q], sets, at, rows, common_L, zeros)
        place += rows[1] - rows[0]
        if q + 1 == end_q or cluster_Q[q + 1] != cluster_Q[q]:
            if len(gaps[0]):
                numbers = visit * STEP + begin, place - begin
                close_visit(gaps, cluster_Q[q], numbers, place_L, visited_M, end_M)
            if len(counts_CN):
                _add_growth(counts_CN[cluster_Q[q]], visited_M, end_M)
            _copy(visited_M, end_M)
            visit, begin = visit + 1, place


@compile_
def _count_span(row_N, seen_M, end_M, ids_TK, rows, slots):
    """Add what the lists have grown by, or, where that is little, the selections themselves."""
    if 4 * (rows[1] - rows[0]) * len(slots) < len(row_N):
        for t in range(rows[0], rows[1]):
            for k in range(ids_TK.shape[1]):
                e = ids_TK[t, k]
                seen_M[e] += 1
                if e < len(row_N):
                    row_N[e] += 1
    else:
        _add_growth(row_N, seen_M, end_M)
        _copy(seen_M, end_M)


@compile_
def _add_growth(row_N, before_M, after_M):
    for e in range(len(row_N)):
        row_N[e] += after_M[e] - before_M[e]


@compile_
def _copy(target_M, source_M):
    for e in range(len(target_M)):
        target_M[e] = source_M[e]


@compile_
def _clear(counts_KM):
    for k in range(counts_KM.shape[0]):
        for e in range(counts_KM.shape[1]):
            counts_KM[k, e] = 0


@compile_
def _keep(sets, tokens, history):
    """Put the last tokens of a block before those of the next one."""
    sets_BW, first_B, size_B, _ = sets
    for b in range(history):
        first_B[b], size_B[b] = first_B[b + tokens], size_B[b + tokens]
        for w in range(sets_BW.shape[1]):
            sets_BW[b, w] = sets_BW[b + tokens, w]
