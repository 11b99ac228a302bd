"""Every table of a report says by which rule and in which order it was counted, in each reader."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from moe_probe import __version__
from moe_probe.analysis import Order, Rule, Settings, analyse, write_report
from moe_probe.analysis.comparison import TABLES as COMPARED
from moe_probe.analysis.comparison import CompareSettings, compare
from moe_probe.analysis.exports.choice import Choice
from moe_probe.analysis.exports.counts import count_table
from moe_probe.analysis.exports.files import write_rows
from moe_probe.analysis.exports.rows import lists, selections
from moe_probe.analysis.report.compare import write_comparison
from moe_probe.analysis.results import TABLES
from moe_probe.bundled import SAMPLE_TRACE
from moe_probe.trace import open_trace
from tests.trace.recordings import record

SETTINGS = Settings(
    rule=Rule.QUESTION,
    order=Order.parse("shuffle-docs:3"),
    shuffles=3,
    replicates=3,
    permutations=3,
)
COLUMNS = ["counting_rule", "token_order"]
VALUES = {"counting_rule": {"question"}, "token_order": {"shuffle-docs:3"}}
EMPTY = {
    "sample": {"first_position", "weights", "confidence", "margins"},
    "random": {"first_position", "devices", "placement"},
}
"""Tables without rows: neither has experts that live on the first token, the first has no weights,
the second no layer that devices divide."""
Reader = Callable[[Path], tuple[list[str], dict[str, set[str]]]]


def with_pandas(path: Path) -> tuple[list[str], dict[str, set[str]]]:
    table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    return table.columns.tolist(), {name: set(table[name]) for name in COLUMNS}


def with_polars(path: Path) -> tuple[list[str], dict[str, set[str]]]:
    table = (pl.read_csv if path.suffix == ".csv" else pl.read_parquet)(path)
    return table.columns, {name: set(table[name]) for name in COLUMNS}


def with_pyarrow(path: Path) -> tuple[list[str], dict[str, set[str]]]:
    table = (pa.csv.read_csv if path.suffix == ".csv" else pq.read_table)(path)
    return table.column_names, {name: set(table[name].to_pylist()) for name in COLUMNS}


@pytest.fixture(scope="module", params=list(EMPTY))
def report(request: pytest.FixtureRequest, tmp_path_factory: Any) -> tuple[str, Path, Path]:
    """Which trace, where it lies, and where its tables do."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "sample":
        shutil.copytree(SAMPLE_TRACE, folder / "my-trace")
    else:
        run = {"slot_order": "router_rank"}
        record(folder / "my-trace", 0, capture="weights", cache=True, run=run)
    trace = open_trace(folder / "my-trace")
    write_report(trace, folder / "out", SETTINGS, tables_only=True)
    return request.param, trace.path, folder / "out/tables"


def tokens_of(trace: Path) -> int:
    """T of the rule question, from the counts that were written while recording."""
    counts = open_trace(trace).counts.to_pandas()
    asked = counts["segment"].isin(["question", "cue", "choice"]) & (counts["layer"] == 1)
    return int(counts[asked]["unique_count"].sum()) // open_trace(trace).layers[1].top_k


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("read", [with_pandas, with_polars, with_pyarrow])
def test_rows_tell_rule_and_order(report: Any, read: Reader, suffix: str) -> None:
    kind, _, tables = report
    without_rows = set()
    for name in TABLES:
        columns, values = read(tables / f"{name}.{suffix}")
        assert columns[-2:] == COLUMNS
        if values["token_order"]:
            assert values == VALUES, name
        else:
            without_rows.add(name)
    assert without_rows == EMPTY[kind]


