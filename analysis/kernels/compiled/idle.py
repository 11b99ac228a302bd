"""Idle runs inside documents and across them.

Shape suffixes: T tokens of a part, K slots, P pieces, G rows of a table, N experts of a layer,
C clusters, W windows, X lags, S groups, B batch sizes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from moe_probe.analysis.kernels.compiled.jit import compile_, log2_bin
from moe_probe.analysis.pieces import Pieces


def trace_gaps(
    first_CN: np.ndarray,
    after_CN: np.ndarray,
    next_C: np.ndarray,
    square_sum_N: np.ndarray,
    longest_N: np.ndarray,
    windows_W3N: np.ndarray,
    histogram_KH: np.ndarray,
    ids_TK: np.ndarray,
    pieces: Pieces,
    window_W: np.ndarray,
) -> None:
    _make_trace_gaps(ids_TK.shape[1])(
        first_CN,
        after_CN,
        next_C,
        square_sum_N,
        longest_N,
        windows_W3N,
        histogram_KH,
        ids_TK,
        pieces.start_P,
        pieces.stop_P,
        pieces.cluster_P,
        window_W,
    )


@lru_cache
def _make_trace_gaps(slots: int) -> Any:
    @compile_
    def trace_gaps(
        first_CN,
        after_CN,
        next_C,
        square_sum_N,
        longest_N,
        windows_W3N,
        histogram_KH,
        ids_TK,
        start_P,
        stop_P,
        cluster_P,
        window_W,
    ):
        num_experts = len(longest_N)
        shortest = window_W.min() if len(window_W) else np.iinfo(np.int64).max
        # Runs up to this need nothing but their sums. A first selection looks like a long run.
        common_N = np.minimum(longest_N, shortest - 1)
        never = -(np.int64(1) << 40)
        last_N = np.empty(num_experts, np.int64)
        sums_KH = np.zeros(histogram_KH.shape, np.int64)
        for p in range(len(start_P)):
            cluster = cluster_P[p]
            first_N, after_N = first_CN[cluster], after_CN[cluster]
            for e in range(num_experts):
                last_N[e] = np.int64(after_N[e]) if after_N[e] > 0 else never
            offset = next_C[cluster] - start_P[p]
            for t in range(start_P[p], stop_P[p]):
                place = offset + t
                for k in range(slots):
                    e = ids_TK[t, k]
                    if e < num_experts:
                        gap = place - last_N[e]
                        last_N[e] = place + 1
                        if gap > common_N[e]:
                            if gap >= -never:
                                first_N[e] = place
                                continue
                            longest_N[e] = max(longest_N[e], gap)
                            common_N[e] = min(longest_N[e], shortest - 1)
                            _add_run(windows_W3N, window_W, e, gap)
                        square_sum_N[e] += (gap + 1) * (gap + 1)
                        # A row per slot: one counter that all slots add to would be waited for.
                        sums_KH[k, log2_bin(gap)] += 1
            for e in range(num_experts):
                after_N[e] = last_N[e] if last_N[e] > 0 else 0
            next_C[cluster] += stop_P[p] - start_P[p]
        histogram_KH += sums_KH

    return trace_gaps


@compile_
def join_documents(
    first_CN,
    after_CN,
    tokens_C,
    order_C,
    window_W,
    longest_N,
    first_seen_N,
    current_N,
    square_sum_N,
    windows_W3N,
    histogram_H,
):
    num_experts = len(longest_N)
    shortest = window_W.min() if len(window_W) else np.iinfo(np.int64).max
    offset = np.int64(0)
    for c in order_C:
        tokens, first_N, after_N = tokens_C[c], first_CN[c], after_CN[c]
        for e in range(num_experts):
            if after_N[e] == 0:
                current_N[e] += tokens
                continue
            first = np.int64(first_N[e])
            run = current_N[e] + first
            longest_N[e] = max(longest_N[e], run)
            if first_seen_N[e] < 0:
                first_seen_N[e] = offset + first
            else:
                square_sum_N[e] += (run + 1) * (run + 1)
                histogram_H[log2_bin(run)] += 1
            if run >= shortest:
                _add_run(windows_W3N, window_W, e, run)
            current_N[e] = tokens - np.int64(after_N[e])
        offset += tokens
    for e in range(num_experts):
        longest_N[e] = max(longest_N[e], current_N[e])
        _add_run(windows_W3N, window_W, e, current_N[e])


@compile_
def join_longest(
    first_CN,
    after_CN,
    tokens_C,
    order_C,
    window_W,
    longest_N,
    first_seen_N,
    current_N,
    windows_W3N,
    unseen,
):
    num_experts = len(longest_N)
    number = longest_N.dtype.type
    shortest = window_W.min() if len(window_W) else np.iinfo(np.int64).max
    run_N = np.zeros(num_experts, longest_N.dtype)
    offset = np.int64(0)
    for c in order_C:
        tokens, first_N, after_N = number(tokens_C[c]), first_CN[c], after_CN[c]
        if unseen > 0:
            for e in range(num_experts):
                if first_seen_N[e] < 0 and after_N[e] > 0:
                    first_seen_N[e] = offset + np.int64(first_N[e])
                    unseen -= 1
        # Bits instead of branches and one thing per loop: so several experts fit an instruction.
        for e in range(num_experts):
            after, current = number(after_N[e]), current_N[e]
            is_seen = number(-(after > 0))
            run_N[e] = number(current + number(first_N[e])) & is_seen
            current_N[e] = number(current & ~is_seen) + number(tokens - after)
        most = number(0)
        for e in range(num_experts):
            most = max(most, run_N[e])
        for e in range(num_experts):
            longest_N[e] = max(longest_N[e], run_N[e])
        if most >= shortest:
            for e in range(num_experts):
                if run_N[e] >= shortest:
                    _add_run(windows_W3N, window_W, e, np.int64(run_N[e]))
        offset += np.int64(tokens)
    for e in range(num_experts):
        longest_N[e] = max(longest_N[e], current_N[e])
        _add_run(windows_W3N, window_W, e, np.int64(current_N[e]))


@compile_
def longest_absence(counts_CN, order_D):
    current_N = np.zeros(counts_CN.shape[1], np.int32)
    longest_N = np.zeros(counts_CN.shape[1], np.int32)
    for d in order_D:
        counts_N = counts_CN[d]
        for e in range(len(current_N)):
            current_N[e] = (current_N[e] + np.int32(1)) & np.int32(-(counts_N[e] == 0))
        for e in range(len(current_N)):
            longest_N[e] = max(longest_N[e], current_N[e])
    return longest_N.astype(np.int64)


@compile_
def _add_run(windows_W3N: np.ndarray, window_W: np.ndarray, expert: int, run: int) -> None:
    for w in range(len(window_W)):
        if run >= window_W[w]:
            windows_W3N[w, 0, expert] += 1
            windows_W3N[w, 1, expert] += run
            windows_W3N[w, 2, expert] += run - window_W[w] + 1
