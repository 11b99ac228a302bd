"""The inner loops of the scan in numpy, for traces too small to wait for a compiler.

Same functions, same arguments and same results as `compiled`; they add to arrays in place.

Shape suffixes: T tokens of a part, K slots, P pieces, G rows of a table, N experts of a layer,
C clusters, W windows, B position bins.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moe_probe.analysis.pieces import Pieces


def count_rows(table_GN: np.ndarray, ids_TK: np.ndarray, pieces: Pieces, row_P: np.ndarray) -> None:
    """Add every selection, times its piece's weight, to the row that its piece names.

    Ids of N and more, empty slots among them, are not counted.
    """
    rows, num_experts = table_GN.shape
    for weight, token_T, piece_T in _by_weight(pieces):
        key_TK = np.minimum(ids_TK[token_T].astype(np.int64), num_experts)
        key_TK += (row_P[piece_T] * (num_experts + 1))[:, None]
        tally = np.bincount(key_TK.ravel(), minlength=rows * (num_experts + 1))
        counts_GN = tally.reshape(rows, num_experts + 1)[:, :num_experts] * weight
        table_GN += counts_GN.astype(table_GN.dtype)


def count_slots(table_KN: np.ndarray, ids_TK: np.ndarray, pieces: Pieces) -> None:
    """Add every selection, times its piece's weight, to the row of its slot."""
    num_experts = table_KN.shape[1]
    for weight, token_T, _ in _by_weight(pieces):
        for slot, ids_T in enumerate(ids_TK[token_T].T):
            tally_N = np.bincount(ids_T, minlength=num_experts)
            table_KN[slot] += tally_N[:num_experts] * weight


def count_pairs(table_NN: np.ndarray, ids_TK: np.ndarray, pieces: Pieces) -> None:
    """Add every two experts of a token at [i, j], i in an earlier slot than j."""
    num_experts = len(table_NN)
    for weight, token_T, _ in _by_weight(pieces):
        ids_KT = np.minimum(ids_TK[token_T].T.astype(np.int64), num_experts)
        for i in range(len(ids_KT) - 1):
            for j in range(i + 1, len(ids_KT)):
                key_T = ids_KT[i] * (num_experts + 1) + ids_KT[j]
                tally = np.bincount(key_T, minlength=(num_experts + 1) ** 2)
                pairs = tally.reshape(num_experts + 1, num_experts + 1)
                table_NN += pairs[:num_experts, :num_experts] * weight


def count_flows(table_NM: np.ndarray, from_T: np.ndarray, to_T: np.ndarray, pieces: Pieces) -> None:
    """Add every token at [its expert here, its expert there]."""
    shape = table_NM.shape
    for weight, token_T, _ in _by_weight(pieces):
        here_T = np.minimum(from_T[token_T].astype(np.int64), shape[0])
        there_T = np.minimum(to_T[token_T].astype(np.int64), shape[1])
        key_T = here_T * (shape[1] + 1) + there_T
        tally = np.bincount(key_T, minlength=(shape[0] + 1) * (shape[1] + 1))
        table_NM += tally.reshape(shape[0] + 1, shape[1] + 1)[: shape[0], : shape[1]] * weight


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
    """Compare each token's experts with those of the tokens before it, within joined pieces.

    Adds per lag pairs, common experts, pairs with any, with equal first slots, and with equal sets,
    each times the later token's weight. Empty slots equal nothing. `other_SX5` gets the same of
    pairs whose tokens differ: bit x of `repeats_T` says that a token is that of lag x; if it is
    empty there are none.
    """
    run_start_P = _run_starts(pieces)
    for weight, token_T, piece_T in _by_weight(pieces):
        for x, lag in enumerate(lag_X.tolist()):
            is_pair_T = token_T - lag >= run_start_P[piece_T]
            later_T, row_T = token_T[is_pair_T], row_P[piece_T[is_pair_T]]
            value_T5 = _compare(ids_TK[later_T], ids_TK[later_T - lag], num_experts) * weight
            np.add.at(sums_SX5[:, x], row_T, value_T5)
            if len(repeats_T):
                differs_T = (repeats_T[later_T] >> x) & 1 == 0
                np.add.at(other_SX5[:, x], row_T[differs_T], value_T5[differs_T])


