"""Metrics of token ids against loops over tokens, and what chance gives against simulation.

Shape suffixes: T tokens, K slots, N experts.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.metrics.token_counts import VocabularyCounts
from moe_probe.analysis.metrics.vocabulary import (
    expected_top_share,
    token_lists,
    token_recall,
    top_share,
)
from tests.analysis.metrics.routing import draw, sets_of, vocabulary_counts


def text(seed: int, tokens: int) -> np.ndarray:
    """Token ids: a few of them often, many once; large ones too."""
    return np.minimum(np.random.default_rng(seed).zipf(1.4, tokens), 3000) * 977


def spoken(seed: int, tokens: int, *, empty: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [T] and ids [T, K] of 8 experts of which the token id alone decides the first."""
    token_id_T, ids_TK = text(seed, tokens), draw(seed, tokens, 8, 3, empty=empty)
    for ids_K, token_id in zip(ids_TK, token_id_T.tolist(), strict=True):
        if token_id % 7 not in ids_K:
            ids_K[0] = token_id % 7
    return token_id_T, ids_TK


def table_of(counts: VocabularyCounts) -> dict[tuple[int, int], int]:
    token_P, expert_P = np.divmod(counts.key_P, counts.num_experts)
    keys = zip(token_P.tolist(), expert_P.tolist(), strict=True)
    return dict(zip(keys, counts.counts_P.tolist(), strict=True))


def naive(token_id_T: np.ndarray, ids_TK: np.ndarray) -> Counter[tuple[int, int]]:
    tokens = zip(token_id_T.tolist(), sets_of(ids_TK), strict=True)
    return Counter((token_id, expert) for token_id, chosen in tokens for expert in chosen)


@pytest.mark.parametrize("empty", [False, True])
def test_counts_against_a_loop(empty: bool) -> None:
    token_id_T, ids_TK = spoken(1, 300, empty=empty)
    counts = vocabulary_counts(token_id_T.astype(np.int32), ids_TK, 8)
    expected, tokens = naive(token_id_T, ids_TK), Counter(token_id_T.tolist())
    assert table_of(counts) == expected
    found = zip(counts.token_ids_X.tolist(), counts.tokens_X.tolist(), strict=True)
    assert dict(found) == tokens
    assert counts.counts_N.tolist() == [
        sum(n for (_, expert), n in expected.items() if expert == e) for e in range(8)
    ]
    frequent = counts.frequent(4)
    assert table_of(frequent) == {key: n for key, n in expected.items() if tokens[key[0]] >= 4}
    asked = np.array([0, 977, 977 * 3, 977 * 3 + 1, 500_000])
    dense = [[expected[token_id, e] for e in range(8)] for token_id in asked.tolist()]
    assert counts.dense(asked).tolist() == dense


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_counts_of_parts_add_up(seed: int, cut: int) -> None:
    token_id_T, ids_TK = spoken(seed, 40)
    first, second = (
        vocabulary_counts(token_id_T[part], ids_TK[part], 8)
        for part in (slice(None, cut), slice(cut, None))
    )
    merged, whole = first.merge(second), vocabulary_counts(token_id_T, ids_TK, 8)
    assert table_of(merged) == table_of(whole)
    assert merged.token_ids_X.tolist() == whole.token_ids_X.tolist()
    assert merged.tokens_X.tolist() == whole.tokens_X.tolist()
    with pytest.raises(ValueError, match="different layers"):
        first.merge(vocabulary_counts(token_id_T, ids_TK, 9))


@pytest.mark.parametrize("least", [1, 3])
def test_top_share_against_a_loop(least: int) -> None:
    token_id_T, ids_TK = spoken(2, 400)
    counts, tokens = naive(token_id_T, ids_TK), Counter(token_id_T.tolist())
    share = {
        token_id: max(counts[token_id, e] for e in range(8)) / number
        for token_id, number in tokens.items()
        if number >= least
    }
    found = top_share(vocabulary_counts(token_id_T, ids_TK, 8), least)
    kept = sum(tokens[token_id] for token_id in share)
    assert (found.token_ids, found.tokens) == (len(share), kept)
    assert found.mean == pytest.approx(np.mean(list(share.values())))
    weighted = sum(tokens[token_id] * value for token_id, value in share.items()) / kept
    assert found.weighted == pytest.approx(weighted)
    # The token id decides one expert of three here.
    assert found.weighted == pytest.approx(1)
    assert found.weighted > found.weighted_null + 0.1


def test_expected_top_share_of_one_expert_and_of_one_token() -> None:
    tokens_X = np.array([1, 10, 100_000])
    assert expected_top_share(tokens_X, np.array([0.25, 0.0])) == pytest.approx(0.25)
    # One token: any of two independent experts.
    assert expected_top_share(np.array([1]), np.array([0.5, 0.5])) == pytest.approx(0.75)
    # Two tokens: max is 0 with 1/16, 2 with 7/16.
    two = (1 * 8 / 16 + 2 * 7 / 16) / 2
    assert expected_top_share(np.array([2]), np.array([0.5, 0.5])) == pytest.approx(two)


