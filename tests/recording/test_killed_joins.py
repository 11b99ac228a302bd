"""SIGKILL at any moment of a join: joining again ends with what one join would have made."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moe_probe.recording.joined_run import KnownRun
from moe_probe.recording.recorder import Recorder
from moe_probe.recording.stages import open_trace, stages_of
from moe_probe.trace import Trace, TraceWriter
from moe_probe.trace import open_trace as open_joined
from moe_probe.trace.files import TraceFiles
from tests.recording.asked import (
    Asked,
    moved,
    passes_asked,
    random_asked,
    record_at_once,
    record_stage,
)
from tests.trace.recordings import LAYERS, stored_passes, stored_rows, table_counts

ROOT = Path(__file__).parents[2]
TWO = (LAYERS[:2], LAYERS[2:])
STEPS = [
    "replace:before:run.json",
    "replace:after:run.json",
    "replace:before:routing",
    "replace:after:routing",
    "write_table:after:counts",
    "write_table:before:sequences",
    "write_table:after:sequences",
    "settle_table:before:sequences",
    "settle_table:after:sequences",
]


def asked(seed: int = 0) -> list[Asked]:
    return random_asked(np.random.default_rng(seed), 40)


def record_stages(root: Path, requests: list[Asked]) -> None:
    for stage, layers in enumerate(TWO):
        record_stage(root, stage, layers, requests)


def join(root: Path, *steps: str) -> int:
    command = [sys.executable, "-m", "tests.recording.join_child", str(root), *steps]
    return subprocess.run(command, cwd=ROOT, timeout=60).returncode


def assert_joined(trace: Trace, expected: Trace) -> None:
    """Compare all but who stores a shared row, which a join that went on knows less of."""
    ours, theirs = trace.sequences.to_pylist(), expected.sequences.to_pylist()
    rows, known = stored_rows(trace), stored_rows(expected)
    for row, other in zip(ours, theirs, strict=True):
        for position in range(row["prefix_tokens"], row["num_tokens"]):
            if position >= other["prefix_tokens"]:
                key = row["sequence_id"], position
                assert rows[key] == known[key]
        assert row["prefix_tokens"] <= other["prefix_tokens"]
        for name in ("prefix_id", "prefix_tokens"):
            del row[name], other[name]
    assert ours == theirs
    assert stored_passes(trace) == passes_asked(trace, asked())
    assert table_counts(trace) == table_counts(expected)
    assert trace.run["status"] == "complete"
    books, asked_tokens = trace.run["completeness"], sum(each.num_run for each in asked())
    assert books["expected_tokens"] == books["recorded_tokens"] == asked_tokens
    assert not stages_of(trace.files)
    assert not list(trace.path.rglob("*.tmp"))
    assert not (trace.path / "stage").exists()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    path = tmp_path_factory.mktemp("expected") / "t"
    record_at_once(path, asked())
    return open_joined(path)


@pytest.mark.parametrize("step", STEPS[1::2])
def test_kill_between_two_steps(tmp_path: Path, expected: Trace, step: str) -> None:
    record_stages(tmp_path, asked())
    assert join(tmp_path, step) == -signal.SIGKILL
    assert len(stages_of(TraceFiles(tmp_path))) == 2
    assert_joined(open_trace(tmp_path), expected)


def test_kill_after_kill(tmp_path: Path, expected: Trace) -> None:
    record_stages(tmp_path, asked())
    for step in STEPS:
        # A later join may have less to write than it takes to come that far.
        assert join(tmp_path, step) in (0, -signal.SIGKILL)
    assert_joined(open_trace(tmp_path), expected)


@pytest.mark.parametrize("number", [1, 5, 12])
def test_kill_while_files_are_deleted(tmp_path: Path, expected: Trace, number: int) -> None:
    record_stages(tmp_path, asked())
    assert join(tmp_path, f"unlink:{number}") == -signal.SIGKILL
    assert_joined(open_trace(tmp_path), expected)


def test_a_reader_who_knows_no_stages_does_no_harm(tmp_path: Path, expected: Trace) -> None:
    record_stages(tmp_path, asked())
    assert join(tmp_path, "write_table:after:sequences") == -signal.SIGKILL
    half = open_joined(tmp_path)
    assert (half.run["status"], 0 < half.sequences.num_rows < 40) == ("killed", True)
    assert_joined(open_trace(tmp_path), expected)


def test_live_traffic_that_was_joined_before_makes_no_context_old(tmp_path: Path) -> None:
    live = Asked(0, (1, 2, 3), (), (0, 3, 3, 3), kind="served")
    tested = Asked(1, (1, 2, 3), (), (0, 3, 3, 3), kind="loglikelihood")
    record_at_once(tmp_path, [live])
    known = KnownRun(open_joined(tmp_path), 0, is_evaluation=False)
    with TraceWriter(tmp_path, layers=LAYERS, resume=True) as writer:
        recorder = Recorder(writer, prior=known)
        for each in (live, tested):
            recorder.record(each.row(internal=False), each.decisions(LAYERS))
    assert open_joined(tmp_path).sequences["new_from"].to_pylist() == [-1, 0]


def test_kill_of_a_join_to_an_earlier_recording(tmp_path: Path, expected: Trace) -> None:
    first, second = asked()[:15], asked()[15:]
    record_stages(tmp_path, first)
    assert join(tmp_path, "write_table:before:sequences") == -signal.SIGKILL
    numbered = [*first, *moved(open_trace(tmp_path), second)]
    record_stages(tmp_path, second)
    assert join(tmp_path, "settle_table:after:sequences") == -signal.SIGKILL
    trace = open_trace(tmp_path)
    assert stored_passes(trace) == passes_asked(trace, numbered)
    names = ["sequence_id", "request_id", "num_tokens", "response", "choice_logliks"]
    assert trace.sequences.select(names).equals(expected.sequences.select(names))
    counts = table_counts(expected)
    assert {k: v[0] for k, v in table_counts(trace).items()} == {k: v[0] for k, v in counts.items()}
