"""Idle runs of experts against a loop over tokens, and real routing in two document orders.

Shape suffixes: T tokens, K slots, N experts, W windows, R orders.
"""

from __future__ import annotations

import math
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.accumulators.gaps import IdleRuns
from moe_probe.analysis.metrics import idle
from moe_probe.analysis.statistics.idle_null import expected_longest_run, p_longest_at_least

DATA = Path(__file__).parents[3].parent / "shared/data/deepseek-v2-lite"
WINDOWS = (1, 3, 10)


def stream(seed: int, tokens: int, num_experts: int, most: int) -> list[set[int]]:
    """The experts of each token: between none and `most`, some more popular; the last one never."""
    rng = np.random.default_rng(seed)
    weight_N = rng.dirichlet(np.ones(num_experts - 1))
    number_T = rng.integers(0, most + 1, tokens)
    return [set(rng.choice(num_experts - 1, n, False, weight_N).tolist()) for n in number_T]


def runs_of(sets: list[set[int]], expert: int) -> list[int]:
    """The lengths of all maximal runs without the expert, zero-length internal ones included."""
    runs = [0]
    for chosen in sets:
        if expert in chosen:
            runs.append(0)
        else:
            runs[-1] += 1
    return runs


def naive(sets: list[set[int]], num_experts: int) -> tuple[np.ndarray, IdleRuns]:
    """Counts and idle runs, from lists of all runs."""
    all_runs = [np.array(runs_of(sets, expert)) for expert in range(num_experts)]
    counts_N = np.array([len(runs) - 1 for runs in all_runs])
    gaps = [runs[1:-1] for runs in all_runs]
    long = [[runs[runs >= window] for runs in all_runs] for window in WINDOWS]
    leading_N = np.array([runs[0] for runs in all_runs])
    return counts_N, IdleRuns(
        tokens=len(sets),
        longest_N=np.array([runs.max() for runs in all_runs]),
        leading_N=leading_N,
        current_N=np.array([runs[-1] for runs in all_runs]),
        first_seen_N=np.where(counts_N > 0, leading_N, -1),
        gap_number_N=np.array(list(map(len, gaps))),
        gap_sum_N=np.array([gap.sum() for gap in gaps]),
        gap_square_sum_N=np.array([(gap**2).sum() for gap in gaps]),
        runs_WN=np.array([list(map(len, row)) for row in long]),
        idle_tokens_WN=np.array([[runs.sum() for runs in row] for row in long]),
        sliding_WN=np.array(
            [
                [(runs - window + 1).sum() for runs in row]
                for row, window in zip(long, WINDOWS, strict=True)
            ]
        ),
        histogram_H=np.zeros(0, np.int64),
    )


def table_of(sets: list[set[int]], num_experts: int, longest_RN: np.ndarray) -> pd.DataFrame:
    return idle.idle_table(*naive(sets, num_experts), longest_RN)


def windows_of(sets: list[set[int]], num_experts: int) -> pd.DataFrame:
    one_stream = np.array([[len(sets)], [1]])
    return idle.idle_windows_table(*naive(sets, num_experts), WINDOWS, one_stream)


@pytest.mark.parametrize("seed", range(4))
def test_table_equals_a_loop_over_tokens(seed: int) -> None:
    sets = stream(seed, 60, 7, 3)
    table = table_of(sets, 7, np.array([[5, 9, 2, 1, 4, 7, 60], [7, 9, 4, 1, 6, 7, 60]]))
    fair = sum(map(len, sets)) / 60 / 7
    for expert, row in table.iterrows():
        runs = runs_of(sets, int(str(expert)))
        own = (len(runs) - 1) / 60
        shuffled = [6, 9, 3, 1, 5, 7, 60][int(str(expert))]
        assert row["longest_idle_shuffled"] == shuffled
        names = ["longest_idle", "leading_idle", "current_idle", "censored"]
        assert list(row[names]) == [max(runs), runs[0], runs[-1], len(runs) == 1]
        steps = np.array(runs[1:-1]) + 1
        if len(steps) > 1:
            index = (steps.std() - steps.mean()) / (steps.std() + steps.mean())
            assert row["burstiness_index"] == pytest.approx(index)
        else:
            assert math.isnan(row["burstiness_index"])
        expected = float(expected_longest_run(own, 60))
        assert row["longest_idle_expected"] == expected
        assert row["burstiness"] == pytest.approx(math.log(shuffled / expected))
        deficit = math.log(expected / float(expected_longest_run(fair, 60)))
        assert row["rate_deficit"] == pytest.approx(deficit)
        assert row["p_fair"] == pytest.approx(float(p_longest_at_least(fair, 60, shuffled)))


