"""Counts by row, slot, pair and flow, and rows that look like a fault.

The number of slots is a constant of every function, so that the loops over them unroll.

Shape suffixes: T tokens of a part, K slots, P pieces, G rows of a table, N experts of a layer,
C clusters, W windows, X lags, S groups, B batch sizes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from moe_probe.analysis.kernels.compiled.jit import compile_
from moe_probe.analysis.kernels.compiled.words import as_words, fit_words
from moe_probe.analysis.pieces import Pieces

# Rows after which 16-bit pair counts are added to the table, before they can overflow.
_FLUSH = (1 << 16) - 1


def count_rows(table_GN: np.ndarray, ids_TK: np.ndarray, pieces: Pieces, row_P: np.ndarray) -> None:
    _make_count_rows(ids_TK.shape[1])(
        table_GN, ids_TK, pieces.start_P, pieces.stop_P, pieces.weight_P, row_P
    )


def count_slots(table_KN: np.ndarray, ids_TK: np.ndarray, pieces: Pieces) -> None:
    _make_count_slots(ids_TK.shape[1])(
        table_KN, ids_TK, pieces.start_P, pieces.stop_P, pieces.weight_P
    )


def count_pairs(table_NN: np.ndarray, ids_TK: np.ndarray, pieces: Pieces) -> None:
    # Room for every id that the type can hold, so that the loop need not ask whether it is one.
    width = 256 if ids_TK.itemsize == 1 else len(table_NN) + 1
    if ids_TK.itemsize > 1:
        ids_TK = np.minimum(ids_TK, ids_TK.dtype.type(len(table_NN)))
    is_packed = fit_words(ids_TK)
    _make_count_pairs(ids_TK.shape[1], is_packed)(
        table_NN,
        np.zeros((width, width), np.uint16),
        as_words(ids_TK, 0) if is_packed else ids_TK,
        pieces.start_P,
        pieces.stop_P,
        pieces.weight_P,
    )


def count_flows(table_NM: np.ndarray, from_T: np.ndarray, to_T: np.ndarray, pieces: Pieces) -> None:
    _count_flows(table_NM, from_T, to_T, pieces.start_P, pieces.stop_P, pieces.weight_P)


def inspect_rows(ids_TK: np.ndarray, num_experts: int, none_id: int) -> np.ndarray:
    found_4 = np.zeros(4, np.int64)
    slots = ids_TK.shape[1]
    if slots > 1 and fit_words(ids_TK) and ids_TK.max(initial=0) < num_experts:
        # Most rows are sound, and that is seen at once; the others are looked at id by id.
        words_T = as_words(ids_TK, 0)
        ids_TK = ids_TK[_make_find_odd(slots)(words_T)]
    stamp_E = np.full(max(num_experts, 256), -1, np.int64)
    _inspect_rows(found_4, stamp_E, ids_TK, num_experts, none_id)
    return found_4


@lru_cache
def _make_find_odd(slots: int) -> Any:
    ordered = sum(k << (8 * k) for k in range(slots))

    @compile_
    def find_odd(words_T):
        """Rows that name an expert twice, as those of zeros do, or read 0, 1, 2, ..."""
        low, high = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
        is_odd_T = np.zeros(len(words_T), np.bool_)
        for t in range(len(words_T)):
            word, found = words_T[t], np.uint64(0)
            for distance in range(1, slots):
                # Byte k against byte k + distance, in the low bytes; a byte of 0 sets a high bit.
                differing = word ^ (word >> np.uint64(8 * distance))
                equal = (differing - low) & ~differing
                found |= equal & (high >> np.uint64(8 * (8 - slots + distance)))
            is_odd_T[t] = found != 0 or word == np.uint64(ordered)
        return is_odd_T

    return find_odd


@compile_
def _inspect_rows(found_4, stamp_E, ids_TK, num_experts, none_id):
    for t in range(len(ids_TK)):
        twice, zero, ordered, foreign = False, True, True, False
        for k in range(ids_TK.shape[1]):
            e = np.int64(ids_TK[t, k])
            zero &= e == 0
            ordered &= e == k
            if e == none_id:
                continue
            foreign |= e >= num_experts
            if e < len(stamp_E):
                twice |= stamp_E[e] == t
                stamp_E[e] = t
        found_4[0] += twice
        found_4[1] += zero
        found_4[2] += ordered
        found_4[3] += foreign


@lru_cache
def _make_count_rows(slots: int) -> Any:
    @compile_
    def count_rows(table_GN, ids_TK, start_P, stop_P, weight_P, row_P):
        num_experts = table_GN.shape[1]
        for p in range(len(start_P)):
            row_N = table_GN[row_P[p]]
            weight = table_GN.dtype.type(weight_P[p])
            for t in range(start_P[p], stop_P[p]):
                for k in range(slots):
                    e = ids_TK[t, k]
                    if e < num_experts:
                        row_N[e] += weight

    return count_rows


@lru_cache
def _make_count_slots(slots: int) -> Any:
    @compile_
    def count_slots(table_KN, ids_TK, start_P, stop_P, weight_P):
        num_experts = table_KN.shape[1]
        for p in range(len(start_P)):
            weight = weight_P[p]
            for t in range(start_P[p], stop_P[p]):
                for k in range(slots):
                    e = ids_TK[t, k]
                    if e < num_experts:
                        table_KN[k, e] += weight

    return count_slots


@lru_cache
def _make_count_pairs(slots: int, is_packed: bool) -> Any:
    @compile_
    def flush(table_NN, scratch_MM, weight):
        for a in range(len(table_NN)):
            for b in range(len(table_NN)):
                table_NN[a, b] += scratch_MM[a, b] * weight
                scratch_MM[a, b] = 0

    @compile_
    def add_rows(scratch_MM, rows, begin, end):
        one = np.uint16(1)
        for t in range(begin, end):
            if is_packed:
                # A number is loaded once; ids in memory would be loaded after every store again.
                word = rows[t]
                for i in range(slots - 1):
                    a = (word >> np.uint64(8 * i)) & np.uint64(0xFF)
                    for j in range(i + 1, slots):
                        scratch_MM[a, (word >> np.uint64(8 * j)) & np.uint64(0xFF)] += one
            else:
                for i in range(slots - 1):
                    a = rows[t, i]
                    for j in range(i + 1, slots):
                        scratch_MM[a, rows[t, j]] += one

    @compile_
    def count_pairs(table_NN, scratch_MM, rows, start_P, stop_P, weight_P):
        used, weight = 0, np.int64(1)
        for p in range(len(start_P)):
            if weight_P[p] != weight:
                flush(table_NN, scratch_MM, weight)
                used, weight = 0, weight_P[p]
            begin = start_P[p]
            while begin < stop_P[p]:
                end = min(begin + _FLUSH - used, stop_P[p])
                add_rows(scratch_MM, rows, begin, end)
                used += end - begin
                begin = end
                if used == _FLUSH:
                    flush(table_NN, scratch_MM, weight)
                    used = 0
        flush(table_NN, scratch_MM, weight)

    return count_pairs


@compile_
def _count_flows(
    table_NM: np.ndarray,
    from_T: np.ndarray,
    to_T: np.ndarray,
    start_P: np.ndarray,
    stop_P: np.ndarray,
    weight_P: np.ndarray,
) -> None:
    rows, columns = table_NM.shape
    for p in range(len(start_P)):
        for t in range(start_P[p], stop_P[p]):
            here, there = from_T[t], to_T[t]
            if here < rows and there < columns:
                table_NM[here, there] += weight_P[p]
