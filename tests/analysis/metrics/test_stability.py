"""Whether two halves rank the experts alike: against loops, by chance, and on a real trace.

Shape suffixes: T tokens, K slots, L layers, N experts, D documents.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.accumulators.documents import cluster_moments
from moe_probe.analysis.metrics.imbalance import cv
from moe_probe.analysis.metrics.stability import (
    bottom_overlap,
    divergence_deff,
    spearman,
    split_divergence,
    split_null,
    top_overlap,
)
from moe_probe.analysis.statistics.clusters import pooled_design_effect

DATA = Path(__file__).parents[3] / "../shared/data/deepseek-v2-lite"

halves = st.integers(2, 7).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 4), min_size=n, max_size=n)] * 2)
)


def mean_rank(values: list[int]) -> list[float]:
    below = [sum(other < value for other in values) for value in values]
    return [b + (values.count(v) + 1) / 2 for b, v in zip(below, values, strict=True)]


@settings(deadline=None, max_examples=80)
@given(halves)
def test_spearman(pair: tuple[list[int], list[int]]) -> None:
    found = float(spearman(*(np.array(values, np.uint8) for values in pair)))
    if min(len(set(values)) for values in pair) == 1:
        assert math.isnan(found)
    else:
        expected = np.corrcoef(mean_rank(pair[0]), mean_rank(pair[1]))[0, 1]
        assert found == pytest.approx(expected, abs=1e-12)


def least(values: list[int], number: int) -> list[set[int]]:
    """Return every set that may be called the `number` least used, each as likely."""
    worst = sorted(values)[number - 1]
    sure = {e for e, value in enumerate(values) if value < worst}
    tied = [e for e, value in enumerate(values) if value == worst]
    return [sure | set(some) for some in itertools.combinations(tied, number - len(sure))]


@settings(deadline=None, max_examples=80)
@given(halves, st.data())
def test_overlap_is_the_mean_over_ways_to_break_ties(
    pair: tuple[list[int], list[int]], data: st.DataObject
) -> None:
    first, second = pair
    number = data.draw(st.integers(1, len(first)))
    first_N, second_N = (np.array(values, np.uint8) for values in pair)
    if not sum(first) or not sum(second):
        assert math.isnan(bottom_overlap(first_N, second_N, number))
        assert math.isnan(top_overlap(first_N, second_N, number))
        return
    ways = itertools.product(least(first, number), least(second, number))
    expected = np.mean([len(one & other) / number for one, other in ways])
    assert bottom_overlap(first_N, second_N, number) == pytest.approx(expected)
    # The busiest of some loads are the least of the loads turned upside down.
    turned = [np.array([4 - value for value in values] + [9], np.uint8) for values in pair]
    assert top_overlap(turned[0], turned[1], number + 1) == pytest.approx(
        (number * float(expected) + 1) / (number + 1)
    )


def test_overlap_keeps_leading_axes() -> None:
    rng = np.random.default_rng(0)
    first_LN, second_LN = rng.integers(0, 5, (2, 3, 8))
    for overlap in (bottom_overlap, top_overlap):
        each = [float(overlap(first_LN[layer], second_LN[layer], 3)) for layer in range(3)]
        assert overlap(first_LN, second_LN, 3) == pytest.approx(each)
    each = [float(spearman(first_LN[layer], second_LN[layer])) for layer in range(3)]
    assert spearman(first_LN, second_LN) == pytest.approx(each)


def test_divergence_against_its_definition() -> None:
    first, second = [3, 0, 1, 4], [1, 5, 0, 4]
    bits = 0.0
    for a, b in zip(first, second, strict=True):
        p, q = a / 8, b / 10
        for share in (p, q):
            bits += share * math.log2(2 * share / (p + q)) / 2 if share else 0
    assert split_divergence(np.array(first), np.array(second)) == pytest.approx(bits)
    assert split_divergence(np.array([0, 7]), np.array([2, 0])) == pytest.approx(1)
    assert split_divergence(np.array([2, 6]), np.array([1, 3])) == 0
    assert math.isnan(split_divergence(np.array([2, 6]), np.array([0, 0])))


@pytest.mark.parametrize("deff", [1, 4])
def test_null_holds_in_simulation(deff: int) -> None:
    num_experts, top_k, number, documents = 24, 3, 5, 150
    rng = np.random.default_rng(deff)
    found = []
    for _ in range(400):
        # Each token `deff` times over: that many times the variance.
        score = rng.random((2, documents, num_experts), dtype=np.float32)
        ids = np.argsort(score, axis=2)[..., :top_k]
        pair = [deff * np.bincount(half.ravel(), minlength=num_experts) for half in ids]
        overlap = float(bottom_overlap(pair[0], pair[1], number))
        found.append((float(spearman(*pair)), overlap, split_divergence(*pair)))
    assignments = deff * documents * top_k
    null = split_null(num_experts, top_k, (assignments, assignments), number, deff)
    correlation, overlap_R, divergence = np.array(found).T
    assert abs(correlation.mean()) <= 3 * null.spearman_sd / 20
    assert correlation.std() == pytest.approx(null.spearman_sd, rel=0.12)
    assert abs(overlap_R.mean() - null.overlap) <= 3 * null.overlap_sd / 20
    # Ties broken at random on average vary a little less.
    assert overlap_R.std() == pytest.approx(null.overlap_sd, rel=0.15)
    assert divergence.mean() == pytest.approx(null.divergence, rel=0.05)


def test_null_of_halves_of_documents_that_differ() -> None:
    """Random halves of ragged documents of four subjects with favourite experts."""
    rng = np.random.default_rng(8)
    documents, num_experts, top_k = 240, 24, 3
    tokens_D, subject_D = rng.integers(5, 80, documents), np.arange(documents) % 4
    chance_SN = rng.gamma(1.0, size=(4, num_experts)) ** 2
    counts_DN = np.zeros((documents, num_experts), np.int64)
    for document, tokens in enumerate(tokens_D.tolist()):
        chance_N = chance_SN[subject_D[document]] * rng.gamma(1.0, size=num_experts) + 1e-9
        score_TN = np.log(chance_N) + rng.gumbel(size=(tokens, num_experts))
        ids_TK = np.argsort(-score_TN, axis=1)[:, :top_k]
        counts_DN[document] = np.bincount(ids_TK.ravel(), minlength=num_experts)
    one_D = np.zeros(documents, np.int64)
    moments = cluster_moments(counts_DN, tokens_D, one_D, 1)
    deff = divergence_deff(moments)
    by_subject = cluster_moments(counts_DN, tokens_D, subject_D, 4)
    assert divergence_deff(by_subject) == pytest.approx(deff)
    found, nulls = [], []
    for _ in range(400):
        half_D = rng.permutation(documents) % 2
        pair = [counts_DN[half_D == half].sum(axis=0) for half in (0, 1)]
        found.append(split_divergence(*pair))
        sizes = (int(pair[0].sum()), int(pair[1].sum()))
        nulls.append(split_null(num_experts, top_k, sizes, 1, deff).divergence)
    assert np.mean(found) == pytest.approx(np.mean(nulls), rel=0.07)
    # Halves with half of each subject's documents, every subject with the weight it has in all.
    alike, tokens_S = [], np.bincount(subject_D, tokens_D)
    for _ in range(200):
        half_D = np.empty(documents, np.int64)
        for subject in range(4):
            half_D[subject_D == subject] = rng.permutation(60) % 2
        pair = []
        for half in (0, 1):
            chosen_SD = (subject_D == np.arange(4)[:, None]) & (half_D == half)
            pair.append((tokens_S / (chosen_SD @ tokens_D)) @ (chosen_SD @ counts_DN))
        alike.append(split_divergence(*pair))
    within = divergence_deff(by_subject, within_subjects=True)
    null = split_null(num_experts, top_k, sizes, 1, within)
    assert np.mean(alike) == pytest.approx(null.divergence, rel=0.07)
    assert within < 0.5 * deff


def test_null_at_the_edges() -> None:
    assert math.isnan(split_null(1, 1, (5, 5), 1).spearman_sd)
    assert split_null(1, 1, (5, 5), 1).overlap_sd == 0
    assert split_null(8, 2, (9, 9), 8).overlap_sd == 0
    assert math.isnan(split_null(8, 2, (9, 0), 2).divergence)
    assert split_null(8, 2, (1, 1), 2, deff=50).divergence == 1


@pytest.mark.skipif(not DATA.is_dir(), reason="the DeepSeek-V2-Lite sample is not on this machine")
@pytest.mark.parametrize("task", ["intent", "law"])
def test_halves_of_deepseek_v2_lite(task: str) -> None:
    with np.load(DATA / f"{task}.npz") as arrays:
        ids_TLK, lengths_D = arrays["experts"], arrays["document_lengths"]
    half_T = np.repeat(np.arange(len(lengths_D)) % 2, lengths_D)
    pair = [
        np.stack([np.bincount(part[:, layer].ravel(), minlength=64) for layer in range(26)])
        for part in (ids_TLK[half_T == 0], ids_TLK[half_T == 1])
    ]
    null = split_null(64, 6, (int(pair[0][0].sum()), int(pair[1][0].sum())), 6)
    divergence_L = [split_divergence(pair[0][layer], pair[1][layer]) for layer in range(26)]
    # Published: .001 to .009 bits over tasks.
    assert 0.001 <= round(float(np.mean(divergence_L)), 3) <= 0.009
    assert spearman(*pair).min() > 0.9 > 3 * null.spearman_sd
    assert bottom_overlap(pair[0], pair[1], 6).mean() > null.overlap + 3 * null.overlap_sd


def test_mean_design_effect_is_that_of_fair_loads() -> None:
    """Some experts of fair routing are used by few documents alone: the median misses them."""
    rng, experts, length, documents = np.random.default_rng(4), 64, 60, 200
    squares, deffs = [], []
    for _ in range(60):
        on_DN = np.ones((documents, experts))
        on_DN[:, :6] = (rng.random((documents, 6)) < 0.1) * 10
        counts_DN = rng.binomial(length, np.minimum(on_DN / 16, 1))
        facts = np.full(documents, length), np.zeros(documents, np.int64), 1
        moments = cluster_moments(counts_DN, *facts)
        squares.append(float(cv(counts_DN.sum(axis=0))) ** 2)
        deffs.append((divergence_deff(moments), np.median(pooled_design_effect(moments))))
    mean, median = np.mean(deffs, axis=0)
    # Binomial counts: 1 / m instead of (N - k) / (k T).
    alone = 1 / (length * documents / 16) * (1 - 1 / 16)
    assert np.mean(squares) == pytest.approx(mean * alone, rel=0.1)
    assert np.mean(squares) > 3 * median * alone


@pytest.mark.parametrize(("documents", "spread"), [(3, 0.0), (10, 0.6), (60, 0.6)])
def test_mean_design_effect_of_documents_of_very_different_length(
    documents: int, spread: float
) -> None:
    """Long documents hide how much they vary: without a correction it is a fifth to a half less."""
    rng, experts, runs = np.random.default_rng(6), 16, 1500 if documents < 60 else 400
    squares, expected = [], []
    for _ in range(runs):
        tokens_D = np.maximum(5, rng.lognormal(4, 1.2, documents)).astype(int)
        share_DN = np.exp(spread * rng.normal(size=(documents, experts)))
        share_DN /= share_DN.sum(axis=1, keepdims=True)
        counts_DN = rng.multinomial(tokens_D, share_DN)
        moments = cluster_moments(counts_DN, tokens_D, np.zeros(documents, np.int64), 1)
        squares.append(float(cv(counts_DN.sum(axis=0))) ** 2)
        expected.append(divergence_deff(moments) * (experts - 1) / tokens_D.sum())
    assert np.mean(squares) == pytest.approx(np.mean(expected), rel=0.15)
