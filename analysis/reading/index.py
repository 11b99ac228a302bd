"""What a trace's sequences say of its tokens: stretches, history, strata and clusters.

A cluster is what the text comes in: a document, with all sequences it was asked by; the few-shot
prefix that a subject's documents share is a cluster of its own. Clusters are numbered in canonical
order: by task, subject and document, each prefix before its first document.

Shape suffixes: S sequences of the trace, C clusters, E stored positions of all owners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from moe_probe.trace import SEGMENTS, Trace
from moe_probe.trace.counting import Stratum

MAX_CLUSTERS = 1 << 14
"""Tables with a row per cluster stay bounded: of more documents, neighbours form one cluster."""
NO_SUBJECT = "(no subject)"
"""Names text that has neither a subject nor a task."""


@dataclass(frozen=True)
class Clusters:
    """The documents of a trace, in canonical order."""

    keys: tuple[str, ...]
    """A name of each that is the same in every shard of a run."""
    group_C: np.ndarray
    """Index of its (task, subject, area) in `TraceIndex.groups`."""
    is_prefix_C: np.ndarray
    answered_C: np.ndarray
    """Of `documents_C`, those of which the task's metric says whether the answer is right."""
    right_C: np.ndarray
    """Of `answered_C`, those whose answer is right."""
    documents_C: np.ndarray
    """Documents that the cluster stands for: 1 unless there are more than MAX_CLUSTERS."""

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class TraceIndex:
    """Facts of every sequence, as arrays in the order of `sequence_id_S`."""

    sequence_id_S: np.ndarray
    """Ascending, which is the order of recording."""
    ends_S4: np.ndarray
    """Where prefix, question, cue and choice end."""
    asked_end_S: np.ndarray
    """Where the prompt tokens end whose continuation was asked for."""
    num_tokens_S: np.ndarray
    multiplicity_S: np.ndarray
    new_from_S: np.ndarray
    group_S: np.ndarray
    """Index of the sequence's (task, subject, area) in `groups`."""
    groups: tuple[tuple[str, str, str], ...]
    clusters: Clusters
    prefix_cluster_S: np.ndarray
    """Cluster of the tokens before `prefix_end`."""
    cluster_S: np.ndarray
    """Cluster of all others."""
    leads_S: np.ndarray
    """Whether the sequence's document is the first of its cluster, as all are while each has its
    own."""
    extra_E: np.ndarray
    """Runs of stored rows for sequences other than their owner, all owners joined."""
    extra_offset_S: np.ndarray
    """Where a sequence's part of `extra_E` begins; -1 for one that no other sequence refers to."""

    @cached_property
    def strata(self) -> tuple[Stratum, ...]:
        """Every group's stretches; the number of a stratum is group * 5 + segment."""
        return tuple(Stratum(*group, segment) for group in self.groups for segment in SEGMENTS)

    @classmethod
    def of(cls, trace: Trace) -> TraceIndex:
        """Gather the facts of every sequence; raises TraceError where sharing is inconsistent."""
        table = trace.sequences.sort_by("sequence_id")
        ends = ("prefix_end", "question_end", "cue_end", "choice_end")
        sequence_id_S = column(table, "sequence_id")
        group_S, groups = _groups(table)
        clusters, prefix_cluster_S, cluster_S, leads_S = _clusters(table, group_S, groups)
        extra_E, extra_offset_S = _extra_runs(trace, sequence_id_S)
        return cls(
            sequence_id_S=sequence_id_S,
            ends_S4=np.stack([column(table, name) for name in ends], axis=1),
            asked_end_S=asked_ends(trace, table),
            num_tokens_S=column(table, "num_tokens"),
            multiplicity_S=column(table, "multiplicity"),
            new_from_S=column(table, "new_from"),
            group_S=group_S,
            groups=groups,
            clusters=clusters,
            prefix_cluster_S=prefix_cluster_S,
            cluster_S=cluster_S,
            leads_S=leads_S,
            extra_E=extra_E,
            extra_offset_S=extra_offset_S,
        )


def subject_names(groups: Sequence[tuple[str, str, str]]) -> tuple[str, ...]:
    """Name each (task, subject, area) by its subject, or task, or both where that is not enough.

    No name is empty: in many tables that is all text.
    """
    names = [subject or task or NO_SUBJECT for task, subject, _ in groups]
    if len(set(names)) < len(names):
        names = [f"{task}/{subject}" for task, subject, _ in groups]
    if len(set(names)) < len(names):
        names = ["/".join(group) for group in groups]
    return tuple(names)


def column(table: pa.Table, name: str) -> np.ndarray:
    """Return a column of numbers."""
    return np.asarray(table[name].to_numpy())


def asked_ends(trace: Trace, table: pa.Table) -> np.ndarray:
    """Return where each sequence's prompt tokens end whose continuation was asked for."""
    ends_S = column(table, "choice_end")
    if not trace.run.get("runs_last_token"):
        return ends_S
    is_scored_S = np.char.startswith(np.array(table["kind"].to_pylist(), str), "loglikelihood")
    return ends_S - is_scored_S


