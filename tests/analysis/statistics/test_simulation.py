"""Simulated fair routing against closed forms, with fixed and variable k, free and within groups.

Shape suffixes: R repetitions, N experts, D groups.
"""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest

from moe_probe.analysis.metrics import imbalance
from moe_probe.analysis.statistics.nulls import (
    count_variance,
    expected_indices,
    uniform_chi_square,
)
from moe_probe.analysis.statistics.simulation import (
    limited_sets,
    simulate_counts,
)


def simulate(
    repetitions: int, num_experts: int, top_k: int, tokens: int, *limits: int
) -> np.ndarray:
    rng = np.random.default_rng(11)
    counts_RN = [
        simulate_counts(num_experts, top_k, tokens, rng, *limits) for _ in range(repetitions)
    ]
    return np.stack(counts_RN)


@pytest.mark.parametrize(
    ("num_experts", "top_k", "tokens"),
    [(8, 2, 500), (64, 6, 700), (64, 8, 600), (256, 8, 1800), (128, 1, 7000)],
)
def test_closed_forms_of_fair_routing(num_experts: int, top_k: int, tokens: int) -> None:
    counts_RN = simulate(150, num_experts, top_k, tokens)
    expected = expected_indices(num_experts, top_k, tokens)
    for name, value in asdict(expected).items():
        values_R = getattr(imbalance, name)(counts_RN)
        if name == "cv":  # what is exact is the expectation of its square
            values_R, value = values_R**2, value**2
        error = values_R.std(ddof=1) / math.sqrt(len(values_R))
        assert abs(values_R.mean() - value) <= 3 * error + 1e-12, name


@pytest.mark.parametrize("shape", [(8, 2), (64, 6), (64, 8), (256, 8), (128, 1)])
@pytest.mark.parametrize("each", [0.3, 1, 3, 9])
def test_forms_for_few_tokens(shape: tuple[int, int], each: float) -> None:
    """An expert is expected `each` times."""
    num_experts, top_k = shape
    tokens = max(round(each * num_experts / top_k), 1)
    counts_RN = simulate(200, num_experts, top_k, tokens)
    for name, value in asdict(expected_indices(num_experts, top_k, tokens)).items():
        values_R = getattr(imbalance, name)(counts_RN)
        if name == "cv":
            values_R, value = values_R**2, value**2
        # Experts that chance leaves unseen once in many draws may be so in none.
        spread = max(values_R.std(ddof=1), math.sqrt(value) if name == "unseen" else 0)
        error = spread / math.sqrt(len(values_R))
        slack = {"max_vio": 0.02 if top_k > 1 else 0, "effective_experts": 0.02}
        assert abs(values_R.mean() - value) <= 3 * error + slack.get(name, 1e-9) * value, name


@pytest.mark.parametrize(
    ("num_experts", "parts"),
    [(8, {2: 300}), (64, {6: 200}), (16, {1: 200, 3: 150, 8: 100}), (4, {0: 50, 4: 50, 1: 100})],
)
def test_chi_square_and_variance_with_variable_k(num_experts: int, parts: dict[int, int]) -> None:
    parts_RN = [simulate(1500, num_experts, k, n) for k, n in parts.items() if k]
    counts_RN = np.sum(parts_RN, axis=0)
    slots = sum(k * n for k, n in parts.items())
    slots_square = sum(k * k * n for k, n in parts.items())
    squares_R = ((counts_RN - slots / num_experts) ** 2).mean(axis=1)
    error = squares_R.std() / math.sqrt(len(squares_R))
    variance = float(count_variance(slots, slots_square, num_experts))
    assert abs(squares_R.mean() - variance) <= 3 * error
    statistic_R, p_R = uniform_chi_square(counts_RN, slots, slots_square)
    error = statistic_R.std() / math.sqrt(len(statistic_R))
    assert abs(statistic_R.mean() - (num_experts - 1)) <= 3 * error
    for level in (0.05, 0.5):
        error = math.sqrt(level * (1 - level) / len(p_R))
        # Counts are whole numbers, so the levels are met to a per cent.
        assert abs((p_R <= level).mean() - level) <= 3 * error + 0.01


def test_chi_square_is_the_multinomial_one_for_top_1() -> None:
    counts_N = np.array([12, 8, 10, 10])
    statistic, _ = uniform_chi_square(counts_N, 40, 40)
    assert statistic == pytest.approx(((counts_N - 10) ** 2 / 10).sum())
    corrected, _ = uniform_chi_square(counts_N, 40, 80)
    assert corrected == pytest.approx(3 / 2 * statistic)


