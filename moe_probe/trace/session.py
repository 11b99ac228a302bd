"""A writer's right to a trace, from beginning to end: alone, or as one rank of a group."""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from typing import Any, Protocol

from moe_probe.errors import TraceError
from moe_probe.trace.files import TraceFiles, read_run, write_run
from moe_probe.trace.layout import Capture, RowLayout
from moe_probe.trace.locks import busy, group_lock, rank_lock, ranks_at_work, writer_lock
from moe_probe.trace.output import begin_run, check_output, end_run
from moe_probe.trace.ranks import (
    STATUSES,
    Facts,
    Merge,
    merge_ranks,
    note_end,
    note_work,
    take_correct,
)
from moe_probe.trace.recovery import recover, recover_rank, rescue
from moe_probe.trace.schema import FORMAT_VERSION
from moe_probe.trace.settling import Correct, settle


def begin_session(
    files: TraceFiles, layout: RowLayout, capture: Capture, run: Facts, stack: ExitStack, **who: Any
) -> Session:
    """Begin, continue or join a trace.

    Args:
        files: The trace.
        layout: The layers of a row.
        capture: What is kept of them.
        run: What else goes to run.json, should this writer be the first.
        stack: Lets the writer's locks go.
        **who: `rank`, `group`, `resume` and `force` of TraceWriter.

    Raises:
        UsageError: `resume` or `force` do not allow what is there.
        TraceError: others are at work, or the group records something else.
        OSError: the directory cannot be written.
    """
    same = {
        "moe_probe_trace": FORMAT_VERSION,
        "capture": str(capture),
        "layers": [spec.to_json() for spec in layout.layers],
    }
    rank, group = who.pop("rank"), who.pop("group")
    if not group:
        return Alone(files, same, run, stack, **who)
    return Member(files, same, run, stack, rank=rank, group=group, **who)


class Session(Protocol):
    """What TraceWriter needs of either kind."""

    run: Facts
    """Content of run.json."""

    def end(self, status: str, facts: Facts, correct: Correct, merge: Merge | None) -> None:
        """Bring the trace to rest, or leave that to the others; all rows are in parts."""


class Alone:
    """The only writer: holds the trace's lock until `stack` lets it go."""

    def __init__(
        self, files: TraceFiles, same: Facts, run: Facts, stack: ExitStack, **mode: bool
    ) -> None:
        self._files = files
        check_output(files.root, **mode)
        files.root.mkdir(parents=True, exist_ok=True)
        if not stack.enter_context(writer_lock(files)):
            raise busy(files)
        # Again, now that nobody else can make a trace here.
        check_output(files.root, **mode)
        self.run = begin_run(files, same, run, **mode)

    def end(self, status: str, facts: Facts, correct: Correct, merge: Merge | None) -> None:
        self.run.update(facts, status=status)
        settle(self._files, self.run, correct)
        end_run(self._files, self.run)
        self._files.drop_stage()


class Member:
    """One rank of a group: the first begins the trace, the last to end settles it.

    Args:
        files: The trace.
        same: What all ranks, and a recording that is resumed, must have in common.
        run: What else goes to run.json, should this rank be the first.
        stack: Lets the rank's lock go, should the rank not come to its end.
        rank: Which rank.
        group: Names the group, and no other one that ever writes this trace.
        **mode: `resume` and `force`, should this rank be the first.
    """

    def __init__(
        self,
        files: TraceFiles,
        same: Facts,
        run: Facts,
        stack: ExitStack,
        *,
        rank: int,
        group: str,
        **mode: bool,
    ) -> None:
        self._files, self._rank, self._group = files, rank, group
        self._lock = stack.enter_context(ExitStack())
        if not files.root.exists():
            check_output(files.root, **mode)
        files.root.mkdir(parents=True, exist_ok=True)
        with group_lock(files, group):
            at_work, ours = ranks_at_work(files), _run_of(files, group)
            if ours is not None:
                self.run = self._join(ours, same, at_work)
            elif at_work:
                raise busy(files)
            else:
                check_output(files.root, **mode)
                self.run = begin_run(files, same, {**run, "group": group, "ranks": {}}, **mode)
            self._lock.enter_context(rank_lock(files, rank))
            note_work(self.run, rank)
            write_run(files, self.run)

    def end(self, status: str, facts: Facts, correct: Correct, merge: Merge | None) -> None:
        if status not in STATUSES:
            raise ValueError(f"a rank's status is {status!r}, not one of {', '.join(STATUSES)}")
        with group_lock(self._files, self._group):
            self.run = run = read_run(self._files)
            note_end(run, self._rank, status, facts, correct)
            write_run(self._files, run)
            if ranks_at_work(self._files) == {self._rank}:
                rescue(self._files, run)
                known = take_correct(run)
                merge_ranks(run, merge)
                settle(self._files, run, known)
                end_run(self._files, run)
                self._files.drop_stage()
            # Before the next one may look, so that one of two who end at once is the last.
            self._lock.close()

    def _join(self, run: Facts, same: Facts, at_work: set[int]) -> Facts:
        for name, value in json.loads(json.dumps(same)).items():
            if run.get(name) != value:
                raise TraceError(
                    f"Rank {self._rank} cannot join the recording into {self._files.root}: its "
                    f"{name} is {value!s:.80}, not {run.get(name)!s:.80}. Start all ranks alike."
                )
        if not at_work:
            recover(self._files, run)
            self._files.make_folders()
        elif self._rank not in at_work:
            recover_rank(self._files, run, self._rank)
        run.pop("end", None)
        return {**run, "status": "running"}


def _run_of(files: TraceFiles, group: str) -> Facts | None:
    with suppress(TraceError):
        run = read_run(files)
        return run if run.get("group") == group else None
    return None
