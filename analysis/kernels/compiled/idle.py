"""Idle runs across documents, put one after another.

Shape suffixes: N experts of a layer, C clusters, D documents, W windows, H bins.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.kernels.compiled.jit import compile_, log2_bin
from moe_probe.analysis.kernels.compiled.windows import add_run, shortest_of


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
    shortest = shortest_of(window_W)
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
                add_run(windows_W3N, window_W, e, run)
            current_N[e] = tokens - np.int64(after_N[e])
        offset += tokens
    for e in range(num_experts):
        longest_N[e] = max(longest_N[e], current_N[e])
        add_run(windows_W3N, window_W, e, current_N[e])


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
    shortest = shortest_of(window_W)
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
                    add_run(windows_W3N, window_W, e, np.int64(run_N[e]))
        offset += np.int64(tokens)
    for e in range(num_experts):
        longest_N[e] = max(longest_N[e], current_N[e])
        add_run(windows_W3N, window_W, e, np.int64(current_N[e]))


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
