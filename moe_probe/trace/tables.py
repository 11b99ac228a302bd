"""Parquet tables of a trace: written whole, and read with suspicion.

Shape suffixes: T tokens, K slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moe_probe.errors import TraceError
from moe_probe.memory import lack_of_memory
from moe_probe.trace import limits
from moe_probe.trace.files import atomic
from moe_probe.trace.schema import LATER_COLUMNS, MAY_BE_NULL, SEQUENCE_SCHEMA, LayerSpec

SEGMENT_KEY = "moe_probe.segment"
_PLAIN = ("count", "unique_count", "weight_sum")


def write_table(path: Path, table: pa.Table, *, segment: int | None = None) -> None:
    """Write a small table whole; `segment` marks it as made from that staging segment."""
    options = {
        "compression": "zstd",
        "compression_level": 1,
        "write_statistics": False,
        # Numbers that hardly repeat gain nothing from a dictionary.
        "use_dictionary": [name for name in table.column_names if name not in _PLAIN],
        # Columns that are dictionaries in memory are plain text to those who read the file.
        "store_schema": False,
    }
    with atomic(path) as temporary, pq.ParquetWriter(temporary, table.schema, **options) as file:
        file.write_table(table)
        if segment is not None:
            file.add_key_value_metadata({SEGMENT_KEY: str(segment)})


def segment_of(path: Path) -> int | None:
    """The number of the staging segment that a part was made from; None for other parts."""
    with _readable(path) as file:
        number = (file.metadata.metadata or {}).get(SEGMENT_KEY.encode())
        return None if number is None else int(number)


def read_footer(path: Path) -> pq.FileMetaData:
    """Read what a part says of itself, for `read_part`; raises TraceError if it is none."""
    with _readable(path) as file:
        return file.metadata


def read_part(path: Path, schema: pa.Schema, footer: pq.FileMetaData | None = None) -> pa.Table:
    """Read a part's columns that `schema` names; raises TraceError unless their types agree.

    With the `footer` at hand, reading a part column by column costs no more than all at once; that
    is done in this thread, since others read other columns.
    """
    with _readable(path, footer) as file:
        return _checked(_filled(file, schema, use_threads=footer is None), schema)


def read_slices(path: Path, schema: pa.Schema, rows: int) -> Iterator[pa.Table]:
    """Read the same some rows at a time, where a part may be larger than what it adds to."""
    with _readable(path) as file:
        for batch in file.iter_batches(rows, columns=schema.names):
            yield _checked(pa.Table.from_batches([batch]).select(schema.names), schema)


def _checked(table: pa.Table, schema: pa.Schema) -> pa.Table:
    for field in schema:
        if table.schema.field(field.name).type != field.type:
            raise ValueError(f"{field.name} is not of type {field.type}")
        if field.name not in MAY_BE_NULL and table[field.name].null_count:
            raise ValueError(f"{field.name} is null in some row")
    return table


def read_tables(paths: Iterable[Path], schema: pa.Schema) -> pa.Table:
    """Read and join small tables; raises TraceError for one that does not convert to `schema`."""
    tables = []
    for path in paths:
        with _readable(path) as file:
            tables.append(_checked(_filled(file, schema).cast(schema), schema))
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _filled(file: pq.ParquetFile, schema: pa.Schema, *, use_threads: bool = True) -> pa.Table:
    """Read the columns that `schema` names, and fill those of LATER_COLUMNS that are not there."""
    later = [n for n in LATER_COLUMNS if n in schema.names and n not in file.schema.names]
    table = file.read([n for n in schema.names if n not in later], use_threads=use_threads)
    for name in later:
        value = pa.scalar(LATER_COLUMNS[name], schema.field(name).type)
        values = pa.repeat(value, file.metadata.num_rows)
        table = table.append_column(schema.field(name), values)
    return table.select(schema.names)


@contextmanager
def _readable(path: Path, footer: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    try:
        # Not pq.read_table: it would make columns of directories named like "task=mmlu".
        with pq.ParquetFile(path, metadata=footer) as file:
            yield file
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        # It says nothing of the file.
        if (lack := lack_of_memory(error)) is not None:
            raise MemoryError(lack) from error
        reason = str(error).split("\n")[0].rstrip(".")
        raise TraceError(f"{path} cannot be read as part of a trace: {reason}.") from error


def read_sequences(paths: list[Path]) -> pa.Table:
    """Read sequences parts; raises TraceError for impossible numbers and ids that occur twice."""
    sequences = read_tables(paths, SEQUENCE_SCHEMA)
    where = paths[0].parent if paths else Path()
    for name, (least, most) in limits.READ.items():
        bounds = pc.min_max(sequences[name]).as_py()
        if len(sequences) and not least <= bounds["min"] <= bounds["max"] <= most:
            raise TraceError(f"{where} is damaged: {name} is impossible in some row.")
    if pc.any(pc.greater(sequences["prefix_tokens"], sequences["num_tokens"])).as_py():
        raise TraceError(f"{where} is damaged: a sequence shares more tokens than it has.")
    has_owner = pc.greater_equal(sequences["prefix_id"], 0)
    cached = pc.if_else(has_owner, 0, sequences["prefix_tokens"])
    if pc.any(pc.not_equal(sequences["cached_tokens"], cached)).as_py():
        raise TraceError(f"{where} is damaged: leading tokens are neither shared nor cached.")
    if pc.count_distinct(sequences["sequence_id"]).as_py() < len(sequences):
        raise TraceError(f"{where} is damaged: a sequence_id occurs twice.")
    return sequences


def fixed_binary(table: pa.Table, column: str, dtype: np.dtype[Any], slots: int) -> np.ndarray:
    """View a fixed-size binary column as an array [T, K]; several chunks are copied into one."""
    chunks = table[column].chunks
    if not len(table):
        return np.empty((0, slots), dtype)
    array = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    start = array.offset * array.type.byte_width
    values = np.frombuffer(array.buffers()[1], dtype, len(array) * slots, start)
    return values.reshape(len(array), slots)


def layer_arrays(
    table: pa.Table, spec: LayerSpec, *, weights: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Expert ids [T, K] of one layer and, where asked for, its gate weights float16 [T, K]."""
    ids_TK = fixed_binary(table, spec.ids_column, spec.dtype, spec.top_k)
    if not weights:
        return ids_TK, None
    float16 = np.dtype(np.float16)
    return ids_TK, fixed_binary(table, spec.weights_column, float16, spec.top_k)
