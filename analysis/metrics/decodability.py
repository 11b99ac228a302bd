"""E5: whether a document's subject can be read off its routing.

Shape suffixes: C documents, S subjects, N experts of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_probe.analysis.metrics.grouping import sums_by_label


@dataclass(frozen=True)
class Decodability:
    """How well subjects are predicted for documents that the classifier has not seen."""

    accuracy: float
    """Share of documents whose subject is found, in [0, 1]."""
    balanced_accuracy: float
    """Mean over subjects of that share."""
    majority_share: float
    """Null of `accuracy`: always to say the most frequent subject."""
    chance: float
    """Null of `balanced_accuracy`: 1 / S."""


def decodability(counts_CN: np.ndarray, subject_C: np.ndarray, folds: int = 10) -> Decodability:
    """Predict the subject of each document from its counts by multinomial naive Bayes.

    Documents are tested in folds, each with a classifier made of the others. A fold has a stretch
    of consecutive documents of every subject: neighbours, which may share a text, stay together.

    Args:
        counts_CN: Selections of each expert in each document, [C, N]. Several layers may be joined
            along N.
        subject_C: Index of each document's subject.
        folds: Number of folds, 2 at least.

    Returns:
        Accuracies and their nulls; NaN with fewer than two subjects. Documents without selections
        are left out. Source: McCallum and Nigam (1998), the multinomial model.
    """
    selected_C = counts_CN.any(axis=1)
    if not selected_C.all():
        counts_CN = counts_CN[selected_C]
    used, subject_C = np.unique(subject_C[selected_C], return_inverse=True)
    subjects = len(used)
    if subjects < 2:
        return Decodability(np.nan, np.nan, np.nan, np.nan)
    size_S = np.bincount(subject_C)
    fold_C = _folds(subject_C, size_S, folds)
    total_SN = sums_by_label(counts_CN, subject_C, subjects)
    found_C = np.zeros(len(subject_C), bool)
    for fold in range(folds):
        test_C = np.flatnonzero(fold_C == fold)
        fold_S = subject_C[test_C]
        seen_SN = total_SN - sums_by_label(counts_CN[test_C], fold_S, subjects)
        seen_S = size_S - np.bincount(fold_S, minlength=subjects)
        score_CS = counts_CN[test_C] @ _log_share(seen_SN).T + _log_prior(seen_S)
        found_C[test_C] = score_CS.argmax(axis=1) == fold_S
    recall_S = np.bincount(subject_C, found_C) / size_S
    return Decodability(
        accuracy=float(found_C.mean()),
        balanced_accuracy=float(recall_S.mean()),
        majority_share=float(size_S.max() / size_S.sum()),
        chance=1 / subjects,
    )


def _folds(subject_C: np.ndarray, size_S: np.ndarray, folds: int) -> np.ndarray:
    order_C = np.argsort(subject_C, kind="stable")
    first_S = np.cumsum(size_S) - size_S
    rank_C = np.empty(len(subject_C), np.int64)
    rank_C[order_C] = np.arange(len(subject_C)) - first_S[subject_C[order_C]]
    # Subjects begin at different folds, so that small ones do not all fall into the first.
    return np.asarray((rank_C * folds // size_S[subject_C] + subject_C) % folds)


def _log_share(counts_SN: np.ndarray) -> np.ndarray:
    more_SN = counts_SN + 1
    return np.asarray(np.log(more_SN / more_SN.sum(axis=1, keepdims=True)))


def _log_prior(documents_S: np.ndarray) -> np.ndarray:
    """Return the log of each subject's share; a subject that was not seen is never predicted."""
    share_S = documents_S / documents_S.sum()
    impossible_S = np.full(len(share_S), -np.inf)
    return np.asarray(np.log(share_S, out=impossible_S, where=share_S > 0))
