"""The tables `correctness` and `variance`: what single documents tell of an expert.

Shape suffixes: none.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.statistics.multiplicity import benjamini_hochberg
from moe_probe.analysis.sums import Sums


def correctness(sums: Sums) -> pd.DataFrame:
    """Tabulate how much more correctly answered documents select each expert, within subjects.

    The columns of `correctness_table`, with q_value, Benjamini-Hochberg over all experts.
    """
    states = sums.layers.items()
    tables = [state.correctness.assign(layer=layer) for layer, state in states]
    names = ["layer", "expert", "difference", "standard_error", "z", "q_value"]
    if not tables:
        return pd.DataFrame(columns=names)
    table = pd.concat(tables, ignore_index=True)
    table["q_value"] = benjamini_hochberg(table["p_value"].to_numpy(np.float64))
    return table[names]


def variance(sums: Sums) -> pd.DataFrame:
    """Tabulate which share of the documents' variance subject, area and length explain (E8)."""
    tables = [state.variance.assign(layer=layer) for layer, state in sums.layers.items()]
    names = ["layer", "expert", "subject", "area", "length"]
    return pd.concat(tables, ignore_index=True)[names] if tables else pd.DataFrame(columns=names)
