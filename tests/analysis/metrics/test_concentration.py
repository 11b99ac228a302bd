"""Shares of the busiest and the least used experts: definitions, bounds and their null.

Shape suffixes: R repetitions, T tokens, K slots, N experts, L layers.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.metrics import imbalance
from moe_probe.analysis.metrics.concentration import (
    bottom_share,
    expected_loads,
    tail_ratio,
    top_share,
)
from moe_probe.analysis.metrics.imbalance import (
    cv,
    effective_experts,
    gini,
    inverse_simpson,
    jain,
    max_vio,
    min_vio,
)
from moe_probe.analysis.metrics.ranking import experts_to_cover
from moe_probe.analysis.statistics.nulls import bounds, expected_indices

DATA = Path(__file__).parents[3] / "../shared/data/deepseek-v2-lite"


def draw(num_experts: int, top_k: int, tokens: int, seed: int, bias: float = 0.0) -> np.ndarray:
    """Return ids [T, K] of distinct experts, uneven if the bias is not 0."""
    rng = np.random.default_rng(seed)
    score_TN = rng.random((tokens, num_experts)) + rng.normal(0, 1, num_experts) * bias
    return np.argsort(score_TN, axis=1)[:, :top_k]


def count(ids_TK: np.ndarray, num_experts: int) -> np.ndarray:
    return np.bincount(ids_TK.ravel(), minlength=num_experts)


def quantile(values: list[float], at: float) -> float:
    """Interpolate linearly between order statistics."""
    place = at * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


@pytest.mark.parametrize("seed", range(5))
def test_against_definitions(seed: int) -> None:
    counts_N = count(draw(30, 4, 60, seed, bias=0.3), 30)
    shares = sorted(c / 240 for c in counts_N.tolist())
    assert min_vio(counts_N) == pytest.approx(1 - 30 * shares[0])
    assert inverse_simpson(counts_N) == pytest.approx(1 / sum(q * q for q in shares))
    assert jain(counts_N) == pytest.approx(240**2 / (30 * sum(int(c) ** 2 for c in counts_N)))
    assert top_share(counts_N, 0.01) == pytest.approx(shares[-1])
    assert top_share(counts_N, 0.1) == pytest.approx(sum(shares[-3:]))
    assert bottom_share(counts_N, 0.34) == pytest.approx(sum(shares[:11]))
    low = quantile(shares, 0.05)
    expected = quantile(shares, 0.95) / low if low else math.nan
    assert tail_ratio(counts_N) == pytest.approx(expected, nan_ok=True)


def test_idle_tail_has_no_ratio() -> None:
    assert math.isnan(tail_ratio(np.array([0, 0, 5, 5])))
    assert tail_ratio(np.array([4, 4, 4])) == 1
    assert min_vio(np.array([0, 3])) == 1


def test_no_tokens_give_null() -> None:
    none_N = np.zeros(4, np.int64)
    for value in (
        *(index(none_N) for index in (min_vio, inverse_simpson, jain, tail_ratio)),
        top_share(none_N, 0.5),
        bottom_share(none_N, 0.5),
    ):
        assert math.isnan(value)
    assert all(math.isnan(getattr(imbalance, name)(none_N)) for name in asdict(bounds(4, 2)))
    assert np.isnan(expected_loads(4, 2, 0)).all()


def test_leading_axes_are_kept() -> None:
    counts_LN = np.array([[1, 2, 3, 10], [0, 0, 0, 0], [4, 4, 4, 4]])
    for index in (min_vio, inverse_simpson, jain, tail_ratio, lambda c: top_share(c, 0.3)):
        each = [float(index(counts_N)) for counts_N in counts_LN]
        assert index(counts_LN) == pytest.approx(each, nan_ok=True)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.data())
def test_hard_bounds_of_distinct_top_k(num_experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    ids_TK = draw(
        num_experts,
        top_k,
        data.draw(st.integers(1, 20)),
        data.draw(st.integers(0, 2**32 - 1)),
        data.draw(st.floats(0, 10)),
    )
    counts_N = count(ids_TK, num_experts)
    fraction = data.draw(st.floats(0.01, 1))
    number, slack = max(1, math.ceil(fraction * num_experts - 1e-9)), 1e-9
    assert 0 <= min_vio(counts_N) <= 1
    assert top_k - slack <= inverse_simpson(counts_N) <= effective_experts(counts_N) + slack
    assert top_k / num_experts - slack <= jain(counts_N) <= 1 + slack
    assert jain(counts_N) == pytest.approx(1 / (1 + float(cv(counts_N)) ** 2))
    top, bottom = float(top_share(counts_N, fraction)), float(bottom_share(counts_N, fraction))
    assert number / num_experts - slack <= top <= min(1, number / top_k) + slack
    assert -slack <= bottom <= number / num_experts + slack
    for name, most in asdict(bounds(num_experts, 1)).items():
        first = float(getattr(imbalance, name)(count(ids_TK[:, 0], num_experts)))
        falls = name in ("entropy", "effective_experts")
        assert most <= first + slack if falls else first <= most + slack


@pytest.mark.parametrize(
    ("num_experts", "top_k", "tokens"), [(64, 6, 600), (256, 8, 1600), (128, 1, 6400)]
)
def test_loads_by_chance_hold_in_simulation(num_experts: int, top_k: int, tokens: int) -> None:
    rng = np.random.default_rng(3)
    counts_RN = np.stack(
        [
            count(
                np.argpartition(
                    rng.random((tokens, num_experts), dtype=np.float32), top_k - 1, axis=1
                )[:, :top_k],
                num_experts,
            )
            for _ in range(100)
        ]
    )
    load_N = expected_loads(num_experts, top_k, tokens)
    for index in (
        max_vio,
        min_vio,
        tail_ratio,
        gini,
        lambda c: top_share(c, 0.1),
        lambda c: bottom_share(c, 0.1),
        lambda c: experts_to_cover(c, [0.5])[..., 0],
    ):
        values_R = index(counts_RN)
        error = values_R.std(ddof=1) / math.sqrt(len(values_R))
        # What is rounded to whole experts may be off by one of them.
        slack = 1 if values_R.mean() > 5 else 0.02 * abs(values_R.mean())
        assert abs(values_R.mean() - index(load_N)) <= 3 * error + slack


@pytest.mark.parametrize("shape", [(8, 2), (16, 1), (64, 6), (256, 8), (128, 1)])
@pytest.mark.parametrize("each", [1, 3, 9, 19])
def test_loads_of_few_tokens_hold_in_simulation(shape: tuple[int, int], each: int) -> None:
    """An expert is expected `each` times."""
    num_experts, top_k = shape
    tokens = each * num_experts // top_k
    rng = np.random.default_rng(4)
    counts_RN = np.zeros((300, num_experts), np.int64)
    for counts_N in counts_RN:
        score_TN = rng.random((tokens, num_experts), dtype=np.float32)
        ids_TK = np.argpartition(score_TN, top_k - 1, axis=1)[:, :top_k]
        counts_N[:] = count(ids_TK, num_experts)
    load_N = expected_loads(num_experts, top_k, tokens)
    for index in (
        max_vio,
        min_vio,
        lambda c: top_share(c, 0.1),
        lambda c: 1 - bottom_share(c, 0.1),
    ):
        values_R = index(counts_RN)
        error = values_R.std(ddof=1) / math.sqrt(len(values_R))
        assert abs(values_R.mean() - index(load_N)) <= 3 * error + 0.02 * values_R.mean()


def test_loads_of_few_tokens_are_order_statistics() -> None:
    """Of three binomial counts of four tokens, all outcomes, and as far apart as T k allows."""
    chance = [math.comb(4, c) * (2 / 3) ** c * (1 / 3) ** (4 - c) for c in range(5)]
    mean_N = sum(
        np.sort(counts) * math.prod(chance[c] for c in counts)
        for counts in product(range(5), repeat=3)
    )
    wanted_N = 1 + math.sqrt(3 / 2) * (mean_N / (8 / 3) - 1)
    np.testing.assert_allclose(expected_loads(3, 2, 4), wanted_N, rtol=1e-9)


@pytest.mark.parametrize(
    ("num_experts", "top_k", "tokens", "smallest"),
    [
        (8, 2, 1_000, 0.918),
        (64, 8, 1_000, 0.808),
        (64, 8, 10_000, 0.939),
        (128, 8, 10_000, 0.901),
        (256, 8, 1_000, 0.540),
        (256, 8, 100_000, 0.950),
    ],
)
def test_smallest_loads_of_known_shapes(
    num_experts: int, top_k: int, tokens: int, smallest: float
) -> None:
    assert expected_loads(num_experts, top_k, tokens)[0] == pytest.approx(smallest, abs=0.003)


def test_loads_by_chance_stay_loads() -> None:
    for num_experts, top_k in ((1, 1), (4, 4), (128, 1), (256, 8)):
        for tokens in (1, 7, 1_000_000):
            load_N = expected_loads(num_experts, top_k, tokens)
            assert load_N.mean() == pytest.approx(1)
            assert load_N.min() >= 0


@pytest.mark.skipif(not DATA.is_dir(), reason="the DeepSeek-V2-Lite sample is not on this machine")
@pytest.mark.parametrize("task", ["intent", "law"])
def test_first_choices_of_deepseek_v2_lite_are_less_even(task: str) -> None:
    with np.load(DATA / f"{task}.npz") as arrays:
        ids_TLK, weights_TLK = arrays["experts"], arrays["weights"]
    # Slots of the sample have no order of their own.
    ids_TLK = np.take_along_axis(ids_TLK, np.argsort(-weights_TLK, axis=2), axis=2)
    null = expected_indices(64, 1, len(ids_TLK))
    for layer in range(26):
        first_N = count(ids_TLK[:, layer, 0], 64)
        assert cv(first_N) > cv(count(ids_TLK[:, layer], 64)) > null.cv
