"""I3 of a trace: how far a layer's experts foretell those of the next.

Shape suffixes: M experts of the next layer, H halves of the documents.
"""

from __future__ import annotations

import math

import pandas as pd

from moe_probe.analysis.accumulators.set_flows import FlowHits, SetFlows
from moe_probe.analysis.metrics.transitions import recall_of_most_frequent
from moe_probe.analysis.rules import Rule
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.studies.scanning import (
    AnyTrace,
    facts_of,
    fill,
    half_of,
    labelled,
    source_of,
)

_COLUMNS = ["layer", "next_layer", "dense_between", "selections", "recall", "recall_null"]


def layer_predictability(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate how much of the next layer's routing a table of transitions foresees (I3).

    Documents are dealt into two halves by a hash of their names. From each half a table is made of
    all pairs of an expert here and one in the next layer; with it the other half's k experts of the
    next layer are foreseen from those of this one, by naive Bayes. That is the hit rate of a
    prefetcher that knows one layer and the table. The trace is read twice.

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None.
        threads: Threads of the scans; all processors if None.
        progress: Called with the number of layers done, and of all, in both scans together.

    Returns:
        One row per layer that has a next one.
        layer, next_layer
        dense_between  decoder layers without experts between the two
        selections  in the next layer
        recall  share of them foreseen, in [0, 1]; null where a half has none
        recall_null  the same if all tokens are expected to select the k most frequent experts

    Raises:
        TraceError: the trace has no per-token rows, or is damaged.
        ValueError: there is no such rule.
    """
    source = source_of(trace)
    flows = SetFlows(*facts_of(source, rule))
    fill(source, [flows], threads, half_of(progress, 0))
    hits = FlowHits(flows, source.index)
    fill(source, [hits], threads, half_of(progress, 1))
    rows = []
    for layer in source.layers:
        following = flows.following(layer)
        if following is None:
            continue
        (hit, selected), other = hits.arrays[layer]["foreseen_H2"]
        hit, selected = hit + other[0], selected + other[1]
        is_known = flows.arrays[layer]["set_flows_HNM"].any(axis=(1, 2)).all()
        rows.append(
            (
                layer,
                following.layer,
                following.layer - layer - 1,
                int(selected),
                hit / selected if is_known else math.nan,
                _usual(flows, layer, following.top_k),
            )
        )
    return labelled(pd.DataFrame(rows, columns=_COLUMNS), source, rule)


def _usual(flows: SetFlows, layer: int, top_k: int) -> float:
    """Share of both halves' selections that the other half's k most frequent experts have."""
    counts_HM = flows.arrays[layer]["next_counts_HM"]
    if not counts_HM.any(axis=1).all():
        return math.nan
    pairs = ((counts_HM[1], counts_HM[0]), (counts_HM[0], counts_HM[1]))
    hits = sum(recall_of_most_frequent(*pair, top_k) * pair[1].sum() for pair in pairs)
    return float(hits / counts_HM.sum())
