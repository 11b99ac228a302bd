"""One progress line on stderr while a trace is scanned."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from moe_probe import output

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PLAIN_SECONDS = 30.0
# What ends sooner needs no bar.
_DELAY_SECONDS = 1.0


class ScanProgress:
    """Shows layers done of all; a plain line every 30 s where there is no terminal.

    Args:
        num_layers: All that will be scanned.
        quiet: Show nothing.
    """

    def __init__(self, num_layers: int, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._last = time.monotonic()
        self._bar: Progress | None = None
        if not quiet and output.is_terminal(sys.stderr):
            self._bar, self._task = _bar(num_layers)
            self._delay = threading.Timer(_DELAY_SECONDS, self._bar.start)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._delay.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._delay.cancel()
            self._delay.join()
            self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """Note layers done of all; what comes after the last is the writing of results."""
        now = time.monotonic()
        if self._bar is not None:
            doing = "scanning" if done < total else "writing"
            self._bar.update(self._task, completed=done, total=total, description=doing)
        elif not self._quiet and now - self._last >= _PLAIN_SECONDS:
            self._last = now
            output.note(f"{done} of {total} layers scanned")


def _bar(num_layers: int) -> tuple[Progress, TaskID]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("layers"),
        Remaining(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    return bar, bar.add_task("scanning", total=num_layers)
