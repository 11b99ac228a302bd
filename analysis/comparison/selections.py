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
    size_T: np.ndarray
    """Harmonic mean of the numbers of both, 0 where one selects none: times their chance of any
    one expert it is the overlap of sets drawn at random."""
    depth_T: np.ndarray
    """Slots up to the last one that either fills."""
    slots: int
    """J."""


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
    is_real_TJ = second_TJ < num_experts
    number_T, other_T = is_real_TK.sum(axis=1), is_real_TJ.sum(axis=1)
    sizes_T = number_T + other_T
    # A damaged row can name an expert twice.
    overlap_T = np.minimum(2 * common_T / np.maximum(sizes_T, 1), 1.0)
    overlap_T[sizes_T == 0] = 1.0
    return Agreement(
        overlap_T=overlap_T,
        equal_T=overlap_T == 1.0,
        lost_TK=is_real_TK & ~is_found_TK,
        place_TK=place_TK,
        size_T=2 * number_T * other_T / np.maximum(sizes_T, 1),
        depth_T=np.maximum(_filled(is_real_TK), _filled(is_real_TJ)),
        slots=slots,
    )


def first_filled(
    first_TK: np.ndarray, second_TJ: np.ndarray, num_experts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return of how many runs, 0 to 2, the first slot is filled, and whether both are equal.

    Two empty slots are equal: int64 [T] and bool [T].
    """
    slot_T, other_T = (
        np.minimum(ids[:, 0].astype(np.int64), num_experts) for ids in (first_TK, second_TJ)
    )
    filled_T = (slot_T < num_experts).astype(np.int64) + (other_T < num_experts)
    return filled_T, slot_T == other_T


def rank_overlap(found: Agreement) -> np.ndarray:
    """Return the rank-biased overlap of two rankings, cut at their length and scaled to 1.

    sum over depths d of p^(d-1) times the share of the first d that both have, over sum p^(d-1),
    up to the last slot that either run fills.

    Args:
        found: From `compare_sets`.

    Returns:
        float64 [T] in [0, 1]; 1 where neither selects any. Source: Webber, Moffat and Zobel (2010),
        equation 4.
    """
    depth = int(found.depth_T.max(initial=0))
    weight_D = PERSISTENCE ** np.arange(depth)
    whole_D, gain_D = (
        np.concatenate([[0.0], np.cumsum(term_D)])
        for term_D in (weight_D, weight_D / np.arange(1, depth + 1))
    )
    # An expert counts at every depth from the later of its two ranks on.
    later_TK = np.maximum(found.place_TK, np.arange(found.place_TK.shape[1]))
    is_common_TK = found.place_TK < found.slots
    gain_TK = gain_D[found.depth_T][:, None] - gain_D[np.where(is_common_TK, later_TK, 0)]
    sum_T = np.where(is_common_TK, gain_TK, 0).sum(axis=1)
    is_any_T = found.depth_T > 0
    return np.where(
        is_any_T, np.minimum(sum_T / np.where(is_any_T, whole_D[found.depth_T], 1), 1), 1
    )


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


def _filled(is_real_TK: np.ndarray) -> np.ndarray:
    return np.asarray((is_real_TK * np.arange(1, is_real_TK.shape[1] + 1)).max(axis=1))


def _shares(weights_TK: np.ndarray) -> np.ndarray:
    weights_TK = weights_TK.astype(np.float64)
    total_T1 = weights_TK.sum(axis=1, keepdims=True)
    return np.asarray(weights_TK / np.where(total_T1 > 0, total_T1, np.nan))
