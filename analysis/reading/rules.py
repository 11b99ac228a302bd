"""Counting rules: how often each stored token counts. Every metric names the one it was made with.

Tokens whose rows are nowhere count in none: those an engine took from its cache, and those that a
size limit left out, which only the counts tables have.

Shape suffixes: T tokens of a part, S sequences of the trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from moe_probe.analysis.reading.index import TraceIndex, asked_ends, column
from moe_probe.errors import TraceError
from moe_probe.trace import SEGMENTS, Trace

QUESTION_SEGMENTS = ("question", "cue", "choice")
"""Stretches that the `question` rule counts: what follows the few-shot prefix, up to the answer."""
CUE_END = SEGMENTS.index("cue")
"""Column of `ends_S4` where the text ends whose continuation is scored."""


class Rule(StrEnum):
    """Which tokens count, and how often. A new rule is a member here and a branch in `weigh`."""

    RAW = "raw"
    """Every token the model ran, as often as it ran it."""
    UNIQUE = "unique"
    """Every distinct context once: of equal leading tokens only those that came first."""
    QUESTION = "question"
    """`unique` without the few-shot prefix and without what nobody asked to be continued: generated
    tokens, and the last token of a choice, which some engines run and others do not."""
    DECISION = "decision"
    """`unique`, but only the last token of each prompt, whose logits score the choices."""
    NO_TEMPLATE = "no-template"
    """`question` and prefix without what every document of a task has: its first tokens, its answer
    cue and choice letters, and the tokens that nearly all of its documents contain."""

    @property
    def description(self) -> str:
        """One phrase for captions."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    Rule.RAW: "every token the model ran",
    Rule.UNIQUE: "every distinct context once",
    Rule.QUESTION: "every distinct context after the few-shot prefix once",
    Rule.DECISION: "the last token of every distinct prompt",
    Rule.NO_TEMPLATE: "every distinct context once, without the tokens of the task's template",
}


def default_rule(trace: Trace) -> Rule:
    """`unique`, unless no sequence says which of its contexts are new, as with live traffic."""
    new_from = column(trace.sequences, "new_from")
    is_unknown = bool(len(new_from)) and bool((new_from < 0).all())
    return Rule.RAW if is_unknown else Rule.UNIQUE


@dataclass(frozen=True)
class Located:
    """Stored rows with the sequence and the stretch that each belongs to."""

    index: TraceIndex
    sequence_T: np.ndarray
    """Indices into the index's sequences."""
    position_T: np.ndarray
    segment_T: np.ndarray


def locate(index: TraceIndex, sequence_T: np.ndarray, position_T: np.ndarray) -> Located:
    """Find the stretch of each row."""
    segment_T = np.zeros(len(sequence_T), np.int64)
    for ends_S in index.ends_S4.T:
        # A position equal to a stretch's end belongs to the next stretch.
        segment_T += position_T >= ends_S[sequence_T]
    return Located(index, sequence_T, position_T, segment_T)


def weigh(rule: Rule, rows: Located) -> np.ndarray:
    """Return how often each row counts under a rule: int64 [T].

    `no-template` is `unique` here: what else it leaves out depends on the tokens.
    """
    index, sequence_T = rows.index, rows.sequence_T
    if rule is Rule.RAW:
        return np.asarray(index.multiplicity_S[sequence_T] + _extra(rows))
    new_from_T = index.new_from_S[sequence_T]
    counts_T = (new_from_T >= 0) & (rows.position_T >= new_from_T)
    if rule is Rule.QUESTION:
        counts_T &= np.isin(rows.segment_T, [SEGMENTS.index(name) for name in QUESTION_SEGMENTS])
        counts_T &= rows.position_T < index.asked_end_S[sequence_T]
    elif rule is Rule.DECISION:
        counts_T &= rows.position_T == index.ends_S4[sequence_T, CUE_END] - 1
    return np.asarray(counts_T, np.int64)


def _extra(rows: Located) -> np.ndarray:
    offset_T = rows.index.extra_offset_S[rows.sequence_T]
    extra_T = np.zeros(len(offset_T), np.int64)
    is_owner_T = offset_T >= 0
    extra_T[is_owner_T] = rows.index.extra_E[(offset_T + rows.position_T)[is_owner_T]]
    return extra_T


def table_segments(trace: Trace) -> tuple[str, ...]:
    """The segments of the counts tables that make up the rule `question`.

    Raises TraceError where a last token that nobody asked to be continued is counted with others.
    """
    if not trace.run.get("runs_last_token"):
        return QUESTION_SEGMENTS
    table = trace.sequences
    unasked_S = column(table, "choice_end") - asked_ends(trace, table)
    choice_S = column(table, "choice_end") - column(table, "cue_end")
    if (choice_S != unasked_S).any():
        raise TraceError(
            "Some choices of this trace have several tokens, and its counts do not tell which of "
            "them was the last. Record with --capture ids, or use another --rule."
        )
    return tuple(name for name in QUESTION_SEGMENTS if name != "choice")
