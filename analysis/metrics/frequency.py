"""A1: how often experts are selected, in the three units in use (metrics name p, q and r).

Shape suffixes: N experts of a layer; leading axes, if any, are kept.
"""

from __future__ import annotations

import numpy as np


def selection_frequency(counts_N: np.ndarray, tokens: int) -> np.ndarray:
    """Return p = c / T, the share of tokens that select each expert.

    Args:
        counts_N: Selections, [..., N].
        tokens: T.

    Returns:
        float64 [..., N] in [0, 1], summing to k over a layer; NaN where T is 0.
        Fair value k / N. Source: OLMoE (2409.02060), Mixtral (2401.04088).
    """
    return _ratio(counts_N, np.asarray(tokens))


def assignment_share(counts_N: np.ndarray) -> np.ndarray:
    """Return q = c / A, the share of all selections that go to each expert.

    Args:
        counts_N: Selections, [..., N].

    Returns:
        float64 [..., N] in [0, 1/k], summing to 1; NaN where nothing was selected.
    """
    return _ratio(counts_N, counts_N.sum(axis=-1, keepdims=True))


def relative_load(counts_N: np.ndarray) -> np.ndarray:
    """Return r = N q, each expert's load as a multiple of its fair share.

    Args:
        counts_N: Selections, [..., N].

    Returns:
        float64 [..., N] in [0, N/k] with mean 1; NaN where nothing was selected.
        Source: DeepSeek-V3 (2412.19437), appendix C, "relative expert load".
    """
    return np.asarray(counts_N.shape[-1] * assignment_share(counts_N))


def _ratio(counts_N: np.ndarray, total: np.ndarray) -> np.ndarray:
    # Divided by NaN instead of 0: undefined, neither 0 nor infinite.
    ratio: np.ndarray = counts_N / np.where(total > 0, total, np.nan)
    return ratio
