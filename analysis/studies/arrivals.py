"""C6 of a trace: whether long waits for an expert follow long ones.

Shape suffixes: N experts of a layer.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.accumulators.arrivals import ArrivalPairs
from moe_probe.analysis.metrics.drift import memory_coefficient
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.statistics.undefined import positive
from moe_probe.analysis.studies.scanning import AnyTrace, facts_of, fill, source_of, stacked


def arrival_memory(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate the memory of every expert's inter-arrival times (C6).

    An inter-arrival time is the distance from one selection of an expert to the next, in tokens in
    recording order. The burstiness index says that they differ more than those of independent
    tokens; memory says whether long ones follow long ones and short ones short ones, as where an
    expert serves stretches of text. lm-eval sorts requests by length, and so nearly by subject,
    which adds memory to that of a served stream. How bursty the counts of windows are says `fano`
    of `load_drift`.

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per layer and expert.
        layer, expert
        pairs  n, of inter-arrival times in a row: selections less 2, 0 or more
        memory  correlation of an inter-arrival time with the next one, in [-1, 1]; null with fewer
            than two pairs and where all times are equal
        memory_null  0, of independent tokens
        memory_null_sd  1 / sqrt(n), the standard deviation of such; null without pairs. Times are
            geometric, so for small n it is approximate
        Source: Goh and Barabasi (2008).

    Raises:
        TraceError: the trace has no per-token rows, or is damaged.
        UsageError: the rule counts stored rows several times.
        ValueError: there is no such rule.
    """
    source = source_of(trace)
    pairs = ArrivalPairs(*facts_of(source, rule))
    fill(source, [pairs], threads, progress)

    def table(sums_6N: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "expert": np.arange(sums_6N.shape[1]),
                "pairs": sums_6N[0],
                "memory": memory_coefficient(sums_6N),
                "memory_null": 0.0,
                "memory_null_sd": 1 / np.sqrt(positive(sums_6N[0])),
            }
        )

    tables = ((layer, table(pairs.arrays[layer]["sums_6N"])) for layer in source.layers)
    return stacked(tables, source, rule, "recording")
