"""Figures as the bytes of files, the same for the same data.

Shape suffixes: none.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.analysis.figures.style import styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COMPRESSION = 3


@styled
def rendered(figure: Figure, kind: str) -> bytes:
    """Return a figure as "png" or "svg", the same each time."""
    # Drawn by the canvas itself: savefig draws everything once more, to find the layout.
    if kind == "png":
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from PIL import Image

        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        # Nothing is transparent, and three channels take half the time of four.
        picture, file = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), BytesIO()
        picture.save(file, "png", dpi=(figure.dpi, figure.dpi), compress_level=_COMPRESSION)
        return file.getvalue()
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file, dpi = BytesIO(), figure.dpi
    # Without these entries a file does not change with the date or the version of matplotlib.
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})
    # A page of SVG has 72 points to an inch, and leaves the figure so.
    figure.dpi = dpi
    return file.getvalue()
