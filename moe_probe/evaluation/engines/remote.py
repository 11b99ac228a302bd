"""The recorder inside an engine, told from here what the evaluation knows.

Rows are captured and written where the engine runs; this side says which requests ended, with how
many tokens, what was answered, and what an earlier recording has already.

Shape suffixes: T tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from moe_probe.errors import CaptureError, UsageError
from moe_probe.recording.prior import PriorRun
from moe_probe.recording.recorder import Progress
from moe_probe.recording.rows import Request, Row

# Gives a command to all workers and returns their answers.
Call = Callable[[str, Any], Sequence[Any]]
# Ended requests wait in the worker until it is told: few enough to be small, and to be told of
# while others run.
_BATCH = 128
_MOST_ANSWERS = 1024


class EngineRecorder:
    """Stands for the recorder in an engine's worker; a `Books` for the evaluation.

    Args:
        call: Reaches the engine's workers.
        prior: What an interrupted recording already has.
        progress: Told how far the run is.
    """

    def __init__(
        self, call: Call, *, prior: PriorRun | None = None, progress: Progress | None = None
    ) -> None:
        self.prior = prior
        self.prompt_tokens = 0
        """Tokens of all prompts the evaluation asked for."""
        self._call, self._progress = call, progress
        self._done_tokens = 0
        self._ended: list[tuple[str, int]] = []
        self._answers: list[tuple[Hashable, dict[str, Any]]] = []
        self._known: list[tuple[Any, int]] = []

    def command(self, command: str, payload: Any = None) -> dict[str, Any]:
        """Give a command; raises CaptureError or UsageError with what the worker says is wrong."""
        answers = [answer for answer in self._call(command, payload) if answer is not None]
        if not answers:
            raise CaptureError(
                "The engine runs without moe-probe: its plugin was not loaded. If VLLM_PLUGINS is "
                "set, moe_probe must be among its names."
            )
        for answer in answers:
            if answer.get("error"):
                kind = UsageError if answer.get("exit_code") == UsageError.exit_code else None
                raise (kind or CaptureError)(str(answer["error"]))
        return dict(answers[0])

    def expect(self, num_tokens: int) -> None:
        self.prompt_tokens += num_tokens

    def note_known(self, request: Request, tokens_T: np.ndarray, num_tokens: int) -> None:
        self.prompt_tokens += len(tokens_T)
        self._done_tokens += num_tokens
        row = {"task": request.task, "doc": request.doc_id, "kind": request.kind}
        self._known.append(((tokens_T.tolist(), row), num_tokens))
        if len(self._known) >= _BATCH:
            self._send_known()

    def answer(self, key: Hashable, answer: dict[str, Any]) -> None:
        """Note an answer under the id by which its request was asked."""
        self._answers.append((key, answer))
        if len(self._answers) >= _MOST_ANSWERS:
            self.send()

    def ended(self, ids: Iterable[tuple[str, int]]) -> None:
        """Note requests that ended, with the tokens each ran."""
        for name, num_tokens in ids:
            self._ended.append((name, num_tokens))
            self._done_tokens += num_tokens
        if len(self._ended) >= _BATCH:
            self.send()
        self.report_progress()

    def report_progress(self, num_tokens: int = 0) -> None:
        """Show how far the run is, with some more tokens run."""
        self._done_tokens += num_tokens
        if self._progress is not None:
            self._progress(self._done_tokens, max(self.prompt_tokens, self._done_tokens), "")

    def send(self) -> None:
        """Tell the worker all that was noted."""
        self._send_known()
        if self._ended:
            self.command("end", self._ended)
            self._ended = []
        if self._answers:
            self.command("answer", self._answers)
            self._answers = []

    def _send_known(self) -> None:
        if self._known:
            self.command("known", self._known)
            self._known = []


class TaggedRows:
    """The rows that are still to come, found by the tokens that are sent to the engine."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._rows: dict[bytes, deque[Row]] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        self._rows.setdefault(_key(row.tokens_T), deque()).append(row)

    def take(self, tokens: Sequence[int]) -> Row:
        """Find a row; the last one with these tokens may be taken again, for a request sent twice.

        Raises CaptureError if no request of the evaluation explains the tokens.
        """
        rows = self._rows.get(_key(np.asarray(tokens, np.int32)))
        if not rows:
            raise CaptureError(
                f"A prompt of {len(tokens)} tokens is none that the evaluation asked for."
            )
        return rows.popleft() if len(rows) > 1 else rows[0]


def _key(tokens_T: np.ndarray) -> bytes:
    return np.ascontiguousarray(tokens_T, np.int32).tobytes()
