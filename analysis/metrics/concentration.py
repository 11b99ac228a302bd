"""Group D, continued: how much the busiest and the least used experts carry (D12, D13).

Every index takes counts [..., N], reduces the last axis, and is NaN where nothing was selected.
Its null is the same index of `expected_loads`.

Shape suffixes: N experts of a layer; leading axes, if any, are kept.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtri

from moe_probe.analysis.metrics.frequency import assignment_share


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
    `tail_ratio`, `ranking.experts_to_cover`. Holds within 2 % once an expert is expected 50
    times (T k / N >= 50).

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
    score_N = ndtri((np.arange(1, num_experts + 1) - 0.375) / (num_experts + 0.25))
    skew = (1 - 2 * fair) / math.sqrt(tokens * fair * (1 - fair))
    score_N = score_N + skew / 6 * (score_N**2 - 1)
    spread = math.sqrt((num_experts - top_k) / (top_k * tokens) * num_experts / (num_experts - 1))
    load_N = np.maximum(1 + spread * score_N, 0.0)
    return np.asarray(load_N / load_N.mean())


def _whole(fraction: float, num_experts: int) -> int:
    # 0.1 of 10 experts is 1 of them, whatever the product rounds to.
    return max(1, math.ceil(fraction * num_experts - 1e-9))
