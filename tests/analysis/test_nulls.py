"""Closed forms of exchangeable routing against its simulation.

Shape suffixes: R repetitions, T tokens, N experts.
"""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest

from moe_probe.analysis.metrics import imbalance
from moe_probe.analysis.statistics.nulls import bounds, expected_indices, extreme_moments
from moe_probe.analysis.tables.layers import INDICES


def simulate(num_experts: int, top_k: int, tokens: int, repetitions: int) -> np.ndarray:
    """Return counts int64 [R, N] of tokens that draw experts without replacement, uniformly."""
    rng = np.random.default_rng(20)
    counts_RN = np.empty((repetitions, num_experts), np.int64)
    for counts_N in counts_RN:
        score_TN = rng.random((tokens, num_experts), dtype=np.float32)
        ids_TK = np.argpartition(score_TN, top_k, axis=1)[:, :top_k]
        counts_N[:] = np.bincount(ids_TK.ravel(), minlength=num_experts)
    return counts_RN


@pytest.mark.parametrize(
    ("num_experts", "top_k", "tokens"), [(8, 2, 1000), (64, 6, 1500), (256, 8, 3000)]
)
def test_closed_forms_hold_in_simulation(num_experts: int, top_k: int, tokens: int) -> None:
    counts_RN = simulate(num_experts, top_k, tokens, 300)
    expected = expected_indices(num_experts, top_k, tokens)
    for name in INDICES:
        values_R = getattr(imbalance, name)(counts_RN)
        value = getattr(expected, name)
        if name == "cv":  # what is exact is the expectation of its square
            values_R, value = values_R**2, value**2
        error = values_R.std(ddof=1) / math.sqrt(len(values_R))
        assert abs(values_R.mean() - value) <= 3 * error + 1e-12, name


def test_unseen_experts_in_simulation() -> None:
    values_R = imbalance.unseen(simulate(64, 6, 20, 2000))
    error = values_R.std(ddof=1) / math.sqrt(len(values_R))
    assert abs(values_R.mean() - expected_indices(64, 6, 20).unseen) <= 3 * error


def test_published_null_of_deepseek_v2_lite() -> None:
    null = expected_indices(64, 6, 8222)
    assert null.max_vio == pytest.approx(0.0815, rel=0.01)
    assert (round(null.cv, 4), round(null.gini, 4)) == (0.0343, 0.0192)


@pytest.mark.parametrize(
    ("num_experts", "top_k", "simulated"),
    [
        (8, 2, [0.084, 0.026, 0.008]),
        (64, 8, [0.202, 0.062, 0.020]),
        (128, 8, [0.328, 0.104, 0.032]),
        (256, 8, [0.532, 0.163, 0.050]),
        (512, 10, [0.752, 0.225, 0.068]),
    ],
)
def test_max_vio_of_known_shapes(num_experts: int, top_k: int, simulated: list[float]) -> None:
    found = [expected_indices(num_experts, top_k, n).max_vio for n in (1_000, 10_000, 100_000)]
    assert found == pytest.approx(simulated, rel=0.02, abs=6e-4)


def test_moments_of_the_maximum() -> None:
    assert extreme_moments(1) == pytest.approx((0, 1), abs=1e-4)
    assert extreme_moments(2) == pytest.approx((1 / math.sqrt(math.pi), 1), abs=1e-4)


def test_few_tokens_stay_within_bounds() -> None:
    for num_experts, top_k in ((8, 2), (256, 8), (4, 4), (1, 1), (128, 1)):
        most = bounds(num_experts, top_k)
        for tokens in (1, 2, 5):
            null = expected_indices(num_experts, top_k, tokens)
            for name in set(INDICES) - {"entropy", "effective_experts"}:
                assert 0 <= getattr(null, name) <= getattr(most, name)
            assert null.entropy >= most.entropy - 1e-12
            assert null.effective_experts >= most.effective_experts - 1e-9


def test_no_tokens_give_null() -> None:
    assert all(math.isnan(value) for value in astuple(expected_indices(8, 2, 0)))
