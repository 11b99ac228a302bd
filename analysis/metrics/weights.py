"""A3: how much weight experts get, not only how often they are selected; D15 by chance.

Two scales, which must be named: raw, the weights as captured (`weight_sum`), and renormalised,
each weight over the sum of its token's weights (`share_sum`). Where the model renormalises, the
two agree up to a factor. With one renormalised expert per token every share is 1 and weights
say nothing that counts do not.

Shape suffixes: N experts of a layer; leading axes, such as S subjects, are kept.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.metrics.frequency import assignment_share, selection_frequency


def gate_share(mass_N: np.ndarray) -> np.ndarray:
    """Return gamma = G / sum G, the share of all gate mass that goes to each expert.

    Args:
        mass_N: Gate mass G: sum over tokens of the expert's raw weights or of its shares,
            float64 [..., N], not negative.

    Returns:
        float64 [..., N] in [0, 1], summing to 1; NaN where there is no mass. Null 1/N.
        Beside q it tells a filler (large q, small gamma) from a rare specialist.
    """
    return assignment_share(mass_N)


def conditional_weight(mass_N: np.ndarray, counts_N: np.ndarray) -> np.ndarray:
    """Return G / c, the mean weight of an expert over the tokens that select it.

    Args:
        mass_N: Sum of the expert's raw weights or of its shares, float64 [..., N].
        counts_N: Selections, int64 [..., N].

    Returns:
        float64 [..., N] in the unit of the weights; NaN for an expert that nothing selected.
        Null: the mass of all experts over all selections; 1/k for shares.
    """
    return np.asarray(mass_N / np.where(counts_N > 0, counts_N, np.nan))


def conditional_weight_sd(
    weight_sum_N: np.ndarray, weight_square_sum_N: np.ndarray, counts_N: np.ndarray
) -> np.ndarray:
    """Return the population's sd of an expert's raw weight over the tokens that select it.

    Args:
        weight_sum_N: Sum of the raw weights, float64 [..., N].
        weight_square_sum_N: Sum of their squares, float64 [..., N].
        counts_N: Selections, int64 [..., N].

    Returns:
        float64 [..., N], not negative; NaN for an expert that nothing selected.
    """
    mean_N = conditional_weight(weight_sum_N, counts_N)
    square_N = conditional_weight(weight_square_sum_N, counts_N)
    return np.asarray(np.sqrt(np.maximum(square_N - mean_N**2, 0.0)))


def contribution(mass_N: np.ndarray, tokens: int) -> np.ndarray:
    """Return ECI = G / T, the weight of an expert per token, selected or not.

    Args:
        mass_N: Sum of the expert's raw weights or of its shares, float64 [..., N].
        tokens: T.

    Returns:
        float64 [..., N], summing over experts to the mean mass of a token (1 for shares); NaN
        where T is 0. Null: that mean mass over N. Source: expert contribution index of the
        Standing Committee paper; ESFT (2407.01906), equation 6, with all tokens as one sample.
    """
    return selection_frequency(mass_N, tokens)


def mean_mass(mass_sum: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the mean over tokens of the sum of a token's selected raw weights.

    Args:
        mass_sum: Sum over tokens of the token's mass, float64 [...].
        tokens: T, int64 [...].

    Returns:
        float64 [...]; NaN where T is 0. It is 1 (or the model's scaling factor) where the model
        renormalises, and below 1 where weights are plain softmax probabilities.
    """
    return np.asarray(mass_sum / np.where(tokens > 0, tokens, np.nan))


def weight_frequency_correlation(mean_weight_N: np.ndarray, counts_N: np.ndarray) -> float:
    """Return the correlation over experts of mean gate weight and selection frequency (K11).

    Above 0 the experts that are selected most weigh most when they are: winners take all. Below 0
    the most selected ones are fillers.

    Args:
        mean_weight_N: From `conditional_weight`; NaN for an expert that nothing selected, which is
            left out.
        counts_N: Selections, int64 [N].

    Returns:
        In [-1, 1]; by chance 0, with the sd 1 / sqrt(n - 1) for n experts. NaN where fewer than
        two experts are selected, or weights or frequencies are all equal.
    """
    weight_N, count_N = mean_weight_N[counts_N > 0], counts_N[counts_N > 0]
    if len(count_N) < 2 or np.ptp(weight_N) == 0 or np.ptp(count_N) == 0:
        return float("nan")
    return float(np.corrcoef(weight_N, count_N)[0, 1])


def gate_cv_null(weight_square_sum_N: np.ndarray, mass_sum: float, tokens: int) -> float:
    """Return the CV of gate mass that chance alone gives: CV0 of weighted slots.

    N0 with each token's weights kept and put on random experts: E[CV^2] = (N / w - 1) / T, with
    w = (mean mass)^2 / (mean sum of squared weights), the number of equal weights that vary as
    much. Equal weights give w = k and the CV0 of counts. Exact where all tokens have the same
    mass; otherwise (plain softmax) E[CV^2] is too large by v^2 / T, v the CV of the mass over
    tokens. For documents instead of tokens, multiply by the root of the design effect.

    Args:
        weight_square_sum_N: Sum of squared raw weights, float64 [N].
        mass_sum: Sum over tokens of the token's mass.
        tokens: T.

    Returns:
        The expected CV, at least CV0 of counts; NaN without mass.
    """
    if tokens == 0 or mass_sum == 0:
        return float("nan")
    weights = (mass_sum / tokens) ** 2 / (weight_square_sum_N.sum() / tokens)
    return float(np.sqrt(max(len(weight_square_sum_N) / weights - 1, 0.0) / tokens))
