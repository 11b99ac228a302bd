"""Closed forms of idle runs against an exact recursion, simulation and the printed table.

Shape suffixes: R repetitions, T tokens, W windows.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.statistics.idle_null import (
    expected_idle_share,
    expected_longest_run,
    expected_runs,
    expected_sliding,
    geometric_burstiness,
    longest_run_quantile,
    p_longest_at_least,
    rate_for_longest_run,
    sd_longest_run,
)

RATES = (0.0, 1e-4, 0.003, 0.01, 0.05, 0.3, 0.5, 0.9, 1.0)


def exact_p_longest(p: float, tokens: int, window: int) -> float:
    """Add tokens one by one: the first run of W can end only W tokens after a selection."""
    free = np.ones(tokens + 1)
    for t in range(window, tokens + 1):
        ends = (1 - p) ** window * (1 if t == window else p * free[t - window - 1])
        free[t] = free[t - 1] - ends
    return 1 - float(free[tokens])


def exact_moments(p: float, tokens: int) -> tuple[float, float]:
    """Mean and standard deviation of the longest idle run."""
    chance_W = np.array([exact_p_longest(p, tokens, w) for w in range(1, tokens + 1)])
    mean = chance_W.sum()
    square = (chance_W * (2 * np.arange(1, tokens + 1) - 1)).sum()
    return mean, math.sqrt(max(square - mean**2, 0))


def runs(selected_T: np.ndarray) -> list[int]:
    """Lengths of all maximal idle runs."""
    return [len(list(run)) for hit, run in itertools.groupby(selected_T.tolist()) if not hit]


@pytest.mark.parametrize("tokens", [1, 2, 5, 20, 300])
def test_chance_of_a_long_run_is_exact(tokens: int) -> None:
    for p, window in itertools.product(RATES, (1, 2, 3, 10, 50, 149, 150, 299, 300)):
        exact = exact_p_longest(p, tokens, window) if window <= tokens else 0
        slack = 1e-7 if expected_runs(p, tokens, window) < 10 else 5e-5
        assert p_longest_at_least(p, tokens, window) == pytest.approx(exact, abs=slack)


@pytest.mark.parametrize("tokens", [1, 3, 20, 400])
def test_moments_of_the_longest_run(tokens: int) -> None:
    for p in (0.0, 1e-5, 1e-3, 0.01, 0.03, 0.1, 0.25, 0.5):
        mean, sd = exact_moments(p, tokens)
        assert expected_longest_run(p, tokens) == pytest.approx(mean, abs=0.1, rel=0.002)
        if tokens * p >= 20:
            assert sd_longest_run(p, tokens) == pytest.approx(sd, rel=0.03)
        else:
            assert np.isnan(sd_longest_run(p, tokens))


@pytest.mark.parametrize(("p", "tokens", "window"), [(0.1, 200, 10), (0.02, 300, 60), (0.4, 50, 3)])
def test_expected_runs_and_their_tokens_in_simulation(p: float, tokens: int, window: int) -> None:
    selected_RT = np.random.default_rng(3).random((4000, tokens)) < p
    lengths = [[n for n in runs(row_T) if n >= window] for row_T in selected_RT]
    for expected, found in (
        (expected_runs(p, tokens, window), [len(row) for row in lengths]),
        (
            expected_sliding(p, tokens, window),
            [sum(n - window + 1 for n in row) for row in lengths],
        ),
        (expected_idle_share(p, tokens, window), [sum(row) / tokens for row in lengths]),
    ):
        error = np.std(found) / math.sqrt(len(found))
        assert abs(np.mean(found) - expected) <= 3 * error


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.floats(0, 1), st.integers(1, 13))
def test_expectations_over_all_streams(tokens: int, p: float, window: int) -> None:
    number = sliding = inside = 0.0
    for stream in itertools.product((0, 1), repeat=tokens):
        chance = p ** sum(stream) * (1 - p) ** (tokens - sum(stream))
        long = [n for n in runs(np.array(stream)) if n >= window]
        number += chance * len(long)
        sliding += chance * sum(n - window + 1 for n in long)
        inside += chance * sum(long) / tokens
    assert expected_runs(p, tokens, window) == pytest.approx(number, abs=1e-12)
    assert expected_sliding(p, tokens, window) == pytest.approx(sliding, abs=1e-12)
    assert expected_idle_share(p, tokens, window) == pytest.approx(inside, abs=1e-12)


@pytest.mark.parametrize(
    ("experts", "top_k", "layers", "mean", "q95", "loads"),
    [
        (8, 2, 32, "29 37 45", 73, "3.88 0.635 0.286 0.042"),
        (64, 8, 16, "57 74 92", 162, "7.76 1.27 0.572 0.084"),
        (64, 6, 26, "75 98 122", 222, "10.4 1.69 0.762 0.111"),
        (128, 8, 48, "108 144 180", 352, "15.5 2.54 1.14 0.167"),
        (256, 8, 58, "199 271 344", 722, "31.1 5.08 2.29 0.334"),
        (128, 4, 36, "199 271 344", 685, "31.1 5.08 2.29 0.334"),
        (384, 8, 60, "281 390 499", 1090, "46.6 7.62 3.43 0.502"),
        (512, 10, 48, "296 413 530", 1164, "49.7 8.13 3.66 0.535"),
        (128, 1, 24, "629 922 1216", 2545, "124 20.3 9.15 1.34"),
    ],
)
def test_table_of_fair_routing(
    experts: int, top_k: int, layers: int, mean: str, q95: int, loads: str
) -> None:
    p = top_k / experts
    longest = expected_longest_run(p, np.array([1e4, 1e5, 1e6]))
    assert " ".join(f"{value:.0f}" for value in longest) == mean
    assert round(float(longest_run_quantile(p, 1e6, layers * experts, 0.95))) == q95
    rate_W = rate_for_longest_run(np.array([1e3, 5e3, 1e4, 5e4]), 1e6)
    printed = [float(load) for load in loads.split()]
    assert (100 * rate_W / p).tolist() == pytest.approx(printed, rel=0.006)


def test_quantile_of_the_longest_of_many() -> None:
    p, tokens, experts = 0.05, 2000, 30
    window = longest_run_quantile(p, tokens, experts, 0.9)
    below, above = math.floor(window), math.ceil(window)
    stays = [(1 - exact_p_longest(p, tokens, w)) ** experts for w in (below, above)]
    assert stays[0] <= 0.9 + 0.002
    assert stays[1] >= 0.9 - 0.002


@settings(deadline=None, max_examples=60)
@given(st.floats(1e-6, 0.9), st.integers(10, 10**7))
def test_rate_is_the_inverse_of_the_longest_run(p: float, tokens: int) -> None:
    longest = expected_longest_run(p, tokens)
    assert expected_longest_run(rate_for_longest_run(longest, tokens), tokens) == pytest.approx(
        longest, rel=1e-6
    )


def test_burstiness_of_geometric_steps() -> None:
    steps = np.random.default_rng(5).geometric(0.2, 400_000)
    burstiness = (steps.std() - steps.mean()) / (steps.std() + steps.mean())
    assert geometric_burstiness(0.2) == pytest.approx(burstiness, abs=0.003)
    assert geometric_burstiness(1.0) == -1


def test_limits_and_undefined_rates() -> None:
    rates = np.array([0, 1, np.nan])
    assert expected_longest_run(rates, 50).tolist() == pytest.approx([50, 0, np.nan], nan_ok=True)
    assert longest_run_quantile(rates, 50, 3, 0.95)[:2].tolist() == [50, 0]
    assert p_longest_at_least(rates, 50, 50)[:2].tolist() == [1, 0]
    assert expected_runs(0.1, 50, 51) == 0
    assert np.isnan(geometric_burstiness(0.0))
    assert np.isnan(expected_idle_share(0.1, 0, 1))
    assert np.isnan(rate_for_longest_run(np.array([0.0, 50.0]), 50)).all()
