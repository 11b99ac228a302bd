"""One progress line on stderr while a model runs."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from moe_probe import output

_PLAIN_SECONDS = 30.0


class RunProgress:
    """Shows tokens done of tokens expected; a plain line every 30 s where there is no terminal.

    Args:
        quiet: Show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._start = self._last = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if not quiet and output.is_terminal(sys.stderr):
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[rate]} tokens/s"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("recording", total=None, rate="-")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, expected: int, subject: str) -> None:
        """Note tokens done, and the subject the last of them belong to, if it is known."""
        now = time.monotonic()
        rate = output.quantity(done / max(now - self._start, 1e-9))
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=done,
                total=expected,
                description=subject or "recording",
                rate=rate,
            )
        elif not self._quiet and now - self._last >= _PLAIN_SECONDS:
            self._last = now
            where = f", now {subject}" if subject else ""
            output.note(
                f"{output.quantity(done)} of {output.quantity(expected)} tokens, "
                f"{rate} tokens/s{where}"
            )