def test_parquet_tells_what_was_counted(report: Any) -> None:
    """Tables without rows, too; and nothing of where the trace lies."""
    _, trace, tables = report
    effective = pd.read_csv(tables / "layers.csv")["tokens_effective"].median()
    expected = {
        **{"format_version": 1, "version": __version__, "trace": "my-trace"},
        **{"rule": "question", "order": "shuffle-docs:3", "tokens": tokens_of(trace)},
        "tokens_effective": pytest.approx(effective),
    }
    for name in TABLES:
        path = tables / f"{name}.parquet"
        stored = pq.read_schema(path).metadata
        assert set(stored) == {b"moe_probe", b"PANDAS_ATTRS"}
        assert json.loads(stored[b"moe_probe"]) == expected
        assert json.loads(pl.read_parquet_metadata(path)["moe_probe"]) == expected
        assert pd.read_parquet(path).attrs == {"moe_probe": expected}
        assert str(trace.parent).encode() not in path.read_bytes()


def test_data_frames_tell_it_and_compare_as_ever(tmp_path: Path) -> None:
    trace = record(tmp_path / "my-trace", 0).path
    quick = partial(analyse, trace, rule="question", shuffles=2, replicates=3, permutations=3)
    found, other = quick(order="request-local"), quick(order="execution")
    for name in TABLES:
        said = found.table(name).attrs["moe_probe"]
        order, tokens = said["order"], said["tokens"]
        assert (said["rule"], order, tokens) == ("question", "request-local", tokens_of(trace))
    assert f"T = {tokens_of(trace):,} tokens" in found.caption
    mine, theirs = found.table("divergence"), other.table("divergence")
    assert mine.attrs != theirs.attrs
    assert mine.equals(theirs)
    pd.testing.assert_frame_equal(mine, theirs)
    assert len(pd.concat([mine, theirs])) == 2 * len(mine)
    mine.query("layer > 1").to_parquet(tmp_path / "saved.parquet")
    assert pd.read_parquet(tmp_path / "saved.parquet").attrs == mine.attrs
    mine.attrs["moe_probe"]["rule"] = "mine"
    assert found.layers.attrs["moe_probe"]["rule"] == "question"


def test_counts_alone_have_no_effective_tokens(counts_run: Any) -> None:
    said = analyse(counts_run.trace, rule="question").quality.attrs["moe_probe"]
    assert said["tokens"] == sum(
        number
        for (_, segment), number in counts_run.naive("question")[1].items()
        if segment in ("question", "cue", "choice")
    )
    assert said["tokens_effective"] is None


def test_tables_of_a_comparison_tell_the_rule(tmp_path: Path) -> None:
    """No number of theirs depends on an order; T is of each trace."""
    paths = [record(tmp_path / name, seed).path for seed, name in enumerate(("one", "two"))]
    found = compare(paths, CompareSettings(rule=Rule.QUESTION, replicates=5))
    write_comparison(found, tmp_path / "out")
    for name in COMPARED:
        path = tmp_path / f"out/tables/{name}.csv"
        said = json.loads(pq.read_schema(path.with_suffix(".parquet")).metadata[b"moe_probe"])
        assert said == found.table(name).attrs["moe_probe"]
        assert (said["rule"], said["order"]) == ("question", None)
        assert said["trace"] == ["one", "two"]
        assert said["tokens"] == [tokens_of(path) for path in paths]
        text = pd.read_csv(path)
        assert list(text) == [*found.table(name), "counting_rule"]
        assert set(text["counting_rule"]) <= {"question"}
    assert (pd.read_csv(tmp_path / "out/tables/experts.csv")["counting_rule"] == "question").all()


@pytest.mark.parametrize("make", [selections, lists, count_table])
def test_exported_parquet_tells_the_rule(tmp_path: Path, make: Any) -> None:
    trace = open_trace(record(tmp_path / "my-trace", 0).path)
    assert write_rows(make(Choice.of(trace, Rule.DECISION)), tmp_path / "a.parquet", ".parquet")
    for said in (
        pd.read_parquet(tmp_path / "a.parquet").attrs["moe_probe"],
        json.loads(pl.read_parquet_metadata(tmp_path / "a.parquet")["moe_probe"]),
    ):
        assert (said["rule"], said["trace"]) == ("decision", "my-trace")
