"""Imbalance over layers: under every counting rule, and split into unfair and specialised.

Shape suffixes: L layers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moe_probe.analysis.figures.style import (
    BLACK,
    BLUE,
    COLOURS,
    DASHES,
    GREY,
    MARKERS,
    ORANGE,
    PALE,
    Absent,
    captioned,
    clamp,
    layer_axis,
    log_scale,
    needs_tokens,
    new_figure,
    styled,
)
from moe_probe.analysis.metrics.noise import effective_null
from moe_probe.analysis.tables.layers import of_fixed_k

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moe_probe.analysis.results import Analysis

_PANELS = {
    "max_vio": "MaxVio (log scale)",
    "effective_experts": "effective experts",
    "cv": "coefficient of variation (log scale)",
    "unseen": "experts never selected",
}
_LOGARITHMIC = ("max_vio", "cv")
_TWO_SIDED = 1.96
# With one mark, which is all there is of a single layer.
_NULL: dict[str, Any] = {"linestyle": ":", "linewidth": 0.9, "marker": "_", "markevery": [0]}
_BITS = 1 / math.log(2)


@styled
def imbalance_profile(analysis: Analysis) -> Figure:
    """Draw four indices over layers: the rule asked for with its noise, other rules, and N0."""
    needs_tokens(analysis)
    layers, rules = analysis.layers, analysis.table("rules")
    rule = str(analysis.sums.settings.rule)
    figure = new_figure(clamp(4 + len(layers) * 0.12, 7, 10), 5)
    panels = figure.subplots(2, 2, sharex=True).ravel()
    for axes, (name, title) in zip(panels, _PANELS.items(), strict=True):
        drawn = [_own(axes, analysis, name, rule)]
        if name in rules:
            drawn += _others(axes, rules, name, rule)
        axes.set_title(title)
        if name in _LOGARITHMIC:
            log_scale(axes, "y", np.concatenate(drawn))
    panels[-1].set_ylim(top=max(panels[-1].get_ylim()[1], 1))
    panels[-1].yaxis.get_major_locator().set_params(integer=True)
    for axes in panels[2:]:
        layer_axis(axes)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6)
    shown = (
        "Imbalance of every layer under each counting rule; the band is 1.96 sd over resampled "
        "documents."
    )
    null = "uniform choice of k experts by T tokens, dotted in the colour of each rule"
    if analysis.origin["tokens_effective"]:
        null += ", or by T_eff"
    return captioned(figure, shown, analysis, null)


def _own(axes: Any, analysis: Analysis, name: str, rule: str) -> np.ndarray:
    layers = analysis.layers
    layer_L, value_L = layers["layer"].to_numpy(), _floats(layers[name])
    noise_L = _TWO_SIDED * _floats(layers[f"{name}_noise"])
    low_L = np.maximum(value_L - noise_L, 0)
    axes.fill_between(layer_L, low_L, value_L + noise_L, color=PALE, linewidth=0)
    axes.plot(layer_L, value_L, color=BLACK, marker="o", markersize=2.5, label=rule, zorder=3)
    null_L = _floats(layers[f"{name}_null"])
    axes.plot(layer_L, null_L, color=BLACK, label="by chance", **_NULL)
    facts = ("num_experts", "top_k", "tokens", "deff_mean")
    columns = (of_fixed_k(layers, analysis.sums)[fact] for fact in facts)
    nulls = [effective_null(*row) for row in zip(*columns, strict=True)]
    effective_L = np.array([getattr(null, name) for null in nulls])
    if not np.isnan(effective_L).all():
        worn = {**_NULL, "linestyle": "--"}
        axes.plot(layer_L, effective_L, color=GREY, label="by chance at T_eff", **worn)
    return np.concatenate([value_L, null_L])


def _others(axes: Any, rules: pd.DataFrame, name: str, rule: str) -> list[np.ndarray]:
    drawn = []
    names = [other for other in rules["rule"].unique() if other != rule]
    for number, other in enumerate(names):
        rows = rules[(rules["rule"] == other) & (rules["assignments"] > 0)]
        colour = COLOURS[number]
        look = {"linestyle": DASHES[number + 1], "marker": MARKERS[number + 1], "linewidth": 0.9}
        axes.plot(rows["layer"], rows[name], color=colour, label=other, markersize=2.5, **look)
        axes.plot(rows["layer"], rows[f"{name}_null"], color=colour, **_NULL)
        drawn += [_floats(rows[name]), _floats(rows[f"{name}_null"])]
    return drawn


@styled
def specialization(analysis: Analysis) -> Figure:
    """Draw the split of imbalance within subjects (D19), and the second part against chance."""
    needs_tokens(analysis)
    table = analysis.specialization
    counted = [(analysis.sums.by_group(layer)[1] > 0).sum() for layer in table["layer"]]
    if max(counted) < 2:
        raise Absent("all tokens are of one subject")
    figure = new_figure(clamp(4 + len(table) * 0.12, 6.5, 10), 5)
    bars, axes = figure.subplots(2, 1, sharex=True)
    layer_L = table["layer"].to_numpy()
    pooled_L, information_L = table["pooled_kl"] * _BITS, table["mutual_information_bits"]
    edge = {"width": 0.8, "edgecolor": "white", "linewidth": 0.3}
    bars.bar(layer_L, pooled_L, color=BLUE, label="unfair in all text: KL(q || uniform)", **edge)
    label = "specialised: I(expert; subject)"
    bars.bar(
        layer_L, information_L, bottom=pooled_L, color=ORANGE, hatch="////", label=label, **edge
    )
    bars.set_ylabel("bits per selection")
    bars.set_title("imbalance within subjects")
    bars.margins(y=0.2)
    bars.legend(loc="upper right", ncols=2)
    _against_chance(axes, table, layer_L)
    layer_axis(axes)
    shown = (
        "Above: imbalance within subjects is imbalance of all text plus what experts tell of the "
        "subject, an identity. Below: the second part in documents without shared prefixes."
    )
    null = "subjects dealt out anew among the documents, from the mean to the 95 % quantile"
    return captioned(figure, shown, analysis, null)


def _against_chance(axes: Any, table: pd.DataFrame, layer_L: np.ndarray) -> None:
    axes.vlines(layer_L, table["null"], table["null_95"], color=GREY, linewidth=0.8)
    line = {"color": GREY, "linestyle": "none", "markersize": 5}
    axes.plot(layer_L, table["null"], marker="_", label="by chance, up to 95 %", **line)
    axes.plot(layer_L, table["null_95"], marker="_", **line)
    axes.plot(layer_L, table["documents_bits"], "o", color=ORANGE, label="I(expert; subject)")
    axes.margins(y=0.35)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("bits per selection")
    axes.set_title("specialisation against chance")
    axes.legend(loc="upper right", ncols=2)


def _floats(column: pd.Series[Any]) -> np.ndarray:
    return column.to_numpy(np.float64, na_value=np.nan)
