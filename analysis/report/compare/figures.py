"""Figures of a comparison: all traces on the same scales.

Shape suffixes: L layers, M experts of the widest layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.analysis.figures.style import (
    COLOURS,
    MARKERS,
    clamp,
    grid,
    log_scale,
    new_figure,
    short,
)
from moe_probe.analysis.metrics.frequency import relative_load
from moe_probe.analysis.report.compare.svg import inked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moe_probe.analysis.comparison import Comparison

_WIDTH = 4.2
"""Inches; small enough for letters to stay readable on a telephone."""
_CLIP = 3.0
_ABSENT, _IDLE = "#9a9a9a", "#ffd400"
_LETTERS = 60


@inked
def loads(found: Comparison) -> Figure:
    """Draw log2 of every relative load, one map for each trace; 0 is a fair share."""
    maps = []
    for side in found.gathered.sides:
        layers = list(side.counts.by_layer())
        log_load_LM = np.full((len(layers), max(len(each.counts_N) for each in layers)), np.nan)
        for row_M, each in zip(log_load_LM, layers, strict=True):
            with np.errstate(divide="ignore"):
                row_M[: len(each.counts_N)] = np.log2(relative_load(each.counts_N))
        # Finite, since what is not is drawn as absent.
        maps.append(np.where(np.isneginf(log_load_LM), -2 * _CLIP, log_load_LM.clip(-_CLIP)))
    figure, image = _maps(maps, found.labels, [side.counts.layers for side in found.gathered.sides])
    image.set_cmap(image.cmap.with_extremes(under=_IDLE))
    for axes in figure.axes:
        axes.images[0].set(cmap=image.cmap, clim=(-_CLIP, _CLIP))
    bar = _bar(figure, image, "relative load")
    bar.set_ticks(range(-3, 4), labels=["≤ 1/8", "1/4", "1/2", "fair", "2", "4", "≥ 8"])
    return figure


@inked
def differences(found: Comparison) -> Figure:
    """Draw the differences of relative loads, one map for each trace that corresponds."""
    table = found.table("experts")
    labels = list(dict.fromkeys(table["trace"]))
    maps = [grid(table[table["trace"] == label], "difference") for label in labels]
    layers = list(found.gathered.reference.counts.layers)
    figure, image = _maps(maps, labels, [layers] * len(maps))
    most = max((float(np.nanmax(np.abs(each), initial=0)) for each in maps), default=0) or 1.0
    for axes in figure.axes:
        axes.images[0].set(clim=(-most, most))
    _bar(figure, image, "relative load less the reference's")
    return figure


@inked
def divergence(found: Comparison) -> Figure:
    """Draw each layer's divergence from the reference, and what noise alone gives."""
    figure, axes = _lines()
    table = found.table("layers")
    for label, part in table.groupby("trace", sort=False):
        style = _style(found, label)
        axes.plot(part["layer"], part["divergence_bits"], label=short(str(label)), **style)
        own = {**style, "linestyle": ":", "marker": ""}
        axes.plot(part["layer"], part["divergence_noise_bits"], label="its noise alone", **own)
    log_scale(axes, "y", table["divergence_bits"].to_numpy())
    return _finish(figure, axes, "layer", "divergence, bits")


@inked
def imbalance(found: Comparison) -> Figure:
    """Draw each layer's MaxVio in every trace, with twice its noise over documents."""
    figure, axes = _lines()
    table = found.table("indices")
    corresponds = all(pair.corresponds for pair in found.gathered.pairs)
    column, name = ("layer", "layer") if corresponds else ("depth", "depth, first to last layer")
    for label, part in table.groupby("trace", sort=False):
        style = _style(found, label)
        axes.plot(part[column], part["max_vio"], label=short(str(label)), **style)
        low, high = (part["max_vio"] + sign * 2 * part["max_vio_noise"] for sign in (-1, 1))
        axes.fill_between(part[column], low, high, color=style["color"], alpha=0.2, linewidth=0)
    return _finish(figure, axes, name, "MaxVio")


