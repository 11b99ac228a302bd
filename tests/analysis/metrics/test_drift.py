"""How an expert's load changes along the stream: loops over windows, planted changes, fair routing.

Shape suffixes: V windows, N experts, T tokens.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.metrics.drift import change_points, drift_share, fano_factor


def random_windows(seed: int, windows: int, window: int, num_experts: int = 5) -> np.ndarray:
    """Selections [T, N] as 0 and 1, with rates that differ between windows."""
    rng = np.random.default_rng(seed)
    rate_VN = rng.random((windows, num_experts)) * rng.random(num_experts)
    return (rng.random((windows, window, num_experts)) < rate_VN[:, None]).astype(np.int64)


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 12))
def test_share_is_an_analysis_of_variance(seed: int, windows: int, window: int) -> None:
    selected_VTN = random_windows(seed, windows, window)
    share_N, null = drift_share(selected_VTN.sum(axis=1), window)
    for expert in range(5):
        selected_VT = selected_VTN[:, :, expert]
        total = selected_VT.var()
        if total == 0:
            assert math.isnan(share_N[expert])
            continue
        within = np.mean([selected_T.var() for selected_T in selected_VT])
        assert share_N[expert] == pytest.approx(1 - within / total, abs=1e-9)
        assert -1e-9 <= share_N[expert] <= 1 + 1e-9
    assert math.isnan(null) if windows * window == 1 else 0 <= null <= 1


def test_null_of_the_share_is_its_mean_over_random_orders() -> None:
    selected_TN = random_windows(1, 6, 10).reshape(60, 5)
    rng = np.random.default_rng(2)
    shares = []
    for _ in range(3000):
        counts_VN = selected_TN[rng.permutation(60)].reshape(6, 10, 5).sum(axis=1)
        share_N, null = drift_share(counts_VN, 10)
        shares.append(share_N)
    assert null == pytest.approx(5 / 59)
    error_N = np.std(shares, axis=0) / math.sqrt(3000)
    assert (np.abs(np.mean(shares, axis=0) - null) < 3.5 * error_N).all()


def test_share_of_blocks_is_one() -> None:
    share_N, _ = drift_share(np.array([[10, 5], [0, 5], [10, 5]]), 10)
    assert share_N == pytest.approx([1, 0])


def test_fano_factor() -> None:
    counts_VN = np.array([[4, 0, 3], [6, 0, 3], [5, 0, 3], [9, 0, 3]])
    found = fano_factor(counts_VN)
    assert found[0] == pytest.approx(np.var([4, 6, 5, 9], ddof=1) / 6)
    assert math.isnan(found[1])
    assert found[2] == 0
    assert np.isnan(fano_factor(counts_VN[:1])).all()
    assert np.isnan(fano_factor(counts_VN[:0])).all()


def test_fano_factor_of_independent_tokens_is_one_minus_the_rate() -> None:
    counts_VN = np.random.default_rng(3).binomial(50, [0.02, 0.3, 0.9], (20_000, 3))
    assert fano_factor(counts_VN) == pytest.approx([0.98, 0.7, 0.1], rel=0.05)


def test_planted_change_is_found() -> None:
    counts_VN = np.full((6, 4), 100)
    counts_VN[3:, 1] = 10
    counts_VN[4, 2] = 0
    table = change_points(counts_VN)
    assert table[["expert", "window"]].to_numpy().tolist() == [[1, 3], [2, 4], [2, 5]]
    fair = 310 / 4
    assert list(table.loc[0, ["before", "after"]]) == pytest.approx([1, 10 / fair])
    change_P = table["change"].to_numpy()
    assert change_P[0] == pytest.approx(math.log2(10.5 / fair / (100.5 / 100)))
    assert change_P[1] < -6
    assert change_P[2] > 6


def test_changes_within_noise_or_below_fourfold_are_not_found() -> None:
    # 0 to 10 of 40 expected is large, and could be chance; 100 to 300 is certain, and not large.
    assert change_points(np.array([[0, 40, 40], [10, 40, 40]])).empty
    assert change_points(np.array([[1000, 8000], [3000, 6000]])).empty
    assert len(change_points(np.array([[1000, 8000], [4600, 4400]]))) == 1


def test_no_windows_no_changes() -> None:
    for counts_VN in (np.zeros((0, 3), np.int64), np.ones((1, 3), np.int64), np.zeros((4, 3), int)):
        assert change_points(counts_VN).empty
    share_N, null = drift_share(np.zeros((0, 3), np.int64), 10)
    assert np.isnan(share_N).all()
    assert math.isnan(null)


@pytest.mark.parametrize("mean", [1, 5, 30, 300])
def test_fair_routing_has_no_change_points(mean: int) -> None:
    rng = np.random.default_rng(5)
    assert sum(len(change_points(rng.poisson(mean, (20, 256)))) for _ in range(200)) == 0
