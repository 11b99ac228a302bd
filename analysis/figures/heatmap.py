"""Heat maps of layers by experts: relative load, and the longest idle run.

Shape suffixes: L layers, M experts of the widest layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moe_probe.analysis.figures.style import (
    PALE,
    Absent,
    captioned,
    clamp,
    grid,
    needs_token_order,
    needs_tokens,
    new_figure,
    styled,
)
from moe_probe.analysis.statistics.idle_null import expected_longest_run
from moe_probe.analysis.statistics.undefined import positive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moe_probe.analysis.results import Analysis

_CLIP = 3.0
# Outside the map's red, white and blue for every kind of colour vision.
_IDLE = "#ffd400"
_MAX_LABELS = 30
_LEAST_MARK = 5.0
_NO_EXPERT = " Hatched: no such expert."


@styled
def relative_load(analysis: Analysis) -> Figure:
    """Draw log2 of every expert's relative load; 0 is a fair share, colours end at 1/8 and 8.

    An expert that was never selected is yellow with a cross; where a layer has fewer experts than
    the widest one the map is hatched. Layers carry the model's own indices.
    """
    from matplotlib import colormaps

    needs_tokens(analysis)
    load_LM = grid(analysis.experts, "relative_load")
    log_load_LM, is_idle_LM = np.log2(positive(load_LM)), load_LM == 0
    height, width = load_LM.shape
    figure = new_figure(clamp(2.5 + width * 0.035, 6.5, 12), clamp(1.3 + height * 0.11, 2, 12))
    axes = figure.add_subplot()
    image = _map(
        axes,
        # Finite, since what is not is drawn as absent.
        np.where(is_idle_LM, -2 * _CLIP, np.clip(log_load_LM, -_CLIP, _CLIP)),
        cmap=colormaps["RdBu_r"].with_extremes(under=_IDLE),
        vmin=-_CLIP,
        vmax=_CLIP,
    )
    _mark(axes, is_idle_LM)
    _label(axes, analysis.layers["layer"])
    bar = figure.colorbar(image, ax=axes, ticks=range(-3, 4), pad=0.01, aspect=30)
    bar.ax.set_yticklabels(["≤ 1/8", "1/4", "1/2", "1", "2", "4", "≥ 8"])
    bar.set_label("relative load (log scale)")
    shown = "Relative load r = N c / A; 1 is a fair share."
    if is_idle_LM.any():
        shown += f" Yellow with a cross: never selected ({int(is_idle_LM.sum()):,} experts)."
    shown += _NO_EXPERT * _is_ragged(analysis)
    if not (analysis.layers["assignments"] > 0).all():
        shown += " A layer hatched from end to end: nothing was selected in it."
    null = "tokens that choose k of N experts uniformly, r = 1 but for noise"
    return captioned(figure, shown, analysis, null)


@styled
def longest_idle(analysis: Analysis) -> Figure:
    """Draw every expert's longest idle run in mean distances between fair selections.

    On the left in the token order asked for, on the right the median over shuffled orders of the
    documents: what is long on the left alone is due to the order. The colour bar names what chance
    gives and the windows of `idle_windows`.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    needs_tokens(analysis)
    needs_token_order(analysis)
    fair_LM = _fair_rates(analysis)
    names = ("longest_idle", "longest_idle_shuffled")
    maps = [grid(analysis.experts, name) * fair_LM for name in names]
    titles = [f"order: {analysis.sums.settings.order}", "median over shuffled documents"]
    shown = [pair for pair in zip(maps, titles, strict=True) if not np.isnan(pair[0]).all()]
    if not shown:
        raise Absent("idle runs are unknown: the trace has no rows, or counts some more than once")
    if not any((run_LM > 0).any() for run_LM, _ in shown):
        raise Absent("no expert was idle: every token selects all of them")
    height, width = fair_LM.shape
    figure = new_figure(
        clamp(2.5 + len(shown) * width * 0.02, 7, 12), clamp(1.5 + height * 0.1, 2.4, 12)
    )
    every = np.concatenate([positive(run_LM).ravel() for run_LM, _ in shown])
    low, high = float(np.nanmin(every)), float(np.nanmax(every))
    # More shades could not be told apart, and two maps of them make a large file.
    colours = colormaps["cividis"].resampled(64)
    norm = LogNorm(low, max(high, low * 1.01))
    is_idle_LM = grid(analysis.experts, "count") == 0
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (run_LM, title) in zip(panels, shown, strict=True):
        image = _map(axes, np.maximum(run_LM, low), cmap=colours, norm=norm)
        axes.set_title(title)
        _mark(axes, is_idle_LM)
        _label(axes, analysis.layers["layer"])
    for axes in panels[1:]:
        axes.set_ylabel("")
    bar = figure.colorbar(image, ax=list(panels), pad=0.01, aspect=30)
    bar.set_label("fair intervals (log scale)")
    _ticks(bar, analysis, fair_LM)
    text = (
        "Longest idle run in fair intervals: the mean distance between two selections under even "
        "load."
    )
    if len(shown) > 1:
        text += " Long in the left map alone: the order made the run."
    text += " The scale names what chance gives in one stream of all tokens, and windows in tokens."
    if is_idle_LM.any():
        text += f" Cross: never selected ({int(is_idle_LM.sum()):,} experts), the run is all T"
        if analysis.sums.settings.order.kind == "request-local":
            text += " and, in the order request-local, the longest document or prefix"
        text += "."
    text += _NO_EXPERT * _is_ragged(analysis)
    return captioned(figure, text, analysis, "independent tokens at the fair rate k/N")


