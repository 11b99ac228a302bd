"""Selections of a block of tokens in the order of their experts, and idle runs from these lists.

Sorting costs a counter and a store for each selection; all else goes through each expert's list,
many entries at a time. An entry is the token's number in the block. Every visit of a document
begins a new stretch of numbers, so far from the one before that no difference across it looks like
a gap.

Shape suffixes: T tokens of a part, K slots, N experts of a layer, M all ids that the type holds,
C clusters, W windows, H bins, L selections of a block in the order of their experts.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.kernels.compiled.jit import compile_, log2_bin
from moe_probe.analysis.kernels.compiled.planes import BLOCK, GROUP
from moe_probe.analysis.kernels.compiled.windows import add_run, shortest_of

STEP = 2 * BLOCK
"""From the numbers of one visit to those of the next."""
_NO_GAP = (1 << 16) - 1
_CHUNK = 8192
_BINS = BLOCK.bit_length()


@compile_
def count_selections(counts_KM, ids_TK, start, stop, slots):
    for t in range(start, stop):
        for k in range(len(slots)):
            # A row per slot: one counter that all slots add to would be waited for.
            counts_KM[k, ids_TK[t, k]] += np.uint32(1)


@compile_
def reserve_lists(marks, place_L, counts_KM, slots_KN):
    """Say where each list begins, and end it with numbers of a token without experts.

    Returns the number of selections that are of an expert.
    """
    begin_M, number_M, end_M, seen_M, visited_M = marks
    begin, selections = 1, np.int64(0)
    for e in range(len(begin_M)):
        number = np.int64(0)
        for k in range(len(counts_KM)):
            number += np.int64(counts_KM[k, e])
            if e < slots_KN.shape[1]:
                slots_KN[k, e] += counts_KM[k, e]
                selections += np.int64(counts_KM[k, e])
        begin_M[e], end_M[e], seen_M[e], visited_M[e] = begin, begin, begin, begin
        number_M[e] = number
        stop = begin + -(-number // GROUP) * GROUP
        for i in range(begin + number, stop):
            place_L[i] = BLOCK
        begin = stop
    return selections


@compile_
def place_selections(place_L, end_M, ids_TK, rows, number, slots):
    """Append tokens, numbered from `number` on, to the lists of their experts."""
    for t in range(rows[0], rows[1]):
        place = np.int32(number + t - rows[0])
        for k in range(len(slots)):
            e = ids_TK[t, k]
            end = end_M[e]
            place_L[end] = place
            end_M[e] = end + 1


@compile_
def close_visit(gaps, cluster, numbers, place_L, visited_M, end_M):
    """Note each expert's first and last selection in some tokens of a document.

    `numbers` are that of the first token and how many there are.
    """
    first_CN, after_CN, next_C = gaps[:3]
    first_N, after_N, shift = first_CN[cluster], after_CN[cluster], next_C[cluster] - numbers[0]
    if next_C[cluster] == 0:
        # Without branches, of which the processor would guess many wrong.
        for e in range(len(first_N)):
            low, high = visited_M[e], end_M[e]
            first, after = place_L[low] + shift, place_L[high - 1] + shift + 1
            first_N[e] = first if high > low else 0
            after_N[e] = after if high > low else 0
    else:
        for e in range(len(first_N)):
            low, high = visited_M[e], end_M[e]
            if high > low:
                first = place_L[low] + shift
                if after_N[e] == 0:
                    first_N[e] = first
                else:
                    _add_gap(gaps, e, first - np.int64(after_N[e]))
                after_N[e] = place_L[high - 1] + shift + 1
    next_C[cluster] += numbers[1]


@compile_
def _add_gap(gaps, e, gap):
    square_sum_N, longest_N, windows_W3N, histogram_H, window_W = gaps[3:]
    square_sum_N[e] += (gap + 1) * (gap + 1)
    longest_N[e] = max(longest_N[e], gap)
    histogram_H[log2_bin(gap)] += 1
    add_run(windows_W3N, window_W, e, gap)


@compile_
def add_gaps(gaps, gap_L, place_L, begin_M, number_M):
    """Add the runs between two neighbours of a list, unless a visit ends between them."""
    square_sum_N, longest_N, windows_W3N, histogram_H, window_W = gaps[3:]
    shortest = shortest_of(window_W)
    used = 0
    for e in range(len(longest_N)):
        begin, number = begin_M[e], number_M[e]
        own_L = gap_L[used : used + max(number - 1, 0)]
        used += len(own_L)
        square, most = _difference(own_L, place_L[begin : begin + number])
        square_sum_N[e] += square
        longest_N[e] = max(longest_N[e], np.int64(most) - 1)
        if np.int64(most) > shortest:
            for gap in own_L:
                if gap != _NO_GAP:
                    add_run(windows_W3N, window_W, e, np.int64(gap))
    _count_octaves(histogram_H, gap_L[:used])


@compile_
def _difference(gap_L, place_L):
    """Write the gaps; return the sum of squares and the largest of inter-arrival times.

    Those of a block sum to its length at most, and their squares to 2^26.
    """
    square, most = np.uint32(0), np.uint32(0)
    for i in range(len(gap_L)):
        arrival = np.uint32(place_L[i + 1] - place_L[i])
        inside = arrival if arrival <= np.uint32(BLOCK) else np.uint32(0)
        square = np.uint32(square + np.uint32(inside * inside))
        most = max(most, inside)
        gap_L[i] = np.uint16(inside - np.uint32(1))
    return square, most


@compile_
def _count_octaves(histogram_H, gap_L):
    """Count gaps by the powers of two that they reach; the nearest cache holds some at a time."""
    for begin in range(0, len(gap_L), _CHUNK):
        some_L = gap_L[begin : begin + _CHUNK]
        more = len(some_L)
        for h in range(_BINS):
            number = np.uint16(0)
            for i in range(len(some_L)):
                number = np.uint16(number + np.uint16(some_L[i] >= np.uint16(1 << h)))
            histogram_H[h] += more - np.int64(number)
            more = np.int64(number)
