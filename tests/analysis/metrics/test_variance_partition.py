"""Shares of variance against analysis of variance by hand.

Shape suffixes: C documents, N experts, G groups.
"""

from __future__ import annotations

import numpy as np
import pytest

from moe_probe.analysis.metrics.grouping import sums_by_label, within_groups
from moe_probe.analysis.metrics.variance_partition import (
    epsilon_squared,
    length_class,
    pseudo_f,
    variance_table,
)
from tests.analysis.documents import IDLE, deepseek_documents, needs_data, random_documents


def naive_epsilon_squared(value_C: np.ndarray, label_C: np.ndarray) -> float:
    groups = [value_C[label_C == label] for label in np.unique(label_C)]
    within = sum(((group - group.mean()) ** 2).sum() for group in groups)
    total = ((value_C - value_C.mean()) ** 2).sum()
    mean_square = within / (len(value_C) - len(groups))
    return float((total - within - (len(groups) - 1) * mean_square) / total)


@pytest.mark.parametrize("seed", range(3))
def test_table_is_analysis_of_variance(seed: int) -> None:
    data = random_documents(seed, 50, apart=1.0)
    area_C = data.subject_C // 2
    counts_CN = np.vstack([data.counts_CN, np.zeros((1, 7), np.uint16)])
    tokens_C = np.append(data.tokens_C, 0)
    table = variance_table(counts_CN, tokens_C, np.append(data.subject_C, 1), np.append(area_C, 0))
    frequency_CN = data.counts_CN / data.tokens_C[:, None]
    labels = {"subject": data.subject_C, "area": area_C, "length": length_class(data.tokens_C)}
    for name, label_C in labels.items():
        for expert in range(7):
            found = table[name][expert]
            if expert == IDLE:
                assert np.isnan(found)
            else:
                expected = naive_epsilon_squared(frequency_CN[:, expert], label_C)
                assert found == pytest.approx(expected)


def test_range_of_epsilon_squared() -> None:
    label_C = np.repeat([0, 1, 5], 4)
    decided_CN = (label_C / 7)[:, None]
    assert epsilon_squared(decided_CN, label_C) == pytest.approx(1)
    # A tenth has no exact binary form: no variance all the same.
    assert np.isnan(epsilon_squared(np.full((12, 1), 0.1), label_C)).all()
    assert np.isnan(epsilon_squared(decided_CN, np.zeros(12, np.int64))).all()
    assert np.isnan(epsilon_squared(decided_CN, np.arange(12))).all()
    assert np.isnan(epsilon_squared(np.zeros((0, 2)), np.zeros(0, np.int64))).all()
    # Groups with equal means: as far below 0 as it can be.
    alike_CN = np.tile([0.0, 1.0], 6)[:, None]
    assert epsilon_squared(alike_CN, label_C) == pytest.approx(1 - 11 / 9)


def test_labels_that_say_nothing_explain_nothing() -> None:
    """However many labels there are, unlike the plain share of variance."""
    rng = np.random.default_rng(0)
    for groups in (2, 20):
        label_C = np.arange(60) % groups
        value_CN = rng.random((60, 2000))
        found_N = epsilon_squared(value_CN, label_C)
        assert found_N.mean() == pytest.approx(0, abs=4 * found_N.std() / np.sqrt(2000))
        counts_CN = rng.multinomial(50, np.full(8, 1 / 8), size=60)
        found = [pseudo_f(counts_CN, rng.permutation(label_C)) for _ in range(200)]
        explained = [value.explained for value in found]
        assert np.mean(explained) == pytest.approx(0, abs=4 * np.std(explained) / np.sqrt(200))
        assert np.mean([value.pseudo_f for value in found]) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_pseudo_f_from_all_pairs_of_documents(seed: int) -> None:
    data = random_documents(seed, 30, apart=1.0)
    root_CN = np.sqrt(data.counts_CN / data.counts_CN.sum(axis=1, keepdims=True))
    square_CC = ((root_CN[:, None] - root_CN[None]) ** 2).sum(axis=2) / 2
    total = square_CC.sum() / 2 / 30
    within = 0.0
    for subject in range(3):
        members = np.flatnonzero(data.subject_C == subject)
        within += square_CC[np.ix_(members, members)].sum() / 2 / len(members)
    found = pseudo_f(data.counts_CN, data.subject_C)
    assert found.pseudo_f == pytest.approx((total - within) / 2 / (within / 27))
    assert found.explained == pytest.approx(1 - (within / 27) / (total / 29))


def test_pseudo_f_leaves_out_empty_documents() -> None:
    data = random_documents(0, 20, apart=1.0)
    counts_CN = np.vstack([data.counts_CN, np.zeros((2, 7), np.uint16)])
    label_C = np.append(data.subject_C, [0, 9])
    assert pseudo_f(counts_CN, label_C) == pseudo_f(data.counts_CN, data.subject_C)
    for undefined in (
        pseudo_f(data.counts_CN, np.zeros(20, np.int64)),
        pseudo_f(np.zeros((3, 7), np.uint16), np.arange(3)),
    ):
        assert np.isnan([undefined.pseudo_f, undefined.explained]).all()


@pytest.mark.parametrize(
    ("shortest", "longest", "low", "high"), [(5, 300, 0.05, 0.1), (48, 480, -0.003, 0.006)]
)
def test_short_documents_are_alike(shortest: int, longest: int, low: float, high: float) -> None:
    """Random routing of 6 of 64: the shortest select each expert 0.5 or 4.5 times on average."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(12):
        tokens_C = np.exp(rng.uniform(np.log(shortest), np.log(longest), 100)).astype(int)
        ids = [np.argsort(rng.random((tokens, 64)), axis=1)[:, :6] for tokens in tokens_C]
        counts_CN = np.stack([np.bincount(ids_TK.ravel(), minlength=64) for ids_TK in ids])
        found.append(pseudo_f(counts_CN, length_class(tokens_C)).explained)
    assert low < np.mean(found) < high


def test_classes_of_length_are_of_equal_size() -> None:
    tokens_C = np.random.default_rng(0).permutation(200)
    assert np.bincount(length_class(tokens_C)).tolist() == [20] * 10
    assert (np.diff(length_class(tokens_C)[np.argsort(tokens_C)]) >= 0).all()
    assert length_class(np.full(5, 9)).tolist() == [0] * 5
    assert length_class(np.zeros(0)).tolist() == []


def test_sums_by_label() -> None:
    value_CN = np.arange(12).reshape(4, 3)
    sums_GN = sums_by_label(value_CN, np.array([2, 0, 2, 0]), 4)
    assert sums_GN.tolist() == [[12, 14, 16], [0, 0, 0], [6, 8, 10], [0, 0, 0]]
    apart_CN = within_groups(value_CN / 11, np.array([2, 0, 2, 0]), 4)
    assert apart_CN * 11 == pytest.approx(np.outer([-3, -3, 3, 3], [1, 1, 1]))
    assert (within_groups(np.full((7, 2), 0.1), np.zeros(7, np.int64), 1) == 0).all()


@needs_data
def test_tasks_explain_much_on_deepseek_v2_lite() -> None:
    data = deepseek_documents(12)
    found = pseudo_f(data.counts_CN, data.subject_C)
    chance = pseudo_f(data.counts_CN, np.random.default_rng(0).permutation(data.subject_C))
    assert 0.3 < found.explained < 1
    assert abs(chance.explained) < 0.05
