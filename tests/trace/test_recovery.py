"""Opening what is unfinished: while it is written, where nothing can be written, on a full disk."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, Sequence, TraceWriter, open_trace
from tests.trace.kill_child import prompt
from tests.trace.recordings import LAYERS, stored_rows, table_counts
from tests.trace.unfinished import PROMPTS, abandoned

ROOT = Path(__file__).parents[2]


def test_a_recording_that_goes_on_is_read_up_to_its_last_part(tmp_path: Path) -> None:
    with abandoned(tmp_path / "t"):
        before = {path: path.read_bytes() for path in (tmp_path / "t" / "stage").iterdir()}
        # A part in the making: rows and counts are there, the sequences are not.
        for kind in ("routing", "counts"):
            source = next((tmp_path / "t" / kind).glob("*.parquet"))
            source.with_name("part-0-000009.parquet").write_bytes(source.read_bytes())
        trace = open_trace(tmp_path / "t")
        assert (trace.is_recording, trace.run["status"]) == (True, "running")
        numbers = trace.sequences["sequence_id"].to_pylist()
        own = [prompt(n).sequence.num_tokens - prompt(n).sequence.prefix_tokens for n in numbers]
        assert 0 < len(numbers) < PROMPTS
        assert len(stored_rows(trace)) == sum(own) == trace.to_arrow().num_rows
        once = [p.sequence for p in map(prompt, numbers)]
        selections = sum(n * s.multiplicity for n, s in zip(own, once, strict=True))
        by_layer = trace.counts.group_by("layer").aggregate([("count", "sum")]).to_pydict()
        totals = dict(zip(by_layer["layer"], by_layer["count_sum"], strict=True))
        assert totals[1] == selections * LAYERS[0].top_k
        assert {path: path.read_bytes() for path in before} == before
    for kind in ("routing", "counts"):
        (tmp_path / "t" / kind / "part-0-000009.parquet").unlink()
    assert open_trace(tmp_path / "t").sequences.num_rows == PROMPTS


def test_an_unfinished_trace_on_a_read_only_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with abandoned(tmp_path / "t"):
        pass
    (tmp_path / "t" / "writer.lock").unlink(missing_ok=True)
    before = sorted(tmp_path.rglob("*"))
    system_open = os.open

    def read_only_open(path: Any, flags: int, *arguments: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system")
        return system_open(path, flags, *arguments)

    monkeypatch.setattr(os, "open", read_only_open)
    with pytest.warns(
        UserWarning, match=r"\(Read-only file system\): (\d+) tokens of it"
    ) as caught:
        trace = open_trace(tmp_path / "t")
    missing = int(str(caught[0].message).split("tokens of it")[0].split()[-1])
    assert trace.is_recording
    assert sorted(tmp_path.rglob("*")) == before
    stored = len(stored_rows(trace))
    monkeypatch.undo()
    whole = open_trace(tmp_path / "t")
    assert len(stored_rows(whole)) == stored + missing
    assert missing > 0
    monkeypatch.setattr(os, "open", read_only_open)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert table_counts(open_trace(tmp_path / "t")) == table_counts(whole)


def test_two_resumes_at_once(tmp_path: Path) -> None:
    with abandoned(tmp_path / "t"):
        pass
    first = TraceWriter(tmp_path / "t", layers=LAYERS, segment_tokens=60, resume=True)
    with pytest.raises(TraceError, match="Another process is recording"):
        TraceWriter(tmp_path / "t", layers=LAYERS, segment_tokens=60, resume=True)
    assert open_trace(tmp_path / "t").is_recording
    assert first.next_sequence_id() == PROMPTS
    first.close()
    assert open_trace(tmp_path / "t").sequences.num_rows == PROMPTS
    assert not (tmp_path / "t" / "writer.lock").exists()


def test_what_a_cache_gave_outlives_a_kill(tmp_path: Path) -> None:
    with abandoned(tmp_path / "t") as writer:
        number = writer.next_sequence_id()
        sequence = Sequence(sequence_id=number, num_tokens=9, prefix_tokens=4, cached_tokens=4)
        writer.write(sequence, np.zeros((5, writer.layout.ids_bytes), np.uint8))
    trace = open_trace(tmp_path / "t")
    row = trace.sequences.to_pylist()[-1]
    assert (row["prefix_id"], row["prefix_tokens"], row["cached_tokens"]) == (-1, 4, 4)
    positions = [position for owner, position in stored_rows(trace) if owner == number]
    assert positions == [4, 5, 6, 7, 8]


def test_a_leftover_lock_locks_nothing(tmp_path: Path) -> None:
    script = (
        "import os, sys; from moe_probe.trace import *; "
        "writer = TraceWriter(sys.argv[1], layers=[LayerSpec(layer=0, num_experts=4, top_k=1)]); "
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "t")], check=False, cwd=ROOT
    )
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "t" / "writer.lock").exists()
    assert open_trace(tmp_path / "t").run["status"] == "killed"


LAYER = LayerSpec(layer=0, num_experts=4, top_k=1)


def fill(writer: TraceWriter, sequences: int) -> int:
    """Write sequences of ten tokens until one is refused; return how many were accepted."""
    for number in range(sequences):
        try:
            sequence = Sequence(sequence_id=writer.next_sequence_id(), num_tokens=10)
            writer.write(sequence, np.full((10, 1), number % 4, np.uint8))
        except TraceError as error:
            assert str(error).startswith("Cannot write ")  # noqa: PT017
            assert "File too large" in str(error)  # noqa: PT017
            return number
    return sequences


def test_a_full_disk_stops_the_recording_and_loses_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = TraceWriter(tmp_path / "t", layers=[LAYER], segment_tokens=20)
    accepted = fill(writer, 2)
    # Staging has its room already; only new files meet the limit, in the middle of writing.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        accepted += fill(writer, 1000)
        with pytest.raises(TraceError, match=r"File too large.*free some space and use --resume"):
            writer.close()
        with pytest.raises(TraceError, match="File too large"):
            open_trace(tmp_path / "t")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 2 < accepted <= 6
    assert not list((tmp_path / "t").rglob("*.tmp"))
    with TraceWriter(tmp_path / "t", layers=[LAYER], segment_tokens=20, resume=True) as writer:
        assert fill(writer, 3) == 3
    trace = open_trace(tmp_path / "t")
    assert trace.sequences.num_rows == accepted + 3
    assert len(stored_rows(trace)) == 10 * (accepted + 3)
    assert sum(trace.counts["count"].to_pylist()) == 10 * (accepted + 3)


def test_no_room_for_staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(TraceError, match=r"Cannot reserve \d+ MiB of staging space .* No space"):
        TraceWriter(tmp_path / "t", layers=[LAYER])
    monkeypatch.undo()
    TraceWriter(tmp_path / "t", layers=[LAYER], resume=True).close()
