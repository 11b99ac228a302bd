"""Who may change a trace: whoever holds its lock while no rank of a group is at work.

A lone writer, or who recovers or settles a trace, holds `writer.lock`. Ranks of a group hold it
only to begin, join and leave, and each a lock of its own for as long as it works. All of them are
flocks: the death of a process frees them, and a file that nobody holds means nothing.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from moe_probe.errors import TraceError
from moe_probe.trace.files import TraceFiles

# How long a rank waits for someone who is not of its group; who only looks is gone by then.
_PATIENCE = 10.0
_POLL_SECONDS = 0.02
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


@contextmanager
def writer_lock(files: TraceFiles) -> Iterator[bool]:
    """Hold the right to change a trace; yields False while someone else has it.

    Raises OSError where the directory cannot be written.
    """
    with ExitStack() as stack:
        is_free = stack.enter_context(_held(files.lock)) and not ranks_at_work(files)
        if not is_free:
            stack.close()
        yield is_free


@contextmanager
def group_lock(files: TraceFiles, group: str) -> Iterator[None]:
    """Hold the trace's lock for a rank that begins, joins or leaves; waits for others of its group.

    Raises:
        TraceError: someone else has held it for long: a lone writer, or a recovery.
        OSError: the directory cannot be written.
    """
    deadline = time.monotonic() + _PATIENCE
    with ExitStack() as stack:
        while not stack.enter_context(_held(files.lock, holder=group)):
            if _holder(files.lock) == group:
                deadline = time.monotonic() + _PATIENCE
            elif time.monotonic() > deadline:
                raise busy(files)
            time.sleep(_POLL_SECONDS)
        yield


@contextmanager
def rank_lock(files: TraceFiles, rank: int) -> Iterator[None]:
    """Say that a rank of a group is at work; raises TraceError where another process says so."""
    with _held(files.rank_lock(rank)) as is_ours:
        if not is_ours:
            raise TraceError(
                f"Rank {rank} is already recording into {files.root}. Give each writer its own."
            )
        yield


def ranks_at_work(files: TraceFiles) -> set[int]:
    """Ranks of a group that hold their lock; the caller holds the trace's, so that none comes."""
    found = set()
    for path, rank in files.rank_locks():
        with suppress(FileNotFoundError):
            descriptor = os.open(path, _FLAGS)
            if not _try_lock(descriptor):
                found.add(rank)
            os.close(descriptor)
    return found


def busy(files: TraceFiles) -> TraceError:
    """What to say where others are at work."""
    return TraceError(f"Another process is recording into {files.root}. Wait for it to end.")


@contextmanager
def _held(path: Path, *, holder: str = "") -> Iterator[bool]:
    lock = _take(path)
    if lock is None:
        yield False
        return
    try:
        os.ftruncate(lock, 0)
        os.write(lock, holder.encode())
        yield True
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(lock)


def _take(path: Path) -> int | None:
    while True:
        lock = os.open(path, _FLAGS | os.O_CREAT, 0o644)
        if not _try_lock(lock):
            os.close(lock)
            return None
        # Whoever held it before may have deleted the file meanwhile: then this lock locks nothing.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        os.close(lock)


def _holder(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text("utf-8")
    return ""


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
