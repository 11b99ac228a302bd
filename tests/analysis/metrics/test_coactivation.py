"""Pairs of experts against loops over tokens, a naive fit, and published values of a real trace.

Shape suffixes: T tokens, K slots, N experts.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import poisson

from moe_probe.analysis.metrics.coactivation import (
    coactivation_table,
    conditional,
    deviance,
    expected_pairs,
    groups_hit,
    jaccard,
)
from moe_probe.analysis.statistics.random_sets import devices_hit
from tests.analysis.metrics.routing import draw, needs_sample, sample, sets_of


def pairs_of(sets: list[set[int]], num_experts: int) -> tuple[np.ndarray, np.ndarray]:
    """Count pairs [N, N] and experts [N] token by token."""
    pairs_NN, counts_N = np.zeros((num_experts, num_experts), np.int64), np.zeros(num_experts, int)
    for chosen in sets:
        counts_N[list(chosen)] += 1
        for i, j in combinations(chosen, 2):
            pairs_NN[[i, j], [j, i]] += 1
    return pairs_NN, counts_N


def fitted(pairs_NN: np.ndarray) -> np.ndarray:
    """Iterative proportional fitting to the row sums, symmetric, with a zero diagonal."""
    expected_NN = 1.0 - np.eye(len(pairs_NN))
    for _ in range(3000):
        ratio_N = np.sqrt(pairs_NN.sum(axis=1) / np.maximum(expected_NN.sum(axis=1), 1e-30))
        expected_NN = expected_NN * np.outer(ratio_N, ratio_N)
    return np.asarray(expected_NN)


def test_conditional_and_jaccard_against_sets_of_tokens() -> None:
    sets = sets_of(draw(1, 200, 7, 3, empty=True))
    pairs_NN, counts_N = pairs_of(sets, 7)
    tokens = [{t for t, chosen in enumerate(sets) if expert in chosen} for expert in range(7)]
    for i in range(7):
        for j in range(7):
            both, either = len(tokens[i] & tokens[j]), len(tokens[i] | tokens[j])
            is_pair = i != j and tokens[i]
            expected = both / len(tokens[i]) if is_pair else math.nan
            assert conditional(pairs_NN, counts_N)[i, j] == pytest.approx(expected, nan_ok=True)
            expected = both / either if i != j and either else math.nan
            assert jaccard(pairs_NN, counts_N)[i, j] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(("num_experts", "top_k"), [(6, 2), (6, 4), (12, 3), (40, 6)])
@pytest.mark.parametrize("empty", [False, True])
def test_expected_pairs_against_a_naive_fit(num_experts: int, top_k: int, empty: bool) -> None:
    sets = sets_of(draw(2, 600, num_experts, top_k, empty=empty))
    pairs_NN, _ = pairs_of(sets, num_experts)
    assert expected_pairs(pairs_NN) == pytest.approx(fitted(pairs_NN), rel=1e-6, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 9), st.integers(1, 5), st.integers(0, 60), st.integers(0, 2**32 - 1))
def test_expected_pairs_have_the_same_row_sums(n: int, k: int, tokens: int, seed: int) -> None:
    ids_TK = draw(seed, tokens, n, min(k, n - 1), empty=seed % 2 == 1)
    pairs_NN, counts_N = pairs_of(sets_of(ids_TK), n)
    expected_NN = expected_pairs(pairs_NN)
    assert expected_NN.sum(axis=1) == pytest.approx(pairs_NN.sum(axis=1), rel=1e-10, abs=1e-10)
    assert np.array_equal(expected_NN, expected_NN.T)
    assert (np.diag(expected_NN) == 0).all()
    assert (expected_NN >= 0).all()
    assert (expected_NN[counts_N == 0] == 0).all()


def test_one_expert_in_almost_every_pair() -> None:
    pairs_NN = np.array([[0, 90, 60, 30], [90, 0, 1, 2], [60, 1, 0, 0], [30, 2, 0, 0]])
    assert expected_pairs(pairs_NN) == pytest.approx(fitted(pairs_NN), abs=1e-6)
    # In every pair: the row sums leave no choice.
    pairs_NN[1:, 1:] = 0
    assert expected_pairs(pairs_NN).tolist() == pairs_NN.tolist()


def test_equal_experts_are_as_often_together_as_chance_says() -> None:
    sets = [set(chosen) for chosen in combinations(range(5), 3)] * 2
    table = coactivation_table(*pairs_of(sets, 5), len(sets), 3, 1.0, 100, 3)
    assert len(table) == 20
    assert table["conditional"].to_numpy() == pytest.approx(2 / 4)
    assert table["ratio"].to_numpy() == pytest.approx(1)
    assert table["z"].to_numpy() == pytest.approx(0)


def test_table_holds_every_pair_in_both_directions() -> None:
    sets = sets_of(draw(3, 300, 6, 3))
    pairs_NN, counts_N = pairs_of(sets, 6)
    table = coactivation_table(pairs_NN, counts_N, 300, 3, 4.0, 15, 3)
    keys = list(zip(table["expert"], table["other"], strict=True))
    assert keys == [(i, j) for i in range(6) for j in range(6) if i != j]
    # Every pair of a token's three appears twice.
    assert table["count"].sum() == 300 * 3 * 2
    expected_NN = fitted(pairs_NN)
    for (i, j), row in zip(keys, table.to_dict("records"), strict=True):
        assert row["count"] == pairs_NN[i, j]
        if 5 in (i, j):
            assert (row["expected"], row["count"]) == (0, 0)
            assert math.isnan(row["ratio"])
            assert math.isnan(row["z"])
        else:
            beyond = pairs_NN[i, j] - expected_NN[i, j]
            assert row["ratio"] == pytest.approx(pairs_NN[i, j] / expected_NN[i, j])
            assert row["z"] == pytest.approx(beyond / math.sqrt(expected_NN[i, j] * 4))


def test_table_keeps_the_pairs_furthest_from_chance() -> None:
    sets = sets_of(draw(4, 300, 12, 3)) + [{2, 7}] * 200
    pairs_NN, counts_N = pairs_of(sets, 12)
    whole = coactivation_table(pairs_NN, counts_N, 500, 3, 1.0, 1000, 3)
    some = coactivation_table(pairs_NN, counts_N, 500, 3, 1.0, 4, 3)
    assert len(some) == 8
    assert {2, 7} in [{row.expert, row.other} for row in some.itertuples()]
    far = deviance(whole["count"].to_numpy(), whole["expected"].to_numpy())
    kept = whole.merge(some[["expert", "other"]])
    smallest = deviance(kept["count"].to_numpy(), kept["expected"].to_numpy()).min()
    assert (far >= smallest - 1e-12).sum() == 8


def test_one_token_of_rare_experts_is_not_the_strongest_pair() -> None:
    """Experts 6 and 7 meet once where .0004 tokens are expected: z would be 51."""
    rng = np.random.default_rng(7)
    sets = [set(rng.choice(6, 2, replace=False).tolist()) for _ in range(3000)]
    sets += [{0, 3}] * 300 + [{6, 7}, {6, 1}]
    pairs_NN, counts_N = pairs_of(sets, 8)
    table = coactivation_table(pairs_NN, counts_N, len(sets), 2, 1.0, 1, 2)
    assert table[["expert", "other"]].to_numpy().tolist() == [[0, 3], [3, 0]]
    whole = coactivation_table(pairs_NN, counts_N, len(sets), 2, 1.0, 100, 2)
    rare = whole[whole["expected"] < 5]
    lone = rare.query("expert == 6 and other == 7").iloc[0]
    assert lone["count"] == 1
    assert (1 - lone["expected"]) / lone["expected"] ** 0.5 > 30
    assert rare[["ratio", "z"]].isna().all(axis=None)
    assert whole.loc[whole["expected"] >= 5, ["ratio", "z"]].notna().all(axis=None)


def test_deviance_against_tails_of_poisson() -> None:
    """Chernoff: the chance is at most exp(-deviance / 2), and not much less."""
    for expected in (0.00065, 0.3, 4.0, 60.0, 900.0):
        count_P = np.unique(np.rint(expected * np.geomspace(0.6, 1.5, 9)).astype(int))
        count_P = np.unique([*count_P, 0, 1, 5])
        above, below = poisson.sf(count_P - 1, expected), poisson.cdf(count_P, expected)
        tail_P = np.where(count_P > expected, above, below)
        found = deviance(count_P, np.full(len(count_P), expected))
        known = tail_P > 1e-250
        bound_P = np.exp(-found[known] / 2)
        assert (tail_P[known] <= bound_P * (1 + 1e-9)).all()
        assert (np.log(bound_P / tail_P[known]) < 5).all()
    assert np.isnan(deviance(np.array([0]), np.array([0.0]))).all()


def test_one_expert_per_token_has_no_pairs() -> None:
    pairs_NN, counts_N = pairs_of(sets_of(draw(5, 50, 6, 1)), 6)
    table = coactivation_table(pairs_NN, counts_N, 50, 1, 1.0, 100, 1)
    assert len(table) == 0
    assert {"expert", "other", "count", "conditional", "jaccard", "expected"} < set(table)


def test_no_tokens_give_null() -> None:
    nothing = np.zeros((4, 4), np.int64)
    table = coactivation_table(nothing, np.zeros(4, np.int64), 0, 2, 1.0, 100, 2)
    assert len(table) == 12
    assert table[["conditional", "jaccard", "ratio", "z"]].isna().all(axis=None)
    assert math.isnan(groups_hit(np.zeros((0, 2), np.uint8), 8, 4))


def test_too_many_pairs_are_refused() -> None:
    pairs_NN, counts_N = pairs_of([{0, 1, 2}], 4)
    with pytest.raises(ValueError, match="more pairs than 1 tokens with 2 experts"):
        coactivation_table(pairs_NN, counts_N, 1, 2, 1.0, 10, 2)


@pytest.mark.parametrize("empty", [False, True])
def test_groups_hit_against_sets(empty: bool) -> None:
    ids_TK = draw(6, 150, 12, 4, empty=empty)
    expected = np.mean([len({expert // 3 for expert in chosen}) for chosen in sets_of(ids_TK)])
    assert groups_hit(ids_TK, 12, 4) == pytest.approx(expected)
    with pytest.raises(ValueError, match="5 groups do not divide 12 experts"):
        groups_hit(ids_TK, 12, 5)


def test_groups_hit_by_every_set_is_the_null() -> None:
    ids_TK = np.array(list(combinations(range(8), 3)), np.uint8)
    assert groups_hit(ids_TK, 8, 4) == pytest.approx(devices_hit(8, 3, 4))


@needs_sample
def test_published_pair_of_deepseek_v2_lite() -> None:
    ids_TLK, weights_TLK, _ = sample("law")
    ids_TK, weights_TK = ids_TLK[:, 12], weights_TLK[:, 12]
    pairs_NN, counts_N = pairs_of(sets_of(ids_TK), 64)
    assert pairs_NN.sum() == 8327 * 6 * 5
    conditional_NN = conditional(pairs_NN, counts_N)
    i, j = divmod(int(np.nanargmax(conditional_NN)), 64)
    assert round(float(conditional_NN[i, j]), 3) == 0.899
    # What counting neighbours in rank alone would say of this pair.
    ranked_TK = np.take_along_axis(ids_TK, np.argsort(-weights_TK, axis=1, kind="stable"), 1)
    adjacent = Counter(
        frozenset(pair) for ranked in ranked_TK.tolist() for pair in pairwise(ranked)
    )
    assert round(adjacent[frozenset((i, j))] / int(counts_N[i]), 3) == 0.323
    table = coactivation_table(pairs_NN, counts_N, 8327, 6, 1.0, 64 * 63, 6)
    assert table["conditional"].max() == conditional_NN[i, j]