def test_expert_never_selected_is_censored() -> None:
    row = table_of(stream(0, 60, 7, 3), 7, np.full((1, 7), 60)).loc[6]
    assert list(row[["longest_idle", "current_idle", "leading_idle"]]) == [60, 60, 60]
    assert row["censored"]
    assert row["burstiness"] == 0
    assert row["rate_deficit"] > 0
    assert row[["burstiness_index", "burstiness_index_null", "p_own"]].isna().all()
    # 60 tokens at the fair rate do not leave an expert out so often as one in a thousand times.
    assert 1e-3 > row["p_fair"] > 0


def test_expert_in_every_token_has_no_runs() -> None:
    row = table_of([{0, 1}, {0}, {0, 1}], 2, np.array([[0, 1]])).loc[0]
    assert (row["longest_idle"], row["censored"]) == (0, False)
    assert row[["burstiness", "rate_deficit"]].isna().all()
    assert row["burstiness_index"] == row["burstiness_index_null"] == -1


def test_without_tokens_or_orders_values_are_null() -> None:
    empty = table_of([], 3, np.zeros((0, 3), np.int64))
    unknown = ["rate_deficit", "burstiness", "burstiness_index", "p_own", "p_fair"]
    assert empty[[*unknown, "longest_idle_shuffled"]].isna().all(axis=None)
    no_orders = table_of(stream(1, 60, 7, 3), 7, np.zeros((0, 7), np.int64))
    assert (
        no_orders[["longest_idle_shuffled", "burstiness", "p_own", "p_fair"]].isna().all(axis=None)
    )
    assert no_orders["rate_deficit"].notna().all()


def test_windows_table() -> None:
    sets = [{0}, {1}, {1}, {1}, {0}, set()]
    table = windows_of(sets, 3).set_index(["expert", "window"])
    assert list(table.loc[(0, 3), ["runs", "share", "sliding"]]) == [1, 0.5, 1]
    assert list(table.loc[(1, 1), ["runs", "share", "sliding"]]) == [2, 0.5, 3]
    # Never selected: one run of all six tokens, as its own rate of 0 says.
    assert list(table.loc[(2, 3), ["runs", "share", "sliding", "expected_runs"]]) == [1, 1, 4, 1]
    assert (table.loc[(slice(None), 10), ["runs", "expected_runs"]] == 0).all(axis=None)
    # 5 selections of 3 experts in 6 tokens: p = 5/18; a run of 3 begins at 4 places.
    p = 5 / 18
    fair = (1 - p) ** 3 * (1 + 3 * p)
    assert table.loc[(0, 3), "expected_runs_fair"] == pytest.approx(fair)
    assert table.loc[(0, 3), "window_fair_intervals"] == pytest.approx(3 * p)


def test_expected_runs_hold_in_simulation() -> None:
    rng = np.random.default_rng(5)
    # Means over the experts of a table, whose runs are not independent of each other.
    means = [
        windows_of([set(rng.permutation(6)[:2].tolist()) for _ in range(50)], 6)
        .groupby("window")[["runs", "expected_runs_fair"]]
        .mean()
        for _ in range(200)
    ]
    runs_RW = np.array([mean["runs"] for mean in means])
    gap_W = runs_RW.mean(axis=0) - means[0]["expected_runs_fair"].to_numpy()
    assert (np.abs(gap_W) < 3 * runs_RW.std(axis=0) / math.sqrt(200)).all()
    assert runs_RW[:, -1].sum() > 0


def runs_in_every_history(rate: float, tokens: int, window: int) -> float:
    """Expected runs of W or more, from all 2^T histories of selected and idle tokens."""
    expected = 0.0
    for history in product((False, True), repeat=tokens):
        chance = math.prod(rate if selected else 1 - rate for selected in history)
        long = sum(not key and len(list(run)) >= window for key, run in groupby(history))
        expected += chance * long
    return expected


