"""Between the model's thread and the disk: staging segments, and a thread that empties them."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass

from moe_probe.errors import TraceError
from moe_probe.trace.files import TraceFiles
from moe_probe.trace.layout import Capture, RowLayout
from moe_probe.trace.parts import flush
from moe_probe.trace.schema import Sequence
from moe_probe.trace.staging import LOG_BYTES, Rows, Segment

NUM_SEGMENTS = 3
# A slow recording still gets a part this often, so that little is left to recover.
_PART_SECONDS = 60.0
# The first event of a segment whose rows are counted and then left out.
_NOT_KEPT = b'{"rows_kept":false}\n'


@dataclass
class WriterStats:
    """What the writer did; kept in run.json."""

    tokens: int = 0
    """Rows accepted."""
    parts: int = 0
    """Segments turned into parts."""
    stalls: int = 0
    """Times the model had to wait for the writer."""
    stalled_seconds: float = 0.0


class Spool:
    """Copies rows into a segment; a full one goes to the thread and the next free one is taken.

    Args:
        files: The trace, whose lock the caller holds.
        layout: Where a layer's ids lie in a row.
        capture: Whether rows have weights and router scalars.
        rank: Names segments and parts.
        tokens: Rows that a segment can hold.
        max_bytes: Rows of segments begun when routing parts are larger than this are not kept.

    Raises:
        TraceError: the disk has no room for the segments.
    """

    def __init__(
        self,
        files: TraceFiles,
        layout: RowLayout,
        capture: Capture,
        rank: int,
        *,
        tokens: int,
        max_bytes: int | None,
    ) -> None:
        self.stats = WriterStats()
        self._files = files
        self._next_number = files.last_number(rank) + 1
        self._max_bytes = max_bytes
        self.keeps_rows = self._has_room()
        """Whether the rows of the segment in use, or of the next one if there is none, are kept."""
        self._error: BaseException | None = None
        self._active: Segment | None = None
        self._taken = 0.0
        self._free: queue.SimpleQueue[Segment] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[Segment | threading.Event | None] = queue.SimpleQueue()
        self._segments = [
            Segment.create(
                files.segment(rank, slot), layout=layout, capture=capture, rank=rank, tokens=tokens
            )
            for slot in range(NUM_SEGMENTS)
        ]
        for segment in self._segments:
            self._free.put(segment)
        self._thread = threading.Thread(target=self._work, name="moe-probe-writer", daemon=True)
        self._thread.start()

    def append(
        self,
        event: bytes,
        sequence: Sequence | None = None,
        rows: Rows | None = None,
    ) -> None:
        """Accept rows and an event; both survive the process once this returns.

        Raises:
            ValueError: the event is too long.
            TraceError: the thread failed to write a part.
        """
        count = 0 if rows is None else len(rows.ids_TB)
        segment = self._reserve(count, _NOT_KEPT + event)
        if segment.is_empty and not self.keeps_rows:
            event = _NOT_KEPT + event  # one commit: a kill cannot part the two
        segment.append(event, sequence, rows)
        self.stats.tokens += count

    def flush(self) -> None:
        """Wait until all that was accepted is in parts; raises TraceError where that fails."""
        self._check()
        if self._active is not None and not self._active.is_empty:
            self._hand_over(self._active)
        done = threading.Event()
        self._full.put(done)
        while not done.wait(timeout=0.2):
            self._check()

    def close(self) -> None:
        """Write all that is left and delete the staging files.

        Raises TraceError where something cannot be written; staging then keeps it.
        """
        self._full.put(None)
        self._thread.join()
        self._check()
        for segment in sorted(self._segments, key=lambda segment: segment.number):
            self._empty(segment)
        for segment in self._segments:
            segment.path.unlink(missing_ok=True)

    def _reserve(self, rows: int, event: bytes) -> Segment:
        self._check()
        segment = self._active
        if segment is not None:
            is_old = not segment.is_empty and time.monotonic() - self._taken > _PART_SECONDS
            if is_old or not segment.fits(rows, event):
                self._hand_over(segment)
        if self._active is None:
            self._active = self._take_segment()
        if not self._active.fits(rows, event):
            raise ValueError(
                f"a text of {len(event)} bytes is more than a segment can hold; "
                f"cut it to {LOG_BYTES >> 20} MiB"
            )
        return self._active

    def _hand_over(self, segment: Segment) -> None:
        # Let go first: should an interrupt come between, `close` finds the segment full.
        self._active = None
        self._full.put(segment)

    def _take_segment(self) -> Segment:
        try:
            segment = self._free.get_nowait()
        except queue.Empty:
            start = time.perf_counter()
            segment = self._wait_for_segment()
            self.stats.stalls += 1
            self.stats.stalled_seconds += time.perf_counter() - start
        segment.reset(self._next_number)
        self.keeps_rows = self._has_room()
        self._next_number += 1
        self._taken = time.monotonic()
        return segment

    def _has_room(self) -> bool:
        return self._max_bytes is None or self._files.size("routing") <= self._max_bytes

    def _wait_for_segment(self) -> Segment:
        while True:
            try:
                return self._free.get(timeout=0.2)
            except queue.Empty:
                self._check()

    def _work(self) -> None:
        while (item := self._full.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            try:
                self._empty(item)
            except BaseException as error:
                self._error = error
                return
            self._free.put(item)

    def _empty(self, segment: Segment) -> None:
        if not segment.is_empty:
            flush(segment, self._files)
            self.stats.parts += 1
            segment.reset(segment.number)

    def _check(self) -> None:
        if isinstance(self._error, TraceError):
            raise self._error
        if self._error is not None:
            raise TraceError(f"The trace writer failed: {self._error!r}.") from self._error
