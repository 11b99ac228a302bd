"""What TraceWriter does to a directory that is not empty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moe_probe.errors import TraceError, UsageError
from moe_probe.trace import LayerSpec, TraceWriter, open_trace
from tests.trace.recordings import LAYERS, record, table_counts
from tests.trace.small import LAYER, add, part_lengths


def test_resume_continues_the_numbers(tmp_path: Path) -> None:
    first = record(tmp_path / "t", 1, num_prompts=10, share=False)
    parts = sorted(path.name for path in (tmp_path / "t" / "routing").iterdir())
    again = record(tmp_path / "t", 2, num_prompts=10, share=False, resume=True)
    later = record(tmp_path / "t", 3, num_prompts=2, share=False, resume=True, rank=1)
    numbers = [p.sequence.sequence_id for p in first.prompts + again.prompts + later.prompts]
    assert numbers == [*range(20), 1 << 40, (1 << 40) + 1]
    names = sorted(path.name for path in (tmp_path / "t" / "routing").iterdir())
    assert names[: len(parts)] == parts
    assert names[-1] == "part-1-000000.parquet"
    trace = open_trace(tmp_path / "t")
    assert sorted(trace.sequences["sequence_id"].to_pylist()) == numbers
    assert len(trace.run["resumed"]) == 2
    first.prompts += again.prompts + later.prompts
    assert {k: v[:2] for k, v in table_counts(trace).items()} == {
        k: v[:2] for k, v in first.naive_counts().items()
    }


def test_resume_wants_the_same_layers(tmp_path: Path) -> None:
    facts = LayerSpec(layer=0, num_experts=4, top_k=1, facts={"groups": (1, 2)})
    TraceWriter(tmp_path / "t", layers=[facts]).close()
    TraceWriter(tmp_path / "t", layers=[facts], resume=True).close()
    with pytest.raises(UsageError, match=r"Cannot resume .*: its layers was"):
        TraceWriter(tmp_path / "t", layers=LAYERS, resume=True)
    with pytest.raises(UsageError, match="its capture was ids, now it is weights"):
        TraceWriter(tmp_path / "t", layers=[facts], capture="weights", resume=True)
    with pytest.raises(UsageError, match="Nothing to resume"):
        TraceWriter(tmp_path / "new", layers=LAYERS, resume=True)


def test_force_replaces_the_trace_and_nothing_beside_it(tmp_path: Path) -> None:
    record(tmp_path / "t", 1)
    (tmp_path / "t" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="already holds a trace"):
        TraceWriter(tmp_path / "t", layers=[LAYER])
    with TraceWriter(tmp_path / "t", layers=[LAYER], force=True) as writer:
        add(writer, 3)
    assert part_lengths(tmp_path / "t") == [3]
    assert open_trace(tmp_path / "t").sequences.num_rows == 1
    assert (tmp_path / "t" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("content", [None, "{}", "[1]", "not json"])
def test_force_leaves_what_is_no_trace(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "run.json" if content else tmp_path / "a.txt").write_text(content or "")
    choices: list[dict[str, Any]] = [{}, {"force": True}, {"resume": True}]
    for options in choices:
        with pytest.raises(UsageError, match="is not a trace, so it is left alone"):
            TraceWriter(tmp_path, layers=[LAYER], **options)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("options", [{"resume": True}, {"force": True}])
def test_two_writers_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with TraceWriter(tmp_path / "t", layers=[LAYER]) as writer:
        add(writer, 3)
        with pytest.raises(TraceError, match="Another process is recording into"):
            TraceWriter(tmp_path / "t", layers=[LAYER], **options)
        add(writer, 3)
    assert part_lengths(tmp_path / "t") == [6]
