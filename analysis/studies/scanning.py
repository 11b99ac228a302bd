"""What functions that scan a trace once more have in common.

Shape suffixes: S groups (task, subject, area), N experts of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from moe_probe.analysis.accumulators.documents import cluster_tokens
from moe_probe.analysis.reading.rules import Rule, default_rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import Accumulator, Progress, default_threads, scan
from moe_probe.analysis.tables.origin import label, origin
from moe_probe.errors import TraceError
from moe_probe.trace import Capture, LayerSpec, Trace, open_trace

Made = TypeVar("Made", bound=tuple[Accumulator, ...])
AnyTrace = Trace | str | Path
"""A trace, or where it lies."""
_MOST = 1 << 62


def is_number(value: object) -> bool:
    """Whether it says how many there are of something: whole, above 0, and no overflow."""
    return isinstance(value, Integral) and 0 < int(value) < _MOST


def refuse_none(what: str, *numbers: int) -> None:
    """Raise ValueError unless all are numbers; `what` has {} in their place."""
    for number in numbers:
        if not is_number(number):
            raise ValueError(f"{what.format(number)}: a whole number, at least one")


def source_of(trace: AnyTrace) -> Source:
    """Return the rows of a trace; raises TraceError where it has none."""
    opened = open_trace(trace)
    if opened.capture is Capture.COUNTS:
        raise TraceError(
            f"{opened.path} was recorded with --capture counts and has no per-token rows, which "
            "this needs. Record with --capture ids."
        )
    return Source(opened)


def facts_of(source: Source, rule: Rule | str | None) -> Any:
    """Return what every accumulator of all layers is made with; the default rule if None."""
    return source.layers, Rule(rule or default_rule(source.trace)), source.index


def fill(
    source: Source,
    accumulators: list[Accumulator],
    threads: int | None,
    progress: Progress | None,
) -> None:
    """Scan, with libraries that start threads of their own kept to one."""
    with threadpool_limits(1):
        scan(source, accumulators, threads=_workers(threads), progress=progress)


def by_layers(
    source: Source,
    make: Callable[[dict[int, LayerSpec]], Made],
    threads: int | None,
    progress: Progress | None,
) -> Iterator[tuple[int, Made]]:
    """Scan as many layers at a time as there are threads: big tables exist for these alone.

    Args:
        source: Of the trace.
        make: What makes the accumulators of some layers.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Yields:
        Every layer, and the accumulators that have it.
    """
    layers, workers = list(source.layers.items()), _workers(threads)
    for start in range(0, len(layers), workers):
        some = dict(layers[start : start + workers])
        made = make(some)
        with threadpool_limits(1):
            scan(source, made, layers=list(some), threads=workers)
        yield from ((layer, made) for layer in some)
        # The next tables are not made before these are gone.
        del made
        if progress:
            progress(start + len(some), len(layers))


def _workers(threads: int | None) -> int:
    if threads is None:
        return default_threads()
    refuse_none("{} threads", threads)
    return threads


def half_of(progress: Progress | None, number: int) -> Progress | None:
    """Return what the first (0) or the second (1) of two scans calls."""
    if progress is None:
        return None
    return lambda done, layers: progress(number * layers + done, 2 * layers)


def stacked(
    tables: Iterable[tuple[int, pd.DataFrame]],
    source: Source,
    rule: Rule | str | None,
    order: str | None = None,
    columns: Sequence[str] = (),
) -> pd.DataFrame:
    """Put the tables of layers under one another, the layer as the first column; `labelled`.

    `columns` are those of a table of no layer.
    """
    found = []
    for layer, table in tables:
        table.insert(0, "layer", layer)
        found.append(table)
    empty = pd.DataFrame(columns=["layer", *columns]).astype({"layer": "int64"})
    table = pd.concat(found, ignore_index=True) if found else empty
    return labelled(table, source, rule, order)


def labelled(
    table: pd.DataFrame, source: Source, rule: Rule | str | None, order: str | None = None
) -> pd.DataFrame:
    """Write into the attrs of a table what was counted, and in which order if one matters."""
    _, chosen, _ = facts_of(source, rule)
    tokens = int(cluster_tokens(source, chosen).sum())
    name = source.trace.path.resolve().name
    return label(table, origin(name, chosen, order, tokens=tokens))


def with_all(counts_SN: np.ndarray, tokens_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put the sum over all groups before the groups."""
    return (
        np.concatenate([counts_SN.sum(axis=0, keepdims=True), counts_SN]),
        np.concatenate([[tokens_S.sum()], tokens_S]),
    )
