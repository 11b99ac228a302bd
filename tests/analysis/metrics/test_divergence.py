"""Divergences between strata against single pairs, and their clusters.

Shape suffixes: S strata, N experts.
"""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.metrics import divergence as dv
from moe_probe.analysis.metrics.clustering import adjusted_rand, area_agreement, average_linkage
from moe_probe.analysis.metrics.information import information_null, mutual_information
from tests.analysis.documents import random_documents


def naive_js(first: list[float], second: list[float]) -> float:
    bits = 0.0
    for p, q in zip(first, second, strict=True):
        middle = (p + q) / 2
        bits += sum(x / 2 * math.log2(x / middle) for x in (p, q) if x)
    return bits


@pytest.mark.parametrize("seed", range(4))
def test_every_pair(seed: int) -> None:
    counts_SN = random_documents(seed, apart=1.0).counts_SN
    js_SS, hellinger_SS = dv.jensen_shannon(counts_SN), dv.hellinger(counts_SN)
    tv_SS, jaccard_SS = dv.total_variation_between(counts_SN), dv.top_jaccard(counts_SN, 3)
    shares = [(row_N / row_N.sum()).tolist() for row_N in counts_SN[:3]]
    tops = [{e for _, e in sorted((-q, e) for e, q in enumerate(share))[:3]} for share in shares]
    for a, b in [*combinations(range(3), 2), (1, 0), (2, 2)]:
        p, q = np.array(shares[a]), np.array(shares[b])
        assert js_SS[a, b] == pytest.approx(naive_js(shares[a], shares[b]), abs=1e-13)
        root = math.sqrt(((np.sqrt(p) - np.sqrt(q)) ** 2).sum() / 2)
        assert hellinger_SS[a, b] == pytest.approx(root, abs=1e-14)
        assert tv_SS[a, b] == pytest.approx(abs(p - q).sum() / 2, abs=1e-14)
        expected = len(tops[a] & tops[b]) / len(tops[a] | tops[b])
        assert jaccard_SS[a, b] == pytest.approx(expected)
    for matrix_SS in (js_SS, hellinger_SS, tv_SS, jaccard_SS):
        assert np.isnan(matrix_SS[3]).all()
        assert np.isnan(matrix_SS[:, 3]).all()
    pairs = [js_SS[0, 1], js_SS[0, 2], js_SS[1, 2]]
    assert dv.mean_of_pairs(js_SS) == pytest.approx(np.mean(pairs))
    assert math.isnan(dv.mean_of_pairs(js_SS[2:, 2:]))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.floats(0, 8))
def test_identities_and_bounds(seed: int, top_k: int, apart: float) -> None:
    counts_SN = random_documents(seed, 60, top_k=top_k, apart=apart).counts_SN[:3]
    js_SS, hellinger_SS = dv.jensen_shannon(counts_SN), dv.hellinger(counts_SN)
    equal = [
        float(mutual_information(counts_SN[[a, b]], equal_weights=True))
        for a, b in combinations(range(3), 2)
    ]
    assert js_SS[np.triu_indices(3, 1)] == pytest.approx(equal, abs=1e-12)
    for matrix_SS in (js_SS, hellinger_SS, dv.total_variation_between(counts_SN)):
        assert (matrix_SS == matrix_SS.T).all()
        assert (matrix_SS.diagonal() == 0).all()
        assert ((matrix_SS >= 0) & (matrix_SS <= 1)).all()
    root_SS = np.sqrt(js_SS)
    for metric_SS in (root_SS, hellinger_SS):
        assert metric_SS[0, 2] <= metric_SS[0, 1] + metric_SS[1, 2] + 1e-7
    # Rounding of a divergence of nearly 0 shows in its root.
    assert (hellinger_SS <= root_SS + 1e-7).all()
    assert (root_SS * math.sqrt(math.log(2)) <= hellinger_SS + 1e-7).all()


def test_nothing_in_common() -> None:
    counts_SN = np.array([[4, 4, 0, 0], [0, 0, 1, 2]])
    for matrix_SS in (dv.jensen_shannon(counts_SN), dv.hellinger(counts_SN)):
        assert matrix_SS[0, 1] == pytest.approx(1, abs=1e-15)
    assert dv.total_variation_between(counts_SN)[0, 1] == 1
    # Experts never selected are in no set, however large it may be.
    assert dv.top_jaccard(counts_SN, 3)[0].tolist() == [1, 0]


