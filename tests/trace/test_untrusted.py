"""A trace is untrusted input: whatever is wrong with it is one TraceError, no crash."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, Trace, TraceWriter, open_trace
from moe_probe.trace.files import TraceFiles, read_run, write_run
from moe_probe.trace.schema import (
    COUNTS_SCHEMA,
    LATER_COLUMNS,
    MAY_BE_NULL,
    OUTCOMES,
    SEQUENCE_SCHEMA,
)
from tests.trace.recordings import record


@pytest.fixture
def path(tmp_path: Path) -> Path:
    record(tmp_path / "t", 0, capture="weights")
    return tmp_path / "t"


def read_all(path: Path) -> None:
    trace = open_trace(path)
    trace.sequences, trace.counts, trace.sharing.extra_runs()
    for block in trace.scan(weights=True):
        for layer, spec in trace.layers.items():
            block.topk_ids(layer), block.topk_weights(layer)
            if spec.scalars:
                block.router_scalars(layer)


def read_everything(path: Path) -> None:
    """The same, and what only a scan reads."""
    trace = open_trace(path)
    for part in trace.routing_parts:
        trace.read_identity(part, token_ids=True, forward_passes=True)
        trace.read_layers(part, list(trace.layers), weights=True)
    read_all(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 200_000, b'{"model": 1}', b'"moe_probe_trace"'],
)
def test_run_file_that_is_none(path: Path, content: bytes) -> None:
    (path / "run.json").write_bytes(content)
    with pytest.raises(TraceError, match=r"run\.json is not a moe-probe run file: .*\.$"):
        open_trace(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moe_probe_trace": 2}, "is a trace of format 2; this moe-probe reads format 1"),
        ({"capture": "everything"}, "lacks what a trace needs"),
        ({"capture": None}, "lacks what a trace needs"),
        ({"layers": {"a": 1}}, "describes its layers as"),
        ({"layers": ["layer"]}, "describes a layer as 'layer'"),
        ({"layers": [{"layer": 1}]}, "describes a layer as"),
        ({"layers": [{"layer": 1.5, "num_experts": 8, "top_k": 2}]}, "impossible layer"),
        ({"layers": [{"layer": True, "num_experts": 8, "top_k": 2}]}, "impossible layer"),
        ({"layers": [{"layer": 1, "num_experts": 1 << 40, "top_k": 2}]}, "impossible layer"),
        (
            {"layers": [{"layer": 1, "num_experts": 8, "top_k": 2, "scalars": 1}]},
            "impossible layer",
        ),
        ({"layers": [{"layer": 1, "num_experts": 8, "top_k": 2}] * 2}, "a layer twice"),
    ],
)
def test_run_file_that_says_nonsense(path: Path, change: dict[str, Any], message: str) -> None:
    run = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**run, **change}))
    with pytest.raises(TraceError, match=message):
        open_trace(path)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_null(path: Path, number: str) -> None:
    text = (path / "run.json").read_text()
    known = json.loads(text)
    text = text.replace("{", f'{{"results": {{"t": {{"acc": [0.5, {number}, 2]}}}},', 1)
    (path / "run.json").write_text(text)
    expected = {"t": {"acc": [0.5, None, 2]}}
    assert open_trace(path).run == {**known, "results": expected}


def test_lone_surrogates_are_question_marks(path: Path) -> None:
    run = json.loads((path / "run.json").read_text())
    names = {"model": "a\ud800\U0001f600", "task": ["\udfff", 0.5]}
    (path / "run.json").write_text(json.dumps({**run, **names}))
    expected = {"model": "a?\U0001f600", "task": ["?", 0.5]}
    assert open_trace(path).run == {**run, **expected}


def test_scores_that_are_not_finite_are_written_as_null(path: Path) -> None:
    """Other tools read run.json too, and JSON has no NaN."""
    files = TraceFiles(path)
    write_run(files, {**read_run(files), "results": {"t": {"acc": float("nan"), "n": 0.25}}})
    text = (path / "run.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["results"] == {"t": {"acc": None, "n": 0.25}}


def test_no_trace_at_all(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(TraceError, match=r"is not a moe-probe trace: it has no run\.json"):
            open_trace(path)


@pytest.mark.parametrize("kind", ["routing", "counts", "sequences"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text", "foreign", "folder"])
def test_damaged_parts(path: Path, kind: str, damage: str) -> None:
    part = min((path / kind).glob("part-0-*.parquet"))
    content = part.read_bytes()
    part.unlink()
    if damage == "folder":
        part.mkdir()
    elif damage == "foreign":
        pq.write_table(pa.table({"a": [1, 2]}), part)
    else:
        part.write_bytes({"empty": b"", "cut": content[:-20], "text": b"hello"}[damage])
    with pytest.raises(TraceError, match=rf"{part} cannot be read as part of a trace: .*\.$"):
        read_all(path)


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("routing", ["sequence_id", "position", "token_id", "forward_pass", "L01", "W01"]),
        ("counts", [field.name for field in COUNTS_SCHEMA if field.name != "weight_sum"]),
        ("sequences", [field.name for field in SEQUENCE_SCHEMA if field not in OUTCOMES]),
    ],
)
def test_columns_without_a_value(path: Path, kind: str, columns: list[str]) -> None:
    part = min((path / kind).glob("part-0-*.parquet"))
    table = pq.read_table(part)
    for column in columns:
        values = table[column].combine_chunks()
        some = pa.concat_arrays([values[:-1], pa.nulls(1, values.type)])
        place = table.schema.get_field_index(column)
        pq.write_table(table.set_column(place, column, some), part)
        with pytest.raises(TraceError, match=f"{part} cannot .*: {column} is null in some row"):
            read_everything(path)
    for column in MAY_BE_NULL & set(table.column_names):
        place, values = table.schema.get_field_index(column), table[column]
        table = table.set_column(place, column, pa.nulls(len(table), values.type))
    pq.write_table(table, part)
    read_everything(path)


@pytest.mark.parametrize(
    "values", [pa.array([1, 2]), pa.array([b"aa", b"bb"]), pa.array([b"a", b"b"], pa.binary(1))]
)
def test_routing_of_other_types(path: Path, values: pa.Array) -> None:
    part = next((path / "routing").glob("*.parquet"))
    table = pq.read_table(part).slice(0, 2)
    pq.write_table(table.set_column(table.schema.get_field_index("L01"), "L01", values), part)
    with pytest.raises(TraceError, match="L01 is not of type"):
        read_all(path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("sequence_id", -1),
        ("sequence_id", 1),
        ("num_tokens", 1 << 50),
        ("multiplicity", -3),
        ("prefix_tokens", 1 << 20),
        ("cached_tokens", 1),
        ("prefix_id", 1 << 62),
    ],
)
def test_impossible_sequences(path: Path, column: str, value: int) -> None:
    part = next((path / "sequences").glob("*.parquet"))
    table = pq.read_table(part)
    values = pa.array([value, *table[column].to_pylist()[1:]], pa.int64())
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, values), part)
    with pytest.raises(TraceError, match="is damaged"):
        read_all(path)


def test_a_trace_of_before_a_column_opens(path: Path) -> None:
    expected = open_trace(path).sequences
    for part in (path / "sequences").glob("*.parquet"):
        table = pq.read_table(part)
        later = [name for name in LATER_COLUMNS if name in table.column_names]
        assert len(later) == 2
        pq.write_table(table.drop_columns(later), part)
    assert open_trace(path).sequences.equals(expected)


def test_names_come_from_here_and_links_are_not_written_through(tmp_path: Path) -> None:
    TraceWriter(tmp_path / "t", layers=[LayerSpec(layer=0, num_experts=4, top_k=1)]).close()
    run = json.loads((tmp_path / "t" / "run.json").read_text())
    (tmp_path / "t" / "run.json").write_text(json.dumps({**run, "status": "running"}))
    (tmp_path / "mine.txt").write_text("mine")
    os.symlink(tmp_path / "mine.txt", tmp_path / "t" / "run.json.tmp")
    (tmp_path / "t" / "sequences" / "part-evil.parquet").write_text("not one of ours")
    (tmp_path / "t" / "stage").mkdir()
    (tmp_path / "t" / "stage" / "segment-x-y.bin").write_text("nor this")
    assert open_trace(tmp_path / "t").run["status"] == "killed"
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda trace: next(trace.scan(weights=True)), "has no gate weights"),
        (lambda trace: next(trace.scan([3])), "has no MoE layer 3"),
    ],
)
def test_what_a_trace_lacks(tmp_path: Path, call: Callable[[Trace], object], message: str) -> None:
    record(tmp_path / "t", 0)
    with pytest.raises(TraceError, match=message):
        call(open_trace(tmp_path / "t"))


def test_counts_only_traces_have_no_rows(tmp_path: Path) -> None:
    record(tmp_path / "t", 0, capture="counts", share=False)
    with pytest.raises(TraceError, match=r"has no per-token rows\. Record with --capture ids"):
        next(open_trace(tmp_path / "t").scan())