@inked
def disagreement(found: Comparison) -> Figure:
    """Draw the share of tokens whose experts differ, and of experts that differ."""
    figure, axes = _lines()
    table = found.table("agreement")
    for label, part in table.groupby("trace", sort=False):
        style, name = _style(found, label), short(str(label), 20)
        axes.plot(part["layer"], 1 - part["same_set"], label=f"{name}: tokens", **style)
        own = {**style, "linestyle": (0, (5, 2)), "markerfacecolor": "none"}
        axes.plot(part["layer"], 1 - part["overlap"], label=f"{name}: experts", **own)
        chance = {**style, "linestyle": ":", "marker": ""}
        axes.plot(part["layer"], 1 - part["overlap_null_own"], label="experts by chance", **chance)
    log_scale(axes, "y", 1 - table[["same_set", "overlap"]].to_numpy())
    return _finish(figure, axes, "layer", "share that differs")


@inked
def depths(found: Comparison) -> Figure:
    """Draw in which layer tokens differ first, as a share of all."""
    figure, axes = _lines()
    table = found.table("first_divergence").dropna(subset=["layer"])
    for label, part in table.groupby("trace", sort=False):
        axes.plot(
            part["layer"].astype(int),
            part["share"],
            label=short(str(label)),
            **_style(found, label),
        )
    axes.set_ylim(bottom=0)
    return _finish(figure, axes, "layer", "tokens that differ first here")


@inked
def margins(found: Comparison) -> Figure:
    """Draw how often experts differ at which margin, all layers together."""
    figure, axes = _lines()
    table = found.table("margin_bins")
    table = table.assign(number=table["different"] * table["tokens"])
    for label, part in table.groupby("trace", sort=False):
        sums = part.groupby("margin_high")[["number", "tokens"]].sum()
        share = sums["number"] / sums["tokens"]
        axes.plot(sums.index, share, label=short(str(label)), **_style(found, label))
    log_scale(axes, "x", table["margin_high"].to_numpy())
    axes.set_ylim(bottom=0)
    return _finish(figure, axes, "margin, upper end of the octave", "tokens that differ")


def _maps(maps: list[np.ndarray], labels: list[str], layers: list[Any]) -> tuple[Figure, Any]:
    heights = [clamp(0.35 + 0.1 * len(each), 0.6, 3.0) for each in maps]
    figure: Any = new_figure(_WIDTH, sum(heights) + 0.45 * len(maps) + 0.6)
    grid_of = figure.subplots(
        len(maps), 1, squeeze=False, gridspec_kw={"height_ratios": heights}
    ).ravel()
    for axes, values_LM, label, own in zip(grid_of, maps, labels, layers, strict=True):
        axes.set_facecolor(_ABSENT)
        image = axes.imshow(values_LM, cmap="RdBu_r", aspect="auto", interpolation="nearest")
        numbers = list(own)
        step = -(-len(numbers) // 8)
        axes.set_yticks(range(0, len(numbers), step), [str(n) for n in numbers[::step]])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title(short(label, _LETTERS))
        axes.set_ylabel("layer")
    axes.set_xlabel("expert")
    return figure, image


def _bar(figure: Any, image: Any, label: str) -> Any:
    return figure.colorbar(
        image, ax=figure.axes, orientation="horizontal", label=label, pad=0.02, aspect=40
    )


def _lines() -> tuple[Any, Any]:
    figure: Any = new_figure(_WIDTH, 2.8)
    return figure, figure.add_subplot()


def _style(found: Comparison, label: object) -> dict[str, Any]:
    """One colour and marker for a trace in all figures; black could not be seen in the dark."""
    place = found.labels.index(str(label)) % (len(COLOURS) - 1)
    return {"color": COLOURS[place], "linestyle": "-", "marker": MARKERS[place]}


def _finish(figure: Any, axes: Any, x: str, y: str) -> Figure:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if x == "layer":
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower left", ncols=2)
    return figure  # type: ignore[no-any-return]
