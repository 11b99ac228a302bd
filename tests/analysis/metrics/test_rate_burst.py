"""The band of independent tokens against simulated streams.

Shape suffixes: X selection frequencies, B simulated streams, T tokens.
"""

from __future__ import annotations

import numpy as np
import pytest

from moe_probe.analysis.metrics.idle import burstiness, rate_deficit
from moe_probe.analysis.metrics.rate_burst import independent_band, longest_run_quantile
from moe_probe.analysis.statistics.idle_null import p_longest_at_least


def longest_runs(rate: float, tokens: int, streams: int) -> np.ndarray:
    """The longest idle run of each simulated stream, by cutting it at the selections."""
    rng = np.random.default_rng(5)
    found = []
    for is_used_T in rng.random((streams, tokens)) < rate:
        cuts = np.concatenate([[-1], np.flatnonzero(is_used_T), [tokens]])
        found.append(int(np.diff(cuts).max()) - 1)
    return np.array(found)


@pytest.mark.parametrize("rate", [0.002, 0.02, 0.3])
def test_quantiles_are_those_of_simulated_streams(rate: float) -> None:
    tokens = 2000
    runs_B = longest_runs(rate, tokens, 4000)
    for level in (0.025, 0.5, 0.975):
        (found,) = longest_run_quantile(np.array([rate]), tokens, level).tolist()
        # The smallest run at or below which so many lie.
        assert (runs_B <= found).mean() > level - 0.012
        assert (runs_B < found).mean() < level + 0.012


def test_quantiles_invert_the_distribution() -> None:
    rates_X, tokens = np.array([1e-4, 0.01, 0.5, 0.95]), 500
    for level in (0.025, 0.975):
        run_X = longest_run_quantile(rates_X, tokens, level)
        assert (1 - p_longest_at_least(rates_X, tokens, run_X + 1) >= level).all()
        below_X = 1 - p_longest_at_least(rates_X, tokens, np.maximum(run_X, 1))
        assert ((below_X < level) | (run_X == 0)).all()


def test_band_is_in_the_units_of_the_table() -> None:
    tokens, counts_N = 4000, np.array([40, 400, 1200])
    frequency_X, fair = counts_N / tokens, counts_N.sum() / tokens / 3
    deficit_X, low_X, high_X = independent_band(frequency_X, fair, tokens)
    np.testing.assert_allclose(deficit_X, rate_deficit(counts_N, tokens))
    for end_X, level in ((low_X, 0.025), (high_X, 0.975)):
        longest_X = longest_run_quantile(frequency_X, tokens, level)
        np.testing.assert_allclose(end_X, burstiness(longest_X, counts_N, tokens))
    assert (low_X < 0).all()
    assert (high_X > 0).all()
