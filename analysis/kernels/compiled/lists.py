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

from moe_probe.analysis.kernels.compiled.arrivals import (
    SIXTEEN,
    add_squares,
    arrivals,
    longer,
    longest_of,
    no_times,
    store_octaves,
    sum_of,
)
from moe_probe.analysis.kernels.compiled.jit import inner_, log2_bin
from moe_probe.analysis.kernels.compiled.planes import BLOCK, GROUP, add_rows
from moe_probe.analysis.kernels.compiled.windows import add_run, shortest_of

STEP = 2 * BLOCK
"""From the numbers of one visit to those of the next."""
_NOBODY = (1 << 30) + BLOCK
"""An entry that ends a list: of the token without experts, in a visit that never was."""
OCTAVES = 32
"""Octaves that are counted at a time, as many as have 512 bits."""
_BITS = 16
_BINS = BLOCK.bit_length()


@inner_
def reserve_lists(marks, place_L, counts_KM, slots_KN):
    """Say where each list begins, and end it with numbers of nobody, one at least.

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
        stop = begin + (number // GROUP + 1) * GROUP
        for i in range(begin + number, stop):
            place_L[i] = _NOBODY
        begin = stop
    return selections


@inner_
def place_selections(place_L, end_M, ids_TK, number, slots):
    """Append tokens, numbered from `number` on, to the lists of their experts."""
    for t in range(len(ids_TK)):
        place = np.int32(number + t)
        for k in range(len(slots)):
            e = ids_TK[t, k]
            end = np.int64(end_M[e])
            # Unsigned, for which nobody asks if it counts from the array's end.
            place_L[np.uintp(end)] = place
            end_M[e] = end + 1


@inner_
def close_visit(gaps, cluster, numbers, place_L, visited_M, end_M):
    """Note each expert's first and last selection in some tokens of a document.

    `numbers` are that of the first token and how many there are.
    """
    first_CN, after_CN, next_C = gaps[:3]
    first_N, after_N, shift = first_CN[cluster], after_CN[cluster], next_C[cluster] - numbers[0]
    if next_C[cluster] == 0:
        # Without branches, of which the processor would guess many wrong.
        for e in range(len(first_N)):
            low, high = np.int64(visited_M[e]), np.int64(end_M[e])
            first, after = place_L[low] + shift, place_L[high - 1] + shift + 1
            first_N[e] = first if high > low else 0
            after_N[e] = after if high > low else 0
    else:
        for e in range(len(first_N)):
            low, high = np.int64(visited_M[e]), np.int64(end_M[e])
            if high > low:
                first = place_L[low] + shift
                if after_N[e] == 0:
                    first_N[e] = first
                else:
                    _add_gap(gaps, e, first - np.int64(after_N[e]))
                after_N[e] = place_L[high - 1] + shift + 1
    next_C[cluster] += numbers[1]


@inner_
def _add_gap(gaps, e, gap):
    square_sum_N, longest_N, windows_W3N, histogram_H, window_W = gaps[3:]
    square_sum_N[e] += (gap + 1) * (gap + 1)
    longest_N[e] = max(longest_N[e], gap)
    histogram_H[log2_bin(gap)] += 1
    add_run(windows_W3N, window_W, e, gap)


@inner_
def add_gaps(gaps, octaves, place_L, begin_M, number_M):
    """Add the runs between two neighbours of a list, unless a visit ends between them."""
    square_sum_N, longest_N, windows_W3N, histogram_H, window_W = gaps[3:]
    shortest = shortest_of(window_W)
    used = np.int64(0)
    for e in range(len(longest_N)):
        begin = np.int64(begin_M[e])
        own_L = place_L[begin : begin + np.int64(number_M[e])]
        square, most, used = _difference(octaves[0], used, own_L)
        square_sum_N[e] += square
        longest_N[e] = max(longest_N[e], most - 1)
        if most > shortest:
            _add_runs(windows_W3N, window_W, e, own_L)
    _count_octaves(histogram_H, octaves, used)


@inner_
def _difference(octave_L, used, place_L):
    """Write the octaves of a list's runs, sixteen at a time, from `used` on.

    The list ends with entries of nobody behind `place_L`. Returns the sum of squares and the
    largest of inter-arrival times, and the end of what was written. The times of a block sum to its
    length at most, and their squares to 2^26.
    """
    squares, most = no_times(), no_times()
    for i in range(0, len(place_L) - 1, SIXTEEN):
        times = arrivals(place_L, i, np.int32(BLOCK))
        squares, most = add_squares(squares, times), longer(most, times)
        store_octaves(octave_L, used, times)
        used += SIXTEEN
    return sum_of(squares), longest_of(most), used


@inner_
def _add_runs(windows_W3N, window_W, e, place_L):
    for i in range(len(place_L) - 1):
        time = np.int64(place_L[i + 1]) - place_L[i]
        if 0 < time <= BLOCK:
            add_run(windows_W3N, window_W, e, time - 1)


@inner_
def _count_octaves(histogram_H, octaves, used):
    """Count the bits of octaves up to `used`: the columns of rows of 32 numbers, 16 bits each."""
    octave_L, octave_RW, row_R, column_M, planes_HW, zeros = octaves
    rows = -(-used // OCTAVES)
    stop = -(-rows // GROUP) * GROUP
    octave_L[used : stop * OCTAVES] = 0
    column_M[:] = 0
    add_rows(column_M, 0, planes_HW, row_R, 0, rows, octave_RW, zeros)
    for h in range(_BINS):
        for i in range(OCTAVES):
            histogram_H[h] += np.int64(column_M[_BITS * i + h])
