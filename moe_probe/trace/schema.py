"""Trace format 1: what a layer, a sequence and a part file look like. docs/trace-format.md in code.

Shape suffixes: T tokens, L MoE layers, K slots (top-k).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa

from moe_probe.errors import TraceError

FORMAT_VERSION = 1
SEGMENT_TOKENS = 65_536
MAX_SEQUENCE_TOKENS = 1 << 24

# A sequence is cut into these stretches, in this order; any of them may be empty.
SEGMENTS = ("prefix", "question", "cue", "choice", "generated")


class Capture(StrEnum):
    """How much of a routing decision is kept; each level holds everything of the one before."""

    COUNTS = "counts"
    IDS = "ids"
    WEIGHTS = "weights"


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One MoE layer, under the model's own layer index."""

    layer: int
    """The model's own index of the decoder layer."""
    num_experts: int
    """Routed experts the router chooses among; shared experts are not counted."""
    top_k: int
    """Slots per token."""
    empty_slots: bool = False
    """Whether a token may fill fewer than `top_k` slots; the top id value then means "none"."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the configuration says beside: groups, shared experts, scoring, module path."""

    @property
    def itemsize(self) -> int:
        """Bytes per expert id: 1 while every id, and "none" where it can occur, fits a byte."""
        return 1 if self.num_experts + self.empty_slots <= 256 else 2

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("u1" if self.itemsize == 1 else "<u2")

    @property
    def none_id(self) -> int | None:
        """What an empty slot is stored as; None where slots are never empty."""
        return int(np.iinfo(self.dtype).max) if self.empty_slots else None

    @property
    def ids_column(self) -> str:
        return f"L{self.layer:02d}"

    @property
    def weights_column(self) -> str:
        return f"W{self.layer:02d}"

    @property
    def row_bytes(self) -> int:
        return self.top_k * self.itemsize

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Rebuild a layer; raises TraceError where a field is absent or out of bounds."""
        try:
            spec = cls(**{f.name: value[f.name] for f in fields(cls) if f.name in value})
        except (KeyError, TypeError) as error:
            raise TraceError(f"The trace describes a layer as {value!r:.80}: {error}.") from error
        spec.check()
        return spec

    def check(self) -> None:
        """Raise TraceError for what no layer can be; a bool is no number here."""
        numbers = (self.layer, self.num_experts, self.top_k)
        ok = all(type(number) is int for number in numbers) and type(self.empty_slots) is bool
        ok = ok and 0 <= self.layer < 100_000 and 0 < self.top_k <= self.num_experts < 65_535
        if not ok or not isinstance(self.facts, dict):
            raise TraceError(f"The trace describes an impossible layer: {self!r:.200}.")


@dataclass(frozen=True)
class RowLayout:
    """Where each layer's ids and weights lie inside one token's row of a step or staging buffer."""

    layers: tuple[LayerSpec, ...]

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Rebuild the layers; raises TraceError where that is not a list of distinct layers."""
        if not isinstance(value, list):
            raise TraceError(f"The trace describes its layers as {value!r:.80}.")
        layout = cls(tuple(map(LayerSpec.from_json, value)))
        layout.check()
        return layout

    def check(self) -> None:
        """Raise TraceError for an impossible layer, or one that occurs twice."""
        for spec in self.layers:
            spec.check()
        if len({spec.layer for spec in self.layers}) < len(self.layers):
            raise TraceError("The trace describes a layer twice.")

    @cached_property
    def id_offsets(self) -> list[int]:
        """Byte offset of each layer's ids; the last entry is the row's length in bytes."""
        return [0, *np.cumsum([spec.row_bytes for spec in self.layers]).tolist()]

    @cached_property
    def slot_offsets(self) -> list[int]:
        """Offset of each layer's weights, in float16 items; the last entry is their number."""
        return [0, *np.cumsum([spec.top_k for spec in self.layers]).tolist()]

    @property
    def ids_bytes(self) -> int:
        return self.id_offsets[-1]

    @property
    def num_slots(self) -> int:
        return self.slot_offsets[-1]

    def pack(self, ids_by_layer: Iterable[np.ndarray]) -> np.ndarray:
        """Join per-layer ids [T, K] into rows uint8 [T, ids_bytes].

        In a layer that can have empty slots, -1 and the layer's `none_id` mean "none".

        Raises ValueError where a layer has another number of slots, or an id its layer lacks.
        """
        pairs = zip(self.layers, ids_by_layer, strict=True)
        return np.concatenate([_packed(spec, ids_TK) for spec, ids_TK in pairs], axis=1)

    def layer_ids(self, rows_TB: np.ndarray, index: int) -> np.ndarray:
        """Contiguous ids [T, K] of the `index`-th layer from rows uint8 [T, ids_bytes]."""
        spec = self.layers[index]
        start, stop = self.id_offsets[index : index + 2]
        return np.ascontiguousarray(rows_TB[:, start:stop]).view(spec.dtype)


def _packed(spec: LayerSpec, ids_TK: np.ndarray) -> np.ndarray:
    if ids_TK.ndim != 2 or ids_TK.shape[1] != spec.top_k:
        raise ValueError(
            f"layer {spec.layer}: ids of shape {ids_TK.shape}, expected [T, {spec.top_k}]"
        )
    given_TK = ids_TK
    if spec.none_id is not None:
        is_none_TK = (ids_TK == -1) | (ids_TK == spec.none_id)
        given_TK = ids_TK[~is_none_TK]
        ids_TK = np.where(is_none_TK, spec.none_id, ids_TK)
    if given_TK.size and (given_TK.min() < 0 or given_TK.max() >= spec.num_experts):
        raise ValueError(
            f"layer {spec.layer}: ids from {given_TK.min()} to {given_TK.max()}, "
            f"but there are {spec.num_experts} experts"
        )
    return np.ascontiguousarray(ids_TK, dtype=spec.dtype).view(np.uint8)


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
    """The sequence that stores this one's first `prefix_tokens` tokens; -1 if all are its own."""
    prefix_tokens: int = 0
    multiplicity: int = 1
    """How often the model ran it; 0 for a duplicate answered from another sequence's run."""
    new_from: int = 0
    """First position whose context no earlier sequence of the run had; -1 where unknown."""
    sampled: bool = True
    """Whether its tokens were to be recorded (document sampling)."""
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


def routing_schema(layers: Iterable[LayerSpec], capture: Capture) -> pa.Schema:
    """Columns of a routing part: identity, then ids, then weights, one per MoE layer."""
    layers = list(layers)
    columns = [
        pa.field("sequence_id", pa.int64(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("token_id", pa.int32(), nullable=False),
    ]
    columns += [pa.field(s.ids_column, pa.binary(s.row_bytes), nullable=False) for s in layers]
    if capture is Capture.WEIGHTS:
        columns += [
            pa.field(s.weights_column, pa.binary(2 * s.top_k), nullable=False) for s in layers
        ]
    return pa.schema(columns)
