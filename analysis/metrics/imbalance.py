"""Group D: how unevenly one layer's load is spread over its routed experts (D1-D11).

Every index takes counts [..., N], reduces the last axis, and is NaN where nothing was selected.
k is the number of experts per token, which is what bounds each index from above. Expectations
under exchangeable routing: `statistics.nulls.expected_indices`, and for `min_vio`
`concentration.expected_loads`.

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


def min_vio(counts_N: np.ndarray) -> np.ndarray:
    """Return MinVio = 1 - min r: how far the least used expert stays below its fair share (D4).

    Range [0, 1]; 1 is an expert that no token selected.
    """
    return np.asarray(1 - relative_load(counts_N).min(axis=-1))


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


def inverse_simpson(counts_N: np.ndarray) -> np.ndarray:
    """Return 1 / sum q^2 = N / (1 + CV^2), the effective number of experts of order 2 (D8).

    Never above `effective_experts`, since busy experts weigh more. Range [k, N].
    Source: Hill (1973), order 2.
    """
    return np.asarray(1 / (assignment_share(counts_N) ** 2).sum(axis=-1))


def jain(counts_N: np.ndarray) -> np.ndarray:
    """Return Jain's fairness (sum c)^2 / (N sum c^2) = 1 / (1 + CV^2) (D9).

    The same information as CV. Range [k/N, 1], 1 is even. Under N0 1 / (1 + CV0^2).
    Source: Jain et al. (1984), "A quantitative measure of fairness".
    """
    return np.asarray(inverse_simpson(counts_N) / counts_N.shape[-1])


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
