"""Which experts belong to which subjects: a volcano of log-odds. One dot per expert and subject.

Shape suffixes: none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moe_probe.analysis.figures.named_points import numbered
from moe_probe.analysis.figures.style import (
    BLACK,
    BLUE,
    GREY,
    VERMILION,
    Absent,
    captioned,
    needs_tokens,
    new_figure,
    short,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moe_probe.analysis.results import Analysis

_LEVEL = 0.05
_NAMED = 10
_LEAST = 1e-300
"""Smaller q-values are drawn as this one."""
_TICKS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 300)
_GRID = 1000
"""Of dots closer than this part of either axis, one is drawn."""
# Label, colour and marker by the sign of a significant log-odds; 0 is not significant.
_KINDS = {
    0: ("not significant", GREY, "."),
    -1: ("selected less, q < 0.05", BLUE, "v"),
    1: ("selected more, q < 0.05", VERMILION, "^"),
}


@styled
def log_odds(analysis: Analysis) -> Figure:
    """Draw log-odds against q-value of every expert and subject of 30 documents or more."""
    needs_tokens(analysis)
    known = analysis.subjects.dropna(subset=["log_odds", "q_value"])
    if not len(known):
        reason = "no subject beside others has 30 documents"
        raise Absent(reason if len(analysis.sums.subjects) > 1 else "all tokens are of one subject")
    height = -np.log10(np.maximum(known["q_value"], _LEAST))
    kind = np.sign(known["log_odds"]).where(known["q_value"] < _LEVEL, 0)
    figure = new_figure(7.5, 4)
    axes = figure.add_subplot()
    for number, (label, colour, marker) in _KINDS.items():
        is_kind = (kind == number).to_numpy()
        x, y = _thinned(known["log_odds"].to_numpy()[is_kind], height.to_numpy()[is_kind])
        look = {"color": colour, "marker": marker, "linestyle": "none", "markeredgewidth": 0}
        label = f"{label} ({int(is_kind.sum()):,})"
        axes.plot(x, y, label=label, markersize=2.5, rasterized=True, **look)
    axes.axvline(0, color=BLACK, linewidth=0.6)
    axes.axhline(-math.log10(_LEVEL), color=GREY, linestyle="--", linewidth=0.8, label="q = 0.05")
    axes.set_yscale("function", functions=(_root, np.square))
    axes.set_ylim(0, max(1.1 * height.max(), 1.5))
    axes.set_yticks([tick for tick in _TICKS if tick <= axes.get_ylim()[1]])
    axes.set(xlabel="log-odds against the other subjects, nats", ylabel="−log10 q (root scale)")
    _name(axes, known[known["q_value"] < _LEVEL])
    number = int((known["q_value"] < _LEVEL).sum())
    shown = (
        f"Every expert and subject: log-odds drawn towards 0 by prior counts. {number:,} of "
        f"{len(known):,} pairs have q < 0.05."
    )
    if number:
        shown += " Those with the largest abs(z) are numbered."
    null = (
        "z of a standard normal, with the design effect of the subject; q-values after Benjamini "
        "and Hochberg over all pairs"
    )
    return captioned(figure, shown, analysis, null)


def _name(axes: Any, found: pd.DataFrame) -> None:
    top = found.loc[found["z"].abs().nlargest(_NAMED).index]
    which = zip(top["layer"], top["expert"], top["subject"], strict=True)
    names = [f"layer {n}, expert {e}: {short(subject, 24)}" for n, e, subject in which]
    height = -np.log10(np.maximum(top["q_value"], _LEAST))
    numbered(axes, list(top["log_odds"]), list(height), names)


def _root(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(np.maximum(values, 0)))


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return one of all dots that would lie on each other; all of them where they are few."""
    if len(x) <= _GRID:
        return x, y
    cells = [np.round((v - v.min()) / (np.ptp(v) or 1) * _GRID).astype(np.int64) for v in (x, y)]
    _, first = np.unique(cells[0] * (_GRID + 1) + cells[1], return_index=True)
    return x[first], y[first]
