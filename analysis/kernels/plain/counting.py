"""Counts by row, slot, pair and flow, and rows that look like a fault.

Shape suffixes: T tokens of a part, K slots, P pieces, G rows of a table, N experts of a layer,
C clusters, W windows, X lags, S groups, B batch sizes, L selections.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.kernels.plain.rows import by_weight
from moe_probe.analysis.reading.pieces import Pieces


def count_rows(table_GN: np.ndarray, ids_TK: np.ndarray, pieces: Pieces, row_P: np.ndarray) -> None:
    """Add every selection, times its piece's weight, to the row that its piece names.

    Ids of N and more, empty slots among them, are not counted.
    """
    rows, num_experts = table_GN.shape
    for weight, token_T, piece_T in by_weight(pieces):
        key_TK = np.minimum(ids_TK[token_T].astype(np.int64), num_experts)
        key_TK += (row_P[piece_T].astype(np.int64) * (num_experts + 1))[:, None]
        tally = np.bincount(key_TK.ravel(), minlength=rows * (num_experts + 1))
        counts_GN = tally.reshape(rows, num_experts + 1)[:, :num_experts] * weight
        table_GN += counts_GN.astype(table_GN.dtype)


def count_slots(table_KN: np.ndarray, ids_TK: np.ndarray, pieces: Pieces) -> None:
    """Add every selection, times its piece's weight, to the row of its slot."""
    num_experts = table_KN.shape[1]
    for weight, token_T, _ in by_weight(pieces):
        for slot, ids_T in enumerate(ids_TK[token_T].T):
            tally_N = np.bincount(ids_T, minlength=num_experts)
            table_KN[slot] += tally_N[:num_experts] * weight


def count_pairs(table_NN: np.ndarray, ids_TK: np.ndarray, pieces: Pieces) -> None:
    """Add every two experts of a token at [a, b] and [b, a]; an expert has no pair with itself."""
    num_experts = len(table_NN)
    for weight, token_T, _ in by_weight(pieces):
        ids_KT = np.minimum(ids_TK[token_T].T.astype(np.int64), num_experts)
        for i in range(len(ids_KT) - 1):
            for j in range(i + 1, len(ids_KT)):
                key_T = ids_KT[i] * (num_experts + 1) + ids_KT[j]
                tally = np.bincount(key_T, minlength=(num_experts + 1) ** 2)
                pairs_NN = tally.reshape(num_experts + 1, num_experts + 1)[:-1, :-1] * weight
                table_NN += pairs_NN + pairs_NN.T
    np.fill_diagonal(table_NN, 0)


def count_flows(table_NM: np.ndarray, from_T: np.ndarray, to_T: np.ndarray, pieces: Pieces) -> None:
    """Add every token at [its expert here, its expert there]."""
    shape = table_NM.shape
    for weight, token_T, _ in by_weight(pieces):
        here_T = np.minimum(from_T[token_T].astype(np.int64), shape[0])
        there_T = np.minimum(to_T[token_T].astype(np.int64), shape[1])
        key_T = here_T * (shape[1] + 1) + there_T
        tally = np.bincount(key_T, minlength=(shape[0] + 1) * (shape[1] + 1))
        table_NM += tally.reshape(shape[0] + 1, shape[1] + 1)[: shape[0], : shape[1]] * weight


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
