"""Group D: how unevenly one layer's load is spread over its routed experts.

Every index takes counts [..., N], reduces the last axis, and is NaN where nothing was selected.
k is the number of experts per token, which is what bounds each index from above.

Shape suffixes: N experts of a layer; leading axes, if any, are kept.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.metrics.frequency import assignment_share, relative_load


def max_vio(counts_N: np.ndarray) -> np.ndarray:
    """Return MaxVio = max r - 1: how far the busiest expert exceeds its fair share.

    Range [0, N/k - 1]. Source: Loss-Free Balancing (2408.15664), equation 4.
    """
    return np.asarray(relative_load(counts_N).max(axis=-1) - 1)


def cv(counts_N: np.ndarray) -> np.ndarray:
    """Return the coefficient of variation sd(r) / mean(r), with the population's sd.

    Range [0, sqrt(N/k - 1)]. Source: its square is the loss of Shazeer et al. (1701.06538).
    """
    return np.asarray(relative_load(counts_N).std(axis=-1))


def gini(counts_N: np.ndarray) -> np.ndarray:
    """Return the Gini index sum_i (2i - N - 1) q_(i) / N, with q_(1) the smallest share.

    Range [0, 1 - k/N].
    """
    num_experts = counts_N.shape[-1]
    share_N = np.sort(assignment_share(counts_N), axis=-1)
    rank_N = 2 * np.arange(1, num_experts + 1) - num_experts - 1
    return np.asarray((rank_N * share_N).sum(axis=-1) / num_experts)


def entropy(counts_N: np.ndarray) -> np.ndarray:
    """Return the entropy H = -sum q ln q of the assignment shares, in nats.

    Range [ln k, ln N].
    """
    share_N = assignment_share(counts_N)
    log_N = np.log(share_N, where=share_N > 0, out=np.zeros_like(share_N))
    return np.asarray(-(share_N * log_N).sum(axis=-1)) + 0.0


def effective_experts(counts_N: np.ndarray) -> np.ndarray:
    """Return exp(H), the number of equally loaded experts with the same entropy.

    Range [k, N]. Source: Hill (1973), order 1.
    """
    return np.asarray(np.exp(entropy(counts_N)))


def kl_uniform(counts_N: np.ndarray) -> np.ndarray:
    """Return KL(q || uniform) = ln N - H, in nats; the same as Theil's index.

    Range [0, ln(N/k)].
    """
    # Rounding must not make a perfectly even layer negative.
    return np.asarray(np.maximum(np.log(counts_N.shape[-1]) - entropy(counts_N), 0.0))


def total_variation(counts_N: np.ndarray) -> np.ndarray:
    """Return 1/2 sum |q - 1/N|, the share of selections that would have to move.

    Range [0, 1 - k/N].
    """
    distance_N = np.abs(assignment_share(counts_N) - 1 / counts_N.shape[-1])
    return np.asarray(distance_N.sum(axis=-1) / 2)


def unseen(counts_N: np.ndarray) -> np.ndarray:
    """Return the number of experts that no counted token selected.

    Range [0, N - k].
    """
    never = (counts_N == 0).sum(axis=-1)
    return np.where(counts_N.sum(axis=-1) > 0, never, np.nan)
