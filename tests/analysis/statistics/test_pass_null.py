"""Idle runs in passes of unequal size: every pattern of use, simulation, and passes of one token.

Shape suffixes: S passes, N rates, R simulated streams.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from moe_probe.analysis.statistics import idle_null, pass_null
from moe_probe.analysis.statistics.pass_null import PassNull

STREAMS = [
    [[1, 1, 3, 2, 1, 5, 1, 1]],
    [[2], [1, 1, 4, 1, 1, 1]],
    [[3]],
    [[1] * 9],
    [[40, 1, 1, 40]],
]
RATES = (0.004, 0.05, 0.3, 0.9)


def null_of(streams: Sequence[Sequence[int]]) -> PassNull:
    return PassNull([np.array(tokens) for tokens in streams])


def runs_of(used: Sequence[int]) -> list[int]:
    runs = [0]
    for hit in used:
        if hit:
            runs.append(0)
        else:
            runs[-1] += 1
    return runs


def enumerate_uses(streams: list[list[int]], rate: float, window: int) -> dict[str, float]:
    """Expectations over every pattern of used and idle passes."""
    flat = [tokens for stream in streams for tokens in stream]
    bounds = np.cumsum([0, *map(len, streams)]).tolist()
    names = ("runs", "sliding", "share", "chance", "longest")
    found = dict.fromkeys(names, 0.0)
    for used in itertools.product((0, 1), repeat=len(flat)):
        idle = [(1 - rate) ** tokens for tokens in flat]
        weight = np.prod([1 - q if hit else q for hit, q in zip(used, idle, strict=True)])
        runs = [run for a, b in itertools.pairwise(bounds) for run in runs_of(used[a:b])]
        long = [run for run in runs if run >= window]
        sliding = sum(run - window + 1 for run in long)
        values = (len(long), sliding, sum(long) / len(flat), bool(long), max(runs))
        for name, value in zip(names, values, strict=True):
            found[name] += float(weight) * value
    return found


@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("window", [1, 2, 4])
def test_every_pattern_of_use(streams: list[list[int]], window: int) -> None:
    null, rates_N = null_of(streams), np.array(RATES)
    expected = [enumerate_uses(streams, rate, window) for rate in RATES]
    for name, method in (
        ("runs", null.expected_runs),
        ("sliding", null.expected_sliding),
        ("share", null.expected_idle_share),
        ("chance", null.p_longest_at_least),
    ):
        found = method(rates_N, window)
        assert found == pytest.approx([one[name] for one in expected], rel=1e-9, abs=5e-7), name
    longest = [one["longest"] for one in expected]
    assert null.expected_longest(rates_N) == pytest.approx(longest, rel=0.01, abs=0.001)


def test_tokens_of_a_window() -> None:
    null = null_of([[1, 2, 3, 4], [10, 20]])
    assert null.window_tokens(2) == pytest.approx((3 + 5 + 7 + 30) / 4)
    assert null.window_tokens(4) == 10
    assert np.isnan(null.window_tokens(5))
    assert (null.passes, null.longest_stream, null.streams) == (6, 4, 2)


def test_passes_of_one_token_are_tokens() -> None:
    null, rates_N = null_of([[1] * 1500]), np.array([0.0005, 0.01, 0.2])
    for window in (3, 40, 900):
        args = (rates_N, 1500, window)
        assert null.expected_runs(rates_N, window) == pytest.approx(idle_null.expected_runs(*args))
        chance = idle_null.p_longest_at_least(*args)
        assert null.p_longest_at_least(rates_N, window) == pytest.approx(chance, abs=1e-4)
    longest = idle_null.expected_longest_run(rates_N, 1500)
    assert null.expected_longest(rates_N) == pytest.approx(longest, rel=0.01, abs=0.001)


def test_simulated_ragged_passes() -> None:
    """Long prefills between stretches of decoding, on two ranks."""
    rng = np.random.default_rng(0)
    streams = [
        np.where(rng.random(size) < 0.1, rng.integers(50, 200, size), rng.integers(1, 8, size))
        for size in (300, 500)
    ]
    null, rates = PassNull(streams), (0.002, 0.03, 0.2)
    longest_RN, windows_RN = np.zeros((400, 3)), np.zeros((400, 3))
    for r, n in np.ndindex(400, 3):
        used = [rng.random(len(m)) >= (1 - rates[n]) ** m for m in streams]
        runs = [run for one in used for run in runs_of(one.tolist())]
        longest_RN[r, n], windows_RN[r, n] = max(runs), sum(run >= 12 for run in runs)
    for n, rate in enumerate(rates):
        rate_N = np.array([rate])
        for found, drawn_R in (
            (null.expected_longest(rate_N)[0], longest_RN[:, n]),
            (null.expected_runs(rate_N, 12)[0], windows_RN[:, n]),
            (null.p_longest_at_least(rate_N, 12)[0], windows_RN[:, n] > 0),
        ):
            noise = 4 * drawn_R.std() / 20
            assert found == pytest.approx(drawn_R.mean(), abs=noise + 0.01 * drawn_R.mean() + 0.002)


def test_beyond_the_exact_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chances of many passes are of runs that come one by one, as the exact ones nearly do."""
    tokens_S = np.random.default_rng(1).integers(1, 30, pass_null._EXACT)
    rates_N = np.geomspace(0.001, 0.5, 12)
    exact, large = PassNull([tokens_S]), PassNull([tokens_S])
    for window in (2, 8, 30, 120):
        monkeypatch.undo()
        expected_N = exact.p_longest_at_least(rates_N, window)
        monkeypatch.setattr(pass_null, "_EXACT", 0)
        assert large.p_longest_at_least(rates_N, window) == pytest.approx(expected_N, abs=0.03)
    longest = large.expected_longest(rates_N)
    monkeypatch.undo()
    assert longest == pytest.approx(exact.expected_longest(rates_N), rel=0.02)


def test_ends_of_the_rates() -> None:
    null, ends_N = null_of([[1, 5, 2], [1, 1]]), np.array([0.0, 1.0, np.nan])
    assert null.expected_longest(ends_N).tolist()[:2] == [3, 0]
    assert np.isnan(null.expected_longest(ends_N)[2])
    assert null.expected_runs(ends_N, 2).tolist()[:2] == [2, 0]
    assert null.p_longest(ends_N, np.array([3, 1, 1])).tolist()[:2] == [1, 0]
    assert np.isnan(null.p_longest(ends_N, np.array([3, 1, 1]))[2])
    nothing = PassNull([])
    assert nothing.expected_runs(ends_N, 1).tolist() == [0, 0, 0]
    assert nothing.expected_longest(ends_N).tolist()[:2] == [0, 0]


def test_chance_of_a_run_of_no_pass_is_1() -> None:
    null = null_of([[4, 4, 4]])
    found = null.p_longest(np.array([0.3, 0.3]), np.array([0, 1]))
    assert found == pytest.approx([1, 1 - (1 - 0.7**4) ** 3])
