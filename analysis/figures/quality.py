"""The quality checks as a table: what has to hold before any other figure is believed.

Shape suffixes: none.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from moe_probe.analysis.figures.style import (
    BLACK,
    BLUE,
    GREY,
    PALE,
    VERMILION,
    captioned,
    new_figure,
    short,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moe_probe.analysis.results import Analysis

_WIDTH = 9.0
_LINE = 0.16
_GAP = 0.09
# Left edge in inches and width in letters of each column.
_COLUMNS = {
    "check": (0.1, 6),
    "name": (0.6, 38),
    "status": (3.0, 10),
    "value": (3.75, 46),
    "expected": (6.7, 34),
}
_MARKS = {"pass": ("✓", BLUE), "fail": ("✗", VERMILION), "note": ("!", BLACK), "skip": ("–", GREY)}


@styled
def quality_table(analysis: Analysis) -> Figure:
    """Draw every quality check with its status as word, mark and colour."""
    table = analysis.quality.astype(str)
    rows = [_cells(dict(zip(table.columns, row, strict=True))) for row in table.to_numpy().tolist()]
    lines = [max(len(cell) for cell in cells.values()) for cells in rows]
    height = sum(lines) * _LINE + len(rows) * _GAP + 0.35
    figure = new_figure(_WIDTH, height)
    axes = figure.add_subplot()
    axes.set(xlim=(0, _WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    for name, (left, _) in _COLUMNS.items():
        axes.text(left, 0.2, name, weight="bold", va="bottom")
    top = 0.27
    for cells, number in zip(rows, lines, strict=True):
        axes.axhline(top, color=PALE, linewidth=0.5)
        for name, cell in cells.items():
            status = cells["status"][0].split()[-1]
            colour = _MARKS[status][1] if name == "status" or status == "skip" else BLACK
            weight = "bold" if status == "fail" else "normal"
            left, text = _COLUMNS[name][0], "\n".join(cell)
            axes.text(left, top + _GAP / 2, text, color=colour, weight=weight, va="top", size=7)
        top += number * _LINE + _GAP
    counts = table["status"].value_counts()
    said = ", ".join(f"{counts.get(status, 0)} {status}" for status in _MARKS)
    shown = f"Quality checks of the recording: {said}."
    return captioned(figure, shown, analysis, "what is expected stands beside each value")


def _cells(row: dict[str, str]) -> dict[str, list[str]]:
    """Wrap the cells of one row; the reason of a skipped check stands where its value would."""
    status = row["status"]
    texts = {**row, "status": f"{_MARKS[status][0]} {status}"}
    if status == "skip":
        texts |= {"value": row["reason"], "expected": ""}
    return {
        name: textwrap.wrap(short(texts[name], 200), letters) or [""]
        for name, (_, letters) in _COLUMNS.items()
    }
