"""Selections as rows, part by part: memory is one part's chosen layers and one batch of rows.

A row that several sequences share is there once. `count` says how often its token counts by the
rule, so sums of `count` are the counts of an analysis.

Shape suffixes: T tokens of a part that count, C tokens of a batch, L layers, K slots, X slots of
all layers side by side, R rows written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from moe_probe.analysis.exports.choice import Choice
from moe_probe.analysis.exports.files import Rows
from moe_probe.analysis.reading.index import column
from moe_probe.analysis.reading.source import Part
from moe_probe.errors import UsageError
from moe_probe.trace import SEGMENTS, Block

# Slots of all layers that a batch may have.
_BATCH_SLOTS = 1 << 20
_TEXT = pa.dictionary(pa.int32(), pa.string())
_TOKEN = [
    *((name, _TEXT) for name in ("task", "subject", "area")),
    ("doc_id", pa.int64()),
    ("sequence_id", pa.int64()),
    ("position", pa.int32()),
    ("token_id", pa.int32()),
    ("segment", _TEXT),
    ("count", pa.int64()),
    ("layer", pa.int32()),
]


def selections(choice: Choice) -> Rows:
    """One row per token, layer and slot that names an expert: `slot` from 1, `expert`, `weight`.

    `weight` is float32, null where gate weights were not captured.

    Raises:
        UsageError: the trace has no per-token rows or no such subject.
        TraceError: it is damaged, or does not have what the rule needs.
    """
    fields = [("slot", pa.int32()), ("expert", pa.int32()), ("weight", pa.float32())]
    schema = pa.schema([*_TOKEN, *fields])
    slots = [np.arange(1, spec.top_k + 1) for spec in choice.layers.values()]
    slot_X = np.concatenate([np.empty(0, np.int64), *slots]).astype(np.int32)
    layers = np.array(list(choice.layers), np.int32)
    layer_X = np.repeat(layers, [spec.top_k for spec in choice.layers.values()])

    def table(batch: _Batch) -> pa.Table:
        token_R, place_R = np.nonzero(batch.is_expert_CX)
        expert_R = batch.ids_CX[batch.is_expert_CX].astype(np.int32)
        columns = [*batch.tokens(token_R), layer_X[place_R], slot_X[place_R], expert_R]
        return pa.table([*columns, batch.weights()], schema)

    return Rows(schema.with_metadata(choice.metadata), _tables(choice, table))


def lists(choice: Choice) -> Rows:
    """One row per token and layer: `experts` and `weights` as lists, slot by slot.

    Experts are uint8 where all ids of the chosen layers fit, else uint16; empty slots are left
    out. `weights` is null where gate weights were not captured. Raises as `selections` does.
    """
    ids = pa.uint8() if all(s.itemsize == 1 for s in choice.layers.values()) else pa.uint16()
    fields = [("experts", pa.list_(ids)), ("weights", pa.list_(pa.float32()))]
    schema = pa.schema([*_TOKEN, *fields])
    layers = np.array(list(choice.layers), np.int32)
    starts_L = np.cumsum([0, *(spec.top_k for spec in choice.layers.values())])[:-1]

    def table(batch: _Batch) -> pa.Table:
        tokens = len(batch.ids_CX)
        lengths_CL = np.add.reduceat(batch.is_expert_CX, starts_L, axis=1, dtype=np.int32)
        offsets = pa.array(np.cumsum([0, *lengths_CL.ravel()], dtype=np.int32))
        experts = pa.array(batch.ids_CX[batch.is_expert_CX], ids)
        token_R = np.repeat(np.arange(tokens), len(layers))
        columns = [*batch.tokens(token_R), np.tile(layers, tokens)]
        columns.append(pa.ListArray.from_arrays(offsets, experts))
        if batch.weights_CX is None:
            columns.append(pa.nulls(len(token_R), schema.field("weights").type))
        else:
            columns.append(pa.ListArray.from_arrays(offsets, batch.weights()))
        return pa.table(columns, schema)

    return Rows(schema.with_metadata(choice.metadata), _tables(choice, table))


@dataclass(frozen=True)
class _Batch:
    """Some tokens that count."""

    columns: Sequence[np.ndarray | pa.DictionaryArray]
    """What is the same in every layer."""
    ids_CX: np.ndarray
    is_expert_CX: np.ndarray
    """Where an id names an expert of its layer."""
    weights_CX: np.ndarray | None

    def tokens(self, token_R: np.ndarray) -> list[pa.Array]:
        """The columns of tokens, once for each row."""
        index = pa.array(token_R)
        return [pa.array(values).take(index) for values in self.columns]

    def weights(self) -> pa.Array:
        """Of every selection, in the order of the rows."""
        if self.weights_CX is None:
            return pa.nulls(int(self.is_expert_CX.sum()), pa.float32())
        return pa.array(self.weights_CX[self.is_expert_CX].astype(np.float32))


@dataclass(frozen=True)
class _PartTokens:
    """The tokens of one part that count, in the order of its rows."""

    row_T: np.ndarray
    columns: list[np.ndarray | pa.DictionaryArray]

    @classmethod
    def of(cls, choice: Choice, part: Part, doc_id_S: np.ndarray) -> _PartTokens:
        index = choice.source.index
        pieces = choice.source.pieces(part, choice.rule)
        wants_S = choice.wants_S(index.groups)
        chosen_P = np.flatnonzero(wants_S[pieces.group_P])
        row_T, piece_T = pieces.rows(chosen_P)
        sequence_T, position_T = (values[row_T] for values in part.stretches.tokens())
        group_T, segment_T = np.divmod(pieces.stratum_P[piece_T], len(SEGMENTS))
        names = zip(*index.groups, strict=True)
        texts = [_dictionary(group_T, list(values)) for values in names]
        texts = texts or [_dictionary(group_T, [])] * 3
        token_id_T = choice.source.token_ids(part)[row_T]
        return cls(
            row_T,
            [
                *texts,
                doc_id_S[sequence_T],
                index.sequence_id_S[sequence_T],
                position_T.astype(np.int32),
                token_id_T,
                _dictionary(segment_T, list(SEGMENTS)),
                pieces.weight_P[piece_T].astype(np.int64),
            ],
        )

    def batches(self, choice: Choice, block: Block) -> Iterator[_Batch]:
        slots = sum(spec.top_k for spec in choice.layers.values())
        step = max(_BATCH_SLOTS // slots, 1)
        for start in range(0, len(self.row_T), step):
            row_C = self.row_T[start : start + step]
            ids, valid, weights = [], [], []
            for layer, spec in choice.layers.items():
                ids.append(block.topk_ids(layer)[row_C])
                valid.append(ids[-1] < spec.num_experts)
                if choice.has_weights:
                    weights.append(block.topk_weights(layer)[row_C])
            yield _Batch(
                [values[start : start + step] for values in self.columns],
                np.concatenate(ids, axis=1),
                np.concatenate(valid, axis=1),
                np.concatenate(weights, axis=1) if weights else None,
            )


def _tables(choice: Choice, table: Callable[[_Batch], pa.Table]) -> Iterator[pa.Table]:
    trace = choice.trace
    if not choice.has_rows:
        raise UsageError(
            f"{trace.path} was recorded with --capture counts and has no per-token rows. Export "
            "--format counts, or record with --capture ids."
        )
    choice.wants_S(choice.source.index.groups)
    doc_id_S = column(trace.sequences.sort_by("sequence_id"), "doc_id")
    for part in choice.source.parts:
        tokens = _PartTokens.of(choice, part, doc_id_S)
        if len(tokens.row_T):
            block = trace.read_layers(part.path, list(choice.layers), weights=choice.has_weights)
            yield from map(table, tokens.batches(choice, block))


def _dictionary(index_T: np.ndarray, names: list[str]) -> pa.DictionaryArray:
    # A dictionary must not have a value twice, and one task has many subjects.
    values = sorted(set(names))
    place = np.array([values.index(name) for name in names], np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(place[index_T]), pa.array(values, pa.string()))
