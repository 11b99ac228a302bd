"""Whether two traces rank the experts of a layer alike, and idle the same ones.

Shape suffixes: N experts of a layer, B replicates, R rows of a slice.
"""

from __future__ import annotations

import math

import numpy as np

from moe_probe.analysis.metrics.stability import spearman

_CELLS = 1 << 20


def kendall(first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Return Kendall's tau-b of two traces' loads: agreeing less disagreeing pairs of experts.

    Args:
        first_N: Counts of the one trace.
        second_N: Of the other.

    Returns:
        In [-1, 1]; NaN where all experts of a trace are tied. If the order is noise alone: mean 0.
        Source: Kendall (1945).
    """
    sums = np.zeros(3)
    step = max(_CELLS // len(first_N), 1)
    for start in range(0, len(first_N), step):
        x_RN, y_RN = (
            np.sign(np.subtract.outer(each[start : start + step], each, dtype=np.float64))
            for each in (first_N, second_N)
        )
        sums += (x_RN * y_RN).sum(), (x_RN**2).sum(), (y_RN**2).sum()
    scale = math.sqrt(sums[1] * sums[2])
    return float(sums[0] / scale) if scale else math.nan


def resampled_spearman(replicates_BN: np.ndarray) -> float:
    """Return the mean rank correlation of two resamples of one trace's documents.

    What two independent samples of such documents give when nothing but noise tells them apart:
    each resample is as far from the trace as the trace is from the truth.

    Returns:
        In [-1, 1]; NaN with fewer than two replicates that define it.
    """
    values_B = spearman(replicates_BN[:-1], replicates_BN[1:])
    known_B = values_B[np.isfinite(values_B)]
    return float(known_B.mean()) if len(known_B) else math.nan


def idle_overlap_p(reference: int, other: int, both: int, num_experts: int) -> float:
    """Return the chance that random sets of idle experts have as many in common.

    Args:
        reference: Experts that idle in the reference alone.
        other: In the other trace alone.
        both: In both.
        num_experts: N.

    Returns:
        P(X >= both) of the hypergeometric distribution; NaN where a trace has no idle expert.
    """
    first, second = reference + both, other + both
    if not first or not second:
        return math.nan
    rest = num_experts - first
    logs = [
        _log_ways(first, common) + _log_ways(rest, second - common)
        for common in range(max(both, second - rest), min(first, second) + 1)
    ]
    whole = _log_ways(num_experts, second)
    return min(math.fsum(math.exp(value - whole) for value in logs), 1.0)


def _log_ways(total: int, chosen: int) -> float:
    rest = total - chosen
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(rest + 1)
