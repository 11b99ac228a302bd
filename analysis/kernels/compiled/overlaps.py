"""Overlaps of tokens' experts with those of earlier tokens, where rows count several times.

Shape suffixes: T tokens of a part, K slots, P pieces, G rows of a table, N experts of a layer,
C clusters, W windows, X lags, S groups, B batch sizes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from moe_probe.analysis.kernels.compiled.jit import compile_, inner_
from moe_probe.analysis.kernels.tables import OverlapTables
from moe_probe.analysis.reading.pieces import Pieces


def count_overlaps(
    tables: OverlapTables, ids_TK: np.ndarray, pieces: Pieces, num_experts: int
) -> None:
    _make_count_overlaps(ids_TK.shape[1])(
        tables.sums_SX5,
        tables.other_SX5,
        np.empty(num_experts, np.int32),
        ids_TK,
        pieces.start_P,
        pieces.stop_P,
        pieces.weight_P,
        pieces.joins_P,
        tables.row_P,
        tables.lag_X,
        tables.repeats_T,
    )


@inner_
def _add(sums_5, weight, pairs, total, touching, leading, equal):
    sums_5[0] += pairs * weight
    sums_5[1] += total * weight
    sums_5[2] += touching * weight
    sums_5[3] += leading * weight
    sums_5[4] += equal * weight


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
