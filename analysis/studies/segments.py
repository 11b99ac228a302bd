"""F1 of a trace: whether segments of the prompt differ by more than where they stand.

Shape suffixes: H halves of the documents, X segments, B octaves of position, N experts of a layer.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from moe_probe.analysis.accumulators.segment_positions import SegmentPositions
from moe_probe.analysis.metrics.divergence import jensen_shannon
from moe_probe.analysis.metrics.segments import (
    position_matched_divergence,
    position_matched_null,
)
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.studies.scanning import AnyTrace, facts_of, fill, source_of, stacked
from moe_probe.trace import SEGMENTS

_COLUMNS = ["segment", "other", "octaves", "divergence_bits", "matched_bits", "matched_bits_null"]


def matched_segments(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate how differently two segments use experts at equal positions (F1).

    In a prompt segment and position go together; here only positions that both segments have are
    compared, by octaves (0, 1, 2-3, 4-7, ...), and both weigh the same in each.

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per layer and two segments that have selections.
        layer
        segment, other  names: prefix, question, cue, choice, generated
        octaves  of positions at which both have selections
        divergence_bits  Jensen-Shannon divergence, in [0, 1], wherever they stand
        matched_bits  the same at equal positions; null without any
        matched_bits_null  from noise alone: between two halves of the documents, of one segment at
            the same positions with the same weights, half the mean over both segments; one draw.
            Too large where documents have experts of their own. Null where a half lacks a segment

    Raises:
        TraceError: the trace has no per-token rows, or is damaged.
        ValueError: there is no such rule.
    """
    source = source_of(trace)
    counted = SegmentPositions(*facts_of(source, rule))
    fill(source, [counted], threads, progress)
    tables = ((layer, _table(counted.arrays[layer]["counts_HXBN"])) for layer in source.layers)
    return stacked(tables, source, rule)


def _table(counts_HXBN: np.ndarray) -> pd.DataFrame:
    counts_XBN = counts_HXBN.sum(axis=0)
    whole_XN = counts_XBN.sum(axis=1)
    apart_XX = jensen_shannon(whole_XN)
    rows = []
    for one, other in combinations(np.flatnonzero(whole_XN.any(axis=1)).tolist(), 2):
        both_B = counts_XBN[one].any(axis=1) & counts_XBN[other].any(axis=1)
        matched = position_matched_divergence(counts_XBN[one], counts_XBN[other])
        noise = position_matched_null(counts_HXBN[:, one], counts_HXBN[:, other])
        names = SEGMENTS[one], SEGMENTS[other]
        rows.append((*names, int(both_B.sum()), apart_XX[one, other], matched, noise))
    return pd.DataFrame(rows, columns=_COLUMNS)
