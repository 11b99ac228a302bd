"""The tiers of experts: planted cases, the rule word by word, and fair routing.

Shape suffixes: N experts, S subjects, R repetitions.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from moe_probe.analysis.metrics.frequency import relative_load
from moe_probe.analysis.metrics.tiers import effective_documents, subject_locked, tiers

SUBJECTS = 10


def upper_bound(counts_N: np.ndarray, tokens: int, deff: float = 1.0) -> np.ndarray:
    """The upper end of Wilson's 95 % interval as a relative load; 3 / T_eff for zero counts."""
    effective = tokens / deff
    p, z2 = counts_N / tokens, 1.96**2
    root = np.sqrt(z2 * (p * (1 - p) / effective + z2 / (4 * effective**2)))
    high = (p + z2 / (2 * effective) + root) / (1 + z2 / effective)
    high = np.where(counts_N == 0, 3 / effective, high)
    return np.asarray(high * tokens / counts_N.mean())


def planted(
    tokens: int, rates: dict[int, float], num_experts: int = 64, top_k: int = 6
) -> np.ndarray:
    """Counts [S, N] of even subjects with some experts at the given relative loads."""
    counts_SN = np.full((SUBJECTS, num_experts), tokens * top_k // num_experts // SUBJECTS)
    for expert, load in rates.items():
        counts_SN[:, expert] = np.round(counts_SN[:, expert] * load)
    return counts_SN


def tiers_of(counts_SN: np.ndarray, tokens: int, deff: float = 1.0) -> list[str]:
    high_N = upper_bound(counts_SN.sum(axis=0), tokens, deff)
    return list(map(str, tiers(counts_SN, high_N, np.ones(counts_SN.shape[1]))))


def test_planted_loads() -> None:
    found = tiers_of(planted(1_000_000, {0: 0, 1: 0.005, 2: 0.05, 3: 0.3, 4: 3}), 1_000_000)
    assert found[:5] == ["unseen", "near-idle", "rare", "used", "used"]
    assert set(found[5:]) == {"used"}


def test_small_sample_certifies_nothing() -> None:
    # 20 selections expected of each expert: none at all leaves 3 / 20 of a fair share possible.
    counts_SN = planted(214, {0: 0, 1: 0, 2: 0})
    counts_SN[0, 1:3] = 1, 8
    found = tiers_of(counts_SN, 214)
    assert found[:4] == ["unseen, not certified", "not certified", "not certified", "used"]


def test_design_effect_withdraws_certificates() -> None:
    counts_SN = planted(20_000, {0: 0, 1: 0.05})
    assert tiers_of(counts_SN, 20_000)[:2] == ["unseen", "rare"]
    assert tiers_of(counts_SN, 20_000, deff=100)[:2] == ["unseen, not certified", "not certified"]


def test_much_data_on_a_low_load_is_no_lack_of_data() -> None:
    assert set(tiers_of(planted(10_000_000, {0: 0.3, 1: 0.15}), 10_000_000)) == {"used"}


def test_bursty_is_a_suffix_of_any_tier() -> None:
    counts_SN = planted(1_000_000, {0: 0.005, 1: 0.05})
    ratio_N = np.full(64, 5.0)
    ratio_N[[0, 2, 4]] = 5.1, 80, math.nan
    found = tiers(counts_SN, upper_bound(counts_SN.sum(axis=0), 1_000_000), ratio_N)
    assert found[:5].tolist() == ["near-idle, bursty", "rare", "used, bursty", "used", "used"]


def test_reserved_for_one_subject() -> None:
    counts_SN = planted(1_000_000, {})
    counts_SN[1:, 0] = 0
    counts_SN[:, 1] = [300, 200, 100, 20, 20, 20, 20, 20, 20, 20]  # 600 of 740
    counts_SN[:, 2] = [300, 200, 100, 40, 20, 20, 20, 20, 20, 20]  # 600 of 760
    found = tiers_of(counts_SN, 1_000_000)
    assert found[:3] == ["used, subject-locked", "near-idle, subject-locked", "near-idle"]


def test_locking_needs_counts() -> None:
    counts_SN = planted(1_000_000, {0: 0, 1: 0})
    counts_SN[0, :2] = 29, 30
    assert subject_locked(counts_SN)[:3].tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("of_expert", "documents", "locked"),
    [
        ([40, 30], 2, False),  # any two documents have two subjects at most
        ([70], 2, False),  # one of ten by chance
        ([70], 4, True),  # one of 1,000
        ([40, 30], 4, False),  # 45 pairs, of each 0.2^4
        ([40, 30], 6, True),
        ([30, 30, 30], 5, False),  # 120 triples, of each 0.3^5
        ([30, 30, 30], 8, True),
    ],
)
def test_locking_needs_documents(of_expert: list[int], documents: int, locked: bool) -> None:
    counts_SN = np.full((10, 5), 100_000)
    counts_SN[:, 0] = 0
    counts_SN[: len(of_expert), 0] = of_expert
    found = subject_locked(counts_SN, np.array([documents, 900, 900, 900, 900]))
    assert found.tolist() == [locked, False, False, False, False]


