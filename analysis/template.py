"""The template of a task: what every document of it contains, whatever the document is about.

Tasks of one benchmark, as mmlu_law and mmlu_anatomy, have one template.

Shape suffixes: T tokens of a part, R stretches of a part, S sequences, V vocabulary ids.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from moe_probe.analysis.index import TraceIndex
from moe_probe.analysis.pieces import Stretches
from moe_probe.analysis.rules import CUE_END
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
    def of(cls, index: TraceIndex, parts: Iterable[tuple[Stretches, np.ndarray]]) -> Template:
        """Learn the templates.

        Args:
            index: Of the trace.
            parts: Stretches and token ids [T] of every part.

        Raises:
            TraceError: the trace has no token ids.
        """
        # The tasks of one benchmark have the name before the first underscore in common.
        families = [task.split("_")[0] for task, _, _ in index.groups]
        tasks, task_of_group = np.unique(families, return_inverse=True)
        task_S = task_of_group[index.group_S]
        heads: dict[int, np.ndarray] = {}
        pairs: list[np.ndarray] = []
        for stretches, token_id_T in parts:
            if len(token_id_T) and token_id_T.min() < 0:
                raise TraceError(
                    "This trace has no token ids, which the rule no-template needs. Record with "
                    "MOE_PROBE_TOKENS=1, or use another --rule."
                )
            _shorten(heads, task_S, stretches, token_id_T)
            pairs.append(_document_tokens(index, stretches, token_id_T))
        keys = np.unique(np.concatenate([np.empty(0, np.int64), *pairs]))
        found = np.stack([keys >> _TOKEN_BITS, keys & ((1 << _TOKEN_BITS) - 1)], axis=1)
        return cls(
            index=index,
            task_S=task_S,
            head_by_task=np.array([len(heads.get(t, ())) for t in range(len(tasks))], np.int64),
            is_common=_common(found, task_of_group, index, len(tasks)),
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
    keys_T = (index.cluster_S[sequence_T] << _TOKEN_BITS) + token_id_T
    # Of one number each, unlike of pairs, the distinct ones are found quickly.
    return np.unique(keys_T[is_asked_T])


def _common(
    found: np.ndarray, task_of_group: np.ndarray, index: TraceIndex, tasks: int
) -> np.ndarray:
    task_C = task_of_group[index.clusters.group_C]
    # One id more than occurs, so that every id has a column.
    width = int(found[:, 1].max(initial=0)) + 2
    number = np.zeros((tasks, width), np.int64)
    np.add.at(number, (task_C[found[:, 0]], found[:, 1]), 1)
    documents = np.bincount(task_C[np.unique(found[:, 0])], minlength=tasks)
    is_enough = documents >= _MIN_DOCUMENTS
    return (number >= _NEARLY_ALL * documents[:, None]) & is_enough[:, None]
