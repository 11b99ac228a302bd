"""Unseen experts and the coverage curve against enumeration and simulated streams.

Shape suffixes: N experts, R orders, T tokens, K slots.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.metrics.coverage import (
    chao2,
    coverage_curve,
    experts_below,
    experts_below_null,
    unseen_mass,
)

DATA = Path(__file__).parents[3].parent / "shared/data/deepseek-v2-lite"


def first_seen(ids_TK: np.ndarray, num_experts: int) -> list[int]:
    """The first token that selects each expert, by a loop."""
    first = [-1] * num_experts
    for token in reversed(range(len(ids_TK))):
        for expert in ids_TK[token]:
            first[expert] = token
    return first


def test_experts_below() -> None:
    counts_N = np.array([0, 1, 9, 11, 49, 330])  # fair share: 400 / 6 = 66.7
    found = [float(experts_below(counts_N, limit)) for limit in (0.01, 0.1, 0.15, 0.5, 1.0)]
    assert found == [1, 2, 3, 4, 5]
    assert math.isnan(experts_below(np.zeros(4, np.int64), 0.1))
    assert experts_below(np.stack([counts_N, counts_N * 0 + 1]), 0.5).tolist() == [4, 0]


@pytest.mark.parametrize("limit", [0.1, 0.5, 1.0])
def test_experts_below_by_chance(limit: float) -> None:
    counts_RN = np.random.default_rng(3).binomial(30, 0.1, (40_000, 5))
    # Against the fair share of 3, whatever was counted.
    found = (counts_RN < limit * 3).sum(axis=1)
    expected = experts_below_null(5, 30, 0.1, limit)
    assert abs(found.mean() - expected) <= 3 * found.std() / 200
    assert math.isnan(experts_below_null(5, 0, math.nan, limit))


def test_unseen_mass_is_the_share_of_single_documents() -> None:
    assert unseen_mass(np.array([0, 1, 1, 5, 3])) == pytest.approx(2 / 10)
    assert unseen_mass(np.array([0, 2, 5])) == 0
    assert math.isnan(unseen_mass(np.zeros(3, np.int64)))


def test_unseen_mass_predicts_the_next_document() -> None:
    """Leave each document out: how often it alone brings an expert is just Good and Turing's."""
    rng = np.random.default_rng(2)
    present_CN = rng.random((30, 40)) < rng.beta(0.3, 4, 40)
    new = sum(
        int((present_CN[c] & ~np.delete(present_CN, c, axis=0).any(axis=0)).sum())
        for c in range(30)
    )
    assert new > 0
    assert unseen_mass(present_CN.sum(axis=0)) == pytest.approx(new / present_CN.sum())


def test_chao2_by_hand() -> None:
    assert chao2(np.array([0, 0, 0, 0, 1, 1, 2, 5])) == pytest.approx(4 + 4 / 2)
    assert chao2(np.array([0, 0, 0, 0, 1, 1, 3, 5])) == pytest.approx(4 + 1)
    assert chao2(np.array([0, 1, 1, 1, 1, 1])) == 6  # never above N
    assert chao2(np.array([0, 3, 4])) == 2
    assert math.isnan(chao2(np.zeros(3, np.int64)))


def test_chao2_is_a_lower_bound_on_average() -> None:
    rng = np.random.default_rng(3)
    rate_N = rng.beta(0.5, 6, 200) + 1e-3  # all 200 would be selected in the end
    found = []
    for _ in range(100):
        documents_N = (rng.random((20, 200)) < rate_N).sum(axis=0)
        found.append((chao2(documents_N), (documents_N > 0).sum()))
    bound, seen = np.mean(found, axis=0)
    assert seen + 5 < bound < 200


