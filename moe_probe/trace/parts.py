"""One staging segment becomes its part files. The writer and the recovery both come through here.

Shape suffixes: T tokens, K slots, B bytes of one token's ids.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moe_probe.trace.counting import CountsBuilder, Groups, Strata
from moe_probe.trace.files import TraceFiles, atomic
from moe_probe.trace.schema import (
    ANSWER_SCHEMA,
    ROUTER_SCALARS,
    SEQUENCE_SCHEMA,
    Capture,
    LayerSpec,
    Sequence,
    routing_schema,
)
from moe_probe.trace.staging import Segment
from moe_probe.trace.tables import SEGMENT_KEY, segment_of, write_table

# Token rows moved together when the layers' columns are gathered: they stay in the L2 cache.
_BLOCK = 2048
# Copying a row's bytes as one machine word is nine times as fast as one by one.
_WORDS = [np.dtype(name) for name in ("complex128", "uint64", "uint32", "uint16", "uint8")]


def flush(segment: Segment, files: TraceFiles) -> None:
    """Write a segment's parts. Done again after a kill, it gives the same files.

    The sequences part comes last: rows no sequence claims do not exist for readers, so a kill
    before it leaves nothing half-visible, and a kill after it leaves nothing to recover.

    Raises:
        TraceError: a file cannot be written.
        ValueError, KeyError, TypeError and the like: a damaged segment.
    """
    number, rank = segment.number, segment.rank
    events = segment.events()
    sequences = [Sequence(**event["sequence"]) for event in events if "sequence" in event]
    if segment.num_rows:
        groups, strata = _group_rows(segment, sequences)
        columns = _Columns(segment)
        if not all(event.get("rows_kept", True) for event in events):
            _leave_rows_out(segment, sequences)
        elif segment.capture is not Capture.COUNTS:
            _write_routing(segment, files, columns)
        builder = CountsBuilder(strata, groups)
        for spec, ids_TK, weights_TK in columns.layer_arrays():
            builder.add_layer(spec, ids_TK, weights_TK)
        write_table(files.part("counts", rank, number), builder.table(), segment=number)
    answers = [event["answer"] for event in events if "answer" in event]
    if answers:
        table = pa.Table.from_pylist(answers, ANSWER_SCHEMA)
        write_table(files.part("answers", rank, number), table, segment=number)
    table = pa.Table.from_pylist([sequence.to_json() for sequence in sequences], SEQUENCE_SCHEMA)
    write_table(files.part("sequences", rank, number), table, segment=number)


def is_flushed(segment: Segment, files: TraceFiles) -> bool:
    """Whether the last of the segment's parts exists: it was renamed, but not yet cleared."""
    path = files.part("sequences", segment.rank, segment.number)
    return path.exists() and segment_of(path) == segment.number


def _group_rows(segment: Segment, sequences: list[Sequence]) -> tuple[Groups, Strata]:
    """Say how each row counts; raises ValueError where rows and sequences do not fit."""
    num_rows = segment.num_rows
    sequence_id_T = segment.sequence_id_T[:num_rows]
    position_T = segment.position_T[:num_rows].astype(np.int64)
    is_first_T = np.ones(num_rows, bool)
    is_first_T[1:] = sequence_id_T[1:] != sequence_id_T[:-1]
    starts = np.flatnonzero(is_first_T)
    by_id = {sequence.sequence_id: sequence for sequence in sequences}
    numbers = sequence_id_T[starts].tolist()
    if len(set(numbers) & set(by_id)) < len(numbers):
        raise ValueError("rows fit no sequence")
    stored = [by_id[number] for number in numbers]
    lengths = [sequence.num_tokens - sequence.prefix_tokens for sequence in stored]
    if lengths != np.diff(starts, append=num_rows).tolist():
        raise ValueError("more or fewer rows than tokens")
    index_T = np.repeat(np.arange(len(stored)), lengths)

    def of_row(values: Iterable[int]) -> np.ndarray:
        return np.fromiter(values, np.int64)[index_T]

    first_T = of_row(sequence.prefix_tokens for sequence in stored)
    if not np.array_equal(position_T, np.arange(num_rows) - starts[index_T] + first_T):
        raise ValueError("positions do not fit their sequences")
    strata = Strata()
    stratum_T = strata.assign(stored, index_T, position_T)
    runs_T = of_row(sequence.multiplicity for sequence in stored)
    new_from_T = of_row(sequence.new_from for sequence in stored)
    is_new_T = (new_from_T >= 0) & (position_T >= new_from_T)
    return Groups.of(stratum_T, runs_T, is_new_T), strata


