"""Opening what is unfinished: while it is written, where nothing can be written, on a full disk."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, Sequence, TraceWriter, open_trace
from moe_probe.trace.spool import NUM_SEGMENTS
from moe_probe.trace.staging import Segment
from tests.trace.kill_child import prompt
from tests.trace.recordings import LAYERS, stored_rows, table_counts, write

ROOT = Path(__file__).parents[2]
PROMPTS = 24


@contextmanager
def abandoned(path: Path) -> Iterator[TraceWriter]:
    """A recording with finished parts and rows in staging, whose process looks alive inside."""
    writer = TraceWriter(path, layers=LAYERS, segment_tokens=60)
    for _ in range(PROMPTS):
        write(writer, prompt(writer.next_sequence_id()))
    for _ in range(1000):
        if writer._spool._free.qsize() == NUM_SEGMENTS - 1:
            break
        time.sleep(0.01)
    yield writer
    # Ends without closing: the lock goes, the staging stays.
    writer._closing.close()


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


def stage_file(path: Path) -> Path:
    return next(p for p in sorted((path / "stage").iterdir()) if _rows(p))


def _rows(path: Path) -> int:
    segment = Segment.open(path)
    return 0 if segment is None else segment.num_rows


@pytest.mark.parametrize(
    ("offset", "content", "reason"),
    [
        (8, b"\xff" * 8, "rows and 4294967295 bytes"),
        (12, b"\x01\x00\x00\x00", "more or fewer rows than tokens"),
        (12, b"\x3c\x00\x00\x00", "fit no sequence"),
        (8, b"\x10\x00", "Unterminated string|Expecting|line 1"),
        (16, b"\xff" * 8, "in segment 18446744073709551615"),
        (0, b"PNGPNGPN", "does not begin as one"),
        (24, b"\xff" * 8, "does not begin as one"),
        (4096, b"nonsense", "Expecting value"),
        (4096, b"[" * 2000, ""),
        (1 << 20, b"\x77" * 8, "fit no sequence"),
    ],
)
def test_damaged_staging_is_named(tmp_path: Path, offset: int, content: bytes, reason: str) -> None:
    with abandoned(tmp_path / "t"):
        pass
    path = stage_file(tmp_path / "t")
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)
    message = rf"Staging file .*{path.name} is damaged .*({reason}).*Delete it"
    with pytest.raises(TraceError, match=message):
        open_trace(tmp_path / "t")
    path.unlink()
    assert 0 < open_trace(tmp_path / "t").sequences.num_rows < PROMPTS


@pytest.mark.parametrize(
    "change",
    [
        {"rank": "../../../evil"},
        {"rank": 3},
        {"tokens": -1},
        {"tokens": 1 << 40},
        {"tokens": "many"},
        {"capture": "weights"},
        {"layers": []},
        {"layers": [{"layer": 1, "num_experts": 8, "top_k": 9}]},
    ],
)
def test_nonsense_headers_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with abandoned(tmp_path / "t"):
        pass
    path = stage_file(tmp_path / "t")
    with open(path, "r+b") as file:
        file.seek(24)
        length = int.from_bytes(file.read(8), "little")
        file.seek(4096)
        text = json.dumps({**json.loads(file.read(length)), **change}).encode()
        file.seek(24)
        file.write(len(text).to_bytes(8, "little"))
        file.seek(4096)
        file.write(text)
    before = sorted(tmp_path.parent.glob("*"))
    with pytest.raises(TraceError, match=r"Staging file .* is damaged or not one"):
        open_trace(tmp_path / "t")
    assert sorted(tmp_path.parent.glob("*")) == before
