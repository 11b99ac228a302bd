"""From lm-eval's Instances to the rows a model is to run, and back from rows to requests."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from moe_probe.evaluation.stretches import StretchFinder
from moe_probe.recording.rows import Bounds, Request, Row


class RequestReader:
    """Says what an lm-eval Instance asks for, and what its prompt consists of.

    Args:
        finder: Finds stretches with the model's tokenizer.
        tasks: lm-eval's task objects by name, for the document's own text.
        facts: Subject and area by task name; other tasks are their own subject.
    """

    def __init__(
        self, finder: StretchFinder, tasks: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> None:
        self._finder = finder
        self._tasks = tasks
        self._facts = facts

    def request(self, instance: Any, answer_key: Hashable) -> Request:
        """Describe one Instance."""
        task = str(instance.task_name or "")
        facts = self._facts.get(task)
        return Request(
            task=task,
            subject=facts.subject if facts else task,
            area=facts.area if facts else "",
            doc_id=-1 if instance.doc_id is None else int(instance.doc_id),
            kind=str(instance.request_type),
            choice=int(instance.idx),
            answer_key=answer_key,
        )

    def row(
        self,
        instance: Any,
        answer_key: Hashable,
        context_tokens: Sequence[int],
        fed: Sequence[int],
        *,
        truncated: int,
    ) -> Row:
        """Describe the row that answers one Instance; more requests may join it."""
        num_fed = len(fed)
        if instance.request_type == "loglikelihood_rolling":
            # Running text: there is no prompt around it.
            bounds = Bounds(0, num_fed, num_fed, num_fed)
        else:
            bounds = self._finder.bounds(
                instance.args[0],
                context_tokens,
                question=self._question(instance),
                num_fed=num_fed,
                truncated=truncated,
            )
        request = self.request(instance, answer_key)
        return Row(np.asarray(fed, np.int32), bounds, truncated, [request])

    def _question(self, instance: Any) -> str | None:
        task = self._tasks.get(instance.task_name)
        if task is None:
            return None
        text = task.doc_to_text(instance.doc)
        # Some tasks answer with an index or a list: their prompt has no one question text.
        return text if isinstance(text, str) else None


def answer_key(kind: str, arguments: Any) -> Hashable:
    """What lm-eval names an answer by, when it reports one to its cache."""
    return (kind, arguments[0], str(arguments[1]))


class RowIndex:
    """The rows that are still to come, found again by the tokens the model was fed."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows: dict[bytes, deque[Row]] = defaultdict(deque)
        for row in rows:
            self._rows[row.tokens_T.tobytes()].append(row)
        self._lengths = sorted({len(key) // 4 for key in self._rows})

    def take(self, padded_T: np.ndarray) -> Row | None:
        """Find and remove the row behind right-padded token ids; None if no request explains it.

        Padding is token 0, which may also end a prompt; equal prompts up to trailing zeros have
        equal routing, so taking the shortest first never swaps what differs.
        """
        fed_T = np.ascontiguousarray(padded_T, np.int32)
        nonzero = np.flatnonzero(fed_T)
        shortest = int(nonzero[-1]) + 1 if len(nonzero) else 1
        for length in self._lengths:
            if shortest <= length <= len(fed_T):
                waiting = self._rows.get(fed_T[:length].tobytes())
                if waiting:
                    return waiting.popleft()
        return None
