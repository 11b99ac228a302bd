"""Group A: ranks of slots (A2), of experts (A7), and the experts that cover a share (A5).

Ranks count from the least used expert, which is 1. Experts with equal loads share a rank, so the
experts that nothing selected are one tier: nothing orders them among themselves.

Shape suffixes: N experts of a layer, K slots, P shares, B bootstrap replicates over documents.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from moe_probe.analysis.metrics.frequency import assignment_share, selection_frequency


def rank_frequency(rank_counts_KN: np.ndarray, tokens: int) -> np.ndarray:
    """Return the share of tokens that have each expert in each slot (A2).

    Args:
        rank_counts_KN: Times that each expert is in each slot, int64 [K, N]. Slots must be in
            the router's order or by descending weight; in any other order they mean nothing.
        tokens: T.

    Returns:
        float64 [K, N] in [0, 1]; a slot that every token fills sums to 1; NaN where T is 0.
        Null 1/N each. Source: Mixtral (2401.04088), "first choice".
    """
    return selection_frequency(rank_counts_KN, tokens)


def experts_to_cover(
    counts_N: np.ndarray, shares: Sequence[float] = (0.5, 0.8, 0.9, 0.99)
) -> np.ndarray:
    """Return how many of the busiest experts carry a given share of the selections (A5).

    Args:
        counts_N: Selections, [..., N].
        shares: Shares to cover, each in (0, 1].

    Returns:
        float64 [..., P] in [ceil(share k), N], whole experts; NaN where nothing was selected.
        Null: the same of `concentration.expected_loads`, which nears ceil(share N) as T grows.
        Source: ESFT (2407.01906), section 3.3.
    """
    sorted_N = np.sort(counts_N, axis=-1)[..., ::-1]
    covered_N = np.cumsum(sorted_N, axis=-1)
    total = covered_N[..., -1:]
    # 0.9 of 10 selections is 9 of them, whatever the product rounds to.
    needed_P = np.asarray(shares) * total * (1 - 1e-12)
    experts_P = (covered_N[..., None, :] < needed_P[..., :, None]).sum(axis=-1) + 1
    return np.where(total > 0, experts_P, np.nan)


def rank_from_least(load_N: np.ndarray) -> np.ndarray:
    """Return 1 + the number of experts that have less load; equal loads share a rank (A7).

    Args:
        load_N: Counts or relative loads, [..., N]. To rank the experts of several layers
            together, give relative loads: counts of different layers do not compare.

    Returns:
        int64 [..., N] in [1, N].
    """
    order_N = np.argsort(load_N, axis=-1)
    sorted_N = np.take_along_axis(load_N, order_N, axis=-1)
    is_new_N = np.ones(sorted_N.shape, bool)
    is_new_N[..., 1:] = sorted_N[..., 1:] > sorted_N[..., :-1]
    position_N = np.where(is_new_N, np.arange(1, load_N.shape[-1] + 1), 0)
    rank_N = np.empty(load_N.shape, np.int64)
    np.put_along_axis(rank_N, order_N, np.maximum.accumulate(position_N, axis=-1), axis=-1)
    return rank_N


def rank_interval(replicates_BN: np.ndarray, confidence: float = 0.95) -> np.ndarray:
    """Return the interval of every expert's rank over resampled documents (A7).

    "The least used expert" is a statement about the model only if its interval is short.

    Args:
        replicates_BN: Counts under Poisson weights of the documents, float64 [B, N].
        confidence: Share of the replicates between the two ends.

    Returns:
        float64 [2, N]: lowest and highest rank, whole, in [1, N]; NaN without replicates that
        count anything. Under N0 it spans nearly all ranks.
    """
    rank_BN = rank_from_least(_counted(replicates_BN))
    if not len(rank_BN):
        return np.full((2, replicates_BN.shape[1]), np.nan)
    tail = (1 - confidence) / 2
    low_N = np.quantile(rank_BN, tail, axis=0, method="lower")
    high_N = np.quantile(rank_BN, 1 - tail, axis=0, method="higher")
    return np.stack([low_N, high_N]).astype(np.float64)


def bottom_probability(replicates_BN: np.ndarray, number: int) -> np.ndarray:
    """Return how often each expert is among the `number` least used ones (A7).

    Args:
        replicates_BN: Counts under Poisson weights of the documents, float64 [B, N].
        number: m; an expert is among the m if fewer than m experts have less load.

    Returns:
        float64 [N] in [0, 1], summing to m, or more where loads are tied at the m-th place;
        NaN without replicates that count anything. Null m/N.
    """
    rank_BN = rank_from_least(_counted(replicates_BN))
    if not len(rank_BN):
        return np.full(replicates_BN.shape[1], np.nan)
    return np.asarray((rank_BN <= number).mean(axis=0))


def simultaneous_ranks(
    counts_N: np.ndarray, replicates_BN: np.ndarray, documents: int, level: float = 0.05
) -> np.ndarray:
    """Return bounds of the experts' true ranks that hold for all of them at once (A7).

    Each pair of experts is compared in both directions: one-sided t of the difference of their
    assignment shares, whose variance is that of the difference over the replicates and at least
    that of independent selections, since few counts may be alike by chance, and Holm's correction
    over all comparisons. m documents and B replicates tell a variance to
    1 / (1 / (m - 1) + 1 / B) degrees of freedom. An expert's lowest rank is 1 + the number of
    experts shown to have less load, its highest N - the number shown to have more. Comparing with
    the least used experts only would be too narrow, since the data choose which ones those are.

    Args:
        counts_N: Selections, int64 [N].
        replicates_BN: The same under Poisson weights of the documents, float64 [B, N].
        documents: m, what the replicates are drawn from.
        level: Chance that the bounds of any expert miss its rank.

    Returns:
        int64 [2, N], lowest and highest rank, in [1, N]. A pair whose difference has no spread
        over the replicates cannot be told apart, nor can any with fewer than two documents. Under
        N0 [1, N].
        Source: the pairwise construction of Mogstad et al. (2024), "Inference for ranks".
    """
    num_experts = len(counts_N)
    share_BN = assignment_share(_counted(replicates_BN))
    if min(len(share_BN), num_experts, documents) < 2:
        return np.repeat([[1], [num_experts]], num_experts, axis=1)
    # Resampling m documents varies less than drawing others does.
    covariance_NN = np.cov(share_BN, rowvar=False) * (documents / (documents - 1))
    variance_N = covariance_NN.diagonal()
    square_NN = np.maximum(variance_N[:, None] + variance_N - 2 * covariance_NN, 0.0)
    share_N = assignment_share(counts_N)
    more_NN = share_N[:, None] - share_N
    # What rounding leaves of a difference that never varies is no spread.
    varies_NN = square_NN > (1e-9 * more_NN) ** 2
    alone_NN = (share_N[:, None] + share_N - more_NN**2) / counts_N.sum()
    spread_NN = np.sqrt(np.maximum(square_NN, alone_NN))
    t_NN = np.divide(more_NN, spread_NN, out=np.zeros_like(more_NN), where=varies_NN)
    freedom = 1 / (1 / (documents - 1) + 1 / len(share_BN))
    is_more_NN = t_NN >= _holm_bound(t_NN, freedom, level)
    return np.stack([1 + is_more_NN.sum(axis=1), num_experts - is_more_NN.sum(axis=0)])


def bottom_set(
    counts_N: np.ndarray,
    replicates_BN: np.ndarray,
    documents: int,
    number: int,
    level: float = 0.05,
) -> np.ndarray:
    """Return the experts that may be among the `number` least used ones (A7).

    Args:
        counts_N: Selections, int64 [N].
        replicates_BN: The same under Poisson weights of the documents, float64 [B, N].
        documents: What the replicates are drawn from.
        number: How many; an expert is left out if so many are shown to have less load.
        level: Chance of leaving out any expert that belongs in the set.

    Returns:
        bool [N]: in the set; at least `number` experts. Under N0 all.
    """
    low_N, _ = simultaneous_ranks(counts_N, replicates_BN, documents, level)
    return np.asarray(low_N <= number)


def _holm_bound(t_NN: np.ndarray, freedom: float, level: float) -> float:
    """Return the smallest t that one-sided tests of all pairs reject by Holm's step-down rule.

    Rejections raise the bound of what is left to test until they reject no more: without a sort.
    """
    tests, rejected = len(t_NN) * (len(t_NN) - 1), -1
    bound, found = np.inf, 0
    while found > rejected:
        rejected = found
        # The last hypothesis is tested at the full level.
        bound = -stdtrit(freedom, level / max(tests - rejected, 1))
        found = int(np.count_nonzero(t_NN >= bound))
    return float(bound)


def _counted(replicates_BN: np.ndarray) -> np.ndarray:
    # A replicate that draws no document at all counts nothing: it ranks nothing.
    return np.asarray(replicates_BN[replicates_BN.sum(axis=1) > 0])
