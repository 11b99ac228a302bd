"""The tables `batches` and `coverage`: imbalance and experts seen, by how much text there is.

Shape suffixes: N experts of a layer, B batch sizes, R orders; 5 is the statistics of `BatchStats`.
"""

from __future__ import annotations

import pandas as pd

from moe_probe.analysis.accumulators.locality import BATCH_SIZES
from moe_probe.analysis.metrics.coverage import coverage_curve
from moe_probe.analysis.metrics.decomposition import batch_imbalance
from moe_probe.analysis.sums import Sums


def batches(sums: Sums) -> pd.DataFrame:
    """Tabulate imbalance against batch size, tokens in recording order: `batch_imbalance`."""
    if sums.batches is None:
        return pd.DataFrame(columns=["layer"])
    tables = []
    for layer, spec in sums.specs.items():
        stats_B5 = sums.batches.arrays[layer]["stats_B5"]
        table = batch_imbalance(stats_B5, BATCH_SIZES, spec.num_experts, sums.set_sizes(layer))
        table.insert(0, "layer", layer)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def coverage(sums: Sums) -> pd.DataFrame:
    """Tabulate how many experts the first x tokens select, beside both nulls: `coverage_curve`."""
    tables = []
    for layer, state in sums.layers.items():
        if state.idle is not None:
            counts = sums.counts.layer(layer)
            table = coverage_curve(state.idle.first_seen_RN, counts.counts_N, counts.tokens)
            table.insert(0, "layer", layer)
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["layer"])
