"""The largest of all experts' counts under N0, of few tokens.

Shape suffixes: X values of a count, F frequencies of a Fourier transform.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

_SDS = 12
"""Standard deviations of a sum of counts, or of its transform, that are not cut off."""


@lru_cache(maxsize=1024)
def expected_largest_count(num_experts: int, top_k: float, tokens: int) -> float:
    """Return E[max c] of independent counts, given that their sum is T k.

    The law of each is chosen for the variance under N0 to hold given the sum: binomial of T or
    more cells, Poisson at k = 1. With it P(max c <= x) is P(c <= x)^N times the chance of the sum
    T k of counts up to x, over that of any counts; both chances by Fourier transform. Exact for
    k = 1 and for T = 1, else within 2 % of simulations. Source: Levin (1981), "A representation
    for multinomial cumulative distribution functions".

    Args:
        num_experts: N.
        top_k: k, below N.
        tokens: T, 1 at least. The sum is rounded where T k is not whole.
    """
    total = round(tokens * top_k)
    mean, others = total / num_experts, num_experts - 1
    spread = (num_experts - top_k) / others
    # One over the cells of an expert: N cells draw T k of them without replacement.
    per_cell = num_experts * (top_k - 1) / (max(tokens * top_k - spread, 1e-9) * others)
    most = min(tokens, math.ceil(mean + _SDS * math.sqrt(mean) + 2 * _SDS))
    count_X = np.arange(most + 1)
    before_X = count_X[:-1]
    step_X = (
        np.maximum(1 - before_X * per_cell, 0) * mean / ((before_X + 1) * (1 - mean * per_cell))
    )
    chance_X = np.cumprod([1.0, *step_X])
    chance_X /= chance_X.sum()
    square = chance_X @ count_X**2 - (chance_X @ count_X) ** 2
    sd = math.sqrt(max(num_experts * square, 0.25))
    period = 2 * math.ceil(_SDS * sd) + 9
    number = min(period // 2, math.ceil(_SDS * period / (2 * math.pi * sd)))
    angle_F = 2 * math.pi * np.arange(number + 1) / period
    up_to_XF = np.cumsum(chance_X[:, None] * np.exp(1j * count_X[:, None] * angle_F), axis=0)
    part_XF = (up_to_XF**num_experts * np.exp(-1j * total * angle_F)).real
    sum_X = part_XF[:, 0] + 2 * part_XF[:, 1:].sum(axis=1)
    return float((1 - np.clip(sum_X / sum_X[-1], 0, 1)).sum())