def test_null_of_the_top_share_is_that_of_shuffled_token_ids() -> None:
    token_id_T, ids_TK = text(3, 30_000), draw(3, 30_000, 32, 4)
    for least in (5, 10, 50):
        found = top_share(vocabulary_counts(token_id_T, ids_TK, 32), least)
        assert found.token_ids > 30
        assert found.mean == pytest.approx(found.mean_null, rel=0.02)
        assert found.weighted == pytest.approx(found.weighted_null, rel=0.02)


def test_token_lists_against_their_definition() -> None:
    token_id_T, ids_TK = spoken(4, 600)
    table = token_lists(vocabulary_counts(token_id_T, ids_TK, 8), 2, least=5)
    counts, tokens = naive(token_id_T, ids_TK), Counter(token_id_T.tolist())
    total_N = [sum(counts[x, e] for x in tokens) for e in range(8)]
    expected: dict[int, list[tuple[float, ...]]] = defaultdict(list)
    for (x, e), c in counts.items():
        if tokens[x] < 5:
            continue
        prior, here = 5 * 3 * total_N[e] / 1800, tokens[x] * 3
        odds = math.log((c + prior) / (here + 15 - c - prior)) - math.log(
            (total_N[e] - c + prior) / (1800 - here + 15 - total_N[e] + c - prior)
        )
        z = odds / math.sqrt(1 / (c + prior) + 1 / (total_N[e] - c + prior))
        if odds > 0:
            expected[e].append((-z, x, c, tokens[x], c / tokens[x], odds))
    for expert in range(8):
        rows = table[table["expert"] == expert]
        wanted = [
            (x, c, n, share, odds, -z) for z, x, c, n, share, odds in sorted(expected[expert])
        ]
        assert len(rows) == min(len(wanted), 2)
        values = rows[["token_id", "count", "tokens", "share", "log_odds", "z"]].to_numpy()
        assert values == pytest.approx(np.array(wanted[:2]).reshape(-1, 6))
    # Each expert's first token id is one that it was made for.
    first = table.groupby("expert")["token_id"].first()
    assert (first.loc[:5] % 7 == first.loc[:5].index).all()


@pytest.mark.parametrize(("tokens", "least"), [(500, 1), (500, 5), (6, 1), (35, 2)])
def test_recall_against_a_loop(tokens: int, least: int) -> None:
    """Of few tokens experts are as frequent as others: the first are foreseen, on any machine."""
    fit, test = spoken(5, tokens), spoken(6, 400)
    fitted, tokens_of = naive(*fit), Counter(fit[0].tolist())
    marginal = Counter(expert for chosen in sets_of(fit[1]) for expert in chosen)
    hits = known = usual_hits = 0
    usual = sorted(range(8), key=lambda e: -marginal[e])[:3]
    for token_id, chosen in zip(test[0].tolist(), sets_of(test[1]), strict=True):
        foreseen = usual
        if tokens_of[token_id] >= least:
            known += 1
            foreseen = sorted(range(8), key=lambda e: (-fitted[token_id, e], -marginal[e]))[:3]
        hits += len(chosen & set(foreseen))
        usual_hits += len(chosen & set(usual))
    found = token_recall(vocabulary_counts(*fit, 8), vocabulary_counts(*test, 8), 3, least)
    assert found.recall == pytest.approx(hits / 1200)
    assert found.null == pytest.approx(usual_hits / 1200)
    assert found.known == pytest.approx(known / 400)
    assert tokens < 500 or found.recall > found.null


def test_recall_is_1_where_the_token_id_decides() -> None:
    token_id_T = text(7, 5000) % 6000
    ids_TK = np.stack([token_id_T % 5, 5 + token_id_T % 3], axis=1)
    fit, test = (vocabulary_counts(token_id_T[h::2], ids_TK[h::2], 8) for h in (0, 1))
    found = token_recall(fit, test, 2, least=1)
    assert found.recall >= found.known
    assert token_recall(fit, fit, 2, least=1).recall == 1


def test_nothing_and_a_single_expert() -> None:
    nothing = vocabulary_counts(np.zeros(0, np.int64), np.zeros((0, 2), np.uint8), 4)
    some = vocabulary_counts(np.arange(3), np.array([[0], [0], [0]]), 4)
    assert math.isnan(top_share(nothing).mean)
    assert math.isnan(top_share(some).mean_null)
    assert len(token_lists(nothing, 5)) == 0
    # One expert has every selection: no token id prefers it.
    assert len(token_lists(some, 5, least=1)) == 0
    # There is no other token id to compare with, whatever rounding leaves.
    counts_1N = np.array([[19, 27, 15, 18, 29]])
    alone = VocabularyCounts.of_table(np.array([7]), counts_1N.sum(axis=1), counts_1N)
    assert len(token_lists(alone, 5)) == 0
    for fitted, evaluated in ((nothing, some), (some, nothing)):
        assert math.isnan(token_recall(fitted, evaluated, 1).recall)
