"""Group D, continued: how much the busiest and the least used experts carry (D12, D13).

Every index takes counts [..., N], reduces the last axis, and is NaN where nothing was selected.
Its null is the same index of `expected_loads`.

Shape suffixes: N experts of a layer, X values of a count, M numbers of experts, 0 to N; leading
axes, if any, are kept.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import bdtrc, gammaln, ndtri

from moe_probe.analysis.metrics.frequency import assignment_share

_FEW = 20
"""Expected selections of an expert below which loads are no normals."""


def top_share(counts_N: np.ndarray, fraction: float) -> np.ndarray:
    """Return the share of selections that the busiest experts take (D12).

    Args:
        counts_N: Selections, [..., N].
        fraction: Share of the N experts that is summed, in (0, 1], rounded up to whole experts.

    Returns:
        float64 [...] in [m/N, min(1, m/k)] for the m experts that are summed. Even load: m/N;
        chance makes it larger.
    """
    share_N = np.sort(assignment_share(counts_N), axis=-1)
    return np.asarray(share_N[..., -_whole(fraction, counts_N.shape[-1]) :].sum(axis=-1))


def bottom_share(counts_N: np.ndarray, fraction: float) -> np.ndarray:
    """Return the share of selections that the least used experts take (D12).

    Args:
        counts_N: Selections, [..., N].
        fraction: Share of the N experts that is summed, in (0, 1], rounded up to whole experts.

    Returns:
        float64 [...] in [0, m/N] for the m experts that are summed. Even load: m/N; chance makes
        it smaller.
    """
    share_N = np.sort(assignment_share(counts_N), axis=-1)
    return np.asarray(share_N[..., : _whole(fraction, counts_N.shape[-1])].sum(axis=-1))


def tail_ratio(counts_N: np.ndarray) -> np.ndarray:
    """Return the ratio of the 95th to the 5th percentile of the load over experts (D13).

    A single outlier does not move it, unlike MaxVio. Percentiles interpolate linearly.

    Args:
        counts_N: Selections, [..., N].

    Returns:
        float64 [...] in [1, inf); NaN where the 5th percentile is 0. Even load: 1.
    """
    low, high = np.quantile(assignment_share(counts_N), [0.05, 0.95], axis=-1)
    return np.asarray(high / np.where(low > 0, low, np.nan))


def expected_loads(num_experts: int, top_k: float, tokens: float) -> np.ndarray:
    """Return the relative loads that chance alone gives, sorted from the smallest.

    Expected order statistics of N normals (Blom's scores), with the variance of counts under N0
    (exchangeable top-k routing) and corrected for their skew (Cornish-Fisher, first order). An
    index of these loads is that index's null: `min_vio`, `top_share`, `bottom_share`,
    `tail_ratio`, `ranking.experts_to_cover`. Holds within 2 %. Below 20 expected selections of an
    expert (T k / N) the loads are order statistics of N binomial counts, and hold within 3 % down
    to one; `tail_ratio` is up to 6 % too small there, 12 % of 16 experts or fewer, and a share that
    is next to nothing is off by more.

    Args:
        num_experts: N.
        top_k: k.
        tokens: T; for documents instead of tokens, T over the design effect.

    Returns:
        float64 [N] with mean 1, not below 0; NaN where tokens is 0.
    """
    if tokens == 0:
        return np.full(num_experts, np.nan)
    if top_k == num_experts:
        return np.ones(num_experts)
    fair = top_k / num_experts
    spread = math.sqrt(num_experts / (num_experts - 1))
    if tokens * fair < _FEW:
        load_N = _loads_of_few(num_experts, fair, max(round(tokens), 1))
        load_N = np.maximum(1 + spread * (load_N - 1), 0.0)
        return np.asarray(load_N / load_N.mean())
    score_N = ndtri((np.arange(1, num_experts + 1) - 0.375) / (num_experts + 0.25))
    skew = (1 - 2 * fair) / math.sqrt(tokens * fair * (1 - fair))
    score_N = score_N + skew / 6 * (score_N**2 - 1)
    spread *= math.sqrt((num_experts - top_k) / (top_k * tokens))
    load_N = np.maximum(1 + spread * score_N, 0.0)
    return np.asarray(load_N / load_N.mean())


def _loads_of_few(num_experts: int, fair: float, tokens: int) -> np.ndarray:
    """Return the expected order statistics of N binomial counts over their mean: float64 [N]."""
    mean = tokens * fair
    most = min(tokens, math.ceil(mean + 12 * math.sqrt(mean) + 24))
    above_X = np.clip(bdtrc(np.arange(most), tokens, fair), 1e-300, 1 - 1e-16)
    number_M = np.arange(num_experts + 1)
    ways_M = gammaln(num_experts + 1) - gammaln(number_M + 1) - gammaln(num_experts - number_M + 1)
    logs_X1 = np.log(above_X)[:, None], np.log1p(-above_X)[:, None]
    chance_XM = np.exp(ways_M + logs_X1[0] * number_M + logs_X1[1] * (num_experts - number_M))
    # The i-th largest exceeds as many values as there are with i or more experts above them.
    at_least_M = chance_XM.sum(axis=0)[::-1].cumsum()[::-1]
    return np.asarray(at_least_M[:0:-1] / mean)


def _whole(fraction: float, num_experts: int) -> int:
    # 0.1 of 10 experts is 1 of them, whatever the product rounds to.
    return max(1, math.ceil(fraction * num_experts - 1e-9))
