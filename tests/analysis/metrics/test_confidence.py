"""Histograms of router confidence against sorting the values, and a real trace's weights.

Shape suffixes: T tokens, K slots, Q quantities, H bins, E edges.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.metrics.confidence import (
    BINS,
    EDGES,
    QUANTILES,
    confidence_table,
    edges,
    histogram,
    margin_curve,
    margin_null,
    moments,
    quantiles,
    weight_shares,
)
from moe_probe.analysis.metrics.weights import mean_mass
from tests.analysis.metrics.routing import needs_sample, sample

N, K = 64, 6


def values_of(quantity: str, tokens: int) -> np.ndarray:
    """Random values inside the range of a quantity."""
    rng = np.random.default_rng(1)
    values: dict[str, np.ndarray] = {
        "entropy": rng.uniform(0, math.log(N), tokens),
        "margin": np.exp(rng.normal(-5, 3, tokens).clip(-16, 5)),
        "logsumexp": rng.normal(10, 8, tokens),
        "top_share": rng.uniform(1 / K, 1, tokens),
        "effective_k": rng.uniform(1, K, tokens),
    }
    return values[quantity]


def ones(values_T: np.ndarray) -> np.ndarray:
    return np.ones(len(values_T), np.int64)


@pytest.mark.parametrize("quantity", EDGES)
def test_histogram_against_its_edges(quantity: str) -> None:
    values_T = values_of(quantity, 5000)
    weight_T = np.random.default_rng(2).integers(0, 4, 5000)
    edges_E = edges(quantity, N, K)
    assert (len(edges_E), len(EDGES[quantity])) == (BINS + 1, BINS + 1)
    assert (np.diff(edges_E) > 0).all()
    expected, _ = np.histogram(values_T, edges_E, weights=weight_T)
    assert histogram(quantity, values_T, weight_T, N, K).tolist() == expected.tolist()


@pytest.mark.parametrize("quantity", EDGES)
def test_edges_belong_to_the_bin_above_and_all_else_to_the_outer_bins(quantity: str) -> None:
    edges_E = edges(quantity, N, K)
    # Only these are exact numbers: powers of two and multiples of them.
    exact = {"margin": range(0, BINS, 4), "logsumexp": range(BINS), "top_share": range(BINS)}
    for place in exact.get(quantity, ()):
        bins_H = histogram(quantity, edges_E[place : place + 1], np.array([1]), N, K)
        assert bins_H.argmax() == place
    far_T = np.array([-np.inf, -1e6, 1e6, np.inf, np.nan, edges_E[0], edges_E[-1]])
    bins_H = histogram(quantity, far_T.astype(np.float32), ones(far_T), N, K)
    assert (bins_H[0], bins_H[-1], bins_H.sum()) == (3, 3, 6)


@pytest.mark.parametrize("quantity", EDGES)
def test_quantiles_are_exact_to_the_width_of_a_bin(quantity: str) -> None:
    values_T = values_of(quantity, 4001)
    edges_E = edges(quantity, N, K)
    bins_H = histogram(quantity, values_T, ones(values_T), N, K)
    found = quantiles(bins_H, edges_E, QUANTILES)
    exact = np.quantile(values_T, QUANTILES, method="inverted_cdf")
    place = np.searchsorted(edges_E, exact, side="right") - 1
    assert (found >= edges_E[place]).all()
    assert (found <= edges_E[place + 1]).all()


def test_quantiles_of_one_bin_and_of_nothing() -> None:
    bins_H = np.zeros(BINS, np.int64)
    assert np.isnan(quantiles(bins_H, EDGES["top_share"], QUANTILES)).all()
    bins_H[3] = 8
    found = quantiles(bins_H, EDGES["top_share"], (0.25, 0.5, 1.0))
    assert found == pytest.approx(np.array([3.25, 3.5, 4]) / BINS)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_shares_of_weights_against_their_definition(seed: int, top_k: int) -> None:
    rng = np.random.default_rng(seed)
    weights_TK = rng.dirichlet(np.full(top_k, 0.5), 30).astype(np.float16)
    weights_TK[rng.random(weights_TK.shape) < 0.2] = 0
    top_T, effective_T = weight_shares(weights_TK)
    for weights_K, top, effective in zip(weights_TK.tolist(), top_T, effective_T, strict=True):
        if sum(weights_K) == 0:
            assert math.isnan(top)
            assert math.isnan(effective)
            continue
        share = [weight / sum(weights_K) for weight in weights_K if weight > 0]
        assert top == pytest.approx(max(share), rel=1e-5)
        expected = math.exp(-sum(part * math.log(part) for part in share))
        assert effective == pytest.approx(expected, rel=1e-5)
        assert 1 - 1e-5 <= effective <= top_k + 1e-5
        assert 1 / effective - 1e-5 <= top <= 1 + 1e-5


def test_table_names_units_and_bounds() -> None:
    bins_QH = np.stack(
        [histogram(name, values_of(name, 999), np.ones(999), N, K) for name in EDGES]
    )
    moments_Q3 = np.stack([moments(values_of(name, 999), np.ones(999)) for name in EDGES])
    table = confidence_table(bins_QH, moments_Q3, N, K).set_index("quantity")
    assert list(table.index) == list(EDGES)
    assert (table["tokens"] == 999).all()
    assert (table["q05"] < table["q25"]).all()
    assert (table["q75"] < table["q95"]).all()
    assert table.loc["entropy", "median"] == pytest.approx(math.log(N) / 2, rel=0.1)
    assert table.loc["effective_k", "q95"] == pytest.approx(1 + 5 * 0.95, rel=0.05)
    assert table.loc["entropy", "highest"] == pytest.approx(math.log(N))
    assert table.loc["top_share", "lowest"] == pytest.approx(1 / K)
    for name in EDGES:
        values_T = values_of(name, 999)
        assert table.at[name, "mean"] == pytest.approx(values_T.mean())
        assert table.at[name, "mean_square"] == pytest.approx((values_T**2).mean())
    assert table["gaussian_null"].dropna().to_dict() == {"margin": margin_null(N, K)}
    empty = confidence_table(np.zeros_like(bins_QH), np.zeros_like(moments_Q3), N, K)
    names = ["q05", "q25", "median", "q75", "q95", "mean", "mean_square"]
    assert empty[names].isna().all(axis=None)


def test_one_expert_per_token() -> None:
    values_T = np.ones(5)
    for quantity in ("effective_k", "top_share"):
        assert histogram(quantity, values_T, ones(values_T), 8, 1).sum() == 5
    top_T, effective_T = weight_shares(np.array([[0.3], [0.0]]))
    assert top_T == pytest.approx([1, math.nan], nan_ok=True)
    assert effective_T == pytest.approx([1, math.nan], nan_ok=True)


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (64, 6), (256, 8)])
def test_margin_of_gaussian_scores(num_experts: int, top_k: int) -> None:
    score_TN = np.random.default_rng(3).standard_normal((4000, num_experts))
    ranked_TN = np.sort(score_TN, axis=1)[:, ::-1]
    margin = (ranked_TN[:, top_k - 1] - ranked_TN[:, top_k]).mean()
    assert margin_null(num_experts, top_k) == pytest.approx(margin, rel=0.12)
    assert math.isnan(margin_null(8, 8))


def curve_of(margin_T: np.ndarray) -> pd.DataFrame:
    bins_QH, moments_Q3 = np.zeros((len(EDGES), BINS), np.int64), np.zeros((len(EDGES), 3))
    place = list(EDGES).index("margin")
    bins_QH[place] = histogram("margin", margin_T, ones(margin_T), N, K)
    moments_Q3[place] = moments(margin_T, ones(margin_T))
    return margin_curve(bins_QH, moments_Q3)


def test_shares_of_small_margins() -> None:
    exact_T = np.array([0, 0.25, 0.3, 1, 2.5, 100, np.inf, np.nan])
    found = curve_of(exact_T)
    for row in found.to_dict("records"):
        epsilon = row["epsilon"]
        assert row["share"] == np.mean(exact_T[:-1] < epsilon)
        null = 1 - np.exp(-epsilon / exact_T[:6].mean())
        assert row["share_null"] == pytest.approx(null)
    assert (found["epsilon"].min(), found["epsilon"].max()) == (2**-16, 2**4)
    assert curve_of(np.full(3, np.nan)).empty


@pytest.mark.parametrize(("num_experts", "top_k"), [(64, 6), (256, 8)])
def test_margins_of_independent_scores_are_nearly_exponential(num_experts: int, top_k: int) -> None:
    score_TN = np.random.default_rng(4).standard_normal((8000, num_experts))
    ranked_TN = -np.sort(-score_TN, axis=1)
    found = curve_of(ranked_TN[:, top_k - 1] - ranked_TN[:, top_k])
    np.testing.assert_allclose(found["share"], found["share_null"], atol=0.02)


@needs_sample
@pytest.mark.parametrize(
    ("task", "top_share", "mass"), [("law", (0.281, 0.365), (0.348, 0.433)),
                                    ("intent", (0.283, 0.377), (0.339, 0.476))]
)  # fmt: skip
def test_weights_of_deepseek_v2_lite(
    task: str, top_share: tuple[float, float], mass: tuple[float, float]
) -> None:
    _, weights_TLK, _ = sample(task)
    shares, masses = [], []
    for weights_TK in weights_TLK.transpose(1, 0, 2):
        top_T, _ = weight_shares(weights_TK)
        shares.append(top_T.mean())
        bins_H = histogram("top_share", top_T, ones(top_T), N, K)
        middle = quantiles(bins_H, edges("top_share", N, K), (0.5,))[0]
        assert abs(middle - np.median(top_T)) < 1 / BINS
        masses.append(mean_mass(weights_TK.sum(dtype=np.float64), np.array(len(weights_TK))))
    assert (min(shares), max(shares)) == pytest.approx(top_share, abs=6e-4)
    assert (min(masses), max(masses)) == pytest.approx(mass, abs=6e-4)
