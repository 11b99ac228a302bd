"""Counting rules: how often each stored token counts. Every metric names the one it was made with.

Tokens whose rows are nowhere count in none: those an engine took from its cache, and those that a
size limit left out, which only the counts tables have.

Shape suffixes: T tokens of a block, S sequences of the trace, E stored positions of all owners.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pyarrow as pa

from moe_probe.errors import TraceError
from moe_probe.trace import SEGMENTS, Block, Trace
from moe_probe.trace.counting import Stratum

QUESTION_SEGMENTS = ("question", "cue", "choice")
"""Stretches that the `question` rule counts: what follows the few-shot prefix, up to the answer."""


class Rule(StrEnum):
    """Which tokens count, and how often. A new rule is a member here and a branch in `weigh`."""

    RAW = "raw"
    """Every token the model ran, as often as it ran it."""
    UNIQUE = "unique"
    """Every distinct context once: of equal leading tokens only those that came first."""
    QUESTION = "question"
    """`unique` without the few-shot prefix and without what nobody asked to be continued: generated
    tokens, and the last token of a choice, which some engines run and others do not."""

    @property
    def description(self) -> str:
        """One phrase for captions."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    Rule.RAW: "every token the model ran",
    Rule.UNIQUE: "every distinct context once",
    Rule.QUESTION: "every distinct context after the few-shot prefix once",
}


def default_rule(trace: Trace) -> Rule:
    """`unique`, unless no sequence says which of its contexts are new, as with live traffic."""
    new_from = _numpy(trace.sequences, "new_from")
    is_unknown = bool(len(new_from)) and bool((new_from < 0).all())
    return Rule.RAW if is_unknown else Rule.UNIQUE


@dataclass(frozen=True)
class SequenceFacts:
    """What the rules need of a trace's sequences, as arrays in the order of `sequence_id_S`."""

    sequence_id_S: np.ndarray
    """Ascending."""
    ends_S4: np.ndarray
    """Where prefix, question, cue and choice end."""
    asked_end_S: np.ndarray
    """Where the prompt tokens end whose continuation was asked for."""
    num_tokens_S: np.ndarray
    multiplicity_S: np.ndarray
    new_from_S: np.ndarray
    stratum_S: np.ndarray
    """Stratum number of each sequence's prefix; those of its other stretches follow it."""
    strata: list[Stratum]
    """All strata; the numbers are indices into this list."""
    extra_E: np.ndarray
    """Runs of stored rows for sequences other than their owner, all owners joined."""
    extra_offset_S: np.ndarray
    """Where a sequence's part of `extra_E` begins; -1 for one that no other sequence refers to."""

    @classmethod
    def from_trace(cls, trace: Trace) -> SequenceFacts:
        """Gather the facts of every sequence; raises TraceError where sharing is inconsistent."""
        table = trace.sequences.sort_by("sequence_id")
        ends = ("prefix_end", "question_end", "cue_end", "choice_end")
        sequence_id_S = _numpy(table, "sequence_id")
        stratum_S, strata = _strata(table)
        extra_E, extra_offset_S = _extra_runs(trace, sequence_id_S)
        return cls(
            sequence_id_S=sequence_id_S,
            ends_S4=np.stack([_numpy(table, name) for name in ends], axis=1),
            asked_end_S=_asked_ends(trace, table),
            num_tokens_S=_numpy(table, "num_tokens"),
            multiplicity_S=_numpy(table, "multiplicity"),
            new_from_S=_numpy(table, "new_from"),
            stratum_S=stratum_S,
            strata=strata,
            extra_E=extra_E,
            extra_offset_S=extra_offset_S,
        )

    def locate(self, block: Block) -> Located:
        """Find the sequence and stretch of each row; raises TraceError for a misplaced one."""
        index_T = np.searchsorted(self.sequence_id_S, block.sequence_id_T)
        position_T = block.position_T
        if len(block) and not (
            position_T.min() >= 0 and (position_T < self.num_tokens_S[index_T]).all()
        ):
            raise TraceError("The trace has rows beyond the end of their sequence: it is damaged.")
        # A position equal to a stretch's end belongs to the next stretch.
        segment_T = (position_T[:, None] >= self.ends_S4[index_T]).sum(axis=1)
        return Located(self, index_T, position_T, segment_T)


