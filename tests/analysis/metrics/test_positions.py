"""Position effects against loops over tokens, planted effects and closed forms.

Shape suffixes: T tokens, K slots, B position bins, C documents, N experts.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.metrics.positions import (
    first_position_experts,
    position_bins,
    position_deffs,
    positions_table,
    tokens_apart,
)
from tests.analysis.metrics.routing import draw, sets_of

BINS = 8


def binned(position_T: np.ndarray, ids_TK: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Count selections [B, N] and tokens [B] token by token."""
    counts_BN, tokens_B = np.zeros((BINS, n), np.int64), np.zeros(BINS, np.int64)
    for position, chosen in zip(position_T.tolist(), sets_of(ids_TK), strict=True):
        place = 0 if position == 0 else math.floor(math.log2(position)) + 1
        tokens_B[place] += 1
        counts_BN[place, list(chosen)] += 1
    return counts_BN, tokens_B


def ragged(seed: int, documents: int, most: int) -> np.ndarray:
    """The positions [T] of the tokens of some documents."""
    lengths = np.random.default_rng(seed).integers(1, most, documents)
    return np.concatenate([np.arange(length) for length in lengths])


def test_bins_hold_every_position_once() -> None:
    first_B, last_B = position_bins(6)
    assert first_B.tolist() == [0, 1, 2, 4, 8, 16]
    assert last_B.tolist() == [0, 1, 3, 7, 15, 31]


@pytest.mark.parametrize("empty", [False, True])
def test_table_against_the_rest_of_the_positions(empty: bool) -> None:
    position_T = ragged(1, 12, 40)
    ids_TK = draw(2, len(position_T), 7, 3, empty=empty)
    counts_BN, tokens_B = binned(position_T, ids_TK, 7)
    table = positions_table(counts_BN, tokens_B, 3, 2.0)
    # No document reaches position 64.
    assert table["tokens"].tolist() == tokens_B[:7].tolist()
    assert (tokens_B[7], table["tokens"].sum()) == (0, len(position_T))
    for row in table.to_dict("records"):
        inside_T = (position_T >= row["first"]) & (position_T <= row["last"])
        here_N, rest_N = (
            np.array([sum(e in chosen for chosen in sets_of(ids_TK[part])) for e in range(7)])
            for part in (inside_T, ~inside_T)
        )
        q_N, rest_q_N = here_N / here_N.sum(), rest_N / rest_N.sum()
        middle_N = (q_N + rest_q_N) / 2
        divergence = sum(
            half[e] * math.log2(half[e] / middle_N[e]) / 2
            for half in (q_N, rest_q_N)
            for e in range(7)
            if half[e] > 0
        )
        used = np.count_nonzero(here_N + rest_N)
        chance = 2 * (used - 3) / 8 * (1 / here_N.sum() + 1 / rest_N.sum()) / math.log(2)
        assert row["max_load"] == pytest.approx(7 * q_N.max())
        assert here_N[row["busiest"]] == here_N.max()
        assert row["divergence"] == pytest.approx(divergence)
        assert row["divergence_null"] == pytest.approx(chance)


def test_an_expert_of_the_first_position_is_found() -> None:
    position_T = ragged(3, 60, 100)
    ids_TK = draw(4, len(position_T), 10, 2)
    # With one that is also used elsewhere.
    ids_TK[position_T == 0] = [9, np.bincount(ids_TK.ravel()).argmax()]
    ids_TK[10:12] = [9, 7]
    counts_BN, tokens_B = binned(position_T, ids_TK, 10)
    table = first_position_experts(counts_BN, tokens_B)
    assert table["expert"].tolist() == [9]
    assert table["count"].tolist() == [60]
    assert table["share"].tolist() == pytest.approx([60 / 62])
    assert table["share_null"].tolist() == pytest.approx([60 / len(position_T)])
    first = positions_table(counts_BN, tokens_B, 2, 1.0).iloc[0]
    assert first["max_load"] == pytest.approx(10 / 2)
    assert first["divergence"] > 0.5 > 10 * first["divergence_null"]


