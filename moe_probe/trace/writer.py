"""TraceWriter: accepts rows on the model's thread, writes parts on a background thread.

Shape suffixes: T tokens, K slots, B bytes of one token's ids, S slots over all layers.
"""

from __future__ import annotations

import json
import queue
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow.parquet as pq

from moe_probe.errors import TraceError, UsageError
from moe_probe.trace.files import TraceFiles, read_run, write_run, writer_lock
from moe_probe.trace.parts import flush
from moe_probe.trace.recovery import recover, settle
from moe_probe.trace.schema import (
    FORMAT_VERSION,
    SEGMENT_TOKENS,
    Capture,
    LayerSpec,
    RowLayout,
    Sequence,
)
from moe_probe.trace.staging import Segment

_NUM_SEGMENTS = 3
_PART_SECONDS = 60.0
_SEQUENCES_PER_RANK = 1 << 40


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
        rank: Which of several writers of one trace this is.
        resume: Continue an existing trace of the same layers and capture level.
        force: Replace an existing trace.
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
        self.capture = Capture(capture)
        self.rank = rank
        self.stats = WriterStats()
        self._segment_tokens = segment_tokens
        self._closing = ExitStack()
        self._error: BaseException | None = None
        self._closed = False
        self._prepare_directory(resume=resume, force=force)
        self.run: dict[str, Any] = self._open_run(dict(run or {}), resume=resume)
        self._next_number = self._last_number() + 1
        self._next_sequence = self._last_sequence() + 1
        self._start()

    def _prepare_directory(self, *, resume: bool, force: bool) -> None:
        root = self.files.root
        check_output(root, resume=resume, force=force)
        try:
            if force and root.exists():
                shutil.rmtree(root)
            self.files.make_folders()
        except OSError as error:
            raise TraceError(
                f"Cannot write the trace at {root}: {error.strerror}. Choose another --output."
            ) from error
        if not self._closing.enter_context(writer_lock(self.files, self.rank)):
            self._closing.close()
            raise TraceError(f"Another process is recording into {root}. Wait for it to end.")

    def _open_run(self, run: dict[str, Any], *, resume: bool) -> dict[str, Any]:
        facts = {
            "moe_probe_trace": FORMAT_VERSION,
            "capture": str(self.capture),
            "layers": [spec.to_json() for spec in self.layout.layers],
        }
        if resume and self.files.run.exists():
            self._closing.close()  # recovery takes the lock itself
            old = read_run(self.files)
            recover(self.files, old)
            self._closing.enter_context(writer_lock(self.files, self.rank))
            for name, value in facts.items():
                if old[name] != value:
                    raise UsageError(
                        f"Cannot resume {self.files.root}: its {name} was {_short(old[name])}, "
                        f"now it is {_short(value)}. Record into a new --output."
                    )
            run = {**old, **run, "resumed": [*old.get("resumed", []), _now()]}
        else:
            run = {**facts, "start": _now(), **run}
        run["status"] = "running"
        write_run(self.files, run)
        return run

    def _last_number(self) -> int:
        numbers = [
            int(path.stem.rsplit("-", 1)[1])
            for path in self.files.parts("sequences")
            if path.stem.startswith(f"part-{self.rank}-")
        ]
        return max(numbers, default=-1)

    def _last_sequence(self) -> int:
        last = self.rank * _SEQUENCES_PER_RANK - 1
        for path in self.files.parts("sequences"):
            if path.stem.startswith(f"part-{self.rank}-"):
                ids = pq.read_table(path, columns=["sequence_id"])["sequence_id"].to_numpy()
                last = max(last, *ids.tolist()) if len(ids) else last
        return last

    def _start(self) -> None:
        self._free: queue.SimpleQueue[Segment] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[Segment | None] = queue.SimpleQueue()
        self._segments = [
            Segment.create(
                self.files.segment(self.rank, slot),
                layers=self.layout.layers,
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
        self._take_segment()

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
            ValueError: the number of rows does not fit the sequence, or exceeds a segment.
            TraceError: the background thread failed to write; everything accepted is still safe.
        """
        rows = 0 if ids_TB is None else len(ids_TB)
        if rows and rows != sequence.num_tokens - sequence.prefix_tokens:
            raise ValueError(
                f"sequence {sequence.sequence_id} has {sequence.num_tokens} tokens, "
                f"{sequence.prefix_tokens} of them shared, but {rows} rows were given"
            )
        event = json.dumps({"sequence": asdict(sequence)}, separators=(",", ":")).encode()
        self._reserve(rows, event).append(
            event,
            sequence_id=sequence.sequence_id,
            first_position=sequence.prefix_tokens,
            token_id_T=token_id_T,
            ids_TB=ids_TB,
            weights_TS=weights_TS if self.capture is Capture.WEIGHTS else None,
        )
        self.stats.tokens += rows

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
        event = json.dumps({"answer": answer}, separators=(",", ":")).encode()
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
        self._full.put(self._active)
        self._full.put(None)
        self._thread.join()
        self._closing.close()
        self._check()
        for segment in self._segments:
            segment.path.unlink(missing_ok=True)
        self.run.update(facts or {}, status=status, end=_now(), writer=asdict(self.stats))
        settle(self.files, self.run, correct)
        write_run(self.files, self.run)
        for folder in (self.files.stage, self.files.root / "answers"):
            shutil.rmtree(folder, ignore_errors=True)

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
        is_old = not segment.is_empty and time.monotonic() - self._taken > _PART_SECONDS
        if is_old or not segment.fits(rows, event):
            self._full.put(segment)
            self._take_segment()
            if not self._active.fits(rows, event):
                raise ValueError(
                    f"a sequence of {rows} tokens exceeds the segment of {self._segment_tokens}"
                )
        return self._active

    def _take_segment(self) -> None:
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
        self._active = segment

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


def check_output(root: Path, *, resume: bool, force: bool) -> None:
    """Refuse an output that would destroy something; raises UsageError."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        if resume:
            raise UsageError(f"Nothing to resume: {root} does not exist. Leave --resume out.")
        return
    is_trace = (root / "run.json").is_file()
    if not is_trace:
        raise UsageError(
            f"{root} exists and is not a trace, so it is left alone. Choose another --output."
        )
    if not resume and not force:
        raise UsageError(
            f"{root} already holds a trace. Use --resume to continue it or --force to replace it."
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
