"""Idle runs inside documents and across them.

Shape suffixes: T tokens of a part, K slots, P pieces, G rows of a table, N experts of a layer,
C clusters, W windows, X lags, S groups, B batch sizes, L selections.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from moe_probe.analysis.kernels.tables import GapTables
from moe_probe.analysis.reading.pieces import Pieces

_BUNDLE = 1 << 14


def trace_gaps(tables: GapTables, ids_TK: np.ndarray, pieces: Pieces) -> None:
    """Go through tokens in order and note, per cluster and expert, where idle runs begin and end.

    Sums are over the runs between two selections of one cluster.
    """
    # Many pieces at once: they are short.
    bundle_P = np.cumsum(pieces.length_P) // _BUNDLE
    bounds = np.flatnonzero(np.diff(bundle_P, prepend=-1, append=-1))
    for begin, end in itertools.pairwise(bounds.tolist()):
        _trace(tables, ids_TK, pieces, np.arange(begin, end))


def _trace(tables: GapTables, ids_TK: np.ndarray, pieces: Pieces, chosen_P: np.ndarray) -> None:
    first_CN, after_CN, next_C, square_sum_N, longest_N, *rest = tables
    windows_W3N, histogram_H, window_W = rest
    num_experts = len(longest_N)
    token_T, piece_T = pieces.rows(chosen_P)
    cluster_T = pieces.cluster_P[piece_T]
    place_T = _places(next_C, cluster_T)
    ids_LK = ids_TK[token_T]
    where_L, slot_L = np.nonzero(ids_LK < num_experts)
    expert_L = ids_LK[where_L, slot_L].astype(np.uint16)
    order_L = np.lexsort((expert_L, cluster_T[where_L]))
    where_L, expert_L = where_L[order_L], expert_L[order_L].astype(np.int64)
    place_L, cluster_L = place_T[where_L], cluster_T[where_L]
    is_first_L = np.diff(expert_L, prepend=-1) != 0
    is_first_L |= np.diff(cluster_L, prepend=-1) != 0
    before_L = np.roll(place_L, 1) + 1
    before_L[is_first_L] = after_CN[cluster_L[is_first_L], expert_L[is_first_L]]
    is_lead_L = before_L == 0
    first_CN[cluster_L[is_lead_L], expert_L[is_lead_L]] = place_L[is_lead_L]
    is_last_L = np.roll(is_first_L, -1)
    after_CN[cluster_L[is_last_L], expert_L[is_last_L]] = place_L[is_last_L] + 1
    # A faulty row that names an expert twice has no run between the two.
    is_run_L = ~is_lead_L & (place_L >= before_L)
    gap_L, expert_L = (place_L - before_L)[is_run_L], expert_L[is_run_L]
    np.add.at(square_sum_N, expert_L, (gap_L + 1) ** 2)
    np.maximum.at(longest_N, expert_L, gap_L)
    np.add.at(histogram_H, np.frexp(gap_L.astype(np.float64))[1], 1)
    add_windows(windows_W3N, window_W, expert_L, gap_L)


def _places(next_C: np.ndarray, cluster_T: np.ndarray) -> np.ndarray:
    """Return each token's place in its cluster, and note how many there are now."""
    order_T = np.argsort(cluster_T, kind="stable")
    known, start, length = np.unique(cluster_T[order_T], return_index=True, return_counts=True)
    place_T = np.empty(len(cluster_T), np.int64)
    place_T[order_T] = np.arange(len(cluster_T)) + np.repeat(next_C[known] - start, length)
    next_C[known] += length
    return place_T


def add_windows(
    windows_W3N: np.ndarray, window_W: np.ndarray, expert_L: np.ndarray, run_L: np.ndarray
) -> None:
    """Count runs of at least W tokens, the tokens in them, and the windows of W that fit in.

    `window_W` ascends.
    """
    for number, window in enumerate(window_W.tolist()):
        long_L = run_L >= window
        if not long_L.any():
            break
        run, expert = run_L[long_L], expert_L[long_L]
        np.add.at(windows_W3N[number, 0], expert, 1)
        np.add.at(windows_W3N[number, 1], expert, run)
        np.add.at(windows_W3N[number, 2], expert, run - window + 1)


