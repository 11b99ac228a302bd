"""pandas, polars and DuckDB read a trace as docs/trace-format.md says, and agree with us."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest

from moe_probe.trace import Block, Trace, open_trace
from moe_probe.trace.schema import COUNTS_SCHEMA, SEQUENCE_SCHEMA
from tests.trace.recordings import LAYERS, record, stored_passes

DOCUMENT = Path(__file__).parents[2] / "docs" / "trace-format.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trace:
    record(tmp_path / "my-trace", 0, capture="weights")
    monkeypatch.chdir(tmp_path)
    return open_trace(tmp_path / "my-trace")


def ours(trace: Trace, layer: int) -> list[list[int]]:
    ids_TK = np.concatenate([block.topk_ids(layer) for block in trace.scan()])
    return [list(row) for row in ids_TK.tolist()]


def scalars(block: Block, layer: int) -> list[list[float]]:
    rows: list[list[float]] = block.router_scalars(layer).tolist()
    return rows


def run(block: str) -> dict[str, Any]:
    """Execute a block of the document and return its variables."""
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(block, names)
    return names


@pytest.mark.parametrize("spec", LAYERS, ids=lambda spec: spec.ids_column)
def test_ids_by_every_tool(trace: Trace, spec: Any) -> None:
    files, name, expected = "my-trace/routing/*.parquet", spec.ids_column, ours(trace, spec.layer)
    columns = [
        pd.read_parquet("my-trace/routing")[name].tolist(),
        pl.read_parquet(files)[name].to_list(),
        [row[0] for row in duckdb.sql(f"SELECT {name} FROM '{files}'").fetchall()],
    ]
    for column in columns:
        ids_TK = np.frombuffer(b"".join(column), spec.dtype).reshape(len(column), spec.top_k)
        assert ids_TK.tolist() == expected
    weights = np.frombuffer(
        b"".join(pl.read_parquet(files)[spec.weights_column].to_list()), np.float16
    )
    mine = [block.topk_weights(spec.layer).ravel() for block in trace.scan(weights=True)]
    assert weights.tolist() == np.concatenate(mine).tolist()
    if not spec.scalars:
        return
    blocks = trace.scan(weights=True)
    stored = [row for block in blocks for row in scalars(block, spec.layer)]
    name = spec.scalars_column
    columns = [
        pd.read_parquet("my-trace/routing")[name].tolist(),
        pl.read_parquet(files)[name].to_list(),
        [row[0] for row in duckdb.sql(f"SELECT {name} FROM '{files}'").fetchall()],
    ]
    for column in columns:
        assert [np.frombuffer(row, np.float16).tolist() for row in column] == stored


def test_forward_passes_by_every_tool(trace: Trace) -> None:
    files, expected = "my-trace/routing/*.parquet", list(stored_passes(trace).values())
    assert pd.read_parquet("my-trace/routing")["forward_pass"].tolist() == expected
    assert pl.read_parquet(files)["forward_pass"].to_list() == expected
    rows = duckdb.sql(f"SELECT forward_pass FROM '{files}'").fetchall()
    assert [row[0] for row in rows] == expected
    assert trace.to_pandas()["forward_pass"].tolist() == expected
    assert len(set(expected)) > 20


@pytest.mark.parametrize(
    ("kind", "schema"), [("counts", COUNTS_SCHEMA), ("sequences", SEQUENCE_SCHEMA)]
)
def test_tables_by_every_tool(trace: Trace, kind: str, schema: Any) -> None:
    table, files = getattr(trace, kind), f"my-trace/{kind}/*.parquet"
    keys = [name for name in schema.names if not name.startswith(("choice", "weight", "response"))]
    keys = [name for name in keys if name != "correct"] + [
        n for n in schema.names if n == "choice_end"
    ]
    expected = sorted(zip(*(table[name].to_pylist() for name in keys), strict=True))
    pandas_rows = pd.read_parquet(f"my-trace/{kind}")[keys].itertuples(index=False, name=None)
    assert sorted(pandas_rows) == expected
    assert sorted(pl.read_parquet(files).select(keys).rows()) == expected
    assert sorted(duckdb.sql(f"SELECT {', '.join(keys)} FROM '{files}'").fetchall()) == expected
    assert pl.read_parquet(files).schema.names() == schema.names


def test_typed_views(trace: Trace) -> None:
    typed, frame = trace.to_arrow(), trace.to_pandas()
    for spec in LAYERS:
        assert typed[spec.ids_column].to_pylist() == ours(trace, spec.layer)
        assert [row.tolist() for row in frame[spec.ids_column]] == ours(trace, spec.layer)
        assert (spec.scalars_column in typed.column_names) == spec.scalars
        if spec.scalars:
            blocks = trace.scan(weights=True)
            stored = [row for block in blocks for row in scalars(block, spec.layer)]
            assert typed[spec.scalars_column].to_pylist() == stored
            assert [row.tolist() for row in frame[spec.scalars_column]] == stored
    assert typed.num_rows == len(frame) == len(ours(trace, 1))
    query = "SELECT e, count(*) FROM (SELECT unnest(L01) e FROM typed) GROUP BY e ORDER BY e"
    assert duckdb.sql(query).fetchall() == list(
        enumerate(np.bincount(np.ravel(ours(trace, 1))).tolist())
    )


def test_documented_blocks(trace: Trace) -> None:
    assert len(BLOCKS) == 6
    names = [run(block) for block in BLOCKS]
    assert names[0]["ids"].tolist() == names[1]["ids"].tolist() == ours(trace, 1)
    runs, table = names[4]["runs"], names[5]["runs"]
    in_sql = dict(zip(zip(table.sequence_id, table.position, strict=True), table.runs, strict=True))
    assert runs == in_sql
    counts = np.zeros(8, np.int64)
    for block in trace.scan([1]):
        for key, ids in zip(
            zip(block.sequence_id_T, block.position_T, strict=True), block.topk_ids(1), strict=True
        ):
            counts[ids] += runs[key]
    totals = trace.counts.group_by(["layer", "expert"]).aggregate([("count", "sum")]).to_pylist()
    expected = {row["expert"]: row["count_sum"] for row in totals if row["layer"] == 1}
    assert dict(enumerate(counts.tolist())) == expected
