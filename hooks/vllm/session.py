"""One recording inside an engine's worker: steps in, a trace out.

Everything but `step` runs on the recording thread, in the order it was asked for.

Shape suffixes: T tokens, Q requests of a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from moe_probe.hooks.step_buffer import StepRows
from moe_probe.hooks.vllm.batch import NewRequest
from moe_probe.hooks.vllm.books import Dropped, books_of, merged_books
from moe_probe.hooks.vllm.channel import Channel
from moe_probe.hooks.vllm.requests import EndedRequest, RequestRows
from moe_probe.recording.prior import PriorRun
from moe_probe.recording.recorder import Recorder
from moe_probe.recording.tags import TAG, read_row, run_of
from moe_probe.trace import TraceWriter

# Rows on their way to the host or waiting to be sorted: seconds of a busy engine.
_WAITING_BYTES = 512 << 20
# What came in can be read by others after this long, however little it is.
_FLUSH_SECONDS = 30.0
# Clients name them, so their number is bounded.
_MAX_RUNS = 1000


class Step(NamedTuple):
    """What one forward pass of the engine ran."""

    ended: dict[str, int | None]
    """Requests that ended before it, with their lengths where they are known."""
    admitted: list[NewRequest]
    names: list[str]
    counts_Q: np.ndarray
    rows: StepRows | None
    """None where it ran nothing, or nothing that is kept."""


class Session:
    """Records the requests it is told to, each when it ends.

    Args:
        writer: The trace.
        keeps_tokens: Whether the text of live traffic may be kept.
        waits: Whether the engine waits when the recorder falls behind; it drops rows otherwise.
        prior: What an interrupted recording already has.
        sample_every: Record one document in this many.
        is_stage: Whether the trace is a pipeline stage's, to be joined with those of the others.
    """

    def __init__(
        self,
        writer: TraceWriter,
        *,
        keeps_tokens: bool,
        waits: bool,
        prior: PriorRun | None = None,
        sample_every: int = 1,
        is_stage: bool = False,
    ) -> None:
        self.writer = writer
        self.recorder = Recorder(writer, sample_every=sample_every, prior=prior, is_raw=is_stage)
        self.dropped = Dropped()
        self._keeps_tokens, self._waits, self._is_stage = keeps_tokens, waits, is_stage
        self._rows = RequestRows(writer.layout, writer.capture, self.recorder.totals)
        self._num_flushed = 0
        self._prompt_tokens = 0
        self._run_tokens: Counter[str] = Counter()
        self._evaluations: list[dict[str, Any]] = []
        self._correct: dict[tuple[str, int], bool] = {}
        self._channel = Channel(
            self._take, self._flush, max_bytes=_WAITING_BYTES, tidy_seconds=_FLUSH_SECONDS
        )

    @property
    def error(self) -> BaseException | None:
        """What ended the recording, if anything did."""
        return self._channel.error

    def step(self, step: Step) -> None:
        """Hand over a forward pass; called on the model's thread.

        Raises what ended the recording, if anything did.
        """
        if self.error is not None:
            raise self.error
        num_bytes = 0 if step.rows is None else step.rows.num_bytes
        if not self._channel.put(step, num_bytes, wait=self._waits):
            self.dropped.steps += 1
            self.dropped.tokens += int(step.counts_Q.sum())
            self._channel.put(step._replace(rows=None))

    def end(self, lengths: Iterable[tuple[str, int | None]]) -> None:
        """Record requests that ended, by the engine's ids."""
        pairs = list(lengths)
        self._channel.put(lambda: self._end(pairs))

    def answer(self, answers: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Note answers, by the ids under which their requests were asked."""
        pairs = list(answers)

        def note() -> None:
            for name, answer in pairs:
                self.recorder.answer(name, answer)

        self._channel.put(note)

    def note_known(self, known: Iterable[tuple[tuple[list[int], dict[str, Any]], int]]) -> None:
        """Note requests that an interrupted recording has: prompts, tags, lengths."""
        entries = list(known)

        def note() -> None:
            for (prompt, tag), length in entries:
                tokens_T = np.asarray(prompt, np.int32)
                row = read_row({TAG: tag}, tokens_T, num_prompt_tokens=len(tokens_T))
                self.recorder.note_known(row.requests[0], tokens_T, length)
                self._prompt_tokens += len(tokens_T)

        self._channel.put(note)

    def note_evaluation(
        self, facts: dict[str, Any], correct: Mapping[tuple[str, int], bool]
    ) -> None:
        """Keep, for run.json, what an evaluation that used this server has to say."""
        if len(self._evaluations) < _MAX_RUNS:
            self._evaluations.append(facts)
            self._correct.update(correct)

    def flush(self) -> None:
        """Make everything that ended readable for others."""
        self._channel.run(self._flush)

    def status(self, run: str = "") -> dict[str, Any]:
        """Counts, as plain numbers and text; `run_tokens` are those of one evaluation's run."""
        totals = self.recorder.totals.to_json()
        return {
            "trace": str(self.writer.files.root),
            "open_requests": len(self._rows),
            "recorded_tokens": totals["recorded_tokens"],
            "run_tokens": self._run_tokens[run],
            "layers": [spec.layer for spec in self.writer.layout.layers],
            "lost_tokens": totals["lost_tokens"],
            "dropped_tokens": self.dropped.tokens,
            "rows_are_kept": self.writer.keeps_rows,
            "error": None if self.error is None else str(self.error),
        }

    def close(
        self,
        status: str | None,
        facts: dict[str, Any],
        *,
        prompt_tokens: int = 0,
        correct: Mapping[tuple[str, int], bool] | None = None,
    ) -> dict[str, Any]:
        """End the trace.

        Args:
            status: How the recording ended; None for complete or incomplete, as the books say.
            facts: More for run.json.
            prompt_tokens: Tokens of all prompts, by the list of who asked for them; 0 if nobody
                has one.
            correct: Whether the model was right, by (task, doc_id), as far as known.

        Returns:
            The facts as written, the books of completeness among them.
        """
        self._channel.put(lambda: self._end((name, None) for name in self._rows.names))
        self._channel.close()
        totals = self.recorder.totals
        totals.expected_tokens += max(prompt_tokens - self._prompt_tokens, 0)
        books = books_of(self.recorder, self.dropped, self._rows.silent_tokens, self.error)
        facts = {**books, **facts}
        if self._evaluations:
            facts["evaluations"] = self._evaluations
        if self.error is not None:
            status = "failed"
        elif status is None:
            status = "complete" if totals.shortfall == 0 else "incomplete"
        correct = {**self._correct, **(correct or {})}
        self.writer.close(status, facts=facts, merge=merged_books, correct=correct)
        return facts

    def _take(self, item: Step | Callable[[], None]) -> None:
        if callable(item):
            item()
            return
        step = item
        self._end(step.ended.items())
        for request in step.admitted:
            self._rows.admit(request)
        if not step.names:
            return
        # A pass whose rows were dropped has a number too.
        number = self.recorder.number_pass()
        if step.rows is None:
            self._rows.miss(step.names, step.counts_Q)
        else:
            self._rows.add(step.names, step.counts_Q, step.rows.wait(), number)

    def _end(self, lengths: Iterable[tuple[str, int | None]]) -> None:
        for name, length in lengths:
            ended = self._rows.end(name, length)
            if ended is not None:
                self._record(ended)

    def _record(self, ended: EndedRequest) -> None:
        request = ended.request
        row = read_row(
            request.tags,
            ended.tokens_T,
            num_prompt_tokens=request.num_prompt_tokens,
            request_id=request.request_id,
            num_cached=request.num_cached,
            keeps_tokens=self._keeps_tokens,
        )
        if self._is_stage:
            row.request_id = request.request_id
        totals, num_run = self.recorder.totals, len(ended.decisions.ids_TB)
        if num_run > self.writer.longest_sequence:
            totals.lost_tokens += num_run
            return
        self.recorder.expect(num_run - len(ended.generated_T))
        self._prompt_tokens += len(ended.tokens_T)
        self.recorder.record(row, ended.decisions, generated_T=ended.generated_T)
        run = run_of(request.tags)
        if run in self._run_tokens or len(self._run_tokens) < _MAX_RUNS:
            self._run_tokens[run] += len(ended.tokens_T) + len(ended.generated_T)

    def _flush(self) -> None:
        if self.writer.stats.tokens != self._num_flushed:
            self.writer.flush()
            self._num_flushed = self.writer.stats.tokens