def test_nothing_to_test() -> None:
    assert np.isnan(uniform_chi_square(np.zeros(4, int), 0, 0)).all()
    assert np.isnan(uniform_chi_square(np.full(4, 7), 28, 112)).all()


def group_chi_square_variance(num_experts: int, top_k: int, groups: int, limit: int) -> float:
    """Large-T variance of X^2 under N0g, by the eigenvalues of a token's covariance."""
    size, pool, p = num_experts // groups, num_experts // groups * limit, top_k / num_experts
    both = top_k * (top_k - 1) / (pool * (pool - 1))
    same = both * limit / groups - p * p
    apart = both * limit * (limit - 1) / (groups * (groups - 1)) - p * p
    variance = p - p * p
    within, between = variance - same, variance + (size - 1) * same - size * apart
    mean = variance * num_experts / (num_experts - 1)
    number = groups * (size - 1)
    return 2 * (number * (within / mean) ** 2 + (groups - 1) * (between / mean) ** 2)


@pytest.mark.parametrize(("groups", "limit"), [(4, 1), (8, 2), (8, 8)])
def test_groups_widen_the_chi_square_but_keep_its_mean(groups: int, limit: int) -> None:
    counts_RN = simulate(3000, 64, 4, 300, groups, limit)
    statistic_R, _ = uniform_chi_square(counts_RN, 1200, 4800)
    expected = group_chi_square_variance(64, 4, groups, limit)
    assert statistic_R.mean() == pytest.approx(63, abs=3 * math.sqrt(expected / 3000))
    # sd of a variance of 3000 values, of a distribution a little more peaked than the normal one
    assert statistic_R.var() == pytest.approx(expected, rel=3 * math.sqrt(2.4 / 3000))
    assert (expected > 126.001) == (limit < groups)


def test_deepseek_v3_groups() -> None:
    """4 of 8 groups, 8 of 256 experts: 524.6 instead of 510, MaxVio hardly above N0's."""
    assert group_chi_square_variance(256, 8, 8, 4) == pytest.approx(524.6, abs=0.1)
    free, grouped = (
        imbalance.max_vio(simulate(150, 256, 8, 1000, *limits)) for limits in ((), (8, 4))
    )
    error = math.hypot(free.std(), grouped.std()) / math.sqrt(150)
    assert abs(grouped.mean() - free.mean()) <= 3 * error + 0.01


def test_a_token_stays_within_its_groups() -> None:
    rng = np.random.default_rng(12)
    for _ in range(200):
        counts_N = simulate_counts(24, 5, 1, rng, 4, 2)
        assert counts_N.sum() == 5
        assert counts_N.max() == 1
        assert (counts_N.reshape(4, 6).sum(axis=1) > 0).sum() <= 2


def test_all_tokens_are_drawn_over_chunks() -> None:
    counts_N = simulate_counts(512, 3, 5000, np.random.default_rng(0))
    assert counts_N.sum() == 15_000
    assert simulate_counts(4, 4, 10, np.random.default_rng(0)).tolist() == [10] * 4


def test_impossible_groups() -> None:
    rng = np.random.default_rng(0)
    for top_k, groups, limit in ((5, 8, 2), (2, 3, 1), (2, 4, 5), (17, 1, 1)):
        with pytest.raises(ValueError, match=r"experts cannot give"):
            simulate_counts(16, top_k, 1, rng, groups, limit)


def test_limited_sets_keep_their_limits_and_spread() -> None:
    ids_TK = limited_sets(256, 8, 8, 4, 2, 4000)
    assert all(len(set(ids)) == 8 for ids in ids_TK.tolist())
    groups_T = np.array([len({expert // 32 for expert in ids}) for ids in ids_TK.tolist()])
    assert groups_T.max() == 4
    # The research notes have 3.95 from a simulation of their own.
    assert groups_T.mean() == pytest.approx(3.95, abs=0.01)
    counts_N = np.bincount(ids_TK.ravel(), minlength=256)
    assert counts_N.std() < 3 * np.sqrt(counts_N.mean())


def test_limited_sets_take_groups_by_their_best_scores() -> None:
    """With one group per token, k of n experts of the group that has the largest score."""
    ids_TK = limited_sets(6, 2, 3, 1, 1, 500)
    assert (np.sort(ids_TK, axis=1) == 2 * (ids_TK.min(axis=1) // 2)[:, None] + [0, 1]).all()
    score_TN = np.random.default_rng(0).random((500, 3, 2)).reshape(500, 6)
    assert (ids_TK // 2 == score_TN.argmax(axis=1)[:, None] // 2).all()
