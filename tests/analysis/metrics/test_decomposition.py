"""Imbalance by subject, by size of batch and by truncation.

Shape suffixes: S subjects, T tokens, K slots, N experts, B batch sizes, D documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.metrics.decomposition import (
    Concentration,
    batch_imbalance,
    concentration_difference,
    decompose,
    decomposition_null,
    truncation_floor,
)
from moe_probe.analysis.metrics.imbalance import cv, gini, max_vio
from moe_probe.analysis.statistics.nulls import expected_indices
from moe_probe.analysis.statistics.set_sizes import SetSizes

DATA = Path(__file__).parents[3] / "../shared/data/deepseek-v2-lite"


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


tables = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 50), min_size=n, max_size=n), min_size=1, max_size=5)
)


@settings(deadline=None, max_examples=100)
@given(tables)
def test_within_is_pooled_and_information(table: list[list[int]]) -> None:
    found = decompose(np.array(table))
    total = sum(map(sum, table))
    if not total:
        assert all(math.isnan(value) for value in astuple(found))
        return
    assert found.within_kl == pytest.approx(found.pooled_kl + found.information, abs=1e-12)
    pooled = [sum(column) / total for column in zip(*table, strict=True)]
    uniform = [1 / len(pooled)] * len(pooled)
    within = information = 0.0
    for counts in table:
        if sum(counts):
            share = [count / sum(counts) for count in counts]
            within += sum(counts) / total * kl(share, uniform)
            information += sum(counts) / total * kl(share, pooled)
    expected = (within, kl(pooled, uniform), information)
    assert astuple(found) == pytest.approx(expected, abs=1e-12)
    assert min(astuple(found)) >= 0


def test_specialised_but_fair_and_unfair_but_not_specialised() -> None:
    specialised = decompose(np.array([[9, 0], [0, 9]]))
    assert astuple(specialised) == pytest.approx((math.log(2), 0, math.log(2)))
    unfair = decompose(np.array([[8, 2], [80, 20]]))
    assert astuple(unfair) == pytest.approx((unfair.pooled_kl, unfair.pooled_kl, 0))
    assert unfair.pooled_kl > 0.1


def route(tokens: int, num_experts: int, top_k: int, rng: np.random.Generator) -> np.ndarray:
    score_TN = rng.random((tokens, num_experts), dtype=np.float32)
    return np.argpartition(score_TN, top_k - 1, axis=1)[:, :top_k]


def test_null_of_the_terms_holds_in_simulation() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        ids_STK = route(5 * 200, 16, 3, rng).reshape(5, 200, 3)
        counts_SN = np.stack([np.bincount(ids.ravel(), minlength=16) for ids in ids_STK])
        found.append(astuple(decompose(counts_SN)))
    null = decomposition_null(5, 16, 3, 5 * 200 * 3)
    assert np.mean(found, axis=0) == pytest.approx(astuple(null), rel=0.05)
    assert null.within_kl == pytest.approx(null.pooled_kl + null.information)
    assert math.isnan(decomposition_null(5, 16, 3, 0).pooled_kl)


def batch_sums(ids_TK: np.ndarray, num_experts: int, sizes: Sequence[int]) -> np.ndarray:
    """Add up what an accumulator of tumbling batches keeps."""
    rows = []
    for size in sizes:
        row = np.zeros(5)
        for start in range(0, len(ids_TK) - size + 1, size):
            batch = ids_TK[start : start + size]
            loads = [int((batch == expert).sum()) for expert in range(num_experts)]
            ratio = max(loads) / float(np.mean(loads))
            width = float(np.std(loads) / np.mean(loads))
            row += np.array([1, ratio, ratio**2, width, sum(loads) ** -0.5])
        rows.append(row)
    return np.stack(rows)


def test_batches_against_a_loop() -> None:
    ids_TK = route(90, 6, 2, np.random.default_rng(1)) // 2 * np.array([1, 2]) % 6
    sizes = (8, 30, 80, 100)
    table = batch_imbalance(batch_sums(ids_TK, 6, sizes), sizes, 6, SetSizes(2, 2))
    assert table["tokens_per_batch"].tolist() == list(sizes)
    assert table["batches"].tolist() == [11, 3, 1, 0]
    for row, size in zip(table.to_dict("records"), sizes, strict=True):
        batches = [ids_TK[s : s + size] for s in range(0, 90 - size + 1, size)]
        counts = [np.bincount(batch.ravel(), minlength=6) for batch in batches]
        values = [float(max_vio(counts_N)) for counts_N in counts]
        mean = np.mean(values) if values else math.nan
        spread = np.std(values, ddof=1) if len(values) > 1 else math.nan
        width = np.mean([float(cv(counts_N)) for counts_N in counts]) if values else math.nan
        assert row["max_vio"] == pytest.approx(mean, nan_ok=True)
        assert row["max_vio_sd"] == pytest.approx(spread, abs=1e-6, nan_ok=True)
        assert row["cv"] == pytest.approx(width, nan_ok=True)
        null = expected_indices(6, 2, size)
        expected = (null.max_vio, null.cv)
        assert (row["max_vio_null"], row["cv_null"]) == pytest.approx(expected, rel=1e-12)


def test_null_of_batches_holds_in_simulation() -> None:
    sizes = (64, 256)
    sums_B5 = batch_sums(route(256 * 60, 16, 4, np.random.default_rng(2)), 16, sizes)
    table = batch_imbalance(sums_B5, sizes, 16, SetSizes(4, 4))
    error = 3 * table["max_vio_sd"] / np.sqrt(table["batches"])
    assert (abs(table["max_vio"] - table["max_vio_null"]) <= error).all()
    assert table["cv"].to_numpy() == pytest.approx(table["cv_null"].to_numpy(), rel=0.05)


def test_null_of_batches_knows_that_some_text_selects_fewer_experts() -> None:
    """The tokens of one half select one expert, those of the other four."""
    rng = np.random.default_rng(4)
    ids_TK = np.concatenate([route(256 * 80, 64, 4, rng), route(256 * 80, 64, 4, rng)])
    ids_TK[256 * 80 :, 1:] = 64
    sizes = SetSizes(mean_k=(4 + 1) / 2, null_k=(16 + 1) / (4 + 1))
    table = batch_imbalance(batch_sums(ids_TK, 64, [256]), [256], 64, sizes).iloc[0]
    assert table["cv"] == pytest.approx(table["cv_null"], rel=0.03)
    assert table["max_vio"] == pytest.approx(table["max_vio_null"], rel=0.05)


@pytest.mark.parametrize(
    ("num_experts", "kept", "per_token"), [(64, 8, 0.903), (64, 6, 0.925), (128, 8, 0.950)]
)
def test_cutting_alone_makes_tokens_concentrated(
    num_experts: int, kept: int, per_token: float
) -> None:
    logit_TN = np.random.default_rng(3).normal(size=(3000, num_experts))
    weight_TN = np.exp(logit_TN)
    weight_TN[logit_TN < np.sort(logit_TN, axis=1)[:, [-kept]]] = 0
    values_T = gini(weight_TN)
    floor = truncation_floor(num_experts, kept)
    assert values_T.min() >= floor - 1e-12
    assert values_T.mean() == pytest.approx(per_token, abs=0.001)
    # The load that the same weights add up to is nearly even.
    assert gini(weight_TN.sum(axis=0)) < 0.06


def test_only_values_with_the_same_floor_compare() -> None:
    cut, other = Concentration(0.92, 64, 6), Concentration(0.91, 64, 6)
    assert concentration_difference(cut, other) == pytest.approx(0.01)
    whole = Concentration(0.03, 64, 64)
    assert concentration_difference(whole, Concentration(0.05, 256, 256)) == pytest.approx(-0.02)
    message = "cut to 6 of 64 and to 64 of 64 entries do not compare.*at least 0.906 and 0.000$"
    with pytest.raises(ValueError, match=message):
        concentration_difference(cut, whole)


@pytest.mark.skipif(not DATA.is_dir(), reason="the DeepSeek-V2-Lite sample is not on this machine")
def test_two_tasks_of_deepseek_v2_lite() -> None:
    ids = [np.load(DATA / f"{task}.npz")["experts"] for task in ("intent", "law")]
    found = []
    for layer in range(26):
        counts_SN = np.stack([np.bincount(i[:, layer].ravel(), minlength=64) for i in ids])
        found.append(decompose(counts_SN))
        total = found[-1].pooled_kl + found[-1].information
        assert found[-1].within_kl == pytest.approx(total, abs=1e-12)
    null = decomposition_null(2, 64, 6, 6 * sum(map(len, ids)))
    assert min(term.information for term in found) > 50 * null.information
    assert min(term.pooled_kl for term in found) > 50 * null.pooled_kl
    sizes = (256, 1024, 4096)
    sums_B5 = batch_sums(ids[1][:, 12], 64, sizes)
    table = batch_imbalance(sums_B5, sizes, 64, SetSizes(6, 6))
    # Larger batches are more even, and none comes near chance.
    assert table["max_vio"].is_monotonic_decreasing
    assert (table["max_vio"] > 2 * table["max_vio_null"]).all()
