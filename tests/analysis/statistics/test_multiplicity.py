"""Adjusted p-values against their definitions and at their stated rates; the layer test.

Shape suffixes: M tests, N experts, L layers, R repetitions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import chdtrc, ndtr
from scipy.stats import f as f_distribution

from moe_probe.analysis.statistics.clusters import (
    poisson_weights,
    replicate_sums,
)
from moe_probe.analysis.statistics.multiplicity import (
    benjamini_hochberg,
    layer_test,
)
from moe_probe.analysis.statistics.nulls import uniform_chi_square
from tests.analysis.statistics.documents import Documents, dirichlet_multinomial

P_VALUES = st.lists(st.floats(0, 1) | st.just(np.nan), max_size=12)


@settings(deadline=None, max_examples=150)
@given(P_VALUES, st.floats(0.001, 0.999))
def test_q_values_reject_as_the_step_up_rule(p_values: list[float], level: float) -> None:
    q_M = benjamini_hochberg(np.array(p_values))
    assert np.isnan(q_M).tolist() == np.isnan(p_values).tolist()
    known = sorted(p for p in p_values if p == p)
    # The largest i with p_(i) <= i level / m; slack where rounding decides.
    passing = [p for i, p in enumerate(known, 1) if p * len(known) / i <= level]
    for p, q in zip(p_values, q_M.tolist(), strict=True):
        if p == p and abs(q - level) > 1e-9:
            assert (q <= level) == (bool(passing) and p <= passing[-1])


def test_worked_example() -> None:
    """The fifteen p-values of Benjamini and Hochberg (1995), section 3.2: four."""
    small = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    p_M = np.array([*small, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0])
    assert (benjamini_hochberg(p_M) <= 0.05).sum() == 4


def test_any_shape_and_nothing_known() -> None:
    p_LN = np.array([[0.01, np.nan, 0.04], [0.5, 0.02, np.nan]])
    flat = benjamini_hochberg(p_LN.ravel())
    assert np.array_equal(benjamini_hochberg(p_LN).ravel(), flat, equal_nan=True)
    assert np.isnan(benjamini_hochberg(np.full((2, 2), np.nan))).all()
    assert benjamini_hochberg(np.empty(0)).shape == (0,)


def test_rate_of_false_discoveries() -> None:
    rng = np.random.default_rng(1)
    false_share, found = [], []
    for _ in range(1000):
        z_M = rng.normal(size=100)
        z_M[:30] += 3.5
        p_M = 1 - ndtr(z_M)
        is_found_M = benjamini_hochberg(p_M) <= 0.1
        false_share.append(is_found_M[30:].sum() / max(is_found_M.sum(), 1))
        found.append(is_found_M[:30].mean())
    error = np.std(false_share) / 1000**0.5
    # For independent tests the rate is exactly level times the share of true nulls.
    assert abs(np.mean(false_share) - 0.1 * 0.7) <= 3 * error
    assert np.mean(found) > 0.9


def fair(concentration: float) -> Callable[[np.random.Generator], Documents]:
    return lambda rng: dirichlet_multinomial(np.full(32, 1 / 32), 150, concentration, rng)


def by_topic(rng: np.random.Generator) -> Documents:
    """Fair overall; each document prefers one quarter of the experts."""
    tokens_C, topic_C = rng.integers(20, 120, 150), rng.integers(0, 4, 150)
    weight_TN = np.where(np.arange(4)[:, None] == np.arange(32) // 8, 10.0, 1.0)
    share_TN = weight_TN / weight_TN.sum(axis=1, keepdims=True)
    return Documents(rng.multinomial(tokens_C, share_TN[topic_C]), tokens_C)


def uneven(rng: np.random.Generator) -> Documents:
    share_N = np.full(32, 1 / 32)
    share_N[:4] *= [0.5, 0.5, 1.5, 1.5]
    return dirichlet_multinomial(share_N, 150, 30, rng)


def layer_p_values(make: Callable[[np.random.Generator], Documents]) -> dict[str, np.ndarray]:
    """p-values [R] of the layer test and of the one that takes tokens for independent."""
    rng, found_R = np.random.default_rng(2), []
    weights_BC = poisson_weights([f"d{i}" for i in range(150)], 200)
    for _ in range(200):
        found = make(rng)
        counts_N, tokens = found.counts_CN.sum(axis=0), int(found.tokens_C.sum())
        replicates_BN = replicate_sums(weights_BC, found.counts_CN)
        found_R.append(
            (
                layer_test(counts_N, replicates_BN, 150)[2],
                float(uniform_chi_square(counts_N, tokens, tokens)[1]),
            )
        )
    return dict(zip(("replicates", "tokens"), np.array(found_R).T, strict=True))


def test_layer_tests_of_fair_documents_have_their_level() -> None:
    p = layer_p_values(fair(30))
    for level in (0.05, 0.2, 0.5):
        error = (level * (1 - level) / 200) ** 0.5
        assert (p["replicates"] <= level).mean() <= level + 3 * error
    assert (p["tokens"] <= 0.05).mean() > 0.9


def test_documents_with_topics_need_the_replicates() -> None:
    p = layer_p_values(by_topic)
    error = (0.05 * 0.95 / 200) ** 0.5
    assert 0.01 < (p["replicates"] <= 0.05).mean() <= 0.05 + 3 * error


def test_few_documents_with_topics_have_no_small_p() -> None:
    """Three documents seldom tell how far documents vary; chi-square takes it for known."""
    rng, weights_BC = np.random.default_rng(3), poisson_weights(["a", "b", "c"], 200)
    weight_TN = np.where(np.arange(4)[:, None] == np.arange(32) // 8, 10.0, 1.0)
    share_TN = weight_TN / weight_TN.sum(axis=1, keepdims=True)
    p, as_known = [], []
    for _ in range(500):
        counts_CN = rng.multinomial(rng.integers(20, 120, 3), share_TN[rng.integers(0, 4, 3)])
        replicates_BN = replicate_sums(weights_BC, counts_CN)
        statistic, freedom, value = layer_test(counts_CN.sum(axis=0), replicates_BN, 3)
        p.append(value)
        as_known.append(float(chdtrc(freedom, statistic)))
    assert min(p) > 0.001
    assert np.mean(np.array(as_known) < 0.001) > 0.01


def test_layer_tests_find_uneven_load() -> None:
    p = layer_p_values(uneven)
    assert (p["replicates"] <= 0.05).mean() > 0.9


def test_replicates_that_say_nothing() -> None:
    counts_N = np.array([3, 1, 2])
    for replicates_BN in (np.zeros((5, 3)), counts_N * np.arange(5)[:, None]):
        assert np.isnan(layer_test(counts_N, replicates_BN, 9)).all()
    assert np.isnan(layer_test(np.zeros(3), np.zeros((5, 3)), 9)).all()
    assert np.isnan(layer_test(np.array([4]), np.array([[3], [5]]), 9)).all()
    assert np.isnan(layer_test(counts_N, np.array([[3, 1, 2], [1, 2, 3]]), 1)).all()


def test_replicates_by_hand() -> None:
    counts_N = np.array([6, 2, 4])
    replicates_BN = np.array([[6, 2, 4], [8, 2, 2], [4, 4, 4], [0, 0, 0], [5, 1, 6], [6, 3, 3]])
    offset = [
        [x / sum(row) - c / 12 for x, c in zip(row, counts_N.tolist(), strict=True)]
        for row in replicates_BN.tolist()
        if sum(row)
    ]
    trace = sum(x * x for row in offset for x in row) / 5 * 7 / 6
    square = sum(
        (sum(row[i] * row[j] for row in offset) / 5 * 7 / 6) ** 2
        for i in range(3)
        for j in range(3)
    )
    freedom = trace**2 / max((square - trace**2 / 5) * 25 / (7 * 4), trace**2 / 2)
    statistic = (1 / 36 + 1 / 36) / trace * freedom
    p = f_distribution.sf(statistic / freedom, freedom, freedom / (1 / 6 + 1 / 5))
    assert layer_test(counts_N, replicates_BN, 7) == pytest.approx((statistic, freedom, p))
