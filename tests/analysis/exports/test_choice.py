"""Layers as people write them, and files that are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import csv

from moe_probe.analysis import Rule
from moe_probe.analysis.exports.choice import Choice
from moe_probe.analysis.exports.files import Rows, new_file, refuse_path, write_rows
from moe_probe.errors import MoeProbeError, UsageError
from moe_probe.trace import LayerSpec, Trace, TraceWriter, open_trace

KNOWN = [0, 2, 3, 4, 7, 11, 12, 60]
SPANS = st.tuples(st.integers(0, 99), st.integers(0, 99)).map(sorted)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    path = tmp_path_factory.mktemp("layers") / "trace"
    layers = [LayerSpec(layer=layer, num_experts=4, top_k=1) for layer in reversed(KNOWN)]
    with TraceWriter(path, layers=layers):
        pass
    return open_trace(path)


@given(spans=st.lists(SPANS, min_size=1, max_size=4))
def test_spans_take_the_layers_that_there_are(trace: Trace, spans: list[list[int]]) -> None:
    text = ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in spans)
    chosen = [[layer for layer in KNOWN if a <= layer <= b] for a, b in spans]
    if all(chosen):
        expected = sorted({layer for layers in chosen for layer in layers})
        assert list(Choice.of(trace, Rule.RAW, text).layers) == expected
    else:
        with pytest.raises(UsageError, match="it has 0,2-4,7,11-12,60"):
            Choice.of(trace, Rule.RAW, text)


def test_all_layers_come_in_ascending_order(trace: Trace) -> None:
    assert list(Choice.of(trace, Rule.RAW).layers) == KNOWN


def test_a_dense_model_has_nothing_to_export(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "trace", layers=[]):
        pass
    with pytest.raises(UsageError, match="no MoE layers"):
        Choice.of(open_trace(tmp_path / "trace"), Rule.RAW)


def test_a_file_that_fails_leaves_nothing(tmp_path: Path) -> None:
    schema = pa.schema([("a", pa.int32())])

    def tables() -> object:
        yield pa.table({"a": pa.array([1], pa.int32())})
        raise UsageError("in the middle")

    for suffix in (".csv", ".parquet"):
        path = tmp_path / "folder" / f"x{suffix}"
        rows = Rows(schema, tables())  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="in the middle"), new_file(path) as temporary:
            write_rows(rows, temporary, suffix)
        assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_name_need_not_be_text(tmp_path: Path, suffix: str) -> None:
    table = pa.table({"a": pa.array([1, 2], pa.int32())})
    path = tmp_path / f"x\udcff{suffix}"
    assert write_rows(Rows(table.schema, [table]), path, suffix) == 2
    with path.open("rb") as file:
        read = csv.read_csv(file) if suffix == ".csv" else pq.read_table(file)
    assert read["a"].to_pylist() == [1, 2]


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with new_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert [p.read_text() for p in tmp_path.iterdir()] == ["new"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "x.csv"
    with pytest.raises(MoeProbeError, match=r"Cannot write .*x\.csv"), new_file(path) as temporary:
        temporary.write_text("")


def test_paths_that_would_do_harm_are_refused(tmp_path: Path) -> None:
    trace, other = tmp_path / "trace", tmp_path / "x.csv"
    trace.mkdir()
    other.write_text("mine")
    for path, message in (
        (tmp_path, "is a directory"),
        (trace / "counts" / "part-0-000009.parquet", "lies in the trace"),
        (tmp_path / "elsewhere" / ".." / "trace" / "run.json", "lies in the trace"),
    ):
        with pytest.raises(UsageError, match=message):
            refuse_path(path, trace, force=True)
    with pytest.raises(UsageError, match="--force to overwrite"):
        refuse_path(other, trace, force=False)
    refuse_path(other, trace, force=True)
    (tmp_path / "link.csv").symlink_to(trace / "run.json")
    with pytest.raises(UsageError, match="lies in the trace"):
        refuse_path(tmp_path / "link.csv", trace, force=True)
