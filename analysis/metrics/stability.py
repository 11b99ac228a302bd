"""A8: whether two halves of the documents rank the experts alike.

A ranking that is no more stable than chance allows must not be reported. Halves are halves of
the documents (by parity of a hash), never of the tokens: tokens of one document are alike.

Shape suffixes: N experts of a layer; leading axes, if any, are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moe_probe.analysis.metrics.divergence import jensen_shannon
from moe_probe.analysis.metrics.ranking import rank_from_least
from moe_probe.analysis.statistics.clusters import (
    ClusterMoments,
    cluster_variance,
    design_effect,
    stratified_variance,
)
from moe_probe.analysis.statistics.moderated import length_correction
from moe_probe.analysis.statistics.random_sets import divergence_bias
from moe_probe.analysis.statistics.undefined import positive


def spearman(first_N: np.ndarray, second_N: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of the loads of two halves.

    Args:
        first_N: Counts of one half, [..., N].
        second_N: Counts of the other half, [..., N].

    Returns:
        float64 [...] in [-1, 1], with mean ranks for ties; NaN where all experts of a half are
        tied. If the order is noise alone: mean 0, sd 1 / sqrt(N - 1).
    """
    x_N, y_N = (_mean_rank(half_N) for half_N in (first_N, second_N))
    x_N = x_N - x_N.mean(axis=-1, keepdims=True)
    y_N = y_N - y_N.mean(axis=-1, keepdims=True)
    norm = np.sqrt((x_N**2).sum(axis=-1) * (y_N**2).sum(axis=-1))
    return np.asarray((x_N * y_N).sum(axis=-1) / np.where(norm > 0, norm, np.nan))


def bottom_overlap(first_N: np.ndarray, second_N: np.ndarray, number: int) -> np.ndarray:
    """Return the share of the `number` least used experts that two halves have in common.

    Experts tied at the m-th place share the places that are left, as if drawn at random.

    Args:
        first_N: Counts of one half, [..., N].
        second_N: Counts of the other half, [..., N].
        number: m, in [1, N].

    Returns:
        float64 [...] in [0, 1]; NaN where a half counts nothing. If the order is noise alone,
        m/N.
    """
    common = (_membership(first_N, number) * _membership(second_N, number)).sum(axis=-1) / number
    counted = (first_N.sum(axis=-1) > 0) & (second_N.sum(axis=-1) > 0)
    return np.where(counted, common, np.nan)


def top_overlap(first_N: np.ndarray, second_N: np.ndarray, number: int) -> np.ndarray:
    """Return the share of the `number` busiest experts that two halves have in common.

    Arguments, range and null as in `bottom_overlap`.
    """
    common = (_membership(-1.0 * first_N, number) * _membership(-1.0 * second_N, number)).sum(
        axis=-1
    ) / number
    counted = (first_N.sum(axis=-1) > 0) & (second_N.sum(axis=-1) > 0)
    return np.where(counted, common, np.nan)


def split_divergence(first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence of two halves of one layer, in bits.

    Both halves weigh the same.

    Args:
        first_N: Counts of one half, [N].
        second_N: Counts of the other half, [N].

    Returns:
        In [0, 1]; NaN where a half counts nothing. Null: `split_null`.
    """
    return float(jensen_shannon(np.stack([first_N, second_N]))[0, 1])


@dataclass(frozen=True)
class SplitNull:
    """What two halves are to each other by chance."""

    spearman_sd: float
    """Sd of Spearman's correlation around 0, if the order is noise alone."""
    overlap: float
    """Mean of `bottom_overlap` and `top_overlap`, if the order is noise alone."""
    overlap_sd: float
    """Sd of the same."""
    divergence: float
    """Mean of `split_divergence` in bits, if the halves differ by noise alone."""


def split_null(
    num_experts: int, top_k: float, assignments: tuple[int, int], number: int, deff: float = 1.0
) -> SplitNull:
    """Return what chance alone gives.

    The correlation and the overlap are those of two independent random orders (a hypergeometric
    draw). The divergence is the design effect times `divergence_bias`, whatever the experts' true
    shares are.

    Args:
        num_experts: N; of experts that something selects, where some are idle.
        top_k: k.
        assignments: A of the two halves; about T k / 2 each.
        number: m of the overlaps, in [1, N].
        deff: How many times larger the divergence is than for independent tokens:
            `divergence_deff` for halves of documents.

    Returns:
        The null; sd of the correlation is NaN for one expert, the divergence for an empty half.
    """
    share = number / num_experts
    others = num_experts - 1
    bias = divergence_bias(num_experts, top_k, *assignments) if all(assignments) else math.nan
    return SplitNull(
        spearman_sd=1 / math.sqrt(others) if others else math.nan,
        overlap=share,
        overlap_sd=(1 - share) / math.sqrt(others) if others else 0.0,
        divergence=float(np.minimum(deff * bias, 1.0)),
    )


def divergence_deff(moments: ClusterMoments, *, within_subjects: bool = False) -> float:
    """Return by how much documents inflate the divergence of two random halves of them.

    The mean of the experts' design effects with weights 1 - p: to first order the divergence is a
    sum over experts of Var(p) / p, and Var(p) is p (1 - p) deff / T. A median would not do, as
    the experts of few documents, whose design effect is largest, add most. Unlike `deff` of one
    expert it is corrected for the documents' lengths (`length_correction`), unless within subjects.

    Args:
        moments: Of the documents that are halved.
        within_subjects: Halves have as much of every subject; else subjects are as they come.

    Returns:
        NaN where no expert has a design effect.
    """
    pooled = moments.pooled()
    if not within_subjects:
        return float(divergence_deffs(pooled)[0])
    share_N = pooled.c_SN[0] / positive(pooled.n_S)
    deff_N = design_effect(stratified_variance(moments), share_N, pooled.n_S)
    return float(_mean_deff(deff_N, share_N))


def divergence_deffs(moments: ClusterMoments) -> np.ndarray:
    """Return the same of each subject alone, for any divergence or information it is part of.

    Returns:
        float64 [S]; NaN where no expert has a design effect.
    """
    tokens_S1 = moments.n_S[:, None]
    share_SN = moments.c_SN / positive(tokens_S1)
    deff_SN = design_effect(cluster_variance(moments), share_SN, tokens_S1)
    return np.asarray(_mean_deff(deff_SN, share_SN) * length_correction(moments))


def _mean_deff(deff_N: np.ndarray, share_N: np.ndarray) -> np.ndarray:
    """Mean over experts with weights 1 - p, [...]."""
    weight_N = np.where(np.isnan(deff_N), 0.0, 1 - share_N)
    return np.asarray((np.nan_to_num(deff_N) * weight_N).sum(-1) / positive(weight_N.sum(-1)))


def _mean_rank(counts_N: np.ndarray) -> np.ndarray:
    # From the least and from the busiest: half the difference is the mean rank, up to a constant.
    return np.asarray((rank_from_least(counts_N) - rank_from_least(-1.0 * counts_N)) / 2)


def _membership(load_N: np.ndarray, number: int) -> np.ndarray:
    """Return the chance of each expert to be among the `number` of least load, [..., N]."""
    rank_N = rank_from_least(load_N)
    first_N = np.where(rank_N <= number, rank_N, 0).max(axis=-1, keepdims=True)
    tied_N = rank_N == first_N
    places = number + 1 - first_N
    return np.where(tied_N, places / tied_N.sum(axis=-1, keepdims=True), rank_N < first_N)
