"""The sentence on how unevenly experts are loaded.

Shape suffixes: L layers, E experts of all layers.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from moe_probe.analysis.findings.wording import CHANCE
from moe_probe.analysis.metrics.tiers import RARE
from moe_probe.analysis.statistics.nulls import expected_indices
from moe_probe.analysis.tables.layers import mean_k

_INDICES = {
    "max_vio": "MaxVio, by how much a layer's busiest expert exceeds its fair share,",
    "cv": "CV, the standard deviation of a layer's loads over their mean,",
}
_DIGITS = {"max_vio": 2, "cv": 3}
_NOTHING_TO_TELL = "Every token selects every expert, so no load can be uneven."


def unevenness(
    experts: pd.DataFrame, layers: pd.DataFrame, low_E: np.ndarray, high_E: np.ndarray
) -> str:
    """Say in how many layers loads are less even than chance explains, and by how much.

    A layer is uneven if one of its experts is outside the limits, which finds single ones, or by
    `uniform_p` below 1 in 2,000, shared out over the layers (Bonferroni), which finds many that
    differ a little.

    Args:
        experts: layer, relative_load, ci_high.
        layers: All with selections: layer, num_experts, tokens, assignments, tokens_effective,
            documents, uniform_p, and max_vio and cv, each with `_null` and `_noise`.
        low_E, high_E: Relative loads that fair routing keeps experts between in all but one of
            2,000 traces; NaN where that is unknown.
    """
    layer_E, load_E = experts["layer"].to_numpy(), experts["relative_load"].to_numpy()
    is_busier_E = load_E > high_E
    is_unlikely_L = layers["uniform_p"].to_numpy() * len(layers) < CHANCE / 2
    outside = layer_E[is_busier_E | (load_E < low_E)]
    uneven = int((layers["layer"].isin(outside) | is_unlikely_L).sum())
    if uneven:
        values = _values(layers, "max_vio" if is_busier_E.any() else "cv")
        return f"Yes, beyond chance in {uneven} of {len(layers)} layers: {values}."
    most_L = layers["tokens"] * layers["num_experts"] / layers["assignments"]
    if (most_L == 1).all():
        return _NOTHING_TO_TELL
    verdict, worn = "No layer is loaded more unevenly than chance explains", _at_documents(layers)
    most_E = most_L.set_axis(layers["layer"]).loc[layer_E].to_numpy()
    if not ((low_E > 0) | (high_E < most_E)).any():
        verdict, worn = _why_unknown(layers), ""
    if (experts["ci_high"] < RARE).any():
        verdict = "There are too few documents to tell more than intervals of single experts do"
    return f"{verdict}: {_values(layers, 'max_vio', worn)}."


def _why_unknown(layers: pd.DataFrame) -> str:
    if layers["documents"].isna().all():
        return "Counts alone do not know documents, so unevenness cannot be told from chance"
    if (layers["documents"] > 1).any() and layers["tokens_effective"].isna().all():
        return "All documents have the same loads, which leaves no chance to compare with"
    return "There are too few documents to tell unevenness from chance"


def _at_documents(layers: pd.DataFrame) -> str:
    """Say what MaxVio is of T_eff tokens by chance: without it an even layer looks uneven."""
    facts = zip(layers["num_experts"], mean_k(layers), layers["tokens_effective"], strict=True)
    worn = [expected_indices(n, k, max(t, 1)).max_vio for n, k, t in facts if t > 0]
    return f" (of T_eff tokens {np.mean(worn):.2f})" if worn else ""


def _values(layers: pd.DataFrame, index: str, worn: str = "") -> str:
    digits, ordered = _DIGITS[index], layers.sort_values(index, kind="stable")
    least, most = ordered.iloc[0], ordered.iloc[-1]
    first = f"{least[index]:.{digits}f} (layer {int(least['layer'])}) to "
    text = (
        f"{_INDICES[index]} is {first if len(layers) > 1 else ''}"
        f"{most[index]:.{digits}f} (layer {int(most['layer'])}); "
        f"random routing gives about {layers[f'{index}_null'].mean():.{digits}f}{worn}"
    )
    noise = layers[f"{index}_noise"].mean()
    if not math.isnan(noise):
        text += f", and another draw of the documents moves it by about {noise:.{digits}f}"
    return text
