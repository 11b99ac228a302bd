"""The inner loops of the scan, compiled: one pass per table over rows that stay in the cache.

The number of slots is a constant of every compiled function, so that the loops over them unroll.
Arguments and results are those of `plain`, where they are described.

Shape suffixes: T tokens of a part, K slots, P pieces, G rows of a table, N experts of a layer,
C clusters, W windows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from moe_probe.analysis.pieces import Pieces

_intrinsic: Callable[[Any], Any] = intrinsic
_compile: Callable[[Any], Any] = njit(
    nogil=True, cache=True, boundscheck=False, error_model="numpy"
)
# Rows after which 16-bit pair counts are added to the table, before they can overflow.
_FLUSH = (1 << 16) - 1


def count_rows(table_GN: np.ndarray, ids_TK: np.ndarray, pieces: Pieces, row_P: np.ndarray) -> None:
    for_slots(ids_TK.shape[1]).count_rows(
        table_GN, ids_TK, pieces.start_P, pieces.stop_P, pieces.weight_P, row_P
    )


def count_slots(table_KN: np.ndarray, ids_TK: np.ndarray, pieces: Pieces) -> None:
    for_slots(ids_TK.shape[1]).count_slots(
        table_KN, ids_TK, pieces.start_P, pieces.stop_P, pieces.weight_P
    )


def count_pairs(table_NN: np.ndarray, ids_TK: np.ndarray, pieces: Pieces) -> None:
    # Room for every id that the type can hold, so that the loop need not ask whether it is one.
    width = 256 if ids_TK.itemsize == 1 else len(table_NN) + 1
    if ids_TK.itemsize > 1:
        ids_TK = np.minimum(ids_TK, ids_TK.dtype.type(len(table_NN)))
    for_slots(ids_TK.shape[1]).count_pairs(
        table_NN,
        np.zeros((width, width), np.uint16),
        ids_TK,
        pieces.start_P,
        pieces.stop_P,
        pieces.weight_P,
    )


def count_flows(table_NM: np.ndarray, from_T: np.ndarray, to_T: np.ndarray, pieces: Pieces) -> None:
    _count_flows(table_NM, from_T, to_T, pieces.start_P, pieces.stop_P, pieces.weight_P)


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
    kernels = for_slots(ids_TK.shape[1])
    facts = (pieces.start_P, pieces.stop_P, pieces.weight_P, pieces.joins_P, row_P, lag_X)
    slots = ids_TK.shape[1]
    fits = ids_TK.itemsize == 1 and slots <= 8 and (slots == 8 or num_experts < 255)
    if fits and ids_TK.max(initial=0) < num_experts:
        later_T = kernels.pack_rows(ids_TK, 0xFF)
        earlier_T = later_T if slots == 8 else kernels.pack_rows(ids_TK, 0xFE)
        kernels.count_packed(sums_SX5, other_SX5, later_T, earlier_T, *facts, repeats_T)
    else:
        stamp_N = np.empty(num_experts, np.int32)
        kernels.count_overlaps(sums_SX5, other_SX5, stamp_N, ids_TK, *facts, repeats_T)


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
    for_slots(ids_TK.shape[1]).trace_gaps(
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


def count_batches(
    stats_B4: np.ndarray,
    current_BN: np.ndarray,
    filled_B: np.ndarray,
    size_B: np.ndarray,
    ids_TK: np.ndarray,
    pieces: Pieces,
) -> None:
    for_slots(ids_TK.shape[1]).count_batches(
        stats_B4, current_BN, filled_B, size_B, ids_TK, pieces.start_P, pieces.stop_P
    )


@_intrinsic
def _ones(typing_context: Any, value: Any) -> Any:
    """Number of bits that are set in a uint64."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@_intrinsic
