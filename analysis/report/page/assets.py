"""Styles and scripts of the page: our own files, and BokehJS from the installed package."""

from __future__ import annotations

from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path

from moe_probe.analysis.report.page.text import to_text
from moe_probe.errors import MoeProbeError

CORE = (
    "decode.js",
    "data.js",
    "format.js",
    "intervals.js",
    "colors.js",
    "page.js",
    "controls.js",
    "table.js",
    "figure.js",
    "card.js",
    "selection.js",
    "theme.js",
    "navigation.js",
)
VIEWS = (
    "heatmap.js",
    "heatmap_cells.js",
    "heatmap_view.js",
    "load_math.js",
    "load_common.js",
    "load_sorted.js",
    "load_imbalance.js",
    "load_decomposition.js",
    "load_coverage.js",
    "idle_common.js",
    "idle_scatter.js",
    "idle_longest.js",
    "idle_windows.js",
    "devices.js",
    "placement.js",
    "subjects_math.js",
    "subjects_shared.js",
    "subjects_tree.js",
    "subjects_volcano.js",
    "subjects_ranking.js",
    "structure_pairs.js",
    "structure_repeats.js",
    "documents.js",
)
"""Files with calls of `MoeProbe.view`; the page shows them in this order inside a section."""
SCRIPTS = (*CORE, *VIEWS, "start.js")
_BOKEH = ("bokeh.min.js", "bokeh-api.min.js")


def file(name: str) -> str:
    """Return a file of this package."""
    return files(__package__).joinpath(name).read_text("utf-8")


def script() -> str:
    """Return our scripts as one function that sees no names but its own."""
    parts = "\n".join(file(f"js/{name}") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}\n}})();'


def bokeh() -> str:
    """Return BokehJS, deflated, as text.

    Importing bokeh would take longer than writing a report.

    Raises:
        MoeProbeError: the package bokeh lacks them.
    """
    parts = []
    for name in _BOKEH:
        path = Path(str(distribution("bokeh").locate_file(f"bokeh/server/static/js/{name}")))
        try:
            parts.append(path.read_bytes())
        except OSError as error:
            raise MoeProbeError(
                f"Cannot read {path}: {error.strerror or error}. Install bokeh again."
            ) from error
    return to_text(b"\n".join(parts))
