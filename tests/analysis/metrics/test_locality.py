"""Repeats and working sets against loops over tokens, closed forms and published values.

Shape suffixes: T tokens, K slots, N experts, D documents, S subjects, X lags; 5 sums over pairs.
"""

from __future__ import annotations

import math
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.metrics.locality import (
    SUMS,
    distinct_experts,
    excess,
    first_choice_nulls,
    overlap_null_own,
    repeats_table,
)
from moe_probe.analysis.statistics.random_sets import experts_seen
from tests.analysis.metrics.routing import NONE, draw, needs_sample, sample, sets_of

LAGS = (1, 2, 4)


def documents(seed: int, most: int) -> np.ndarray:
    """The starts [D] of five documents of 0 to `most` tokens, and where the last one ends."""
    lengths_D = np.random.default_rng(seed).integers(0, most + 1, 5)
    return np.concatenate([[0], np.cumsum(lengths_D)])


def overlaps_of(ids_TK: np.ndarray, starts: np.ndarray, lag: int) -> list[int]:
    """The five sums over pairs inside one document, token by token; empty slots equal nothing."""
    sets, sums = sets_of(ids_TK), [0] * 5
    for start, stop in pairwise(starts.tolist()):
        for t in range(start + lag, stop):
            common = len(sets[t] & sets[t - lag])
            first, before = int(ids_TK[t, 0]), int(ids_TK[t - lag, 0])
            row = [1, common, common > 0, first == before != NONE, sets[t] == sets[t - lag]]
            sums = [total + int(value) for total, value in zip(sums, row, strict=True)]
    return sums


def counts_of(ids_TK: np.ndarray, num_experts: int) -> np.ndarray:
    return np.bincount(ids_TK[ids_TK < num_experts], minlength=num_experts)


@pytest.mark.parametrize(("top_k", "empty"), [(1, False), (3, False), (3, True)])
def test_table_against_pairs_of_tokens(top_k: int, empty: bool) -> None:
    starts = [documents(seed, 30) for seed in (1, 2)]
    ids = [draw(seed, s[-1], 7, top_k, empty=empty) for seed, s in zip((1, 2), starts, strict=True)]
    # A third subject has no tokens.
    ids.append(np.zeros((0, top_k), np.uint8))
    starts.append(np.zeros(1, np.int64))
    subjects = list(zip(ids, starts, strict=True))
    overlaps_SX5 = np.array([[overlaps_of(*each, lag) for lag in LAGS] for each in subjects])
    counts_SN = np.stack([counts_of(i, 7) for i in ids])
    tokens_S = np.array([len(i) for i in ids])
    other_SX5 = overlaps_SX5 // 2
    table = repeats_table(["a", "b", "c"], LAGS, overlaps_SX5, other_SX5, counts_SN, tokens_S)
    assert list(table["subject"]) == ["", "a", "b", "c"] * 3
    assert list(table["lag"]) == [lag for lag in LAGS for _ in range(4)]
    rows = table.to_dict("records")
    for (x, subject), row in zip(product(range(3), range(-1, 3)), rows, strict=True):
        chosen = slice(None) if subject < 0 else slice(subject, subject + 1)
        tokens, counts_N = tokens_S[chosen].sum(), counts_SN[chosen].sum(axis=0)
        mean_k = counts_N.sum() / tokens if tokens else math.nan
        own = ((counts_N / tokens) ** 2).sum() / mean_k if tokens else math.nan
        assert row["overlap_null"] == pytest.approx(mean_k / 7, nan_ok=True)
        assert row["overlap_null_own"] == pytest.approx(own, nan_ok=True)
        for prefix, table_SX5 in (("", overlaps_SX5), ("other_token_", other_SX5)):
            sums = dict(zip(SUMS, table_SX5[chosen, x].sum(axis=0).tolist(), strict=True))
            pairs = sums["pairs"] or math.nan
            ratio = sums["overlap"] / pairs / mean_k
            assert row[f"{prefix}pairs"] == sums["pairs"]
            for name in ("first_choice", "any_overlap", "same_set"):
                assert row[prefix + name] == pytest.approx(sums[name] / pairs, nan_ok=True)
            assert row[f"{prefix}overlap_ratio"] == pytest.approx(ratio, nan_ok=True)
            beyond = (ratio - own) / (1 - own)
            assert row[f"{prefix}excess"] == pytest.approx(beyond, nan_ok=True)


def test_without_token_ids_their_columns_are_null() -> None:
    overlaps_SX5 = np.full((1, 1, 5), 6)
    table = repeats_table(["a"], [1], overlaps_SX5, None, np.array([[7, 7]]), np.array([7]))
    other = table.filter(like="other_token_")
    assert list(other) == [f"other_token_{name}" for name in (
        "pairs", "first_choice", "any_overlap", "overlap_ratio", "same_set", "excess"
    )]  # fmt: skip
    assert (other["other_token_pairs"] == 0).all()
    assert other.drop(columns="other_token_pairs").isna().all(axis=None)


