"""Layers x experts heat map of the relative load.

Shape suffixes: L layers, N experts of a layer, M experts of the widest layer.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.analysis.accumulators.counts import LayerCounts
from moe_probe.analysis.metrics.frequency import relative_load
from moe_probe.analysis.rules import Rule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 200
_CLIP = 3.0
_ABSENT = "#9a9a9a"
# Outside the map's red, white and blue for every kind of colour vision.
_IDLE = "#ffd400"
_MAX_LABELS = 40


def load_heatmap(layers: Sequence[LayerCounts], *, rule: Rule) -> Figure:
    """Draw log2 of every expert's relative load; 0 is a fair share, colours end at 1/8 and 8.

    An expert that was never selected is yellow with a cross; where a layer has fewer experts than
    the widest one, or counted no token, the map is grey. Layers carry the model's own indices.
    """
    # The object interface: pyplot takes longer to import and keeps global state.
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    log_load_LM = log2_load(layers)
    is_idle_LM = np.isneginf(log_load_LM)
    height, width = log_load_LM.shape
    figure = Figure(
        figsize=(_clamp(2.5 + width * 0.035, 6.5, 16.0), _clamp(1.9 + height * 0.16, 2.6, 14.0)),
        dpi=_DPI,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor(_ABSENT)
    image = axes.imshow(
        # Finite, since what is not is drawn as absent.
        np.where(is_idle_LM, -2 * _CLIP, np.clip(log_load_LM, -_CLIP, _CLIP)),
        cmap=colormaps["RdBu_r"].with_extremes(under=_IDLE),
        vmin=-_CLIP,
        vmax=_CLIP,
        aspect="auto",
        interpolation="nearest",
    )
    _mark_idle(axes, is_idle_LM)
    _label(axes, layers)
    bar = figure.colorbar(image, ax=axes, ticks=range(-3, 4), pad=0.01)
    bar.ax.set_yticklabels(["≤ 1/8", "1/4", "1/2", "fair", "2×", "4×", "≥ 8×"])
    bar.set_label("relative load (log scale)")
    lines = textwrap.wrap(caption(layers, rule=rule), int(figure.get_figwidth() * 14))
    figure.text(0.0, -0.02, "\n".join(lines), fontsize=8, va="top", ha="left")
    return figure


def caption(layers: Sequence[LayerCounts], *, rule: Rule) -> str:
    """Say what is shown, by which counting rule, and from how many tokens."""
    text = (
        f"Relative load r = N c / A. Counting rule: {rule} ({rule.description}); "
        f"T = {layers[0].tokens:,} tokens."
    )
    if any(counts.assignments and (counts.counts_N == 0).any() for counts in layers):
        text += " Yellow with a cross: never selected."
    if len({counts.spec.num_experts for counts in layers}) > 1:
        text += " Grey: no such expert."
    return text


def to_png(figure: Figure) -> bytes:
    """Render a figure as PNG bytes, the same for the same data."""
    buffer = BytesIO()
    # Without a software entry the file does not change with the version of matplotlib.
    figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def log2_load(layers: Sequence[LayerCounts]) -> np.ndarray:
    """Return log2 r: float64 [L, M], -inf where never selected, NaN where there is no expert."""
    width = max(counts.spec.num_experts for counts in layers)
    log_load_LM = np.full((len(layers), width), np.nan)
    for row_M, counts in zip(log_load_LM, layers, strict=True):
        with np.errstate(divide="ignore"):
            row_M[: counts.spec.num_experts] = np.log2(relative_load(counts.counts_N))
    return log_load_LM


def _mark_idle(axes: Any, is_idle_LM: np.ndarray) -> None:
    row, column = np.nonzero(is_idle_LM)
    if len(row):
        figure = axes.figure
        cell = min(
            figure.get_figwidth() * 0.8 * 72 / is_idle_LM.shape[1],
            figure.get_figheight() * 0.7 * 72 / is_idle_LM.shape[0],
        )
        axes.scatter(
            column, row, s=(0.6 * cell) ** 2, marker="x", color="black", linewidths=0.12 * cell
        )


def _label(axes: Any, layers: Sequence[LayerCounts]) -> None:
    step = -(-len(layers) // _MAX_LABELS)
    rows = range(0, len(layers), step)
    axes.set_yticks(list(rows), [str(layers[row].spec.layer) for row in rows], fontsize=8)
    axes.set_ylabel("layer")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("expert")


def _clamp(value: float, low: float, high: float) -> float:
    return max(low, min(high, value))
