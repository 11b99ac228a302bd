"""What one pipeline stage recorded, request by request.

A part is in memory at a time, and the one before it: stages see the same requests end in nearly
the same order.

Shape suffixes: T tokens, B bytes of one token's ids, S slots and R router scalars of the stage's
layers.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from moe_probe.errors import TraceError
from moe_probe.recording.rows import Decisions
from moe_probe.trace import ROUTER_SCALARS, Capture, LayerSpec, Trace
from moe_probe.trace.files import TraceFiles
from moe_probe.trace.schema import SEQUENCE_SCHEMA, routing_schema
from moe_probe.trace.tables import fixed_binary, read_part, read_tables

_KEPT_PARTS = 2
_NAMES = ("sequence_id", "position", "token_id", "forward_pass")

Key = tuple[int, str]
"""A request: the data-parallel rank that ran it, and its name."""


class StageSequence(NamedTuple):
    """A request as one stage recorded it."""

    facts: dict[str, Any]
    """Columns of the sequences table."""
    token_id_T: np.ndarray
    """Of its rows, int32."""
    decisions: Decisions


class StageRows:
    """The sequences of one stage, found by request.

    Args:
        trace: What the stage recorded.

    Raises:
        TraceError: the trace is damaged, or was not recorded to be joined.
    """

    def __init__(self, trace: Trace) -> None:
        self._files, self._capture = trace.files, trace.capture
        self._layers = list(trace.layers.values())
        self.longest = 0
        """The most tokens that a sequence has."""
        self._places: dict[Key, deque[tuple[int, int]]] = {}
        self._parts: OrderedDict[int, _Part] = OrderedDict()
        self._paths = self._files.finished("sequences")
        sequences = trace.sequences  # which checks them
        if any(prefix >= 0 for prefix in sequences["prefix_id"].to_pylist()):
            raise TraceError(f"{trace.path} shares rows, so it is no pipeline stage's trace.")
        names = ["rank", "request_id", "sequence_id", "num_tokens"]
        for number, path in enumerate(self._paths):
            table = read_tables([path], pa.schema([SEQUENCE_SCHEMA.field(n) for n in names]))
            columns = (table[name].to_pylist() for name in names)
            for rank, request_id, sequence_id, num_tokens in zip(*columns, strict=True):
                place = (number, sequence_id)
                self._places.setdefault((rank, request_id), deque()).append(place)
                self.longest = max(self.longest, num_tokens)

    def __iter__(self) -> Iterator[Key]:
        """The request of every sequence, in the order of the recording."""
        for number in range(len(self._paths)):
            for facts in list(self._part(number).facts.values()):
                yield facts["rank"], facts["request_id"]

    def take(self, key: Key) -> StageSequence | None:
        """Take a request's sequence, the oldest of those that remain; None where there is none."""
        places = self._places.get(key)
        if places is None:
            return None
        number, sequence_id = places.popleft()
        if not places:
            del self._places[key]
        return self._part(number).sequence(sequence_id)

    def untaken(self) -> dict[Key, int]:
        """Tokens run by requests that nobody took."""
        found: dict[Key, int] = {}
        for key, places in self._places.items():
            every = [self._part(number).facts[sequence_id] for number, sequence_id in places]
            found[key] = sum(map(num_run, every))
        return found

    def _part(self, number: int) -> _Part:
        if number not in self._parts:
            path = self._paths[number]
            self._parts[number] = _Part(self._files, path, self._layers, self._capture)
            while len(self._parts) > _KEPT_PARTS:
                self._parts.popitem(last=False)
        self._parts.move_to_end(number)
        return self._parts[number]


class _Part:
    """One part's sequences, with their rows as a recorder takes them."""

    def __init__(
        self, files: TraceFiles, path: Path, layers: list[LayerSpec], capture: Capture
    ) -> None:
        rows = read_tables([path], SEQUENCE_SCHEMA).to_pylist()
        self.facts: dict[int, dict[str, Any]] = {row["sequence_id"]: row for row in rows}
        self._path = files.root / "routing" / path.name
        schema = routing_schema(layers, capture)
        table = read_part(self._path, schema) if self._path.exists() else schema.empty_table()
        identity = (table[name].to_numpy() for name in _NAMES)
        sequence_id_T, self._position_T, self._token_id_T, self._forward_pass_T = identity
        starts = np.flatnonzero(np.diff(sequence_id_T, prepend=-1))
        spans = zip(starts.tolist(), [*starts[1:].tolist(), len(sequence_id_T)], strict=False)
        self._rows = dict(zip(sequence_id_T[starts].tolist(), spans, strict=True))
        scalars = [spec for spec in layers if spec.scalars]
        columns = partial(_joined, table)
        byte, half = np.dtype(np.uint8), np.dtype(np.float16)
        self._ids_TB = columns([(s.ids_column, s.row_bytes) for s in layers], byte)
        self._weights_TS = self._scalars_TR = None
        if capture is Capture.WEIGHTS:
            width = len(ROUTER_SCALARS)
            self._weights_TS = columns([(s.weights_column, s.top_k) for s in layers], half)
            self._scalars_TR = columns([(s.scalars_column, width) for s in scalars], half)

    def sequence(self, sequence_id: int) -> StageSequence:
        facts = self.facts[sequence_id]
        start, stop = self._rows.get(sequence_id, (0, 0))
        has_rows = facts["sampled"] and facts["rows_kept"]
        first, last = facts["prefix_tokens"], facts["num_tokens"] if has_rows else 0
        expected_T = np.arange(first, max(first, last))
        if not np.array_equal(self._position_T[start:stop], expected_T):
            raise TraceError(f"{self._path} is damaged: rows and tokens of a sequence differ.")
        every = (self._ids_TB, self._weights_TS, self._scalars_TR, self._forward_pass_T)
        decisions = Decisions._make(None if array is None else array[start:stop] for array in every)
        return StageSequence(facts, self._token_id_T[start:stop], decisions)


def _joined(table: pa.Table, columns: list[tuple[str, int]], dtype: np.dtype[Any]) -> np.ndarray:
    """Columns of `width` items each, side by side: [T, sum of the widths]."""
    arrays = [fixed_binary(table, name, dtype, width) for name, width in columns]
    return np.concatenate(arrays, axis=1) if arrays else np.empty((len(table), 0), dtype)


def num_run(facts: dict[str, Any]) -> int:
    """Tokens that the model ran for a sequence."""
    return int(facts["num_tokens"] - facts["cached_tokens"])
