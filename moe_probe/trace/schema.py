"""Trace format 1: what a sequence and a part file look like. docs/trace-format.md in code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa

from moe_probe.trace.layout import ROUTER_SCALARS, Capture, LayerSpec, RowLayout

__all__ = [
    "ANSWER_SCHEMA",
    "COUNTS_SCHEMA",
    "FORMAT_VERSION",
    "LATER_COLUMNS",
    "MAX_FORWARD_PASS",
    "MAX_SEQUENCE_TOKENS",
    "OUTCOMES",
    "ROUTER_SCALARS",
    "SEGMENTS",
    "SEGMENT_TOKENS",
    "SEQUENCE_SCHEMA",
    "Capture",
    "LayerSpec",
    "RowLayout",
    "Sequence",
    "identity_schema",
    "routing_schema",
    "segment_tokens",
]

FORMAT_VERSION = 1
SEGMENT_TOKENS = 65_536
MAX_SEQUENCE_TOKENS = 1 << 24
MAX_FORWARD_PASS = (1 << 31) - 1
# Staging is reserved for the longest sequence: of a model for ten million tokens, too much.
_LONGEST = 1 << 18

# A sequence is cut into these stretches, in this order; any of them may be empty.
SEGMENTS = ("prefix", "question", "cue", "choice", "generated")


def segment_tokens(max_length: int) -> int:
    """Tokens of a segment for a model that runs sequences of up to `max_length` tokens."""
    return max(SEGMENT_TOKENS, min(max_length, _LONGEST) + 1)


@dataclass(kw_only=True, slots=True)
class Sequence:
    """One row the model ran: a prompt, with what was generated after it.

    The stretches are prefix [0, prefix_end), question [prefix_end, question_end),
    cue [question_end, cue_end), choice [cue_end, choice_end), generated [choice_end, num_tokens).
    """

    sequence_id: int
    """Unique in the trace."""
    num_tokens: int
    """Tokens the model ran for this sequence."""
    task: str = ""
    subject: str = ""
    area: str = ""
    doc_id: int = -1
    """The document's index in its task, -1 where there is none."""
    kind: str = "loglikelihood"
    """The request type: loglikelihood, loglikelihood_rolling, generate_until, or imported."""
    choices: list[int] = field(default_factory=list)
    """Indices of the answer choices whose scores this row gives."""
    prefix_end: int = 0
    question_end: int = -1
    cue_end: int = -1
    choice_end: int = -1
    truncated_tokens: int = 0
    """Tokens the evaluation cut from the left before the model ran."""
    prefix_id: int = -1
    """The sequence that stores this one's first `prefix_tokens` tokens; -1 if none does."""
    prefix_tokens: int = 0
    """Leading tokens whose rows are not its own: they come from `prefix_id` or from a cache."""
    cached_tokens: int = 0
    """Leading tokens an engine took from its prefix cache: not run for this sequence, so no rows of
    them exist here and they count nowhere. `prefix_tokens` where `prefix_id` is -1, else 0."""
    multiplicity: int = 1
    """How often the model ran it; 0 for a duplicate answered from another sequence's run."""
    new_from: int = 0
    """First position whose context no earlier sequence of the run had; -1 where unknown."""
    sampled: bool = True
    """Whether its tokens were to be recorded (document sampling)."""
    rows_kept: bool = True
    """False where the trace had its full size: its rows were counted, and then left out."""
    prompt_hash: str = ""
    rank: int = 0
    request_id: str = ""

    def __post_init__(self) -> None:
        if self.choice_end < 0:
            self.choice_end = self.num_tokens
        if self.cue_end < 0:
            self.cue_end = self.choice_end
        if self.question_end < 0:
            self.question_end = self.cue_end

    def to_json(self) -> dict[str, Any]:
        """The fields; many times faster than dataclasses.asdict, which copies deeply."""
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def bounds(self) -> tuple[int, ...]:
        """Ends of the five stretches, in the order of SEGMENTS."""
        ends = (self.prefix_end, self.question_end, self.cue_end, self.choice_end)
        return (*ends, self.num_tokens)


_TYPES = {"int": pa.int64(), "str": pa.string(), "bool": pa.bool_(), "list[int]": None}
OUTCOMES = (
    pa.field("choice_logliks", pa.list_(pa.float64())),
    pa.field("choice_is_greedy", pa.list_(pa.bool_())),
    pa.field("response", pa.string()),
    pa.field("correct", pa.bool_()),
)
SEQUENCE_SCHEMA = pa.schema(
    [pa.field(f.name, _TYPES[str(f.type)] or pa.list_(pa.int32())) for f in fields(Sequence)]
    + list(OUTCOMES)
)
# Columns that traces of an earlier moe-probe lack, and what they mean by that.
LATER_COLUMNS = {"cached_tokens": 0, "rows_kept": True, "forward_pass": -1}
ANSWER_SCHEMA = pa.schema(
    [
        pa.field("sequence_id", pa.int64()),
        pa.field("choice", pa.int32()),
        pa.field("loglik", pa.float64()),
        pa.field("is_greedy", pa.bool_()),
        pa.field("response", pa.string()),
    ]
)
COUNTS_SCHEMA = pa.schema(
    [
        pa.field("layer", pa.int32()),
        pa.field("expert", pa.int32()),
        pa.field("task", pa.string()),
        pa.field("subject", pa.string()),
        pa.field("area", pa.string()),
        pa.field("segment", pa.string()),
        pa.field("count", pa.int64()),
        pa.field("unique_count", pa.int64()),
        pa.field("weight_sum", pa.float64()),
    ]
)

# Columns of tables in which a row may have no value; all others are filled in every row.
MAY_BE_NULL = frozenset(
    [*(field.name for field in OUTCOMES), "loglik", "is_greedy", "response", "weight_sum"]
)


def identity_schema(*, token_ids: bool = False, forward_passes: bool = False) -> pa.Schema:
    """The columns of a routing part that say which token of which sequence a row is.

    Args:
        token_ids: Its vocabulary id too.
        forward_passes: The forward pass that ran it too.
    """
    types = {"sequence_id": pa.int64(), "position": pa.int32()}
    if token_ids:
        types["token_id"] = pa.int32()
    if forward_passes:
        types["forward_pass"] = pa.int32()
    return pa.schema([pa.field(*pair, nullable=False) for pair in types.items()])


def routing_schema(layers: Iterable[LayerSpec], capture: Capture) -> pa.Schema:
    """Columns of a routing part: identity, then ids, weights and scalars, one per MoE layer."""
    layers = list(layers)
    columns = list(identity_schema(token_ids=True, forward_passes=True))
    columns += [pa.field(s.ids_column, pa.binary(s.row_bytes), nullable=False) for s in layers]
    if capture is Capture.WEIGHTS:
        columns += [
            pa.field(s.weights_column, pa.binary(2 * s.top_k), nullable=False) for s in layers
        ]
        columns += [
            pa.field(s.scalars_column, pa.binary(2 * len(ROUTER_SCALARS)), nullable=False)
            for s in layers
            if s.scalars
        ]
    return pa.schema(columns)