def test_noise_alone() -> None:
    rng = np.random.default_rng(0)
    tokens, found = (300, 900), []
    for _ in range(1500):
        rows = [np.argsort(rng.random((n, 16)), axis=1)[:, :4].ravel() for n in tokens]
        counts_SN = np.stack([np.bincount(row, minlength=16) for row in rows])
        found.append(dv.jensen_shannon(counts_SN)[0, 1])
    assignments_S = 4 * np.array([*tokens, 0])
    null_SS = dv.divergence_null(assignments_S, 16, 4)
    assert np.mean(found) == pytest.approx(
        null_SS[0, 1], abs=4 * float(np.std(found)) / math.sqrt(len(found))
    )
    equal = information_null(assignments_S, 16, 4, equal_weights=True)
    assert null_SS[0, 1] == pytest.approx(equal)
    assert null_SS[0, 0] == 0
    assert np.isnan(null_SS[2]).all()
    doubled_SS = dv.divergence_null(assignments_S, 16, 4, np.array([2.0, 2.0, 1.0]))
    assert doubled_SS[0, 1] == pytest.approx(2 * null_SS[0, 1])
    assert dv.divergence_null(np.array([1, 1]), 256, 1).max() == 1


def test_random_sets() -> None:
    rng = np.random.default_rng(0)
    for num_experts, number in ((8, 2), (64, 6), (12, 10)):
        sets = [set(rng.permutation(num_experts)[:number].tolist()) for _ in range(4001)]
        found = [len(a & b) / len(a | b) for a, b in pairwise(sets)]
        error = float(np.std(found)) / math.sqrt(len(found))
        assert np.mean(found) == pytest.approx(
            dv.random_jaccard(num_experts, number), abs=4 * error
        )
    assert dv.random_jaccard(5, 5) == 1
    assert dv.random_jaccard(20, 1) == pytest.approx(1 / 20)
    assert dv.random_jaccard(256, 8) == pytest.approx(8 / (512 - 8), rel=0.1)


def test_planted_areas_are_neighbours_in_the_dendrogram() -> None:
    rng = np.random.default_rng(0)
    area_S = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    base_AN = rng.gamma(0.3, size=(3, 20))
    counts_SN = rng.poisson(4000 * base_AN[area_S] / base_AN.sum(axis=1)[area_S, None])
    counts_SN[4] = 0
    tree = average_linkage(np.sqrt(dv.jensen_shannon(counts_SN)))
    assert sorted(tree.order_S.tolist()) == list(range(8))
    assert tree.order_S[-1] == 4
    changes = (np.diff(area_S[tree.order_S[:-1]]) != 0).sum()
    assert changes == 2
    assert tree.clusters(3)[4] == -1
    assert area_agreement(tree, area_S) == 1
    assert math.isnan(area_agreement(tree, np.zeros(8, np.int64)))


def test_small_trees() -> None:
    lone = average_linkage(np.array([[np.nan, np.nan], [np.nan, 0.0]]))
    assert lone.order_S.tolist() == [1, 0]
    assert lone.clusters(1).tolist() == [-1, 0]
    # Mean distances of 3, 4 and 5: the pair at 3 is joined first, the third at (4 + 5) / 2.
    tree = average_linkage(np.array([[0.0, 3, 4], [3, 0, 5], [4, 5, 0]]))
    assert tree.links[:, 2].tolist() == [3, 4.5]
    assert tree.clusters(2)[0] == tree.clusters(2)[1] != tree.clusters(2)[2]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=12))
def test_adjusted_rand_counts_pairs(labels: list[tuple[int, int]]) -> None:
    pairs = list(combinations(labels, 2))
    first = sum(a[0] == b[0] for a, b in pairs)
    second = sum(a[1] == b[1] for a, b in pairs)
    both = sum(a == b for a, b in pairs)
    expected, most = first * second / len(pairs), (first + second) / 2
    found = adjusted_rand(*np.array(labels).T)
    if most > expected:
        assert found == pytest.approx((both - expected) / (most - expected))
    else:
        assert math.isnan(found)


def test_adjusted_rand_of_random_labels() -> None:
    rng = np.random.default_rng(0)
    found = [adjusted_rand(*rng.integers(0, 4, (2, 40))) for _ in range(400)]
    assert np.mean(found) == pytest.approx(0, abs=0.01)
    same_S = np.array([2, 0, 1, 1])
    assert adjusted_rand(same_S, 2 - same_S) == 1