def _compare(later_TK: np.ndarray, earlier_TK: np.ndarray, num_experts: int) -> np.ndarray:
    is_real_TK, was_real_TK = later_TK < num_experts, earlier_TK < num_experts
    common_T = np.zeros(len(later_TK), np.int64)
    for ids_T, is_real_T in zip(later_TK.T, is_real_TK.T, strict=True):
        common_T += is_real_T & (earlier_TK == ids_T[:, None]).any(axis=1)
    is_first_T = is_real_TK[:, 0] & (later_TK[:, 0] == earlier_TK[:, 0])
    most_T = np.maximum(is_real_TK.sum(axis=1), was_real_TK.sum(axis=1))
    columns = (np.ones_like(common_T), common_T, common_T > 0, is_first_T, common_T == most_T)
    return np.stack(columns, axis=1).astype(np.int64)


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
    """Go through tokens in order and note, per cluster and expert, where idle runs begin and end.

    first_CN and after_CN are where a cluster's first selection of an expert is and where the
    token after its last is, counted from the cluster's beginning; after is 0 where there is none.
    The other tables sum over the runs between two selections of one cluster; see `Gaps`.
    """
    num_experts = len(longest_N)
    for start, stop, cluster in zip(
        pieces.start_P.tolist(), pieces.stop_P.tolist(), pieces.cluster_P.tolist(), strict=True
    ):
        ids_LK = ids_TK[start:stop]
        where_L, slot_L = np.nonzero(ids_LK < num_experts)
        expert_L = ids_LK[where_L, slot_L].astype(np.int64)
        place_L = where_L + next_C[cluster]
        order_L = np.argsort(expert_L, kind="stable")
        expert_L, place_L = expert_L[order_L], place_L[order_L]
        is_first_L = np.diff(expert_L, prepend=-1) != 0
        before_L = np.concatenate([[0], place_L[:-1] + 1]) if len(place_L) else place_L
        before_L[is_first_L] = after_CN[cluster, expert_L[is_first_L]]
        is_lead_L = before_L == 0
        first_CN[cluster, expert_L[is_lead_L]] = place_L[is_lead_L]
        is_last_L = np.diff(expert_L, append=num_experts) != 0
        after_CN[cluster, expert_L[is_last_L]] = place_L[is_last_L] + 1
        gap_L, expert_L = (place_L - before_L)[~is_lead_L], expert_L[~is_lead_L]
        np.add.at(square_sum_N, expert_L, (gap_L + 1) ** 2)
        np.maximum.at(longest_N, expert_L, gap_L)
        bin_L = np.frexp(gap_L.astype(np.float64))[1]
        np.add.at(histogram_KH[0], bin_L, 1)
        add_windows(windows_W3N, window_W, expert_L, gap_L)
        next_C[cluster] += stop - start


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
    unseen: int,
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


def inspect_rows(ids_TK: np.ndarray, num_experts: int, none_id: int) -> np.ndarray:
    """Count rows that name an expert twice, of zeros only, that read 0, 1, 2, ..., and with an id
    that the layer lacks and that is not `none_id`: int64 [4]."""
    # Columns in contiguous memory: comparing all pairs of them is faster than sorting rows.
    ids_KT = np.ascontiguousarray(ids_TK.T).astype(np.int64)
    is_empty_KT = ids_KT == none_id
    twice_T = np.zeros(ids_KT.shape[1], bool)
    for first in range(len(ids_KT)):
        for second in range(first + 1, len(ids_KT)):
            twice_T |= (ids_KT[first] == ids_KT[second]) & ~is_empty_KT[first]
    zero_T = (ids_KT == 0).all(axis=0)
    ordered_T = (ids_KT == np.arange(len(ids_KT))[:, None]).all(axis=0)
    foreign_T = ((ids_KT >= num_experts) & ~is_empty_KT).any(axis=0)
    return np.array([found_T.sum() for found_T in (twice_T, zero_T, ordered_T, foreign_T)])


def count_batches(
    stats_B4: np.ndarray,
    current_BN: np.ndarray,
    filled_B: np.ndarray,
    size_B: np.ndarray,
    ids_TK: np.ndarray,
    pieces: Pieces,
) -> None:
    """Cut the tokens into batches of each size, and add up how uneven the full ones are.

    Adds their number, max / mean, its square, and the coefficient of variation. Each size is a
    multiple of the one before. Tokens of a batch that is not full yet stay in `current_BN`.
    """
    rows = [np.arange(a, b) for a, b in zip(pieces.start_P, pieces.stop_P, strict=True)]
    token_T = np.concatenate([np.empty(0, np.int64), *rows])
    num_experts = current_BN.shape[1]
    done = 0
    while done < len(token_T):
        stop = min(done + int(size_B[0] - filled_B[0]), len(token_T))
        ids = ids_TK[token_T[done:stop]].ravel()
        tally_N = np.bincount(ids, minlength=num_experts)[:num_experts]
        current_BN[0] += tally_N
        filled_B[0] += stop - done
        done = stop
        for number, size in enumerate(size_B.tolist()):
            if filled_B[number] < size:
                break
            _add_batch(stats_B4[number], current_BN[number])
            if number + 1 < len(size_B):
                current_BN[number + 1] += current_BN[number]
                filled_B[number + 1] += size
            current_BN[number] = 0
            filled_B[number] = 0


def _add_batch(stats_4: np.ndarray, counts_N: np.ndarray) -> None:
    mean = counts_N.mean()
    if mean > 0:
        ratio = counts_N.max() / mean
        stats_4 += (1, ratio, ratio * ratio, counts_N.std() / mean)


def _by_weight(pieces: Pieces) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Rows and their pieces, by weight."""
    groups = []
    for weight in np.unique(pieces.weight_P).tolist():
        chosen_P = np.flatnonzero(pieces.weight_P == weight)
        length_P = pieces.length_P[chosen_P]
        piece_T = np.repeat(chosen_P, length_P)
        begins_P = np.cumsum(length_P) - length_P
        token_T = np.arange(len(piece_T)) + np.repeat(pieces.start_P[chosen_P] - begins_P, length_P)
        groups.append((weight, token_T, piece_T))
    return groups


def _run_starts(pieces: Pieces) -> np.ndarray:
    """Row at which the chain of joined pieces begins that each piece belongs to."""
    begins_P = np.where(pieces.joins_P, 0, np.arange(len(pieces)))
    return np.asarray(pieces.start_P[np.maximum.accumulate(begins_P)]) if len(pieces) else begins_P
