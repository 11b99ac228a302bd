"""E6 as matrices: how far subjects are apart in every layer, and over all layers.

Shape suffixes: L layers, S subjects.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd


def layer_matrices(
    divergence: pd.DataFrame,
    layers: Iterable[int],
    subjects: Iterable[str],
    column: str = "divergence_bits",
) -> np.ndarray:
    """Return a column of the table `divergence` as one matrix for every layer.

    Args:
        divergence: Rows of (layer, subject, other), each pair once a layer.
        layers: L layers by the model's own index, in the order of the matrices.
        subjects: S names, in the order of the rows and columns of a matrix.
        column: What the matrices hold.

    Returns:
        float64 [L, S, S], symmetric, 0 on the diagonal; NaN in the rows and columns of a subject
        that has no value in the layer.
    """
    layer_at, subject_at = ({name: at for at, name in enumerate(all)} for all in (layers, subjects))
    layer = divergence["layer"].map(layer_at).to_numpy(np.int64)
    row, other = (
        divergence[key].map(subject_at).to_numpy(np.int64) for key in ("subject", "other")
    )
    bits_LSS = np.full((len(layer_at), len(subject_at), len(subject_at)), np.nan)
    values = divergence[column].to_numpy(np.float64)
    bits_LSS[layer, row, other] = bits_LSS[layer, other, row] = values
    return _with_diagonal(bits_LSS)


def mean_over_layers(bits_LSS: np.ndarray) -> np.ndarray:
    """Return the mean of the layers' matrices.

    All pairs are averaged over the same layers, or their distances would not compare: layers
    differ by a factor of a hundred. Layers without any value do not count.

    Returns:
        float64 [S, S], as the matrices are; NaN in the rows and columns of a subject that lacks
        a value in a layer that counts.
    """
    is_pair_SS = ~np.eye(bits_LSS.shape[-1], dtype=bool)
    is_known_L = ~np.isnan(bits_LSS[:, is_pair_SS]).all(axis=1)
    if not is_known_L.any():
        return np.full(bits_LSS.shape[1:], np.nan)
    return _with_diagonal(bits_LSS[is_known_L].mean(axis=0))


def _with_diagonal(bits_XSS: np.ndarray) -> np.ndarray:
    """Return the matrices with 0 for every subject that has a value beside another, NaN else."""
    subjects = np.arange(bits_XSS.shape[-1])
    bits_XSS[..., subjects, subjects] = np.nan
    is_known_XS = ~np.isnan(bits_XSS).all(axis=-1)
    bits_XSS[..., subjects, subjects] = np.where(is_known_XS, 0.0, np.nan)
    return bits_XSS
