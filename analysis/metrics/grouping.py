"""Sums over the documents of a group.

Shape suffixes: C documents, G groups, N experts of a layer.
"""

from __future__ import annotations

import numpy as np


def sums_by_label(value_CN: np.ndarray, label_C: np.ndarray, num_labels: int) -> np.ndarray:
    """Return the sum of the rows that have each label.

    Args:
        value_CN: Numbers, [C, N].
        label_C: Label of each row, an index below `num_labels`.
        num_labels: G.

    Returns:
        float64 [G, N]; 0 for a label that no row has.
    """
    from scipy.sparse import csc_array

    documents = len(label_C)
    ones_C, column_C = np.ones(documents), np.arange(documents + 1)
    member_GC = csc_array((ones_C, label_C, column_C), shape=(num_labels, documents))
    return np.asarray(member_GC @ value_CN)


def within_groups(value_CN: np.ndarray, label_C: np.ndarray, num_labels: int) -> np.ndarray:
    """Return each value less the mean of its group, float64 [C, N].

    Args:
        value_CN: Shares in [0, 1].
        label_C: Label of each row, an index below `num_labels`.
        num_labels: G.
    """
    size_G = np.bincount(label_C, minlength=num_labels)
    mean_GN = sums_by_label(value_CN, label_C, num_labels) / np.maximum(size_G, 1)[:, None]
    apart_CN = value_CN - mean_GN[label_C]
    # The rounding of a mean is no difference between documents.
    apart_CN[np.abs(apart_CN) < 1e-12] = 0.0
    return np.asarray(apart_CN)
