"""TraceWriter: accepts rows on the model's thread and leaves a trace on disk.

Shape suffixes: T tokens, K slots, B bytes of one token's ids, S slots and R router scalars over
all layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from moe_probe.errors import TraceError
from moe_probe.trace.files import TraceFiles, writer_lock
from moe_probe.trace.intake import SequenceIds, check_prefix, check_rows, event
from moe_probe.trace.layout import Capture, LayerSpec, RowLayout
from moe_probe.trace.output import begin_run, check_output, end_run, last_sequence
from moe_probe.trace.schema import FORMAT_VERSION, MAX_SEQUENCE_TOKENS, SEGMENT_TOKENS, Sequence
from moe_probe.trace.settling import settle
from moe_probe.trace.spool import Spool, WriterStats


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
        rank: Which of several writers that take turns this is; it names parts and sequences.
        resume: Continue an existing trace of the same layers and capture level.
        force: Replace an existing trace; other files beside it stay.
        segment_tokens: Tokens per part; also the longest sequence that can be written.
        max_bytes: Once routing parts are larger than this, later ones are not written; counts and
            sequences go on. What is in staging then, up to three parts, is still written.

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
        max_bytes: int | None = None,
    ) -> None:
        if not 0 < segment_tokens <= MAX_SEQUENCE_TOKENS:
            raise ValueError(f"segment_tokens is {segment_tokens}, not 1 to {MAX_SEQUENCE_TOKENS}")
        self.files = TraceFiles(Path(path))
        self.layout = RowLayout(tuple(layers))
        self.layout.check()
        self.capture = Capture(capture)
        self.rank = rank
        self._segment_tokens = segment_tokens
        self._max_bytes = max_bytes
        self._closed = False
        check_output(self.files.root, resume=resume, force=force)
        with ExitStack() as stack:
            try:
                self._lock(stack)
                # Again, now that nobody else can make a trace here.
                check_output(self.files.root, resume=resume, force=force)
                self._begin(dict(run or {}), resume=resume, force=force)
            except OSError as error:
                raise TraceError(
                    f"Cannot write the trace at {path}: {error.strerror}. Choose another --output."
                ) from error
            self._closing = stack.pop_all()

    @property
    def longest_sequence(self) -> int:
        """The most tokens of its own that a sequence can have."""
        return self._segment_tokens

    @property
    def keeps_rows(self) -> bool:
        """Whether rows written from now on are kept; once False, it stays so.

        Where it is False, write sequences whole: no later one may leave its leading tokens to one
        whose rows are not kept, since they would not be counted.
        """
        return self.capture is not Capture.COUNTS and self._spool.keeps_rows

    @property
    def stats(self) -> WriterStats:
        return self._spool.stats

    def _lock(self, stack: ExitStack) -> None:
        root = self.files.root
        root.mkdir(parents=True, exist_ok=True)
        if not stack.enter_context(writer_lock(self.files)):
            raise TraceError(f"Another process is recording into {root}. Wait for it to end.")

    def _begin(self, run: dict[str, Any], *, resume: bool, force: bool) -> None:
        facts = {
            "moe_probe_trace": FORMAT_VERSION,
            "capture": str(self.capture),
            "layers": [spec.to_json() for spec in self.layout.layers],
        }
        self.run = begin_run(self.files, facts, run, resume=resume, force=force)
        self._sequence_ids = SequenceIds(last_sequence(self.files, self.rank) + 1)
        self._spool = Spool(
            self.files,
            layout=self.layout,
            capture=self.capture,
            rank=self.rank,
            tokens=self._segment_tokens,
            first_number=self.files.last_number(self.rank) + 1,
            max_bytes=self._max_bytes,
        )

    def next_sequence_id(self) -> int:
        """Reserve the id of the next sequence."""
        return self._sequence_ids.next()

    def write(
        self,
        sequence: Sequence,
        ids_TB: np.ndarray | None = None,
        *,
        token_id_T: np.ndarray | None = None,
        weights_TS: np.ndarray | None = None,
        scalars_TR: np.ndarray | None = None,
    ) -> None:
        """Accept one whole sequence.

        Args:
            sequence: What it is; its id comes from `next_sequence_id`.
            ids_TB: Packed ids (`RowLayout.pack`) of its own tokens, which are those after the
                first `sequence.prefix_tokens`; None for a sequence without rows.
            token_id_T: Vocabulary ids of those tokens, if they may be stored.
            weights_TS: Gate weights float16, slots of all layers joined, at capture `weights`.
            scalars_TR: ROUTER_SCALARS float16 of all layers that have them joined, likewise.

        Raises:
            ValueError: the rows do not fit the sequence or the layers, or exceed a segment, or the
                sequence was written before.
            TraceError: the background thread failed to write; everything accepted is still safe.
        """
        self._check_open()
        check_prefix(sequence)
        if ids_TB is not None and not len(ids_TB):
            ids_TB = None
        if ids_TB is not None:
            arrays = (ids_TB, token_id_T, weights_TS, scalars_TR)
            check_rows(
                sequence,
                *arrays,
                layout=self.layout,
                capture=self.capture,
                max_rows=self._segment_tokens,
            )
        self._sequence_ids.claim(sequence.sequence_id)
        self._spool.append(
            event({"sequence": sequence.to_json()}),
            sequence_id=sequence.sequence_id,
            first_position=sequence.prefix_tokens,
            token_id_T=token_id_T,
            ids_TB=ids_TB,
            weights_TS=weights_TS if self.capture is Capture.WEIGHTS else None,
            scalars_TR=scalars_TR if self.capture is Capture.WEIGHTS else None,
        )

    def add(
        self,
        topk_ids: list[np.ndarray],
        *,
        topk_weights: list[np.ndarray] | None = None,
        router_scalars: list[np.ndarray] | None = None,
        token_ids: np.ndarray | None = None,
        **facts: Any,
    ) -> int:
        """Write one sequence from plain arrays and return its id.

        Args:
            topk_ids: Per layer, expert ids [T, K].
            topk_weights: Per layer, gate weights [T, K], needed at capture `weights`.
            router_scalars: Per layer that has them, ROUTER_SCALARS [T, 3], needed likewise.
            token_ids: Vocabulary ids [T].
            **facts: Fields of `Sequence`: subject, task, doc_id, prefix_end, ...

        Raises:
            ValueError: shapes or ids that do not fit the layers.
        """
        ids_TB = self.layout.pack(topk_ids)
        weights_TS = scalars_TR = None
        if self.capture is Capture.WEIGHTS:
            if topk_weights is None:
                raise ValueError("capture 'weights' needs topk_weights")
            weights_TS = np.concatenate(topk_weights, axis=1).astype(np.float16)
            if router_scalars:
                scalars_TR = np.concatenate(router_scalars, axis=1).astype(np.float16)
        facts = {"kind": "imported", "rank": self.rank, **facts}
        sequence = Sequence(sequence_id=self.next_sequence_id(), num_tokens=len(ids_TB), **facts)
        self.write(
            sequence,
            ids_TB,
            token_id_T=token_ids,
            weights_TS=weights_TS,
            scalars_TR=scalars_TR,
        )
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
        self._check_open()
        answer = {
            "sequence_id": sequence_id,
            "choice": choice,
            "loglik": loglik,
            "is_greedy": is_greedy,
            "response": response,
        }
        self._spool.append(event({"answer": answer}))

    def flush(self) -> None:
        """Wait until everything accepted so far is in finished parts, which `open_trace` reads.

        Each call ends a part, so leave it to a person or a rare timer. Not while another thread
        writes.

        Raises:
            TraceError: the background thread failed to write; everything accepted is still safe.
        """
        self._check_open()
        self._spool.flush()

    def close(
        self,
        status: str = "complete",
        *,
        facts: Mapping[str, Any] | None = None,
        correct: Mapping[tuple[str, int], bool] | None = None,
    ) -> None:
        """Write everything out and end the trace with a status; further calls do nothing.

        Args:
            status: How the recording ended.
            facts: More for run.json.
            correct: Whether the model was right, by (task, doc_id), as far as known.

        Raises:
            TraceError: the last parts could not be written; staging keeps them for recovery.
        """
        if self._closed:
            return
        self._closed = True
        with self._closing:
            self._spool.finish()
            self.run.update(facts or {}, status=status, writer=asdict(self.stats))
            settle(self.files, self.run, correct)
            self._spool.remove()
            end_run(self.files, self.run)
            self.files.drop_stage()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        self.close("complete" if error is None else status)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the trace is closed")
