"""Figures as files, drawn by other processes while this one analyses and writes.

matplotlib takes as long to import as a small trace to be analysed, so the first of them starts
before the scan, waits for the tables, and then has others beside it.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from multiprocessing.context import ForkProcess

    from moe_probe.analysis.results import Analysis

# Seconds that others have for a figure; one takes less than a second.
_PATIENCE = 60
_MOMENT = 0.1
_MOST = 12
_TABLES = (
    *("experts", "layers", "specialization", "repeats", "quality", "divergence", "rules"),
    *("devices", "placement", "coverage", "subjects"),
)
"""All that figures ask for."""
Drawn = dict[str, bytes] | str
"""A figure's files by kind, or the reason why there is none."""
Wanted = Mapping[str, Collection[str]]
"""Names of figures with their kinds, "png" and "svg"."""


def draw(analysis: Analysis, name: str, kinds: Collection[str]) -> Drawn:
    """Draw one figure as "png", "svg" or both."""
    from moe_probe.analysis.figures import FIGURES, Absent, rendered

    try:
        figure = FIGURES[name](analysis)
    except Absent as reason:
        return str(reason)
    return {kind: rendered(figure, kind) for kind in kinds}


class Drawers:
    """Processes that draw, until the block ends; where there are none, this process draws.

    Only on Linux are there any: elsewhere they would have to import for longer than they draw.

    Args:
        processes: How many at most; all processors if None, and none if 1.
    """

    def __init__(self, processes: int | None = None) -> None:
        self._analysis: Analysis
        self._wanted: Wanted
        self._coming: dict[str, Future[Drawn | None]] = {}
        self._results: list[Connection] = []
        self._process: ForkProcess | None = None
        self._collector: Thread | None = None
        if processes != 1 and sys.platform == "linux":
            self._start(processes)

    def _start(self, processes: int | None) -> None:
        from multiprocessing import current_process, get_context

        # A process that is itself a helper may have none.
        if current_process().daemon:
            return
        context = get_context("fork")
        pipes = [context.Pipe(duplex=False) for _ in range(min(processes or _MOST, _MOST))]
        tasks, self._tasks = context.Pipe(duplex=False)
        self._results = [results for results, _ in pipes]
        senders = [sender for _, sender in pipes]
        ours = [self._tasks, *self._results]
        process = context.Process(target=_lead, args=(processes, tasks, senders, ours))
        # Where the system gives no more processes, this one draws.
        with suppress(OSError):
            process.start()
            self._process = process
        for theirs in (tasks, *senders):
            theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is None:
            return
        # By itself, if all is drawn; else with those that it has started.
        is_done = self._coming and all(drawn.done() for drawn in self._coming.values())
        self._process.join(_MOMENT if is_done else 0)
        if self._process.is_alive():
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid or 0, signal.SIGKILL)
            self._process.kill()
            self._process.join()
        if self._collector is not None:
            self._collector.join(_PATIENCE)
        for ours in (self._tasks, *self._results):
            ours.close()

    def begin(self, analysis: Analysis, wanted: Wanted) -> None:
        """Have figures drawn, the first of them first."""
        self._analysis, self._wanted = analysis, wanted
        if self._process is not None and wanted:
            self._coming = {name: Future() for name in wanted}
            task = (_sent(analysis), wanted)
            self._collector = Thread(target=self._collect, args=task, daemon=True)
            try:
                self._collector.start()
            except RuntimeError:
                # The system gives no more threads: this one draws.
                self._collector, self._coming = None, {}

    def drawn(self, name: str) -> Drawn:
        """Wait for a figure, and draw it here where nobody else has."""
        drawn = self._coming[name].result() if name in self._coming else None
        return drawn or draw(self._analysis, name, self._wanted[name])

    def _collect(self, analysis: Analysis, wanted: Wanted) -> None:
        """Take figures as they come: who draws would else wait until there is room for them."""
        try:
            # Killed, perhaps for its memory; or there is none left here.
            with suppress(OSError, EOFError, MemoryError):
                self._receive(analysis, wanted)
        finally:
            for missing in self._coming.values():
                if not missing.done():
                    missing.set_result(None)

    def _receive(self, analysis: Analysis, wanted: Wanted) -> None:
        first, *_ = self._results
        # What is sent to a process that does not read would wait for room in the pipe for ever.
        if not wait([first], _PATIENCE):
            return
        first.recv()
        self._tasks.send((analysis, wanted))
        left: list[Any] = list(self._results)
        while left and (ready := wait(left, _PATIENCE)):
            results: Any
            for results in ready:
                try:
                    name, drawn = results.recv()
                    self._coming[name].set_result(drawn)
                except EOFError:
                    left.remove(results)


def _sent(analysis: Analysis) -> Analysis:
    """What figures need of an analysis: it is a copy that they get."""
    from moe_probe.analysis.results import Analysis

    left_out: dict[str, Any] = dict.fromkeys(
        ("slots", "pairs", "flows", "positions", "overlaps", "batches", "weights", "confidence")
    )
    sent = Analysis(replace(analysis.sums, by_rule={}, layers={}, **left_out))
    sent._tables = {name: analysis.table(name) for name in _TABLES}
    return sent


def _lead(
    processes: int | None, tasks: Connection, senders: list[Connection], theirs: list[Connection]
) -> None:
    """Draw with others; ends when nobody waits any more."""
    os.setpgid(0, 0)
    # An interrupt is the affair of the process that waits.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for connection in theirs:
        connection.close()
    # What fails here the process that waits does itself, and says what is wrong.
    with suppress(Exception):
        _draw_all(processes, tasks, senders)


def _draw_all(processes: int | None, tasks: Connection, senders: list[Connection]) -> None:
    """Get ready, say so, wait for the tables, and draw with others."""
    _get_ready()
    senders[0].send(None)
    analysis, wanted = tasks.recv()
    from multiprocessing import get_context

    from moe_probe.analysis.scan import default_threads

    # Whoever reads the next byte draws the figure of that number.
    left, writer = os.pipe()
    os.write(writer, bytes(range(len(wanted))))
    os.close(writer)
    # What was there before will not become garbage here.
    gc.freeze()
    number = min(processes or default_threads(), len(wanted))
    work, fork = (analysis, wanted, left), get_context("fork").Process
    others = [
        fork(target=_draw_left, args=(*work, sender), daemon=True) for sender in senders[1:number]
    ]
    for other in others:
        other.start()
    for sender in senders[1:]:
        sender.close()
    _draw_left(*work, senders[0])
    for other in others:
        other.join()


def _get_ready() -> None:
    """Import what draws, and draw: the first time takes longer."""
    import scipy.cluster.hierarchy  # noqa: F401

    import moe_probe.analysis.results  # noqa: F401
    from moe_probe.analysis.figures import rendered
    from moe_probe.analysis.figures.style import new_figure

    figure = new_figure(3, 3)
    figure.colorbar(figure.add_subplot().imshow([[0]]))
    rendered(figure, "png")


def _draw_left(analysis: Analysis, wanted: Wanted, left: int, sender: Connection) -> None:
    """Draw figures that nobody has begun, as long as there are any."""
    names = list(wanted)
    with suppress(Exception):
        while number := os.read(left, 1):
            name = names[number[0]]
            sender.send((name, draw(analysis, name, wanted[name])))
    sender.close()
