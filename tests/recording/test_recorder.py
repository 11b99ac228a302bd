"""The recorder by itself: answers before and after their rows, and rows that are too long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moe_probe.errors import UsageError
from moe_probe.recording.recorder import Recorder
from moe_probe.recording.rows import Bounds, Decisions, Request, Row
from moe_probe.trace import LayerSpec, TraceWriter, open_trace

LAYER = LayerSpec(layer=2, num_experts=8, top_k=2)


def row(doc_id: int, *choices: int, subject: str = "s", start: int = 0) -> Row:
    requests = [
        Request("t", subject, "", doc_id, "loglikelihood", choice, ("key", choice))
        for choice in choices
    ]
    tokens_T = np.arange(start, start + 6, dtype=np.int32)
    return Row(tokens_T, Bounds(2, 4, 5, 6), 0, requests)


def ids_TB(*experts: int) -> np.ndarray:
    return np.tile(np.array(experts, np.uint8), (6, 1))


def test_answers_find_their_rows_whichever_comes_first(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", layers=[LAYER]) as writer:
        recorder = Recorder(writer)
        recorder.answer(("key", 0), {"loglik": -1.0, "is_greedy": True})
        recorder.record(row(0, 0, 1), Decisions(ids_TB(3, 5)))
        recorder.answer(("key", 1), {"loglik": -2.0, "is_greedy": False})
        # Another document with equal strings: each answer is given once for each of them.
        recorder.record(row(1, 0), Decisions(ids_TB(3, 5)))
        recorder.answer(("key", 0), {"loglik": -1.0, "is_greedy": True})
    rows = open_trace(tmp_path / "t").sequences.to_pylist()
    assert [row["choice_logliks"] for row in rows] == [[-1.0, -2.0], [-1.0]]
    assert [row["choice_is_greedy"] for row in rows] == [[True, False], [True]]


def test_prefixes_are_shared_inside_a_subject_only(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", layers=[LAYER]) as writer:
        recorder = Recorder(writer)
        for doc_id, subject in enumerate(("law", "law", "art")):
            recorder.record(row(doc_id, 0, subject=subject), Decisions(ids_TB(1, 2)))
    rows = open_trace(tmp_path / "t").sequences.to_pylist()
    assert [(row["prefix_id"], row["prefix_tokens"]) for row in rows] == [(-1, 0), (0, 2), (-1, 0)]
    assert [row["new_from"] for row in rows] == [0, 6, 6]


def test_rows_longer_than_the_trace_can_hold_are_refused_beforehand(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", layers=[LAYER], segment_tokens=50) as writer:
        recorder = Recorder(writer)
        recorder.expect(50)
        with pytest.raises(UsageError, match="51 tokens, and a sequence of this trace can have 50"):
            recorder.expect(51)
