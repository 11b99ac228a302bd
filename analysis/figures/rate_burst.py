"""Why experts idle: a low rate, or uses in bursts. One dot per expert.

Shape suffixes: X selection frequencies.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moe_probe.analysis.figures.named_points import numbered
from moe_probe.analysis.figures.style import (
    BLACK,
    GREY,
    PALE,
    Absent,
    captioned,
    needs_shuffles,
    needs_token_order,
    needs_tokens,
    new_figure,
    styled,
)
from moe_probe.analysis.metrics.rate_burst import independent_band

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moe_probe.analysis.results import Analysis

_BURSTY = math.log(5)
"""From here on the tier says `bursty`."""
_NAMED = 4
_GRID = 50
_ROOM = 0.2


@styled
def rate_burst(analysis: Analysis) -> Figure:
    """Draw rate deficit against burstiness; right is starved, above is used in bursts."""
    needs_tokens(analysis)
    needs_token_order(analysis)
    needs_shuffles(analysis)
    known = analysis.experts.dropna(subset=["rate_deficit", "burstiness"])
    if not len(known):
        raise Absent("no order of documents is known: the trace has no rows, or counts some twice")
    figure = new_figure(6.8, 4)
    axes = figure.add_subplot()
    _band(axes, analysis, known["rate_deficit"])
    axes.axvline(0, color=BLACK, linewidth=0.6)
    axes.axhline(0, color=BLACK, linewidth=0.6)
    axes.axhline(_BURSTY, color=GREY, linewidth=0.8, linestyle="--", label="bursty: 5 times own")
    # In no order, or the last layers would hide the first ones.
    mixed = known.iloc[np.random.default_rng(0).permutation(len(known))]
    place, layers = (mixed["rate_deficit"], mixed["burstiness"]), mixed["layer"]
    look = {"cmap": "cividis", "s": 6 if len(known) > 2000 else 12, "linewidths": 0}
    dots = axes.scatter(*place, c=layers, rasterized=True, zorder=2.5, **look)
    if layers.nunique() > 1:
        bar = figure.colorbar(dots, ax=axes, label="layer", pad=0.01, aspect=30)
        bar.ax.yaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("rate deficit, nats: rarely used →")
    axes.set_ylabel("burstiness, nats: used in bursts →")
    named = _named(known)
    which = zip(named["layer"], named["expert"], strict=True)
    names = [f"layer {layer}, expert {expert}" for layer, expert in which]
    numbered(axes, list(named["rate_deficit"]), list(named["burstiness"]), names)
    shown = (
        "Longest idle run, median over shuffled documents, over that of fair load: split into what "
        "the expert's rate explains (right) and what bursts do (up); the origin is healthy. "
        "Numbers: the rarest and the most bursty."
    )
    null = (
        "independent tokens at the expert's own rate; the band has 95 % of their longest runs, and "
        "more of medians over orders"
    )
    return captioned(figure, shown, analysis, null)


def _band(axes: Any, analysis: Analysis, deficits: pd.Series[float]) -> None:
    layers = analysis.layers
    tokens = int(layers["tokens"].max())
    fair = float((layers["assignments"] / layers["tokens"] / layers["num_experts"]).median())
    frequency_X = np.geomspace(0.5 / tokens, 0.9, _GRID)
    deficit_X, low_X, high_X = independent_band(frequency_X, fair, tokens)
    shown_X = (deficit_X >= deficits.min() - _ROOM) & (deficit_X <= deficits.max() + _ROOM)
    ends = (deficit_X[shown_X], low_X[shown_X], high_X[shown_X])
    axes.fill_between(*ends, color=PALE, linewidth=0, label="independent tokens")


def _named(known: pd.DataFrame) -> pd.DataFrame:
    """Return the experts with the largest values of either kind, each once."""
    ends = [known.nlargest(_NAMED, name) for name in ("rate_deficit", "burstiness")]
    return pd.concat(ends).drop_duplicates(["layer", "expert"])
