"""Idle runs in forward passes of traces whose routing is known, through the whole analysis.

Shape suffixes: T tokens, K slots, N experts of a layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis import Analysis, Order, Settings, analyse
from moe_probe.analysis.figures import FIGURES
from moe_probe.analysis.figures.style import Absent
from moe_probe.analysis.metrics.idle_passes import LEFT_OUT
from moe_probe.analysis.statistics.pass_null import PassNull
from moe_probe.trace import LayerSpec, TraceWriter
from tests.analysis.pass_streams import LAYERS, make_passes, naive_runs

EXPERTS, TOP_K, SIZE = 16, 2, 8
RARE, NEVER = 0, 15
EVERY = 200


def write_planted(path: Path, passes: int, *, ranks: int = 1) -> Path:
    """Passes of 8 tokens, four documents in each; every 200th has one token that selects RARE."""
    rng = np.random.default_rng(3)
    with TraceWriter(path, layers=[LayerSpec(layer=7, num_experts=EXPERTS, top_k=TOP_K)]) as writer:
        for number in range(passes * SIZE // 80 * ranks):
            block, which, rank = number // 4 // ranks, number % 4, number // 4 % ranks
            # Four documents of 80 tokens share 40 passes, two tokens of each.
            pass_T = block * 40 + np.arange(80) // 2
            ids_TK = 1 + np.argsort(rng.random((80, EXPERTS - 2)), axis=1)[:, :TOP_K]
            is_rare_T = (pass_T % EVERY == 50) & (np.arange(80) % 2 == 0) & (which == 2)
            ids_TK[is_rare_T, 1] = RARE
            facts: dict[str, Any] = {
                "task": "t",
                "subject": f"s{number % 3}",
                "doc_id": number,
                "rank": rank,
            }
            writer.add([ids_TK], forward_passes=pass_T, **facts)
    return path


def quick(trace: Path, **options: object) -> Analysis:
    settings = {"shuffles": 3, "replicates": 10, "permutations": 5, **options}
    return analyse(trace, order="forward-passes", **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return quick(write_planted(tmp_path_factory.mktemp("planted") / "trace", 1000))


def test_planted_expert(planted: Any) -> None:
    rare, never = planted.experts.loc[RARE], planted.experts.loc[NEVER]
    names = ["count", "longest_idle", "leading_idle", "current_idle"]
    assert rare[names].tolist() == [5, EVERY - 1, 50, 149]
    assert never[names].tolist() == [0, 1000, 1000, 1000]
    assert planted.sums.settings.windows == (10, 100, 1_000, 10_000)
    windows = planted.idle_windows.set_index(["expert", "window"]).loc[RARE]
    assert windows["runs"].tolist() == [6, 5, 0, 0]
    assert windows["share"].tolist()[:2] == [995 / 1000, (4 * 199 + 149) / 1000]
    assert windows["sliding"].tolist()[1] == 4 * 100 + 50
    assert windows["window_tokens"].tolist()[:3] == [80, 800, 8_000]
    assert np.isnan(windows["window_tokens"].iloc[3]), "no window of 10,000 fits in"
    assert (
        set(planted.experts["idle_unit"]) == set(planted.idle_windows["unit"]) == {"forward passes"}
    )


def test_nulls_are_those_of_the_passes(planted: Analysis) -> None:
    """At the own rate as at the fair one, of passes of 8 tokens that are all alike."""
    table, rare = planted.idle_windows.set_index(["expert", "window"]), planted.experts.loc[RARE]
    idle, used = (1 - 5 / 8000) ** 8, 1 - (1 - 5 / 8000) ** 8
    for window in (10, 100, 1000):
        expected = idle**window * (1 + (1000 - window) * used)
        assert table.loc[(RARE, window), "expected_runs"] == pytest.approx(expected)
    fair_idle = (1 - TOP_K / EXPERTS) ** 8
    expected = fair_idle**10 * (1 + 990 * (1 - fair_idle))
    assert table.loc[(RARE, 10), "expected_runs_fair"] == pytest.approx(expected)
    draws_RS = np.random.default_rng(0).random((1000, 1000)) < used
    longest_R = [np.diff(np.flatnonzero(np.r_[True, s, True])).max() - 1 for s in draws_RS]
    noise = 4 * np.std(longest_R) / 1000**0.5
    assert rare["longest_idle_expected"] == pytest.approx(np.mean(longest_R), abs=noise)
    assert rare["p_own"] == pytest.approx(np.mean(np.array(longest_R) >= 199), abs=0.02)
    assert rare["p_fair"] < 1e-30
    others = planted.experts.loc[1:14]
    assert (others["p_own"] > 0.001).all()
    assert (others["longest_idle"] < 20).all()


def test_what_is_said(planted: Analysis) -> None:
    assert "forward-passes (idle runs in forward passes, 1,000 on 1 rank)" in planted.caption
    idle = planted.headline.idle
    assert idle.startswith(
        "2 of 16 experts idle for 100 forward passes in a row or more (800 tokens on average)"
    )
    assert "the longest run is of expert 15 of layer 7: 1,000 passes" in idle
    for table, names in LEFT_OUT.items():
        for name in names:
            assert planted.table(table)[name].isna().all(), name
    for name in ("rate_burst", "longest_idle"):
        with pytest.raises(Absent, match="use the order canonical"):
            FIGURES[name](planted)
    assert "forward passes" in FIGURES["sorted_load"](planted).texts[-1].get_text()


def test_what_is_of_tokens_stays(planted: Analysis) -> None:
    settings = planted.sums.settings
    tokens = analyse(
        planted.sums.trace, shuffles=3, replicates=10, permutations=5, seed=settings.seed
    )
    assert planted.experts["tier"].tolist() == tokens.experts["tier"].tolist()
    pd.testing.assert_frame_equal(planted.table("coverage"), tokens.table("coverage"))
    pd.testing.assert_frame_equal(planted.layers, tokens.layers)
    assert set(tokens.idle_windows["unit"]) == {"tokens"}
    assert (tokens.idle_windows["window_tokens"] == tokens.idle_windows["window"]).all()


def test_ranks_run_side_by_side(tmp_path: Path) -> None:
    """Two ranks with 600 passes each are no stream of 1,200."""
    found: Any = quick(write_planted(tmp_path / "trace", 600, ranks=2))
    assert "1,200 on 2 ranks" in found.caption
    assert found.experts.loc[NEVER, "longest_idle"] == 600
    assert found.experts.loc[RARE, ["longest_idle", "current_idle"]].tolist() == [199, 149]
    runs = found.idle_windows.set_index(["expert", "window"])["runs"]
    assert (runs[RARE, 100], runs[NEVER, 100]) == (2 * 3, 2)


@pytest.mark.parametrize("threads", [1, 3])
def test_ragged_passes_equal_naive_loops(tmp_path: Path, threads: int) -> None:
    used, tokens = make_passes(tmp_path / "trace", 4, ranks=3)
    found = quick(tmp_path / "trace", windows=(3, 1), threads=threads)
    streams = [[tokens[key] for key in sorted(tokens) if key[0] == rank] for rank in range(3)]
    null = PassNull([np.array(stream) for stream in streams])
    table: Any = found.idle_windows.set_index(["layer", "expert", "window"])
    for spec in LAYERS:
        for expert in range(spec.num_experts):
            runs = [run for rank in naive_runs(used, spec.layer, expert) for run in rank]
            row = found.experts[found.experts["layer"] == spec.layer].iloc[expert]
            assert row["longest_idle"] == max(runs)
            for window in (1, 3):
                long = [run for run in runs if run >= window]
                here = table.loc[spec.layer, expert, window]
                assert (here["runs"], here["share"]) == (len(long), sum(long) / len(used))
                rate_N = np.array([row["frequency"]])
                assert here["expected_runs"] == pytest.approx(null.expected_runs(rate_N, window)[0])
    pairs = [sum(s[i : i + 3]) for s in streams for i in range(len(s) - 2)]
    assert table.loc[0, 0, 3]["window_tokens"] == pytest.approx(np.mean(pairs))


def test_windows_of_the_order() -> None:
    order = Order.parse("forward-passes")
    assert Settings(order=order).windows == (10, 100, 1_000, 10_000)
    assert Settings(order=order, windows=(7,)).windows == (7,)
    assert Settings(order=order, windows=(7,)).of_tokens == Settings()
