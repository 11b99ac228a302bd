"""The table `devices`: balance between expert-parallel devices, beside fair routing.

Shape suffixes: L layers, N experts of a layer.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.devices import (
    balancedness,
    balancedness_null,
    device_null,
    group_limit,
)
from moe_probe.analysis.statistics.clusters import effective_tokens
from moe_probe.analysis.statistics.nulls import expected_indices
from moe_probe.analysis.sums import Sums
from moe_probe.analysis.tables.design_effects import mean_deff

DEVICES = (2, 4, 8, 16, 32, 64)


def devices(sums: Sums) -> pd.DataFrame:
    """Tabulate balance over expert-parallel devices in the definitions in use: `balancedness`.

    Experts lie on devices in contiguous groups; the time unit is the whole trace. Device counts
    that do not divide every layer's experts are left out. After all of them each has its
    `<name>_null`, fair routing of T_eff tokens: `balancedness_null`.
    """
    counts_LN, rows = [counts.counts_N for counts in sums.counts.by_layer()], []
    facts = [_fair(sums, layer) for layer in sums.specs if sums.counts.layer(layer).tokens]
    vio_L = [expected_indices(*fact).max_vio for fact in facts]
    limits = [group_limit(sums.specs[n]) for n in sums.specs if sums.counts.layer(n).tokens]
    for number in fitting_devices(sums):
        cv_L = [
            device_null(n, k, number, tokens, limited).cv
            for (n, k, tokens), limited in zip(facts, limits, strict=True)
        ]
        null = asdict(balancedness_null(np.array(cv_L), np.array(vio_L), number))
        row = {"devices": number, **asdict(balancedness(counts_LN, number))}
        rows.append(row | {f"{name}_null": value for name, value in null.items()})
    return pd.DataFrame(rows, columns=None if rows else ["devices"])


def _fair(sums: Sums, layer: int) -> tuple[int, float, float]:
    """Return N of a layer, and k and T_eff at which its nulls are taken; T where it is unknown."""
    spec, sizes, tokens = sums.specs[layer], sums.set_sizes(layer), sums.counts.layer(layer).tokens
    known = effective_tokens(tokens, mean_deff(sums.layers.get(layer)))
    effective = sizes.null_tokens(float(known) if known > 0 else tokens)
    return spec.num_experts, sizes.null_k, max(effective, 1.0)


def fitting_devices(sums: Sums) -> list[int]:
    """Return the numbers of devices over which the experts of every layer split evenly."""
    sizes = [spec.num_experts for spec in sums.specs.values()]
    return [d for d in DEVICES if all(size % d == 0 and size > d for size in sizes)]
