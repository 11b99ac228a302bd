"""`analyse` end to end: what its numbers may depend on, and what they may not."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis import Analysis, Order, Settings, analyse
from moe_probe.analysis.gathering import gather
from moe_probe.analysis.results import TABLES
from moe_probe.errors import UsageError
from moe_probe.trace import LayerSpec, Trace, TraceWriter, open_trace
from tests.analysis.streams import make_stream

FEW: dict[str, Any] = {"shuffles": 3, "replicates": 20, "permutations": 19, "windows": (3, 12)}
"""Too few to conclude anything, and quick."""
BY_ORDER = {
    "experts": {"longest_idle", "current_idle", "leading_idle", "burstiness_index"},
    "idle_windows": {
        *("runs", "share", "sliding", "expected_runs", "expected_runs_fair"),
        *("expected_share", "expected_sliding"),
    },
}
"""Columns, by table, that speak of the order asked for; no others may change with it."""
IDLE = [
    *("longest_idle", "current_idle", "leading_idle", "rate_deficit", "burstiness"),
    *("longest_idle_shuffled", "longest_idle_expected", "burstiness_index"),
    *("burstiness_index_null", "p_own", "q_own", "p_fair", "q_fair"),
]
"""Columns of experts that need an order of tokens."""


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Documents of two subjects with their prefixes, in four layers of different shapes."""
    return make_stream(tmp_path_factory.mktemp("analyse") / "trace", 4, documents=20)[0]


@pytest.fixture(scope="module")
def found(trace: Trace) -> Analysis:
    return analyse(trace, threads=1, **FEW)


def assert_same(one: Analysis, other: Analysis, *, rtol: float = 0) -> None:
    """Compare every table; numbers of the compiled loops may be rounded otherwise."""
    for name in TABLES:
        tables = (one.table(name), other.table(name))
        pd.testing.assert_frame_equal(*tables, check_exact=not rtol, rtol=rtol or 1e-5, obj=name)


def test_tables_are_there(found: Analysis) -> None:
    filled = {name for name in TABLES if len(found.table(name))}
    # Ids have no weights, these documents no answers, and 5 experts do not split evenly.
    by_facts = {"weights", "confidence", "margins", "correctness"}
    assert set(TABLES) - filled <= {*by_facts, "devices", "placement"}
    experts = found.experts
    assert experts.groupby("layer").size().to_dict() == {1: 6, 3: 300, 4: 5, 7: 7}
    assert set(found.quality["status"]) == {"pass", "skip"}
    assert found.table("experts") is experts
    with pytest.raises(KeyError):
        found.table("no such table")


def test_the_same_seed_gives_the_same_numbers(trace: Trace, found: Analysis) -> None:
    assert_same(analyse(trace.path, **FEW), found)
    other = analyse(trace, seed=1, **FEW)
    assert not other.specialization.equals(found.specialization)
    same = found.experts["count"]
    pd.testing.assert_series_equal(other.experts["count"], same)


def test_threads_change_nothing(trace: Trace, found: Analysis) -> None:
    assert_same(analyse(trace, threads=3, **FEW), found)


@pytest.mark.compiled
def test_compiled_loops_give_the_same_tables(trace: Trace, found: Analysis) -> None:
    loops = import_module("moe_probe.analysis.kernels.compiled")
    assert_same(Analysis(gather(trace, Settings(**FEW), kernels=loops)), found, rtol=1e-9)


@pytest.mark.parametrize("order", ["request-local", "execution", "shuffle-docs:3"])
def test_orders_change_only_what_idle_runs_say(trace: Trace, found: Analysis, order: str) -> None:
    other = analyse(trace, order=order, **FEW)
    assert f"token order {order}" in other.caption
    assert str(other.sums.settings.order) == order
    changed = {}
    for name in TABLES:
        one, two = found.table(name), other.table(name)
        assert list(one) == list(two)
        if columns := {column for column in one if not one[column].equals(two[column])}:
            changed[name] = columns
    assert changed.keys() == BY_ORDER.keys()
    assert all(columns <= BY_ORDER[name] for name, columns in changed.items()), changed
    assert "longest_idle" in changed["experts"]


