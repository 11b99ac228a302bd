"""Facts that come after the rows: shared tokens are counted, answers join their sequences.

Every step may be repeated after a kill at any moment and gives the same files.

Shape suffixes: T tokens of a part that others ran too, K slots, E tokens of their owner.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moe_probe.errors import TraceError
from moe_probe.trace.counting import CountsBuilder, Groups, Strata
from moe_probe.trace.files import TraceFiles, rank_of
from moe_probe.trace.schema import (
    ANSWER_SCHEMA,
    COUNTS_SCHEMA,
    OUTCOMES,
    SEQUENCE_SCHEMA,
    Capture,
    RowLayout,
    Sequence,
    routing_schema,
)
from moe_probe.trace.sharing import SharingIndex
from moe_probe.trace.tables import (
    layer_arrays,
    read_part,
    read_sequences,
    read_tables,
    segment_of,
    write_table,
)

Correct = Mapping[tuple[str, int], bool]
Answers = dict[int, dict[int, dict[str, Any]]]


def settle(files: TraceFiles, run: dict[str, Any], correct: Correct | None = None) -> None:
    """Sum the counts, count shared tokens for everyone who ran them, join answers to sequences.

    Args:
        files: The trace; the caller holds its lock.
        run: Content of its run.json; learns how many rows were not kept.
        correct: Whether the model was right, by (task, doc_id), as far as known.
    """
    run["rows_not_kept"] = _rows_not_kept(files)
    _sum_counts(files)
    if run["capture"] != Capture.COUNTS:
        counts = _shared_counts(files, RowLayout.from_json(run["layers"]), Capture(run["capture"]))
        path = files.part("counts", 0, "shared")
        if counts.num_rows:
            write_table(path, counts)
        else:
            path.unlink(missing_ok=True)
    answers = by_sequence(read_tables(files.finished("answers"), ANSWER_SCHEMA))
    if not answers and not correct:
        return
    for path in files.parts("sequences"):
        table = read_tables([path], SEQUENCE_SCHEMA)
        joined = with_outcomes(table, answers, correct or {})
        if joined is not table:
            write_table(path, joined, segment=segment_of(path))
    # Answers that wait for others of their sequence stay for the run that resumes this one.
    if not answers:
        for path in files.finished("answers"):
            path.unlink()


def _rows_not_kept(files: TraceFiles) -> int:
    names = ("num_tokens", "prefix_tokens", "rows_kept")
    schema = pa.schema([SEQUENCE_SCHEMA.field(name) for name in names])
    table = read_tables(files.parts("sequences"), schema)
    table = table.filter(pc.invert(table["rows_kept"]))
    total: int | None = pc.sum(pc.subtract(table["num_tokens"], table["prefix_tokens"])).as_py()
    return total or 0


def _sum_counts(files: TraceFiles) -> None:
    """Make one counts part of each rank's many.

    Each part of a long recording has nearly every subject, since an evaluation sorts its prompts
    by length, so together they are many times as large as their sum.
    """
    shared = files.part("counts", 0, "shared")
    paths = [path for path in files.finished("counts") if path != shared]
    for rank, group in groupby(paths, key=rank_of):
        parts = list(group)
        if len(parts) < 2:
            continue
        total = COUNTS_SCHEMA.empty_table()
        for path in parts:
            total = _summed(pa.concat_tables([total, read_tables([path], COUNTS_SCHEMA)]))
        # Its name says which parts it holds, so a kill before they are deleted counts none twice.
        write_table(files.part("counts", rank, f"to{files.last_number(rank):06d}"), total)
    for path in set(files.parts("counts")) - set(files.finished("counts")):
        path.unlink()


def by_sequence(answers: pa.Table) -> Answers:
    """Answers by sequence and choice; of several to one choice the last counts."""
    found: Answers = {}
    for answer in answers.to_pylist():
        found.setdefault(answer["sequence_id"], {})[answer["choice"]] = answer
    return found


def with_outcomes(sequences: pa.Table, answers: Answers, correct: Correct) -> pa.Table:
    """Fill the outcome columns of a sequences table; joined answers are taken out of `answers`.

    A sequence whose choices are not all answered keeps what it had.
    """
    names = ["sequence_id", "choices", "task", "doc_id", *(field.name for field in OUTCOMES)]
    rows, is_changed = sequences.select(names).to_pylist(), False
    for row in rows:
        given = answers.get(row["sequence_id"], {})
        choices = row["choices"] or sorted(given)
        if given and all(choice in given for choice in choices):
            _fill(row, [given[choice] for choice in choices])
            del answers[row["sequence_id"]]
            is_changed = True
        known = correct.get((row["task"], row["doc_id"]), row["correct"])
        is_changed |= known != row["correct"]
        row["correct"] = known
    if not is_changed:
        return sequences
    filled = pa.Table.from_pylist(rows, pa.schema(list(OUTCOMES)))
    for field in OUTCOMES:
        index = sequences.schema.get_field_index(field.name)
        sequences = sequences.set_column(index, field, filled[field.name])
    return sequences


def _fill(row: dict[str, Any], answers: list[dict[str, Any]]) -> None:
    if answers[0]["response"] is None:
        row["choice_logliks"] = [answer["loglik"] for answer in answers]
        row["choice_is_greedy"] = [answer["is_greedy"] for answer in answers]
    else:
        row["response"] = answers[0]["response"]


def _shared_counts(files: TraceFiles, layout: RowLayout, capture: Capture) -> pa.Table:
    """Counts of stored rows for the runs of sequences that left them to another one."""
    sequences = read_sequences(files.parts("sequences"))
    extra = SharingIndex(sequences).extra_runs()
    if not extra:
        return COUNTS_SCHEMA.empty_table()
    owners = np.fromiter(extra, np.int64)
    is_owner = np.isin(sequences["sequence_id"].to_numpy(), owners)
    names = list(Sequence.__slots__)
    facts = {
        row["sequence_id"]: Sequence(**row)
        for row in sequences.filter(pa.array(is_owner)).select(names).to_pylist()
    }
    tables = [
        _count_shared_rows(path, layout, capture, extra, facts)
        for path in files.finished("routing")
    ]
    return _summed(pa.concat_tables(tables)) if tables else COUNTS_SCHEMA.empty_table()


def _count_shared_rows(
    path: Path,
    layout: RowLayout,
    capture: Capture,
    extra: dict[int, np.ndarray],
    facts: dict[int, Sequence],
) -> pa.Table:
    schema = routing_schema(layout.layers, capture)
    identity = read_part(path, pa.schema([schema.field("sequence_id"), schema.field("position")]))
    sequence_id = identity["sequence_id"].to_numpy()
    rows_T = np.flatnonzero(np.isin(sequence_id, list(extra)))
    if not len(rows_T):
        return COUNTS_SCHEMA.empty_table()
    sequence_id_T, position_T = sequence_id[rows_T], identity["position"].to_numpy()[rows_T]
    owners, index_T = np.unique(sequence_id_T, return_inverse=True)
    runs = [extra[owner] for owner in owners.tolist()]
    lengths = np.array([len(runs_E) for runs_E in runs])
    if not ((position_T >= 0) & (position_T < lengths[index_T])).all():
        raise TraceError(f"{path} is damaged: it has rows beyond the end of their sequence.")
    runs_T = np.concatenate(runs)[(np.cumsum(lengths) - lengths)[index_T] + position_T]
    strata = Strata()
    stratum_T = strata.assign([facts[owner] for owner in owners.tolist()], index_T, position_T)
    is_weighted = capture is Capture.WEIGHTS
    builder = CountsBuilder(strata, Groups.of(stratum_T, runs_T, np.zeros(len(rows_T), bool)))
    for spec in layout.layers:
        columns = [spec.ids_column, *([spec.weights_column] if is_weighted else [])]
        table = read_part(path, pa.schema([schema.field(name) for name in columns]))
        ids_TK, weights_TK = layer_arrays(table, spec, weights=is_weighted)
        builder.add_layer(spec, ids_TK[rows_T], None if weights_TK is None else weights_TK[rows_T])
    return builder.table().cast(COUNTS_SCHEMA)


def _summed(counts: pa.Table) -> pa.Table:
    sums = ["count", "unique_count", "weight_sum"]
    keys = [name for name in COUNTS_SCHEMA.names if name not in sums]
    table = counts.group_by(keys).aggregate([(name, "sum") for name in sums])
    columns = [table[name if name in keys else f"{name}_sum"] for name in COUNTS_SCHEMA.names]
    return pa.table(columns, names=COUNTS_SCHEMA.names).cast(COUNTS_SCHEMA)
