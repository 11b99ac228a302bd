"""The template of a task: what every document of it contains, whatever the document is about.

Tasks of one benchmark, as mmlu_law and mmlu_anatomy, have one template.

Shape suffixes: T tokens of a part, R stretches of a part, S sequences, V vocabulary ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from moe_probe.analysis.reading.index import TraceIndex
from moe_probe.analysis.reading.pieces import Stretches
from moe_probe.analysis.reading.rules import CUE_END
from moe_probe.errors import TraceError
from moe_probe.trace import SEGMENTS

_NEARLY_ALL = 0.99
"""Share of a task's documents that contain a template's token, like line breaks and labels."""
_MIN_DOCUMENTS = 20
_QUESTION_END = SEGMENTS.index("question")
_MAX_HEAD = 4096
_TOKEN_BITS = 32


@dataclass(frozen=True)
class Template:
    """Template tokens of every task, of the sequences of one trace.

    They are: the leading tokens that all sequences of the task have in common (the BOS token, the
    header), the answer cue and what follows it, and, with 20 documents or more, every token id that
    at least 99 % of them contain between prefix and choice, wherever it is.
    """

    index: TraceIndex
    task_S: np.ndarray
    """Index of each sequence's task."""
    head_by_task: np.ndarray
    """Number of leading tokens that a task's sequences share."""
    is_common: np.ndarray
    """bool [tasks, V]."""

    @classmethod
    def of(
        cls, index: TraceIndex, parts: Sequence[Stretches], token_ids: Iterable[np.ndarray]
    ) -> Template:
        """Learn the templates; memory is that of a part, and of documents that several parts have.

        Args:
            index: Of the trace.
            parts: Stretches of every part.
            token_ids: Token ids [T] of each.

        Raises:
            TraceError: the trace has no token ids.
        """
        # The tasks of one benchmark have the name before the first underscore in common.
        families = [task.split("_")[0] for task, _, _ in index.groups]
        tasks, task_of_group = np.unique(families, return_inverse=True)
        task_S = task_of_group[index.group_S]
        heads: dict[int, np.ndarray] = {}
        documents = _Documents(task_of_group[index.clusters.group_C], len(tasks))
        parts_C = np.zeros(len(index.clusters), np.int64)
        for stretches in parts:
            parts_C += _is_in_C(index, stretches)
        for stretches, token_id_T in zip(parts, token_ids, strict=True):
            if len(token_id_T) and token_id_T.min() < 0:
                raise TraceError(
                    "This trace has no token ids, which the rule no-template needs. Record with "
                    "MOE_PROBE_TOKENS=1, or use another --rule."
                )
            _shorten(heads, task_S, stretches, token_id_T)
            documents.add(_document_tokens(index, stretches, token_id_T), parts_C)
        return cls(
            index=index,
            task_S=task_S,
            head_by_task=np.array([len(heads.get(t, ())) for t in range(len(tasks))], np.int64),
            is_common=documents.common(),
        )

    def covers(self, stretches: Stretches, token_id_T: np.ndarray) -> np.ndarray:
        """Tell which rows of a part belong to the template: bool [T]."""
        sequence_T, position_T = stretches.tokens()
        sequence_T = np.maximum(sequence_T, 0)
        task_T = self.task_S[sequence_T]
        is_head_T = position_T < self.head_by_task[task_T]
        is_tail_T = position_T >= self.index.ends_S4[sequence_T, _QUESTION_END]
        known_T = np.minimum(token_id_T, self.is_common.shape[1] - 1)
        return np.asarray(is_head_T | is_tail_T | self.is_common[task_T, known_T])


