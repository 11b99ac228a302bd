"""Differences of loads: variances against loops, error rates against simulation.

Shape suffixes: C documents of a trace, N experts of a layer, B replicates.
"""

from __future__ import annotations

import numpy as np
import pytest

from moe_probe.analysis.comparison.differences import (
    difference_variance,
    divergence_noise,
    index_difference_noise,
    load_differences,
)
from moe_probe.analysis.comparison.documents import Pairs
from moe_probe.analysis.metrics.divergence import jensen_shannon
from moe_probe.analysis.metrics.frequency import relative_load
from moe_probe.analysis.metrics.imbalance import max_vio
from moe_probe.analysis.statistics.clusters import poisson_weights, replicate_sums
from moe_probe.analysis.statistics.multiplicity import benjamini_hochberg
from tests.analysis.documents import random_documents

NONE = Pairs(np.empty(0, np.int64), np.empty(0, np.int64))


def naive_variance(
    first_CN: np.ndarray, second_CN: np.ndarray, pairs: dict[int, int]
) -> np.ndarray:
    """The definition, one document and one expert at a time."""
    tables, scores, lefts = (first_CN.tolist(), second_CN.tolist()), [], []
    for table in tables:
        total = sum(map(sum, table))
        parts = [sum(row) / total for row in table]
        shares = [sum(row[e] for row in table) / total for e in range(len(table[0]))]
        score = [
            [len(row) / total * (c - q * sum(row)) for c, q in zip(row, shares, strict=True)]
            for row in table
        ]
        means = []
        for e in range(len(shares)):
            squares = [row[e] ** 2 for row in score]
            if sum(squares):
                weighted = sum(part * z for part, z in zip(parts, squares, strict=True))
                means.append(weighted / sum(squares))
        square = sum(part**2 for part in parts)
        lefts.append(min(1 - 2 * sum(means) / len(means) + square, 1 - square))
        scores.append(score)
    result = np.zeros(first_CN.shape[1])
    for expert in range(len(result)):
        for number, row in enumerate(scores[0]):
            other = scores[1][pairs[number]][expert] if number in pairs else 0.0
            result[expert] += (row[expert] - other) ** 2
        for number, row in enumerate(scores[1]):
            if number not in pairs.values():
                result[expert] += row[expert] ** 2
    return np.asarray(result / min(lefts))


@pytest.mark.parametrize("paired", [0, 7, 20])
def test_variance(paired: int) -> None:
    first_CN = random_documents(1, documents=20).counts_CN
    second_CN = random_documents(2, documents=25).counts_CN
    second_CN[3] = 0  # a document without counted tokens
    rng = np.random.default_rng(0)
    first_P, second_P = rng.permutation(20)[:paired], rng.permutation(25)[:paired]
    found_N, freedom = difference_variance(first_CN, second_CN, Pairs(first_P, second_P))
    pairs = dict(zip(first_P.tolist(), second_P.tolist(), strict=True))
    np.testing.assert_allclose(found_N, naive_variance(first_CN, second_CN, pairs))
    assert 10 < freedom <= 19


def test_documents_of_one_length_lose_one() -> None:
    """The variance is then m / (m - 1) times the squares of the residuals."""
    rng = np.random.default_rng(0)
    tables = [rng.multinomial(40, np.full(60, 1 / 60), 30) for _ in range(2)]
    variance_N, freedom = difference_variance(tables[0], tables[1], NONE)
    shares = [table / table.sum() * 60 for table in tables]
    expected_N = sum(((s - s.mean(axis=0)) ** 2).sum(axis=0) for s in shares) * 30 / 29
    np.testing.assert_allclose(variance_N, expected_N)
    assert freedom == pytest.approx(29)
    # Of one document with nearly all of the text nobody knows how it varies.
    tables[0][0] *= 1000
    assert difference_variance(tables[0], tables[1], NONE)[1] < 2


def test_a_trace_does_not_vary_from_itself() -> None:
    counts_CN = random_documents(3, documents=3000).counts_CN
    order = np.arange(3000)
    variance_N, freedom = difference_variance(counts_CN, counts_CN, Pairs(order, order))
    assert not variance_N.any()
    counts_N = counts_CN.sum(axis=0, dtype=np.int64)
    found = load_differences(counts_N, counts_N, variance_N, freedom)
    assert not found.value_N.any()
    assert not found.low_N.any()
    assert not found.high_N.any()
    assert np.isnan(found.p_value_N).all()
    assert divergence_noise(variance_N, counts_N, counts_N) == 0


def test_one_document_says_nothing() -> None:
    counts_CN = random_documents(4, documents=8).counts_CN
    variance_N, freedom = difference_variance(counts_CN[:1], counts_CN, NONE)
    assert np.isnan(variance_N).all()
    found = load_differences(counts_CN[0], counts_CN.sum(axis=0), variance_N, freedom)
    assert np.isfinite(found.value_N).all()
    assert np.isnan([found.low_N, found.high_N, found.p_value_N]).all()


