"""The trace directory: where files lie, and how each becomes complete or stays absent."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_probe.errors import TraceError
from moe_probe.trace.schema import FORMAT_VERSION, Capture, RowLayout

_MAX_RUN_BYTES = 64 << 20
_KINDS = ("routing", "counts", "sequences", "answers")
_PART = re.compile(r"part-(\d{1,9})-(\d{6,9}|to\d{6,9}|shared)\.parquet")
_RANK_LOCK = re.compile(r"writer-(\d{1,9})\.lock")
_SEGMENT = re.compile(r"segment-(\d{1,9})-\d{1,3}\.bin")
_PIPELINE_STAGE = re.compile(r"0|[1-9]\d{0,3}")


@dataclass(frozen=True)
class TraceFiles:
    """Paths inside one trace. Every name is made here; none is taken from a trace's content.

    Raises TraceError for a path that no file of Parquet can have.
    """

    root: Path

    def __post_init__(self) -> None:
        try:
            str(self.root).encode()
        except UnicodeEncodeError as error:
            raise TraceError(
                f"{self.root} is not UTF-8, as Parquet's library needs the path of a trace to be. "
                "Rename the folder, or name another."
            ) from error

    @property
    def run(self) -> Path:
        return self.root / "run.json"

    @property
    def lock(self) -> Path:
        return self.root / "writer.lock"

    def rank_lock(self, rank: int) -> Path:
        return self.root / f"writer-{rank}.lock"

    def rank_locks(self) -> list[tuple[Path, int]]:
        """Locks of the ranks of a group, held or not, with the rank in their name."""
        found = [(path, _RANK_LOCK.fullmatch(path.name)) for path in self.root.glob("writer-*")]
        return [(path, int(match[1])) for path, match in found if match]

    @property
    def stage(self) -> Path:
        return self.root / "stage"

    def pipeline_stage(self, number: int) -> TraceFiles:
        """The trace that a pipeline stage records, to be joined into this one."""
        return TraceFiles(self.root / "stages" / str(number))

    def pipeline_stages(self) -> dict[int, TraceFiles]:
        """What is there of them, by number."""
        names = [path.name for path in (self.root / "stages").glob("*")]
        numbers = sorted(int(name) for name in names if _PIPELINE_STAGE.fullmatch(name))
        return {number: self.pipeline_stage(number) for number in numbers}

    def part(self, kind: str, rank: int, number: int | str) -> Path:
        name = f"{number:06d}" if isinstance(number, int) else number
        return self.root / kind / f"part-{rank}-{name}.parquet"

    def parts(self, kind: str) -> list[Path]:
        """Every part of a kind, those in the making included."""
        return sorted(p for p in (self.root / kind).glob("part-*") if _PART.fullmatch(p.name))

    def claimed(self) -> frozenset[str]:
        """Names of finished parts: the sequences part, which is written last, claims the others.

        What is only ever made from finished parts, summed and shared counts, claims itself.
        """
        own = {p.name for p in self.parts("counts") if not _name(p)[1].isdigit()}
        return frozenset(own | {path.name for path in self.parts("sequences")})

    def finished(self, kind: str, claimed: frozenset[str] | None = None) -> list[Path]:
        """Finished parts of a kind; those that `claimed` names, if it is given.

        Counts parts that a summed one holds are left out, should they still be there.
        """
        claimed = self.claimed() if claimed is None else claimed
        paths = [path for path in self.parts(kind) if path.name in claimed]
        return _without_summed(paths) if kind == "counts" else paths

    def last_number(self, rank: int) -> int:
        """The highest number that any part of a rank has; -1 where there is none."""
        names = [_name(path) for kind in _KINDS for path in self.parts(kind)]
        numbers = [name for number, name in names if number == rank and name != "shared"]
        return max((int(name.removeprefix("to")) for name in numbers), default=-1)

    def size(self, kind: str) -> int:
        """Bytes of all parts of a kind."""
        return sum(path.stat().st_size for path in self.parts(kind))

    def segment(self, rank: int, slot: int) -> Path:
        return self.stage / f"segment-{rank}-{slot}.bin"

    def segments(self) -> list[tuple[Path, int]]:
        """Staging files with the rank in their name."""
        found = [(path, _SEGMENT.fullmatch(path.name)) for path in sorted(self.stage.glob("*"))]
        return [(path, int(match[1])) for path, match in found if match]

    def make_folders(self) -> None:
        for kind in (*_KINDS, "stage"):
            (self.root / kind).mkdir(parents=True, exist_ok=True)

    def drop_unclaimed(self) -> None:
        """Delete parts that no sequences part claims, and what a killed write left half done."""
        for kind in _KINDS:
            for path in set(self.parts(kind)) - set(self.finished(kind)):
                path.unlink()
        for path in (self.root, *(self.root / kind for kind in _KINDS)):
            for temporary in path.glob("*.tmp"):
                temporary.unlink()

    def drop_stage(self) -> None:
        """Delete what a trace at rest does not have: empty folders and locks of killed ranks."""
        for path, _ in self.rank_locks():
            path.unlink()
        for folder in (self.stage, self.root / "answers"):
            with suppress(OSError):
                folder.rmdir()

    def clear(self) -> None:
        """Delete the trace and nothing else that lies beside it; run.json goes last."""
        for kind in _KINDS:
            for path in self.parts(kind):
                path.unlink()
        for path, _ in self.segments():
            path.unlink()
        self.drop_unclaimed()
        self.run.unlink(missing_ok=True)

    def drop_pipeline_stage(self, number: int) -> None:
        """Delete what is left of a pipeline stage that was cleared: empty folders."""
        stage = self.pipeline_stage(number)
        stage.drop_stage()
        for folder in (*(stage.root / kind for kind in _KINDS), stage.root, stage.root.parent):
            with suppress(OSError):
                folder.rmdir()


def rank_of(path: Path) -> int:
    """The rank in a part's name."""
    return _name(path)[0]


