"""Bring a trace directory to rest: leftover staging becomes parts, late facts join their rows.

Every step may be repeated after a kill at any moment and gives the same files.

Shape suffixes: T tokens, K slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moe_probe.trace.counting import CountsBuilder, Strata
from moe_probe.trace.files import TraceFiles, read_tables, write_run, write_table, writer_lock
from moe_probe.trace.parts import flush, is_flushed
from moe_probe.trace.schema import (
    ANSWER_SCHEMA,
    COUNTS_SCHEMA,
    OUTCOMES,
    SEQUENCE_SCHEMA,
    Capture,
    LayerSpec,
    Sequence,
)
from moe_probe.trace.sharing import SharingIndex
from moe_probe.trace.staging import Segment


def recover(files: TraceFiles, run: dict[str, Any]) -> int | None:
    """Turn what a killed recording left in staging into parts.

    Returns:
        The number of tokens recovered, or None while another process is still recording.
    """
    recovered = 0
    for path in files.segments():
        rank = int(path.stem.split("-")[1])
        with writer_lock(files, rank) as held:
            if not held:
                return None
            recovered += _recover_segment(files, path)
    if run.get("status") == "running":
        run.update(status="killed", recovered_tokens=recovered)
        settle(files, run)
        write_run(files, run)
    return recovered


def _recover_segment(files: TraceFiles, path: Any) -> int:
    segment = Segment.open(path) if path.exists() else None
    rows = 0
    if segment is not None and not segment.is_empty and not is_flushed(segment, files):
        flush(segment, files)
        rows = segment.num_rows
    path.unlink(missing_ok=True)
    return rows


def settle(
    files: TraceFiles,
    run: Mapping[str, Any],
    correct: Mapping[tuple[str, int], bool] | None = None,
) -> None:
    """Count shared tokens for everyone who ran them, and join answers to their sequences.

    Args:
        files: The trace.
        run: Content of its run.json.
        correct: Whether the model was right, by (task, doc_id), as far as known.
    """
    layers = [LayerSpec.from_json(value) for value in run["layers"]]
    if Capture(run["capture"]) is not Capture.COUNTS:
        counts = _shared_counts(files, layers)
        path = files.part("counts", 0, "shared")
        if counts.num_rows:
            write_table(path, counts)
        else:
            path.unlink(missing_ok=True)
    answers = read_tables(files.parts("answers"), ANSWER_SCHEMA)
    if answers.num_rows or correct:
        for path in files.parts("sequences"):
            table = read_tables([path], SEQUENCE_SCHEMA)
            metadata = pq.read_schema(path).metadata or {}
            number = int(metadata.get(b"moe_probe.segment", b"-1"))
            write_table(path, with_outcomes(table, answers, correct or {}), segment=number)
    for path in files.parts("answers"):
        path.unlink()


def with_outcomes(
    sequences: pa.Table, answers: pa.Table, correct: Mapping[tuple[str, int], bool]
) -> pa.Table:
    """Fill the outcome columns of a sequences table from an answers table."""
    if not answers.num_rows and not correct:
        return sequences
    by_sequence: dict[int, dict[int, dict[str, Any]]] = {}
    for answer in answers.to_pylist():
        by_sequence.setdefault(answer["sequence_id"], {})[answer["choice"]] = answer
    rows = []
    names = ["sequence_id", "choices", "task", "doc_id", *(field.name for field in OUTCOMES)]
    for row in sequences.select(names).to_pylist():
        given = by_sequence.get(row["sequence_id"], {})
        if given and all(choice in given for choice in row["choices"]):
            ordered = [given[choice] for choice in row["choices"]]
            if ordered[0]["response"] is None:
                row["choice_logliks"] = [answer["loglik"] for answer in ordered]
                row["choice_is_greedy"] = [answer["is_greedy"] for answer in ordered]
            else:
                row["response"] = ordered[0]["response"]
        row["correct"] = correct.get((row["task"], row["doc_id"]), row["correct"])
        rows.append(row)
    filled = pa.Table.from_pylist(rows, pa.schema(list(OUTCOMES)))
    for field in OUTCOMES:
        index = sequences.schema.get_field_index(field.name)
        sequences = sequences.set_column(index, field, filled[field.name])
    return sequences


def _shared_counts(files: TraceFiles, layers: list[LayerSpec]) -> pa.Table:
    """Counts of stored rows for the runs of sequences that left them to another one."""
    sequences = read_tables(files.parts("sequences"), SEQUENCE_SCHEMA)
    extra = SharingIndex(sequences).extra_runs()
    if not extra:
        return COUNTS_SCHEMA.empty_table()
    owners = np.fromiter(extra, np.int64)
    is_owner = np.isin(sequences["sequence_id"].to_numpy(), owners)
    names = list(Sequence.__slots__)
    by_id = {
        row["sequence_id"]: Sequence(**row)
        for row in sequences.filter(pa.array(is_owner)).select(names).to_pylist()
    }
    tables = []
    for path in files.parts("routing"):
        file = pq.ParquetFile(path)
        identity = file.read(["sequence_id", "position"])
        sequence_id_T = identity["sequence_id"].to_numpy()
        rows = np.flatnonzero(np.isin(sequence_id_T, owners))
        if not len(rows):
            continue
        position_T = identity["position"].to_numpy()[rows]
        sequence_id_T = sequence_id_T[rows]
        strata = Strata()
        stratum_T = np.zeros(len(rows), np.int64)
        runs_T = np.zeros(len(rows), np.int64)
        for owner in np.unique(sequence_id_T).tolist():
            mine = sequence_id_T == owner
            stratum_T[mine] = strata.assign(by_id[owner], position_T[mine])
            runs_T[mine] = extra[owner][position_T[mine]]
        tables.append(_count_rows(file, layers, rows, strata, stratum_T, runs_T))
    return _summed(pa.concat_tables(tables)) if tables else COUNTS_SCHEMA.empty_table()


def _count_rows(
    file: pq.ParquetFile,
    layers: list[LayerSpec],
    rows: np.ndarray,
    strata: Strata,
    stratum_T: np.ndarray,
    runs_T: np.ndarray,
) -> pa.Table:
    builder = CountsBuilder(strata)
    weighted = layers[0].weights_column in file.schema_arrow.names
    for spec in layers:
        table = file.read([spec.ids_column, *([spec.weights_column] if weighted else [])])
        weights_TK = fixed_binary(table, spec.weights_column, np.float16)[rows] if weighted else None
        builder.add_layer(
            spec,
            fixed_binary(table, spec.ids_column, spec.dtype)[rows],
            stratum_T=stratum_T,
            runs_T=runs_T,
            is_new_T=np.zeros(len(rows), bool),
            weights_TK=weights_TK,
        )
    return builder.table()


def fixed_binary(table: pa.Table, column: str, dtype: Any) -> np.ndarray:
    """View a fixed-size binary column as an array [T, K], without copying a single chunk."""
    arrays = table[column].chunks
    if len(arrays) != 1:
        arrays = [table[column].combine_chunks()] if arrays else []
    if not arrays or not len(arrays[0]):
        return np.empty((0, 0), dtype)
    array = arrays[0]
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    width = array.type.byte_width
    items = width // np.dtype(dtype).itemsize
    data = np.frombuffer(array.buffers()[1], dtype, len(array) * items, array.offset * width)
    return data.reshape(len(array), items)


def _summed(counts: pa.Table) -> pa.Table:
    keys = ["layer", "expert", "task", "subject", "area", "segment"]
    sums = [(name, "sum") for name in ("count", "unique_count", "weight_sum")]
    table = counts.group_by(keys).aggregate(sums)
    renamed = table.rename_columns([name.removesuffix("_sum") for name in table.column_names])
    names = [name if name != "weight" else "weight_sum" for name in renamed.column_names]
    return renamed.rename_columns(names).select(COUNTS_SCHEMA.names).cast(COUNTS_SCHEMA)
