"""Subjects read off routing: against plain loops, and where there is nothing to read.

Shape suffixes: C documents, S subjects.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from moe_probe.analysis.metrics.decodability import _folds, decodability
from tests.analysis.documents import deepseek_documents, needs_data, random_documents


def naive_accuracy(counts_CN: np.ndarray, subject_C: np.ndarray, fold_C: np.ndarray) -> list[bool]:
    found = []
    for document, counts_N in enumerate(counts_CN):
        train = [d for d in range(len(subject_C)) if fold_C[d] != fold_C[document]]
        scores = {}
        for subject in sorted({int(subject_C[d]) for d in train}):
            members = [d for d in train if subject_C[d] == subject]
            total_N = counts_CN[members].sum(axis=0) + 1.0
            scores[subject] = math.log(len(members) / len(train)) + sum(
                count * math.log(share)
                for count, share in zip(counts_N, total_N / total_N.sum(), strict=True)
            )
        found.append(max(scores, key=lambda s: scores[s]) == subject_C[document])
    return found


@pytest.mark.parametrize("seed", range(4))
def test_naive_bayes_by_folds(seed: int) -> None:
    data = random_documents(seed, 25, apart=1.0)
    fold_C = _folds(data.subject_C, np.bincount(data.subject_C), 5)
    found_C = np.array(naive_accuracy(data.counts_CN, data.subject_C, fold_C))
    result = decodability(data.counts_CN, data.subject_C, folds=5)
    assert result.accuracy == pytest.approx(found_C.mean())
    recalls = [found_C[data.subject_C == subject].mean() for subject in range(3)]
    assert result.balanced_accuracy == pytest.approx(np.mean(recalls))
    assert result.majority_share == max(data.documents_S) / 25
    assert result.chance == 1 / 3


def test_folds_are_stretches_of_every_subject() -> None:
    subject_C = np.array([0] * 20 + [1] * 3 + [0] * 20)
    fold_C = _folds(subject_C, np.bincount(subject_C), 4)
    assert np.bincount(fold_C[subject_C == 0]).tolist() == [10] * 4
    assert (np.diff(fold_C[subject_C == 0]) != 0).sum() == 3
    assert len(set(fold_C[subject_C == 1].tolist())) == 3


def test_subjects_with_experts_of_their_own_are_found() -> None:
    subject_C = np.arange(30) % 3
    counts_CN = np.zeros((30, 6), np.uint8)
    counts_CN[np.arange(30), 2 * subject_C] = 5
    result = decodability(counts_CN, subject_C)
    assert (result.accuracy, result.balanced_accuracy) == (1, 1)


def test_routing_that_knows_nothing() -> None:
    found = []
    for seed in range(60):
        data = random_documents(seed, 60, alike=1.0)
        found.append(decodability(data.counts_CN, data.subject_C).balanced_accuracy)
    assert np.mean(found) == pytest.approx(1 / 3, abs=0.03)


def test_undefined_and_empty() -> None:
    data = random_documents(0, 20)
    assert math.isnan(decodability(data.counts_CN, np.zeros(20, np.int64)).accuracy)
    counts_CN = np.vstack([data.counts_CN, np.zeros((3, 7), np.uint16)])
    subject_C = np.append(data.subject_C, [0, 1, 7])
    assert decodability(counts_CN, subject_C) == decodability(data.counts_CN, data.subject_C)
    # A subject of one document is never found, since no other document shows what it is like.
    lone = decodability(data.counts_CN, np.append(np.zeros(19, np.int64), 1))
    assert lone.balanced_accuracy <= 0.5


@needs_data
def test_two_tasks_of_deepseek_v2_lite() -> None:
    data = deepseek_documents(12)
    result = decodability(data.counts_CN, data.subject_C)
    assert result.majority_share == 127 / 160
    assert result.accuracy > 0.95
    assert result.balanced_accuracy > 0.9
