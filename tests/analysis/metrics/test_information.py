"""Mutual information against sums over single cells, its identities, and its bias by simulation.

Shape suffixes: S subjects, N experts, T tokens, K slots.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.metrics.decomposition import decompose
from moe_probe.analysis.metrics.frequency import assignment_share
from moe_probe.analysis.metrics.imbalance import entropy, kl_uniform
from moe_probe.analysis.metrics.information import (
    expert_information,
    information_null,
    mutual_information,
    uncertainty_coefficient,
)
from tests.analysis.documents import IDLE, deepseek_tokens, needs_data, random_documents


def naive_information(counts_SN: np.ndarray) -> float:
    total, bits = counts_SN.sum(), 0.0
    for row_N in counts_SN:
        for expert, count in enumerate(row_N):
            if count:
                apart = row_N.sum() / total * counts_SN[:, expert].sum() / total
                bits += count / total * math.log2(count / total / apart)
    return bits


@pytest.mark.parametrize("seed", range(5))
def test_information_is_the_sum_over_cells(seed: int) -> None:
    counts_SN = random_documents(seed, apart=1.0).counts_SN
    assert mutual_information(counts_SN) == pytest.approx(naive_information(counts_SN), abs=1e-14)
    # Equal weights: every subject as if it had the same number of selections.
    scaled_SN = assignment_share(counts_SN[:-1])
    equal = mutual_information(counts_SN, equal_weights=True)
    assert equal == pytest.approx(naive_information(scaled_SN), abs=1e-14)


def test_contribution_of_an_expert() -> None:
    counts_SN = random_documents(3, apart=2.0).counts_SN
    found_N = expert_information(counts_SN)
    prior_S = counts_SN.sum(axis=1) / counts_SN.sum()
    for expert in range(7):
        if expert == IDLE:
            assert found_N[expert] == 0
            continue
        given_S = counts_SN[:, expert] / counts_SN[:, expert].sum()
        kl = sum(g * math.log2(g / p) for g, p in zip(given_S, prior_S, strict=True) if g)
        share = counts_SN[:, expert].sum() / counts_SN.sum()
        assert found_N[expert] == pytest.approx(share * kl, abs=1e-14)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.floats(0, 6))
def test_identities_and_bounds(seed: int, top_k: int, apart: float) -> None:
    counts_SN = random_documents(seed, 12, top_k=top_k, apart=apart).counts_SN
    information = float(mutual_information(counts_SN))
    total_S = counts_SN.sum(axis=1)
    subject_bits = float(entropy(total_S)) / math.log(2)
    assert -1e-15 <= information <= min(subject_bits, math.log2(7 / top_k)) + 1e-12

    used_SN, used_S = counts_SN[total_S > 0], total_S[total_S > 0]
    within = float(used_S @ kl_uniform(used_SN) / used_S.sum())
    pooled = float(kl_uniform(counts_SN.sum(axis=0)))
    assert within == pytest.approx(pooled + information * math.log(2), abs=1e-12)
    assert decompose(counts_SN).information == pytest.approx(information * math.log(2), abs=1e-12)

    spread = entropy(assignment_share(used_SN).mean(axis=0)) - entropy(used_SN).mean()
    equal = mutual_information(counts_SN, equal_weights=True)
    assert equal == pytest.approx(float(spread) / math.log(2), abs=1e-12)


def test_uncertainty_coefficient() -> None:
    # Subjects that share no expert are known from one selection.
    disjoint_SN = np.array([[6, 0, 0], [0, 1, 1], [0, 0, 0]])
    assert uncertainty_coefficient(disjoint_SN) == pytest.approx(1, abs=1e-14)
    assert uncertainty_coefficient(disjoint_SN, equal_weights=True) == pytest.approx(1, abs=1e-14)
    assert uncertainty_coefficient(np.array([[2, 4], [1, 2]])) == pytest.approx(0, abs=1e-14)
    mixed_SN = np.array([[3, 1], [0, 4]])
    halves = mutual_information(mixed_SN)
    assert uncertainty_coefficient(mixed_SN) == pytest.approx(float(halves), abs=1e-14)
    assert np.isnan(uncertainty_coefficient(disjoint_SN[:1]))


def test_undefined_and_leading_axes() -> None:
    counts_LSN = np.stack([random_documents(seed, apart=1.0).counts_SN for seed in range(2)])
    stacked_LSN = np.concatenate([counts_LSN, np.zeros_like(counts_LSN[:1])])
    for equal in (False, True):
        found_L = mutual_information(stacked_LSN, equal_weights=equal)
        alone = [float(mutual_information(part, equal_weights=equal)) for part in counts_LSN]
        assert found_L[:2] == pytest.approx(alone, abs=1e-15)
        assert np.isnan(found_L[2])
    assert np.isnan(expert_information(stacked_LSN[2])).all()
    assert math.isnan(information_null(np.zeros(3), 8, 2))


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("equal", [False, True])
def test_null_is_the_mean_of_fair_routing(repeats: int, equal: bool) -> None:
    """A token that stands for several equal ones makes a design effect of as many."""
    rng = np.random.default_rng(repeats)
    tokens_S, num_experts, top_k = [120, 240, 600], 16, 4
    found = []
    for _ in range(300):
        counts_SN = np.zeros((3, num_experts), np.int64)
        for counts_N, tokens in zip(counts_SN, tokens_S, strict=True):
            ids_TK = np.argsort(rng.random((tokens, num_experts)), axis=1)[:, :top_k]
            counts_N += repeats * np.bincount(ids_TK.ravel(), minlength=num_experts)
        found.append(mutual_information(counts_SN, equal_weights=equal))
    assignments_S = repeats * top_k * np.array(tokens_S)
    expected = information_null(assignments_S, num_experts, top_k, repeats, equal_weights=equal)
    assert np.mean(found) == pytest.approx(expected, rel=0.03)
    if not equal:
        closed = repeats * 2 * (num_experts - top_k) / (2 * assignments_S.sum() * math.log(2))
        assert expected == pytest.approx(closed)


@needs_data
@pytest.mark.parametrize("layer", [0, 12, 25])
def test_two_tasks_of_deepseek_v2_lite(layer: int) -> None:
    ids_TK, document_T, subject_C = deepseek_tokens(layer)
    subject_T = subject_C[document_T].tolist()
    pairs = Counter((s, e) for s, ids in zip(subject_T, ids_TK.tolist(), strict=True) for e in ids)
    subjects, experts = Counter[int](), Counter[int]()
    for (subject, expert), count in pairs.items():
        subjects[subject] += count
        experts[expert] += count
    total = pairs.total()
    bits = sum(
        count / total * math.log2(count * total / (subjects[subject] * experts[expert]))
        for (subject, expert), count in pairs.items()
    )
    counts_SN = np.array([[pairs[subject, expert] for expert in range(64)] for subject in (0, 1)])
    assert total == 6 * (8327 + 8222)
    assert mutual_information(counts_SN) == pytest.approx(bits, abs=1e-12)
