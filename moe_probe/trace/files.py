"""The trace directory: where files lie, and how each becomes complete or stays absent."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from moe_probe.errors import TraceError
from moe_probe.trace.schema import FORMAT_VERSION

_MAX_RUN_BYTES = 64 << 20
_ROUTING, _COUNTS, _SEQUENCES, _ANSWERS = "routing", "counts", "sequences", "answers"


@dataclass(frozen=True)
class TraceFiles:
    """Paths inside one trace. Every name is made here; none is taken from a trace's content."""

    root: Path

    @property
    def run(self) -> Path:
        return self.root / "run.json"

    @property
    def stage(self) -> Path:
        return self.root / "stage"

    def part(self, kind: str, rank: int, number: int | str) -> Path:
        name = f"{number:06d}" if isinstance(number, int) else number
        return self.root / kind / f"part-{rank}-{name}.parquet"

    def parts(self, kind: str) -> list[Path]:
        return sorted((self.root / kind).glob("part-*.parquet"))

    def segments(self, rank: int | None = None) -> list[Path]:
        return sorted(self.stage.glob(f"segment-{'*' if rank is None else rank}-*.bin"))

    def segment(self, rank: int, slot: int) -> Path:
        return self.stage / f"segment-{rank}-{slot}.bin"

    def make_folders(self) -> None:
        for kind in (_ROUTING, _COUNTS, _SEQUENCES, _ANSWERS, "stage"):
            (self.root / kind).mkdir(parents=True, exist_ok=True)


@contextmanager
def writer_lock(files: TraceFiles, rank: int) -> Iterator[bool]:
    """Hold the right to write a rank's staging files; yields False if another process has it."""
    with open(files.stage / f"writer-{rank}.lock", "a") as file:
        held = _try_lock(file)
        yield held


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name that becomes `path`, fsynced, when the block ends without error."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TraceError(
            f"Cannot write {path}: {error.strerror or error}. What was recorded before is kept; "
            "free some space and use --resume."
        ) from error
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_table(path: Path, table: pa.Table, *, segment: int | None = None) -> None:
    """Write a small table whole; `segment` marks it as made from that staging segment."""
    if segment is not None:
        table = table.replace_schema_metadata(
            {**(table.schema.metadata or {}), "moe_probe.segment": str(segment)}
        )
    with atomic(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=1)


def read_tables(paths: list[Path], schema: pa.Schema) -> pa.Table:
    """Read and join small tables; raises TraceError for a file that is not of this schema."""
    tables = []
    for path in paths:
        try:
            table = pq.read_table(path)
            tables.append(table.select(schema.names).cast(schema))
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise TraceError(f"{path} cannot be read as part of a trace: {error}") from error
    return pa.concat_tables(tables) if tables else schema.empty_table()


def write_run(files: TraceFiles, run: dict[str, Any]) -> None:
    """Replace run.json."""
    with atomic(files.run) as temporary:
        temporary.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read_run(files: TraceFiles) -> dict[str, Any]:
    """Read run.json; raises TraceError where there is none or it is not of this format."""
    if not files.run.is_file():
        raise TraceError(
            f"{files.root} is not a moe-probe trace: it has no run.json. "
            "Give the directory that `moe-probe record` wrote."
        )
    try:
        if files.run.stat().st_size > _MAX_RUN_BYTES:
            raise ValueError("it is larger than 64 MiB")
        run = json.loads(files.run.read_text("utf-8"))
        version = run["moe_probe_trace"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise TraceError(f"{files.run} is not a moe-probe run file: {reason}.") from error
    if version != FORMAT_VERSION:
        raise TraceError(
            f"{files.root} is a trace of format {version!r}; this moe-probe reads format "
            f"{FORMAT_VERSION}. Install the moe-probe that wrote it, or record again."
        )
    return dict(run)
