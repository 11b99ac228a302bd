"""Noise of an index over documents, and what is left above chance.

Shape suffixes: L layers, B replicates, C clusters (documents), N experts, D documents.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from moe_probe.analysis.accumulators.documents import cluster_moments
from moe_probe.analysis.metrics.concentration import tail_ratio
from moe_probe.analysis.metrics.imbalance import (
    cv,
    effective_experts,
    gini,
    kl_uniform,
    max_vio,
)
from moe_probe.analysis.metrics.noise import (
    between_expert_variance,
    effective_null,
    index_noise,
)
from moe_probe.analysis.statistics.clusters import cluster_variance
from moe_probe.analysis.statistics.nulls import expected_indices

DATA = Path(__file__).parents[3] / "../shared/data/deepseek-v2-lite"


def test_noise_against_a_loop() -> None:
    replicates_BN = np.random.default_rng(0).integers(0, 9, (20, 5)).astype(np.float64)
    for index in (max_vio, cv, gini, effective_experts, kl_uniform):
        values = [float(index(row)) for row in replicates_BN]
        assert index_noise(replicates_BN, index) == pytest.approx(np.std(values, ddof=1))
    both_LBN = np.stack([replicates_BN, replicates_BN[::-1] * 2 + 1])
    each = [float(index_noise(replicates_BN, gini)) for replicates_BN in both_LBN]
    assert index_noise(both_LBN, gini) == pytest.approx(each)


def test_undefined_replicates_are_left_out() -> None:
    counted_BN = np.array([[1.0, 2, 3], [2, 2, 4], [0, 5, 5]])
    with_empty_BN = np.concatenate([counted_BN, np.zeros((2, 3))])
    assert index_noise(with_empty_BN, cv) == index_noise(counted_BN, cv) > 0
    # The ratio of the third is not defined: its 5th percentile is above 0, that of zeros is not.
    idle_BN = np.concatenate([counted_BN, np.array([[0.0, 0, 5]])])
    assert index_noise(idle_BN, tail_ratio) == index_noise(counted_BN, tail_ratio)
    assert math.isnan(index_noise(with_empty_BN[2:], cv))
    assert math.isnan(index_noise(with_empty_BN[3:], cv))


def test_noise_is_the_spread_over_fresh_documents() -> None:
    rng = np.random.default_rng(1)

    def documents() -> np.ndarray:
        share_CN = rng.dirichlet(np.linspace(1, 9, 10), 400)
        return np.stack([rng.multinomial(50, share_N) for share_N in share_CN])

    truth = np.std([float(cv(documents().sum(axis=0))) for _ in range(150)], ddof=1)
    found = []
    for _ in range(10):
        counts_CN = documents()
        found.append(float(index_noise(rng.poisson(1, (200, 400)) @ counts_CN, cv)))
    assert np.mean(found) == pytest.approx(truth, rel=0.2)


def test_null_at_effective_tokens() -> None:
    assert effective_null(64, 6, 8222, 1.0) == expected_indices(64, 6, 8222)
    assert effective_null(64, 6, 8000, 4.0) == expected_indices(64, 6, 2000)
    assert effective_null(64, 6, 8000, 4.0).cv == pytest.approx(
        2 * expected_indices(64, 6, 8000).cv
    )
    assert effective_null(64, 6, 3, 100.0) == expected_indices(64, 6, 1)
    for null in (effective_null(64, 6, 0, 2.0), effective_null(64, 6, 9, math.nan)):
        assert all(math.isnan(value) for value in asdict(null).values())


def test_variance_is_unbiased_for_uneven_experts() -> None:
    rng = np.random.default_rng(2)
    share_N = rng.dirichlet(np.full(12, 6.0))
    true = 144 * float(np.var(share_N))
    variance_N = share_N * (1 - share_N) / 80
    counts_RN = rng.multinomial(80, share_N, 6000)
    found = np.array([between_expert_variance(c, variance_N, 80)[0] for c in counts_RN])
    error = found.std(ddof=1) / math.sqrt(len(found))
    assert abs(found.mean() - true) <= 3 * error


def test_variance_is_unbiased_for_documents_that_are_alike_inside() -> None:
    """Its sd under even loads is what it says."""
    rng, found, spread = np.random.default_rng(5), [], []
    for _ in range(600):
        share_CN = rng.dirichlet(np.full(16, 2.0), 120)
        counts_CN = rng.multinomial(np.full(120, 30), share_CN)
        moments = cluster_moments(counts_CN, np.full(120, 30), np.zeros(120, np.int64), 1)
        counts_N = counts_CN.sum(axis=0)
        value, noise = between_expert_variance(counts_N, cluster_variance(moments)[0], 3600)
        found.append(value)
        spread.append(noise * math.sqrt(2 / 15))
        # Tokens of one document agree beyond chance with 1 / 33.
        assert noise == pytest.approx((1 + 29 / 33) * 15 / 3600, rel=0.3)
    assert abs(np.mean(found)) <= 3 * np.std(found) / math.sqrt(600)
    assert np.std(found) == pytest.approx(np.mean(spread), rel=0.1)


@pytest.mark.parametrize("deff", [1, 5])
def test_variance_of_even_experts_is_none(deff: int) -> None:
    rng = np.random.default_rng(3)
    found = []
    for _ in range(800):
        # Each token `deff` times over: that many times the variance.
        ids_TK = np.argsort(rng.random((60, 10), dtype=np.float32), axis=1)[:, :3]
        counts_N = deff * np.bincount(ids_TK.ravel(), minlength=10)
        variance_N = np.full(10, deff * 0.3 * 0.7 / (60 * deff))
        found.append(between_expert_variance(counts_N, variance_N, 60 * deff)[0])
    assert min(found) < 0 < max(found)
    assert abs(np.mean(found)) <= 3 * np.std(found, ddof=1) / math.sqrt(len(found))


def test_variance_without_tokens_is_null() -> None:
    nothing = between_expert_variance(np.zeros(4, np.int64), np.full(4, np.nan), 0)
    assert all(math.isnan(value) for value in nothing)
    # k = 1: of 4 independent tokens, fair shares vary by 1/16 each.
    for counts, value in (([3, 1], 0.0), ([2, 2], -0.25)):
        found = between_expert_variance(np.array(counts), np.full(2, 1 / 16), 4)
        assert found == (value, 0.25)


@pytest.mark.skipif(not DATA.is_dir(), reason="the DeepSeek-V2-Lite sample is not on this machine")
@pytest.mark.parametrize(("task", "documents"), [("intent", 127), ("law", 33)])
def test_deepseek_v2_lite_is_far_above_chance(task: str, documents: int) -> None:
    with np.load(DATA / f"{task}.npz") as arrays:
        ids_TK, lengths_D = arrays["experts"][:, 12], arrays["document_lengths"]
    assert len(lengths_D) == documents
    starts = np.cumsum(lengths_D)[:-1]
    counts_CN = np.stack([np.bincount(d.ravel(), minlength=64) for d in np.split(ids_TK, starts)])
    counts_N = counts_CN.sum(axis=0)
    weight_BC = np.random.default_rng(4).poisson(1, (100, documents))
    null = effective_null(64, 6, len(ids_TK), 4.0)
    for name, index in (("max_vio", max_vio), ("cv", cv), ("gini", gini)):
        noise = float(index_noise(weight_BC @ counts_CN, index))
        assert 0 < noise < (float(index(counts_N)) - getattr(null, name)) / 3
    group_D = np.zeros(documents, np.int64)
    variance_N = cluster_variance(cluster_moments(counts_CN, lengths_D, group_D, 1))[0]
    found, noise = between_expert_variance(counts_N, variance_N, len(ids_TK))
    assert found > 0.8 * cv(counts_N) ** 2
    assert found > 10 * noise * math.sqrt(2 / 63)
