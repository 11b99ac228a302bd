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

from moe_probe.trace.files import TraceFiles
from moe_probe.trace.intake import Intake, event
from moe_probe.trace.layout import Capture, LayerSpec, RowLayout
from moe_probe.trace.limits import check_answer, check_correct, check_facts
from moe_probe.trace.output import beginning, last_forward_pass, last_sequence
from moe_probe.trace.ranks import Merge
from moe_probe.trace.schema import MAX_SEQUENCE_TOKENS, SEGMENT_TOKENS, Sequence
from moe_probe.trace.session import begin_session
from moe_probe.trace.spool import Spool, WriterStats
from moe_probe.trace.staging import Rows


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
        rank: Which of several writers this is; it names parts and sequences.
        group: Ranks that give the same name, new for each recording, write one trace at the same
            time. The first to come begins it, with its `run`, `resume` and `force`; the others
            join it, even when all others have ended. Without a name, writers take turns.
        resume: Continue an existing trace of the same layers and capture level.
        force: Replace an existing trace; other files beside it stay.
        segment_tokens: Tokens per part; also the longest sequence that can be written.
        max_bytes: Once routing parts are larger than this, later ones are not written; counts and
            sequences go on. What is in staging then, up to three parts, is still written.

    Raises:
        ValueError: `segment_tokens` or `rank` is impossible.
        UsageError: `path` holds something and neither `resume` nor `force` allows that.
        TraceError: the directory cannot be written, or another process is recording into it, or
            the group records other layers or at another capture level.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        layers: list[LayerSpec],
        capture: Capture | str = Capture.IDS,
        run: Mapping[str, Any] | None = None,
        rank: int = 0,
        group: str = "",
        resume: bool = False,
        force: bool = False,
        segment_tokens: int = SEGMENT_TOKENS,
        max_bytes: int | None = None,
    ) -> None:
        if not 0 < segment_tokens <= MAX_SEQUENCE_TOKENS:
            raise ValueError(f"segment_tokens is {segment_tokens}, not 1 to {MAX_SEQUENCE_TOKENS}")
        check_facts("the trace", {"rank": rank})
        self.files = TraceFiles(Path(path))
        self.layout = RowLayout(tuple(layers))
        self.layout.check()
        self.capture = Capture(capture)
        self.rank = rank
        self._closed = False
        with beginning(path), ExitStack() as stack:
            who = {"rank": rank, "group": group, "resume": resume, "force": force}
            self._session = begin_session(
                self.files, self.layout, self.capture, dict(run or {}), stack, **who
            )
            first_id = last_sequence(self.files, rank) + 1
            self.first_forward_pass = last_forward_pass(self.files, rank) + 1
            """Number of the session's first forward pass: the rank's trace has lower ones."""
            self._intake = Intake(self.layout, self.capture, segment_tokens, first_id)
            row = self.layout, self.capture, rank
            self._spool = Spool(self.files, *row, tokens=segment_tokens, max_bytes=max_bytes)
            self._closing = stack.pop_all()

    @property
    def longest_sequence(self) -> int:
        """The most tokens of its own that a sequence can have."""
        return self._intake.max_rows

    @property
    def keeps_rows(self) -> bool:
        """Whether rows written from now on are kept; once False, it stays so.

        Ask before each sequence. Once it is False, write them whole: none may leave its leading
        tokens to one whose rows are not kept, since they would not be counted.
        """
        return self.capture is not Capture.COUNTS and self._spool.keeps_rows

    @property
    def stats(self) -> WriterStats:
        return self._spool.stats

    def next_sequence_id(self) -> int:
        """Reserve the id of the next sequence."""
        return self._intake.ids.next()

    def write(
        self,
        sequence: Sequence,
        ids_TB: np.ndarray | None = None,
        *,
        token_id_T: np.ndarray | None = None,
        weights_TS: np.ndarray | None = None,
        scalars_TR: np.ndarray | None = None,
        forward_pass_T: np.ndarray | int | None = None,
    ) -> None:
        """Accept one whole sequence.

        Args:
            sequence: What it is; its id comes from `next_sequence_id`.
            ids_TB: Packed ids (`RowLayout.pack`) of its own tokens, which are those after the
                first `sequence.prefix_tokens`; None for a sequence without rows.
            token_id_T: Vocabulary ids of those tokens, if they may be stored.
            weights_TS: Gate weights float16, slots of all layers joined, at capture `weights`.
            scalars_TR: ROUTER_SCALARS float16 of all layers that have them joined, likewise.
            forward_pass_T: Forward pass of the model that ran each of those tokens, or all of them,
                counted on from `first_forward_pass`; -1 or None where that is not known.

        Raises:
            ValueError: the rows do not fit the sequence or the layers, or exceed a segment, or the
                sequence was written before.
            TraceError: the background thread failed to write; everything accepted is still safe.
        """
        self._check_open()
        rows = None
        if ids_TB is not None and len(ids_TB):
            rows = Rows(ids_TB, token_id_T, weights_TS, scalars_TR, forward_pass_T)
        self._intake.accept(sequence, rows)
        self._spool.append(event({"sequence": sequence.to_json()}), sequence, rows)

    def add(
        self,
        topk_ids: list[np.ndarray],
        *,
        topk_weights: list[np.ndarray] | None = None,
        router_scalars: list[np.ndarray] | None = None,
        token_ids: np.ndarray | None = None,
        forward_passes: np.ndarray | int | None = None,
        **facts: Any,
    ) -> int:
        """Write one sequence from plain arrays and return its id.

        Args:
            topk_ids: Per layer, expert ids [T, K].
            topk_weights: Per layer, gate weights [T, K], needed at capture `weights`.
            router_scalars: Per layer that has them, ROUTER_SCALARS [T, 3], needed likewise.
            token_ids: Vocabulary ids [T].
            forward_passes: Forward pass that ran each token [T], or the one that ran all of them.
            **facts: Fields of `Sequence`: subject, task, doc_id, prefix_end, ... In their texts a
                lone surrogate, which no file can hold, becomes a question mark.

        Raises:
            ValueError: shapes, ids or types that do not fit the layers; weights that are not finite
                in float16; a fact that no sequence can have. Nothing of the sequence is kept then.
        """
        self._check_open()
        check_facts("the sequence", facts)
        per_token = (token_ids, forward_passes)
        rows = self._intake.rows(topk_ids, topk_weights, router_scalars, *per_token)
        facts = {"kind": "imported", "rank": self.rank, **facts}
        num_tokens = len(rows.ids_TB)
        sequence = Sequence(sequence_id=self.next_sequence_id(), num_tokens=num_tokens, **facts)
        self.write(sequence, **rows._asdict())
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
        """Accept what the model answered: a choice's log-likelihood, or a generated text.

        Raises ValueError for values of other types, and a text that is too long.
        """
        self._check_open()
        answer: dict[str, Any] = {"sequence_id": sequence_id, "choice": choice, "loglik": loglik}
        answer |= {"is_greedy": is_greedy, "response": response}
        check_answer(answer)
        self._spool.append(event({"answer": answer}))

    def flush(self) -> None:
        """Wait until everything accepted so far is in finished parts, which `open_trace` reads.

        Each call ends a part, so call it rarely, and on the thread that writes. Raises TraceError
        where a part could not be written; everything accepted is still safe.
        """
        self._check_open()
        self._spool.flush()

    def close(
        self,
        status: str = "complete",
        *,
        facts: Mapping[str, Any] | None = None,
        correct: Mapping[tuple[str, int], bool] | None = None,
        merge: Merge | None = None,
    ) -> None:
        """Write everything out and end the trace with a status; further calls do nothing.

        A rank of a group ends itself. The last one to do so ends the trace, with the worst status
        of them all: complete, incomplete, interrupted, failed, or killed for a rank that never did.

        Args:
            status: How the recording ended.
            facts: More for run.json; of a rank, for its entry in `ranks` there.
            correct: Whether the model was right, by (task, doc_id), as far as known.
            merge: Makes more for run.json from the entries of the ranks that ended, in order;
                called by the last one only.

        Raises:
            TraceError: the last parts could not be written; staging keeps them for recovery.
            ValueError: a rank's status is none of those above, or `correct` has other types; with
                these, nothing was ended.
        """
        if self._closed:
            return
        known = check_correct(correct or {})
        self._closed = True
        with self._closing:
            self._spool.close()
            facts = {**(facts or {}), "writer": asdict(self.stats)}
            self._session.end(status, facts, known, merge)

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
