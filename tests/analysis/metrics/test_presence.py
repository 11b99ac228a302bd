"""Experts that documents and subjects do without, against loops and simulation.

Shape suffixes: N experts, C documents, S subjects.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.kernels.plain import longest_absence
from moe_probe.analysis.metrics.presence import (
    idle_subjects,
    low_subjects,
    subject_coverage_table,
)


def absence(counts: list[int]) -> int:
    """The longest stretch of zeros, by a loop."""
    longest = current = 0
    for count in counts:
        current = 0 if count else current + 1
        longest = max(longest, current)
    return longest


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32 - 1), st.integers(0, 15), st.floats(0, 1))
def test_longest_absence_equals_a_loop(seed: int, documents: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    counts_CN = rng.binomial(2, rate * rng.random(6), (20, 6)).astype(np.uint8)
    order = rng.permutation(20)[:documents]
    found = longest_absence(counts_CN, order)
    assert found.tolist() == [absence(counts_CN[order, e].tolist()) for e in range(6)]


def test_order_decides() -> None:
    counts_CN = np.array([[1], [0], [0], [3]])
    assert longest_absence(counts_CN, np.array([0, 1, 2, 3])).tolist() == [2]
    assert longest_absence(counts_CN, np.array([1, 0, 2, 3])).tolist() == [1]
    assert longest_absence(counts_CN, np.array([1, 2])).tolist() == [2]


def test_subjects_of_an_expert() -> None:
    counts_SN = np.array([[0, 2, 38, 40], [5, 5, 5, 5], [0, 0, 0, 0], [1, 0, 99, 100]])
    # The third subject has no selections and is no subject; fair shares are 20, 5 and 50.
    assert idle_subjects(counts_SN).tolist() == [1, 1, 0, 0]
    assert low_subjects(counts_SN).tolist() == [2, 1, 0, 0]  # 2 of 20 is just not below a tenth


def test_table_by_hand() -> None:
    counts_SN = np.array([[0, 4, 4], [1, 0, 1], [0, 0, 0]])
    table = subject_coverage_table(counts_SN, np.array([8, 2, 0]), ["law", "maths", "none"])
    assert list(table["subject"]) == ["law", "maths", "none"]
    assert list(table["unseen"][:2]) == [1, 1]
    assert list(table["low"][:2]) == [1, 1]
    assert list(table["unseen_null"][:2]) == pytest.approx([3 * (2 / 3) ** 8, 3 * (2 / 3) ** 2])
    # A tenth of so few selections is less than one: only those never selected are below it.
    assert list(table["low_null"][:2]) == pytest.approx(list(table["unseen_null"][:2]))
    names = ["unseen", "unseen_null", "low", "low_null"]
    assert table.loc[[2], names].isna().all(axis=None)


@pytest.mark.parametrize("tokens", [30, 200])
def test_nulls_hold_for_fair_routing(tokens: int) -> None:
    rng = np.random.default_rng(4)
    counts_RN = np.empty((1500, 32), np.int64)
    for counts_N in counts_RN:
        ids_TK = np.argpartition(rng.random((tokens, 32), dtype=np.float32), 2, axis=1)[:, :2]
        counts_N[:] = np.bincount(ids_TK.ravel(), minlength=32)
    names = [str(number) for number in range(1500)]
    table = subject_coverage_table(counts_RN, np.full(1500, tokens), names)
    for name in ("unseen", "low"):
        error = table[name].std() / math.sqrt(1500)
        assert abs(table[name].mean() - table[f"{name}_null"].mean()) < 3 * error + 1e-4
    assert (table["low"] >= table["unseen"]).all()


def test_planted_subject_without_an_expert() -> None:
    counts_SN = np.random.default_rng(0).binomial(5000, 6 / 64, (20, 64))
    counts_SN[3, 7] = 0
    counts_SN[5, 7] = 20
    assert idle_subjects(counts_SN).tolist() == [0] * 7 + [1] + [0] * 56
    assert low_subjects(counts_SN)[7] == 2
    table = subject_coverage_table(counts_SN, np.full(20, 5000), [str(s) for s in range(20)])
    assert table["unseen"].sum() == 1
    assert table[["unseen_null", "low_null"]].to_numpy().max() < 1e-6
