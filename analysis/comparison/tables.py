"""Tables of loads: every layer, expert and subject of a trace beside those of the reference.

Shape suffixes: N experts of a layer, S groups of a trace, B replicates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moe_probe.analysis.comparison.differences import (
    divergence,
    divergence_noise,
    index_difference_noise,
    load_differences,
)
from moe_probe.analysis.comparison.ranks import idle_overlap_p, kendall, resampled_spearman
from moe_probe.analysis.comparison.sums import Gathered, PairSums, SideSums
from moe_probe.analysis.metrics import imbalance
from moe_probe.analysis.metrics.divergence import total_variation_between
from moe_probe.analysis.metrics.frequency import relative_load
from moe_probe.analysis.metrics.stability import bottom_overlap, spearman
from moe_probe.analysis.statistics.multiplicity import benjamini_hochberg

LEVEL = 0.05
"""q-value below which a difference counts as found."""
_COMPARED = ("max_vio", "cv", "gini", "effective_experts")
_LEAST = 0.1


def experts_table(found: Gathered) -> pd.DataFrame:
    """Tabulate every expert's load in each trace that corresponds to the reference.

    Returns:
        trace  label of the compared trace
        layer, expert  the model's own indices
        reference_count, count  selections
        reference_load, relative_load  r; null without tokens
        difference  relative_load less reference_load
        ci_low, ci_high  95 % interval of it, over documents, paired where both traces hold them;
            null with fewer than two documents
        p_value, q_value  of no difference; adjusted over all experts of the compared trace. Null
            where nothing varies
        idle_in  reference, other or both; empty for an expert that both select
    """
    names = ("trace", "layer", "expert", "reference_count", "count", "reference_load")
    columns = [*names, "relative_load", "difference", "ci_low", "ci_high", "p_value", "q_value"]
    tables = []
    for pair in corresponding(found):
        layers = [_experts(found.reference, pair, layer) for layer in found.reference.counts.layers]
        table = pd.concat(layers, ignore_index=True)
        table["q_value"] = benjamini_hochberg(table["p_value"].to_numpy(np.float64))
        tables.append(table)
    columns.append("idle_in")
    return pd.concat(tables, ignore_index=True)[columns] if tables else empty_table(columns)


def _experts(reference: SideSums, pair: PairSums, layer: int) -> pd.DataFrame:
    first_N, second_N = (_load(side, layer) for side in (reference, pair.other))
    known = pair.layers.get(layer)
    blank_N = np.full(len(first_N), np.nan)
    variance_N, freedom = (blank_N, np.nan) if known is None else (known.variance_N, known.freedom)
    found = load_differences(first_N, second_N, variance_N, freedom)
    idle_in = np.select(
        [(first_N == 0) & (second_N == 0), first_N == 0, second_N == 0],
        ["both", "reference", "other"],
        "",
    )
    return pd.DataFrame(
        {
            "trace": pair.other.side.label,
            "layer": layer,
            "expert": np.arange(len(first_N)),
            "reference_count": first_N,
            "count": second_N,
            "reference_load": relative_load(first_N),
            "relative_load": relative_load(second_N),
            "difference": found.value_N,
            "ci_low": found.low_N,
            "ci_high": found.high_N,
            "p_value": found.p_value_N,
            "idle_in": idle_in,
        }
    )


def layers_table(found: Gathered, experts: pd.DataFrame) -> pd.DataFrame:
    """Tabulate every layer of each trace that corresponds to the reference.

    Args:
        found: The sums.
        experts: From `experts_table`.

    Returns:
        trace, layer  as above
        divergence_bits, divergence_noise_bits  Jensen-Shannon divergence of the loads, 0 to 1, and
            what noise over documents alone gives
        total_variation  half the sum of differences of shares: selections that would have to move
        spearman, spearman_resampled  rank correlation of the loads; that of two resamples of the
            reference's documents, the most that independent text could show
        kendall  tau-b of the loads
        least_overlap, least_overlap_null  experts in common among the least used tenth of both, as
            a share, those tied at its edge as if drawn at random; by chance
        differing_experts  with q_value below 0.05; null without documents
        idle_reference, idle_other, idle_both  experts that no token selects in one trace alone, and
            in both
        idle_p  chance that random sets have as many in common; null where a trace has none
        <index>_reference, <index>, <index>_difference, <index>_noise  for max_vio, cv, gini and
            effective_experts: both values, second less first, and the sd of that over resampled
            documents, the same ones in both traces
    """
    rows = []
    differing = experts[experts["q_value"] < LEVEL].groupby(["trace", "layer"]).size()
    for pair in corresponding(found):
        for layer in found.reference.counts.layers:
            row = _layer(found.reference, pair, layer)
            key = (pair.other.side.label, layer)
            row["differing_experts"] = int(differing.get(key, 0)) if pair.layers else None
            rows.append(row)
    if not rows:
        return empty_table(["trace", "layer"])
    return pd.DataFrame(rows).astype({"differing_experts": "Int64"})


def _layer(reference: SideSums, pair: PairSums, layer: int) -> dict[str, Any]:
    first_N, second_N = (_load(side, layer) for side in (reference, pair.other))
    known = pair.layers.get(layer)
    both_2N = np.stack([first_N, second_N])
    idle = idle_sets(both_2N)
    number = max(round(_LEAST * len(first_N)), 1)
    # One document, drawn again and again, does not vary.
    varies = known is not None and known.freedom >= 1
    replicates = [side.layers[layer].replicates_BN for side in (reference, pair.other) if varies]
    row = {
        "trace": pair.other.side.label,
        "layer": layer,
        "divergence_bits": divergence(both_2N),
        "divergence_noise_bits": np.nan
        if known is None
        else divergence_noise(known.variance_N, first_N, second_N),
        "total_variation": float(total_variation_between(both_2N)[0, 1]),
        "spearman": float(spearman(first_N, second_N)),
        "spearman_resampled": resampled_spearman(replicates[0]) if replicates else np.nan,
        "kendall": kendall(first_N, second_N),
        "least_overlap": float(bottom_overlap(first_N, second_N, number)),
        "least_overlap_null": number / len(first_N),
        "differing_experts": None,
        **idle,
        "idle_p": _idle_p(idle, len(first_N)),
    }
    for name in _COMPARED:
        index = getattr(imbalance, name)
        values = [float(index(counts_N)) for counts_N in (first_N, second_N)]
        row |= {
            f"{name}_reference": values[0],
            name: values[1],
            f"{name}_difference": values[1] - values[0],
            f"{name}_noise": index_difference_noise(index, *replicates) if replicates else np.nan,
        }
    return row


def idle_sets(both_2N: np.ndarray) -> dict[str, int]:
    """Experts that one or both select for no token; none where a trace has no tokens at all."""
    idle_2N = (both_2N == 0) & both_2N.any(axis=1).all()
    both = int(idle_2N.all(axis=0).sum())
    alone = idle_2N.sum(axis=1) - both
    return {"idle_reference": int(alone[0]), "idle_other": int(alone[1]), "idle_both": both}


def _idle_p(idle: dict[str, int], num_experts: int) -> float:
    names = ("idle_reference", "idle_other", "idle_both")
    reference, other, both = (idle[name] for name in names)
    return idle_overlap_p(reference, other, both, num_experts)


def corresponding(found: Gathered) -> list[PairSums]:
    """Return the traces whose layers and experts are those of the reference."""
    return [pair for pair in found.pairs if pair.corresponds]


def _load(side: SideSums, layer: int) -> np.ndarray:
    return side.counts.layer(layer).counts_N


def empty_table(columns: list[str]) -> pd.DataFrame:
    """Return a table without rows."""
    return pd.DataFrame(columns=columns)
