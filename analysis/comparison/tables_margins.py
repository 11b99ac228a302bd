"""Tables of what two runs disagree about: which ranks, and at which margins.

Shape suffixes: K slots, H bins of margins; 2 is equal and different sets.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from moe_probe.analysis.comparison.agreement_sums import AgreementSums
from moe_probe.analysis.comparison.sums import Gathered, PairSums
from moe_probe.analysis.comparison.tables_agreement import agreeing, table_of
from moe_probe.analysis.metrics.confidence import EDGES, QUANTILES, quantiles


def lost_slots(found: Gathered) -> pd.DataFrame:
    """Tabulate which ranks of the reference's selection the other run lacks.

    Rounding exchanges experts near the edge of the selection, so it loses the last slots. A fault
    loses all alike.

    Returns:
        trace, layer  of the compared trace
        slot  from 1; of the reference. No rows where its slots are no ranks
        lost, share  tokens whose expert of that slot the other run lacks
        share_of_lost  of all lost selections; 1/k if slots do not matter. Null if none is lost
    """
    rows = []
    for pair, sums in agreeing(found):
        if found.reference.side.trace.run.get("slot_order", "unknown") == "unknown":
            continue
        for layer, each in sums.layers.items():
            total = int(each.lost_K.sum())
            for slot, lost in enumerate(each.lost_K.tolist(), start=1):
                facts = {"trace": pair.other.side.label, "layer": layer, "slot": slot}
                part = lost / total if total else np.nan
                rows.append(
                    facts | {"lost": lost, "share": lost / sums.tokens, "share_of_lost": part}
                )
    return table_of(rows, ["trace", "layer", "slot"])


def margins(found: Gathered) -> pd.DataFrame:
    """Tabulate router margins of tokens with equal and with different sets.

    Returns:
        trace, layer  of the compared trace
        margins_of  the trace whose router scalars were recorded; the reference if both were
        same_tokens, same_q05 to same_q95  tokens with equal sets and quantiles of their margins
        different_tokens, different_q05 to different_q95  those with different sets
        smaller  chance that a token with different sets has a smaller margin than one with equal
            sets; 0.5 by chance
    """
    rows = []
    for pair, sums, layer, bins_2H in _margins(found):
        row: dict[str, Any] = {"trace": pair.other.side.label, "layer": layer}
        row["margins_of"] = sums.margins_of
        for name, bins_H in zip(("same", "different"), bins_2H, strict=True):
            row[f"{name}_tokens"] = int(bins_H.sum())
            values = quantiles(bins_H, EDGES["margin"], QUANTILES).tolist()
            names = (f"{name}_q{round(100 * share):02d}" for share in QUANTILES)
            row |= zip(names, values, strict=True)
        rows.append(row | {"smaller": chance_of_smaller(bins_2H[1], bins_2H[0])})
    return table_of(rows, ["trace", "layer", "margins_of"])


def margin_bins(found: Gathered) -> pd.DataFrame:
    """Tabulate how often sets differ at which margin.

    Returns:
        trace, layer  of the compared trace
        margin_low, margin_high  an octave, in units of the router's logits
        tokens  with such a margin
        different  share of them with different sets
    """
    rows = []
    for pair, _, layer, bins_2H in _margins(found):
        # Four bins are an octave; the first bin has everything below.
        octaves_2 = bins_2H.reshape(2, -1, 4).sum(axis=2)
        edges = EDGES["margin"][::4]
        for place in np.flatnonzero(octaves_2.sum(axis=0)).tolist():
            same, different = octaves_2[:, place].tolist()
            facts = {"trace": pair.other.side.label, "layer": layer}
            bounds = {"margin_low": float(edges[place]), "margin_high": float(edges[place + 1])}
            share = different / (same + different)
            rows.append(facts | bounds | {"tokens": same + different, "different": share})
    return table_of(rows, ["trace", "layer", "margin_low"])


def chance_of_smaller(first_H: np.ndarray, second_H: np.ndarray) -> float:
    """Return P(x < y) + P(x = y) / 2 of values x and y from two histograms with equal bins.

    The area under the ROC curve; NaN where a histogram is empty. Source: Mann and Whitney (1947).
    """
    number = float(first_H.sum()) * float(second_H.sum())
    above_H = second_H.sum() - np.cumsum(second_H)
    return float(first_H @ (above_H + second_H / 2)) / number if number else math.nan


def _margins(found: Gathered) -> list[tuple[PairSums, AgreementSums, int, np.ndarray]]:
    return [
        (pair, sums, layer, each.margins_2H)
        for pair, sums in agreeing(found)
        for layer, each in sums.layers.items()
        if each.margins_2H.any()
    ]
