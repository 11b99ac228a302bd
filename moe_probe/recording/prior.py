"""What an interrupted recording already has."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import fields
from typing import Any

import pyarrow as pa

from moe_probe.recording.completeness import Completeness
from moe_probe.recording.contexts import PrefixCheck
from moe_probe.recording.rows import Request


class PriorRun:
    """Sequences and answers on disk, found by what a row is asked for."""

    def __init__(self, sequences: pa.Table, run: dict[str, Any]) -> None:
        self.completeness = Completeness()
        check = run.get("prefix_check") or {}
        self.prefix_check = PrefixCheck(*(int(check.get(f.name, 0)) for f in fields(PrefixCheck)))
        self._sequence_ids: dict[Hashable, int] = {}
        self._answers: dict[Hashable, dict[str, Any]] = {}
        self._num_tokens: dict[Hashable, int] = {}
        for row in sequences.to_pylist():
            self._add(row)

    def _add(self, row: dict[str, Any]) -> None:
        document = (row["kind"], row["task"], row["doc_id"], row["prompt_hash"])
        self._sequence_ids[(*document, tuple(row["choices"]))] = row["sequence_id"]
        for position, choice in enumerate(row["choices"]):
            self._num_tokens[(*document, choice)] = row["num_tokens"]
            if row["response"] is not None:
                self._answers[(*document, choice)] = {"response": row["response"]}
            elif row["choice_logliks"] is not None:
                self._answers[(*document, choice)] = {
                    "loglik": row["choice_logliks"][position],
                    "is_greedy": row["choice_is_greedy"][position],
                }
        totals, tokens = self.completeness, row["num_tokens"] * row["multiplicity"]
        if not row["sampled"]:
            totals.unsampled_tokens += tokens
        else:
            cached = row["cached_tokens"] * row["multiplicity"]
            shared = row["prefix_tokens"] * row["multiplicity"] - cached
            totals.shared_tokens += shared
            totals.stored_tokens += tokens - shared - cached

    def sequence_id(self, requests: list[Request], prompt_hash: str) -> int | None:
        """The sequence that was recorded for these requests of one document, if any."""
        first, choices = requests[0], tuple(request.choice for request in requests)
        key = (first.kind, first.task, first.doc_id, prompt_hash, choices)
        return self._sequence_ids.get(key)

    def answer(self, request: Request, prompt_hash: str) -> dict[str, Any] | None:
        """The answer that was recorded for a request, if any."""
        return self._answers.get(_answer_key(request, prompt_hash))

    def num_tokens(self, request: Request, prompt_hash: str) -> int:
        """Tokens of the sequence that has the request's answer, generated ones included."""
        return self._num_tokens[_answer_key(request, prompt_hash)]


def _answer_key(request: Request, prompt_hash: str) -> Hashable:
    return (request.kind, request.task, request.doc_id, prompt_hash, request.choice)
