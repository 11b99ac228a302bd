"""B5: how much of an imbalance index is noise, and what is left above it.

Shape suffixes: B bootstrap replicates over documents, N experts of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from moe_probe.analysis.metrics.imbalance import cv
from moe_probe.analysis.statistics.nulls import Indices, expected_indices


def index_noise(replicates_BN: np.ndarray, index: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the sd of an imbalance index over resampled documents.

    Only the spread is meant to be used: resampling adds noise once more, so the replicates' mean
    lies above the index itself.

    Args:
        replicates_BN: Counts under Poisson weights of the documents, float64 [..., B, N].
        index: A function of `imbalance` or `concentration`: [..., N] to [...].

    Returns:
        float64 [...], ddof 1, in the unit of the index; NaN with fewer than two replicates that
        define it.
    """
    value_B = index(replicates_BN)
    defined_B = np.isfinite(value_B)
    number = defined_B.sum(axis=-1)
    some, others = (np.where(number > 1, number - less, np.nan) for less in (0, 1))
    mean = np.where(defined_B, value_B, 0.0).sum(axis=-1) / some
    square_B = np.where(defined_B, value_B - mean[..., None], 0.0) ** 2
    return np.asarray(np.sqrt(square_B.sum(axis=-1) / others))


def effective_null(num_experts: int, top_k: float, tokens: int, deff: float) -> Indices:
    """Return the expectation of every index by chance: N0 at T / deff tokens.

    Args:
        num_experts: N.
        top_k: k.
        tokens: T; all values are NaN where it is 0.
        deff: Design effect, > 0; 1 for independent tokens. NaN, if it is undefined, gives NaN.
    """
    if not deff > 0:
        return Indices(*[math.nan] * 8)
    # At least one token, however large the design effect of a small trace is.
    return expected_indices(num_experts, top_k, max(round(tokens / deff), min(tokens, 1)))


def between_expert_variance(
    counts_N: np.ndarray, top_k: int, tokens: int, deff: float = 1.0
) -> np.ndarray:
    """Return CV^2 - deff (N - k) / (k T): the variance of the experts' true relative loads.

    Unbiased, up to a relative 1/T, so it can be negative where loads are even.

    Args:
        counts_N: Selections, [..., N].
        top_k: k.
        tokens: T.
        deff: Design effect, the mean over experts weighted by their variance.

    Returns:
        float64 [...], at most N/k - 1; NaN where nothing was selected. Null 0.
    """
    num_experts = counts_N.shape[-1]
    noise = deff * (num_experts - top_k) / (top_k * tokens) if tokens else math.nan
    return np.asarray(cv(counts_N) ** 2 - noise)
