"""TraceWriter: accepts rows on the model's thread, writes parts on a background thread.

Shape suffixes: T tokens, K slots, B bytes of one token's ids, S slots over all layers.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from moe_probe.errors import TraceError
from moe_probe.trace.files import TraceFiles, writer_lock
from moe_probe.trace.output import (
    begin_run,
    check_output,
    end_run,
    last_sequence,
)
from moe_probe.trace.parts import flush
from moe_probe.trace.schema import (
    FORMAT_VERSION,
    MAX_SEQUENCE_TOKENS,
    SEGMENT_TOKENS,
    Capture,
    LayerSpec,
    RowLayout,
    Sequence,
)
from moe_probe.trace.settling import settle
from moe_probe.trace.staging import Segment

_NUM_SEGMENTS = 3
_PART_SECONDS = 60.0


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


class TraceWriter:
    """Write a trace, from a recording or from arrays.

    Memory is bounded by three staging segments and one part; when all three are full, `write`
    waits and the wait is counted, so nothing is ever dropped. What `write` and `answer` accepted
    survives SIGKILL. Use as a context manager, or call `close`.

    Args:
        path: The trace directory.
        layers: The MoE layers, in model order.
        capture: How much to keep of each decision.
        run: Facts for run.json: model, task, engine, ...
        rank: Names the parts and numbers the sequences of one of several writers, of which only
            one at a time can have the trace.
        resume: Continue an existing trace of the same layers and capture level.
        force: Replace an existing trace; other files beside it stay.
        segment_tokens: Tokens per part; also the longest sequence that can be written.

    Raises:
        UsageError: `path` holds something and neither `resume` nor `force` allows that.
        TraceError: the directory cannot be written, or another process is recording into it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        layers: list[LayerSpec],
        capture: Capture | str = Capture.IDS,
        run: Mapping[str, Any] | None = None,
        rank: int = 0,
        resume: bool = False,
        force: bool = False,
        segment_tokens: int = SEGMENT_TOKENS,
    ) -> None:
        self.files = TraceFiles(Path(path))
        self.layout = RowLayout(tuple(layers))
        self.layout.check()
        self.capture = Capture(capture)
        self.rank = rank
        self.stats = WriterStats()
        if not 0 < segment_tokens <= MAX_SEQUENCE_TOKENS:
            raise ValueError(f"segment_tokens is {segment_tokens}, not 1 to {MAX_SEQUENCE_TOKENS}")
        self._segment_tokens = segment_tokens
        self._error: BaseException | None = None
        self._closed = False
        check_output(self.files.root, resume=resume, force=force)
        with ExitStack() as stack:
            self._lock(stack)
            # Again, now that nobody else can make or remove a trace here.
            check_output(self.files.root, resume=resume, force=force)
            self.run = self._begin(dict(run or {}), resume=resume, force=force)
            self._start()
            self._closing = stack.pop_all()

    def _lock(self, stack: ExitStack) -> None:
        root = self.files.root
        try:
            root.mkdir(parents=True, exist_ok=True)
            is_ours = stack.enter_context(writer_lock(self.files))
        except OSError as error:
            raise TraceError(
                f"Cannot write the trace at {root}: {error.strerror}. Choose another --output."
            ) from error
        if not is_ours:
            raise TraceError(f"Another process is recording into {root}. Wait for it to end.")

    def _begin(self, run: dict[str, Any], *, resume: bool, force: bool) -> dict[str, Any]:
        facts = {
            "moe_probe_trace": FORMAT_VERSION,
            "capture": str(self.capture),
            "layers": [spec.to_json() for spec in self.layout.layers],
        }
        try:
            run = begin_run(self.files, facts, run, resume=resume, force=force)
        except OSError as error:
            raise TraceError(
                f"Cannot write the trace at {self.files.root}: {error.strerror}. "
                "Choose another --output."
            ) from error
        self._next_number = self.files.last_number(self.rank) + 1
        self._next_sequence = last_sequence(self.files, self.rank) + 1
        # Ids from here on that are written; below it all are, or belong to an earlier recording.
        self._first_unwritten = self._next_sequence
        self._written: set[int] = set()
        return run

    def _start(self) -> None:
        self._free: queue.SimpleQueue[Segment] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[Segment | None] = queue.SimpleQueue()
        self._active: Segment | None = None
        self._segments = [
            Segment.create(
                self.files.segment(self.rank, slot),
                layout=self.layout,
                capture=self.capture,
                rank=self.rank,
                tokens=self._segment_tokens,
            )
            for slot in range(_NUM_SEGMENTS)
        ]
        for segment in self._segments:
            self._free.put(segment)
        self._thread = threading.Thread(target=self._work, name="moe-probe-writer", daemon=True)
        self._thread.start()

    def next_sequence_id(self) -> int:
        """Reserve the id of the next sequence."""
        self._next_sequence += 1
        return self._next_sequence - 1

    def write(
        self,
        sequence: Sequence,
        ids_TB: np.ndarray | None = None,
        *,
        token_id_T: np.ndarray | None = None,
        weights_TS: np.ndarray | None = None,
    ) -> None:
        """Accept one whole sequence.

        Args:
            sequence: What it is; its id comes from `next_sequence_id`.
            ids_TB: Packed ids (`RowLayout.pack`) of its own tokens, which are those after the
                first `sequence.prefix_tokens`; None for a sequence without rows.
            token_id_T: Vocabulary ids of those tokens, if they may be stored.
            weights_TS: Gate weights float16, slots of all layers joined, at capture `weights`.

        Raises:
            ValueError: the rows do not fit the sequence or the layers, or exceed a segment, or the
                sequence was written before.
            TraceError: the background thread failed to write; everything accepted is still safe.
        """
        rows = 0 if ids_TB is None else len(ids_TB)
        if ids_TB is not None and rows:
            self._check_rows(sequence, ids_TB, token_id_T, weights_TS)
        self._claim(sequence.sequence_id)
        self._reserve(rows, event := _event({"sequence": asdict(sequence)})).append(
            event,
            sequence_id=sequence.sequence_id,
            first_position=sequence.prefix_tokens,
            token_id_T=token_id_T,
            ids_TB=ids_TB if rows else None,
            weights_TS=weights_TS if self.capture is Capture.WEIGHTS else None,
        )
        self.stats.tokens += rows

    def _check_rows(
        self,
        sequence: Sequence,
        ids_TB: np.ndarray,
        token_id_T: np.ndarray | None,
        weights_TS: np.ndarray | None,
    ) -> None:
        rows, name = len(ids_TB), f"sequence {sequence.sequence_id}"
        if rows != sequence.num_tokens - sequence.prefix_tokens:
            raise ValueError(
                f"{name} has {sequence.num_tokens} tokens, "
                f"{sequence.prefix_tokens} of them shared, but {rows} rows were given"
            )
        if rows > self._segment_tokens:
            raise ValueError(
                f"{name} has {rows} tokens, more than the {self._segment_tokens} of a segment"
            )
        if ids_TB.shape != (rows, self.layout.ids_bytes) or ids_TB.dtype != np.uint8:
            raise ValueError(
                f"{name}: packed ids are {ids_TB.dtype} {ids_TB.shape}, "
                f"expected uint8 {(rows, self.layout.ids_bytes)}"
            )
        if token_id_T is not None and np.shape(token_id_T) != (rows,):
            raise ValueError(f"{name}: {np.shape(token_id_T)} token ids for {rows} rows")
        shape = (rows, self.layout.num_slots)
        if self.capture is Capture.WEIGHTS and np.shape(weights_TS) != shape:
            raise ValueError(f"{name}: weights of shape {np.shape(weights_TS)}, expected {shape}")

    def _claim(self, sequence_id: int) -> None:
        if not self._first_unwritten <= sequence_id < self._next_sequence or (
            sequence_id in self._written
        ):
            raise ValueError(
                f"sequence id {sequence_id} was written before, or not by next_sequence_id given"
            )
        self._written.add(sequence_id)
        while self._first_unwritten in self._written:
            self._written.remove(self._first_unwritten)
            self._first_unwritten += 1

    def add(
        self,
        topk_ids: list[np.ndarray],
        *,
        topk_weights: list[np.ndarray] | None = None,
        token_ids: np.ndarray | None = None,
        **facts: Any,
    ) -> int:
        """Write one sequence from plain arrays and return its id.

        Args:
            topk_ids: Per layer, expert ids [T, K].
            topk_weights: Per layer, gate weights [T, K], needed at capture `weights`.
            token_ids: Vocabulary ids [T].
            **facts: Fields of `Sequence`: subject, task, doc_id, prefix_end, ...

        Raises:
            ValueError: shapes or ids that do not fit the layers.
        """
        ids_TB = self.layout.pack(topk_ids)
        weights_TS = None
        if self.capture is Capture.WEIGHTS:
            if topk_weights is None:
                raise ValueError("capture 'weights' needs topk_weights")
            weights_TS = np.concatenate(topk_weights, axis=1).astype(np.float16)
        facts = {"kind": "imported", "rank": self.rank, **facts}
        sequence = Sequence(sequence_id=self.next_sequence_id(), num_tokens=len(ids_TB), **facts)
        self.write(sequence, ids_TB, token_id_T=token_ids, weights_TS=weights_TS)
        return sequence.sequence_id

    def answer(
        self,
        sequence_id: int,
        choice: int,
        *,
        loglik: float | None = None,
        is_greedy: bool | None = None,
        response: str | None = None,
    ) -> None:
        """Accept what the model answered: a choice's log-likelihood, or a generated text."""
        answer = {
            "sequence_id": sequence_id,
            "choice": choice,
            "loglik": loglik,
            "is_greedy": is_greedy,
            "response": response,
        }
        event = _event({"answer": answer})
        self._reserve(0, event).append(event)

    def close(
        self,
        status: str = "complete",
        *,
        facts: Mapping[str, Any] | None = None,
        correct: Mapping[tuple[str, int], bool] | None = None,
    ) -> None:
        """Write everything out and end the trace with a status; further calls do nothing.

        Raises:
            TraceError: the last parts could not be written; staging keeps them for recovery.
        """
        if self._closed:
            return
        self._closed = True
        self._full.put(None)
        self._thread.join()
        with self._closing:
            self._check()
            self._flush_rest()
            self.run.update(facts or {}, status=status, writer=asdict(self.stats))
            settle(self.files, self.run, correct)
            for segment in self._segments:
                segment.path.unlink(missing_ok=True)
            end_run(self.files, self.run)
            self.files.drop_stage()

    def _flush_rest(self) -> None:
        for segment in sorted(self._segments, key=lambda segment: segment.number):
            if not segment.is_empty:
                flush(segment, self.files)
                self.stats.parts += 1
                segment.reset(segment.number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        interrupted = isinstance(error, KeyboardInterrupt)
        self.close("complete" if error is None else "interrupted" if interrupted else "failed")

    def _reserve(self, rows: int, event: bytes) -> Segment:
        self._check()
        if self._closed:
            raise ValueError("the trace is closed")
        segment = self._active
        if segment is not None:
            is_old = not segment.is_empty and time.monotonic() - self._taken > _PART_SECONDS
            if is_old or not segment.fits(rows, event):
                # Let go first: should an interrupt come between, `close` finds the segment full.
                self._active = None
                self._full.put(segment)
        if self._active is None:
            self._active = self._take_segment()
        if not self._active.fits(rows, event):
            raise ValueError(f"a text of {len(event)} bytes exceeds what a segment holds")
        return self._active

    def _take_segment(self) -> Segment:
        try:
            segment = self._free.get_nowait()
        except queue.Empty:
            start = time.perf_counter()
            segment = self._wait_for_segment()
            self.stats.stalls += 1
            self.stats.stalled_seconds += time.perf_counter() - start
        segment.reset(self._next_number)
        self._next_number += 1
        self._taken = time.monotonic()
        return segment

    def _wait_for_segment(self) -> Segment:
        while True:
            try:
                return self._free.get(timeout=0.2)
            except queue.Empty:
                self._check()

    def _work(self) -> None:
        while (segment := self._full.get()) is not None:
            try:
                if not segment.is_empty:
                    flush(segment, self.files)
                    self.stats.parts += 1
            except BaseException as error:
                self._error = error
                return
            segment.reset(segment.number)
            self._free.put(segment)

    def _check(self) -> None:
        if self._error is not None:
            if isinstance(self._error, TraceError):
                raise self._error
            raise TraceError(f"The trace writer failed: {self._error!r}.") from self._error


def _event(content: dict[str, Any]) -> bytes:
    # A lone surrogate, which no parquet string can hold, becomes a question mark.
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=np.ndarray.item)
    return text.encode("utf-8", errors="replace")
