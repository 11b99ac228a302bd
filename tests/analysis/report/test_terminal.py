"""The summary of a report: numbers of its JSON, 80 columns, colour only where it is asked for."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len

from moe_probe.analysis.report import Contents, gather
from moe_probe.analysis.report.terminal import summary
from moe_probe.analysis.settings import Settings
from moe_probe.trace import LayerSpec, TraceWriter, open_trace

INDEX_OF = {
    "MaxVio": "max_vio",
    "CV": "cv",
    "Gini": "gini",
    "effective experts": "effective_experts",
    "unseen experts": "unseen",
}
HOSTILE = "[red]x[/red] \x1b[31m\r\n‮ 模型" + "模" * 90 + " " + "y" * 90
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_BOX = re.compile("[─-╿]")


def contents_of(path: Path, *, num_experts: int = 8, idle: int = 1, **run: Any) -> Contents:
    """Record 12 documents whose experts differ in load; the last `idle` are never selected."""
    layers = [LayerSpec(layer=n, num_experts=num_experts, top_k=2) for n in (3, 4, 61)]
    rng = np.random.default_rng(5)
    favour_N = np.linspace(0, 1, num_experts - idle)
    with TraceWriter(path, layers=layers, run=run) as writer:
        for doc_id in range(12):
            score = [rng.random((60, num_experts - idle)) - favour_N for _ in layers]
            ids = [one.argsort(axis=1)[:, :2] for one in score]
            writer.add(ids, subject="ab"[doc_id % 2], doc_id=doc_id)
    settings = Settings(windows=(50,), shuffles=2, replicates=20, permutations=5)
    return gather(open_trace(path), settings)


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    return contents_of(tmp_path_factory.mktemp("summary") / "trace", model="m")


def columns(line: str) -> list[str]:
    return re.split(r" {2,}", line.strip())


def test_imbalance_is_that_of_the_json(contents: Contents) -> None:
    layers = contents.to_json()["layers"]
    rows = {cells[0]: cells[1:] for cells in map(columns, summary(contents))}
    for title, name in INDEX_OF.items():
        worst = (min if name == "effective_experts" else max)(layers, key=lambda row: row[name])
        assert rows[title] == [
            f"{statistics.fmean(row[name] for row in layers):.3f}",
            f"{statistics.fmean(row[f'{name}_null'] for row in layers):.3f}",
            f"{worst[name]:.3f}",
            str(worst["layer"]),
        ]


def test_layers_of_different_sizes(tmp_path: Path) -> None:
    """The worst has the fewest effective experts of those it has; a single idle expert is one."""
    layers = [LayerSpec(layer=n, num_experts=size, top_k=2) for n, size in ((3, 4), (5, 16))]
    rng = np.random.default_rng(5)
    with TraceWriter(tmp_path / "trace", layers=layers) as writer:
        for doc_id in range(9):
            even, uneven = rng.random((90, 4)), rng.random((90, 16)) - np.linspace(0, 0.2, 16)
            uneven[:, -1] = -9
            ids = [score.argsort(axis=1)[:, ::-1][:, :2] for score in (even, uneven)]
            writer.add(ids, subject="a", doc_id=doc_id)
    settings = Settings(windows=(50,), shuffles=2, replicates=20, permutations=5)
    contents = gather(open_trace(tmp_path / "trace"), settings)
    lines = summary(contents)
    (row,) = (cells for cells in map(columns, lines) if cells[0] == "effective experts")
    few, many = contents.layers["effective_experts"]
    assert few < many
    assert row[3:] == [f"{many:.3f}", "5"]
    assert lines[-1] == "One expert that no counted token selected is not ranked."


def test_ends_of_the_ranking_are_those_of_the_json(contents: Contents) -> None:
    document = contents.to_json()
    rows = [columns(line) for line in summary(contents)]
    for title, name in (("most used", "most_used"), ("least used", "least_used")):
        shown = [row[1:] for row in rows if row[0] == title]
        assert shown == [
            [
                str(expert["layer"]),
                str(expert["expert"]),
                f"{expert['relative_load']:.3g}",
                f"{expert['ci_low']:.3g} to {expert['ci_high']:.3g}",
                f"{expert['longest_idle']:,.0f}",
            ]
            for expert in document[name][:5]
        ]
    idle = int((contents.experts["count"] == 0).sum())
    assert f"{idle} experts that no counted token selected are equal, and" in summary(contents)[-1]


def test_run_quality_and_findings_are_said(contents: Contents) -> None:
    text = " ".join(" ".join(summary(contents)).split())
    assert "model m trace" in text
    assert "layers 3 MoE layers, 2 of 8 experts a token" in text
    assert "counted 720 tokens in 12 sequences rule unique: every distinct context once" in text
    ends = [str(check.status) for check in contents.checks]
    assert f"checks: {ends.count('pass')} pass, 0 fail, " in text
    assert len(contents.findings()) == 3
    for finding in contents.findings():
        assert " ".join(finding.split()) in text
    assert contents.analysis.caption in text


@pytest.mark.parametrize(("number", "said"), [(2, "2 of 8"), (1, "up to 2 of 8")])
def test_tokens_may_select_fewer_experts_than_there_are_slots(
    tmp_path: Path, number: int, said: str
) -> None:
    ids_TK = np.array([[0, 1], [2, 3], [4, 5], [6, 7 if number == 2 else 255]])
    layers = [LayerSpec(layer=0, num_experts=8, top_k=2, empty_slots=True)]
    with TraceWriter(tmp_path / "trace", layers=layers) as writer:
        writer.add([ids_TK], subject="a", doc_id=0)
    settings = Settings(windows=(50,), shuffles=2, replicates=20, permutations=5)
    text = "\n".join(summary(gather(open_trace(tmp_path / "trace"), settings)))
    assert f"1 MoE layers, {said} experts a token" in text


def test_failed_checks_stand_above_the_numbers(tmp_path: Path) -> None:
    contents = contents_of(tmp_path / "trace", model_facts={"num_moe_layers": 7})
    text = "\n".join(summary(contents))
    (failed,) = contents.failed
    assert f"! Q7 {failed.name}: {failed.value}, expected {failed.expected}" in text
    assert text.index("! Failed checks: Q7") < text.index("! Q7") < text.index("imbalance")
    assert "random routing gives" not in text
    assert "\x1b[31m!" in "\n".join(summary(contents, styled=True))


def test_plain_text_is_letters_only_and_no_wider_than_80(contents: Contents) -> None:
    lines = summary(contents)
    assert not any(_BOX.search(line) or "\x1b" in line for line in lines)
    assert max(map(cell_len, lines)) <= 80
    assert lines == [line.rstrip() for line in lines]


def test_style_changes_no_word(contents: Contents) -> None:
    lines = summary(contents, styled=True)
    assert any("\x1b[1m" in line for line in lines)
    bare = [_ESCAPES.sub("", line) for line in lines]
    assert max(map(cell_len, bare)) <= 80
    assert any(_BOX.search(line) for line in bare)
    assert _BOX.sub("", " ".join(bare)).split() == " ".join(summary(contents)).split()


@pytest.mark.parametrize("styled", [False, True])
def test_names_from_a_trace_steer_nothing(tmp_path: Path, styled: bool) -> None:
    contents = contents_of(tmp_path / "trace", model=HOSTILE, task=HOSTILE, tasks=[HOSTILE])
    lines = [_ESCAPES.sub("", line) for line in summary(contents, styled=styled)]
    assert " ".join(" ".join(lines).split()).startswith("model [red]x[/red] ?[31m??? 模型模模")
    assert all(line.isprintable() for line in lines)
    assert max(map(cell_len, lines)) <= 80


def test_wide_numbers_stay_whole(tmp_path: Path) -> None:
    contents = contents_of(tmp_path / "trace", num_experts=200, idle=150)
    for name in ("relative_load", "ci_low", "ci_high"):
        contents.experts[name] *= 1e-5
    contents.experts["longest_idle"] *= 1_000_003
    contents.layers["max_vio"] *= 1e3
    for styled in (False, True):
        lines = [_ESCAPES.sub("", line) for line in summary(contents, styled=styled)]
        assert max(map(cell_len, lines)) <= 80
        assert not any("…" in line for line in lines)
        most = contents.most_used().iloc[0]
        assert any(f"{most['longest_idle']:,.0f}" in line for line in lines)
