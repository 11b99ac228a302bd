"""Writing what pipeline stages recorded as one trace: each request through the ordinary recorder.

Shape suffixes: T tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moe_probe.errors import TraceError
from moe_probe.recording.contexts import token_hash
from moe_probe.recording.prior import PriorRun
from moe_probe.recording.raw_names import read_raw_name
from moe_probe.recording.recorder import Recorder
from moe_probe.recording.rows import Bounds, Request, Row
from moe_probe.recording.stage_trace import StageSequence
from moe_probe.recording.tags import external_id
from moe_probe.trace import Capture, Trace
from moe_probe.trace.output import SEQUENCES_PER_RANK


class KnownRun(PriorRun):
    """What the joined trace has already: from before, and from a join that was killed.

    Sequences are joined in the same order every time, so those of the killed join are the first.

    Args:
        trace: The joined trace as it is.
        first: The first sequence that this join gives.
        is_evaluation: Whether sequences from before answer the same request again.

    Raises:
        TraceError: the killed join's sequences are not the first ones.
    """

    def __init__(self, trace: Trace, first: int, *, is_evaluation: bool) -> None:
        sequences = trace.sequences
        ids = sequences["sequence_id"]
        is_joined = pc.and_(pc.greater_equal(ids, first), pc.less(ids, SEQUENCES_PER_RANK))
        before = sequences.filter(pc.invert(is_joined))
        super().__init__(before if is_evaluation else before.slice(0, 0), trace.run)
        joined = sequences.filter(is_joined)
        self.completeness += PriorRun(joined, {}).completeness
        self._joined: deque[int] = deque(sorted(joined["sequence_id"].to_pylist()))
        if list(self._joined) != list(range(first, first + len(self._joined))):
            raise TraceError(
                f"{trace.path} was being joined from its pipeline stages and lacks sequences since."
                " Delete all but its folder stages, then open it again."
            )
        has_tokens = is_evaluation and trace.capture is not Capture.COUNTS
        self.prompts = list(_prompts(trace, before)) if has_tokens and len(before) else []
        """Requests from before, with their tokens, int32."""

    def sequence_id(self, requests: list[Request], prompt_hash: str) -> int | None:
        known = super().sequence_id(requests, prompt_hash)
        return self._joined.popleft() if known is None and self._joined else known


def _prompts(trace: Trace, sequences: pa.Table) -> Iterator[tuple[Request, np.ndarray]]:
    own: dict[int, np.ndarray] = {}
    for block in trace.scan(layers=[]):
        starts = np.flatnonzero(np.diff(block.sequence_id_T, prepend=-1))
        every = np.split(block.token_id_T, starts[1:])
        own.update(zip(block.sequence_id_T[starts].tolist(), every, strict=True))
    full: dict[int, np.ndarray] = {}
    nothing = np.empty(0, np.int32)
    for row in sorted(sequences.to_pylist(), key=lambda row: int(row["sequence_id"])):
        head_T = full.get(row["prefix_id"], nothing)[: row["prefix_tokens"]]
        tokens_T = np.concatenate([head_T, own.get(row["sequence_id"], nothing)])
        full[row["sequence_id"]] = tokens_T
        if len(tokens_T) == row["num_tokens"]:
            yield _request(row, 0), tokens_T


def record_joined(recorder: Recorder, joined: StageSequence) -> None:
    """Record a request with all layers and what was answered.

    Raises TraceError where what the stages say of it cannot be.
    """
    facts = joined.facts
    row, generated_T = _row(joined)
    try:
        recorder.record(row, joined.decisions, generated_T=generated_T)
    except ValueError as error:
        raise _damaged(facts, str(error)) from error
    for position, request in enumerate(row.requests):
        if facts["response"] is not None:
            recorder.answer(request.answer_key, {"response": facts["response"]})
        elif facts["choice_logliks"] is not None:
            answer = {
                "loglik": facts["choice_logliks"][position],
                "is_greedy": facts["choice_is_greedy"][position],
            }
            recorder.answer(request.answer_key, answer)


def _row(joined: StageSequence) -> tuple[Row, np.ndarray]:
    """The request as the recorder takes it, and its generated tokens."""
    facts = joined.facts
    name = read_raw_name(facts["request_id"])
    tokens_T = np.full(facts["num_tokens"], -1, np.int32)
    head_T = name.unstored_T[: len(tokens_T)]
    tokens_T[: len(head_T)] = head_T
    if facts["sampled"]:
        tokens_T[facts["prefix_tokens"] :] = joined.token_id_T
    # The choice ends with the prompt.
    split = facts["choice_end"]
    is_private = not facts["prompt_hash"]
    if not is_private and token_hash(tokens_T[:split]) != facts["prompt_hash"]:
        raise _damaged(facts, "its tokens are not those of its hash")
    row = Row(
        tokens_T=tokens_T[:split],
        bounds=Bounds(*(facts[name] for name in Bounds._fields)),
        truncated=facts["truncated_tokens"],
        requests=[_request(facts, choice) for choice in facts["choices"]],
        request_id=external_id(name.request_id),
        cached=facts["cached_tokens"],
        is_private=is_private,
    )
    if not row.requests:
        raise _damaged(facts, "it has no choices")
    return row, tokens_T[split:]


def _request(facts: dict[str, Any], choice: int) -> Request:
    return Request(
        task=facts["task"],
        subject=facts["subject"],
        area=facts["area"],
        doc_id=facts["doc_id"],
        kind=facts["kind"],
        choice=choice,
        answer_key=(facts["sequence_id"], choice),
    )


def _damaged(facts: dict[str, Any], reason: str) -> TraceError:
    return TraceError(
        f"Request {facts['request_id']!s:.80} of a pipeline stage is damaged: {reason}. "
        "Record again."
    )
