"""C9, and Fano factor and memory of C6: how an expert's load changes along the stream.

The stream is cut into V tumbling windows of W tokens each, in a named token order; a shorter rest
is left out. "Independent" means: the same counts, had the tokens come in random order.

Shape suffixes: V windows, N experts of a layer.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.frequency import relative_load
from moe_probe.analysis.statistics.undefined import positive

CHANGE = 2.0
"""log2 of the ratio of neighbouring loads from which there is a change point: a factor of four."""
NOISE = 5.0
"""Standard deviations by which the two counts of a change point must differ."""


def fano_factor(counts_VN: np.ndarray) -> np.ndarray:
    """Return variance over mean of each expert's counts in the windows.

    Args:
        counts_VN: Selections in each window.

    Returns:
        float64 [N], 0 or more; 1 - p for independent tokens, above it for bursts longer than a
        window. NaN with fewer than two windows and for an expert never selected.
    """
    if len(counts_VN) < 2:
        return np.full(counts_VN.shape[1], np.nan)
    return np.asarray(counts_VN.var(axis=0, ddof=1) / positive(counts_VN.mean(axis=0)))


def memory_coefficient(sums_6N: np.ndarray) -> np.ndarray:
    """Return the correlation of each expert's inter-arrival times with the next ones (C6).

    Args:
        sums_6N: Over pairs of inter-arrival times in a row, x and y: their number, and the sums of
            x, y, x^2, y^2 and x y.

    Returns:
        float64 [N] in [-1, 1], 0 for independent tokens, above it where long ones follow long ones.
        NaN with fewer than two pairs and where x or y are all equal. Source: Goh and Barabasi
        (2008), equation 4.
    """
    number_N = positive(sums_6N[0])
    x_N, y_N, xx_N, yy_N, xy_N = sums_6N[1:] / number_N
    spread_N = np.maximum(xx_N - x_N**2, 0) * np.maximum(yy_N - y_N**2, 0)
    return np.asarray((xy_N - x_N * y_N) / np.sqrt(positive(spread_N)))


def drift_share(counts_VN: np.ndarray, window: int) -> tuple[np.ndarray, float]:
    """Return how much of the variance of an expert's use lies between windows, and its null.

    Whether a token selects the expert varies by p (1 - p); the variance of the windows' own
    frequencies is the part that a change along the stream explains.

    Args:
        counts_VN: Selections in each window.
        window: W, in tokens.

    Returns:
        The share: float64 [N] in [0, 1], 0 for equal windows, 1 where each window selects the
            expert always or never. NaN for an expert selected never or by every token.
        Its mean for independent tokens: (V - 1) / (V W - 1). Multiply by the design effect for
            documents in random order. NaN where there is one token or none.
    """
    frequency_VN = counts_VN / window
    frequency_N = counts_VN.sum(axis=0) / max(len(counts_VN) * window, 1)
    total_N = frequency_N * (1 - frequency_N)
    between_N = ((frequency_VN - frequency_N) ** 2).sum(axis=0) / max(len(counts_VN), 1)
    tokens = len(counts_VN) * window
    null = (len(counts_VN) - 1) / (tokens - 1) if tokens > 1 else np.nan
    return np.asarray(between_N / positive(total_N)), null


def change_points(counts_VN: np.ndarray) -> pd.DataFrame:
    """List where an expert's load changes at least fourfold from one window to the next.

    The change is beyond noise as well: of the counts a and b, |a - b| > 5 sqrt(a + b).

    Args:
        counts_VN: Selections in each window.

    Returns:
        expert
        window  number of the later of the two windows, from 0
        before, after  relative load r in the two
        change  log2 of after / before, each plus the r of half a selection, so that 0 has a log
    """
    load_VN = relative_load(counts_VN)
    # Half a selection, as a relative load.
    half_V1 = 0.5 * counts_VN.shape[1] / np.maximum(counts_VN.sum(axis=1, keepdims=True), 1)
    change_VN = np.diff(np.log2(load_VN + half_V1), axis=0)
    before_VN, after_VN = counts_VN[:-1].astype(np.float64), counts_VN[1:].astype(np.float64)
    noise_VN = NOISE * np.sqrt(before_VN + after_VN)
    is_change_VN = (np.abs(change_VN) > CHANGE) & (np.abs(after_VN - before_VN) > noise_VN)
    window_P, expert_P = np.nonzero(is_change_VN)
    table = pd.DataFrame(
        {
            "expert": expert_P,
            "window": window_P + 1,
            "before": load_VN[window_P, expert_P],
            "after": load_VN[window_P + 1, expert_P],
            "change": change_VN[window_P, expert_P],
        }
    )
    return table.sort_values(["expert", "window"], ignore_index=True)
