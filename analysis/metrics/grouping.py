"""Sums over the documents of a group.

Shape suffixes: C documents, G groups, N experts of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Entries of a table [C, N] that are worked on at a time: copies of one take 8 MiB.
_ENTRIES = 1 << 20


def expert_slices(documents: int, num_experts: int) -> Iterator[slice]:
    """Yield stretches of experts, so that a table of them over the documents is never large."""
    step = max(_ENTRIES // max(documents, 1), 1)
    for start in range(0, num_experts, step):
        yield slice(start, start + step)


def sums_by_label(
    value_CN: np.ndarray, label_C: np.ndarray, num_labels: int, weight_C: np.ndarray | None = None
) -> np.ndarray:
    """Return the sum of the rows that have each label.

    Args:
        value_CN: Numbers, [C, N].
        label_C: Label of each row, an index below `num_labels`.
        num_labels: G.
        weight_C: How often each row counts; once if None.

    Returns:
        float64 [G, N]; 0 for a label that no row has.
    """
    from scipy.sparse import csc_array

    documents = len(label_C)
    times_C = np.ones(documents) if weight_C is None else weight_C.astype(np.float64)
    column_C = np.arange(documents + 1)
    member_GC = csc_array((times_C, label_C, column_C), shape=(num_labels, documents))
    sum_GN = np.empty((num_labels, value_CN.shape[1]))
    for experts in expert_slices(*value_CN.shape):
        sum_GN[:, experts] = member_GC @ value_CN[:, experts]
    return sum_GN


def within_groups(
    value_CN: np.ndarray, label_C: np.ndarray, num_labels: int, weight_C: np.ndarray | None = None
) -> np.ndarray:
    """Return each value less the mean of its group, float64 [C, N].

    Args:
        value_CN: Shares in [0, 1].
        label_C: Label of each row, an index below `num_labels`.
        num_labels: G.
        weight_C: Of each row in its group's mean, at least 1; alike if None.
    """
    size_G = np.bincount(label_C, weight_C, num_labels)
    sum_GN = sums_by_label(value_CN, label_C, num_labels, weight_C)
    mean_GN = sum_GN / np.maximum(size_G, 1)[:, None]
    apart_CN = value_CN - mean_GN[label_C]
    # The rounding of a mean is no difference between documents.
    apart_CN[np.abs(apart_CN) < 1e-12] = 0.0
    return np.asarray(apart_CN)