def _leave_rows_out(segment: Segment, sequences: list[Sequence]) -> None:
    stored = set(segment.sequence_id_T[: segment.num_rows].tolist())
    for sequence in sequences:
        sequence.rows_kept = sequence.sequence_id not in stored


class _Columns:
    """A segment's rows, gathered layer by layer into contiguous memory."""

    def __init__(self, segment: Segment) -> None:
        self.layers = segment.layout.layers
        num_rows = segment.num_rows
        self.ids = _gather(
            segment.ids_TB[:num_rows],
            [spec.row_bytes for spec in self.layers],
        )
        self.weights: list[np.ndarray] = []
        self.scalars: list[np.ndarray] = []
        if segment.weights_TS is not None and segment.scalars_TR is not None:
            weights_TB = segment.weights_TS[:num_rows].view(np.uint8)
            self.weights = _gather(weights_TB, [2 * spec.top_k for spec in self.layers])
            scalars_TB = segment.scalars_TR[:num_rows].view(np.uint8)
            width, layers = 2 * len(ROUTER_SCALARS), [s for s in self.layers if s.scalars]
            self.scalars = _gather(scalars_TB, [width] * len(layers))

    def layer_arrays(self) -> Iterator[tuple[LayerSpec, np.ndarray, np.ndarray | None]]:
        for index, spec in enumerate(self.layers):
            weights_TK = self.weights[index].view(np.float16) if self.weights else None
            yield spec, self.ids[index].view(spec.dtype), weights_TK


def _gather(rows_TB: np.ndarray, widths: list[int]) -> list[np.ndarray]:
    """Cut rows into columns of `widths` bytes: contiguous uint8 [T, width] each."""
    targets = [np.empty((len(rows_TB), width), np.uint8) for width in widths]
    offsets = [0, *itertools.accumulate(widths)]
    pairs = []
    for target_TB, low, width in zip(targets, offsets, widths, strict=False):
        source_TB = rows_TB[:, low : low + width]
        word = next(word for word in _WORDS if width % word.itemsize == 0)
        pairs.append((target_TB.view(word), source_TB.view(word)))
    for start in range(0, len(rows_TB), _BLOCK):
        for target, source in pairs:
            target[start : start + _BLOCK] = source[start : start + _BLOCK]
    return targets


def _write_routing(segment: Segment, files: TraceFiles, columns: _Columns) -> None:
    num_rows, layers = segment.num_rows, segment.layout.layers
    schema = routing_schema(layers, segment.capture)
    arrays: list[pa.Array] = [
        pa.array(segment.sequence_id_T[:num_rows]),
        pa.array(segment.position_T[:num_rows]),
        pa.array(segment.token_id_T[:num_rows]),
        pa.array(segment.forward_pass_T[:num_rows]),
    ]
    for values_TB in (*columns.ids, *columns.weights, *columns.scalars):
        kind, data = pa.binary(values_TB.shape[1]), pa.py_buffer(values_TB)
        arrays.append(pa.FixedSizeBinaryArray.from_buffers(kind, num_rows, [None, data]))
    with atomic(files.part("routing", segment.rank, segment.number)) as temporary:
        pq.write_table(
            pa.table(arrays, schema=schema.with_metadata({SEGMENT_KEY: str(segment.number)})),
            temporary,
            compression="zstd",
            compression_level=1,
            use_dictionary=["sequence_id", "position"],
            column_encoding={"forward_pass": "DELTA_BINARY_PACKED"},
            # Not BYTE_STREAM_SPLIT: polars and DuckDB cannot read it in columns of bytes.
            write_statistics=False,
            row_group_size=num_rows,
        )
