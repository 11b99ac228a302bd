"""Permuted labels: both loops against single permutations, and honest p-values.

Shape suffixes: C documents, S subjects, N experts, R permutations, M tests.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest

from moe_probe.analysis.metrics.information import (
    expert_information,
    information_null,
    mutual_information,
)
from moe_probe.analysis.metrics.permutation import (
    PermutedInformation,
    permutation_p_value,
    permutation_q_values,
    permute_labels,
    permuted_excess,
    permuted_expert_information,
    permuted_information,
    pooled_p_values,
)
from moe_probe.analysis.statistics.multiplicity import benjamini_hochberg
from tests.analysis.documents import IDLE, deepseek_documents, needs_data, random_documents


def naive(counts_CN: np.ndarray, label_RC: np.ndarray) -> np.ndarray:
    """Return I_e under each labelling, [R, N], from sums document by document."""
    rows = []
    for label_C in label_RC:
        sums_SN = np.zeros((int(label_RC.max()) + 1, counts_CN.shape[1]))
        for counts_N, label in zip(counts_CN, label_C, strict=True):
            sums_SN[label] += counts_N
        rows.append(expert_information(sums_SN))
    return np.stack(rows)


@pytest.fixture(scope="module")
def permuted() -> Any:
    """The compiled loop; it loads the compiler."""
    return import_module("moe_probe.analysis.kernels.permuted")


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("most", "labels", "documents"),
    # 8-bit counts; sums that need several chunks; counts that no 16-bit sum holds; many labels.
    [(9, 3, 20), (20_000, 3, 60), (60_000, 3, 30), (9, 300, 400)],
)
def test_both_loops_add_up_documents(permuted: Any, most: int, labels: int, documents: int) -> None:
    rng = np.random.default_rng(most + labels)
    counts_CN = rng.integers(0, most + 1, (documents, 5)).astype(np.uint16)
    counts_CN[:, IDLE] = 0
    label_RC = permute_labels(np.arange(documents) % labels, 4, rng)
    expected_RN = naive(counts_CN, label_RC)
    assert permuted_expert_information(counts_CN, label_RC) == pytest.approx(expected_RN, abs=1e-12)
    compiled_RN = permuted.expert_information(counts_CN, label_RC, labels)
    assert compiled_RN == pytest.approx(expected_RN, abs=1e-12)


@pytest.mark.compiled
def test_the_compiled_loop_takes_what_the_plain_one_does(permuted: Any) -> None:
    label_RC = np.array([[0, 2, 2]], np.uint8)
    empty_CN = np.zeros((3, 4), np.uint8)
    assert np.isnan(permuted.expert_information(empty_CN, label_RC, 3)).all()
    assert np.isnan(permuted_expert_information(empty_CN, label_RC)).all()
    lone_CN = np.array([[1, 2, 0, 0], [0, 0, 5, 0], [0, 1, 0, 0]], np.uint8)
    expected_RN = naive(lone_CN, label_RC)
    assert permuted.expert_information(lone_CN, label_RC, 3) == pytest.approx(expected_RN)


def test_permuted_labels_are_the_same_labels() -> None:
    label_C = np.array([0, 0, 1, 2, 2, 2, 300])
    label_RC = permute_labels(label_C, 50, np.random.default_rng(0))
    assert label_RC.dtype == np.uint16
    assert permute_labels(label_C[:-1], 1, np.random.default_rng(0)).dtype == np.uint8
    assert (np.sort(label_RC, axis=1) == label_C).all()
    assert len(np.unique(label_RC, axis=0)) > 40
    again_RC = permute_labels(label_C, 50, np.random.default_rng(0))
    assert (label_RC == again_RC).all()


def test_observed_values_null_and_p_values() -> None:
    data = random_documents(4, apart=0.4)
    permuted_RC = permute_labels(data.subject_C, 60, np.random.default_rng(1))
    found = permuted_information(data.counts_CN, data.subject_C, permuted_RC)
    null_RN = naive(data.counts_CN, permuted_RC)
    assert found.information == pytest.approx(float(mutual_information(data.counts_SN)), abs=1e-12)
    assert found.null_R == pytest.approx(null_RN.sum(axis=1), abs=1e-12)
    assert found.expert_null_N == pytest.approx(null_RN.mean(axis=0), abs=1e-12)
    assert found.p_value == (1 + sum(null_RN.sum(axis=1) >= found.information - 1e-12)) / 61
    observed_N = expert_information(data.counts_SN)
    assert found.expert_information_N == pytest.approx(observed_N, abs=1e-12)
    for expert in range(7):
        as_large = int((null_RN[:, expert] >= observed_N[expert] - 1e-12).sum())
        expected = np.nan if expert == IDLE else (1 + as_large) / 61
        assert found.expert_p_value_N[expert] == pytest.approx(expected, nan_ok=True)


def test_ties_count_as_large() -> None:
    """Documents of four kinds, each a subject: many permutations merely rename the subjects."""
    counts_CN = np.random.default_rng(1).integers(0, 30, (4, 3)).repeat(2, axis=0)
    subject_C = np.array([2, 2, 0, 0, 1, 1, 3, 3])
    permuted_RC = permute_labels(subject_C, 1500, np.random.default_rng(0))
    renamed = (permuted_RC[:, ::2] == permuted_RC[:, 1::2]).all(axis=1).sum()
    found = permuted_information(counts_CN, subject_C, permuted_RC)
    assert renamed > 10
    assert found.p_value == (1 + renamed) / 1501
    assert permutation_p_value(3.0, np.array([1.0, 3.0, 5.0])) == 3 / 4


def test_nothing_is_less_than_no_information() -> None:
    counts_CN = np.array([[1, 2, 3]] * 4 + [[3, 1, 2]] * 4, np.uint8)
    subject_C = np.array([0, 1] * 4)
    permuted_RC = permute_labels(subject_C, 200, np.random.default_rng(0))
    found = permuted_information(counts_CN, subject_C, permuted_RC)
    assert found.information == pytest.approx(0, abs=1e-15)
    assert found.p_value == 1
    assert (found.expert_p_value_N == 1).all()


def test_p_values_are_uniform_where_subjects_are_alike() -> None:
    """Documents differ much, which would fool a test of tokens."""
    runs, permutations = 400, 19
    p_values = np.empty((runs, 2))
    for run in range(runs):
        data = random_documents(run, 24, num_experts=6, alike=1.5)
        rng = np.random.default_rng(10_000 + run)
        permuted_RC = permute_labels(data.subject_C, permutations, rng)
        found = permuted_information(data.counts_CN, data.subject_C, permuted_RC)
        p_values[run] = found.p_value, found.expert_p_value_N[0]
    for level in (0.05, 0.2, 0.5, 0.8):
        within = (p_values <= level + 1e-9).mean(axis=0)
        assert within == pytest.approx(level, abs=3.5 * (level * (1 - level) / runs) ** 0.5)


def test_subjects_that_differ_are_found() -> None:
    data = random_documents(0, 60, apart=2.0)
    permuted_RC = permute_labels(data.subject_C, 99, np.random.default_rng(0))
    found = permuted_information(data.counts_CN, data.subject_C, permuted_RC)
    assert found.p_value == 1 / 100
    assert found.information > 5 * found.null_R.mean()


def test_excess_is_over_the_other_permutations() -> None:
    rng = np.random.default_rng(0)
    null_RN, observed_N = rng.gamma(3, 1, (25, 4)), np.array([1.0, 9.0, 3.0, 30.0])
    found = permuted_excess(observed_N, null_RN)
    expected_N = (observed_N - null_RN.mean(axis=0)) / null_RN.std(axis=0, ddof=1)
    assert found.observed_N == pytest.approx(expected_N)
    assert found.permuted_KN.shape == (10, 4)
    for expert, null_R in enumerate(null_RN.T):
        order = np.argsort(null_R)[-10:]
        others = [np.delete(null_R, place) for place in order]
        expected = [
            (null_R[place] - other.mean()) / other.std(ddof=1)
            for place, other in zip(order, others, strict=True)
        ]
        assert np.sort(found.permuted_KN[:, expert]) == pytest.approx(np.sort(expected))


def test_excess_without_spread_is_finite() -> None:
    """What one permutation alone has is as unusual as what the observed labels alone have."""
    null_RN = np.full((30, 2), 0.5)
    null_RN[7, 1] = 0.9
    found = permuted_excess(np.array([0.9, 0.5]), null_RN)
    assert found.permuted_KN[:, 1].max() == pytest.approx(found.observed_N[0])
    assert np.count_nonzero(found.permuted_KN[:, 0]) == 0
    assert abs(found.observed_N[1]) < 1


def test_pooled_p_values() -> None:
    rng = np.random.default_rng(3)
    null_RM = rng.gamma(2, 1, (40, 9)) * np.arange(1, 10)
    observed_M = np.arange(1, 10) * np.array([0.5, 1, 2, 4, 5, 6, 7, 9, 30])
    own_M = permutation_p_value(observed_M, null_RM)
    own_M[4] = np.nan
    parts = [
        permuted_excess(observed_M[part], null_RM[:, part]) for part in np.split(np.arange(9), 3)
    ]
    pool = np.delete(np.concatenate([part.permuted_KN for part in parts], axis=1), 4, axis=1)
    excess_M = np.concatenate([part.observed_N for part in parts])
    pooled_M = [(1 + (pool >= excess).sum()) / (1 + 40 * 8) for excess in excess_M]
    expected_M = np.where(own_M <= 10 / 41, pooled_M, own_M)
    found_M = pooled_p_values(own_M, parts, 40)
    assert found_M == pytest.approx(expected_M, nan_ok=True)
    assert found_M[-1] == 1 / 321
    assert 1 < (own_M > 10 / 41).sum() < 7
    q_value_M = permutation_q_values(own_M, parts, 40)
    expected_M = np.maximum(benjamini_hochberg(expected_M), 1 / 41)
    assert q_value_M == pytest.approx(expected_M, nan_ok=True)


def test_nothing_to_pool() -> None:
    own_M = np.array([1.0, np.nan])
    for permutations in (0, 1):
        null_RN = np.ones((permutations, 2))
        found_M = permutation_q_values(own_M, [permuted_excess(own_M, null_RN)], permutations)
        assert found_M == pytest.approx(own_M, nan_ok=True)
    assert np.isnan(permutation_q_values(own_M[1:], [], 200)).all()


def fair_layers(seed: int, layers: int, spread: float) -> tuple[list[np.ndarray], np.ndarray]:
    """Return counts [C, 16] of 10 subjects' 100 documents per layer, and the subjects.

    Every fourth expert is used in one to five documents only; each document prefers experts of its
    own where `spread`, the sd of the log of their weights, is not 0.
    """
    rng = np.random.default_rng(seed)
    counts = []
    for _ in range(layers):
        weight_CN = np.exp(spread * rng.normal(size=(100, 16)))
        weight_CN[:, ::4] *= rng.random((100, 4)) < rng.uniform(0.01, 0.05, 4)
        share_CN = weight_CN / weight_CN.sum(axis=1, keepdims=True)
        counts.append(rng.multinomial(rng.integers(60, 101, 100), share_CN))
    return counts, np.arange(100) % 10


def all_layers(
    counts: list[np.ndarray], subject_C: np.ndarray, permutations: int, seed: int
) -> tuple[np.ndarray, list[PermutedInformation]]:
    permuted_RC = permute_labels(subject_C, permutations, np.random.default_rng(seed))
    found = [permuted_information(counts_CN, subject_C, permuted_RC) for counts_CN in counts]
    return np.concatenate([each.expert_p_value_N for each in found]), found


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_pooled_p_values_are_uniform_far_into_the_tail(spread: float) -> None:
    """Of fair experts, among them some used in a few documents only, which chance makes extreme."""
    p_values, smallest = [], []
    for seed in range(20):
        own_M, found = all_layers(*fair_layers(seed, 25, spread), 60, 1000 + seed)
        p_value_M = pooled_p_values(own_M, [each.expert_excess for each in found], 60)
        p_values.append(p_value_M[np.isfinite(p_value_M)])
        smallest.append(np.nanmin(own_M))
    pooled = np.concatenate(p_values)
    assert len(pooled) > 7000
    assert min(smallest) == 1 / 61
    for level in (0.05, 0.01, 0.003, 0.001):
        assert (pooled <= level).mean() == pytest.approx(
            level, abs=3 * (level * (1 - level) / len(pooled)) ** 0.5
        )


def test_a_lone_expert_of_many_is_found() -> None:
    """320 experts, one of them used on one of ten subjects only."""
    counts, subject_C = fair_layers(5, 20, 0.5)
    counts[3][:, 5] = np.where(subject_C == 4, 6, 0)
    own_M, found = all_layers(counts, subject_C, 200, 0)
    q_value_M = permutation_q_values(own_M, [each.expert_excess for each in found], 200)
    assert own_M[3 * 16 + 5] == 1 / 201
    assert benjamini_hochberg(own_M)[3 * 16 + 5] > 0.05
    assert q_value_M[3 * 16 + 5] < 0.01
    others_M = np.delete(q_value_M, np.arange(3 * 16, 4 * 16))
    assert (others_M[np.isfinite(others_M)] > 0.05).all()


def test_no_selections() -> None:
    empty_CN, label_C = np.zeros((4, 3), np.uint8), np.array([0, 0, 1, 1])
    found = permuted_information(empty_CN, label_C, label_C[None].astype(np.uint8))
    assert np.isnan([found.information, found.p_value]).all()
    assert np.isnan(found.expert_p_value_N).all()


@needs_data
def test_documents_are_the_unit_on_deepseek_v2_lite() -> None:
    data = deepseek_documents(12)
    permuted_RC = permute_labels(data.subject_C, 199, np.random.default_rng(0))
    found = permuted_information(data.counts_CN, data.subject_C, permuted_RC)
    tokens = information_null(data.counts_SN.sum(axis=1), 64, 6)
    assert found.p_value == 1 / 200
    # Independent tokens would give a null many times too small.
    assert found.null_R.mean() > 5 * tokens
