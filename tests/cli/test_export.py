"""`moe-probe export` as a user meets it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest

from moe_probe.cli.export import SUFFIXES, Format
from moe_probe.trace import LayerSpec, TraceWriter, open_trace
from tests.trace.recordings import record

LAYERS = [LayerSpec(layer=n, num_experts=8, top_k=2) for n in (1, 2, 5)]
KINDS = [(kind, suffix) for kind, suffixes in SUFFIXES.items() for suffix in suffixes]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    run = {"model_facts": {"num_layers": 6}}
    return record(tmp_path / "trace", 0, capture="weights", layers=LAYERS, run=run).path


def read(path: Path) -> Any:
    """Whatever a file holds: its rows, or its array."""
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".json":
        return np.array(json.loads(path.read_text())["logical_count"])
    if path.suffix == ".pt":
        torch = pytest.importorskip("torch")
        return torch.load(path, weights_only=True)["logical_count"].numpy()
    return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)


@pytest.mark.parametrize(("kind", "suffix"), KINDS)
def test_every_format_is_written_and_counted(
    probe: Any, trace: Path, tmp_path: Path, kind: Format, suffix: str
) -> None:
    path = tmp_path / "new" / f"file{suffix}"
    result = probe("export", trace, "--format", kind, "-o", path, "--rule", "raw")
    assert result.code == 0, result.err
    found, sums = read(path), pd.DataFrame(open_trace(trace).counts.to_pydict())
    is_load = kind in (Format.EPLB, Format.LOGICAL_COUNT)
    name, rows = result.out.splitlines()
    assert name == str(path)
    number = found.shape[-2] if is_load and suffix != ".csv" else len(found)
    of = " of 8 experts" if is_load else ""
    assert rows == f"{number:,} rows{of}, counting rule raw"
    assert result.err == ""
    if isinstance(found, np.ndarray):
        total = found.sum()
    elif kind is Format.EPLB:
        total = found.drop(columns="layer").to_numpy().sum()
    else:
        total = (
            found["count"] * found["experts"].map(len) if kind is Format.LISTS else found["count"]
        )
        total = total.sum()
    assert total == sums["count"].sum()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("rule", ["unique", "raw"])
def test_three_tools_agree_with_the_table(
    probe: Any, trace: Path, tmp_path: Path, rule: str
) -> None:
    path = tmp_path / "file.parquet"
    probe("export", trace, "--format", "selections", "-o", path, "--rule", rule)
    column = "count" if rule == "raw" else "unique_count"
    table = pd.DataFrame(open_trace(trace).counts.to_pydict()).groupby(["layer", "expert"])[column]
    expected = {key: number for key, number in table.sum().items() if number}
    in_pandas = pd.read_parquet(path).groupby(["layer", "expert"])["count"].sum().to_dict()
    in_polars = pl.read_parquet(path).group_by("layer", "expert").agg(pl.sum("count")).rows()
    query = f"SELECT layer, expert, sum(count) FROM '{path}' GROUP BY ALL"
    assert in_pandas == expected
    assert {(a, b): n for a, b, n in in_polars} == expected
    assert {(a, b): n for a, b, n in duckdb.sql(query).fetchall()} == expected


def test_rule_is_that_of_a_report_but_for_loads(probe: Any, trace: Path, tmp_path: Path) -> None:
    for kind, suffix in KINDS:
        path = tmp_path / f"{kind}{suffix}"
        found = json.loads(probe("export", trace, "--format", kind, "-o", path, "--json").out)
        expected = "raw" if kind in (Format.EPLB, Format.LOGICAL_COUNT) else "unique"
        assert (found["rule"], found["layers"]) == (expected, [1, 2, 5])
        assert (found["file"], found["format"]) == (str(path), kind)
        if "shape" not in found:
            assert found["rows"] == len(read(path))
        elif suffix != ".csv":
            assert tuple(found["shape"]) == read(path).shape


def test_some_layers_and_subjects(probe: Any, trace: Path, tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    options = ["--layers", "2-5", "--subject", "subject 0", "--subject", "subject 2"]
    assert probe("export", trace, "--format", "counts", "-o", path, *options).code == 0
    frame = pd.read_csv(path)
    assert set(frame["layer"]) == {2, 5}
    assert set(frame["subject"]) == {"subject 0", "subject 2"}


def test_nothing_is_overwritten_unless_asked(probe: Any, trace: Path, tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    path.write_text("mine")
    result = probe("export", trace, "--format", "counts", "-o", path)
    assert (result.code, result.out, path.read_text()) == (2, "", "mine")
    assert result.err == (
        f"Error: {path} exists. Choose another --output, or use --force to overwrite.\n"
    )
    assert probe("export", trace, "--format", "counts", "-o", path, "--force").code == 0
    assert len(pd.read_csv(path))


def test_the_trace_stays_as_it_is(probe: Any, trace: Path) -> None:
    before = {path: path.read_bytes() for path in trace.rglob("*") if path.is_file()}
    result = probe("export", trace, "--format", "logical-count", "-o", trace / "run.json", "-f")
    assert (result.code, "lies in the trace" in result.err) == (2, True)
    assert {path: path.read_bytes() for path in trace.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "lists", "-o", "x.csv"], "--format lists writes .parquet, not x.csv."),
        (["--format", "eplb", "-o", "x"], "--format eplb writes .npy or .csv, not x."),
        (["--format", "counts", "-o", "x.csv", "--layers", "3"], "no MoE layer 3: it has 1-2,5."),
        (["--format", "counts", "-o", "x.csv", "--layers", "a"], "Write 3 or 5-7."),
        (["--format", "counts", "-o", "x.csv", "--subject", "law"], "no subject 'law'. It has 3,"),
        (["--format", "logical-count", "-o", "x.json", "--layers", "1"], "Use --format eplb"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    probe: Any,
    trace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    result = probe("export", trace, *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert not list(empty.iterdir())


def test_what_is_no_trace_is_one_sentence(probe: Any, tmp_path: Path) -> None:
    result = probe("export", tmp_path, "--format", "counts", "-o", tmp_path / "x.csv")
    assert result.code == 1
    assert re.fullmatch(r"Error: .* is not a moe-probe trace.*\n", result.err)


def test_without_torch_the_other_ending_is_named(
    probe: Any, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "counts.pt"
    result = probe("export", trace, "--format", "logical-count", "-o", path)
    assert result.code == 2
    assert "A .pt file needs torch, which is not installed. Write .json" in result.err
    assert not path.exists()
    path = path.with_suffix(".json")
    assert probe("export", trace, "--format", "logical-count", "-o", path).code == 0


def test_what_a_file_does_not_tell_is_said(probe: Any, tmp_path: Path) -> None:
    ids = [np.array([[0, 1], [2, 1]])]
    with TraceWriter(tmp_path / "t", layers=LAYERS[:1]) as writer:
        writer.add(ids)
        writer.close("interrupted")
    run = json.loads((tmp_path / "t" / "run.json").read_text())
    (tmp_path / "t" / "run.json").write_text(json.dumps({**run, "rows_not_kept": 3}))
    path = tmp_path / "x.json"
    result = probe("export", tmp_path / "t", "--format", "logical-count", "-o", path)
    assert result.code == 0
    for sentence in (
        f"{tmp_path / 't'} is not a complete recording: see moe-probe check {tmp_path / 't'}",
        "A size limit left out rows of this trace. The file has what was kept.",
        "run.json does not say how many layers the model has. The file ends with 1, the last",
    ):
        assert sentence in result.err


def test_help_shows_an_example_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from moe_probe.cli import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'pandas', 'pyarrow', 'torch', 'matplotlib'} & sys.modules.keys()\n"
        "print('heavy:', *heavy)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, "export", "--help"], capture_output=True, text=True, check=True
    )
    assert "Example: moe-probe export my-trace" in found.stdout
    assert found.stdout.endswith("heavy:\n")
