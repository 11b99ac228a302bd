"""What functions that scan a trace once more have in common.

Shape suffixes: S groups (task, subject, area), N experts of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from moe_probe.analysis.rules import Rule, default_rule
from moe_probe.analysis.scan import Accumulator, Progress, scan
from moe_probe.analysis.source import Source
from moe_probe.errors import TraceError
from moe_probe.trace import Capture, Trace, open_trace

AnyTrace = Trace | str | Path
"""A trace, or where it lies."""


def source_of(trace: AnyTrace) -> Source:
    """Return the rows of a trace; raises TraceError where it has none."""
    opened = trace if isinstance(trace, Trace) else open_trace(trace)
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
        scan(source, accumulators, threads=threads, progress=progress)


def stacked(source: Source, table: Callable[[int], pd.DataFrame | None]) -> pd.DataFrame:
    """Put the tables of all layers under one another, the layer first; None has no rows."""
    tables = list(_of_layers(source, table))
    if not tables:
        return pd.DataFrame({"layer": pd.Series(dtype="int64")})
    return pd.concat(tables, ignore_index=True)


def _of_layers(
    source: Source, table: Callable[[int], pd.DataFrame | None]
) -> Iterator[pd.DataFrame]:
    for layer in source.layers:
        found = table(layer)
        if found is not None:
            found.insert(0, "layer", layer)
            yield found


def with_all(counts_SN: np.ndarray, tokens_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put the sum over all groups before the groups."""
    return (
        np.concatenate([counts_SN.sum(axis=0, keepdims=True), counts_SN]),
        np.concatenate([[tokens_S.sum()], tokens_S]),
    )
