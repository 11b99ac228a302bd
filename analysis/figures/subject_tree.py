"""Which subjects use the same experts: a dendrogram beside the matrix of divergences.

Shape suffixes: S subjects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.analysis.figures.style import (
    COLOURS,
    GREY,
    MARKERS,
    Absent,
    captioned,
    clamp,
    needs_tokens,
    new_figure,
    short,
    styled,
)
from moe_probe.analysis.metrics.clustering import Dendrogram, average_linkage
from moe_probe.analysis.metrics.subject_distance import layer_matrices, mean_over_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moe_probe.analysis.results import Analysis


@styled
def subject_tree(analysis: Analysis) -> Figure:
    """Draw average linkage of the root of the Jensen-Shannon divergence, the mean over layers."""
    needs_tokens(analysis)
    subjects, table = analysis.sums.subjects, analysis.table("divergence")
    layers = analysis.sums.specs
    bits_SS = mean_over_layers(layer_matrices(table, layers, subjects))
    tree = average_linkage(np.sqrt(bits_SS))
    leaves_S = tree.order_S[: len(tree.known_S)]
    if len(leaves_S) < 2:
        raise Absent("all tokens are of one subject")
    null_SS = mean_over_layers(layer_matrices(table, layers, subjects, "divergence_null_bits"))
    noise = float(np.nanmedian(null_SS[np.triu_indices(len(subjects), 1)]))
    height = clamp(0.9 + 0.12 * len(leaves_S), 2.2, 12)
    figure = new_figure(clamp(height + 3, 7, 11), height)
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [2, 3]}, sharey=True)
    _tree(left, tree, np.sqrt(noise))
    image = right.imshow(
        bits_SS[np.ix_(leaves_S, leaves_S)], cmap="cividis", aspect="auto", interpolation="none"
    )
    figure.colorbar(image, ax=right, pad=0.01, aspect=30)
    right.set_title("divergence, bits")
    _names(left, analysis, leaves_S)
    # The rows are named already.
    right.yaxis.set_visible(False)
    right.set_xticks([])
    _areas(left, analysis, leaves_S)
    shown = (
        "Subjects by the experts they use: average linkage of the root of the Jensen-Shannon "
        "divergence, mean over layers; the same divergence on the right."
    )
    null = (
        f"sampling noise at the subjects' design effects, where known: {noise:.3g} bits in the "
        "median; what joins left of the dashed line is not told apart"
    )
    return captioned(figure, shown, analysis, null)


def _tree(axes: Any, tree: Dendrogram, noise: float) -> None:
    from matplotlib.collections import LineCollection
    from scipy.cluster.hierarchy import dendrogram

    found = dendrogram(tree.links, no_plot=True)
    # scipy places leaf number i at 10 i + 5.
    rows = (np.array(found["icoord"]) - 5) / 10
    lines = np.stack([np.array(found["dcoord"]), rows], axis=-1)
    axes.add_collection(LineCollection(list(lines), colors="black", linewidths=0.8))
    most = max(float(tree.links[:, 2].max()), noise) or 1.0
    axes.set_xlim(-0.12 * most, 1.05 * most)
    if noise > 0:
        axes.axvline(noise, color=GREY, linestyle="--", linewidth=0.8)
    axes.set_title("√ divergence")
    axes.xaxis.get_major_locator().set_params(nbins=5)
    axes.spines["left"].set_visible(False)


def _names(axes: Any, analysis: Analysis, leaves_S: np.ndarray) -> None:
    names = [short(analysis.sums.subjects[subject]) for subject in leaves_S]
    size = clamp(430 / len(leaves_S), 3, 7)
    axes.set_yticks(np.arange(len(names)), names, fontsize=size)
    axes.yaxis.set_tick_params(length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _areas(axes: Any, analysis: Analysis, leaves_S: np.ndarray) -> None:
    """Mark the area of each leaf by shape and colour, if there are areas and not too many."""
    areas = [analysis.sums.areas[subject] for subject in leaves_S]
    known = sorted(set(filter(None, areas)))
    if not 2 <= len(known) <= len(COLOURS):
        return
    left = axes.get_xlim()[0] / 2
    for number, area in enumerate(known):
        rows = [row for row, other in enumerate(areas) if other == area]
        look = {"color": COLOURS[number], "marker": MARKERS[number], "linestyle": "none"}
        axes.plot([left] * len(rows), rows, label=short(area, 18), **look)
    axes.figure.legend(loc="outside upper left", ncols=3)
