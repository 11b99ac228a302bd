"""One pass that fills all tables of rows that count once, a block of tokens at a time.

Shape suffixes: T tokens of a part, K slots, Q pieces cut into blocks, G rows of a table, N experts
of a layer, M all ids that the type holds, C clusters, W 64-bit words of a set, X lags, L selections
of a block in the order of their experts, B tokens of a block behind some earlier ones.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.kernels.compiled.jit import compile_
from moe_probe.analysis.kernels.compiled.lanes import empty_set, sum_lanes
from moe_probe.analysis.kernels.compiled.lists import (
    STEP,
    add_gaps,
    close_visit,
    place_selections,
    reserve_lists,
)
from moe_probe.analysis.kernels.compiled.planes import BLOCK, add_pairs, flush
from moe_probe.analysis.kernels.compiled.sets import (
    add_overlaps,
    measure_sets,
    take_in,
)

# Tokens after which 16-bit counters may overflow.
_FLUSH = (1 << 16) - 1


@compile_
def fill_blocks(tables, ids_TK, spans, work, history, slots, zeros, is_apart_Q):
    """Add the tokens of spans, which are pieces cut at the ends of blocks.

    Tables without rows are not wanted. `slots` and `zeros` are tuples of zeros, one for each slot
    and for each word of a set. Spans are marked in `is_apart_Q` whose pairs and overlaps were not
    added, since a token of theirs or shortly before them names an expert twice.
    """
    slots_KN, pairs_NN, gaps = tables[2], tables[3], tables[5]
    start_Q, stop_Q = spans[0], spans[1]
    counts_KM, marks, place_L, octaves, sets, _, scratch_MM = work
    # Not the literal 0, for which the loops would be compiled once more.
    q, used, is_odd = np.int64(0), 0, False
    while q < len(start_Q):
        _clear(counts_KM)
        stop, tokens, sums = q, 0, empty_set(zeros)
        while stop < len(start_Q) and tokens < BLOCK:
            rows = start_Q[stop], stop_Q[stop]
            at = history + tokens
            sums = take_in(counts_KM, sets, at, ids_TK, rows, slots_KN.shape[1], slots, zeros, sums)
            tokens += rows[1] - rows[0]
            stop += 1
        selections = reserve_lists(marks, place_L, counts_KM, slots_KN)
        was_odd, is_odd = is_odd, sum_lanes(sums) < selections
        is_apart = is_odd or (was_odd and history > 0)
        is_apart_Q[q:stop] = is_apart
        is_full = selections == tokens * len(slots)
        measure_sets(sets, history, tokens, is_full, slots, zeros)
        _fill_lists(tables, work, history, ids_TK, spans, q, stop, is_apart, slots, zeros)
        if len(gaps[0]):
            add_gaps(gaps, octaves, place_L, marks[0], marks[1])
        if len(pairs_NN) and not is_apart:
            if used + tokens > _FLUSH:
                flush(pairs_NN, scratch_MM)
                used = 0
            used += tokens
            add_pairs(scratch_MM, place_L, marks[0], marks[1], sets[0][history:], zeros)
        _keep(sets, tokens, history)
        q = stop
    flush(pairs_NN, scratch_MM)


@compile_
def _fill_lists(tables, work, history, ids_TK, spans, begin_q, end_q, is_apart, slots, zeros):
    """Go through a block's tokens in order: lists, and what changes from span to span."""
    counts_GN, counts_CN, _, _, overlaps, gaps = tables
    start_Q, stop_Q, row_Q, cluster_Q, group_Q, run_Q = spans
    _, marks, place_L, _, sets, common_L, _ = work
    _, _, end_M, seen_M, visited_M = marks
    place, begin, visit = 0, 0, 0
    for q in range(begin_q, end_q):
        rows, at = (start_Q[q], stop_Q[q]), history + place
        place_selections(place_L, end_M, ids_TK, rows, visit * STEP + place, slots)
        if len(counts_GN):
            _count_span(counts_GN[row_Q[q]], seen_M, end_M, ids_TK, rows, slots)
        if not is_apart:
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
