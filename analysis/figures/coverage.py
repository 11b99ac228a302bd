"""How soon the experts of a layer are seen, beside independent tokens.

Shape suffixes: L layers, X stream lengths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moe_probe.analysis.figures.style import (
    BLACK,
    BLUE,
    PALE,
    VERMILION,
    Absent,
    captioned,
    log_scale,
    needs_shuffles,
    needs_tokens,
    new_figure,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moe_probe.analysis.results import Analysis

_CURVES = {
    "seen": ("seen, documents shuffled", {"color": BLACK, "linestyle": "-"}),
    "own": ("independent tokens, own rates", {"color": BLUE, "linestyle": "--"}),
    "fair": ("independent tokens, fair rate", {"color": VERMILION, "linestyle": ":"}),
}

_LEAST = 0.05
"""Of missing experts: the mean over twenty orders knows no less."""


@styled
def coverage(analysis: Analysis) -> Figure:
    """Draw the experts seen, and those missing, after x tokens: median and range of layers."""
    needs_tokens(analysis)
    needs_shuffles(analysis)
    table = analysis.table("coverage")
    if "seen" not in table or table["seen"].isna().all():
        raise Absent(
            "no order of tokens is known: the trace has no rows, or counts some more often"
        )
    figure = new_figure(7, 3.2)
    left, right = figure.subplots(1, 2)
    experts = table["layer"].map(analysis.layers.set_index("layer")["num_experts"])
    for name, (label, look) in _CURVES.items():
        seen = _over_layers(table, table[name] / experts * 100)
        left.plot(seen.index, seen["median"], label=label, **look)
        missing = _over_layers(table, experts - table[name])
        right.plot(missing.index, missing["median"], **look)
        if name == "seen":
            _band(left, seen)
            _band(right, missing)
    for axes in (left, right):
        log_scale(axes, "x", table["tokens"].to_numpy())
        axes.set_xlabel("tokens of the stream (log scale)")
    left.set(title="experts seen (% of N)", ylim=(0, 102))
    right.set_title("experts still missing (log scale)")
    log_scale(right, "y", (experts - table["seen"]).to_numpy())
    right.set_ylim(bottom=_LEAST)
    left.legend(loc="lower right")
    shown = (
        "Experts seen in the first x tokens, mean over shuffled orders of the documents: lines are "
        "the median layer, the band is from the lowest to the highest one. Own rates above seen "
        "are bursts; fair rate above own rates are unequal loads."
    )
    return captioned(
        figure, shown, analysis, "independent tokens, at each expert's own rate or k/N"
    )


def _over_layers(table: pd.DataFrame, values: pd.Series[float]) -> pd.DataFrame:
    return values.groupby(table["tokens"]).agg(["median", "min", "max"])


def _band(axes: Any, over: pd.DataFrame) -> None:
    tokens_X = over.index.to_numpy()
    axes.fill_between(tokens_X, np.maximum(over["min"], 0), over["max"], color=PALE, linewidth=0)
