"""Each layer's loads from the most to the least used expert, beside the band of even routing.

Shape suffixes: N experts of a layer, by rank from the most used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.analysis.figures.style import (
    BLACK,
    COLOURS,
    DASHES,
    GREY,
    MARKERS,
    PALE,
    captioned,
    effective_name,
    log_scale,
    needs_tokens,
    new_figure,
    styled,
)
from moe_probe.analysis.metrics.load_curve import even_band, load_curve
from moe_probe.analysis.tables.layers import of_fixed_k

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moe_probe.analysis.results import Analysis


_LEAST = 1e-4
"""Loads below this leave the figure: they are idle, whatever they are exactly."""


@styled
def sorted_load(analysis: Analysis) -> Figure:
    """Draw a line per layer; the band is of even routing at the median T_eff."""
    needs_tokens(analysis)
    every_count = analysis.experts.set_index("layer")["count"]
    curves = {
        layer: load_curve(every_count.loc[[layer]].to_numpy())
        for layer in analysis.layers.loc[analysis.layers["assignments"] > 0, "layer"]
    }
    figure = new_figure(6.5, 3.6)
    axes = figure.add_subplot()
    _bands(axes, analysis)
    axes.axhline(1, color=BLACK, linewidth=0.6)
    _lines(axes, {n: (np.arange(1, len(r_N) + 1), r_N) for n, r_N in curves.items()})
    every = np.concatenate(list(curves.values()))
    log_scale(axes, "y", every)
    axes.set_ylim(bottom=max(axes.get_ylim()[0], _LEAST))
    axes.legend(loc="upper right")
    axes.set(xlabel="rank of the expert, from the most used", ylabel="relative load (log scale)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    shown = "Relative load of each layer's experts, sorted; 1 is a fair share."
    if (every == 0).any():
        shown += f" {int((every == 0).sum()):,} experts were never selected: lines end before them."
    tokens = effective_name(analysis)
    null = f"95 % of each rank under uniform choice lie in the grey band, at the median {tokens}"
    return captioned(figure, shown, analysis, null)


def _bands(axes: Any, analysis: Analysis) -> None:
    layers, fixed = analysis.layers, of_fixed_k(analysis.layers, analysis.sums)
    effective = fixed["tokens_effective"].fillna(fixed["tokens"])
    shapes = layers[["num_experts", "top_k"]].drop_duplicates()
    for num_experts, top_k in shapes.to_numpy().tolist():
        is_shape = (layers["num_experts"] == num_experts) & (layers["top_k"] == top_k)
        null_k, tokens = (float(of[is_shape].median()) for of in (fixed["top_k"], effective))
        low_N, high_N = even_band(num_experts, null_k, tokens)
        rank_N = np.arange(1, num_experts + 1)
        label = f"even routing, N = {num_experts}, k = {top_k}"
        axes.fill_between(rank_N, low_N, high_N, color=PALE, linewidth=0, label=label, zorder=1)
        # Many lines would hide the band, but not its ends.
        for end_N in (low_N, high_N):
            axes.plot(rank_N, end_N, color=GREY, linewidth=0.6, zorder=2.5)


def _lines(axes: Any, lines: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
    """Draw one line per layer: few with a legend, many in a colour scale of depth."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    if len(lines) <= len(COLOURS):
        for number, (layer, (x, y)) in enumerate(lines.items()):
            dash = DASHES[number]
            mark = MARKERS[number] if len(x) == 1 else ""
            axes.plot(
                x, y, color=COLOURS[number], linestyle=dash, marker=mark, label=f"layer {layer}"
            )
        return
    norm = Normalize(min(lines), max(lines))
    for layer, (x, y) in lines.items():
        colour = colormaps["cividis"](norm(layer))
        axes.plot(x, y, color=colour, linewidth=0.6, rasterized=True)
    mappable = ScalarMappable(norm, "cividis")
    axes.figure.colorbar(mappable, ax=axes, label="layer", pad=0.01, aspect=30)
