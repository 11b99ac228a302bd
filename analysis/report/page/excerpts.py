"""Excerpts of a few documents, spread over areas and subjects, and the rows of their tokens.

An excerpt begins where the few-shot prefix ends, whatever the counting rule.

Shape suffixes: T tokens of all excerpts, K slots, P rows of a part.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_probe.trace import Block, LayerSpec, Trace

_ENDS = ("prefix_end", "question_end", "cue_end", "choice_end")
_NAMES = (
    *("sequence_id", "task", "subject", "area", "doc_id", *_ENDS, "num_tokens"),
    *("prefix_tokens", "cached_tokens", "multiplicity", "sampled", "rows_kept"),
)


@dataclass(frozen=True)
class Excerpt:
    """Tokens [start, stop) of a sequence."""

    sequence: dict[str, Any]
    """Its row of the sequences table."""
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def segment_T(self) -> np.ndarray:
        """Place in SEGMENTS of each token: int64."""
        ends = [self.sequence[name] for name in _ENDS]
        return np.searchsorted(ends, np.arange(self.start, self.stop), side="right")

    def owners(self, trace: Trace) -> list[tuple[int, int, int]]:
        """Return which sequence stores which of its rows: (sequence id, first, end)."""
        own = max(self.start, self.sequence["prefix_tokens"])
        found = [(self.sequence["sequence_id"], own, self.stop)]
        shares = trace.sharing.chain(self.sequence["sequence_id"])
        found += [(s.owner, max(s.start, self.start), min(s.stop, self.stop)) for s in shares]
        return [(owner, first, end) for owner, first, end in found if first < end]


@dataclass(frozen=True)
class Routing:
    """What the trace has of each token of some excerpts, joined."""

    token_id_T: np.ndarray
    """int32; -1 where unknown."""
    ids: dict[int, np.ndarray]
    """Experts by layer, int64 [T, K]; N for an empty slot."""


def choose(trace: Trace, *, documents: int, tokens: int) -> list[Excerpt]:
    """Choose excerpts: a document of every subject in turn, areas taking turns.

    Args:
        trace: The trace.
        documents: Most documents.
        tokens: Most tokens of each.
    """
    subjects, areas = Counter[Any](), Counter[Any]()
    turns: list[tuple[Any, ...]] = []
    for row in _first_sequences(trace):
        group = row["task"], row["subject"], row["area"]
        if group not in subjects:
            areas[row["area"]] += 1
            subjects[group] = 0
        subjects[group] += 1
        turns.append((subjects[group], areas[row["area"]], row["area"], len(turns), row))
    # The running number decides before rows would be compared.
    chosen = [row for *_, row in sorted(turns)[:documents]]
    return [
        Excerpt(row, row["prefix_end"], min(row["prefix_end"] + tokens, row["num_tokens"]))
        for row in chosen
    ]


def read(trace: Trace, excerpts: list[Excerpt]) -> tuple[list[Excerpt], Routing]:
    """Return those excerpts of all of whose tokens the trace has rows, and what these say.

    Raises TraceError where a part is damaged.
    """
    length = sum(map(len, excerpts))
    token_id_T, has_row_T = np.full(length, -1, np.int32), np.zeros(length, bool)
    ids = {n: np.zeros((length, spec.top_k), np.int64) for n, spec in trace.layers.items()}
    for path in trace.routing_parts:
        identity = trace.read_identity(path, token_ids=True)
        row_P, place_P = _rows(trace, identity, excerpts)
        has_row_T[place_P], token_id_T[place_P] = True, identity.token_id_T[row_P]
        if len(row_P):
            block = trace.read_layers(path, list(trace.layers))
            for layer, spec in trace.layers.items():
                ids[layer][place_P] = _valid(block.topk_ids(layer)[row_P], spec)
    ends = np.cumsum([0, *map(len, excerpts)])
    known = [
        number
        for number in range(len(excerpts))
        if has_row_T[ends[number] : ends[number + 1]].all()
    ]
    kept_T = np.concatenate(
        [np.empty(0, np.int64), *(np.arange(ends[number], ends[number + 1]) for number in known)]
    )
    found = {layer: ids_TK[kept_T] for layer, ids_TK in ids.items()}
    return [excerpts[number] for number in known], Routing(token_id_T[kept_T], found)


def _rows(trace: Trace, identity: Block, excerpts: list[Excerpt]) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows of a part are wanted, and the places of their tokens."""
    ids_P, position_P = identity.sequence_id_T, identity.position_T
    rows, places, first_place = [], [], 0
    for excerpt in excerpts:
        for owner, first, end in excerpt.owners(trace):
            is_wanted_P = (ids_P == owner) & (position_P >= first) & (position_P < end)
            row_P = np.flatnonzero(is_wanted_P)
            rows.append(row_P)
            places.append(first_place + position_P[row_P] - excerpt.start)
        first_place += len(excerpt)
    nothing = np.empty(0, np.int64)
    return np.concatenate([nothing, *rows]), np.concatenate([nothing, *places])


def _valid(ids_TK: np.ndarray, spec: LayerSpec) -> np.ndarray:
    """Ids of a foreign trace may be anything: those of no expert count as empty slots."""
    return np.minimum(ids_TK.astype(np.int64), spec.num_experts)


def _first_sequences(trace: Trace) -> list[dict[str, Any]]:
    """Return the first sequence of each document that has rows of its own, in recording order."""
    table = trace.sequences.select(_NAMES).sort_by("sequence_id")
    found: dict[Any, dict[str, Any]] = {}
    for row in table.to_pylist():
        document = row["task"], row["subject"], row["doc_id"]
        alone = row["sequence_id"] if row["doc_id"] < 0 else -1
        has_rows = row["sampled"] and row["rows_kept"] and row["multiplicity"] > 0
        reaches = row["cached_tokens"] <= row["prefix_end"] < row["num_tokens"]
        if has_rows and reaches:
            found.setdefault((document, alone), row)
    return list(found.values())
