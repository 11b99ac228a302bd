"""Counts by row, slot, pair and flow, where rows may count several times.

The number of slots is a constant of every function, so that the loops over them unroll.

Shape suffixes: T tokens of a part, K slots, P pieces, G rows of a table, N experts of a layer,
C clusters, W windows, X lags, S groups, B batch sizes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from moe_probe.analysis.kernels.compiled.jit import compile_, inner_
from moe_probe.analysis.kernels.compiled.words import bound_ids
from moe_probe.analysis.reading.pieces import Pieces

# Rows after which 16-bit counts are added to the table, before they can overflow.
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
    ids_TK, width = bound_ids(ids_TK, len(table_NN))
    _make_count_pairs(ids_TK.shape[1])(
        table_NN,
        np.zeros((width, width), np.uint16),
        ids_TK,
        pieces.start_P,
        pieces.stop_P,
        pieces.weight_P,
    )


def count_flows(table_NM: np.ndarray, from_T: np.ndarray, to_T: np.ndarray, pieces: Pieces) -> None:
    from_T, rows = bound_ids(from_T, table_NM.shape[0])
    to_T, columns = bound_ids(to_T, table_NM.shape[1])
    scratch_MM = np.zeros((rows, columns), np.uint16)
    spans = pieces.start_P, pieces.stop_P, pieces.weight_P
    _count_flows(table_NM, scratch_MM, from_T, to_T, *spans)


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
def _make_count_pairs(slots: int) -> Any:
    @inner_
    def flush(table_NN, scratch_MM, weight):
        for a in range(len(table_NN)):
            for b in range(len(table_NN)):
                if a != b:
                    table_NN[a, b] += scratch_MM[a, b] * weight
                    table_NN[b, a] += scratch_MM[a, b] * weight
                scratch_MM[a, b] = 0

    @compile_
    def count_pairs(table_NN, scratch_MM, ids_TK, start_P, stop_P, weight_P):
        used, weight = 0, np.int64(1)
        for p in range(len(start_P)):
            if weight_P[p] != weight:
                flush(table_NN, scratch_MM, weight)
                used, weight = 0, weight_P[p]
            for t in range(start_P[p], stop_P[p]):
                for i in range(slots - 1):
                    for j in range(i + 1, slots):
                        scratch_MM[ids_TK[t, i], ids_TK[t, j]] += np.uint16(1)
                used += 1
                if used == _FLUSH:
                    flush(table_NN, scratch_MM, weight)
                    used = 0
        flush(table_NN, scratch_MM, weight)

    return count_pairs


@compile_
def _count_flows(table_NM, scratch_MM, from_T, to_T, start_P, stop_P, weight_P):
    used, weight = 0, np.int64(1)
    for p in range(len(start_P)):
        if weight_P[p] != weight:
            _flush_flows(table_NM, scratch_MM, weight)
            used, weight = 0, np.int64(weight_P[p])
        for begin in range(start_P[p], stop_P[p], _FLUSH):
            stop = min(begin + _FLUSH, stop_P[p])
            if used + stop - begin > _FLUSH:
                _flush_flows(table_NM, scratch_MM, weight)
                used = 0
            used += stop - begin
            # Slices, whose indices nobody asks if they count from the end.
            here_T, there_T = from_T[begin:stop], to_T[begin:stop]
            for t in range(len(here_T)):
                scratch_MM[here_T[t], there_T[t]] += np.uint16(1)
    _flush_flows(table_NM, scratch_MM, weight)


@inner_
def _flush_flows(table_NM, scratch_MM, weight):
    for a in range(table_NM.shape[0]):
        for b in range(table_NM.shape[1]):
            table_NM[a, b] += scratch_MM[a, b] * weight
            scratch_MM[a, b] = 0
