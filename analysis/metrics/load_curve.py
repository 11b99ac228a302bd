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
    towards the median. Good from 50 expected selections an expert on.

    Args:
        num_experts: N.
        top_k: k.
        tokens: T, over the design effect for documents instead of tokens; NaN gives NaN.
        coverage: Of each rank by itself.

    Returns:
        Lower and upper end, float64 [N] each, in [0, N/k].
        Source: order statistics, David and Nagaraja (2003), section 2.1.
    """
    if not tokens > 0:
        return np.full(num_experts, np.nan), np.full(num_experts, np.nan)
    spread = math.sqrt((num_experts - top_k) / (top_k * tokens))
    spread *= math.sqrt(num_experts / max(num_experts - 1, 1))
    rank_N = np.arange(1, num_experts + 1)
    tail = (1 - coverage) / 2
    low_N, middle_N, high_N = (
        ndtri(betaincinv(num_experts - rank_N + 1, rank_N, level))
        for level in (tail, 0.5, 1 - tail)
    )
    sd_N = (high_N - low_N) / (2 * ndtri(1 - tail))
    kept_N = np.sqrt(np.maximum(1 - 1 / (num_experts * sd_N**2), 0))
    ends = (1 + spread * (middle_N + (end_N - middle_N) * kept_N) for end_N in (low_N, high_N))
    low_N, high_N = (np.clip(end_N, 0, num_experts / top_k) for end_N in ends)
    return low_N, high_N
