"""SIGKILL at any moment: what `write` accepted is there once, exactly, and counted once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_probe.trace import Trace, files, open_trace, parts
from moe_probe.trace.staging import Segment
from tests.trace.kill_child import prompt
from tests.trace.recordings import (
    LAYERS,
    Recording,
    forward_passes,
    stored_passes,
    stored_rows,
    table_counts,
)

ROOT = Path(__file__).parents[2]


def start(what: str, path: Path, *steps: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.trace.kill_child", what, str(path), f"{path}.side"]
    return subprocess.Popen([*command, *steps], cwd=ROOT)


def killed(what: str, path: Path, *steps: str) -> None:
    assert start(what, path, *steps).wait(60) == -signal.SIGKILL


def accepted(path: Path) -> set[int]:
    side = Path(f"{path}.side")
    lines = side.read_bytes().splitlines(keepends=True) if side.exists() else []
    return {int(line) for line in lines if line.endswith(b"\n")}


def check(path: Path, status: str = "killed") -> Trace:
    """Compare a trace with what the child says it wrote, row by row and count by count."""
    trace = open_trace(path)
    assert (trace.run["status"], trace.is_recording) == (status, False)
    numbers = trace.sequences["sequence_id"].to_pylist()
    assert sorted(numbers) == list(range(len(numbers)))
    assert accepted(path) <= set(numbers)
    recording = Recording(path, LAYERS, [prompt(number) for number in numbers])
    expected = {}
    for number, known in zip(numbers, recording.prompts, strict=True):
        for position in range(known.sequence.prefix_tokens, known.sequence.num_tokens):
            ids = [np.where(x[position] < 0, 255, x[position]).tolist() for x in known.ids]
            expected[number, position] = (position + 1000, *ids)
    assert stored_rows(trace) == expected
    assert stored_passes(trace) == {
        (number, position): forward_passes(prompt(number).sequence)[position]
        for number, position in expected
    }
    naive = recording.naive_counts()
    assert {k: v[:2] for k, v in table_counts(trace).items()} == {
        k: v[:2] for k, v in naive.items()
    }
    logliks = dict(zip(numbers, trace.sequences["choice_logliks"].to_pylist(), strict=True))
    # The side file is written after the answer: only the last sequence may lack one.
    assert all(logliks[number] == [-float(number)] for number in accepted(path))
    assert not (path / "stage").exists()
    assert not list(path.rglob("*.tmp"))
    return trace


def test_ten_kills_of_one_recording(tmp_path: Path) -> None:
    rng, path, recovered = np.random.default_rng(0), tmp_path / "t", 0
    for _ in range(10):
        before = len(accepted(path))
        child = start("record", path)
        while len(accepted(path)) == before:
            assert child.poll() is None
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.15))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        recovered += check(path).run["recovered_tokens"]
    assert recovered > 0
    assert start("finish", path).wait(60) == 0
    check(path, "complete")


@pytest.mark.parametrize(
    "step",
    [
        "replace:before:run.json",
        "replace:before:routing",
        "replace:after:routing",
        "write_table:before:counts",
        "write_table:after:counts",
        "write_table:before:sequences",
        # Renamed and not cleared: the part and the staging file hold the same rows.
        "write_table:after:sequences",
        "settle_table:before:sequences",
        "settle_table:after:sequences",
    ],
)
def test_kill_between_two_steps(tmp_path: Path, step: str) -> None:
    path = tmp_path / "t"
    killed("finish", path, step)
    check(path)
    assert start("finish", path).wait(60) == 0
    check(path, "complete")


@pytest.mark.parametrize(
    "step", ["replace:after:routing", "write_table:after:sequences", "settle_table:after:sequences"]
)
def test_kill_of_the_recovery(tmp_path: Path, step: str) -> None:
    path = tmp_path / "t"
    # The first flush hangs, so that a kill leaves three full segments.
    killed("record", path, "write_table:before:sequences")
    child = start("open", path, step)
    assert child.wait(60) in (0, -signal.SIGKILL)
    check(path)


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """A killed recording with a finished part and unflushed staging, not yet opened."""
    killed("record", tmp_path / "t", "write_table:before:sequences")
    return tmp_path / "t"


def test_flushed_segment_is_not_counted_again(unfinished: Path) -> None:
    # Put a staging file back after the recovery made its part, as if it was never cleared.
    copies = {path: path.read_bytes() for path in (unfinished / "stage").iterdir()}
    check(unfinished)
    sizes = {path: path.stat().st_size for path in unfinished.rglob("*.parquet")}
    (unfinished / "stage").mkdir()
    for path, content in copies.items():
        path.write_bytes(content)
    check(unfinished)
    assert {path: path.stat().st_size for path in unfinished.rglob("*.parquet")} == sizes


def test_parts_that_lost_their_staging_are_dropped_not_reused(unfinished: Path) -> None:
    # A power cut: fsynced parts survive, the staging file does not.
    before = {path.name for path in (unfinished / "routing").iterdir()}
    finished = {path.name for path in (unfinished / "sequences").glob("*.parquet")}
    assert before > finished
    for path in (unfinished / "stage").iterdir():
        path.unlink()
    trace = open_trace(unfinished)
    assert {path.name for path in (unfinished / "routing").iterdir()} == finished
    lost = len(accepted(unfinished)) - trace.sequences.num_rows
    assert lost > 0
    assert start("finish", unfinished).wait(60) == 0
    numbers = open_trace(unfinished).sequences["sequence_id"].to_pylist()
    assert sorted(numbers) == list(range(len(numbers)))
    assert len(stored_rows(open_trace(unfinished))) == sum(
        prompt(n).sequence.num_tokens - prompt(n).sequence.prefix_tokens for n in numbers
    )


def test_the_same_segment_gives_the_same_tables(
    unfinished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, list[pa.Table]] = {}
    flush = parts.flush

    def flush_twice(segment: Segment, where: files.TraceFiles) -> None:
        for _ in range(2):
            flush(segment, where)
            for path in where.root.rglob(f"*-{segment.number:06d}.parquet"):
                written.setdefault(str(path), []).append(pq.read_table(path))

    monkeypatch.setattr("moe_probe.trace.recovery.flush", flush_twice)
    open_trace(unfinished)
    assert written
    assert all(first.equals(second) for first, second in written.values())


def test_staging_without_a_header_is_an_empty_one(unfinished: Path) -> None:
    # Killed while the file was made: its magic number, written last, is not there.
    (unfinished / "stage" / "segment-0-7.bin").write_bytes(bytes(2 << 20))
    (unfinished / "stage" / "segment-0-8.bin").write_bytes(b"")
    check(unfinished)
