"""AG1 and AG2: what two runs select for the same token.

Shape suffixes: T tokens, K slots of the reference, J slots of the other run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PERSISTENCE = 0.9
"""Of the rank-biased overlap: how likely a reader of the ranking goes on to the next rank."""


@dataclass(frozen=True)
class Agreement:
    """Of each token, in one layer."""

    overlap_T: np.ndarray
    """Common experts over the mean number of both, in [0, 1]; 1 where neither selects any."""
    equal_T: np.ndarray
    """Whether both sets are equal."""
    lost_TK: np.ndarray
    """Whether the other run lacks the expert of each slot of the reference."""
    place_TK: np.ndarray
    """Slot of the other run that has it, J where none does."""


def compare_sets(first_TK: np.ndarray, second_TJ: np.ndarray, num_experts: int) -> Agreement:
    """Compare sets of experts.

    Args:
        first_TK: Ids of the reference; those of N and more are empty slots.
        second_TJ: Of the other run.
        num_experts: N.

    Source: router saturation, OLMoE (2409.02060), equation 5, for `overlap_T`.
    """
    is_real_TK = first_TK < num_experts
    slots = second_TJ.shape[1]
    # Whatever the widths of both: an id that one type lacks equals nothing.
    place_TK = np.full(first_TK.shape, slots, np.int64)
    for slot in range(slots - 1, -1, -1):
        place_TK[is_real_TK & (first_TK == second_TJ[:, slot, None])] = slot
    is_found_TK = place_TK < slots
    common_T = is_found_TK.sum(axis=1)
    sizes_T = is_real_TK.sum(axis=1) + (second_TJ < num_experts).sum(axis=1)
    # A damaged row can name an expert twice.
    overlap_T = np.minimum(2 * common_T / np.maximum(sizes_T, 1), 1.0)
    overlap_T[sizes_T == 0] = 1.0
    return Agreement(overlap_T, overlap_T == 1.0, is_real_TK & ~is_found_TK, place_TK)


def first_equal(first_TK: np.ndarray, second_TJ: np.ndarray, num_experts: int) -> np.ndarray:
    """Return whether both select an expert first, and the same: bool [T]."""
    return np.asarray((first_TK[:, 0] < num_experts) & (first_TK[:, 0] == second_TJ[:, 0]))


def rank_overlap(place_TK: np.ndarray, slots: int) -> np.ndarray:
    """Return the rank-biased overlap of two rankings, cut at their length and scaled to 1.

    sum over depths d of p^(d-1) times the share of the first d that both have, over sum p^(d-1).

    Args:
        place_TK: From `compare_sets`.
        slots: J.

    Returns:
        float64 [T] in [0, 1]. Source: Webber, Moffat and Zobel (2010), equation 4.
    """
    depth = max(place_TK.shape[1], slots)
    weight_D = PERSISTENCE ** np.arange(depth)
    # An expert counts at every depth from the later of its two ranks on.
    tail = np.cumsum((weight_D / np.arange(1, depth + 1))[::-1])[::-1] / weight_D.sum()
    later_TK = np.maximum(place_TK, np.arange(place_TK.shape[1]))
    gain_TK = np.append(tail, 0.0)[np.where(place_TK < slots, later_TK, depth)]
    return np.asarray(np.minimum(gain_TK.sum(axis=1), 1.0))


def weight_difference(
    place_TK: np.ndarray, first_TK: np.ndarray, second_TJ: np.ndarray
) -> np.ndarray:
    """Return 1/2 sum over experts of abs(g - g'), the share of gate weight that is elsewhere.

    Weights are first divided by the token's total, since engines scale them differently.

    Args:
        place_TK: From `compare_sets`.
        first_TK: Gate weights of the reference, 0 in empty slots.
        second_TJ: Of the other run.

    Returns:
        float64 [T] in [0, 1]; NaN where a run has no weight.
    """
    share_TK, share_TJ = (_shares(weights) for weights in (first_TK, second_TJ))
    # What the other run lacks has no weight there, but for a token without any at all.
    nothing_T1 = 0 * share_TJ.sum(axis=1, keepdims=True)
    padded = np.concatenate([share_TJ, nothing_T1], axis=1)
    kept_TK = np.minimum(share_TK, np.take_along_axis(padded, place_TK, axis=1))
    return np.asarray(np.clip(1 - kept_TK.sum(axis=1), 0.0, 1.0))


def _shares(weights_TK: np.ndarray) -> np.ndarray:
    weights_TK = weights_TK.astype(np.float64)
    total_T1 = weights_TK.sum(axis=1, keepdims=True)
    return np.asarray(weights_TK / np.where(total_T1 > 0, total_T1, np.nan))
