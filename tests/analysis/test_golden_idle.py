"""Idle runs of real traces, end to end, against loops over the arrays: orders, windows, tests.

Shape suffixes: T tokens, D documents, N experts of a layer, R shuffled orders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis.reading.orders import CANONICAL, Order
from moe_probe.analysis.settings import Settings
from moe_probe.analysis.tables.experts import experts_table
from moe_probe.analysis.tables.idle_windows import idle_windows
from tests.analysis.documents import needs_data
from tests.analysis.golden import EXPERTS, LAYERS, TOP_K, Golden, golden

pytestmark = needs_data
WINDOWS = (50, 300, 1000)
SHUFFLES = 3


@dataclass(frozen=True)
class Case:
    data: Golden
    order: Order
    experts: pd.DataFrame
    windows: pd.DataFrame
    runs: list[np.ndarray]
    """Idle runs of every layer and expert, from first to last; by hand."""
    shuffled: list[list[np.ndarray]]
    """The same in each of the shuffled orders."""

    @property
    def longest_RP(self) -> np.ndarray:
        return np.array([[run.max() for run in runs] for runs in self.shuffled])


def idle_runs(data: Golden, order: Order) -> list[np.ndarray]:
    """Tokens before, between and after the selections of every layer and expert."""
    at_D = order.documents(np.zeros(len(data.tokens_D)))
    end_D = np.cumsum(data.tokens_D)
    parts = [np.arange(end_D[d] - data.tokens_D[d], end_D[d]) for d in at_D.tolist()]
    token_T = np.concatenate(parts)
    return [
        np.diff(np.flatnonzero(selected_T), prepend=-1, append=len(token_T)) - 1
        for layer in LAYERS
        for selected_T in data.selected(layer)[token_T].T
    ]


@pytest.fixture(scope="module", params=["canonical", "shuffle-docs:5"])
def case(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Case:
    order = Order.parse(request.param)
    settings = Settings(
        order=order, windows=WINDOWS, shuffles=SHUFFLES, replicates=4, permutations=4
    )
    data = golden(tmp_path_factory.mktemp("both") / "trace", ["law", "intent"], settings)
    return Case(
        data,
        order,
        experts_table(data.sums),
        idle_windows(data.sums),
        idle_runs(data, order),
        [idle_runs(data, Order("shuffle-docs", seed)) for seed in range(SHUFFLES)],
    )


def test_longest_leading_and_current_runs(case: Case) -> None:
    table = case.experts
    assert table["longest_idle"].tolist() == [run.max() for run in case.runs]
    assert table["leading_idle"].tolist() == [run[0] for run in case.runs]
    assert table["current_idle"].tolist() == [run[-1] for run in case.runs]
    assert table["count"].tolist() == [len(run) - 1 for run in case.runs]
    median_P = np.median(case.longest_RP, axis=0)
    assert table["longest_idle_shuffled"].tolist() == median_P.tolist()


def test_task_order_makes_long_runs(case: Case) -> None:
    """Of 1,664 experts 28 idle for 1,000 tokens in canonical order, and 3 in the others."""
    number = (case.experts["longest_idle"] >= 1000).sum()
    assert number == 28 if case.order == CANONICAL else number < 10
    assert case.experts["longest_idle_shuffled"].ge(1000).sum() < 10


def test_windows(case: Case) -> None:
    tokens = int(case.data.tokens_D.sum())
    table = case.windows.sort_values(["window", "layer", "expert"], kind="stable")
    for window in WINDOWS:
        part = table[table["window"] == window]
        long = [run[run >= window] for run in case.runs]
        assert part["runs"].tolist() == [len(run) for run in long]
        assert part["share"].tolist() == pytest.approx([run.sum() / tokens for run in long])
        assert part["sliding"].tolist() == [(run - window + 1).sum() for run in long]
        number_RP = [[(run >= window).sum() for run in runs] for runs in case.shuffled]
        assert part["runs_shuffled"].tolist() == np.median(number_RP, axis=0).tolist()
        intervals = part["window_fair_intervals"].to_numpy()
        assert intervals == pytest.approx(window * TOP_K / EXPERTS)


def test_expected_windows_to_first_order(case: Case) -> None:
    """T p (1 - p)^W, which leaves out the two ends of the stream."""
    tokens = int(case.data.tokens_D.sum())
    table = case.windows.merge(case.experts[["layer", "expert", "frequency"]])
    table = table[(table["window"] < 1000) & (table["frequency"] * tokens > 300)]
    p, window = table["frequency"].to_numpy(), table["window"].to_numpy()
    expected = tokens * p * (1 - p) ** window
    assert table["expected_runs"].to_numpy() == pytest.approx(expected, rel=0.02)
    fair = tokens * TOP_K / EXPERTS * (1 - TOP_K / EXPERTS) ** window
    assert table["expected_runs_fair"].to_numpy() == pytest.approx(fair, rel=0.02)


def test_gap_test_to_first_order(case: Case) -> None:
    """1 - exp(-T p (1 - p)^L), with L the median over the shuffled orders."""
    tokens, table = int(case.data.tokens_D.sum()), case.experts
    longest = table["longest_idle_shuffled"].to_numpy()
    fair_P = np.full(len(table), TOP_K / EXPERTS)
    for name, p in {"p_own": table["frequency"].to_numpy(), "p_fair": fair_P}.items():
        expected = -np.expm1(-tokens * p * (1 - p) ** longest)
        assert np.abs(table[name].to_numpy() - expected).max() < 0.03
    # Bursts are the rule on real text.
    assert table["p_own"].lt(0.001).mean() > 0.3


def test_rate_and_bursts_add_up_to_the_longest_run(case: Case) -> None:
    tokens, table = int(case.data.tokens_D.sum()), case.experts

    def longest_of(p: Any) -> Any:
        return (np.log(tokens * p) + 0.5772) / -np.log1p(-p) - 0.5

    own, fair = longest_of(table["frequency"]), longest_of(TOP_K / EXPERTS)
    assert table["longest_idle_expected"].to_numpy() == pytest.approx(own.to_numpy(), rel=0.01)
    assert np.abs(table["rate_deficit"] - np.log(own / fair)).max() < 0.01
    total = np.log(table["longest_idle_shuffled"] / fair)
    assert np.abs(table["rate_deficit"] + table["burstiness"] - total).max() < 0.01
    # What a rate below fair explains, and what a rate above it hides.
    is_low = table["relative_load"] < 1
    assert table.loc[is_low, "rate_deficit"].gt(0).all()
    assert table.loc[~is_low, "rate_deficit"].le(0).all()


def test_burstiness_index(case: Case) -> None:
    step = [run[1:-1] + 1 for run in case.runs]
    expected = [(s.std() - s.mean()) / (s.std() + s.mean()) for s in step]
    assert case.experts["burstiness_index"].tolist() == pytest.approx(expected)
    root = np.sqrt(1 - case.experts["frequency"].to_numpy())
    null = case.experts["burstiness_index_null"].to_numpy()
    assert null == pytest.approx((root - 1) / (root + 1))
