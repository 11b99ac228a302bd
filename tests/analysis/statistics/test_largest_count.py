"""The expected largest count of few tokens against all outcomes there are, and against draws.

Shape suffixes: T tokens, K slots, R repetitions, N experts.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from moe_probe.analysis.statistics.largest_count import expected_largest_count


def of_all_outcomes(num_experts: int, top_k: int, tokens: int) -> float:
    sets = list(itertools.combinations(range(num_experts), top_k))
    largest = [
        max(np.bincount(np.concatenate(chosen), minlength=num_experts))
        for chosen in itertools.product(sets, repeat=tokens)
    ]
    return float(np.mean(largest))


@pytest.mark.parametrize(
    "shape", [(2, 1, 7), (3, 1, 5), (4, 1, 4), (7, 1, 1), (5, 2, 1), (6, 4, 1)]
)
def test_exact_for_one_choice_and_for_one_token(shape: tuple[int, int, int]) -> None:
    assert expected_largest_count(*shape) == pytest.approx(of_all_outcomes(*shape), rel=1e-9)


@pytest.mark.parametrize(
    "shape", [(4, 2, 4), (4, 3, 4), (5, 2, 3), (6, 3, 2), (8, 2, 2), (8, 6, 2)]
)
def test_close_for_sets_of_experts(shape: tuple[int, int, int]) -> None:
    assert expected_largest_count(*shape) == pytest.approx(of_all_outcomes(*shape), rel=0.02)


@pytest.mark.parametrize(("num_experts", "each"), [(16, 2), (128, 0.1), (128, 9.9), (512, 3)])
def test_one_choice_of_many_tokens(num_experts: int, each: float) -> None:
    tokens = round(each * num_experts)
    fair_N = np.full(num_experts, 1 / num_experts)
    largest_R = np.random.default_rng(5).multinomial(tokens, fair_N, 4000).max(axis=1)
    error = largest_R.std(ddof=1) / math.sqrt(len(largest_R))
    assert abs(largest_R.mean() - expected_largest_count(num_experts, 1, tokens)) <= 3 * error


@pytest.mark.parametrize(
    ("num_experts", "top_k", "tokens"), [(8, 2, 8), (8, 2, 39), (32, 4, 16), (64, 6, 30)]
)
def test_sets_of_many_tokens(num_experts: int, top_k: int, tokens: int) -> None:
    """Within 1 % of MaxVio, which is what it is for."""
    score_RTN = np.random.default_rng(6).random((4000, tokens, num_experts), dtype=np.float32)
    limit_RT1 = np.partition(score_RTN, top_k - 1, axis=2)[..., top_k - 1 : top_k]
    largest_R = (score_RTN <= limit_RT1).sum(axis=1).max(axis=1)
    fair = tokens * top_k / num_experts
    error = largest_R.std(ddof=1) / math.sqrt(len(largest_R)) / fair
    found = expected_largest_count(num_experts, top_k, tokens) / fair - 1
    assert abs(largest_R.mean() / fair - 1 - found) <= 3 * error + 0.01 * found


def test_sets_of_mixed_sizes_lie_between() -> None:
    """k need not be whole where tokens differ."""
    found = [expected_largest_count(64, k, 20) for k in (4, 4.3, 4.6, 5)]
    assert found[0] < found[1] < found[2] < found[3]