def _shorten(
    heads: dict[int, np.ndarray], task_S: np.ndarray, stretches: Stretches, token_id_T: np.ndarray
) -> None:
    """Cut each task's common head to what the part's sequences begin with."""
    position_R, length_R = stretches.position_R, stretches.length_R
    for stretch in np.flatnonzero((position_R < _MAX_HEAD) & (stretches.sequence_R >= 0)):
        task, first = int(task_S[stretches.sequence_R[stretch]]), int(position_R[stretch])
        if task in heads and len(heads[task]) <= first:
            continue
        start = stretches.start_R[stretch]
        own = token_id_T[start : start + min(length_R[stretch], _MAX_HEAD - first)]
        if first == 0:
            heads.setdefault(task, own)
        # What comes before its own rows, a sequence shares with one that cut the head before.
        rest = heads.get(task, own[:0])[first:]
        shared = min(len(rest), len(own))
        differs = np.flatnonzero(rest[:shared] != own[:shared])
        if len(rest):
            heads[task] = heads[task][: first + (differs[0] if len(differs) else shared)]


def _document_tokens(index: TraceIndex, stretches: Stretches, token_id_T: np.ndarray) -> np.ndarray:
    """Pairs cluster * 2^32 + token id between prefix and choice, each once: int64.

    Of a cluster of several documents the first speaks for all: together they contain too much.
    """
    sequence_T, position_T = stretches.tokens()
    ends_T4 = index.ends_S4[sequence_T]
    is_asked_T = (position_T >= ends_T4[:, 0]) & (position_T < ends_T4[:, CUE_END])
    is_asked_T &= (sequence_T >= 0) & index.leads_S[sequence_T]
    return _distinct(
        (index.cluster_S[sequence_T] << _TOKEN_BITS)[is_asked_T] + token_id_T[is_asked_T]
    )


def _is_in_C(index: TraceIndex, stretches: Stretches) -> np.ndarray:
    """Whether a part has rows of the document that speaks for each cluster: bool [C]."""
    sequence_R = stretches.sequence_R[stretches.sequence_R >= 0]
    is_in_C = np.zeros(len(index.clusters), bool)
    is_in_C[index.cluster_S[sequence_R[index.leads_S[sequence_R]]]] = True
    return is_in_C


def _distinct(keys: np.ndarray) -> np.ndarray:
    """The same as np.unique, which hashes, and takes ten times as long for millions."""
    keys = np.sort(keys)
    is_new = np.ones(len(keys), bool)
    is_new[1:] = keys[1:] != keys[:-1]
    return np.asarray(keys[is_new])


class _Documents:
    """How many documents of each task contain each token id.

    Args:
        task_C: Task of each cluster.
        tasks: How many there are.
    """

    def __init__(self, task_C: np.ndarray, tasks: int) -> None:
        self._task_C = task_C
        self._is_seen_C = np.zeros(len(task_C), bool)
        # One id more than occurs, so that every id has a column.
        self._number = np.zeros((tasks, 2), np.int64)
        self._left: list[np.ndarray] = []

    def add(self, keys: np.ndarray, parts_C: np.ndarray) -> None:
        """Count a part's `_document_tokens`; those of clusters in several parts in the end."""
        is_whole = parts_C[keys >> _TOKEN_BITS] == 1
        self._count(keys[is_whole])
        self._left.append(keys[~is_whole])

    def common(self) -> np.ndarray:
        """Which ids nearly all documents of a task contain: bool [tasks, V]."""
        self._count(_distinct(np.concatenate([np.empty(0, np.int64), *self._left])))
        documents = np.bincount(self._task_C[self._is_seen_C], minlength=len(self._number))
        is_enough = documents >= _MIN_DOCUMENTS
        is_common = self._number >= _NEARLY_ALL * documents[:, None]
        return np.asarray(is_common & is_enough[:, None])

    def _count(self, keys: np.ndarray) -> None:
        cluster, token_id = keys >> _TOKEN_BITS, keys & ((1 << _TOKEN_BITS) - 1)
        more = int(token_id.max(initial=0)) + 2 - self._number.shape[1]
        self._number = np.pad(self._number, ((0, 0), (0, max(more, 0))))
        np.add.at(self._number, (self._task_C[cluster], token_id), 1)
        self._is_seen_C[cluster] = True
