"""A trace, gathered: one scan of it, a few layers at a time, and the sums that it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from moe_probe.analysis.accumulators.structure import refuse_large
from moe_probe.analysis.accumulators.tables import counts_from_tables
from moe_probe.analysis.default_scan import DefaultScan
from moe_probe.analysis.kernels import kernels_for
from moe_probe.analysis.layer_state import LayerState
from moe_probe.analysis.quality.suite import Evidence
from moe_probe.analysis.reading.index import subject_names
from moe_probe.analysis.reading.rules import Rule, default_rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import Progress, chunks, default_threads, scan_layers
from moe_probe.analysis.settings import Settings
from moe_probe.analysis.sums import Sums
from moe_probe.memory import available_memory
from moe_probe.trace import Capture, Trace, open_trace


def gather(
    trace: Trace | str | Path,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
    kernels: ModuleType | None = None,
) -> Sums:
    """Scan a trace once, a few layers at a time, and keep what metrics need.

    Memory does not grow with the trace: tables with a row per document exist for a few layers only
    and have `index.MAX_CLUSTERS` rows at most.

    Args:
        trace: The trace, or where it lies.
        settings: What to count; the trace's default rule if None.
        progress: Told after every group of layers.
        kernels: The inner loops; by the trace's size if None.

    Raises:
        TraceError: the trace is damaged, or does not have what the rule needs.
        UsageError: the trace does not say what the order needs.
        MoeProbeError: its layers have so many experts that tables of pairs need more memory than
            there is.
    """
    opened = open_trace(trace)
    chosen = settings or Settings(rule=default_rule(opened))
    if opened.capture is Capture.COUNTS or not opened.layers:
        return _from_tables(opened, chosen)
    refuse_large(opened.layers, available_memory())
    source = Source(opened)
    loops = kernels or kernels_for(source.num_selections)
    state = DefaultScan(source, chosen, loops)
    evidence = Evidence(opened, source, state.counts_by(Rule.RAW))
    threads = chosen.threads or default_threads()
    layers = list(source.layers)
    done: dict[int, LayerState] = {}

    def take(some: Sequence[int]) -> dict[int, LayerState]:
        tables = state.document_tables(some)
        scan_layers(source, state.accumulators(evidence, tables), some, loops)
        return {layer: state.finish(tables, layer) for layer in some}

    # Layers are worked on side by side; libraries that start threads of their own get in the way.
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        for finished in pool.map(take, chunks(layers, threads, state.table_bytes)):
            done |= finished
            if progress:
                progress(len(done), len(layers))
    # Else what decoding keeps for itself would lie beside what the checks read.
    pa.default_memory_pool().release_unused()
    return state.sums(evidence.checks(), done)


def _from_tables(trace: Trace, settings: Settings) -> Sums:
    evidence = Evidence(trace, None)
    counts = counts_from_tables(trace, settings.rule)
    groups = counts.axes.groups
    return Sums(
        trace=trace,
        settings=settings,
        subjects=subject_names(groups),
        areas=tuple(area for _, _, area in groups),
        documents_S=np.zeros(len(groups), np.int64),
        counts=counts,
        by_rule={},
        checks=evidence.checks(),
    )