@pytest.mark.parametrize("seed", range(3))
def test_curve_equals_a_loop_over_tokens(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight_N = rng.dirichlet(np.full(11, 0.5))
    ids_TK = np.array([rng.choice(11, 2, False, weight_N) for _ in range(90)])
    orders = [rng.permutation(90) for _ in range(4)]
    first_RN = np.array([first_seen(ids_TK[order], 12) for order in orders])  # one never selected
    counts_N = np.bincount(ids_TK.ravel(), minlength=12)
    curve = coverage_curve(first_RN, counts_N, 90)
    assert curve["tokens"].iloc[[0, -1]].tolist() == [1, 90]
    for row in curve.itertuples():
        x = int(row.tokens)  # type: ignore[arg-type]
        seen = np.mean([len(set(ids_TK[order[:x]].ravel().tolist())) for order in orders])
        assert row.seen == pytest.approx(seen)
        assert row.fair == pytest.approx(12 * (1 - (1 - 2 / 12) ** x))
        assert row.own == pytest.approx(sum(1 - (1 - c / 90) ** x for c in counts_N.tolist()))


def test_nulls_hold_for_fair_routing() -> None:
    rng = np.random.default_rng(6)
    streams = [np.argsort(rng.random((32, 16)), axis=1)[:, :3] for _ in range(500)]
    first_RN = np.array([first_seen(ids_TK, 16) for ids_TK in streams])
    curve = coverage_curve(first_RN, np.full(16, 6), 32)
    for row in curve.itertuples():
        x = int(row.tokens)  # type: ignore[arg-type]
        seen_R = ((first_RN >= 0) & (first_RN < x)).sum(axis=1)
        error = seen_R.std() / math.sqrt(500)
        assert row.seen == pytest.approx(seen_R.mean())
        assert row.fair == pytest.approx(row.own)
        assert row.seen == pytest.approx(row.fair, abs=3.5 * error + 0.02)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3000), st.integers(1, 5))
def test_curves_rise_and_the_fair_one_is_above(seed: int, tokens: int, orders: int) -> None:
    rng = np.random.default_rng(seed)
    counts_N = rng.integers(0, tokens + 1, 9)
    first_RN = rng.integers(-1, tokens, (orders, 9))
    curve = coverage_curve(first_RN, counts_N, tokens)
    assert curve["tokens"].is_monotonic_increasing
    assert curve["tokens"].is_unique
    for name in ("seen", "fair", "own"):
        assert (curve[name].diff().dropna() >= -1e-9).all()
        assert curve[name].between(0, 9).all()
    # 1 - (1 - p)^x is concave in p: even rates see the most.
    assert (curve["fair"] >= curve["own"] - 1e-9).all()
    assert curve["seen"].iloc[-1] == pytest.approx((first_RN >= 0).sum() / orders)


def test_no_orders_and_no_tokens() -> None:
    curve = coverage_curve(np.zeros((0, 4), np.int64), np.array([5, 5, 5, 5]), 10)
    assert curve["seen"].isna().all()
    assert curve["fair"].notna().all()
    assert coverage_curve(np.zeros((0, 4), np.int64), np.zeros(4, np.int64), 0).empty


@pytest.mark.skipif(not DATA.is_dir(), reason="the DeepSeek-V2-Lite sample is not on this machine")
def test_real_experts_appear_later_than_independent_ones() -> None:
    file: Any = np.load(DATA / "law.npz")
    documents = np.split(file["experts"][:, 12], np.cumsum(file["document_lengths"])[:-1])
    rng = np.random.default_rng(0)
    first_RN = np.array(
        [
            first_seen(np.concatenate([documents[i] for i in rng.permutation(len(documents))]), 64)
            for _ in range(10)
        ]
    )
    counts_N = np.bincount(file["experts"][:, 12].ravel(), minlength=64)
    curve = coverage_curve(first_RN, counts_N, len(file["experts"])).set_index("tokens")
    middle = curve.loc[10:200]
    assert (middle["seen"] < middle["own"]).all()
    assert (middle["own"] < middle["fair"]).all()
    assert curve["seen"].iloc[-1] == 64
    seen_N = np.sum([np.bincount(d.ravel(), minlength=64) > 0 for d in documents], axis=0)
    assert unseen_mass(seen_N) == (seen_N == 1).sum() / seen_N.sum()
    assert chao2(seen_N) == 64
