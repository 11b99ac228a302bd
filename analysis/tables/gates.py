"""The tables `weights`, `confidence` and `margins`, and what `layers` has of gate weights.

Shape suffixes: N experts of a layer, S groups (task, subject, area), Q quantities, H bins.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.confidence import confidence_table, margin_curve
from moe_probe.analysis.metrics.weights import (
    conditional_weight,
    conditional_weight_sd,
    contribution,
    gate_share,
    mean_mass,
    weight_frequency_correlation,
)
from moe_probe.analysis.sums import Sums
from moe_probe.analysis.tables.structure import by_layer, nothing


def weights(sums: Sums) -> pd.DataFrame:
    """Tabulate gate weights by expert; empty where none were captured.

    Returns:
        layer, expert
        gate_share  gamma, share of the layer's gate mass; fair value 1 / N
        mean_weight, weight_sd  over the tokens that select it, as captured
        mean_share  the same as a part of the token's total weight; 1 / k by chance
        contribution  gate mass per token
    """

    def table(layer: int) -> pd.DataFrame:
        assert sums.weights is not None
        summed = {name: array.sum(axis=0) for name, array in sums.weights.arrays[layer].items()}
        counts = sums.counts.layer(layer)
        mass_N, square_N = summed["weight_sum_SN"], summed["weight_square_sum_SN"]
        return pd.DataFrame(
            {
                "expert": np.arange(counts.spec.num_experts),
                "gate_share": gate_share(mass_N),
                "mean_weight": conditional_weight(mass_N, counts.counts_N),
                "weight_sd": conditional_weight_sd(mass_N, square_N, counts.counts_N),
                "mean_share": conditional_weight(summed["share_sum_SN"], counts.counts_N),
                "contribution": contribution(mass_N, counts.tokens),
            }
        )

    return by_layer(sums, table) if sums.weights is not None else nothing()


def gates_of_layer(sums: Sums, layer: int) -> dict[str, float]:
    """Return what `layers` has of a layer's gate weights; NaN where none were captured."""
    if sums.weights is None:
        return dict.fromkeys(("mean_mass", "weight_frequency_correlation"), np.nan)
    arrays, counts = sums.weights.arrays[layer], sums.counts.layer(layer)
    mean_N = conditional_weight(arrays["weight_sum_SN"].sum(axis=0), counts.counts_N)
    mass = mean_mass(arrays["mass_sum_S"].sum(), np.array(counts.tokens))
    correlation = weight_frequency_correlation(mean_N, counts.counts_N)
    return {"mean_mass": float(mass), "weight_frequency_correlation": correlation}


def confidence(sums: Sums) -> pd.DataFrame:
    """Tabulate how sure the router is: `confidence_table`; empty without captured weights."""

    def table(layer: int) -> pd.DataFrame:
        assert sums.confidence is not None
        spec, arrays = sums.specs[layer], sums.confidence.arrays[layer]
        return confidence_table(
            arrays["bins_QH"], arrays["moments_Q3"], spec.num_experts, spec.top_k
        )

    return by_layer(sums, table) if sums.confidence is not None else nothing()


def margins(sums: Sums) -> pd.DataFrame:
    """Tabulate how many tokens a small change of scores would route otherwise: `margin_curve`.

    Empty where the engine gave no logits.
    """

    def table(layer: int) -> pd.DataFrame:
        assert sums.confidence is not None
        arrays = sums.confidence.arrays[layer]
        return margin_curve(arrays["bins_QH"], arrays["moments_Q3"])

    return by_layer(sums, table) if sums.confidence is not None else nothing()
