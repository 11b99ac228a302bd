"""Overlaps of tokens' experts with those of earlier tokens, and how uneven batches are.

Shape suffixes: T tokens of a part, K slots, P pieces, G rows of a table, N experts of a layer,
C clusters, W windows, X lags, S groups, B batch sizes, L selections.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.kernels.plain.rows import by_weight, run_starts
from moe_probe.analysis.kernels.tables import OverlapTables
from moe_probe.analysis.reading.pieces import Pieces


def count_overlaps(
    tables: OverlapTables, ids_TK: np.ndarray, pieces: Pieces, num_experts: int
) -> None:
    """Compare each token's experts with those of the tokens before it, within joined pieces.

    Adds per lag pairs, common experts, pairs with any, with equal first slots, and with equal sets,
    each times the later token's weight. Empty slots equal nothing. `other_SX5` gets the same of
    pairs whose tokens differ.
    """
    sums_SX5, other_SX5, row_P, lag_X, repeats_T = tables
    run_start_P, groups = run_starts(pieces), by_weight(pieces)
    # Columns in contiguous memory are compared fastest.
    ids_KT = np.ascontiguousarray(ids_TK.T)
    value_V5 = _values(len(ids_KT))
    for x, lag in enumerate(lag_X.tolist()):
        later_KT, earlier_KT = ids_KT[:, lag:], ids_KT[:, : max(ids_KT.shape[1] - lag, 0)]
        code_T = _compare(later_KT, earlier_KT, num_experts)
        for weight, token_T, piece_T in groups:
            is_pair_T = token_T - lag >= run_start_P[piece_T]
            later_T = token_T[is_pair_T]
            key_T = row_P[piece_T[is_pair_T]] * len(value_V5) + code_T[later_T - lag]
            _add(sums_SX5[:, x], key_T, value_V5 * weight)
            if len(repeats_T):
                differs_T = (repeats_T[later_T] >> x) & 1 == 0
                _add(other_SX5[:, x], key_T[differs_T], value_V5 * weight)


def _compare(later_KT: np.ndarray, earlier_KT: np.ndarray, num_experts: int) -> np.ndarray:
    """Return a row of `_values` for each pair of tokens: int64 [T]."""
    is_real_KT = later_KT < num_experts
    common_T = np.zeros(later_KT.shape[1], np.int64)
    for ids_T, is_real_T in zip(later_KT, is_real_KT, strict=True):
        is_common_T = np.zeros(len(ids_T), bool)
        for earlier_T in earlier_KT:
            is_common_T |= ids_T == earlier_T
        common_T += is_common_T & is_real_T
    is_first_T = is_real_KT[0] & (later_KT[0] == earlier_KT[0])
    most_T = np.maximum(is_real_KT.sum(axis=0), (earlier_KT < num_experts).sum(axis=0))
    return np.asarray(common_T * 4 + is_first_T * 2 + (common_T == most_T))


def _values(slots: int) -> np.ndarray:
    """What a pair adds: 1, experts in common, whether any, whether the first, whether all."""
    code_V = np.arange(4 * (slots + 1))
    common_V = code_V // 4
    columns = (np.ones_like(code_V), common_V, common_V > 0, code_V // 2 % 2, code_V % 2)
    return np.stack(columns, axis=1).astype(np.int64)


def _add(sums_S5: np.ndarray, key_T: np.ndarray, value_V5: np.ndarray) -> None:
    tally = np.bincount(key_T, minlength=len(sums_S5) * len(value_V5))
    sums_S5 += tally.reshape(len(sums_S5), len(value_V5)) @ value_V5


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
    """Cut the tokens into batches of each size, and add up how uneven the full ones are.

    Adds their number, max / mean, its square, the coefficient of variation, and 1 / sqrt of their
    selections. Each size is a multiple of the one before. Tokens of a batch that is not full yet
    stay in `current_BN`; those of one that began earlier than these arrays go to `head_BN`, if
    `is_first_B` says so.
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
            if is_first_B[number]:
                head_BN[number], is_first_B[number] = current_BN[number], False
            else:
                add_batch(stats_B5[number], current_BN[number])
            if number + 1 < len(size_B):
                current_BN[number + 1] += current_BN[number]
                filled_B[number + 1] += size
            current_BN[number] = 0
            filled_B[number] = 0


def add_batch(stats_5: np.ndarray, counts_N: np.ndarray) -> None:
    """Add a full batch to `count_batches`' sums of one size, unless it selects nothing."""
    mean = counts_N.mean()
    if mean > 0:
        ratio = counts_N.max() / mean
        stats_5 += (1, ratio, ratio * ratio, counts_N.std() / mean, counts_N.sum() ** -0.5)
