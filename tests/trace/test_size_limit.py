"""A trace that reached its size goes on counting, and says whose rows it left out."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from moe_probe.trace import TraceWriter, open_trace
from tests.trace.kill_child import MAX_BYTES, prompt
from tests.trace.recordings import LAYERS, Recording, stored_rows, table_counts, write
from tests.trace.small import LAYER, add
from tests.trace.test_kill import accepted, start


def check(path: Path) -> int:
    """Compare a trace with what was written to it; return how many tokens have no rows."""
    trace = open_trace(path)
    rows = trace.sequences.to_pylist()
    numbers = [row["sequence_id"] for row in rows]
    recording = Recording(path, LAYERS, [prompt(number) for number in numbers])
    counts = {key: value[:2] for key, value in table_counts(trace).items()}
    assert counts == {key: value[:2] for key, value in recording.naive_counts().items()}
    own = {r["sequence_id"]: range(r["prefix_tokens"], r["num_tokens"]) for r in rows}
    kept = {row["sequence_id"] for row in rows if row["rows_kept"]}
    assert set(stored_rows(trace)) == {(number, i) for number in kept for i in own[number]}
    left_out = sum(len(own[number]) for number in numbers if number not in kept)
    assert trace.run["rows_not_kept"] == left_out
    return left_out


@pytest.mark.parametrize("max_bytes", [0, 5000, 20_000])
def test_later_rows_are_counted_and_left_out(tmp_path: Path, max_bytes: int) -> None:
    path, flips = tmp_path / "t", []
    with TraceWriter(path, layers=LAYERS, segment_tokens=60, max_bytes=max_bytes) as writer:
        for _ in range(60):
            known = prompt(writer.next_sequence_id())
            write(writer, known, share=writer.keeps_rows)
            flips.append(writer.keeps_rows)
            writer.flush()
    kept = flips.count(True)
    assert flips == [True] * kept + [False] * (60 - kept)
    assert open_trace(path).sequences["rows_kept"].to_pylist() == flips
    assert check(path) > 0
    # One part beyond the limit, since each sequence was flushed before the next was written.
    sizes = [part.stat().st_size for part in sorted(path.glob("routing/*"))]
    assert sum(sizes[:-1]) <= max_bytes < sum(sizes)


def test_kills_of_a_recording_at_its_limit(tmp_path: Path) -> None:
    chance, path = np.random.default_rng(0), tmp_path / "t"
    for turn in range(5):
        before = len(accepted(path))
        child = start("limited", path)
        while len(accepted(path)) < before + 5 + 15 * (turn == 0):
            assert child.poll() is None
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        check(path)
    assert check(path) > 0
    assert sum(part.stat().st_size for part in path.glob("routing/*")) > MAX_BYTES


def test_a_resumed_recording_keeps_no_more(tmp_path: Path) -> None:
    for resume in (False, True):
        with TraceWriter(tmp_path / "t", layers=[LAYER], max_bytes=0, resume=resume) as writer:
            assert writer.keeps_rows is not resume
            add(writer, 3)
    trace = open_trace(tmp_path / "t")
    assert trace.sequences["rows_kept"].to_pylist() == [True, False]
    assert trace.run["rows_not_kept"] == 3


def test_a_recording_of_counts_keeps_no_rows_and_lacks_none(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", layers=[LAYER], capture="counts", max_bytes=0) as writer:
        assert not writer.keeps_rows
        add(writer, 3)
    trace = open_trace(tmp_path / "t")
    assert trace.sequences["rows_kept"].to_pylist() == [True]
    assert trace.run["rows_not_kept"] == 0
