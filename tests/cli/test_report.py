"""`moe-probe report`: what it writes, prints, refuses and escapes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.trace import LayerSpec, TraceWriter, open_trace
from tests.cli.html_page import Page

HOSTILE = "\"'><script>alert(1)</script>&\x1b[31m\nnew"
NAMES = (
    "experts layers indices idle_windows subjects specialization coactivation repeats quality "
    "divergence segments rules correctness variance slots transitions positions batches devices "
    "placement coverage weights confidence margins subject_coverage first_position"
)
TABLES = [f"tables/{name}.{kind}" for name in NAMES.split() for kind in ("csv", "parquet")]
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
DRAWN = (
    "quality relative_load sorted_load imbalance coverage rate_burst longest_idle repeats devices"
)
"""Figures of a trace of one subject."""
PICTURES = [f"figures/{name}.png" for name in DRAWN.split()]
FILES = ["report.json", *TABLES, *PICTURES, "report.html"]
PRINTED = ["report.json", "tables", "figures", "report.html"]
QUICK = ("--figures", "none")


@pytest.fixture
def new_trace(tmp_path: Path) -> Callable[..., Path]:
    """Write a trace of 40 prefix and 60 question tokens, the first run twice."""

    def write(*, status: str = "complete", new_from: int = 0, **run: Any) -> Path:
        layers = [LayerSpec(layer=n, num_experts=8, top_k=2) for n in (3, 4)]
        rng = np.random.default_rng(5)
        ids = [rng.random((100, 7)).argsort(axis=1)[:, :2] for _ in layers]  # 7 is idle
        writer = TraceWriter(tmp_path / "trace", layers=layers, run=run)
        writer.add(ids, prefix_end=40, multiplicity=2, subject=HOSTILE, new_from=new_from)
        writer.close(status)
        return tmp_path / "trace"

    return write


def test_files_are_written_and_named(probe: Any, new_trace: Any) -> None:
    trace = new_trace(model="m")
    result = probe("report", trace)
    assert result.code == 0
    assert result.out.splitlines()[-4:] == [str(trace / "report" / name) for name in PRINTED]
    assert all((trace / "report" / name).stat().st_size for name in FILES)
    assert result.err == f"Next: open {trace / 'report/report.html'} in a browser\n"
    assert max(map(len, result.out.split("\n\n")[0].splitlines())) <= 80
    open_trace(trace)  # a report inside a trace leaves it readable


@pytest.mark.parametrize(
    ("choice", "kinds"), [("both", {".png", ".svg"}), ("svg", {".svg"}), ("none", set())]
)
def test_figures_are_of_the_kinds_asked_for(
    probe: Any, new_trace: Any, choice: str, kinds: set[str]
) -> None:
    trace = new_trace()
    document = json.loads(probe("report", trace, "--figures", choice, "--json").out)
    names = [path for path in map(Path, document["files"]) if path.parent.name == "figures"]
    assert {path.suffix for path in names} == kinds
    assert {path.stem for path in names} == (set(DRAWN.split()) if kinds else set())
    assert all(path.stat().st_size for path in names)
    # The page has its own, for readers without scripts.
    assert '<img src="data:image/png;base64,' in (trace / "report/report.html").read_text()


@pytest.mark.parametrize(("rule", "tokens"), [("unique", 100), ("raw", 200), ("question", 60)])
def test_rule_decides_what_counts(probe: Any, new_trace: Any, rule: str, tokens: int) -> None:
    trace = new_trace()
    result = probe("report", trace, *QUICK, "--rule", rule)
    assert f"counted  {tokens} tokens in 1 sequences\nrule     {rule}: " in result.out
    layers = pd.read_csv(trace / "report/tables/layers.csv")
    assert layers["tokens"].tolist() == [tokens] * 2
    assert layers["unseen"].tolist() == [1, 1]
    experts = pd.read_csv(trace / "report/tables/experts.csv")
    assert experts.groupby("layer")["count"].sum().tolist() == [2 * tokens] * 2


def test_json_is_one_document_with_the_same_numbers(probe: Any, new_trace: Any) -> None:
    trace = new_trace(model="m")
    result = probe("report", trace, "--json")
    document = json.loads(result.out)
    assert document["tokens"] == 100
    assert [layer["layer"] for layer in document["layers"]] == [3, 4]
    assert document["files"] == [str(trace / "report" / name) for name in FILES]
    written = json.loads((trace / "report/report.json").read_text())
    assert written["files"] == FILES
    assert {**written, "files": 0} == {**document, "files": 0}


def test_figures_that_were_left_out_are_named(probe: Any, new_trace: Any) -> None:
    trace = new_trace()
    written = json.loads(probe("report", trace, "--figures", "svg", "--json").out)
    # One subject: there is nothing to compare.
    assert written["figures_left_out"] == [
        {"figure": name, "reason": "all tokens are of one subject"}
        for name in ("specialization", "subject_tree", "log_odds")
    ]
    drawn = {path.stem for path in (trace / "report/figures").iterdir()}
    assert drawn == set(DRAWN.split())
    # None was asked for.
    assert json.loads(probe("report", trace, *QUICK, "--json").out)["figures_left_out"] == []


def test_options_of_the_run_are_shown(probe: Any, new_trace: Any) -> None:
    run = {"options": {"tasks": ["a", "b"], "limit": 5}, "engine": {"name": "e", "version": "1.2"}}
    trace = new_trace(**run)
    assert "tasks    a, b\n" in probe("report", trace, *QUICK).out
    text = (trace / "report/report.html").read_text()
    assert "<dt>limit</dt><dd>5</dd>" in text
    assert "<dt>engine</dt><dd>e, 1.2</dd>" in text


def test_findings_are_stated(probe: Any, new_trace: Any) -> None:
    out = " ".join(probe("report", new_trace(), *QUICK).out.split())
    assert "random routing gives about" in out
    assert (
        "Never selected: 2 of 16 experts (under 0.001 by chance), such as expert 7 of layer 3"
        in out
    )
    assert "dead" not in out


def test_names_from_the_trace_are_escaped(probe: Any, new_trace: Any) -> None:
    trace = new_trace(model=HOSTILE, task=HOSTILE, tasks=[HOSTILE], engine={"name": HOSTILE})
    out = probe("report", trace, *QUICK).out
    text = (trace / "report/report.html").read_text()
    page = Page(text)
    # The tests of the page look at what its scripts make of them.
    assert page.tags.count("script") == 3
    assert "alert(1)" in page.text
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"<script>alert|\x1b", text)
    assert "\x1b" not in out


def test_page_needs_no_network(probe: Any, new_trace: Any) -> None:
    trace = new_trace()
    probe("report", trace, *QUICK)
    page = Page((trace / "report/report.html").read_text())
    sources = [str(value) for name, value in page.attributes if name in ("src", "href")]
    assert {source[:11] for source in sources} == {"data:image/", "#content", "#summary"}
    assert not {"link", "iframe", "object", "base"} & set(page.tags)
    assert ("content", _POLICY) in page.attributes


def test_failing_check_withholds_findings(probe: Any, new_trace: Any) -> None:
    trace = new_trace(model_facts={"num_moe_layers": 3})
    result = probe("report", trace, *QUICK)
    assert "! Failed checks: Q7. Findings are withheld until they pass." in result.out
    assert "random routing gives" not in result.out
    assert result.err == f"Next: moe-probe check {trace}\n"
    text = (trace / "report/report.html").read_text()
    assert text.index("Failed checks: Q7") < text.index("Relative load")
    assert "<h2>Findings</h2>" not in text
    assert json.loads((trace / "report/report.json").read_text())["findings"] == []


def test_unfinished_trace_is_reported_as_that(probe: Any, new_trace: Any) -> None:
    trace = new_trace(status="interrupted")
    assert (
        "! This recording is not complete (status: interrupted)."
        in probe("report", trace, *QUICK).out
    )
    assert "not complete" in (trace / "report/report.html").read_text()


def test_nothing_counted_is_null_and_said(probe: Any, new_trace: Any) -> None:
    trace = new_trace(new_from=-1)
    result = probe("report", trace, *QUICK, "--rule", "unique", "--json")
    document = json.loads(result.out)
    assert document["layers"][0]["max_vio"] is None
    assert document["warnings"] == [
        "No token counts under the rule unique: every distinct context once."
    ]
    # Where nobody knows what is new, as with live traffic, what was run is counted instead.
    document = json.loads(probe("report", trace, "--json").out)
    assert document["rule"] == "raw"
    assert document["warnings"] == []


def test_counts_level_trace_is_reported(probe: Any, tmp_path: Path) -> None:
    layers = [LayerSpec(layer=0, num_experts=4, top_k=2)]
    with TraceWriter(tmp_path / "trace", layers=layers, capture="counts") as writer:
        writer.add([np.array([[0, 1], [2, 1], [3, 0]])])
    document = json.loads(probe("report", tmp_path / "trace", *QUICK, "--json").out)
    assert document["tokens"] == 3
    assert document["warnings"] == []


def test_earlier_report_is_replaced_and_other_files_stay(
    probe: Any, new_trace: Any, tmp_path: Path
) -> None:
    trace, output = new_trace(), tmp_path / "out"
    assert probe("report", trace, "-o", output, "--figures", "png").code == 0
    (output / "notes.txt").write_text("mine")
    assert probe("report", trace, "-o", output, "--tables-only").code == 0
    left = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert left == {"report.json", *TABLES, "notes.txt"}


@pytest.mark.parametrize("name", ["report.html", "report.json", "tables/layers.csv"])
def test_foreign_files_are_not_overwritten(
    probe: Any, new_trace: Any, tmp_path: Path, name: str
) -> None:
    trace, output = new_trace(), tmp_path / "out"
    (output / name).parent.mkdir(parents=True)
    (output / name).write_text("{}")
    result = probe("report", trace, *QUICK, "-o", output)
    assert result.code == 2
    assert f"has {name}, which no moe-probe report wrote" in result.err
    assert [path for path in output.rglob("*") if path.is_file()] == [output / name]
    assert probe("report", trace, *QUICK, "-o", output, "--force").code == 0
    assert (output / name).read_text() != "{}"


def test_output_that_is_a_file_is_refused(probe: Any, new_trace: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = probe("report", new_trace(), "-o", tmp_path / "file")
    assert (result.code, (tmp_path / "file").read_text()) == (2, "mine")


def test_what_is_not_a_trace_is_one_sentence(probe: Any, tmp_path: Path) -> None:
    result = probe("report", tmp_path)
    assert result.code == 1
    assert "is not a moe-probe trace" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    "order",
    ["x", "canonical:1", "shuffle-docs:one", "shuffle-docs:\u00b2", f"shuffle-docs:{'9' * 5000}"],
)
def test_an_order_that_there_is_not_is_a_usage_error(
    probe: Any, new_trace: Any, order: str
) -> None:
    trace = new_trace()
    result = probe("report", trace, "--order", order)
    assert result.code == 2
    assert "order" in result.err
    assert "Use canonical, execution" in " ".join(result.err.split())
    assert "Traceback" not in result.err
    assert not (trace / "report").exists()


@pytest.mark.parametrize("window", [(1 << 40) + 1, 10**23, 0, -1, "\u00b2", "nan"])
def test_a_window_that_no_trace_has_is_a_usage_error(
    probe: Any, new_trace: Any, window: int | str
) -> None:
    trace = new_trace()
    result = probe("report", trace, "--window", window, "--tables-only")
    assert (result.code, result.out) == (2, "")
    if window in (10**23, (1 << 40) + 1):
        said = " ".join(result.err.split())
        assert said.endswith(f"cannot have {window} tokens. Give a length from 1 to {1 << 40}.")
    assert not (trace / "report").exists()


def test_the_longest_window_and_more_threads_than_layers_change_no_other_number(
    probe: Any, new_trace: Any
) -> None:
    trace, tables = new_trace(), {}
    for more in ([], ["--window", 1 << 40, "--threads", 10**23, "--seed", 0]):
        assert probe("report", trace, "--window", 50, *more, "--tables-only").code == 0
        frame = pd.read_csv(trace / "report/tables/idle_windows.csv", comment="#")
        tables[len(more)] = frame[frame["window"] == 50].reset_index(drop=True)
    assert len(tables[0])
    pd.testing.assert_frame_equal(tables[0], tables[6])


def test_passes_that_a_trace_does_not_say_are_a_usage_error(probe: Any, new_trace: Any) -> None:
    trace = new_trace()
    result = probe("report", trace, "--order", "forward-passes")
    said = " ".join(result.err.split())
    assert (result.code, result.out) == (2, "")
    assert "that the rule unique counts 100 do not say it. Record again" in said
    assert "Traceback" not in result.err
    assert not (trace / "report").exists()
    # Under raw the first tokens count twice, and one pass of the two is unknown in any trace.
    result = probe("report", trace, "--order", "forward-passes", "--rule", "raw", *QUICK, "--json")
    assert result.code == 0
    assert "Idle runs are unknown" in json.loads(result.out)["findings"][2]


@pytest.fixture
def trace_of_passes(tmp_path: Path) -> Path:
    """Ten passes of four tokens, and an expert that only the first of them uses."""
    with TraceWriter(
        tmp_path / "passes", layers=[LayerSpec(layer=0, num_experts=4, top_k=1)]
    ) as writer:
        ids_T1 = np.random.default_rng(0).integers(1, 4, (40, 1))
        ids_T1[0] = 0
        writer.add([ids_T1], prefix_end=0, forward_passes=np.arange(40) // 4)
    return tmp_path / "passes"


def test_idle_runs_in_forward_passes(probe: Any, trace_of_passes: Path) -> None:
    options = ("--order", "forward-passes", "--window", "3", "--window", "20")
    result = probe("report", trace_of_passes, *options, "--json")
    said = json.loads(result.out)
    assert (said["order"], said["idle_unit"]) == ("forward-passes", "forward passes")
    assert said["settings"]["windows"] == [3, 20]
    assert "(idle runs in forward passes, 10 on 1 rank), T = 40 tokens" in said["caption"]
    written = json.loads((trace_of_passes / "report" / "report.json").read_text())
    assert written["columns_left_out"] == said["columns_left_out"]
    left_out = {(one["table"], one["column"]) for one in said["columns_left_out"]}
    assert {("experts", "burstiness"), ("idle_windows", "runs_shuffled")} <= left_out
    reasons = {one["figure"]: one["reason"] for one in said["figures_left_out"]}
    assert {"rate_burst", "longest_idle"} <= set(reasons)
    assert "forward passes differ in their tokens" in reasons["longest_idle"]
    tables: dict[str, Any] = {
        name: pd.read_csv(trace_of_passes / f"report/tables/{name}.csv") for name in NAMES.split()
    }
    names = ["longest_idle", "current_idle", "leading_idle"]
    assert tables["experts"].loc[0, names].tolist() == [9, 9, 0]
    for table, column in left_out:
        assert tables[table][column].isna().all(), column
    windows: Any = tables["idle_windows"].set_index(["expert", "window"])
    assert windows.loc[(0, 3), ["runs", "sliding", "window_tokens"]].tolist() == [1, 7, 12]
    assert np.isnan(windows.loc[(0, 20), "window_tokens"])
    assert set(tables["idle_windows"]["unit"]) == {"forward passes"}
    assert set(tables["experts"]["idle_unit"]) == {"forward passes"}
    text = probe("report", trace_of_passes, *options, "--force", *QUICK).out
    assert re.search(r"least used +0 +0 .* 9 passes\n", text)


@pytest.mark.parametrize("command", ["report", "check"])
def test_help_shows_an_example_and_loads_nothing_heavy(command: str) -> None:
    code = (
        "import sys; from moe_probe.cli import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'pandas', 'pyarrow', 'matplotlib'} & sys.modules.keys()\n"
        "print('heavy:', *heavy)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, command, "--help"], capture_output=True, text=True, check=True
    )
    assert f"Example: moe-probe {command} my-trace" in found.stdout
    assert found.stdout.endswith("heavy:\n")


def test_rule_names_are_those_of_the_analysis() -> None:
    from moe_probe.analysis.reading.rules import Rule
    from moe_probe.cli.report import RuleName

    assert {str(name) for name in RuleName} == {str(rule) for rule in Rule}
