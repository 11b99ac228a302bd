"""Group G: which experts of a layer are selected together.

Pairs are all pairs of a token's set, not only those of neighbouring ranks. Where each token
selects one expert there are none, and every value is NaN.

Shape suffixes: N experts of a layer, T tokens, K slots, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from moe_probe.analysis.statistics.random_sets import coactivation
from moe_probe.analysis.statistics.undefined import positive

LEAST_EXPECTED = 5.0
"""Fewer expected tokens give no ratio and no z: one token more would make both huge."""


def conditional(pairs_NN: np.ndarray, counts_N: np.ndarray) -> np.ndarray:
    """Return c_ij / c_i, the share of expert i's tokens that also select expert j.

    Args:
        pairs_NN: Tokens that select both i and j, symmetric with a zero diagonal.
        counts_N: Tokens that select each expert.

    Returns:
        float64 [N, N] in [0, 1], row i, column j; NaN on the diagonal and where i is unused.
        Fair value (k - 1) / (N - 1). Source: OLMoE (2409.02060), equation 6.
    """
    return _off_diagonal(pairs_NN, np.broadcast_to(counts_N[:, None], pairs_NN.shape))


def jaccard(pairs_NN: np.ndarray, counts_N: np.ndarray) -> np.ndarray:
    """Return c_ij / (c_i + c_j - c_ij), the overlap of the tokens of two experts.

    Returns:
        float64 [N, N], symmetric, in [0, 1]; NaN on the diagonal and where both are unused.
        For independent experts p_i p_j / (p_i + p_j - p_i p_j).
    """
    return _off_diagonal(pairs_NN, counts_N[:, None] + counts_N - pairs_NN)


def expected_pairs(pairs_NN: np.ndarray) -> np.ndarray:
    """Return how often each pair would meet if only its experts' frequencies mattered.

    This is quasi-independence: E_ij = w_i w_j off the diagonal, with the row sums of `pairs_NN`,
    which are (k - 1) c_i. The product c_i c_j / T does not have them, because a token never
    selects an expert twice. E is the limit of iterative proportional fitting. It is found
    directly: with x_i = w_i / W and W the sum of w, every row says x_i (1 - x_i) = m_i / W^2
    for its sum m_i, so that W alone is unknown.

    Args:
        pairs_NN: int64 [N, N], symmetric with a zero diagonal.

    Returns:
        float64 [N, N], symmetric with a zero diagonal; 0 for unused experts.
    """
    margin_N = pairs_NN.sum(axis=1)
    largest = int(margin_N.argmax())
    if 2 * margin_N[largest] == margin_N.sum():
        # All pairs have one expert in common, or there are none: the row sums leave no choice.
        return pairs_NN.astype(np.float64)
    scaled_N = margin_N / margin_N[largest]

    def smaller_roots_N(u: float) -> np.ndarray:
        # x / u for the smaller root of x (1 - x) = m u, in the form in which nothing cancels.
        return np.asarray(2 * scaled_N / (1 + np.sqrt(np.maximum(1 - 4 * scaled_N * u, 0))))

    # The x sum to 1, so only one of them, that of the largest row, can be the larger root.
    is_larger = smaller_roots_N(0.25).sum() < 4

    def excess(u: float) -> float:
        root_N = smaller_roots_N(u)
        return float(root_N.sum() - 2 * root_N[largest] if is_larger else u * root_N.sum() - 1)

    u = _root(excess, 0.0, 0.25)
    x_N = u * smaller_roots_N(u)
    if is_larger:
        x_N[largest] = 1 - x_N[largest]
    expected_NN = np.outer(x_N, x_N) * (margin_N[largest] / u)
    np.fill_diagonal(expected_NN, 0)
    return np.asarray(expected_NN)


def coactivation_table(
    pairs_NN: np.ndarray,
    counts_N: np.ndarray,
    tokens: int,
    top_k: int,
    deff: float,
    most: int,
    null_k: float,
) -> pd.DataFrame:
    """Tabulate pairs of experts: all of them, or the `most` that are furthest from chance.

    Args:
        pairs_NN: Tokens that select both i and j, symmetric with a zero diagonal.
        counts_N: Tokens that select each expert.
        tokens: T.
        top_k: k, the slots of a token.
        deff: Design effect of the documents: how many times the variance of independent tokens.
        most: Pairs to keep, those of largest `deviance`.
        null_k: k of nulls, `SetSizes.null_k`: `top_k` where no slot is empty.

    Returns:
        Two rows per pair, one for each direction, by expert and other; none where k is 1.
        expert, other  indices in the layer
        count  c_ij, tokens that select both
        conditional  c_ij / c_i, the share of the expert's tokens
        jaccard  c_ij / (c_i + c_j - c_ij)
        expected  E of quasi-independence, in tokens
        ratio  count / expected; null where fewer than 5 are expected
        z  (count - expected) / sqrt(expected deff); null likewise. The variance is that of a rare
            pair, so |z| is too small where k is close to N; and deff that of single experts, so it
            is too small where documents differ in experts but not in pairs
        conditional_null  (k - 1) / (N - 1), conditional under even routing

    Raises:
        ValueError: there are more pairs than T tokens can select.
    """
    if pairs_NN.sum() > tokens * top_k * (top_k - 1):
        raise ValueError(f"more pairs than {tokens} tokens with {top_k} experts each can select")
    num_experts = len(counts_N) if top_k > 1 else 0
    first_P, second_P = np.triu_indices(num_experts, 1)
    expected_NN = expected_pairs(pairs_NN)
    enough_NN = np.where(expected_NN >= LEAST_EXPECTED, expected_NN, np.nan)
    pair_P = first_P, second_P
    # NaN sorts last: undefined pairs are kept only where there is room for them.
    beyond_P = deviance(pairs_NN[pair_P], expected_NN[pair_P])
    chosen_P = np.argsort(-beyond_P, kind="stable")[:most]
    first_P, second_P = first_P[chosen_P], second_P[chosen_P]
    expert_P = np.concatenate([first_P, second_P])
    other_P = np.concatenate([second_P, first_P])
    order_P = np.lexsort((other_P, expert_P))
    at = expert_P[order_P], other_P[order_P]
    return pd.DataFrame(
        {
            "expert": at[0],
            "other": at[1],
            "count": pairs_NN[at],
            "conditional": conditional(pairs_NN, counts_N)[at],
            "jaccard": jaccard(pairs_NN, counts_N)[at],
            "expected": expected_NN[at],
            "ratio": pairs_NN[at] / enough_NN[at],
            "z": (pairs_NN[at] - expected_NN[at]) / np.sqrt(enough_NN[at] * deff),
            "conditional_null": coactivation(len(counts_N), null_k),
        }
    )


def deviance(count_P: np.ndarray, expected_P: np.ndarray) -> np.ndarray:
    """Return 2 (c ln(c / E) - (c - E)), how far counts are from what is expected.

    The chance of a Poisson variable to be as far on that side is at most exp(-deviance / 2), and
    near it, however small E is; the square of z is not.

    Args:
        count_P: c.
        expected_P: E.

    Returns:
        float64 [P], not negative, about z^2 where E is large; NaN where nothing is expected.
        Source: Chernoff (1952).
    """
    expected_P = positive(expected_P)
    # 1 in place of an impossible logarithm, which is taken 0 times.
    ratio_P = np.where(count_P > 0, count_P / expected_P, 1.0)
    apart_P = 2 * (count_P * np.log(ratio_P) - (count_P - expected_P))
    return np.asarray(np.maximum(apart_P, 0.0))


def groups_hit(ids_TK: np.ndarray, num_experts: int, groups: int) -> float:
    """Return the mean number of expert groups (devices) that a token's experts lie in.

    Args:
        ids_TK: Selected experts; ids of num_experts and above are empty slots.
        num_experts: N.
        groups: G contiguous groups of equal size.

    Returns:
        Groups per token, in [1, min(G, k)] where no slot is empty; NaN without tokens. Null:
        `random_sets.devices_hit`.

    Raises:
        ValueError: G does not divide N.
    """
    groups_T = groups_of_tokens(ids_TK, num_experts, groups)
    return float(groups_T.mean()) if len(groups_T) else math.nan


def groups_of_tokens(ids_TK: np.ndarray, num_experts: int, groups: int) -> np.ndarray:
    """Return in how many groups each token's experts lie: int64 [T]; arguments of `groups_hit`."""
    if num_experts % groups:
        raise ValueError(f"{groups} groups do not divide {num_experts} experts")
    is_hit_TG = np.zeros((len(ids_TK), groups + 1), bool)
    # Empty slots fall into one column more, which is not counted.
    group_TK = np.minimum(ids_TK.astype(np.intp) // (num_experts // groups), groups)
    np.put_along_axis(is_hit_TG, group_TK, True, axis=1)
    return np.asarray(is_hit_TG[:, :groups].sum(axis=1))


def _off_diagonal(part_NN: np.ndarray, whole_NN: np.ndarray) -> np.ndarray:
    is_defined_NN = (whole_NN > 0) & ~np.eye(len(whole_NN), dtype=bool)
    ratio_NN = np.full(whole_NN.shape, np.nan)
    np.divide(part_NN, whole_NN, out=ratio_NN, where=is_defined_NN)
    return ratio_NN


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Halve an interval at whose ends the function has two signs, until its ends are neighbours.

    scipy's root finders are quicker and take longer to import than a report has roots to find.
    """
    is_positive = function(low) > 0
    while low < (middle := (low + high) / 2) < high:
        if (function(middle) > 0) == is_positive:
            low = middle
        else:
            high = middle
    return high
