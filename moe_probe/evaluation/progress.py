"""One progress line on stderr while a model runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from moe_probe import output
from moe_probe.progress import ProgressLine

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


class RunProgress(ProgressLine):
    """Shows tokens done of tokens expected; a plain line every 30 s where there is no terminal.

    Args:
        quiet: Show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet, doing="recording", rate="-")

    def columns(self) -> list[ProgressColumn]:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

        doing, rate = TextColumn("{task.description}"), TextColumn("{task.fields[rate]} tokens/s")
        return [doing, BarColumn(), rate, TimeRemainingColumn()]

    def update(self, done: int, expected: int, subject: str) -> None:
        """Note tokens done, and the subject the last of them belong to, if it is known."""
        rate = output.quantity(done / max(time.monotonic() - self._start, 1e-9))
        where = f", now {subject}" if subject else ""
        plain = (
            f"{output.quantity(done)} of {output.quantity(expected)} tokens, {rate} tokens/s{where}"
        )
        self.show(plain, done=done, total=expected, doing=subject or "recording", rate=rate)
