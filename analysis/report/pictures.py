"""Figures as files, drawn by all processors while the rest of a report is written."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from moe_probe.analysis.figures import FIGURES, Absent, rendered

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from moe_probe.analysis.results import Analysis

# Seconds that others have for their last figure; one takes less than a second.
_PATIENCE = 60
Drawn = dict[str, bytes] | str
"""A figure's files by kind, or the reason why there is none."""


def draw(analysis: Analysis, name: str, kinds: Collection[str]) -> Drawn:
    """Draw one figure as "png", "svg" or both."""
    try:
        figure = FIGURES[name](analysis)
    except Absent as reason:
        return str(reason)
    return {kind: rendered(figure, kind) for kind in kinds}


@contextmanager
def drawing(
    analysis: Analysis, wanted: Mapping[str, Collection[str]], processes: int
) -> Iterator[Callable[[], dict[str, Drawn]]]:
    """Let other processes begin; gives a function that draws what is left and returns all.

    Only on Linux are there others: elsewhere they would have to import for longer than they draw.

    Args:
        analysis: What to draw; tables made already are not made again.
        wanted: Names of figures with their kinds.
        processes: How many draw at most, this one included.
    """
    others = 0
    if wanted and sys.platform == "linux":
        from multiprocessing import current_process

        # A process that is itself a helper may have none.
        others = 0 if current_process().daemon else min(processes, len(wanted)) - 1
    # Whoever reads the next byte draws the figure of that number.
    left, writer = os.pipe()
    os.write(writer, bytes(range(len(wanted))))
    os.close(writer)
    started = [_start(analysis, wanted, left) for _ in range(others)]

    def finish() -> dict[str, Drawn]:
        drawn = _draw_left(analysis, wanted, left)
        for _, results in started:
            # Killed, perhaps for its memory, or stuck: below.
            with suppress(EOFError):
                drawn |= results.recv() if results.poll(_PATIENCE) else {}
        return {name: drawn.get(name) or draw(analysis, name, wanted[name]) for name in wanted}

    try:
        yield finish
    finally:
        os.close(left)
        for process, results in started:
            results.close()
            process.kill()
            process.join()


def _start(
    analysis: Analysis, wanted: Mapping[str, Collection[str]], left: int
) -> tuple[BaseProcess, Connection]:
    from multiprocessing import get_context

    # Once, not in every process.
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg  # noqa: F401

    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    arguments = (analysis, wanted, left, receiver, sender)
    process = context.Process(target=_help, args=arguments, daemon=True)
    process.start()
    sender.close()
    return process, receiver


def _help(
    analysis: Analysis,
    wanted: Mapping[str, Collection[str]],
    left: int,
    receiver: Connection,
    sender: Connection,
) -> None:
    """Draw in a process of its own, which ends with the figures even where nobody waits for it."""
    receiver.close()
    # An interrupt is the affair of the process that waits.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What was there before will not become garbage here.
    gc.freeze()
    with suppress(BrokenPipeError):
        sender.send(_draw_left(analysis, wanted, left))


def _draw_left(
    analysis: Analysis, wanted: Mapping[str, Collection[str]], left: int
) -> dict[str, Drawn]:
    """Draw figures that nobody has begun, as long as there are any."""
    names, drawn = list(wanted), {}
    while number := os.read(left, 1):
        name = names[number[0]]
        drawn[name] = draw(analysis, name, wanted[name])
    return drawn
