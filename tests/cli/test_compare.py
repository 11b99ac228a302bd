"""`moe-probe compare`: what it writes, prints, refuses and escapes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis.comparison import TABLES
from moe_probe.trace import LayerSpec, TraceWriter
from tests.cli.html_page import Page

HOSTILE = "\"'><script>alert(1)</script>&\x1b[31m\nnew"
FILES = [
    "compare.json",
    *(f"tables/{name}.{kind}" for name in TABLES for kind in ("csv", "parquet")),
    "compare.html",
]


@pytest.fixture
def new_trace(tmp_path: Path) -> Callable[..., Path]:
    """Write a trace of eight documents of one subject; other seeds route otherwise."""

    def write(
        name: str, *, seed: int = 0, experts: int = 8, subject: str = "law", **run: Any
    ) -> Path:
        layers = [LayerSpec(layer=n, num_experts=experts, top_k=2) for n in (3, 4)]
        rng = np.random.default_rng(seed)
        facts = {"slot_order": "router_rank", **run}
        with TraceWriter(tmp_path / name, layers=layers, run=facts) as writer:
            for document in range(8):
                ids = [rng.random((20, experts - 1)).argsort(axis=1)[:, :2] for _ in layers]
                tokens = np.arange(20) + 100 * document
                writer.add(ids, subject=subject, task="t", doc_id=document, token_ids=tokens)
            correct = {("t", n): n % 2 == seed % 2 for n in range(8)}
            writer.close("complete", correct=correct)
        return tmp_path / name

    return write


def test_files_are_written_and_named(probe: Any, new_trace: Any, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = probe("compare", new_trace("a"), new_trace("b", seed=1), "-o", output)
    assert result.code == 0
    places = [str(output / name) for name in ("compare.json", "tables", "compare.html")]
    assert result.out.splitlines()[-3:] == places
    assert result.err == f"Next: open {output / 'compare.html'} in a browser\n"
    assert {str(p.relative_to(output)) for p in output.rglob("*") if p.is_file()} == {*FILES}
    summary = result.out.splitlines()[:-3]
    assert max(map(len, summary)) <= 80
    assert "b against a" in summary
    assert "\x1b" not in result.out
    table = pd.read_csv(output / "tables/experts.csv")
    assert len(table) == 16
    pd.testing.assert_frame_equal(
        table["difference"].to_frame(),
        pd.read_parquet(output / "tables/experts.parquet")["difference"].to_frame(),
    )


def test_json_is_one_document_with_the_same_numbers(
    probe: Any, new_trace: Any, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    paths = [new_trace("a"), new_trace("b", seed=1), new_trace("c")]
    result = probe("compare", *paths, "-o", output, "--json", "--baseline-accuracy", "0.25")
    document = json.loads(result.out)
    assert (document["reference"], document["rule"]) == ("a", "unique")
    assert document["baseline_accuracy"] == 0.25
    assert [row["trace"] for row in document["layers"]] == ["b", "b", "c", "c"]
    same = [row["same_set"] for row in document["agreement"]]
    assert same[2:] == [1, 1]
    assert max(same[:2]) < 0.2
    accuracy = {row["trace"]: row for row in document["accuracy"] if not row["subject"]}
    assert [row["accuracy"] for row in accuracy.values()] == [0.5, 0.5, 0.5, 0.25]
    assert (accuracy["b"]["only_reference"], accuracy["b"]["only_other"]) == (4, 4)
    assert any("baseline has 0.250" in text for text in document["findings"]["b"])
    written = json.loads((output / "compare.json").read_text())
    assert document["files"] == [str(output / name) for name in FILES]
    assert {**written, "files": 0} == {**document, "files": 0}


def test_equal_traces_are_said_to_be_equal(probe: Any, new_trace: Any, tmp_path: Path) -> None:
    out = probe("compare", new_trace("a"), new_trace("b"), "-o", tmp_path / "out").out
    words = " ".join(out.split())
    assert "All 16 relative loads are equal." in words
    assert "Of 160 tokens after the same text 100.00% select the same experts in a layer" in words
    assert "Idle experts: 0 in the reference alone, 0 in this trace alone, 2 in both." in words
    assert "differ first" not in words


def test_names_from_the_trace_are_escaped(probe: Any, new_trace: Any, tmp_path: Path) -> None:
    facts = {"subject": HOSTILE, "engine": {"name": HOSTILE}, "dtype": HOSTILE, "model": HOSTILE}
    paths = [new_trace("<script>alert(1)", **facts), new_trace("b&<i>\x1b[31m", seed=1, **facts)]
    result = probe("compare", *paths, "-o", tmp_path / "out")
    text = (tmp_path / "out/compare.html").read_text()
    page = Page(text)
    assert not {"script", "i", "link", "iframe"} & set(page.tags)
    assert "alert(1)" in page.text
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"<script|\x1b", text)
    assert "\x1b" not in result.out


def test_page_needs_no_network_and_has_every_figure(
    probe: Any, new_trace: Any, tmp_path: Path
) -> None:
    probe("compare", new_trace("a"), new_trace("b", seed=1), "-o", tmp_path / "out")
    text = (tmp_path / "out/compare.html").read_text()
    page = Page(text)
    assert page.tags.count("svg") == 6
    plain = re.sub(r"base64,[^\"]*", "", text)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", plain)
    names = [value for name, value in page.attributes if name == "id"]
    assert len(names) == len({*names})
    targets = {str(v)[1:] for n, v in page.attributes if n == "xlink:href" and str(v)[0] == "#"}
    assert targets
    assert targets | {*re.findall(r"url\(#([^)]*)\)", text)} <= {*names}
    assert "currentColor" in text
    assert "#010203" not in text


def test_other_shapes_are_compared_by_layer(probe: Any, new_trace: Any, tmp_path: Path) -> None:
    result = probe("compare", new_trace("a"), new_trace("b", experts=16), "-o", tmp_path / "out")
    assert result.code == 0
    words = " ".join(result.out.split())
    assert "! b has other layers or other numbers of experts than a" in words
    assert Page((tmp_path / "out/compare.html").read_text()).tags.count("svg") == 2
    assert pd.read_csv(tmp_path / "out/tables/experts.csv").empty


def test_a_failing_check_withholds_words(probe: Any, new_trace: Any, tmp_path: Path) -> None:
    bad = new_trace("b", seed=1, model_facts={"num_moe_layers": 3})
    out = probe("compare", new_trace("a"), bad, "-o", tmp_path / "out").out
    assert "! b fails Q7, so its numbers cannot be trusted" in out
    document = json.loads((tmp_path / "out/compare.json").read_text())
    assert document["findings"] == {"b": []}


def test_refusals_write_nothing(probe: Any, new_trace: Any, tmp_path: Path) -> None:
    trace, output = new_trace("a"), tmp_path / "out"
    cases: list[tuple[list[object], int, str]] = [
        ([trace], 2, "needs two traces or more"),
        ([trace, tmp_path / "absent"], 1, "is not a moe-probe trace"),
        ([trace, trace, "--rule", "decision", "--baseline-accuracy", "2"], 2, "from 0 to 1"),
        ([trace, trace, "--baseline-accuracy", "no-file"], 2, "neither a number nor results"),
    ]
    for arguments, code, message in cases:
        result = probe("compare", *arguments, "-o", output)
        assert result.code == code
        assert message in " ".join(result.err.split())
        assert len(result.err.splitlines()) == 1
        assert result.out == ""
    assert not output.exists()


@pytest.mark.parametrize("name", ["compare.html", "compare.json", "tables/layers.csv"])
def test_foreign_files_are_not_overwritten(
    probe: Any, new_trace: Any, tmp_path: Path, name: str
) -> None:
    output, paths = tmp_path / "out", [new_trace("a"), new_trace("b")]
    (output / name).parent.mkdir(parents=True)
    (output / name).write_text("{}")
    result = probe("compare", *paths, "-o", output)
    assert result.code == 2
    assert f"has {name}, which no moe-probe compare wrote" in result.err
    assert (output / name).read_text() == "{}"


def test_an_earlier_comparison_is_replaced(probe: Any, new_trace: Any, tmp_path: Path) -> None:
    output, paths = tmp_path / "out", [new_trace("a"), new_trace("b")]
    output.mkdir()
    (output / "compare.json").write_text("{}")
    (output / "notes.txt").write_text("mine")
    assert probe("compare", *paths, "-o", output, "--force").code == 0
    (output / "compare.html").write_text("old")
    assert probe("compare", *paths, "-o", output).code == 0
    assert (output / "compare.html").read_text() != "old"
    assert (output / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    assert probe("compare", *paths, "-o", tmp_path / "file").code == 2


def test_help_loads_nothing_heavy() -> None:
    from tests.cli.test_imports import HELP, heavy_modules_after

    assert heavy_modules_after(HELP.format(arguments=["compare", "--help"])) == []
