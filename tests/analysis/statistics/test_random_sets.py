"""Sets of experts by chance, against all sets of small layers and against simulation.

Shape suffixes: T tokens, K slots, N experts, R repetitions.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.metrics.information import information_null
from moe_probe.analysis.metrics.locality import overlap_null_own
from moe_probe.analysis.statistics import random_sets

SHAPES = [(8, 2), (64, 6), (64, 8), (256, 8), (128, 1)]
SMALL = st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


def all_sets(num_experts: int, top_k: int) -> list[set[int]]:
    return [set(chosen) for chosen in itertools.combinations(range(num_experts), top_k)]


def draw(num_experts: int, top_k: int, tokens: int, seed: int) -> np.ndarray:
    """Return fair random sets as a mask, bool [T, N]."""
    score_TN = np.random.default_rng(seed).random((tokens, num_experts))
    return np.argsort(np.argsort(score_TN, axis=1), axis=1) < top_k


@settings(deadline=None, max_examples=40)
@given(SMALL)
def test_two_fair_sets_over_all_pairs(shape: tuple[int, int]) -> None:
    num_experts, top_k = shape
    sets = all_sets(num_experts, top_k)
    shared = [len(a & b) for a in sets for b in sets]
    assert random_sets.any_shared(*shape) == pytest.approx(np.mean(np.array(shared) > 0))
    fair_N = np.full(num_experts, top_k / num_experts)
    assert random_sets.own_rate_any(fair_N, top_k) == pytest.approx(np.mean(np.array(shared) > 0))
    if top_k > 1:
        both = [({0, 1} <= s) / (top_k / num_experts) for s in sets]
        assert random_sets.coactivation(*shape) == pytest.approx(np.mean(both))


@settings(deadline=None, max_examples=40)
@given(SMALL, st.integers(0, 10**6))
def test_two_sets_of_own_rates_over_all_pairs(shape: tuple[int, int], seed: int) -> None:
    num_experts, top_k = shape
    weight_N = np.random.default_rng(seed).uniform(0.1, 3, num_experts)
    sets = all_sets(num_experts, top_k)
    chance = np.array([np.prod(weight_N[list(s)]) for s in sets])
    chance /= chance.sum()
    frequency_N = np.array([chance[[e in s for s in sets]].sum() for e in range(num_experts)])
    pairs = [
        (float(p * q), len(a & b))
        for a, p in zip(sets, chance, strict=True)
        for b, q in zip(sets, chance, strict=True)
    ]
    any_shared = sum(p for p, n in pairs if n)
    assert random_sets.own_rate_any(frequency_N, top_k) == pytest.approx(any_shared, abs=1e-6)


def test_own_rates_at_their_limits() -> None:
    top_one_N = np.array([0.9, 0.05, 0.05, 0.0])
    assert random_sets.own_rate_any(top_one_N, 1) == pytest.approx((top_one_N**2).sum())
    always = np.array([[1.0, 0.5, 0.5, 0.0], [0.0, 0.0, 1.0, 1.0]])
    assert random_sets.own_rate_any(always, 2) == pytest.approx(1, abs=1e-3)
    layers = np.array([[np.nan] * 4, [0.5] * 4, [0.8, 0.6, 0.4, 0.2]])
    found = random_sets.own_rate_any(layers, 2)
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(random_sets.any_shared(4, 2))
    assert found[2] == pytest.approx(float(random_sets.own_rate_any(layers[2], 2)), abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "percent"),
    [((8, 2), 46.4), ((64, 6), 46.0), ((64, 8), 67.9), ((128, 8), 41.2), ((256, 8), 22.7)],
)
def test_published_chance_of_a_shared_expert(shape: tuple[int, int], percent: float) -> None:
    assert round(100 * random_sets.any_shared(*shape), 1) == percent


@pytest.mark.parametrize("shape", SHAPES)
def test_pairs_of_tokens_in_simulation(shape: tuple[int, int]) -> None:
    is_chosen_TN = draw(*shape, 12_000, 1)
    shared = (is_chosen_TN[::2] & is_chosen_TN[1::2]).sum(axis=1)
    fair_N = np.full(shape[0], shape[1] / shape[0])
    for values, expected in (
        (shared / shape[1], float(overlap_null_own(fair_N, np.array(1.0)))),
        (shared > 0, random_sets.any_shared(*shape)),
    ):
        assert abs(values.mean() - expected) <= 3 * values.std() / len(values) ** 0.5


@pytest.mark.parametrize(("num_experts", "top_k"), SHAPES)
def test_devices_and_windows_in_simulation(num_experts: int, top_k: int) -> None:
    is_chosen_TN = draw(num_experts, top_k, 8_000, 2)
    on_device = is_chosen_TN.reshape(8_000, 4, -1).any(axis=2).sum(axis=1)
    error = on_device.std() / 8_000**0.5
    expected = random_sets.devices_hit(num_experts, top_k, 4)
    assert abs(on_device.mean() - expected) <= 3 * error + 1e-12
    for window in (1, 4, 16):
        seen = is_chosen_TN.reshape(-1, window, num_experts).any(axis=1).sum(axis=1)
        error = seen.std() / len(seen) ** 0.5
        expected = float(random_sets.experts_seen(num_experts, top_k, window))
        assert abs(seen.mean() - expected) <= 3 * error + 1e-9


def test_known_spread_over_devices() -> None:
    assert round(random_sets.devices_hit(256, 8, 8), 2) == 5.29
    assert random_sets.devices_hit(16, 16, 4) == 4


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([(4, 1), (6, 2), (6, 4)]), st.integers(0, 10**6))
def test_devices_of_own_rates_over_all_sets(shape: tuple[int, int], seed: int) -> None:
    num_experts, top_k = shape
    weight_N = np.random.default_rng(seed).uniform(0.1, 3, num_experts)
    sets = all_sets(num_experts, top_k)
    chance = np.array([np.prod(weight_N[list(s)]) for s in sets])
    chance /= chance.sum()
    frequency_N = np.array([chance[[e in s for s in sets]].sum() for e in range(num_experts)])
    expected = sum(
        p * len({2 * e // num_experts for e in s}) for p, s in zip(chance, sets, strict=True)
    )
    layers = np.stack([frequency_N, np.full(num_experts, top_k / num_experts)])
    found_LX = random_sets.own_rate_devices_hit(layers, top_k, (1, 2))
    assert found_LX[0].tolist() == pytest.approx([1, expected], abs=1e-6)
    assert found_LX[1, 1] == pytest.approx(random_sets.devices_hit(num_experts, top_k, 2))


def test_coverage_by_own_rates() -> None:
    frequency_N, tokens_X = np.array([0.5, 0.25, 0.0]), np.array([0, 1, 2])
    seen_X = random_sets.own_rate_seen(frequency_N, tokens_X)
    assert seen_X.tolist() == pytest.approx([0, 0.75, 0.75 + 0.4375])
    layers = np.stack([frequency_N, np.full(3, 1 / 3)])
    assert random_sets.own_rate_seen(layers, tokens_X)[0].tolist() == seen_X.tolist()
    fair_N, tokens_X = np.full(64, 6 / 64), np.array([1, 10, 100])
    expected_X = random_sets.experts_seen(64, 6, tokens_X)
    assert random_sets.own_rate_seen(fair_N, tokens_X) == pytest.approx(expected_X)


def entropy_bits(counts_RN: np.ndarray) -> np.ndarray:
    share_RN = counts_RN / counts_RN.sum(axis=-1, keepdims=True)
    logs = np.log2(share_RN, out=np.zeros_like(share_RN), where=share_RN > 0)
    return np.asarray(-(share_RN * logs).sum(axis=-1))


@pytest.mark.parametrize(("num_experts", "top_k", "tokens"), [(8, 2, 200), (64, 6, 600)])
def test_biases_of_information_in_simulation(num_experts: int, top_k: int, tokens: int) -> None:
    strata, repetitions = 3, 200
    is_chosen_TN = draw(num_experts, top_k, repetitions * strata * tokens, 3)
    counts_RSN = is_chosen_TN.reshape(repetitions, strata, tokens, num_experts).sum(axis=2)
    information_R = entropy_bits(counts_RSN.sum(axis=1)) - entropy_bits(counts_RSN).mean(axis=1)
    pair_R = counts_RSN[:, :2]
    divergence_R = entropy_bits(pair_R.sum(axis=1)) - entropy_bits(pair_R).mean(axis=1)
    assignments = tokens * top_k
    for values_R, bias in (
        (information_R, information_null(np.full(3, assignments), num_experts, top_k)),
        (divergence_R, random_sets.divergence_bias(num_experts, top_k, assignments, assignments)),
    ):
        error = values_R.std() / math.sqrt(repetitions)
        # First order: what is left out is of the order of N / A, relative.
        assert abs(values_R.mean() - bias) <= 3 * error + bias * num_experts / assignments


def test_undefined_co_occurrence() -> None:
    assert math.isnan(random_sets.coactivation(8, 1))
