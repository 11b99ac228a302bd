"""Overlaps of tokens' experts with those of earlier tokens, and how uneven batches are.

Shape suffixes: T tokens of a part, K slots, P pieces, G rows of a table, N experts of a layer,
C clusters, W windows, X lags, S groups, B batch sizes, L selections.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.kernels.plain.rows import by_weight, run_starts
from moe_probe.analysis.kernels.tables import OverlapTables
from moe_probe.analysis.pieces import Pieces


def count_overlaps(
    tables: OverlapTables, ids_TK: np.ndarray, pieces: Pieces, num_experts: int
) -> None:
    """Compare each token's experts with those of the tokens before it, within joined pieces.

    Adds per lag pairs, common experts, pairs with any, with equal first slots, and with equal sets,
    each times the later token's weight. Empty slots equal nothing. `other_SX5` gets the same of
    pairs whose tokens differ.
    """
    sums_SX5, other_SX5, row_P, lag_X, repeats_T = tables
    run_start_P = run_starts(pieces)
    for weight, token_T, piece_T in by_weight(pieces):
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
