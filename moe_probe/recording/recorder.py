"""From a row the model ran to a sequence in the trace: identity, sharing, sampling, completeness.

Engine-neutral: who knows the engine says which requests a row answers and what was decided for it.

Shape suffixes: T tokens, B bytes of one token's ids.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from typing import Any, TypeVar
from zlib import crc32

import numpy as np

from moe_probe.errors import UsageError
from moe_probe.recording.completeness import Completeness
from moe_probe.recording.contexts import ContextIndex, PrefixStore, sharing_keys, token_hash
from moe_probe.recording.prior import PriorRun
from moe_probe.recording.raw_names import raw_name
from moe_probe.recording.rows import Decisions, Request, Row
from moe_probe.trace import Sequence, TraceWriter
from moe_probe.trace.schema import MAX_FORWARD_PASS

_Value = TypeVar("_Value")
# Takes tokens done, tokens expected, and the subject the last of them belong to.
Progress = Callable[[int, int, str], None]


class Recorder:
    """Writes rows and answers to a trace and keeps the books of completeness.

    Args:
        writer: The trace.
        sample_every: Record one document in this many, chosen by hash.
        seed: Seed of that choice.
        prior: What an interrupted recording already has.
        progress: Told how far the run is.
        is_raw: Whether each sequence is written by itself, named by `raw_name`, sharing no rows and
            not searched for contexts seen before: that is left to who joins pipeline stages.
    """

    def __init__(
        self,
        writer: TraceWriter,
        *,
        sample_every: int = 1,
        seed: int = 0,
        prior: PriorRun | None = None,
        progress: Progress | None = None,
        is_raw: bool = False,
    ) -> None:
        self._progress, self._is_raw = progress, is_raw
        self.writer = writer
        self.prior = prior
        self.totals = Completeness() if prior is None else prior.completeness
        self.prefixes = PrefixStore(None if prior is None else prior.prefix_check)
        self._contexts = ContextIndex()
        self._sample_every, self._seed = sample_every, seed
        self._passes = itertools.count(writer.first_forward_pass)
        self._waiting: dict[Hashable, list[tuple[int, int]]] = {}
        self._early: dict[Hashable, list[dict[str, Any]]] = {}

    def number_pass(self) -> int:
        """Number the next forward pass whose tokens are recorded, in the order they ran.

        -1 once there were more than a trace can number.
        """
        number = next(self._passes)
        return number if number <= MAX_FORWARD_PASS else -1

    def expect(self, num_tokens: int) -> None:
        """Note a row that the evaluation is going to run.

        Raises UsageError for a row that is longer than the trace can hold.
        """
        if num_tokens > self.writer.longest_sequence:
            raise UsageError(
                f"A prompt has {num_tokens} tokens, and a sequence of this trace can have "
                f"{self.writer.longest_sequence}. Cut prompts with --model-args max_length=N."
            )
        self.totals.expected_tokens += num_tokens

    def note_known(self, request: Request, tokens_T: np.ndarray, num_tokens: int) -> None:
        """Note a sequence the interrupted recording has: its contexts are not new any more.

        Args:
            request: What it was run for.
            tokens_T: The prompt.
            num_tokens: Its length, with what was generated after it.
        """
        if not self._is_raw and self._is_sampled(request):
            self._contexts.add(tokens_T)
        self.expect(num_tokens)

    def record(
        self,
        row: Row,
        decisions: Decisions,
        *,
        generated_T: np.ndarray | None = None,
    ) -> None:
        """Write what the model decided for one row.

        Args:
            row: The row; its requests may belong to several documents with equal prompts.
            decisions: Of its tokens after the cached ones, then of the fed generated tokens.
            generated_T: Generated token ids that were fed back.
        """
        prompt_hash = "" if row.is_private else token_hash(row.tokens_T)
        tokens_T = row.tokens_T
        if generated_T is not None and len(generated_T):
            tokens_T = np.concatenate([tokens_T, generated_T]).astype(np.int32)
            self.expect(len(generated_T))
        original = -1
        for requests in row.by_document():
            sequence_id = self.prior.sequence_id(requests, prompt_hash) if self.prior else None
            if sequence_id is None:
                sequence = self._sequence(row, requests, tokens_T, prompt_hash, original)
                sequence_id = sequence.sequence_id
                self._write(row, sequence, tokens_T, decisions)
            elif self._is_sampled(row.requests[0]) and not row.is_live:
                self._contexts.add(tokens_T)
            original = sequence_id if original < 0 else original
            for request in requests:
                self._await_answer(request, sequence_id)
        if self._progress is not None:
            totals = self.totals
            self._progress(totals.recorded_tokens, totals.expected_tokens, row.requests[0].subject)

    def answer(self, key: Hashable, answer: dict[str, Any]) -> None:
        """Write an answer to the sequence that awaits it, now or when its row has arrived."""
        if key in self._waiting:
            sequence_id, choice = _take(self._waiting, key)
            self.writer.answer(sequence_id, choice, **answer)
        else:
            self._early.setdefault(key, []).append(answer)

    def _await_answer(self, request: Request, sequence_id: int) -> None:
        if request.answer_key is None:
            return
        if request.answer_key in self._early:
            answer = _take(self._early, request.answer_key)
            self.writer.answer(sequence_id, request.choice, **answer)
        else:
            waiting = self._waiting.setdefault(request.answer_key, [])
            waiting.append((sequence_id, request.choice))

    def _sequence(
        self,
        row: Row,
        requests: list[Request],
        tokens_T: np.ndarray,
        prompt_hash: str,
        original: int,
    ) -> Sequence:
        first = requests[0]
        # One decision for all documents of a row: they share its rows.
        sampled = self._is_sampled(row.requests[0])
        sequence = Sequence(
            sequence_id=self.writer.next_sequence_id(),
            num_tokens=len(tokens_T),
            task=first.task,
            subject=first.subject,
            area=first.area,
            doc_id=first.doc_id,
            kind=first.kind,
            choices=[request.choice for request in requests],
            truncated_tokens=row.truncated,
            sampled=sampled,
            prompt_hash=prompt_hash,
            new_from=-1,
            rank=self.writer.rank,
            request_id=row.request_id,
            cached_tokens=row.cached,
            prefix_tokens=row.cached,
            **row.bounds._asdict(),
        )
        if self._is_raw:
            unstored_T = row.tokens_T[: row.cached] if sampled else row.tokens_T
            sequence.request_id = raw_name(row.request_id, [] if row.is_private else unstored_T)
        elif sampled and not row.is_live:
            # What was left out of the trace does not make a later context old.
            sequence.new_from = self._contexts.add(tokens_T)
        if original >= 0:
            # The model ran the equal prompt of another document: this one has no run of its own.
            sequence.prefix_id, sequence.prefix_tokens = original, len(tokens_T)
            sequence.multiplicity = 0
        return sequence

    def _write(
        self, row: Row, sequence: Sequence, tokens_T: np.ndarray, decisions: Decisions
    ) -> None:
        if sequence.multiplicity == 0:
            self.writer.write(sequence)
            return
        num_run = sequence.num_tokens - sequence.cached_tokens
        if not sequence.sampled:
            self.totals.unsampled_tokens += num_run
            self.writer.write(sequence)
            return
        shared = 0
        can_share = not (self._is_raw or row.is_live or row.cached)
        if can_share and self.writer.keeps_rows:
            shared = self._share(sequence, tokens_T, decisions.ids_TB)
        self.totals.shared_tokens += shared
        self.totals.stored_tokens += num_run - shared
        if shared == sequence.num_tokens:
            self.writer.write(sequence)
            return
        own = decisions.after(shared)
        self.writer.write(
            sequence,
            own.ids_TB,
            token_id_T=None if row.is_private else tokens_T[sequence.prefix_tokens :],
            weights_TS=own.weights_TS,
            scalars_TR=own.scalars_TR,
            forward_pass_T=own.forward_pass_T,
        )

    def _share(self, sequence: Sequence, tokens_T: np.ndarray, ids_TB: np.ndarray) -> int:
        """Leave leading tokens to the sequence that stores them already; return how many."""
        keys = sharing_keys(sequence, tokens_T)
        sequence.prefix_id, sequence.prefix_tokens = self.prefixes.find(keys, ids_TB)
        self.prefixes.add(keys, sequence.sequence_id, ids_TB)
        return sequence.prefix_tokens

    def _is_sampled(self, request: Request) -> bool:
        if not self.writer.layout.layers:
            return False
        document = f"{self._seed}/{request.task}/{request.doc_id}".encode()
        return crc32(document) % self._sample_every == 0


def _take(waiting: dict[Hashable, list[_Value]], key: Hashable) -> _Value:
    """Take one value under a key, and the key with the last of them."""
    values = waiting[key]
    value = values.pop()
    if not values:
        del waiting[key]
    return value