def halves(seed: int) -> tuple[np.ndarray, np.ndarray]:
    documents = random_documents(seed, documents=120, num_experts=16, alike=0.7)
    is_first_C = np.random.default_rng(seed).permutation(120) < 60
    return documents.counts_CN[is_first_C], documents.counts_CN[~is_first_C]


def test_halves_of_one_trace_differ_no_more_often_than_stated() -> None:
    p_values, discoveries, inside = [], 0, []
    divergences, noises = [], []
    for seed in range(300):
        first_CN, second_CN = halves(seed)
        variance_N, freedom = difference_variance(first_CN, second_CN, NONE)
        sums = [table.sum(axis=0, dtype=np.int64) for table in (first_CN, second_CN)]
        found = load_differences(sums[0], sums[1], variance_N, freedom)
        p_values.append(found.p_value_N)
        discoveries += bool((benjamini_hochberg(found.p_value_N) < 0.05).any())
        inside.append((found.low_N <= 0) & (found.high_N >= 0))
        divergences.append(float(jensen_shannon(np.stack(sums))[0, 1]))
        noises.append(divergence_noise(variance_N, sums[0], sums[1]))
    known = np.concatenate(p_values)
    known = known[np.isfinite(known)]
    assert len(known) == 300 * 15  # one expert is never selected
    assert (known < 0.05).mean() == pytest.approx(0.05, abs=0.012)
    # All differences are chance, so a discovery in 5 % of the seeds; 26 is the 99.9 % quantile.
    assert discoveries <= 26
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)
    assert np.mean(divergences) == pytest.approx(float(np.mean(noises)), rel=0.08)


def of_very_different_length(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Thirty documents run twice: what a document prefers stays, the tokens are other ones."""
    prefers_CN = rng.dirichlet(np.full(24, 2.0), 30)
    length_C = np.maximum(rng.lognormal(3, 1.2, 30), 1).astype(int)
    first_CN, second_CN = (rng.multinomial(length_C, prefers_CN) for _ in range(2))
    return first_CN, second_CN


@pytest.mark.parametrize("paired", [False, True])
def test_few_long_documents_make_no_difference(*, paired: bool) -> None:
    """Nothing differs: with m - 1 degrees of freedom, 13 to 21 % of traces had a discovery."""
    rng, order = np.random.default_rng(0), np.arange(30)
    discoveries, inside = 0, []
    for _ in range(300):
        first_CN, second_CN = of_very_different_length(rng)
        if not paired:
            second_CN, _ = of_very_different_length(rng)
        known = Pairs(order, order) if paired else NONE
        variance_N, freedom = difference_variance(first_CN, second_CN, known)
        sums = [table.sum(axis=0) for table in (first_CN, second_CN)]
        found = load_differences(sums[0], sums[1], variance_N, freedom)
        discoveries += bool((benjamini_hochberg(found.p_value_N) < 0.05).any())
        inside.append((found.low_N <= 0) & (found.high_N >= 0))
    # 26 of 300 is the 99.9 % quantile of 5 %.
    assert discoveries <= 26
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_pairing_finds_what_documents_hide() -> None:
    """One selection in fifty moves from expert 0 to 1, in the same documents."""
    rng = np.random.default_rng(5)
    first_CN = random_documents(6, documents=150, alike=1.5).counts_CN.astype(np.int64)
    moved_C = rng.binomial(first_CN[:, 0], 0.1)
    second_CN = first_CN.copy()
    second_CN[:, 0] -= moved_C
    second_CN[:, 1] += moved_C
    sums = [table.sum(axis=0) for table in (first_CN, second_CN)]
    order = np.arange(150)
    p_values = []
    for pairs in (Pairs(order, order), NONE):
        variance_N, freedom = difference_variance(first_CN, second_CN, pairs)
        p_values.append(load_differences(sums[0], sums[1], variance_N, freedom).p_value_N)
    # In 26 documents; the variance is known to 15 degrees of freedom.
    assert (p_values[0][:2] < 1e-3).all()
    assert np.isnan(p_values[0][2:]).all()
    assert (p_values[1] > 0.2)[np.isfinite(p_values[1])].all()
    load = relative_load(sums[1]) - relative_load(sums[0])
    assert load[0] == -load[1]


def test_index_noise_is_that_of_the_same_documents() -> None:
    counts_CN = random_documents(7, documents=40).counts_CN
    weights_BC = poisson_weights([str(n) for n in range(40)], 30)
    replicates_BN = replicate_sums(weights_BC, counts_CN)
    assert index_difference_noise(max_vio, replicates_BN, replicates_BN) == 0
    other_BN = replicate_sums(weights_BC, counts_CN[::-1])
    values = [float(max_vio(b) - max_vio(a)) for a, b in zip(replicates_BN, other_BN, strict=True)]
    found = index_difference_noise(max_vio, replicates_BN, other_BN)
    assert found == pytest.approx(float(np.std(values, ddof=1)))
