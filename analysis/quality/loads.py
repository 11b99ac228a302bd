"""Checks of the counts: Q5, bounds and sums, and Q15, the load of expert 0.

Shape suffixes: N experts of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pyarrow.compute as pc

from moe_probe.analysis.accumulators.counts import Counts, LayerCounts
from moe_probe.analysis.accumulators.tables import table_totals
from moe_probe.analysis.metrics.frequency import relative_load
from moe_probe.analysis.quality.outcome import Check, Status, pass_if, some
from moe_probe.trace import Trace

# Deviations of a standard normal: one trace in 700, one in 3 million.
_NOTE_DEVIATIONS, _FAIL_DEVIATIONS = 3.0, 5.0


def count_bounds(trace: Trace, counts: Counts, *, scanned: bool) -> Check:
    name = "counts add up"
    expected = "k per token, one per expert"
    faults = []
    totals, is_whole = None, True
    # While a recording goes on, its tables lag behind its rows.
    if scanned and not trace.is_recording:
        totals = table_totals(trace)
        is_whole = pc.all(trace.sequences["rows_kept"]).as_py() is not False
        expected += "; tables = rows" if is_whole else "; tables >= rows, some left out"
    for layer in counts.by_layer():
        full = layer.tokens * layer.spec.top_k
        if layer.assignments > full or (layer.assignments < full and not layer.spec.empty_slots):
            faults.append(f"layer {layer.spec.layer}: {layer.assignments:,} of {full:,} selections")
        elif layer.counts_N.max() > layer.tokens:
            faults.append(f"layer {layer.spec.layer}: an expert beyond {layer.tokens:,} tokens")
        elif totals and _differ(totals[layer.spec.layer], layer.counts_N, is_whole):
            faults.append(f"layer {layer.spec.layer}: the counts tables differ from the rows")
    value = some(faults) if faults else f"{len(counts.layers)} layers exact"
    return Check("Q5", name, pass_if(not faults), value, expected)


def _differ(tables_N: np.ndarray, rows_N: np.ndarray, is_whole: bool) -> bool:
    # The tables also have the rows that a size limit left out.
    return bool((tables_N != rows_N).any() if is_whole else (tables_N < rows_N).any())


def expert_zero(layers: Iterable[LayerCounts]) -> Check:
    """Compare expert 0's rank with chance: an expert's index means nothing to a trained router.

    Rows of zeros raise the load of expert 0 in every layer, so its mean rank over the layers goes
    up before it stands out in any of them. Under exchangeable experts a rank (0, 1] is uniform.
    """
    name = "expert 0 loaded like the others"
    ranks, variance, loads = [], 0.0, []
    for layer in layers:
        if layer.assignments:
            load_N = relative_load(layer.counts_N)
            below, equal = (load_N < load_N[0]).sum(), (load_N == load_N[0]).sum()
            ranks.append((below + equal / 2) / len(load_N))
            variance += (1 - 1 / len(load_N) ** 2) / 12
            loads.append(load_N[0])
    if not variance:
        return Check("Q15", name, Status.SKIP, reason="no selections among several experts")
    deviations = (np.mean(ranks) - 0.5) * len(ranks) / math.sqrt(variance)
    is_odd, is_wrong = deviations > _NOTE_DEVIATIONS, deviations > _FAIL_DEVIATIONS
    status = Status.FAIL if is_wrong else Status.NOTE if is_odd else Status.PASS
    value = f"mean rank {np.mean(ranks):.2f}, median load {np.median(loads):.2f}"
    return Check("Q15", name, status, value, f"0.50, < {_FAIL_DEVIATIONS:.0f} sd above")
