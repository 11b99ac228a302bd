"""How uneven batches of consecutive tokens are.

Shape suffixes: T tokens of a part, K slots, P pieces, G rows of a table, N experts of a layer,
C clusters, W windows, X lags, S groups, B batch sizes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from moe_probe.analysis.kernels.compiled.jit import compile_, inner_
from moe_probe.analysis.reading.pieces import Pieces


def count_batches(
    stats_B5: np.ndarray,
    head_BN: np.ndarray,
    current_BN: np.ndarray,
    filled_B: np.ndarray,
    is_first_B: np.ndarray,
    size_B: np.ndarray,
    ids_TK: np.ndarray,
    pieces: Pieces,
) -> None:
    _make_count_batches(ids_TK.shape[1])(
        stats_B5,
        head_BN,
        current_BN,
        filled_B,
        is_first_B,
        size_B,
        ids_TK,
        pieces.start_P,
        pieces.stop_P,
    )


@lru_cache
def _make_count_batches(slots: int) -> Any:
    @compile_
    def count_batches(
        stats_B5, head_BN, current_BN, filled_B, is_first_B, size_B, ids_TK, start_P, stop_P
    ):
        num_experts = current_BN.shape[1]
        current_N = current_BN[0]
        for p in range(len(start_P)):
            for t in range(start_P[p], stop_P[p]):
                for k in range(slots):
                    e = ids_TK[t, k]
                    if e < num_experts:
                        current_N[e] += 1
                filled_B[0] += 1
                if filled_B[0] == size_B[0]:
                    _close_batch(stats_B5, head_BN, current_BN, filled_B, is_first_B, size_B)

    return count_batches


@inner_
def _close_batch(stats_B5, head_BN, current_BN, filled_B, is_first_B, size_B):
    """Take the indices of a full batch, and hand its counts on to the next larger size."""
    number = 0
    while filled_B[number] >= size_B[number]:
        counts_N = current_BN[number]
        total, square, most = np.int64(0), np.int64(0), np.int64(0)
        for count in counts_N:
            total += count
            square += count * count
            most = max(most, count)
        mean = total / len(counts_N)
        is_first = is_first_B[number]
        is_first_B[number] = False
        if total > 0 and not is_first:
            ratio = most / mean
            variance = square / len(counts_N) - mean * mean
            stats_B5[number, 0] += 1
            stats_B5[number, 1] += ratio
            stats_B5[number, 2] += ratio * ratio
            stats_B5[number, 3] += np.sqrt(max(variance, 0.0)) / mean
            stats_B5[number, 4] += 1 / np.sqrt(total)
        filled_B[number] = 0
        is_last = number + 1 == len(size_B)
        # Loops instead of whole arrays, for which the compiler also makes what raises errors.
        for e in range(len(counts_N)):
            if is_first:
                head_BN[number, e] = counts_N[e]
            if not is_last:
                current_BN[number + 1, e] += counts_N[e]
            counts_N[e] = 0
        if is_last:
            break
        filled_B[number + 1] += size_B[number]
        number += 1
