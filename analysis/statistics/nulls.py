"""N0, exchangeable top-k routing: each token draws k of N experts without replacement, uniformly.

What every imbalance index is under N0 after T tokens, and what it can be at most. Documents are
not exchangeable tokens, so N0 is a lower bound on the noise of real data. Where tokens select
different numbers of experts, k and T are those of `set_sizes.SetSizes`.

Notation: N num_experts, k top_k, T tokens, CV0 = sqrt((N - k) / (k T)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import bdtr, chdtrc, gammaln

from moe_probe.analysis.statistics.largest_count import expected_largest_count
from moe_probe.analysis.statistics.undefined import positive

_FEW = 10
"""Expected selections of an expert below which forms for large T are off by more than 2.5 %."""


@dataclass(frozen=True)
class Indices:
    """One value per imbalance index; NaN where there are no tokens."""

    max_vio: float
    cv: float
    gini: float
    entropy: float
    """In nats."""
    effective_experts: float
    kl_uniform: float
    """In nats."""
    total_variation: float
    unseen: float
    """In experts."""


def expected_indices(num_experts: int, top_k: float, tokens: float) -> Indices:
    """Return the expectation of every index under N0, never beyond its hard bound.

    The forms are for large T, and hold within 2.5 % from 10 expected selections of an expert on
    (T k / N >= 10). Below, entropy, kl_uniform, total_variation and gini are exact, by the
    distributions of one count and of the difference of two, effective_experts is the exponential
    of the entropy and at most 2 % below, and max_vio is within 2 %, by `expected_largest_count`.

    Args:
        num_experts: N.
        top_k: k; `SetSizes.null_k` where tokens differ.
        tokens: T, then `SetSizes.null_tokens`; all values are NaN where it is 0.

    Returns:
        max_vio  CV0 sqrt(N / (N-1)) times the expected maximum of N standard normals, corrected
            for the skew of a count (Cornish-Fisher, first order)
        cv  CV0, the root of the exact E[CV^2]
        gini  CV0 sqrt((N-1) / N) / sqrt(pi)
        entropy  ln N - (N-k) / (2 T k)
        effective_experts  N exp(-(N-k) / (2 T k))
        kl_uniform  (N-k) / (2 T k), the bias of the plug-in entropy
        total_variation  CV0 / sqrt(2 pi)
        unseen  N (1 - k/N)^T, exact for fixed k
    """
    if tokens == 0:
        return Indices(*[math.nan] * 8)
    if tokens * top_k < _FEW * num_experts:
        return _indices_of_few(num_experts, top_k, tokens)
    most = bounds(num_experts, top_k)
    cv0 = math.sqrt((num_experts - top_k) / (top_k * tokens))
    kl = min((num_experts - top_k) / (2 * tokens * top_k), most.kl_uniform)
    # With one expert nothing varies: CV0 is 0, and any factor will do.
    spread = cv0 * math.sqrt(num_experts / max(num_experts - 1, 1))
    even = cv0 * math.sqrt((num_experts - 1) / num_experts)
    return Indices(
        max_vio=min(spread * _skewed_maximum(num_experts, top_k, tokens), most.max_vio),
        cv=min(cv0, most.cv),
        gini=min(even / math.sqrt(math.pi), most.gini),
        entropy=math.log(num_experts) - kl,
        effective_experts=num_experts * math.exp(-kl),
        kl_uniform=kl,
        total_variation=min(cv0 / math.sqrt(2 * math.pi), most.total_variation),
        unseen=num_experts * (1 - top_k / num_experts) ** tokens,
    )


def _indices_of_few(num_experts: int, top_k: float, tokens: float) -> Indices:
    whole = max(round(tokens), 1)
    fair, slots = top_k / num_experts, whole * top_k
    count_X = np.arange(whole + 1)
    below_X = bdtr(count_X, whole, fair)
    chance_X, share_X = np.diff(below_X, prepend=0.0), count_X / slots
    log_X = np.log(share_X, where=count_X > 0, out=np.zeros(whole + 1))
    entropy = -num_experts * float(chance_X @ (share_X * log_X))
    apart = num_experts / 2 * float(chance_X @ np.abs(share_X - 1 / num_experts))
    others = max(num_experts - 1, 1)
    # One of two experts without the other: the difference of their counts makes a step.
    step = min(2 * fair * (1 - (top_k - 1) / others), 1.0)
    steps_X = np.diff(bdtr(count_X, whole, step), prepend=0.0)
    half_X = (count_X[1:] - 1) // 2
    # E|D| of n steps is n C(n - 1, h) / 2^(n-1), with h half of n - 1.
    step_X = count_X[1:]
    ways_X = gammaln(step_X + 1) - gammaln(half_X + 1) - gammaln(step_X - half_X)
    walk_X = np.exp(ways_X - (step_X - 1) * math.log(2))
    difference = float(steps_X[1:] @ walk_X)
    # Rounding must not take a bound for exceeded.
    worst = bounds(num_experts, top_k)
    entropy = max(entropy, worst.entropy)
    return Indices(
        max_vio=_max_vio_of_few(num_experts, top_k, whole, worst.max_vio),
        cv=min(math.sqrt((num_experts - top_k) / (tokens * top_k)), worst.cv),
        gini=min((num_experts - 1) * difference / (2 * slots), worst.gini),
        entropy=entropy,
        effective_experts=max(math.exp(entropy), worst.effective_experts),
        kl_uniform=min(math.log(num_experts) - entropy, worst.kl_uniform),
        total_variation=min(apart, worst.total_variation),
        unseen=num_experts * (1 - fair) ** tokens,
    )


def _max_vio_of_few(num_experts: int, top_k: float, tokens: int, most: float) -> float:
    if most == 0:
        return 0.0
    fair = round(tokens * top_k) / num_experts
    return min(expected_largest_count(num_experts, top_k, tokens) / fair - 1, most)


def bounds(num_experts: int, top_k: float) -> Indices:
    """Return how uneven distinct top-k routing can be at most, as every index says it.

    `entropy` and `effective_experts` fall with imbalance: theirs are lower bounds, all others
    upper ones. Where tokens leave slots empty, only those with k = 1 hold.
    """
    idle = 1 - top_k / num_experts
    return Indices(
        max_vio=num_experts / top_k - 1,
        cv=math.sqrt(num_experts / top_k - 1),
        gini=idle,
        entropy=math.log(top_k),
        effective_experts=float(top_k),
        kl_uniform=math.log(num_experts / top_k),
        total_variation=idle,
        unseen=float(num_experts - top_k),
    )


def count_variance(
    slots: np.ndarray | float, slots_square: np.ndarray | float, num_experts: int
) -> np.ndarray:
    """Return Var(c) of each expert's selections: sum over tokens of (k_t / N) (1 - k_t / N).

    Args:
        slots: Sum of k_t, the experts per token: T k where all tokens have k.
        slots_square: Sum of k_t^2.
        num_experts: N.
    """
    return np.asarray(slots / num_experts - np.asarray(slots_square) / num_experts**2)


def uniform_chi_square(
    counts_N: np.ndarray, slots: np.ndarray | float, slots_square: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Test counts against N0, which takes all tokens for independent.

    X^2 = (N - 1) / N sum (c - m)^2 / Var(c) with m = A / N; for fixed k this is (N - 1) / (N - k)
    times the multinomial statistic, which is too small because the experts of a token differ.

    Args:
        counts_N: Selections, [..., N].
        slots: Sum of k_t, broadcast against [...].
        slots_square: Sum of k_t^2, likewise.

    Returns:
        X^2 and its p-value from chi-square with N - 1 degrees of freedom, float64 [...]; NaN
        where nothing can vary: no tokens, or all experts in every token.
    """
    num_experts = counts_N.shape[-1]
    variance = count_variance(slots, slots_square, num_experts)
    squares = counts_N.var(axis=-1) * num_experts
    statistic = squares * (num_experts - 1) / num_experts / positive(variance)
    return statistic, np.asarray(chdtrc(num_experts - 1, statistic))


def _skewed_maximum(num_experts: int, top_k: float, tokens: float) -> float:
    share = top_k / num_experts
    if share == 1:
        return 0.0
    mean, square = extreme_moments(num_experts)
    skew = (1 - 2 * share) / math.sqrt(tokens * share * (1 - share))
    return mean + skew / 6 * (square - 1)


@lru_cache(maxsize=256)
def extreme_moments(number: int) -> tuple[float, float]:
    """Return the mean and mean square of the maximum of `number` independent standard normals."""
    x_P = np.linspace(-9.0, 9.0, 3601)
    below_P = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in x_P.tolist()]) ** number
    tail_P = np.heaviside(x_P, 0.5) - below_P
    return float(np.trapezoid(tail_P, x_P)), float(np.trapezoid(2 * x_P * tail_P, x_P))
