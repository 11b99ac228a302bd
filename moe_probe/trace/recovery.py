"""Bring a killed recording to rest: what it left in staging becomes parts.

Every step may be repeated after a kill at any moment and gives the same files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from moe_probe.errors import TraceError
from moe_probe.trace.files import TraceFiles, write_run
from moe_probe.trace.parts import flush, is_flushed
from moe_probe.trace.ranks import note_deaths, ranks_of, take_correct
from moe_probe.trace.schema import SEQUENCE_SCHEMA, RowLayout
from moe_probe.trace.settling import settle
from moe_probe.trace.staging import Segment, damaged
from moe_probe.trace.tables import read_sequences, read_tables, segment_of, write_table

# What bytes that are not what they should be can raise on their way into a table.
_DAMAGE = (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, RecursionError)


def recover(files: TraceFiles, run: dict[str, Any]) -> int:
    """Turn what a killed recording left in staging into parts; the caller holds the writer's lock.

    Args:
        files: The trace.
        run: Content of its run.json; a killed recording's is updated, here and on disk.

    Returns:
        The number of tokens that came from staging.

    Raises:
        TraceError: a staging file is damaged, or a part cannot be written.
    """
    files.make_folders()
    recovered = sum(_recover_segment(files, path, rank, run) for path, rank in files.segments())
    if recovered or run.get("status") == "running":
        files.drop_unclaimed()
        _cut_lost_prefixes(files)
        note_deaths(run)
        run.update(status="killed", recovered_tokens=recovered)
        settle(files, run, take_correct(run))
        write_run(files, run)
    files.drop_stage()
    return recovered


def recover_rank(files: TraceFiles, run: dict[str, Any], rank: int) -> None:
    """Turn what a killed rank left in staging into parts, while others of its group are at work.

    Raises TraceError like `recover`.
    """
    mine = [path for path, owner in files.segments() if owner == rank]
    recovered = sum(_recover_segment(files, path, rank, run) for path in mine)
    if recovered:
        run["recovered_tokens"] = run.get("recovered_tokens", 0) + recovered


def rescue(files: TraceFiles, run: dict[str, Any]) -> None:
    """Do the same for all ranks that were killed; the caller is the only one left of the group."""
    for rank, entry in ranks_of(run).items():
        if entry.get("status") == "running":
            recover_rank(files, run, rank)
            files.drop_unclaimed()
            _cut_lost_prefixes(files)
    note_deaths(run)


def _cut_lost_prefixes(files: TraceFiles) -> None:
    """Let no sequence refer to one whose staging was lost or deleted: it then lacks those rows."""
    parts = files.parts("sequences")
    known = read_sequences(parts)["sequence_id"]
    for path in parts:
        table = read_tables([path], SEQUENCE_SCHEMA)
        shares = pc.greater_equal(table["prefix_id"], 0)
        is_lost = pc.and_(shares, pc.invert(pc.is_in(table["prefix_id"], value_set=known)))
        if pc.any(is_lost).as_py():
            for name, value in (("prefix_id", -1), ("prefix_tokens", 0)):
                cut = pc.if_else(is_lost, value, table[name])
                table = table.set_column(table.schema.get_field_index(name), name, cut)
            write_table(path, table, segment=segment_of(path))


def unread_tokens(files: TraceFiles, run: dict[str, Any]) -> int:
    """The number of tokens in staging that no part has yet; for a trace that cannot be written."""
    segments = (_open(path, rank, run) for path, rank in files.segments())
    return sum(s.num_rows for s in segments if s is not None and not is_flushed(s, files))


def _recover_segment(files: TraceFiles, path: Path, rank: int, run: dict[str, Any]) -> int:
    segment = _open(path, rank, run)
    rows = 0
    if segment is not None and not segment.is_empty and not is_flushed(segment, files):
        try:
            flush(segment, files)
        except _DAMAGE as error:
            raise damaged(path, error) from error
        rows = segment.num_rows
    path.unlink(missing_ok=True)
    return rows


def _open(path: Path, rank: int, run: dict[str, Any]) -> Segment | None:
    segment = Segment.open(path)
    if segment is not None and (
        segment.rank != rank
        or segment.capture != run["capture"]
        or segment.layout != RowLayout.from_json(run["layers"])
    ):
        raise damaged(path, TraceError("it belongs to another trace"))
    return segment
