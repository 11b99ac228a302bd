"""`moe-probe check`: its table, its JSON and its exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.trace import LayerSpec, Sequence, TraceWriter


def write(path: Path, rows: list[list[int]], **run: Any) -> Path:
    """Write rows of expert ids without validating them."""
    rows_TB = np.array(rows, np.uint8)
    with TraceWriter(path, layers=[LayerSpec(layer=1, num_experts=8, top_k=2)], run=run) as writer:
        number = writer.next_sequence_id()
        writer.write(Sequence(sequence_id=number, num_tokens=len(rows)), rows_TB)
    return path


def test_sound_trace_passes(probe: Any, tmp_path: Path) -> None:
    trace = write(tmp_path / "trace", [[0, 3], [1, 2], [5, 4]])
    result = probe("check", trace)
    assert result.code == 0
    assert result.out.splitlines()[0].split() == ["check", "status", "name", "value", "expected"]
    assert "Q1     pass    an expert twice in one row" in result.out
    assert "Q0     skip" in result.out
    assert result.err == f"Next: moe-probe report {trace}\n"


def test_fault_fails_with_exit_code_1(probe: Any, tmp_path: Path) -> None:
    trace = write(tmp_path / "trace", [[0, 0], [1, 2], [5, 4]])
    result = probe("check", trace)
    assert result.code == 1
    assert "Q2     fail    rows of zeros only" in result.out
    assert "1 of 3 rows in layer 1" in result.out
    assert "fails Q1, Q2" in result.err
    assert "quality in docs/metrics.md" in result.err


def test_json_is_one_document(probe: Any, tmp_path: Path) -> None:
    trace = write(tmp_path / "trace", [[0, 0], [1, 2]])
    result = probe("check", trace, "--json")
    assert result.code == 1
    document = json.loads(result.out)
    assert (document["trace"], document["passed"]) == (str(trace), False)
    failed = [check["check"] for check in document["checks"] if check["status"] == "fail"]
    assert failed == ["Q1", "Q2"]
    assert set(document["checks"][0]) == {
        *("check", "name", "status", "value", "expected", "reason")
    }


def test_a_sound_trace_passes_as_json_and_no_trace_at_all_is_exit_code_2(
    probe: Any, tmp_path: Path
) -> None:
    trace = write(tmp_path / "trace", [[0, 3], [1, 2], [5, 4]])
    result = probe("check", trace, "--json", "--quiet")
    assert (result.code, result.err) == (0, "")
    document = json.loads(result.out)
    assert document["passed"] is True
    assert [check["check"] for check in document["checks"]] == [f"Q{n}" for n in range(22)]
    assert probe("check").code == 2


def test_what_is_not_a_trace_is_one_sentence(probe: Any, tmp_path: Path) -> None:
    result = probe("check", tmp_path / "absent")
    assert result.code == 1
    assert "is not a moe-probe trace" in result.err
    assert "Traceback" not in result.err
