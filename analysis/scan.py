"""One pass over a trace fills every accumulator, by whichever counting rules they follow."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from moe_probe.analysis.accumulators.base import TableAccumulator, fill
from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.accumulators.tables import counts_from_tables
from moe_probe.analysis.kernels import kernels_for
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Rows, Source
from moe_probe.trace import Capture, LayerSpec, Trace, open_trace

# Layers that a thread takes at a time: the more, the faster they are read.
_FEW, _MANY = 2, 8
# Bytes that the tables of documents of the layers at hand may take, if those are not few.
_TABLES = 64 << 20
Progress = Callable[[int, int], None]
"""Called with the number of layers done, and of all."""


class Accumulator(Protocol):
    """Sums that the rows of layers add to, one layer at a time."""

    @property
    def layers(self) -> Mapping[int, LayerSpec]:
        """The layers it takes."""

    @property
    def weights(self) -> bool:
        """Whether it reads gate weights."""

    @property
    def lookahead(self) -> bool:
        """Whether adding a layer also reads the next one."""

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        """Add one layer of a part; different layers may be added at the same time."""


def default_threads() -> int:
    """Number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def scan(
    trace: Trace | str | Path | Source,
    accumulators: Sequence[Accumulator],
    *,
    layers: Sequence[int] | None = None,
    threads: int | None = None,
    kernels: ModuleType | None = None,
    progress: Progress | None = None,
) -> None:
    """Fill accumulators from the tokens of a trace.

    Memory is some columns of a part beside the accumulators, however long the trace is. Every
    thread reads the layers it adds, from the first part to the last, and waits for no other; the
    result does not depend on how many there are.

    Args:
        trace: The trace, where it lies, or a source made of it, which knows its rows already.
        accumulators: What to fill; each carries its own layers and counting rule.
        layers: The layers to read; all if None.
        threads: How many work at once; all processors if None.
        kernels: The inner loops; by the trace's size if None.
        progress: Called with the number of layers done, and of all, after every group of layers.

    Raises:
        TraceError: the trace has no per-token rows or no weights, or is damaged.
    """
    source = trace if isinstance(trace, Source) else Source(open_trace(trace))
    wanted = list(source.layers if layers is None else layers)
    loops = kernels or kernels_for(source.num_selections)
    workers = threads or default_threads()
    done = 0

    def take(some: Sequence[int]) -> int:
        scan_layers(source, accumulators, some, loops)
        return len(some)

    with ThreadPoolExecutor(workers) as pool:
        # Taken one by one, so that what a layer raises is raised here.
        for number in pool.map(take, chunks(wanted, workers)):
            done += number
            if progress:
                progress(done, len(wanted))


def chunks(layers: Sequence[int], threads: int, table: int = 0) -> list[Sequence[int]]:
    """Cut layers into what one thread takes at a time: neighbours, equally often for each.

    Args:
        layers: The layers.
        threads: How many work at once.
        table: Bytes that tables of documents take per layer, made for every group of layers.
    """
    threads = max(min(threads, len(layers)), 1)
    most = _TABLES // max(table * threads, 1)
    rounds = -(-len(layers) // (min(max(most, _FEW), _MANY) * threads))
    bounds = np.linspace(0, len(layers), rounds * threads + 1).round().astype(int).tolist()
    return [layers[start:stop] for start, stop in itertools.pairwise(bounds) if stop > start]


def scan_layers(
    source: Source,
    accumulators: Sequence[Accumulator],
    layers: Sequence[int],
    kernels: ModuleType,
) -> None:
    """Fill accumulators from some layers of every part, in this thread; see `scan`."""
    weights = any(accumulator.weights for accumulator in accumulators)
    ahead = any(accumulator.lookahead for accumulator in accumulators)
    for rows in source.read(_with_next(source, layers) if ahead else layers, weights=weights):
        for layer in layers:
            here = [accumulator for accumulator in accumulators if layer in accumulator.layers]
            fill([a for a in here if isinstance(a, TableAccumulator)], rows, layer, kernels)
            for accumulator in here:
                if not isinstance(accumulator, TableAccumulator):
                    accumulator.add(rows, layer, kernels)


def count(trace: Trace | str | Path, rule: Rule | str = Rule.UNIQUE) -> Counts:
    """Count the selections of a trace by layer, expert, subject and segment.

    The rows are scanned where there are any, the counts tables are read where there are none. Of a
    trace with a size limit that is the part whose rows were kept.

    Raises:
        TraceError: the trace is damaged, or has neither rows nor tables that suffice.
        ValueError: there is no such rule.
    """
    opened, chosen = open_trace(trace), Rule(rule)
    if opened.capture is Capture.COUNTS:
        return counts_from_tables(opened, chosen)
    source = Source(opened)
    counts = Counts(source.layers, chosen, source.index)
    scan(source, [counts])
    return counts


def _with_next(source: Source, layers: Sequence[int]) -> list[int]:
    """The layers, and after each group of neighbours the one that comes next."""
    order = list(source.layers)
    following = dict(itertools.pairwise(order))
    return list(dict.fromkeys([*layers, *(following[n] for n in layers if n in following)]))
