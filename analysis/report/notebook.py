"""An analysis as a notebook shows it: the findings, a small heat map, and what tables there are.

Every text goes through `escape`, because names of models, tasks and subjects come from a trace.

Shape suffixes: L layers, M experts of the widest layer, C colour channels.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.analysis.report.contents import Contents, contents_of, one_line
from moe_probe.analysis.results import TABLES

if TYPE_CHECKING:
    from moe_probe.analysis.results import Analysis

# One pixel for each expert of each layer, enlarged by the browser.
_PIXELS = 8
_MAX_WIDTH = 1024
_CLIP = 3.0
_BAD = "border-left: 4px solid #b3261e; padding-left: 8px"


def to_html(analysis: Analysis) -> str:
    """Return HTML to be shown in a page of any colours; findings only if no check failed."""
    contents = contents_of(analysis)
    title = f"Expert use of {one_line(contents.run.get('model', 'a model'))}"
    parts = [
        f"<p><strong>{escape(title)}</strong><br>{escape(one_line(contents.trace))}</p>",
        *(f'<p style="{_BAD}">{escape(text)}</p>' for text in contents.warnings()),
        _list(
            f"{check.check} {check.name}: {check.value}, expected {check.expected}"
            for check in contents.failed
        ),
        _list(contents.findings()),
        _heatmap(contents),
        f"<p><small>{escape(one_line(analysis.caption))}</small></p>",
        _tables(analysis),
    ]
    return f"<div>{''.join(parts)}</div>"


def _tables(analysis: Analysis) -> str:
    """Name all tables; the sizes of those that nobody asked for yet are not known."""
    sizes = {name: f" ({len(table):,} × {table.shape[1]})" for name, table in analysis.made.items()}
    names = ", ".join(f"{name}{sizes.get(name, '')}" for name in TABLES)
    text = f"Tables, those made so far with rows × columns: {names}."
    return f"<p><small>{escape(text)} <code>.table(name)</code></small></p>"


def _heatmap(contents: Contents) -> str:
    if not contents.tokens:
        return ""
    pixels_LMC = _pixels(contents)
    height, width, _ = pixels_LMC.shape
    scale = max(1, min(_PIXELS, _MAX_WIDTH // width))
    source = f"data:image/png;base64,{b64encode(_png(pixels_LMC)).decode('ascii')}"
    text = (
        "Relative load, layers down and experts across: white is a fair share, red up to 8 times "
        "as much, blue down to an eighth, yellow never selected."
    )
    return (
        f'<img src="{source}" alt="{escape(text)}" style="width: {width * scale}px; '
        f'height: {height * scale}px; max-width: 100%; image-rendering: pixelated">'
        f"<p><small>{escape(text)}</small></p>"
    )


def _pixels(contents: Contents) -> np.ndarray:
    """Return colours uint8 [L, M, 4] of every expert's load; without an expert, transparent."""
    from matplotlib import colormaps

    from moe_probe.analysis.figures.style import grid
    from moe_probe.analysis.statistics.undefined import positive

    load_LM = grid(contents.experts, "relative_load")
    log_load_LM = np.log2(positive(load_LM))
    colours = colormaps["RdBu_r"](np.nan_to_num(log_load_LM / (2 * _CLIP) + 0.5), bytes=True)
    pixels_LMC = np.asarray(colours, np.uint8)
    pixels_LMC[load_LM == 0] = (255, 212, 0, 255)
    pixels_LMC[np.isnan(load_LM)] = 0
    return pixels_LMC


def _png(pixels_LMC: np.ndarray) -> bytes:
    from matplotlib.image import imsave

    buffer = BytesIO()
    unversioned: Any = {"Software": None}
    imsave(buffer, pixels_LMC, format="png", metadata=unversioned)
    return buffer.getvalue()


def _list(items: Iterable[str]) -> str:
    rows = "".join(f"<li>{escape(one_line(item))}</li>" for item in items)
    return f"<ul>{rows}</ul>" if rows else ""
