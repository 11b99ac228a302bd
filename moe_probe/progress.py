"""One progress line on stderr: a bar on a terminal, a plain line every 30 s elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from moe_probe import output

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

_PLAIN_SECONDS = 30.0


class ProgressLine:
    """A line that is there while its block runs. Subclasses say what is done.

    Args:
        quiet: Show nothing.
        delay: Seconds before the bar appears: what ends sooner needs none.
        doing: What the bar says at first.
        total: All that is to be done; None if nobody knows yet.
        fields: More that the columns show.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        delay: float = 0.0,
        doing: str,
        total: int | None = None,
        **fields: Any,
    ) -> None:
        self._quiet = quiet
        self._start = self._last = time.monotonic()
        self._bar: Progress | None = None
        if not quiet and output.is_terminal(sys.stderr):
            from rich.console import Console
            from rich.progress import Progress

            console = Console(stderr=True)
            self._bar = Progress(*self.columns(), console=console, transient=True)
            self._task = self._bar.add_task(doing, total=total, **fields)
            self._delay = threading.Timer(delay, self._bar.start)

    def columns(self) -> list[ProgressColumn]:
        """Return what the bar consists of."""
        raise NotImplementedError

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

    def show(self, plain: str, *, done: int, total: int, doing: str, **fields: Any) -> None:
        """Move the bar on, or print `plain` if the last line was long ago."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=doing, **fields)
        elif not self._quiet and now - self._last >= _PLAIN_SECONDS:
            self._last = now
            output.note(plain)