def test_excess_is_0_at_the_null_and_1_where_all_is_repeated() -> None:
    assert excess(np.array([0.3, 1.0, 0.0]), np.array([0.3])) == pytest.approx([0, 1, -3 / 7])
    # Two experts that every token selects: nothing is left to repeat.
    assert math.isnan(excess(np.array(1.0), overlap_null_own(np.array([9, 9, 0]), np.array(9))))


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 9), st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_own_null_is_the_overlap_of_two_tokens_at_random(
    num_experts: int, top_k: int, tokens: int, seed: int
) -> None:
    ids_TK = draw(seed, tokens, num_experts, min(top_k, num_experts - 1))
    sets = sets_of(ids_TK)
    pairs = [(a, b) for a in range(tokens) for b in range(tokens)]
    null = float(overlap_null_own(counts_of(ids_TK, num_experts), np.array(tokens)))
    expected = np.mean([len(sets[a] & sets[b]) for a, b in pairs]) / ids_TK.shape[1]
    assert null == pytest.approx(expected)
    assert ids_TK.shape[1] / num_experts - 1e-12 <= null <= 1 + 1e-12
    first_N = counts_of(ids_TK[:, :1], num_experts)
    agree = np.mean([ids_TK[a, 0] == ids_TK[b, 0] for a, b in pairs])
    assert first_choice_nulls(first_N, tokens) == pytest.approx((1 / num_experts, agree))
    # As many tokens again without a first choice agree with none.
    halved = (0.25 / num_experts, agree / 4)
    assert first_choice_nulls(first_N, 2 * tokens) == pytest.approx(halved)


def test_no_tokens_give_null() -> None:
    assert np.isnan(overlap_null_own(np.zeros((2, 3), np.int64), np.zeros(2, np.int64))).all()
    assert np.isnan(first_choice_nulls(np.zeros(3, np.int64), 0)).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.booleans())
def test_working_set_against_every_window(seed: int, top_k: int, empty: bool) -> None:
    starts, windows = documents(seed, 25), (1, 2, 4, 16, 64)
    ids_TK = draw(seed, starts[-1], 8, top_k, empty=empty)
    sets = sets_of(ids_TK)
    start_T = np.repeat(starts[:-1], np.diff(starts))
    found = distinct_experts(ids_TK, start_T, 8, windows)
    for window, size_T in zip(windows, found, strict=True):
        expected = [
            len(set().union(*sets[t - window + 1 : t + 1])) if t - start >= window - 1 else -1
            for start, stop in pairwise(starts.tolist())
            for t in range(start, stop)
        ]
        assert size_T.tolist() == expected


def test_tokens_without_selections_overlap_in_nothing() -> None:
    """Pairs of tokens whose slots are all empty have equal sets, and no experts to share."""
    overlaps_SX5 = np.array([[[6, 0, 0, 0, 6]]])
    table = repeats_table(["a"], [1], overlaps_SX5, None, np.zeros((1, 4), int), np.array([7]))
    assert table["same_set"].tolist() == [1, 1]
    assert table[["overlap_ratio", "excess"]].isna().all(axis=None)


def test_working_set_of_random_routing_is_the_null() -> None:
    score_TN = np.random.default_rng(3).random((4000, 32))
    ids_TK = np.argsort(score_TN, axis=1)[:, :4]
    found = distinct_experts(ids_TK, np.zeros(4000, np.int64), 32, (1, 4, 16, 64))
    mean_W = [size_T[size_T >= 0].mean() for size_T in found]
    assert mean_W == pytest.approx(experts_seen(32, 4, np.array([1, 4, 16, 64])), rel=0.01)


@needs_sample
def test_published_overlaps_of_deepseek_v2_lite() -> None:
    ids_TLK, _, starts_D = sample("law")
    starts = np.append(starts_D, len(ids_TLK))
    found = []
    for layer in (1, 8, 13, 20, 26):
        ids_TK = ids_TLK[:, layer - 1]
        overlaps_SX5 = np.array([[overlaps_of(ids_TK, starts, 1)]])
        counts_SN = counts_of(ids_TK, 64)[None]
        table = repeats_table(["law"], [1], overlaps_SX5, None, counts_SN, np.array([8327]))
        found.append(round(float(table["overlap_ratio"][1]), 3))
        assert table["pairs"].tolist() == [8327 - 33] * 2
    assert found == [0.157, 0.341, 0.341, 0.299, 0.242]