def join_documents(
    first_CN: np.ndarray,
    after_CN: np.ndarray,
    tokens_C: np.ndarray,
    order_C: np.ndarray,
    window_W: np.ndarray,
    longest_N: np.ndarray,
    first_seen_N: np.ndarray,
    current_N: np.ndarray,
    square_sum_N: np.ndarray,
    windows_W3N: np.ndarray,
    histogram_H: np.ndarray,
) -> None:
    """Put clusters one after another and note the idle runs that cross their borders.

    `first_seen_N` comes as -1, `current_N` as 0, the other tables as `trace_gaps` left them. Runs
    to the first selection and from the last to the end count in `longest_N` and the windows, but
    not in `square_sum_N` and the histogram, which then are of runs between two selections only.
    """
    if not len(order_C):
        return
    seams = _seams(first_CN, after_CN, tokens_C, order_C)
    _note_seams(seams, window_W, longest_N, first_seen_N, current_N, windows_W3N)
    cluster, expert = np.nonzero(seams.is_seen_CN)
    run, is_between = seams.run_CN[cluster, expert], ~seams.is_lead_CN[cluster, expert]
    np.add.at(square_sum_N, expert[is_between], (run[is_between] + 1) ** 2)
    np.add.at(histogram_H, np.frexp(run[is_between].astype(np.float64))[1], 1)


def join_longest(
    first_CN: np.ndarray,
    after_CN: np.ndarray,
    tokens_C: np.ndarray,
    order_C: np.ndarray,
    window_W: np.ndarray,
    longest_N: np.ndarray,
    first_seen_N: np.ndarray,
    current_N: np.ndarray,
    windows_W3N: np.ndarray,
    unseen: int,
) -> None:
    """Like `join_documents`, for what is asked of many orders.

    `unseen` is the number of experts that some cluster selects.
    """
    if not len(order_C):
        return
    seams = _seams(first_CN, after_CN, tokens_C, order_C)
    _note_seams(seams, window_W, longest_N, first_seen_N, current_N, windows_W3N)


class _Seams(NamedTuple):
    """Clusters in order: runs that end with their first selection of an expert."""

    is_seen_CN: np.ndarray
    run_CN: np.ndarray
    is_lead_CN: np.ndarray
    """Whether no cluster before has the expert."""
    current_N: np.ndarray
    """The run that goes on at the end."""


def _seams(
    first_CN: np.ndarray, after_CN: np.ndarray, tokens_C: np.ndarray, order_C: np.ndarray
) -> _Seams:
    tokens_C = tokens_C[order_C].astype(np.int64)
    offset_C1 = (np.cumsum(tokens_C) - tokens_C)[:, None]
    after_CN = after_CN[order_C].astype(np.int64)
    is_seen_CN = after_CN > 0
    # Where the expert was last selected up to each cluster's end, plus one.
    last_CN = np.where(is_seen_CN, offset_C1 + after_CN, 0)
    last_CN = np.maximum.accumulate(last_CN, axis=0)
    before_CN = np.concatenate([np.zeros_like(last_CN[:1]), last_CN[:-1]])
    run_CN = np.where(is_seen_CN, offset_C1 + first_CN[order_C] - before_CN, 0)
    return _Seams(is_seen_CN, run_CN, before_CN == 0, tokens_C.sum() - last_CN[-1])


def _note_seams(
    seams: _Seams,
    window_W: np.ndarray,
    longest_N: np.ndarray,
    first_seen_N: np.ndarray,
    current_N: np.ndarray,
    windows_W3N: np.ndarray,
) -> None:
    is_first_CN = seams.is_seen_CN & seams.is_lead_CN
    is_selected_N = is_first_CN.any(axis=0)
    leading_N = np.where(is_first_CN, seams.run_CN, 0).sum(axis=0)
    first_seen_N[is_selected_N] = leading_N[is_selected_N]
    ends_CN = np.where(seams.is_seen_CN, seams.run_CN, 0)
    current_N[:] = seams.current_N
    np.maximum(longest_N, ends_CN.max(axis=0), out=longest_N, casting="unsafe")
    np.maximum(longest_N, current_N, out=longest_N)
    cluster, expert = np.nonzero(ends_CN >= window_W.min(initial=np.iinfo(np.int64).max))
    add_windows(windows_W3N, window_W, expert, ends_CN[cluster, expert])
    add_windows(windows_W3N, window_W, np.arange(len(longest_N)), current_N)


def longest_absence(counts_CN: np.ndarray, order_D: np.ndarray) -> np.ndarray:
    """Return the longest run of documents that never select each expert.

    Args:
        counts_CN: Selections of each expert in each document.
        order_D: The documents to go through, as indices into C: leave the few-shot prefixes out
            to count questions.

    Returns:
        int64 [N] in [0, D], in documents.
    """
    present_DN = counts_CN[order_D] > 0
    number_D1 = np.arange(1, len(order_D) + 1)[:, None]
    last_DN = np.maximum.accumulate(np.where(present_DN, number_D1, 0), axis=0)
    return np.asarray((number_D1 - last_DN).max(axis=0, initial=0))
