"""Intervals hold what they say: simulated documents of all kinds, and matrices of the same.

Shape suffixes: C documents, N experts, S subjects, T tokens, K slots, P topics, R runs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t

from moe_probe.analysis.statistics.intervals import share_interval, wilson
from moe_probe.analysis.statistics.moderated import centred_within, interval_deffs, unseen_deffs
from tests.analysis.statistics.documents import Documents
from tests.analysis.statistics.moderated_oracle import naive_interval_deffs

Lengths = Callable[[int, np.random.Generator], np.ndarray]

RISING = 0.1 + 4.9 * np.linspace(0, 1, 48) ** 4.5
EVEN, UNEVEN = np.full(48, 1 / 48), RISING / RISING.sum()
"""Fair shares, and from 0.1 to 5 times a fair share."""


def similar(documents: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(20, 120, documents)


def skewed(documents: int, rng: np.random.Generator) -> np.ndarray:
    """The longest tenth has most of the tokens."""
    return np.maximum(1, rng.lognormal(4, 1.2, documents)).astype(int)


def alike(
    share_N: np.ndarray, tokens_C: np.ndarray, concentration: float, rng: np.random.Generator
) -> Documents:
    """Documents with shares of their own around the common ones."""
    share_CN = rng.dirichlet(concentration * share_N, len(tokens_C))
    return Documents(rng.multinomial(tokens_C, share_CN), tokens_C)


def slots(
    share_N: np.ndarray, tokens_C: np.ndarray, top_k: int, rng: np.random.Generator
) -> Documents:
    """The same, of tokens that choose k different experts each."""
    share_CN = rng.dirichlet(10 * share_N, len(tokens_C)) + 1e-300
    document_T = np.repeat(np.arange(len(tokens_C)), tokens_C)
    score_TN = np.log(share_CN)[document_T] + rng.gumbel(size=(len(document_T), len(share_N)))
    id_TK = np.argpartition(-score_TN, top_k - 1, axis=1)[:, :top_k]
    key_TK = document_T[:, None] * len(share_N) + id_TK
    size = len(tokens_C) * len(share_N)
    counts_CN = np.bincount(key_TK.ravel(), minlength=size).reshape(len(tokens_C), -1)
    return Documents(counts_CN, tokens_C)


def bounds(found: Documents, subject_C: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """As the tables have them: [S, N] each."""
    moments = found.moments(subject_C)
    deff_SN = interval_deffs(moments)
    median_S1 = np.median(deff_SN, axis=1, keepdims=True)
    return share_interval(moments.c_SN, moments.n_S[:, None], deff_SN, median_S1)


def check_coverage(held_RN: np.ndarray) -> None:
    """93 to 97 % over all experts, known to half a percentage point."""
    by_run_R = held_RN.mean(axis=1)
    assert by_run_R.std(ddof=1) / np.sqrt(len(by_run_R)) < 0.005
    assert 0.93 <= by_run_R.mean() <= 0.97


@pytest.mark.parametrize(
    ("documents", "lengths", "concentration", "share_N"),
    [
        (30, similar, 5, EVEN),
        (30, skewed, 5, EVEN),
        (30, skewed, 5, UNEVEN),
        (30, similar, 1e6, UNEVEN),
        (60, similar, 5, EVEN),
        (60, similar, 20, UNEVEN),
        (60, skewed, 50, EVEN),
        (300, similar, 5, UNEVEN),
        (300, skewed, 5, EVEN),
        (300, skewed, 50, UNEVEN),
    ],
)
def test_coverage(
    documents: int, lengths: Lengths, concentration: float, share_N: np.ndarray
) -> None:
    rng = np.random.default_rng(1)
    held: list[np.ndarray] = []
    for _ in range(100):
        (low_N,), (high_N,) = bounds(alike(share_N, lengths(documents, rng), concentration, rng))
        held.append((low_N <= share_N) & (share_N <= high_N))
    check_coverage(np.stack(held))


@pytest.mark.parametrize(
    ("num_experts", "top_k", "lengths"), [(8, 2, skewed), (48, 6, skewed), (64, 8, similar)]
)
def test_coverage_with_several_slots(num_experts: int, top_k: int, lengths: Lengths) -> None:
    rng = np.random.default_rng(2)
    share_N = rng.dirichlet(np.full(num_experts, 2.0))
    many = slots(share_N, np.ones(60_000, int), top_k, rng)
    rate_N = many.counts_CN.mean(axis=0)
    held: list[np.ndarray] = []
    for _ in range(500 if num_experts < 10 else 70):
        (low_N,), (high_N,) = bounds(slots(share_N, lengths(40, rng), top_k, rng))
        held.append((low_N <= rate_N) & (rate_N <= high_N))
    check_coverage(np.stack(held))


def test_coverage_of_subjects_of_different_size() -> None:
    rng = np.random.default_rng(3)
    size_S = np.array([30, 30, 60, 120, 300])
    subject_C = np.repeat(np.arange(5), size_S)
    share_SN = UNEVEN * np.exp(rng.normal(0, 0.7, (5, 48)))
    share_SN /= share_SN.sum(axis=1, keepdims=True)
    held: list[np.ndarray] = []
    for _ in range(100):
        tokens_C = skewed(len(subject_C), rng)
        parts = [alike(share_SN[s], tokens_C[subject_C == s], 10, rng) for s in range(5)]
        counts_CN = np.concatenate([part.counts_CN for part in parts])
        low_SN, high_SN = bounds(Documents(counts_CN, tokens_C), subject_C)
        held.append((low_SN <= share_SN) & (share_SN <= high_SN))
    for held_RN in np.stack(held, axis=1):
        check_coverage(held_RN)


def test_coverage_where_experts_cluster_differently() -> None:
    """A third of the experts by the topic of a document, of which there are 57."""
    rng = np.random.default_rng(4)
    topic_PN = np.ones((57, 48))
    topic_PN[:, ::3] = np.exp(rng.normal(0, 1, (57, 16)))
    topic_PN = topic_PN * UNEVEN
    topic_PN /= topic_PN.sum(axis=1, keepdims=True)
    share_N = topic_PN.mean(axis=0)
    held: list[np.ndarray] = []
    wide: list[np.ndarray] = []
    for _ in range(150):
        tokens_C = similar(100, rng)
        found = Documents(rng.multinomial(tokens_C, topic_PN[rng.integers(0, 57, 100)]), tokens_C)
        (low_N,), (high_N,) = bounds(found)
        held.append((low_N <= share_N) & (share_N <= high_N))
        wide.append(interval_deffs(found.moments())[0])
    check_coverage(np.stack(held))
    deff_N = np.median(wide, axis=0)
    assert np.median(deff_N[24::3]) > 1.3 * np.median(np.delete(deff_N, np.s_[::3])[16:])


def test_coverage_of_an_expert_of_one_topic_among_experts_alike() -> None:
    """Its own documents make its interval, not the 47 others that every document uses alike."""
    rng = np.random.default_rng(6)
    topic_PN = np.ones((10, 48))
    topic_PN[:, 0] = np.where(np.arange(10) == 0, 7, 0)
    topic_PN /= topic_PN.sum(axis=1, keepdims=True)
    share_N = topic_PN.mean(axis=0)
    held: list[np.ndarray] = []
    for _ in range(400):
        tokens_C = skewed(300, rng)
        found = Documents(rng.multinomial(tokens_C, topic_PN[rng.integers(0, 10, 300)]), tokens_C)
        (low_N,), (high_N,) = bounds(found)
        held.append((low_N <= share_N) & (share_N <= high_N))
    assert 0.9 < np.mean(held, axis=0)[0] < 0.97
    check_coverage(np.stack(held)[:, 1:])


@pytest.mark.parametrize(
    ("documents", "spread"), [(2, 0.0), (3, 0.0), (6, 0.0), (6, 0.7), (20, 0.7)]
)
def test_coverage_of_one_expert(documents: int, spread: float) -> None:
    """Half a selection of a token on average, in few documents that differ; nothing to lean on."""
    rng = np.random.default_rng(7)
    rate_RC = 0.5 + spread * rng.uniform(-0.5, 0.5, (2500, documents))
    count_C1 = rng.binomial(100, rate_RC).reshape(-1, 1)
    run_C = np.repeat(np.arange(2500), documents)
    low_R1, high_R1 = bounds(Documents(count_C1, np.full(len(run_C), 100)), run_C)
    held = (low_R1 <= 0.5) & (high_R1 >= 0.5)
    # With two documents the few that agree by chance have too short an interval, or none.
    assert 0.92 <= np.mean(held) <= 0.97


def test_independent_tokens_have_next_to_the_usual_intervals() -> None:
    rng = np.random.default_rng(5)
    ratios = []
    for _ in range(20):
        found = alike(EVEN, similar(60, rng), 1e9, rng)
        counts_N, tokens = found.counts_CN.sum(axis=0), int(found.tokens_C.sum())
        (low_N,), (high_N,) = bounds(found)
        usual_low_N, usual_high_N = wilson(counts_N / tokens, tokens)
        ratios.append((high_N - low_N) / (usual_high_N - usual_low_N))
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("seed", range(12))
def test_against_matrices(seed: int) -> None:
    """Traces, squares and roots of whole matrices; one expert, two, and some never selected."""
    rng = np.random.default_rng(seed)
    documents, experts = int(rng.integers(2, 40)), (1, 2, 8, 30)[seed % 4]
    tokens_C = np.maximum(1, rng.lognormal(3, 1.3 * (seed % 3), documents)).astype(int)
    counts_CN = rng.binomial(tokens_C, 0.3)[:, None]
    if experts > 1:
        share_N = rng.dirichlet(np.full(experts, 0.5))
        counts_CN = alike(share_N + 1e-9, tokens_C, 3, rng).counts_CN
    expected_N = naive_interval_deffs(counts_CN, tokens_C)
    found_N = interval_deffs(Documents(counts_CN, tokens_C).moments())[0]
    np.testing.assert_allclose(found_N, expected_N, rtol=1e-5)


def test_one_expert_in_documents_of_one_length() -> None:
    """Cochran's variance and Student's t, with a degree less for few selections."""
    count_C = np.array([3, 9, 1, 4, 5, 2])
    share = count_C.sum() / 120
    deff = count_C.var(ddof=1) / (20 * share * (1 - share))
    skewness = (1 - 2 * share) * (deff / (share * (1 - share) * 120)) ** 0.5
    freedom = 1 / (1 / 5 + skewness**2 / 4)
    expected = deff * (t.ppf(0.975, freedom) / norm.ppf(0.975)) ** 2
    found = interval_deffs(Documents(count_C[:, None], np.full(6, 20)).moments())
    assert found.item() == pytest.approx(expected)


def test_shards_and_subjects() -> None:
    rng = np.random.default_rng(6)
    found, subject_C = alike(UNEVEN, skewed(50, rng), 5, rng), rng.integers(0, 3, 50)
    moments = found.moments(subject_C)
    shards = [
        Documents(found.counts_CN[part], found.tokens_C[part]).moments(subject_C[part])
        for part in (np.s_[:20], np.s_[20:])
    ]
    together_SN = interval_deffs(shards[0].merged(shards[1]))
    np.testing.assert_allclose(together_SN, interval_deffs(moments))
    for subject, deff_N in enumerate(together_SN):
        mine = Documents(
            found.counts_CN[subject_C == subject], found.tokens_C[subject_C == subject]
        )
        np.testing.assert_allclose(deff_N, interval_deffs(mine.moments())[0])
    # Documents that have what all have, and besides what sets them apart from their subject.
    share_SN = moments.c_SN / moments.n_S[:, None]
    apart_CN = found.counts_CN - found.tokens_C[:, None] * share_SN[subject_C]
    common_N = found.counts_CN.sum(axis=0) / found.tokens_C.sum()
    centred = Documents(found.tokens_C[:, None] * common_N + apart_CN, found.tokens_C)
    within_SN = interval_deffs(centred_within(moments))
    np.testing.assert_allclose(within_SN, interval_deffs(centred.moments()), rtol=1e-6)


def test_an_expert_that_nothing_selects() -> None:
    """As if it were there; it changes nothing of the others."""
    rng = np.random.default_rng(8)
    found, subject_C = alike(UNEVEN, skewed(50, rng), 5, rng), rng.integers(0, 3, 50)
    with_none = Documents(np.pad(found.counts_CN, ((0, 0), (0, 1))), found.tokens_C)
    deff_SN = interval_deffs(with_none.moments(subject_C))
    for documents in (found, with_none):
        unseen_S = unseen_deffs(documents.moments(subject_C))
        np.testing.assert_allclose(unseen_S, deff_SN[:, -1])
    assert np.isnan(unseen_deffs(Documents(found.counts_CN[:1], found.tokens_C[:1]).moments()))


def test_no_interval_without_two_documents_or_variation() -> None:
    counts_CN, tokens_C = np.array([[5, 0], [10, 0], [0, 7]]), np.array([5, 10, 7])
    deff_SN = interval_deffs(Documents(counts_CN, tokens_C).moments(np.array([0, 0, 1])))
    assert np.isnan(deff_SN).all()
    assert (interval_deffs(Documents(counts_CN, tokens_C).moments()) > 0).all()


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.floats(0.01, 1))
def test_no_design_effect_is_beyond_what_documents_can_make(
    seed: int, documents: int, concentration: float
) -> None:
    """Values known to hardly any degree of freedom have logarithms beyond all numbers."""
    rng = np.random.default_rng(seed)
    found = alike(np.full(32, 1 / 32), skewed(documents, rng) + 1, 32 * concentration, rng)
    moments = found.moments()
    with np.errstate(all="raise", under="ignore"):
        deff_N = interval_deffs(moments)[0]
    # Where nothing varies there is none.
    deff_N = deff_N[~np.isnan(deff_N)]
    # Two documents, one of which has nearly all tokens, show next to nothing of what varies.
    assert (deff_N <= moments.n_S[0] ** 3 * (t.ppf(0.975, 1) / norm.ppf(0.975)) ** 2).all()
