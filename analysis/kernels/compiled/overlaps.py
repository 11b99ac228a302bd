"""Overlaps of tokens' experts with those of earlier tokens.

Shape suffixes: T tokens of a part, K slots, P pieces, G rows of a table, N experts of a layer,
C clusters, W windows, X lags, S groups, B batch sizes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from moe_probe.analysis.kernels.compiled.jit import compile_, ones
from moe_probe.analysis.kernels.compiled.words import BYTES, as_words, fit_words
from moe_probe.analysis.pieces import Pieces


def count_overlaps(
    sums_SX5: np.ndarray,
    other_SX5: np.ndarray,
    ids_TK: np.ndarray,
    pieces: Pieces,
    row_P: np.ndarray,
    lag_X: np.ndarray,
    num_experts: int,
    repeats_T: np.ndarray,
) -> None:
    facts = (pieces.start_P, pieces.stop_P, pieces.weight_P, pieces.joins_P, row_P, lag_X)
    slots = ids_TK.shape[1]
    # Blanks of a later and of an earlier token differ from each other and from every id.
    fits = fit_words(ids_TK) and (slots == BYTES or num_experts < 255)
    if fits and ids_TK.max(initial=0) < num_experts:
        later_T = as_words(ids_TK, 0xFF)
        earlier_T = later_T if slots == BYTES else as_words(ids_TK, 0xFE)
        _make_count_packed(slots)(sums_SX5, other_SX5, later_T, earlier_T, *facts, repeats_T)
    else:
        stamp_N = np.empty(num_experts, np.int32)
        _make_count_overlaps(slots)(sums_SX5, other_SX5, stamp_N, ids_TK, *facts, repeats_T)


@compile_
def _add(sums_5, weight, pairs, total, touching, leading, equal):
    sums_5[0] += pairs * weight
    sums_5[1] += total * weight
    sums_5[2] += touching * weight
    sums_5[3] += leading * weight
    sums_5[4] += equal * weight


@lru_cache
def _make_count_packed(slots: int) -> Any:
    @compile_
    def count_packed(
        sums_SX5,
        other_SX5,
        later_T,
        earlier_T,
        start_P,
        stop_P,
        weight_P,
        joins_P,
        row_P,
        lag_X,
        repeats_T,
    ):
        # Eight ids are one number. Turned by a byte eight times, every id meets every other.
        low, seven, byte = np.uint64(0x7F7F7F7F7F7F7F7F), np.uint64(56), np.uint64(8)
        first_byte, has_tokens = np.uint64(0xFF), len(repeats_T) > 0
        for x in range(len(lag_X)):
            lag, run_start = lag_X[x], 0
            for p in range(len(start_P)):
                if not joins_P[p]:
                    run_start = start_P[p]
                begin = max(start_P[p], run_start + lag)
                total, touching, leading, equal = 0, 0, 0, 0
                other_pairs, other_total, other_touching, other_leading, other_equal = 0, 0, 0, 0, 0
                for t in range(begin, stop_P[p]):
                    later, earlier = later_T[t], earlier_T[t - lag]
                    leads = np.int64((later ^ earlier) & first_byte == 0)
                    found = np.uint64(0)
                    for _ in range(8):
                        differing = later ^ earlier
                        # The high bit of every byte that is 0.
                        found |= ~(((differing & low) + low) | differing | low)
                        earlier = (earlier << byte) | (earlier >> seven)
                    common = np.int64(ones(found))
                    total += common
                    touching += common > 0
                    leading += leads
                    equal += common == slots
                    if has_tokens:
                        differs = np.int64(1) - ((np.int64(repeats_T[t]) >> x) & 1)
                        other_pairs += differs
                        other_total += common * differs
                        other_touching += np.int64(common > 0) * differs
                        other_leading += leads * differs
                        other_equal += np.int64(common == slots) * differs
                row, weight, pairs = row_P[p], weight_P[p], max(stop_P[p] - begin, 0)
                _add(sums_SX5[row, x], weight, pairs, total, touching, leading, equal)
                if has_tokens:
                    _add(
                        other_SX5[row, x],
                        weight,
                        other_pairs,
                        other_total,
                        other_touching,
                        other_leading,
                        other_equal,
                    )

    return count_packed


@lru_cache
def _make_count_overlaps(slots: int) -> Any:
    @compile_
    def count_overlaps(
        sums_SX5,
        other_SX5,
        stamp_N,
        ids_TK,
        start_P,
        stop_P,
        weight_P,
        joins_P,
        row_P,
        lag_X,
        repeats_T,
    ):
        num_experts, has_tokens = len(stamp_N), len(repeats_T) > 0
        for x in range(len(lag_X)):
            lag, run_start = lag_X[x], 0
            stamp_N[:] = -1
            for p in range(len(start_P)):
                if not joins_P[p]:
                    run_start = start_P[p]
                begin = max(start_P[p], run_start + lag)
                total, touching, leading, equal = 0, 0, 0, 0
                other_pairs, other_total, other_touching, other_leading, other_equal = 0, 0, 0, 0, 0
                for t in range(begin, stop_P[p]):
                    # Marking the earlier set costs a store a slot; comparing all slots with all
                    # costs k times that.
                    common, later, earlier = 0, 0, 0
                    for k in range(slots):
                        e = ids_TK[t - lag, k]
                        if e < num_experts:
                            stamp_N[e] = t
                            earlier += 1
                    for k in range(slots):
                        e = ids_TK[t, k]
                        if e < num_experts:
                            common += stamp_N[e] == t
                            later += 1
                    first = ids_TK[t, 0]
                    leads = first == ids_TK[t - lag, 0] and first < num_experts
                    is_same = common == max(earlier, later)
                    total += common
                    touching += common > 0
                    leading += leads
                    equal += is_same
                    if has_tokens and not (repeats_T[t] >> x) & 1:
                        other_pairs += 1
                        other_total += common
                        other_touching += common > 0
                        other_leading += leads
                        other_equal += is_same
                row, weight, pairs = row_P[p], weight_P[p], max(stop_P[p] - begin, 0)
                _add(sums_SX5[row, x], weight, pairs, total, touching, leading, equal)
                if has_tokens:
                    _add(
                        other_SX5[row, x],
                        weight,
                        other_pairs,
                        other_total,
                        other_touching,
                        other_leading,
                        other_equal,
                    )

    return count_overlaps