def test_runs_inside_documents_are_expected_of_their_lengths(tmp_path: Path) -> None:
    rng, lengths = np.random.default_rng(2), [4, 9, 9, 20]
    with TraceWriter(tmp_path / "trace", layers=[LayerSpec(layer=2, num_experts=8, top_k=2)]) as w:
        for number, length in enumerate(lengths):
            ids_TK = rng.random((length, 8)).argsort(axis=1)[:, :2]
            w.add([ids_TK], doc_id=number, subject="a", prefix_end=0)
    found = analyse(tmp_path / "trace", order="request-local", **FEW)
    rate_N = found.experts["frequency"].to_numpy()
    for window in FEW["windows"]:
        table = found.idle_windows[found.idle_windows["window"] == window]
        # A run begins with a document, or after a token that selects the expert.
        first_N = sum((1 - rate_N) ** window * (length >= window) for length in lengths)
        later_N = sum(
            rate_N * (1 - rate_N) ** window
            for length in lengths
            for start in range(1, length)
            if start + window <= length
        )
        np.testing.assert_allclose(table["expected_runs"], first_N + later_N, rtol=1e-9)
        places = sum(max(length - window + 1, 0) for length in lengths)
        sliding_N = places * (1 - rate_N) ** window
        np.testing.assert_allclose(table["expected_sliding"], sliding_N, rtol=1e-9)
        # A run of W tokens or more has W - 1 tokens more than places.
        inside_N = sliding_N + (window - 1) * (first_N + later_N)
        np.testing.assert_allclose(table["expected_share"], inside_N / sum(lengths), rtol=1e-9)


def test_repeated_rows_have_no_idle_runs(tmp_path: Path) -> None:
    """In which order the model ran a row again, no trace says."""
    rng = np.random.default_rng(0)
    with TraceWriter(tmp_path / "trace", layers=[LayerSpec(layer=2, num_experts=8, top_k=2)]) as w:
        for number in range(12):
            ids_TK = rng.random((20, 8)).argsort(axis=1)[:, :2]
            facts: dict[str, Any] = {
                "subject": "ab"[number % 2],
                "doc_id": number,
                "multiplicity": 1 + number % 3,
            }
            w.add([ids_TK], prefix_end=0, **facts)
    repeated = open_trace(tmp_path / "trace")
    raw, unique = (analyse(repeated, rule=rule, **FEW) for rule in ("raw", "unique"))
    assert raw.experts["count"].sum() == 2 * 20 * (4 * (1 + 2 + 3))
    assert unique.experts["count"].sum() == 2 * 20 * 12
    assert unique.experts[IDLE].notna().all(axis=None)
    assert raw.experts[IDLE].isna().all(axis=None)
    for name in TABLES:
        assert list(raw.table(name)) == list(unique.table(name)) or raw.table(name).empty, name
    assert raw.idle_windows.empty
    assert len(unique.idle_windows) == 8 * 2
    assert raw.headline.idle.startswith("Idle runs are unknown")
    assert not unique.headline.idle.startswith("Idle runs are unknown")


def test_a_recording_that_ended_before_its_first_document(tmp_path: Path) -> None:
    layers = [LayerSpec(layer=2, num_experts=8, top_k=2)]
    with TraceWriter(tmp_path / "trace", layers=layers):
        pass
    found = analyse(tmp_path / "trace", **FEW)
    assert found.experts["count"].tolist() == [0] * 8
    assert set(found.experts["tier"]) == {"unseen, not certified"}
    assert all(list(found.table(name)) for name in TABLES)


def test_what_there_is_not(trace: Trace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="some rule"):
        analyse(trace, rule="some rule")
    for order in ("some order", "canonical:3", "shuffle-docs:x", "forward-passes"):
        with pytest.raises(UsageError, match=r"order"):
            analyse(trace, order=order)
    assert Order.parse("shuffle-docs") == Order("shuffle-docs", 0)
