"""Pairs of experts and repeats, for the page.

Shape suffixes: L layers, N experts of the widest layer, S groups (task, subject, area), X lags,
P pairs.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.coactivation import deviance
from moe_probe.analysis.report.contents import Contents
from moe_probe.analysis.report.page.payload import Payload, round_float32
from moe_probe.analysis.tables.structure import layer_deff

MOST_PAIRS = 30_000
"""Pairs of all layers: the strongest of each where the table has more, for a file's size."""
_RATE_DIGITS = 4
_PAIR_DIGITS = 6
"""z is of the difference of count and expectation, which may be small."""
_RATES = ("first_choice", "any_overlap", "overlap_ratio")
_NULLS = ("first_choice", "any_overlap", "overlap")


def structure(contents: Contents, payload: Payload) -> None:
    """Add pairs of experts and repeats, and meta.has_rows, which both need."""
    sums = contents.analysis.sums
    payload.meta["has_rows"] = sums.pairs is not None
    if sums.pairs is not None:
        _pairs(contents, payload)
    if sums.overlaps is not None:
        _repeats(contents, payload)


def _pairs(contents: Contents, payload: Payload) -> None:
    """Add the strongest pairs, and the experts in an order in which related ones are neighbours.

    Table `pairs`: layer (its place), expert, other (expert < other), count and expected. Arrays
    pairs.order int [L, N] and pairs.deff float32 [L], which z needs.
    """
    sums = contents.analysis.sums
    table = contents.analysis.table("coactivation")
    table = table[table["expert"] < table["other"]]
    width = max(spec.num_experts for spec in sums.specs.values())
    most = max(MOST_PAIRS // len(sums.specs), 1)
    order_LN = np.tile(np.arange(width), (len(sums.specs), 1))
    kept = []
    for place, (layer, spec) in enumerate(sums.specs.items()):
        found = table[table["layer"] == layer]
        beyond = deviance(found["count"].to_numpy(), found["expected"].to_numpy())
        strongest = np.sort(np.argsort(-beyond, kind="stable")[:most])
        found = found.iloc[strongest].assign(layer=place)
        order_LN[place, : spec.num_experts] = expert_order(found, spec.num_experts)
        kept.append(found[["layer", "expert", "other", "count", "expected"]])
    payload.table("pairs", pd.concat(kept, ignore_index=True), digits=_PAIR_DIGITS)
    payload.array("pairs.order", order_LN)
    deff_L = np.array([layer_deff(sums, layer) for layer in sums.specs])
    payload.array("pairs.deff", round_float32(deff_L, _PAIR_DIGITS))


def expert_order(pairs: pd.DataFrame, num_experts: int) -> np.ndarray:
    """Return the experts of one layer, those that meet more often than expected side by side.

    Average linkage of the distance 1 / (1 + count / expected), where a pair that is not given, or
    of which fewer than 5 are expected, is at 1/2 as one that meets as often as expected.

    Args:
        pairs: expert, other, ratio.
        num_experts: N.

    Returns:
        int64 [N], a permutation.
    """
    if num_experts < 3:
        return np.arange(num_experts)
    from scipy.cluster.hierarchy import leaves_list, linkage

    distance_NN = np.full((num_experts, num_experts), 0.5)
    one, other = (pairs[name].to_numpy(np.int64) for name in ("expert", "other"))
    ratio_P = pairs["ratio"].to_numpy(np.float64, na_value=np.nan)
    distance_NN[one, other] = 1 / (1 + np.nan_to_num(ratio_P, nan=1.0))
    links = linkage(distance_NN[np.triu_indices(num_experts, 1)], "average")
    return np.asarray(leaves_list(links), np.int64)


def _repeats(contents: Contents, payload: Payload) -> None:
    """Add the table `repeats`, of single subjects the overlap ratio only.

    Table `repeats`: the rows of all subjects together. Arrays repeats.lags int [X];
    repeats.subject_pairs int and repeats.subject_overlap float32 [L, S, X].
    """
    sums = contents.analysis.sums
    assert sums.overlaps is not None
    table, lags = contents.analysis.table("repeats"), sums.overlaps.lags
    payload.array("repeats.lags", np.array(lags))
    rates = [f"{prefix}{name}" for prefix in ("", "other_token_") for name in _RATES]
    counted = ["pairs", "other_token_pairs"]
    counted += [f"{name}_null{own}" for name in _NULLS for own in ("", "_own")]
    pooled = table[table["subject"] == ""]
    payload.table("repeats", pooled[["layer", "lag", *counted, *rates]])
    # Rows come by layer, lag and subject.
    shape = len(sums.specs), len(lags), 1 + len(sums.subjects)
    for name, column in (("pairs", "pairs"), ("overlap", "overlap_ratio")):
        values_LSX = table[column].to_numpy().reshape(shape)[:, :, 1:].transpose(0, 2, 1)
        if name == "overlap":
            values_LSX = round_float32(values_LSX, _RATE_DIGITS)
        payload.array(f"repeats.subject_{name}", values_LSX)
