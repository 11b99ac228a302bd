"""A recording that nobody ended, in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moe_probe.trace import TraceWriter
from moe_probe.trace.spool import NUM_SEGMENTS
from tests.trace.kill_child import prompt
from tests.trace.recordings import LAYERS, write

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