def _log2_bin(typing_context: Any, value: Any) -> Any:
    """0 for 0, else one more than the floor of log2 of an int64: bits that the number needs."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        zeros = builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))
        return builder.sub(ir.Constant(ir.IntType(64), 64), zeros)

    return types.int64(types.int64), generate


@_compile
def _add_run(windows_W3N: np.ndarray, window_W: np.ndarray, expert: int, run: int) -> None:
    for w in range(len(window_W)):
        if run >= window_W[w]:
            windows_W3N[w, 0, expert] += 1
            windows_W3N[w, 1, expert] += run
            windows_W3N[w, 2, expert] += run - window_W[w] + 1


@_compile
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


@_compile
def join_documents(  # type: ignore[no-untyped-def]
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
    unseen,
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
                histogram_H[_log2_bin(run)] += 1
            if run >= shortest:
                _add_run(windows_W3N, window_W, e, run)
            current_N[e] = tokens - np.int64(after_N[e])
        offset += tokens
    for e in range(num_experts):
        longest_N[e] = max(longest_N[e], current_N[e])
        _add_run(windows_W3N, window_W, e, current_N[e])


@_compile
def join_longest(  # type: ignore[no-untyped-def]
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


@_compile
def longest_absence(counts_CN, order_D):  # type: ignore[no-untyped-def]
    current_N = np.zeros(counts_CN.shape[1], np.int32)
    longest_N = np.zeros(counts_CN.shape[1], np.int32)
    for d in order_D:
        counts_N = counts_CN[d]
        for e in range(len(current_N)):
            current_N[e] = (current_N[e] + np.int32(1)) & np.int32(-(counts_N[e] == 0))
        for e in range(len(current_N)):
            longest_N[e] = max(longest_N[e], current_N[e])
    return longest_N.astype(np.int64)


@_compile
def inspect_rows(ids_TK, num_experts, none_id):  # type: ignore[no-untyped-def]
    found_4 = np.zeros(4, np.int64)
    stamp_E = np.full(max(num_experts, 256), -1, np.int64)
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
    return found_4


class _Kernels:
    """The compiled functions for one number of slots."""

    def __init__(self, slots: int) -> None:
        self.count_rows = _make_count_rows(slots)
        self.count_slots = _make_count_slots(slots)
        self.count_pairs = _make_count_pairs(slots)
        self.count_overlaps = _make_count_overlaps(slots)
        self.pack_rows = _make_pack_rows(slots)
        self.count_packed = _make_count_packed(slots)
        self.trace_gaps = _make_trace_gaps(slots)
        self.count_batches = _make_count_batches(slots)


for_slots = lru_cache(_Kernels)


def _make_count_rows(slots: int) -> Any:
    @_compile
    def count_rows(table_GN, ids_TK, start_P, stop_P, weight_P, row_P):  # type: ignore[no-untyped-def]
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


def _make_count_slots(slots: int) -> Any:
    @_compile
    def count_slots(table_KN, ids_TK, start_P, stop_P, weight_P):  # type: ignore[no-untyped-def]
        num_experts = table_KN.shape[1]
        for p in range(len(start_P)):
            weight = weight_P[p]
            for t in range(start_P[p], stop_P[p]):
                for k in range(slots):
                    e = ids_TK[t, k]
                    if e < num_experts:
                        table_KN[k, e] += weight

    return count_slots


def _make_count_pairs(slots: int) -> Any:
    @_compile
    def flush(table_NN, scratch_MM, weight):  # type: ignore[no-untyped-def]
        for a in range(len(table_NN)):
            for b in range(len(table_NN)):
                table_NN[a, b] += scratch_MM[a, b] * weight
                scratch_MM[a, b] = 0

    @_compile
    def count_pairs(table_NN, scratch_MM, ids_TK, start_P, stop_P, weight_P):  # type: ignore[no-untyped-def]
        one = np.uint16(1)
        rows, weight = 0, np.int64(1)
        for p in range(len(start_P)):
            if weight_P[p] != weight:
                flush(table_NN, scratch_MM, weight)
                rows, weight = 0, weight_P[p]
            begin = start_P[p]
            while begin < stop_P[p]:
                end = min(begin + _FLUSH - rows, stop_P[p])
                for t in range(begin, end):
                    for i in range(slots - 1):
                        a = ids_TK[t, i]
                        for j in range(i + 1, slots):
                            scratch_MM[a, ids_TK[t, j]] += one
                rows += end - begin
                begin = end
                if rows == _FLUSH:
                    flush(table_NN, scratch_MM, weight)
                    rows = 0
        flush(table_NN, scratch_MM, weight)

    return count_pairs


def _make_count_overlaps(slots: int) -> Any:
    @_compile
    def count_overlaps(  # type: ignore[no-untyped-def]
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
                sums_5, weight = sums_SX5[row_P[p], x], weight_P[p]
                sums_5[0] += max(stop_P[p] - begin, 0) * weight
                sums_5[1] += total * weight
                sums_5[2] += touching * weight
                sums_5[3] += leading * weight
                sums_5[4] += equal * weight
                if has_tokens:
                    other_5 = other_SX5[row_P[p], x]
                    other_5[0] += other_pairs * weight
                    other_5[1] += other_total * weight
                    other_5[2] += other_touching * weight
                    other_5[3] += other_leading * weight
                    other_5[4] += other_equal * weight

    return count_overlaps


def _make_pack_rows(slots: int) -> Any:
    @_compile
    def pack_rows(ids_TK, blank):  # type: ignore[no-untyped-def]
        rows_T = np.empty(len(ids_TK), np.uint64)
        for t in range(len(ids_TK)):
            row = np.uint64(0)
            for k in range(8):
                value = np.uint64(ids_TK[t, k]) if k < slots else np.uint64(blank)
                row |= value << np.uint64(8 * k)
            rows_T[t] = row
        return rows_T

    return pack_rows


def _make_count_packed(slots: int) -> Any:
    @_compile
    def count_packed(  # type: ignore[no-untyped-def]
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
                    common = np.int64(_ones(found))
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
                sums_5, weight = sums_SX5[row_P[p], x], weight_P[p]
                sums_5[0] += max(stop_P[p] - begin, 0) * weight
                sums_5[1] += total * weight
                sums_5[2] += touching * weight
                sums_5[3] += leading * weight
                sums_5[4] += equal * weight
                if has_tokens:
                    other_5 = other_SX5[row_P[p], x]
                    other_5[0] += other_pairs * weight
                    other_5[1] += other_total * weight
                    other_5[2] += other_touching * weight
                    other_5[3] += other_leading * weight
                    other_5[4] += other_equal * weight

    return count_packed


def _make_trace_gaps(slots: int) -> Any:
    @_compile
    def trace_gaps(  # type: ignore[no-untyped-def]
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
                        sums_KH[k, _log2_bin(gap)] += 1
            for e in range(num_experts):
                after_N[e] = last_N[e] if last_N[e] > 0 else 0
            next_C[cluster] += stop_P[p] - start_P[p]
        histogram_KH += sums_KH

    return trace_gaps


@_compile
def _close_batch(stats_B4, current_BN, filled_B, size_B, number):  # type: ignore[no-untyped-def]
    """Take the indices of a full batch, and hand its counts on to the next larger size."""
    while filled_B[number] >= size_B[number]:
        counts_N = current_BN[number]
        total, square, most = np.int64(0), np.int64(0), np.int64(0)
        for count in counts_N:
            total += count
            square += count * count
            most = max(most, count)
        mean = total / len(counts_N)
        if total > 0:
            ratio = most / mean
            variance = square / len(counts_N) - mean * mean
            stats_B4[number, 0] += 1
            stats_B4[number, 1] += ratio
            stats_B4[number, 2] += ratio * ratio
            stats_B4[number, 3] += np.sqrt(max(variance, 0.0)) / mean
        filled_B[number] = 0
        if number + 1 < len(size_B):
            current_BN[number + 1] += counts_N
            filled_B[number + 1] += size_B[number]
        counts_N[:] = 0
        if number + 1 == len(size_B):
            break
        number += 1


def _make_count_batches(slots: int) -> Any:
    @_compile
    def count_batches(stats_B4, current_BN, filled_B, size_B, ids_TK, start_P, stop_P):  # type: ignore[no-untyped-def]
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
                    _close_batch(stats_B4, current_BN, filled_B, size_B, 0)

    return count_batches
