"""Sorted loads, and their band against simulated even routing.

Shape suffixes: N experts, B simulated streams, T tokens.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binom, norm

from moe_probe.analysis.metrics.load_curve import even_band, load_curve


def simulated(num_experts: int, top_k: int, tokens: int, streams: int) -> np.ndarray:
    """Count streams of tokens that draw k of N experts uniformly: [B, N]."""
    rng = np.random.default_rng(3)
    if top_k == 1:
        return rng.multinomial(tokens, np.full(num_experts, 1 / num_experts), streams)
    counts_BN = np.zeros((streams, num_experts), np.int64)
    for counts_N in counts_BN:
        ids = rng.random((tokens, num_experts)).argpartition(top_k, axis=1)[:, :top_k]
        counts_N += np.bincount(ids.ravel(), minlength=num_experts)
    return counts_BN


def test_curve_is_the_loads_sorted() -> None:
    assert load_curve(np.array([1, 0, 4, 3])).tolist() == [2, 1.5, 0.5, 0]
    assert np.isnan(load_curve(np.zeros(3, np.int64))).all()


@pytest.mark.parametrize(
    ("num_experts", "top_k", "tokens"), [(8, 1, 4000), (8, 2, 400), (64, 1, 10**5), (256, 1, 10**6)]
)
def test_each_rank_of_even_routing_lies_in_the_band(
    num_experts: int, top_k: int, tokens: int
) -> None:
    curve_BN = load_curve(simulated(num_experts, top_k, tokens, 2000))
    low_N, high_N = even_band(num_experts, top_k, tokens)
    inside_N = ((curve_BN >= low_N) & (curve_BN <= high_N)).mean(axis=0)
    # The whole count that an end may hold too is less of the band the more tokens there are.
    assert inside_N.mean() == pytest.approx(0.955, abs=0.02)
    assert inside_N.min() > 0.93
    assert inside_N.max() < 0.98


@pytest.mark.parametrize(
    ("num_experts", "each"), [(8, 2), (64, 5), (128, 10), (256, 20), (256, 50)]
)
def test_few_tokens_stay_in_the_band(num_experts: int, each: int) -> None:
    curve_BN = load_curve(simulated(num_experts, 1, each * num_experts, 2000))
    low_N, high_N = even_band(num_experts, 1, each * num_experts)
    inside_N = ((curve_BN >= low_N - 1e-9) & (curve_BN <= high_N + 1e-9)).mean(axis=0)
    assert inside_N.min() > 0.93
    assert 0.95 < inside_N.mean() < 0.998
    assert (high_N - low_N).max() < 12 * np.sqrt(1 / each)


def test_band_is_the_closed_form() -> None:
    rank_N = np.arange(1, 6)
    spread = np.sqrt((5 - 2) / (2 * 300)) * np.sqrt(5 / 4)
    quantile_QN = norm.ppf([beta.ppf(level, 6 - rank_N, rank_N) for level in (0.025, 0.5, 0.975)])
    variance_N = ((quantile_QN[2] - quantile_QN[0]) / 2 / norm.ppf(0.975)) ** 2
    shrunk_QN = quantile_QN[1] + (quantile_QN - quantile_QN[1]) * np.sqrt(1 - 1 / 5 / variance_N)
    skewed_QN = shrunk_QN + float(binom(300, 2 / 5).stats("s")) / 6 * (shrunk_QN**2 - 1)
    low_N, high_N = even_band(5, 2, 300)
    np.testing.assert_allclose(low_N, 1 + spread * skewed_QN[0] - 0.5 / 120, rtol=1e-9)
    np.testing.assert_allclose(high_N, 1 + spread * skewed_QN[2] + 0.5 / 120, rtol=1e-9)


def test_band_knows_its_limits() -> None:
    low_N, high_N = even_band(4, 4, 10)  # every token selects all experts
    assert low_N.tolist() == high_N.tolist() == [1] * 4
    low_N, high_N = even_band(64, 2, 1)
    assert low_N.min() == 0
    assert high_N.max() <= 32
    assert [end_N.tolist() for end_N in even_band(1, 1, 5)] == [[1], [1]]
    assert np.isnan(even_band(4, 1, 0)).all()
    assert np.isnan(even_band(4, 1, np.nan)).all()
