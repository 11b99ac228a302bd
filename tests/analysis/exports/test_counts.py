"""Exported counts against single selections, and against the trace's own tables."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pytest

from moe_probe.analysis import Rule, analyse, count
from moe_probe.analysis.exports.choice import Choice
from moe_probe.analysis.exports.counts import count_table
from moe_probe.analysis.exports.files import write_rows
from moe_probe.errors import TraceError, UsageError
from moe_probe.trace import SEGMENTS, open_trace
from tests.trace.recordings import Recording, record

KEY = ["layer", "expert", "task", "subject", "area", "segment"]


@pytest.fixture(params=[0, 1])
def recording(tmp_path: Path, request: pytest.FixtureRequest) -> Recording:
    return record(tmp_path / "trace", request.param, capture="weights", cache=True)


def choose(path: Path, rule: Rule = Rule.RAW, **what: Any) -> Choice:
    return Choice.of(open_trace(path), rule, **what)


def exported(choice: Choice) -> pd.DataFrame:
    tables = [table.to_pandas() for table in count_table(choice).tables]
    frame: pd.DataFrame = pd.concat(tables)
    return frame


def by_key(frame: pd.DataFrame, name: str) -> dict[Any, Any]:
    assert not frame.duplicated(KEY).any()
    return dict(zip(zip(*(frame[k] for k in KEY), strict=True), frame[name], strict=True))


def test_raw_is_every_selection_of_every_run(recording: Recording) -> None:
    naive = {key: row for key, row in recording.naive_counts().items() if row[0]}
    frame = exported(choose(recording.path))
    assert by_key(frame, "count") == {key: row[0] for key, row in naive.items()}
    weights = {key: row[2] for key, row in naive.items()}
    assert by_key(frame, "weight_sum") == pytest.approx(weights, rel=1e-12)


def test_unique_is_every_selection_of_a_new_context(recording: Recording) -> None:
    counts: dict[Any, int] = defaultdict(int)
    weights: dict[Any, float] = defaultdict(float)
    for sequence, layer, position, _, expert, weight in recording.selections():
        if 0 <= sequence.new_from <= position:
            segment = SEGMENTS[sum(position >= end for end in sequence.bounds[:-1])]
            key = (layer, expert, sequence.task, sequence.subject, sequence.area, segment)
            counts[key] += 1
            weights[key] += weight
    frame = exported(choose(recording.path, Rule.UNIQUE))
    assert by_key(frame, "count") == counts
    assert by_key(frame, "weight_sum") == pytest.approx(weights, rel=1e-12)


@pytest.mark.parametrize("rule", [Rule.QUESTION, Rule.DECISION])
def test_other_rules_agree_with_the_analysis(recording: Recording, rule: Rule) -> None:
    frame = exported(choose(recording.path, rule))
    counted = count(open_trace(recording.path), rule)
    for layer, rows in frame.groupby("layer"):
        sums = rows.groupby("expert")["count"].sum()
        expected_N = counted.layer(int(str(layer))).counts_N
        assert sums.to_dict() == {n: c for n, c in enumerate(expected_N.tolist()) if c}


def test_some_layers_and_subjects_are_rows_of_the_whole(recording: Recording) -> None:
    whole = by_key(exported(choose(recording.path)), "count")
    some = exported(choose(recording.path, layers="1,5", subjects=["subject 0"]))
    expected = {k: v for k, v in whole.items() if k[0] in (1, 5) and k[3] == "subject 0"}
    assert expected
    assert by_key(some, "count") == expected


def test_subjects_are_called_as_in_the_tables_of_a_report(recording: Recording) -> None:
    names = analyse(recording.path, shuffles=1, replicates=2, permutations=2).subjects["subject"]
    for name in set(names):
        assert len(exported(choose(recording.path, subjects=[name])))
    with pytest.raises(UsageError, match=r"no subject 'subject 9'. It has 3, such as 'subject"):
        exported(choose(recording.path, subjects=["subject 9"]))


@pytest.mark.parametrize("rule", [Rule.RAW, Rule.UNIQUE])
def test_a_trace_of_counts_gives_the_same_but_for_weights(tmp_path: Path, rule: Rule) -> None:
    paths = [tmp_path / capture for capture in ("weights", "counts")]
    for path in paths:
        record(path, 4, capture=path.name, share=False)
    with_rows, without = (exported(choose(path, rule)) for path in paths)
    assert by_key(with_rows, "count") == by_key(without, "count")
    assert without["weight_sum"].isna().all()
    with pytest.raises(TraceError, match="do not tell what the rule decision counts"):
        exported(choose(paths[1], Rule.DECISION))


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_files_are_read_by_other_tools(recording: Recording, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"counts{suffix}"
    written = write_rows(count_table(choose(recording.path)), path, suffix)
    frame = exported(choose(recording.path))
    assert written == len(frame)
    expected = frame.groupby(["layer", "expert"])["count"].sum().to_dict()
    kind = suffix.removeprefix(".")
    in_pandas = getattr(pd, f"read_{kind}")(path).groupby(["layer", "expert"])["count"].sum()
    in_polars = getattr(pl, f"read_{kind}")(path).group_by("layer", "expert").agg(pl.sum("count"))
    query = f"SELECT layer, expert, sum(count) FROM '{path}' GROUP BY ALL"
    assert in_pandas.to_dict() == expected
    assert {(a, b): c for a, b, c in in_polars.rows()} == expected
    assert {(a, b): c for a, b, c in duckdb.sql(query).fetchall()} == expected


def test_a_trace_without_sequences_has_no_counts(tmp_path: Path) -> None:
    recording = record(tmp_path / "trace", 0, num_prompts=0, capture="weights")
    assert len(exported(choose(recording.path))) == 0
