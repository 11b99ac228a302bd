"""Who may join a recording, and what it says in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.errors import TraceError, UsageError
from moe_probe.trace import LayerSpec, TraceWriter, locks, open_trace
from tests.trace.recordings import stored_rows
from tests.trace.small import LAYER, add


def member(path: Path, rank: int, group: str = "g", **options: Any) -> TraceWriter:
    return TraceWriter(path, **{"layers": [LAYER], "rank": rank, "group": group, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 1, "force": True},
        {"rank": 1, "resume": True},
        {"rank": 1, "group": "other", "force": True},
        {"rank": 1, "group": "other", "resume": True},
    ],
)
def test_a_stranger_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with member(tmp_path / "t", 0) as writer:
        add(writer, 3)
        with pytest.raises(TraceError, match="Another process is recording into"):
            TraceWriter(tmp_path / "t", layers=[LAYER], **options)
        add(writer, 4)
    assert len(stored_rows(open_trace(tmp_path / "t"))) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "Rank 0 is already recording into"),
        ({"capture": "counts"}, "its capture is counts, not ids. Start all ranks alike"),
        ({"layers": [LayerSpec(layer=0, num_experts=9, top_k=1)]}, "its layers is"),
    ],
)
def test_a_rank_that_does_not_fit_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with member(tmp_path / "t", 0) as writer:
        add(writer, 3)
        with pytest.raises(TraceError, match=message):
            member(tmp_path / "t", **{"rank": 1, **options})
    trace = open_trace(tmp_path / "t")
    assert (trace.run["status"], list(trace.run["ranks"])) == ("complete", ["0"])


def test_a_rank_waits_for_a_lone_writer_only_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 0.1)
    with (
        TraceWriter(tmp_path / "t", layers=[LAYER]),
        pytest.raises(TraceError, match="Another process is recording into"),
    ):
        member(tmp_path / "t", 0, force=True)


def test_the_first_rank_asks_before_it_replaces(tmp_path: Path) -> None:
    TraceWriter(tmp_path / "t", layers=[LAYER]).close()
    with pytest.raises(UsageError, match="already holds a trace"):
        member(tmp_path / "t", 0)
    with pytest.raises(UsageError, match="Nothing to resume"):
        member(tmp_path / "new", 0, resume=True)
    assert not (tmp_path / "new").exists()
    with member(tmp_path / "t", 0, force=True) as first, member(tmp_path / "t", 1) as second:
        assert (add(first, 3), add(second, 2)) == (0, 1 << 40)
    assert open_trace(tmp_path / "t").sequences.num_rows == 2


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["complete", "complete"], "complete"),
        (["incomplete", "complete"], "incomplete"),
        (["failed", "interrupted"], "failed"),
        (["incomplete", "interrupted"], "interrupted"),
    ],
)
def test_the_worst_rank_tells(tmp_path: Path, statuses: list[str], expected: str) -> None:
    writers = [member(tmp_path / "t", rank) for rank in range(len(statuses))]
    for writer, status in zip(writers, statuses, strict=True):
        add(writer, 2)
        assert open_trace(tmp_path / "t").run["status"] == "running"
        writer.close(status)
    run = open_trace(tmp_path / "t").run
    assert run["status"] == expected
    assert [run["ranks"][rank]["status"] for rank in ("0", "1")] == statuses


def test_facts_and_answers_of_all_ranks_meet(tmp_path: Path) -> None:
    writers = [member(tmp_path / "t", rank, run={"model": f"m{rank}"}) for rank in range(3)]
    for document, writer in enumerate(writers):
        writer.add([np.array([[1], [2]])], task="mmlu", doc_id=document)
    seen = []

    def merge(entries: list[dict[str, Any]]) -> dict[str, Any]:
        seen.append([entry["facts"] for entry in entries])
        return {"completeness": sum(entry["facts"] for entry in entries)}

    # Each rank knows of documents that another one has not yet written out.
    for rank in (2, 0, 1):
        known = {("mmlu", (rank + 1) % 3): rank != 1}
        writers[rank].close(facts={"facts": 10**rank}, correct=known, merge=merge)
    trace = open_trace(tmp_path / "t")
    correct = dict(
        zip(*trace.sequences.select(["doc_id", "correct"]).to_pydict().values(), strict=True)
    )
    assert seen == [[1, 10, 100]]
    assert (trace.run["model"], trace.run["completeness"]) == ("m0", 111)
    assert correct == {0: True, 1: True, 2: False}
    assert trace.run["ranks"]["2"]["facts"] == 100
    assert not any("correct" in entry for entry in trace.run["ranks"].values())


def test_what_a_killed_rank_left_is_settled_by_the_last(tmp_path: Path) -> None:
    writers = [member(tmp_path / "t", rank) for rank in range(3)]
    for length, writer in enumerate(writers, start=2):
        add(writer, length)
    writers[2]._closing.close()  # As its death would: the lock goes, the staging stays.
    writers[0].close()
    assert open_trace(tmp_path / "t").is_recording
    writers[1].close()
    trace = open_trace(tmp_path / "t")
    assert (trace.run["status"], trace.run["recovered_tokens"]) == ("killed", 4)
    assert len(stored_rows(trace)) == 2 + 3 + 4
    assert sum(trace.counts["count"].to_pylist()) == 2 + 3 + 4


def test_a_later_recording_has_no_ranks(tmp_path: Path) -> None:
    member(tmp_path / "t", 0).close()
    TraceWriter(tmp_path / "t", layers=[LAYER], resume=True).close()
    assert not {"ranks", "group"} & set(open_trace(tmp_path / "t").run)


def test_an_end_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a rank's status is 'done', not one of complete"):
        member(tmp_path / "t", 0).close("done")
    assert open_trace(tmp_path / "t").run["status"] == "killed"
