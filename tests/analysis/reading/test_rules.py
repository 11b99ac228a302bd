"""What the counting rules make of traces that engines wrote: last tokens, and live traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.analysis.accumulators.tables import counts_from_tables
from moe_probe.analysis.reading.rules import Rule, default_rule
from moe_probe.analysis.scan import count
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, Trace, TraceWriter, open_trace

LAYER = LayerSpec(layer=0, num_experts=8, top_k=1)


def trace_of(
    path: Path, run: dict[str, Any], *sequences: dict[str, Any], capture: str = "ids"
) -> Trace:
    """One sequence per entry, whose token at position p chose expert p."""
    with TraceWriter(path, layers=[LAYER], run=run, capture=capture) as writer:
        for facts in sequences:
            writer.add([np.arange(6)[:, None]], **facts)
    return open_trace(path)


def counted(trace: Trace, rule: Rule) -> list[int]:
    """Selections of each expert."""
    return [int(n) for n in count(trace, rule).layer(0).counts_N]


@pytest.mark.parametrize("runs_last", [False, True])
@pytest.mark.parametrize("kind", ["loglikelihood", "loglikelihood_rolling", "generate_until"])
def test_question_leaves_out_a_last_token_that_nobody_asked_to_be_continued(
    tmp_path: Path, runs_last: bool, kind: str
) -> None:
    stretches = {"prefix_end": 1, "question_end": 3, "cue_end": 4, "choice_end": 6}
    trace = trace_of(tmp_path / "t", {"runs_last_token": runs_last}, {"kind": kind, **stretches})
    is_scored = kind != "generate_until"
    expected = [0, 1, 1, 1, 1, 0 if runs_last and is_scored else 1, 0, 0]
    assert counted(trace, Rule.QUESTION) == expected
    assert counted(trace, Rule.UNIQUE) == [1] * 6 + [0, 0]


def test_tables_of_counts_leave_it_out_where_they_tell_it_apart(tmp_path: Path) -> None:
    run = {"runs_last_token": True}
    letter = {"kind": "loglikelihood", "prefix_end": 1, "question_end": 4, "cue_end": 5}
    trace = trace_of(
        tmp_path / "letters", run, letter, {"kind": "generate_until"}, capture="counts"
    )
    assert counts_from_tables(trace, Rule.QUESTION).layer(0).counts_N.tolist() == [
        *[1, 2, 2, 2, 2, 1],
        *[0, 0],
    ]
    words = {**letter, "cue_end": 3, "question_end": 3}
    trace = trace_of(tmp_path / "words", run, words, capture="counts")
    with pytest.raises(TraceError, match="Some choices of this trace have several tokens"):
        counts_from_tables(trace, Rule.QUESTION)


def test_live_traffic_is_reported_as_it_was_run(tmp_path: Path) -> None:
    live, asked = {"kind": "served", "new_from": -1}, {"kind": "loglikelihood"}
    assert default_rule(trace_of(tmp_path / "live", {}, live, live)) is Rule.RAW
    assert default_rule(trace_of(tmp_path / "asked", {}, asked)) is Rule.UNIQUE
    assert default_rule(trace_of(tmp_path / "both", {}, live, asked)) is Rule.UNIQUE
    assert default_rule(trace_of(tmp_path / "none", {})) is Rule.UNIQUE
