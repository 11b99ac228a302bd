"""C9 of a trace: how experts' loads change along the stream.

Shape suffixes: C clusters, N experts of a layer, V windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from moe_probe.analysis.accumulators.documents import (
    DocumentCounts,
    cluster_moments,
    cluster_tokens,
)
from moe_probe.analysis.accumulators.windows import WindowCounts
from moe_probe.analysis.metrics import drift
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.statistics.clusters import pooled_design_effect
from moe_probe.analysis.studies.scanning import (
    AnyTrace,
    by_layers,
    facts_of,
    refuse_none,
    source_of,
    stacked,
)
from moe_probe.errors import UsageError
from moe_probe.trace import LayerSpec

WINDOW = 1_000
"""Tokens of a window, unless that makes too many."""
MAX_WINDOWS = 1 << 14
_ORDER = "recording"


def load_drift(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    window: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate how much experts' loads differ between windows of the stream (C9).

    The stream is the tokens in recording order, cut into windows of W tokens; a shorter rest is
    left out. This is a question for served traffic: lm-eval sorts requests by length, and so nearly
    by subject, which makes the loads of a benchmark drift.

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None.
        window: W, in tokens; 1,000, or more where that makes over 16,384 windows, if None.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per layer and expert.
        layer, expert
        window, windows  W, and how many there are; below two of them all that follows is null
        frequency  p in these windows
        fano, fano_null  variance over mean of the windows' counts; 1 - p of independent tokens.
            Above it bursts are longer than a window. Null for an expert never selected
        between, between_null  share of the variance of an expert's use that lies between windows,
            in [0, 1]; (V - 1) / (V W - 1) of independent tokens
        between_null_documents  the latter times the expert's design effect, at most 1: documents
            in random order; too large where documents are longer than W / 2
        changes  times that the load changes fourfold or more from one window to the next, by more
            than 5 standard deviations of the two counts: see `load_changes`

    Raises:
        TraceError: the trace has no per-token rows, or is damaged.
        UsageError: the rule counts stored rows several times, or there are too many windows.
        ValueError: there is no such rule, or no such window.
    """

    def table(windows_VN: np.ndarray, width: int, deff_N: np.ndarray) -> pd.DataFrame:
        number, experts = windows_VN.shape
        share_N, null = drift.drift_share(windows_VN, width)
        blank = np.nan if number < 2 else 1.0
        frequency_N = blank * windows_VN.sum(axis=0) / max(number * width, 1)
        changes = drift.change_points(windows_VN)["expert"]
        changes_N = np.bincount(changes.to_numpy(np.int64), minlength=experts)
        return pd.DataFrame(
            {
                "expert": np.arange(experts),
                "window": width,
                "windows": number,
                "frequency": frequency_N,
                "fano": drift.fano_factor(windows_VN),
                "fano_null": 1 - frequency_N,
                "between": blank * share_N,
                "between_null": blank * null,
                "between_null_documents": blank * np.minimum(null * deff_N, 1),
                "changes": blank * changes_N,
            }
        ).astype({"changes": "Int64"})

    source = source_of(trace)
    layers = _windows(source, rule, window, threads, progress)
    return stacked(((layer, table(*found)) for layer, found in layers), source, rule, _ORDER)


def load_changes(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    window: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """List where an expert's load changes fourfold or more from one window to the next (C9).

    The windows are those of `load_drift`, whose arguments and errors these are.

    Returns:
        One row per change, by layer and expert. Independent tokens make none: counts a and b differ
        by more than 5 sqrt(a + b). Documents that use experts in bursts do, without any drift, in
        windows that hold only few of them.
        layer, expert
        first_token  number of the later window's first token, counted from 0 in recording order
        before, after  relative load in the two windows
        change  log2 of after / before, each plus the load of half a selection
    """
    source = source_of(trace)
    layers = _windows(source, rule, window, threads, progress)
    tables = []
    for layer, (windows_VN, width, _) in layers:
        table = drift.change_points(windows_VN)
        table.insert(1, "first_token", table.pop("window") * width)
        tables.append((layer, table))
    return stacked(tables, source, rule, _ORDER)


def _windows(
    source: Source,
    rule: Rule | str | None,
    window: int | None,
    threads: int | None,
    progress: Progress | None,
) -> Iterator[tuple[int, tuple[np.ndarray, int, np.ndarray]]]:
    """Yield each layer, and its windows [V, N], W, and the experts' design effects [N]."""
    if window is not None:
        refuse_none("windows of {} tokens", window)
    _, chosen, index = facts_of(source, rule)
    tokens_C = cluster_tokens(source, chosen)
    tokens, most = int(tokens_C.sum()), int(tokens_C.max(initial=0))
    least = -(-tokens // MAX_WINDOWS)
    width = max(WINDOW, least) if window is None else window
    if width < least:
        raise UsageError(
            f"{tokens:,} tokens make more than {MAX_WINDOWS:,} windows of {width:,}. "
            f"Use windows of {least:,} tokens or more."
        )

    def make(layers: Mapping[int, LayerSpec]) -> tuple[WindowCounts, DocumentCounts]:
        facts = (layers, chosen, index)
        return WindowCounts(*facts, window=width), DocumentCounts(*facts, most=most)

    for layer, (windows, documents) in by_layers(source, make, threads, progress):
        group_C, groups = index.clusters.group_C, len(index.groups)
        counts_CN = documents.arrays[layer]["counts_CN"]
        moments = cluster_moments(counts_CN, tokens_C, group_C, groups)
        yield layer, (windows.full(layer), width, pooled_design_effect(moments))
