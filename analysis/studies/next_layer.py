"""I1 and I3 of a trace: which experts follow on which, and how far a layer foretells the next.

Shape suffixes: N and M experts of a layer and the next, H halves of the documents, P pairs.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from moe_probe.analysis.accumulators.set_flows import FlowHits, SetFlows
from moe_probe.analysis.metrics.coactivation import LEAST_EXPECTED, deviance
from moe_probe.analysis.metrics.transitions import (
    independent_flows,
    lift,
    recall_of_most_frequent,
)
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.studies.scanning import (
    AnyTrace,
    facts_of,
    fill,
    half_of,
    labelled,
    refuse_none,
    source_of,
    stacked,
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


def expert_flows(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    most: int = 100,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate which experts of the next layer follow on which of this one, by how often (I1).

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None.
        most: Pairs of a layer to keep, those that chance explains least.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per pair, those that chance explains least first; none for the last layer.
        layer, next_layer
        dense_between  decoder layers without experts between the two
        expert, next_expert  indices in either layer, which have nothing in common
        count  X, tokens that select both
        expected  T p p', if the layers were independent
        lift  count / expected, 1 by chance; null where fewer than 5 are expected
        lift_one_half, lift_other_half  the same of two halves of the documents, dealt by a hash of
            their names: how far they differ is noise; null where fewer than 5 are expected there

    Raises:
        TraceError: the trace has no per-token rows, or is damaged.
        ValueError: there is no such rule, or no pair to keep.
    """
    refuse_none("{} pairs of a layer", most)
    source = source_of(trace)
    flows = SetFlows(*facts_of(source, rule))
    fill(source, [flows], threads, progress)
    tables = []
    for layer in source.layers:
        following = flows.following(layer)
        if following is not None:
            table = _pairs(flows.arrays[layer]["set_flows_HNM"], most)
            table.insert(0, "dense_between", following.layer - layer - 1)
            table.insert(0, "next_layer", following.layer)
            tables.append((layer, table))
    return stacked(tables, source, rule)


def _pairs(flows_HNM: np.ndarray, most: int) -> pd.DataFrame:
    flows_NM = flows_HNM.sum(axis=0)
    expected_NM = independent_flows(flows_NM)
    beyond_P = deviance(flows_NM.ravel(), expected_NM.ravel())
    chosen_P = np.argsort(-beyond_P, kind="stable")[:most]
    at = np.unravel_index(chosen_P, flows_NM.shape)
    lifts = [
        np.where(independent_flows(table_NM) >= LEAST_EXPECTED, lift(table_NM), np.nan)[at]
        for table_NM in (flows_NM, *flows_HNM)
    ]
    names = ("lift", "lift_one_half", "lift_other_half")
    return pd.DataFrame(
        {
            "expert": at[0],
            "next_expert": at[1],
            "count": flows_NM[at],
            "expected": expected_NM[at],
            **dict(zip(names, lifts, strict=True)),
        }
    )


def _usual(flows: SetFlows, layer: int, top_k: int) -> float:
    """Share of both halves' selections that the other half's k most frequent experts have."""
    counts_HM = flows.arrays[layer]["next_counts_HM"]
    if not counts_HM.any(axis=1).all():
        return math.nan
    pairs = ((counts_HM[1], counts_HM[0]), (counts_HM[0], counts_HM[1]))
    hits = sum(recall_of_most_frequent(*pair, top_k) * pair[1].sum() for pair in pairs)
    return float(hits / counts_HM.sum())
