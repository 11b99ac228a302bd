"""Ranks of experts and their uncertainty, against loops over experts.

Shape suffixes: C clusters (documents), B replicates, N experts, K slots, L layers.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import stdtr

from moe_probe.analysis.metrics.ranking import (
    bottom_probability,
    bottom_set,
    experts_to_cover,
    rank_frequency,
    rank_from_least,
    rank_interval,
    simultaneous_ranks,
)

counts = st.lists(st.integers(0, 5), min_size=1, max_size=9)


def test_slots_of_experts() -> None:
    # Four tokens, the last of which fills one slot only; expert 2 is never used.
    rank_counts_KN = np.array([[3, 1, 0], [1, 2, 0]])
    assert rank_frequency(rank_counts_KN, 4).tolist() == [[0.75, 0.25, 0], [0.25, 0.5, 0]]
    assert np.isnan(rank_frequency(rank_counts_KN * 0, 0)).all()


@settings(deadline=None, max_examples=80)
@given(counts, st.sampled_from([0.1, 0.5, 0.8, 0.9, 0.99, 1.0]))
def test_experts_to_cover(values: list[int], share: float) -> None:
    found = float(experts_to_cover(np.array(values), [share])[0])
    if not sum(values):
        assert math.isnan(found)
        return
    # Tenths and hundredths are compared as whole numbers, where nothing rounds.
    needed = round(share * 100) * sum(values)
    covered = [100 * sum(sorted(values)[-m:]) for m in range(1, len(values) + 1)]
    assert found == 1 + sum(value < needed for value in covered)


def test_experts_to_cover_has_bounds() -> None:
    rng = np.random.default_rng(0)
    shares = (0.5, 0.8, 0.9, 0.99)
    for top_k in (1, 3, 8):
        ids_TK = np.argsort(rng.random((50, 8)) + rng.normal(0, 1, 8), axis=1)[:, :top_k]
        found_P = experts_to_cover(np.bincount(ids_TK.ravel(), minlength=8))
        assert (found_P >= np.ceil(np.array(shares) * top_k - 1e-9)).all()
        assert (found_P <= 8).all()
    assert experts_to_cover(np.full(64, 7)).tolist() == [32, 52, 58, 64]
    counts_LN = rng.integers(0, 9, (3, 5))
    each = [experts_to_cover(counts_N).tolist() for counts_N in counts_LN]
    assert experts_to_cover(counts_LN).tolist() == each


@settings(deadline=None, max_examples=80)
@given(counts)
def test_rank_counts_experts_below(values: list[int]) -> None:
    expected = [1 + sum(other < value for other in values) for value in values]
    assert rank_from_least(np.array(values)).tolist() == expected
    assert rank_from_least(np.array([values, values[::-1]])).tolist() == [expected, expected[::-1]]


def replicates(counts_CN: np.ndarray, number: int, seed: int = 0) -> np.ndarray:
    weight_BC = np.random.default_rng(seed).poisson(1, (number, len(counts_CN)))
    return np.asarray(weight_BC @ counts_CN, np.float64)


def test_interval_and_probability_of_ranks() -> None:
    rng = np.random.default_rng(1)
    counts_CN = rng.poisson([1, 2, 2, 4, 9], (6, 5))
    replicates_BN = replicates(counts_CN, 101)
    rank_BN = np.array([[1 + (row < value).sum() for value in row] for row in replicates_BN])
    rank_BN = np.sort(rank_BN[replicates_BN.sum(axis=1) > 0], axis=0)
    last = len(rank_BN) - 1
    low, high = math.floor(0.025 * last), math.ceil(0.975 * last)
    assert rank_interval(replicates_BN).tolist() == [rank_BN[low].tolist(), rank_BN[high].tolist()]
    assert bottom_probability(replicates_BN, 2) == pytest.approx((rank_BN <= 2).mean(axis=0))


def test_idle_experts_are_one_tier() -> None:
    counts_CN = np.random.default_rng(2).poisson([0, 5, 0, 9, 0, 20], (30, 6))
    replicates_BN = replicates(counts_CN, 100)
    assert rank_interval(replicates_BN)[:, [0, 2, 4]].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert bottom_probability(replicates_BN, 1).tolist() == [1, 0, 1, 0, 1, 0]
    inside_N = bottom_set(counts_CN.sum(axis=0), replicates_BN, 30, 1)
    assert inside_N.tolist() == [True, False, True, False, True, False]


def test_replicates_that_count_nothing_are_left_out() -> None:
    counted_BN = np.array([[1.0, 2], [3, 1]])
    with_empty_BN = np.concatenate([counted_BN, np.zeros((3, 2))])
    assert rank_interval(with_empty_BN).tolist() == rank_interval(counted_BN).tolist()
    assert bottom_probability(with_empty_BN, 1).tolist() == [0.5, 0.5]
    assert np.isnan(rank_interval(with_empty_BN[2:])).all()
    assert np.isnan(bottom_probability(with_empty_BN[2:], 1)).all()


def loop_ranks(counts_N: list[int], replicates_BN: np.ndarray, documents: int) -> list[list[int]]:
    """Compare each pair in both directions, and step down from the smallest p (Holm)."""
    number, total = len(counts_N), sum(counts_N)
    drawn = sum(bool(row.sum()) for row in replicates_BN)
    freedom = 1 / (1 / (documents - 1) + 1 / drawn)
    p: dict[tuple[int, int], float] = {}
    for one, other in itertools.permutations(range(number), 2):
        d = [(row[one] - row[other]) / row.sum() for row in replicates_BN if row.sum()]
        more = (counts_N[one] - counts_N[other]) / total
        spread = float(np.std(d, ddof=1)) * math.sqrt(documents / (documents - 1))
        alone = math.sqrt(((counts_N[one] + counts_N[other]) / total - more**2) / total)
        t = more / max(spread, alone) if spread else 0.0
        p[one, other] = float(stdtr(freedom, -t))
    low, high = [1] * number, [number] * number
    for step, (one, other) in enumerate(sorted(p, key=lambda pair: p[pair])):
        if p[one, other] * (len(p) - step) > 0.05:
            break
        low[one] += 1
        high[other] -= 1
    return [low, high]


@pytest.mark.parametrize("seed", range(6))
def test_simultaneous_ranks_against_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts_CN = rng.poisson([0, 0, *rng.lognormal(1, 0.8, 10)], (25, 12))
    counts_N, replicates_BN = counts_CN.sum(axis=0), replicates(counts_CN, 200, seed)
    found = simultaneous_ranks(counts_N, replicates_BN, 25)
    assert found.tolist() == loop_ranks(counts_N.tolist(), replicates_BN, 25)
    rank_N = rank_from_least(counts_N)
    assert (found[0] <= rank_N).all()
    assert (rank_N <= found[1]).all()
    for number in (1, 3, 12):
        inside_N = bottom_set(counts_N, replicates_BN, 25, number)
        assert inside_N.tolist() == (found[0] <= number).tolist()
        assert inside_N.sum() >= number


@pytest.mark.parametrize(("documents", "number"), [(60, 1), (60, 4), (10, 1), (3, 1), (2, 4)])
def test_bottom_set_leaves_out_a_true_member_no_more_often_than_stated(
    documents: int, number: int
) -> None:
    rng = np.random.default_rng(5)
    left_out = 0
    for seed in range(200):
        # Documents differ in what they use, so tokens of one are alike.
        share_CN = rng.dirichlet(np.full(16, 4.0), documents)
        counts_CN = np.stack([rng.multinomial(60, share_N) for share_N in share_CN])
        replicates_BN = replicates(counts_CN, 200, seed)
        inside_N = bottom_set(counts_CN.sum(axis=0), replicates_BN, documents, number)
        left_out += not inside_N.all()
    # All experts are equal, so every one belongs in; a test at level 0.05 may fail 10 of 200.
    assert left_out <= 16


def test_bottom_set_finds_a_rare_expert() -> None:
    rng = np.random.default_rng(6)
    counts_CN = rng.poisson([2, *[20] * 15], (60, 16))
    replicates_BN = replicates(counts_CN, 200)
    inside_N = bottom_set(counts_CN.sum(axis=0), replicates_BN, 60, 1)
    assert inside_N.tolist() == [True] + [False] * 15


def test_ranks_without_evidence_are_open() -> None:
    counts_N = np.array([10.1, 30.3, 59.7])
    one_document_BN = np.outer(np.arange(1.0, 40), counts_N)
    # Rounding makes the shares of one document differ between its replicates.
    assert (one_document_BN / one_document_BN.sum(axis=1, keepdims=True)).std(axis=0).max() > 0
    for replicates_BN in (one_document_BN, np.zeros((4, 3)), one_document_BN[:1]):
        for documents in (1, 9):
            found = simultaneous_ranks(counts_N, replicates_BN, documents)
            assert found.tolist() == [[1, 1, 1], [3, 3, 3]]
    assert bottom_set(np.zeros(3, np.int64), np.zeros((4, 3)), 9, 2).all()
    assert simultaneous_ranks(np.array([4]), np.ones((9, 1)), 9).tolist() == [[1], [1]]
