"""Intervals against published ones and binomial tails.

Shape suffixes: N experts.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.statistics.intervals import (
    clopper_pearson,
    few_documents,
    rate_certifiable,
    share_interval,
    tokens_needed,
    tokens_to_estimate,
    wilson,
)


def binomial_tail(hits: int, trials: int, p: float) -> float:
    """P(X >= hits)."""
    return sum(
        math.comb(trials, x) * p**x * (1 - p) ** (trials - x) for x in range(hits, trials + 1)
    )


@pytest.mark.parametrize(
    ("hits", "trials", "score", "exact"),
    [
        (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
        (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
        (0, 20, (0, 0.1611), (0, 0.1684)),
        (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
    ],
)
def test_published_intervals(
    hits: int, trials: int, score: tuple[float, float], exact: tuple[float, float]
) -> None:
    """Newcombe (1998), table I."""
    assert wilson(hits / trials, trials) == pytest.approx(score, abs=5e-5)
    assert clopper_pearson(hits / trials, trials) == pytest.approx(exact, abs=5e-5)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.data())
def test_exact_interval_leaves_both_tails(trials: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, trials))
    low, high = map(float, clopper_pearson(hits / trials, trials))
    assert binomial_tail(hits, trials, low) == pytest.approx(0.025 if hits else 1, abs=1e-8)
    more = 1 - binomial_tail(hits + 1, trials, high)
    assert more == pytest.approx(0.025 if hits < trials else 1, abs=1e-8)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([0.0, 1.0]) | st.floats(1e-7, 1), st.floats(0.5, 1e7))
def test_intervals_hold_the_share(share: float, n_eff: float) -> None:
    for low, high in (wilson(share, n_eff), clopper_pearson(share, n_eff)):
        assert 0 <= low <= share + 1e-12
        assert share - 1e-12 <= high <= 1


def test_the_count_chooses_the_interval() -> None:
    counts_N = np.array([0, 1, 9, 10, 500, 1000])
    deff_N = np.array([np.nan, 8.0, 1.0, 1.0, 2.0, np.nan])
    low_N, high_N = share_interval(counts_N, 1000, deff_N, 4.0)
    assert (low_N[0], high_N[0]) == (0, pytest.approx(3 * 4 / 1000))
    for expert, share, n_eff, interval in (
        (1, 0.001, 1000 / 8, clopper_pearson),
        (2, 0.009, 1000 / 4, clopper_pearson),  # the median is the larger
        (3, 0.01, 1000, wilson),
        (4, 0.5, 500, wilson),
        (5, 1.0, 250, wilson),
    ):
        low, high = interval(share, n_eff)
        assert low_N[expert] == pytest.approx(low, abs=1e-12)
        assert high_N[expert] == pytest.approx(high)


def test_layers_and_subjects_in_one_call() -> None:
    rng = np.random.default_rng(0)
    counts_LN, tokens_L1 = rng.integers(0, 30, (3, 5)), np.array([[0], [100], [200]])
    deff_LN, median_L1 = rng.uniform(0.5, 5, (3, 5)), np.array([[1.0], [2.0], [3.0]])
    low_LN, high_LN = share_interval(counts_LN, tokens_L1, deff_LN, median_L1)
    assert np.isnan(low_LN[0]).all()
    assert np.isnan(high_LN[0]).all()
    for layer in (1, 2):
        tokens, median = int(tokens_L1[layer, 0]), float(median_L1[layer, 0])
        low_N, high_N = share_interval(counts_LN[layer], tokens, deff_LN[layer], median)
        assert low_LN[layer].tolist() == low_N.tolist()
        assert high_LN[layer].tolist() == high_N.tolist()


def test_few_documents_have_quantiles_of_student() -> None:
    """Tabulated: 12.706, 2.262 and 1.984 for 1, 9 and 99 degrees of freedom."""
    expected = [(t / 1.95996) ** 2 for t in (12.706, 2.262, 1.984)]
    assert few_documents(np.array([2, 10, 100])).tolist() == pytest.approx(expected, rel=1e-3)
    assert np.isnan(few_documents(np.array([0, 1]))).all()
    assert few_documents(10**9, 1e-7) == pytest.approx(1)


def test_rare_experts_are_no_more_even_than_independent_tokens() -> None:
    counts_N = np.array([0, 4, 40])
    few_low_N, few_high_N = share_interval(counts_N, 1000, np.array([np.nan, 0.2, 0.2]), 0.5)
    low_N, high_N = share_interval(counts_N, 1000, np.array([np.nan, 1.0, 0.2]), 1.0)
    assert few_low_N.tolist() == low_N.tolist()
    assert few_high_N.tolist() == high_N.tolist()
    assert high_N[0] == pytest.approx(0.003)


def test_no_design_effect_no_interval() -> None:
    counts_N = np.array([0, 3, 40])
    bounds = share_interval(counts_N, 100, np.full(3, np.nan), np.nan)
    assert np.isnan(np.stack(bounds)[:, 1:]).all()
    assert np.isnan(bounds[1][0])


def test_how_much_data_is_enough() -> None:
    assert tokens_needed(0.01, 256, 8, 1) == pytest.approx(9600)
    assert tokens_needed(0.01, 256, 8, 9.4) == pytest.approx(90_240)
    assert rate_certifiable(9600, 256, 8) == pytest.approx(0.01)
    assert tokens_to_estimate(0.1, 8, 2, 2) == pytest.approx(19.6**2 * 3 * 2, rel=1e-4)
    assert rate_certifiable(2, 256, 8) == 32
    assert np.isnan(rate_certifiable(0, 256, 8))


@settings(deadline=None, max_examples=50)
@given(st.floats(1e-4, 2), st.floats(0.5, 20), st.sampled_from([(8, 2), (64, 6), (256, 8)]))
def test_certified_load_inverts_the_tokens(
    load: float, deff: float, shape: tuple[int, int]
) -> None:
    tokens = tokens_needed(load, *shape, deff)
    assert rate_certifiable(tokens / deff, *shape) == pytest.approx(load)
