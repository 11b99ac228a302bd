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
    counts_N: np.ndarray, variance_N: np.ndarray, tokens: int
) -> tuple[float, float]:
    """Return the variance of the experts' true relative loads: CV^2 less what noise adds to it.

    Noise adds N sum Var(p) / k^2, k = A / T: (N - k) / (k T) for independent tokens of even loads,
    times the design effect of documents. Unbiased for fixed k, so it can be negative where loads
    are even.

    Args:
        counts_N: Selections of one layer.
        variance_N: Var(p) of each expert, as documents show it.
        tokens: T.

    Returns:
        The variance, at most N/k - 1, by chance 0; and what was subtracted. Under even loads the
        first has the sd of the second times sqrt(2 / (N - 1)). NaN where nothing was selected.
    """
    slots = counts_N.sum()
    noise = float(variance_N.sum() * len(counts_N) * tokens**2 / slots**2) if slots else math.nan
    return float(cv(counts_N) ** 2) - noise, noise