@pytest.mark.parametrize(
    ("share", "outside", "documents", "locked"),
    [
        (0.7, 0.0, 20, True),
        (0.7, 0.0, 8, False),  # 2 x 0.7^8 = 0.12 by chance
        (0.7, 0.1, 60, True),
        (0.7, 0.1, 20, False),  # 2 x P(two of 20 are others) = 0.07
        (0.7, 0.13, 200, False),  # others use it more than 0.4 times as much
        (0.9, 0.0, 60, True),
        (0.9, 0.03, 400, True),
        (0.9, 0.05, 400, False),
    ],
)
def test_expert_of_the_larger_subject(
    share: float, outside: float, documents: int, locked: bool
) -> None:
    counts_SN = np.array(
        [[1000 - 1000 * outside, 1e6 * share], [1000 * outside, 1e6 - 1e6 * share]]
    )
    found = subject_locked(counts_SN.astype(np.int64), np.array([documents, 900]))
    assert found.tolist() == [locked, False]
    assert not subject_locked(counts_SN.astype(np.int64)).any()


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 60), st.integers(0, 5), st.floats(0.05, 0.95))
def test_chance_of_locking_is_binomial(documents: int, others: int, share: float) -> None:
    """As if all documents used the expert once: P(at most so many are of other subjects)."""
    # Else the other subject is the one.
    assume(2 * others < documents)
    tail = binom.cdf(others, documents, 1 - share)
    assume(abs(2 * tail - 0.01) > 1e-6)
    counts_SN = np.round(
        [[60 * (documents - others), 1e12 * share], [60 * others, 1e12 - 1e12 * share]]
    )
    found = subject_locked(counts_SN.astype(np.int64), np.array([documents, math.nan]))[0]
    allowed = 0.4 * (1 - max(share, 0.5)) * documents
    assume(abs(others - allowed) > 1e-3)
    assert found == (others <= allowed and 2 * tail <= 0.01)


def test_effective_documents() -> None:
    count_DN = np.array([[5, 9, 0, 3], [5, 1, 0, 0], [5, 0, 0, 0]])
    found = effective_documents(count_DN.sum(axis=0), (count_DN**2).sum(axis=0))
    np.testing.assert_allclose(found, [3, 100 / 82, math.nan, 1])


@pytest.mark.parametrize("subjects", range(1, 9))
def test_expert_of_one_subject_is_locked_whatever_others_there_are(subjects: int) -> None:
    """Only the text of the subject it uses counts, and that of all text is no lock."""
    counts_SN = np.full((subjects, 3), 400)
    counts_SN[1:, 0] = 0
    counts_SN[:, 1] += 400 - counts_SN[:, 0]
    assert subject_locked(counts_SN).tolist() == [subjects > 1, False, False]


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_locks_follow_the_rule(subjects: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts_SN = rng.integers(0, 60, (subjects, 5)) * rng.integers(0, 2, (subjects, 5))
    text_S = counts_SN.sum(axis=1)
    for expert, locked in enumerate(subject_locked(counts_SN).tolist()):
        own = counts_SN[:, expert].tolist()
        most = sorted(range(subjects), key=lambda s: -own[s])
        enough = [m for m in (1, 2, 3) if sum(own[s] for s in most[:m]) >= 0.8 * sum(own)]
        small = bool(enough) and 2 * sum(text_S[s] for s in most[: enough[0]]) <= text_S.sum()
        assert locked == (sum(own) >= 30 and small)


def test_nothing_selected_and_unknown_bounds() -> None:
    nothing = tiers(np.zeros((2, 3), np.int64), np.full(3, math.nan), np.full(3, math.nan))
    assert nothing.tolist() == ["unseen, not certified"] * 3
    unknown = tiers(np.array([[0, 1, 40]]), np.full(3, math.nan), np.full(3, math.nan))
    assert unknown.tolist() == ["unseen, not certified", "not certified", "used"]


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 50), st.floats(0, 3), st.floats(0, 20))
def test_every_expert_has_the_tier_of_the_rule(count: int, width: float, ratio: float) -> None:
    counts_SN = np.array([[count, 50, 50, 50]])
    load = float(relative_load(counts_SN[0])[0])
    high = load + width
    tier = str(tiers(counts_SN, np.full(4, high), np.full(4, ratio))[0])
    assert ("bursty" in tier) == (ratio > 5)
    assert tier.startswith("unseen") == (count == 0)
    assert tier.startswith("near-idle") == (count > 0 and high < 0.01)
    assert tier.startswith("rare") == (count > 0 and 0.01 <= high < 0.1)
    if tier.startswith("used"):
        assert load >= 0.5 or (load >= 0.1 and high < 0.5)
    if "not certified" in tier:
        assert load < 0.5
        assert high >= 0.1


@pytest.mark.parametrize(("tokens", "num_experts", "top_k"), [(300, 64, 6), (3000, 256, 8)])
def test_fair_routing_certifies_nothing(tokens: int, num_experts: int, top_k: int) -> None:
    rng = np.random.default_rng(11)
    seen = set()
    for _ in range(200):
        counts_SN = rng.binomial(tokens // SUBJECTS, top_k / num_experts, (SUBJECTS, num_experts))
        seen |= set(tiers_of(counts_SN, tokens))
    assert seen <= {"used", "not certified"}
