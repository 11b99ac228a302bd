"""The figures of a report, drawn from the tables of an analysis.

    >>> from moe_probe.analysis import analyse
    >>> from moe_probe.analysis.figures import FIGURES, save
    >>> save(FIGURES["sorted_load"](analyse("my-trace")), "sorted_load.svg")

A figure is matplotlib's own and can be changed before it is saved. matplotlib is imported when the
first one is drawn.

Shape suffixes: none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.analysis.figures.coverage import coverage
from moe_probe.analysis.figures.devices import devices
from moe_probe.analysis.figures.files import rendered
from moe_probe.analysis.figures.heatmap import longest_idle, relative_load
from moe_probe.analysis.figures.imbalance import imbalance_profile, specialization
from moe_probe.analysis.figures.log_odds import log_odds
from moe_probe.analysis.figures.quality import quality_table
from moe_probe.analysis.figures.rate_burst import rate_burst
from moe_probe.analysis.figures.repeats import repeats
from moe_probe.analysis.figures.sorted_load import sorted_load
from moe_probe.analysis.figures.style import Absent, caption
from moe_probe.analysis.figures.subject_tree import subject_tree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moe_probe.analysis.results import Analysis

__all__ = ["FIGURES", "KINDS", "Absent", "caption", "figures", "rendered", "save"]

FIGURES: dict[str, Callable[[Analysis], Figure]] = {
    "quality": quality_table,
    "relative_load": relative_load,
    "sorted_load": sorted_load,
    "imbalance": imbalance_profile,
    "specialization": specialization,
    "coverage": coverage,
    "rate_burst": rate_burst,
    "longest_idle": longest_idle,
    "subject_tree": subject_tree,
    "log_odds": log_odds,
    "repeats": repeats,
    "devices": devices,
}
"""Every figure by its name; one whose data the trace lacks raises `Absent`."""
KINDS = ("png", "svg")


def figures(
    analysis: Analysis, wanted: Iterable[str] = tuple(FIGURES)
) -> Iterator[tuple[str, Figure | str]]:
    """Yield the name of each figure with the figure, or with the reason why there is none."""
    for name in wanted:
        try:
            yield name, FIGURES[name](analysis)
        except Absent as reason:
            yield name, str(reason)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as its path's suffix says, .png or .svg: the same bytes for the same data.

    Raises:
        ValueError: The suffix is another one.
    """
    kind = Path(path).suffix.removeprefix(".")
    if kind not in KINDS:
        raise ValueError(f"{path} ends neither in .png nor in .svg")
    Path(path).write_bytes(rendered(figure, kind))
