"""Where a recording goes: what may be replaced, what may be continued, and from which number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from moe_probe.errors import TraceError, UsageError
from moe_probe.trace.files import TraceFiles, rank_of, read_run, write_run
from moe_probe.trace.locks import busy, writer_lock
from moe_probe.trace.recovery import recover
from moe_probe.trace.tables import read_part, read_tables

# Two ranks never number a sequence alike.
SEQUENCES_PER_RANK = 1 << 40
# What a recording that was killed as it began may leave, and nothing else.
_BEGINNINGS = {"writer.lock", "run.json.tmp"}


def check_output(root: Path, *, resume: bool, force: bool) -> None:
    """Refuse an output that would destroy something; raises UsageError."""
    if not root.exists() or (
        root.is_dir() and {path.name for path in root.iterdir()} <= _BEGINNINGS
    ):
        if resume:
            raise UsageError(f"Nothing to resume: {root} does not exist. Leave --resume out.")
        return
    if not _is_trace(root):
        raise UsageError(
            f"{root} exists and is not a trace, so it is left alone. Choose another --output."
        )
    if not resume and not force:
        raise UsageError(
            f"{root} already holds a trace. Use --resume to continue it or --force to replace it."
        )


@contextmanager
def beginning(path: str | Path) -> Iterator[None]:
    """Begin a trace inside; raises TraceError in place of what the system says against it."""
    try:
        yield
    except OSError as error:
        raise TraceError(
            f"Cannot write the trace at {path}: {error.strerror}. Choose another --output."
        ) from error


def begin_run(
    files: TraceFiles, facts: dict[str, Any], run: dict[str, Any], *, resume: bool, force: bool
) -> dict[str, Any]:
    """Make the directory ready for a recording; the caller holds the writer's lock.

    Args:
        files: The trace.
        facts: What a resumed recording must have in common with the one it continues.
        run: What else goes to run.json.
        resume: Continue the trace that is there, after recovering it.
        force: Delete the trace that is there.

    Returns:
        The content of run.json, as written.

    Raises:
        UsageError: the trace to resume has other facts.
        TraceError: the trace to resume is damaged, or the directory cannot be written.
    """
    if resume:
        old = read_run(files)
        _check_same(files, old, json.loads(json.dumps(facts)))
        recover(files, old)
        resumed = old.get("resumed")
        for name in ("end", "group", "ranks"):
            old.pop(name, None)
        run = {**old, **run, "resumed": [*(resumed if isinstance(resumed, list) else []), _now()]}
    elif force:
        drop_pipeline_stages(files)
        files.clear()
    begun = {**facts, "start": _now(), **run, **facts, "status": "running"}
    write_run(files, begun)
    files.make_folders()
    return begun


def drop_pipeline_stages(files: TraceFiles) -> None:
    """Delete what pipeline stages recorded and nobody joined.

    Raises TraceError where one of them is being recorded.
    """
    for number, stage in files.pipeline_stages().items():
        with writer_lock(stage) as is_ours:
            if not is_ours:
                raise busy(stage)
            stage.clear()
        files.drop_pipeline_stage(number)


def end_run(files: TraceFiles, run: dict[str, Any]) -> None:
    """Write run.json for the last time, with the time of day."""
    run["end"] = _now()
    write_run(files, run)


def last_sequence(files: TraceFiles, rank: int) -> int:
    """The highest sequence id that a rank gave, or the one before its first."""
    first = rank * SEQUENCES_PER_RANK
    ids = read_tables(files.parts("sequences"), pa.schema([("sequence_id", pa.int64())]))
    mine = ids["sequence_id"].filter(pc.less(ids["sequence_id"], first + SEQUENCES_PER_RANK))
    last: int | None = pc.max(mine).as_py()
    return first - 1 if last is None else max(first - 1, last)


def last_forward_pass(files: TraceFiles, rank: int) -> int:
    """The highest number that a rank's stored rows give a forward pass; -1 where there is none."""
    schema = pa.schema([("forward_pass", pa.int32())])
    mine = [path for path in files.finished("routing") if rank_of(path) == rank]
    # Part by part: together they can be more than fits in memory.
    highest = (pc.max(read_part(path, schema)["forward_pass"]).as_py() for path in mine)
    return max((number for number in highest if number is not None), default=-1)


def _check_same(files: TraceFiles, old: dict[str, Any], facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        if old.get(name) != value:
            raise UsageError(
                f"Cannot resume {files.root}: its {name} was {old.get(name)!s:.80}, now it is "
                f"{value!s:.80}. Record into a new --output."
            )


def _is_trace(root: Path) -> bool:
    # Pipeline stages record before there is anything else.
    stages = TraceFiles(root).pipeline_stages().values()
    return _has_run(root) or any(_has_run(stage.root) for stage in stages)


def _has_run(root: Path) -> bool:
    try:
        text = (root / "run.json").read_text("utf-8")
        return "moe_probe_trace" in json.loads(text)
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
