"""After `TraceWriter.flush` another process reads everything that was accepted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moe_probe.errors import TraceError
from moe_probe.trace import TraceWriter, open_trace
from moe_probe.trace import spool as spool_module
from tests.trace.kill_child import prompt
from tests.trace.recordings import LAYERS, Recording, table_counts, write
from tests.trace.small import LAYER, add, part_lengths

ROOT = Path(__file__).parents[2]
READ = """
import json, sys
from moe_probe.trace import open_trace
trace = open_trace(sys.argv[1])
logliks = trace.sequences["choice_logliks"].to_pylist()
print(json.dumps([trace.is_recording, logliks, sum(map(len, trace.scan()))]))
"""


def read_elsewhere(path: Path) -> tuple[bool, list[list[float] | None], int]:
    command = [sys.executable, "-c", READ, str(path)]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    found: tuple[bool, list[list[float] | None], int] = tuple(json.loads(done.stdout))
    return found


def test_another_process_reads_what_was_flushed(tmp_path: Path) -> None:
    path, recording, rows = tmp_path / "t", Recording(tmp_path / "t", LAYERS), 0
    with TraceWriter(path, layers=LAYERS, segment_tokens=60) as writer:
        for count in (7, 0, 1, 12):
            for _ in range(count):
                recording.prompts.append(prompt(writer.next_sequence_id()))
                sequence = recording.prompts[-1].sequence
                write(writer, recording.prompts[-1])
                writer.answer(sequence.sequence_id, 0, loglik=-1.0, is_greedy=True)
                rows += sequence.num_tokens - sequence.prefix_tokens
            writer.flush()
            assert read_elsewhere(path) == (True, [[-1.0]] * len(recording.prompts), rows)
    counts = {key: value[:2] for key, value in table_counts(open_trace(path)).items()}
    assert counts == {key: value[:2] for key, value in recording.naive_counts().items()}


def test_nothing_new_makes_no_part(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", layers=[LAYER]) as writer:
        writer.flush()
        add(writer, 3)
        writer.flush()
        writer.flush()
        add(writer, 2)
    assert part_lengths(tmp_path / "t") == [3, 2]
    with pytest.raises(ValueError, match="the trace is closed"):
        writer.flush()


def test_a_part_that_cannot_be_written_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise TraceError("Cannot write it.")

    writer = TraceWriter(tmp_path / "t", layers=[LAYER])
    add(writer, 3)
    with monkeypatch.context() as patched:
        patched.setattr(spool_module, "flush", fail)
        with pytest.raises(TraceError, match="Cannot write it"):
            writer.flush()
    with pytest.raises(TraceError, match="Cannot write it"):
        writer.close()
    assert part_lengths(tmp_path / "t") == [3]