def _groups(table: pa.Table) -> tuple[np.ndarray, tuple[tuple[str, str, str], ...]]:
    columns = (table[name].to_pylist() for name in ("task", "subject", "area"))
    names = list(zip(*columns, strict=True))
    # By name, not as they come: two engines that ran the same text give the same numbers.
    groups = sorted(set(names))
    number_of = {group: number for number, group in enumerate(groups)}
    return np.array([number_of[name] for name in names], np.int64), tuple(groups)


def _clusters(
    table: pa.Table, group_S: np.ndarray, groups: tuple[tuple[str, str, str], ...]
) -> tuple[Clusters, np.ndarray, np.ndarray, np.ndarray]:
    doc_S, sequence_S = column(table, "doc_id"), column(table, "sequence_id")
    has_doc_S = doc_S >= 0
    # Rows: the group, 0 for a prefix, the document, and the sequence where there is none.
    zero_S = np.zeros_like(group_S)
    prefixes_S4 = np.stack([group_S, zero_S, zero_S, zero_S], axis=1)
    alone_S = np.where(has_doc_S, 0, sequence_S + 1)
    documents_S4 = np.stack([group_S, zero_S + 1, np.where(has_doc_S, doc_S, 0), alone_S], axis=1)
    has_prefix_S = _shares_prefix(table, group_S)
    joined = np.concatenate([prefixes_S4[has_prefix_S], documents_S4])
    unique_D4, index = np.unique(joined, axis=0, return_inverse=True)
    cluster_D = _bounded(unique_D4)
    is_first_D = np.diff(cluster_D, prepend=-1) != 0
    number = int(has_prefix_S.sum())
    document_S = index.ravel()[number:]
    leads_S = is_first_D[document_S]
    index = cluster_D[index.ravel()]
    prefix_cluster_S = np.full(len(group_S), -1, np.int64)
    prefix_cluster_S[has_prefix_S] = index[:number]
    cluster_S = index[number:]
    first_C = np.flatnonzero(is_first_D)
    keys = tuple(
        "\x1f".join((*groups[g], *map(str, rest))) for g, *rest in unique_D4[first_C].tolist()
    )
    is_right_D = _answers(table, document_S, len(unique_D4))
    return (
        Clusters(
            keys=keys,
            group_C=unique_D4[first_C, 0],
            is_prefix_C=unique_D4[first_C, 1] == 0,
            answered_C=np.bincount(cluster_D, is_right_D >= 0, len(keys)).astype(np.int64),
            right_C=np.bincount(cluster_D, is_right_D == 1, len(keys)).astype(np.int64),
            documents_C=np.bincount(cluster_D, minlength=len(keys)),
        ),
        prefix_cluster_S,
        cluster_S,
        leads_S,
    )


def _shares_prefix(table: pa.Table, group_S: np.ndarray) -> np.ndarray:
    """Whether a sequence's prefix is its group's: not where most sequences bring a new one."""
    prefix_end_S, new_from_S = column(table, "prefix_end"), column(table, "new_from")
    has_prefix_S = prefix_end_S > 0
    is_new_S = has_prefix_S & (new_from_S < prefix_end_S) & (new_from_S >= 0)
    new_G = np.bincount(group_S, is_new_S)
    is_shared_G = 2 * new_G <= np.bincount(group_S, has_prefix_S)
    return np.asarray(has_prefix_S & is_shared_G[group_S])


def _bounded(unique_D4: np.ndarray) -> np.ndarray:
    """Number documents, several neighbours of one group alike where there are very many."""
    size = -(-len(unique_D4) // MAX_CLUSTERS) if len(unique_D4) else 1
    if size == 1:
        return np.arange(len(unique_D4))
    is_start_D = np.any(np.diff(unique_D4[:, :2], axis=0, prepend=-1) != 0, axis=1)
    start_D = np.maximum.accumulate(np.where(is_start_D, np.arange(len(unique_D4)), 0))
    is_first_D = (np.arange(len(unique_D4)) - start_D) % size == 0
    return np.cumsum(is_first_D) - 1


def _answers(table: pa.Table, document_S: np.ndarray, documents: int) -> np.ndarray:
    """Return 1 or 0 as the answer to a document is right, -1 where nothing or both is said."""
    answers = np.array(
        [-1 if value is None else int(value) for value in table["correct"].to_pylist()]
    )
    low_D, high_D = np.full(documents, 2), np.full(documents, -1)
    known = answers >= 0
    np.minimum.at(low_D, document_S[known], answers[known])
    np.maximum.at(high_D, document_S[known], answers[known])
    return np.where(low_D == high_D, high_D, -1)


def _extra_runs(trace: Trace, sequence_id_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    runs_by_owner = trace.sharing.extra_runs()
    lengths = [len(runs) for runs in runs_by_owner.values()]
    offset_S = np.full(len(sequence_id_S), -1, np.int64)
    owners = np.searchsorted(sequence_id_S, np.fromiter(runs_by_owner, np.int64))
    offset_S[owners] = np.cumsum([0, *lengths])[:-1]
    return np.concatenate([np.empty(0, np.int64), *runs_by_owner.values()]), offset_S
