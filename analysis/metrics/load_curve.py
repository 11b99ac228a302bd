"""A1: a layer's loads from the largest to the smallest, and the same under even routing.

Shape suffixes: N experts of a layer, by rank from the most used; 3 the lower end of a band, the
median and the upper end.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betaincinv, ndtri

from moe_probe.analysis.metrics.frequency import relative_load


def load_curve(counts_N: np.ndarray) -> np.ndarray:
    """Return the relative loads in descending order: float64 [..., N], NaN without selections."""
    return -np.sort(-relative_load(counts_N), axis=-1)


def order_scores(num_experts: int, *, coverage: float = 0.95) -> np.ndarray:
    """Return where N sorted normals lie about their own mean, the largest first.

    The i-th largest normal is the normal quantile of a Beta(N - i + 1, i) variable; taking off the
    mean, which is independent of the differences, takes 1 / N from its variance (Basu), so both
    ends are drawn towards the median. From N = 8 on within 0.1 of the ends of each rank.

    Args:
        num_experts: N.
        coverage: Of each rank by itself.

    Returns:
        float64 [3, N], in standard deviations.
        Source: order statistics, David and Nagaraja (2003), section 2.1.
    """
    rank_N = np.arange(1, num_experts + 1)
    tail = (1 - coverage) / 2
    level_3 = np.array([[tail], [0.5], [1 - tail]])
    score_3N = ndtri(betaincinv(num_experts - rank_N + 1, rank_N, level_3))
    sd_N = (score_3N[2] - score_3N[0]) / (2 * ndtri(1 - tail))
    kept_N = np.sqrt(np.maximum(1 - 1 / (num_experts * sd_N**2), 0))
    return np.asarray(score_3N[1] + (score_3N - score_3N[1]) * kept_N)


def even_band(
    num_experts: int, top_k: int, tokens: float, *, coverage: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Return the band in which each rank of the load curve lies by chance (N0).

    Loads are 1 + CV0 sqrt(N / (N-1)) times N standard normals less their mean. Good from 50
    expected selections an expert on.

    Args:
        num_experts: N.
        top_k: k.
        tokens: T, over the design effect for documents instead of tokens; NaN gives NaN.
        coverage: Of each rank by itself.

    Returns:
        Lower and upper end, float64 [N] each, in [0, N/k].
    """
    if not tokens > 0:
        return np.full(num_experts, np.nan), np.full(num_experts, np.nan)
    spread = math.sqrt((num_experts - top_k) / (top_k * tokens))
    spread *= math.sqrt(num_experts / max(num_experts - 1, 1))
    load_3N = 1 + spread * order_scores(num_experts, coverage=coverage)
    low_N, _, high_N = np.clip(load_3N, 0, num_experts / top_k)
    return low_N, high_N
