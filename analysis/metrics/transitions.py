"""Group I: what the experts of one MoE layer say about those of the next.

A table of flows counts tokens, or with all K x K pairs of slots pairs, by expert of a layer (row)
and expert of the next MoE layer (column). Expert indices of two layers have nothing in common.

Shape suffixes: N experts of a layer, M experts of the next, T tokens, K slots of a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moe_probe.analysis.metrics.information import mutual_information, uncertainty_coefficient
from moe_probe.analysis.statistics.undefined import positive

_BLOCK = 8192
"""Tokens scored at a time; bounds the memory to a few blocks [T, N] of float32."""


@dataclass(frozen=True)
class LayerInformation:
    """What the first choice in one layer tells of the first choice in the next."""

    bits: float
    """I, in [0, log2 min(N, M)]."""
    null_bits: float
    """What independent layers would show, at most: (N - 1)(M - 1) deff / (2 T ln 2). Less where
    documents do not have their own way in both layers."""
    share: float
    """U = I / H(next), the uncertainty coefficient: in [0, 1]; NaN where H is 0."""


def lift(flows_NM: np.ndarray) -> np.ndarray:
    """Return X_ij / (T p_i p_j), how many times as often a flow occurs as by chance.

    Chance is independence of the two layers at their own frequencies. For flows over all pairs
    of slots this is the same formula, X_ij sum(X) / (row sum x column sum), where k is fixed.

    Args:
        flows_NM: int64 [N, M].

    Returns:
        float64 [N, M] >= 0; NaN where one of the experts is unused.
    """
    return np.asarray(flows_NM / positive(independent_flows(flows_NM)))


def independent_flows(flows_NM: np.ndarray) -> np.ndarray:
    """Return T p_i p_j, the flows of independent layers with the same frequencies: float64 [N, M].

    Args:
        flows_NM: As in `lift`.
    """
    row_N, column_M = flows_NM.sum(axis=1).astype(np.float64), flows_NM.sum(axis=0)
    return np.asarray(np.outer(row_N, column_M) / max(int(flows_NM.sum()), 1))


def layer_information(flows_NM: np.ndarray, deff: float) -> LayerInformation:
    """Return the mutual information of first choices in two layers, and its null.

    Unused experts are not counted in the null's N and M: they leave nothing to vary.

    Args:
        flows_NM: Tokens by first choice in both layers, int64 [N, M].
        deff: Design effect of the documents.

    Returns:
        All NaN where there are no tokens.
    """
    tokens = int(flows_NM.sum())
    rows, columns = (np.count_nonzero(flows_NM.sum(axis=axis)) for axis in (1, 0))
    freedom = (rows - 1) * (columns - 1)
    return LayerInformation(
        bits=float(mutual_information(flows_NM)),
        null_bits=freedom * deff / (2 * tokens * math.log(2)) if tokens else math.nan,
        share=float(uncertainty_coefficient(flows_NM.T)),
    )


def set_flows(
    ids_TK: np.ndarray, next_ids_TK: np.ndarray, num_experts: int, num_next: int
) -> np.ndarray:
    """Count flows over all pairs of slots.

    Args:
        ids_TK: Experts of the tokens; ids of N and above are empty slots.
        next_ids_TK: Their experts in the next layer; ids of M and above are empty slots.
        num_experts: N.
        num_next: M.

    Returns:
        int64 [N, M], summing to T k^2 where no slot is empty.
    """
    flows_NM = np.zeros((num_experts, num_next), np.int64)
    for start in range(0, len(ids_TK), _BLOCK):
        block = slice(start, start + _BLOCK)
        here_TN = _multi_hot(ids_TK[block], num_experts)
        there_TM = _multi_hot(next_ids_TK[block], num_next)
        # Sums of a block are far below 2**24, where float32 is exact.
        flows_NM += (here_TN.T @ there_TM).astype(np.int64)
    return flows_NM


def foreseen(
    transition_NM: np.ndarray, ids_TK: np.ndarray, next_ids_TK: np.ndarray
) -> tuple[int, int]:
    """Return how many selections in the next layer a table of flows foresees, and of how many.

    The table ranks the next layer's experts by naive Bayes, log q_j + sum over i of
    log(P(j | i) / q_j) with i over the token's experts, and foresees as many as a token has
    slots. The share foreseen is the hit rate of a prefetcher that knows one layer and the table.
    Each row of the table counts one selection more, spread as the next layer's share q.

    Args:
        transition_NM: `set_flows` of other documents than those evaluated.
        ids_TK: Experts of the tokens to evaluate; ids of N and above are empty slots.
        next_ids_TK: Their experts in the next layer; ids of M and above are empty slots.

    Returns:
        Both numbers add up over tokens. An empty table foresees nothing. Null:
        `recall_of_most_frequent`.
    """
    num_experts, num_next = transition_NM.shape
    flows = transition_NM.sum()
    share_M = transition_NM.sum(axis=0) / max(flows, 1)
    # An expert that the table never saw in the next layer ranks last, with any lift.
    known_M = np.where(share_M > 0, share_M, np.finfo(np.float64).tiny)
    # The row's sum divides all of a row alike, and so changes no rank.
    evidence_NM = np.log((transition_NM + known_M) / known_M).astype(np.float32)
    prior_M = np.log(known_M).astype(np.float32)
    top_k = next_ids_TK.shape[1]
    hits = selected = 0
    for start in range(0, len(ids_TK), _BLOCK):
        block = slice(start, start + _BLOCK)
        is_next_TM = _multi_hot(next_ids_TK[block], num_next)
        selected += int(is_next_TM.sum())
        if flows:
            score_TM = _multi_hot(ids_TK[block], num_experts) @ evidence_NM + prior_M
            foreseen_TK = np.argpartition(-score_TM, top_k - 1, axis=1)[:, :top_k]
            hits += int(np.take_along_axis(is_next_TM, foreseen_TK, axis=1).sum())
    return hits, selected


def recall_of_most_frequent(fitted_M: np.ndarray, counts_M: np.ndarray, top_k: int) -> float:
    """Return the share of selections that go to the k experts most frequent elsewhere.

    Args:
        fitted_M: Selections in the documents that a table is made of.
        counts_M: Selections in those evaluated.
        top_k: k.

    Returns:
        In [0, 1]; NaN where nothing was selected. Under N0 k / M.
    """
    selected = counts_M.sum()
    if selected == 0:
        return math.nan
    return float(counts_M[np.argsort(-fitted_M, kind="stable")[:top_k]].sum() / selected)


def _multi_hot(ids_TK: np.ndarray, num_experts: int) -> np.ndarray:
    is_selected_TN = np.zeros((len(ids_TK), num_experts + 1), np.float32)
    # Empty slots fall into one column more, which is cut off.
    known_TK = np.minimum(ids_TK.astype(np.intp), num_experts)
    np.put_along_axis(is_selected_TN, known_TK, 1, axis=1)
    return is_selected_TN[:, :num_experts]
