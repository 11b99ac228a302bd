"""F1: how the use of experts differs between the segments of a prompt.

Shape suffixes: G segments, N experts of a layer, B bins of position.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.divergence import divergence_null, jensen_shannon
from moe_probe.analysis.metrics.frequency import assignment_share, relative_load


def load_shift(counts_N: np.ndarray, other_N: np.ndarray) -> np.ndarray:
    """Return r' - r, how much more relative load each expert has in the other segment.

    Args:
        counts_N: Selections in one segment, [..., N].
        other_N: Selections in the other one, [..., N].

    Returns:
        float64 [..., N] in [-N/k, N/k], summing to 0; NaN where a segment has no selections.
    """
    return np.asarray(relative_load(other_N) - relative_load(counts_N))


def segments_table(
    counts_GN: np.ndarray,
    segments: Sequence[str],
    top_k: float,
    deff_G: np.ndarray | float = 1.0,
) -> pd.DataFrame:
    """Tabulate every two segments of one layer that have selections.

    Args:
        counts_GN: Selections by segment, [G, N].
        segments: Names.
        top_k: k.
        deff_G: Design effect of each segment.

    Returns:
        segment, other  names, in the order given
        divergence_bits  Jensen-Shannon divergence, in [0, 1]
        divergence_bits_null  the same from noise alone
        gaining_expert, gain  the expert whose relative load is most above that in `segment`, and
            by how much
        losing_expert, loss  the expert whose load is most below it, and by how much
    """
    used_N = counts_GN.any(axis=0)
    found_GG = jensen_shannon(counts_GN)
    null_GG = divergence_null(counts_GN.sum(axis=1), int(used_N.sum()), top_k, deff_G)
    rows = []
    for one, other in combinations(np.flatnonzero(counts_GN.any(axis=1)).tolist(), 2):
        shift_N = load_shift(counts_GN[one], counts_GN[other])
        rows.append(
            {
                "segment": segments[one],
                "other": segments[other],
                "divergence_bits": found_GG[one, other],
                "divergence_bits_null": null_GG[one, other],
                "gaining_expert": int(shift_N.argmax()),
                "gain": shift_N.max(),
                "losing_expert": int(shift_N.argmin()),
                "loss": -shift_N.min(),
            }
        )
    return pd.DataFrame(rows, columns=_COLUMNS)


_COLUMNS = (
    "segment",
    "other",
    "divergence_bits",
    "divergence_bits_null",
    "gaining_expert",
    "gain",
    "losing_expert",
    "loss",
)


def position_matched_divergence(counts_BN: np.ndarray, other_BN: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence of two segments at equal positions, in bits.

    Only bins where both have selections are compared, and both are weighted alike: by the smaller
    number of selections of the two. What is left is no effect of position.

    Args:
        counts_BN: Selections of one segment by bin of position, [B, N].
        other_BN: The same of the other one.

    Returns:
        In [0, 1]; NaN where the segments have no bin in common, as with a prefix that always comes
        before.
    """
    weight_B = np.minimum(counts_BN.sum(axis=1), other_BN.sum(axis=1))
    common_B = weight_B > 0
    if not common_B.any():
        return np.nan
    shares = [
        weight_B[common_B] @ assignment_share(side_BN[common_B])
        for side_BN in (counts_BN, other_BN)
    ]
    return float(jensen_shannon(np.stack(shares))[0, 1])
