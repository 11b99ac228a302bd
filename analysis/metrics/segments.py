"""F1: how the use of experts differs between the segments of a prompt.

Shape suffixes: G segments, N experts of a layer, B bins of position, H halves of the
documents, C clusters (documents and prefixes), X those of one kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.divergence import divergence_null, jensen_shannon
from moe_probe.analysis.metrics.frequency import assignment_share, relative_load
from moe_probe.analysis.statistics.clusters import likeness
from moe_probe.analysis.statistics.undefined import positive


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
    deff_GG: np.ndarray | float = 1.0,
) -> pd.DataFrame:
    """Tabulate every two segments of one layer that have selections.

    Args:
        counts_GN: Selections by segment, [G, N].
        segments: Names.
        top_k: k.
        deff_GG: Design effect of every two, `segment_deffs`, or one for all.

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
    null_GG = divergence_null(counts_GN.sum(axis=1), int(used_N.sum()), top_k)
    null_GG = np.minimum(null_GG * deff_GG, 1.0)
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


def segment_deffs(
    tokens_CG: np.ndarray, is_prefix_C: np.ndarray, deffs: tuple[float, float]
) -> np.ndarray:
    """Return the design effect of the shares of one segment less those of another.

    What a document has of its own cancels as far as it is in both. With rho the `likeness` of its
    tokens, s its share of a segment's tokens T, and s', T' of the other one: sum of
    (1 - rho) (s/T + s'/T') + rho (s - s')^2, over 1/T + 1/T'.

    Args:
        tokens_CG: Tokens of each document, and of each shared prefix, by segment.
        is_prefix_C: Which of them are prefixes.
        deffs: Design effects of all tokens of documents, and of those of prefixes.

    Returns:
        float64 [G, G], not negative; NaN where a segment has no tokens, or its deff is.
    """
    total_G = positive(tokens_CG.sum(axis=0))
    noise_GG = np.zeros((len(total_G), len(total_G)))
    for tokens_XG, deff in zip(
        (tokens_CG[~is_prefix_C], tokens_CG[is_prefix_C]), deffs, strict=True
    ):
        n_X = tokens_XG.sum(axis=1).astype(np.float64)
        if not n_X.any():
            continue
        rho, share_XG = likeness(deff, float((n_X**2).sum() / n_X.sum())), tokens_XG / total_G
        own_G = (1 - rho) * share_XG.sum(axis=0) / total_G + rho * (share_XG**2).sum(axis=0)
        both_GG = own_G[:, None] + own_G - 2 * rho * share_XG.T @ share_XG
        is_there_G = tokens_XG.any(axis=0)
        noise_GG += np.where(is_there_G[:, None] | is_there_G, both_GG, 0.0)
    return np.asarray(noise_GG / (1 / total_G[:, None] + 1 / total_G))


def position_matched_divergence(
    counts_BN: np.ndarray, other_BN: np.ndarray, weight_B: np.ndarray | None = None
) -> float:
    """Return the Jensen-Shannon divergence of two segments at equal positions, in bits.

    Only bins where both have selections are compared, and both are weighted alike. What is left is
    no effect of position.

    Args:
        counts_BN: Selections of one segment by bin of position, [B, N].
        other_BN: The same of the other one.
        weight_B: Of the bins; the smaller number of selections of the two if None.

    Returns:
        In [0, 1]; NaN where the segments have no bin in common, as with a prefix that always comes
        before.
    """
    selections_2B = np.stack([counts_BN.sum(axis=1), other_BN.sum(axis=1)])
    weight_B = selections_2B.min(axis=0) if weight_B is None else weight_B
    common_B = (weight_B > 0) & selections_2B.all(axis=0)
    if not common_B.any():
        return np.nan
    shares = [
        weight_B[common_B] @ assignment_share(side_BN[common_B])
        for side_BN in (counts_BN, other_BN)
    ]
    return float(jensen_shannon(np.stack(shares))[0, 1])


def position_matched_null(one_HBN: np.ndarray, other_HBN: np.ndarray) -> float:
    """Return what noise alone makes of `position_matched_divergence`, in bits.

    Two halves of the documents are compared in each of the segments, with the weights that the
    segments are compared with: positions where a segment is rare weigh as much as there.

    Args:
        one_HBN: Selections of one segment by half and bin of position, [2, B, N].
        other_HBN: The same of the other one.

    Returns:
        Mean of both segments, halved: a half has half the selections, and so twice the noise of
        all. Too large where documents have experts of their own in both segments, which cancel.
        NaN where a half of either has no selections in any of these bins.
    """
    weight_B = np.minimum(one_HBN.sum(axis=(0, 2)), other_HBN.sum(axis=(0, 2)))
    sides = (one_HBN, other_HBN)
    return sum(position_matched_divergence(side[0], side[1], weight_B) for side in sides) / 4
