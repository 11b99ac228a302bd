"""Subjects and their experts: every cell against its definition, and z under the null.

Shape suffixes: S subjects, N experts, T tokens.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.metrics.subjects import (
    frequency_null,
    lift,
    log_odds,
    purity,
    subject_frequency,
    subjects_table,
    two_sided_p,
)
from moe_probe.analysis.statistics.set_sizes import SetSizes
from tests.analysis.documents import IDLE, Documents, random_documents

EMPTY = 3
"""The last subject of random documents."""


@pytest.fixture(params=[(0, 1), (1, 2), (2, 3)])
def data(request: pytest.FixtureRequest) -> Documents:
    seed, top_k = request.param
    return random_documents(seed, 40, top_k=top_k, apart=1.0)


def test_frequency_purity_and_lift_of_every_cell(data: Documents) -> None:
    counts_SN, tokens_S = data.counts_SN, data.tokens_S
    frequency_SN = subject_frequency(counts_SN, tokens_S)
    purity_SN, lift_SN = purity(counts_SN, tokens_S), lift(counts_SN, tokens_S)
    for expert in range(7):
        share = [counts_SN[s, expert] / tokens_S[s] for s in range(3)]
        for subject in range(3):
            assert frequency_SN[subject, expert] == pytest.approx(share[subject])
            rest = sum(counts_SN[s, expert] for s in range(3) if s != subject)
            rest_tokens = sum(tokens_S[s] for s in range(3) if s != subject)
            if rest:
                expected = share[subject] / (rest / rest_tokens)
                assert lift_SN[subject, expert] == pytest.approx(expected)
            else:
                assert np.isnan(lift_SN[subject, expert])
            if expert != IDLE:
                expected = share[subject] / sum(share)
                assert purity_SN[subject, expert] == pytest.approx(expected)
    assert np.isnan(purity_SN[:, IDLE]).all()
    for table_SN in (frequency_SN, purity_SN, lift_SN):
        assert np.isnan(table_SN[EMPTY]).all()
    assert frequency_SN[:3].sum(axis=1) == pytest.approx([counts_SN[0].sum() / tokens_S[0]] * 3)


def test_log_odds_of_every_cell(data: Documents) -> None:
    counts_SN = data.counts_SN
    deff_SN = np.array([1.0, 2.5, np.nan, 1.0])[:, None] * np.linspace(1, 3, 7)
    delta_SN, z_SN = log_odds(counts_SN, deff_SN)
    total_N = counts_SN.sum(axis=0)
    assignments, prior = total_N.sum(), 0.01 * total_N.sum()
    for subject in range(3):
        size = counts_SN[subject].sum()
        for expert in range(7):
            alpha = prior * total_N[expert] / assignments
            inside = counts_SN[subject, expert] + alpha
            outside = total_N[expert] - counts_SN[subject, expert] + alpha
            if expert == IDLE:
                assert np.isnan(delta_SN[subject, expert])
                continue
            delta = math.log(inside / (size + prior - inside))
            delta -= math.log(outside / (assignments - size + prior - outside))
            assert delta_SN[subject, expert] == pytest.approx(delta)
            rest = assignments - size
            variance = size / (size + prior) / inside + rest / (rest + prior) / outside
            z = delta / math.sqrt(variance * deff_SN[subject, expert])
            assert z_SN[subject, expert] == pytest.approx(z, nan_ok=True)
    assert np.isnan(delta_SN[EMPTY]).all()
    assert np.isnan(z_SN[2]).all()


def test_a_rare_expert_is_drawn_towards_zero() -> None:
    counts_SN = np.array([[1, 500, 499], [0, 2000, 2000]])
    delta_SN, z_SN = log_odds(counts_SN)
    # One selection of 5,000: no lift, infinite odds, but nothing to report.
    assert np.isnan(lift(counts_SN, counts_SN.sum(axis=1))[0, 0])
    assert 0 < z_SN[0, 0] < 1
    assert np.isfinite(delta_SN).all()


def test_log_odds_without_anything_to_compare() -> None:
    assert np.isnan(log_odds(np.array([[3, 4, 0]]))[0]).all()
    assert np.isnan(log_odds(np.array([[3, 4], [0, 0]]))[1]).all()
    # An expert that takes every selection has no odds.
    assert np.isnan(log_odds(np.array([[5, 0], [7, 0]]))[0]).all()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0, 4))
def test_bounds_and_symmetry(seed: int, apart: float) -> None:
    data = random_documents(seed, 12, subjects=3, apart=apart)
    counts_SN, tokens_S = data.counts_SN, data.tokens_S
    purity_SN = purity(counts_SN, tokens_S)
    selected_N, tokened_S = counts_SN.any(axis=0), tokens_S > 0
    assert purity_SN[tokened_S][:, selected_N].sum(axis=0) == pytest.approx(1)
    frequency_SN = subject_frequency(counts_SN, tokens_S)[tokened_S]
    assert ((frequency_SN >= 0) & (frequency_SN <= 1)).all()
    # Of two subjects, one has what the other lacks.
    delta_SN, z_SN = log_odds(counts_SN[:2])
    assert delta_SN[0] == pytest.approx(-delta_SN[1], nan_ok=True, abs=1e-12)
    assert z_SN[0] == pytest.approx(-z_SN[1], nan_ok=True, abs=1e-12)
    assert not np.isinf(np.stack([delta_SN, z_SN])).any()


@pytest.mark.parametrize("repeats", [1, 4])
def test_z_and_frequency_under_fair_routing(repeats: int) -> None:
    """A token that stands for several equal ones makes a design effect of as many."""
    rng = np.random.default_rng(0)
    tokens_S, num_experts, top_k = np.array([90, 300, 2600]), 32, 2
    z, frequency = [], []
    for _ in range(150):
        counts_SN = np.zeros((3, num_experts), np.int64)
        for counts_N, tokens in zip(counts_SN, tokens_S, strict=True):
            ids_TK = np.argsort(rng.random((tokens, num_experts)), axis=1)[:, :top_k]
            counts_N += repeats * np.bincount(ids_TK.ravel(), minlength=num_experts)
        z.append(log_odds(counts_SN, repeats)[1])
        frequency.append(subject_frequency(counts_SN, repeats * tokens_S))
    assert np.mean(z) == pytest.approx(0, abs=0.05)
    assert np.std(z, axis=(0, 2)) == pytest.approx(1, abs=0.08)
    sizes = SetSizes(top_k, top_k)
    mean, sd_S = frequency_null(num_experts, sizes, repeats * tokens_S, repeats)
    assert np.mean(frequency) == pytest.approx(mean)
    assert np.std(frequency, axis=(0, 2)) == pytest.approx(sd_S, rel=0.05)


def test_frequency_of_fair_routing_where_tokens_differ_in_k() -> None:
    rng, tokens, repetitions = np.random.default_rng(1), 40, 4000
    k_T = np.arange(tokens) % 8
    sizes = SetSizes(float(k_T.mean()), float((k_T**2).sum() / k_T.sum()))
    place = np.argsort(rng.random((repetitions, tokens, 8), dtype=np.float32), axis=2)
    frequency = (place < k_T[:, None]).mean(axis=1)
    mean, sd_S = frequency_null(8, sizes, np.array([tokens, 0]))
    assert frequency.mean() == pytest.approx(mean)
    assert sd_S == pytest.approx([frequency.std(), math.nan], rel=0.03, nan_ok=True)


def test_two_sided_p() -> None:
    p = two_sided_p(np.array([0.0, 1.959963985, -2.575829304, np.nan, 60.0]))
    assert p == pytest.approx([1, 0.05, 0.01, np.nan, 0], nan_ok=True, abs=1e-9)


def test_table(data: Documents) -> None:
    documents_S = np.array([30, 29, 400, 0])
    names = ["law", "anatomy", "virology", "empty"]
    table = subjects_table(data.counts_SN, data.tokens_S, documents_S, np.full((4, 1), 2.0), names)
    assert table["expert"].tolist() == [expert for expert in range(7) for _ in names]
    assert table["subject"].tolist() == names * 7
    cell = table[(table["expert"] == 5) & (table["subject"] == "virology")].iloc[0]
    delta_SN, z_SN = log_odds(data.counts_SN, 2.0)
    assert cell["count"] == data.counts_SN[2, 5]
    assert cell["frequency"] == data.counts_SN[2, 5] / data.tokens_S[2]
    assert (cell["log_odds"], cell["z"]) == (delta_SN[2, 5], z_SN[2, 5])
    assert cell["lift"] == pytest.approx(lift(data.counts_SN, data.tokens_S)[2, 5])
    assert cell["p_value"] == pytest.approx(math.erfc(abs(z_SN[2, 5]) / math.sqrt(2)))
    inference = table[["log_odds", "z", "p_value"]]
    small = table["subject"].isin(["anatomy", "empty"])
    assert inference[small].isna().all(axis=None)
    assert inference[~small & (table["expert"] != IDLE)].notna().all(axis=None)
    assert table.loc[table["subject"] == "anatomy", "frequency"].notna().all()
    assert table.loc[table["subject"] == "empty", "frequency"].isna().all()
