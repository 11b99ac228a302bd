"""The tables `subject_coverage` and `first_position`: where experts are absent, or found alone.

Shape suffixes: S groups (task, subject, area), N experts of a layer, B position bins.
"""

from __future__ import annotations

import pandas as pd

from moe_probe.analysis.metrics.positions import first_position_experts
from moe_probe.analysis.metrics.presence import subject_coverage_table
from moe_probe.analysis.sums import Sums
from moe_probe.analysis.tables.structure import by_layer


def subject_coverage(sums: Sums) -> pd.DataFrame:
    """Tabulate how many experts each subject does without: `subject_coverage_table`, by layer."""
    return by_layer(
        sums, lambda layer: subject_coverage_table(*sums.by_group(layer), list(sums.subjects))
    )


def first_position(sums: Sums) -> pd.DataFrame:
    """Tabulate the experts bound to position 0: `first_position_experts`, by layer."""
    columns = ["layer", "expert", "count", "share", "share_null"]
    if sums.positions is None:
        return pd.DataFrame(columns=columns)
    arrays = sums.positions.arrays

    def table(layer: int) -> pd.DataFrame:
        counts_BN = arrays[layer]["position_counts_BN"]
        return first_position_experts(counts_BN, arrays[layer]["position_tokens_B"])

    return by_layer(sums, table)