def test_half_of_the_selections_is_not_most_and_unused_experts_are_none() -> None:
    counts_BN = np.array([[2, 3, 0], [2, 2, 0]])
    table = first_position_experts(counts_BN, np.array([5, 4]))
    assert table.to_dict("list") == {
        "expert": [1], "count": [3], "share": [3 / 5], "share_null": [5 / 9]
    }  # fmt: skip


def test_null_is_the_mean_divergence_of_random_routing() -> None:
    rng = np.random.default_rng(5)
    position_T = np.repeat([0, 1, 2, 5], [100, 100, 300, 500])
    tables = []
    for _ in range(150):
        ids_TK = np.argsort(rng.random((1000, 16)), axis=1)[:, :4]
        counts_BN = np.stack([np.bincount(ids_TK[position_T == p].ravel(), minlength=16)
                              for p in (0, 1, 2, 5)])  # fmt: skip
        tables.append(positions_table(counts_BN, np.array([100, 100, 300, 500]), 4, 1.0))
    found = np.array([table["divergence"] for table in tables])
    error = found.std(axis=0, ddof=1) / math.sqrt(len(found))
    null = tables[0]["divergence_null"].to_numpy()
    assert (np.abs(found.mean(axis=0) - null) < 3 * error + 0.03 * null).all()


def test_how_differently_documents_are_in_a_bin_and_in_the_rest() -> None:
    tokens_CB = np.array([[1, 0, 4], [1, 2, 0], [0, 1, 0]])
    for bin_, found in enumerate(tokens_apart(tokens_CB).tolist()):
        here = tokens_CB[:, bin_].tolist()
        rest = [sum(row) - row[bin_] for row in tokens_CB.tolist()]
        apart = sum((n / sum(here) - m / sum(rest)) ** 2 for n, m in zip(here, rest, strict=True))
        assert found == pytest.approx(apart / (1 / sum(here) + 1 / sum(rest)))
    assert tokens_apart(np.eye(5, dtype=np.int64)).tolist() == pytest.approx([1] * 5)
    assert tokens_apart(np.full((4, 2), 3)).tolist() == [0, 0]
    assert np.isnan(tokens_apart(np.array([[2, 0], [3, 0]]))).all()


def test_design_effect_of_a_bin() -> None:
    # Of 11 tokens each, rho = 0.3.
    assert position_deffs(np.array([0.0, 1.0, 5.0]), 4.0, 11.0).tolist() == pytest.approx(
        [0.7, 1.0, 2.2]
    )
    for deff, mean_tokens in ((0.5, 11.0), (3.0, 1.0)):
        assert position_deffs(np.array([0.0, 5.0]), deff, mean_tokens).tolist() == [1, 1]


def test_one_bin_has_no_rest() -> None:
    counts_BN = np.array([[4, 4, 0], [0, 0, 0]])
    (row,) = positions_table(counts_BN, np.array([4, 0]), 2, 1.0).to_dict("records")
    assert (row["first"], row["last"], row["max_load"]) == (0, 0, 1.5)
    assert math.isnan(row["divergence"])
    assert math.isnan(row["divergence_null"])
    few = positions_table(np.eye(16, dtype=np.int64), np.ones(16, np.int64), 1, 9.0)
    assert few["divergence_null"].max() == 1
    nothing = positions_table(np.zeros((4, 3), np.int64), np.zeros(4, np.int64), 2, 1.0)
    assert len(nothing) == 0
    assert len(first_position_experts(np.zeros((4, 3), np.int64), np.zeros(4, np.int64))) == 0


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_bounds(num_experts: int, top_k: int, seed: int) -> None:
    position_T = ragged(seed, 4, 30)
    top_k = min(top_k, num_experts - 1)
    counts_BN, tokens_B = binned(
        position_T, draw(seed, len(position_T), num_experts, top_k), num_experts
    )
    table = positions_table(counts_BN, tokens_B, top_k, 1.0)
    assert (counts_BN.sum(axis=1) == top_k * tokens_B).all()
    assert table["max_load"].between(1 - 1e-12, num_experts / top_k + 1e-12).all()
    assert table["divergence"].dropna().between(0, 1 + 1e-12).all()
