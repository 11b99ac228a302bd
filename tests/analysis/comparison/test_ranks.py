"""Rank agreement against scipy, idle sets against all ways to draw them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from moe_probe.analysis.comparison import ranks
from moe_probe.analysis.comparison.ranks import idle_overlap_p, kendall, resampled_spearman

COUNTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=12)


@given(COUNTS)
def test_kendall(pairs: list[tuple[int, int]]) -> None:
    first_N, second_N = np.array(pairs).T
    found = kendall(first_N, second_N)
    if len({*first_N}) < 2 or len({*second_N}) < 2:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(float(kendalltau(first_N, second_N).statistic))


def test_kendall_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    first_N, second_N = np.random.default_rng(0).integers(0, 20, (2, 50))
    whole = kendall(first_N, second_N)
    monkeypatch.setattr(ranks, "_CELLS", 150)
    assert kendall(first_N, second_N) == pytest.approx(whole)


def test_resampled_spearman() -> None:
    replicates_BN = np.random.default_rng(1).integers(0, 30, (6, 9))
    replicates_BN[3] = 4  # no order: left out
    pairs = [(0, 1), (1, 2), (4, 5)]
    values = [spearmanr(replicates_BN[a], replicates_BN[b]).statistic for a, b in pairs]
    assert resampled_spearman(replicates_BN) == pytest.approx(float(np.mean(values)))
    assert np.isnan(resampled_spearman(replicates_BN[:1]))


@pytest.mark.parametrize("sizes", [(3, 2, 1), (3, 4, 2), (5, 6, 4), (3, 2, 0)])
def test_idle_sets(sizes: tuple[int, int, int]) -> None:
    first, second, both = sizes
    sets = list(combinations(range(8), second))
    hits = sum(len({*chosen} & {*range(first)}) >= both for chosen in sets)
    found = idle_overlap_p(first - both, second - both, both, 8)
    assert found == pytest.approx(hits / len(sets))


def test_no_idle_experts_are_no_test() -> None:
    assert np.isnan(idle_overlap_p(3, 0, 0, 8))
    assert np.isnan(idle_overlap_p(0, 3, 0, 8))