def _map(axes: Any, values_LM: np.ndarray, **options: Any) -> Any:
    # Behind the image, which lets it through where there is no expert.
    axes.patch.set(facecolor=PALE, edgecolor="white", hatch="////")
    # Without interpolation a cell is one pixel of the SVG's image, however large it is drawn.
    return axes.imshow(values_LM, aspect="auto", interpolation="none", **options)


def _mark(axes: Any, is_marked_LM: np.ndarray) -> None:
    row, column = np.nonzero(is_marked_LM)
    if len(row):
        height, width = is_marked_LM.shape
        figure = axes.figure
        columns = axes.get_subplotspec().get_gridspec().ncols
        cell = min(
            figure.get_figwidth() * 0.8 * 72 / width / columns,
            figure.get_figheight() * 0.7 * 72 / height,
        )
        # Larger than a cell that is too small to see.
        cell = max(cell, _LEAST_MARK)
        size, line = (0.6 * cell) ** 2, 0.12 * cell
        options = {"marker": "x", "color": "black", "rasterized": True}
        axes.scatter(column, row, s=size, linewidths=line, **options)


def _label(axes: Any, layers: pd.Series[int]) -> None:
    step = -(-len(layers) // _MAX_LABELS)
    rows = range(0, len(layers), step)
    axes.set_yticks(list(rows), [str(layers.iloc[row]) for row in rows])
    axes.set_ylabel("layer")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("expert")


def _ticks(bar: Any, analysis: Analysis, fair_LM: np.ndarray) -> None:
    """Label a colour bar with what chance gives, with the windows, and where there is room."""
    layers, low, high = analysis.layers, bar.norm.vmin, bar.norm.vmax
    fair = positive(np.nanmedian(fair_LM))
    chance = expected_longest_run(fair, layers["tokens"].max()) * fair
    marks = {float(chance): f"{chance:,.3g} (chance)"}
    if np.nanmax(fair_LM) == np.nanmin(fair_LM):
        windows = analysis.sums.settings.windows
        marks |= {float(w * fair): f"{w * fair:,.4g} ({w:,} tokens)" for w in windows}
    decades = {n * 10.0**d: f"{n * 10.0**d:,.4g}" for n in (1, 3, 2, 5) for d in range(-3, 9)}
    # What comes first stays where there is no room for both.
    marks |= {value: text for value, text in decades.items() if value not in marks}
    room = 0.15 / (bar.ax.figure.get_figheight() * 0.75) * np.log(high / low)
    kept: list[float] = []
    for value in marks:
        is_free = all(abs(np.log(value / other)) > room for other in kept)
        if low * 0.999 <= value <= high * 1.001 and is_free:
            kept.append(value)
    bar.minorticks_off()
    bar.set_ticks(kept, labels=[marks[value] for value in kept])


def _fair_rates(analysis: Analysis) -> np.ndarray:
    """Return the fair selection frequency of each layer in every cell of its experts: [L, M]."""
    names = ("assignments", "tokens", "num_experts")
    selections_L, tokens_L, experts_L = (analysis.layers[name].to_numpy() for name in names)
    fair_L = selections_L / positive(tokens_L) / experts_L
    return np.where(np.isnan(grid(analysis.experts, "expert")), np.nan, fair_L[:, None])


def _is_ragged(analysis: Analysis) -> bool:
    return analysis.layers["num_experts"].nunique() > 1
