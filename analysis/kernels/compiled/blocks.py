"""One pass that fills all tables of rows that count once, a block of tokens at a time.

Shape suffixes: T tokens of a part, U those that count, K slots, Q pieces cut into blocks, G rows of
a table, N experts of a layer, M all ids that the type holds, C clusters, W 64-bit words of a set, X
lags, L selections of a block in the order of their experts, B tokens of a block behind some earlier
ones.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.kernels.compiled.jit import compile_, inner_
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
    slots_KN, pairs_NN, overlaps, gaps = tables[2:]
    start_Q, stop_Q = spans[0], spans[1]
    counts_KM, marks, place_L, octaves, sets, _, scratch = work
    # Not the literal 0, for which the loops would be compiled once more.
    q, done, used, is_odd = np.int64(0), np.int64(0), np.int64(0), False
    while q < len(start_Q):
        _clear(counts_KM)
        stop, tokens = q, np.int64(0)
        while stop < len(start_Q) and tokens < BLOCK:
            tokens += stop_Q[stop] - start_Q[stop]
            stop += 1
        spans_of = start_Q[q:stop], stop_Q[q:stop]
        members = take_in(counts_KM, sets, history, ids_TK, *spans_of, slots, zeros)
        selections = reserve_lists(marks, place_L, counts_KM, slots_KN)
        was_odd, is_odd = is_odd, members < selections
        is_apart = is_odd or (was_odd and history > 0)
        is_apart_Q[q:stop] = is_apart
        _fill_lists(tables, work, ids_TK, spans, q, stop, slots)
        if len(overlaps[2]):
            is_full = selections == tokens * len(slots)
            measure_sets(sets, history, tokens, is_full, slots, zeros)
            if not is_apart:
                _compare(tables, work, history, spans, q, stop, done, zeros)
        if len(gaps[0]):
            add_gaps(gaps, octaves, place_L, marks[0], marks[1])
        if len(pairs_NN) and not is_apart:
            if used + tokens > _FLUSH:
                flush(pairs_NN, scratch[0])
                used = 0
            used += tokens
            add_pairs(scratch, place_L, marks[0], marks[1], sets[0][history:], zeros)
        _keep(sets, tokens, history)
        q, done = stop, done + tokens
    flush(pairs_NN, scratch[0])


@inner_
def _fill_lists(tables, work, ids_TK, spans, begin_q, end_q, slots):
    """Go through a block's tokens in order: lists, and what changes from span to span."""
    counts_GN, counts_CN, gaps = tables[0], tables[1], tables[5]
    start_Q, stop_Q, row_Q, cluster_Q = spans[:4]
    marks, place_L = work[1], work[2]
    _, _, end_M, seen_M, visited_M = marks
    place, begin, visit = np.int64(0), np.int64(0), np.int64(0)
    for q in range(begin_q, end_q):
        some_TK = ids_TK[start_Q[q] : stop_Q[q]]
        place_selections(place_L, end_M, some_TK, visit * STEP + place, slots)
        if len(counts_GN):
            _count_span(counts_GN[row_Q[q]], seen_M, end_M, some_TK, slots)
        place += len(some_TK)
        if q + 1 == end_q or cluster_Q[q + 1] != cluster_Q[q]:
            if len(gaps[0]):
                numbers = visit * STEP + begin, place - begin
                close_visit(gaps, cluster_Q[q], numbers, place_L, visited_M, end_M)
            if len(counts_CN):
                _add_growth(counts_CN[cluster_Q[q]], visited_M, end_M)
            _copy(visited_M, end_M)
            visit, begin = visit + 1, place


@inner_
def _compare(tables, work, history, spans, begin_q, end_q, done, zeros):
    """Compare a block's tokens with earlier ones, those of a group at a time.

    `done` are the tokens of the blocks before.
    """
    start_Q, stop_Q, group_Q, pairs_U = spans[0], spans[1], spans[4], spans[6]
    overlaps, num_experts = tables[4], tables[2].shape[1]
    begin, place = np.int64(0), np.int64(0)
    for q in range(begin_q, end_q):
        place += stop_Q[q] - start_Q[q]
        if q + 1 == end_q or group_Q[q + 1] != group_Q[q]:
            some_U, at = pairs_U[done + begin : done + place], history + begin
            add_overlaps(overlaps, group_Q[q], work[4], at, some_U, num_experts, work[5], zeros)
            begin = place


@inner_
def _count_span(row_N, seen_M, end_M, ids_TK, slots):
    """Add what the lists have grown by, or, where that is little, the selections themselves."""
    if 4 * len(ids_TK) * len(slots) < len(row_N):
        for t in range(len(ids_TK)):
            for k in range(len(slots)):
                e = ids_TK[t, k]
                seen_M[e] += np.uint32(1)
                if e < len(row_N):
                    row_N[e] += 1
    else:
        _add_growth(row_N, seen_M, end_M)
        _copy(seen_M, end_M)


@inner_
def _add_growth(row_N, before_M, after_M):
    for e in range(len(row_N)):
        row_N[e] += np.uint32(after_M[e] - before_M[e])


@inner_
def _copy(target_M, source_M):
    for e in range(len(target_M)):
        target_M[e] = source_M[e]


@inner_
def _clear(counts_KM):
    for k in range(counts_KM.shape[0]):
        for e in range(counts_KM.shape[1]):
            counts_KM[k, e] = 0


@inner_
def _keep(sets, tokens, history):
    """Put the last tokens of a block before those of the next one."""
    sets_BW, first_B, size_B, _ = sets
    for b in range(history):
        first_B[b], size_B[b] = first_B[b + tokens], size_B[b + tokens]
        for w in range(sets_BW.shape[1]):
            sets_BW[b, w] = sets_BW[b + tokens, w]
