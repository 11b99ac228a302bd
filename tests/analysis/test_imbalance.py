"""Imbalance indices: known cases, their hard bounds, and published values of a real trace."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.metrics import imbalance
from moe_probe.analysis.metrics.frequency import (
    assignment_share,
    relative_load,
    selection_frequency,
)
from moe_probe.analysis.statistics.nulls import bounds
from moe_probe.analysis.tables.layers import INDICES

DATA = Path(__file__).parents[2] / "../shared/data/deepseek-v2-lite"


def index(name: str, counts: list[int] | np.ndarray) -> float:
    return float(getattr(imbalance, name)(np.asarray(counts)))


def test_even_load_is_perfect() -> None:
    values = [index(name, [5, 5, 5, 5]) for name in INDICES]
    assert values == pytest.approx([0, 0, 0, math.log(4), 4, 0, 0, 0], abs=1e-12)
    assert index("kl_uniform", [7] * 49) >= 0


def test_all_on_one_expert() -> None:
    values = [index(name, [0, 9, 0, 0]) for name in INDICES]
    expected = [3, math.sqrt(3), 0.75, 0, 1, math.log(4), 0.75, 3]
    assert values == pytest.approx(expected)


def test_uneven_load_against_definitions() -> None:
    counts = np.array([1, 2, 3, 10])
    share = counts / 16
    pairs = sum(abs(a - b) for a in counts for b in counts)
    assert index("max_vio", counts) == pytest.approx(1.5)
    assert index("cv", counts) == pytest.approx(np.std(counts) / 4)
    assert index("gini", counts) == pytest.approx(pairs / (2 * 16 * 4))
    assert index("entropy", counts) == pytest.approx(-sum(share * np.log(share)))
    assert index("effective_experts", counts) == pytest.approx(np.prod(share**-share))
    assert index("kl_uniform", counts) == pytest.approx(sum(share * np.log(4 * share)))
    assert index("total_variation", counts) == pytest.approx(6 / 16)


def test_no_tokens_give_null() -> None:
    for name in INDICES:
        assert math.isnan(index(name, [0, 0, 0]))
    assert np.isnan(relative_load(np.zeros(3, np.int64))).all()
    assert np.isnan(selection_frequency(np.zeros(3, np.int64), 0)).all()


def test_leading_axes_are_kept() -> None:
    counts_LN = np.array([[1, 2, 3, 10], [0, 0, 0, 0], [4, 4, 4, 4]])
    for name in INDICES:
        each = [index(name, row) for row in counts_LN]
        assert getattr(imbalance, name)(counts_LN) == pytest.approx(each, nan_ok=True)


@settings(deadline=None)
@given(st.integers(1, 12), st.data())
def test_hard_bounds_of_distinct_top_k(num_experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    seed, tokens = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(1, 20))
    bias_N = np.random.default_rng(seed).normal(0, data.draw(st.floats(0, 10)), num_experts)
    score = bias_N + np.random.default_rng(seed + 1).random((tokens, num_experts))
    counts_N = np.bincount(np.argsort(score, axis=1)[:, :top_k].ravel(), minlength=num_experts)
    most, slack = bounds(num_experts, top_k), 1e-9
    for name in ("entropy", "effective_experts"):
        assert index(name, counts_N) >= getattr(most, name) - slack
    for name in set(INDICES) - {"entropy", "effective_experts"}:
        assert -slack <= index(name, counts_N) <= getattr(most, name) + slack
    assert index("effective_experts", counts_N) <= num_experts + slack
    assert assignment_share(counts_N).max() <= 1 / top_k + slack
    assert assignment_share(counts_N).sum() == pytest.approx(1)
    assert selection_frequency(counts_N, tokens).sum() == pytest.approx(top_k)
    assert relative_load(counts_N).mean() == pytest.approx(1)


@pytest.mark.skipif(not DATA.is_dir(), reason="the DeepSeek-V2-Lite sample is not on this machine")
@pytest.mark.parametrize(
    ("task", "expected"),
    [("intent", ["2.81", "0.79", "0.41", "48.4"]), ("law", ["2.52", "0.61", "0.30", "54.4"])],
)
def test_layer_means_of_deepseek_v2_lite(task: str, expected: list[str]) -> None:
    ids_TLK = np.load(DATA / f"{task}.npz")["experts"]
    counts_LN = np.stack(
        [np.bincount(ids_TLK[:, layer].ravel(), minlength=64) for layer in range(26)]
    )
    names = ("max_vio", "cv", "gini", "effective_experts")
    means = [getattr(imbalance, name)(counts_LN).mean() for name in names]
    assert [f"{means[0]:.2f}", f"{means[1]:.2f}", f"{means[2]:.2f}", f"{means[3]:.1f}"] == expected
    assert imbalance.unseen(counts_LN).sum() == 0
