"""E8: how much of the variance between documents is a matter of their subject.

What is left is the document itself. Documents without tokens are left out.

Shape suffixes: C documents, N experts of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.frequency import assignment_share
from moe_probe.analysis.metrics.grouping import sums_by_label
from moe_probe.analysis.statistics.undefined import positive

_ROUNDING = 1e-12


def epsilon_squared(value_CN: np.ndarray, label_C: np.ndarray) -> np.ndarray:
    """Return the share of the variance between documents that their labels explain, adjusted.

    epsilon^2 = 1 - (C - 1) / (C - G) SS_within / SS_total, with G the labels in use. Unlike the
    plain share (eta^2) it does not grow with the number of labels.

    Args:
        value_CN: A share in [0, 1] of each document and expert, such as p = c / n, [C, N].
        label_C: Index of each document's group.

    Returns:
        float64 [N], at most 1, 0 in the mean if labels say nothing, so also below 0; NaN where
        nothing varies, or every document or no document has a group of its own.
        Source: Kelley (1935), the unbiased correlation ratio.
    """
    within_N, total_N, documents, groups = _squares(value_CN, label_C)
    if groups < 2 or documents <= groups:
        return np.full(value_CN.shape[1], np.nan)
    left_N = within_N / positive(total_N)
    return np.asarray(1 - (documents - 1) / (documents - groups) * left_N)


@dataclass(frozen=True)
class PseudoF:
    """Whether documents of one group are closer to each other than to those of others."""

    pseudo_f: float
    """Variance between groups over variance within them; 1 in the mean if labels say nothing."""
    explained: float
    """Share of the summed squared distances between documents that groups explain, adjusted."""


def pseudo_f(counts_CN: np.ndarray, label_C: np.ndarray) -> PseudoF:
    """Return PERMANOVA's pseudo-F of documents on the Hellinger distance of their shares.

    That distance needs no matrix of all pairs, unlike the root of the Jensen-Shannon divergence,
    from which it differs by a factor between 0.83 and 1.

    Args:
        counts_CN: Selections of each expert in each document, [C, N].
        label_C: Index of each document's group.

    Returns:
        Both values; NaN as in `epsilon_squared`. Source: Anderson (2001).
    """
    selected_C = counts_CN.sum(axis=1) > 0
    root_CN = np.sqrt(assignment_share(counts_CN[selected_C]))
    within_N, total_N, documents, groups = _squares(root_CN, label_C[selected_C])
    within, total = within_N.sum(), total_N.sum()
    if groups < 2 or documents <= groups or total == 0:
        return PseudoF(np.nan, np.nan)
    inner = within / (documents - groups)
    outer = (total - within) / (groups - 1)
    return PseudoF(
        float(outer / inner) if inner > 0 else np.nan,
        float(1 - inner / (total / (documents - 1))),
    )


def variance_table(
    counts_CN: np.ndarray, tokens_C: np.ndarray, subject_C: np.ndarray, area_C: np.ndarray
) -> pd.DataFrame:
    """Tabulate what explains the selection frequency of each expert, document by document.

    Args:
        counts_CN: Selections of each expert in each document, [C, N].
        tokens_C: Tokens of each document.
        subject_C: Index of each document's subject.
        area_C: Index of each document's area.

    Returns:
        expert  index in the layer
        subject, area, length  `epsilon_squared` by each alone. Subjects lie inside areas, so the
            subject's share contains the area's; length is that of the document in ten classes of
            equal size, and overlaps with both.
    """
    counted_C = tokens_C > 0
    frequency_CN = counts_CN[counted_C] / tokens_C[counted_C, None]
    labels = {
        "subject": subject_C[counted_C],
        "area": area_C[counted_C],
        "length": length_class(tokens_C[counted_C]),
    }
    shares = {name: epsilon_squared(frequency_CN, label_C) for name, label_C in labels.items()}
    return pd.DataFrame({"expert": np.arange(counts_CN.shape[1]), **shares})


def length_class(tokens_C: np.ndarray, classes: int = 10) -> np.ndarray:
    """Return the class of each document's length, 0 the shortest; classes are of equal size."""
    if not len(tokens_C):
        return np.zeros(0, np.int64)
    edges = np.quantile(tokens_C, np.arange(1, classes) / classes)
    return np.searchsorted(edges, tokens_C, side="left")


def _squares(value_CN: np.ndarray, label_C: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Return sums of squares within groups and in total, number of documents and of groups."""
    used, group_C = np.unique(label_C, return_inverse=True)
    documents = len(label_C)
    apart_CN = value_CN - value_CN.sum(axis=0) / max(documents, 1)
    total_N = np.einsum("cn,cn->n", apart_CN, apart_CN)
    # The rounding of a mean is no difference between documents.
    total_N[total_N < documents * _ROUNDING**2] = 0.0
    sum_GN = sums_by_label(apart_CN, group_C, len(used))
    between_N = (sum_GN**2 / np.bincount(group_C)[:, None]).sum(axis=0)
    return np.maximum(total_N - between_N, 0.0), total_N, documents, len(used)