def test_expected_runs_of_documents_are_sums_over_them() -> None:
    sets = stream(3, 26, 4, 2)
    counts_N, runs = naive(sets, 4)
    lengths = [9, 3, 3, 11]
    stretches_2X = np.array([[3, 9, 11], [2, 1, 1]])
    table = idle.idle_windows_table(counts_N, runs, WINDOWS, stretches_2X)
    fair = counts_N.sum() / len(sets) / 4
    for window in WINDOWS:
        mine = table[table["window"] == window]
        for rates, name in (
            (counts_N / len(sets), "expected_runs"),
            ([fair], "expected_runs_fair"),
        ):
            wanted = [
                math.fsum(runs_in_every_history(p, n, window) for n in lengths) for p in rates
            ]
            assert mine[name].to_list()[: len(wanted)] == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 9))
def test_identities(seed: int, tokens: int, num_experts: int) -> None:
    sets = stream(seed, tokens, num_experts, min(3, num_experts - 1))
    longest_N = np.array([max(runs_of(sets, expert)) for expert in range(num_experts)])
    table = table_of(sets, num_experts, longest_N[None])
    fair = sum(map(len, sets)) / tokens / num_experts
    total = np.log(np.maximum(longest_N, 1)) - np.log(expected_longest_run(fair, tokens))
    parts = (table["rate_deficit"] + table["burstiness"]).to_numpy()
    is_known = ~np.isnan(parts)
    assert parts[is_known] == pytest.approx(total[is_known], abs=1e-9)
    assert is_known[longest_N == tokens].all()
    assert not np.isinf(table.to_numpy(np.float64)).any()
    assert table["burstiness_index"].dropna().between(-1, 1).all()
    chances = table[["p_own", "p_fair"]].to_numpy()
    assert ((chances >= 0) & (chances <= 1) | np.isnan(chances)).all()
    windows = windows_of(sets, num_experts)
    assert ((windows["share"] * tokens) >= windows["runs"] * windows["window"] - 1e-9).all()
    assert windows["share"].between(0, 1).all()


def test_published_case_of_nineteen_hits() -> None:
    """OLMoE layer 15 expert 14: 19 of 208,896 arXiv tokens, a run of about 39,000 expected."""
    assert float(expected_longest_run(19 / 208_896, 208_896)) == pytest.approx(39_000, rel=0.02)
    counts_N = np.full(64, (208_896 * 8 - 19) // 63)
    counts_N[14] = 19
    deficit_N = idle.rate_deficit(counts_N, 208_896)
    assert math.exp(deficit_N[14]) == pytest.approx(39_000 / 80, rel=0.03)
    assert np.delete(deficit_N, 14) == pytest.approx(0, abs=0.02)


def longest_runs(ids_TK: np.ndarray) -> np.ndarray:
    """Longest run without each of 64 experts, from the places of the selections."""
    places = [np.flatnonzero((ids_TK == expert).any(axis=1)) for expert in range(64)]
    return np.array([np.diff([-1, *at.tolist(), len(ids_TK)]).max() - 1 for at in places])


@pytest.mark.skipif(not DATA.is_dir(), reason="the DeepSeek-V2-Lite sample is not on this machine")
def test_real_routing_depends_on_the_order_of_documents() -> None:
    """Two tasks one after the other: long runs are due to that order, then to the documents."""
    files: list[Any] = [np.load(DATA / f"{task}.npz") for task in ("law", "intent")]
    ids_TLK = np.concatenate([file["experts"] for file in files])
    ends = np.cumsum(np.concatenate([file["document_lengths"] for file in files]))
    documents = np.split(np.arange(len(ids_TLK)), ends[:-1])
    order = np.random.default_rng(0).permutation(len(documents))
    shuffled = np.concatenate([documents[number] for number in order])
    tokens = np.random.default_rng(1).permutation(len(ids_TLK))
    long: list[int] = [0, 0, 0]
    ratio: list[list[float]] = [[], [], []]
    for layer in range(0, 26, 3):
        ids_TK = ids_TLK[:, layer]
        counts_N = np.bincount(ids_TK.ravel(), minlength=64)
        for number, stream_T in enumerate((slice(None), shuffled, tokens)):
            longest_N = longest_runs(ids_TK[stream_T])
            long[number] += int((longest_N >= 1000).sum())
            ratio[number] += np.exp(idle.burstiness(longest_N, counts_N, len(ids_TLK))).tolist()
    assert long[0] > 3 * long[1]
    assert long[2] == 0
    assert np.median(ratio[0]) > np.median(ratio[1]) > 1.2
    assert np.median(ratio[2]) == pytest.approx(1, abs=0.05)
