"""How often a token repeats the experts of earlier ones, beside what independent tokens do.

Shape suffixes: N experts of a layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moe_probe.analysis.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    PALE,
    VERMILION,
    Absent,
    captioned,
    clamp,
    layer_axis,
    log_scale,
    needs_tokens,
    new_figure,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moe_probe.analysis.results import Analysis

_LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "all": ("all pairs of tokens", {"color": BLACK, "marker": "o"}),
    "other": ("different token ids only", {"color": GREEN, "marker": "s", "linestyle": "-."}),
    "own": ("independent tokens, own rates", {"color": BLUE, "marker": "_", "linestyle": "--"}),
    "fair": (
        "independent tokens, fair rate",
        {"color": VERMILION, "marker": "_", "linestyle": ":"},
    ),
}


@styled
def repeats(analysis: Analysis) -> Figure:
    """Draw repeats of neighbours over layers, and the overlap of more distant tokens."""
    needs_tokens(analysis)
    table = analysis.repeats
    if "pairs" not in table:
        raise Absent("the trace has no rows, so which tokens follow each other is unknown")
    pooled = table[table["subject"] == ""]
    if not (pooled["pairs"] > 0).any():
        raise Absent("no two counted tokens of one document follow each other")
    near, near_by_subject = (rows[rows["lag"] == 1] for rows in (pooled, table))
    figure = new_figure(clamp(5 + near["layer"].nunique() * 0.09, 7.5, 10), 3)
    overlap, first, distant = figure.subplots(1, 3)
    _over_layers(overlap, _overlap_lines(near), near["layer"])
    _subjects(overlap, near_by_subject, "overlap_ratio")
    overlap.set_title("common experts / k")
    _over_layers(first, _first_choice_lines(near), near["layer"])
    _subjects(first, near_by_subject, "first_choice")
    first.set_title("equal first choice")
    _distant(distant, pooled)
    for axes in (overlap, first, distant):
        axes.set_ylim(0, 1.03 * axes.get_ylim()[1])
    handles, labels = overlap.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    shown = (
        "How often a token repeats the experts of the token before it in its document, and, on "
        "the right, of tokens further back (median layer). Bands are from the lowest to the "
        "highest subject, and on the right from the lowest to the highest layer."
    )
    null = "independent tokens, at each expert's own rate or at k/N"
    return captioned(figure, shown, analysis, null)


def _overlap_lines(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    return {
        "all": rows["overlap_ratio"].to_numpy(),
        "other": rows["other_token_overlap_ratio"].to_numpy(),
        "own": rows["overlap_null_own"].to_numpy(),
        "fair": rows["overlap_null"].to_numpy(),
    }


def _first_choice_lines(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    # Without known slots there are no first choices either: an empty panel says so.
    return {
        "all": rows["first_choice"].to_numpy(),
        "other": rows["other_token_first_choice"].to_numpy(),
        "own": rows["first_choice_null_own"].to_numpy(),
        "fair": rows["first_choice_null"].to_numpy(),
    }


def _over_layers(axes: Any, lines: dict[str, np.ndarray], layers: pd.Series[int]) -> None:
    for name, values in lines.items():
        label, look = _LINES[name]
        if not np.isnan(values).all():
            axes.plot(layers, values, label=label, markersize=2.5, **look)
    layer_axis(axes)


def _subjects(axes: Any, rows: pd.DataFrame, column: str) -> None:
    some = rows[rows["subject"] != ""].groupby("layer")[column].agg(["min", "max"])
    ends = (some.index.to_numpy(), some["min"], some["max"])
    axes.fill_between(*ends, color=PALE, linewidth=0, label="from lowest to highest", zorder=1)


def _distant(axes: Any, pooled: pd.DataFrame) -> None:
    lags = pooled["lag"].unique()
    medians = pd.DataFrame(_overlap_lines(pooled)).groupby(pooled["lag"].to_numpy()).median()
    for name, (_, look) in _LINES.items():
        if medians[name].notna().any():
            axes.plot(lags, medians[name], markersize=2.5, **look)
    over = pooled.groupby("lag")["overlap_ratio"].agg(["min", "max"])
    axes.fill_between(over.index.to_numpy(), over["min"], over["max"], color=PALE, linewidth=0)
    log_scale(axes, "x", lags)
    axes.set_xticks(lags, [str(lag) for lag in lags])
    axes.set(title="common experts / k", xlabel="lag, tokens (log scale)")
