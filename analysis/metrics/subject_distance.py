"""E6 over all layers: how far subjects are apart, as one matrix.

Shape suffixes: S subjects.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd


def mean_over_layers(
    divergence: pd.DataFrame, subjects: Sequence[str], column: str = "divergence_bits"
) -> np.ndarray:
    """Return the mean over layers of a column of the table `divergence`, as a matrix.

    Args:
        divergence: Rows of (layer, subject, other), each pair once.
        subjects: S names, in the order of the rows and columns of the matrix.
        column: What to average; layers without a value do not count.

    Returns:
        float64 [S, S], symmetric, 0 on the diagonal; NaN in the rows and columns of a subject that
        no layer has a value for.
    """
    place = {subject: number for number, subject in enumerate(subjects)}
    mean = divergence.groupby(["subject", "other"], sort=False)[column].mean()
    mean_SS = np.full((len(subjects), len(subjects)), np.nan)
    row = [place[subject] for subject in mean.index.get_level_values("subject")]
    other = [place[subject] for subject in mean.index.get_level_values("other")]
    mean_SS[row, other] = mean_SS[other, row] = mean.to_numpy(np.float64)
    is_known_S = ~np.isnan(mean_SS).all(axis=1)
    np.fill_diagonal(mean_SS, np.where(is_known_S, 0.0, np.nan))
    return mean_SS