def _name(path: Path) -> tuple[int, str]:
    match = _PART.fullmatch(path.name)
    assert match is not None
    return int(match[1]), match[2]


def _without_summed(paths: list[Path]) -> list[Path]:
    """Of each rank, the last summed part and the numbered ones after it."""
    through: dict[int, int] = {}
    for rank, name in map(_name, paths):
        if name.startswith("to"):
            through[rank] = max(through.get(rank, -1), int(name[2:]))

    def counts(path: Path) -> bool:
        rank, name = _name(path)
        last = through.get(rank, -1)
        return name == "shared" or (int(name) > last if name.isdigit() else int(name[2:]) == last)

    return [path for path in paths if counts(path)]


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name that becomes `path`, fsynced, when the block ends without error."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)  # it could be a link to elsewhere
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    except OSError as error:
        raise TraceError(
            f"Cannot write {path}: {error.strerror or error}. What was recorded before is kept; "
            "free some space and use --resume."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parsed(text: str) -> Any:
    """Read JSON; scores of an evaluation may be NaN, which it does not have and means null."""

    def finite(number: str) -> float | None:
        value = float(number)
        return value if math.isfinite(value) else None

    return json.loads(text, parse_float=finite, parse_constant=finite)


def write_run(files: TraceFiles, run: dict[str, Any]) -> None:
    """Replace run.json, in which numbers that are not finite are null."""
    text = json.dumps(_parsed(json.dumps(run)), indent=1, ensure_ascii=False) + "\n"
    with atomic(files.run) as temporary:
        temporary.write_text(text, "utf-8", errors="replace")


def read_run(files: TraceFiles) -> dict[str, Any]:
    """Read run.json; raises TraceError where there is none or it is not of this format."""
    try:
        if not files.run.is_file():
            raise TraceError(
                f"{files.root} is not a moe-probe trace: it has no run.json. "
                "Give the directory that `moe-probe record` wrote."
            )
        if files.run.stat().st_size > _MAX_RUN_BYTES:
            raise ValueError("it is larger than 64 MiB")
        text = files.run.read_text("utf-8")
        run = _parsed(text)
        if "\\u" in text:
            # A lone surrogate, which no file can hold, becomes a question mark.
            run = _parsed(json.dumps(run, ensure_ascii=False).encode(errors="replace").decode())
        version = run["moe_probe_trace"]
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise TraceError(f"{files.run} is not a moe-probe run file: {reason}.") from error
    if version != FORMAT_VERSION:
        raise TraceError(
            f"{files.root} is a trace of format {version!r:.40}; this moe-probe reads format "
            f"{FORMAT_VERSION}. Install the moe-probe that wrote it, or record again."
        )
    try:
        Capture(run["capture"])
        RowLayout.from_json(run["layers"])
    except (KeyError, ValueError, TypeError) as error:
        raise TraceError(f"{files.run} lacks what a trace needs: {error}.") from error
    return dict(run)
