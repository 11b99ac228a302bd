"""H5 of a trace: how many experts consecutive tokens need.

Shape suffixes: S groups (task, subject, area), N experts of a layer, X window lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.accumulators.working_sets import WINDOWS, WorkingSets
from moe_probe.analysis.reading.index import subject_names
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.statistics.random_sets import experts_seen, own_rate_seen
from moe_probe.analysis.statistics.undefined import positive
from moe_probe.analysis.studies.scanning import (
    AnyTrace,
    facts_of,
    fill,
    refuse_none,
    source_of,
    stacked,
    with_all,
)


def working_sets(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    windows: Sequence[int] = WINDOWS,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate how many distinct experts w consecutive tokens of a document select (H5).

    Mean over all windows of w counted tokens inside one document: what a cache of experts has to
    hold, and what w requests decoded together would load, were they as alike as neighbours.

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None.
        windows: Lengths w, in tokens.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per layer, window length and subject, and first of each length one over all.
        layer
        window  w, in tokens
        subject  "" for all
        windows  windows of that length; 0 where no document has as many tokens
        experts  mean number of distinct experts, in [0, min(N, k w)]; null without windows
        experts_null  N (1 - (1 - k/N)^w), tokens that choose k of N uniformly
        experts_null_own  sum of 1 - (1 - p)^w, tokens that choose independently at the experts'
            own frequencies: below it neighbours are alike

    Raises:
        TraceError: the trace has no per-token rows, or is damaged.
        ValueError: there is no such rule, or a length below 1.
    """
    refuse_none("windows of {} tokens", *windows)
    source = source_of(trace)
    facts = facts_of(source, rule)
    counts, sets = Counts(*facts), WorkingSets(*facts, windows=tuple(windows))
    fill(source, [counts, sets], threads, progress)
    subjects = ["", *subject_names(source.index.groups)]

    def table(layer: int) -> pd.DataFrame:
        counts_SN, tokens_S = with_all(*counts.by_group(layer))
        sizes_SX2 = sets.arrays[layer]["sizes_SX2"]
        sizes_SX2 = np.concatenate([sizes_SX2.sum(axis=0, keepdims=True), sizes_SX2])
        window_X = np.array(sets.windows, np.int64)
        frequency_SN = counts_SN / positive(tokens_S)[:, None]
        slots_S = frequency_SN.sum(axis=1)
        fair_XS = experts_seen(counts_SN.shape[1], slots_S, window_X[:, None])
        number_XS, experts_XS = sizes_SX2.transpose(2, 1, 0)
        return pd.DataFrame(
            {
                "window": np.repeat(window_X, len(subjects)),
                "subject": subjects * len(window_X),
                "windows": number_XS.ravel(),
                "experts": (experts_XS / positive(number_XS)).ravel(),
                "experts_null": fair_XS.ravel(),
                "experts_null_own": own_rate_seen(frequency_SN, window_X).T.ravel(),
            }
        )

    tables = ((layer, table(layer)) for layer in source.layers)
    return stacked(tables, source, rule, "request-local")
