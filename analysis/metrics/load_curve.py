"""A1: a layer's loads from the largest to the smallest, and the same under even routing.

Shape suffixes: N experts of a layer, by rank from the most used.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betaincinv, ndtri

from moe_probe.analysis.metrics.frequency import relative_load


def load_curve(counts_N: np.ndarray) -> np.ndarray:
    """Return the relative loads in descending order: float64 [..., N], NaN without selections."""
    return -np.sort(-relative_load(counts_N), axis=-1)


def even_band(
    num_experts: int, top_k: float, tokens: float, *, coverage: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Return the band in which each rank of the load curve lies by chance (N0).

    Loads are 1 + CV0 sqrt(N / (N-1)) times N standard normals less their mean. The i-th largest
    normal is the normal quantile of a Beta(N - i + 1, i) variable; taking off the mean, which is
    independent of the differences, takes 1 / N from its variance (Basu), so both ends are drawn
    towards the median. Both ends are corrected for the skew of a count (Cornish-Fisher, first
    order) and lie half a count further out, since counts are whole: of few tokens the band holds
    more than it says, 97 to 99 % below 50 expected selections of an expert.

    Args:
        num_experts: N.
        top_k: k.
        tokens: T, over the design effect for documents instead of tokens; NaN gives NaN.
        coverage: Of each rank by itself, or a little more.

    Returns:
        Lower and upper end, float64 [N] each, in [0, N/k].
        Source: order statistics, David and Nagaraja (2003), section 2.1.
    """
    if not tokens > 0:
        return np.full(num_experts, np.nan), np.full(num_experts, np.nan)
    if top_k == num_experts:
        return np.ones(num_experts), np.ones(num_experts)
    fair = top_k / num_experts
    spread = math.sqrt((1 - fair) / (fair * tokens) * num_experts / (num_experts - 1))
    skew = (1 - 2 * fair) / math.sqrt(tokens * fair * (1 - fair))
    half = 0.5 / (tokens * fair)
    rank_N = np.arange(1, num_experts + 1)
    tail = (1 - coverage) / 2
    low_N, middle_N, high_N = (
        ndtri(betaincinv(num_experts - rank_N + 1, rank_N, level))
        for level in (tail, 0.5, 1 - tail)
    )
    sd_N = (high_N - low_N) / (2 * ndtri(1 - tail))
    kept_N = np.sqrt(np.maximum(1 - 1 / (num_experts * sd_N**2), 0))
    drawn = (middle_N + (end_N - middle_N) * kept_N for end_N in (low_N, high_N))
    low_N, high_N = (1 + spread * (end_N + skew / 6 * (end_N**2 - 1)) for end_N in drawn)
    most = num_experts / top_k
    return np.clip(low_N - half, 0, most), np.clip(high_N + half, 0, most)
