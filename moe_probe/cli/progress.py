"""One progress line on stderr while a trace is scanned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_probe.progress import ProgressLine

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

# What ends sooner needs no bar.
_DELAY_SECONDS = 1.0


class ScanProgress(ProgressLine):
    """Shows layers done of all; a plain line every 30 s where there is no terminal.

    Args:
        num_layers: All that will be scanned.
        quiet: Show nothing.
    """

    def __init__(self, num_layers: int, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet, delay=_DELAY_SECONDS, doing="scanning", total=num_layers)

    def columns(self) -> list[ProgressColumn]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        doing, unit = TextColumn("{task.description}"), TextColumn("layers")
        return [doing, BarColumn(), MofNCompleteColumn(), unit, TimeRemainingColumn()]

    def update(self, done: int, total: int) -> None:
        """Note layers done of all; what comes after the last is the writing of results."""
        doing = "scanning" if done < total else "writing"
        self.show(f"{done} of {total} layers scanned", done=done, total=total, doing=doing)
