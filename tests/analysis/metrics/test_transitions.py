"""Flows between layers against loops over tokens, closed forms and a real trace.

Shape suffixes: T tokens, K slots, N and M experts of two layers.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.metrics.transitions import (
    foreseen,
    layer_information,
    lift,
    recall_of_most_frequent,
    set_flows,
)
from tests.analysis.metrics.routing import NONE, draw, needs_sample, sample, sets_of


def follow(ids_TK: np.ndarray, seed: int, num_next: int, top_k: int) -> np.ndarray:
    """The next layer: half of its tokens follow a fixed map, the others anything."""
    map_N = np.random.default_rng(7).permutation(max(num_next - 1, int(ids_TK.max()) + 1))
    next_TK = draw(seed, len(ids_TK), num_next, top_k)
    for t in range(0, len(ids_TK), 2):
        wanted = int(map_N[ids_TK[t, 0]]) % (num_next - 1)
        if wanted not in next_TK[t]:
            next_TK[t, 0] = wanted
    return next_TK


@pytest.mark.parametrize("empty", [False, True])
def test_set_flows_against_sets(empty: bool) -> None:
    ids_TK, next_TK = draw(1, 200, 6, 3, empty=empty), draw(2, 200, 9, 2, empty=empty)
    flows = Counter(
        (i, j)
        for here, there in zip(sets_of(ids_TK), sets_of(next_TK), strict=True)
        for i in here
        for j in there
    )
    flows_NM = set_flows(ids_TK, next_TK, 6, 9)
    assert flows_NM.tolist() == [[flows[i, j] for j in range(9)] for i in range(6)]
    if not empty:
        assert flows_NM.sum() == 200 * 3 * 2


def test_set_flows_of_many_tokens_add_up() -> None:
    ids_TK, next_TK = draw(1, 20_000, 4, 2), draw(2, 20_000, 5, 1)
    parts = [set_flows(ids_TK[part::3], next_TK[part::3], 4, 5) for part in range(3)]
    assert set_flows(ids_TK, next_TK, 4, 5).tolist() == np.sum(parts, axis=0).tolist()


def test_lift_against_frequencies() -> None:
    ids_TK = draw(3, 300, 6, 3)
    next_TK = follow(ids_TK, 4, 8, 2)
    here, there = sets_of(ids_TK), sets_of(next_TK)
    lift_NM = lift(set_flows(ids_TK, next_TK, 6, 8))
    for i in range(6):
        for j in range(8):
            p_i, p_j = np.mean([i in s for s in here]), np.mean([j in s for s in there])
            both = np.mean([i in a and j in b for a, b in zip(here, there, strict=True)])
            expected = both / (p_i * p_j) if p_i * p_j else math.nan
            assert lift_NM[i, j] == pytest.approx(expected, nan_ok=True)


def test_information_against_its_definition() -> None:
    ids_TK = draw(5, 400, 6, 1)
    flows_NM = set_flows(ids_TK, follow(ids_TK, 6, 8, 1), 6, 8)
    f_NM = flows_NM / 400
    f_N, f_M = f_NM.sum(axis=1), f_NM.sum(axis=0)
    bits = sum(
        f_NM[i, j] * math.log2(f_NM[i, j] / (f_N[i] * f_M[j]))
        for i, j in zip(*np.nonzero(f_NM), strict=True)
    )
    next_bits = -sum(f * math.log2(f) for f in f_M if f > 0)
    found = layer_information(flows_NM, 2.5)
    assert found.bits == pytest.approx(bits)
    assert found.share == pytest.approx(bits / next_bits)
    # One expert of each layer is unused, and leaves nothing to vary.
    assert ((f_N > 0).sum(), (f_M > 0).sum()) == (5, 7)
    assert found.null_bits == pytest.approx(2.5 * 4 * 6 / (2 * 400 * math.log(2)))


def test_information_of_a_copy_and_of_independent_layers() -> None:
    copy = layer_information(np.diag([5, 5, 5, 5]), 1.0)
    assert (copy.bits, copy.share) == pytest.approx((2, 1))
    assert layer_information(np.full((4, 3), 5), 1.0).bits == pytest.approx(0, abs=1e-12)
    one = layer_information(np.array([[3, 0], [4, 0]]), 1.0)
    assert (one.bits, one.null_bits) == pytest.approx((0, 0))
    assert math.isnan(one.share)


def test_information_null_is_the_mean_of_independent_layers() -> None:
    rng = np.random.default_rng(8)
    found = []
    for _ in range(300):
        key = rng.integers(0, 6, 500) * 5 + rng.integers(0, 5, 500)
        found.append(layer_information(np.bincount(key, minlength=30).reshape(6, 5), 1.0))
    bits = np.array([one.bits for one in found])
    error = bits.std(ddof=1) / math.sqrt(len(bits))
    assert abs(bits.mean() - found[0].null_bits) < 3 * error + 0.02 * bits.mean()


def naive_recall(flows_NM: np.ndarray, ids_TK: np.ndarray, next_TK: np.ndarray) -> float:
    """Naive Bayes token by token, a row of the table smoothed by one selection."""
    num_next, hits, selected = flows_NM.shape[1], 0, 0
    share = [flows_NM[:, j].sum() / flows_NM.sum() for j in range(num_next)]
    for here, there in zip(sets_of(ids_TK), sets_of(next_TK), strict=True):
        score = []
        for j in range(num_next):
            given = [(flows_NM[i, j] + share[j]) / (flows_NM[i].sum() + 1) for i in here]
            parts = [math.log(p / share[j]) for p in given] if share[j] else [-math.inf]
            score.append(sum(parts) + (math.log(share[j]) if share[j] else 0))
        foreseen = sorted(range(num_next), key=lambda j: -score[j])[: next_TK.shape[1]]
        hits += len(set(foreseen) & there)
        selected += len(there)
    return hits / selected


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize(("top_k", "next_k"), [(1, 1), (3, 2), (2, 4)])
def test_recall_against_naive_bayes(top_k: int, next_k: int, empty: bool) -> None:
    ids_TK = draw(9, 600, 7, top_k)
    next_TK = follow(ids_TK, 10, 9, next_k)
    if empty:
        next_TK[::5, 0] = ids_TK[::7, 0] = NONE
    fit, test = slice(0, 300), slice(300, 600)
    flows_NM = set_flows(ids_TK[fit], next_TK[fit], 7, 9)
    hits, selected = foreseen(flows_NM, ids_TK[test], next_TK[test])
    assert hits / selected == pytest.approx(naive_recall(flows_NM, ids_TK[test], next_TK[test]))


def test_recall_of_a_copied_layer_is_1() -> None:
    ids_TK = np.concatenate([np.tile([[0, 1], [2, 3]], (40, 1)), [[0, 1]]]).astype(np.uint8)
    assert foreseen(set_flows(ids_TK, ids_TK, 5, 5), ids_TK, ids_TK) == (162, 162)


def test_experts_that_the_table_lacks_fall_back_on_the_most_frequent() -> None:
    flows_NM = np.zeros((3, 4), np.int64)
    flows_NM[0] = [0, 7, 2, 0]
    next_TK = np.array([[1], [2], [1], [3]], np.uint8)
    assert foreseen(flows_NM, np.full((4, 1), 2, np.uint8), next_TK) == (2, 4)
    counts_M = np.array([0, 2, 1, 1])
    assert recall_of_most_frequent(flows_NM.sum(axis=0), counts_M, 1) == 0.5


def test_nothing_gives_null() -> None:
    ids_TK = np.zeros((3, 2), np.uint8)
    flows_NM = np.zeros((4, 4), np.int64)
    assert np.isnan(lift(flows_NM)).all()
    assert foreseen(flows_NM, ids_TK, ids_TK) == (0, 3)
    assert foreseen(flows_NM + 1, ids_TK[:0], ids_TK[:0]) == (0, 0)
    assert math.isnan(recall_of_most_frequent(np.ones(4), np.zeros(4), 2))
    empty = layer_information(flows_NM, 1.0)
    assert all(map(math.isnan, (empty.bits, empty.null_bits, empty.share)))


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_information_is_bounded_and_lift_averages_to_1(n: int, m: int, seed: int) -> None:
    ids_TK, next_TK = draw(seed, 60, n, 1), draw(seed + 1, 60, m, 1)
    flows_NM = set_flows(ids_TK, next_TK, n, m)
    found = layer_information(flows_NM, 1.0)
    assert 0 <= found.bits <= math.log2(min(n, m)) + 1e-12
    chance_NM = np.outer(flows_NM.sum(axis=1), flows_NM.sum(axis=0)) / 60**2
    assert np.nansum(lift(flows_NM) * chance_NM) == pytest.approx(1)


@needs_sample
def test_a_real_layer_foretells_the_next() -> None:
    ids_TLK, _, starts_D = sample("law")
    document_T = np.searchsorted(starts_D, np.arange(len(ids_TLK)), side="right") - 1
    fit, test = (ids_TLK[document_T % 2 == half, 6:8] for half in (0, 1))
    flows_NM = set_flows(fit[:, 0], fit[:, 1], 64, 64)
    hits, selected = foreseen(flows_NM, test[:, 0], test[:, 1])
    fitted_M, counts_M = (np.bincount(half[:, 1].ravel(), minlength=64) for half in (fit, test))
    null = recall_of_most_frequent(fitted_M, counts_M, 6)
    assert (round(hits / selected, 3), round(null, 3)) == (0.641, 0.244)
