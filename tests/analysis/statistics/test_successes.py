"""The number of successes against all outcomes, one by one."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_probe.analysis.statistics.successes import successes


@given(st.lists(st.floats(0, 1), max_size=6))
def test_against_all_outcomes(chances: list[float]) -> None:
    expected = [0.0] * (len(chances) + 1)
    for outcome in product((False, True), repeat=len(chances)):
        pairs = zip(outcome, chances, strict=True)
        expected[sum(outcome)] += math.prod(p if won else 1 - p for won, p in pairs)
    assert successes(chances).tolist() == pytest.approx(expected, abs=1e-12)