@dataclass(frozen=True)
class Located:
    """Rows of a block with the sequence and the stretch that each belongs to."""

    facts: SequenceFacts
    index_T: np.ndarray
    position_T: np.ndarray
    segment_T: np.ndarray

    @property
    def stratum_T(self) -> np.ndarray:
        return np.asarray(self.facts.stratum_S[self.index_T] + self.segment_T)


def weigh(rule: Rule, rows: Located) -> np.ndarray:
    """Return how often each row counts under a rule: int64 [T]."""
    if rule is Rule.RAW:
        return np.asarray(rows.facts.multiplicity_S[rows.index_T] + _extra(rows))
    new_from_T = rows.facts.new_from_S[rows.index_T]
    is_new_T = (new_from_T >= 0) & (rows.position_T >= new_from_T)
    if rule is Rule.QUESTION:
        is_new_T &= np.isin(rows.segment_T, [SEGMENTS.index(name) for name in QUESTION_SEGMENTS])
        is_new_T &= rows.position_T < rows.facts.asked_end_S[rows.index_T]
    return np.asarray(is_new_T, np.int64)


def _extra(rows: Located) -> np.ndarray:
    offset_T = rows.facts.extra_offset_S[rows.index_T]
    extra_T = np.zeros(len(offset_T), np.int64)
    is_owner_T = offset_T >= 0
    extra_T[is_owner_T] = rows.facts.extra_E[(offset_T + rows.position_T)[is_owner_T]]
    return extra_T


def table_segments(trace: Trace) -> tuple[str, ...]:
    """The segments of the counts tables that make up the rule `question`.

    Raises TraceError where a last token that nobody asked to be continued is counted with others.
    """
    if not trace.run.get("runs_last_token"):
        return QUESTION_SEGMENTS
    table = trace.sequences
    unasked_S = _numpy(table, "choice_end") - _asked_ends(trace, table)
    choice_S = _numpy(table, "choice_end") - _numpy(table, "cue_end")
    if (choice_S != unasked_S).any():
        raise TraceError(
            "Some choices of this trace have several tokens, and its counts do not tell which of "
            "them was the last. Record with --capture ids, or use another --rule."
        )
    return tuple(name for name in QUESTION_SEGMENTS if name != "choice")


def _asked_ends(trace: Trace, table: pa.Table) -> np.ndarray:
    ends_S = _numpy(table, "choice_end")
    if not trace.run.get("runs_last_token"):
        return ends_S
    is_scored_S = np.char.startswith(np.array(table["kind"].to_pylist(), str), "loglikelihood")
    return ends_S - is_scored_S


def _strata(table: pa.Table) -> tuple[np.ndarray, list[Stratum]]:
    tasks, subjects, areas = (table[name].to_pylist() for name in ("task", "subject", "area"))
    numbers: dict[tuple[str, str, str], int] = {}
    names = zip(tasks, subjects, areas, strict=True)
    group_S = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)
    strata = [Stratum(*group, segment) for group in numbers for segment in SEGMENTS]
    return group_S * len(SEGMENTS), strata


def _extra_runs(trace: Trace, sequence_id_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    runs_by_owner = trace.sharing.extra_runs()
    lengths = [len(runs) for runs in runs_by_owner.values()]
    offset_S = np.full(len(sequence_id_S), -1, np.int64)
    owners = np.searchsorted(sequence_id_S, np.fromiter(runs_by_owner, np.int64))
    offset_S[owners] = np.cumsum([0, *lengths])[:-1]
    return np.concatenate([np.empty(0, np.int64), *runs_by_owner.values()]), offset_S


def _numpy(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table[name].to_numpy())
